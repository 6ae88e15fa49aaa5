"""Where the numbers of a long training go: TensorBoard and Weights & Biases, through accelerate's trackers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from e4t.cli.terminal import require_extra

Services = Literal["tensorboard", "wandb", "all"]
_MODULES = {"tensorboard": "tensorboard", "wandb": "wandb"}


@dataclass(frozen=True)
class Tracking:
    """Trackers that are running, or none."""

    accelerator: Any = None

    @classmethod
    def started(cls, services: Services | None, folder: Path, settings: Mapping[str, Any]) -> Tracking:
        """Raises ConfigError where a service's library is not installed."""
        if services is None:
            return cls()
        names = list(_MODULES) if services == "all" else [services]
        require_extra("lab", *(_MODULES[name] for name in names))
        from accelerate import Accelerator

        folder.mkdir(parents=True, exist_ok=True)
        accelerator = Accelerator(log_with=names, project_dir=str(folder))
        accelerator.init_trackers("e4t", config=_flat(settings), init_kwargs={"wandb": {"dir": str(folder)}})
        return cls(accelerator)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        if self.accelerator is not None:
            self.accelerator.log(dict(numbers), step=step)

    def end(self) -> None:
        if self.accelerator is not None:
            self.accelerator.end_training()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Nested settings under dotted names; whatever is no number is text."""
    flat: dict[str, int | float | str | bool] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, (int, float, bool, str)) else str(value)
    return flat
