"""Stage 1: train encoder and weight offsets on many pictures of a domain. To resume, run the same again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from e4t.backbone import Backbone, draw_noise
from e4t.checkpoint import (
    TrainedDomain,
    TrainingState,
    load_optimizer_tensors,
    optimizer_tensors,
    prefixed,
)
from e4t.config import PretrainConfig
from e4t.data import ImageData, square_pixels
from e4t.domain import Domain
from e4t.errors import CheckpointError, ConfigError
from e4t.model import E4TModel
from e4t.objective import Batch, E4TObjective
from e4t.training import Step, draw_timesteps, generator_at, train

_MAY_CHANGE = ("steps", "checkpoint_every", "save_dtype", "compile")  # without making a resumed training another one
_FIRST_LOSSES = 5


def pretrain(
    domain: Domain,
    data: str | Path,
    *,
    backbone: Backbone,
    config: PretrainConfig,
    output: str | Path,
    personalize: Mapping[str, Any] | None = None,
    generate: Mapping[str, Any] | None = None,
) -> Iterator[Step]:
    """Train a domain and write its folder to ``output``.

    ``data`` is a folder of images or a .npy file (`ImageData`). ``personalize`` and ``generate`` are settings to record
    for this domain. The state is kept beside, in ``<output>.training``: the same call goes on from there with the very
    numbers an uninterrupted run would have had. Raises CheckpointError if it was begun with other settings.
    """
    output = Path(output)
    state_folder = output.with_name(f"{output.name}.training")
    model = new_model(backbone, domain, config)
    optimizer = torch.optim.AdamW(_parameter_groups(model, config), weight_decay=config.weight_decay)
    arguments = {"domain": domain.to_dict(), "data": Path(data).name, "config": config.to_dict()}
    start, losses = _resume(state_folder, model, optimizer, arguments)
    images = pictures_of(data, backbone, config)
    batch_at = batches(model, images, config)
    objective = E4TObjective(model, regularisation=config.regularisation, reduction=config.regularisation_reduction)
    if config.gradient_checkpointing:
        backbone.unet.enable_gradient_checkpointing()
        backbone.unet.train()  # diffusers checkpoints in training mode only; Stable Diffusion's U-Net has no dropout
    faster = backbone.compiled() if config.compile else nullcontext()
    try:
        with model.offsets.injected(), backbone.differentiable_attention(), faster:
            for step in train(
                objective,
                batch_at,
                optimizer,
                steps=config.steps,
                start=start,
                accumulation=config.accumulation,
                mixed_precision=config.mixed_precision,
                max_grad_norm=config.max_grad_norm,
                warmup_steps=config.warmup_steps,
                cooldown_steps=config.cooldown_steps,
            ):
                losses += [step.loss] if len(losses) < _FIRST_LOSSES else []
                if step.number % config.checkpoint_every == 0 or step.number == config.steps:
                    _state(step.number, {**arguments, "first_losses": losses}, model, optimizer).save(state_folder)
                yield step
    finally:
        if config.gradient_checkpointing:
            backbone.unet.disable_gradient_checkpointing()
            backbone.unet.eval()
    trained = TrainedDomain(
        domain=domain,
        base=model.base,
        encoder=config.encoder,
        offsets=config.offsets,
        embedding_scale=config.embedding_scale,
        tensors=model.domain_tensors(),
        pretrain=config.to_dict(),
        training={"data": Path(data).name, "pictures": len(images), "first_losses": losses},
        personalize=personalize or {},
        generate=generate or {},
    )
    trained.save(output, dtype=config.save_dtype)


def new_model(backbone: Backbone, domain: Domain, config: PretrainConfig) -> E4TModel:
    """An untrained domain on a backbone; its initial weights follow from the seed."""
    blind = not config.encoder.use_image and config.encoder.unet_blocks == "none"
    if blind and config.offsets.form == "none":
        raise ConfigError("nothing can be learned: the encoder has no input, and there are no offsets")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = E4TModel(
            backbone,
            domain,
            encoder=config.encoder,
            offsets=config.offsets,
            embedding_scale=config.embedding_scale,
        )
    model.encoder.bias.requires_grad_(False)  # a concept's own, not a domain's
    model.encoder.residual.requires_grad_(False)
    return model


def pictures_of(data: str | Path, backbone: Backbone, config: PretrainConfig) -> ImageData:
    """The training pictures, as the settings crop, mirror and colour them."""
    return ImageData(
        data,
        resolution=config.resolution or backbone.resolution,
        crop_scale=config.crop_scale,
        flip=config.flip,
        color_jitter=config.color_jitter,
        seed=config.seed,
    )


def batches(model: E4TModel, images: ImageData, config: PretrainConfig) -> Callable[[int], Batch]:
    """Batch i, from the seed and i alone."""
    backbone = model.backbone
    look = _Cache(model, images, config.batch_size) if config.cache else _Fresh(model, images, config)
    prompts = model.tokens(model.domain.prompts)
    size, low, high = config.batch_size, config.min_timestep, config.max_timestep or backbone.num_timesteps

    def batch_at(index: int) -> Batch:
        generator = generator_at(config.seed, index)
        latents, features = look(index, generator)
        picks = torch.randint(len(prompts), (size,), generator=generator)
        noise = draw_noise(latents.shape, generator, backbone.device)
        timesteps = draw_timesteps(size, low, high, generator, stratified=config.stratified_timesteps)
        return Batch(
            latents=latents,
            noise=noise,
            timesteps=timesteps.to(backbone.device),
            tokens=prompts[picks.to(backbone.device)],
            image_features=features,
        )

    return batch_at


Seen = tuple[Tensor, list[Tensor]]
"""Latents [B, C, h, w] and [CLS] features, [B, width] each, of a batch of pictures."""


@dataclasses.dataclass(frozen=True)
class _Fresh:
    """What the frozen parts see in a batch, another view of its pictures every time."""

    model: E4TModel
    images: ImageData
    config: PretrainConfig

    def __call__(self, index: int, generator: torch.Generator) -> Seen:
        views = self.images.views(index, self.config.batch_size)
        latents = self.model.backbone.encode(views.target, generator if self.config.sample_latents else None)
        return latents, self.model.image_features(views.reference)


@dataclasses.dataclass(frozen=True)
class _Cache:
    """The same of pictures that always look alike, encoded when they first come up.

    One at a time: a resumed training meets them in other batches, and batches of another size round differently.
    """

    model: E4TModel
    images: ImageData
    size: int
    known: dict[int, Seen] = dataclasses.field(default_factory=dict)

    def __call__(self, index: int, generator: torch.Generator) -> Seen:
        seen = [self._see(picture) for picture in self.images.picks(index, self.size)]
        features = [torch.cat(level) for level in zip(*(features for _, features in seen), strict=True)]
        return torch.cat([latents for latents, _ in seen]), features

    def _see(self, picture: int) -> Seen:
        if picture not in self.known:
            pixels = square_pixels(self.images.picture(picture), self.images.resolution)[None]
            self.known[picture] = self.model.backbone.encode(pixels), self.model.image_features(pixels)
        return self.known[picture]


def _parameter_groups(model: E4TModel, config: PretrainConfig) -> list[dict[str, Any]]:
    offsets_rate = config.offsets_learning_rate
    groups: list[tuple[list[nn.Parameter], float]] = [
        (list(model.encoder.heads().values()), config.learning_rate),
        (model.offsets.domain_parameters(), config.learning_rate if offsets_rate is None else offsets_rate),
    ]
    return [{"params": parameters, "lr": rate} for parameters, rate in groups if parameters]


def _trained_tensors(model: E4TModel) -> dict[str, Tensor]:
    return prefixed("encoder", model.encoder.heads()) | prefixed("offsets", dict(model.offsets.named_parameters()))


def _state(step: int, arguments: dict[str, Any], model: E4TModel, optimizer: torch.optim.Optimizer) -> TrainingState:
    tensors = _trained_tensors(model) | prefixed("optimizer", optimizer_tensors(optimizer))
    return TrainingState(step, arguments, tensors)


def _resume(
    folder: Path, model: E4TModel, optimizer: torch.optim.Optimizer, arguments: dict[str, Any]
) -> tuple[int, list[float]]:
    """The step to go on from, 0 without a state, and the first losses so far."""
    if not folder.exists():
        return 0, []
    state = TrainingState.load(folder)
    begun = {name: state.arguments[name] for name in arguments}
    if _comparable(begun) != _comparable(arguments):
        raise CheckpointError(f"'{folder}' was begun with other settings; delete it or choose another output")
    targets = model.encoder.heads() | dict(model.offsets.named_parameters())
    for name, tensor in (state.group("encoder") | state.group("offsets")).items():
        targets[name].data.copy_(tensor)
    load_optimizer_tensors(optimizer, state.group("optimizer"))
    return state.step, list(state.arguments["first_losses"])


def _comparable(arguments: Mapping[str, Any]) -> dict[str, Any]:
    config = PretrainConfig.from_dict(arguments["config"])
    defaults = PretrainConfig()
    fixed = dataclasses.replace(config, **{name: getattr(defaults, name) for name in _MAY_CHANGE})
    return {**arguments, "config": fixed, "domain": Domain.from_dict(arguments["domain"])}
