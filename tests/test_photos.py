"""Crop and mask of photos, on shapes and on a portrait by NASA, which is in the public domain and in the results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from e4t import photos
from e4t.domain import Domain
from e4t.errors import ConfigError, ImageError
from e4t.photos import Square, face_square, faces, framed, opened, subject_mask

pytest.importorskip("dlib")

FACE = Domain.named("face")
SHEET = Path(__file__).parents[1] / "docs" / "results" / "limits-face.jpg"


def subject(size: tuple[int, int] = (300, 240)) -> Image.Image:
    """A red ellipse on noise of green."""
    values = np.random.default_rng(0).integers(80, 120, (size[1], size[0], 3), dtype=np.uint8)
    values[..., 0] = 20
    image = Image.fromarray(values)
    ImageDraw.Draw(image).ellipse((100, 60, 200, 220), fill=(200, 40, 40))
    return image


def portrait() -> Image.Image:
    """Hair from (60, 40) to (450, 330), black clothes at the lower edge."""
    return Image.open(SHEET).convert("RGB").crop((110, 400, 238, 528)).resize((512, 512), Image.Resampling.LANCZOS)


def test_the_mask_is_the_subject() -> None:
    mask = subject_mask(subject())
    assert mask is not None
    truth = Image.new("L", mask.size)
    ImageDraw.Draw(truth).ellipse((100, 60, 200, 220), fill=255)
    found, wanted = np.asarray(mask) > 127, np.asarray(truth) > 127
    assert (found & wanted).sum() / (found | wanted).sum() > 0.9
    assert mask.tobytes() == subject_mask(subject()).tobytes()


def test_where_nothing_stands_out_there_is_no_mask() -> None:
    assert subject_mask(Image.new("RGB", (64, 64), "grey")) is None


def test_without_a_face_the_whole_picture_and_a_note() -> None:
    found = framed(subject(), FACE)
    assert found.picture.size == (240, 240)
    assert any("no face was found" in note for note in found.notes)


def test_of_several_faces_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which one and what is said; finding them is the detector's."""
    monkeypatch.setattr(photos, "faces", lambda image: [Square(200, 100, 60), Square(10, 10, 20)])
    square, notes = face_square(Image.new("RGB", (300, 240)))
    assert notes == ("2 faces were found; the largest is used",)
    assert square == Square(156, 49, 144)


def test_a_crop_at_the_edge_stays_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "faces", lambda image: [Square(280, -10, 60)])
    left, top, right, bottom = face_square(Image.new("RGB", (300, 240)))[0].box
    assert (left, top, right, bottom) == (156, 0, 300, 144)


def test_a_mask_has_the_picture_s_shape(tmp_path: Path) -> None:
    for name, size in (("picture", (60, 30)), ("same", (120, 60)), ("other", (30, 60))):
        Image.new("RGB", size, "white").save(tmp_path / f"{name}.png")
    found = opened(tmp_path / "picture.png", tmp_path / "same.png", FACE)
    assert found.mask is not None
    assert found.mask.size == found.picture.size == (60, 30)
    assert opened(tmp_path / "picture.png", "none", FACE).mask is None
    with pytest.raises(ImageError, match="30 x 60 pixels and the picture 60 x 30"):
        opened(tmp_path / "picture.png", tmp_path / "other.png", FACE)


def test_noise_has_no_face() -> None:
    assert faces(Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8))) == []


def test_hair_belongs_to_the_face() -> None:
    """The detector's square is from brow to chin."""
    wall = Image.new("RGB", (900, 800), portrait().getpixel((5, 5)))
    wall.paste(portrait(), (200, 288))
    square, notes = face_square(wall)
    left, top, right, bottom = square.box
    assert notes == ()
    assert left < 260
    assert top < 325  # where the hair begins
    assert right > 655
    assert bottom > 750
    mask = subject_mask(wall.crop(square.box))
    assert mask is not None
    for place in ((482, 352), (315, 518), (622, 493), (456, 570)):  # crown and sides of the hair, and face
        assert mask.getpixel((place[0] - left, place[1] - top)) > 200


def test_hair_may_reach_the_upper_edge() -> None:
    mask = subject_mask(portrait().crop((32, 64, 480, 512)))
    assert mask is not None
    assert np.asarray(mask)[0, 160:290].min() > 127


def test_of_two_real_faces_the_larger() -> None:
    wall = Image.new("RGB", (900, 512), portrait().getpixel((5, 5)))
    wall.paste(portrait(), (0, 0))
    wall.paste(portrait().resize((320, 320)), (560, 100))
    square, notes = face_square(wall)
    assert notes == ("2 faces were found; the largest is used",)
    assert square.left + square.side / 2 == pytest.approx(255, abs=20)


@pytest.mark.parametrize("name", ["cat", "toy"])
def test_faces_are_looked_for_where_the_domain_shows_people(name: str) -> None:
    picture = Image.new("RGB", (900, 512), "white")
    picture.paste(portrait(), (0, 0))
    cat, person = (framed(picture, Domain.named(kind)) for kind in (name, "woman"))
    assert cat.picture.size == (512, 512)
    assert not any("face" in note for note in cat.notes)
    assert cat.picture.tobytes() == picture.crop((194, 0, 706, 512)).tobytes()
    assert person.picture.tobytes() != cat.picture.tobytes()


def test_a_style_is_everywhere() -> None:
    with pytest.raises(ConfigError, match="a style is everywhere in its picture; leave it out"):
        framed(subject(), Domain.named("art"))
