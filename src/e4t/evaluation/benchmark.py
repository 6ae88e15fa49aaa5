"""E4T and what it is compared with on the same concepts, prompts and seeds: what `e4t benchmark` runs.

Every method learns every concept once, and is drawn and read after each number of steps. What was read is kept under a
name that follows from everything it depends on, so that the same command goes on where it was interrupted, and one with
more concepts or methods takes over what is there. Figures are made of all records together, by `e4t.evaluation.report`.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from e4t.data import SUFFIXES
from e4t.errors import CheckpointError, ConfigError, DataError
from e4t.evaluation import baselines
from e4t.evaluation.baselines import Example, Learned, Personalizer, image_vector
from e4t.evaluation.copying import PoseReader, backdrop, poses
from e4t.evaluation.domain_base import on_domain_base
from e4t.evaluation.evaluate import (
    MORE_PROMPTS,
    Attributes,
    input_data,
    input_picture,
    prompt_text,
    prompted,
    prompts_of,
    small,
    through_autoencoder,
)
from e4t.evaluation.judge import RESOLUTION, Judge
from e4t.evaluation.memory import Peak
from e4t.evaluation.similarity import Clip
from e4t.evaluation.truth import Readings
from e4t.images import load_image
from e4t.models.text import class_token
from e4t.pipeline import E4TPipeline
from e4t.provenance import image_digest
from e4t.tiny.album import snapshot
from e4t.tiny.captions import describe, names
from e4t.tiny.world import WORLD_VERSION, Identity, draw, identity, stream, words

SEVERAL = 5
"""How many pictures of a concept those methods get that get more than one."""

OURS = "E4T"
DRAWINGS = "drawings"
"""Not a method but the ceiling: the world's own pictures, after the autoencoder."""


@dataclass(frozen=True)
class Plan:
    """What is compared. Runs of one plan give the same figures, except for seconds."""

    domains: tuple[str, ...] = ("tiny-face", "tiny-cat", "tiny-art")
    methods: tuple[str, ...] = ()  # names in METHODS; () are all
    namespace: str = "held-out-1"
    concepts: int = 12
    prompts: int = 8
    seeds: int = 1
    e4t_steps: tuple[int, ...] = (0, 5, 15)
    baseline_steps: tuple[int, ...] = ()  # (): the number of steps that was found best
    num_inference_steps: int = 16


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


# Records


@dataclass(frozen=True)
class Record:
    """What was read in the pictures of one concept by one method after some steps; rows are seed by seed.

    ``pose`` and ``backdrop`` are of the pictures, ``[rows, K]`` and ``[rows, 3]``; ``clip`` is ``[rows, W]``.
    """

    method: str
    steps: int
    concept: int
    passes: int
    seconds: float
    peak_bytes: int
    stored_bytes: int
    readings: Readings | None  # None: no judge reads such concepts
    clip: np.ndarray
    pose: np.ndarray | None
    backdrop: np.ndarray
    strip: bytes  # the first seed's pictures side by side, a JPEG

    def save(self, path: Path) -> None:
        plain = {name: getattr(self, name) for name in _PLAIN}
        arrays: dict[str, Any] = {"clip": self.clip, "backdrop": self.backdrop}
        if self.pose is not None:
            arrays["pose"] = self.pose
        if self.readings is not None:
            arrays["identity"] = self.readings.identity.astype(np.float32)
            arrays |= {f"class/{name}": values.astype(np.int16) for name, values in self.readings.classes.items()}
        arrays["strip"] = np.frombuffer(self.strip, np.uint8)
        arrays["plain"] = np.frombuffer(json.dumps(plain).encode(), np.uint8)
        beside = path.with_suffix(".partial.npz")
        np.savez_compressed(beside, **arrays)
        beside.rename(path)

    @classmethod
    def load(cls, path: Path) -> Record:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        classes = {name[6:]: values.astype(int) for name, values in arrays.items() if name.startswith("class/")}
        return cls(
            **json.loads(arrays["plain"].tobytes()),
            readings=Readings(arrays["identity"].astype(float), classes) if classes else None,
            clip=arrays["clip"],
            pose=arrays.get("pose"),
            backdrop=arrays["backdrop"],
            strip=arrays["strip"].tobytes(),
        )


_PLAIN = ("method", "steps", "concept", "passes", "seconds", "peak_bytes", "stored_bytes")


@dataclass(frozen=True)
class Progress:
    """One more piece of work is done; ``left`` is the time the rest will take, in seconds, as far as can be told."""

    text: str
    done: int
    total: int
    left: float | None


# The contest of one domain


class Contest(ABC):
    """What the methods of one domain are compared with: concepts, what they are drawn for, and who looks at it."""

    judge: Judge | None = None
    poses: PoseReader | None = None

    def __init__(
        self,
        domain: str,
        plan: Plan,
        *,
        device: str = "cpu",
        clip: str | None = None,
        domain_base: Path | None = None,
    ) -> None:
        """``clip`` is another CLIP than the base's own; ``domain_base`` a U-Net as `domain_base` trains it."""
        self.name = domain
        self.plan = plan
        self.pipe = E4TPipeline.from_pretrained(domain, device=device)
        self.kind = self.pipe.domain.class_word
        self.clip = Clip.load(clip or self.pipe.backbone.name)
        self.sampling: dict[str, Any] = {"num_inference_steps": plan.num_inference_steps}
        self.domain_base = domain_base
        self._learners: dict[str, Personalizer] = {}

    def learner(self, method: str) -> Personalizer:
        """The method as it was found best, made once: it keeps what serves all concepts, as pictures of the class."""
        if method not in self._learners:
            self._learners[method] = METHODS[method](self, self.settings(method))
        return self._learners[method]

    @property
    def size(self) -> int:
        """How many concepts there are."""
        return self.plan.concepts

    @cached_property
    def rare_token(self) -> str:
        """What DreamBooth calls a concept: a word that is one token of this base, and means nothing to it."""
        for word in RARE_TOKENS:
            try:
                class_token(self.pipe.backbone.tokenizer, word)
            except ConfigError:
                continue
            return word
        raise ConfigError(f"none of {', '.join(RARE_TOKENS)} is a single token of '{self.pipe.backbone.name}'")

    @cached_property
    def pipe_on_domain(self) -> E4TPipeline:
        """The same on the base that was tuned on pictures of the domain, without encoder and offsets."""
        if self.domain_base is None:
            raise ConfigError("methods on the domain need its tuned base: train one and name it with --domain-base")
        return on_domain_base(self.pipe, self.domain_base)

    def settings(self, method: str) -> dict[str, Any]:
        """What was found best for a method, without its number of steps; ours is set by the domain itself."""
        if method == OURS:
            return {}
        return {name: value for name, value in self._found(method).items() if name != "steps"}

    def steps(self, method: str) -> tuple[int, ...]:
        """The numbers of steps after which a method is drawn."""
        if method == OURS:
            return self.plan.e4t_steps
        if method in _UNTUNED:
            return (0,)
        return tuple(sorted({*self.plan.baseline_steps, int(self._found(method)["steps"])}))

    def _found(self, method: str) -> dict[str, Any]:
        """What was found for the method, else for its plain form, else what training scripts set by default."""
        tried = found_best().get(self.name, {})
        fitting = [name for name in (method, *tried) if name in tried and method.startswith(name)]
        return tried[fitting[0]] if fitting else defaults_of(method)

    @abstractmethod
    def has(self, count: int) -> bool:
        """Whether there are ``count`` pictures of every concept."""

    @abstractmethod
    def examples(self, number: int, count: int) -> list[Example]:
        """The first ``count`` pictures of a concept."""

    @abstractmethod
    def texts(self, number: int) -> list[str]:
        """What a concept is drawn for, once for every seed."""

    @abstractmethod
    def identifies(self, number: int) -> Any:
        """What a concept's records depend on besides the method, ready for JSON."""

    def record(self, method: str, number: int, learned: Learned, peak: int) -> Record:
        """Draw what was learned, and read it."""
        texts, images = self.texts(number), []
        for seed in range(self.plan.seeds):
            images += learned.draw(texts, 10_000 * number + 100 * seed)
        return self.read(method, number, learned, peak, images)

    def read(self, method: str, number: int, learned: Learned, peak: int, images: Sequence[Image.Image]) -> Record:
        """What there is to read in pictures of a concept, seed by seed."""
        rgb = np.stack([np.asarray(small(image)) for image in images])
        first = np.concatenate(list(rgb[: len(self.texts(number))]), axis=1)
        strip = io.BytesIO()
        Image.fromarray(first).save(strip, "JPEG", quality=88)
        return Record(
            method=method,
            steps=learned.steps,
            concept=number,
            passes=learned.passes,
            seconds=round(learned.seconds, 3),
            peak_bytes=peak,
            stored_bytes=learned.stored_bytes,
            readings=self.judge.read(rgb) if self.judge else None,
            clip=self.clip.images(images),
            pose=self.poses.read(rgb) if self.poses else None,
            backdrop=backdrop(rgb),
            strip=strip.getvalue(),
        )

    def key(self, method: str, number: int) -> str:
        """The name of a record: a hash of everything it depends on."""
        trained = self.pipe.trained
        depends = {
            "domain": trained.id if trained else None,
            "personalize": dict(trained.personalize) if trained else {},
            "generate": dict(trained.generate) if trained else {},
            "base": self.pipe.backbone.fingerprint,
            "method": method,
            "settings": self.settings(method),
            "concept": self.identifies(number),
            "seeds": self.plan.seeds,
            "sampling": self.sampling,
            "clip": self.clip.fingerprint,
        }
        if method.endswith(" on the domain"):
            depends["domain_base"] = self.pipe_on_domain.backbone.fingerprint
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:20]


class DrawnContest(Contest):
    """Concepts of the drawn world, of which everything is known."""

    judge: Judge
    poses: PoseReader

    def __init__(self, domain: str, plan: Plan, *, judge: Judge | None = None, **options: Any) -> None:
        super().__init__(domain, plan, **options)
        self.judge = judge or Judge.shipped(self.kind)
        self.poses = PoseReader.shipped()
        self.subjects = [identity(plan.namespace, index, self.kind) for index in range(plan.concepts)]

    @property
    def prompts(self) -> list[Attributes]:
        """What is asked for."""
        return [*prompts_of(self.kind), *MORE_PROMPTS[self.kind]][: self.plan.prompts]

    @cached_property
    def known(self) -> dict[str, Any]:
        """How those look that the base knows by name, as CLIP sees them."""
        called = names(self.kind)[:_KNOWN]
        pictures = (Image.fromarray(draw(snapshot("train", i, self.kind), RESOLUTION).rgb) for i in range(len(called)))
        return dict(zip(called, (image_vector(self.pipe, picture) for picture in pictures), strict=True))

    def has(self, count: int) -> bool:
        return True  # the world draws as many as are wanted

    def examples(self, number: int, count: int) -> list[Example]:
        subject = self.subjects[number]
        return [Example(*input_picture(subject, one), self._description(subject)) for one in range(count)]

    def _description(self, subject: Identity) -> str | None:
        if self.kind == "art":
            return None  # no words tell one artist from another
        return describe(subject.kind, words(subject), stream("description", subject.key))

    def texts(self, number: int) -> list[str]:
        return [prompt_text(self.subjects[number], asked, self.pipe.domain.placeholder) for asked in self.prompts]

    def identifies(self, number: int) -> Any:
        asked = [dict(attributes) for attributes in self.prompts]
        return [WORLD_VERSION, self.subjects[number].key, asked, self.judge.number, self.judge.fingerprint]

    def drawings(self, number: int) -> Record:
        """The world's own pictures of the concept, after the autoencoder."""
        subject, rows = self.subjects[number], []
        for seed in range(self.plan.seeds):
            rows += [draw(prompted(subject, asked, key=seed or ""), RESOLUTION).rgb for asked in self.prompts]
        nothing = Learned(0, 0, 0.0, 0, lambda *_: [])
        images = [Image.fromarray(picture) for picture in through_autoencoder(self.pipe, np.stack(rows))]
        return self.read(DRAWINGS, number, nothing, 0, images)

    def true_poses(self) -> np.ndarray:
        """How the input pictures were posed, ``[concepts, K]``."""
        return poses([input_data(subject) for subject in self.subjects])


class OwnContest(Contest):
    """A user's own pictures: every file of a folder is a concept, and so is every folder of pictures in it."""

    def __init__(self, domain: str, plan: Plan, folder: Path, *, prompts: Sequence[str] = (), **options: Any) -> None:
        """Raises DataError for a folder without pictures and ConfigError for a prompt without the placeholder."""
        super().__init__(domain, plan, **options)
        self.concepts = concepts_in(folder)[: plan.concepts]
        usual = [text.replace("S*", self.pipe.domain.placeholder) for text in OWN_PROMPTS[: plan.prompts]]
        self.prompts = list(prompts) or usual
        for prompt in self.prompts:
            if self.pipe.domain.placeholder not in prompt:
                raise ConfigError(f"the prompt {prompt!r} has no {self.pipe.domain.placeholder}")

    @property
    def size(self) -> int:
        return len(self.concepts)

    def has(self, count: int) -> bool:
        return min(map(len, self.concepts)) >= count

    def examples(self, number: int, count: int) -> list[Example]:
        return [Example(load_image(path)) for path in self.concepts[number][:count]]

    def texts(self, number: int) -> list[str]:
        return self.prompts

    def identifies(self, number: int) -> Any:
        return [self._digests[number], self.prompts]

    @cached_property
    def _digests(self) -> list[list[str]]:
        return [[image_digest(load_image(path)) for path in paths] for paths in self.concepts]


def concepts_in(folder: Path) -> list[list[Path]]:
    """The pictures of every concept in a folder. Raises DataError where there is none."""

    def pictures(paths: Iterable[Path]) -> list[Path]:
        return sorted(path for path in paths if path.suffix.lower() in SUFFIXES)

    if not folder.is_dir():
        raise DataError(f"there is no folder '{folder}'")
    single = [[path] for path in pictures(folder.iterdir())]
    several = [pictures(inner.iterdir()) for inner in sorted(folder.iterdir()) if inner.is_dir()]
    found = single + [paths for paths in several if paths]
    if not found:
        raise DataError(f"'{folder}' holds no pictures")
    return found


RARE_TOKENS = ("sks", "x", "q")
OWN_PROMPTS = (
    "a photo of S* on the beach",
    "a watercolour painting of S*",
    "a pencil sketch of S*",
    "S* in the snow",
    "an oil painting of S*",
    "a marble statue of S*",
    "S* as an astronaut in space",
    "a stained glass window of S*",
)
"""What a user's own concepts are drawn for, where no prompts are given."""


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


# Methods

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


_KNOWN = 500
"""Named individuals among whom the nearest is looked for."""
_UNTUNED = ("class word", "best caption", "nearest name")


# Running


def methods_of(contest: Contest) -> tuple[str, ...]:
    """The methods of a contest, in the order of METHODS; without any named, those that can be run.

    Raises ConfigError for an unknown one.
    """
    named = contest.plan.methods
    unknown = sorted(set(named) - set(METHODS))
    if unknown:
        raise ConfigError(f"there is no method {unknown[0]!r}; there are {', '.join(METHODS)}")
    return tuple(name for name in METHODS if (name in named if named else _runs(name, contest)))


def _runs(method: str, contest: Contest) -> bool:
    if method.endswith(" on the domain"):
        return contest.domain_base is not None
    if method in ("best caption", "nearest name"):
        return isinstance(contest, DrawnContest)
    if method.endswith(" images"):
        return contest.has(SEVERAL)
    return True


def run(contest: Contest, folder: Path) -> Iterator[Progress]:
    """Make every record of a contest that is not in ``folder`` yet, concept by concept."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = _rows(contest)
    clock: dict[str, list[float]] = {method: [] for method in rows}
    done = 0
    for number in range(contest.size):
        for method in rows:
            began = time.perf_counter()
            new = _make(contest, method, number, folder)
            done += 1
            if new:
                clock[method].append(time.perf_counter() - began)
            left = _left(clock, contest.size - number - 1, rows[rows.index(method) + 1 :])
            yield Progress(f"{contest.name}: concept {number + 1}, {method}", done, len(rows) * contest.size, left)


def _rows(contest: Contest) -> tuple[str, ...]:
    return (*((DRAWINGS,) if isinstance(contest, DrawnContest) else ()), *methods_of(contest))


def _left(clock: dict[str, list[float]], concepts: int, methods: Sequence[str]) -> float | None:
    """Seconds for some whole concepts and for some methods of this one; None before every method was timed."""
    if not all(clock.values()):
        return None
    means = {method: float(np.mean(seconds)) for method, seconds in clock.items()}
    return concepts * sum(means.values()) + sum(means[method] for method in methods)


def _paths(contest: Contest, method: str, number: int, folder: Path) -> dict[int, Path]:
    steps = (0,) if method == DRAWINGS else contest.steps(method)
    key = contest.key(method, number)
    return {step: folder / f"{key}-{step}.npz" for step in steps}


def _make(contest: Contest, method: str, number: int, folder: Path) -> bool:
    """Whether there was anything to do."""
    paths = _paths(contest, method, number, folder)
    if all(path.exists() for path in paths.values()):
        return False
    if isinstance(contest, DrawnContest) and method == DRAWINGS:
        contest.drawings(number).save(paths[0])
        return True
    learner = contest.learner(method)
    with Peak(contest.pipe.backbone.device) as peak:
        learned = learner.learn(contest.examples(number, learner.examples), tuple(paths))
    for one in learned:
        contest.record(method, number, one, peak.bytes).save(paths[one.steps])
    return True


def records(contest: Contest, folder: Path) -> dict[tuple[str, int], list[Record]]:
    """All records by method and steps, one per concept. Raises CheckpointError where one is missing."""
    found: dict[tuple[str, int], list[Record]] = {}
    for method in _rows(contest):
        for number in range(contest.size):
            for step, path in _paths(contest, method, number, folder).items():
                if not path.exists():
                    raise CheckpointError(f"'{folder}' has no record of {method}, concept {number}: run it to the end")
                found.setdefault((method, step), []).append(Record.load(path))
    return found


def compare(contests: Iterable[Contest], output: Path) -> Iterator[Progress]:
    """Run contests and write the report to ``output``; the same call goes on where it stopped."""
    from e4t.evaluation.report import figures, write

    finished = []
    for contest in contests:
        yield from run(contest, output / "records")
        found = records(contest, output / "records")
        finished.append((figures(contest, found), found))
    write(output, finished)
