"""What a pre-training will take, before anything is loaded: parameters, memory, arithmetic, time.

One step is gone through on torch's meta device, which has shapes and no values. Every tensor that an operation makes is
counted from then until it is freed, as an allocator would, and every product by its operations. What no count can
know, the time a device takes for them, is estimated from a short multiplication.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from e4t.backbone import Backbone
from e4t.config import PretrainConfig
from e4t.domain import Domain
from e4t.model import E4TModel
from e4t.objective import Batch, E4TObjective

_RUNTIME = {"cpu": 0.55 * 2**30, "cuda": 0.9 * 2**30}
"""Bytes of Python, torch and its libraries, before a model: resident memory on CPUs, the context on GPUs."""

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
    seconds: float  # of one optimiser step
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
        hours = self.seconds * self.steps / 3600
        return [
            f"parameters: {self.trained / 1e6:.2f} million trained, {self.frozen / 1e6:.2f} million frozen",
            f"peak memory: {self.peak / giga:.2f} GB predicted for each process ({inside})",
            f"a step: {self.operations / 1e12:.2f} TFLOP, about {self.seconds:.2g} s here (estimated)",
            f"all {self.steps} steps: about {hours:.2g} hours (estimated)",
        ]


def forecast(
    backbone: Backbone, domain: Domain, config: PretrainConfig, *, device: torch.device, cached: bool = False
) -> Forecast:
    """Of a base whose parts are all on the meta device (`Backbone.shapes`); ``device`` is where it would be trained.

    ``cached``: autoencoder and image encoder are not there. Mixed precision is reckoned, not gone through: half of what
    a step holds, and a copy of the U-Net's weights.
    """
    resolution = config.resolution or backbone.resolution
    eyes = () if cached else (backbone.vae, backbone.image_encoder)
    frozen = [p for part in (backbone.unet, backbone.text_encoder, *eyes) for p in part.parameters()]
    model = _model(backbone, domain, config)
    trained = [*model.encoder.heads().values(), *model.offsets.domain_parameters()]
    numbers = sum(p.numel() for p in trained)
    looking = _Count(0, 0) if cached else _looking(model, config, resolution)
    step = _stepping(model, config, resolution, device)
    passing, weights = step.bytes, backbone.dtype.itemsize
    if config.mixed_precision != "no":
        gradients = 4 * numbers
        copies = 2 * sum(p.numel() for p in backbone.unet.parameters()) if weights == 4 else 0
        passing = gradients + (passing - gradients) // 2 + copies
    half = backbone.dtype if config.mixed_precision == "no" else torch.bfloat16
    operations = config.accumulation * (looking.operations + step.operations)
    rate = multiplication_rate(device, half) * _SHARE_OF_PEAK.get(device.type, _SHARE_OF_PEAK["cuda"])
    return Forecast(
        frozen=sum(p.numel() for p in frozen),
        trained=numbers,
        weights=sum(p.numel() * p.dtype.itemsize for p in frozen),
        states=numbers * (4 + (2 if config.optimizer == "adamw8bit" else 8) + (4 if config.ema_decay else 0)),
        passing=max(passing, looking.bytes),
        runtime=int(_RUNTIME.get(device.type, _RUNTIME["cuda"])),
        operations=operations,
        seconds=operations / rate,
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


def _model(backbone: Backbone, domain: Domain, config: PretrainConfig) -> E4TModel:
    with torch.device("meta"):
        model = E4TModel(
            backbone, domain, encoder=config.encoder, offsets=config.offsets, embedding_scale=config.embedding_scale
        )
    model.encoder.bias.requires_grad_(False)
    model.encoder.residual.requires_grad_(False)
    return model


@dataclass(frozen=True)
class _Count:
    """The most bytes at a time, and operations."""

    bytes: int
    operations: int


def _looking(model: E4TModel, config: PretrainConfig, resolution: int) -> _Count:
    """Autoencoder and image encoder, on one batch."""
    backbone = model.backbone
    side = backbone.image_encoder.config.image_size
    sizes = (resolution, side) if config.encoder.use_image else (resolution,)
    pixels = [torch.empty(config.batch_size, 3, size, size, device="meta", dtype=backbone.dtype) for size in sizes]

    @torch.no_grad()
    def look() -> None:
        backbone.vae.encode(pixels[0])
        if config.encoder.use_image:
            backbone.image_encoder(pixel_values=pixels[1], output_hidden_states=True)

    return _counted(model, look)


def _stepping(model: E4TModel, config: PretrainConfig, resolution: int, device: torch.device) -> _Count:
    """Forward and backward pass of one batch."""
    backbone = model.backbone
    objective = E4TObjective(model, regularisation=config.regularisation, reduction=config.regularisation_reduction)
    with ExitStack() as stack:
        if config.gradient_checkpointing:
            stack.enter_context(backbone.gradient_checkpointing())
        stack.enter_context(model.offsets.injected())
        stack.enter_context(backbone.differentiable_attention(device))
        batch = _batch(model, config, resolution)
        return _counted(model, lambda: objective(batch).total.backward())


def _batch(model: E4TModel, config: PretrainConfig, resolution: int) -> Batch:
    backbone, size = model.backbone, config.batch_size
    side = resolution * backbone.unet.config.sample_size // backbone.resolution
    layers = backbone.image_layers // config.encoder.layer_stride if config.encoder.use_image else 0
    with torch.device("meta"):
        latents = torch.empty(size, backbone.vae.config.latent_channels, side, side)
        tokens = model.tokens([model.domain.prompts[0]] * size)
        features = [torch.empty(size, backbone.image_width) for _ in range(layers)]
        return Batch(latents, latents.clone(), torch.empty(size, dtype=torch.long), tokens, features)


def _counted(model: E4TModel, work: Callable[[], Any]) -> _Count:
    """What a piece of work holds and reckons. It is done twice, because counting operations holds on to tensors."""
    known = [p for part in (*model.backbone.modules(), model) for p in (*part.parameters(), *part.buffers())]
    with mock.patch.object(functional, "scaled_dot_product_attention", _attention):
        with _Memory(known) as memory:
            work()
        model.zero_grad(set_to_none=True)
        _FusedProducts.operations = 0
        with FlopCounterMode(display=False) as counter:
            work()
    return _Count(memory.peak, counter.get_total_flops() + _FusedProducts.operations)


class _Memory(TorchDispatchMode):
    """Counts the bytes of tensors that live at a time, by their storages; ``known`` ones were there before."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self.live:
                storage = tensor.untyped_storage()
                self.live[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, key)
        return out

    def _freed(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)


class _FusedProducts(torch.autograd.Function):
    """What torch's fused kernels keep and reckon; on the meta device torch would hold all weights of attention."""

    operations = 0

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        ctx.products = 4 * query.numel() * key.shape[-2]
        _FusedProducts.operations += ctx.products
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, value, _ = ctx.saved_tensors
        _FusedProducts.operations += 5 * ctx.products // 2  # five products, the weights of attention once more
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    out: Tensor = _FusedProducts.apply(query, key, value)  # type: ignore[no-untyped-call]
    return out
