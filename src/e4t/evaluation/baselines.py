"""What E4T is compared with. Every method is a `Personalizer`: it gets pictures and gives something that draws.

Textual Inversion (arXiv 2208.01618) and DreamBooth (arXiv 2208.12242) are tuned by the very loop E4T is tuned by, on a
base without a domain: what differs is what is trained, on which prompts, at which rate and for how long. LoRA goes
through peft, as in diffusers' training script. Methods that tune nothing put words where the placeholder stands.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from e4t.checkpoint import Concept
from e4t.config import PersonalizeConfig
from e4t.data import square_pixels
from e4t.domain import Domain
from e4t.objective import E4TObjective
from e4t.personalize import ClassPictures, Constants, batches, prepare, tune
from e4t.pipeline import E4TPipeline
from e4t.training import train

Draw = Callable[[Sequence[str], int], list[Image.Image]]
"""Prompts with the placeholder, and the first one's seed, to a picture each; picture i has seed + i."""


@dataclass(frozen=True)
class Example:
    """One picture of a concept, where the concept is in it, and all that words can say of the concept."""

    image: Image.Image
    mask: Image.Image | None = None
    description: str | None = None


@dataclass(frozen=True)
class Learned:
    """What a method has made of its examples after so many steps."""

    steps: int
    passes: int  # pictures in all batches so far
    seconds: float  # of learning, preparations included
    stored_bytes: int
    draw: Draw


class Personalizer(Protocol):
    """A method: from one or several pictures of a concept to something that draws it."""

    @property
    def name(self) -> str: ...

    @property
    def examples(self) -> int:
        """How many different pictures it is given."""
        ...

    def learn(self, examples: Sequence[Example], steps: Collection[int]) -> list[Learned]:
        """What is learned after each of ``steps``, in rising order, from one run."""
        ...


@dataclass(frozen=True)
class Words:
    """No tuning: the placeholder is replaced by words, which ``says`` finds for an example."""

    name: str
    pipe: E4TPipeline
    says: Callable[[Example], str]
    sampling: Mapping[str, Any]
    examples: int = 1

    def learn(self, examples: Sequence[Example], steps: Collection[int]) -> list[Learned]:
        began = time.perf_counter()
        words = self.says(examples[0])
        draw = _drawing(self.pipe, None, words, self.sampling)
        return [Learned(0, 0, time.perf_counter() - began, len(words.encode()), draw)]


@dataclass(frozen=True)
class Tuned:
    """Anything that `e4t.personalize.tune` can tune. ``subject`` is what prompts say, with the placeholder in it."""

    name: str
    pipe: E4TPipeline
    config: PersonalizeConfig
    sampling: Mapping[str, Any]
    examples: int = 1
    subject: str = "S*"
    class_prompts: tuple[str, ...] = ()

    def learn(self, examples: Sequence[Example], steps: Collection[int]) -> list[Learned]:
        config = replace(self.config, steps=max(steps))
        prior = _prior(self.pipe, config, self.class_prompts)
        began = time.perf_counter()
        constants = replace(_together(self.pipe, examples[: self.examples], config), prior=prior)
        seconds, learned = time.perf_counter() - began, []
        for step in tune(self.pipe.model, constants, config=config, provenance={}, keep_steps=steps):
            seconds += step.training.seconds if step.training else 0.0
            if step.concept is not None and step.number in steps:
                draw = _drawing(self.pipe, step.concept, self.subject, self.sampling)
                passes = step.number * config.batch_size
                learned.append(Learned(step.number, passes, seconds, step.concept.num_bytes, draw))
        return learned


@dataclass(frozen=True)
class LoRA:
    """DreamBooth-LoRA as diffusers' script has it: q, k, v and out of every attention, alpha equal to the rank."""

    name: str
    pipe: E4TPipeline
    config: PersonalizeConfig
    sampling: Mapping[str, Any]
    examples: int = 1
    subject: str = "S*"
    rank: int = 4

    def learn(self, examples: Sequence[Example], steps: Collection[int]) -> list[Learned]:
        config = replace(self.config, steps=max(steps))
        began = time.perf_counter()
        constants = _together(self.pipe, examples[: self.examples], config)
        seconds = time.perf_counter() - began
        learned = []
        with self._worn() as unet:
            if 0 in steps:
                learned.append(self._learned(0, seconds, unet))
            parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
            objective = E4TObjective(self.pipe.model, regularisation=0.0, reduction="sum")
            batch_at = batches(self.pipe.model, constants, config)
            for step in train(
                objective, batch_at, optimizer, steps=config.steps, mixed_precision=config.mixed_precision
            ):
                seconds += step.seconds
                if step.number in steps:
                    learned.append(self._learned(step.number, seconds, unet))
        return learned

    def _learned(self, steps: int, seconds: float, unet: Any) -> Learned:
        state = self._state(unet)
        stored = sum(2 * tensor.numel() for tensor in state.values())  # as float16
        return Learned(steps, steps * self.config.batch_size, seconds, stored, self._drawing(state))

    @contextmanager
    def _worn(self, state: Mapping[str, Tensor] | None = None) -> Iterator[Any]:
        """The U-Net with adapters of these weights; without any, with fresh ones that follow from the seed."""
        from peft import LoraConfig, set_peft_model_state_dict

        unet = self.pipe.backbone.unet
        projections = ["to_q", "to_k", "to_v", "to_out.0"]
        adapters = LoraConfig(
            r=self.rank, lora_alpha=self.rank, init_lora_weights="gaussian", target_modules=projections
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            unet.add_adapter(adapters)
        try:
            if state is not None:
                set_peft_model_state_dict(unet, dict(state))
            yield unet
        finally:
            unet.unload_lora()

    def _state(self, unet: Any) -> dict[str, Tensor]:
        from peft.utils import get_peft_model_state_dict

        return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(unet).items()}

    def _drawing(self, state: Mapping[str, Tensor]) -> Draw:
        plain = _drawing(self.pipe, None, self.subject, self.sampling)

        def draw(prompts: Sequence[str], seed: int) -> list[Image.Image]:
            with self._worn(state):
                return plain(prompts, seed)

        return draw


def _drawing(pipe: E4TPipeline, concept: Concept | None, subject: str, sampling: Mapping[str, Any]) -> Draw:
    """Prompts in which ``subject`` stands instead of the placeholder."""

    def draw(prompts: Sequence[str], seed: int) -> list[Image.Image]:
        texts = [prompt.replace(pipe.domain.placeholder, subject) for prompt in prompts]
        return pipe(texts, concept=concept, seed=seed, **sampling).images

    return draw


def _prior(pipe: E4TPipeline, config: PersonalizeConfig, prompts: tuple[str, ...]) -> ClassPictures | None:
    return pipe.class_pictures(config.prior_pictures, prompts) if config.prior_weight else None


def _together(pipe: E4TPipeline, examples: Sequence[Example], config: PersonalizeConfig) -> Constants:
    """Several pictures of one concept: latents and masks of all, image features of the first."""
    each = [prepare(pipe.model, one.image, one.mask if config.mask_loss else None) for one in examples]
    masks = [one.mask for one in each if one.mask is not None]
    return Constants(
        torch.cat([one.latents for one in each]),
        each[0].image_features,
        torch.cat(masks) if len(masks) == len(each) else None,
    )


# The methods

TEXTUAL_INVERSION = PersonalizeConfig(tune=("residual",), regularisation=0.0, batch_size=4)
DREAMBOOTH = PersonalizeConfig(tune=("deltas", "unet"), regularisation=0.0, batch_size=4)
"""Batch 4 is what diffusers' scripts have by default, and so is AdamW's weight decay of 0.01."""


def class_word(pipe: E4TPipeline, sampling: Mapping[str, Any]) -> Words:
    """Nothing is learned: how far the class word alone gets."""
    return Words("class word", pipe, lambda _: pipe.domain.class_word, sampling)


def best_caption(pipe: E4TPipeline, sampling: Mapping[str, Any]) -> Words:
    """All that words can say of the concept."""
    return Words("best caption", pipe, lambda example: example.description or pipe.domain.class_word, sampling)


def nearest_name(pipe: E4TPipeline, sampling: Mapping[str, Any], known: Mapping[str, Tensor]) -> Words:
    """The name that the base knows of whoever looks most alike. ``known`` are `image_vector`s by name."""
    names, vectors = list(known), torch.stack(list(known.values()))

    def says(example: Example) -> str:
        return names[int((vectors @ image_vector(pipe, example.image)).argmax())]

    return Words("nearest name", pipe, says, sampling)


def image_vector(pipe: E4TPipeline, image: Image.Image) -> Tensor:
    """The last [CLS] of CLIP, ``[width]``, of length 1."""
    pixels = square_pixels(image, pipe.backbone.resolution)[None]
    return F.normalize(pipe.backbone.image_features(pixels)[-1][0], dim=0)


def e4t(pipe: E4TPipeline, sampling: Mapping[str, Any], **changes: Any) -> Tuned:
    """The domain with its own settings."""
    return Tuned("E4T", pipe, pipe.personalize_config.updated(changes), sampling, subject=pipe.domain.placeholder)


def textual_inversion(pipe: E4TPipeline, sampling: Mapping[str, Any], *, examples: int = 1, **changes: Any) -> Tuned:
    """A new word alone, started from the class word. A step of ``residual_learning_rate`` moves it by s times that."""
    plain = E4TPipeline(pipe.backbone, domain=pipe.domain)
    config = TEXTUAL_INVERSION.updated(changes)
    return Tuned("Textual Inversion", plain, config, sampling, examples, subject=pipe.domain.placeholder)


def dreambooth(
    pipe: E4TPipeline,
    sampling: Mapping[str, Any],
    *,
    rare_token: str,
    examples: int = 1,
    text_encoder: bool = False,
    prior: bool = False,
    **changes: Any,
) -> Tuned:
    """The whole U-Net, on a rare token before the class word; with ``prior`` it must not forget the class."""
    config = replace(DREAMBOOTH, prior_weight=float(prior)).updated(changes)
    if text_encoder:
        config = replace(config, tune=(*config.tune, "text_encoder"))
    name = "DreamBooth" + " + text encoder" * text_encoder + " + prior" * prior
    captions = tuple(text.replace("{}", pipe.domain.class_word) for text in pipe.domain.templates)
    return Tuned(name, _rare(pipe, rare_token), config, sampling, examples, _rare_subject(pipe.domain), captions)


def lora(pipe: E4TPipeline, sampling: Mapping[str, Any], *, rare_token: str, examples: int = 1, **changes: Any) -> LoRA:
    """DreamBooth on adapters."""
    config = DREAMBOOTH.updated(changes)
    return LoRA("LoRA", _rare(pipe, rare_token), config, sampling, examples, _rare_subject(pipe.domain))


def _rare(pipe: E4TPipeline, token: str) -> E4TPipeline:
    """The same base, where the placeholder is a rare token and every prompt has the class word after it."""
    subject = _rare_subject(pipe.domain).replace(pipe.domain.placeholder, "{}")
    templates = tuple(text.replace("{}", subject) for text in pipe.domain.templates)
    return E4TPipeline(pipe.backbone, domain=replace(pipe.domain, class_word=token, templates=templates))


def _rare_subject(domain: Domain) -> str:
    return f"{domain.placeholder} {domain.class_word}"
