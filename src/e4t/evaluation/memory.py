"""Peak memory of a piece of work."""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType

import torch
from typing_extensions import Self

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class Peak:
    """``with Peak(device) as peak: ...`` then ``peak.bytes``: the most that was held meanwhile, weights included.

    On CUDA what torch had allocated; on Linux the process's resident memory, whose high-water mark can be set back; 0
    elsewhere, where it cannot be told.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif _CLEAR.exists():
            _CLEAR.write_text("5")  # proc(5): resets VmHWM
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        elif _STATUS.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())):
            self.bytes = 1024 * int(found[1])
