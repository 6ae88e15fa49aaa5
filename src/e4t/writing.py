"""Written beside its place, then renamed: no file or folder is ever half there, and a power cut leaves no zeros.

What is written has a hidden name of its own until the disk holds all of it, and only then takes its place. Names are
new every time, so that what a killed process left is in nobody's way; `unfinished` finds files, and who next writes a
folder puts that one right.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from e4t.errors import CheckpointError, E4TError

_UNFINISHED = ".new"
_FORMER = ".old"


def slug(text: str) -> str:
    """A part of a file name for a text: "a photo of S*" → "a-photo-of-s". At most 60 bytes, as names have an end."""
    plain = "-".join(re.findall(r"\w+", text.lower())).encode()[:60]
    return plain.decode(errors="ignore").strip("-")


@contextmanager
def new_files(places: Sequence[Path], refusal: type[E4TError] = CheckpointError) -> Iterator[list[Path]]:
    """Where to write some files meanwhile, in their order; at the end of the ``with`` all of them take their places.

    They do so one after another: each is whole whatever happens, but a kill in between leaves some new and others as
    they were. Folders are made as needed. Raises ``refusal`` where that cannot be; whatever is raised inside the
    ``with``, nothing new stays.
    """
    beside = [_beside(place, _UNFINISHED) for place in places]
    try:
        with _writing(places[0], refusal):
            for place in places:
                place.parent.mkdir(parents=True, exist_ok=True)
            yield beside
            for new in beside:
                _let_read(new, _usual_mode(new.parent))
                _sync(new)
            for new, place in zip(beside, places, strict=True):
                os.replace(new, place)
            for folder in {place.parent for place in places}:
                _sync(folder)
    finally:
        for new in beside:
            with suppress(OSError):
                new.unlink()


@contextmanager
def new_folder(place: Path, own: Collection[str]) -> Iterator[Path]:
    """An empty folder to fill, which then takes the place of ``place``.

    Of what was there before, entries called as in ``own`` are replaced; all others are somebody else's, and stay.
    Raises CheckpointError where that cannot be (`replaceable`); whatever is raised, what was there before is whole.
    What a killed process left of the same is finished or removed first.
    """
    whole = replaceable(place)
    _finish_exchange(whole, own)
    beside = _beside(whole, _UNFINISHED)
    try:
        with _writing(place):
            beside.mkdir(parents=True)
            yield beside
            mode = _usual_mode(beside)
            for path in beside.rglob("*"):
                if path.is_file():
                    _let_read(path, mode)
                _sync(path)
            _sync(beside)
            _exchange(beside, whole, own)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def save_anew(save: Callable[[Path], object], path: Path) -> Path:
    """What ``save`` writes goes where no file is yet: to ``path``, or with -2, -3, … behind its name. Gives the place.

    Raises CheckpointError where that cannot be; whatever is raised, nothing new stays.
    """
    beside = _beside(path, _UNFINISHED)
    try:
        with _writing(path):
            save(beside)
            _sync(beside)
            place = _taken(path)
            os.replace(beside, place)
    finally:
        beside.unlink(missing_ok=True)
    return place


def _taken(path: Path) -> Path:
    """A place where no file was, which two processes cannot get: an empty file, not a link, which some disks lack."""
    place = path
    for number in itertools.count(2):
        with suppress(FileExistsError), place.open("xb"):
            break
        place = path.with_stem(f"{path.stem}-{number}")
    return place


def remove_folder(folder: Path) -> None:
    """Delete a folder, which has a hidden name by then: under its own it is whole or not there."""
    shutil.rmtree(folder.rename(_beside(folder, _UNFINISHED)), ignore_errors=True)


def replaceable(place: Path) -> Path:
    """The whole path of a folder, links followed. Raises CheckpointError for one that no other can take the place of.

    A disk's own folder cannot be renamed, and a process (and the shell that started it) would stay in the former one.
    """
    whole = Path(os.path.realpath(place))
    if os.path.ismount(whole) or (whole.is_dir() and Path.cwd().is_relative_to(whole)):
        raise CheckpointError(
            f"'{place}' is the folder this runs in, or a whole disk, which nothing can take the place of; "
            f"name a folder inside it, such as '{place / 'new'}'"
        )
    return whole


def require_room(folder: Path) -> None:
    """Raises CheckpointError where nothing can be written into a folder, before work is spent on what it is to hold."""
    whole = folder.absolute()
    there = next((path for path in (whole, *whole.parents) if path.exists()), None)
    if there is None:
        raise CheckpointError(f"'{folder}' cannot be written: there is no disk of that name")
    if not there.is_dir():
        raise CheckpointError(f"'{folder}' cannot be written: '{there}' is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise CheckpointError(f"'{folder}' cannot be written: there is no permission to write in '{there}'")


def unfinished(folder: Path) -> list[Path]:
    """What killed processes left half written in a folder, or others are writing."""
    return [path for path in folder.iterdir() if re.fullmatch(rf"\..+\.[0-9a-f]{{8}}{_UNFINISHED}", path.name)]


@contextmanager
def _writing(place: Path, refusal: type[E4TError] = CheckpointError) -> Iterator[None]:
    """One sentence for what disks raise; safetensors' own error is in place of an OSError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise refusal(
            f"'{place}' cannot be written ({error}); what was there before is whole: make room and run the same again"
        ) from error


def _usual_mode(folder: Path) -> int:
    """Who may read and write what a program writes into a folder: safetensors lets nobody but the owner."""
    probe = _beside(folder / "mode", _UNFINISHED)
    probe.touch()
    try:
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink()


def _let_read(path: Path, mode: int) -> None:
    with suppress(OSError):  # some disks have no such modes
        path.chmod(mode)


def _beside(place: Path, ending: str) -> Path:
    return place.with_name(f".{place.name}.{secrets.token_hex(4)}{ending}")


def _is_beside(path: Path, place: Path, ending: str) -> bool:
    """Whether `_beside` can have named a path so."""
    return re.fullmatch(rf"\.{re.escape(place.name)}\.[0-9a-f]{{8}}{ending}", path.name) is not None


def _exchange(new: Path, place: Path, own: Collection[str]) -> None:
    """Put a folder in the place of another, and the other's entries that are not ``own`` back into it."""
    if not place.exists():
        new.rename(place)
        _sync(place.parent)
        return
    old = _beside(place, _FORMER)
    try:
        place.rename(old)
        new.rename(place)
    except BaseException:
        if old.exists() and not place.exists():
            old.rename(place)
        raise
    _give_back(old, place, own)


def _give_back(old: Path, place: Path, own: Collection[str]) -> None:
    """Delete the folder that another has taken the place of, but for what is somebody else's."""
    for entry in old.iterdir():
        if entry.name not in own and not (place / entry.name).exists():
            entry.rename(place / entry.name)
    _sync(place)
    _sync(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def _finish_exchange(place: Path, own: Collection[str]) -> None:
    """Undo a killed `_exchange` that left nothing in its place, or end it; delete what was left half written."""
    left = list(place.parent.iterdir()) if place.parent.is_dir() else []
    for path in left:
        if _is_beside(path, place, _FORMER):
            if place.exists():
                _give_back(path, place, own)
            else:
                path.rename(place)
        elif _is_beside(path, place, _UNFINISHED):
            shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder; some systems cannot be asked for the second."""
    if not path.is_dir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        return
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
