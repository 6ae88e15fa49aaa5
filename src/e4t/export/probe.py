"""How true an export is, measured on the U-Net's calls in one native drawing."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from e4t.backbone import Backbone
from e4t.checkpoint import Concept
from e4t.export.merged import Weights
from e4t.model import E4TModel
from e4t.models.tuned import TunedWeights
from e4t.pipeline import E4TPipeline

PROBE_STEPS = 8
"""Denoising steps of the drawing at which everything is measured."""


@dataclass(frozen=True)
class Similarity:
    """How near the frozen word f is to the words v* that are predicted live.

    Means over the U-Net's calls in a native drawing of the domain's first prompt, in `PROBE_STEPS` steps, seed 0:
    ``cosine`` of v* and f, and ``distance`` ‖v* - f‖ / ‖f‖.
    """

    cosine: float
    distance: float


@dataclass(frozen=True)
class Probe:
    """Every call of the U-Net in one native drawing: samples [n, C, h, w], timesteps [n], live words [n, D]."""

    prompt: str
    samples: Tensor
    timesteps: Tensor
    words: Tensor

    @classmethod
    def of(cls, pipe: E4TPipeline, concept: Concept) -> Probe:
        samples: list[Tensor] = []
        timesteps: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            samples.append(call["sample"][-1:].float())
            timesteps.append(torch.as_tensor(call["timestep"], device=pipe.backbone.device).reshape(-1)[-1:])

        prompt = pipe.domain.prompts[0]
        with pipe.applied(concept, prompt) as applied:
            handle = pipe.backbone.unet.register_forward_pre_hook(keep, with_kwargs=True)
            try:
                embeds, negative = applied.prompt_embeds, applied.negative_prompt_embeds
                pipe.sampled(embeds, negative, steps=PROBE_STEPS, output_type="latent")
            finally:
                handle.remove()
        return cls(prompt, torch.cat(samples), torch.cat(timesteps), torch.cat(applied.words))

    def similarity(self, word: Tensor) -> Similarity:
        frozen = word.expand_as(self.words)
        cosine = torch.cosine_similarity(self.words, frozen, dim=-1).mean()
        distance = ((self.words - frozen).norm(dim=-1) / frozen.norm(dim=-1)).mean()
        return Similarity(float(cosine), float(distance))

    @torch.no_grad()
    def predict(self, model: E4TModel, word: Tensor | None, changes: Weights) -> Tensor:
        """Noise predictions of the changed base at every other call, [n / 2, C, h, w]; no word is the class word."""
        with changed(model.backbone, changes):
            embeds = model.prompt_embeds(model.tokens([self.prompt]), word)
            rows = [slice(index, index + 1) for index in range(0, len(self.samples), 2)]
            return torch.cat([model.denoise(self.samples[row], self.timesteps[row], embeds) for row in rows])

    @torch.no_grad()
    def picture(self, pipe: E4TPipeline, word: Tensor | None, changes: Weights) -> Image.Image:
        """What the changed base draws where `of` drew; no word is the class word."""
        model = pipe.model
        negative = model.prompt_embeds(model.tokens([""], expected=False))
        with changed(pipe.backbone, changes):
            embeds = model.prompt_embeds(model.tokens([self.prompt]), word)
            picture: Image.Image = pipe.sampled(embeds, negative, steps=PROBE_STEPS)[0]
            return picture


@contextmanager
def changed(backbone: Backbone, changes: Weights) -> Iterator[None]:
    """U-Net and text encoder with ``changes`` added."""
    parts = {part: TunedWeights(getattr(backbone, part)) for part in changes}
    try:
        for part, weights in parts.items():
            weights.apply(changes[part])
        yield
    finally:
        for weights in parts.values():
            weights.restore()


def share_covered(export: Tensor, native: Tensor, without: Tensor) -> float:
    """Share of native's distance from "without" that is covered; negative where the export leads away."""
    effect = (without - native).norm().clamp(min=torch.finfo(torch.float32).tiny)
    return 1 - float((export - native).norm() / effect)
