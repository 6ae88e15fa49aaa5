"""WebDataset shards, read from first to last from a disk or a URL: a position in the stream is always the same sample.

Shards are tar files in which files of one name and several endings are one sample (``0001.jpg``, ``0001.txt``). An
epoch goes through all of them in an order of its own; inside a shard, samples leave a buffer in random order. Both
follow from the seed, so that a resumed training reads on where it was: it leaves out the shards it knows the size of.

Local shards are files, whatever they are called, and only https and http are fetched: the library that does so would
also run commands.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from pathlib import Path
from threading import Lock
from time import sleep
from typing import IO, Any, cast

import numpy as np
from PIL import Image

from e4t.errors import DataError, ImageError, lacks
from e4t.images import SUFFIXES, decode_image
from e4t.pictures import MAX_CAPTION_BYTES, Undecoded, check_size, decode_caption

_TEXTS = ("txt", "caption", "text")
_PICTURES = {suffix.removeprefix(".") for suffix in SUFFIXES}
_PAUSES = (1.0, 5.0, 20.0)  # seconds, before a shard is fetched again
_MOST_WAITING = 2**30  # bytes of the samples that wait at a time, whatever the buffer's size


def shard_urls(source: str | Path) -> list[str]:
    """The shards that a source stands for, none if it is no set of shards.

    A folder of tar files, a pattern with ``*`` or ``{000..123}``, an https or http URL, or several of these, one after
    another with ``::`` between them. What is there under the very name is no pattern. Raises DataError for other URLs,
    for a pattern without a match, and for a folder with pictures beside the shards.
    """
    text = str(source)
    if os.path.exists(text):
        return _in_folder(Path(source)) if os.path.isdir(text) else []
    if not any(mark in text for mark in ("://", "{", "*", "::")):
        return []
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise lacks("webdataset", "data") from error
    found: list[str] = []
    for part in text.split("::"):
        try:
            urls = [part] if os.path.exists(part) else expand_urls(part)
        except ValueError as error:
            raise DataError(f"'{source}' is no pattern of shards: {error}") from error
        found += chain.from_iterable(map(_globbed, urls))
    if not found:
        raise DataError(f"no shard is called '{source}'")
    return found


def bare(url: str) -> str:
    """A URL without what may be secret, and is another one after a while: its query, and a name before the host."""
    return re.sub(r"(?<=://)[^/@]*@", "", url.partition("?")[0]) if "://" in url else url


def source_name(source: str | Path) -> str:
    """What a source of pictures is called in files that may be given away: the last part of its path."""
    return Path("::".join(map(bare, str(source).split("::")))).name


def _in_folder(folder: Path) -> list[str]:
    shards = sorted(folder.glob("*.tar"))
    if shards and any(file.suffix.lower() in SUFFIXES for file in folder.rglob("*")):
        raise DataError(
            f"'{folder}' holds both pictures and .tar files; move one or the other away, or name the shards alone: "
            f"'{folder / '*.tar'}'"
        )
    return list(map(str, shards))


def _globbed(url: str) -> list[str]:
    if _is_remote(url) or ("*" not in url and "://" not in url) or os.path.exists(url):
        return [url]
    if "://" in url:
        raise DataError(f"'{bare(url)}' cannot be fetched: shards come from files, https or http")
    path = Path(url)
    return sorted(map(str, Path(path.anchor).glob(str(path.relative_to(path.anchor)))))


def _is_remote(url: str) -> bool:
    return re.match("(?i)https?://", url) is not None


@dataclass
class ShardStream:
    """Samples by position, to be asked for in rising order; what was asked for stays at hand until `release`.

    ``sizes`` are the samples in each shard, as far as they are known: pairs of an epoch and the number from there on,
    of which there are several where it has changed. Handed to another stream, they spare it reading what lies before
    its first position. ``broken`` are shards that ended early, and why, and ``unreachable`` those of them that may be
    whole, but not here and now; one that comes from elsewhere is fetched again before it counts as either. Keys are
    URLs without their queries (`bare`).
    """

    urls: Sequence[str]
    seed: int
    buffer: int
    sizes: dict[str, list[list[int]]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    unreachable: set[str] = field(default_factory=set)
    _ended: dict[str, int] = field(default_factory=dict, repr=False)  # where in the stream broken ones did
    _kept: dict[int, Undecoded] = field(default_factory=dict, repr=False)
    _next: int = 0
    _samples: Iterator[Undecoded] | None = None
    _names: dict[str, str] = field(default_factory=dict, repr=False)
    _lock: Any = field(default_factory=Lock, repr=False)

    def __post_init__(self) -> None:
        distinct = dict.fromkeys(self.urls)
        alike = Counter(map(bare, distinct))
        self._names = {url: bare(url) + f" ({n})" * (alike[bare(url)] > 1) for n, url in enumerate(distinct)}

    def name_of(self, url: str) -> str:
        """What a shard is called in `sizes` and `broken`: numbered where only the queries differ."""
        return self._names.get(url, bare(url))

    def at(self, position: int) -> Undecoded:
        """Raises DataError where the shards hold no sample. A position that was released is read anew."""
        with self._lock:
            if self._samples is None or (position < self._next and position not in self._kept):  # from the start again
                self._kept.clear()
                self._samples = self._from(position)
                self._next = position
            while self._next <= position:
                self._kept[self._next] = next(self._samples)
                self._next += 1
            return self._kept[position]

    def release(self, before: int) -> None:
        """Forget what lies before a position."""
        with self._lock:
            for position in [position for position in self._kept if position < before]:
                del self._kept[position]

    def broken_before(self, position: int) -> dict[str, str]:
        """Those of the broken shards that ended before a position: the same, however far was read ahead."""
        return {url: self.broken[url] for url, ended in list(self._ended.items()) if ended < position}

    def _from(self, position: int) -> Iterator[Undecoded]:
        """All samples from ``position`` on, without end."""
        epoch, passed = self._epoch_at(position)
        names = [self.name_of(url) for url in self.urls]
        while True:
            before = passed
            for number in np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.urls)):
                name = names[number]
                known = _since(self._changes(name), epoch)
                if known is not None and passed < position and passed + known <= position:
                    passed += known
                    continue
                for sample in self._shuffled(int(number), epoch):
                    if passed >= position:
                        yield sample
                    passed += 1
                if name in self.broken:
                    self._ended.setdefault(name, passed)
            if passed == before:
                raise DataError(f"none of the {len(self.urls)} shards holds a sample{self._why()}")
            epoch += 1

    def _epoch_at(self, position: int) -> tuple[int, int]:
        """The epoch of a position, and where it begins; the first one, unless the sizes of all shards are known."""
        changes = [self._changes(self.name_of(url)) for url in self.urls]
        epoch, passed = 0, 0
        if not all(changes):
            return epoch, passed
        steady = max(max(one) for one in changes)  # from this epoch on, all are of one length
        while length := sum(_since(one, epoch) or 0 for one in changes):
            epochs = (position - passed) // length if epoch >= steady else int(passed + length <= position)
            if not epochs:
                break
            epoch, passed = epoch + epochs, passed + epochs * length
        return epoch, passed

    def _changes(self, name: str) -> dict[int, int]:
        """The sizes a shard has had, by the epoch they were met in first; empty if none is known."""
        return {pair[0]: pair[1] for pair in self.sizes.get(name, ())}

    def _learn(self, name: str, epoch: int, size: int) -> None:
        changes = {since: one for since, one in self._changes(name).items() if since <= epoch}
        if _since(changes, epoch) != size:
            changes[epoch] = size
        self.sizes[name] = [list(one) for one in changes.items()]

    def _why(self) -> str:
        return "".join(f"; {reason}" for reason in list(self.broken.values())[:1])

    def _shuffled(self, number: int, epoch: int) -> Iterator[Undecoded]:
        """The samples of a shard in an epoch: as many as it had then, where that is read again after an interruption.

        At most `_MOST_WAITING` bytes wait, however large the buffer.
        """
        url = self.urls[number]
        rng = np.random.default_rng([self.seed, 2, epoch, number])
        waiting: list[Undecoded] = []
        held = 0
        for sample in islice(self.samples(url, epoch), self._changes(self.name_of(url)).get(epoch)):
            waiting.append(sample)
            held += sample.num_bytes
            while len(waiting) >= self.buffer or held > _MOST_WAITING:
                chosen = _taken(waiting, rng)
                held -= chosen.num_bytes
                yield chosen
        while waiting:
            yield _taken(waiting, rng)

    def samples(self, url: str, epoch: int = 0) -> Iterator[Undecoded]:
        """The samples of one shard, undecoded and in their order, to its end or to where it is damaged."""
        count, name = 0, self.name_of(url)
        for pause in (*(_PAUSES if _is_remote(url) else ()), None):
            try:
                for sample in islice(_packed(url, name), count, None):
                    yield sample
                    count += 1
                self.unreachable.discard(name)
                break
            except Exception as error:  # the library raises whatever tar files, pipes and servers lead it into
                reason = " ".join(str(error).replace(url, name).split())[:160] or type(error).__name__
                away = isinstance(error, OSError)
            if pause is None:
                self.broken[name] = f"'{name}' ends early, after {count} samples: {reason}"
                self.unreachable |= {name} if away else set()
            else:
                sleep(pause)
        self._learn(name, epoch, count)


def _since(changes: Mapping[int, int], epoch: int) -> int | None:
    """The size in an epoch, of sizes by the epoch they were met in first."""
    return next((changes[since] for since in sorted(changes, reverse=True) if since <= epoch), None)


def _taken(waiting: list[Undecoded], rng: np.random.Generator) -> Undecoded:
    chosen = int(rng.integers(len(waiting)))
    waiting[chosen], waiting[-1] = waiting[-1], waiting[chosen]
    return waiting.pop()


def _opened(url: str) -> IO[bytes]:
    """The bytes of a shard."""
    if not _is_remote(url):
        return Path(url).open("rb")
    from webdataset.gopen import gopen

    return cast(IO[bytes], gopen(url))


def _packed(url: str, name: str) -> Iterator[Undecoded]:
    """The samples of a shard. Of files that are neither picture nor caption, and of too large ones, no byte is kept."""
    with _opened(url) as stream, _archive(stream) as archive:
        for key, members in groupby(_files(archive), key=lambda member: member[0]):
            picture, text, fault, sample = None, {}, None, f"{name}:{key}"
            for _, ending, info in members:
                if ending.split(".")[-1] in _PICTURES and picture is None:
                    try:
                        check_size(sample, info.size)
                        picture = _content(archive, info, info.size)
                    except ImageError as error:
                        fault = str(error)
                elif ending in _TEXTS:
                    text[ending] = _content(archive, info, MAX_CAPTION_BYTES)
            yield _sample(sample, picture, next((text[kind] for kind in _TEXTS if kind in text), None), fault)


def _sample(name: str, picture: bytes | None, text: bytes | None, fault: str | None) -> Undecoded:
    """Of the bytes of its files; without ``picture``, whatever is there is none. ``fault`` is what is wrong with it."""

    def image() -> Image.Image:
        if fault is not None or picture is None:
            raise ImageError(fault or f"'{name}' has no picture ({', '.join(SUFFIXES)})")
        return decode_image(picture, name)

    def caption() -> str | None:
        return decode_caption(text) if text is not None else None

    return Undecoded(name, image, caption, len(picture or b"") + len(text or b""))


def _archive(stream: IO[bytes]) -> tarfile.TarFile:
    """A plain tar file: of a compressed one, a few bytes could become any number of them."""
    try:
        return tarfile.open(fileobj=stream, mode="r|")
    except tarfile.ReadError as error:
        raise DataError(f"it is no plain .tar file ({error}); one that is compressed has to be unpacked") from error


def _files(archive: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Sample, ending and place of the files: up to the first point in a file's own name, and from there on."""
    for info in archive:
        folder, slash, name = info.name.rpartition("/")
        stem, _, ending = name.partition(".")
        if info.isreg() and not info.name.startswith("__"):  # so are WebDataset's own entries called
            yield folder + slash + stem, ending.lower(), info


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo, most: int) -> bytes:
    file = archive.extractfile(info)
    data = file.read(most) if file is not None else b""
    if len(data) < min(most, info.size):
        raise DataError(f"it is cut in '{info.name}'")
    return data
