"""Which parts of the model to tune on one picture, and how fast: every setting on the same validation individuals.

    python benchmarks/tuning.py tiny-face --judge-folder WORK/judge-1/face --output out/tuning.json

Nothing here sees the individuals that results are published on. After the same number of steps, each setting is scored
by a judge and by its loss on other drawings (`e4t.evaluation.transfer`), beside the bytes of a concept and the seconds
of tuning; the table is printed as it grows.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from e4t.demo import folder_bytes
from e4t.evaluation.evaluate import (
    PROMPTS,
    Drawer,
    Examination,
    input_picture,
    learn,
    score,
)
from e4t.evaluation.judge import Judge
from e4t.evaluation.transfer import OtherDrawings
from e4t.pipeline import E4TPipeline
from e4t.tiny.world import Identity, identity

_WORD = ("residual", "bias")
_DELTAS = (*_WORD, "deltas")

SETTINGS: dict[str, dict[str, Any]] = {
    "word 2e-2": {"tune": _WORD, "residual_learning_rate": 2e-2},
    "rank 4, 1e-2": {"tune": _DELTAS, "delta_rank": 4, "learning_rate": 1e-2},
    "dense 3e-4": {"tune": _DELTAS, "learning_rate": 3e-4},
    "dense 1e-3": {"tune": _DELTAS, "learning_rate": 1e-3},
    "dense 2e-3": {"tune": _DELTAS, "learning_rate": 2e-3},
    "dense 1e-3, word 2e-2": {"tune": _DELTAS, "learning_rate": 1e-3, "residual_learning_rate": 2e-2},
    "U-Net 3e-4": {"tune": (*_DELTAS, "unet"), "learning_rate": 3e-4},
    "U-Net 1e-3": {"tune": (*_DELTAS, "unet"), "learning_rate": 1e-3},
    "encoder, U-Net 3e-4": {"tune": ("encoder", "deltas", "unet"), "learning_rate": 3e-4},
}
"""The word alone, low-rank and dense changes of q, k and v, the whole U-Net, and everything."""


@dataclass(frozen=True)
class TuningConfig:
    """What to compare on whom."""

    domain: tyro.conf.Positional[str]
    output: Path
    judge_folder: Path  # judge 1, as the recipe leaves it: judge 2 is for published tables
    count: int = 8
    steps: tuple[int, ...] = (5,)
    settings: Path | None = None  # a JSON file of label to PersonalizeConfig fields; None: those above
    base: str | None = None
    num_inference_steps: int = 16
    use_mask: bool = True


def measure(
    drawer: Drawer, subjects: Sequence[Identity], examination: Examination, judge: Judge, config: TuningConfig, **o: Any
) -> dict[str, dict[str, float]]:
    """Scores after each number of steps, with seconds of tuning and bytes of the last concept.

    Seconds are those of the largest number of steps, measured without keeping the steps before it.
    """
    pictures: dict[int, list[np.ndarray]] = {}
    learned: dict[int, list[Any]] = {}
    others = OtherDrawings.of(drawer.pipe, subjects, drawer.prompts)
    seconds, size = float("inf"), 0
    for number, subject in enumerate(subjects):
        photo, mask = input_picture(subject)
        mask = mask if config.use_mask else None
        concepts = learn(drawer.pipe, photo, mask, config.steps, **o)
        if number < 3:
            began = time.perf_counter()
            drawer.pipe.personalize(photo, mask=mask, **{"steps": max(config.steps), **o})
            seconds = min(seconds, time.perf_counter() - began)
        for steps, concept in concepts.items():
            learned.setdefault(steps, []).append(concept)
            pictures.setdefault(steps, []).append(drawer.generate(drawer.texts(subject), concept, 1000 * number))
        if not number:
            with tempfile.TemporaryDirectory() as folder:
                size = folder_bytes(concepts[max(concepts)].save(Path(folder) / "concept"))
    rows = {}
    for steps, images in pictures.items():
        table = score(examination, judge.read(np.concatenate(images)))
        gains = others.gains(learned[steps])
        rows[str(steps)] = {
            **{name: round(value, 3) for name, value in gains.items()},
            "identity": round(table.identity, 3),
            "twin": round(float(table.twin.mean()), 3),
            "prompt": round(float(table.found.mean()), 3),
            "joint": round(float(table.joint.mean()), 3),
            "seconds": round(seconds, 2),
            "bytes": size,
        }
    return rows


def main(config: TuningConfig) -> None:
    """Measure all settings and write the table."""
    pipe = E4TPipeline.from_pretrained(config.domain, base=config.base, device="cpu")
    judge = Judge.load(config.judge_folder)
    subjects = [identity("validation", 500 + index, judge.kind) for index in range(config.count)]
    drawer = Drawer(pipe, PROMPTS, 0, config.num_inference_steps)
    examination = Examination(judge.layout, subjects, PROMPTS, judge.readable, "validation")
    settings = json.loads(config.settings.read_text()) if config.settings else SETTINGS
    report: dict[str, Any] = {"count": config.count, "steps": config.steps, "settings": settings, "rows": {}}
    for label, overrides in settings.items():
        report["rows"][label] = rows = measure(drawer, subjects, examination, judge, config, **overrides)
        for steps, values in rows.items():
            print(f"{label:28} {steps:>3} steps ", *(f"{k} {v}" for k, v in values.items()), sep="  ", flush=True)
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(TuningConfig, config=(tyro.conf.FlagConversionOff,)))
