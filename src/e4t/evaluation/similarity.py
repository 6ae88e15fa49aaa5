"""How near pictures are to a text and to a picture, in the eyes of one CLIP (CLIP-T, CLIP-I) or of a face recogniser.

Shapes: n pictures or texts, W the width of CLIP's common space; CLIP's vectors are of length 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from typing_extensions import Self

from e4t.backbone import fingerprint_of
from e4t.errors import ConfigError, install_extra
from e4t.shipped import resolve
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


SAME_FACE = 0.6
"""Below this distance dlib's recogniser takes two faces for one person's, as its documentation has it."""


@dataclass(frozen=True)
class Faces:
    """dlib's face recogniser, of photos; weights in the public domain (CC0), from PyPI's face_recognition_models."""

    detect: Any
    place: Any
    recognise: Any

    @classmethod
    def load(cls) -> Self:
        """Raises ConfigError where the extra is not installed."""
        weights = find_spec("face_recognition_models")
        if find_spec("dlib") is None or weights is None or weights.origin is None:
            raise ConfigError(f"telling faces apart needs dlib: {install_extra('faces')}")
        import dlib

        folder = Path(weights.origin).parent / "models"  # not imported: it asks for the long gone pkg_resources
        return cls(
            dlib.get_frontal_face_detector(),
            dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat")),
            dlib.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat")),
        )

    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """``[n, 128]``, of the largest face in each picture; not a number where none is found."""
        return np.stack([self._largest(np.asarray(image.convert("RGB"))) for image in images])

    def _largest(self, rgb: np.ndarray) -> np.ndarray:
        found = self.detect(rgb, 1)  # looked for at twice the size
        if not found:
            return np.full(128, np.nan)
        shape = self.place(rgb, max(found, key=lambda rectangle: rectangle.area()))
        return np.array(self.recognise.compute_face_descriptor(rgb, shape, 1))


def same_face(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether vectors of `Faces`, ``[..., 128]``, are one person's; nobody is the same as no face, bool ``[...]``."""
    return np.asarray(np.linalg.norm(one - other, axis=-1) < SAME_FACE)


def _normalised(vectors: torch.Tensor) -> np.ndarray:
    return np.asarray(F.normalize(vectors.float(), dim=-1).cpu().numpy())
