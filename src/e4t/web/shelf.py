"""Saved concepts: a folder of concept folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from e4t.errors import CheckpointError
from e4t.saved import PREVIEW
from e4t.writing import require_room, slug


@dataclass(frozen=True)
class Shelf:
    """``remember`` notes in a new concept's folder where its domain lies, as the command line does."""

    folder: Path
    remember: Callable[[Path, str], None]

    def require_place(self) -> None:
        """Raise CheckpointError where no concept could be saved, before anybody has worked on one."""
        try:
            require_room(self.folder)
        except CheckpointError as error:
            raise CheckpointError(f"no concept could be saved: {error}; choose another --concepts") from error

    def names(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        folders = (path for path in self.folder.iterdir() if not path.name.startswith("."))  # those are being written
        return sorted(path.name for path in folders if (path / "concept.safetensors").is_file())

    def previews(self) -> list[tuple[str, str]]:
        """File and name of every concept that has a preview."""
        return [(str(path), name) for name in self.names() if (path := self.folder / name / PREVIEW).is_file()]

    def path(self, name: str) -> Path:
        """The folder of a saved concept. Raises CheckpointError for a name that is not on the shelf."""
        if name not in self.names():
            raise CheckpointError(f"there is no saved concept called {name[:60]!r}; choose one of the list")
        return self.folder / name

    def place(self, name: str) -> Path:
        """Where a new concept of this name goes. Raises CheckpointError for no name, and for one that is taken."""
        plain = slug(name)
        if not plain:
            raise CheckpointError("the concept needs a name of letters or digits")
        if (self.folder / plain).exists():
            raise CheckpointError(f"there is already a concept called '{plain}'; choose another name or delete it")
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / plain

    def delete(self, name: str) -> None:
        try:
            shutil.rmtree(self.path(name))
        except OSError as error:
            raise CheckpointError(f"'{name}' could not be deleted: {error}") from error
