"""What is said on the terminal: progress, messages and refusals, all to stderr; and events for machines, to stdout."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from e4t.errors import ConfigError, lacks

if TYPE_CHECKING:
    from e4t.pipeline import E4TPipeline


_EVENTS: ContextVar[TextIO | None] = ContextVar("events", default=None)


@contextmanager
def machine_readable(on: bool) -> Iterator[None]:
    """While it lasts, events go to stdout, and whatever else is printed goes to stderr.

    Of several processes that a launcher started, the first speaks for all.
    """
    if not on:
        yield
        return
    token = _EVENTS.set(sys.stdout if os.environ.get("RANK", "0") == "0" else None)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _EVENTS.reset(token)


def emit(event: str, **values: Any) -> None:
    """A line of JSON, where those are asked for. Numbers that JSON does not have become null."""
    stream = _EVENTS.get()
    if stream is not None:
        plain = _plain({"event": event, **values})
        line = json.dumps(plain, ensure_ascii=False, default=str, allow_nan=False)
        # Halves of characters are in no encoding; spelt out, they are JSON.
        print(line.encode("utf-8", "backslashreplace").decode(), file=stream, flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_interactive() -> bool:
    """Whether somebody watches. FORCE_COLOR colours a log, but makes no terminal of it."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def get_console() -> Any:
    """The console on stderr; rich itself honours NO_COLOR and FORCE_COLOR.

    Where nobody reads stderr any more, what it would say is dropped, and the work goes on: its result is on stdout.
    """
    from rich.console import Console

    class Messages(Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stderr.fileno())

    return Messages(stderr=True, highlight=False, markup=False, soft_wrap=True)


def say(text: str) -> None:
    """A message, as it is."""
    get_console().print(text)


def printable(text: str) -> str:
    """What a file says, as a terminal may show it: control characters and halves of characters are spelt out."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def refuse(sentence: str, *, kind: str, exit_code: int = 2) -> int:
    """Say in one sentence why not, to people and machines; ``kind`` is the class of the error. The exit code."""
    text = printable(" ".join(sentence.split())).rstrip(".") + "."
    get_console().print(f"error: {text}", style="red")
    emit("error", message=text, kind=kind, exit_code=exit_code)
    return exit_code


_OTHERS = ("accelerate", "diffusers", "huggingface_hub", "torch", "transformers")
_OWN = Path(__file__).parents[1]


def show_warning(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
    """Our own warnings, as a line. What libraries say to each other is none of the user's business."""
    if issubclass(category, UserWarning) and not _is_of_a_library(Path(filename)):
        get_console().print(f"warning: {' '.join(str(message).split())}", style="yellow")


def _is_of_a_library(file: Path) -> bool:
    """By its place below site-packages: the folders above may be called anything, such as ~/diffusers/photos."""
    parts = file.parts
    installed = max((place for place, part in enumerate(parts) if part.endswith("-packages")), default=-1)
    return not file.is_relative_to(_OWN) and bool(set(parts[installed + 1 :]) & set(_OTHERS))


@contextmanager
def status(text: str) -> Iterator[None]:
    """A spinner with the time so far, for work of which nobody knows how much there is."""
    from rich import progress

    columns = (progress.SpinnerColumn(), progress.TextColumn("{task.description}"), progress.TimeElapsedColumn())
    with progress.Progress(*columns, console=get_console(), transient=True, disable=not is_interactive()) as bar:
        bar.add_task(f"{text} …", total=None)
        yield


_EVERY = 10.0  # seconds between two lines where nobody watches


class Progress:
    """A bar with the time left on a terminal; elsewhere a line every ten seconds, and events where those are asked for.

    Every ``at`` is an event, with further ``values`` for machines. The time left is told by how fast the later half of
    the time went: of a work that goes on from where it was, the first part is often done already.
    """

    def __init__(self, name: str, bar: Any, task: Any) -> None:
        self._name, self._bar, self._task, self._next = name, bar, task, 0.0
        self._began = time.monotonic()
        self._seen: deque[tuple[float, float]] = deque()

    def at(self, done: float, total: int, note: str = "", *, seconds_left: float | None = None, **values: Any) -> None:
        """``done`` of ``total``; where it is less than before, another round of work has begun."""
        now = time.monotonic()
        left = self._left(now, done, total) if seconds_left is None else seconds_left
        told = f"{_lasting(left)} left" if left else ""
        self._bar.update(self._task, completed=done, total=total, note=note, left=told)
        text = {"text": note} if note else {}
        emit("progress", task=self._name, done=done, total=total, **text, seconds_left=left, **values)
        waited = now >= max(self._next, self._began + (0 if note else _EVERY))
        if not is_interactive() and (waited or (note and done >= total)):
            self._next = now + _EVERY
            self.say(f"{round(done, 1):g}/{total}  {note or self._name}{', ' if told else ''}{told}")

    def _left(self, now: float, done: float, total: int) -> float | None:
        """Seconds; None as long as nobody can tell."""
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()
            self._began = now
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= (self._began + now) / 2:
            self._seen.popleft()
        before, first = self._seen[0]
        return (now - before) / (done - first) * (total - done) if done > first else None

    def say(self, text: str) -> None:
        self._bar.console.print(text)


def _lasting(seconds: float) -> str:
    """A time in the unit that suits it, such as 12 min."""
    units = {"days": 86_400, "h": 3_600, "min": 60}
    name = next((name for name, length in units.items() if seconds >= 2 * length), "s")
    number = seconds / units.get(name, 1)
    return f"{number:.1f} {name}" if name in ("days", "h") else f"{number:.0f} {name}"


@contextmanager
def progress_bar(name: str, *, shown: bool = True) -> Iterator[Progress]:
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[left]}"),  # rich's own forgets after 30 seconds how fast it went
        progress.TextColumn("{task.fields[note]}"),
    )
    console = get_console()
    console.quiet = not shown  # of several processes, one speaks
    with progress.Progress(*columns, console=console, transient=True, disable=not is_interactive()) as bar:
        yield Progress(name, bar, bar.add_task(name, total=None, note="", left=""))


@contextmanager
def denoising(pipe: E4TPipeline, name: str, *, drawings: int = 1) -> Iterator[None]:
    """A bar over the calls of the U-Net while drawing: the scheduler knows how many there will be in each drawing."""
    import torch

    with progress_bar(name) as progress:
        calls = itertools.count(1)

        def called(*_: Any) -> None:
            if not torch.is_grad_enabled():  # else it is tuned again, as a concept kept for that is
                total = drawings * len(pipe.stock.scheduler.timesteps)
                progress.at(min(next(calls), total), total)

        handle = pipe.backbone.unet.register_forward_hook(called)
        try:
            yield
        finally:
            handle.remove()


def quiet() -> None:
    """Settings of a process that is ours alone: no bars and notices of the libraries, no denormal numbers.

    CPUs are slow at numbers this close to zero, and training makes many of them.
    """
    import diffusers
    import torch
    import transformers

    torch.set_flush_denormal(True)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # diffusers imports it, and it names kernels it lacks
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def require_extra(extra: str, *modules: str) -> None:
    """Raises ConfigError where a module that comes with an extra is not installed."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise lacks(missing[0], extra)


def dtype_of(name: str) -> Any:
    """The `torch.dtype` of a name among `Dtype`'s."""
    import torch

    return getattr(torch, name)


def device_of(name: str) -> str:
    """The device to use: the best there is for "auto". Raises ConfigError for one that is not here."""
    import torch

    from e4t.precision import best_device

    if name == "auto":
        return str(best_device())
    try:
        torch.empty(0, device=name)
    except Exception as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"the device {name!r} cannot be used here ({first}); 'e4t doctor' lists what can") from error
    return name
