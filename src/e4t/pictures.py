"""Pictures to learn from, by number: a folder, an array, a zip or tar archive, a Hugging Face dataset.

Every kind is `Pictures`: keys, and how an `Undecoded` is made of one. Nothing is decoded before it is asked for, and
whatever cannot be decoded raises ImageError then. Captions are text files beside the pictures (``anna.txt`` of
``anna.jpg``), or a column of text.
"""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from e4t.errors import DataError, ImageError, lacks
from e4t.images import MAX_BYTES, SUFFIXES, decode_image, load_image

HUB = "hf:"
_MASK = "-mask"  # at the end of a mask's name, behind that of its picture
_CAPTIONS = ("caption", "text", "prompt")
MAX_CAPTION_BYTES = 10_000
_UNPACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How members of a .zip may be packed: of the other ways, zipfile takes a whole member apart before it can be cut."""
_COMPRESSED = {".gz", ".tgz", ".xz", ".txz", ".bz2", ".tbz2", ".zst"}


@dataclass(frozen=True)
class Undecoded:
    """One picture before it is decoded."""

    name: str  # for messages
    image: Callable[[], Image.Image]  # upright 8-bit RGB; raises ImageError
    caption: Callable[[], str | None]  # what is written about it
    num_bytes: int = 0  # that wait with it


@dataclass(frozen=True)
class Pictures(Sequence[Undecoded]):
    """Pictures by number, each made of its key when it is asked for: there may be millions."""

    keys: Sequence[Any]
    made: Callable[[Any], Undecoded]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: Any) -> Any:
        return self.made(self.keys[number])


def open_pictures(source: str | Path) -> Pictures:
    """The pictures of a folder, a uint8 .npy file [N, H, W, 3], a .zip or .tar, or a dataset (``hf:NAME`` or saved).

    Raises DataError for anything else, and where there are none.
    """
    path = Path(source)
    if str(source).startswith(HUB) or (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return _in_dataset(str(source))
    if path.is_dir():
        found = _in_folder(path)
    elif not path.is_file():
        raise DataError(
            f"'{source}' is neither a folder of images nor a .npy file, a .zip or .tar archive, shards or a dataset"
        )
    elif path.suffix == ".npy":
        found = _in_array(path)
    elif path.suffix.lower() in _COMPRESSED:
        raise DataError(f"'{source}' is compressed as a whole, so pictures cannot be picked from it; unpack it first")
    else:
        try:
            found = _in_zip(path) if zipfile.is_zipfile(path) else _in_tar(path)
        except (tarfile.TarError, zipfile.BadZipFile, NotImplementedError, OSError) as error:
            raise DataError(f"'{source}' is neither a whole .zip or .tar archive nor a .npy file ({error})") from error
    if not found:
        raise DataError(f"'{source}' holds no images ({', '.join(SUFFIXES)})")
    return found


# Folders and arrays


def _in_folder(folder: Path) -> Pictures:
    return Pictures([path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES], _file)


def _file(path: Path) -> Undecoded:
    def image() -> Image.Image:
        if path.is_fifo():  # would be waited for
            raise ImageError(f"'{path}' is a pipe, not a file")
        return load_image(path)

    return Undecoded(str(path), image, partial(caption_beside, path))


def caption_beside(picture: Path) -> str | None:
    """What ``anna.txt`` says of ``anna.jpg``; None where it says nothing, or is not there."""
    beside = picture.with_suffix(".txt")
    if not beside.is_file():
        return None
    with beside.open("rb") as file:
        return decode_caption(file.read(MAX_CAPTION_BYTES))


def with_masks(files: Iterable[Path]) -> dict[Path, Path | None]:
    """The pictures among some files, each with its mask if it is there: ``anna-mask.png`` is that of ``anna.jpg``."""
    given = list(files)
    masks = {path.stem[: -len(_MASK)]: path for path in given if path.stem.lower().endswith(_MASK)}
    return {path: masks.get(path.stem) for path in given if not path.stem.lower().endswith(_MASK)}


def _in_array(path: Path) -> Pictures:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"'{path}' cannot be read as an array: {error}") from error
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or not len(array):
        raise DataError(f"'{path}' is {array.dtype} {array.shape}; expected uint8 [N, H, W, 3]")

    def row(number: int) -> Undecoded:
        pixels = array[number]
        return Undecoded(f"picture {number}", lambda: Image.fromarray(np.ascontiguousarray(pixels)), lambda: None)

    return Pictures(range(len(array)), row)


# Archives


def _archived(path: Path, members: Mapping[str, Any], read: Callable[[str, int | None], bytes]) -> Pictures:
    """``read`` gives the bytes of a member, or the first so many of them, in any thread. It raises ImageError."""

    def member(name: str) -> Undecoded:
        shown, beside = f"{path}:{name}", str(PurePosixPath(name).with_suffix(".txt"))

        def caption() -> str | None:
            return decode_caption(read(beside, MAX_CAPTION_BYTES)) if beside in members else None

        return Undecoded(shown, lambda: decode_image(read(name, None), shown), caption)

    return Pictures(sorted(name for name in members if PurePosixPath(name).suffix.lower() in SUFFIXES), member)


def _in_zip(path: Path) -> Pictures:
    archive = zipfile.ZipFile(path)  # locks itself while it reads
    members = {info.filename: info for info in archive.infolist() if not info.is_dir()}

    def read(name: str, most: int | None) -> bytes:
        member = members[name]
        if member.compress_type not in _UNPACKED:
            raise ImageError(f"'{path}:{name}' is packed in an uncommon way; pack it anew, as plain .zip")
        if most is None:
            check_size(f"{path}:{name}", member.file_size)
        try:
            with archive.open(member) as file:
                return file.read(-1 if most is None else most)
        except (
            zipfile.BadZipFile,
            OSError,
            RuntimeError,
            EOFError,
            NotImplementedError,
            ValueError,
            zlib.error,
        ) as error:
            raise ImageError(f"'{path}:{name}' cannot be unpacked ({error}); pack it anew") from error

    return _archived(path, members, read)


def _in_tar(path: Path) -> Pictures:
    places: dict[str, tuple[int, int]] = {}  # offset and size
    with tarfile.open(path, "r:") as archive:
        try:
            for info in archive:
                if info.isreg():
                    places[info.name] = info.offset_data, info.size
        except tarfile.ReadError:
            pass  # cut: what is missing is noticed when it is read

    def read(name: str, most: int | None) -> bytes:
        offset, size = places[name]
        if most is None:
            check_size(f"{path}:{name}", size)
        size = min(size, most or size)
        try:
            with path.open("rb") as file:  # anew, because threads would move one another's place in it
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise ImageError(f"'{path}' cannot be read at '{name}': {error}") from error
        if len(data) < size:
            raise ImageError(f"'{path}' ends in the middle of '{name}'; pack or download it anew")
        return data

    return _archived(path, places, read)


def check_size(name: str, size: int) -> None:
    """Raises ImageError for a file that is too large to be read."""
    if size > MAX_BYTES:
        raise ImageError(f"'{name}' has {size / 2**20:.0f} MB, and the limit is {MAX_BYTES // 2**20} MB")


# Hugging Face datasets


def _in_dataset(source: str) -> Pictures:
    """A table of the library `datasets`; pictures stay as the bytes they were stored as, and are decoded here."""
    try:
        import datasets
    except ImportError as error:
        raise lacks("datasets", "data") from error
    table = _table(source)
    column = next((name for name, kind in table.features.items() if isinstance(kind, datasets.Image)), None)
    if column is None:
        raise DataError(f"'{source}' has no column of images, only {', '.join(map(repr, table.features))}")
    if not len(table):
        raise DataError(f"'{source}' holds no images: it has no rows")
    text = next((name for name in _CAPTIONS if name in table.features), None)
    rows = table.select_columns([column, *([text] if text else [])]).cast_column(column, datasets.Image(decode=False))

    def row(number: int) -> Undecoded:
        name = f"{source}, row {number}"

        def image() -> Image.Image:
            value = rows[number][column] or {}
            if value.get("bytes"):
                return decode_image(value["bytes"], name)
            if value.get("path"):
                return load_image(value["path"])
            raise ImageError(f"'{name}' has no picture in its column '{column}'")

        def caption() -> str | None:
            value = rows[number][text] if text is not None else None
            return value.strip() or None if isinstance(value, str) else None

        return Undecoded(name, image, caption)

    return Pictures(range(len(rows)), row)


def _table(source: str) -> Any:
    """The split ``train`` of ``hf:NAME`` or of a saved folder, or the one after ``@``: ``hf:NAME@validation``."""
    import datasets

    name, _, split = source.partition("@") if source.startswith(HUB) else (source, "", "")
    try:
        if source.startswith(HUB):
            return datasets.load_dataset(name.removeprefix(HUB), split=split or "train")
        table = datasets.load_from_disk(source)
    except Exception as error:  # the library raises whatever lies beneath it does
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"the dataset '{source}' cannot be opened: {reason}") from error
    if isinstance(table, datasets.DatasetDict):
        if "train" not in table:
            raise DataError(f"'{source}' has no split 'train'; name the folder of one of {', '.join(table)}")
        return table["train"]
    return table


def decode_caption(data: bytes) -> str | None:
    """One line of text; None for an empty one."""
    return " ".join(data.decode("utf-8-sig", errors="replace").split()) or None
