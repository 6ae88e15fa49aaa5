"""Where documents and examples are tried: a folder with pictures, a quick copy of the shipped domain, and bases."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from PIL import Image

from e4t.checkpoint import TrainedDomain
from e4t.shipped import example_pictures, resolve

QUICK = {"steps": 2, "batch_size": 2}, {"num_inference_steps": 3}
"""Settings of a copy of tiny-face: the weights and the work are those of the original, there is only less of it."""


def lay_out(folder: Path) -> Path:
    """A desk in ``folder``; to a process that works there, "tiny-face" is the quick copy on it."""
    shipped = TrainedDomain.load(resolve("tiny-face", shipped_first=True))
    personalize, generate = QUICK
    quick = replace(
        shipped, personalize={**shipped.personalize, **personalize}, generate={**shipped.generate, **generate}
    )
    quick.save(folder / "tiny-face")
    shutil.copy(example_pictures("face")[0], folder / "anna.png")
    return folder


BASES = ("BASE", "stable-diffusion-v1-5/stable-diffusion-v1-5")
"""What documents call a base model that is not here."""
PLACES = {"pretraining.md": "photos/faces", "cat.md": "photos/cats"}
"""Where documents keep their pictures, if not in photos."""


def lay_out_more(folder: Path, document: str, base: Path) -> None:
    """What a document speaks of besides: pictures, a manifest, a mask, and ``base`` by every name in `BASES`."""
    for name in BASES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(base)
    photos = folder / PLACES.get(document, "photos")
    photos.mkdir(parents=True)
    for name, picture in zip(("anna.png", "ben.png"), example_pictures("face"), strict=False):
        shutil.copy(picture, photos / name)
    (folder / "people.csv").write_text("image\nphotos/anna.png\nphotos/ben.png\n")
    with Image.open(example_pictures("cat")[0]) as cat:
        cat.convert("RGB").save(folder / "tom.jpg")
        Image.new("L", cat.size, "white").save(folder / "tom-mask.png")
