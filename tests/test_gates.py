"""The gates with stand-ins that know everything or nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from e4t.evaluation import gates
from e4t.evaluation.metrics import READABLE
from e4t.evaluation.truth import Layout, Readings, Truth
from e4t.tiny.captions import alterations, name_of
from e4t.tiny.world import Drawing, Picture


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
        assert len(set(candidates)) == len(candidates) == gates.CANDIDATES
        assert candidates[0] == gates.described(picture, number)
        assert set(candidates[1:]) <= {gates.described(other, number) for other in alterations(picture)}


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

    def __init__(self, drawn: list[Picture]) -> None:
        self.drawn = drawn

    def read(self, rgb: np.ndarray) -> Readings:
        shown = [self.drawn[number] for number in numbers(torch.from_numpy(rgb).permute(0, 3, 1, 2))]
        truth = Truth.of(shown, "face")
        return Readings(truth.identity, truth.classes)


@pytest.mark.parametrize("blind", [False, True])
def test_identity_gate_tells_a_seer_from_a_blind_one(drawn: list[Picture], blind: bool) -> None:
    report = gates.identity_gate(Seer(drawn, blind=blind), Oracle(drawn), fit=300, count=80)  # type: ignore[arg-type]
    gate = report["identity in [CLS]"]
    assert gate["parameters"] == len(Layout.of("face").names)
    assert gate["passed"] is not blind
    assert gate["value"] > 0.95 if not blind else gate["value"] < 0.1
    assert READABLE == 0.7
