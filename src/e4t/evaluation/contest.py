"""What methods are compared on: concepts, what they are drawn for, and who looks at the pictures.

A `Contest` is of one domain. Its concepts are of the drawn world, where everything about them is known, or a user's own
pictures, of which CLIP alone has an opinion.
"""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from e4t.backbone import fingerprint_of
from e4t.config import PRECISIONS, Section, at_least, one_of
from e4t.errors import ConfigError, DataError
from e4t.evaluation.baselines import Example, Learned, image_vectors
from e4t.evaluation.copying import PoseReader, backdrop, poses
from e4t.evaluation.domain_base import on_domain_base
from e4t.evaluation.evaluate import (
    DRAWINGS,
    MORE_PROMPTS,
    Attributes,
    input_caption,
    input_data,
    input_picture,
    prompt_text,
    prompted,
    prompts_of,
    small,
    through_autoencoder,
)
from e4t.evaluation.judge import RESOLUTION, Judge
from e4t.evaluation.similarity import Clip, Faces
from e4t.evaluation.truth import Readings
from e4t.images import SUFFIXES, load_image
from e4t.models.text import class_token
from e4t.photos import fitting_mask
from e4t.pictures import with_masks
from e4t.pipeline import E4TPipeline
from e4t.provenance import image_digest
from e4t.shipped import resolve
from e4t.tiny.album import snapshot
from e4t.tiny.captions import describe, names
from e4t.tiny.world import TRAINING_NAMESPACES, WORLD_VERSION, Identity, draw, identity, stream, words
from e4t.writing import new_files

BY_NAME = "known by name"
"""Not a method: individuals the base was trained on, drawn by their names."""
NAMED_DRAWINGS = "drawings of those known by name"
"""Their ceiling: they are not those that the methods learn."""
REFERENCES = (DRAWINGS, BY_NAME, NAMED_DRAWINGS)
"""Rows without a method; the drawings are the ceiling, the world's own pictures after the autoencoder."""


@dataclass(frozen=True)
class Plan(Section):
    """What is compared. Runs of one plan give the same figures, except for seconds."""

    domains: tuple[str, ...] = ("tiny-face", "tiny-cat", "tiny-art")
    methods: tuple[str, ...] = ()  # by name; () are all
    namespace: str = "held-out-4"
    concepts: int = 12
    prompts: int = 8
    seeds: int = 1
    e4t_steps: tuple[int, ...] = (0, 5, 15)
    baseline_steps: tuple[int, ...] = ()  # (): the number of steps that was found best
    num_inference_steps: int | None = 16  # None: as many as the domain draws with
    mixed_precision: str = "no"  # of drawing; "bf16" is float32 where a processor would only emulate it

    def __post_init__(self) -> None:
        for name in ("concepts", "prompts", "seeds", "num_inference_steps"):
            at_least(name, getattr(self, name), 1)
        for steps in (*self.e4t_steps, *self.baseline_steps):
            at_least("steps", steps, 0)
        one_of("mixed_precision", self.mixed_precision, PRECISIONS)


@dataclass(frozen=True)
class Record:
    """What was read in the pictures of one concept by one method after some steps; rows are seed by seed.

    ``pose`` and ``backdrop`` are of the pictures, ``[rows, K]`` and ``[rows, 3]``; ``clip`` is ``[rows, W]`` and
    ``faces``, where somebody looks at faces, ``[rows, 128]``. ``threads`` is how many torch worked with.
    """

    method: str
    steps: int
    concept: int
    passes: int
    seconds: float
    peak_bytes: int
    stored_bytes: int
    threads: int
    readings: Readings | None  # None: no judge reads such concepts
    clip: np.ndarray
    pose: np.ndarray | None
    backdrop: np.ndarray
    faces: np.ndarray | None
    strip: bytes  # the first seed's pictures side by side, a JPEG

    def save(self, path: Path) -> None:
        plain = {name: getattr(self, name) for name in _PLAIN}
        arrays: dict[str, Any] = {"clip": self.clip, "backdrop": self.backdrop}
        if self.pose is not None:
            arrays["pose"] = self.pose
        if self.faces is not None:
            arrays["faces"] = self.faces
        if self.readings is not None:
            arrays["identity"] = self.readings.identity.astype(np.float32)
            arrays |= {f"class/{name}": values.astype(np.int16) for name, values in self.readings.classes.items()}
        arrays["strip"] = np.frombuffer(self.strip, np.uint8)
        arrays["plain"] = np.frombuffer(json.dumps(plain).encode(), np.uint8)
        with new_files([path]) as (new,), new.open("wb") as file:  # by name, numpy would add an ending
            np.savez_compressed(file, **arrays)

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
            faces=arrays.get("faces"),
            strip=arrays["strip"].tobytes(),
        )


_PLAIN = ("method", "steps", "concept", "passes", "seconds", "peak_bytes", "stored_bytes", "threads")
_VERSION = 3  # of what a record holds and how it comes about: no older one is taken over
_NOTHING = Learned(0, 0, 0.0, 0, 0, lambda *_: [])


class Contest(ABC):
    """What the methods of one domain are compared with: concepts, what they are drawn for, and who looks at it."""

    judge: Judge | None = None
    poses: PoseReader | None = None
    faces: Faces | None = None
    describable = False  # whether words can say anything of a concept

    def __init__(
        self,
        domain: str,
        plan: Plan,
        *,
        device: str = "cpu",
        base: str | None = None,
        reading: Mapping[str, str] | None = None,
        clip: str | None = None,
        domain_base: Path | None = None,
        keep: Path | None = None,
    ) -> None:
        """``domain`` may be just a class word with ``base``, any base model, which is read as ``reading`` says.

        ``clip`` is another CLIP than the base's own; ``domain_base`` a U-Net as `domain_base` trains it. ``keep`` is a
        folder for what takes long and does not change.
        """
        self.name = domain
        self.plan = plan
        options: dict[str, Any] = {"device": device, **(reading or {})}
        if base is None or Path(resolve(domain)).is_dir():
            self.pipe = E4TPipeline.from_pretrained(domain, base=base, **options)
        else:
            self.pipe = E4TPipeline.from_base(base, class_word=domain, **options)
        self.kind = self.pipe.domain.class_word
        self.clip = Clip.load(clip or self.pipe.backbone.name)
        drawn = self.pipe.generate_config  # every method is drawn as the domain is: what suits the base suits them all
        self.sampling: dict[str, Any] = {
            "num_inference_steps": plan.num_inference_steps or drawn.num_inference_steps,
            "guidance_scale": drawn.guidance_scale,
            "guidance_rescale": drawn.guidance_rescale,
            "scheduler": drawn.scheduler,
            "mixed_precision": self.pipe.drawn_in(plan.mixed_precision),  # other records than in float32
        }
        self.domain_base = domain_base
        self.keep = keep

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

    def record(self, method: str, number: int, learned: Learned) -> Record:
        """Draw what was learned, and read it."""
        texts, images = self.texts(number), []
        for seed in range(self.plan.seeds):
            images += learned.draw(texts, 10_000 * number + 100 * seed)
        return self.read(method, number, learned, images)

    def read(self, method: str, number: int, learned: Learned, images: Sequence[Image.Image]) -> Record:
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
            peak_bytes=learned.peak_bytes,
            stored_bytes=learned.stored_bytes,
            threads=torch.get_num_threads(),
            readings=self.judge.read(rgb) if self.judge else None,
            clip=self.clip.images(images),
            pose=self.poses.read(rgb) if self.poses else None,
            backdrop=backdrop(rgb),
            faces=self.faces.images(images) if self.faces else None,
            strip=strip.getvalue(),
        )

    def depends(self, number: int) -> dict[str, Any]:
        """Everything that a concept's records depend on besides the method, ready for JSON.

        What the domain has learned is not among it: that is in the settings of the method that has it.
        """
        return {
            "version": _VERSION,
            "domain": self.pipe.domain.to_dict(),
            "generate": self.pipe.generate_config.to_dict(),
            "base": self.pipe.backbone.fingerprint,
            "autoencoder": self._autoencoder,
            "device": self.pipe.backbone.device.type,
            "concept": self.identifies(number),
            "seeds": self.plan.seeds,
            "sampling": self.sampling,
            "clip": self.clip.fingerprint,
        }

    @cached_property
    def _autoencoder(self) -> str:
        return fingerprint_of(self.pipe.backbone.vae)


class DrawnContest(Contest):
    """Concepts of the drawn world, of which everything is known."""

    judge: Judge
    poses: PoseReader

    def __init__(self, domain: str, plan: Plan, *, judge: Judge | None = None, **options: Any) -> None:
        """Raises ConfigError for individuals that were trained on, and CheckpointError where no judge reads them."""
        if plan.namespace in TRAINING_NAMESPACES:
            raise ConfigError(f"individuals of the namespace '{plan.namespace}' were trained on; use any other word")
        at_least("concepts", plan.concepts, 2)  # likeness is told by how far individuals are apart
        super().__init__(domain, plan, **options)
        self.judge = judge or Judge.of(self.kind)
        if self.judge.kind != self.kind:
            raise ConfigError(f"this judge reads a {self.judge.kind}, but '{domain}' is about a {self.kind}")
        self.describable = self.kind != "art"  # no words tell one artist from another
        self.poses = PoseReader.shipped()
        self.subjects = [identity(plan.namespace, index, self.kind) for index in range(plan.concepts)]
        self._known: dict[str, Tensor] | None = None

    @property
    def prompts(self) -> list[Attributes]:
        """What is asked for."""
        return [*prompts_of(self.kind), *MORE_PROMPTS[self.kind]][: self.plan.prompts]

    def known(self) -> dict[str, Tensor]:
        """How those look that the base knows by name, as CLIP sees them."""
        if self._known is None:
            called = names(self.kind)
            pictures = (
                Image.fromarray(draw(snapshot("train", i, self.kind), RESOLUTION).rgb) for i in range(len(called))
            )
            vectors = self._kept_vectors(lambda: image_vectors(self.pipe, pictures))
            self._known = dict(zip(called, vectors, strict=True))
        return self._known

    def _kept_vectors(self, make: Callable[[], Tensor]) -> Tensor:
        if self.keep is None:
            return make()
        backbone = self.pipe.backbone
        path = self.keep / f"known-{self.kind}-{WORLD_VERSION}-{backbone.image_encoder_fingerprint}.npy"
        if not path.exists():
            with new_files([path]) as (new,), new.open("wb") as file:
                np.save(file, make().cpu().numpy())
        return torch.from_numpy(np.load(path)).to(backbone.device)

    def has(self, count: int) -> bool:
        return True  # the world draws as many as are wanted

    def examples(self, number: int, count: int) -> list[Example]:
        subject = self.subjects[number]
        known = describe(self.kind, words(subject), stream("description", subject.key)) if self.describable else None
        return [Example(*input_picture(subject, one), known, self._caption(number, one)) for one in range(count)]

    def _caption(self, number: int, one: int = 0) -> str | None:
        """What a concept's picture shows, where the domain was pre-trained with captions: told to every method."""
        if self.pipe.trained is None or not self.pipe.trained.had_captions:
            return None
        return input_caption(self.subjects[number], self.pipe.domain.placeholder, one)

    def texts(self, number: int) -> list[str]:
        return [prompt_text(self.subjects[number], asked, self.pipe.domain.placeholder) for asked in self.prompts]

    def identifies(self, number: int) -> Any:
        asked = [dict(attributes) for attributes in self.prompts]
        subject, readers = self.subjects[number].key, [self.judge.fingerprint, fingerprint_of(self.poses.network)]
        told = [caption] if (caption := self._caption(number)) else []
        return [WORLD_VERSION, subject, asked, self.judge.number, *readers, *told]

    def named(self, number: int) -> Identity:
        """Somebody the base knows by name; with more concepts than names, some come up again."""
        return identity("train", number % len(names(self.kind)), self.kind)

    def reference(self, row: str, number: int) -> Record:
        """One of `REFERENCES`, of a concept or of who is known by name in its place."""
        if row == BY_NAME:
            return self.read(row, number, _NOTHING, self._by_name(number))
        return self.read(row, number, _NOTHING, self._drawings(self.subject(row, number)))

    def subject(self, row: str, number: int) -> Identity:
        """Whom the pictures of a row are to show."""
        return self.named(number) if row in (BY_NAME, NAMED_DRAWINGS) else self.subjects[number]

    def _by_name(self, number: int) -> list[Image.Image]:
        """`named` by name alone, without learning: what the base can do at its best."""
        somebody, called = self.named(number), names(self.kind)
        texts = [prompt_text(somebody, asked, called[number % len(called)]) for asked in self.prompts]
        images: list[Image.Image] = []
        for seed in range(self.plan.seeds):
            images += self.pipe(texts, seed=10_000 * number + 100 * seed, **self.sampling).images
        return images

    def _drawings(self, subject: Identity) -> list[Image.Image]:
        """The world's own pictures, after the autoencoder."""
        rows: list[np.ndarray] = []
        for seed in range(self.plan.seeds):
            rows += [draw(prompted(subject, asked, key=seed or ""), RESOLUTION).rgb for asked in self.prompts]
        return [Image.fromarray(picture) for picture in through_autoencoder(self.pipe, np.stack(rows))]

    def true_poses(self) -> np.ndarray:
        """How the input pictures were posed, ``[concepts, K]``."""
        return poses([input_data(subject) for subject in self.subjects])


class OwnContest(Contest):
    """A user's own pictures: each in a folder is a concept, and so is each folder in it; masks are named after them."""

    def __init__(
        self,
        domain: str,
        plan: Plan,
        folder: Path,
        *,
        prompts: Sequence[str] = (),
        faces: bool = False,
        **options: Any,
    ) -> None:
        """``faces``: a face recogniser compares too.

        Raises DataError for a folder without pictures, or a picture without a face where faces are compared, and
        ConfigError for a prompt without the placeholder.
        """
        super().__init__(domain, plan, **options)
        self.concepts = concepts_in(folder)[: plan.concepts]
        if faces:
            self.faces = Faces.load()
            _require_faces(self.faces, [pictures[0][0] for pictures in self.concepts])
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
        given = [(load_image(path), mask) for path, mask in self.concepts[number][:count]]
        return [Example(image, fitting_mask(mask, image) if mask else None) for image, mask in given]

    def texts(self, number: int) -> list[str]:
        return self.prompts

    def identifies(self, number: int) -> Any:
        return [self._digests[number], self.prompts, self.faces is not None]

    @cached_property
    def _digests(self) -> list[list[str]]:
        everything = (self.examples(number, len(pictures)) for number, pictures in enumerate(self.concepts))
        return [
            [image_digest(part) for one in examples for part in (one.image, one.mask) if part is not None]
            for examples in everything
        ]


def _require_faces(recogniser: Faces, pictures: Iterable[Path]) -> None:
    for path in pictures:
        if np.isnan(recogniser.images([load_image(path)])).any():
            raise DataError(f"no face is found in '{path}'; leave the picture or the comparison of faces out")


def concepts_in(folder: Path) -> list[list[tuple[Path, Path | None]]]:
    """The pictures of every concept in a folder, with their masks. Raises DataError where there is none."""

    def pictures(paths: Iterable[Path]) -> list[tuple[Path, Path | None]]:
        return list(with_masks(sorted(path for path in paths if path.suffix.lower() in SUFFIXES)).items())

    if not folder.is_dir():
        raise DataError(f"there is no folder '{folder}'")
    single = [[one] for one in pictures(folder.iterdir())]
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
