"""Domain and concept folders: safetensors, config.json and a model card; never a pickle.

A folder is written beside its place and then renamed (`e4t.writing`), over none but one of its own kind, whose other
files stay. A concept stores only what differs from its domain, and names the domain and base weights it belongs to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from e4t.config import BaseConfig, EncoderConfig, GenerateConfig, OffsetsConfig, PersonalizeConfig, PretrainConfig, fits
from e4t.domain import Domain
from e4t.errors import CheckpointError, ConfigError, MismatchError
from e4t.images import MAX_PREVIEW_BYTES, preview
from e4t.provenance import public_name
from e4t.sources import read_json
from e4t.writing import new_folder, replaceable, require_room

FORMAT_VERSION = 1
_CONFIG = "config.json"
_SEAL = "weights_sha256"
_PREVIEW = "preview.jpg"
_CARD = "README.md"
_OWN = (_CONFIG, _CARD, _PREVIEW, "domain.txt")  # files of a folder, beside its weights; the last is the command line's
_VECTORS = ("image_half", "bias", "residual", "frozen_offset")
_GROUPS = {
    "domain": ("encoder", "offsets"),
    "concept": ("deltas", "encoder", "unet", "unet_vectors", "text_encoder", "replay"),
}
_KINDS = (*_GROUPS, "training")
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


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
            _typed(values, "name", str),
            _typed(values, "fingerprint", str),
            _typed(values, "image_encoder", str | None),
            _typed(seen, "image_encoder_fingerprint", str | None),
            BaseConfig.from_dict(_typed(seen, "reading", dict)),
        )

    def check(self, other: BaseModel, *, owner: str) -> None:
        """Raise MismatchError, with both names, where the weights differ from those that are loaded, ``other``."""
        if self.fingerprint != other.fingerprint:
            raise MismatchError(
                f"{owner} was made for the base model '{self.name}' ({self.fingerprint}), "
                f"but '{other.name}' ({other.fingerprint}) is loaded"
            )

    def check_image_encoder(self, other: BaseModel, *, owner: str) -> None:
        """The same of the image encoder, where its weights were recorded."""
        made, loaded = self.image_encoder_fingerprint, other.image_encoder_fingerprint
        if made is not None and made != loaded:
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
            "pretrain": dict(self.pretrain),
            "training": dict(self.training),
            "personalize": dict(self.personalize),
            "generate": dict(self.generate),
        }
        return _write(Path(folder), config, _cast(self.tensors, dtype), _domain_card(self))

    @classmethod
    def load(cls, folder: str | Path) -> TrainedDomain:
        config, tensors = _read(Path(folder), "domain")
        with _reading_config(folder):
            trained = cls(
                domain=Domain.from_dict(config["domain"]),
                base=BaseModel.from_dict(config["base"]),
                encoder=EncoderConfig.from_dict(config["encoder"]),
                offsets=OffsetsConfig.from_dict(config["offsets"]),
                embedding_scale=_typed(config, "embedding_scale", float),
                tensors=_numbers(tensors, "domain"),
                pretrain=_typed(config, "pretrain", dict),
                training=_typed(config, "training", dict),
                personalize=_typed(config, "personalize", dict),
                generate=_typed(config, "generate", dict),
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
        files = {_PREVIEW: self.preview} if self.preview else {}
        return _write(Path(folder), config, self._stored(), _concept_card(self), files)

    @classmethod
    def load(cls, folder: str | Path) -> Concept:
        config, tensors = _read(Path(folder), "concept")
        with _reading_config(folder):
            concept = cls(
                domain=Domain.from_dict(config["domain"]),
                domain_id=_typed(config, "domain_id", str | None),
                base=BaseModel.from_dict(config["base"]),
                steps=_typed(config, "steps", int),
                tensors=_numbers(tensors, "concept"),
                config=_typed(config, "personalize", dict),
                provenance=_typed(config, "provenance", dict),
                preview=_read_preview(Path(folder) / _PREVIEW),
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


@dataclass(frozen=True)
class TrainingState:
    """Everything needed to go on training exactly where it stopped; random numbers follow from the step."""

    step: int
    arguments: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(repr=False)

    def save(self, folder: str | Path) -> Path:
        config = {"kind": "training", "step": self.step, "arguments": dict(self.arguments)}
        return _write(Path(folder), config, dict(self.tensors), "State of an unfinished training; safe to delete.\n")

    @classmethod
    def load(cls, folder: str | Path) -> TrainingState:
        config, tensors = _read(Path(folder), "training")
        with _reading_config(folder):
            return cls(_typed(config, "step", int), _typed(config, "arguments", dict), tensors)

    def group(self, name: str) -> dict[str, Tensor]:
        return group(self.tensors, name)


def group(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors under ``name/``, without the prefix."""
    prefix = f"{name}/"
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def prefixed(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}/{key}": tensor.detach().cpu() for key, tensor in tensors.items()}


@contextmanager
def _reading_config(folder: str | Path) -> Iterator[None]:
    """Turns what a hand-edited or broken config raises into one sentence."""
    try:
        yield
    except KeyError as error:
        raise CheckpointError(f"'{Path(folder) / _CONFIG}' has no {error}; save or download it anew") from error
    except (TypeError, ValueError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"'{Path(folder) / _CONFIG}' is incomplete or broken: {error}") from error


def _typed(config: Mapping[str, Any], name: str, hint: Any) -> Any:
    """A value of a config. Raises KeyError where it is missing and ValueError where it is of another type."""
    value = config[name]
    if not fits(value, hint):
        raise ValueError(f"{name!r} is not of type {getattr(hint, '__name__', hint)}")
    return value


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


def require_place(folder: str | Path, kind: str = "domain") -> None:
    """Raise CheckpointError where no ``kind`` of folder can be written, before hours are spent on what it holds."""
    folder = Path(folder)
    whole = replaceable(folder)
    require_room(whole.parent)
    _require_own(whole, folder, kind)


def _require_own(whole: Path, folder: Path, kind: str) -> None:
    """Nothing, an empty folder or one of the same kind may be written over; ``folder`` is for the message."""
    if not whole.exists() or (whole.is_dir() and not any(whole.iterdir())):
        return
    found = read_json(whole / _CONFIG).get("kind") if (whole / _CONFIG).is_file() else None
    if found != kind:
        other = f": it is a {found} folder" if found in _KINDS else ""
        raise CheckpointError(f"'{folder}' exists and is no {kind} folder{other}; choose another place")


def _write(
    folder: Path,
    config: Mapping[str, Any],
    tensors: dict[str, Tensor],
    card: str,
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> Path:
    kind = config["kind"]
    weights = f"{kind}.safetensors"
    _require_own(replaceable(folder), folder, kind)
    with new_folder(folder, own=(weights, *_OWN)) as new:
        save_file(tensors, new / weights, metadata={"format": "pt"})
        text = json.dumps({"format_version": FORMAT_VERSION, **config, _SEAL: _sha256(new / weights)}, indent=2) + "\n"
        (new / _CONFIG).write_text(text, encoding="utf-8")
        (new / _CARD).write_text(card, encoding="utf-8")
        for name, data in files.items():
            (new / name).write_bytes(data)
    return folder


def _read(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not folder.exists():
        hints = {
            "domain": "; 'e4t info' lists what is shipped",
            "concept": "; 'e4t personalize DOMAIN IMAGE --output FOLDER' makes one",
        }
        raise CheckpointError(f"there is no {kind} folder '{folder}'{hints.get(kind, '')}")
    if not (folder / _CONFIG).is_file():
        raise CheckpointError(f"'{folder}' is no {kind} folder: it has no {_CONFIG}")
    config = read_json(folder / _CONFIG)
    found, version = config.get("kind"), config.get("format_version")
    if found != kind:
        known = found if found in _KINDS else "foreign"
        raise CheckpointError(f"'{folder}' is a {known} folder, not a {kind} folder")
    if version != FORMAT_VERSION:
        raise CheckpointError(f"'{folder}' has format version {version!r:.20}; this package reads {FORMAT_VERSION}")
    weights = folder / f"{kind}.safetensors"
    try:
        if _SEAL in config and config[_SEAL] != _sha256(weights):
            raise CheckpointError(f"'{weights}' is not the file that was saved: damaged or changed; get it anew")
        return config, load_file(weights)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"'{weights}' cannot be read: {error}") from error


def _read_preview(path: Path) -> bytes | None:
    """A concept's preview, if there is one and it is what one should be; it is for looking at, so never an error."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PREVIEW_BYTES + 1)
    except OSError:
        return None
    return data if data.startswith(b"\xff\xd8\xff") and len(data) <= MAX_PREVIEW_BYTES else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _cast(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().to(getattr(torch, dtype)).contiguous() for name, tensor in tensors.items()}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash that a round trip through float16 does not change."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _domain_card(trained: TrainedDomain) -> str:
    domain, steps, base = trained.domain, trained.pretrain.get("steps", "?"), public_name(trained.base.name)
    return f"""---
base_model: {base}
library_name: e4t
tags: [text-to-image, diffusers, personalization, e4t]
---
# Domain “{domain.name}”

Encoder and weight offsets (encoder-based domain tuning, arXiv 2302.12228) for the base model `{base}`,
pre-trained for {steps} steps. One image becomes the word `{domain.placeholder}`:

```python
from e4t import E4TPipeline

pipe = E4TPipeline.from_pretrained("path/to/this/folder")
concept = pipe.personalize("image.png")
pipe("{domain.example}", concept=concept).images[0].save("drawn.png")
```

All settings are in `config.json`; its sections `personalize` and `generate` override the package's defaults.
"""


_REPLAY_WARNING = """> **This folder holds the picture itself**, as latents of the autoencoder: whoever has the folder
> can look at it. It keeps what tuning starts from instead of its result, and is tuned again when it is used.

"""


def _concept_card(concept: Concept) -> str:
    domain, base = concept.domain, public_name(concept.base.name)
    shown = f"![What it draws]({_PREVIEW})\n\n" if concept.preview else ""
    warning = _REPLAY_WARNING if PersonalizeConfig.from_dict(concept.config).keep == "replay" else ""
    needs, opened = f"its domain (`{concept.domain_id}`) and", 'from_pretrained("path/to/the/domain")'
    if concept.domain_id is None:
        needs, opened = "no domain, only", f'from_base("path/to/the/base", class_word="{domain.class_word}")'
    return f"""---
base_model: {base}
library_name: e4t
instance_prompt: {domain.placeholder}
tags: [text-to-image, diffusers, personalization, e4t]
---
# A concept of the domain “{domain.name}”

{shown}{warning}Learned from one image in {concept.steps} step{"s" * (concept.steps != 1)}. Needs {needs}
the base model `{base}`; say `{domain.placeholder}` in a prompt to draw it:

```python
from e4t import Concept, E4TPipeline

pipe = E4TPipeline.{opened}
concept = Concept.load("path/to/this/folder")
pipe("{domain.example}", concept=concept).images[0].save("drawn.png")
```
"""
