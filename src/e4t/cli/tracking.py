"""Where the numbers of a long training go: TensorBoard and Weights & Biases, through accelerate's trackers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from e4t.cli.terminal import require_extra

Services = Literal["tensorboard", "wandb", "all"]
_SERVICES = ("tensorboard", "wandb")  # and what their modules are called


@dataclass(frozen=True)
class Tracking:
    """Trackers that are running, or none."""

    accelerator: Any = None

    @classmethod
    @contextmanager
    def running(cls, services: Services | None, folder: Path, settings: Mapping[str, Any]) -> Iterator[Tracking]:
        """While it lasts. Raises ConfigError where a service's library is not installed."""
        if services is None:
            yield cls()
            return
        names = list(_SERVICES) if services == "all" else [services]
        require_extra("lab", *names)
        from accelerate import Accelerator

        folder.mkdir(parents=True, exist_ok=True)
        accelerator = Accelerator(log_with=names, project_dir=str(folder))
        accelerator.init_trackers("e4t", config=_flat(settings), init_kwargs={"wandb": {"dir": str(folder)}})
        try:
            yield cls(accelerator)
        finally:
            accelerator.end_training()

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        if self.accelerator is not None:
            self.accelerator.log(dict(numbers), step=step)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Nested settings under dotted names; whatever is no number is text."""
    flat: dict[str, int | float | str | bool] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, (int, float, bool, str)) else str(value)
    return flat
