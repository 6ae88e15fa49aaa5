"""Domains and concepts, and their folders.

A concept stores only what differs from its domain, and names the domain and base weights it belongs to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from e4t.cards import concept_card, domain_card
from e4t.config import BaseConfig, EncoderConfig, GenerateConfig, OffsetsConfig, PersonalizeConfig, PretrainConfig
from e4t.domain import Domain
from e4t.errors import CheckpointError, MismatchError
from e4t.images import MAX_PREVIEW_BYTES, preview
from e4t.saved import PREVIEW, group, read_saved, typed, write_saved

_VECTORS = ("image_half", "bias", "residual", "frozen_offset")
_GROUPS = {
    "domain": ("encoder", "offsets"),
    "concept": ("deltas", "encoder", "unet", "unet_vectors", "text_encoder", "replay"),
}
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_SECTIONS = ("pretrain", "training", "personalize", "generate")  # of a domain's config


@dataclass(frozen=True)
class BaseModel:
    """Which base a folder belongs to: where it was loaded from, which weights it had, and how it was read."""

    name: str
    fingerprint: str
    image_encoder: str | None = None  # None: the one inside the base's folder
    image_encoder_fingerprint: str | None = None  # None in folders from before it was recorded
    reading: BaseConfig = field(default_factory=BaseConfig)

    @classmethod
    def of(cls, backbone: Any) -> BaseModel:
        """What folders record of an `e4t.backbone.Backbone`."""
        return cls(
            backbone.name,
            backbone.fingerprint,
            backbone.image_encoder_name,
            backbone.image_encoder_fingerprint,
            backbone.reading,
        )

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "reading": self.reading.given()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BaseModel:
        seen = {"image_encoder_fingerprint": None, "reading": {}, **values}
        return cls(
            typed(values, "name", str),
            typed(values, "fingerprint", str),
            typed(values, "image_encoder", str | None),
            typed(seen, "image_encoder_fingerprint", str | None),
            BaseConfig.from_dict(typed(seen, "reading", dict)),
        )

    def check(self, other: BaseModel, *, owner: str, eyes: bool = False) -> None:
        """Raise MismatchError, with both names, where the weights differ from those that are loaded, ``other``.

        With ``eyes``, also where the image encoder's do, if they were recorded.
        """
        if self.fingerprint != other.fingerprint:
            raise MismatchError(
                f"{owner} was made for the base model '{self.name}' ({self.fingerprint}), "
                f"but '{other.name}' ({other.fingerprint}) is loaded"
            )
        made, loaded = self.image_encoder_fingerprint, other.image_encoder_fingerprint
        if eyes and made is not None and made != loaded:
            raise MismatchError(
                f"{owner} was made for the image encoder of '{self.image_encoder or self.name}' ({made}), "
                f"but that of '{other.image_encoder or other.name}' ({loaded}) is loaded"
            )


@dataclass(frozen=True)
class TrainedDomain:
    """A pre-trained domain: the encoder's heads and the weight offsets.

    ``personalize`` and ``generate`` are the settings measured for it; they override the package's defaults.
    ``tensors``: ``encoder/<parameter>``, ``offsets/left`` and ``offsets/right`` (`WeightOffsets.domain_state`).
    """

    domain: Domain
    base: BaseModel
    encoder: EncoderConfig
    offsets: OffsetsConfig
    embedding_scale: float
    tensors: Mapping[str, Tensor] = field(repr=False)
    pretrain: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)  # what happened: data, first losses
    personalize: Mapping[str, Any] = field(default_factory=dict)
    generate: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Identifies the weights, whatever floating-point type they were saved in."""
        return _digest(self.tensors)

    @property
    def had_captions(self) -> bool:
        """Whether pre-training was told what pictures show; tuning then learns best if it is told, too."""
        return bool(self.pretrain.get("caption_share"))

    @property
    def personalize_config(self) -> PersonalizeConfig:
        return PersonalizeConfig.from_dict(self.personalize)

    @property
    def generate_config(self) -> GenerateConfig:
        return GenerateConfig.from_dict(self.generate)

    def save(self, folder: str | Path, *, dtype: str = "float32") -> Path:
        config = {
            "kind": "domain",
            "id": _digest(_cast(self.tensors, dtype)),
            "domain": self.domain.to_dict(),
            "base": self.base.to_dict(),
            "embedding_scale": self.embedding_scale,
            "encoder": self.encoder.to_dict(),
            "offsets": self.offsets.to_dict(),
            **{name: dict(getattr(self, name)) for name in _SECTIONS},
        }
        card = domain_card(self.domain, self.base.name, self.pretrain.get("steps", "?"))
        return write_saved(Path(folder), config, _cast(self.tensors, dtype), card)

    @classmethod
    def load(cls, folder: str | Path) -> TrainedDomain:
        with read_saved(Path(folder), "domain") as (config, tensors):
            trained = cls(
                domain=Domain.from_dict(config["domain"]),
                base=BaseModel.from_dict(config["base"]),
                encoder=EncoderConfig.from_dict(config["encoder"]),
                offsets=OffsetsConfig.from_dict(config["offsets"]),
                embedding_scale=typed(config, "embedding_scale", float),
                tensors=_numbers(tensors, "domain"),
                **{name: typed(config, name, dict) for name in _SECTIONS},
            )
            PretrainConfig.from_dict(trained.pretrain)
            _ = trained.personalize_config, trained.generate_config
            return trained


@dataclass(frozen=True)
class Concept:
    """One personalized concept: what differs from its domain.

    ``tensors``: ``image_half`` [D] (the image side of the encoder, once and for all), ``bias`` [D], ``residual`` [D],
    ``frozen_offset`` [D] (mean E over timesteps), and as tuned ``deltas/…`` (`WeightOffsets.concept_state`),
    ``encoder/…``, ``unet/…`` and ``text_encoder/…`` (differences by parameter name), ``unet_vectors/value`` (the same
    in one vector). One that is kept as a replay has ``replay/latents``, ``replay/image_features`` and ``replay/mask``
    instead, once it is loaded: see `to_be_replayed`.
    ``history`` holds the concept after every step, 0 first, where it was asked for; it is not saved.
    """

    domain: Domain
    domain_id: str | None  # None: made without a pre-trained domain
    base: BaseModel
    steps: int
    tensors: Mapping[str, Tensor] = field(repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)  # digests of image and mask, versions
    preview: bytes | None = field(default=None, repr=False)  # a small JPEG of what it draws
    history: tuple[Concept, ...] = field(default=(), repr=False)

    @property
    def num_bytes(self) -> int:
        """Size of the weights as saved."""
        return sum(tensor.numel() * tensor.dtype.itemsize for tensor in self._stored().values())

    @property
    def to_be_replayed(self) -> bool:
        """Whether this holds only what tuning starts from; `e4t.personalize.replayed` repeats it."""
        return "image_half" not in self.tensors

    def group(self, name: str) -> dict[str, Tensor]:
        """The tensors under ``name/``, without the prefix."""
        return group(self.tensors, name)

    def check(self, domain: Domain, domain_id: str | None) -> None:
        """Raise MismatchError, with both names, if this concept is of another domain."""
        other_word = domain_id is None and self.domain.class_word != domain.class_word  # all there is to compare
        if self.domain_id != domain_id or other_word:
            both = ((self.domain, self.domain_id), (domain, domain_id))
            mine, other = (f"'{d.name}' ({i or 'not pre-trained'})" for d, i in both)
            raise MismatchError(f"the concept was made in the domain {mine}, but {other} is loaded")

    def save(self, folder: str | Path) -> Path:
        """Write a folder that, with its domain, is all that sampling needs."""
        config = {
            "kind": "concept",
            "domain": self.domain.to_dict(),
            "domain_id": self.domain_id,
            "base": self.base.to_dict(),
            "steps": self.steps,
            "personalize": dict(self.config),
            "provenance": dict(self.provenance),
        }
        files = {PREVIEW: self.preview} if self.preview else {}
        card = concept_card(
            self.domain,
            self.domain_id,
            self.base.name,
            steps=self.steps,
            preview=next(iter(files), None),
            replay=PersonalizeConfig.from_dict(self.config).keep == "replay",
        )
        return write_saved(Path(folder), config, self._stored(), card, files)

    @classmethod
    def load(cls, folder: str | Path) -> Concept:
        with read_saved(Path(folder), "concept") as (config, tensors):
            concept = cls(
                domain=Domain.from_dict(config["domain"]),
                domain_id=typed(config, "domain_id", str | None),
                base=BaseModel.from_dict(config["base"]),
                steps=typed(config, "steps", int),
                tensors=_numbers(tensors, "concept"),
                config=typed(config, "personalize", dict),
                provenance=typed(config, "provenance", dict),
                preview=_read_preview(Path(folder) / PREVIEW),
            )
            PersonalizeConfig.from_dict(concept.config)
        if "replay/latents" in tensors and all(name.startswith("replay/") for name in tensors):
            return concept
        lengths = {tuple(tensors[name].shape) if name in tensors else None for name in _VECTORS}
        if len(lengths) != 1 or len(lengths.pop() or ()) != 1:
            raise CheckpointError(f"'{folder}' needs the vectors {', '.join(_VECTORS)}, all of one length")
        return concept

    def _stored(self) -> dict[str, Tensor]:
        """The tensors as a folder holds them: those of a replay alone, if that is what is kept."""
        config = PersonalizeConfig.from_dict(self.config)
        if config.keep == "replay":
            return {name: tensor.half() for name, tensor in self.tensors.items() if name.startswith("replay/")}
        return _cast(self.tensors, config.save_dtype)

    def differences(self, other: Concept) -> dict[str, float]:
        """Tensors that are not stored bit for bit alike: name to largest difference, as a share of the largest value.

        One that only one of the two has differs by infinity.
        """
        mine, others = self._stored(), other._stored()
        found = {name: float("inf") for name in mine.keys() ^ others.keys()}
        for name in mine.keys() & others.keys():
            one, two = mine[name], others[name]
            if one.shape != two.shape:
                found[name] = float("inf")
            elif not torch.equal(one, two):
                found[name] = float((one.float() - two.float()).abs().max() / one.float().abs().max().clamp(min=1e-30))
        return found

    def with_preview(self, image: Image.Image) -> Concept:
        """With a picture to be shown in the model card, in galleries, and by programs that read exports."""
        return replace(self, preview=preview(image))


def _numbers(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors as float32. Raises ValueError for a foreign name, a type that is not float, and a NaN or infinity."""
    for name, tensor in tensors.items():
        vector = kind == "concept" and name in _VECTORS
        if not vector and name.split("/")[0] not in _GROUPS[kind]:
            raise ValueError(f"a {kind} has no tensor called {name[:60]!r}")
        if tensor.dtype not in _FLOATS:
            raise ValueError(f"tensor {name!r} is of type {tensor.dtype}, not a float of 16 bits or more")
        if not tensor.isfinite().all():
            raise ValueError(f"tensor {name!r} holds values that are no numbers")
    return {name: tensor.float() for name, tensor in tensors.items()}


def _read_preview(path: Path) -> bytes | None:
    """A concept's preview, if there is one and it is what one should be; it is for looking at, so never an error."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PREVIEW_BYTES + 1)
    except OSError:
        return None
    return data if data.startswith(b"\xff\xd8\xff") and len(data) <= MAX_PREVIEW_BYTES else None


def _cast(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().to(getattr(torch, dtype)).contiguous() for name, tensor in tensors.items()}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash that a round trip through float16 does not change."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
