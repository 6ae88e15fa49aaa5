"""The base examined: a painter that draws the truth is at its ceiling, one that draws anything is not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from e4t.evaluation import base
from e4t.evaluation.truth import Readings, Truth
from e4t.tiny.columns import Layout
from e4t.tiny.world import identity


class Oracle:
    """A judge that knows what is in a picture by the number written into it."""

    number, kind = 1, "face"
    layout = Layout.of("face")
    readable = np.ones(len(layout.names), bool)

    def __init__(self, pictures: list) -> None:
        self.pictures = pictures

    def read(self, rgb: np.ndarray) -> Readings:
        shown = [self.pictures[256 * int(image[0, 0, 0]) + int(image[0, 0, 1])] for image in rgb]
        truth = Truth.of(shown, "face")
        return Readings(truth.identity, truth.classes)


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> list:
    drawn: list = []

    def drawings(some: list) -> np.ndarray:
        rgb = np.zeros((len(some), 4, 4, 3), np.uint8)
        for row, picture in enumerate(some):
            rgb[row, 0, 0, :2] = divmod(len(drawn), 256)
            drawn.append(picture)
        return rgb

    monkeypatch.setattr(base, "_drawings", drawings)
    monkeypatch.setattr(base, "round_trip", lambda rgb, through: rgb)
    return drawn


def painter(draw) -> SimpleNamespace:
    return SimpleNamespace(draw=draw, through=None)


def test_a_perfect_base_is_at_its_ceiling(pictures: list) -> None:
    wanted = base.gate_pictures(24, named=False)
    report = base.prompt_following(painter(lambda captions: base._drawings(wanted)), Oracle(pictures), count=24)
    assert report["share_of_ceiling"] == 1
    assert sum(option["pictures"] for option in report["attributes"]["style"]["options"].values()) == 24


def test_a_base_that_draws_other_pictures_is_far_from_it(pictures: list) -> None:
    others = base.gate_pictures(48, named=False)[24:]
    report = base.prompt_following(painter(lambda captions: base._drawings(others)), Oracle(pictures), count=24)
    assert report["share_of_ceiling"] < 0.6


def test_names_are_scored_as_individuals(pictures: list) -> None:
    asked = [base.prompted(identity("train", i), p) for i in range(4) for p in base.NAMED_PROMPTS]
    right = base.names_drawn(painter(lambda captions: base._drawings(asked)), Oracle(pictures), count=4)
    assert right["identity"] == right["rank_1_of_50"] == right["rank_1_of_20_twins"] == 1
    assert all(base.names("face")[0] in text for text in right["prompts"])
    strangers = [base.prompted(identity("x", i), p) for i in range(4) for p in base.NAMED_PROMPTS]
    wrong = base.names_drawn(painter(lambda captions: base._drawings(strangers)), Oracle(pictures), count=4)
    assert wrong["identity"] < 0.3
    assert wrong["rank_1_of_50"] <= 0.5  # with so few a stranger can be nearest by chance


def test_pictures_do_not_depend_on_the_batch() -> None:
    def pipe(texts, generator, **_):
        images = [np.full((2, 2, 3), float(torch.rand(1, generator=g)) * 255, np.uint8) for g in generator]
        return SimpleNamespace(images=[Image.fromarray(image) for image in images])

    one, other = (base.Painter(pipe, through=lambda pixels: pixels, batch=size).draw(["a"] * 5) for size in (2, 5))
    assert np.array_equal(one, other)
    assert len(np.unique(one[:, 0, 0, 0])) > 1
