"""The best settings of every method, looked for with the same effort: as many rates, concepts and pictures for each.

    python -m e4t.evaluation.search tiny-face --judge-folder WORK/judge-1/face --output src/e4t/evaluation/found.json

Judge 1 reads validation concepts; those of published tables are never seen here. Every method is tried at as many
learning rates, on the same concepts and prompts, and drawn after the same numbers of steps. What has the highest joint
success is kept, and where that is even, what has the highest identity.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from e4t.evaluation.contest import DrawnContest, Plan
from e4t.evaluation.evaluate import Examination, score
from e4t.evaluation.judge import Judge
from e4t.evaluation.methods import METHODS
from e4t.evaluation.truth import joined

RATES: dict[str, tuple[str, tuple[float, ...]]] = {
    "E4T": ("learning_rate", (1e-4, 3e-4, 1e-3)),
    "Textual Inversion": ("residual_learning_rate", (0.03, 0.1, 0.3)),
    "DreamBooth": ("learning_rate", (3e-5, 1e-4, 3e-4)),
    "LoRA": ("learning_rate", (3e-4, 1e-3, 3e-3)),
}
"""What is tried of a method, and of those whose names begin alike. What lies outside was worse in first trials."""


@dataclass(frozen=True)
class SearchConfig:
    """Which domain, and how much of everything."""

    domain: tyro.conf.Positional[str]
    output: Path  # a JSON file; what it holds of other domains and methods is kept
    judge_folder: Path | None = None  # judge 1 of the domain's kind; without one, the shipped judge
    methods: tuple[str, ...] = ()  # () are all that are tuned
    concepts: int = 4
    prompts: int = 4
    steps: tuple[int, ...] = (20, 40, 80, 160)
    our_steps: tuple[int, ...] = (5,)
    num_inference_steps: int = 16
    device: str = "cpu"


def rates_of(method: str) -> tuple[str, tuple[float, ...]] | None:
    """The setting that is looked for and its values; None for what is not tuned."""
    return next((rates for name, rates in RATES.items() if method.startswith(name)), None)


def search(contest: DrawnContest, method: str, steps: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """A row for every rate and number of steps: joint success, identity and prompt accuracy."""
    looked_for = rates_of(method)
    if looked_for is None:
        return
    name, rates = looked_for
    examination = Examination(
        contest.judge.layout, contest.subjects, contest.prompts, contest.judge.readable, contest.plan.namespace
    )
    ceiling = score(examination, joined([contest.drawings(number).readings for number in range(contest.size)])).identity
    for rate in rates:
        learner = METHODS[method](contest, {name: rate})
        read: dict[int, list[Any]] = {}
        seconds: dict[int, list[float]] = {}
        for number in range(contest.size):
            for learned in learner.learn(contest.examples(number, learner.examples), steps):
                read.setdefault(learned.steps, []).append(contest.record(method, number, learned, 0).readings)
                seconds.setdefault(learned.steps, []).append(learned.seconds)
        for count, readings in read.items():
            table = score(examination, joined(readings))
            yield {
                name: rate,
                "steps": count,
                "joint_success": round(float(table.joint.mean()), 4),
                "identity": round(table.identity / ceiling, 4),
                "prompt_accuracy": round(float(table.found.mean()), 4),
                "seconds": round(float(np.median(seconds[count])), 2),
            }


def best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings of the best row, without its scores."""
    winner = max(rows, key=lambda row: (row["joint_success"], row["identity"], -row["steps"]))
    return {name: value for name, value in winner.items() if name == "steps" or name.endswith("learning_rate")}


def main(config: SearchConfig) -> None:
    """Search method by method; the file is written after each, and the rows beside it, so that it can be stopped."""
    plan = Plan(
        (config.domain,),
        namespace="validation",
        concepts=config.concepts,
        prompts=config.prompts,
        num_inference_steps=config.num_inference_steps,
    )
    judge = Judge.load(config.judge_folder, device=config.device) if config.judge_folder else None
    contest = DrawnContest(config.domain, plan, device=config.device, judge=judge)
    found = json.loads(config.output.read_text()) if config.output.exists() else {}
    tried_path = config.output.with_name(f"{config.output.stem}-tried.json")
    tried = json.loads(tried_path.read_text()) if tried_path.exists() else {}
    for method in config.methods or tuple(METHODS):
        rows = []
        for row in search(contest, method, config.our_steps if method == "E4T" else config.steps):
            rows.append(row)
            print(json.dumps({"method": method, **row}), flush=True)
        if rows:
            found.setdefault(contest.name, {})[method] = best(rows)
            tried.setdefault(contest.name, {})[method] = rows
            for path, content in ((config.output, found), (tried_path, tried)):
                beside = path.with_suffix(".partial")
                beside.write_text(json.dumps(content, indent=1) + "\n")
                beside.rename(path)


if __name__ == "__main__":
    main(tyro.cli(SearchConfig, config=(tyro.conf.FlagConversionOff,)))
