"""The saved states of a training: which there are, which to go on from, which to delete."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from e4t.checkpoint import TrainingState
from e4t.errors import CheckpointError

LATEST = "latest"
_NAME = "step-{:09d}"


@dataclass(frozen=True)
class States:
    """A folder with one folder for each of the last ``keep`` states."""

    folder: Path
    keep: int = 1

    def found(self) -> dict[int, Path]:
        """Folder by step, the first step first."""
        steps = {}
        for path in sorted(self.folder.glob("step-*")):
            if match := re.fullmatch(r"step-(\d+)", path.name):
                steps[int(match.group(1))] = path
        return steps

    def load(self, which: str) -> TrainingState | None:
        """The ``latest`` state, None where there is none, or the one in a folder of that name.

        Raises CheckpointError for a folder that holds none, and for one that is damaged: it is not passed over in
        silence, because days of training may depend on it.
        """
        if which != LATEST:
            return self._chosen(Path(which))
        if (self.folder / "config.json").is_file() and not self.found():  # as it was when there was one state only
            return TrainingState.load(self.folder)
        found = self.found()
        if not found:
            return None
        try:
            return TrainingState.load(found[max(found)])
        except CheckpointError as error:
            others = sorted(found)[:-1]
            instead = f"go on from step {others[-1]}" if others else "begin anew"
            raise CheckpointError(f"{error}; delete '{found[max(found)]}' to {instead}") from error

    def _chosen(self, folder: Path) -> TrainingState:
        inside = States(folder).found()
        return TrainingState.load(inside[max(inside)] if inside else folder)

    def save(self, state: TrainingState) -> Path:
        """Write a state, and only then delete those that are too old."""
        folder = state.save(self.folder / _NAME.format(state.step))
        found = self.found()
        mine = sorted(step for step in found if step <= state.step)
        abandoned = [step for step in found if step > state.step]  # of a training that went on from further back
        for step in [*mine[: -self.keep], *abandoned]:
            shutil.rmtree(found[step], ignore_errors=True)
        for leftover in (
            *self.folder.glob(".step-*"),
            self.folder / "config.json",
            self.folder / "README.md",
            self.folder / "training.safetensors",
        ):
            shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        return folder
