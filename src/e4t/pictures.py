"""Pictures to learn from, by number: a folder, an array, a zip or tar archive, a Hugging Face dataset.

Every kind is a list of `Undecoded`: nothing is decoded before it is asked for, and whatever cannot be decoded raises
ImageError then. Captions are text files beside the pictures (``anna.txt`` of ``anna.jpg``), or a column of text.
"""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from PIL import Image

from e4t.errors import ConfigError, DataError, ImageError, install_extra
from e4t.images import MAX_BYTES, SUFFIXES, decode_image, load_image

HUB = "hf:"
_MASK = "-mask"  # at the end of a mask's name, behind that of its picture
_CAPTIONS = ("caption", "text", "prompt")
MAX_CAPTION_BYTES = 10_000
_UNPACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How members of a .zip may be packed: of the other ways, zipfile takes a whole member apart before it can be cut."""
_COMPRESSED = {".gz", ".tgz", ".xz", ".txz", ".bz2", ".tbz2", ".zst"}


class Undecoded(Protocol):
    """One picture before it is decoded."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    def image(self) -> Image.Image:
        """Upright 8-bit RGB. Raises ImageError."""
        ...

    def caption(self) -> str | None:
        """What is written about it."""
        ...


def open_pictures(source: str | Path) -> Sequence[Undecoded]:
    """The pictures of a folder, a uint8 .npy file [N, H, W, 3], a .zip or .tar, or a dataset (``hf:NAME`` or saved).

    Raises DataError for anything else, and where there are none.
    """
    path = Path(source)
    if str(source).startswith(HUB) or (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return _Dataset.opened(str(source))
    if path.is_dir():
        return _not_empty(_in_folder(path), f"'{source}' holds no images ({', '.join(SUFFIXES)})")
    if not path.is_file():
        raise DataError(
            f"'{source}' is neither a folder of images nor a .npy file, a .zip or .tar archive, shards or a dataset"
        )
    if path.suffix == ".npy":
        return _array(path)
    if path.suffix.lower() in _COMPRESSED:
        raise DataError(f"'{source}' is compressed as a whole, so pictures cannot be picked from it; unpack it first")
    try:
        members = _in_zip(path) if zipfile.is_zipfile(path) else _in_tar(path)
    except (tarfile.TarError, zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise DataError(f"'{source}' is neither a whole .zip or .tar archive nor a .npy file ({error})") from error
    return _not_empty(members, f"'{source}' holds no images ({', '.join(SUFFIXES)})")


def _not_empty(entries: Sequence[Undecoded], otherwise: str) -> Sequence[Undecoded]:
    if not entries:
        raise DataError(otherwise)
    return entries


# Folders and arrays


@dataclass(frozen=True)
class _File:
    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def image(self) -> Image.Image:
        if self.path.is_fifo():  # would be waited for
            raise ImageError(f"'{self.path}' is a pipe, not a file")
        return load_image(self.path)

    def caption(self) -> str | None:
        return caption_beside(self.path)


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


def _in_folder(folder: Path) -> list[_File]:
    return [_File(path) for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]


@dataclass(frozen=True)
class _Row:
    values: np.ndarray
    number: int

    @property
    def name(self) -> str:
        return f"picture {self.number}"

    def image(self) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self.values[self.number]))

    def caption(self) -> str | None:
        return None


def _array(path: Path) -> list[_Row]:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"'{path}' cannot be read as an array: {error}") from error
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or not len(array):
        raise DataError(f"'{path}' is {array.dtype} {array.shape}; expected uint8 [N, H, W, 3]")
    return [_Row(array, number) for number in range(len(array))]


# Archives


@dataclass(frozen=True)
class Packed:
    """A picture and its caption as the bytes of their files; without ``picture``, whatever is there is none.

    ``fault`` says what is wrong with it.
    """

    name: str
    picture: bytes | None
    text: bytes | None = None
    fault: str | None = None

    @property
    def num_bytes(self) -> int:
        return len(self.picture or b"") + len(self.text or b"")

    def image(self) -> Image.Image:
        if self.fault is not None:
            raise ImageError(self.fault)
        if self.picture is None:
            raise ImageError(f"'{self.name}' has no picture ({', '.join(SUFFIXES)})")
        return decode_image(self.picture, self.name)

    def caption(self) -> str | None:
        return decode_caption(self.text) if self.text is not None else None


@dataclass(frozen=True)
class _Member:
    """A file in an archive. ``read`` takes a member's name; members are read from any thread."""

    archive: _Archive
    path: str

    @property
    def name(self) -> str:
        return f"{self.archive.path}:{self.path}"

    def image(self) -> Image.Image:
        return decode_image(self.archive.read(self.path), self.name)

    def caption(self) -> str | None:
        beside = str(PurePosixPath(self.path).with_suffix(".txt"))
        return decode_caption(self.archive.read(beside, MAX_CAPTION_BYTES)) if beside in self.archive else None


class _Archive(Protocol):
    @property
    def path(self) -> Path: ...

    def read(self, name: str, most: int | None = None) -> bytes:
        """The bytes of a member, or the first ``most`` of them. Raises ImageError."""
        ...

    def __contains__(self, name: object) -> bool: ...


@dataclass(frozen=True)
class _Zip:
    path: Path
    file: zipfile.ZipFile = field(repr=False)  # locks itself while it reads
    members: Mapping[str, zipfile.ZipInfo] = field(repr=False)

    def __contains__(self, name: object) -> bool:
        return name in self.members

    def read(self, name: str, most: int | None = None) -> bytes:
        member = self.members[name]
        if member.compress_type not in _UNPACKED:
            raise ImageError(f"'{self.path}:{name}' is packed in an uncommon way; pack it anew, as plain .zip")
        if most is None:
            check_size(f"{self.path}:{name}", member.file_size)
        try:
            with self.file.open(member) as file:
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
            raise ImageError(f"'{self.path}:{name}' cannot be unpacked ({error}); pack it anew") from error


def _in_zip(path: Path) -> list[_Member]:
    file = zipfile.ZipFile(path)
    archive = _Zip(path, file, {info.filename: info for info in file.infolist() if not info.is_dir()})
    return _pictures_in(archive, archive.members)


@dataclass(frozen=True)
class _Tar:
    path: Path
    places: Mapping[str, tuple[int, int]] = field(repr=False)  # offset and size

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def read(self, name: str, most: int | None = None) -> bytes:
        offset, size = self.places[name]
        if most is None:
            check_size(f"{self.path}:{name}", size)
        size = min(size, most or size)
        try:
            with self.path.open("rb") as file:  # anew, because threads would move one another's place in it
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise ImageError(f"'{self.path}' cannot be read at '{name}': {error}") from error
        if len(data) < size:
            raise ImageError(f"'{self.path}' ends in the middle of '{name}'; pack or download it anew")
        return data


def _in_tar(path: Path) -> list[_Member]:
    places: dict[str, tuple[int, int]] = {}
    with tarfile.open(path, "r:") as file:
        try:
            for info in file:
                if info.isreg():
                    places[info.name] = info.offset_data, info.size
        except tarfile.ReadError:
            pass  # cut: what is missing is noticed when it is read
    archive = _Tar(path, places)
    return _pictures_in(archive, places)


def _pictures_in(archive: _Archive, names: Iterable[str]) -> list[_Member]:
    return [_Member(archive, name) for name in sorted(names) if PurePosixPath(name).suffix.lower() in SUFFIXES]


def check_size(name: str, size: int) -> None:
    """Raises ImageError for a file that is too large to be read."""
    if size > MAX_BYTES:
        raise ImageError(f"'{name}' has {size / 2**20:.0f} MB, and the limit is {MAX_BYTES // 2**20} MB")


# Hugging Face datasets


@dataclass(frozen=True)
class _DatasetRow:
    rows: Any
    number: int
    column: str
    text: str | None
    origin: str

    @property
    def name(self) -> str:
        return f"{self.origin}, row {self.number}"

    def image(self) -> Image.Image:
        value = self.rows[self.number][self.column] or {}
        if value.get("bytes"):
            return decode_image(value["bytes"], self.name)
        if value.get("path"):
            return load_image(value["path"])
        raise ImageError(f"'{self.name}' has no picture in its column '{self.column}'")

    def caption(self) -> str | None:
        value = self.rows[self.number][self.text] if self.text is not None else None
        return value.strip() or None if isinstance(value, str) else None


@dataclass(frozen=True)
class _Dataset(Sequence[_DatasetRow]):
    """A table of the library `datasets`; pictures stay as the bytes they were stored as, and are decoded here."""

    rows: Any
    column: str
    text: str | None
    origin: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return _DatasetRow(self.rows, int(number), self.column, self.text, self.origin)

    @classmethod
    def opened(cls, source: str) -> _Dataset:
        try:
            import datasets
        except ImportError as error:
            raise ConfigError(_needs_extra("datasets")) from error
        table = _table(source)
        pictures = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
        if not pictures:
            raise DataError(f"'{source}' has no column of images, only {', '.join(map(repr, table.features))}")
        if not len(table):
            raise DataError(f"'{source}' holds no images: it has no rows")
        text = next((name for name in _CAPTIONS if name in table.features), None)
        table = table.select_columns([pictures[0], *([text] if text else [])])
        return cls(table.cast_column(pictures[0], datasets.Image(decode=False)), pictures[0], text, source)


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


def _needs_extra(module: str) -> str:
    return f"this needs {module}: {install_extra('data')}"


def decode_caption(data: bytes) -> str | None:
    """One line of text; None for an empty one."""
    return " ".join(data.decode("utf-8-sig", errors="replace").split()) or None
