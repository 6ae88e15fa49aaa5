"""Peak memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from e4t.evaluation.memory import _CLEAR, Peak


@pytest.mark.skipif(not _CLEAR.exists(), reason="the high-water mark can be set back on Linux only")
def test_what_was_held_meanwhile_counts_and_what_was_freed_before_does_not() -> None:
    held = np.ones(200_000_000, np.uint8)
    peak = Peak(torch.device("cpu"))
    held[::4096] = 2
    large = peak.bytes
    del held
    small = Peak(torch.device("cpu")).bytes
    assert large - small > 150e6
    again = Peak(torch.device("cpu"))
    before = again.bytes
    np.ones(200_000_000, np.uint8)
    assert before - small < 50e6  # so far
    assert again.bytes - small > 150e6
