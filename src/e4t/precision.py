"""Which device there is, and which arithmetic it is fast at.

Many emulate bfloat16, processors at a hundredth of float32's speed.
"""

from __future__ import annotations

import platform

import torch


def best_device() -> torch.device:
    """An NVIDIA or AMD GPU, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def is_here(device: torch.device | str) -> bool:
    """Whether this machine has the device, and torch can use it."""
    try:
        torch.empty(0, device=device)
    except Exception:  # another one for every kind of device and build of torch
        return False
    return True


def has_fast_bfloat16(device: torch.device | str) -> bool:
    """Whether ``device`` multiplies in bfloat16 at least as fast as in float32.

    CPUs need AVX-512 BF16, AMX or SVE, and NVIDIA's GPUs compute capability 8 (a T4 or V100 has less). Of a GPU that is
    not here, because something is reckoned for another machine, it is assumed.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        if not torch.cuda.is_available():
            return True
        with torch.cuda.device(device):  # torch asks the current one
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind != "cpu":
        return True
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):
        # oneDNN says it supports bfloat16 wherever there is AVX-512, and emulates it at a quarter of float32's speed.
        asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # a torch without these is slow, not wrong
        return any(getattr(torch.cpu, name, bool)() for name in asked)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


AUTOCAST_OF = {torch.float16: "fp16", torch.bfloat16: "bf16"}
"""What mixed precision has to be, by the type of the frozen weights; with float32 it may be any."""


def chosen_precision(device: torch.device | str, weights: torch.dtype = torch.float32, *, measured: str = "no") -> str:
    """Mixed precision where nobody asks for one: what ``weights`` need, else what a domain was ``measured`` with.

    Where that is none, "bf16" on CUDA's GPUs that are fast at it. Processors stay with float32, which the shipped
    domains were measured in, and so do Apple's GPUs, where nothing was tried.
    """
    fast = torch.device(device).type == "cuda" and has_fast_bfloat16(device)
    usual = "bf16" if fast and measured == "no" else measured
    return AUTOCAST_OF.get(weights, usual)


def training_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 where the hardware has it, else float32."""
    return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
