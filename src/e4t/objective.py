"""The loss of both stages. START READING HERE.

Encoder-based domain tuning (Gal et al. 2023, arXiv 2302.12228): one image I of a concept becomes the word
``v* = v_class + s · E(I, z_t, t)``, predicted anew at every noise level, and the denoiser's attention weights are
shifted a little so that it reads such words. Pre-training and personalization minimise the same two terms, to which the
second can add one on pictures of the class; they differ in data, prompts and what is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from e4t.config import PersonalizeConfig, PretrainConfig
from e4t.model import E4TModel
from e4t.models.text import Tokens


@dataclass(frozen=True)
class Prior:
    """Pictures of the class and captions without a placeholder: what the model is not to forget."""

    latents: Tensor  # [P, C, h, w]
    noise: Tensor  # as latents
    timesteps: Tensor  # [P]
    tokens: Tokens  # P rows

    def rows(self, start: int, count: int) -> Prior:
        part = slice(start, start + count)
        return Prior(self.latents[part], self.noise[part], self.timesteps[part], self.tokens[part])


@dataclass(frozen=True)
class Batch:
    """Pictures, what is known of them, and the noise to take off again."""

    latents: Tensor  # x [B, C, h, w]
    noise: Tensor  # ε, as latents
    timesteps: Tensor  # t [B]
    tokens: Tokens  # neutral prompts with the placeholder, B rows
    image_features: Sequence[Tensor]  # [CLS] of CLIP layers, [B or 1, width] each
    mask: Tensor | None = None  # where the loss counts, [B or 1, 1, h, w] in [0, 1]
    prior: Prior | None = None
    share_of_error: float = 1.0  # of a part of a batch: what its mean error weighs in the batch's
    share_of_rows: float = 1.0  # the same of everything else

    def split(self, size: int | None, *, scale: float = 1.0) -> list[Batch]:
        """Parts of ``size`` rows at most, whose losses add up to ``scale`` times the batch's. None: one part.

        The mean error of a part counts by how much mask there is in it, all other means by rows.
        """
        rows = len(self.latents)
        if size is None or size >= rows:
            return [replace(self, share_of_error=scale, share_of_rows=scale)]
        masked = self.mask is not None and bool(self.mask.any())
        mask = self.mask.expand(rows, -1, -1, -1) if self.mask is not None and masked else None
        weights = mask.float().sum(dim=(1, 2, 3)) if mask is not None else torch.ones(rows)
        shares = [float(part.sum() / weights.sum()) for part in torch.split(weights, size)]
        return [
            replace(
                self,
                latents=self.latents[at : at + size],
                noise=self.noise[at : at + size],
                timesteps=self.timesteps[at : at + size],
                tokens=self.tokens[at : at + size],
                image_features=[f if len(f) == 1 else f[at : at + size] for f in self.image_features],
                mask=mask[at : at + size] if mask is not None else None,
                prior=self.prior.rows(at, size) if self.prior is not None else None,
                share_of_error=scale * share,
                share_of_rows=scale * min(size, rows - at) / rows,
            )
            for at, share in zip(range(0, rows, size), shares, strict=True)
        ]


@dataclass(frozen=True)
class Loss:
    """Means over the batch; of a part of one, its share of them.

    ``embedding_ratio`` is ‖s E‖ / ‖v_class‖: healthy is 0.2 to 2.
    """

    total: Tensor
    diffusion: Tensor
    regularizer: Tensor
    embedding_ratio: Tensor


class E4TObjective(nn.Module):
    """Noise-prediction loss plus a penalty on how far the word moves from its class.

    Of the settings of a stage it reads ``regularisation``, which is λ; ``regularisation_reduction``, whether ‖E‖² is
    summed or averaged over the embedding's dimensions; ``regularisation_anchor``: with "nearest" the penalty is on the
    word's distance from the nearest one of the vocabulary, in units of E (after Arar et al. 2023, arXiv 2307.06925);
    and ``prior_weight``, of the loss on a batch's pictures of the class, if it has any: prior preservation of
    DreamBooth (arXiv 2208.12242, section 3.3).
    """

    def __init__(self, model: E4TModel, config: PretrainConfig | PersonalizeConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def forward(self, batch: Batch) -> Loss:
        model, backbone = self.model, self.model.backbone
        noisy = backbone.add_noise(batch.latents, batch.noise, batch.timesteps)  # z_t
        image_half = model.encoder.image_half(batch.image_features)
        offset = model.offset(noisy, batch.timesteps, image_half)  # E(I, z_t, t) [B, D]
        word = model.word(offset)  # v* [B, D]
        prediction = model.denoise(noisy, batch.timesteps, model.prompt_embeds(batch.tokens, word))

        target = backbone.target(batch.latents, batch.noise, batch.timesteps)
        diffusion = batch.share_of_error * masked_mean((prediction - target) ** 2, batch.mask)
        moved = self._from_anchor(offset, word)  # E alone, unless asked otherwise
        regularizer = self.config.regularisation * self._squared_norm(moved).mean()  # a mean over the batch
        regularizer = batch.share_of_rows * regularizer
        total = diffusion + regularizer
        if batch.prior is not None and isinstance(self.config, PersonalizeConfig):
            total = total + batch.share_of_rows * self.config.prior_weight * self._forgotten(batch.prior)
        return Loss(total, diffusion.detach(), regularizer.detach(), batch.share_of_rows * self._ratio(offset))

    def _from_anchor(self, offset: Tensor, word: Tensor) -> Tensor:
        """How far the word is from what it is held to, in units of E: from its class that is E itself."""
        if self.config.regularisation_anchor == "class":
            return offset
        nearest = self.model.nearest_word(word)
        return offset - (nearest - self.model.class_embedding) / self.model.embedding_scale

    def _forgotten(self, prior: Prior) -> Tensor:
        """The denoising loss on pictures of the class."""
        model, backbone = self.model, self.model.backbone
        noisy = backbone.add_noise(prior.latents, prior.noise, prior.timesteps)
        prediction = model.denoise(noisy, prior.timesteps, model.prompt_embeds(prior.tokens))
        target = backbone.target(prior.latents, prior.noise, prior.timesteps)
        return masked_mean((prediction - target) ** 2, None)

    def _squared_norm(self, offset: Tensor) -> Tensor:
        squares = offset.float() ** 2
        return squares.sum(dim=-1) if self.config.regularisation_reduction == "sum" else squares.mean(dim=-1)

    @torch.no_grad()
    def _ratio(self, offset: Tensor) -> Tensor:
        moved = self.model.embedding_scale * offset.float().norm(dim=-1)
        ratio: Tensor = (moved / self.model.class_embedding.norm()).mean()
        return ratio


def masked_mean(error: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of [B, C, h, w] where the mask is on; of everything without a mask, or with an empty one."""
    if mask is None or not mask.any():
        return error.mean()
    weights = mask.to(error.dtype).expand_as(error)
    return (error * weights).sum() / weights.sum()
