"""The saved states of a training: which there are, which can be gone on from, which to delete."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from e4t.config import PretrainConfig
from e4t.domain import Domain
from e4t.errors import CheckpointError, ConfigError
from e4t.saved import group, read_saved, typed, write_saved
from e4t.writing import remove_folder

LATEST = "latest"
_NAME = "step-{:09d}"
_SHAPING = ("encoder", "offsets", "optimizer", "ema_decay")
"""Settings that say which tensors a state holds."""
_ARGUMENTS: dict[str, Any] = {
    "config": dict,
    "domain": dict,
    "data": str,
    "first_losses": list[float],
    "processes": int,
    "shards": dict[str, list[list[int]]],  # `e4t.shards.ShardStream.sizes`
    "broken": dict[str, str],
}
_MOMENTS = ("exp_avg", "exp_avg_sq", "state1", "state2")  # of a parameter's shape; what else there is has its own

_MAY_CHANGE = ("checkpoint_every", "keep_states", "workers", "save_dtype", "compile", "gradient_checkpointing")
"""Settings that can change without making a resumed training another one; so may ``steps`` where rates are constant."""

_STEERING = (
    "learning_rate",
    "offsets_learning_rate",
    "weight_decay",
    "max_grad_norm",
    "warmup_steps",
    "mixed_precision",
    "seed",
)
"""Settings of the steps to come, which fit any state: they can change where one is named to go on from, on purpose."""

_SHARES = ("batch_size", "accumulation", "processes")
"""What the effective batch is the product of."""

_SAME = {"base": "base weights", "image_encoder": "image encoder weights", "pictures": "numbers of pictures"}
"""What else makes a training the one it is, and how to say that it is another."""


@dataclass(frozen=True)
class TrainingState:
    """Everything needed to go on training exactly where it stopped; random numbers follow from the step."""

    step: int
    arguments: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(repr=False)

    def save(self, folder: str | Path) -> Path:
        config = {"kind": "training", "step": self.step, "arguments": dict(self.arguments)}
        return write_saved(
            Path(folder), config, dict(self.tensors), "State of an unfinished training; safe to delete.\n"
        )

    @classmethod
    def load(cls, folder: str | Path) -> TrainingState:
        with read_saved(Path(folder), "training") as (config, tensors):
            return cls(typed(config, "step", int), typed(config, "arguments", dict), tensors)

    def group(self, name: str) -> dict[str, Tensor]:
        return group(self.tensors, name)


@dataclass(frozen=True)
class States:
    """A folder with one folder for each of the last ``keep`` states."""

    folder: Path
    keep: int = 1

    def found(self) -> dict[int, Path]:
        """Folder by step, the first step first."""
        steps = {}
        for path in sorted(self.folder.glob("step-*")):
            if match := re.fullmatch(r"step-(\d+)", path.name):
                steps[int(match.group(1))] = path
        return steps

    def source(self, which: str) -> str:
        """What to go on from: ``which``, or `LATEST` where this folder has gone further than another that it names.

        So a training that began from another one's state resumes by the same command, too.
        """
        gone = max(self.found(), default=0)
        if which == LATEST or not gone or Path(which).resolve().is_relative_to(self.folder.resolve()):
            return which
        return LATEST if gone > self._chosen(Path(which)).step else which

    def load(self, which: str) -> TrainingState | None:
        """The ``latest`` state, None where there is none, or the one in a folder of that name.

        Raises CheckpointError for a folder that holds none, and for one that is damaged: it is not passed over in
        silence, because days of training may depend on it.
        """
        if which != LATEST:
            return self._chosen(Path(which))
        found = self.found()
        if not found:
            return None
        try:
            return TrainingState.load(found[max(found)])
        except CheckpointError as error:
            others = sorted(found)[:-1]
            instead = f"go on from step {others[-1]}" if others else "begin anew"
            raise CheckpointError(f"{error}; delete '{found[max(found)]}' to {instead}") from error

    def _chosen(self, folder: Path) -> TrainingState:
        inside = States(folder).found()
        return TrainingState.load(inside[max(inside)] if inside else folder)

    def save(self, state: TrainingState) -> Path:
        """Write a state, and only then delete those that are too old.

        Those after it are of a training that went on from further back, and out of the way before: else, after a kill,
        the next one would go on from them. What is deleted has another name by then, and is never half a state.
        """
        for step, path in self.found().items():
            if step > state.step:
                remove_folder(path)
        folder = state.save(self.folder / _NAME.format(state.step))
        for path in list(self.found().values())[: -self.keep]:
            remove_folder(path)
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        return folder


def require_fitting(
    state: TrainingState,
    arguments: Mapping[str, Any],
    trained: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Raise CheckpointError for a state that no training of ours has written, or that has not all it needs.

    ``arguments`` and ``trained`` (by the names they are saved under) are those of the training that is to go on. Where
    a state is of a base or of settings that have other tensors, these are left alone: such a state is refused for that.
    """
    try:
        begun = _begun(state)
        now = PretrainConfig.from_dict(arguments["config"]).to_dict()
        alike = state.arguments.get("base", arguments["base"]) == arguments["base"]
        if alike and all(begun[name] == now[name] for name in _SHAPING):
            _require_tensors(state.tensors, trained, optimizer, averaged=bool(now["ema_decay"]))
    except (KeyError, TypeError, ValueError, AttributeError, NotImplementedError, ConfigError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"the state after step {state.step} cannot be gone on from: {what}; delete it, or name another one"
        ) from error


def changes_since(
    state: TrainingState, arguments: Mapping[str, Any], *, named: bool, place: Path
) -> list[dict[str, Any]]:
    """The changes so far of a training that goes on from ``state`` with ``arguments``, as settings were before them.

    How a step's pictures are shared out is none, unless they are drawn in other sizes. Raises CheckpointError for
    another training than the one in ``place``; one whose state is ``named`` may be steered anew.
    """
    before, now = _compared(state.arguments), _compared(arguments)
    changed = {name for name in now if before[name] != now[name]}.difference(_MAY_CHANGE, _SHARES, ["steps"])
    if before["steps"] != now["steps"] and any(
        one["schedule"] != "constant" or one["cooldown_steps"] for one in (before, now)
    ):
        changed.add("steps")  # the rate of every step depends on how many there are
    if math.prod(before[name] for name in _SHARES) != math.prod(now[name] for name in _SHARES):
        changed.add("effective batch")
    other = [said for name, said in _SAME.items() if state.arguments.get(name) != arguments[name]]
    steered = not other and changed <= set(_STEERING)
    if other or (changed and not (named and steered)):
        what = " and ".join(other) or f"settings ({', '.join(sorted(changed))})"
        instead = "resume from another state" if named else "delete it or choose another output"
        if steered:
            instead = f"to change them from here on, name it: --resume '{place}'"
        raise CheckpointError(f"'{place}' was begun with other {what}; {instead}")
    redrawn = before["batch_size"] * before["processes"] != now["batch_size"] * now["processes"]
    names = (*_STEERING, *(_SHARES if redrawn else ()))
    was = {name: before[name] for name in names if before[name] != now[name]}
    return [*state.arguments.get("changes", []), *([{"after_step": state.step, "was": was}] if was else [])]


def _compared(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All that can make a training another one."""
    said = {name: arguments[name] for name in ("data", "processes")}
    return {
        **said,
        "domain": Domain.from_dict(arguments["domain"]),
        **PretrainConfig.from_dict(arguments["config"]).to_dict(),
    }


def _begun(state: TrainingState) -> dict[str, Any]:
    """The settings a state was begun with. Raises KeyError, ValueError or ConfigError for what is none."""
    given = state.arguments
    for name, kind in _ARGUMENTS.items():
        typed(given, name, kind)
    typed({"changes": [], **given}, "changes", list[dict[str, Any]])
    if state.step < 0 or given["processes"] < 1:
        raise ValueError("it counts steps or processes below zero")
    for pairs in given["shards"].values():
        if not pairs or not all(len(pair) == 2 and min(pair) >= 0 for pair in pairs):
            raise ValueError("the sizes of its shards are no pairs of an epoch and a number")
    Domain.from_dict(given["domain"])
    return PretrainConfig.from_dict(given["config"]).to_dict()


def _require_tensors(
    tensors: Mapping[str, Tensor], trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, *, averaged: bool
) -> None:
    expected = dict(trained)
    if averaged:
        expected |= {f"average/{name.partition('/')[2]}": tensor for name, tensor in trained.items()}
    if missing := sorted(expected.keys() - tensors.keys()):
        raise ValueError(f"it lacks the tensor '{missing[0]}'")
    parameters = [parameter for one in optimizer.param_groups for parameter in one["params"]]
    for name, tensor in tensors.items():
        shapes = [tuple(expected[name].shape)] if name in expected else list(_other_shapes(name, tensor, parameters))
        if not shapes:
            raise ValueError(f"a training has no tensor called {name[:60]!r}")
        if tuple(tensor.shape) not in shapes:
            raise ValueError(f"tensor '{name}' has the shape {tuple(tensor.shape)}, not {shapes[0]}")
        if name in expected and not tensor.is_floating_point():
            raise ValueError(f"tensor '{name}' is of type {tensor.dtype}, not a float")
        if not tensor.isfinite().all():
            raise ValueError(f"tensor '{name}' holds values that are no numbers")


def _other_shapes(name: str, tensor: Tensor, parameters: list[Tensor]) -> Iterator[tuple[int, ...]]:
    """The shapes that a tensor of the optimiser or the scaler can have; none for a name that neither has."""
    if name in ("scaler/scale", "scaler/_growth_tracker"):
        yield ()
    match = re.fullmatch(r"optimizer/(\d{1,9})\.(\w+)", name)
    if match and int(match[1]) < len(parameters):
        yield tuple(parameters[int(match[1])].shape) if match[2] in _MOMENTS else tuple(tensor.shape)
