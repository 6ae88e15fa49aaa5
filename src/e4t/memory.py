"""How much memory personalizing needs, and settings that need less.

Counted from shapes, before anything is tuned: an estimate. What is done to need less changes no step but by rounding,
as long as that is enough: fewer noise levels at a time, checkpointing, networks that wait elsewhere. Only where it is
not do the optimiser's state shrink to 8 bits and, last, the whole U-Net and the text encoder stay as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from e4t.config import PersonalizeConfig
from e4t.model import E4TModel
from e4t.models import activations
from e4t.models.activations import Kept
from e4t.training import emulated

GIB = 2**30
_WHOLE = ("unet", "text_encoder")
_SPARE = 0.92  # of what there is: allocators lose some between their blocks
_CONTEXT = int(0.5 * GIB)  # what CUDA itself takes
_COMING_AND_GOING = 4  # tensors of the largest size, in a backward pass
_AUTOENCODER_TENSORS = 5  # of the first resolution, while it encodes


@dataclass(frozen=True)
class Need:
    """Estimated bytes on the device."""

    weights: int  # of the networks that stay
    trained: int  # what is trained: its own copy, gradients and the optimiser's state
    activations: int  # of one micro-batch, with the composed weights
    preparing: int  # all networks, while latents and image features are computed
    updating: int  # beside weights and what is trained, while the optimiser steps

    @property
    def peak(self) -> int:
        return max(self.preparing, self.weights + self.trained + max(self.activations, self.updating))


def needed(model: E4TModel, config: PersonalizeConfig, *, device: torch.device | None = None) -> Need:
    """What tuning by ``config`` needs on the model's device, or would need on another."""
    backbone, device = model.backbone, device or model.backbone.device
    staying = [backbone.unet, backbone.text_encoder, model]
    all_networks = sum(map(_bytes, [*staying, backbone.vae, backbone.image_encoder]))
    weights = sum(map(_bytes, staying)) if config.unload and device.type != "cpu" else all_networks
    numbers = _trained_numbers(model, config)
    state = 2 if config.optimizer == "adamw8bit" else 8
    encoded = backbone.vae.config.block_out_channels[0] * backbone.resolution**2 * backbone.vae.dtype.itemsize
    return Need(
        weights=weights,
        trained=numbers * (4 + 4 + state) if config.steps else 0,
        activations=_activation_bytes(model, config, device) if config.steps else 0,
        preparing=all_networks + _AUTOENCODER_TENSORS * encoded,
        updating=4 * numbers if device.type == "cuda" and state == 8 else 0,  # steps on all of it at once
    )


def _activation_bytes(model: E4TModel, config: PersonalizeConfig, device: torch.device) -> int:
    backbone = model.backbone
    rows = min(config.batch_size, config.micro_batch_size or config.batch_size)
    rows *= 2 if config.prior_weight else 1  # pictures of the class are as many again
    half = config.mixed_precision != "no" and not emulated(config.mixed_precision, device, backbone.dtype)
    size = 4.0 if not half else 2.0 if device.type == "cpu" else 3.0  # norms stay float32 on GPUs
    unet, text = _kept(model, config)
    of_unet = unet.checkpointed if config.gradient_checkpointing else unet.whole
    numbers = rows * (of_unet + _COMING_AND_GOING * unet.largest + text.whole)
    if config.gradient_checkpointing:
        return int(size * numbers)
    composed = sum(linear.weight.numel() for linear, _ in model.offsets.items())
    if half and backbone.dtype == torch.float32:  # autograd keeps the weights as they were cast
        composed += _numbers(backbone.unet) + _numbers(backbone.text_encoder)
    return int(size * numbers + (2 if half else 4) * composed)


def _kept(model: E4TModel, config: PersonalizeConfig) -> tuple[Kept, Kept]:
    """Of U-Net and text encoder; counted once for a model."""
    whole = tuple(part for part in _WHOLE if part in config.tune)
    deltas = bool(model.offsets.paths) and "deltas" in config.tune
    key = (*whole, "deltas") if deltas else whole
    if key not in model.kept:
        backbone = model.backbone
        names = {f"{path}.weight" for path in model.offsets.paths} if deltas else set()
        if "unet" in whole:
            names |= {name for name, _ in backbone.unet.named_parameters()}
        words = {name for name, _ in backbone.text_encoder.named_parameters()} if "text_encoder" in whole else set()
        counted = activations.of_unet(backbone.unet, names), activations.of_text_encoder(backbone.text_encoder, words)
        model.kept[key] = counted
    return model.kept[key]


def _trained_numbers(model: E4TModel, config: PersonalizeConfig) -> int:
    backbone, shapes = model.backbone, [offset.shape for _, offset in model.offsets.items()]
    dense = sum(rows * columns for rows, columns in shapes)
    low_rank = sum(config.delta_rank * (rows + columns) for rows, columns in shapes)
    numbers = {
        "encoder": _numbers(model.encoder),
        "deltas": low_rank if config.delta_rank else dense,
        "unet": _numbers(backbone.unet) - dense,
        "text_encoder": _numbers(backbone.text_encoder),
    }
    return sum(numbers.get(part, backbone.embedding_dim) for part in config.tune)


def fitted(model: E4TModel, config: PersonalizeConfig, *, device: torch.device | None = None) -> PersonalizeConfig:
    """Settings for the memory that ``config.memory`` names, the fastest that fit; ``config`` itself without one.

    Those have ``memory`` None, so that a repetition elsewhere takes the same. Warns where less is tuned than was asked
    for, and where nothing fits.
    """
    if config.memory is None:
        return config
    device = device or model.backbone.device
    room = free_memory(device, model) if config.memory == "auto" else int(float(config.memory) * GIB)
    room = int(_SPARE * room) - (_CONTEXT if device.type == "cuda" and config.memory != "auto" else 0)
    asked = replace(config, memory=None)
    chosen = asked
    for chosen in _ladder(asked, device):
        if needed(model, chosen, device=device).peak <= room:
            break
    else:
        least = needed(model, chosen, device=device).peak
        warnings.warn(
            f"tuning needs about {least / GIB:.1f} GB even with everything that saves memory, but only "
            f"{max(0, room) / GIB:.1f} GB can be used",
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
    if has_adamw8bit(device):
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


def has_adamw8bit(device: torch.device) -> bool:
    """Whether bitsandbytes is installed and knows the device."""
    return find_spec("bitsandbytes") is not None and device.type in ("cpu", "cuda", "xpu")


def free_memory(device: torch.device, model: E4TModel | None = None) -> int:
    """Bytes that could be used on ``device``, counting as free what ``model`` already takes there."""
    taken = 0
    if model is not None:
        taken = sum(map(_bytes, (model, *model.backbone.modules())))
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused + taken
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory() + taken
    import psutil

    return int(psutil.virtual_memory().available) + taken


def described(config: PersonalizeConfig, need: Need) -> str:
    """One line for a terminal."""
    ways = []
    if config.parts > 1:
        ways.append(f"{config.micro_batch_size} of {config.batch_size} noise levels at a time")
    if config.gradient_checkpointing:
        ways.append("gradient checkpointing")
    if config.optimizer != "adamw":
        ways.append("the optimiser's state in 8 bits")
    if config.unload:
        ways.append("networks unloaded")
    return f"about {need.peak / GIB:.1f} GB (an estimate) with {', '.join(ways) or 'nothing done to save memory'}"


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _bytes(module: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
