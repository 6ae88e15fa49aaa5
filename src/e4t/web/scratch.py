"""A folder for what is temporary: pictures that were given, steps, drawings. It goes when its process ends.

What a process leaves that was killed outright is removed by the next one that starts: whoever is alive holds a lock.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from e4t.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves stays there
    fcntl = None  # type: ignore[assignment]

_PREFIX = "e4t-web-"
_LOCK = "lock"


class Scratch:
    """``folder`` is this process's own; ``uploads`` in it is where the server puts what browsers send."""

    def __init__(self) -> None:
        remove_stale()
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = _held(self.folder)
        self.uploads = self.folder / "uploads"
        self.uploads.mkdir()
        self._writing = threading.Lock()
        self._closed = False

    @contextmanager
    def writing(self) -> Iterator[None]:
        """While something is written here. Raises CheckpointError once this is closed, so that nothing comes after."""
        with self._writing:
            if self._closed:
                raise CheckpointError("the page has ended; start it again with e4t web")
            yield

    @contextmanager
    def filling(self) -> Iterator[None]:
        """The same for work that takes long: closing does not wait for it; what it writes after that is removed."""
        with self.writing():
            pass
        try:
            yield
        finally:
            if self._closed:
                shutil.rmtree(self.folder, ignore_errors=True)

    def new_folder(self, within: Path | None = None) -> Path:
        """A new one, in ``within`` or here."""
        with self.writing():
            return Path(tempfile.mkdtemp(dir=within or self.folder))

    def close(self) -> None:
        """Remove all of it; waits for whoever is writing."""
        with self._writing:
            self._closed = True
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()


def remove_stale() -> None:
    """Remove the folders of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if not folder.is_symlink() and _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _held(folder: Path) -> BinaryIO | None:
    """The lock that says that somebody works in ``folder``; it is taken before it can be seen."""
    if fcntl is None:
        return None
    lock = (folder / f".{_LOCK}").open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    (folder / f".{_LOCK}").rename(folder / _LOCK)
    return lock


def _is_abandoned(folder: Path) -> bool:
    if fcntl is None:
        return False
    try:
        with (folder / _LOCK).open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody holds it, or another user's, or there is none yet
        return False
    return True
