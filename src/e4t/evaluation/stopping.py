"""When tuning has learned enough: how little a step may still bring before `--steps auto` ends.

    python -m e4t.evaluation.stopping tiny-face --output out/stopping.json --judge-folder WORK/judge-1/face

Validation individuals are tuned for 15 steps and judged after some of them. Then every rule "end once a step takes less
off the loss on the image than so much of what all steps have taken" is tried on what was written down, beside every
fixed number of steps. The rule with the highest joint success is the domain's best `automatic_gain`. What it is worth
is told by individuals that it was not chosen on: each by the rule that all others choose.

The same courses tell what the likeness is worth that `e4t personalize` prints, CLIP's word on one picture: how it goes
with what the judge finds, and how much less is right below some value of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from e4t.evaluation import metrics
from e4t.evaluation.evaluate import Drawer, Examination, input_caption, input_picture, prompts_of, score
from e4t.evaluation.judge import Judge
from e4t.personalize import learned
from e4t.pipeline import E4TPipeline
from e4t.tiny.world import Identity, identity

RULES = (0.2, 0.15, 0.12, 0.1, 0.08, 0.07, 0.06, 0.05, 0.04, 0.03, 0.025, 0.02, 0.015, 0.01)
LOW = tuple(np.arange(0.1, 1.0, 0.1).round(1).tolist())
"""Where a likeness may begin to be called low."""


@dataclass(frozen=True)
class StoppingConfig:
    """On whom to look, and after which steps."""

    domain: tyro.conf.Positional[str]
    output: Path
    judge_folder: Path | None = None  # judge 1; None: the shipped one
    steps: tuple[int, ...] = (1, 2, 3, 5, 7, 10, 15)
    count: int = 24
    num_inference_steps: int = 16
    use_caption: bool = False  # say what the input shows beside the concept


@dataclass(frozen=True)
class Course:
    """What became of one individual: the loss left after every step from 1 on, and after some of them joint success,
    the share of pictures that are told from twins, and the likeness that CLIP sees.
    """

    loss_left: list[float]
    joint: dict[int, float]
    twins: dict[int, float] = field(default_factory=dict)
    likeness: dict[int, float] = field(default_factory=dict)

    def end(self, rule: float) -> int:
        """The step after which ``rule`` ends."""
        course = [1.0, *self.loss_left]
        counts = range(1, len(course))
        return next((step for step in counts if learned(course[: step + 1], rule)), len(self.loss_left))

    def joint_at(self, step: int) -> float:
        """Joint success after any step, in a straight line between those that were looked at."""
        return float(np.interp(step, list(self.joint), list(self.joint.values())))


def courses(config: StoppingConfig) -> Iterator[Course]:
    """Tune, draw and judge one validation individual after the other."""
    pipe = E4TPipeline.from_pretrained(config.domain, device="cpu")
    kind = pipe.domain.class_word
    judge = Judge.of(kind, config.judge_folder)
    drawer = Drawer(pipe, prompts_of(kind), 0, config.num_inference_steps)
    for number in range(config.count):
        subject = identity("validation", number, kind)
        caption = input_caption(subject, pipe.domain.placeholder) if config.use_caption else None
        yield _course(drawer, judge, subject, config.steps, caption, seed=1000 * number)


def _course(
    drawer: Drawer, judge: Judge, subject: Identity, steps: Sequence[int], caption: str | None, *, seed: int
) -> Course:
    photo, mask = input_picture(subject)
    settings: dict[str, Any] = {"steps": max(steps), "caption": caption}
    settings |= {"automatic": True, "automatic_gain": 0.0}  # watched, never ended
    run = list(drawer.pipe.personalize_steps(photo, mask=mask, keep_steps=True, **settings))
    examination = Examination(judge.layout, [subject], drawer.prompts, judge.readable, "validation")
    course = Course([step.loss_left for step in run if step.loss_left is not None], {})
    for step in run:
        if step.number in steps and step.concept is not None:
            pictures = drawer.generate(drawer.texts(subject), step.concept, seed)
            found = score(examination, judge.read(pictures))
            course.joint[step.number] = float(found.joint.mean())
            course.twins[step.number] = float(found.twin.mean())
            course.likeness[step.number] = drawer.pipe.portrait(step.concept, photo)[1]
    return course


def summarise(found: Sequence[Course]) -> dict[str, Any]:
    """Joint success of fixed steps and of rules, the rule to take, and what such a rule does to others."""
    rules = {rule: _ruled(found, rule) for rule in RULES}
    report: dict[str, Any] = {"fixed": _fixed(found), "rules": rules, "automatic_gain": chosen(found)}
    if len(found) > 1:
        report["told_by_others"] = _told_by_others(found)
    return report


def chosen(found: Sequence[Course]) -> float:
    """The rule with the highest joint success, of equals that of the fewest steps."""
    ruled = {rule: _ruled(found, rule) for rule in RULES}
    return max(ruled, key=lambda rule: (round(ruled[rule]["joint"], 6), -ruled[rule]["steps"]))


def _told_by_others(found: Sequence[Course]) -> dict[str, Any]:
    """Each by the rule, and by the fixed number of steps, that all others choose; the gap is of the two."""
    ends, ruled, fixed = list[int](), list[float](), list[float]()
    for number, one in enumerate(found):
        others = [*found[:number], *found[number + 1 :]]
        rule, success = chosen(others), _fixed(others)
        ends.append(one.end(rule))
        ruled.append(one.joint_at(ends[-1]))
        fixed.append(one.joint[max(success, key=success.__getitem__)])
    gaps = np.array(ruled) - fixed
    gap = metrics.bootstrap(metrics.mean_statistic(gaps), metrics.resamples(len(gaps))).to_dict()
    steps, joint, best_fixed = (float(np.mean(values)) for values in (ends, ruled, fixed))
    return {"steps": steps, "joint": joint, "fixed": best_fixed, "gap": gap}


def likeness_worth(found: Sequence[Course]) -> dict[str, Any]:
    """How likeness goes with the share told from twins, all individuals and steps together, and what is low.

    ``correlation`` over everything, ``within_a_step`` over individuals after one number of steps, averaged.
    """
    likeness, twins = (np.array([list(getattr(one, name).values()) for one in found]) for name in ("likeness", "twins"))
    low = {}
    for border in LOW:
        below = likeness < border
        if below.any() and not below.all():
            shares = {"share": below.mean(), "twins": twins[below].mean(), "twins_above": twins[~below].mean()}
            low[border] = {name: round(float(value), 4) for name, value in shares.items()}
    columns = [_correlation(*pair) for pair in zip(likeness.T, twins.T, strict=True)]
    within = [value for value in columns if value is not None]
    return {
        "correlation": _correlation(likeness.ravel(), twins.ravel()),
        "within_a_step": round(float(np.mean(within)), 4) if within else None,
        "low": low,
    }


def _correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """None where either is the same everywhere."""
    return round(float(np.corrcoef(one, other)[0, 1]), 4) if np.ptp(one) and np.ptp(other) else None


def _fixed(found: Sequence[Course]) -> dict[int, float]:
    return {step: float(np.mean([course.joint[step] for course in found])) for step in found[0].joint}


def _ruled(found: Sequence[Course], rule: float) -> dict[str, float]:
    """Mean steps and joint success under a rule."""
    ends = [course.end(rule) for course in found]
    joint = [course.joint_at(end) for course, end in zip(found, ends, strict=True)]
    return {"steps": float(np.mean(ends)), "joint": float(np.mean(joint))}


def main(config: StoppingConfig) -> None:
    """Look at everybody and write what was found."""
    found: list[Course] = []
    config.output.parent.mkdir(parents=True, exist_ok=True)
    for course in courses(config):
        found.append(course)
        report: dict[str, Any] = {"count": len(found), **summarise(found)}
        report |= {"likeness": likeness_worth(found), "courses": [asdict(one) for one in found]}
        config.output.write_text(json.dumps(report, indent=2) + "\n")
        print(f"{len(found)} of {config.count}: rule {report['automatic_gain']}, {report.get('told_by_others')}")


if __name__ == "__main__":
    main(tyro.cli(StoppingConfig, config=(tyro.conf.FlagConversionOff,)))
