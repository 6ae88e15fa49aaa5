"""WebDataset shards, read from first to last from a disk or a URL: a position in the stream is always the same sample.

Shards are tar files in which files of one name and several endings are one sample (``0001.jpg``, ``0001.txt``). An
epoch goes through all of them in an order of its own; inside a shard, samples leave a buffer in random order. Both
follow from the seed, so that a resumed training reads on where it was: it leaves out the shards it knows the size of.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from threading import Lock
from time import sleep
from typing import Any

import numpy as np

from e4t.errors import ConfigError, DataError, ImageError
from e4t.pictures import MAX_CAPTION_BYTES, SUFFIXES, Packed, check_size

_TEXTS = ("txt", "caption", "text")
_PICTURES = {suffix.removeprefix(".") for suffix in SUFFIXES}
_PAUSES = (1.0, 5.0, 20.0)  # seconds, before a shard is fetched again


def shard_urls(source: str | Path) -> list[str]:
    """The shards that a source stands for, none if it is no set of shards.

    A folder of tar files, a pattern with ``*`` or ``{000..123}``, a URL (https, or whatever else the library opens), or
    several of these, one after another with ``::`` between them.
    """
    text, path = str(source), Path(source)
    inside = [str(file) for file in sorted(path.glob("*.tar"))] if path.is_dir() else []
    if not inside and not any(mark in text for mark in ("://", "{", "*", "::")) and not text.startswith("pipe:"):
        return []
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise ConfigError("this needs webdataset: install the extra with pip install 'e4t[data]'") from error
    if inside:
        return inside
    found: list[str] = []
    for part in text.split("::"):
        for url in expand_urls(part):
            found += sorted(map(str, Path().glob(url))) if "*" in url and not Path(url).is_absolute() else _globbed(url)
    if not found:
        raise DataError(f"no shard is called '{source}'")
    return found


def _globbed(url: str) -> list[str]:
    if "*" not in url or "://" in url:
        return [url]
    path = Path(url)
    return sorted(map(str, Path(path.anchor).glob(str(path.relative_to(path.anchor)))))


@dataclass
class ShardStream:
    """Samples by position, to be asked for in rising order; what was asked for stays at hand until `release`.

    ``sizes`` are the samples in each shard, as far as they are known; handed to another stream, they spare it reading
    what lies before its first position. ``broken`` are shards that ended early, and why. One that comes from elsewhere
    is fetched again before it counts as that.
    """

    urls: Sequence[str]
    seed: int
    buffer: int
    sizes: dict[str, int] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    _ended: dict[str, int] = field(default_factory=dict, repr=False)  # where in the stream broken ones did
    _kept: dict[int, Packed] = field(default_factory=dict, repr=False)
    _next: int = 0
    _samples: Iterator[Packed] | None = None
    _lock: Any = field(default_factory=Lock, repr=False)

    def at(self, position: int) -> Packed:
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

    def _from(self, position: int) -> Iterator[Packed]:
        """All samples from ``position`` on, without end."""
        epoch, passed = 0, 0
        if set(self.urls) <= set(self.sizes) and (length := sum(self.sizes[url] for url in self.urls)):
            epoch = position // length
            passed = epoch * length
        while True:
            before = passed
            for number in np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.urls)):
                url = self.urls[number]
                if url in self.sizes and passed + self.sizes[url] <= position:
                    passed += self.sizes[url]
                    continue
                for sample in self._shuffled(url, epoch, int(number)):
                    if passed >= position:
                        yield sample
                    passed += 1
                if url in self.broken:
                    self._ended.setdefault(url, passed)
            if passed == before:
                raise DataError(f"none of the {len(self.urls)} shards holds a sample{self._why()}")
            epoch += 1

    def _why(self) -> str:
        return "".join(f"; {reason}" for reason in list(self.broken.values())[:1])

    def _shuffled(self, url: str, epoch: int, number: int) -> Iterator[Packed]:
        rng = np.random.default_rng([self.seed, 2, epoch, number])
        waiting: list[Packed] = []
        for sample in self.samples(url):
            waiting.append(sample)
            if len(waiting) >= self.buffer:
                yield _taken(waiting, rng)
        while waiting:
            yield _taken(waiting, rng)

    def samples(self, url: str) -> Iterator[Packed]:
        """The samples of one shard, undecoded and in their order, to its end or to where it is damaged."""
        count = 0
        for pause in (*(_PAUSES if "://" in url or url.startswith("pipe:") else ()), None):
            try:
                for sample in islice(_packed(url), count, None):
                    yield sample
                    count += 1
                break
            except Exception as error:  # the library raises whatever tar files, pipes and servers lead it into
                reason = " ".join(str(error).split())[:160] or type(error).__name__
            if pause is None:
                self.broken[url] = f"'{url}' ends early, after {count} samples: {reason}"
            else:
                sleep(pause)
        self.sizes[url] = count


def _taken(waiting: list[Packed], rng: np.random.Generator) -> Packed:
    chosen = int(rng.integers(len(waiting)))
    waiting[chosen], waiting[-1] = waiting[-1], waiting[chosen]
    return waiting.pop()


def _packed(url: str) -> Iterator[Packed]:
    """The samples of a shard. Of files that are neither picture nor caption, and of too large ones, no byte is kept."""
    from webdataset.gopen import gopen

    with gopen(url) as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
        for key, members in groupby(_files(archive), key=lambda member: member[0]):
            picture, text, fault, name = None, {}, None, f"{url}:{key}"
            for _, ending, info in members:
                if ending.split(".")[-1] in _PICTURES and picture is None:
                    try:
                        check_size(name, info.size)
                        picture = _content(archive, info, info.size)
                    except ImageError as error:
                        fault = str(error)
                elif ending in _TEXTS:
                    text[ending] = _content(archive, info, MAX_CAPTION_BYTES)
            yield Packed(name, picture, next((text[kind] for kind in _TEXTS if kind in text), None), fault)


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
