"""A module tuned whole, or a part of it: tuned parameters and base ones, swapped by reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from e4t.errors import OffsetsError


class TunedWeights:
    """All parameters of a module made tunable, with the base ones kept beside them and swapped by reference.

    Serves the paper's whole-model tuning. ``skip`` holds parameters to leave alone. Tuned copies are float32. What is
    ``packed`` is stored in one vector, parameter by parameter: hundreds of names would outweigh short tensors.
    """

    def __init__(self, module: nn.Module, *, skip: Sequence[Tensor] = (), packed: bool = False) -> None:
        left_out = {id(parameter) for parameter in skip}
        found = [place for place in _named_places(module) if id(place[-1]) not in left_out]
        self._places = [(name, owner, leaf) for name, owner, leaf, _ in found]
        self._base = [parameter for *_, parameter in found]
        self._live: list[nn.Parameter] = []
        self._packed = packed

    def start(self) -> list[nn.Parameter]:
        """Put trainable float32 copies in place and return them."""
        self._live = [nn.Parameter(base.detach().float().clone()) for base in self._base]
        self._put(self._live)
        return self._live

    def apply(self, difference: Mapping[str, Tensor], *, strength: float = 1.0) -> None:
        """Put base + strength * `difference` in place, composed in float32 and cast once.

        Raises OffsetsError for a difference of a parameter that is not here, or of another shape.
        """
        shapes = {name: base.shape for (name, _, _), base in zip(self._places, self._base, strict=True)}
        if self._packed:
            difference = _unpacked(difference, shapes)
        for name, tensor in difference.items():
            if shapes.get(name) != tensor.shape:
                raise OffsetsError(f"a tuned weight does not fit the model: '{name}' of shape {list(tensor.shape)}")
        self._live = []
        for (name, _, _), base in zip(self._places, self._base, strict=True):
            value = base.detach()
            if name in difference:
                value = (value.float() + strength * difference[name].to(value.device).float()).to(value.dtype)
            self._live.append(nn.Parameter(value, requires_grad=False))
        self._put(self._live)

    def difference(self) -> dict[str, Tensor]:
        """Tuned minus base, by parameter name or, packed, as ``value``.

        Float32 on the CPU: there may be no room for all of it on a GPU.
        """
        pairs = zip(self._places, self._live, self._base, strict=True)
        found = {name: (live.detach() - base.float()).cpu() for (name, _, _), live, base in pairs}
        return {"value": torch.cat([tensor.flatten() for tensor in found.values()])} if self._packed else found

    @contextmanager
    def base_weights(self) -> Iterator[None]:
        self._put(self._base)
        try:
            yield
        finally:
            if self._live:
                self._put(self._live)

    def restore(self) -> None:
        """Back to the very tensors that were there before."""
        self._live = []
        self._put(self._base)

    def _put(self, parameters: list[nn.Parameter]) -> None:
        for (_, owner, leaf), parameter in zip(self._places, parameters, strict=True):
            owner._parameters[leaf] = parameter


def _unpacked(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Packed differences by name. Raises OffsetsError for anything but one vector of as many numbers."""
    sizes = [shape.numel() for shape in shapes.values()]
    if {name: tensor.shape for name, tensor in state.items()} != {"value": (sum(sizes),)}:
        found = ", ".join(f"{name} of shape {list(tensor.shape)}" for name, tensor in sorted(state.items()))
        raise OffsetsError(f"tuned vectors must be one, 'value', of {sum(sizes)} numbers, not {found:.120}")
    parts = torch.split(state["value"], sizes)
    return {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}


def _named_places(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    for prefix, owner in module.named_modules():
        for leaf, parameter in owner._parameters.items():
            if parameter is not None:
                yield (f"{prefix}.{leaf}" if prefix else leaf), owner, leaf, parameter
