"""Crop and mask of a picture as a person sets them, and a picture that shows both."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter

from e4t.errors import ImageError
from e4t.images import MIN_SIDE, decode_layer
from e4t.photos import Square

_SHOWN = 560  # pixels of the longer side of what is shown and painted on
_MOST_PAINT = 2**22  # characters; a few thousands are usual
COUNTS, DOES_NOT = "#1d6fe0", "#d4380d"
"""The brush's colours: blue and red."""
_FRAME = "#d9572b"


@dataclass(frozen=True)
class Crop:
    """A square in percent: its ``size`` of the shorter side, its place on the way from left to right and top to bottom.

    The place is that of the square's freedom: 0 touches the left or upper edge, 100 the other one.
    """

    across: float = 50.0
    down: float = 50.0
    size: float = 100.0

    def square(self, size: tuple[int, int]) -> Square:
        """In the pixels of a picture of ``size``. Raises ImageError for one of hardly any pixels."""
        side = round(min(size) * min(max(self.size, 1.0), 100.0) / 100)
        if side < MIN_SIDE:
            raise ImageError(f"the crop is {side} pixels wide; make it larger, it needs at least {MIN_SIDE}")
        left, top = (round((whole - side) * share / 100) for whole, share in zip(size, self._place(), strict=True))
        return Square(left, top, side)

    def _place(self) -> tuple[float, float]:
        return min(max(self.across, 0.0), 100.0), min(max(self.down, 0.0), 100.0)

    @classmethod
    def around(cls, square: Square, size: tuple[int, int]) -> Crop:
        """The crop that gives ``square``."""
        places = [
            100.0 * at / (whole - square.side) if whole > square.side else 50.0
            for at, whole in zip((square.left, square.top), size, strict=True)
        ]
        return cls(places[0], places[1], 100.0 * square.side / min(size))


def grown(mask: Image.Image, percent: float) -> Image.Image:
    """A mask made wider by so many percent of its side, or narrower if below 0."""
    reach = round(abs(percent) / 100 * min(mask.size))
    if not reach:
        return mask
    box = ImageFilter.BoxBlur(reach)
    threshold = 8 if percent > 0 else 247
    return mask.filter(box).point(lambda value: 255 if value >= threshold else 0)


def strokes(value: str | None) -> Image.Image | None:
    """What was painted, RGBA, from the brush's PNG as a data URL; None for nothing. Raises ImageError for another."""
    if not value:
        return None
    start, _, data = value.partition(",")
    if start != "data:image/png;base64" or len(data) > _MOST_PAINT:
        raise ImageError("what was painted cannot be read; clear it and paint anew")
    try:
        return decode_layer(base64.b64decode(data, validate=True), "what was painted")
    except binascii.Error as error:
        raise ImageError(f"what was painted cannot be read ({error}); clear it and paint anew") from error


def painted(mask: Image.Image | None, layer: Image.Image, square: Square, size: tuple[int, int]) -> Image.Image | None:
    """A crop's mask after painting: what is bluer than red counts, what is redder does not, the rest is as it was.

    ``layer`` is RGBA and lies on the whole picture, which has ``size``. Raises ImageError where nothing is left.
    """
    wide, high = layer.width / size[0], layer.height / size[1]
    left, top, right, bottom = square.box
    box = left * wide, top * high, right * wide, bottom * high
    red, _, blue, cover = layer.resize((square.side, square.side), Image.Resampling.BILINEAR, box=box).split()
    if not cover.getbbox():
        return mask
    before = mask if mask is not None else Image.new("L", cover.size, 255)
    after = Image.composite(ImageChops.subtract(blue, red).point(lambda more: 255 if more else 0), before, cover)
    if not after.point(lambda value: 255 if value >= 128 else 0).getbbox():
        raise ImageError("nothing of the crop is left that counts; take back some of what is painted red")
    return after


def shown(image: Image.Image, square: Square, mask: Image.Image | None) -> Image.Image:
    """The picture with what will not count dimmed, and a frame around the crop; ``mask`` lies on the crop."""
    counts = Image.new("L", image.size, 0)
    counts.paste(mask if mask is not None else 255, square.box)
    scale = min(1.0, _SHOWN / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    picture, bright = image.resize(size), counts.resize(size)
    dim = ImageEnhance.Brightness(ImageChops.blend(picture, Image.new("RGB", size, "#808080"), 0.55)).enhance(0.6)
    result = Image.composite(picture, dim, bright)
    left, top, right, bottom = (round(edge * scale) for edge in square.box)
    ImageDraw.Draw(result).rectangle((left, top, right - 1, bottom - 1), outline=_FRAME, width=max(2, min(size) // 120))
    return result
