"""What E4T is compared with. Every method is a `Personalizer`: it gets pictures and gives something that draws.

Textual Inversion (arXiv 2208.01618) and DreamBooth (arXiv 2208.12242) are tuned by the very loop E4T is tuned by, on a
base without a domain: what differs is what is trained, on which prompts, at which rate and for how long. LoRA goes
through peft, as in diffusers' training script. Methods that tune nothing put words where the placeholder stands. All of
them get the same masks, captions and sort of timesteps, and are drawn with the same guidance.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from e4t.checkpoint import Concept
from e4t.config import EncoderConfig, OffsetsConfig, PersonalizeConfig
from e4t.data import square_pixels
from e4t.domain import Domain
from e4t.errors import TrainingError
from e4t.evaluation.memory import Peak
from e4t.model import E4TModel
from e4t.objective import E4TObjective
from e4t.personalize import ClassPictures, Constants, batches, prepare, tune
from e4t.pipeline import E4TPipeline
from e4t.training import train

Draw = Callable[[Sequence[str], int], list[Image.Image]]
"""Prompts with the placeholder, and the first one's seed, to a picture each; picture i has seed + i."""


@dataclass(frozen=True)
class Example:
    """One picture of a concept, where the concept is in it, and all that words can say of the concept.

    ``caption`` says what else the picture shows, with the placeholder: tuned methods then learn from that prompt alone.
    """

    image: Image.Image
    mask: Image.Image | None = None
    description: str | None = None
    caption: str | None = None


@dataclass(frozen=True)
class Learned:
    """What a method has made of its examples after so many steps."""

    steps: int
    passes: int  # pictures in all batches so far
    seconds: float  # of learning, preparations included, but for pictures of the class
    peak_bytes: int  # `e4t.evaluation.memory.Peak` until then
    stored_bytes: int
    draw: Draw
    diverged: bool = False  # the loss was no number any more: this is what was learned before


class Personalizer(Protocol):
    """A method: from one or several pictures of a concept to something that draws it."""

    @property
    def name(self) -> str: ...

    @property
    def examples(self) -> int:
        """How many different pictures it is given."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides what is learned from given examples on a given base, ready for JSON."""
        ...

    def learn(self, examples: Sequence[Example], steps: Collection[int]) -> list[Learned]:
        """What is learned after each of ``steps``, in rising order, from one run, also where it diverges."""
        ...


@dataclass(frozen=True)
class Words:
    """No tuning: the placeholder is replaced by words, which ``says`` finds for an example."""

    name: str
    pipe: E4TPipeline
    says: Callable[[Example], str]
    sampling: Mapping[str, Any]
    examples: int = 1

    @property
    def settings(self) -> dict[str, Any]:
        return {"name": self.name}

    def learn(self, examples: Sequence[Example], steps: Collection[int]) -> list[Learned]:
        began, peak = time.perf_counter(), Peak(self.pipe.backbone.device)
        words = self.says(examples[0])
        draw = _drawing(self.pipe, None, words, self.sampling)
        return [Learned(0, 0, time.perf_counter() - began, peak.bytes, len(words.encode()), draw)]


@dataclass(frozen=True)
class Tuned:
    """Anything that `e4t.personalize.tune` can tune. ``subject`` is what prompts say, with the placeholder in it.

    ``prior`` gives the pictures of the class, where the settings ask for them.
    """

    name: str
    pipe: E4TPipeline
    config: PersonalizeConfig
    sampling: Mapping[str, Any]
    examples: int = 1
    subject: str = "S*"
    prior: Callable[[int], ClassPictures] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        said = {"examples": self.examples, "subject": self.subject, "domain": _said(self.pipe)}
        return {"config": _deciding(self.config), **said}

    def learn(self, examples: Sequence[Example], steps: Collection[int]) -> list[Learned]:
        config = replace(self.config, steps=max(steps))
        prior = self.prior(config.prior_pictures) if self.prior and config.prior_weight else None
        began, peak = time.perf_counter(), Peak(self.pipe.backbone.device)
        constants = _together(self.pipe, examples[: self.examples], config, self.subject)
        constants = replace(constants, prior=prior)
        seconds, learned = time.perf_counter() - began, []
        shown = config.batch_size * config.accumulation * (2 if prior else 1)
        with suppress(TrainingError):
            for step in tune(self.pipe.model, constants, config=config, provenance={}, keep_steps={0, *steps}):
                seconds += step.training.seconds if step.training else 0.0
                if step.concept is not None:
                    draw = _drawing(self.pipe, step.concept, self.subject, self.sampling)
                    differing = {name: tensor for name, tensor in step.concept.tensors.items() if tensor.any()}
                    stored = replace(step.concept, tensors=differing).num_bytes
                    learned.append(Learned(step.number, step.number * shown, seconds, peak.bytes, stored, draw))
        return _asked_for(learned, steps)


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

    @property
    def settings(self) -> dict[str, Any]:
        said = {"examples": self.examples, "subject": self.subject, "domain": _said(self.pipe)}
        return {"config": _deciding(self.config), "rank": self.rank, **said}

    def learn(self, examples: Sequence[Example], steps: Collection[int]) -> list[Learned]:
        config = replace(self.config, steps=max(steps))
        began, peak = time.perf_counter(), Peak(self.pipe.backbone.device)
        constants = _together(self.pipe, examples[: self.examples], config, self.subject)
        seconds = time.perf_counter() - began
        learned = []
        with self._worn() as unet:
            learned.append(self._learned(0, seconds, peak, unet))
            parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
            objective = E4TObjective(self.pipe.model, config)
            batch_at = batches(self.pipe.model, constants, config)
            with suppress(TrainingError):
                for step in train(objective, batch_at, optimizer):
                    seconds += step.seconds
                    if step.number in steps:
                        learned.append(self._learned(step.number, seconds, peak, unet))
        return _asked_for(learned, steps)

    def _learned(self, steps: int, seconds: float, peak: Peak, unet: Any) -> Learned:
        state = self._state(unet)
        stored = sum(2 * tensor.numel() for tensor in state.values())  # as float16
        passes = steps * self.config.batch_size * self.config.accumulation
        return Learned(steps, passes, seconds, peak.bytes, stored, self._drawing(state))

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
            torch.default_generator.manual_seed(self.config.seed)  # those of devices are the caller's
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


def _asked_for(learned: list[Learned], steps: Collection[int]) -> list[Learned]:
    """Those of ``steps``; where the loss stopped being a number, the last there was stands for the rest."""
    last = learned[-1]
    missed = [replace(last, steps=count, diverged=True) for count in sorted(steps) if count > last.steps]
    return [one for one in (*learned, *missed) if one.steps in steps]


def _drawing(pipe: E4TPipeline, concept: Concept | None, subject: str, sampling: Mapping[str, Any]) -> Draw:
    """Prompts in which ``subject`` stands instead of the placeholder."""

    def draw(prompts: Sequence[str], seed: int) -> list[Image.Image]:
        texts = [prompt.replace(pipe.domain.placeholder, subject) for prompt in prompts]
        return pipe(texts, concept=concept, seed=seed, **sampling).images

    return draw


def _deciding(config: PersonalizeConfig) -> dict[str, Any]:
    """The settings that are set, so that records outlive a new one, without those of how many steps to take: that
    follows from what is asked of `Personalizer.learn`.
    """
    said = config.to_dict()
    return {name: said[name] for name in said if said[name] is not None and name not in _HOW_MANY}


_HOW_MANY = ("steps", "automatic", "automatic_gain")


def _said(pipe: E4TPipeline) -> dict[str, Any]:
    """What prompts say while tuning, and the domain that was trained, if any."""
    return {**pipe.domain.to_dict(), "trained": pipe.trained.id if pipe.trained else None}


def _together(pipe: E4TPipeline, examples: Sequence[Example], config: PersonalizeConfig, subject: str) -> Constants:
    """Several pictures of one concept: latents and masks of all, image features of the first.

    Captions, where every picture has one, name the concept by ``subject``.
    """
    each = [prepare(pipe.model, one.image, one.mask if config.mask_loss else None) for one in examples]
    masks = [one.mask for one in each if one.mask is not None]
    captions = [one.caption.replace(pipe.domain.placeholder, subject) for one in examples if one.caption is not None]
    return Constants(
        torch.cat([one.latents for one in each]),
        each[0].image_features,
        torch.cat(masks) if len(masks) == len(each) else None,
        captions=tuple(captions) if len(captions) == len(each) else (),
    )


# The methods

TEXTUAL_INVERSION = PersonalizeConfig(tune=("residual",), regularisation=0.0, batch_size=4, stratified_timesteps=True)
DREAMBOOTH = PersonalizeConfig(
    tune=("unet",), regularisation=0.0, batch_size=4, stratified_timesteps=True, prior_pictures=100
)
"""Batches of 4 that share out noise levels as ours do. AdamW's weight decay of 0.01 and 100 pictures of the class are
those of diffusers' scripts."""


def class_word(pipe: E4TPipeline, sampling: Mapping[str, Any]) -> Words:
    """Nothing is learned: how far the class word alone gets."""
    return Words("class word", pipe, lambda _: pipe.domain.class_word, sampling)


def best_caption(pipe: E4TPipeline, sampling: Mapping[str, Any]) -> Words:
    """All that words can say of the concept."""

    def says(example: Example) -> str:
        assert example.description is not None  # else this method is not among the contest's
        return example.description

    return Words("best caption", pipe, says, sampling)


def nearest_name(pipe: E4TPipeline, sampling: Mapping[str, Any], known: Callable[[], Mapping[str, Tensor]]) -> Words:
    """The name that the base knows of whoever looks most alike. ``known`` gives `image_vectors` by name."""

    def says(example: Example) -> str:
        names, vectors = list(known()), torch.stack(list(known().values()))
        return names[int((vectors @ image_vectors(pipe, [example.image])[0]).argmax())]

    return Words("nearest name", pipe, says, sampling)


def image_vectors(pipe: E4TPipeline, images: Iterable[Image.Image], *, batch: int = 32) -> Tensor:
    """The last [CLS] of CLIP, ``[n, width]``, of length 1."""
    pixels = (square_pixels(image, pipe.backbone.resolution) for image in images)
    parts = []
    while rows := list(itertools.islice(pixels, batch)):
        parts.append(F.normalize(pipe.backbone.image_features(torch.stack(rows))[-1], dim=-1))
    return torch.cat(parts)


def e4t(pipe: E4TPipeline, sampling: Mapping[str, Any], **changes: Any) -> Tuned:
    """The domain with its own settings."""
    return Tuned("E4T", pipe, pipe.personalize_config.updated(changes), sampling, subject=pipe.domain.placeholder)


def textual_inversion(pipe: E4TPipeline, sampling: Mapping[str, Any], *, examples: int = 1, **changes: Any) -> Tuned:
    """A new word alone, started from the class word. A step of ``residual_learning_rate`` moves it by s times that."""
    config = TEXTUAL_INVERSION.updated(changes)
    subject = pipe.domain.placeholder
    return Tuned("Textual Inversion", _plain(pipe, pipe.domain), config, sampling, examples, subject=subject)


def dreambooth(
    pipe: E4TPipeline,
    sampling: Mapping[str, Any],
    *,
    rare_token: str,
    examples: int = 1,
    text_encoder: bool = False,
    prior: bool = False,
    muon: bool = False,
    **changes: Any,
) -> Tuned:
    """The whole U-Net, on a rare token before the class word; with ``prior`` it must not forget the class.

    The pictures of the class are drawn by ``pipe``, which keeps them: once for all methods and concepts. ``muon`` takes
    the shipped domains' optimiser instead of AdamW, to tell what that alone is worth.
    """
    config, rare = replace(DREAMBOOTH, prior_weight=float(prior)).updated(changes), _rare(pipe, rare_token)
    if text_encoder:  # the rare token's own embedding learns with it, at the same rate: the word is a copy in our loop
        word_rate = config.learning_rate / rare.model.embedding_scale
        config = replace(config, tune=(*config.tune, "text_encoder", "residual"), residual_learning_rate=word_rate)
    if muon:
        config = replace(config, optimizer="muon")
    name = "DreamBooth" + " + text encoder" * text_encoder + " + prior" * prior + " by Muon" * muon
    return Tuned(
        name,
        rare,
        config,
        sampling,
        examples,
        _rare_subject(pipe.domain),
        (lambda count: pipe.class_pictures(count, **sampling)) if prior else None,
    )


def lora(pipe: E4TPipeline, sampling: Mapping[str, Any], *, rare_token: str, examples: int = 1, **changes: Any) -> LoRA:
    """DreamBooth on adapters."""
    config = DREAMBOOTH.updated(changes)
    return LoRA("LoRA", _rare(pipe, rare_token), config, sampling, examples, _rare_subject(pipe.domain))


def _rare(pipe: E4TPipeline, token: str) -> E4TPipeline:
    """The same base, where the placeholder is a rare token and every prompt has the class word after it."""
    subject = _rare_subject(pipe.domain).replace(pipe.domain.placeholder, "{}")
    templates = tuple(text.replace("{}", subject) for text in pipe.domain.templates)
    return _plain(pipe, replace(pipe.domain, class_word=token, templates=templates))


def _plain(pipe: E4TPipeline, domain: Domain) -> E4TPipeline:
    """The same base as it is: without offsets nothing is composed, and a step costs what a plain script's does."""
    plain = E4TPipeline(pipe.backbone, domain=domain)
    plain.model = E4TModel(
        pipe.backbone,
        domain,
        encoder=EncoderConfig.blind(),
        offsets=OffsetsConfig(form="none", projections=()),
        embedding_scale=plain.model.embedding_scale,
    ).requires_grad_(False)
    return plain


def _rare_subject(domain: Domain) -> str:
    return f"{domain.placeholder} {domain.class_word}"
