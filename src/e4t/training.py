"""The one training loop, of both stages. It yields after every step; the caller decides what to do with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from e4t.errors import ConfigError
from e4t.objective import Batch, E4TObjective
from e4t.precision import has_fast_bfloat16

_AUTOCAST_OF = {torch.float16: "fp16", torch.bfloat16: "bf16"}
"""What autocast has to be, by the type of the frozen weights; with float32 it may be any."""


@dataclass(frozen=True)
class Step:
    """What a finished optimiser step says of itself; losses are means over its batches."""

    number: int  # 1 is the first
    total_steps: int
    loss: float
    diffusion: float
    regularizer: float
    embedding_ratio: float  # ‖s E‖ / ‖v_class‖
    seconds: float


def train(
    objective: E4TObjective,
    batch_at: Callable[[int], Batch],
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    start: int = 0,
    accumulation: int = 1,
    mixed_precision: str = "no",
    max_grad_norm: float | None = None,
    warmup_steps: int = 0,
    cooldown_steps: int = 0,
) -> Iterator[Step]:
    """Steps ``start`` to ``steps``; ``batch_at(i)`` gives batch i, always the same one, so that resuming is exact.

    The learning rates rise over the first ``warmup_steps`` and fall to nothing over the last ``cooldown_steps``.
    "bf16" means float32 where a processor would only emulate bfloat16.
    """
    device, weights = objective.model.backbone.device, objective.model.backbone.dtype
    needed = _AUTOCAST_OF.get(weights, mixed_precision)
    if mixed_precision != needed:
        raise ConfigError(f"training on weights of {weights} needs mixed_precision '{needed}'")
    cast = autocast(mixed_precision, device, weights)
    scaler = torch.amp.GradScaler(device.type, enabled=cast.fast_dtype == torch.float16)
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(start, steps):
        began, losses = time.perf_counter(), []
        for micro in range(accumulation):
            # The batch too: autoencoder and CLIP are run on it at every step.
            with cast:
                loss = objective(batch_at(step * accumulation + micro))
            scaler.scale(loss.total / accumulation).backward()
            losses.append(torch.stack([loss.total.detach(), loss.diffusion, loss.regularizer, loss.embedding_ratio]))
        scaler.unscale_(optimizer)
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], max_grad_norm)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / max(1, warmup_steps), (steps - step) / max(1, cooldown_steps))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        total, diffusion, regularizer, ratio = torch.stack(losses).mean(dim=0).tolist()
        yield Step(step + 1, steps, total, diffusion, regularizer, ratio, time.perf_counter() - began)


def autocast(mixed_precision: str, device: torch.device, weights: torch.dtype) -> torch.autocast:
    """For "no", "bf16" and "fp16"; off where bfloat16 would only be emulated."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mixed_precision, torch.float32)
    if emulated(mixed_precision, device, weights):
        dtype = torch.float32
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def emulated(mixed_precision: str, device: torch.device, weights: torch.dtype) -> bool:
    """Whether bfloat16 was asked for where it would only be emulated, and nothing forces it."""
    return mixed_precision == "bf16" and weights == torch.float32 and not has_fast_bfloat16(device)


def generator_at(seed: int, *position: int) -> torch.Generator:
    """Random numbers that depend on the seed (0 included) and a position alone, not on what was drawn before."""
    mixed = seed
    for number in position:
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(mixed)


def draw_timesteps(
    count: int, low: int, high: int, generator: torch.Generator, *, stratified: bool = False
) -> torch.Tensor:
    """Timesteps in [low, high), uniform; stratified: one from each of ``count`` equal intervals."""
    position = torch.rand(count, generator=generator)
    if stratified:
        position = (torch.arange(count) + position) / count
    return (low + position * (high - low)).long().clamp(max=high - 1)
