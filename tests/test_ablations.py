"""The ablations run to their end, on two individuals, from a pre-training of one step."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e4t.config import PersonalizeConfig
from e4t.errors import ConfigError
from e4t.evaluation.evaluate import DRAWINGS, Evaluation, Table, method_of

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import ablations


def config(tmp_path: Path, *rows: str) -> ablations.AblationConfig:
    return ablations.AblationConfig(
        tmp_path, tmp_path / "out.json", None, rows, "face", 1, 2, (0,), (0, 1), 2, "validation", 1
    )


@pytest.mark.parametrize("name", ablations.ROWS)
def test_every_row_changes_something_that_there_is(name: str) -> None:
    row = ablations.ROWS[name]
    settings = json.loads((ablations.ROOT / "runs" / "tiny-face.json").read_text())
    pretrain = ablations.reference_config(settings)
    personalize = PersonalizeConfig.from_dict(settings["personalize"])
    changed = pretrain.updated(row.pretrain) != pretrain or personalize.updated(row.personalize) != personalize
    assert changed or row.generate or not row.use_mask or not row.domain or name == "reference"


def test_rows_are_measured_once_and_compared_with_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablations.main(config(tmp_path, "frozen embedding", "no domain pre-training"))
    report = json.loads((tmp_path / "out.json").read_text())
    assert list(report["rows"]) == ["reference", "frozen embedding", "no domain pre-training"]
    assert report["rows"]["reference"]["1"]["identity"]["gap"]["value"] == 0
    assert report["rows"]["no domain pre-training"]["0"]["identity"]["gap"]["value"] != 0
    assert len(list((tmp_path / "ablations").glob("face-*/config.json"))) == 1  # one domain for all three
    monkeypatch.setattr(ablations, "evaluate", None)  # nothing is evaluated again
    ablations.main(config(tmp_path, "frozen embedding"))
    assert "| frozen embedding |" in (tmp_path / "out.md").read_text()
    with pytest.raises(ConfigError, match="no row 'magic'"):
        ablations.main(config(tmp_path, "magic"))


def test_what_differs_in_tuning_alone_is_not_drawn_again_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, evaluate = list[tuple[int, ...]](), ablations.evaluate

    def watched(*arguments: Any, steps: tuple[int, ...], **options: Any) -> Evaluation:
        drawn.append(steps)
        return evaluate(*arguments, steps=steps, **options)

    monkeypatch.setattr(ablations, "evaluate", watched)
    ablations.main(config(tmp_path, "batch 1", "no mask"))
    assert drawn == [(0, 1), (1,), (0, 1)]
    of = json.loads((tmp_path / "out.json").read_text())["rows"]["batch 1"]
    assert of["0"]["identity"]["gap"]["value"] == 0
    assert of["1"]["identity"]["gap"]["value"] != 0


def test_seeds_are_averaged_inside_an_individual(tmp_path: Path) -> None:
    def scored(joint: list[list[float]]) -> dict[str, Table]:
        ones = np.ones((2, 2))
        table = Table(0.5 * ones, ones, ones, ones, ones, np.array(joint))
        return {DRAWINGS: table, method_of(0): table, method_of(1): table}

    seeds = [scored([[0, 0], [1, 1]]), scored([[1, 1], [1, 1]])]
    same = [scored([[0, 0], [0, 0]]), scored([[0, 0], [0, 0]])]
    found = ablations.compared(config(tmp_path), {"reference": same, "other": seeds})["other"]["1"]["joint_success"]
    assert found["value"] == 0.75
    assert found["seeds"] == [0.5, 1.0]
    assert (found["gap"]["value"], found["gap"]["low"], found["gap"]["high"]) == (0.75, 0.5, 1.0)
