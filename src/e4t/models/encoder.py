"""The concept encoder: image and denoiser features → an offset E in the space of word embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from e4t.config import EncoderConfig


class ConceptEncoder(nn.Module):
    """One linear per feature, average over the hierarchy, LeakyReLU (paper, section on the encoder).

    Features are the [CLS] of every second CLIP layer and the pooled blocks of the U-Net's encoder half. The average
    splits into a half that depends on the image alone and one that changes with the noisy latent: for a fixed image the
    first is one constant vector (`image_half`), so CLIP need not run again.

    ``bias`` (before the LeakyReLU) and ``residual`` (after everything) are a concept's own vectors, zero in a domain.
    """

    def __init__(
        self, *, image_widths: Sequence[int], unet_widths: Sequence[int], embedding_dim: int, config: EncoderConfig
    ) -> None:
        super().__init__()
        self.config = config
        self.embedding_dim = embedding_dim
        self.image_linears = nn.ModuleList(nn.Linear(width, embedding_dim) for width in image_widths)
        self.unet_linears = nn.ModuleList(nn.Linear(width, embedding_dim) for width in unet_widths)
        self.count = max(1, len(self.image_linears) + len(self.unet_linears))
        self.head = self._build_head() if config.head == "linear" else None
        self.bias = nn.Parameter(torch.zeros(embedding_dim))
        self.residual = nn.Parameter(torch.zeros(embedding_dim))

    def _build_head(self) -> nn.Linear:
        head = nn.Linear(self.embedding_dim, self.embedding_dim)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.mul_(self.config.head_gain)
        return head

    def heads(self) -> dict[str, nn.Parameter]:
        """What a domain trains: every parameter but the concept's own two vectors."""
        own = {id(self.bias), id(self.residual)}
        return {name: parameter for name, parameter in self.named_parameters() if id(parameter) not in own}

    def image_half(self, features: Sequence[Tensor]) -> Tensor:
        """[CLS] features, [B, width] each → their share of the average, [B, embedding_dim]."""
        return self._share(self.image_linears, features)

    def forward(self, image_half: Tensor, unet_features: Sequence[Tensor]) -> Tensor:
        """image_half [B or 1, embedding_dim], unet_features [B, width] each → E [B, embedding_dim], before scaling."""
        pooled = image_half + self._share(self.unet_linears, unet_features) + self.bias
        offset = F.leaky_relu(pooled, self.config.negative_slope)
        if self.head is not None:
            offset = self.head(offset)
        return offset + self.residual

    def _share(self, linears: nn.ModuleList, features: Sequence[Tensor]) -> Tensor:
        total = self.residual.new_zeros(1, self.embedding_dim)
        for linear, feature in zip(linears, features, strict=True):
            total = total + linear(self._prepared(feature))
        return total / self.count

    def _prepared(self, feature: Tensor) -> Tensor:
        feature = feature.float()
        return F.layer_norm(feature, feature.shape[-1:]) if self.config.normalize else feature
