"""Masters, optimisers and rates of a training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from e4t.errors import CheckpointError, TrainingError
from e4t.tiny.trained import COOLDOWN, Trained


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8 * 16, 5))
    layers.register_module("token_embedding", nn.Embedding(4, 6))
    return layers


def loss(layers: nn.Module, seed: int) -> torch.Tensor:
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).to(layers[0].weight.dtype)
    out = pixels
    for layer in list(layers.children())[:4]:
        out = layer(out)
    return out.float().square().mean()


def trained(layers: nn.Module, **settings: object) -> Trained:
    settings = {"warmup": 4, "ema_decay": 0.9, "steps": 40, "dtype": torch.bfloat16} | settings
    return Trained({"net": layers}, 1e-2, **settings)


def test_muon_serves_matrices_and_adam_the_rest() -> None:
    state = trained(network())
    muon, adam = ({id(p) for group in o.param_groups for p in group["params"]} for o in state.optimizers)
    served = {key: "muon" if id(view) in muon else "adam" for key, view in state.optimised.items()}
    assert len(muon) + len(adam) == len(served)
    assert {key for key, optimiser in served.items() if optimiser == "muon"} == {"net.0.weight", "net.3.weight"}


def test_views_share_the_masters_memory() -> None:
    layers = network()
    state = trained(layers)
    before = state.masters["net.0.weight"].clone()
    state.update(loss(layers, 0))
    assert state.masters["net.0.weight"].shape == before.shape == (8, 3, 3, 3)
    assert not torch.equal(state.masters["net.0.weight"], before)
    torch.testing.assert_close(layers[0].weight, state.masters["net.0.weight"].bfloat16())


def test_the_rate_rises_stays_and_falls() -> None:
    state = trained(network())
    rates = []
    for step in range(40):
        state.step = step
        rates.append(state._rate() / 1e-2)
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1])
    assert rates[4 : int(40 * (1 - COOLDOWN))] == pytest.approx([1] * 26)
    assert rates[-10:] == pytest.approx([step / 10 for step in range(10, 0, -1)])


def test_it_learns_and_the_average_follows() -> None:
    layers = network()
    state = trained(layers)
    losses = [state.update(loss(layers, 0)) for _ in range(40)]
    assert losses[-1] < 0.1 * losses[0]
    averaged = state.averaged("net")
    assert averaged[0].weight.dtype == torch.float32
    assert layers[0].weight.dtype == torch.bfloat16


def test_a_slow_average_does_not_begin_with_the_start() -> None:
    layers = network()
    state = trained(layers, ema_decay=0.9999)
    start = state.masters["net.0.weight"].clone()
    state.update(loss(layers, 0))
    moved = (state.masters["net.0.weight"] - start).norm()
    assert 0 < (state.masters["net.0.weight"] - state.average["net.0.weight"]).norm() < 0.3 * moved


def test_resuming_is_exact(tmp_path: Path) -> None:
    whole, half, rest = network(), network(), network()
    one, two, three = trained(whole), trained(half), trained(rest)
    for step in range(6):
        one.update(loss(whole, step))
    for step in range(3):
        two.update(loss(half, step))
    two.save(tmp_path / "state.safetensors")
    three.load(tmp_path / "state.safetensors")
    for step in range(3, 6):
        three.update(loss(rest, step))
    for key, master in one.masters.items():
        torch.testing.assert_close(three.masters[key], master, rtol=0, atol=0)


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    layers = network()
    state = trained(layers)
    with pytest.raises(TrainingError, match="step 1 is nan"):
        state.update(loss(layers, 0) * float("nan"))
    state.save(tmp_path / "state.safetensors")
    with pytest.raises(CheckpointError, match="another architecture"):
        Trained({"other": nn.Linear(2, 2)}, 1e-3, 1, 0.9, 10).load(tmp_path / "state.safetensors")
