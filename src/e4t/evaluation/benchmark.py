"""E4T and what it is compared with on the same concepts, prompts and seeds: what `e4t benchmark` runs.

Every method learns every concept once, and is drawn and read after each number of steps. What was read is kept under a
name that follows from everything it depends on, so that the same command goes on where it was interrupted, and one with
more concepts or methods takes over what is there. Figures are made of all records together, by `e4t.evaluation.report`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from e4t.errors import CheckpointError
from e4t.evaluation.contest import BY_NAME, DRAWINGS, Contest, DrawnContest, Plan, Record
from e4t.evaluation.memory import Peak
from e4t.evaluation.methods import Lineup

QUICK_METHODS = ("class word", "E4T", "Textual Inversion", "DreamBooth", "LoRA")
PLANS = {
    "quick": Plan(("tiny-face",), QUICK_METHODS, concepts=3, prompts=4, e4t_steps=(0, 5)),
    "standard": Plan(),
    "full": Plan(
        concepts=50,
        prompts=12,
        seeds=2,
        e4t_steps=(0, 1, 2, 5, 10, 15, 30),
        baseline_steps=(10, 20, 40, 80, 160),
    ),
}


@dataclass(frozen=True)
class Progress:
    """One more piece of work is done; ``left`` is the time the rest will take, in seconds, as far as can be told."""

    text: str
    done: int
    total: int
    left: float | None


_REFERENCES: dict[str, Callable[[DrawnContest, int], Record]] = {
    DRAWINGS: DrawnContest.drawings,
    BY_NAME: DrawnContest.by_name,
}


class Benchmark:
    """One contest, its methods, and the folder where records are kept."""

    def __init__(self, contest: Contest, folder: Path) -> None:
        self.contest, self.folder = contest, folder
        self.lineup = Lineup(contest)
        self.rows = (*(_REFERENCES if isinstance(contest, DrawnContest) else ()), *self.lineup.names)

    def run(self) -> Iterator[Progress]:
        """Make every record that is not there yet, concept by concept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        clock: dict[str, list[float]] = {row: [] for row in self.rows}
        done = 0
        for number in range(self.contest.size):
            for place, row in enumerate(self.rows):
                began = time.perf_counter()
                if self._make(row, number):
                    clock[row].append(time.perf_counter() - began)
                done += 1
                left = _left(clock, self.contest.size - number - 1, self.rows[place + 1 :])
                text = f"{self.contest.name}: concept {number + 1}, {row}"
                yield Progress(text, done, len(self.rows) * self.contest.size, left)

    def records(self) -> dict[tuple[str, int], list[Record]]:
        """All records by row and steps, one per concept. Raises CheckpointError where one is missing."""
        found: dict[tuple[str, int], list[Record]] = {}
        for row in self.rows:
            for number in range(self.contest.size):
                for step, path in self._paths(row, number).items():
                    if not path.exists():
                        raise CheckpointError(
                            f"'{self.folder}' has no record of {row}, concept {number}: run it to the end"
                        )
                    found.setdefault((row, step), []).append(Record.load(path))
        return found

    def _make(self, row: str, number: int) -> bool:
        """Whether there was anything to do."""
        paths = self._paths(row, number)
        if all(path.exists() for path in paths.values()):
            return False
        if row in _REFERENCES and isinstance(self.contest, DrawnContest):
            _REFERENCES[row](self.contest, number).save(paths[0])
            return True
        learner = self.lineup.learner(row)
        with Peak(self.contest.pipe.backbone.device) as peak:
            learned = learner.learn(self.contest.examples(number, learner.examples), tuple(paths))
        for one in learned:
            self.contest.record(row, number, one, peak.bytes).save(paths[one.steps])
        return True

    def _paths(self, row: str, number: int) -> dict[int, Path]:
        key = self.lineup.key(row, number)
        steps = (0,) if row in _REFERENCES else self.lineup.steps(row)
        return {step: self.folder / f"{key}-{step}.npz" for step in steps}


def _left(clock: dict[str, list[float]], concepts: int, rows: Sequence[str]) -> float | None:
    """Seconds for some whole concepts and for some rows of this one; None before every row was timed."""
    if not all(clock.values()):
        return None
    means = {row: float(np.mean(seconds)) for row, seconds in clock.items()}
    return concepts * sum(means.values()) + sum(means[row] for row in rows)


def compare(contests: Iterable[Contest], output: Path) -> Iterator[Progress]:
    """Run contests and write the report to ``output``; the same call goes on where it stopped."""
    from e4t.evaluation.report import figures, write

    finished = []
    for contest in contests:
        benchmark = Benchmark(contest, output / "records")
        yield from benchmark.run()
        found = benchmark.records()
        finished.append((figures(contest, found), found))
    write(output, finished)
