"""Several processes that train as one: who this one is, which rows of a batch are its own, and what they share.

`torchrun` and `accelerate launch` start them; gradients are averaged by torch's DistributedDataParallel, through
accelerate. Every process draws the random numbers of the whole batch and takes its rows, so that N processes with
batches of B do what one does with batches of N · B, up to rounding.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from e4t.errors import ConfigError

_T = TypeVar("_T")
_SHARDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron",
}


@dataclass(frozen=True)
class Processes:
    """This process among ``count``; alone, nothing here does anything."""

    rank: int = 0
    count: int = 1
    accelerator: Any = None

    @classmethod
    def launched(cls, device: str | torch.device) -> Processes:
        """As the environment says, which a launcher sets up. Raises ConfigError for ways of sharing that do not fit."""
        for variable, name in _SHARDED.items():
            if os.environ.get(variable, "").lower() in ("1", "true", "yes"):
                raise ConfigError(
                    f"{name} splits large trained networks, but here only a small encoder and offsets are trained: "
                    "choose MULTI_GPU (plain data parallelism) in 'accelerate config', or launch with torchrun"
                )
        if launched_as()[1] == 1:
            return cls()
        from accelerate import Accelerator

        # Autocast, compiling, accumulation and batches are those of the settings, whatever the launcher's config says.
        cpu = torch.device(device).type == "cpu"
        accelerator = Accelerator(cpu=cpu, mixed_precision="no", dynamo_backend="no")
        if cpu:  # gloo's threads, left to the interpreter's end, now and then abort a process that has done its work
            atexit.register(_leave)
        return cls(accelerator.process_index, accelerator.num_processes, accelerator)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def rows(self, size: int) -> slice:
        """This process's rows of a batch that has ``size`` for each."""
        return slice(self.rank * size, (self.rank + 1) * size)

    def shared(self, objective: nn.Module) -> nn.Module:
        """A module whose gradients are averaged over all processes after a backward pass."""
        if self.accelerator is None:
            return objective
        wrapped: nn.Module = self.accelerator.prepare(objective)
        return wrapped

    @contextmanager
    def apart(self, objective: nn.Module, when: bool) -> Iterator[None]:
        """Gradients stay this process's own inside the ``with``, as accumulation wants it."""
        if self.accelerator is None or not when:
            yield
            return
        with self.accelerator.no_sync(objective):
            yield

    def mean(self, numbers: Tensor) -> Tensor:
        """The mean over all processes, the same in each."""
        if self.accelerator is None:
            return numbers
        averaged: Tensor = self.accelerator.reduce(numbers, reduction="mean")
        return averaged

    def gathered(self, values: list[_T]) -> list[_T]:
        """The values of all processes; every one of them has to ask."""
        if self.accelerator is None:
            return values
        from accelerate.utils import gather_object

        found: list[_T] = gather_object(values)
        return found

    def wait(self) -> None:
        """Until all are here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def launched_as() -> tuple[int, int]:
    """This process's number, and how many a launcher has started."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def launched_device(name: str) -> str:
    """The device of this process: "cuda" is the one of its number on this machine, if a launcher gave it one."""
    place = torch.device(name)
    if place.type != "cpu" and place.index is None and "LOCAL_RANK" in os.environ:
        return f"{place.type}:{os.environ['LOCAL_RANK']}"
    return name
