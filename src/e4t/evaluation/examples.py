"""Scores of the demo's pictures of the shipped individuals, whose truth is known and shipped beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from e4t.errors import DataError
from e4t.evaluation.evaluate import TWINS, Attributes, Examination, score, small
from e4t.evaluation.judge import Judge
from e4t.tiny.world import WORLD_VERSION, Identity


def truth_of(picture: Path) -> Identity:
    """Who is in a shipped picture. Raises DataError if it was drawn by another version of the world."""
    truth = json.loads((picture.parent / "truth" / f"{picture.stem}.json").read_text())
    if truth["world"] != WORLD_VERSION:
        raise DataError(f"'{picture}' is of version {truth['world']} of the world, this is version {WORLD_VERSION}")
    return Identity(truth["key"].split("/")[0], truth["key"], truth["params"])


def score_examples(
    judge: Judge,
    subjects: Sequence[Identity],
    prompts: Sequence[Attributes],
    drawn: Mapping[str, Sequence[Sequence[Image.Image]]],
) -> dict[str, dict[str, float]]:
    """Score to column to value in [0, 1]; ``drawn`` has one picture per subject and prompt for every column."""
    examination = Examination(judge.layout, subjects, prompts, judge.readable, namespace="demo")
    table: dict[str, dict[str, float]] = {}
    for column, pictures in drawn.items():
        rgb = np.stack([np.asarray(small(image)) for row in pictures for image in row])
        scores = score(examination, judge.read(rgb))
        named = {
            f"the right {judge.kind} among {TWINS} twins": scores.twin,
            "share of what was prompted": scores.found,
            f"the right {judge.kind} and all that was prompted": scores.joint,
        }
        for name, values in named.items():
            table.setdefault(name, {})[column] = float(values.mean())
    return table
