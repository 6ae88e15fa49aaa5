"""A small run of the benchmark beside a large one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import inside


def report(**rows: tuple[float, float, float]) -> dict[str, Any]:
    """Each row's figure and interval."""
    names = ("value", "low", "high")
    return {
        "concepts": len(rows),
        "rows": [
            {"method": method, "steps": 5, "joint_success": dict(zip(names, row, strict=True))}
            for method, row in rows.items()
        ],
    }


SMALL = report(E4T=(0.5, 0.3, 0.7), LoRA=(0.2, 0.1, 0.4), DreamBooth=(0.2, 0.1, 0.3), Words=(0.0, 0.0, 0.0))
LARGE = report(E4T=(0.6, 0.5, 0.7), LoRA=(0.4, 0.3, 0.5), DreamBooth=(0.6, 0.5, 0.7))


def test_every_row_that_both_have_is_told_apart_or_not() -> None:
    rows = list(inside.compared(SMALL, LARGE, "joint_success"))
    assert [row[3] for row in rows] == ["inside", "overlaps", "apart"]
    assert rows[1][:3] == ["LoRA, 5 steps", "0.20", "0.40 (0.30 … 0.50)"]
    assert list(inside.compared(SMALL, LARGE, "identity")) == []


def test_the_files_of_two_runs_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, of in (("small", SMALL), ("large", LARGE)):
        (tmp_path / f"{name}.json").write_text(json.dumps([of]))
    inside.main(inside.InsideConfig(tmp_path / "small.json", tmp_path / "large.json"))
    assert capsys.readouterr().out.splitlines()[0] == "|  | 4 concepts | 3 concepts |  |"
