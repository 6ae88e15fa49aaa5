"""What users call: load a domain, personalize on one image, draw it from text.

Sampling is the stock diffusers pipeline. Where the concept's word depends on the noisy latent, a hook in front of the
U-Net predicts it from the very sample and timestep the U-Net is called with, and replaces the conditional rows of its
prompt embeddings.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import Self

from e4t.backbone import Backbone
from e4t.checkpoint import Concept, TrainedDomain
from e4t.conditioning import Conditioning, base_first, base_for_negatives
from e4t.config import GenerateConfig, PersonalizeConfig, PretrainConfig
from e4t.data import square_pixels
from e4t.domain import Domain
from e4t.errors import ConfigError
from e4t.images import load_image, load_mask
from e4t.loading import load_safety
from e4t.model import E4TModel
from e4t.models import dual
from e4t.models.text import Tokens
from e4t.personalize import ClassPictures, PersonalizeStep, personalize, replayed
from e4t.precision import AUTOCAST_OF
from e4t.provenance import public_name, versions
from e4t.shipped import resolve
from e4t.training import arithmetic, autocast, autocast_beside

_BATCH = 8  # pictures of the class drawn at a time


@dataclass(frozen=True)
class Output:
    """Pictures in the order of the prompts, ``num_images`` for each."""

    images: list[Image.Image]
    seeds: list[int]  # that each was drawn with
    made: list[dict[str, Any]]  # how each was drawn, but for what its concept is called; ready for JSON


@dataclass
class Applied:
    """A concept in place on the U-Net. The embeddings go to any stock pipeline as they are; the hook does the rest."""

    stock: Any
    prompt_embeds: Tensor  # [N, L, width]; rows that the hook recomputes, if there is one
    negative_prompt_embeds: Tensor  # [N, L, width]
    words: list[Tensor] = field(default_factory=list)  # v* [N, D] of every call so far; not live: the only one [1, D]


class E4TPipeline:
    """A domain on its base model. ``stock`` is the plain diffusers pipeline it draws with."""

    def __init__(
        self,
        backbone: Backbone,
        trained: TrainedDomain | None = None,
        *,
        domain: Domain | None = None,
        safety: dict[str, Any] | None = None,
    ) -> None:
        """``trained`` is a pre-trained domain; without one, ``domain`` says the class word to start from."""
        self.backbone = backbone
        self.trained = trained
        if trained is not None:
            self.model = E4TModel.from_domain(backbone, trained)
        elif domain is not None:
            scale = PretrainConfig().embedding_scale
            self.model = E4TModel.without_domain(backbone, domain, embedding_scale=scale)
        else:
            raise ConfigError("a pipeline needs a trained domain, or at least a domain's class word")
        self.stock = _stock_pipeline(backbone, safety or {})
        self._checker_follows()
        self._replayed: tuple[Concept, Concept] | None = None  # the last one, as loaded and as tuned again
        self._class_pictures: dict[Any, ClassPictures] = {}  # by all that they depend on

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        base: str | Path | None = None,
        image_encoder: str | Path | None = None,
        look: bool = True,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        **reading: str | None,
    ) -> Self:
        """Load a domain by folder or shipped name ("tiny-face"), with its base model or a copy of it, ``base``.

        The base is read as it was for pre-training; options (fields of `BaseConfig`) come on top of that, and for a
        ``base`` of its own stand alone. ``image_encoder`` is a copy of the domain's; without ``look`` none is loaded,
        which is enough to draw, but not to personalize.
        """
        trained = TrainedDomain.load(resolve(source))
        recorded = {} if base is not None else trained.base.reading.given()
        backbone = Backbone.from_pretrained(
            base if base is not None else resolve(trained.base.name, shipped_first=True),
            image_encoder=image_encoder or trained.base.image_encoder,
            look=look,
            device=device,
            dtype=dtype,
            **(recorded | reading),
        )
        return cls(backbone, trained, safety=load_safety(backbone.folder, backbone.reading.variant))

    @classmethod
    def from_base(
        cls,
        base: str | Path,
        *,
        class_word: str,
        image_encoder: str | Path | None = None,
        look: bool = True,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        **reading: str | None,
    ) -> Self:
        """Any base model, without a pre-trained domain: personalizing starts from the class word and takes longer.

        Options are those of `Backbone.from_pretrained`.
        """
        backbone = Backbone.from_pretrained(
            base, image_encoder=image_encoder, look=look, device=device, dtype=dtype, **reading
        )
        return cls(
            backbone, domain=Domain.named(class_word), safety=load_safety(backbone.folder, backbone.reading.variant)
        )

    @property
    def domain(self) -> Domain:
        return self.model.domain

    @property
    def personalize_config(self) -> PersonalizeConfig:
        """The settings measured for this domain."""
        return self.trained.personalize_config if self.trained else PersonalizeConfig.without_domain()

    @property
    def generate_config(self) -> GenerateConfig:
        return self.trained.generate_config if self.trained else GenerateConfig()

    @property
    def draws_concepts(self) -> bool:
        """Whether the base's weights can be changed to a concept's: in bfloat16, rounding would undo most of it."""
        return self.backbone.dtype != torch.bfloat16

    # Personalizing

    def personalize(
        self,
        image: str | Path | Image.Image,
        *,
        mask: str | Path | Image.Image | None = None,
        config: PersonalizeConfig | None = None,
        keep_steps: bool = False,
        **overrides: Any,
    ) -> Concept:
        """One image → a concept. Overrides are fields of `PersonalizeConfig` (``steps=15``, ``seed=1``)."""
        steps = self.personalize_steps(image, mask=mask, config=config, keep_steps=keep_steps, **overrides)
        kept = [step.concept for step in steps if step.concept is not None]
        return replace(kept[-1], history=tuple(kept)) if keep_steps else kept[-1]

    def personalize_steps(
        self,
        image: str | Path | Image.Image,
        *,
        mask: str | Path | Image.Image | None = None,
        config: PersonalizeConfig | None = None,
        keep_steps: bool | Collection[int] = False,
        **overrides: Any,
    ) -> Generator[PersonalizeStep, None, None]:
        """The same, yielding every step; the last one carries the concept, and those that ``keep_steps`` names."""
        settings = (config or self.personalize_config).updated(overrides)
        picture = load_image(image)
        white = load_mask(mask) if mask is not None else None
        prior = self.class_pictures(settings.prior_pictures) if settings.prior_weight else None
        yield from personalize(self.model, picture, config=settings, mask=white, prior=prior, keep_steps=keep_steps)

    def class_pictures(self, count: int, prompts: Sequence[str] | None = None, **overrides: Any) -> ClassPictures:
        """Latents of ``count`` pictures that the base draws of the class, or of other ``prompts`` in turn; kept.

        Overrides are fields of `GenerateConfig`. Raises ConfigError for prompts with a placeholder.
        """
        texts = tuple(prompts or (text.replace("{}", self.domain.class_word) for text in self.domain.templates))
        if any(self.domain.placeholder in text for text in texts):
            raise ConfigError("pictures of the class are drawn without the concept; leave the placeholder out")
        wanted = (count, texts, tuple(sorted(overrides.items())))
        if wanted not in self._class_pictures:
            all_texts = list(itertools.islice(itertools.cycle(texts), count))
            parts = [self._class_latents(all_texts[i : i + _BATCH], i, overrides) for i in range(0, count, _BATCH)]
            self._class_pictures[wanted] = ClassPictures(torch.cat(parts), tuple(all_texts))
        return self._class_pictures[wanted]

    def portrait(self, concept: Concept, photo: Image.Image) -> tuple[Image.Image, float]:
        """A neutral picture of the concept, and how much it is like the ``photo`` it was made from."""
        drawn = self(self.domain.prompts[0], concept=concept).images[0]
        return drawn, self.likeness(photo, drawn, self._stranger)

    @cached_property
    def _stranger(self) -> Image.Image:
        """Anybody of the class, neutrally drawn."""
        return self(self.domain.templates[0].replace("{}", self.domain.class_word)).images[0]

    def likeness(self, photo: Image.Image, drawn: Image.Image, stranger: Image.Image) -> float:
        """How much of the way from ``stranger``, anybody of the class, to ``photo`` itself a ``drawn`` picture is.

        As the image encoder sees it: 0 is a stranger, 1 the photo. An estimate from one picture, not a score.
        """
        pixels = [square_pixels(image, self.backbone.resolution) for image in (photo, drawn, stranger)]
        vectors = functional.normalize(self.backbone.image_features(torch.stack(pixels))[-1], dim=-1)
        near, far = (vectors[1:] @ vectors[0]).tolist()
        return float((near - far) / max(1 - far, 1e-6))

    def _class_latents(self, prompts: list[str], seed: int, overrides: dict[str, Any]) -> Tensor:
        images = self(prompts, seed=seed, **{**overrides, "num_images": 1}).images
        return torch.cat([self.backbone.encode(square_pixels(i, self.backbone.resolution)[None]) for i in images])

    def ready(self, concept: Concept) -> Concept:
        """The concept with all its weights: one kept as a replay is tuned again, the last one only once."""
        if not concept.to_be_replayed:
            return concept
        if self._replayed is None or self._replayed[0] is not concept:
            self._replayed = concept, replayed(self.model, concept)
        return self._replayed[1]

    # Drawing

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        concept: Concept | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        config: GenerateConfig | None = None,
        **overrides: Any,
    ) -> Output:
        """Draw prompts; "S*" in them is the concept, or the bare class word without one.

        Overrides are fields of `GenerateConfig`: num_inference_steps, guidance_scale, seed, num_images, embedding,
        strength, … Picture i is drawn with seed + i, whatever it is drawn together with.
        """
        settings = (config or self.generate_config).updated(overrides)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        count = len(prompts) * settings.num_images
        seeds = [settings.seed + index for index in range(count)]
        drawn_in = self.drawn_in(settings.mixed_precision)
        with ExitStack() as stack:
            stack.enter_context(self._scheduler(settings.scheduler))
            applied = stack.enter_context(
                self.applied(concept, prompts, negative_prompt=negative_prompt, config=settings)
            )
            if drawn_in != "no":
                stack.enter_context(autocast(drawn_in, self.backbone.device, self.model.base_dtype))
            images = self.stock(
                prompt_embeds=applied.prompt_embeds,
                negative_prompt_embeds=applied.negative_prompt_embeds,
                num_inference_steps=settings.num_inference_steps,
                guidance_scale=settings.guidance_scale,
                guidance_rescale=settings.guidance_rescale,
                height=settings.height or self.backbone.resolution,
                width=settings.width or self.backbone.resolution,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            ).images
            scheduler = settings.scheduler or type(self.stock.scheduler).__name__
        half = self.backbone.dtype == torch.float16 or drawn_in == "fp16"
        hidden = self.stock.safety_checker is not None  # which makes pictures black on purpose
        if half and not hidden and not all(image.getbbox() for image in images):
            advice = "a picture is black: numbers overflow in float16; use float32 (--dtype, --mixed-precision no)"
            warnings.warn(advice, stacklevel=2)
        texts = zip(prompts, _each(negative_prompt, len(prompts)), strict=True)
        asked = [pair for pair in texts for _ in range(settings.num_images)]
        made = [
            {
                "prompt": text,
                "negative_prompt": negative,
                **settings.to_dict(),
                "seed": seed,
                "num_images": 1,
                "scheduler": scheduler,
                "mixed_precision": drawn_in,
                "width": image.width,
                "height": image.height,
                "base": public_name((concept.base if concept else self.model.base).name),
                "concept": None,  # pictures do not know what it is called
                "domain": concept.domain_id if concept else self.model.domain_id,
                "steps": concept.steps if concept else 0,
                "versions": versions(),
            }
            for (text, negative), seed, image in zip(asked, seeds, images, strict=True)
        ]
        return Output(images, seeds, made)

    def glimpse(self, concept: Concept, prompt: str, *, num_inference_steps: int = 6, seed: int = 0) -> Image.Image:
        """A quick picture of ``concept``, the state of a step of `personalize_steps`, while that step is the last one.

        Tuning goes on afterwards: the weights are those in place, and the word is frozen.
        """
        offset = concept.tensors["frozen_offset"].to(self.backbone.device)
        unet, tokens = self.backbone.unet, self.model.tokens([prompt])
        self._checker_follows()
        training = unet.training
        unet.eval()
        try:
            with autocast_beside(self.backbone.device, self.model.base_dtype):
                embeds, negative = self._embeds(tokens, self.model.word(offset)), self._negative_embeds(None, 1)
                image: Image.Image = self.sampled(embeds, negative, steps=num_inference_steps, seed=seed)[0]
        finally:
            unet.train(training)
        return image

    def sampled(self, embeds: Tensor, negative: Tensor, *, steps: int, seed: int = 0, output_type: str = "pil") -> Any:
        """What the stock pipeline draws of embeddings with the weights in place, by the domain's guidance."""
        settings = self.generate_config
        return self.stock(
            prompt_embeds=embeds,
            negative_prompt_embeds=negative,
            num_inference_steps=steps,
            guidance_scale=settings.guidance_scale,
            guidance_rescale=settings.guidance_rescale,
            generator=torch.Generator().manual_seed(seed),
            output_type=output_type,
        ).images

    @contextmanager
    def applied(
        self,
        concept: Concept | None,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        also: Sequence[nn.Module] = (),
        config: GenerateConfig | None = None,
        **overrides: Any,
    ) -> Iterator[Applied]:
        """The concept in place, for any stock pipeline on this U-Net: image-to-image, inpainting, ControlNet, …

        Pass the embeddings of the `Applied` it yields, and draw ``num_images`` pictures per prompt in one call.
        ``also`` are further modules that take prompt embeddings (a ControlNet, another U-Net): they get the word, not
        the weights. Overrides are fields of `GenerateConfig`, on top of its defaults where there is no ``config``:
        ``num_images``, ``embedding``, ``strength``, ``weights``, ``unconditional``, ``dual_path`` and ``delay`` are
        heeded, the rest is the stock pipeline's affair. Afterwards the base is as it was.
        """
        settings = (config or GenerateConfig()).updated(overrides)
        self.backbone.require_in_place()
        self._checker_follows()
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        distinct = self.model.tokens(prompts, expected=concept is not None)
        count, strength, delay, share = settings.num_images, settings.strength, settings.delay, settings.dual_path
        tokens = distinct.repeat(count)
        with ExitStack() as stack:
            negative = self._negative_embeds(negative_prompt, len(prompts)).repeat_interleave(count, 0)
            if concept is None:
                yield Applied(self.stock, self._embeds(distinct, None).repeat_interleave(count, 0), negative)
                return
            concept = self.ready(concept)
            class_prompts = self._embeds(tokens, None) if share or delay else None
            stack.enter_context(self.model.wearing(concept, strength=strength, weights=settings.weights))
            frozen = self.model.word(concept.tensors["frozen_offset"].to(self.backbone.device), strength=strength)
            embeds = self._embeds(distinct, frozen).repeat_interleave(count, 0)  # one word in all of them
            live = settings.embedding == "live" and self.model.encoder.config.sees_noise
            result = Applied(self.stock, embeds, negative, words=[] if live else [frozen[None]])
            if settings.unconditional == "base":
                stack.enter_context(base_for_negatives(self.model, len(tokens)))
            until = (1 - delay) * self.backbone.num_timesteps
            if delay:
                stack.enter_context(base_first(self.model, until))
            if live or delay:
                image_half = concept.tensors["image_half"].to(self.backbone.device)
                hook = Conditioning(
                    self.model,
                    tokens,
                    image_half=image_half if live else None,
                    strength=strength,
                    class_prompts=class_prompts if delay else None,
                    until=until,
                    words=result.words,
                )
                for module in (self.backbone.unet, *also):
                    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                    stack.callback(handle.remove)
            if share and class_prompts is not None:
                unet, base = self.backbone.unet, self.model.base_weights
                stack.enter_context(dual.dual_path(unet, base, class_prompts, share))
            yield result

    def drawn_in(self, mixed_precision: str) -> str:
        """What becomes of a wish for mixed precision when drawing.

        "no" where bfloat16 would only be emulated, and of half-precision weights, which are drawn with as they are.
        """
        weights = self.model.base_dtype
        cast = (
            weights not in AUTOCAST_OF and arithmetic(mixed_precision, self.backbone.device, weights) != torch.float32
        )
        return mixed_precision if cast else "no"

    def _checker_follows(self) -> None:
        """The safety checker goes where the base is by now, and takes its type.

        It is shown pictures of that device and type, and diffusers may take a whole pipeline to be where it is.
        """
        if self.stock.safety_checker is not None:
            self.stock.safety_checker.to(self.backbone.device, self.backbone.text_encoder.dtype)

    @torch.no_grad()
    def _embeds(self, tokens: Tokens, word: Tensor | None) -> Tensor:
        return self.model.prompt_embeds(tokens, word)

    def _negative_embeds(self, negative_prompt: str | Sequence[str] | None, count: int) -> Tensor:
        """Encoded by the untuned text encoder; the placeholder means the class word there."""
        texts = [text or "" for text in _each(negative_prompt, count)]
        with self.model.base_text_encoder():
            return self._embeds(self.model.tokens(texts, expected=False), None)

    @contextmanager
    def _scheduler(self, name: str | None) -> Iterator[None]:
        if name is None:
            yield
            return
        import diffusers

        own = self.stock.scheduler
        kind = getattr(diffusers, name, None)
        if not isinstance(kind, type) or not name.endswith("Scheduler"):
            raise ConfigError(
                f"diffusers has no scheduler {name!r}; name one of its classes, as EulerDiscreteScheduler"
            )
        try:
            self.stock.scheduler = kind.from_config(own.config)  # type: ignore[attr-defined]
        except (ImportError, TypeError, ValueError) as error:
            raise ConfigError(f"the scheduler {name!r} cannot be used here: {' '.join(str(error).split())}") from error
        try:
            yield
        finally:
            self.stock.scheduler = own


def _each(negative_prompt: str | Sequence[str] | None, count: int) -> list[str | None]:
    """One negative prompt for each of ``count`` prompts. Raises ConfigError where there are more or fewer."""
    if negative_prompt is None or isinstance(negative_prompt, str):
        return [negative_prompt] * count
    if len(negative_prompt) != count:
        raise ConfigError(f"{len(negative_prompt)} negative prompts were given for {count} prompts")
    return list(negative_prompt)


def _stock_pipeline(backbone: Backbone, safety: dict[str, Any]) -> Any:
    from diffusers import StableDiffusionPipeline

    checker = safety.get("safety_checker")
    stock = StableDiffusionPipeline(
        vae=backbone.vae,
        text_encoder=backbone.text_encoder,
        tokenizer=backbone.tokenizer,
        unet=backbone.unet,
        scheduler=backbone.scheduler,
        safety_checker=checker,
        feature_extractor=safety.get("feature_extractor"),
        requires_safety_checker=checker is not None,
    )
    stock.set_progress_bar_config(disable=True)
    return stock
