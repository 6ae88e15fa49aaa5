"""What a step takes with memory as the C library hands it out, and with memory that is kept and comes in large pages.

    python benchmarks/allocator.py --output docs/results/allocator.json

glibc returns every large tensor to the kernel when it is freed, and the next one arrives as untouched pages of 4 kB,
each of them a fault. `GLIBC_TUNABLES` (below, and in the recipes) makes it keep what it was given, in pages of 2 MB
where the kernel allows them. Both are timed in turn, each in a process of its own, on one thread; a ratio is the
median of single pairs. Memory that is kept is not there for others, which is why no command does it by itself.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from e4t.config import PretrainConfig
from e4t.demo import example_pictures
from e4t.domain import Domain
from e4t.evaluation.judge import JudgeNetwork
from e4t.pipeline import E4TPipeline
from e4t.pretrain import pretrain
from e4t.tiny.album import AlbumConfig, write_album

ROOT = Path(__file__).parents[1]
KEPT = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8000000000"
KEPT += ":glibc.malloc.top_pad=268435456"


@dataclass(frozen=True)
class AllocatorConfig:
    """What to time, and how often."""

    output: Path
    stages: tuple[str, ...] = ("judge", "domain", "tuning", "drawing")
    pairs: int = 5
    steps: int = 6  # in each process; the first two are not timed
    only: str | None = None  # in a child: this stage, here and now


def judge(config: AllocatorConfig, tick: Callable[[], None]) -> None:
    """Steps of the network of judge 2 on random pictures, 64 at a time."""
    network = JudgeNetwork(2, "cat").to(memory_format=torch.channels_last)
    pixels = torch.randn(64, 3, 128, 128).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters())
    for _ in range(config.steps):
        sum(part.square().mean() for part in _tensors(network(pixels))).backward()
        optimizer.step()
        optimizer.zero_grad()
        tick()


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in (value.values() if isinstance(value, dict) else value) for tensor in _tensors(part)]


def domain(config: AllocatorConfig, tick: Callable[[], None]) -> None:
    """Steps of pre-training, with the settings of the shipped domain of cats."""
    settings = json.loads((ROOT / "runs" / "tiny-cat.json").read_text())
    pretraining = PretrainConfig.from_dict(settings["pretrain"]).updated({"steps": config.steps})
    backbone = E4TPipeline.from_pretrained("tiny-cat", device="cpu").backbone
    with tempfile.TemporaryDirectory() as folder:
        album = Path(folder) / "album"
        write_album(AlbumConfig(album, "train", 64, "cat"))
        output = Path(folder) / "cat"
        for _ in pretrain(Domain.named("cat"), album, backbone=backbone, config=pretraining, output=output):
            tick()


def tuning(config: AllocatorConfig, tick: Callable[[], None]) -> None:
    """Steps of tuning, as the shipped domain of faces has it."""
    pipe = E4TPipeline.from_pretrained("tiny-face", device="cpu")
    for _ in pipe.personalize_steps(example_pictures("face")[0], steps=config.steps):
        tick()


def drawing(config: AllocatorConfig, tick: Callable[[], None]) -> None:
    """Eight pictures in four denoising steps, again and again."""
    pipe = E4TPipeline.from_pretrained("tiny-face", device="cpu")
    concept = pipe.personalize(example_pictures("face")[0], steps=0)
    for seed in range(config.steps):
        pipe("a photo of S*", concept=concept, num_images=8, num_inference_steps=4, seed=seed)
        tick()


STAGES = {stage.__name__: stage for stage in (judge, domain, tuning, drawing)}


def here(config: AllocatorConfig, stage: str) -> dict[str, float]:
    """The median step of this process, in seconds, with its share of time in the kernel and its faults."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    ends, used = [], []

    def tick() -> None:
        ends.append(time.perf_counter())
        used.append(resource.getrusage(resource.RUSAGE_SELF))

    STAGES[stage](config, tick)
    seconds = statistics.median(np.diff(ends)[1:].tolist())
    system, steps = used[-1].ru_stime - used[1].ru_stime, len(used) - 2
    return {
        "seconds": seconds,
        "kernel_seconds": system / steps,
        "faults": (used[-1].ru_minflt - used[1].ru_minflt) / steps,
        "peak_mb": used[-1].ru_maxrss / 1e3,
    }


def child(config: AllocatorConfig, stage: str, tunables: str) -> dict[str, float]:
    """`here`, in a process that starts with these tunables."""
    command = [sys.executable, __file__, "--output", str(config.output), "--only", stage, "--steps", str(config.steps)]
    environment = {**os.environ, "GLIBC_TUNABLES": tunables, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(config: AllocatorConfig, stage: str) -> dict[str, Any]:
    """Pairs of processes, and the ratio of their steps."""
    pairs = [(child(config, stage, ""), child(config, stage, KEPT)) for _ in range(config.pairs)]
    ratios = [kept["seconds"] / plain["seconds"] for plain, kept in pairs]
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75)).round(3).tolist()
    sides = {
        name: {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
        for name, runs in zip(("plain", "kept"), zip(*pairs, strict=True), strict=True)
    }
    return {"ratio": middle, "quartiles": [low, high], **sides}


def main(config: AllocatorConfig) -> None:
    """Measure all stages, or, in a child, one."""
    if config.only:
        print(json.dumps(here(config, config.only)))
        return
    report: dict[str, Any] = {"tunables": KEPT, "pairs": config.pairs, "stages": {}}
    for stage in config.stages:
        report["stages"][stage] = measure(config, stage)
        print(stage, json.dumps(report["stages"][stage]), flush=True)
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(AllocatorConfig, config=(tyro.conf.FlagConversionOff,)))
