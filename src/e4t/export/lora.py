"""What LoRAs keep of a concept: truncated singular value decompositions, and how true each rank is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from e4t.export.merged import Merged, cast
from e4t.export.probe import Probe, share_covered
from e4t.pipeline import E4TPipeline

RANKS = (8, 16, 32, 64, 128)

LORA_KEEPS = 0.95
"""Share of the concept's identity that a LoRA must keep, unless its rank is asked for."""

LORA_ERROR = 0.02
"""Relative error of the noise prediction up to which a LoRA is faithful. No more than a bound is to be found: for the
eye, identity comes back at lower ranks already."""


@dataclass(frozen=True)
class LoraRow:
    """What a LoRA of one rank keeps. Matrices too small for the rank have a quarter of their smaller side.

    ``energy`` is the share of the changes' squared norm; ``error`` the noise prediction's relative error; ``kept`` is
    1 - ‖LoRA - merged‖ / ‖base - merged‖ of noise predictions, all of them with the concept's word. ``identity`` is of
    one picture, as the image encoder sees it (`E4TPipeline.likeness`): 1 is what the merged weights draw, 0 anybody of
    the class.
    """

    rank: int
    energy: float
    error: float
    kept: float
    identity: float
    megabytes: float

    @property
    def faithful(self) -> bool:
        return self.error <= LORA_ERROR and self.identity >= LORA_KEEPS


Told = Callable[[int, int, str], object]
"""Is told how many of how many are done, and of what."""


def untold(done: int, total: int, what: str) -> None:
    """Where nobody wants to know."""


Factors = dict[tuple[str, str], tuple[Tensor, Tensor]]
"""Down [r, in] and up [out, r] by part and parameter name; up @ down approximates the change."""


@dataclass(frozen=True)
class _Reference:
    """What rows are measured against: predictions and picture of the merged weights, and both without the concept."""

    native: Tensor
    without: Tensor
    picture: Image.Image
    stranger: Image.Image


class Lora:
    """Truncated singular value decompositions of a concept's changes."""

    def __init__(self, pipe: E4TPipeline, merged: Merged, probe: Probe, dtype: str, progress: Told = untold) -> None:
        self.pipe, self.merged, self.probe, self.dtype, self._progress = pipe, merged, probe, dtype, progress
        changes = [(part, name) for part, tensors in merged.changes.items() for name in tensors]
        self._full: Factors = {}
        for number, (part, name) in enumerate(changes, 1):
            self._full[part, name] = _decomposed(merged.changes[part][name])
            progress(number, len(changes), "matrices decomposed")

    def factors(self, rank: int) -> Factors:
        """As they are stored: of this rank or of a quarter of the matrix's smaller side, in the file's type."""
        return {
            (part, name): (cast(name, down[:rank], self.dtype), cast(name, up[:, :rank], self.dtype))
            for (part, name), (down, up) in self._full.items()
        }

    def table(self, ranks: Sequence[int]) -> tuple[LoraRow, ...]:
        """One row for each rank that makes a difference."""
        largest = max(len(down) for down, _ in self._full.values())
        merged, probe = self.merged, self.probe
        reference = _Reference(
            native=probe.predict(self.pipe.model, merged.word, merged.changes),
            without=probe.predict(self.pipe.model, merged.word, {}),
            picture=probe.picture(self.pipe, merged.word, merged.changes),
            stranger=probe.picture(self.pipe, None, {}),
        )
        wanted = sorted({min(rank, largest) for rank in ranks})
        rows = []
        for number, rank in enumerate(wanted):
            self._progress(number, len(wanted), "ranks measured")
            rows.append(self._row(rank, reference))
        return tuple(rows)

    def _row(self, rank: int, reference: _Reference) -> LoraRow:
        factors = self.factors(rank)
        device = self.pipe.backbone.device
        stored: dict[str, dict[str, Tensor]] = {part: {} for part in self.merged.changes}
        for (part, name), (down, up) in factors.items():
            stored[part][name] = up.to(device).float() @ down.to(device).float()
        changes = [(stored[part][name], self.merged.changes[part][name]) for part, name in factors]
        lost = sum(float((product - change).square().sum()) for product, change in changes)
        whole = sum(float(change.square().sum()) for _, change in changes)
        prediction = self.probe.predict(self.pipe.model, self.merged.word, stored)
        picture = self.probe.picture(self.pipe, self.merged.word, stored)
        return LoraRow(
            rank=rank,
            energy=1 - lost / whole,
            error=float((prediction - reference.native).norm() / reference.native.norm()),
            kept=share_covered(prediction, reference.native, reference.without),
            identity=self.pipe.likeness(reference.picture, picture, reference.stranger),
            megabytes=sum(tensor.nbytes for pair in factors.values() for tensor in pair) / 1e6,
        )


def _decomposed(change: Tensor) -> tuple[Tensor, Tensor]:
    """Down and up factor of the highest rank that is allowed, largest singular values first."""
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    rank = max(1, min(change.shape) // 4)
    roots = values[:rank].sqrt()  # on both sides, so that neither factor leaves float16's range
    return roots[:, None] * right[:rank], left[:, :rank] * roots
