"""Weight offsets: attention weights become ``W * (1 + Δ) + D`` on an untouched U-Net.

Δ belongs to the domain and is shared by all its concepts (paper, section on weight offsets); D belongs to one concept.
Both are composed in float32 and cast once, because ``1 + Δ`` in bfloat16 loses every change below 0.3 %. The base
tensors are never written to: they stay reachable by reference, for `base_weights` and for an exact `eject`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from e4t.config import OffsetsConfig
from e4t.errors import OffsetsError

_FUSED: WeakSet[nn.Linear] = WeakSet()
"""Layers whose weights are composed ones at the moment, by whichever object."""


class PaperForm(nn.Module):
    """Δ as the paper's figure has it: v0, two linears, outer product, column-wise linear, row-wise linear.

    Written out, with x and y the column and row vector,
    ``Δ = (W_c x)(W_r y)ᵀ + b_c (W_r 1)ᵀ + 1 b_rᵀ``: rank 3 at most. Computed in this form it costs four matrix-vector
    products and has the values and gradients of the four linears. Δ = 0 at the start through the last linear alone,
    so that every other parameter already sits where gradients will reach it.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.v0 = nn.Parameter(torch.ones(1))
        self.to_column = nn.Linear(1, rows)
        self.to_row = nn.Linear(1, columns)
        self.column_wise = nn.Linear(rows, rows)
        self.row_wise = nn.Linear(columns, columns)
        nn.init.zeros_(self.row_wise.weight)
        nn.init.zeros_(self.row_wise.bias)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Left [rows, 3] and right [columns, 3] factor: Δ = left @ rightᵀ."""
        column, row = self.to_column(self.v0), self.to_row(self.v0)
        w_c, b_c = self.column_wise.weight, self.column_wise.bias
        w_r, b_r = self.row_wise.weight, self.row_wise.bias
        left = torch.stack([w_c @ column, b_c, torch.ones_like(b_c)], dim=1)
        right = torch.stack([w_r @ row, w_r.sum(dim=1), b_r], dim=1)
        return left, right


class LowRank(nn.Module):
    """``left @ rightᵀ``; zero at the start through ``right`` alone."""

    def __init__(self, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.randn(rows, rank))
        self.right = nn.Parameter(torch.zeros(columns, rank))

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.left, self.right

    def forward(self) -> Tensor:
        return self.left @ self.right.T  # [rows, columns]


class Dense(nn.Module):
    """Every entry free; zero at the start."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(rows, columns))

    def forward(self) -> Tensor:
        return self.value  # [rows, columns]


class WeightOffset(nn.Module):
    """The parametrization of one weight: ``W -> W * (1 + domain) + strength * concept``."""

    def __init__(self, rows: int, columns: int, *, form: str, rank: int) -> None:
        super().__init__()
        self.shape = (rows, columns)
        self.domain: PaperForm | LowRank | None = None
        if form == "paper":
            self.domain = PaperForm(rows, columns)
        elif form == "lowrank":
            self.domain = LowRank(rows, columns, rank)
        self.concept: LowRank | Dense | None = None
        self.strength = 1.0
        self.enabled = True

    def forward(self, weight: Tensor) -> Tensor:
        """[rows, columns] of any dtype to the same; the very tensor that came in while disabled or empty."""
        if not self.enabled or (self.domain is None and self.concept is None):
            return weight
        kind = "cpu" if weight.is_meta else weight.device.type  # the meta device knows no autocast
        with torch.autocast(kind, enabled=False):
            return self._compose(weight.float()).to(weight.dtype)

    def _compose(self, weight: Tensor) -> Tensor:
        if self.domain is not None:
            left, right = self.domain.factors()
            weight = weight * torch.addmm(weight.new_ones(()), left, right.T)
        if self.concept is not None:
            weight = weight + self.strength * self.concept()
        return weight

    def add_concept(self, rank: int) -> None:
        """Start a concept's own delta at zero: low-rank, or dense for rank 0."""
        rows, columns = self.shape
        self.concept = LowRank(rows, columns, rank) if rank else Dense(rows, columns)


class WeightOffsets(nn.Module):
    """Offsets on the attention projections of a U-Net: built (nothing happens), injected or fused, ejected.

    `inject` keeps them trainable; `fuse` writes the result once, for sampling; `eject` undoes either, exactly. The
    U-Net is referred to, not owned: its parameters are not among this module's.
    """

    def __init__(self, unet: nn.Module, config: OffsetsConfig) -> None:
        super().__init__()
        self.config = config
        self._found = partial(_attention_linears, unet, config)
        self._linears = self._found()
        self.offsets = nn.ModuleDict(
            {
                _key(path): WeightOffset(linear.out_features, linear.in_features, form=config.form, rank=config.rank)
                for path, linear in self._linears.items()
            }
        )
        self._base: dict[str, Tensor] = {}
        self.state = "ejected"

    def items(self) -> Iterator[tuple[nn.Linear, WeightOffset]]:
        for path, linear in self._linears.items():
            offset = self.offsets[_key(path)]
            assert isinstance(offset, WeightOffset)
            yield linear, offset

    @property
    def paths(self) -> Sequence[str]:
        """Where in the U-Net the layers with offsets are."""
        return list(self._linears)

    def inject(self) -> None:
        """Reparametrise the weights; gradients reach the offsets."""
        self.require("ejected", "inject")
        with self._all_or_none("injected"):
            for linear, offset in self.items():
                offset.to(linear.weight.device)
                parametrize.register_parametrization(linear, "weight", offset)

    def fuse(self) -> None:
        """Replace the weights by their composed values.

        Raises OffsetsError for bfloat16 weights, which would lose most of the change.
        """
        self.require("ejected", "fuse")
        for linear, _ in self.items():
            if linear.weight.dtype == torch.bfloat16:
                raise OffsetsError("offsets cannot be fused into bfloat16 weights; load the base in float16 or float32")
        with self._all_or_none("fused"):
            for path, linear in self._linears.items():
                offset = self.offsets[_key(path)]
                with torch.no_grad():
                    fused: Tensor = offset.to(linear.weight.device)(linear.weight)
                self._base[path] = linear.weight
                linear.weight = nn.Parameter(fused, requires_grad=False)
                _FUSED.add(linear)

    @contextmanager
    def _all_or_none(self, state: str) -> Iterator[None]:
        """The state once all matrices are done; after an error, or Ctrl-C, none is."""
        self.state = state
        try:
            yield
        except BaseException:
            self.eject()
            raise

    def eject(self) -> None:
        """Back to the very tensors that were there before."""
        if self.state == "injected":
            for linear, _ in self.items():
                if parametrize.is_parametrized(linear, "weight"):  # not all of them after an error
                    parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)
        for path in list(self._base):
            self._linears[path].weight = self._base.pop(path)
            _FUSED.discard(self._linears[path])
        self.state = "ejected"

    @contextmanager
    def injected(self) -> Iterator[WeightOffsets]:
        self.inject()
        try:
            yield self
        finally:
            self.eject()

    @contextmanager
    def fused(self) -> Iterator[WeightOffsets]:
        self.fuse()
        try:
            yield self
        finally:
            self.eject()

    @contextmanager
    def base_weights(self) -> Iterator[None]:
        """Run the U-Net on its base weights, whatever the state; swapped by reference."""
        enabled = [(offset, offset.enabled) for _, offset in self.items()]
        live = {path: self._linears[path].weight for path in self._base}
        for offset, _ in enabled:
            offset.enabled = False
        for path, base in self._base.items():
            self._linears[path].weight = base
        try:
            yield
        finally:
            for offset, was_enabled in enabled:
                offset.enabled = was_enabled
            for path, weight in live.items():
                self._linears[path].weight = weight

    def set_strength(self, strength: float) -> None:
        """Factor on the concept's own deltas; takes effect at the next `fuse`, or at once while injected."""
        for _, offset in self.items():
            offset.strength = strength

    def add_concept(self, rank: int) -> None:
        for linear, offset in self.items():
            offset.add_concept(rank)
            offset.to(linear.weight.device)

    def drop_concept(self) -> None:
        for _, offset in self.items():
            offset.concept = None

    def domain_parameters(self) -> list[nn.Parameter]:
        return [p for _, offset in self.items() if offset.domain is not None for p in offset.domain.parameters()]

    def concept_parameters(self) -> list[nn.Parameter]:
        return [p for _, offset in self.items() if offset.concept is not None for p in offset.concept.parameters()]

    def domain_state(self) -> dict[str, Tensor]:
        """Δ as exact low-rank factors, those of all matrices in the U-Net's order below one another.

        ``left`` [all rows, r] and ``right`` [all columns, r]: hundreds of tiny tensors would cost more in names than in
        numbers. Empty without offsets.
        """
        factors = [d.factors() for _, o in self.items() if isinstance(d := o.domain, (PaperForm, LowRank))]
        return _stacked(factors)

    def load_domain_state(self, state: Mapping[str, Tensor]) -> None:
        """Take Δ from `domain_state`, whatever form it was trained in: it is low-rank from then on.

        Raises OffsetsError if it does not fit.
        """
        _check_names(state)
        lefts, rights = self._split(state, "left", 0), self._split(state, "right", 1)
        rank = state["left"].shape[1]
        self.config = replace(self.config, form="lowrank", rank=rank)
        for (linear, offset), left, right in zip(self.items(), lefts, rights, strict=True):
            with torch.device("meta"):  # no random numbers are drawn for what comes from the domain
                offset.domain = LowRank(linear.out_features, linear.in_features, rank)
            _fill(offset.domain, {"left": left, "right": right}, linear.weight.device)

    def concept_state(self) -> dict[str, Tensor]:
        """D, laid out as in `domain_state`; dense ones as ``value``, all entries in a row. Empty without a concept."""
        concepts = [offset.concept for _, offset in self.items() if offset.concept is not None]
        if concepts and isinstance(concepts[0], Dense):
            return {"value": torch.cat([concept().detach().flatten() for concept in concepts])}
        return _stacked([concept.factors() for concept in concepts if isinstance(concept, LowRank)])

    def load_concept_state(self, state: Mapping[str, Tensor]) -> None:
        """Take D from `concept_state`. Raises OffsetsError if it does not fit this U-Net."""
        self.drop_concept()
        if not state:
            return
        _check_names(state)
        parts = {name: self._split(state, name, axis) for name, axis in _AXES.items() if name in state}
        rank = 0 if "value" in parts else parts["left"][0].shape[1]
        for number, (linear, offset) in enumerate(self.items()):
            with torch.device("meta"):  # as above
                offset.add_concept(rank)
            assert offset.concept is not None
            _fill(offset.concept, {name: tensors[number] for name, tensors in parts.items()}, linear.weight.device)

    def _split(self, state: Mapping[str, Tensor], name: str, axis: int | None) -> list[Tensor]:
        """The share of every matrix in a tensor of `domain_state` or `concept_state`, float32."""
        shapes = [offset.shape for _, offset in self.items()]
        sizes = [rows * columns if axis is None else (rows, columns)[axis] for rows, columns in shapes]
        tensor = state.get(name)
        if tensor is None or tensor.ndim != (1 if axis is None else 2) or len(tensor) != sum(sizes):
            found = "nothing" if tensor is None else f"a tensor of shape {list(tensor.shape)}"
            raise OffsetsError(
                f"offsets that do not fit this U-Net: '{name}' should have {sum(sizes)} rows, not {found}"
            )
        return list(torch.split(tensor.float(), sizes))

    def require(self, state: str, verb: str) -> None:
        """Raises OffsetsError in another state, and where something else has changed the U-Net's attention.

        That is another object's offsets, fused q, k and v, or a LoRA: what is done to weights that nothing reads any
        more would be without effect, and without a word.
        """
        if self.state != state:
            raise OffsetsError(f"cannot {verb} weight offsets that are {self.state}; eject them first")
        if [id(linear) for linear in self._found().values()] != [id(linear) for linear in self._linears.values()]:
            raise OffsetsError(f"cannot {verb}: attention layers of the U-Net were replaced; make the offsets anew")
        if any(linear in _FUSED or parametrize.is_parametrized(linear) for linear in self._linears.values()):
            raise OffsetsError(f"cannot {verb}: the U-Net carries the offsets of another object; eject those first")


_AXES: dict[str, int | None] = {"left": 0, "right": 1, "value": None}
"""Which side of a matrix the rows of a stored tensor stand for; None: all of its entries."""


def _check_names(state: Mapping[str, Tensor]) -> None:
    """Raises OffsetsError unless there are two factors of one rank, or all entries."""
    if state.keys() == {"value"}:
        return
    ranks = {tensor.shape[-1] for tensor in state.values() if tensor.ndim == 2}
    if state.keys() != {"left", "right"} or len(ranks) != 1 or 0 in ranks:
        found = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(state.items())[:4]) or "nothing"
        raise OffsetsError(f"offsets must be two factors, left and right, of one rank, or one value; not {found:.120}")


def _fill(module: nn.Module, values: Mapping[str, Tensor], device: torch.device) -> None:
    """Give a module that was made without values copies of these, by parameter name, on ``device``."""
    for name, parameter in list(module.named_parameters()):
        setattr(module, name, nn.Parameter(values[name].reshape(parameter.shape).to(device, copy=True)))


def _stacked(factors: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    sides = zip(("left", "right"), zip(*factors, strict=True), strict=False)  # no sides without factors
    return {name: torch.cat([factor.detach() for factor in side]) for name, side in sides}


def _attention_linears(unet: nn.Module, config: OffsetsConfig) -> dict[str, nn.Linear]:
    """The projections by path, in the U-Net's order: attn1 is self-, attn2 cross-attention in diffusers' blocks."""
    if config.form == "none" and not config.projections:
        return {}
    names = {"attn1": "self", "attn2": "cross"}
    found: dict[str, nn.Linear] = {}
    for path, module in unet.named_modules():
        kind = names.get(path.rsplit(".", 1)[-1])
        if kind not in config.attentions:
            continue
        if type(getattr(module, "processor", None)).__name__.startswith(
            "Fused"
        ):  # the layers' own mark outlives unfusing
            raise OffsetsError(f"{path} has fused q, k and v; call unfuse_qkv_projections() first")
        for projection in config.projections:
            leaf = f"{projection}.0" if projection == "to_out" else projection
            linear = module.get_submodule(leaf)
            if not isinstance(linear, nn.Linear):
                raise OffsetsError(f"{path}.{leaf} is not a plain linear layer; unload LoRA or quantisation first")
            found[f"{path}.{leaf}"] = linear
    if not found:
        raise OffsetsError("the U-Net has no attention projections to put offsets on")
    return found


def _key(path: str) -> str:
    return path.replace(".", "/")
