"""Digests of pictures, and notes inside drawn ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from e4t.errors import ImageError
from e4t.provenance import image_digest, picture_notes, public_name, read_notes, versions

MADE = {
    "prompt": "a cat, “S*”",
    "negative_prompt": None,
    "seed": 0,
    "num_inference_steps": 25,
    "guidance_scale": 4.0,
    "scheduler": "DDIMScheduler",
    "width": 128,
    "height": 64,
    "base": "tiny",
}


def test_digest_is_of_the_picture_not_of_the_file(tmp_path: Path, picture: Image.Image) -> None:
    for suffix in ("png", "bmp"):
        picture.save(tmp_path / f"same.{suffix}")
        with Image.open(tmp_path / f"same.{suffix}") as again:
            assert image_digest(again.convert("RGB")) == image_digest(picture)
    assert image_digest(picture.transpose(Image.Transpose.ROTATE_90)) != image_digest(picture)
    assert image_digest(picture.convert("L")) != image_digest(picture)


def test_notes_round_trip_and_are_what_web_interfaces_read(tmp_path: Path, picture: Image.Image) -> None:
    picture.save(tmp_path / "drawn.png", pnginfo=picture_notes(MADE))
    assert read_notes(tmp_path / "drawn.png") == MADE
    with Image.open(tmp_path / "drawn.png") as image:
        expected = "a cat, “S*”\nSteps: 25, Sampler: DDIMScheduler, CFG scale: 4.0, Seed: 0, Size: 128x64, Model: tiny"
        assert image.info["parameters"] == expected


def test_what_a_base_is_called_in_public(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "owner/model": "owner/model",
        "tiny": "tiny",
        "../clients/acme/secret": "secret",
        "./models/x.safetensors": "x.safetensors",
        "~/m": "m",
        "/srv/models/sd15/": "sd15",
        "C:\\models\\sd15": "sd15",
        "clients/acme/secret": "secret",
        "/models/\udcff": "?",
    }
    assert {name: public_name(name) for name in known} == known
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("owner/model") == "model"  # a folder here, then


def test_pictures_without_notes_are_refused(tmp_path: Path, picture: Image.Image) -> None:
    picture.save(tmp_path / "bare.png")
    with pytest.raises(ImageError, match="does not say how it was made"):
        read_notes(tmp_path / "bare.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ImageError, match="cannot be read as a picture"):
        read_notes(tmp_path / "text.png")
    notes = PngInfo()
    notes.add_itxt("e4t", "{broken")
    picture.save(tmp_path / "broken.png", pnginfo=notes)
    with pytest.raises(ImageError, match="notes in"):
        read_notes(tmp_path / "broken.png")


def test_versions_are_those_at_work() -> None:
    import torch

    assert versions()["torch"].split("+")[0] == torch.__version__.split("+")[0]  # its metadata may not name the build
    assert set(versions()) == {"e4t", "torch", "diffusers", "transformers"}
