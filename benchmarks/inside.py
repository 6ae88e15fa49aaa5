"""Whether a small run of the benchmark says what a large one does: its figures beside the other's intervals.

    python benchmarks/inside.py docs/results/benchmark-face.json docs/results/benchmark-full-face.json

Of the domains and rows that both have. The small run's own figure is expected inside the large run's interval of 95 %
less often than that, since it is uncertain as well; where the two intervals do not even overlap, the runs disagree.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from e4t.evaluation.evaluate import table


@dataclass(frozen=True)
class InsideConfig:
    """Two ``results.json`` of `e4t benchmark`."""

    small: tyro.conf.Positional[Path]
    large: tyro.conf.Positional[Path]
    measure: str = "joint_success"


def compared(small: Mapping[str, Any], large: Mapping[str, Any], measure: str) -> Iterator[list[str]]:
    """Row, figure of the small run, interval of the large one, and what that means."""
    theirs = {(row["method"], row["steps"]): row[measure] for row in large["rows"] if measure in row}
    for row in small["rows"]:
        tuning = row["method"], row["steps"]
        if tuning in theirs and measure in row:
            one, other = row[measure], theirs[tuning]
            span = f"{other['value']:.2f} ({other['low']:.2f} … {other['high']:.2f})"
            yield [f"{tuning[0]}, {tuning[1]} steps", f"{one['value']:.2f}", span, _verdict(one, other)]


def _verdict(one: Mapping[str, float], other: Mapping[str, float]) -> str:
    if other["low"] <= one["value"] <= other["high"]:
        return "inside"
    return "overlaps" if one["low"] <= other["high"] and other["low"] <= one["high"] else "apart"


def main(config: InsideConfig) -> None:
    """Print a table for every domain. Raises SystemExit where there is nothing to compare."""
    small, large = (
        {report["domain"]: report for report in json.loads(path.read_text())} for path in (config.small, config.large)
    )
    shared = sorted(small.keys() & large.keys())
    if not shared:
        raise SystemExit(f"no domain is in both '{config.small}' and '{config.large}'")
    for domain in shared:
        one, other = small[domain], large[domain]
        namespaces = one["plan"]["namespace"], other["plan"]["namespace"]
        if namespaces[0] != namespaces[1]:
            raise SystemExit(f"these are other individuals of {domain}: {namespaces[0]} and {namespaces[1]}")
        rows = list(compared(one, other, config.measure))
        if not rows:
            raise SystemExit(f"no row of {domain} has '{config.measure}' in both")
        print(table([domain, f"{one['concepts']} concepts", f"{other['concepts']} concepts", ""], rows))


if __name__ == "__main__":
    main(tyro.cli(InsideConfig, config=(tyro.conf.FlagConversionOff,)))
