"""Views of training pictures: which comes when, how it is cropped, mirrored and coloured, from seed and position alone.

A picture that cannot be decoded is left out: the one that comes next stands in for it, and it is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from e4t.config import PretrainConfig
from e4t.errors import DataError, ImageError
from e4t.pictures import Undecoded, open_pictures
from e4t.shards import ShardStream, shard_urls

_MOST_IN_A_ROW = 1_000  # pictures that cannot be decoded, before that is taken for the fault of the source
_UNDER_WAY = 2  # batches that are read or ready at a time: the one that is asked for, and the next
_T = TypeVar("_T")


@dataclass(frozen=True)
class Views:
    """Two views of the same pictures, [B, 3, R, R] in [-1, 1]: what is to be drawn, and what the encoder sees.

    ``captions`` are what is written about them, None where nothing is. ``broken`` are pictures they stand in for, which
    could not be decoded, and why.
    """

    target: Tensor
    reference: Tensor
    captions: Sequence[str | None] = ()
    broken: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Shuffle:
    """Every epoch goes through all of ``count`` numbers in a new order."""

    count: int
    seed: int
    _order: tuple[int, np.ndarray] = field(default=(-1, np.empty(0)), repr=False)

    def pick(self, position: int) -> int:
        """The number at a position of the order without end."""
        epoch, place = divmod(position, self.count)
        known, order = self._order  # read and replaced as one, because worker threads ask, too
        if known != epoch:
            order = np.random.default_rng([self.seed, 0, epoch]).permutation(self.count)
            self._order = epoch, order
        return int(order[place])


def require_pictures(source: str | Path) -> None:
    """Raises DataError for what `ImageData` would refuse, and for an empty folder; no picture is read."""
    if not shard_urls(source):
        open_pictures(source)


class ImageData:
    """Training pictures: any source of `open_pictures`, or shards (`shard_urls`), whose ``entries`` are not known.

    Of the settings it heeds ``crop_scale``, the share of the area a random square crop keeps, (1, 1) for the centre
    square; ``flip``, which mirrors half of the pictures; ``color_jitter``, which changes brightness, contrast and
    saturation of the reference by up to that factor; ``seed`` and ``shuffle_buffer``. ``broken`` are the pictures and
    shards that could not be read, and why, of those used so far (`use`).
    """

    def __init__(self, source: str | Path, config: PretrainConfig, resolution: int) -> None:
        self.source = str(source)
        self.config = config
        self.resolution = resolution
        self.broken: dict[str, str] = {}
        urls = shard_urls(source)
        self.stream = ShardStream(urls, config.seed, config.shuffle_buffer) if urls else None
        self.entries: Sequence[Undecoded] = () if urls else open_pictures(source)
        self._shuffle = Shuffle(len(self.entries), config.seed)

    def __len__(self) -> int:
        return len(self.entries)

    def views(self, batch: int, size: int) -> Views:
        """Batch number ``batch`` of ``size`` pictures."""
        views = self.views_at(range(batch * size, (batch + 1) * size))
        self.use(views, (batch + 1) * size)
        return views

    def views_at(self, positions: Sequence[int], run: Callable[..., Iterable[Any]] = map) -> Views:
        """The pictures at some rising positions; ``run`` is `map`, or that of an executor."""
        for position in positions:  # shards are read from first to last, whatever the threads do
            self._entry(position)
        targets, references, captions, broken = zip(*run(self._see, positions), strict=True)
        reasons = {name: reason for one in broken for name, reason in one.items()}
        return Views(torch.stack(targets), torch.stack(references), captions, reasons)

    def use(self, views: Views, end: int) -> None:
        """Count what was broken of views, and before the position ``end``; what is prepared ahead may never be used."""
        self.broken |= {name: reason for name, reason in views.broken.items() if name not in self.broken}
        if self.stream is not None:
            self.broken |= self.stream.broken_before(end)

    def picks(self, positions: Iterable[int]) -> list[int]:
        """Which pictures `views_at` shows, by number; those that cannot be decoded included."""
        return [self._shuffle.pick(position) for position in positions]

    def release(self, before: int) -> None:
        """Nothing before a position will be asked for again."""
        if self.stream is not None:
            self.stream.release(before)

    def _entry(self, position: int) -> Undecoded:
        """The picture at a position of the order of training."""
        return self.stream.at(position) if self.stream is not None else self.entries[self._shuffle.pick(position)]

    def _see(self, position: int) -> tuple[Tensor, Tensor, str | None, Mapping[str, str]]:
        """A picture's two views, its caption, and what it stands in for."""
        rng = np.random.default_rng([self.config.seed, 1, position])
        broken: dict[str, str] = {}
        image, caption = self.first_readable(position, self._decoded, broken)
        return *self.views_of(image, rng), caption, broken

    def _decoded(self, position: int) -> tuple[Image.Image, str | None]:
        entry = self._entry(position)
        return entry.image(), entry.caption()

    def views_of(self, image: Image.Image, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A target and a reference, [3, R, R] each, of a picture."""
        if self.config.flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        target, reference = (self._crop(image, rng) for _ in range(2))
        return target, _jitter(reference, self.config.color_jitter, rng)

    def first_readable(self, position: int, attempt: Callable[[int], _T], broken: dict[str, str]) -> _T:
        """``attempt`` at a position, or at the next where no ImageError comes: the same in every process and run.

        What comes is written to ``broken``.
        """
        tries = min(2 * len(self) or _MOST_IN_A_ROW, _MOST_IN_A_ROW)  # twice: the next epoch has another order
        for place in range(position, position + tries):
            try:
                return attempt(place)
            except ImageError as error:
                broken.setdefault(self._entry(place).name, str(error))
        reason = next(iter(broken.values()))
        raise DataError(f"'{self.source}' holds no picture that can be read, in {tries} tries; the first: {reason}")

    def _crop(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        if self.config.crop_scale == (1.0, 1.0):
            return square_pixels(image, self.resolution)
        side = min(image.size) * float(rng.uniform(*self.config.crop_scale)) ** 0.5
        left, top = (rng.random() * (extent - side) for extent in image.size)
        return to_pixels(_resized(image, self.resolution, (left, top, left + side, top + side)))


class Ahead(Generic[_T]):
    """``load(i)`` for i = n, n + 1, …, prepared by ``workers`` threads before it is asked for; none: when asked for.

    Threads, because decoding and resizing let others run meanwhile, and nothing has to be copied between processes.
    ``load`` gets the executor's `map`, for work inside one batch.
    """

    def __init__(self, load: Callable[[int, Callable[..., Iterable[Any]]], _T], workers: int) -> None:
        self._load = load
        self._workers = ThreadPoolExecutor(workers) if workers else None
        self._reader = ThreadPoolExecutor(1)  # one batch after another: shards are read from first to last
        self._coming: dict[int, Future[_T]] = {}

    def __call__(self, index: int) -> _T:
        if self._workers is None:
            return self._load(index, map)
        for number in range(index, index + _UNDER_WAY):
            if number not in self._coming:
                self._coming[number] = self._reader.submit(self._load, number, self._workers.map)
        return self._coming.pop(index).result()

    def close(self) -> None:
        """Drop what is under way."""
        for executor in (self._reader, self._workers):
            if executor is not None:
                executor.shutdown(wait=True, cancel_futures=True)


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
