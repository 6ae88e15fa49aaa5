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
        "domain": "tiny-face",
        "plan": {"namespace": "held-out-4"},
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


def given(folder: Path, small: dict[str, Any], large: dict[str, Any], **options: str) -> inside.InsideConfig:
    """The files of two runs."""
    for name, of in (("small", small), ("large", large)):
        (folder / f"{name}.json").write_text(json.dumps([of]))
    return inside.InsideConfig(folder / "small.json", folder / "large.json", **options)


def test_the_files_of_two_runs_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside.main(given(tmp_path, SMALL, LARGE))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| tiny-face | 4 concepts | 3 concepts |  |"
    assert len(lines) == 6


@pytest.mark.parametrize(
    ("large", "options", "why"),
    [
        ({**LARGE, "domain": "tiny-cat"}, {}, "no domain is in both"),
        ({**LARGE, "plan": {"namespace": "quick"}}, {}, "other individuals of tiny-face: held-out-4 and quick"),
        (LARGE, {"measure": "joy"}, "no row of tiny-face has 'joy' in both"),
    ],
)
def test_what_cannot_be_compared_is_said(
    tmp_path: Path, large: dict[str, Any], options: dict[str, str], why: str
) -> None:
    with pytest.raises(SystemExit, match=why):
        inside.main(given(tmp_path, SMALL, large, **options))
