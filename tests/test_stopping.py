"""The rule that ends tuning, from courses that were written down."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from desk import lay_out
from e4t.evaluation.stopping import Course, StoppingConfig, chosen, likeness_worth, main, summarise
from e4t.pipeline import E4TPipeline

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import one_rule


def course(speed: float) -> Course:
    """Every step takes the same share off the loss; success comes as that gets little, and goes again."""
    left = [(1 - speed) ** step for step in range(1, 16)]
    brought = [speed * (1 - speed) ** step / (1 - left[step]) for step in range(15)]
    steps = (1, 2, 3, 5, 7, 10, 15)
    return Course(left, {step: float(0.015 <= brought[step - 1] <= 0.055) for step in steps})


def test_a_rule_ends_at_the_first_step_that_brings_so_little() -> None:
    fast = course(0.5)  # 1, a third, a seventh, a fifteenth of what all have
    assert (fast.end(0.2), fast.end(0.1), fast.end(0.05), fast.end(1e-9)) == (3, 4, 5, 15)
    assert fast.joint_at(6) == pytest.approx((fast.joint[5] + fast.joint[7]) / 2)


def test_pictures_that_are_learned_at_different_speeds_need_a_rule() -> None:
    report = summarise([course(0.25), course(0.25), course(0.5), course(0.5)])
    assert max(report["fixed"].values()) == 0.5  # no number of steps serves both
    rule = report["automatic_gain"]
    assert report["rules"][rule]["joint"] == max(values["joint"] for values in report["rules"].values()) > 0.9


def test_of_equal_rules_the_one_of_the_fewest_steps_is_taken() -> None:
    flat = Course(course(0.5).loss_left, {1: 0.0, 3: 0.5, 15: 0.5})
    assert flat.end(chosen([flat])) == 3


def test_what_a_rule_is_worth_is_told_by_others_than_it_was_chosen_on() -> None:
    slow, fast = course(0.25), course(0.5)
    told = summarise([slow, fast])["told_by_others"]
    ends = slow.end(chosen([fast])), fast.end(chosen([slow]))
    assert told["steps"] == sum(ends) / 2
    assert told["joint"] == (slow.joint_at(ends[0]) + fast.joint_at(ends[1])) / 2
    assert told["fixed"] == 0  # what is best for one of them does not serve the other
    assert told["gap"]["value"] == pytest.approx(told["joint"], abs=1e-4)


def test_what_is_never_learned_takes_all_steps() -> None:
    told = summarise([Course([1.0] * 15, {1: 1.0, 15: 0.0})] * 2)["told_by_others"]
    assert (told["steps"], told["joint"]) == (15, 0)


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


def test_one_rule_for_several_domains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = tmp_path / "slow.json", tmp_path / "fast.json"
    for path, speed in zip(files, (0.25, 0.5), strict=True):
        path.write_text(json.dumps({"courses": [asdict(course(speed))] * 2}))
    kinds = [one_rule.read(path) for path in files]
    rule, steps = one_rule.best(kinds)
    assert one_rule.means(kinds, one_rule.ruled(rule)) == [1.0, 1.0]
    assert sorted(one_rule.means(kinds, one_rule.fixed(steps))) == [0.0, 1.0]
    told = one_rule.told_by_others(kinds)
    assert [row[0] for row in told] == [1.0] * 4
    one_rule.main(one_rule.OneRuleConfig(files))
    assert f"best: rule {rule}, {steps} steps; told by others 1.0000" in capsys.readouterr().out
