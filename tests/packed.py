"""Pictures packed in the ways that training reads, for tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def png(seed: int, size: tuple[int, int] = (20, 24)) -> bytes:
    """A picture of noise as the bytes of a file."""
    values = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def write_shards(folder: Path, counts: Iterable[int]) -> list[Path]:
    """Shards of so many samples; picture and caption of sample n follow from n, counted through."""
    folder.mkdir(exist_ok=True)
    paths, number = [], 0
    for shard, count in enumerate(counts):
        files: dict[str, bytes] = {}
        for _ in range(count):
            files |= {f"{number:04d}.png": png(number), f"{number:04d}.txt": f"face {number}".encode()}
            number += 1
        paths.append(write_tar(folder / f"{shard:03d}.tar", files))
    return paths
