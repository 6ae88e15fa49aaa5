"""The benchmark of costs runs to its end, on a random model that is smaller than any it is made for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from conftest import build_backbone
from e4t.checkpoint import TrainedDomain
from e4t.config import EncoderConfig, OffsetsConfig
from e4t.domain import Domain
from e4t.model import E4TModel
from e4t.pipeline import E4TPipeline

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import performance

ELSEWHERE = ("shipped", "processes", "start", "first-picture")  # what they start is always the shipped model


def small(_config: performance.PerformanceConfig) -> E4TPipeline:
    model = E4TModel(
        build_backbone(),
        Domain.named("face"),
        encoder=EncoderConfig(),
        offsets=OffsetsConfig(form="lowrank"),
        embedding_scale=0.1,
    )
    trained = TrainedDomain(
        model.domain,
        model.base,
        model.encoder.config,
        model.offsets.config,
        model.embedding_scale,
        model.domain_tensors(),
    )
    return E4TPipeline(model.backbone, trained)


@pytest.fixture
def report(tmp_path, monkeypatch):
    """Of all parts, measured here and not in processes of their own."""
    monkeypatch.setattr(performance, "pipeline", small)
    monkeypatch.setattr(performance, "alone", lambda job, *arguments: job(*arguments))
    monkeypatch.setattr(performance, "has_fast_bfloat16", lambda device: True)
    parts = tuple(part for part in performance.PARTS if part not in ELSEWHERE)
    config = performance.PerformanceConfig(
        tmp_path / "out" / "report.json", model="sd15", parts=parts, pairs=1, batch_size=2, sampling_steps=1
    )
    performance.main(config)
    before = config.output.read_bytes()
    performance.main(config)  # all of it is there
    assert config.output.read_bytes() == before
    with pytest.raises(SystemExit, match="is of another batch_size: 2; choose another file"):
        performance.main(performance.replace(config, batch_size=1))
    return json.loads(before)


def test_every_part_ends_with_its_ratios(report):
    ratios = {
        "tuning": {"small / dreambooth", "whole / dreambooth"},
        "sampling": {"live / stock", "frozen / stock"},
        "calls": {"live / stock", "frozen / stock", "bf16 / stock", "bf16 / live"},
        "training": {"pre-training / text-to-image", "pre-training / matrix product"},
        "steps": {"5 steps / 1 steps"},
        "batch": {"batch 2 / batch 1", "batch 4 / batch 1"},
        "micro-batches": {"1 of 4 at a time / 4 of 4 at a time"},
        "checkpointing": {"on / off"},
        "resolution": {"16 pixels / 8 pixels", "32 pixels / 8 pixels"},
    }
    for part, names in ratios.items():
        assert names <= report[part].keys()
        assert all(report[part][name]["median"] > 0 for name in names)
    assert 0 < report["training"]["share_of_peak"]["pre-training"] < 1
    assert report["tuning-memory"].keys() >= {"peak_bytes", "small / dreambooth"}
    assert report["memory"].keys() >= {*performance.RUNGS, "pre-training", "taken"}
    assert all(report[part]["taken"]["cpu"] > 0 for part in ratios)
    assert "muon / whole" not in report["tuning"]  # minutes at the size of Stable Diffusion


def test_muon_is_timed_on_tiny_and_precision_is_that_of_both_sides(tmp_path, monkeypatch):
    """Emulated here, where it has to be, so that it is seen to arrive."""
    monkeypatch.setattr("e4t.training.has_fast_bfloat16", lambda device: True)
    config = performance.PerformanceConfig(tmp_path / "report.json", pairs=1, batch_size=2, mixed_precision="bf16")
    pipe, seen = small(config), []
    pipe.backbone.unet.conv_in.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    performance.DreamBooth(pipe, config).run(1)
    assert seen == [torch.bfloat16]
    monkeypatch.setattr(performance, "pipeline", lambda config: pipe)
    assert "muon / whole" in performance.tuning(config)
    assert seen.count(torch.bfloat16) > 10
    monkeypatch.setattr(performance.E4TPipeline, "from_pretrained", lambda *_, **__: pipe)
    both = performance.shipped(config)
    assert "frozen / stock" in both["sampling"]
    assert "muon / whole" in both["tuning"]
    assert performance.tuning_settings(config).mixed_precision == "bf16"
    assert performance.numbers_of(config) == torch.bfloat16
    assert performance.pretraining_settings(config, pipe).mixed_precision == "bf16"
