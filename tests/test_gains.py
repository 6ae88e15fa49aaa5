"""The benchmark of optimisations: each is really switched off, costs more without, and does the same work."""

from __future__ import annotations

import json

import pytest
import torch

from test_performance import performance, small  # puts the benchmarks on the path

import gains  # isort: skip


def test_without_an_optimisation_the_same_takes_more_operations(tmp_path, monkeypatch):
    """On a random model."""
    monkeypatch.setattr(performance, "pipeline", small)
    config = performance.PerformanceConfig(
        tmp_path / "gains.json", model="sd15", pairs=1, batch_size=2, sampling_steps=2
    )
    gains.main(config)
    report = json.loads(config.output.read_text())
    assert report["tolerance"] == gains.TOLERANCE
    alike = ("one-batch",) if torch.backends.mkl.is_available() else ("one-batch", "eigenvalues")
    for name in gains.GAINS:
        part = report[name]
        assert part.keys() == {"seconds", "off / on", "operations, off / on", "apart", "taken"}
        assert part["off / on"]["median"] > 0
        assert part["apart"] < gains.TOLERANCE
        assert part["operations, off / on"] > 1 or name in alike, name
    assert report["one-batch"]["operations, off / on"] == 1  # two halves are as much as both together


@pytest.mark.parametrize("other", [1.9, float("nan")])
def test_what_is_not_the_same_work_is_not_compared(tmp_path, other):
    config = performance.PerformanceConfig(tmp_path / "gains.json", pairs=1)
    on, off = (lambda value=value: (1.0, torch.ones(8, 8) @ torch.full((8, 8), value)) for value in (2.0, other))
    assert gains.gained(config, on, on)["apart"] == 0
    with pytest.raises(ValueError, match="off is not the same work as on: its numbers are"):
        gains.gained(config, on, off)
