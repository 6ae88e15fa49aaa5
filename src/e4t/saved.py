"""What is saved: a folder of safetensors, config.json and a card that says what it is; never a pickle.

A folder is written beside its place and then renamed (`e4t.writing`), over none but one of its own kind, whose other
files stay. Its config has the digest of its weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from e4t.config import fits
from e4t.errors import CheckpointError, ConfigError
from e4t.sources import read_json
from e4t.writing import new_folder, replaceable, require_room

FORMAT_VERSION = 1
PREVIEW = "preview.jpg"
_KINDS = ("domain", "concept", "training")
_CONFIG = "config.json"
_SEAL = "weights_sha256"
_CARD = "README.md"
_OWN = (_CONFIG, _CARD, PREVIEW, "domain.txt")  # files of a folder, beside its weights; the last is the command line's


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


def write_saved(
    folder: Path,
    config: Mapping[str, Any],
    tensors: dict[str, Tensor],
    card: str,
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> Path:
    """A folder of the kind that its config names; ``files`` are further ones, by name. Gives its path."""
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


@contextmanager
def read_saved(folder: Path, kind: str) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Config and weights of a folder; what an edited or broken config raises inside the ``with`` becomes one sentence.

    Raises CheckpointError for no folder of this kind, another format version, and weights that are not those of its
    config.
    """
    saved = _read(folder, kind)
    try:
        yield saved
    except KeyError as error:
        raise CheckpointError(f"'{folder / _CONFIG}' has no {error}; save or download it anew") from error
    except (TypeError, ValueError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"'{folder / _CONFIG}' is incomplete or broken: {error}") from error


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


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def typed(config: Mapping[str, Any], name: str, hint: Any) -> Any:
    """A value of a config. Raises KeyError where it is missing and ValueError where it is of another type."""
    value = config[name]
    if not fits(value, hint):
        raise ValueError(f"{name!r} is not of type {hint if get_args(hint) else hint.__name__}")
    return value


def group(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors under ``name/``, without the prefix."""
    prefix = f"{name}/"
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def prefixed(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}/{key}": tensor.detach().cpu() for key, tensor in tensors.items()}
