"""What changes the trained weights: AdamW, with its moments in 32 or 8 bits, and a moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from e4t.errors import ConfigError, install_extra


def new_optimizer(
    kind: str, groups: list[dict[str, Any]], *, weight_decay: float, device: torch.device
) -> torch.optim.Optimizer:
    """ "adamw" or "adamw8bit". Raises ConfigError where the second is not installed or not made for the device."""
    if kind == "adamw":
        return torch.optim.AdamW(groups, weight_decay=weight_decay)
    try:
        import bitsandbytes
    except ImportError as error:
        raise ConfigError(f"this needs bitsandbytes: {install_extra('8bit')}") from error
    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, weight_decay=weight_decay)
    _try_out(bitsandbytes, device)
    return optimizer


def _try_out(bitsandbytes: Any, device: torch.device) -> None:
    """One step of one small tensor: which devices have the 8-bit kernels depends on the library's version."""
    trial = nn.Parameter(torch.ones(8192, device=device))
    trial.grad = torch.ones_like(trial)
    try:
        bitsandbytes.optim.AdamW8bit([trial], lr=1e-3).step()
        moved = bool((trial < 1).all())
    except Exception as error:  # a kernel that is missing is an AttributeError, a RuntimeError or a ValueError
        raise _refused(device) from error
    if not moved:
        raise _refused(device)


def _refused(device: torch.device) -> ConfigError:
    return ConfigError(f"bitsandbytes has no 8-bit AdamW for the device '{device.type}' here; leave adamw8bit out")


class MovingAverage:
    """An exponential moving average of parameters, float32, by name.

    The decay rises to ``decay`` as min(decay, (1 + n) / (10 + n)) after n updates, so that the first weights, which are
    random, are soon forgotten.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = dict(parameters)
        self.decay = decay
        self.tensors = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, number: int) -> None:
        """After optimiser step ``number``, 1 the first."""
        decay = min(self.decay, (1 + number) / (10 + number))
        torch._foreach_lerp_(list(self.tensors.values()), [p.detach() for p in self.parameters.values()], 1 - decay)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)

    @contextmanager
    def worn(self) -> Iterator[None]:
        """The parameters have the averaged values inside the ``with``."""
        kept = {name: parameter.data for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            parameter.data = self.tensors[name]
        try:
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = kept[name]
