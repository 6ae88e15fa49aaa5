"""How much memory personalizing needs, and settings that need less.

Counted from shapes, before anything is tuned: an estimate. What is done to need less changes no step but by rounding,
as long as that is enough: fewer noise levels at a time, checkpointing, networks that wait elsewhere. Only where it is
not does AdamW's state shrink to 8 bits and, last, the whole U-Net and the text encoder stay as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from e4t.config import PersonalizeConfig
from e4t.counting import RUNTIME, Count, bytes_of, count_looking, count_step, held
from e4t.model import E4TModel
from e4t.optimizers import STATE_BYTES, has_adamw8bit

GIB = 2**30
_WHOLE = ("unet", "text_encoder")
_SPARE = 0.92  # of what there is: allocators lose some between their blocks


@dataclass(frozen=True)
class Need:
    """Estimated bytes on the device."""

    weights: int  # of the networks that stay
    states: int  # of what is trained: its own copy and the optimiser's state
    passing: int  # that come and go in one micro-batch, gradients included
    preparing: int  # all networks, while latents and image features are computed

    @property
    def peak(self) -> int:
        return max(self.preparing, self.weights + self.states + self.passing)


def needed(model: E4TModel, config: PersonalizeConfig, *, device: torch.device | None = None) -> Need:
    """What tuning by ``config`` needs on the model's device, or would need on another."""
    backbone, device = model.backbone, device or model.backbone.device
    staying = [backbone.unet, backbone.text_encoder, model]
    all_networks = sum(map(bytes_of, [model, *backbone.modules()]))
    looking = _looking(model.blank).bytes * backbone.dtype.itemsize // 4
    weights = sum(map(bytes_of, staying)) if config.unload and device.type != "cpu" else all_networks
    if not config.steps:
        return Need(weights, 0, 0, all_networks + looking)
    numbers, counted = _step_bytes(model.blank, config)
    state = STATE_BYTES[config.optimizer]
    return Need(
        weights=weights,
        states=numbers * (4 + state),
        passing=held(counted, backbone, device=device, config=config, trained=numbers),
        preparing=all_networks + looking,
    )


def _step_bytes(blank: E4TModel, config: PersonalizeConfig) -> tuple[int, int]:
    """How many numbers are trained, and the bytes of one micro-batch.

    Counted for one row and for a whole batch, and between them along a straight line, which never runs below.
    """

    def counted(rows: int) -> tuple[int, int]:
        prior, checkpointing = bool(config.prior_weight), config.gradient_checkpointing
        numbers, step = _counted(blank, tuple(config.tune), config.delta_rank, rows, prior, checkpointing)
        return numbers, step.bytes_again if config.accumulation * config.parts > 1 else step.bytes

    rows = min(config.batch_size, config.micro_batch_size or config.batch_size)
    if rows in (1, config.batch_size):
        return counted(rows)
    (numbers, one), (_, most) = counted(1), counted(config.batch_size)
    return numbers, one + (most - one) * (rows - 1) // (config.batch_size - 1)


@lru_cache(maxsize=32)
def _counted(
    blank: E4TModel, tune: tuple[str, ...], delta_rank: int, rows: int, prior: bool, checkpointing: bool
) -> tuple[int, Count]:
    """How many numbers are trained, and what a step of so many rows holds."""
    resolution = blank.backbone.resolution
    with torch.device("meta"):
        parameters = [p for part in blank.start_tuning(tune, delta_rank=delta_rank, seed=0).values() for p in part]
    try:
        step = count_step(blank, rows=rows, resolution=resolution, twice=True, prior=prior, checkpointing=checkpointing)
    finally:
        blank.take_off()
    return sum(parameter.numel() for parameter in parameters), step


@lru_cache(maxsize=4)
def _looking(blank: E4TModel) -> Count:
    return count_looking(blank, rows=1, resolution=blank.backbone.resolution)


def fitted(model: E4TModel, config: PersonalizeConfig, *, device: torch.device | None = None) -> PersonalizeConfig:
    """Settings for the memory that ``config.memory`` names, the fastest that fit; ``config`` itself without one.

    Those have ``memory`` None, so that a repetition elsewhere takes the same. Warns where less is tuned than was asked
    for, and where nothing fits.
    """
    if config.memory is None:
        return config
    device = device or model.backbone.device
    given = free_memory(device, model) if config.memory == "auto" else int(float(config.memory) * GIB)
    program = 0 if config.memory == "auto" else RUNTIME.get(device.type, RUNTIME["cuda"])
    room = int(_SPARE * given) - program
    asked = replace(config, memory=None)
    chosen = asked
    for chosen in _ladder(asked, device):
        if needed(model, chosen, device=device).peak <= room:
            break
    else:
        least = needed(model, chosen, device=device).peak
        warnings.warn(
            f"tuning needs about {(least + program) / _SPARE / GIB:.1f} GB even with everything that saves memory, but "
            f"only {given / GIB:.1f} GB can be used",
            stacklevel=2,
        )
    if chosen.tune != config.tune:
        left = " and ".join(part.replace("unet", "whole U-Net").replace("_", " ") for part in _whole_parts(config))
        warnings.warn(f"there is too little memory to tune the {left}: q, k and v are tuned instead", stacklevel=2)
    return chosen


def _ladder(config: PersonalizeConfig, device: torch.device) -> Iterator[PersonalizeConfig]:
    """From the settings as they are to those that need least; what costs least time comes first."""
    yield config
    sizes = _sizes(config)
    steps = [(False, size) for size in sizes if 4 * size >= sizes[0]] + [(True, size) for size in sizes]
    for tuning in _tunings(config, device):
        for checkpointing, size in steps:
            saving = checkpointing or config.gradient_checkpointing
            yield replace(tuning, unload=True, gradient_checkpointing=saving, micro_batch_size=size)


def _tunings(config: PersonalizeConfig, device: torch.device) -> Iterator[PersonalizeConfig]:
    yield config
    if not _whole_parts(config):
        return
    if config.optimizer == "adamw" and has_adamw8bit(device):  # a rate of Muon is none of AdamW's
        yield replace(config, optimizer="adamw8bit")
    tune = tuple(part for part in config.tune if part not in _WHOLE)
    yield replace(config, tune=tune if "deltas" in tune else (*tune, "deltas"))


def _sizes(config: PersonalizeConfig) -> list[int]:
    sizes = [min(config.batch_size, config.micro_batch_size or config.batch_size)]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def _whole_parts(config: PersonalizeConfig) -> list[str]:
    return [part for part in _WHOLE if part in config.tune]


def free_memory(device: torch.device, model: E4TModel | None = None) -> int:
    """Bytes that could be used on ``device``, counting as free what ``model`` already takes there."""
    taken = 0
    if model is not None:
        taken = sum(map(bytes_of, (model, *model.backbone.modules())))
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused + taken
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory() + taken
    return available_memory() + taken


def available_memory() -> int:
    """Bytes of this machine, or what the limit of its control group (version 2) leaves: what a container may have."""
    import psutil

    available, group = int(psutil.virtual_memory().available), Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())  # or "max"
        used = int((group / "memory.current").read_text())
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        kept = int(counts["inactive_file"])  # what was read from files, and makes room when asked to
    except (OSError, ValueError, KeyError):
        return available
    return min(available, max(0, limit - used + kept))


def described(config: PersonalizeConfig, need: Need) -> str:
    """One line for a terminal."""
    ways = []
    if config.parts > 1:
        ways.append(f"{config.micro_batch_size} of {config.batch_size} noise levels at a time")
    if config.gradient_checkpointing:
        ways.append("gradient checkpointing")
    if config.optimizer == "adamw8bit":
        ways.append("the optimiser's state in 8 bits")
    if config.unload:
        ways.append("networks unloaded")
    return f"about {need.peak / GIB:.1f} GB (an estimate) with {', '.join(ways) or 'nothing done to save memory'}"
