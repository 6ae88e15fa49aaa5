"""Training pictures: any folder of images, or one .npy file of them; a view follows from seed and position alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from e4t.errors import DataError
from e4t.images import load_image

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class Views:
    """Two views of the same pictures, [B, 3, R, R] in [-1, 1]: what is to be drawn, and what the encoder sees."""

    target: Tensor
    reference: Tensor


class ImageData:
    """A folder of images (searched through sub-folders, in sorted order) or a uint8 .npy file [N, H, W, 3].

    ``crop_scale`` is the share of the area a random square crop keeps, (1, 1) for the centre square; ``flip`` mirrors
    half of the pictures; ``color_jitter`` changes brightness, contrast and saturation of the reference by up to
    that factor.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        resolution: int,
        crop_scale: tuple[float, float],
        flip: bool,
        color_jitter: float,
        seed: int,
    ) -> None:
        self.source = Path(source)
        self.resolution = resolution
        self.crop_scale = crop_scale
        self.flip = flip
        self.color_jitter = color_jitter
        self.seed = seed
        self._pictures = _open(self.source)

    def __len__(self) -> int:
        return len(self._pictures)

    def picture(self, index: int) -> Image.Image:
        entry = self._pictures[index]
        if isinstance(entry, Path):
            return load_image(entry)
        return Image.fromarray(np.ascontiguousarray(entry))

    def views(self, batch: int, size: int) -> Views:
        """Batch number ``batch`` of ``size`` pictures; every epoch goes through all pictures in a new order."""
        pairs = [self._pair(position) for position in range(batch * size, (batch + 1) * size)]
        return Views(*(torch.stack(views) for views in zip(*pairs, strict=True)))

    def picks(self, batch: int, size: int) -> list[int]:
        """Which pictures `views` shows."""
        return [self._pick(position) for position in range(batch * size, (batch + 1) * size)]

    def _pick(self, position: int) -> int:
        epoch, place = divmod(position, len(self))
        return int(self.order(epoch)[place])

    def _pair(self, position: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, 1, position])
        image = self.picture(self._pick(position))
        if self.flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        target, reference = (self._crop(image, rng) for _ in range(2))
        return target, _jitter(reference, self.color_jitter, rng)

    def order(self, epoch: int) -> np.ndarray:
        """In which order an epoch goes through the pictures."""
        if getattr(self, "_cached_epoch", None) != epoch:
            self._cached_epoch = epoch
            self._cached_order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self))
        return self._cached_order

    def _crop(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        if self.crop_scale == (1.0, 1.0):
            return square_pixels(image, self.resolution)
        side = min(image.size) * float(rng.uniform(*self.crop_scale)) ** 0.5
        left, top = (rng.random() * (extent - side) for extent in image.size)
        return to_pixels(_resized(image, self.resolution, (left, top, left + side, top + side)))


def to_pixels(image: Image.Image) -> Tensor:
    """[3, H, W] in [-1, 1]."""
    values = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32))
    return values.permute(2, 0, 1) / 127.5 - 1


def square_pixels(image: Image.Image, resolution: int) -> Tensor:
    """The centre square at a resolution, [3, R, R] in [-1, 1]: always the same crop, never mirrored."""
    return to_pixels(_resized(image, resolution, _centre(image)))


def square_mask(mask: Image.Image, resolution: int) -> Tensor:
    """The same square of a mask, [1, R, R] in [0, 1]."""
    mask = mask.convert("L")
    values = np.array(_resized(mask, resolution, _centre(mask)), dtype=np.float32)
    return torch.from_numpy(values / 255)[None]


def write_cache(source: str | Path, path: str | Path, *, resolution: int) -> Path:
    """Decode a folder once into a .npy file of centre squares, uint8 [N, R, R, 3], for `ImageData` to map."""
    data = ImageData(source, resolution=resolution, crop_scale=(1.0, 1.0), flip=False, color_jitter=0.0, seed=0)
    shape = (len(data), resolution, resolution, 3)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    for index in range(len(data)):
        image = data.picture(index)
        array[index] = np.array(_resized(image, resolution, _centre(image)))
    array.flush()
    return Path(path)


def _open(source: Path) -> list[Path] | np.ndarray:
    if source.suffix == ".npy" and source.is_file():
        array: np.ndarray = np.load(source, mmap_mode="r", allow_pickle=False)
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
            raise DataError(f"'{source}' is {array.dtype} {array.shape}; expected uint8 [N, H, W, 3]")
        return array
    if not source.is_dir():
        raise DataError(f"'{source}' is neither a folder of images nor a .npy file")
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise DataError(f"'{source}' holds no images ({', '.join(sorted(SUFFIXES))})")
    return paths


def _centre(image: Image.Image) -> tuple[float, float, float, float]:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _resized(image: Image.Image, resolution: int, box: tuple[float, float, float, float]) -> Image.Image:
    return image.resize((resolution, resolution), Image.Resampling.BICUBIC, box=box)


def _jitter(pixels: Tensor, amount: float, rng: np.random.Generator) -> Tensor:
    if not amount:
        return pixels
    brightness, contrast, saturation = (1 + amount * float(rng.uniform(-1, 1)) for _ in range(3))
    values = (pixels + 1) / 2 * brightness
    values = (values - values.mean()) * contrast + values.mean()
    grey = values.mean(dim=0, keepdim=True)
    return ((grey + (values - grey) * saturation) * 2 - 1).clamp(-1, 1)
