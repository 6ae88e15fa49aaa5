"""What a pre-training will take, before anything is loaded: parameters, memory, arithmetic, time.

Memory and arithmetic are counted (`e4t.counting`). What no count can know, the time a device takes, is estimated from a
short multiplication.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from e4t.backbone import Backbone
from e4t.config import PretrainConfig
from e4t.counting import RUNTIME, Count, bytes_of, count_looking, count_step, held, numbers
from e4t.domain import Domain
from e4t.model import new_model
from e4t.optimizers import STATE_BYTES
from e4t.precision import is_here
from e4t.training import arithmetic

_SHARE_OF_PEAK = {"cpu": 0.45, "cuda": 0.35}
"""Of the rate of one large multiplication that a step reaches; `benchmarks/peak.py` measures it."""

_SIDE = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Forecast:
    """Bytes and seconds are those of each process."""

    frozen: int  # parameters
    trained: int  # parameters
    weights: int  # bytes of the frozen networks
    states: int  # bytes of what is trained, with its moments and average
    passing: int  # bytes that come and go in a step, gradients included, at its fullest moment
    runtime: int  # bytes of the program itself
    operations: int  # of one optimiser step
    seconds: float | None  # of one optimiser step; None for a device that is not here
    steps: int

    @property
    def peak(self) -> int:
        """Bytes."""
        return self.weights + self.states + self.passing + self.runtime

    def sentences(self) -> list[str]:
        """For people."""
        giga = 2**30
        parts = {"frozen": self.weights, "trained": self.states, "activations and gradients": self.passing}
        inside = ", ".join(f"{size / giga:.2f} {name}" for name, size in parts.items())
        work = f"a step: {self.operations / 1e12:.2f} TFLOP"
        lines = [
            f"parameters: {self.trained / 1e6:.2f} million trained, {self.frozen / 1e6:.2f} million frozen",
            f"peak memory: {self.peak / giga:.2f} GB predicted for each process ({inside})",
        ]
        if self.seconds is None:
            return [*lines, f"{work}; the time is not known, because that device is not here"]
        hours = self.seconds * self.steps / 3600
        lines.append(f"{work}, about {self.seconds:.2g} s here (estimated)")
        return [*lines, f"all {self.steps} steps: about {hours:.2g} hours (estimated)"]


def forecast(
    backbone: Backbone,
    domain: Domain,
    config: PretrainConfig,
    *,
    device: torch.device,
    cached: bool = False,
    rate: float | None = None,
    processes: int = 1,
) -> Forecast:
    """Of a base whose parts may all be on the meta device (`Backbone.shapes`); ``device`` is where it would be trained.

    ``cached``: autoencoder and image encoder are not there. ``rate`` is `multiplication_rate`, which is measured here
    and now unless it is known; of a device that is not at hand there is no time without it. Several ``processes`` hold
    their gradients twice: as their own, and in the buckets in which they are averaged.
    """
    resolution = config.resolution or backbone.resolution
    frozen = [backbone.unet, backbone.text_encoder, *(() if cached else (backbone.vae, backbone.image_encoder))]
    with torch.device("meta"):
        model = new_model(backbone.blank(), domain, config)
    trained = sum(p.numel() for p in (*model.encoder.heads().values(), *model.offsets.domain_parameters()))
    rows = config.batch_size
    looking = Count(0, 0) if cached else count_looking(model, rows=rows, resolution=resolution)
    with model.offsets.injected():
        step = count_step(
            model,
            rows=rows,
            resolution=resolution,
            twice=config.accumulation > 1,
            checkpointing=config.gradient_checkpointing,
            quick_attention_on=device,
        )
    operations = config.accumulation * (looking.operations + step.operations)
    dtype = arithmetic(config.mixed_precision, device, backbone.dtype)
    if rate is None and is_here(device):
        rate = multiplication_rate(device, dtype)
    counted = step.bytes_again if config.accumulation > 1 else step.bytes
    passing = held(counted, backbone, device=device, config=config, trained=trained)
    passing += 4 * trained if processes > 1 else 0
    share = _SHARE_OF_PEAK.get(device.type, _SHARE_OF_PEAK["cuda"])
    return Forecast(
        frozen=sum(map(numbers, frozen)),
        trained=trained,
        weights=sum(map(bytes_of, frozen)),
        states=trained * (4 + STATE_BYTES[config.optimizer] + (4 if config.ema_decay else 0)),
        passing=max(passing, looking.bytes * backbone.dtype.itemsize // 4),
        runtime=RUNTIME.get(device.type, RUNTIME["cuda"]),
        operations=operations,
        seconds=operations / (rate * share) if rate is not None else None,
        steps=config.steps,
    )


def multiplication_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large product of two matrices, the best of a few."""
    side = _SIDE.get(device.type, 2048)
    a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        float((a @ b)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best
