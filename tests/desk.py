"""Where documents and examples are tried: an empty folder with a picture and a quick copy of the shipped domain."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from e4t.backbone import resolve
from e4t.checkpoint import TrainedDomain
from e4t.demo import example_pictures

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
