"""What tests of the command line share: random pictures, and what `--json` prints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

_RNG = np.random.default_rng(0)


def noise(path: Path, size: tuple[int, int] = (20, 24)) -> Path:
    """A random picture, written to ``path``."""
    Image.fromarray(_RNG.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def events(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    """What a command with `--json` has printed since the last look."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]
