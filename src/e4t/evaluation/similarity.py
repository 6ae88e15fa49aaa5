"""CLIP-T and CLIP-I: how near pictures are to a text and to a picture, in the eyes of one CLIP.

Shapes: n pictures or texts, W the width of CLIP's common space; all vectors are of length 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from typing_extensions import Self

from e4t.backbone import fingerprint_of, resolve
from e4t.errors import ConfigError
from e4t.tiny.architecture import load_clip

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Clip:
    """A whole CLIP with its tokenizer."""

    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, source: str | Path) -> Self:
        """A transformers CLIP, by folder or hub id, or the one in a drawn world's base.

        Raises ConfigError for a base that has none: Stable Diffusion comes without CLIP's projections.
        """
        from transformers import CLIPModel, CLIPTokenizer

        location = resolve(source)
        if (Path(location) / "image_encoder" / "projections.safetensors").is_file():
            tokenizer = CLIPTokenizer.from_pretrained(location, subfolder="tokenizer")
            return cls(load_clip(Path(location)), tokenizer)
        try:
            model = CLIPModel.from_pretrained(location, use_safetensors=True).eval()
            return cls(model, CLIPTokenizer.from_pretrained(location))
        except (OSError, ValueError) as error:
            raise ConfigError(f"'{source}' holds no whole CLIP; name one with --clip: {error}") from error

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the weights."""
        return fingerprint_of(self.model)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """``[n, W]``."""
        limit = self.model.config.text_config.max_position_embeddings
        read = self.tokenizer(list(texts), padding="max_length", truncation=True, max_length=limit, return_tensors="pt")
        pooled = self.model.text_model(**read).pooler_output
        return _normalised(self.model.text_projection(pooled))

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """``[n, W]``, of pictures of any one size."""
        size = self.model.config.vision_config.image_size
        rgb = np.stack([np.asarray(image.convert("RGB"), np.float32) for image in images])
        pixels = torch.from_numpy(rgb).permute(0, 3, 1, 2) / 255
        if pixels.shape[-2:] != (size, size):
            pixels = F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
        pooled = self.model.vision_model((pixels - mean) / std).pooler_output
        return _normalised(self.model.visual_projection(pooled))


def _normalised(vectors: torch.Tensor) -> np.ndarray:
    return np.asarray(F.normalize(vectors.float(), dim=-1).cpu().numpy())
