"""Stage 2: one image becomes a concept, in a few steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from e4t.backbone import draw_noise
from e4t.checkpoint import Concept
from e4t.config import PersonalizeConfig
from e4t.data import square_mask, square_pixels
from e4t.errors import CheckpointError, ConfigError, MismatchError
from e4t.memory import fitted
from e4t.model import E4TModel
from e4t.objective import Batch, E4TObjective, Prior
from e4t.optimizers import new_optimizer
from e4t.provenance import image_digest, versions
from e4t.saved import prefixed
from e4t.training import Step, autocast, draw_timesteps, generator_at, timestep_range, train

_PROBE = -2  # a batch that no step trains on
_MOST_PASSES = 1_000_000
"""Pictures in all steps of a repetition: a file from a stranger may not keep a machine busy for ever."""
_MOST_AT_ONCE = 1_024
"""Pictures in a step of a repetition: nor may it fill the memory."""


@dataclass(frozen=True)
class PersonalizeStep:
    """Step 0 is the domain's first guess, before any tuning: it has no losses. ``concept`` is None unless asked for."""

    number: int
    total_steps: int  # the most there can be: automatic tuning may end before
    training: Step | None
    concept: Concept | None
    loss_left: float | None = None  # of the loss on the image before tuning, at the same noises; automatic tuning only

    @property
    def kept(self) -> Concept:
        """The concept of a step that it was asked for of; the last one always has it."""
        assert self.concept is not None, f"no concept was asked for of step {self.number}"
        return self.concept


@dataclass(frozen=True)
class ClassPictures:
    """Pictures of a domain's class, drawn before anything is tuned, and the captions they were drawn for."""

    latents: Tensor  # [P, C, h, w]
    prompts: tuple[str, ...]  # P, without a placeholder


@dataclass(frozen=True)
class Constants:
    """What does not change while a concept is tuned, computed once. N is 1: the concept's one image.

    Baselines may have several; a batch then takes its pictures from all of them, each with its own caption.
    """

    latents: Tensor  # [N, C, h, w], the posterior's mean
    image_features: list[Tensor]  # [1, width] each
    mask: Tensor | None  # [N, 1, h, w]
    prior: ClassPictures | None = None
    captions: tuple[str, ...] = ()  # N, which count before that of the settings; () for none

    def tensors(self) -> dict[str, Tensor]:
        """As a concept stores them: ``latents``, ``image_features`` [layers, width] and ``mask``; float16."""
        parts = {"latents": self.latents}
        if self.image_features:
            parts["image_features"] = torch.cat(self.image_features)
        if self.mask is not None:
            parts["mask"] = self.mask
        return {name: tensor.half().cpu() for name, tensor in parts.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], device: torch.device | str) -> Constants:
        """From `tensors`, float32."""
        parts = {name: tensor.to(device, torch.float32) for name, tensor in tensors.items()}
        features = parts.get("image_features", torch.empty(0, 1))
        return cls(parts["latents"], [row[None] for row in features], parts.get("mask"))


def personalize(
    model: E4TModel,
    image: Image.Image,
    *,
    config: PersonalizeConfig,
    mask: Image.Image | None = None,
    prior: ClassPictures | None = None,
    keep_steps: bool | Collection[int] = False,
) -> Iterator[PersonalizeStep]:
    """Tune on one image (its centre square, never mirrored); yields step 0 and then every step.

    The last step carries the concept, with ``keep_steps`` every step or those it names; with ``config.automatic`` that
    is the first one that learns hardly anything new (`e4t.evaluation.stopping`). ``mask`` says where the loss counts
    (white), ``prior`` what the model is not to forget if ``config.prior_weight`` is above 0.
    With ``config.memory`` the settings are changed to fit (`e4t.memory.fitted`), and the concept says to which.
    Once the last step is taken and asked for another, or the caller has stopped early, the model is as it was before.
    With ``config.unload`` nothing can be drawn until then.
    """
    config = fitted(model, config)
    mask = mask if config.mask_loss else None
    constants = prepare(model, image, mask)
    if config.keep == "replay":  # tuned from what is stored, so that a repetition starts from the same numbers
        constants = Constants.of(constants.tensors(), model.backbone.device)
    constants = replace(constants, prior=prior)
    yield from tune(model, constants, config=config, provenance=_provenance(model, image, mask), keep_steps=keep_steps)


def replayed(model: E4TModel, concept: Concept) -> Concept:
    """Tune again as a concept with ``keep="replay"`` was tuned: bit for bit the same on the same machine.

    Raises MismatchError for a concept of another base or domain, or whose constants do not fit the base, and
    CheckpointError for one that asks for more work than any tuning needs.
    """
    model.check(concept)
    config = PersonalizeConfig.from_dict({**concept.config, "steps": concept.steps, "automatic": False})
    if config.steps * config.accumulation * config.batch_size > _MOST_PASSES:
        raise CheckpointError(f"the concept asks for {config.steps} steps of {config.batch_size} to be repeated")
    if config.batch_size > _MOST_AT_ONCE:
        raise CheckpointError(f"the concept asks for {config.batch_size} pictures at once; {_MOST_AT_ONCE} are enough")
    largest = max((side for _, offset in model.offsets.items() for side in offset.shape), default=0)
    if config.delta_rank > largest:
        raise CheckpointError(f"the concept asks for a rank of {config.delta_rank}; no matrix has more than {largest}")
    constants = Constants.of(concept.group("replay"), model.backbone.device)
    _check_fit(model, constants)
    *_, last = tune(model, constants, config=config, provenance=concept.provenance)
    return last.kept


def _check_fit(model: E4TModel, constants: Constants) -> None:
    backbone = model.backbone
    side = backbone.unet.config.sample_size
    widths = [linear.in_features for linear in model.encoder.image_linears]
    wanted = [(1, backbone.vae.config.latent_channels, side, side), *((1, width) for width in widths)]
    found = [tuple(tensor.shape) for tensor in (constants.latents, *constants.image_features)]
    if wanted != found or (constants.mask is not None and constants.mask.shape != (1, 1, side, side)):
        raise MismatchError(f"what the concept keeps for its repetition does not fit the base model '{backbone.name}'")


def tune(
    model: E4TModel,
    constants: Constants,
    *,
    config: PersonalizeConfig,
    provenance: Mapping[str, Any],
    keep_steps: bool | Collection[int] = False,
) -> Iterator[PersonalizeStep]:
    """The steps of `personalize`, from an image that is already prepared."""
    model.offsets.require("ejected", "tune")
    model.backbone.require_in_place()
    batch_at = batches(model, constants, config)  # before anything: it refuses a caption that is too long
    concept_at = partial(_concept, model, config, constants, provenance)
    objective = E4TObjective(model, config)
    with tuning(model, config) as groups:
        first = concept_at(0) if _kept(0, keep_steps) or not config.steps else None
        yield PersonalizeStep(0, config.steps, None, first)
        if not config.steps:
            return
        if not groups:
            raise ConfigError(f"this model has nothing to tune in {' and '.join(config.tune)}; add residual to tune")
        optimizer = new_optimizer(
            config.optimizer,
            groups,
            weight_decay=config.weight_decay,
            device=model.backbone.device,
            tables=[part.weight for part in model.backbone.text_encoder.modules() if isinstance(part, nn.Embedding)],
        )
        loss_left = _watched(objective, batch_at(_PROBE), config) if config.automatic else None
        course = [1.0]  # the loss on the image, of what it was: after every step that is watched
        part_at = _part_at(batch_at, config) if config.parts > 1 else batch_at
        for step in train(objective, part_at, optimizer, parts=config.parts):
            if loss_left:
                course.append(loss_left())
            last = step.number == config.steps or (len(course) > 1 and learned(course, config.automatic_gain))
            concept = concept_at(step.number) if last or _kept(step.number, keep_steps) else None
            yield PersonalizeStep(step.number, config.steps, step, concept, course[-1] if loss_left else None)
            if last:
                return


def _part_at(batch_at: Callable[[int], Batch], config: PersonalizeConfig) -> Callable[[int], Batch]:
    """The parts of all batches, one after the other; a mean over a batch's parts is that batch's loss."""
    parts, size = config.parts, config.micro_batch_size

    @lru_cache(maxsize=1)
    def split(index: int) -> list[Batch]:
        return batch_at(index).split(size, scale=parts)

    return lambda index: split(index // parts)[index % parts]


def _watched(objective: E4TObjective, probe: Batch, config: PersonalizeConfig) -> Callable[[], float]:
    """Tells how much is left of the denoising loss on the image that ``probe`` has now, before any tuning."""
    parts = replace(probe, prior=None).split(config.micro_batch_size)
    cast = autocast(config.mixed_precision, objective.model.backbone.device, objective.model.base_dtype)

    def loss() -> float:
        with torch.no_grad(), cast:
            return sum(float(objective(part).diffusion) for part in parts)

    first = loss()
    return lambda: loss() / first


def learned(course: Sequence[float], gain: float) -> bool:
    """Whether the last step took less off the loss than this share of what all steps have taken off it.

    ``course`` is the loss before any step, 1, and after every one. Never while it is not below what it was.
    """
    taken = 1 - course[-1]
    return gain > 0 and taken > 0 and course[-2] - course[-1] < gain * taken


def _kept(step: int, keep_steps: bool | Collection[int]) -> bool:
    return keep_steps if isinstance(keep_steps, bool) else step in keep_steps


def _provenance(model: E4TModel, image: Image.Image, mask: Image.Image | None) -> dict[str, Any]:
    digests = {"image": image_digest(image), "mask": image_digest(mask) if mask is not None else None}
    return {**digests, "dtype": str(model.backbone.dtype).removeprefix("torch."), "versions": versions()}


def prepare(model: E4TModel, image: Image.Image, mask: Image.Image | None) -> Constants:
    """Latents and CLIP features of the centre square, at the base model's resolution."""
    backbone = model.backbone
    pixels = square_pixels(image, backbone.resolution)[None]
    latents = backbone.encode(pixels)
    small = None
    if mask is not None:
        full = square_mask(mask, backbone.resolution)[None]
        small = F.interpolate(full, size=latents.shape[-2:], mode="area").to(backbone.device)
    return Constants(latents, model.image_features(pixels), small)


def batches(model: E4TModel, constants: Constants, config: PersonalizeConfig) -> Callable[[int], Batch]:
    """The image ``batch_size`` times, with independent timesteps and noise; of several, each equally often."""
    size, device = config.batch_size, model.backbone.device
    domain = model.domain
    captions = constants.captions or ((config.caption,) if config.caption else ())
    prompts = model.tokens([domain.captioned(caption) for caption in captions] or domain.prompts)
    rows = torch.arange(size, device=device)
    low, high = timestep_range(config, model.backbone.num_timesteps)
    pictures = constants.prior if config.prior_weight else None
    class_prompts = model.tokens(pictures.prompts, expected=False) if pictures else prompts  # else not read

    def noised(latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, and noise and timesteps for them."""
        timesteps = draw_timesteps(size, low, high, generator, stratified=config.stratified_timesteps)
        return latents, draw_noise(latents.shape, generator, device), timesteps.to(device)

    def prior_at(pictures: ClassPictures, generator: torch.Generator) -> Prior:
        """As many pictures of the class as of the concept, any of them."""
        picks = torch.randint(len(pictures.prompts), (size,), generator=generator).to(device)
        return Prior(*noised(pictures.latents[picks], generator), class_prompts[picks])

    def batch_at(index: int) -> Batch:
        generator = generator_at(config.seed, index)
        picks = torch.randint(len(prompts), (size,), generator=generator).to(device)
        shown = (rows + index * size) % len(constants.latents)
        return Batch(
            *noised(constants.latents[shown], generator),
            tokens=prompts[shown if constants.captions else picks],
            image_features=constants.image_features,
            mask=constants.mask[shown] if constants.mask is not None else None,
            prior=prior_at(pictures, generator) if pictures else None,
        )

    return batch_at


@contextmanager
def tuning(model: E4TModel, config: PersonalizeConfig) -> Iterator[list[dict[str, Any]]]:
    """Groups of parameters for an optimiser, one for each tuned part, which can be trained inside the ``with``.

    Base, domain and encoder are exactly as before after it.
    """
    with ExitStack() as during:
        if config.unload:
            during.enter_context(model.backbone.unloaded())
        during.callback(model.requires_grad_, False)
        during.callback(model.take_off)
        parts = model.start_tuning(config.tune, delta_rank=config.delta_rank, seed=config.seed)
        if config.gradient_checkpointing:
            during.enter_context(model.backbone.gradient_checkpointing())
        yield [{"params": p, "lr": config.rate(part)} for part, p in parts.items() if p]


@torch.no_grad()
def _concept(
    model: E4TModel, config: PersonalizeConfig, constants: Constants, provenance: Mapping[str, Any], steps: int
) -> Concept:
    """A copy of what is tuned, after so many steps."""
    encoder = model.encoder
    image_half = encoder.image_half(constants.image_features)
    tensors = {
        "image_half": image_half[0].cpu().clone(),
        "bias": encoder.bias.detach().cpu().clone(),
        "residual": encoder.residual.detach().cpu().clone(),
        "frozen_offset": _mean_offset(model, config, constants, image_half).cpu(),
    }
    tensors |= prefixed("deltas", model.offsets.concept_state())
    if config.keep == "replay":
        tensors |= prefixed("replay", constants.tensors())
    image_side = {f"image_linears.{name}" for name, _ in encoder.image_linears.named_parameters()}  # in image_half
    for part, tuned in model.tuned.items():
        kept = {name: tensor for name, tensor in tuned.difference().items() if name not in image_side}
        tensors |= prefixed(part, kept)
    return Concept(
        domain=model.domain,
        domain_id=model.domain_id,
        base=model.base,
        steps=steps,
        tensors=tensors,
        config=config.to_dict(),
        provenance=provenance,
    )


def _mean_offset(model: E4TModel, config: PersonalizeConfig, constants: Constants, image_half: Tensor) -> Tensor:
    """E averaged over evenly spaced timesteps of the noised image, [D]."""
    count, backbone = config.frozen_timesteps, model.backbone
    spaced = (torch.arange(count) + 0.5) / count * backbone.num_timesteps
    timesteps = spaced.long().to(backbone.device)
    latents = constants.latents[:1].expand(count, -1, -1, -1)
    noise = draw_noise(latents.shape, generator_at(config.seed, -1), backbone.device)
    noisy = backbone.add_noise(latents, noise, timesteps)
    size = min(count, config.micro_batch_size or count)
    parts = zip(torch.split(noisy, size), torch.split(timesteps, size), strict=True)
    return torch.cat([model.offset(*part, image_half) for part in parts]).mean(dim=0)
