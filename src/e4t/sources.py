"""What the name of a base model stands for, and whether that is Stable Diffusion: read from names and headers alone.

A base is a diffusers folder, a hub id (once fetched, a folder in the Hub's cache), or one .safetensors file in the
layout of the original code, as web UIs spread them. Everything that can be wrong with it is said here in one sentence,
before gigabytes are read. Pickles are refused: they can run programs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from e4t.config import BaseConfig
from e4t.errors import CheckpointError, ConfigError

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
"""Parts with weights, and how their files are called."""

_MAX_CONFIG_BYTES = 4 * 2**20
_INDEX = "model_index.json"
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
"""What Stable Diffusion's parts are in ``model_index.json``; any scheduler will do."""

_CONFIGS = ("*.json", "*.txt", "**/*.json", "**/*.txt")
_LATENTS = "model.diffusion_model.input_blocks.0.0.weight"  # [320, channels, 3, 3]
_CROSS = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"  # [320, width of the text]
_ONE_FILE = {
    "U-Net": (_LATENTS,),
    "autoencoder": ("first_stage_model.decoder.conv_in.weight",),
    "text encoder": (
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
        "cond_stage_model.model.token_embedding.weight",  # Stable Diffusion 2.x: OpenCLIP's names
    ),
}
"""Parts of the original layout, and one of their tensors under each name it goes by."""

_WIDTHS = {768: 1, 1024: 2}
"""Of the text encoder's states: which major version of Stable Diffusion reads them."""


@dataclass(frozen=True)
class OneFile:
    """What the header of a single file says. ``version``: 1 or 2, None where the layout is given."""

    path: Path
    version: int | None
    prediction_type: str | None  # of its ModelSpec metadata


def locate(name: str, reading: BaseConfig, *, weights: bool = True) -> Path:
    """The folder or file that ``name`` stands for; what a hub id lacks here is fetched, if it is Stable Diffusion.

    Without ``weights``, only configs and tokenizer are fetched.

    Raises CheckpointError where there is nothing of that name or a pickle, and ConfigError for an option that cannot
    apply to what is there.
    """
    path = Path(name)
    if path.suffix.lower() in PICKLES:
        raise CheckpointError(
            f"'{name}' is a pickle, which can run programs when it is read; use the model in safetensors format"
        )
    if path.is_file():
        _refuse_options(f"'{name}' is a single file", reading, "revision", "variant")
        if path.suffix.lower() != ".safetensors":
            raise CheckpointError(f"'{name}' is not a model: a base is a folder, a hub id or a .safetensors file")
        return path
    if path.is_dir():
        _refuse_options(f"'{name}' is a folder", reading, "revision", "layout", "prediction_type")
        return path
    if path.suffix.lower() == ".safetensors":
        raise CheckpointError(f"there is no file '{name}'")
    _refuse_options(f"'{name}' is a hub id", reading, "layout", "prediction_type")
    return _fetched(name, reading) if weights else locate_layout(name, reading.revision)


def locate_layout(name: str, revision: str | None = None) -> Path:
    """The folder with configs and tokenizer that ``name`` stands for, weights or not. Raises CheckpointError.

    ``revision`` is one of a hub id.
    """
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(_CONFIGS)))
        except (OSError, ValueError) as error:
            raise _not_at_hand(name, error) from error
    check_layout(folder, name)
    return folder


def _refuse_options(what: str, reading: BaseConfig, *names: str) -> None:
    odd = [name for name in names if name in reading.given()]
    if odd:
        raise ConfigError(f"{what}, for which {odd[0]} has no meaning; leave --{odd[0].replace('_', '-')} out")


def _fetched(name: str, reading: BaseConfig) -> Path:
    """The folder of a hub id in the Hub's cache. Its index is read, and refused, before anything large is fetched."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import hf_hub_download

    try:
        index = Path(hf_hub_download(name, _INDEX, revision=reading.revision))
        _check_index(read_json(index), name)
        options = {"revision": reading.revision, "variant": reading.variant}
        return Path(DiffusionPipeline.download(name, use_safetensors=True, **options))
    except (OSError, ValueError) as error:
        raise _not_at_hand(name, error) from error


def _not_at_hand(name: str, error: Exception) -> CheckpointError:
    """One sentence for each way in which the Hub can fail to give a model."""
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        why = "no hub id either, which looks like owner/model"
    elif isinstance(error, errors.GatedRepoError):
        why = "its owner asks for consent: accept the terms on its page on the Hub and log in with 'hf auth login'"
    elif isinstance(error, errors.RevisionNotFoundError):
        why = "the Hub has no such revision of it"
    elif isinstance(error, errors.RepositoryNotFoundError):
        why = "the Hub has no model of that name that this account may see"
    elif isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        why = f"on the Hub it has no {_INDEX}, so it is no Stable Diffusion in diffusers' format"
    elif isinstance(error, ValueError) or (type(error) is OSError and error.__cause__ is None):
        why = str(error)  # the Hub answered: no file of the variant, or pickles alone
    else:
        why = "the Hub cannot be reached and its cache does not hold all of it: fetch it while online, or name a folder"
    return CheckpointError(f"'{name}' is no folder or file here, and {why}")


# Folders


def check_folder(
    folder: Path, name: str, variant: str | None, *, without: Collection[str] = ()
) -> dict[str, str | None]:
    """The variant to read of each part with weights, but those left out; None: its plain file.

    As in diffusers, a part without a file of the variant is read from its plain one. Raises CheckpointError unless the
    folder holds a whole Stable Diffusion in safetensors files that end where their headers say.
    """
    check_layout(folder, name)
    parts = {part: stem for part, stem in STEMS.items() if part not in without}
    found = {part: variant_of(folder / part, stem, name, variant) for part, stem in parts.items()}
    if variant not in found.values() and variant is not None:
        raise CheckpointError(f"'{name}' has no weights of variant '{variant}'; leave --variant out for the plain ones")
    return found


def check_layout(folder: Path, name: str) -> None:
    """Raises CheckpointError unless the folder has all of a Stable Diffusion but the weights."""
    _check_index(_index_of(folder, name), name)
    for file in (*(f"{part}/config.json" for part in STEMS), "scheduler/scheduler_config.json"):
        if not (folder / file).is_file():
            raise CheckpointError(f"'{name}' is incomplete: it has no {file}; save or download it anew")
        read_json(folder / file)
    if not any((folder / "tokenizer" / file).is_file() for file in ("vocab.json", "tokenizer.json")):
        raise CheckpointError(f"'{name}' is incomplete: it has no tokenizer/vocab.json; save or download it anew")


def _index_of(folder: Path, name: str) -> dict[str, Any]:
    if (folder / _INDEX).is_file():
        return read_json(folder / _INDEX)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    kinds = config.get("architectures") or [config.get("_class_name")]
    what = f": its config.json is of a {kinds[0]}" if isinstance(kinds, list) and kinds[0] else ""
    raise CheckpointError(f"'{name}' is not a Stable Diffusion folder, which has a {_INDEX}{what}")


def read_json(path: Path) -> dict[str, Any]:
    """Names and values of a config. Raises CheckpointError for anything else, and for what no config can be."""
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise CheckpointError(f"'{path}' has more than {_MAX_CONFIG_BYTES // 2**20} MB, which no config needs")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"'{path}' cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"'{path}' cannot be read: it holds no names and values")
    return values


def _check_index(index: Mapping[str, Any], name: str) -> None:
    """Raise CheckpointError unless the parts are those of Stable Diffusion 1.x and 2.x, and there are no others."""
    kind = index.get("_class_name", "model of an unknown kind")
    for part, classes in _CLASSES.items():
        found = _class_in(index, part)
        if found not in classes:
            lacks = f"its {part} is a {found}, not a {classes[0]}" if found else f"it has no {part}"
            raise CheckpointError(f"'{name}' is a {kind}, not a Stable Diffusion 1.x or 2.x: {lacks}")
    if _class_in(index, "text_encoder_2"):
        raise CheckpointError(f"'{name}' is a {kind}, not a Stable Diffusion 1.x or 2.x: it has a second text encoder")
    if not _class_in(index, "scheduler"):
        raise CheckpointError(f"'{name}' is incomplete: its {_INDEX} names no scheduler")


def _class_in(index: Mapping[str, Any], part: str) -> str | None:
    value = index.get(part)
    found = value[1] if isinstance(value, list) and len(value) == 2 else None
    return found if isinstance(found, str) else None


def variant_of(folder: Path, stem: str, name: str, variant: str | None) -> str | None:
    """Of those whose weights are in ``folder``: ``variant`` where it is there, else None for the plain ones."""
    files = {path.name for path in folder.iterdir()}
    for kind in dict.fromkeys((variant, None)):
        names = _weights(stem, kind) & files
        for file in sorted(names):
            _check_weights(folder / file)
        if names:
            return kind
    others = sorted({file.split(".")[1] for file in files if file.startswith(f"{stem}.") and file.count(".") == 2})
    if others and f"{stem}.{others[0]}.safetensors" in files:
        raise CheckpointError(f"'{name}' has weights of variant '{others[0]}' only: say --variant {others[0]}")
    if any(Path(file).suffix in PICKLES for file in files):
        raise CheckpointError(f"'{name}' has only a pickle as {folder.name}, which can run programs; use safetensors")
    raise CheckpointError(f"'{name}' is incomplete: {folder.name} has no weights, {stem}.safetensors")


def _weights(stem: str, variant: str | None) -> set[str]:
    """What the one file of weights is called, and the index of several."""
    middle = f".{variant}" if variant else ""
    return {f"{stem}{middle}.safetensors", f"{stem}.safetensors.index{middle}.json"}


def check_named(folder: Path) -> None:
    """Raises CheckpointError where an index of weights in a folder names anything but whole safetensors files there."""
    for index in sorted(folder.glob("*.safetensors.index*.json")):
        _check_weights(index)


def _check_weights(path: Path) -> None:
    """Raises CheckpointError for weights that are cut or no safetensors, also for any of those that an index names.

    The libraries read whatever an index names, pickles included. What else an index has to say is left to them.
    """
    if path.suffix == ".safetensors":
        with _opened(path):
            return
    named = read_json(path).get("weight_map", {})
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise CheckpointError(f"'{path}' is broken: its weight_map is no list of tensors and files; download it anew")
    for file in sorted(set(named.values())):
        if Path(file).suffix != ".safetensors" or re.search(r"[/\\]", file):
            raise CheckpointError(f"'{path}' names '{file:.60}', and may only name .safetensors files beside it")
        with _opened(path.with_name(file)):
            pass


# Single files


def check_file(path: Path, *, known_layout: bool) -> OneFile:
    """What the header of a single file says; no tensor is read.

    With a ``known_layout`` its shapes may be any. Raises CheckpointError for a cut file, and for anything but a whole
    Stable Diffusion 1.x or 2.x that draws from text alone.
    """
    with _opened(path) as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    _check_parts(shapes, path)
    version = None if known_layout else _version(shapes, path)
    kind = metadata.get("modelspec.prediction_type")  # "epsilon" or "v", says the specification
    return OneFile(path, version, {"epsilon": "epsilon", "v": "v_prediction"}.get(str(kind)))


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"'{path}' is cut, damaged or no safetensors file ({error}); download it anew") from error


def _check_parts(shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    present = [part for part, names in _ONE_FILE.items() if any(name in shapes for name in names)]
    missing = [part for part in _ONE_FILE if part not in present]
    if "U-Net" in missing or any(key.startswith("conditioner.") for key in shapes):
        raise CheckpointError(f"'{path}' is not a Stable Diffusion 1.x or 2.x{_resemblance(shapes)}")
    if missing:
        raise CheckpointError(
            f"'{path}' has no {missing[0]}: a base needs U-Net, autoencoder and text encoder in one file, or a folder"
        )


def _resemblance(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What a foreign file looks like, as diffusers tells model files apart."""
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    if any(".lora_" in key or ".alpha" in key for key in shapes):
        return ", but a LoRA; use it on a base, not as one"
    try:
        kind = infer_diffusers_model_type({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    except (LookupError, RuntimeError, NotImplementedError):  # it looks into some shapes, and a few values
        kind = "v1"
    return f", but looks like '{kind}'" if kind != "v1" else ": none of its tensors has a name from one"  # v1: else


def _version(shapes: Mapping[str, tuple[int, ...]], path: Path) -> int:
    channels, width = shapes[_LATENTS][1:2], shapes.get(_CROSS, ())[1:2]
    if channels != (4,):
        taken = channels[0] if channels else 0
        raise CheckpointError(
            f"'{path}' takes {taken} channels where a Stable Diffusion that draws from text takes 4: a model for "
            "inpainting or editing cannot be the base, but can draw with the plain model's concepts"
        )
    if not width or width[0] not in _WIDTHS:
        raise CheckpointError(
            f"'{path}' does not have the shapes of Stable Diffusion 1.x or 2.x; say with --layout which folder has its "
            "configs and tokenizer"
        )
    return _WIDTHS[width[0]]
