"""The methods by name, and for one contest those that can be run, each with the settings that were found best.

Settings come from `e4t.evaluation.search`; on bases that nothing was looked for on, from diffusers' training scripts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from e4t.errors import ConfigError
from e4t.evaluation import baselines
from e4t.evaluation.baselines import Personalizer
from e4t.evaluation.contest import Contest, DrawnContest
from e4t.provenance import settings_digest

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
    "DreamBooth + prior, 5 images": _rare(baselines.dreambooth, prior=True, examples=SEVERAL),
    "DreamBooth + text encoder": _rare(baselines.dreambooth, text_encoder=True),
    "DreamBooth + text encoder, 5 images": _rare(baselines.dreambooth, text_encoder=True, examples=SEVERAL),
    "DreamBooth + text encoder + prior": _rare(baselines.dreambooth, text_encoder=True, prior=True),
    "DreamBooth by Muon": _rare(baselines.dreambooth, muon=True),
    "LoRA": _rare(baselines.lora),
    "LoRA, 5 images": _rare(baselines.lora, examples=SEVERAL),
    "DreamBooth on the domain": _rare(baselines.dreambooth, on_domain=True),
    "LoRA on the domain": _rare(baselines.lora, on_domain=True),
}


@dataclass(frozen=True)
class Found:
    """Settings of a method, its number of steps, and where they come from."""

    settings: dict[str, Any]
    steps: int
    origin: str


@cache
def found_best() -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Settings by base, kind and method, as `e4t.evaluation.search` found them on validation concepts.

    A base is called by its fingerprint; what was found on one says nothing of another.
    """
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = json.loads(_FOUND.read_text())
    return found


_FOUND = resources.files(__package__).joinpath("found.json")
_UNTUNED = ("class word", "best caption", "nearest name")


class Lineup:
    """The methods of one contest."""

    def __init__(self, contest: Contest) -> None:
        """Methods of the plan that need what is not there are left out.

        Raises ConfigError where the plan names an unknown method, or none that can run.
        """
        named = contest.plan.methods
        unknown = sorted(set(named) - set(METHODS))
        if unknown:
            raise ConfigError(f"there is no method {unknown[0]!r}; there are {', '.join(map(repr, METHODS))}")
        self.contest = contest
        wanted = [name for name in METHODS if name in named or not named]
        self.names = tuple(name for name in wanted if self._runs(name))
        self.left_out = tuple(name for name in wanted if named and name not in self.names)
        if not self.names:
            raise ConfigError(f"{wanted[0]!r} needs what is not there; docs/benchmark.md says what each method needs")
        self._learners: dict[str, Personalizer] = {}

    def learner(self, method: str) -> Personalizer:
        """The method as it was found best, made once: it keeps what serves all concepts, as pictures of the class."""
        if method not in self._learners:
            self._learners[method] = METHODS[method](self.contest, self.settings(method))
        return self._learners[method]

    def settings(self, method: str) -> dict[str, Any]:
        """What was found best for a method, without its number of steps; ours is set by the domain itself."""
        found = self.found(method)
        return found.settings if found else {}

    def steps(self, method: str) -> tuple[int, ...]:
        """The numbers of steps after which a method is drawn."""
        plan = self.contest.plan
        if method == OURS:
            return plan.e4t_steps
        found = self.found(method)
        return tuple(sorted({*plan.baseline_steps, found.steps})) if found else (0,)

    def key(self, method: str, number: int) -> str:
        """The name of a concept's records: a hash of everything they depend on."""
        depends = {"method": method, **self.contest.depends(number)}
        if method in METHODS:
            depends["settings"] = self.learner(method).settings
        if method.endswith(" on the domain"):
            depends["domain_base"] = self.contest.pipe_on_domain.backbone.fingerprint
        return settings_digest(depends)

    def found(self, method: str) -> Found | None:
        """The settings of a method that is tuned; None for ours, which the domain sets, and for what is not tuned.

        What was found for the method itself, else for the form whose name it begins with, else for another kind of
        subject on the same base, else what training scripts set by default.
        """
        if method == OURS or method in _UNTUNED or method not in METHODS:
            return None
        kinds = found_best().get(self.contest.pipe.backbone.fingerprint, {})
        for kind in sorted(kinds, key=lambda kind: (kind != self.contest.kind, kind != "face", kind)):
            tried = kinds[kind]
            fitting = max((name for name in tried if method.startswith(name)), key=len, default=None)
            if fitting:
                of = "" if kind == self.contest.kind else f" of a {kind}"
                origin = "searched" if fitting == method and not of else f"as {fitting}{of}"
                return _found(tried[fitting], origin)
        return _found(defaults_of(method), "as training scripts have it")

    def _runs(self, method: str) -> bool:
        if method.endswith(" on the domain"):
            return self.contest.domain_base is not None
        if method == "best caption":
            return self.contest.describable
        if method == "nearest name":
            return isinstance(self.contest, DrawnContest)
        if method.endswith(" images"):
            return self.contest.has(SEVERAL)
        return True


def _found(values: Mapping[str, Any], origin: str) -> Found:
    settings = dict(values)
    return Found(settings, int(settings.pop("steps")), origin)


def defaults_of(method: str) -> dict[str, Any]:
    """What diffusers' guides to their training scripts set, for bases that nothing was looked for on."""
    return next(dict(values) for name, values in _DEFAULTS.items() if method.startswith(name))


_DEFAULTS: dict[str, dict[str, Any]] = {
    # 5e-4, scaled by four accumulated pictures, is 2e-3; in units of s = 0.1 that is 2e-2
    "Textual Inversion": {"residual_learning_rate": 2e-2, "batch_size": 4, "steps": 3000},
    "DreamBooth + text encoder": {"learning_rate": 2e-6, "batch_size": 1, "prior_pictures": 200, "steps": 800},
    "DreamBooth + prior": {"learning_rate": 5e-6, "batch_size": 1, "prior_pictures": 200, "steps": 800},
    "DreamBooth": {"learning_rate": 5e-6, "batch_size": 1, "steps": 400},
    "LoRA": {"learning_rate": 1e-4, "batch_size": 1, "steps": 500},
}
