"""Where exports go: named, never over anything foreign, and never half written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from e4t.errors import CheckpointError, ConfigError
from e4t.writing import new_files, replaceable

FORMATS = ("textual-inversion", "pipeline", "single-file", "diff", "lora-diffusers", "lora-kohya")
SUFFIX = ".safetensors"
MARK = "e4t.export"
PROVENANCE = "e4t.json"


@dataclass(frozen=True)
class Places:
    """Where an export goes: ``main`` is a file, or the folder of a pipeline; ``embedding`` is the word beside it."""

    token: str
    trigger: str  # what prompts say where it is used: web UIs name a word after its file
    main: Path
    embedding: Path | None = None

    @classmethod
    def of(cls, output: Path, to: str, token: str) -> Places:
        """Raises ConfigError for a wrong format or name, CheckpointError where something foreign is in the way."""
        if to not in FORMATS:
            raise ConfigError(f"there is no export format '{to}'; there are {', '.join(FORMATS)}")
        places = cls._named(output, to, token)
        if to == "pipeline":
            replaceable(output)
        for path in (places.main, places.embedding):
            if path is not None and path.exists() and not _is_ours(path, folder=to == "pipeline"):
                raise CheckpointError(f"'{path}' exists and is not a former export; choose another place")
        return places

    @classmethod
    def _named(cls, output: Path, to: str, token: str) -> Places:
        is_file = output.suffix == SUFFIX
        if is_file == (to == "pipeline") and to not in ("textual-inversion", "lora-diffusers"):
            what = "folder" if is_file else f"file, named so that it ends in {SUFFIX}"
            raise ConfigError(f"'{output}' does not fit the format '{to}', which is a {what}")
        if to == "pipeline":
            return cls(token, token, output)
        if to == "textual-inversion":
            return cls(token, output.stem, output) if is_file else cls(token, token, output / f"learned_embeds{SUFFIX}")
        if not is_file:
            return cls(token, token, output / f"pytorch_lora_weights{SUFFIX}", output / f"learned_embeds{SUFFIX}")
        plain = re.sub(r"[^\w-]", "", token) or "word"  # "S*" is no file name everywhere
        word = f"{output.stem}.{plain}"
        return cls(token, token if to == "lora-diffusers" else word, output, output.with_name(word + SUFFIX))

    @property
    def notes(self) -> tuple[str, ...]:
        """What prompts say, where the word lies beside weights or goes by another name in web UIs."""
        names = f"'{self.token}' in diffusers"
        if self.trigger != self.token:
            names += f", '{self.trigger}' in web UIs"
        if self.embedding is not None:
            return (f"the word itself is in '{self.embedding.name}', to be loaded as well; in prompts it is {names}",)
        return (f"in prompts the word is {names}",) if self.trigger != self.token else ()


def write_files(files: Mapping[Path, tuple[dict[str, Tensor], dict[str, str]]]) -> None:
    """Each is whole or as it was before (`e4t.writing.new_files`)."""
    with new_files(list(files)) as beside:
        for new, (tensors, metadata) in zip(beside, files.values(), strict=True):
            save_file(tensors, new, metadata=metadata)


def _is_ours(path: Path, *, folder: bool) -> bool:
    """Whether something that exists was exported by this module, or is an empty folder where a ``folder`` is to go."""
    if path.is_dir():
        return folder and ((path / PROVENANCE).is_file() or not any(path.iterdir()))
    try:
        with safe_open(path, framework="pt") as file:
            return MARK in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False
