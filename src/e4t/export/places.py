"""Where exports go: named, never over anything foreign, and never half written."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from e4t.errors import CheckpointError, ConfigError

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
        for path in (places.main, places.embedding):
            if path is not None and path.exists() and not _is_ours(path):
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
            return cls(token, token, output if is_file else output / f"learned_embeds{SUFFIX}")
        if not is_file:
            return cls(token, token, output / f"pytorch_lora_weights{SUFFIX}", output / f"learned_embeds{SUFFIX}")
        plain = re.sub(r"[^\w-]", "", token) or "word"  # "S*" is no file name everywhere
        word = f"{output.stem}.{plain}"
        return cls(token, token if to == "lora-diffusers" else word, output, output.with_name(word + SUFFIX))

    @property
    def notes(self) -> tuple[str, ...]:
        """How to use the word that lies beside weights."""
        if self.embedding is None:
            return ()
        names = f"'{self.token}' in diffusers"
        if self.trigger != self.token:
            names += f", '{self.trigger}' in web UIs"
        return (f"the word itself is in '{self.embedding.name}', to be loaded as well; in prompts it is {names}",)


def write_files(files: Mapping[Path, tuple[dict[str, Tensor], dict[str, str]]]) -> None:
    """All of them beside their places first, so that a full disk leaves nothing half written."""
    beside = {path: path.with_name(f".{path.name}.{os.getpid()}.new") for path in files}
    try:
        for path, (tensors, metadata) in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, beside[path], metadata=metadata)
        for path, new in beside.items():
            os.replace(new, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{next(iter(files))}' cannot be written: {error}") from error
    finally:
        for new in beside.values():
            with suppress(OSError):
                new.unlink()


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which then takes the place of ``folder``."""
    beside, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{what}") for what in ("new", "old"))
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        yield beside
        if folder.exists():
            folder.rename(old)
        beside.rename(folder)
    except OSError as error:
        if old.exists():
            old.rename(folder)
        raise CheckpointError(f"'{folder}' cannot be written: {error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _is_ours(path: Path) -> bool:
    """Whether something that exists was exported by this module, or is an empty folder."""
    if path.is_dir():
        return (path / PROVENANCE).is_file() or not any(path.iterdir())
    try:
        with safe_open(path, framework="pt") as file:
            return MARK in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False
