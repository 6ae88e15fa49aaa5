"""Peak memory of a piece of work."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class Peak:
    """From when it is made, `bytes` is the most that has been held so far, weights and everything else included.

    On CUDA what torch had allocated; on Linux the process's resident memory, whose high-water mark can be set back; 0
    elsewhere, where it cannot be told.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif _CLEAR.exists():
            _give_back()
            _CLEAR.write_text("5")  # proc(5): resets VmHWM

    @property
    def bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text()) if _STATUS.exists() else None
        return 1024 * int(found[1]) if found else 0


def _give_back() -> None:
    """Memory that is free, but kept by the allocator for the process, would count for what comes next."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
