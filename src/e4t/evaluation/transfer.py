"""What a concept is worth on other drawings of its individual, without sampling and without a judge.

The world draws an individual again for every prompt, and the model that wears the concept denoises those drawings.
Pictures that are sampled and judged are right or wrong, so that many are needed to tell two settings apart; this loss
has the same noise and timesteps for all settings and tells them apart on a handful of individuals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from e4t.checkpoint import Concept
from e4t.evaluation.evaluate import Attributes, prompt_text, prompted
from e4t.evaluation.judge import RESOLUTION
from e4t.pipeline import E4TPipeline
from e4t.tiny.pictures import to_pixels
from e4t.tiny.world import Identity, draw

TIMESTEPS = (300, 550, 650, 750, 850, 950)
"""Out of 1,000: mostly where the text decides."""


@dataclass(frozen=True)
class OtherDrawings:
    """The world's drawings of individuals for the same prompts, none of them the one a concept was learned from."""

    pipe: E4TPipeline
    texts: list[str]
    latents: list[Tensor]  # of each individual, [prompts, C, h, w]

    @classmethod
    def of(cls, pipe: E4TPipeline, subjects: Sequence[Identity], prompts: Sequence[Attributes]) -> OtherDrawings:
        texts = [prompt_text(subjects[0], attributes, pipe.domain.placeholder) for attributes in prompts]
        rgb = [np.stack([draw(prompted(one, a), RESOLUTION).rgb for a in prompts]) for one in subjects]
        return cls(pipe, texts, [pipe.backbone.encode(to_pixels(pictures)) for pictures in rgb])

    @torch.no_grad()
    def loss(self, number: int, concept: Concept | None) -> float:
        """Mean loss on the drawings of individual ``number``; without a concept, of the base under the class word.

        The concept has to be worn.
        """
        model, backbone, latents = self.pipe.model, self.pipe.backbone, self.latents[number]
        tokens, losses = model.tokens(self.texts), []
        for timestep in TIMESTEPS:
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(timestep)).to(latents)
            t = torch.full((len(latents),), timestep, device=latents.device)
            noisy = backbone.add_noise(latents, noise, t)
            half = None if concept is None else concept.tensors["image_half"][None].to(latents)
            word = None if half is None else model.word(model.offset(noisy, t, half))
            predicted = model.denoise(noisy, t, model.prompt_embeds(tokens, word))
            losses.append(F.mse_loss(predicted, backbone.target(latents, noise, t)))
        return float(torch.stack(losses).mean())

    @cached_property
    def bare(self) -> float:
        """Sum of the losses under the bare class word, the same for whatever is compared with it."""
        return sum(self.loss(number, None) for number in range(len(self.latents)))

    def gains(self, concepts: Sequence[Concept]) -> dict[str, float]:
        """Relative drops of the loss under each individual's own concept.

        ``over_class_word``: from the bare class word; it falls when the picture is learned by heart. ``over_another``:
        from the concept of another individual; what of the individual was learned at all. Needs two individuals.
        """
        count, own, others = len(self.latents), 0.0, 0.0
        for number, concept in enumerate(concepts):
            with self.pipe.model.wearing(concept):
                own += self.loss(number, concept)
                others += self.loss((number + 1) % count, concept)
        return {"over_class_word": 1 - own / self.bare, "over_another": 1 - own / others}
