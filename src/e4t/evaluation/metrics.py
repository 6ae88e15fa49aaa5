"""Scores of readings: how much of an identity is there, is it the right one, is the prompt followed.

Everything here is a pure function of arrays. Shapes: n pictures (or concepts), P parameters, D columns of a
`Layout`, c candidates. Identities are compared column by column, standardised by the world's standard deviations,
and every parameter counts once: a categorical one is averaged over its options. What cannot be seen does not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from e4t.tiny.columns import Layout

READABLE = {"face": 0.7, "cat": 0.7, "art": 0.3}
"""Least share of a parameter's variance that a judge must explain on drawings for the parameter to count, by kind.

Nothing about a style shows as plainly in one picture as the colour of hair does, but many faint things together tell
styles apart: drawings of validation artists are told from 19 twins about as often as those of faces are.
"""

LEAST_CEILING = 0.1
"""Below it a ceiling says that the judge is blind here, and nothing is divided by it."""

Statistic = Callable[[np.ndarray], float]
"""A number from some concepts, given by their numbers ``[concepts]``; one may come up several times."""


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Rounded, for reports."""
        return {"value": round(self.value, 4), "low": round(self.low, 4), "high": round(self.high, 4)}


def explained(layout: Layout, read: np.ndarray, true: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """R² of every parameter, ``[P]``, where it is visible; −inf where it never varies.

    ``read`` and ``true`` are ``[n, D]``, ``visible`` is bool ``[n, D]``.
    """
    mean = _visible_mean(true, visible)
    missed = _per_parameter(layout, ((read - true) ** 2 * visible).sum(0))
    spread = _per_parameter(layout, ((mean - true) ** 2 * visible).sum(0))
    return np.where(spread > 0, 1 - missed / np.where(spread > 0, spread, 1), -np.inf)


def readable(layout: Layout, read: np.ndarray, true: np.ndarray, visible: np.ndarray, *, least: float) -> np.ndarray:
    """Which parameters the judge reads well enough to count, bool ``[P]``."""
    return explained(layout, read, true, visible) >= least


def weights(layout: Layout, visible: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Weight of every column in squared distances, ``[..., D]``: standardising, each counted parameter once."""
    widths = np.asarray(layout.widths)[layout.owners]
    return np.asarray(visible * counted[layout.owners] / (widths * layout.scales**2))


def identity_errors(
    read: np.ndarray, true: np.ndarray, weight: np.ndarray, *, concepts: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Squared distance of every reading to its truth, and of the domain's average to that truth, ``[n]`` each.

    Rows are of ``concepts`` individuals, as many of each in a row; None: of one each. Their own average, over what is
    visible (``weight > 0``), stands for the domain's; it lies too near to them, so distances to it are put right as a
    variance is (n / (n - 1)): scores of few concepts and of many mean the same.
    """
    visible = weight > 0
    seen = visible.reshape(concepts or len(true), -1, true.shape[-1]).any(1).sum(0)
    spread = (_visible_mean(true, visible) - true) ** 2 * seen / np.maximum(seen - 1, 1)
    return ((read - true) ** 2 * weight).sum(-1), (spread * weight).sum(-1)


def identity_score(read: np.ndarray, true: np.ndarray, weight: np.ndarray, *, concepts: int | None = None) -> float:
    """1 − ‖p̂ − p‖² / E‖p̄ − p‖²: 1 is the very identity, 0 as good as the domain's average, worse is negative."""
    missed, spread = identity_errors(read, true, weight, concepts=concepts)
    return float(1 - missed.sum() / spread.sum())


def _visible_mean(true: np.ndarray, visible: np.ndarray) -> np.ndarray:
    return np.asarray((true * visible).sum(0) / np.maximum(visible.sum(0), 1))


def _per_parameter(layout: Layout, columns: np.ndarray) -> np.ndarray:
    return np.array([columns[part].sum() for part in layout.slices])


def distances(layout: Layout, read: np.ndarray, candidates: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Standardised squared distance per counted parameter, ``[n, c]``: readings ``[n, D]``, candidates ``[n, c, D]``.

    ``weight``, ``[n, c, D]``, is of what can be seen of each candidate; the mean is over that, so that candidates with
    fewer visible parameters are not nearer for it.
    """
    parameters = (weight * layout.scales**2).sum(-1)
    return np.asarray(((read[:, None] - candidates) ** 2 * weight).sum(-1) / np.maximum(parameters, 1e-9))


def rank_one(distance: np.ndarray, right: np.ndarray | int = 0) -> np.ndarray:
    """Whether the right candidate is strictly the nearest, bool ``[n]``. A tie is a miss: it tells nobody apart."""
    rows = np.arange(len(distance))
    chosen = distance[rows, right]
    others = distance.copy()
    others[rows, right] = np.inf
    return np.asarray(chosen < others.min(-1))


def found(answers: Sequence[dict[str, str]], prompted: Sequence[dict[str, str]]) -> np.ndarray:
    """Share of the prompted attributes that were read, ``[n]``; nothing prompted counts as all found."""
    shares = [
        np.mean([answer[name] == wanted for name, wanted in asked.items()]) if asked else 1.0
        for answer, asked in zip(answers, prompted, strict=True)
    ]
    return np.array(shares, float)


def joint_success(right_twin: np.ndarray, share_found: np.ndarray) -> np.ndarray:
    """The headline, bool ``[n]``: the right one of its twins and everything that was prompted."""
    return np.asarray(right_twin & (share_found >= 1))


def resamples(concepts: int, *, draws: int = 2000, seed: int = 0) -> np.ndarray:
    """Concepts drawn with replacement, ``[draws, concepts]``. The same for all scores, so that they are paired."""
    return np.random.default_rng(seed).integers(concepts, size=(draws, concepts))


def bootstrap(statistic: Statistic, samples: np.ndarray) -> Interval:
    """``statistic`` of all concepts, with its 95 % interval over `resamples`; it gets concept numbers.

    Few concepts can have resamples that say nothing (NaN, `share_of`): these are left out.
    """
    drawn, concepts = np.array([statistic(sample) for sample in samples]), samples.shape[1]
    said = drawn[~np.isnan(drawn)]
    low, high = np.percentile(said, _percentiles(concepts)) if said.size else (np.nan, np.nan)
    return Interval(float(statistic(np.arange(concepts))), float(low), float(high))


def _percentiles(concepts: int) -> tuple[float, float]:
    """Which percentiles of the resamples hold 95 %: 2.5 and 97.5 of many concepts, further out of few.

    Resamples of n spread less than samples do, by the root of (n - 1) / n, and know no more of it than n - 1 degrees of
    freedom (Hesterberg 2015, "expanded percentile interval"). Of 12, the plain percentiles held 90 % of the truth.
    """
    if concepts < 2:
        return 0.0, 100.0
    z, free = NormalDist().inv_cdf(0.975), concepts - 1
    wider = (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)  # Student's t, from normal's z
    tail = 100 * NormalDist().cdf(-(z + wider) * math.sqrt(concepts / free))
    return tail, 100 - tail


def mean_statistic(values: np.ndarray) -> Statistic:
    """The mean of ``values`` ``[concepts, ...]`` over concepts and everything else, for `bootstrap`."""
    per_concept = values.reshape(len(values), -1).mean(-1)
    return lambda sample: float(per_concept[sample].mean())


def score_statistic(missed: np.ndarray, spread: np.ndarray) -> Statistic:
    """The identity score from `identity_errors` as ``[concepts, ...]``, for `bootstrap`."""
    top, bottom = (part.reshape(len(part), -1).sum(-1) for part in (missed, spread))
    return lambda sample: float(1 - top[sample].sum() / bottom[sample].sum())


def share_of(ceiling: Statistic, statistic: Statistic) -> Statistic:
    """``statistic`` over its ``ceiling`` on the same concepts, so that the ceiling's own uncertainty counts.

    NaN under a ceiling below `LEAST_CEILING`: dividing by a negative one would turn bad into good.
    """

    def share(sample: np.ndarray) -> float:
        highest = ceiling(sample)
        return statistic(sample) / highest if highest >= LEAST_CEILING else float("nan")

    return share


def difference(one: Statistic, other: Statistic) -> Statistic:
    """How much ``one`` is above ``other`` on the same concepts, for a paired `bootstrap`."""
    return lambda sample: one(sample) - other(sample)
