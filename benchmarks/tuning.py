"""What to tune on one picture, how fast, and how to draw then: every setting on the same validation individuals.

    python benchmarks/tuning.py tiny-face --output out/tuning.json --judge-folder WORK/judge-1/face
    python benchmarks/tuning.py tiny-face --settings benchmarks/drawing.json --output out/drawing.json ...
    python benchmarks/tuning.py tiny-face --settings benchmarks/shipped.json --steps 1 5 15 --output out/steps.json ...

Nothing here sees the individuals that results are published on. After the same number of steps, each setting is scored
by its loss on other drawings (`e4t.evaluation.transfer`) and, if there is a judge, by it and by how far the pose of the
input comes back (`e4t.evaluation.copying`), beside the bytes of a concept and the seconds of tuning; the table is
printed as it grows.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from e4t.checkpoint import Concept
from e4t.demo import folder_bytes
from e4t.evaluation.copying import PoseReader, correlation_statistic, poses
from e4t.evaluation.evaluate import (
    Drawer,
    Examination,
    Table,
    input_caption,
    input_data,
    input_picture,
    learn,
    prompts_of,
    score,
)
from e4t.evaluation.judge import Judge
from e4t.evaluation.transfer import OtherDrawings
from e4t.pipeline import E4TPipeline
from e4t.tiny.world import VALIDATION_NAMESPACES, Identity, identity

(VALIDATION,) = VALIDATION_NAMESPACES
_WORD = ("residual", "bias")
_DELTAS = (*_WORD, "deltas")

SETTINGS: dict[str, dict[str, Any]] = {
    "word 2e-2": {"tune": _WORD, "residual_learning_rate": 2e-2},
    "rank 8, 3e-3": {"tune": _DELTAS, "delta_rank": 8, "learning_rate": 3e-3},
    "dense 7e-4": {"tune": _DELTAS, "learning_rate": 7e-4},
    "dense 1e-3": {"tune": _DELTAS, "learning_rate": 1e-3},
    "dense 1.5e-3": {"tune": _DELTAS, "learning_rate": 1.5e-3},
    "U-Net 1e-4": {"tune": (*_DELTAS, "unet"), "learning_rate": 1e-4},
    "U-Net 3e-4": {"tune": (*_DELTAS, "unet"), "learning_rate": 3e-4},
    "U-Net 3e-4, t independent": {
        "tune": (*_DELTAS, "unet"),
        "learning_rate": 3e-4,
        "stratified_timesteps": False,
    },
    "encoder, U-Net 3e-4": {"tune": ("encoder", "deltas", "unet"), "learning_rate": 3e-4},
}
"""The word alone, low-rank and dense changes of q, k and v, the whole U-Net, and everything."""


@dataclass(frozen=True)
class TuningConfig:
    """What to compare on whom."""

    domain: tyro.conf.Positional[str]
    output: Path
    judge_folder: Path | None = None  # judge 1, as the recipe leaves it: judge 2 is for published tables
    count: int = 8
    steps: tuple[int, ...] = (5,)
    settings: Path | None = None  # a JSON file of label to PersonalizeConfig fields; None: those above. A field
    # "generate" holds fields of GenerateConfig: settings that differ in it alone share their concepts. "caption": true
    # says what the input shows
    base: str | None = None
    num_inference_steps: int = 16
    use_mask: bool = True


@dataclass(frozen=True)
class Learned:
    """Concepts by number of steps, one entry per individual, with their worth on other drawings and their costs."""

    concepts: Sequence[Mapping[int, Concept]]
    gains: Mapping[int, dict[str, float]]
    costs: dict[str, float]


@dataclass(frozen=True)
class Bench:
    """Everything that all settings share."""

    config: TuningConfig
    drawer: Drawer
    subjects: Sequence[Identity]
    others: OtherDrawings
    judge: Judge | None
    learned: dict[str, Learned] = field(default_factory=dict)  # by settings of tuning
    pose_reader: PoseReader = field(default_factory=PoseReader.shipped)

    def examined(self, pictures: Sequence[np.ndarray]) -> Table:
        """What the judge reads in pictures of all individuals and prompts."""
        assert self.judge is not None
        judge, prompts = self.judge, self.drawer.prompts
        examination = Examination(judge.layout, self.subjects, prompts, judge.readable, VALIDATION)
        return score(examination, judge.read(np.concatenate(pictures)))

    @cached_property
    def ceiling(self) -> float:
        """Identity in the world's own drawings."""
        return self.examined([self.drawer.drawings(subject) for subject in self.subjects]).identity

    @classmethod
    def of(cls, config: TuningConfig) -> Bench:
        pipe = E4TPipeline.from_pretrained(config.domain, base=config.base, device="cpu")
        kind = pipe.domain.class_word
        judge = Judge.of(kind, config.judge_folder) if config.judge_folder else None
        subjects = [identity(VALIDATION, 500 + index, kind) for index in range(config.count)]
        prompts = prompts_of(kind)
        drawer = Drawer(pipe, prompts, 0, config.num_inference_steps)
        return cls(config, drawer, subjects, OtherDrawings.of(pipe, subjects, prompts), judge)

    def inputs(self, subject: Identity, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """What an individual is learned from: ``image``, ``mask``, and the overrides with its own caption in them."""
        photo, mask = input_picture(subject)
        inputs = {**overrides, "image": photo, "mask": mask if self.config.use_mask else None}
        if inputs.pop("caption", False):
            inputs["caption"] = input_caption(subject, self.drawer.pipe.domain.placeholder)
        return inputs

    def measure(self, generate: Mapping[str, Any], **overrides: Any) -> dict[str, dict[str, float]]:
        """Scores after each number of steps, with seconds of tuning and bytes of the last concept."""
        learned = self.learn(**overrides)
        rows = {}
        for steps in self.config.steps:
            scores = learned.gains[steps] | self.judged([by_steps[steps] for by_steps in learned.concepts], generate)
            rows[str(steps)] = {name: round(value, 3) for name, value in scores.items()} | learned.costs
        return rows

    def learn(self, **overrides: Any) -> Learned:
        """The concepts of all individuals, once for settings that only draw differently."""
        key = json.dumps(overrides, sort_keys=True)
        if key not in self.learned:
            steps = self.config.steps
            concepts = [
                learn(self.drawer.pipe, steps=steps, **self.inputs(subject, overrides)) for subject in self.subjects
            ]
            gains = {count: self.others.gains([by_steps[count] for by_steps in concepts]) for count in steps}
            costs = {"seconds": self.seconds(**overrides), "bytes": _bytes(concepts[0][max(steps)])}
            self.learned[key] = Learned(concepts, gains, costs)
        return self.learned[key]

    def seconds(self, **overrides: Any) -> float:
        """Of the largest number of steps, without keeping the steps before it; the best of three."""
        timings = []
        for subject in self.subjects[:3]:
            inputs = self.inputs(subject, overrides)
            began = time.perf_counter()
            self.drawer.pipe.personalize(**{"steps": max(self.config.steps), **inputs})
            timings.append(time.perf_counter() - began)
        return round(min(timings), 2)

    def judged(self, concepts: Sequence[Concept], generate: Mapping[str, Any]) -> dict[str, float]:
        """What is read in pictures of all prompts, and how long they took; nothing without a judge."""
        if self.judge is None:
            return {}
        began = time.perf_counter()
        pictures = [
            self.drawer.generate(self.drawer.texts(subject), concept, 1000 * number, **generate)
            for number, (subject, concept) in enumerate(zip(self.subjects, concepts, strict=True))
        ]
        seconds = time.perf_counter() - began
        table = self.examined(pictures)
        means = {"twin": table.twin, "prompt": table.found, "joint": table.joint}
        scores = {"identity": table.identity / self.ceiling} | {
            name: float(values.mean()) for name, values in means.items()
        }
        copied = {"copied_pose": self.copied(pictures)} if len(self.subjects) > 1 else {}
        return scores | copied | {"seconds_of_drawing": seconds}

    def copied(self, pictures: Sequence[np.ndarray]) -> float:
        """How far the poses of the inputs come back in pictures of all individuals, of whom it takes two."""
        count, counted = len(self.subjects), self.pose_reader.counted
        shown = self.pose_reader.read(np.concatenate(pictures)).reshape(count, -1, len(counted))
        given = poses([input_data(subject) for subject in self.subjects])
        return correlation_statistic(given[:, counted], shown[:, :, counted])(np.arange(count))


def _bytes(concept: Concept) -> int:
    with tempfile.TemporaryDirectory() as folder:
        return folder_bytes(concept.save(Path(folder) / "concept"))


def main(config: TuningConfig) -> None:
    """Measure all settings and write the table."""
    bench = Bench.of(config)
    settings = json.loads(config.settings.read_text()) if config.settings else SETTINGS
    report: dict[str, Any] = {
        "judge": bench.judge.number if bench.judge else None,
        "namespace": VALIDATION,
        "count": config.count,
        "num_inference_steps": config.num_inference_steps,
        "steps": config.steps,
        "identity_ceiling": round(bench.ceiling, 4) if bench.judge else None,
        "settings": settings,
        "rows": {},
    }
    for label, overrides in settings.items():
        report["rows"][label] = rows = bench.measure(**{"generate": {}, **overrides})
        for steps, values in rows.items():
            print(f"{label:28} {steps:>3} steps ", *(f"{k} {v}" for k, v in values.items()), sep="  ", flush=True)
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(TuningConfig, config=(tyro.conf.FlagConversionOff,)))
