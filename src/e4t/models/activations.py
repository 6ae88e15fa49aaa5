"""What a network keeps for its backward pass, counted on tensors without values: no memory, and no weights, are needed.

Runs the network's own forward pass on torch's meta device and adds up what autograd keeps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_UNIT = re.compile(r"\b(resnets|transformer_blocks)\.\d+$")
"""Paths of what diffusers checkpoints one at a time."""


@dataclass(frozen=True)
class Kept:
    """Numbers kept for the backward pass of one row.

    With gradient checkpointing only what goes into each unit is kept, and one unit is done again at a time.
    """

    whole: int
    checkpointed: int
    largest: int  # tensor: several of this size come and go in the backward pass


def of_unet(unet: Any, trained: Collection[str]) -> Kept:
    """For latents of the size the U-Net was made for; ``trained`` are names of parameters."""
    with torch.device("meta"):
        copy = type(unet).from_config(unet.config)
        side, channels = unet.config.sample_size, unet.config.in_channels
        prompt = torch.empty(1, 77, unet.config.cross_attention_dim, requires_grad=True)
        inputs = (torch.empty(1, channels, side, side), torch.zeros(1, dtype=torch.long), prompt)
    return _counted(copy, trained, inputs)


def of_text_encoder(text_encoder: Any, trained: Collection[str]) -> Kept:
    """For one prompt of full length, whose words are learned."""
    with torch.device("meta"):
        copy = type(text_encoder)(text_encoder.config)
        ids = torch.zeros(1, text_encoder.config.max_position_embeddings, dtype=torch.long)
    words = {f"{name}.weight" for name, part in copy.named_modules() if part is copy.get_input_embeddings()}
    return _counted(copy, {*trained, *words}, (ids,))


def _counted(module: nn.Module, trained: Collection[str], inputs: Sequence[Tensor]) -> Kept:
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trained)
    count = _Count(module)
    with torch.autograd.graph.saved_tensors_hooks(count.keep, lambda kept: kept), _FusedKernels(), count.watching():
        module(*inputs)
    whole = sum(count.numbers.values())
    again = max(count.inside, default=0)
    return Kept(whole, whole - sum(count.inside) + sum(count.into) + again, max(count.numbers.values(), default=0))


class _Count:
    """Storages that autograd keeps, those of the parameters left out; and what of them belongs to single units."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.own = {p.untyped_storage()._cdata for p in module.parameters()}
        self.alive: list[Any] = []  # an address is a storage's own only while that lives
        self.numbers: dict[int, int] = {}
        self.inside: list[int] = []
        self.into: list[int] = []

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.own and storage._cdata not in self.numbers:
            self.alive.append(storage)
            self.numbers[storage._cdata] = storage.nbytes() // tensor.element_size()
        return tensor

    def watching(self) -> _Hooks:
        units = [part for name, part in self.module.named_modules() if _UNIT.search(name)]
        return _Hooks(units, self._enter, self._leave)

    def _enter(self, _unit: nn.Module, inputs: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        self._before = sum(self.numbers.values())
        given = [*inputs, *options.values()]
        self.into.append(max(value.numel() for value in given if isinstance(value, Tensor)))

    def _leave(self, *_: Any) -> None:
        self.inside.append(sum(self.numbers.values()) - self._before)


class _Hooks:
    """Called before and after each of ``units`` inside the ``with``."""

    def __init__(self, units: Sequence[nn.Module], enter: Callable[..., None], leave: Callable[..., None]) -> None:
        self.units, self.enter, self.leave = units, enter, leave

    def __enter__(self) -> None:
        self.handles = [unit.register_forward_pre_hook(self.enter, with_kwargs=True) for unit in self.units]
        self.handles += [unit.register_forward_hook(self.leave) for unit in self.units]

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()


class _FusedKernels(TorchFunctionMode):
    """Attention keeps what fused kernels keep; on the meta device torch would take the one that holds all weights."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return _Fused.apply(given["query"], given["key"], given["value"])  # type: ignore[no-untyped-call]
        return function(*args, **(kwargs or {}))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, result, query.new_empty(query.shape[:-1]))
        return result
