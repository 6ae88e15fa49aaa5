"""Real photos: the square around the largest face, and a mask of the subject. Permissive licences only.

Faces are found by dlib's HOG detector (Boost licence), whose weights are compiled into the package; the mask is GrabCut
(OpenCV, Apache-2.0), which has no weights: it tells the subject from its surroundings by colour, in this one picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from e4t.domain import Domain
from e4t.errors import ConfigError, ImageError, install_extra
from e4t.images import load_image, load_mask

_DETECTOR_SIDE = 1000  # pixels of the longer side that faces are looked for in
_MASK_SIDE = 320  # pixels of the side that the mask is cut out at
_MARGIN = 2.4  # side of the crop, in sides of the face: hair and shoulders belong to a portrait
_ABOVE = 0.15  # of the face's side: so far above its middle lies the crop's, as a face begins under the hair
_LEAST_CONTRAST = 4.0  # standard deviation of 8-bit values: below it, colours tell nothing apart
_SHARES = (0.04, 0.96)  # of the picture: a smaller or larger subject is none


@dataclass(frozen=True)
class Square:
    """A square of a picture, in its pixels."""

    left: int
    top: int
    side: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.left, self.top, self.left + self.side, self.top + self.side


@dataclass(frozen=True)
class Framed:
    """A photo made ready: ``picture`` is the crop, ``mask`` lies on it, ``notes`` say what was decided and why."""

    picture: Image.Image
    mask: Image.Image | None
    notes: tuple[str, ...]


def opened(path: str | Path, mask: str | Path | None, domain: Domain) -> Framed:
    """A file made ready as ``mask`` says: "auto" as in `framed`, None or "none" as it is, else with that file as mask.

    Raises ImageError for what is no picture.
    """
    picture = load_image(path)
    if mask == "auto":
        return framed(picture, domain)
    return Framed(picture, fitting_mask(mask, picture) if mask not in (None, "none") else None, ())


def fitting_mask(source: str | Path | Image.Image, picture: Image.Image) -> Image.Image:
    """A mask, in a file or loaded, of the picture's size. Raises ImageError for one of another shape."""
    mask = load_mask(source)
    if abs(mask.width * picture.height - mask.height * picture.width) > picture.width + picture.height:
        raise ImageError(
            f"the mask is {mask.width} x {mask.height} pixels and the picture {picture.width} x {picture.height}; "
            "they need the same shape"
        )
    return mask if mask.size == picture.size else mask.resize(picture.size)


def framed(image: Image.Image, domain: Domain) -> Framed:
    """Crop to what a ``domain`` shows, and mask it: of people, to the largest face; of other things, to the centre.

    Without a face it is the centre, too, and a note. Raises ConfigError for a domain of styles, and where the extra
    "photos" is not installed.
    """
    if domain.is_style:
        raise ConfigError("the mask 'auto' cuts out a subject, and a style is everywhere in its picture; leave it out")
    where, notes = face_square(image) if domain.shows_people else (_centre(image.size), ())
    picture = image.crop(where.box)
    mask = subject_mask(picture)
    if mask is None:
        notes = (*notes, "the subject does not stand out from its surroundings; the whole crop counts")
    return Framed(picture, mask, notes)


def face_square(image: Image.Image) -> tuple[Square, tuple[str, ...]]:
    """The square around the largest face, else the centre one; and what to tell the user about it."""
    found = faces(image)
    if not found:
        note = "no face was found; the whole picture (its centre square) is used: crop it by hand if that is too much"
        return _centre(image.size), (note,)
    notes = (f"{len(found)} faces were found; the largest is used",) if len(found) > 1 else ()
    return _around(found[0], image.size), notes


def faces(image: Image.Image) -> list[Square]:
    """The faces in a picture, the largest first."""
    try:
        import dlib
    except ImportError:
        raise ConfigError(f"finding faces needs dlib: {install_extra('photos')}") from None

    small = image.convert("RGB")
    small.thumbnail((_DETECTOR_SIDE, _DETECTOR_SIDE))
    scale = image.width / small.width
    upsample = 1 if max(small.size) < _DETECTOR_SIDE else 0  # the detector sees faces of 80 pixels and more
    found = dlib.get_frontal_face_detector()(np.asarray(small), upsample)
    squares = [Square(*(round(x * scale) for x in (r.left(), r.top(), r.width()))) for r in found]
    return sorted(squares, key=lambda face: -face.side)


def _centre(size: tuple[int, int]) -> Square:
    side = min(size)
    return Square((size[0] - side) // 2, (size[1] - side) // 2, side)


def _around(face: Square, size: tuple[int, int]) -> Square:
    """The face with its margin, moved so that it lies inside the picture."""
    side = min(round(face.side * _MARGIN), *size)
    left = face.left + face.side // 2 - side // 2
    top = face.top + face.side // 2 - side // 2 - round(face.side * _ABOVE)
    return Square(min(max(left, 0), size[0] - side), min(max(top, 0), size[1] - side), side)


def subject_mask(image: Image.Image) -> Image.Image | None:
    """The subject in the middle of a picture as 8-bit grey, white inside; None where none stands out."""
    try:
        import cv2
    except ImportError:
        raise ConfigError(f"a mask needs OpenCV: {install_extra('photos')}") from None

    small = image.convert("RGB")
    small.thumbnail((_MASK_SIDE, _MASK_SIDE))
    pixels = np.asarray(small)[..., ::-1].copy()
    if pixels.std(axis=(0, 1)).max() < _LEAST_CONTRAST:
        return None
    labels = _guess(small.size)
    cv2.setRNGSeed(0)  # its clusters start at random, and the same picture is to have the same mask
    try:
        cv2.grabCut(pixels, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), 5, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # all of one colour
        return None
    inside = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    inside = _largest(inside)
    if not _SHARES[0] <= inside.mean() <= _SHARES[1]:
        return None
    mask = Image.fromarray(inside * 255).resize(image.size, Image.Resampling.BILINEAR)
    return mask.filter(ImageFilter.GaussianBlur(max(image.size) / 200))


def _guess(size: tuple[int, int]) -> np.ndarray:
    """What GrabCut starts from: an ellipse in the middle is likely the subject, and the sides are not.

    Nothing is sure of the upper edge: hair may reach it.
    """
    import cv2

    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    away = ((x - width / 2) / (0.42 * width)) ** 2 + ((y - 0.55 * height) / (0.5 * height)) ** 2
    labels = np.where(away < 1, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    edge = max(2, width // 40)
    labels[:, :edge] = labels[:, -edge:] = cv2.GC_BGD
    labels[away < 0.1] = cv2.GC_FGD
    return labels


def _largest(inside: np.ndarray) -> np.ndarray:
    """The largest connected part alone."""
    import cv2

    count, parts, sizes, _ = cv2.connectedComponentsWithStats(inside)
    if count < 2:
        return inside
    largest: np.ndarray = parts == 1 + int(sizes[1:, cv2.CC_STAT_AREA].argmax())
    return largest.astype(np.uint8)
