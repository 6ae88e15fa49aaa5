"""Peak memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from e4t.evaluation.memory import _CLEAR, Peak


@pytest.mark.skipif(not _CLEAR.exists(), reason="the high-water mark can be set back on Linux only")
def test_what_was_held_meanwhile_counts_and_what_was_freed_before_does_not() -> None:
    held = np.ones(200_000_000, np.uint8)
    with Peak(torch.device("cpu")) as large:
        held[::4096] = 2
    del held
    with Peak(torch.device("cpu")) as small:
        pass
    assert large.bytes - small.bytes > 150e6
    with Peak(torch.device("cpu")) as again:
        np.ones(200_000_000, np.uint8)
    assert again.bytes - small.bytes > 150e6
