"""Networks in training: float32 master weights, Muon and Adam, a moving average, checkpoints."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from e4t.errors import CheckpointError, TrainingError
from e4t.optimizers import Muon

COOLDOWN = 0.25  # of all steps, at the end, on which the learning rate falls to nothing
_BY_ADAM = ("token_embedding", "position_embedding", "heads.")


@dataclass
class Trained:
    """Networks with float32 master weights, optimiser state and an exponential moving average.

    The networks themselves are in ``dtype``: bfloat16 is several times faster where the hardware has it and, with the
    masters beside it, loses no small update. Matrices and convolution kernels learn by Muon (orthogonalised momentum,
    its step scaled to the size of Adam's, so that one learning rate serves both), everything else by AdamW. ``steps``
    is the whole length: after a warm-up the rate is constant, then falls to nothing over the last quarter. The state
    is a flat safetensors file.
    """

    networks: dict[str, nn.Module]
    learning_rate: float
    warmup: int
    ema_decay: float
    steps: int
    dtype: torch.dtype = torch.float32
    step: int = 0
    masters: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, network in self.networks.items():
            trainable = {key: p for key, p in network.named_parameters() if p.requires_grad}
            self.masters |= {f"{name}.{key}": p.detach().float().clone().contiguous() for key, p in trainable.items()}
            network.to(self.dtype)
        self.parameters = {f"{n}.{k}": p for n, net in self.networks.items() for k, p in net.named_parameters()}
        self.parameters = {key: self.parameters[key] for key in self.masters}
        self.average = {key: master.clone() for key, master in self.masters.items()}
        # Muon takes matrices: a kernel [out, in, h, w] is one of [out, in * h * w], a view of the same memory.
        self.optimised = {k: m.flatten(1) if _is_matrix(k, m) else m for k, m in self.masters.items()}
        matrices = [view for key, view in self.optimised.items() if _is_matrix(key, self.masters[key])]
        others = [view for key, view in self.optimised.items() if not _is_matrix(key, self.masters[key])]
        rate = self.learning_rate
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon([{"params": matrices, "lr": rate}], weight_decay=0.01, momentum=0.95, size=0.2),
            torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True),
        ]

    def update(self, loss: Tensor) -> float:
        """One optimiser step on ``loss``; returns its value. Raises TrainingError if it is not a number."""
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"the loss of step {self.step + 1} is {value}; resume with a lower learning rate")
        loss.backward()  # type: ignore[no-untyped-call]
        for key, parameter in self.parameters.items():
            view = self.optimised[key]
            view.grad = None if parameter.grad is None else parameter.grad.float().reshape(view.shape)
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(list(self.optimised.values()), 1.0)
        rate = self._rate()
        self.step += 1
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self._publish()
        return value

    def _rate(self) -> float:
        rising = (self.step + 1) / max(1, self.warmup)
        falling = (self.steps - self.step) / (COOLDOWN * self.steps)
        return self.learning_rate * min(1.0, rising, falling)

    @torch.no_grad()
    def _publish(self) -> None:
        """Copy the masters to the networks and into the moving average."""
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        masters = list(self.masters.values())
        torch._foreach_copy_(list(self.parameters.values()), masters)
        torch._foreach_lerp_(list(self.average.values()), masters, 1 - decay)

    @torch.no_grad()
    def settle(self, *names: str) -> None:
        """Make the average of the named networks what they are; without gradients they stay that way."""
        for key, master in self.masters.items():
            if key.split(".")[0] in names:
                master.copy_(self.average[key])
                self.parameters[key].copy_(master)

    def _states(self) -> Iterator[tuple[str, torch.optim.Optimizer, Tensor]]:
        for optimizer in self.optimizers:
            members = {id(p) for group in optimizer.param_groups for p in group["params"]}
            yield from ((key, optimizer, view) for key, view in self.optimised.items() if id(view) in members)

    def save(self, path: Path) -> None:
        """Write everything needed to continue, beside and then renamed."""
        tensors = {f"master/{key}": t for key, t in self.masters.items()}
        tensors |= {f"ema/{key}": t for key, t in self.average.items()}
        for key, optimizer, view in self._states():
            parts = optimizer.state.get(view, {}).items()
            tensors |= {f"state/{key}/{part}": value for part, value in parts if part != "step"}
        write_beside({k: t.contiguous() for k, t in tensors.items()}, path, {"step": str(self.step)})

    def load(self, path: Path) -> None:
        """Continue from `save`'s file, if there is one. Raises CheckpointError if it is of other networks."""
        if not path.exists():
            return
        tensors = load_file(path)
        if missing := [key for key in self.masters if not {f"master/{key}", f"ema/{key}"} <= tensors.keys()]:
            raise CheckpointError(f"'{path}' holds no {missing[0]}: it is of another architecture; use a new folder")
        self.step = step_of(path)
        with torch.no_grad():
            for key, master in self.masters.items():
                master.copy_(tensors[f"master/{key}"])
                self.average[key].copy_(tensors[f"ema/{key}"])
                self.parameters[key].copy_(master)
        for key, optimizer, view in self._states():
            by_muon = isinstance(optimizer, Muon) and id(view) in optimizer.matrices
            parts = ("exp_avg",) if by_muon else ("exp_avg", "exp_avg_sq")
            if all(f"state/{key}/{part}" in tensors for part in parts):  # what never had a gradient has no state
                state = {part: tensors[f"state/{key}/{part}"].to(view.device) for part in parts}
                optimizer.state[view] = state | {"step": torch.tensor(float(self.step), device=view.device)}

    @torch.no_grad()
    def averaged(self, name: str) -> Any:
        """A copy of the named network in float32 with the moving average's weights."""
        network: Any = copy.deepcopy(self.networks[name]).float()
        for key, parameter in network.named_parameters():
            if f"{name}.{key}" in self.average:
                parameter.copy_(self.average[f"{name}.{key}"])
        return network.eval()


def _is_matrix(key: str, master: Tensor) -> bool:
    """Whether Muon serves this parameter: kernels and linear maps, but no tables of embeddings.

    Nor wide heads that are thrown away, whose orthogonalisation would take a quarter of a step; nor depthwise kernels:
    their rows belong to separate channels, which have no reason to be orthogonal.
    """
    depthwise = master.ndim == 4 and master.shape[1] == 1
    return master.ndim >= 2 and not depthwise and not any(name in key for name in _BY_ADAM)


def write_beside(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file whole or not at all."""
    beside = path.with_suffix(".partial")
    save_file(tensors, beside, metadata=metadata)
    beside.rename(path)


def step_of(path: Path) -> int:
    """The step a training's file was written at; 0 where there is none."""
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])
