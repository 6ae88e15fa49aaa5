"""The best settings of every method, looked for with the same effort: as many trials, concepts and pictures for each.

    python -m e4t.evaluation.search tiny-face --output src/e4t/evaluation/found.json --rows docs/results/found.json

Validation concepts are read by judge 1, or by the shipped judge where no other is at hand; those of published tables
are never seen here. Two rounds. In the first, every method, ours included, is tried at three learning rates; while the
best is the highest or the lowest so far, the next one in that direction is tried, `MOST_RATES` in all. Every rate is
drawn after the same numbers of steps, and while the most steps are best, twice as many are tried, `MOST_DOUBLINGS`
times. A few concepts are too few to tell neighbours apart, and the best of many noisy scores is too good: so the
`FINALISTS` best are tried again in the second round, on other concepts, which alone decide. What has the highest joint
success is kept; where that is even, what follows prompts best, then what has the highest identity. Ours is told, not
kept: a domain carries its own settings.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from e4t.errors import ConfigError
from e4t.evaluation.baselines import Learned
from e4t.evaluation.contest import DrawnContest, Plan
from e4t.evaluation.evaluate import DRAWINGS, Examination, score
from e4t.evaluation.judge import Judge
from e4t.evaluation.methods import METHODS, OURS
from e4t.evaluation.truth import joined
from e4t.tiny.world import VALIDATION_NAMESPACES
from e4t.writing import new_files

SEARCHED = (OURS, "Textual Inversion", "DreamBooth", "LoRA", "DreamBooth by Muon", "DreamBooth, 5 images")
"""Every plain form, and what claims are made against. Other forms take over the settings of those they begin like."""
RATES: dict[str, tuple[str, tuple[float, ...]]] = {
    OURS: ("learning_rate", (1e-4, 3e-4, 1e-3)),
    "Textual Inversion": ("residual_learning_rate", (0.03, 0.1, 0.3)),
    "DreamBooth": ("learning_rate", (3e-5, 1e-4, 3e-4)),
    "LoRA": ("learning_rate", (3e-4, 1e-3, 3e-3)),
}
"""Where the search begins for a method, and for those whose names begin alike; rising."""
MOST_RATES = 5
MOST_DOUBLINGS = 2
FINALISTS = 3


@dataclass(frozen=True)
class SearchConfig:
    """Which domain, and how much of everything."""

    domain: tyro.conf.Positional[str]
    output: Path  # a JSON file of the best settings; what it holds of other bases and kinds is kept
    rows: Path  # a JSON file of everything that was tried, likewise
    judge_folder: Path | None = None  # judge 1 of the domain's kind; without one, the shipped judge
    methods: tuple[str, ...] = SEARCHED
    concepts: int = 6
    others: int = 8  # concepts of the second round
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


Row = dict[str, Any]
"""A rate and a number of steps, the round they were tried in, and joint success, identity and prompt accuracy there."""


class Trials:
    """What one method was tried at. ``rows`` are of an earlier run, and are not tried again."""

    def __init__(self, contest: DrawnContest, method: str, rows: Iterable[Row] = ()) -> None:
        self.contest, self.method, self.rows = contest, method, list(rows)
        self.name, self.rates = rates_of(method)

    def of(self, number: int) -> list[Row]:
        """The rows of a round."""
        return [row for row in self.rows if row["round"] == number]

    def at(self, rate: float, steps: Iterable[int], number: int, concepts: range) -> Iterator[Row]:
        """A row for each number of steps at a rate, in this round."""
        there = {row["steps"] for row in self.of(number) if row[self.name] == rate}
        if missing := sorted(set(steps) - there):
            for row in self._tried(rate, tuple(missing), concepts):
                self.rows.append({self.name: rate, "round": number, **row})
                yield self.rows[-1]

    def _tried(self, rate: float, steps: tuple[int, ...], concepts: range) -> Iterator[Row]:
        contest, learner = self.contest, METHODS[self.method](self.contest, {self.name: rate})
        judge, namespace = contest.judge, contest.plan.namespace
        subjects = [contest.subjects[number] for number in concepts]
        examination = Examination(judge.layout, subjects, contest.prompts, judge.readable, namespace)
        drawings = joined([contest.reference(DRAWINGS, number).readings for number in concepts])
        ceiling = score(examination, drawings).identity
        found: dict[int, list[tuple[Learned, Any]]] = {count: [] for count in steps}
        for number in concepts:
            for learned in learner.learn(contest.examples(number, learner.examples), steps):
                if not learned.diverged:
                    record = contest.record(self.method, number, learned)
                    found[learned.steps].append((learned, record.readings))
        for count, each in found.items():
            if len(each) < len(concepts):
                yield {"steps": count, **_DIVERGED}
                continue
            table = score(examination, joined([readings for _, readings in each]))
            yield {
                "steps": count,
                "joint_success": round(float(table.joint.mean()), 4),
                "identity": round(table.identity / ceiling, 4),
                "prompt_accuracy": round(float(table.found.mean()), 4),
                "seconds": round(float(np.median([learned.seconds for learned, _ in each])), 2),
            }


_DIVERGED = {"joint_success": 0.0, "identity": -1.0, "prompt_accuracy": 0.0, "seconds": 0.0, "diverged": True}


def search(trials: Trials, steps: tuple[int, ...], *, concepts: int) -> Iterator[Row]:
    """Every new row of a method. The first ``concepts`` of the contest are of the first round, the rest of the second.

    Steps are doubled at the best rate alone.
    """
    first, others = range(concepts), range(concepts, trials.contest.size)
    name, visited = trials.name, list[float]()
    waiting = list(trials.rates)
    while waiting:
        visited.append(waiting.pop(0))
        yield from trials.at(visited[-1], steps, 1, first)
        if not waiting:  # what an earlier run has tried further on does not count yet
            here = [row for row in trials.of(1) if row[name] in visited and row["steps"] in steps]
            waiting = _beyond(sorted(visited), ranked(here)[0][name])
    most = max(steps)
    for _ in range(MOST_DOUBLINGS):
        winner = ranked(row for row in trials.of(1) if row["steps"] <= most)[0]
        if winner["steps"] < most:
            break
        most *= 2
        yield from trials.at(winner[name], [most], 1, first)
    finalists: dict[float, list[int]] = {}
    for row in ranked(trials.of(1))[:FINALISTS]:
        finalists.setdefault(row[name], []).append(row["steps"])
    for rate, counts in finalists.items():
        yield from trials.at(rate, counts, 2, others)


def _beyond(tried: list[float], winner: float) -> list[float]:
    """The next rate where the best is at an edge; rates come in steps of about a half order of magnitude."""
    if len(tried) >= MOST_RATES or winner not in (tried[0], tried[-1]):
        return []
    wanted = tried[0] * tried[0] / tried[1] if winner == tried[0] else tried[-1] * tried[-1] / tried[-2]
    return [float(f"{wanted:.1g}")]


def ranked(rows: Iterable[Row]) -> list[Row]:
    """The best first; of equals that with fewer steps."""
    order = ("joint_success", "prompt_accuracy", "identity")
    return sorted(rows, key=lambda row: (*(-row[name] for name in order), row["steps"]))


def best(rows: Iterable[Row]) -> dict[str, Any]:
    """The settings that won the second round, without their scores."""
    winner = ranked(row for row in rows if row["round"] == 2)[0]
    return {name: value for name, value in winner.items() if name == "steps" or name.endswith("learning_rate")}


def effort(config: SearchConfig, contest: DrawnContest) -> dict[str, Any]:
    """What makes rows comparable: who read what, and how it was drawn."""
    trained = contest.pipe.trained
    return {
        "domain": trained.id if trained else None,
        "judge": contest.judge.number,
        "judge_weights": contest.judge.fingerprint,
        "namespace": contest.plan.namespace,
        "concepts": [config.concepts, config.others],
        "prompts": config.prompts,
        "captions": contest.examples(0, 1)[0].caption is not None,
        "steps": {"ours": list(config.our_steps), "others": list(config.steps)},
        "sampling": contest.sampling,
    }


def main(config: SearchConfig) -> None:
    """Search method by method. Rows are written as they come: the same command goes on where it was stopped.

    Raises ConfigError rather than to put rows of another effort beside those that are there.
    """
    plan = Plan(
        (config.domain,),
        namespace=VALIDATION_NAMESPACES[0],
        concepts=config.concepts + config.others,
        prompts=config.prompts,
        num_inference_steps=config.num_inference_steps,
    )
    for method in config.methods:
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
    for method in config.methods:
        trials = Trials(contest, method, here["rows"].get(method, ()))
        steps = config.our_steps if method == OURS else config.steps
        for row in search(trials, steps, concepts=config.concepts):
            print(json.dumps({"method": method, **row}), flush=True)
            here["rows"][method] = trials.rows
            _write(config.rows, tried)
        if method != OURS:
            found.setdefault(base, {}).setdefault(kind, {})[method] = best(trials.rows)
            _write(config.output, found)


def _write(path: Path, content: dict[str, Any]) -> None:
    with new_files([path]) as (place,):
        place.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(SearchConfig, config=(tyro.conf.FlagConversionOff,)))
