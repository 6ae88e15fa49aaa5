"""What is said on the terminal: progress, messages and refusals, all to stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e4t.errors import ConfigError

if TYPE_CHECKING:
    pass


def get_console() -> Any:
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def refuse(sentence: str) -> int:
    text = " ".join(sentence.split()).rstrip(".") + "."
    get_console().print(f"error: {text}", style="red")
    return 2


_OTHERS = ("accelerate", "diffusers", "huggingface_hub", "torch", "transformers")


def show_warning(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
    """Our own warnings, as a line. What libraries say to each other is none of the user's business."""
    if issubclass(category, UserWarning) and not set(Path(filename).parts) & set(_OTHERS):
        get_console().print(f"warning: {' '.join(str(message).split())}", style="yellow")


@contextmanager
def status(text: str) -> Iterator[None]:
    console = get_console()
    if not console.is_terminal:
        yield
        return
    with console.status(f"{text} …"):
        yield


class Progress:
    """A bar on a terminal; elsewhere a line now and then."""

    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task, self._next = bar, task, 0.0

    def at(self, done: int, total: int, note: str = "") -> None:
        self._bar.update(self._task, completed=done, total=total, note=note)
        share = done / total if total else 1.0
        if note and not self._bar.console.is_terminal and share >= self._next:
            self._next = share + 0.02 if done < total else 2.0
            self.say(f"{done}/{total}  {note}")

    def say(self, text: str) -> None:
        self._bar.console.print(text)


@contextmanager
def progress_bar(name: str, *, shown: bool = True) -> Iterator[Progress]:
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}"),
    )
    console = get_console()
    console.quiet = not shown  # of several processes, one speaks
    with progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield Progress(bar, bar.add_task(name, total=None, note=""))


def quiet() -> None:
    """Settings of a process that is ours alone: no bars and notices of the libraries, no denormal numbers.

    CPUs are slow at numbers this close to zero, and training makes many of them.
    """
    import diffusers
    import torch
    import transformers

    torch.set_flush_denormal(True)

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def require_extra(extra: str, *modules: str) -> None:
    """Raises ConfigError where a module that comes with an extra is not installed."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ConfigError(f"this needs {missing[0]}: install the extra with pip install 'e4t[{extra}]'")


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
        raise ConfigError(f"the device {name!r} cannot be used here ({first})") from error
    return name
