"""E4T and what it is compared with on the same concepts, prompts and seeds: what `e4t benchmark` runs.

Every method learns every concept once, and is drawn and read after each number of steps. What was read is kept under a
name that follows from everything it depends on, so that the same command goes on where it was interrupted, and one with
more concepts or methods takes over what is there. Figures are made of all records together, by `e4t.evaluation.report`.
"""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from e4t.errors import CheckpointError
from e4t.evaluation.contest import REFERENCES, Contest, DrawnContest, Plan, Record
from e4t.evaluation.methods import OURS, Lineup

QUICK_METHODS = ("class word", OURS, "Textual Inversion", "DreamBooth", "LoRA")
STANDARD_METHODS = (
    *QUICK_METHODS,
    "best caption",
    "nearest name",
    "DreamBooth + prior",
    "DreamBooth + text encoder",
    "DreamBooth, 5 images",
    "LoRA, 5 images",
)
"""Every kind of method; what differs in detail, and equal numbers of pictures, are for the full size."""
AT_OUR_PASSES = 20
"""So many steps of a baseline, 4 pictures each, show as many pictures as our 5 of 16."""
PLANS = {
    "quick": Plan(("tiny-face",), QUICK_METHODS, namespace="quick", concepts=3, prompts=4, e4t_steps=(0, 5)),
    "standard": Plan(methods=STANDARD_METHODS, mixed_precision="bf16"),
    "full": Plan(
        concepts=50,
        prompts=10,
        seeds=2,
        e4t_steps=(0, 1, 2, 5, 10, 15, 30),
        baseline_steps=(AT_OUR_PASSES, 80),
        mixed_precision="bf16",
    ),
}


@dataclass(frozen=True)
class Progress:
    """One more piece of work is done; ``left`` is the time the rest will take, in seconds, as far as can be told."""

    text: str
    done: int
    total: int
    left: float | None


@dataclass(frozen=True)
class Job:
    """One concept, learned, drawn and read by one row of the table."""

    contest: int  # which of them
    row: str
    number: int


class Benchmark:
    """One contest, its methods, and the folder where records are kept."""

    def __init__(self, contest: Contest, folder: Path) -> None:
        self.contest, self.folder = contest, folder
        self.lineup = Lineup(contest)
        self.rows = (*(REFERENCES if isinstance(contest, DrawnContest) else ()), *self.lineup.names)

    def missing(self) -> list[tuple[str, int]]:
        """Row and concept of everything that there is no record of yet, concept by concept."""
        pairs = [(row, number) for number in range(self.contest.size) for row in self.rows]
        return [pair for pair in pairs if not all(path.exists() for path in self._paths(*pair).values())]

    def make(self, row: str, number: int) -> None:
        """Learn and draw one concept by one row, and keep what is read. What is there already is not drawn again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = self._paths(row, number)
        if row in REFERENCES and isinstance(self.contest, DrawnContest):
            self.contest.reference(row, number).save(paths[0])
            return
        learner = self.lineup.learner(row)
        for learned in learner.learn(self.contest.examples(number, learner.examples), tuple(paths)):
            if not paths[learned.steps].exists():
                self.contest.record(row, number, learned).save(paths[learned.steps])

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

    def _paths(self, row: str, number: int) -> dict[int, Path]:
        key = self.lineup.key(row, number)
        steps = (0,) if row in REFERENCES else self.lineup.steps(row)
        return {step: self.folder / f"{key}-{step}.npz" for step in steps}


@dataclass
class _Clock:
    """How long a row takes, and with that how long the rest will."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, row: str, seconds: float) -> None:
        self.seconds.setdefault(row, []).append(seconds)

    def left(self, jobs: Sequence[Job]) -> float | None:
        """Seconds for these, one after another; None before every one of their rows was timed."""
        if any(job.row not in self.seconds for job in jobs):
            return None
        return float(sum(np.median(self.seconds[job.row]) for job in jobs))


def compare(make: Sequence[Callable[[], Contest]], output: Path, *, processes: int = 1) -> Iterator[Progress]:
    """Run contests and write the report to ``output``; the same call goes on where it stopped.

    ``make`` makes one contest each. They are all made before any work begins, so that what is missing is said at once.
    With several ``processes`` each makes its own and works on one thread, on one concept by one method at a time.
    """
    from e4t.evaluation.report import figures, grids, write

    benchmarks = [Benchmark(one(), output / "records") for one in make]
    for benchmark in benchmarks:
        if left_out := ", ".join(benchmark.lineup.left_out):
            warnings.warn(f"left out of {benchmark.contest.name}, for want of what they need: {left_out}", stacklevel=2)
    jobs = [Job(place, *pair) for place, benchmark in enumerate(benchmarks) for pair in benchmark.missing()]
    finished, left, clock = [], list(jobs), _Clock()
    run = _together(make, output / "records", processes, jobs) if processes > 1 else _one_by_one(benchmarks, jobs)
    for job, seconds in run:
        left.remove(job)
        clock.add(job.row, seconds)
        rest = clock.left(left)
        text = f"{benchmarks[job.contest].contest.name}: concept {job.number + 1}, {job.row}"
        yield Progress(text, len(jobs) - len(left), len(jobs), rest / processes if rest is not None else None)
    for benchmark in benchmarks:
        found = benchmark.records()
        of = benchmark.contest, found, benchmark.lineup
        finished.append((figures(*of), grids(*of)))
    write(output, finished)


def _one_by_one(benchmarks: Sequence[Benchmark], jobs: Sequence[Job]) -> Iterator[tuple[Job, float]]:
    for job in jobs:
        yield job, _timed(benchmarks[job.contest], job)


def _together(
    make: Sequence[Callable[[], Contest]], folder: Path, processes: int, jobs: Sequence[Job]
) -> Iterator[tuple[Job, float]]:
    context = multiprocessing.get_context("spawn")  # threads do not survive a fork
    with ProcessPoolExecutor(processes, context, _start, (make, folder)) as pool:
        waiting: dict[Future[float], Job] = {pool.submit(_work, job): job for job in jobs}
        try:
            while waiting:
                for one in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(one), one.result()
        finally:
            for one in waiting:
                one.cancel()


_AT_WORK: dict[int, Benchmark] = {}
"""In a process of `_together`, the benchmark it works on: one at a time, or its memory would count for the next."""
_HERE: list[tuple[Sequence[Callable[[], Contest]], Path]] = []


def _start(make: Sequence[Callable[[], Contest]], folder: Path) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    _HERE.append((make, folder))


def _work(job: Job) -> float:
    if job.contest not in _AT_WORK:
        make, folder = _HERE[0]
        _AT_WORK.clear()
        _AT_WORK[job.contest] = Benchmark(make[job.contest](), folder)
    return _timed(_AT_WORK[job.contest], job)


def _timed(benchmark: Benchmark, job: Job) -> float:
    began = time.perf_counter()
    benchmark.make(job.row, job.number)
    return time.perf_counter() - began
