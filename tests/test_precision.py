"""The arithmetic a device is fast at."""

from __future__ import annotations

import pytest
import torch

from e4t.precision import has_fast_bfloat16, training_dtype


def test_accelerators_have_bfloat16():
    assert has_fast_bfloat16("cuda")
    assert training_dtype("mps") == torch.bfloat16


@pytest.mark.parametrize("supported", [True, False])
def test_processors_are_asked(supported, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    assert has_fast_bfloat16(torch.device("cpu")) == supported
    assert training_dtype("cpu") == (torch.bfloat16 if supported else torch.float32)
