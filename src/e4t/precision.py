"""Which arithmetic a device is fast at. Most processors emulate bfloat16, at a hundredth of float32's speed."""

from __future__ import annotations

import torch


def has_fast_bfloat16(device: torch.device | str) -> bool:
    """Whether ``device`` multiplies in bfloat16 at least as fast as in float32; CPUs need AVX-512 BF16, AMX or SVE."""
    if torch.device(device).type != "cpu":
        return True
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def training_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 where the hardware has it, else float32."""
    return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
