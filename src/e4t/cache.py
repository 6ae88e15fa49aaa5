"""What the autoencoder and CLIP see in pictures, written once: training then needs neither network, nor the pictures.

A cache is a folder of ``index.json`` and shards in safetensors format: ``mean`` and ``std`` of the autoencoder's
posterior [N, C, h, w] and ``features`` [N, layers, width], the [CLS] of CLIP's layers, with captions in the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from e4t.backbone import Backbone
from e4t.checkpoint import BaseModel
from e4t.config import at_least, fits
from e4t.data import Ahead, ImageData, Shuffle
from e4t.errors import ConfigError, DataError, ImageError
from e4t.pictures import Undecoded
from e4t.processes import Processes
from e4t.shards import source_name
from e4t.sources import read_json
from e4t.writing import new_files, unfinished

FORMAT_VERSION = 1
_INDEX = "index.json"
_BEGUN = "begun.json"  # the same, while shards are missing
_TENSORS = ("mean", "std", "features")
_LOOKED = ("resolution", "crop_scale", "flip", "color_jitter")
_NETWORKS = ("base", "vae", "image_encoder")
_ASIDE = ("_name_or_path", "_diffusers_version", "transformers_version", "dtype", "torch_dtype")
"""Of a network's config: where it lay, what saved it and in which type it was read, and nothing of what it sees."""

_AT_ONCE = 8  # views that the networks see together


@dataclass(frozen=True)
class Seen:
    """What the frozen networks see in pictures: the autoencoder's posterior (unscaled), CLIP's features, captions."""

    mean: Tensor  # [B, C, h, w]
    std: Tensor  # as mean, or one number of each picture [B, 1, 1, 1]
    features: Sequence[Tensor]  # [B, width] each
    captions: Sequence[str | None]

    @classmethod
    def joined(cls, parts: Sequence[Seen]) -> Seen:
        return cls(
            torch.cat([part.mean for part in parts]),
            torch.cat([part.std for part in parts]),
            [torch.cat(layer) for layer in zip(*(part.features for part in parts), strict=True)],
            [caption for part in parts for caption in part.captions],
        )

    def to(self, device: torch.device | str) -> Seen:
        return Seen(self.mean.to(device), self.std.to(device), [f.to(device) for f in self.features], self.captions)


@dataclass(frozen=True)
class CacheConfig:
    """How pictures are looked at before they are forgotten; the rest is as in `PretrainConfig`.

    ``views`` of every picture are kept, each cropped, mirrored and coloured in its own way; ``shard_size`` pictures go
    into a file, and of shards what each of them holds. ``workers`` threads decode pictures ahead, which changes no
    number; without them, each is decoded when it is looked at.
    """

    views: int = 1
    layer_stride: int = 2
    shard_size: int = 1_000
    dtype: str = "float16"
    workers: int = 0

    def __post_init__(self) -> None:
        for name, least in (("views", 1), ("layer_stride", 1), ("shard_size", 1), ("workers", 0)):
            at_least(name, getattr(self, name), least)


@dataclass(frozen=True)
class Written:
    """What a finished shard says of itself."""

    number: int
    shards: int
    rows: int


def write_cache(
    data: ImageData, backbone: Backbone, config: CacheConfig, output: Path, processes: Processes | None = None
) -> Iterator[Written]:
    """Write a cache, a shard at a time; shards that are there already are kept, so that the same call goes on.

    Of several processes each writes its share of the shards. Raises DataError where a cache of other settings is in the
    way, no picture could be read, what is seen in all pictures of a shard is no number, or, after all others are
    written, shards could not be reached.
    """
    together = processes or Processes()
    output.mkdir(parents=True, exist_ok=True)
    said = _description(data, backbone, config)
    _begin(output, said, together)
    parts = list(_parts(data, config.shard_size))
    files = [output / f"{number:05d}.safetensors" for number in range(len(parts))]
    for number in range(together.rank, len(parts), together.count):
        if not files[number].exists():
            _write_shard(files[number], number * config.shard_size, parts[number], data, backbone, config)
        if files[number].exists():
            rows, _ = _counts(files[number])
            yield Written(number + 1, len(parts), rows)
    together.wait()
    _require_all(files if together.is_first else files[together.rank :: together.count], data)
    if together.is_first:
        _finish(output, said, files)


def _require_all(files: Sequence[Path], data: ImageData) -> None:
    missing = [file for file in files if not file.exists()]
    if missing:
        away = sorted(data.stream.unreachable) if data.stream is not None else []
        reason = f", the first because {data.broken[away[0]]}" if away else ""
        raise DataError(
            f"{len(missing)} of {len(files)} shards of '{data.source}' could not be read here and now{reason}; "
            "run the same again for them, or leave them out"
        )


def _description(data: ImageData, backbone: Backbone, config: CacheConfig) -> dict[str, Any]:
    return {
        "kind": "cache",
        "format_version": FORMAT_VERSION,
        "base": BaseModel.of(backbone).to_dict(),
        "vae": _plain(backbone.vae.config),
        "image_encoder": _plain(backbone.image_config.to_dict()),
        "pictures": {
            "source": source_name(data.source),
            "resolution": data.resolution,
            "crop_scale": list(data.config.crop_scale),
            "flip": data.config.flip,
            "color_jitter": data.config.color_jitter,
            "seed": data.config.seed,
        },
        "views": config.views,
        "layer_stride": config.layer_stride,
        "shard_size": config.shard_size,
        "dtype": config.dtype,
    }


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A network's config as JSON has it."""
    kept = {name: value for name, value in config.items() if name not in _ASIDE}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


def _is_same(there: Mapping[str, Any], said: Mapping[str, Any]) -> bool:
    """Whether two descriptions are of one cache: networks by their weights, and by what the configs of both say."""
    if not all(isinstance(there.get(name), dict) for name in _NETWORKS):
        return False
    weights = [(there["base"].get(name), said["base"][name]) for name in ("fingerprint", "image_encoder_fingerprint")]
    configs = [(_plain(there[name]), said[name]) for name in ("vae", "image_encoder")]
    told = [(before[name], now[name]) for before, now in configs for name in before.keys() & now.keys()]
    rest = [(there.get(name), value) for name, value in said.items() if name not in _NETWORKS]
    return all(before == now for before, now in (*weights, *told, *rest))


def _begin(output: Path, said: Mapping[str, Any], processes: Processes) -> None:
    """Remember what the shards will be of, or check that those there are of the same."""
    begun = output / _BEGUN
    there = next((read_json(file) for file in (output / _INDEX, begun) if file.is_file()), None)
    if there is not None and not _is_same(there, said):
        raise DataError(f"'{output}' holds a cache of other pictures, settings or networks; choose another folder")
    left = unfinished(output)
    if there is None and set(output.iterdir()) - set(left):
        raise DataError(f"'{output}' is not empty and no cache; choose another folder")
    processes.wait()  # until all have looked
    if processes.is_first:
        for path in left:
            path.unlink(missing_ok=True)
        if there is None:
            _write_json(begun, said)
    processes.wait()


@dataclass(frozen=True)
class _Part:
    """Pictures that go into a shard together; ``shard`` is what they come from, by its name in a stream."""

    entries: Iterable[Undecoded]
    shard: str | None = None


def _parts(data: ImageData, size: int) -> Iterator[_Part]:
    """So many of a numbered source, or what a shard of a stream holds."""
    if data.stream is not None:
        for url in data.stream.urls:
            yield _Part(data.stream.samples(url), data.stream.name_of(url))
    for begin in range(0, len(data), size):
        yield _Part(data.entries[number] for number in range(begin, min(begin + size, len(data))))


def _write_shard(file: Path, first: int, part: _Part, data: ImageData, backbone: Backbone, config: CacheConfig) -> None:
    """Every view of every picture, but of those that are left out (`_rows`).

    Nothing is written where the pictures cannot be reached: the next time they may be.
    """
    left_out: dict[int, _Shown] = {}
    with closing(_shown(part, first, data, config)) as pictures:
        tensors, captions = _rows(pictures, left_out, backbone, config)
    for picture in left_out.values():
        data.broken.setdefault(picture.name, str(picture.fault))
    if data.stream is not None:
        data.broken |= data.stream.broken
        if part.shard in data.stream.unreachable:
            return
    metadata = {"rows": str(len(captions)), "skipped": str(len(left_out)), "captions": json.dumps(captions)}
    with new_files([file], DataError) as (beside,):
        save_file(tensors, beside, metadata=metadata)


@dataclass(frozen=True)
class _Shown:
    """A picture and its views, a target and a reference each; or its ``fault``, for which it is left out."""

    number: int
    name: str
    views: Sequence[tuple[Tensor, Tensor]] = ()
    caption: str | None = None
    fault: str | None = None


def _shown(part: _Part, first: int, data: ImageData, config: CacheConfig) -> Generator[_Shown, None, None]:
    """Pictures in their order, decoded ahead by threads, whose number therefore changes nothing."""
    entries = enumerate(part.entries, first)
    size = max(_AT_ONCE, config.workers)
    show = partial(_decoded, data=data, views=config.views)

    def load(_: int, run: Callable[..., Iterable[Any]]) -> list[_Shown]:
        return list(run(show, list(islice(entries, size))))

    with closing(Ahead(load, config.workers)) as ahead:
        for index in count():
            if not (some := ahead(index)):
                return
            yield from some


def _decoded(numbered: tuple[int, Undecoded], *, data: ImageData, views: int) -> _Shown:
    number, entry = numbered
    try:
        image, caption = entry.image(), entry.caption()
    except ImageError as error:
        return _Shown(number, entry.name, fault=str(error))
    crops = (np.random.default_rng([data.config.seed, 3, number, view]) for view in range(views))
    return _Shown(number, entry.name, [data.views_of(image, rng) for rng in crops], caption)


def _rows(
    pictures: Iterable[_Shown], left_out: dict[int, _Shown], backbone: Backbone, config: CacheConfig
) -> tuple[dict[str, Tensor], list[str | None]]:
    """What the networks see in pictures, and captions, a row for each view. Raises DataError where nothing is a number.

    To ``left_out`` come, by number, pictures that cannot be decoded, and those in which something that is no number is
    seen in any view: training would stop at it, and at every repetition again.
    """
    shown: list[_Shown] = []  # of every row
    seen: dict[str, list[Tensor]] = {name: [] for name in _TENSORS}  # of rows that were looked at together

    def views() -> Iterator[tuple[Tensor, Tensor]]:
        for picture in pictures:
            if picture.fault is not None:
                left_out[picture.number] = picture
            shown.extend([replace(picture, views=())] * len(picture.views))
            yield from picture.views

    waiting = views()
    while some := list(islice(waiting, _AT_ONCE)):
        targets, references = zip(*some, strict=True)
        mean, std = backbone.posterior(torch.stack(targets))
        layers = backbone.image_features(torch.stack(references), layer_stride=config.layer_stride)
        for name, part in zip(_TENSORS, (mean, std, torch.stack(layers, dim=1)), strict=True):
            seen[name].append(part.to("cpu", getattr(torch, config.dtype)).contiguous())
    if not shown:
        return {}, []
    finite = [torch.cat([part.isfinite().flatten(1).all(dim=1) for part in parts]).tolist() for parts in seen.values()]
    odd = {p.number: p for p, *whole in zip(shown, *finite, strict=True) if not all(whole)}
    if len(odd) == len({picture.number for picture in shown}):
        raise DataError(_no_number(f"all {len(odd)} pictures of a shard", backbone))
    left_out |= {number: replace(p, fault=_no_number(f"'{p.name}'", backbone)) for number, p in odd.items()}
    kept = torch.tensor([picture.number not in odd for picture in shown])
    rows = torch.split(kept, [len(part) for part in seen["mean"]])
    tensors = {}
    for name in _TENSORS:  # one after the other: a shard of many pictures is large
        tensors[name] = torch.cat([part[good] for part, good in zip(seen.pop(name), rows, strict=True)])
    return tensors, [picture.caption for picture in shown if picture.number not in odd]


def _no_number(what: str, backbone: Backbone) -> str:
    dtype = str(backbone.vae.dtype).removeprefix("torch.")
    advice = "the base may be damaged" if dtype == "float32" else "--dtype float32 may help"
    return f"what the networks see in {what} is no number in {dtype}; {advice}"


def _counts(file: Path) -> tuple[int, int]:
    metadata = _opened(file).metadata() or {}
    try:
        return int(metadata["rows"]), int(metadata["skipped"])
    except (KeyError, ValueError) as error:
        raise DataError(f"'{file}' is no shard of a cache; delete it and run 'e4t cache' again") from error


def _finish(output: Path, said: Mapping[str, Any], files: Sequence[Path]) -> None:
    shards = []
    for file in files:
        rows, skipped = _counts(file)
        shards.append({"file": file.name, "rows": rows, "skipped": skipped})
    if not any(shard["rows"] for shard in shards):
        raise DataError(f"'{said['pictures']['source']}' holds no picture that can be read")
    _write_json(output / _INDEX, {**said, "shards": shards})
    (output / _BEGUN).unlink(missing_ok=True)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    with new_files([path], DataError) as (beside,):
        beside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise _broken(file, str(error)) from error


class CachedData:
    """A cache to train from: every epoch goes through all pictures, one of whose views is drawn.

    Raises DataError for one that is unfinished, of another format, or lacks a shard.
    """

    def __init__(self, folder: str | Path, *, seed: int) -> None:
        self.folder = Path(folder)
        self.seed = seed
        self.broken: dict[str, str] = {}
        if not (self.folder / _INDEX).is_file():
            raise DataError(f"the cache '{folder}' is unfinished: run the same 'e4t cache' again")
        self.index = read_json(self.folder / _INDEX)
        if self.index.get("kind") != "cache" or self.index.get("format_version") != FORMAT_VERSION:
            raise DataError(f"'{folder}' is no cache of format version {FORMAT_VERSION}")
        try:
            counts = [(Path(shard["file"]).name, _whole(shard["rows"], 0)) for shard in self.index["shards"]]
            self.views, self.layer_stride = (_whole(self.index[name], 1) for name in ("views", "layer_stride"))
            self.pictures = {name: self.index["pictures"][name] for name in _LOOKED}
            self.base = BaseModel.from_dict(self.index["base"])
            self._networks = {name: dict(self.index[name]) for name in ("vae", "image_encoder")}
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise DataError(f"'{self.folder / _INDEX}' is incomplete or broken: {error}") from error
        if not any(rows for _, rows in counts):
            raise DataError(f"the cache '{folder}' holds no pictures")
        for file, rows in counts:
            if _counts(self.folder / file)[0] != rows or rows % self.views:
                raise DataError(f"'{self.folder / file}' has other rows than the index says; make the cache anew")
        self._places = [(file, row) for file, rows in counts for row in range(0, rows, self.views)]
        self._rows = dict(counts)
        self._shuffle = Shuffle(len(self._places), seed)
        self._files: dict[str, tuple[Any, list[str | None]]] = {}

    @staticmethod
    def is_one(folder: str | Path) -> bool:
        return any((Path(folder) / name).is_file() for name in (_INDEX, _BEGUN))

    def __len__(self) -> int:
        return len(self._places)

    def eyes(self) -> dict[str, Any]:
        """What `Backbone.from_pretrained` has to know of the networks that looked."""
        return {
            **self._networks,
            "image_encoder_name": self.base.image_encoder,
            "known_image_encoder": self.base.image_encoder_fingerprint,
        }

    def at(self, positions: Iterable[int], *, layer_stride: int) -> Seen:
        """Float32, on the CPU. Raises ConfigError for CLIP layers that were not kept."""
        if layer_stride % self.layer_stride:
            raise ConfigError(
                f"the cache '{self.folder}' keeps every {self.layer_stride}th layer of CLIP, from which every "
                f"{layer_stride}th cannot be had; make it anew, or set encoder.layer_stride"
            )
        return Seen.joined([self._row(position, layer_stride // self.layer_stride) for position in positions])

    def _row(self, position: int, stride: int) -> Seen:
        file, row = self._places[self._shuffle.pick(position)]
        row += int(np.random.default_rng([self.seed, 1, position]).integers(self.views))
        if file not in self._files:
            self._files[file] = self._shard(file)
        shard, captions = self._files[file]
        try:
            mean, std, features = (shard.get_slice(name)[row : row + 1].float() for name in _TENSORS)
        except (OSError, SafetensorError) as error:
            raise _broken(self.folder / file, str(error)) from error
        layers = list(features.unbind(dim=1))
        return Seen(mean, std, layers[stride - 1 :: stride], [captions[row]])

    def _shard(self, file: str) -> tuple[Any, list[str | None]]:
        """A shard and its captions. Raises DataError where it does not have a row of everything for every view."""
        path, rows = self.folder / file, self._rows[file]
        shard = _opened(path)
        try:
            captions = json.loads((shard.metadata() or {})["captions"])
            mean, std, features = (tuple(shard.get_slice(name).get_shape()) for name in _TENSORS)
        except (KeyError, ValueError, RecursionError, SafetensorError) as error:
            raise _broken(path, str(error)) from error
        if not fits(captions, list[str | None]):
            raise _broken(path, "its captions are no list of texts")
        if (len(mean), len(features)) != (4, 3) or mean != std or {len(captions), mean[0], features[0]} != {rows}:
            raise _broken(path, f"it does not have {rows} rows of everything")
        return shard, captions


def _whole(value: Any, least: int) -> int:
    """A whole number of a config. Raises ValueError for anything else, and for less."""
    if not fits(value, int) or value < least:
        raise ValueError(f"{str(value)[:20]} is no whole number of {least} or more")
    return int(value)


def _broken(shard: Path, why: str) -> DataError:
    return DataError(
        f"'{shard}' is missing, cut or damaged ({why}); delete it and 'index.json' and run 'e4t cache' again"
    )
