"""The methods by name, and for one contest those that can be run, each with the settings that were found best.

Settings come from `e4t.evaluation.search`; where nothing was looked for, from diffusers' training scripts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Any

from e4t.errors import ConfigError
from e4t.evaluation import baselines
from e4t.evaluation.baselines import Personalizer
from e4t.evaluation.contest import Contest, DrawnContest

SEVERAL = 5
"""How many pictures of a concept those methods get that get more than one."""
OURS = "E4T"

Maker = Callable[[Contest, dict[str, Any]], Personalizer]


def _words(make: Callable[..., Personalizer]) -> Maker:
    return lambda contest, _: make(contest.pipe, contest.sampling)


def _rare(make: Callable[..., Personalizer], *, on_domain: bool = False, **fixed: Any) -> Maker:
    def made(contest: Contest, found: dict[str, Any]) -> Personalizer:
        pipe = contest.pipe_on_domain if on_domain else contest.pipe
        return make(pipe, contest.sampling, rare_token=contest.rare_token, **fixed, **found)

    return made


def _textual_inversion(**fixed: Any) -> Maker:
    return lambda contest, found: baselines.textual_inversion(contest.pipe, contest.sampling, **fixed, **found)


def _nearest_name(contest: Contest, _: dict[str, Any]) -> Personalizer:
    if not isinstance(contest, DrawnContest):
        raise ConfigError("the nearest name is looked for among the drawn world's; leave it out for your own pictures")
    return baselines.nearest_name(contest.pipe, contest.sampling, contest.known)


METHODS: dict[str, Maker] = {
    "class word": _words(baselines.class_word),
    "best caption": _words(baselines.best_caption),
    "nearest name": _nearest_name,
    OURS: lambda contest, found: baselines.e4t(contest.pipe, contest.sampling, **found),
    "Textual Inversion": _textual_inversion(),
    "Textual Inversion, 5 images": _textual_inversion(examples=SEVERAL),
    "DreamBooth": _rare(baselines.dreambooth),
    "DreamBooth, 5 images": _rare(baselines.dreambooth, examples=SEVERAL),
    "DreamBooth + prior": _rare(baselines.dreambooth, prior=True),
    "DreamBooth + text encoder": _rare(baselines.dreambooth, text_encoder=True),
    "DreamBooth + text encoder + prior": _rare(baselines.dreambooth, text_encoder=True, prior=True),
    "LoRA": _rare(baselines.lora),
    "LoRA, 5 images": _rare(baselines.lora, examples=SEVERAL),
    "DreamBooth on the domain": _rare(baselines.dreambooth, on_domain=True),
    "LoRA on the domain": _rare(baselines.lora, on_domain=True),
}


@cache
def found_best() -> dict[str, dict[str, dict[str, Any]]]:
    """Settings by domain and method, as `e4t.evaluation.search` found them on validation concepts."""
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(_FOUND.read_text())
    return found


_FOUND = resources.files(__package__).joinpath("found.json")
_FOUND = resources.files(__package__).joinpath("found.json")
_UNTUNED = ("class word", "best caption", "nearest name")


class Lineup:
    """The methods of one contest."""

    def __init__(self, contest: Contest) -> None:
        """Raises ConfigError where the plan names an unknown method."""
        named = contest.plan.methods
        unknown = sorted(set(named) - set(METHODS))
        if unknown:
            raise ConfigError(f"there is no method {unknown[0]!r}; there are {', '.join(METHODS)}")
        self.contest = contest
        self.names = tuple(name for name in METHODS if (name in named if named else self._runs(name)))
        self._learners: dict[str, Personalizer] = {}

    def learner(self, method: str) -> Personalizer:
        """The method as it was found best, made once: it keeps what serves all concepts, as pictures of the class."""
        if method not in self._learners:
            self._learners[method] = METHODS[method](self.contest, self.settings(method))
        return self._learners[method]

    def settings(self, method: str) -> dict[str, Any]:
        """What was found best for a method, without its number of steps; ours is set by the domain itself."""
        if method == OURS or method not in METHODS:
            return {}
        return {name: value for name, value in self._found(method).items() if name != "steps"}

    def steps(self, method: str) -> tuple[int, ...]:
        """The numbers of steps after which a method is drawn."""
        plan = self.contest.plan
        if method == OURS:
            return plan.e4t_steps
        if method in _UNTUNED:
            return (0,)
        return tuple(sorted({*plan.baseline_steps, int(self._found(method)["steps"])}))

    def key(self, method: str, number: int) -> str:
        """The name of a concept's records: a hash of everything they depend on."""
        depends = {"method": method, "settings": self.settings(method), **self.contest.depends(number)}
        if method.endswith(" on the domain"):
            depends["domain_base"] = self.contest.pipe_on_domain.backbone.fingerprint
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:20]

    def _found(self, method: str) -> dict[str, Any]:
        """What was found for the method, else for its plain form, else what training scripts set by default."""
        tried = found_best().get(self.contest.name, {})
        fitting = [name for name in (method, *tried) if name in tried and method.startswith(name)]
        return tried[fitting[0]] if fitting else defaults_of(method)

    def _runs(self, method: str) -> bool:
        if method.endswith(" on the domain"):
            return self.contest.domain_base is not None
        if method in ("best caption", "nearest name"):
            return isinstance(self.contest, DrawnContest)
        if method.endswith(" images"):
            return self.contest.has(SEVERAL)
        return True


def defaults_of(method: str) -> dict[str, Any]:
    """What diffusers' training scripts and their guides set, for bases that nothing was looked for on.

    A new word's rate of 5e-4 is in units of s = 0.1 here. Empty for what is not tuned.
    """
    return next((dict(values) for name, values in _DEFAULTS.items() if method.startswith(name)), {})


_DEFAULTS: dict[str, dict[str, Any]] = {
    "Textual Inversion": {"residual_learning_rate": 5e-3, "steps": 3000},
    "DreamBooth + text encoder": {"learning_rate": 2e-6, "steps": 800},
    "DreamBooth": {"learning_rate": 5e-6, "steps": 400},
    "LoRA": {"learning_rate": 1e-4, "steps": 500},
}
