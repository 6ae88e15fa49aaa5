"""The rule that ends tuning, from courses that were written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from desk import lay_out
from e4t.evaluation.stopping import Course, StoppingConfig, chosen, likeness_worth, main, summarise
from e4t.pipeline import E4TPipeline


def course(speed: float) -> Course:
    """The loss falls by ``speed`` a step; success comes at half of the loss and goes again when little is left."""
    left = [max(0.0, 1 - speed * step) for step in range(1, 16)]
    steps = (1, 2, 3, 5, 7, 10, 15)
    return Course(left, {step: float(0.2 <= left[step - 1] <= 0.5) for step in steps})


def test_a_rule_ends_at_the_first_step_with_so_little_left() -> None:
    fast = course(0.1)
    assert (fast.end(0.5), fast.end(0.25), fast.end(-1.0)) == (5, 8, 15)
    assert fast.joint_at(6) == pytest.approx((fast.joint[5] + fast.joint[7]) / 2)


def test_pictures_that_are_learned_at_different_speeds_need_a_rule() -> None:
    report = summarise([course(0.07), course(0.07), course(0.25), course(0.25)])
    assert max(report["fixed"].values()) == 0.5  # no number of steps serves both
    rule = report["automatic_loss"]
    assert report["rules"][rule]["joint"] >= 0.98 * 0.5
    assert max(values["joint"] for values in report["rules"].values()) > 0.9


def test_what_a_rule_is_worth_is_told_by_others_than_it_was_chosen_on() -> None:
    slow, fast = course(0.07), course(0.25)
    told = summarise([slow, fast])["told_by_others"]
    ends = slow.end(chosen([fast]) or 0), fast.end(chosen([slow]) or 0)
    assert told["steps"] == sum(ends) / 2
    assert told["joint"] == (slow.joint_at(ends[0]) + fast.joint_at(ends[1])) / 2
    assert told["fixed"] == 0  # what is best for one of them does not serve the other
    assert told["gap"]["value"] == pytest.approx(told["joint"], abs=1e-4)


def test_there_may_be_no_rule() -> None:
    never = Course([1.0] * 15, {1: 1.0, 15: 0.0})
    assert summarise([never])["automatic_loss"] is None
    assert summarise([never, never])["told_by_others"]["joint"] == 0  # all 15 steps are taken then


def test_the_shipped_domain_can_be_looked_at(tmp_path: Path) -> None:
    output = tmp_path / "stopping.json"
    domain = str(lay_out(tmp_path) / "tiny-face")
    main(StoppingConfig(domain, output, steps=(1, 2), count=1, num_inference_steps=2))
    report = json.loads(output.read_text())
    (one,) = report["courses"]
    assert report["count"] == 1
    assert len(one["loss_left"]) == 2
    assert 0 < one["loss_left"][1] < one["loss_left"][0] * 1.2
    assert set(one["joint"]) == set(one["twins"]) == set(one["likeness"]) == {"1", "2"}
    assert one["likeness"]["1"] != one["likeness"]["2"]


def test_what_a_picture_shows_can_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, tune = list[str | None](), E4TPipeline.personalize_steps

    def watched(self: E4TPipeline, *given: Any, caption: str | None, **settings: Any) -> Any:
        told.append(caption)
        return tune(self, *given, caption=caption, **settings)

    monkeypatch.setattr(E4TPipeline, "personalize_steps", watched)
    for use_caption in (False, True):
        output = tmp_path / f"{use_caption}.json"
        main(StoppingConfig("tiny-art", output, steps=(1, 2), count=1, num_inference_steps=1, use_caption=use_caption))
    assert told[0] is None
    assert "in the style of S*" in (told[1] or "")


def test_what_the_likeness_is_worth() -> None:
    found = [
        Course([1.0], {}, {1: 0.0, 5: 1.0}, {1: 0.1, 5: 0.9}),
        Course([1.0], {}, {1: 0.5, 5: 1.0}, {1: 0.45, 5: 0.8}),
    ]
    told = likeness_worth(found)
    assert told["correlation"] > 0.95
    assert told["within_a_step"] == 1  # after 5 steps all are told apart: that says nothing
    assert told["low"][0.3] == {"share": 0.25, "twins": 0.0, "twins_above": pytest.approx(0.8333)}
    assert 0.1 not in told["low"]  # nothing is below


def test_a_rule_that_loses_says_so() -> None:
    never = Course([1.0] * 15, {1: 1.0, 15: 0.0})
    gap = summarise([never] * 6)["told_by_others"]["gap"]
    assert gap["low"] == gap["value"] == gap["high"] == -1
