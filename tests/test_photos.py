"""Crop and mask of photos, on shapes: no photo of a person is kept here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from e4t import photos
from e4t.errors import ImageError
from e4t.photos import Square, face_square, faces, framed, opened, subject_mask

pytest.importorskip("dlib")


def subject(size: tuple[int, int] = (300, 240)) -> Image.Image:
    """A red ellipse on noise of green."""
    values = np.random.default_rng(0).integers(80, 120, (size[1], size[0], 3), dtype=np.uint8)
    values[..., 0] = 20
    image = Image.fromarray(values)
    ImageDraw.Draw(image).ellipse((100, 60, 200, 220), fill=(200, 40, 40))
    return image


def test_the_mask_is_the_subject() -> None:
    mask = subject_mask(subject())
    assert mask is not None
    truth = Image.new("L", mask.size)
    ImageDraw.Draw(truth).ellipse((100, 60, 200, 220), fill=255)
    found, wanted = np.asarray(mask) > 127, np.asarray(truth) > 127
    assert (found & wanted).sum() / (found | wanted).sum() > 0.9
    assert mask.tobytes() == subject_mask(subject()).tobytes()  # type: ignore[union-attr]


def test_where_nothing_stands_out_there_is_no_mask() -> None:
    assert subject_mask(Image.new("RGB", (64, 64), "grey")) is None


def test_without_a_face_the_whole_picture_and_a_note() -> None:
    found = framed(subject())
    assert found.picture.size == (240, 240)
    assert any("no face was found" in note for note in found.notes)


def test_of_several_faces_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which one and what is said; finding them is the detector's."""
    monkeypatch.setattr(photos, "faces", lambda image: [Square(200, 100, 60), Square(10, 10, 20)])
    square, notes = face_square(Image.new("RGB", (300, 240)))
    assert notes == ("2 faces were found; the largest is used",)
    assert square == Square(170, 70, 120)


def test_a_crop_at_the_edge_stays_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "faces", lambda image: [Square(280, -10, 60)])
    left, top, right, bottom = face_square(Image.new("RGB", (300, 240)))[0].box
    assert (left, top, right, bottom) == (180, 0, 300, 120)


def test_a_mask_has_the_picture_s_shape(tmp_path: Path) -> None:
    for name, size in (("picture", (60, 30)), ("same", (120, 60)), ("other", (30, 60))):
        Image.new("RGB", size, "white").save(tmp_path / f"{name}.png")
    found = opened(tmp_path / "picture.png", tmp_path / "same.png")
    assert found.mask is not None
    assert found.mask.size == found.picture.size == (60, 30)
    assert opened(tmp_path / "picture.png", "none").mask is None
    with pytest.raises(ImageError, match="30 x 60 pixels and the picture 60 x 30"):
        opened(tmp_path / "picture.png", tmp_path / "other.png")


def test_noise_has_no_face() -> None:
    assert faces(Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8))) == []
