"""The frozen text-to-image model and image encoder that everything is built on, in stock formats.

Tensors: pixels [B, 3, H, W] in [-1, 1]; latents [B, C, h, w] scaled as the U-Net takes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from typing_extensions import Self

from e4t.config import BaseConfig
from e4t.errors import ConfigError
from e4t.loading import (
    CLIP_MEAN,
    CLIP_STD,
    image_encoder_config,
    load_image_encoder,
    load_parts,
    load_shapes,
    shape_of_image_encoder,
)
from e4t.precision import best_device
from e4t.shipped import portable, resolve

_FINGERPRINT_VALUES = 64  # read from every tensor
_UNKNOWN: dict[str, Any] = {"known_fingerprint": "none", "known_image_encoder": "none"}  # of shapes without weights
_FEW_TOKENS = 32 * 32


@dataclass
class Backbone:
    """Parts of a Stable Diffusion model and a CLIP vision tower, or None, as drawing needs none; all frozen.

    ``name`` is where it was loaded from, ``reading`` how, and ``fingerprint`` says which weights it has. ``folder`` is
    where it lies on this machine, if it is a folder.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    image_encoder: Any
    name: str = "in memory"
    image_encoder_name: str | None = None
    image_mean: Sequence[float] = CLIP_MEAN
    image_std: Sequence[float] = CLIP_STD
    reading: BaseConfig = field(default_factory=BaseConfig)
    folder: Path | None = None
    known_fingerprint: str | None = None  # where it cannot be taken from the weights that are here
    known_image_encoder: str | None = None  # the same of the image encoder's

    def __post_init__(self) -> None:
        for module in self.modules():
            module.requires_grad_(False).eval()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        image_encoder: str | Path | None = None,
        eyes: Any = None,
        look: bool = True,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        **reading: str | None,
    ) -> Self:
        """Load a diffusers folder, a hub id, a single .safetensors file, or a base shipped with the package.

        ``image_encoder`` is a folder or hub id of a transformers CLIP or its vision tower; without one, the folder's
        own ``image_encoder/``, else OpenCLIP ViT-H/14. With ``eyes``, which are `CachedData.eyes`, autoencoder and
        image encoder are shapes without weights; without ``look`` no image encoder is loaded, which is enough to draw.
        Without a device it goes on the best there is. Further options are fields of `BaseConfig`. Raises
        CheckpointError for what is no whole Stable Diffusion 1.x or 2.x, or is not at hand, and ConfigError for an
        option that does not apply to it.
        """
        name, place = resolve(source), torch.device(device) if device is not None else best_device()
        read_as = torch.float32 if dtype == torch.bfloat16 else dtype  # it rounds further than fingerprints do
        chosen = str(image_encoder) if image_encoder else None
        shape = eyes["vae"] if eyes is not None else None
        parts = load_parts(name, BaseConfig().updated(reading), dtype=read_as, device=place, vae=shape)
        parts.vae.to(dtype)
        known: dict[str, Any] = {"known_fingerprint": _cast(dtype, parts.unet, parts.text_encoder)}
        if eyes is not None:
            vision = {**eyes, "image_encoder": shape_of_image_encoder(eyes["image_encoder"])}
            vision.pop("vae")
        elif not look:
            vision = {"image_encoder": None, "image_encoder_name": chosen}
        else:
            vision = vars(load_image_encoder(chosen, parts, dtype=read_as))
            known["known_image_encoder"] = _cast(dtype, vision["image_encoder"])
        return cls(**vars(parts), **vision, **known, name=portable(name)).to(place)

    @classmethod
    def shapes(
        cls,
        source: str | Path,
        *,
        image_encoder: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        **reading: str | None,
    ) -> Self:
        """All parts on the meta device: configs and the tokenizer are read, and no weight. As `from_pretrained`."""
        name = resolve(source)
        parts = load_shapes(name, BaseConfig().updated(reading), dtype=dtype)
        vision = shape_of_image_encoder(image_encoder_config(str(image_encoder) if image_encoder else None, parts))
        return cls(**vars(parts), image_encoder=vision.to(dtype), name=portable(name), **_UNKNOWN)

    def blank(self) -> Self:
        """The same in float32 without values, on the meta device: to count with."""
        with torch.device("meta"):
            unet, vae = (type(part).from_config(part.config) for part in (self.unet, self.vae))
            text_encoder = type(self.text_encoder)(self.text_encoder.config)
            image_encoder = None if self.image_encoder is None else type(self.image_encoder)(self.image_config).float()
        return replace(
            self,
            unet=unet,
            vae=vae,
            text_encoder=text_encoder.float(),
            image_encoder=image_encoder,
            **_UNKNOWN,
        )

    def modules(self) -> Iterator[nn.Module]:
        parts = (self.unet, self.vae, self.text_encoder, self.image_encoder)
        yield from (part for part in parts if part is not None)

    def to(self, device: str | torch.device) -> Self:
        for module in self.modules():
            if next(module.parameters()).device.type != "meta":
                module.to(device)
        return self

    def require_in_place(self) -> None:
        """Raises ConfigError where accelerate or diffusers bring the weights in for a moment only.

        Offsets would be composed with what stands in for them meanwhile, or on another device.
        """
        for module in (self.unet, self.text_encoder):
            away = any(parameter.device.type == "meta" for parameter in module.parameters())
            target = getattr(getattr(module, "_hf_hook", None), "execution_device", None)  # accelerate's
            away |= target is not None and torch.device(target).type != module.device.type
            registries = (getattr(part, "_diffusers_hook", None) for part in module.modules())
            away |= any(registry is not None and registry.get_hook("group_offloading") for registry in registries)
            if away:
                raise ConfigError(
                    "the base model's weights are offloaded, but a concept needs them in place; load the base model "
                    "without offloading"
                )

    @contextmanager
    def unloaded(self) -> Iterator[None]:
        """Autoencoder and image encoder wait in the main memory inside the ``with``; nothing moves on CPUs."""
        device = self.device
        with ExitStack() as back:  # brings back each that left, also where another cannot move
            looking = [part for part in (self.vae, self.image_encoder) if part is not None]
            for part in looking if device.type != "cpu" else ():
                back.callback(part.to, device)
                part.to("cpu")
            if device.type == "cuda":
                torch.cuda.empty_cache()  # or the room stays with torch, in blocks of sizes that nobody asks for now
            yield

    @contextmanager
    def differentiable_attention(self, device: torch.device | None = None) -> Iterator[None]:
        """The U-Net's attention is quick to differentiate in bfloat16 inside the ``with``, on its ``device``.

        On CPUs the backward pass of torch's fused kernel is slow in bfloat16 (`benchmarks/attention.py`); with few
        tokens the weights of attention are small enough to be held instead. Nothing changes on other devices, with many
        tokens, or where somebody has set processors of their own.
        """
        from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

        processors = self.unet.attn_processors
        stock = all(type(processor) is AttnProcessor2_0 for processor in processors.values())
        few = self.unet.config.sample_size**2 <= _FEW_TOKENS
        if (device or self.device).type != "cpu" or not few or not stock:
            yield
            return
        self.unet.set_attn_processor(AttnProcessor())
        try:
            yield
        finally:
            self.unet.set_attn_processor(processors)

    @contextmanager
    def gradient_checkpointing(self, again: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Iterator[None]:
        """The U-Net's activations are computed a second time instead of kept, inside the ``with``.

        The second time is ``again()``, where modes of torch do not reach by themselves. Only without it can the U-Net
        be compiled: torch then takes no contexts but its own.
        """
        twice = partial(checkpoint, use_reentrant=False)
        if again is not nullcontext:
            twice = partial(twice, context_fn=lambda: (nullcontext(), again()))
        self.unet.enable_gradient_checkpointing(twice)
        self.unet.train()  # diffusers checkpoints in training mode only; Stable Diffusion's U-Net has no dropout
        try:
            yield
        finally:
            self.unet.disable_gradient_checkpointing()
            self.unet.eval()

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """The U-Net's forward pass is compiled by `torch.compile` inside the ``with``, at its first call.

        The features of its encoder half stay as they are: they run its blocks one by one. Raises ConfigError where
        torch finds no compiler.
        """
        from torch._dynamo.exc import BackendCompilerFailed

        self.unet.forward = torch.compile(self.unet.forward)
        try:
            yield
        except BackendCompilerFailed as error:
            reason = str(error.inner_exception).splitlines()[0]
            raise ConfigError(f"the U-Net cannot be compiled here ({reason}); leave --compile out") from error
        finally:
            del self.unet.forward

    @property
    def device(self) -> torch.device:
        device: torch.device = self.unet.conv_in.weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.unet.conv_in.weight.dtype
        return dtype

    @property
    def resolution(self) -> int:
        """Side of the pictures this model was made for, in pixels."""
        return int(self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def embedding_dim(self) -> int:
        return int(self.text_encoder.config.hidden_size)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the weights of U-Net and text encoder: a hash of a sample of every tensor, alike in fp16 and fp32.

        Of a base that was loaded it is that of the weights as they were read, whatever ``dtype`` they are in since.
        Otherwise take it before anything is injected.
        """
        return self.known_fingerprint or fingerprint_of(self.unet, self.text_encoder)

    @cached_property
    def image_encoder_fingerprint(self) -> str | None:
        """The same of the image encoder; None where there is none."""
        if self.image_encoder is None:
            return None
        return self.known_image_encoder or fingerprint_of(self.image_encoder)

    # Latents

    @torch.no_grad()
    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pixels to latents, float32: the posterior's mean, or a draw from it where a generator is given."""
        mean, std = self.posterior(pixels)
        return self.latents(mean, std, None if generator is None else draw_noise(mean.shape, generator))

    @torch.no_grad()
    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of what pixels may be as latents, float32 [B, C, h, w] each, before scaling."""
        self._require(self.vae, "autoencoder")
        posterior = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist
        return posterior.mean.float(), posterior.std.float()

    def latents(self, mean: Tensor, std: Tensor, noise: Tensor | None) -> Tensor:
        """A posterior's mean as latents, or with ``noise`` a draw from it."""
        if noise is not None:
            mean = mean + std * noise.to(mean.device)
        latents: Tensor = mean * self.vae.config.scaling_factor
        return latents

    @property
    def sees(self) -> bool:
        """Whether autoencoder and image encoder are here, not only their shapes."""
        here = self.image_encoder is not None
        return here and all(next(part.parameters()).device.type != "meta" for part in (self.vae, self.image_encoder))

    def _require(self, part: Any, what: str) -> None:
        if part is None or next(part.parameters()).device.type == "meta" != self.device.type:
            raise _left_out(what)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pixels, float32, clamped to [-1, 1]."""
        self._require(self.vae, "autoencoder")
        pixels: Tensor = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        return pixels.float().clamp(-1, 1)

    # Diffusion

    @property
    def num_timesteps(self) -> int:
        return int(self.scheduler.config.num_train_timesteps)

    @cached_property
    def _alphas_cumprod(self) -> Tensor:
        alphas: Tensor = self.scheduler.alphas_cumprod
        return alphas.to(self.device, torch.float32)

    def signal_and_noise(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1 - ᾱ_t), [B, 1, 1, 1] each."""
        alphas = self._alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return alphas.sqrt(), (1 - alphas).sqrt()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        signal, sigma = self.signal_and_noise(timesteps)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the U-Net is to predict: the noise, or the velocity √ᾱ ε - √(1 - ᾱ) x (arXiv 2202.00512)."""
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "v_prediction":
            signal, sigma = self.signal_and_noise(timesteps)
            return signal * noise - sigma * latents
        raise ConfigError(f"prediction type {kind!r} is not supported; epsilon and v_prediction are")

    # Image features

    @property
    def image_config(self) -> Any:
        """The image encoder's. Raises ConfigError where there is none."""
        if self.image_encoder is None:
            raise _left_out("image encoder")
        return self.image_encoder.config

    @property
    def image_layers(self) -> int:
        return int(self.image_config.num_hidden_layers)

    @property
    def image_width(self) -> int:
        return int(self.image_config.hidden_size)

    def image_pixels(self, pixels: Tensor) -> Tensor:
        """CLIP's input from pixels in [-1, 1]: resized (bicubic, antialiased) and normalised, [B, 3, S, S]."""
        size = self.image_config.image_size
        values = pixels.float() / 2 + 0.5
        if values.shape[-2:] != (size, size):  # where the pixels are, on the CPU as a rule: alike for every device
            values = F.interpolate(values, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
        values = values.to(self.device)
        mean = values.new_tensor(self.image_mean).view(1, 3, 1, 1)
        std = values.new_tensor(self.image_std).view(1, 3, 1, 1)
        normalised: Tensor = (values - mean) / std
        return normalised

    @torch.no_grad()
    def image_features(self, pixels: Tensor, *, layer_stride: int = 1) -> list[Tensor]:
        """The [CLS] vector after every ``layer_stride``-th CLIP layer, [B, width] float32 each; never a patch token."""
        self._require(self.image_encoder, "image encoder")
        inputs = self.image_pixels(pixels).to(self.image_encoder.dtype)
        hidden = self.image_encoder(pixel_values=inputs, output_hidden_states=True).hidden_states
        return [states[:, 0].float() for states in hidden[layer_stride::layer_stride]]  # hidden[0] precedes layer 1


def _left_out(what: str) -> ConfigError:
    return ConfigError(
        f"the base was opened without its {what}, to draw or to train from a cache; open all of it for this"
    )


def _cast(dtype: torch.dtype, *modules: nn.Module) -> str:
    """Turn modules into ``dtype``; the fingerprint that they had before."""
    fingerprint = fingerprint_of(*modules)
    for module in modules:
        module.to(dtype)
    return fingerprint


def fingerprint_of(*modules: nn.Module) -> str:
    """Identifies weights by a sample of every tensor, alike in fp16 and fp32."""
    digest = hashlib.sha256()
    for module in modules:
        for key, tensor in sorted(module.state_dict().items()):
            flat = tensor.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // _FINGERPRINT_VALUES)].to("cpu", torch.float16)
            digest.update(f"{key}{tuple(tensor.shape)}".encode())
            digest.update(sample.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def draw_noise(shape: Sequence[int], generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise drawn on the generator's device, so that a seed means the same on every machine."""
    return torch.randn(tuple(shape), generator=generator, device=generator.device).to(device)
