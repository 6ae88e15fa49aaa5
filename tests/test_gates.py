"""The gates with stand-ins that know everything or nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from e4t.evaluation import gates
from e4t.evaluation.truth import Readings, Truth
from e4t.tiny.captions import alterations, name_of
from e4t.tiny.columns import Layout
from e4t.tiny.world import Drawing, Picture, identity


def test_ridge_finds_a_linear_map() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 6, generator=generator) * torch.tensor([1, 10, 0.1, 1, 1, 1])
    weights = torch.randn(6, 3, generator=generator)
    found = gates.ridge(features[:300], features[:300] @ weights + 2, strength=1e-8)
    expected = (features[300:] @ weights + 2).double()
    torch.testing.assert_close(gates.predict(found, features[300:]), expected, rtol=1e-3, atol=1e-2)


def test_pictures_are_named_or_not_and_nobody_trained_on_them() -> None:
    assert all(name_of(picture.subject) for picture in gates.gate_pictures(6, named=True))
    unnamed = gates.gate_pictures(6, named=False)
    assert all("/validation/" in picture.subject.key for picture in unnamed)
    assert not any(picture.art for picture in unnamed)


def test_candidates_are_64_different_captions_of_one_changed_thing_each() -> None:
    for number, picture in enumerate(gates.gate_pictures(12, named=False)):
        candidates = gates._candidates(picture, number)
        assert len(set(candidates)) == len(candidates)
        assert 48 <= len(candidates) <= gates.CANDIDATES
        assert candidates[0] == gates.described(picture, number)
        for text in candidates[1:]:
            assert text != candidates[0]


def test_candidates_leave_out_what_cannot_be_seen() -> None:
    blue = {gates.described(other, 0) for other in _altered(Picture(identity("x", 1)), "eye_colour")}
    assert blue & set(gates._candidates(Picture(identity("x", 1)), 0))
    for hidden in ({"accessory": "sunglasses"}, {"expression": "sleeping"}, {"style": "blueprint"}):
        picture = Picture(identity("x", 1), **hidden)
        others = _altered(picture, "eye_colour")
        assert others
        assert not any(gates._visibly_different(picture, other) for other in others)


def _altered(picture: Picture, name: str) -> list[Picture]:
    value = picture.subject.params[name]
    return [other for other in alterations(picture) if other.subject.params[name] != value]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Picture]:
    """Replaces drawing by writing a picture's number into a blank image."""
    pictures: list[Picture] = []

    def draw(picture: Picture, size: int = 128) -> Drawing:
        pictures.append(picture)
        rgb = np.zeros((size, size, 3), np.uint8)
        rgb[0, 0] = divmod(len(pictures) - 1, 256)[0], (len(pictures) - 1) % 256, 0
        return Drawing(rgb, np.ones((size, size), np.float32))

    monkeypatch.setattr(gates, "draw", draw)
    monkeypatch.setattr(gates, "clip_pixels", lambda rgb: torch.from_numpy(rgb).permute(0, 3, 1, 2).float())
    return pictures


def numbers(pixels: Tensor) -> list[int]:
    return [256 * int(image[0, 0, 0]) + int(image[1, 0, 0]) for image in pixels]


class Seer:
    """A vision tower whose [CLS] holds the truth, or noise."""

    def __init__(self, drawn: list[Picture], *, blind: bool) -> None:
        self.drawn, self.blind = drawn, blind

    def vision_model(self, pixel_values: Tensor, output_hidden_states: bool) -> Any:
        shown = [self.drawn[number] for number in numbers(pixel_values)]
        truth = torch.from_numpy(Truth.of(shown, "face").identity).float()
        if self.blind:
            truth = torch.randn(truth.shape, generator=torch.Generator().manual_seed(len(truth)))
        return SimpleNamespace(hidden_states=[truth[:, None]] * 3)


class Oracle:
    """A judge that is always right."""

    kind, layout = "face", Layout.of("face")
    readable = np.ones(len(layout.names), bool)

    def __init__(self, drawn: list[Picture]) -> None:
        self.drawn = drawn

    def read(self, rgb: np.ndarray) -> Readings:
        shown = [self.drawn[number] for number in numbers(torch.from_numpy(rgb).permute(0, 3, 1, 2))]
        truth = Truth.of(shown, "face")
        return Readings(truth.identity, truth.classes)


@pytest.mark.parametrize("blind", [False, True])
def test_identity_gate_tells_a_seer_from_a_blind_one(drawn: list[Picture], blind: bool) -> None:
    report = gates.identity_gate(Seer(drawn, blind=blind), Oracle(drawn), fit=300, count=80)
    gate = report["identity in [CLS]"]
    assert gate["parameters"] == len(Layout.of("face").names)
    assert gate["passed"] is not blind
    assert gate["value"] > 0.95 if not blind else gate["value"] < 0.1


def test_a_judge_that_reads_little_opens_no_gate(drawn: list[Picture]) -> None:
    judge = Oracle(drawn)
    judge.readable = np.arange(len(judge.layout.names)) < 10
    gate = gates.identity_gate(Seer(drawn, blind=False), judge, fit=300, count=80)["identity in [CLS]"]
    assert gate["value"] > 0.95
    assert not gate["passed"]


class Reader:
    """A CLIP that knows the right caption of every picture, or says the same of all."""

    def __init__(self, drawn: list[Picture], *, knows: bool) -> None:
        self.drawn, self.knows = drawn, knows
        self.visual_projection = self.text_projection = lambda states: states

    def vision_model(self, pixel_values: Tensor) -> Any:
        self.right = [self.drawn[number] for number in numbers(pixel_values)]
        return SimpleNamespace(pooler_output=torch.ones(len(self.right), 1))

    def text_model(self, input_ids: list[str]) -> Any:
        """Stands in for tokens too: a caption is right if it comes first."""
        first = [float(self.knows and place == 0) - 0.5 for place in range(len(input_ids))]
        return SimpleNamespace(pooler_output=torch.tensor(first)[:, None])


@pytest.mark.parametrize("knows", [False, True])
def test_retrieval_counts_a_tie_as_a_miss(drawn: list[Picture], knows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "tokenise", lambda tokenizer, captions: captions)
    gate = gates.retrieval_gate(Reader(drawn, knows=knows), None, count=4)["retrieval"]
    assert gate["value"] == float(knows)
    assert gate["passed"] is knows
