"""Looking at a training while it runs: the loss on pictures it does not learn from, and what it draws of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from e4t.backbone import draw_noise
from e4t.batches import batches
from e4t.cache import CachedData
from e4t.config import GenerateConfig, PretrainConfig, at_least
from e4t.data import ImageData, square_pixels
from e4t.errors import DataError, ImageError
from e4t.objective import E4TObjective
from e4t.pretrain import Pretraining, data_of
from e4t.training import autocast, generator_at
from e4t.writing import new_files

_PLAIN: dict[str, Any] = {"crop_scale": (1.0, 1.0), "flip": False, "color_jitter": 0.0, "sample_latents": False}


@dataclass(frozen=True)
class ValidationConfig:
    """How often and how thoroughly."""

    every: int = 1_000  # steps
    batches: int = 8  # of held-out pictures, whose loss is averaged; timesteps spread evenly in each
    pictures: int = 4  # of them that are drawn, 0 for none
    prompts: tuple[str, ...] | None = None  # that name the concept; None: the domain's first template, and its example
    steps: int = 20  # of sampling
    guidance_scale: float = 5.0

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("batches", 1), ("steps", 1), ("pictures", 0)):
            at_least(name, getattr(self, name), least)


@dataclass
class Validation:
    """Scores and pictures of a `Pretraining`, always of the same pictures, noise and timesteps.

    Scores are written to ``scores.jsonl`` in ``folder``, pictures to ``step-N.png``: a row for each of the first
    held-out pictures, itself and what is drawn for every prompt, without any tuning. Of a cache or shards only the loss
    is looked at.
    """

    training: Pretraining
    source: str | Path
    folder: Path
    config: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        training, domain = self.training, self.training.model.domain
        prompts = self.config.prompts or (domain.prompts[0], domain.example)
        self._prompts = [domain.captioned(prompt) for prompt in prompts]
        plain = training.config.updated({**_PLAIN, "stratified_timesteps": True, "caption_share": 0.0, "workers": 0})
        self._data = _held_out(self.source, training, plain)
        self._batch_at = batches(training.model, self._data, plain)
        self._shown = list(itertools.islice(_readable(self._data), self.config.pictures))
        self.folder.mkdir(parents=True, exist_ok=True)

    def due(self, step: int) -> bool:
        """Whether a finished step is one to look at."""
        return step % self.config.every == 0 or step == self.training.config.steps

    @torch.no_grad()
    def look(self, step: int) -> dict[str, float]:
        """Scores by name, after they and the pictures are written. To be called between two steps of the training.

        ``validation_loss``; ``likeness``: the cosine of CLIP's last [CLS] of a drawing and of its picture, of the first
        prompt, averaged.
        """
        average = self.training.average
        with average.worn() if average is not None else nullcontext():
            scores = {"validation_loss": self._loss()}
            if self._shown:
                scores["likeness"] = self._drawn(step)
        self._note({"step": step, **scores})
        return scores

    def _note(self, scores: dict[str, float]) -> None:
        """Behind those of earlier steps: what comes later is of a training that went on from further back."""
        place = self.folder / "scores.jsonl"
        lines = place.read_text(encoding="utf-8").splitlines() if place.is_file() else []
        kept = [line for line in lines if _is_before(line, scores["step"])]
        with new_files([place], DataError) as (beside,):
            beside.write_text("\n".join([*kept, json.dumps(scores)]) + "\n", encoding="utf-8")

    def _loss(self) -> float:
        training = self.training
        config, backbone = training.config, training.backbone
        objective = E4TObjective(training.model, config)
        with autocast(config.mixed_precision, backbone.device, training.model.base_dtype):
            losses = [float(objective(self._batch_at(number)).diffusion) for number in range(self.config.batches)]
        return sum(losses) / len(losses)

    def _drawn(self, step: int) -> float:
        """Write a sheet of pictures; the mean likeness of those of the first prompt."""
        rows, likenesses = [], []
        for number, pixels in enumerate(self._shown):
            drawn = [self._draw(pixels, prompt, number) for prompt in self._prompts]
            likenesses.append(self._likeness(pixels, drawn[0]))
            rows.append(torch.cat([pixels.to(drawn[0].device), *drawn], dim=3))
        with new_files([self.folder / f"step-{step:09d}.png"], DataError) as (beside,):
            _image(torch.cat(rows, dim=2)[0]).save(beside, "PNG")
        return sum(likenesses) / len(likenesses)

    def _likeness(self, pixels: Tensor, drawn: Tensor) -> float:
        one, other = (self.training.backbone.image_features(p)[-1] for p in (pixels, drawn))
        return float(functional.cosine_similarity(one, other).mean())

    def _draw(self, pixels: Tensor, prompt: str, number: int) -> Tensor:
        """What the encoder's word draws [1, 3, R, R], predicted anew at every step of the base's own sampler."""
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

        model, backbone = self.training.model, self.training.backbone
        scheduler = type(backbone.scheduler).from_config(backbone.scheduler.config)
        rescale = GenerateConfig.from_dict(self.training.recorded["generate"]).guidance_rescale
        scheduler.set_timesteps(self.config.steps, device=backbone.device)
        mean, _ = backbone.posterior(pixels)
        generator = generator_at(self.training.config.seed, number)
        sample = draw_noise(mean.shape, generator, backbone.device) * scheduler.init_noise_sigma
        tokens = model.tokens([prompt])
        empty = model.prompt_embeds(model.tokens([""], expected=False))
        half = model.encoder.image_half(model.image_features(pixels))
        drawing = {"generator": generator} if "generator" in signature(scheduler.step).parameters else {}
        with autocast(self.training.config.mixed_precision, backbone.device, model.base_dtype):
            for timestep in scheduler.timesteps:
                scaled = scheduler.scale_model_input(sample, timestep)
                times = timestep.expand(1)
                word = model.word(model.offset(scaled, times, half))
                embeds = torch.cat([empty, model.prompt_embeds(tokens, word)])
                without, given = model.denoise(torch.cat([scaled] * 2), times.expand(2), embeds).chunk(2)
                guided = without + self.config.guidance_scale * (given - without)
                if rescale:
                    guided = rescale_noise_cfg(guided, given, guidance_rescale=rescale)
                sample = scheduler.step(guided, timestep, sample, **drawing, return_dict=False)[0]
        return backbone.decode(sample.float())


def _is_before(line: str, step: float) -> bool:
    """Whether a line of scores is of an earlier step, and whole."""
    try:
        return bool(json.loads(line)["step"] < step)
    except (KeyError, TypeError, ValueError):
        return False


def _held_out(source: str | Path, training: Pretraining, config: PretrainConfig) -> ImageData | CachedData:
    data = data_of(source, training.backbone, config)
    if isinstance(data, CachedData) != isinstance(training.data, CachedData):
        raise DataError(f"'{source}' has to be a cache if the training's data is one, and only then")
    return data


def _readable(data: ImageData | CachedData) -> Iterator[Tensor]:
    """Pictures [1, 3, R, R] one by one; none of a cache, or of a stream, which has no first ones."""
    if not isinstance(data, ImageData) or data.stream is not None:
        return
    for entry in data.entries:
        with suppress(ImageError):
            yield square_pixels(entry.image(), data.resolution)[None]


def _image(pixels: Tensor) -> Image.Image:
    values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
    return Image.fromarray(np.ascontiguousarray(values.permute(1, 2, 0).numpy()))
