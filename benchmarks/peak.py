"""What share of the machine's matrix-multiplication rate each stage of the recipe reaches.

    python benchmarks/peak.py WORK --output docs/results/peak.json

WORK keeps the pictures that are drawn for it. Every stage takes a few steps in a scratch folder in there, from nothing
or from the shipped model, which makes no difference to their time: one is counted (torch's FLOP counter, forward and
backward), the others are timed. The rate it is compared with is that of one large product in the same number format,
measured in the same process with the same threads.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from e4t.backbone import Backbone
from e4t.config import PretrainConfig
from e4t.domain import Domain
from e4t.evaluation.judge import JudgeConfig, train_judge
from e4t.precision import training_dtype
from e4t.pretrain import pretrain
from e4t.shipped import WEIGHTS
from e4t.tiny.album import AlbumConfig, write_album
from e4t.tiny.pictures import draw_shards, load_shards
from e4t.tiny.train import TinyConfig, train_tiny
from e4t.tiny.trained import Trained

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class PeakConfig:
    """Where to work, and how long to look."""

    work: tyro.conf.Positional[Path]
    output: Path
    stages: tuple[str, ...] = ("vae", "smooth", "base", "clip", "judge", "domain")
    steps: int = 12
    pictures: int = 2_000


def peak(dtype: torch.dtype, *, size: int = 1536, seconds: float = 3.0, device: str = "cpu") -> float:
    """Operations a second of the best of many products of two square matrices; larger ones on GPUs."""
    size = size if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        float(torch.mm(a, b)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


class _Watch:
    """Counts the operations of the second step of a training and times all that follow, by its optimiser's updates."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.flops = 0

    def tick(self) -> None:
        self.ends.append(time.perf_counter())
        if len(self.ends) == 1:
            self.counter = FlopCounterMode(display=False)
            self.counter.__enter__()
        elif len(self.ends) == 2:
            self.counter.__exit__(None, None, None)
            self.flops = self.counter.get_total_flops()

    @property
    def seconds(self) -> float:
        times = [after - before for before, after in zip(self.ends[2:], self.ends[3:], strict=False)]
        return statistics.median(times)


def measure(config: PeakConfig) -> dict[str, Any]:
    """A row for each stage."""
    torch.set_flush_denormal(True)
    dtype = training_dtype("cpu")
    rates = {str(d): peak(d) for d in (torch.float32, dtype)}
    for _ in draw_shards(config.work / "pictures", config.pictures):
        pass
    report: dict[str, Any] = {"threads": torch.get_num_threads(), "peak": rates, "stages": {}}
    for stage in config.stages:
        watch = _Watch()
        with tempfile.TemporaryDirectory(dir=config.work) as folder:
            _RUNS[stage if stage in _RUNS else "recipe"](config, stage, Path(folder), watch.tick)
        rate = watch.flops / watch.seconds
        row = {
            "seconds": round(watch.seconds, 3),
            "gflop": round(watch.flops / 1e9, 1),
            "share": rate / rates[str(dtype)],
        }
        report["stages"][stage] = row
        print(stage, row, flush=True)
    return report


def _recipe(config: PeakConfig, stage: str, folder: Path, tick: Callable[[], None]) -> None:
    (folder / "pictures").symlink_to((config.work / "pictures").resolve())
    few = config.steps
    recipe = TinyConfig(
        folder, config.pictures, stages=(stage,), vae_steps=few, smooth_steps=few, base_steps=few, clip_steps=few
    )
    if stage in ("base", "clip"):
        recipe = replace(recipe, initial=WEIGHTS / "tiny")
    if stage == "smooth":
        train_tiny(replace(recipe, stages=("vae",), vae_steps=1))
    _ticking(lambda: train_tiny(recipe), tick)


def _judge(config: PeakConfig, stage: str, folder: Path, tick: Callable[[], None]) -> None:
    rgb, indices = load_shards(config.work / "pictures", config.pictures)
    judge = JudgeConfig(folder, judge=2, steps=config.steps)
    _ticking(lambda: train_judge(judge, rgb, indices), tick)


def _ticking(run: Callable[[], Any], tick: Callable[[], None]) -> None:
    update = Trained.update

    def update_and_tick(trained: Trained, loss: torch.Tensor) -> float:
        value = update(trained, loss)
        tick()
        return value

    with mock.patch.object(Trained, "update", update_and_tick):
        run()


def _domain(config: PeakConfig, stage: str, folder: Path, tick: Callable[[], None]) -> None:
    settings = json.loads((ROOT / "runs" / "tiny-face.json").read_text())
    write_album(AlbumConfig(folder / "album", "train", 64))
    pretrain_config = PretrainConfig.from_dict(settings["pretrain"]).updated({"steps": config.steps})
    backbone = Backbone.from_pretrained("tiny", device="cpu")
    for _ in pretrain(
        Domain.named("face"), folder / "album", backbone=backbone, config=pretrain_config, output=folder / "domain"
    ):
        tick()


_RUNS = {"recipe": _recipe, "judge": _judge, "domain": _domain}


def main(config: PeakConfig) -> None:
    """Measure and write."""
    report = measure(config)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(PeakConfig, config=(tyro.conf.FlagConversionOff,)))
