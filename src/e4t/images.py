"""An untrusted file to a clean RGB image: orientation, colour modes and profiles, size limits, crop, mask."""

from __future__ import annotations

import base64
import functools
import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from e4t.errors import ImageError

ImageSource: TypeAlias = str | os.PathLike[str] | Image.Image

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64_000_000  # 8000 x 8000, more than a phone camera gives
MIN_SIDE = 8
MAX_PREVIEW_BYTES = 30_000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "AVIF", "JPEG2000")
"""What Pillow may be asked to decode: formats that can run programs or fetch files (EPS, ...) are left out."""

SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""What files in folders and archives end in that are taken for pictures."""

_PILLOW = re.compile(r"PIL\.")
_SPACES = {"RGB": "RGB", "CMYK": "CMYK", "GRAY": "L"}
"""Of colour profiles, and the modes of pictures they are for."""
_HINT = "use a JPEG, PNG or WebP picture"


def load_image(source: ImageSource) -> Image.Image:
    """Any picture, upright and as 8-bit RGB, without metadata.

    EXIF orientation is applied, transparency is put on white, 16-bit values are scaled, colours of an embedded profile
    become those of sRGB, of an animation the first frame is taken.

    Raises:
        ImageError: the file is missing, not a picture, damaged, or too large to be decoded safely.
    """
    return _on_white(_decode(source))


def decode_image(data: bytes, name: str) -> Image.Image:
    """The same of the bytes of a file; ``name`` is for messages."""
    return _on_white(_decode_bytes(data, f"'{name}'"))


def decode_layer(data: bytes, name: str) -> Image.Image:
    """The same with its transparency, as 8-bit RGBA."""
    image = _decode_bytes(data, name)
    return (_to_grey(image) if _is_deep(image) else image).convert("RGBA")


def _decode_bytes(data: bytes, name: str) -> Image.Image:
    if not data:
        raise ImageError(f"{name} is empty; {_HINT}")
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name} has more than {MAX_BYTES // 2**20} MB; make it smaller")
    return _opened(io.BytesIO(data), name)


def load_mask(source: ImageSource) -> Image.Image:
    """A mask as 8-bit grey, 255 where the subject is: a picture's transparency if it has any, else its brightness.

    Raises:
        ImageError: as `load_image`, and when the mask is empty.
    """
    image = _decode(source)
    if _has_alpha(image):
        alpha = image.convert("RGBA").getchannel("A")
        mask = alpha if np.asarray(alpha).min() < 255 else _to_grey(image)
    else:
        mask = _to_grey(image)
    if not np.asarray(mask).any():
        raise ImageError(f"{_name(source)} is an empty mask: paint the subject white and the rest black")
    return mask


def square(image: Image.Image, size: int) -> Image.Image:
    """The largest centred square, resized to ``size`` x ``size`` pixels with a Lanczos filter."""
    if size < 1:
        raise ImageError(f"a picture cannot be made {size} pixels wide; give a size of 1 or more")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    cropped = image.crop((left, top, left + side, top + side))
    # Cropped first: with a box, the filter would reach for pixels outside of it.
    return cropped if side == size else cropped.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)


def preview(image: Image.Image) -> bytes:
    """A JPEG of at most 256 pixels and `MAX_PREVIEW_BYTES`, for model cards and for the metadata of files."""
    small, limit = _on_white(_straight(image.copy())), MAX_PREVIEW_BYTES
    small.thumbnail((256, 256), Image.Resampling.LANCZOS)
    for quality in (90, 75, 50, 25, 5):
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality)
        if len(buffer.getvalue()) <= limit:
            return buffer.getvalue()
    raise ImageError(f"a picture of {small.width} x {small.height} does not fit into {limit} bytes; make it smaller")


def data_url(content: bytes, kind: str = "jpeg") -> str:
    """A picture's file as the text that a page or another file holds it in."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _decode(source: ImageSource) -> Image.Image:
    """The first frame, upright, all its pixels read."""
    name = _name(source)
    if isinstance(source, Image.Image):
        _check_size(source.size, name)
        with _decoding(name):
            copy = source.copy()  # reads what the file still holds
        return _load(copy, name)
    return _decode_bytes(_read(Path(source), name), name)


def _opened(data: io.BytesIO, name: str) -> Image.Image:
    _hush_pillow()
    try:
        opened = Image.open(data, formats=_formats())
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not a picture this program can read; {_HINT}") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name} has more than {MAX_PIXELS / 1e6:.0f} million pixels; make it smaller") from None
    except Exception as error:
        raise ImageError(f"{name} is damaged and cannot be opened ({_reason(error)}); save it anew") from error
    with opened:
        _check_size(opened.size, name)
        return _load(opened, name)


def _hush_pillow() -> None:
    """Have Pillow's warnings of large pictures and odd metadata ignored: the limits are checked here instead.

    By one filter that stays: pictures are read in threads, and filters that one of them puts back are not its own.
    """
    first: Any = warnings.filters[0] if warnings.filters else (None,) * 5
    if (first[0], first[3]) != ("ignore", _PILLOW):
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)


def _load(image: Image.Image, name: str) -> Image.Image:
    with _decoding(name):
        image.seek(0)
        image.load()
        return _straight(ImageOps.exif_transpose(image))


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """One sentence for what a damaged file leads decoders into: OSError, SyntaxError, ValueError, struct.error, ..."""
    try:
        yield
    except Exception as error:
        raise ImageError(f"{name} is damaged or cut off ({_reason(error)}); save or download it anew") from error


def _read(path: Path, name: str) -> bytes:
    try:
        if path.is_dir():
            raise ImageError(f"{name} is a folder; give the path of one picture")
        size = path.stat().st_size  # 0 of a pipe or device: what it holds is not known beforehand
        if size > MAX_BYTES:
            limit = MAX_BYTES // 2**20
            raise ImageError(f"{name} has {size / 2**20:.0f} MB, and the limit is {limit} MB; make it smaller")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ImageError(f"there is no picture at {name}; check the path") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{name} cannot be opened ({_reason(error)}); check the path and its permissions") from error


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        limit = f"{MAX_PIXELS / 1e6:.0f} million"
        raise ImageError(f"{name} is {width} x {height} pixels, and the limit is {limit} in all; make it smaller")
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{name} is {width} x {height} pixels; both sides need at least {MIN_SIDE}")


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _straight(image: Image.Image) -> Image.Image:
    """With colours that are not multiplied by their transparency."""
    mode = {"RGBa": "RGBA", "La": "LA"}.get(image.mode)
    return image.convert(mode) if mode else image


def _on_white(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if _is_deep(image):  # a transparent grey value belongs to the 16-bit picture and would not survive its scaling
        image = _to_grey(image)
    elif _has_alpha(image):
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba).convert("RGB")
    return _bare(_in_srgb(image, profile))


def _in_srgb(image: Image.Image, profile: Any) -> Image.Image:
    """RGB with the colours of sRGB, where an embedded profile says that the numbers mean others."""
    plain = image if image.mode in _SPACES.values() else image.convert("RGB")
    return _converted(plain, profile) or plain.convert("RGB")


def _converted(image: Image.Image, profile: Any) -> Image.Image | None:
    """None for a profile that is sRGB's own, and for one that is broken or of other pictures: as good as none."""
    if not isinstance(profile, bytes) or not profile:
        return None
    from PIL import ImageCms

    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        of_this_mode = _SPACES.get(own.profile.xcolor_space.strip()) == image.mode
        if not of_this_mode or "srgb" in ImageCms.getProfileDescription(own).lower():
            return None
        transform = ImageCms.buildTransform(own, ImageCms.createProfile("sRGB"), image.mode, "RGB")
        return ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, ImportError, OSError, TypeError, ValueError):  # the second: Pillow came without it
        return None


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _to_grey(image: Image.Image) -> Image.Image:
    """8-bit grey. Deeper values are scaled by the range they are of; Pillow would cut them off.

    That is the type's, and of types with room for several ranges (32 bits, floats) the smallest that holds them all.
    """
    if image.mode == "F":
        return _scaled_floats(np.nan_to_num(np.asarray(image, dtype=np.float32)))
    if image.mode.startswith("I"):
        return _scaled_numbers(np.asarray(image), known_bits=16 if image.mode.startswith("I;16") else None)
    return (image.convert("RGB") if image.mode == "LAB" else image).convert("L")


def _scaled_floats(values: np.ndarray) -> Image.Image:
    top = float(values.max(initial=0.0))
    full = 1.0 if top <= 1.0 else 255.0 if top <= 255.0 else 65535.0
    values *= np.float32(255.0 / full)
    values += np.float32(0.5)
    return Image.fromarray(np.clip(values, 0, 255, out=values).astype(np.uint8))


def _scaled_numbers(values: np.ndarray, known_bits: int | None) -> Image.Image:
    """In whole numbers, because as floats a picture of a phone would take half a gigabyte."""
    top = int(values.max(initial=0))
    bits = known_bits or next((bits for bits in (8, 16, 24) if top < 2**bits), 31)
    whole = values.clip(min=0).astype(np.uint32)
    if bits == 16:
        whole += 128
        whole //= 257  # rounded: 65535 is 255 · 257
    else:
        whole >>= bits - 8
    return Image.fromarray(whole.astype(np.uint8))


def _bare(image: Image.Image) -> Image.Image:
    """Without EXIF, colour profile and comments: what is trained on and saved should not carry a place or a name."""
    image.info.clear()
    return image


def _name(source: ImageSource) -> str:
    return "the picture" if isinstance(source, Image.Image) else f"'{os.fspath(source)}'"


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text[:80] or type(error).__name__


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this installation of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
