"""The best settings of every method, looked for with the same effort: as many trials, concepts and pictures for each.

    python -m e4t.evaluation.search tiny-face --output src/e4t/evaluation/found.json --rows docs/results/found.json

Validation concepts are read by judge 1, or by the shipped judge where no other is at hand; those of published tables
are never seen here. Every method, ours included, is tried at three learning rates; while the best is the highest or
the lowest so far, the next one in that direction is tried, `MOST_RATES` in all. Every rate is drawn after the same
numbers of steps. What has the highest joint success is kept; where that is even, what follows prompts best, then what
has the highest identity. Ours is told, not kept: a domain carries its own settings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from e4t.errors import ConfigError, TrainingError
from e4t.evaluation.baselines import Example, Learned, Personalizer
from e4t.evaluation.contest import DrawnContest, Plan
from e4t.evaluation.evaluate import DRAWINGS, Examination, score
from e4t.evaluation.judge import Judge
from e4t.evaluation.methods import METHODS, OURS
from e4t.evaluation.truth import joined
from e4t.tiny.world import VALIDATION_NAMESPACES
from e4t.writing import new_files

RATES: dict[str, tuple[str, tuple[float, ...]]] = {
    OURS: ("learning_rate", (1e-4, 3e-4, 1e-3)),
    "Textual Inversion": ("residual_learning_rate", (0.03, 0.1, 0.3)),
    "DreamBooth": ("learning_rate", (3e-5, 1e-4, 3e-4)),
    "LoRA": ("learning_rate", (3e-4, 1e-3, 3e-3)),
}
"""Where the search begins for a method, and for those whose names begin alike; rising."""
MOST_RATES = 5


@dataclass(frozen=True)
class SearchConfig:
    """Which domain, and how much of everything."""

    domain: tyro.conf.Positional[str]
    output: Path  # a JSON file of the best settings; what it holds of other bases and kinds is kept
    rows: Path  # a JSON file of everything that was tried, likewise
    judge_folder: Path | None = None  # judge 1 of the domain's kind; without one, the shipped judge
    methods: tuple[str, ...] = ()  # (): E4T and the plain form of every other method
    concepts: int = 6
    prompts: int = 6
    steps: tuple[int, ...] = (20, 40, 80, 160)
    our_steps: tuple[int, ...] = (2, 5, 10, 15)
    num_inference_steps: int = 16
    device: str = "cpu"


def rates_of(method: str) -> tuple[str, tuple[float, ...]]:
    """The setting that is looked for and where to begin. Raises ConfigError for what is not there, or not tuned."""
    for name, rates in RATES.items():
        if method in METHODS and method.startswith(name):
            return rates
    raise ConfigError(f"there is nothing to look for in {method!r}; tuned are those that begin with {', '.join(RATES)}")


def search(contest: DrawnContest, method: str, steps: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """A row for every rate and number of steps: joint success, identity and prompt accuracy."""
    name, rates = rates_of(method)
    examination = Examination(
        contest.judge.layout, contest.subjects, contest.prompts, contest.judge.readable, contest.plan.namespace
    )
    drawings = [contest.reference(DRAWINGS, number).readings for number in range(contest.size)]
    ceiling = score(examination, joined(drawings)).identity
    rows: list[dict[str, Any]] = []
    waiting = list(rates)
    while waiting:
        rate = waiting.pop(0)
        for row in _tried(contest, examination, method, {name: rate}, steps):
            row["identity"] = round(row["identity"] / ceiling, 4)
            rows.append(row)
            yield row
        if not waiting:
            waiting = _beyond(sorted({row[name] for row in rows}), best(rows)[name])


_DIVERGED = {"joint_success": 0.0, "identity": -1.0, "prompt_accuracy": 0.0, "seconds": 0.0, "diverged": True}


def _beyond(tried: list[float], winner: float) -> list[float]:
    """The next rate where the best is at an edge; rates come in steps of about a half order of magnitude."""
    if len(tried) >= MOST_RATES or winner not in (tried[0], tried[-1]):
        return []
    wanted = tried[0] * tried[0] / tried[1] if winner == tried[0] else tried[-1] * tried[-1] / tried[-2]
    return [float(f"{wanted:.1g}")]


def _tried(
    contest: DrawnContest, examination: Examination, method: str, settings: dict[str, float], steps: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    """A row for every number of steps; identity is not over its ceiling yet."""
    learner = METHODS[method](contest, settings)
    read: dict[int, list[Any]] = {}
    seconds: dict[int, list[float]] = {}
    for number in range(contest.size):
        for learned in _while_it_learns(learner, contest.examples(number, learner.examples), steps):
            read.setdefault(learned.steps, []).append(contest.record(method, number, learned).readings)
            seconds.setdefault(learned.steps, []).append(learned.seconds)
    for count in steps:
        readings = read.get(count, [])
        if len(readings) < contest.size:
            yield {**settings, "steps": count, **_DIVERGED}
            continue
        table = score(examination, joined(readings))
        yield {
            **settings,
            "steps": count,
            "joint_success": round(float(table.joint.mean()), 4),
            "identity": table.identity,
            "prompt_accuracy": round(float(table.found.mean()), 4),
            "seconds": round(float(np.median(seconds[count])), 2),
        }


def _while_it_learns(learner: Personalizer, examples: list[Example], steps: tuple[int, ...]) -> list[Learned]:
    """What is learned after each of ``steps``, up to where the loss is no number any more."""
    for end in range(len(steps), 0, -1):
        with suppress(TrainingError):
            return learner.learn(examples, steps[:end])
    return []


def best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings of the best row, without its scores."""
    order = ("joint_success", "prompt_accuracy", "identity")
    winner = max(rows, key=lambda row: (*(row[name] for name in order), -row["steps"]))
    return {name: value for name, value in winner.items() if name == "steps" or name.endswith("learning_rate")}


def effort(config: SearchConfig, contest: DrawnContest) -> dict[str, Any]:
    """What makes rows comparable: who read what, and how it was drawn."""
    trained = contest.pipe.trained
    return {
        "domain": trained.id if trained else None,
        "judge": contest.judge.number,
        "judge_weights": contest.judge.fingerprint,
        "namespace": contest.plan.namespace,
        "concepts": config.concepts,
        "prompts": config.prompts,
        "steps": {"ours": list(config.our_steps), "others": list(config.steps)},
        "sampling": contest.sampling,
    }


def main(config: SearchConfig) -> None:
    """Search method by method; both files are written after each, so that it can be stopped.

    Raises ConfigError rather than to put rows of another effort beside those that are there.
    """
    plan = Plan(
        (config.domain,),
        namespace=VALIDATION_NAMESPACES[0],
        concepts=config.concepts,
        prompts=config.prompts,
        num_inference_steps=config.num_inference_steps,
    )
    methods = config.methods or tuple(RATES)
    for method in methods:
        rates_of(method)
    judge = Judge.load(config.judge_folder, device=config.device) if config.judge_folder else None
    contest = DrawnContest(config.domain, plan, device=config.device, judge=judge)
    base, kind, made_by = contest.pipe.backbone.fingerprint, contest.kind, effort(config, contest)
    files = [config.output, config.rows]
    found, tried = (json.loads(path.read_text()) if path.exists() else {} for path in files)
    if kind not in tried.get(base, {}):
        found.get(base, {}).pop(kind, None)  # of a search whose rows are not here
    here = tried.setdefault(base, {}).setdefault(kind, {"effort": made_by, "rows": {}})
    if here["effort"] != made_by:
        raise ConfigError(f"'{config.rows}' has rows of a {kind} that came about otherwise; move it away first")
    for method in methods:
        rows = []
        steps = config.our_steps if method == OURS else config.steps
        for row in search(contest, method, steps):
            rows.append(row)
            print(json.dumps({"method": method, **row}), flush=True)
        here["rows"][method] = rows
        if best(rows)["steps"] == max(steps):
            print(f"{method} is best after the most steps that were tried: more may be better", flush=True)
        if method != OURS:
            found.setdefault(base, {}).setdefault(kind, {})[method] = best(rows)
        with new_files(files) as places:
            for place, content in zip(places, (found, tried), strict=True):
                place.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(SearchConfig, config=(tyro.conf.FlagConversionOff,)))
