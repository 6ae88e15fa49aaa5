"""An identity as a row of numbers.

A continuous parameter has one column, a circular one its cosine and sine, a categorical one a column for each option.

Shapes: P parameters of an identity, D columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from e4t.tiny.canvas import Parameter
from e4t.tiny.world import PARAMETERS, Identity


@dataclass(frozen=True)
class Layout:
    """How the columns of one kind are made up: a name and a width per parameter, 1 for a continuous one."""

    names: tuple[str, ...]
    widths: tuple[int, ...]
    circular: tuple[str, ...] = ()  # the names of those that are

    @classmethod
    def of(cls, kind: str) -> Layout:
        """The layout of "face", "cat" or "art"."""
        parameters = PARAMETERS[kind]
        widths = (2 if p.circular else len(p.options) or 1 for p in parameters)
        return cls(tuple(p.name for p in parameters), tuple(widths), tuple(p.name for p in parameters if p.circular))

    @property
    def columns(self) -> int:
        return sum(self.widths)

    @cached_property
    def owners(self) -> np.ndarray:
        """The parameter that each column belongs to, ``[D]``."""
        return np.repeat(np.arange(len(self.widths)), self.widths)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """The columns of each parameter."""
        ends = np.cumsum(self.widths).tolist()
        return tuple(slice(end - width, end) for end, width in zip(ends, self.widths, strict=True))

    @cached_property
    def turning(self) -> np.ndarray:
        """Which columns belong to circular parameters, bool ``[D]``."""
        return self._every(name in self.circular for name in self.names)

    @cached_property
    def continuous(self) -> np.ndarray:
        """Which columns are numbers rather than options, bool ``[D]``."""
        return self._every(w == 1 or name in self.circular for name, w in zip(self.names, self.widths, strict=True))

    def _every(self, of_parameters: Iterable[bool]) -> np.ndarray:
        return np.asarray(np.array(list(of_parameters))[self.owners])

    @cached_property
    def means(self) -> np.ndarray:
        """Mean of each column over the world, ``[D]``: uniform numbers and angles, equally likely options."""
        options = 1 / np.asarray(self.widths)[self.owners]
        return np.where(self.turning, 0, np.where(self.continuous, 0.5, options))

    @cached_property
    def scales(self) -> np.ndarray:
        """Standard deviation of each column over the world, ``[D]``."""
        options: np.ndarray = np.sqrt(self.means * (1 - self.means))
        return np.where(self.turning, 2**-0.5, np.where(self.continuous, 12**-0.5, options))


def identity_columns(subject: Identity) -> np.ndarray:
    """The true reading of an identity, ``[D]``: numbers as they are, angles as cosine and sine, options as one-hot."""
    return np.concatenate([_columns(p, subject.params[p.name]) for p in PARAMETERS[subject.kind]])


def _columns(parameter: Parameter, value: float) -> np.ndarray:
    if parameter.circular:
        return np.array([np.cos(2 * np.pi * value), np.sin(2 * np.pi * value)])
    return np.eye(len(parameter.options))[int(value)] if parameter.options else np.array([value])
