"""Cases outside a domain, and the sheet they are shown on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from e4t.evaluation import limits
from e4t.evaluation.limits import LimitsConfig, drawn_cases, rows, sheet, stretched
from e4t.tiny.world import draw, identity


@pytest.mark.parametrize("kind", ["face", "cat", "art"])
def test_every_kind_has_three_cases_that_draw(kind: str) -> None:
    cases = list(drawn_cases(kind))
    assert [label.split(":")[0] for label, _ in cases] == ["near", "far", "outside"]
    near, far, outside = (picture for _, picture in cases)
    assert kind not in (near.subject.kind, far.subject.kind)
    assert near.art is None
    assert far.art is None
    assert (outside.art or outside.subject).kind == kind
    assert all(draw(picture, 64).rgb.std() > 5 for picture in (near, far, outside))


def test_the_stretched_are_out_of_range_but_whole() -> None:
    inside = identity("limits", 2)
    outside = stretched(inside)
    numbers = [value for value in outside.params.values() if not 0 <= value <= 1]
    assert len(numbers) > 5
    assert outside.params.keys() == inside.params.keys()
    assert outside.params["hair_style"] == inside.params["hair_style"]


def test_a_row_for_every_case_and_picture(tmp_path: Path) -> None:
    class Pipe:
        domain = SimpleNamespace(class_word="face", placeholder="S*")

        def personalize(self, image: Image.Image) -> str:
            return f"{image.width}"

        def __call__(self, texts: list[str], **settings: Any) -> Any:
            return SimpleNamespace(images=[Image.new("RGB", (128, 128), "red") for _ in texts])

    Image.new("RGB", (40, 30)).save(tmp_path / "a-photo.png")
    config = LimitsConfig("face", tmp_path / "sheet.png", pictures=(tmp_path / "a-photo.png",), prompts=2)
    labelled = list(rows(Pipe(), config))
    assert [label for label, _ in labelled][-1] == "a photo"
    assert all(len(images) == 3 for _, images in labelled)
    together = sheet(labelled)
    assert together.size == (110 + 3 * 132 + 4, 4 * 132 + 4)
    assert limits.STRETCH > 1
