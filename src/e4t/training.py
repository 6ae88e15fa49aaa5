"""The one training loop, of both stages. It yields after every step; the caller decides what to do with it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from e4t.config import PersonalizeConfig, PretrainConfig
from e4t.errors import ConfigError, TrainingError
from e4t.objective import Batch, E4TObjective
from e4t.precision import AUTOCAST_OF, has_fast_bfloat16
from e4t.processes import Processes

_MAY_HELP = "a lower learning rate, warmup_steps or max_grad_norm may help"
_LEAST_SCALE = 2.0**-10
"""Of fp16's gradients: where they overflow even so, they are no numbers whatever the scale."""


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
    learning_rate: float = 0.0  # of the first group of parameters, as this step had it


def train(
    objective: E4TObjective,
    batch_at: Callable[[int], Batch],
    optimizer: torch.optim.Optimizer,
    *,
    start: int = 0,
    parts: int = 1,
    scaler: torch.amp.GradScaler | None = None,
    processes: Processes | None = None,
) -> Iterator[Step]:
    """The steps of the objective's settings, from ``start`` on.

    ``batch_at(i)`` gives batch i, or where they come in several ``parts``, part i of all; always the same one, so that
    resuming is exact. "bf16" means float32 where a processor would only emulate bfloat16. With several ``processes``,
    ``batch_at`` gives this one's share. A step whose gradients overflow in fp16 is done again with a smaller scale.
    Raises TrainingError, before it changes a weight, where the loss is no number any more.
    """
    config, accumulation = objective.config, objective.config.accumulation * parts
    device, weights = objective.model.backbone.device, objective.model.base_dtype
    cast = autocast(config.mixed_precision, device, weights)
    scaler = scaler or gradient_scaler(config.mixed_precision, device)
    together = processes or Processes()
    loss_of = together.shared(objective)
    rates = [group["lr"] for group in optimizer.param_groups]

    def gradients(step: int) -> list[float]:
        """Those of all batches of a step are there afterwards; the means of its losses."""
        losses = []
        for micro in range(accumulation):
            with together.apart(loss_of, when=micro + 1 < accumulation):
                # The batch too: autoencoder and CLIP are run on it at every step.
                with cast:
                    loss = loss_of(batch_at(step * accumulation + micro))
                scaler.scale(loss.total / accumulation).backward()
            losses.append(torch.stack([loss.total.detach(), loss.diffusion, loss.regularizer, loss.embedding_ratio]))
        means: list[float] = together.mean(torch.stack(losses).mean(dim=0)).tolist()
        if not math.isfinite(means[0]):
            raise TrainingError(f"the loss of step {step + 1} is {means[0]}, so training stopped; {_MAY_HELP}")
        scaler.unscale_(optimizer)
        parameters = [p for g in optimizer.param_groups for p in g["params"]]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if config.max_grad_norm is not None:  # else a pass over all of them would change nothing
            nn.utils.clip_grads_with_norm_(parameters, config.max_grad_norm, norm)
        overflow = scaler.is_enabled() and scaler.get_scale() > _LEAST_SCALE
        if not math.isfinite(norm) and not overflow:
            raise TrainingError(f"the gradients of step {step + 1} are no numbers, so training stopped; {_MAY_HELP}")
        return means

    for step in range(start, config.steps):
        began, scale = time.perf_counter(), scaler.state_dict()
        share = rate_at(step, config)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share
        try:
            means = gradients(step)
            while not _stepped(optimizer, scaler):
                means = gradients(step)
        except TrainingError:
            optimizer.zero_grad(set_to_none=True)
            scaler.load_state_dict(scale)  # the smallest there is would lose the gradients of whoever goes on
            raise
        total, diffusion, regularizer, ratio = means
        seconds = time.perf_counter() - began
        yield Step(step + 1, config.steps, total, diffusion, regularizer, ratio, seconds, rates[0] * share)


def _stepped(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> bool:
    """Whether a step was taken: where gradients overflow, a scaler leaves it out and halves its scale instead."""
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return scaler.get_scale() >= before


def rate_at(step: int, config: PretrainConfig | PersonalizeConfig) -> float:
    """The share of the learning rate that a step has, 0 the first.

    In pre-training it rises over the first steps and falls to nothing over the last ones, or all the way. In tuning it
    is constant, or falls after ``constant_steps`` with the square of the step: all steps together then go a bounded way
    however many there are, and the first ones are the same.
    """
    if isinstance(config, PersonalizeConfig):
        return 1.0 if config.constant_steps is None else min(1.0, config.constant_steps / (step + 1)) ** 2
    steps, warmup = config.steps, config.warmup_steps
    share = min(1.0, (step + 1) / max(1, warmup), (steps - step) / max(1, config.cooldown_steps))
    if config.schedule == "constant" or step < warmup:
        return share
    passed = (step - warmup) / max(1, steps - warmup)
    return share * (1 - passed if config.schedule == "linear" else (1 + math.cos(math.pi * passed)) / 2)


def gradient_scaler(mixed_precision: str, device: torch.device) -> torch.amp.GradScaler:
    """For "fp16", whose small gradients would be lost; off for everything else."""
    return torch.amp.GradScaler(device.type, enabled=mixed_precision == "fp16")


def autocast(mixed_precision: str, device: torch.device, weights: torch.dtype) -> torch.autocast:
    """For "no", "bf16" and "fp16"; off where bfloat16 would only be emulated.

    Raises ConfigError where ``weights``, the type of the frozen ones, need another.
    """
    needed = AUTOCAST_OF.get(weights, mixed_precision)
    if mixed_precision != needed:
        raise ConfigError(f"training on weights of {weights} needs mixed_precision '{needed}'")
    dtype = arithmetic(mixed_precision, device, weights)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def autocast_beside(device: torch.device, weights: torch.dtype) -> torch.autocast:
    """What a picture between two steps needs: of half-precision ``weights``, those that are tuned whole are float32."""
    return autocast(AUTOCAST_OF.get(weights, "no"), device, weights)


def arithmetic(mixed_precision: str, device: torch.device, weights: torch.dtype) -> torch.dtype:
    """What products are computed in: float32 also where bfloat16 would only be emulated, and nothing forces it."""
    if mixed_precision == "bf16" and weights == torch.float32 and not has_fast_bfloat16(device):
        return torch.float32
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mixed_precision, torch.float32)


def generator_at(seed: int, *position: int) -> torch.Generator:
    """Random numbers that depend on the seed (0 included) and a position alone, not on what was drawn before."""
    mixed = seed
    for number in position:
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(mixed)


def timestep_range(config: PretrainConfig | PersonalizeConfig, most: int) -> tuple[int, int]:
    """From which timestep to before which. Raises ConfigError for one that the base, which has ``most``, has not."""
    if (config.max_timestep or 0) > most:
        raise ConfigError(f"max_timestep is {config.max_timestep}, but the base model has {most} timesteps")
    low, high = config.min_timestep, config.max_timestep or most
    if low >= high:
        raise ConfigError(f"min_timestep is {low}; it must be below {high}")
    return low, high


def draw_timesteps(
    count: int, low: int, high: int, generator: torch.Generator, *, stratified: bool = False
) -> torch.Tensor:
    """Timesteps in [low, high), uniform; stratified: one from each of ``count`` equal intervals."""
    position = torch.rand(count, generator=generator)
    if stratified:
        position = (torch.arange(count) + position) / count
    return (low + position * (high - low)).long().clamp(max=high - 1)
