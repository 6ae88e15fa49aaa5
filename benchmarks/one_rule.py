"""One rule of `--steps auto` for several domains, and what it is worth to individuals that it was not chosen on.

    python benchmarks/one_rule.py docs/results/stopping-face.json docs/results/stopping-cat.json \
        docs/results/stopping-art.json

Reads what `e4t.evaluation.stopping` wrote of each. A rule, and a fixed number of steps, is as good as its joint success
averaged over the domains. Then each individual ends by the rule, and by the number, that is best for all others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from e4t.evaluation import metrics
from e4t.evaluation.evaluate import table
from e4t.evaluation.stopping import RULES, Course

Kinds = Sequence[Sequence[Course]]  # the individuals of every domain


@dataclass(frozen=True)
class OneRuleConfig:
    """Files of `e4t.evaluation.stopping`, a domain each, judged after the same steps."""

    files: tyro.conf.Positional[tuple[Path, ...]]


def ruled(rule: float) -> Callable[[Course], float]:
    """Joint success of an individual that ends by a rule."""
    return lambda course: course.joint_at(course.end(rule))


def fixed(steps: int) -> Callable[[Course], float]:
    """Joint success of an individual after a number of steps."""
    return lambda course: course.joint[steps]


def means(kinds: Kinds, joint: Callable[[Course], float]) -> list[float]:
    """Joint success of every domain."""
    return [float(np.mean([joint(course) for course in courses])) for courses in kinds]


def best(kinds: Kinds) -> tuple[float, int]:
    """The rule and the fixed number of steps with the highest joint success, the domains averaged."""
    rule = max(RULES, key=lambda rule: sum(means(kinds, ruled(rule))))
    steps = max(kinds[0][0].joint, key=lambda steps: sum(means(kinds, fixed(steps))))
    return rule, steps


def told_by_others(kinds: Kinds) -> list[list[float]]:
    """Of every individual of all domains: by the rule, and after the number, that all others choose."""
    rows = []
    for kind, courses in enumerate(kinds):
        for number, course in enumerate(courses):
            others = [*courses[:number], *courses[number + 1 :]]
            rule, steps = best([*kinds[:kind], others, *kinds[kind + 1 :]])
            rows.append([ruled(rule)(course), fixed(steps)(course)])
    return rows


def read(path: Path) -> list[Course]:
    """The courses in a file."""
    courses = json.loads(path.read_text())["courses"]
    return [Course(one["loss_left"], {int(step): joint for step, joint in one["joint"].items()}) for one in courses]


def main(config: OneRuleConfig) -> None:
    """Print joint success of every rule and number, the best of both, and what others say of them."""
    kinds = [read(path) for path in config.files]
    numbers = {f"{steps} steps": means(kinds, fixed(steps)) for steps in kinds[0][0].joint}
    rules = {f"rule {rule}": means(kinds, ruled(rule)) for rule in RULES}
    rows = [[name, *(f"{value:.3f}" for value in (*of, np.mean(of)))] for name, of in (numbers | rules).items()]
    print(table(["", *(path.stem for path in config.files), "mean"], rows))
    rule, steps = best(kinds)
    by_rule, by_number = np.array(told_by_others(kinds)).T
    gaps = by_rule - by_number
    gap = metrics.bootstrap(metrics.mean_statistic(gaps), metrics.resamples(len(gaps)))
    print(f"best: rule {rule}, {steps} steps; told by others {by_rule.mean():.4f} and {by_number.mean():.4f},")
    print(f"a difference of {gap.value:+.4f} ({gap.low:+.4f} … {gap.high:+.4f})")


if __name__ == "__main__":
    main(tyro.cli(OneRuleConfig, config=(tyro.conf.FlagConversionOff,)))
