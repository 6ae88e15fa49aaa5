"""What a step holds and reckons, counted on tensors without values: neither weights nor memory are needed.

The step is gone through on torch's meta device, which has shapes and no values, in float32. Every tensor that an
operation makes counts from then until it is freed, as an allocator would have it, and every product by its operations.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from e4t.backbone import Backbone
from e4t.config import PersonalizeConfig, PretrainConfig
from e4t.model import E4TModel
from e4t.objective import Batch, E4TObjective, Prior
from e4t.training import arithmetic

RUNTIME = {"cpu": int(0.55 * 2**30), "cuda": 2**29}
"""Bytes of Python, torch and its libraries, before a model: resident memory on CPUs, the context on GPUs."""

_SHARE_OF_FLOAT32 = {"cpu": 0.5}
_SHARE_ON_GPUS = 0.75  # norms stay float32 there

_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Count:
    """The most bytes at a time, and operations, of work in float32.

    ``bytes_again`` are those of the same work a second time, with the gradients of the first still there.
    """

    bytes: int
    operations: int
    bytes_again: int = 0


def count_step(
    model: E4TModel,
    *,
    rows: int,
    resolution: int,
    twice: bool = False,
    prior: bool = False,
    checkpointing: bool = False,
    quick_attention_on: torch.device | None = None,
) -> Count:
    """A forward and backward pass of ``rows`` pictures, gradients included; ``twice`` counts `Count.bytes_again`.

    The model is `E4TModel.blank`, and injected. ``prior``: with as many pictures of the class.
    ``quick_attention_on`` is the device where `Backbone.differentiable_attention` would be entered.
    """
    objective = E4TObjective(model, PersonalizeConfig(prior_weight=float(prior)))
    batch, peaks = _batch(model, rows, resolution, prior), list[int]()
    with ExitStack() as stack:
        if checkpointing:
            stack.enter_context(model.backbone.gradient_checkpointing(_FusedProduct))
        if quick_attention_on is not None:
            stack.enter_context(model.backbone.differentiable_attention(quick_attention_on))
        counter = stack.enter_context(counting())
        for _ in range(1 + twice):
            torch.autograd.backward(objective(batch).total)  # as a method, it would run outside `_FusedProduct`
            peaks.append(counter.peak)
    model.zero_grad(set_to_none=True)
    return Count(peaks[0], counter.operations // len(peaks), peaks[-1])


def count_looking(model: E4TModel, *, rows: int, resolution: int) -> Count:
    """Autoencoder and, where it is used, image encoder, on so many pictures."""
    backbone = model.backbone
    with torch.no_grad(), torch.device("meta"), counting() as counter:
        backbone.vae.encode(torch.empty(rows, 3, resolution, resolution))
        if model.encoder.config.use_image:
            side = backbone.image_config.image_size
            backbone.image_encoder(pixel_values=torch.empty(rows, 3, side, side), output_hidden_states=True)
    return Count(counter.peak, counter.operations)


def held(
    counted: int, backbone: Backbone, *, device: torch.device, config: PretrainConfig | PersonalizeConfig, trained: int
) -> int:
    """Counted bytes in the arithmetic that `e4t.training` would use; gradients of ``trained`` numbers stay float32.

    Reckoned, not gone through: norms are float32 on GPUs, and autograd keeps float32 weights as they were cast.
    """
    if arithmetic(config.mixed_precision, device, backbone.dtype) == torch.float32:
        return counted
    share = _SHARE_OF_FLOAT32.get(device.type, _SHARE_ON_GPUS)
    cast = numbers(backbone.unet) + numbers(backbone.text_encoder)
    copies = 2 * cast if backbone.dtype == torch.float32 and not config.gradient_checkpointing else 0
    gradients = 4 * trained
    return gradients + int(share * max(0, counted - gradients)) + copies


def numbers(module: torch.nn.Module) -> int:
    """Its parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def bytes_of(module: torch.nn.Module) -> int:
    """Of its parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _batch(model: E4TModel, rows: int, resolution: int, prior: bool) -> Batch:
    backbone = model.backbone
    side = resolution * backbone.unet.config.sample_size // backbone.resolution
    with torch.device("meta"):
        latents = torch.empty(rows, backbone.vae.config.latent_channels, side, side)
        timesteps = torch.empty(rows, dtype=torch.long)
        tokens = model.tokens([model.domain.prompts[0]] * rows)
        features = [torch.empty(rows, backbone.image_width) for _ in model.encoder.image_linears]
        pictures = Prior(latents, latents.clone(), timesteps, tokens) if prior else None
        return Batch(latents, latents.clone(), timesteps, tokens, features, prior=pictures)


@contextmanager
def counting() -> Iterator[Counter]:
    """Counts all that torch does inside the ``with``, with values or without."""
    with _FusedProduct(), Counter() as counter:
        yield counter


class Counter(TorchDispatchMode):
    """Bytes of the tensors that operations made and that live at a time, by their storages; and their operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: dict[int, int] = {}
        self.now = self.peak = self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in flop_registry:
            self.operations += flop_registry[packet](*args, **kwargs, out_val=out)
        elif packet is _FUSED:  # torch's own table lacks the kernel of CPUs
            self.operations += sdpa_flop_count(*(tensor.shape for tensor in args[:3]))  # type: ignore[no-untyped-call]
        elif packet is _FUSED_BACKWARD:
            self.operations += sdpa_backward_flop_count(*(t.shape for t in args[:4]))  # type: ignore[no-untyped-call]
        given = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if _is_tensor(tensor)}
        for tensor in filter(_is_tensor, tree_leaves(out)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.live and storage._cdata not in given:
                self.live[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage._cdata)
        return out

    def _freed(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


class _FusedProduct(TorchFunctionMode):
    """Attention without values keeps what fused kernels keep; by itself torch takes the one that holds all weights."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            if given["query"].is_meta:
                return _FUSED(given["query"], given["key"], given["value"])[0]
        return function(*args, **(kwargs or {}))
