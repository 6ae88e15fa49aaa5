"""What changes the trained weights: AdamW, in 32 or 8 bits, or Muon, and a moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from e4t.errors import ConfigError, lacks
from e4t.precision import is_here

STATE_BYTES = {"adamw": 8, "adamw8bit": 2, "muon": 4}
"""What is kept of every trained number between two steps; by Muon of those in matrices, and of the few others 8."""
_FUSED = ("cpu", "cuda")  # where torch's fused AdamW is taken; elsewhere torch decides


def new_optimizer(
    kind: str,
    groups: list[dict[str, Any]],
    *,
    weight_decay: float,
    device: torch.device,
    tables: Iterable[Tensor] = (),
) -> torch.optim.Optimizer:
    """One of `STATE_BYTES`; ``tables`` are those of the parameters that are embeddings.

    Raises ConfigError where "adamw8bit" is not installed or not made for the device.
    """
    if kind == "adamw":
        # One pass over each tensor instead of several. Not for Muon: fp16's scaler leaves it to a fused optimiser to
        # pass by a step whose gradients overflow, and Muon's matrices would not.
        return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=device.type in _FUSED or None)
    if kind == "muon":
        return Muon(groups, weight_decay=weight_decay, tables=tables)
    try:
        import bitsandbytes
    except ImportError as error:
        raise lacks("bitsandbytes", "8bit") from error
    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, weight_decay=weight_decay)
    _try_out(bitsandbytes, device)
    return optimizer


def has_adamw8bit(device: torch.device) -> bool:
    """Whether bitsandbytes is installed and works on the device; of one that is not here, whether it is made for it."""
    if find_spec("bitsandbytes") is None:
        return False
    if not is_here(device):
        return device.type in ("cuda", "xpu")
    try:
        _try_out(import_module("bitsandbytes"), device)
    except ConfigError:
        return False
    return True


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


class Muon(torch.optim.AdamW):
    """Momentum that is made orthogonal for matrices and kernels, AdamW for everything else.

    After Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon): every direction that a matrix moves in, it
    moves in as far as in any other, where AdamW follows the few that the gradient is largest in. A kernel ``[out, in,
    h, w]`` is a matrix ``[out, in * h * w]``. `torch.optim.Muon` takes matrices alone, and calculates in bfloat16 also
    where that is emulated.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        weight_decay: float,
        tables: Iterable[Tensor] = (),
        momentum: float = 0.9,
        size: float = 1.0,
    ) -> None:
        """``size`` is a step's root mean square over the learning rate: 1 is that of AdamW's first steps."""
        super().__init__(groups, weight_decay=weight_decay)
        self.momentum, self.size = momentum, size
        embeddings = {id(table) for table in tables}  # whose rows are words, with nothing to be orthogonal about
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self.matrices = {id(p) for p in parameters if _is_matrix(p)} - embeddings

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step; the gradients of matrices are gone after it."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if id(matrix) in self.matrices and matrix.grad is not None:
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(self._direction(matrix, matrix.grad), alpha=-group["lr"] * self.size)
                    matrix.grad = None  # AdamW passes by what has none
        return super().step(closure)

    def _direction(self, matrix: Tensor, gradient: Tensor) -> Tensor:
        state = self.state[matrix]
        if not state:
            state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(matrix)}
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - self.momentum)
        ahead = gradient.lerp(state["exp_avg"], self.momentum).flatten(1)  # Nesterov's
        root = math.sqrt(max(ahead.shape))  # of a matrix with singular values of 1, what makes its mean square 1
        return root * orthogonal(ahead).view_as(matrix)


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim > 1 and min(parameter.flatten(1).shape) > 1


def orthogonal(matrix: Tensor) -> Tensor:
    """``matrix`` ``[m, n]`` with all singular values near 1 (0.7 to 1.2), by Newton and Schulz's iteration, in float32.

    The coefficients are Jordan's: they raise small singular values fastest, and do not settle at 1. An iteration is a
    polynomial of X Xᵀ times X, so all of them are gathered into one matrix of the shorter side, by products or by
    eigenvalues, which X is multiplied by at the end: half of the work for kernels, and too coarse for bfloat16.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).float()
    x = x / x.norm().clamp(min=1e-7)
    gram = x @ x.T
    x = (_by_eigenvalues(gram) if _has_quick_eigenvalues(gram) else _by_products(gram)) @ x
    found: Tensor = x.T if tall else x
    return found.to(matrix.dtype)


_ITERATIONS = 5
_STEP = (3.4445, -4.7750, 2.0315)  # of the polynomial's powers of X Xᵀ


def _by_products(gram: Tensor) -> Tensor:
    """All iterations' polynomials of X Xᵀ, multiplied."""
    gathered = torch.eye(len(gram), device=gram.device)
    for _ in range(_ITERATIONS):
        step = _STEP[1] * gram + _STEP[2] * gram @ gram
        step.diagonal().add_(_STEP[0])
        gram, gathered = step @ gram @ step, step @ gathered
    return gathered


def _by_eigenvalues(gram: Tensor) -> Tensor:
    """The same within 1e-3: a polynomial of a symmetric matrix is one of its eigenvalues."""
    values, vectors = torch.linalg.eigh(gram)
    gathered = torch.ones_like(values)
    for _ in range(_ITERATIONS):
        step = _STEP[0] + _STEP[1] * values + _STEP[2] * values**2
        values, gathered = values * step**2, gathered * step
    found: Tensor = vectors * gathered @ vectors.T
    return found


def _has_quick_eigenvalues(gram: Tensor) -> bool:
    """MKL finds them in less than the products' time; on GPUs it was not tried, and nothing finds those of NaN."""
    here = gram.is_cpu and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return here and bool(gram.isfinite().all())


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


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as named tensors: ``<parameter index>.<what>``."""
    found: dict[str, Tensor] = {}
    for index, entry in optimizer.state_dict()["state"].items():
        for key, value in entry.items():
            inner = value if isinstance(value, dict) else {key: value}  # bitsandbytes nests its own, and shares some
            found |= {f"{index}.{name}": torch.as_tensor(one).clone() for name, one in inner.items()}
    return found


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser the state that `optimizer_tensors` has made of another's, with the same parameters."""
    state: dict[int, dict[str, Tensor | int]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        whole = tensor.dim() == 0 and not tensor.is_floating_point()
        state.setdefault(int(index), {})[key] = int(tensor) if whole else tensor  # torch's step counter is a float
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
