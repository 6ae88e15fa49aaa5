"""Training pictures on disk: drawn once in shards, with their captions as tokens.

A shard is a folder's ``NNNNN.rgb.npy`` (uint8 ``[n, size, size, 3]``). It is written beside and renamed, so the same
command continues where it was stopped; everything else is recomputed from the picture's index.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from e4t.tiny.captions import picture_about, training_caption, training_picture
from e4t.tiny.world import WORLD_VERSION, draw

SHARD = 2000


def draw_shards(
    folder: Path, count: int, *, about: str | None = None, size: int = 128, processes: int = 2
) -> Iterator[int]:
    """Draw the first ``count`` training pictures into ``folder``; yields how many are there after each shard.

    ``about`` "face", "cat" or "art" draws those of `picture_about` instead.
    """
    folder = folder / f"world-{WORLD_VERSION}-{size}px"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(-(-count // SHARD)) if not _path(folder, i).exists()]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for _ in pool.imap_unordered(_draw_shard, [(folder, i, size, about) for i in missing]):
            yield len(sorted(folder.glob("*.rgb.npy"))) * SHARD


def _path(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05d}.rgb.npy"


def _draw_shard(job: tuple[Path, int, int, str | None]) -> None:
    folder, shard, size, about = job
    indices = range(shard * SHARD, (shard + 1) * SHARD)
    stream = (training_picture(i) if about is None else picture_about(about, i) for i in indices)
    pictures = [draw(picture, size).rgb for picture in stream]
    beside = folder / f".{shard:05d}.{os.getpid()}.npy"
    np.save(beside, np.stack(pictures))
    beside.rename(_path(folder, shard))


class Shards:
    """Drawn pictures left on disk, indexed as an array ``[n, size, size, 3]`` uint8; what is taken out is a copy."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._parts = [np.load(path, mmap_mode="r") for path in paths]
        self.shape: tuple[int, ...] = (sum(map(len, self._parts)), *self._parts[0].shape[1:])

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, key: Any) -> np.ndarray:
        rows, *inside = key if isinstance(key, tuple) else (key,)
        picked = np.arange(len(self))[rows]
        if picked.ndim == 0:
            return np.asarray(self._picture(int(picked))[tuple(inside)])
        out = np.empty((len(picked), *self.shape[1:]), np.uint8)
        for place, row in enumerate(picked):
            out[place] = self._picture(int(row))
        everywhere = (slice(None), *inside)
        return np.asarray(out[everywhere])

    def _picture(self, row: int) -> np.ndarray:
        shard, place = divmod(row, len(self._parts[0]))
        return np.array(self._parts[shard][place])


def load_shards(folder: Path, count: int | None = None, *, size: int = 128) -> tuple[Shards, np.ndarray]:
    """The shards of the first ``count`` drawn pictures and their indices ``[n]``."""
    paths = sorted((folder / f"world-{WORLD_VERSION}-{size}px").glob("*.rgb.npy"))
    paths = paths[: None if count is None else -(-count // SHARD)]
    if not paths:
        raise FileNotFoundError(f"no drawn pictures in {folder}; run the 'draw' stage first")
    indices = [np.arange(SHARD) + SHARD * int(path.name.split(".")[0]) for path in paths]
    return Shards(paths), np.concatenate(indices)


def to_pixels(rgb: np.ndarray) -> Tensor:
    """uint8 ``[n, h, w, 3]`` to float32 ``[n, 3, h, w]`` in [-1, 1]."""
    return torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_rgb(pixels: Tensor) -> np.ndarray:
    """The inverse of `to_pixels`."""
    rgb: np.ndarray = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return rgb


def captions_of(indices: np.ndarray, variants: int, wording: Callable[..., str] = training_caption) -> list[list[str]]:
    """``variants`` wordings of the caption of each picture; `misleading_caption` gives wrong ones instead."""
    captions = []
    for index in map(int, indices):
        picture = training_picture(index)
        captions.append([wording(index, picture, variant=v) for v in range(variants)])
    return captions
