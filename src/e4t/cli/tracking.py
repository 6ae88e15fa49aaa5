"""Where the numbers of a long training go: TensorBoard and Weights & Biases, through accelerate's trackers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from e4t.cli.terminal import require_extra

Services = Literal["tensorboard", "wandb", "all"]
_SERVICES = ("tensorboard", "wandb")  # and what their modules are called
Log = Callable[[Mapping[str, float], int], None]
"""Takes numbers by name, and their step."""


@contextmanager
def tracked(services: Services | None, folder: Path, settings: Mapping[str, Any]) -> Iterator[Log]:
    """While it lasts, trackers run, or none. Raises ConfigError where a service's library is not installed."""
    if services is None:
        yield lambda numbers, step: None
        return
    names = list(_SERVICES) if services == "all" else [services]
    require_extra("lab", *names)
    from accelerate import Accelerator

    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(log_with=names, project_dir=str(folder))
    accelerator.init_trackers("e4t", config=_flat(settings), init_kwargs={"wandb": {"dir": str(folder)}})
    try:
        yield lambda numbers, step: accelerator.log(dict(numbers), step=step)
    finally:
        accelerator.end_training()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Nested settings under dotted names; whatever is no number is text."""
    flat: dict[str, int | float | str | bool] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, (int, float, bool, str)) else str(value)
    return flat
