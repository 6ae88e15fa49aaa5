"""How well unseen individuals are learned: identity, prompt and both, with intervals.

    e4t evaluate tiny-face --namespace held-out-2 --count 50 --output out/held-out-2.json

Every individual is learned from one drawn picture, then drawn for every prompt after each number of steps. A judge
reads the pictures, and also drawings of the same individuals with the prompted attributes: what it reads in those,
after the autoencoder, is the ceiling. Beside the JSON file come a markdown table and a contact sheet.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from e4t.config import at_least
from e4t.errors import ConfigError
from e4t.evaluation import metrics
from e4t.evaluation.judge import RESOLUTION, Judge, round_trip
from e4t.evaluation.truth import Readings, visible_parameters
from e4t.pipeline import E4TPipeline
from e4t.tiny.captions import TRAINING_KINDS, plain_caption
from e4t.tiny.columns import Layout, identity_columns
from e4t.tiny.scenes import SCENES
from e4t.tiny.world import (
    TRAINING_NAMESPACES,
    WORLD_VERSION,
    Identity,
    Picture,
    draw,
    identity,
    random_light,
    random_pose,
    stream,
    twins,
)
from e4t.writing import new_files

Attributes = Mapping[str, str]
"""What a prompt asks for: any of scene, style, accessory, expression, transform; of art also the subject, always."""

PROMPTS: tuple[Attributes, ...] = (
    {"style": "photo", "scene": "beach"},
    {"style": "watercolour", "scene": "garden"},
    {"transform": "snow globe"},
    {"style": "photo", "accessory": "crown", "scene": "library"},
    {"style": "pencil sketch", "expression": "laughing"},
    {"style": "oil painting", "scene": "snow"},
    {"style": "pixel art", "scene": "space"},
    {"style": "comic", "accessory": "headphones", "scene": "city"},
)
"""Scenes, styles, accessories, transforms and combinations; the first six are on the contact sheet."""

ART_PROMPTS: tuple[Attributes, ...] = (
    {"subject": "cat", "scene": "snow"},
    {"subject": "face", "scene": "beach"},
    {"subject": "face", "accessory": "crown", "scene": "library"},
    {"subject": "cat", "scene": "forest"},
    {"subject": "face", "scene": "space"},
    {"subject": "cat", "accessory": "red hat", "scene": "garden"},
    {"subject": "face", "expression": "laughing", "scene": "mountains"},
    {"subject": "cat", "scene": "city"},
)
"""What an artist is asked to draw."""

MORE_PROMPTS: dict[str, tuple[Attributes, ...]] = {
    **dict.fromkeys(
        ("face", "cat"),
        (
            {"transform": "stained glass window"},
            {"style": "neon", "accessory": "sunglasses"},
            {"style": "photo", "expression": "surprised", "scene": "forest"},
            {"style": "pastel", "scene": "mountains"},
        ),
    ),
    "art": (
        {"subject": "face", "scene": "desert"},
        {"subject": "cat", "accessory": "crown", "scene": "kitchen"},
        {"subject": "face", "expression": "surprised", "scene": "rain"},
        {"subject": "cat", "scene": "sunset"},
    ),
}
"""Four more, for the longest of comparisons."""

DRAWINGS, CLASS_WORD = "drawings", "class word"
SCORES = ("identity", "rank_1_of_50", "rank_1_of_20_twins", "prompt_accuracy", "joint_success")
CROWD, TWINS = 50, 20
SHEET = (12, 6)  # individuals, prompts

Progress = Callable[[str], None]


def prompts_of(kind: str) -> tuple[Attributes, ...]:
    """The prompts that concepts of "face", "cat" or "art" are examined on."""
    return ART_PROMPTS if kind == "art" else PROMPTS


def _asked(concept: Identity, attributes: Attributes) -> Picture:
    chosen: dict[str, Any] = dict(attributes)
    if concept.kind != "art":
        return Picture(concept, **chosen)
    sitter = identity("sitters", int(stream("sitter", concept.key).random() * 10**6), chosen.pop("subject"))
    return Picture(sitter, art=concept, **chosen)


def prompted(concept: Identity, attributes: Attributes, *, key: object = "") -> Picture:
    """A picture of ``concept`` as a prompt asks for it, in a pose and light that depend on ``key``."""
    rng = stream("evaluation", concept.key, key)
    pose, light = random_pose(rng), random_light(rng)
    return replace(_asked(concept, attributes), pose=pose, light=light, seed=int(rng.random() * 2**31))


def prompt_text(concept: Identity, attributes: Attributes, placeholder: str) -> str:
    """The prompt in the captions' first wording, "a watercolour of S* in a garden", "a cat in the style of S*"."""
    return plain_caption(_asked(concept, attributes), placeholder)


def input_data(concept: Identity, number: int = 0) -> Picture:
    """The one picture a concept is learned from: a plain photo, or anything by an artist.

    Every other ``number`` is another one, for methods that are given several.
    """
    key = f"input {number}" if number else "input"
    if concept.kind != "art":
        return prompted(concept, {}, key=key)
    rng = stream(key, concept.key)
    scenes, kinds = list(SCENES), list(TRAINING_KINDS)
    asked = {"subject": kinds[int(rng.random() * 2)], "scene": scenes[int(rng.random() * len(scenes))]}
    return prompted(concept, asked, key=key)


def input_caption(concept: Identity, placeholder: str, number: int = 0) -> str:
    """What `input_data` shows, in the same wording: "a cat in the rain in the style of S*"."""
    return plain_caption(input_data(concept, number), placeholder)


def input_picture(concept: Identity, number: int = 0) -> tuple[Image.Image, Image.Image]:
    """`input_data` drawn, and where the concept is in it; an artist's picture is his all over."""
    drawing = draw(input_data(concept, number), RESOLUTION)
    mask = np.ones_like(drawing.mask) if concept.kind == "art" else drawing.mask
    return Image.fromarray(drawing.rgb), Image.fromarray((mask * 255).round().astype(np.uint8))


# Pictures


@dataclass
class Pictures:
    """What is judged: uint8 ``[concepts, prompts, 128, 128, 3]`` by method; and what the contact sheet shows."""

    by_method: dict[str, list[np.ndarray]] = field(default_factory=dict)
    sheet: list[list[np.ndarray]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, method: str, images: np.ndarray, seconds: float) -> None:
        self.by_method.setdefault(method, []).append(images)
        self.seconds[method] = self.seconds.get(method, 0) + seconds

    def stacked(self, method: str) -> np.ndarray:
        """All pictures of a method in one row, concept by concept: ``[concepts * prompts, 128, 128, 3]``."""
        return np.concatenate(self.by_method[method])


@dataclass(frozen=True)
class Drawer:
    """Draws the prompts of one evaluation with a pipeline. Pictures of concept i begin at seed + 1000 i."""

    pipe: E4TPipeline
    prompts: Sequence[Attributes]
    seed: int
    num_inference_steps: int

    def texts(self, subject: Identity) -> list[str]:
        return [prompt_text(subject, attributes, self.pipe.domain.placeholder) for attributes in self.prompts]

    def generate(self, texts: list[str], concept: Any, seed: int, **overrides: Any) -> np.ndarray:
        """One picture per prompt, uint8 ``[prompts, 128, 128, 3]``; overrides are fields of `GenerateConfig`."""
        settings = {"num_inference_steps": self.num_inference_steps, **overrides}
        output = self.pipe(texts, concept=concept, seed=seed, **settings)
        return np.stack([np.asarray(small(image)) for image in output.images])

    def drawings(self, subject: Identity) -> np.ndarray:
        """The world's own pictures for the prompts, through the pipeline's autoencoder."""
        rgb = np.stack([draw(prompted(subject, attributes), RESOLUTION).rgb for attributes in self.prompts])
        return through_autoencoder(self.pipe, rgb)


def through_autoencoder(pipe: E4TPipeline, rgb: np.ndarray) -> np.ndarray:
    """Pictures, uint8 ``[n, 128, 128, 3]``, as the pipeline's autoencoder gives them back."""
    return round_trip(rgb, lambda pixels: pipe.backbone.decode(pipe.backbone.encode(pixels)))


def small(image: Image.Image) -> Image.Image:
    """In RGB, at the size that judges read."""
    return image.convert("RGB").resize((RESOLUTION, RESOLUTION), Image.Resampling.LANCZOS)


def make_pictures(
    drawer: Drawer,
    subjects: Sequence[Identity],
    steps: Sequence[int],
    *,
    use_mask: bool,
    use_caption: bool,
    class_word: bool,
    progress: Progress,
) -> Pictures:
    """Learn every individual once, up to the largest number of steps, and draw it wherever ``steps`` says."""
    pictures = Pictures()
    for number, subject in enumerate(subjects):
        texts, seed = drawer.texts(subject), drawer.seed + 1000 * number
        began = time.perf_counter()
        pictures.add(DRAWINGS, drawer.drawings(subject), time.perf_counter() - began)
        if class_word:
            began = time.perf_counter()
            pictures.add(CLASS_WORD, drawer.generate(texts, None, seed), time.perf_counter() - began)
        photo, mask = input_picture(subject)
        told = input_caption(subject, drawer.pipe.domain.placeholder) if use_caption else None
        concepts = learn(drawer.pipe, photo, mask if use_mask else None, steps, caption=told)
        for count, concept in concepts.items():
            began = time.perf_counter()
            pictures.add(method_of(count), drawer.generate(texts, concept, seed), time.perf_counter() - began)
        if number < SHEET[0]:
            drawn = pictures.by_method[method_of(sheet_steps(drawer.pipe, steps))][-1]
            pictures.sheet.append([np.asarray(photo), *drawn[: SHEET[1]]])
        progress(f"{number + 1} of {len(subjects)} individuals")
    return pictures


def learn(
    pipe: E4TPipeline, image: Image.Image, mask: Image.Image | None, steps: Sequence[int], **overrides: Any
) -> dict[int, Any]:
    """The concept after each number of ``steps``, from one run: k steps of many are the same as k steps alone.

    Overrides are fields of `PersonalizeConfig`.
    """
    run = pipe.personalize_steps(image, mask=mask, steps=max(steps), keep_steps=set(steps), **overrides)
    return {step.number: step.concept for step in run if step.number in steps}


def method_of(steps: int) -> str:
    """How a number of tuning steps is called in reports."""
    return f"{steps} step{'' if steps == 1 else 's'}"


def sheet_steps(pipe: E4TPipeline, steps: Sequence[int]) -> int:
    """The contact sheet's number of steps: the domain's own if it is evaluated, else the largest."""
    return pipe.personalize_config.steps if pipe.personalize_config.steps in steps else max(steps)


# Scores


@dataclass(frozen=True)
class Examination:
    """Everything scores need besides readings. Rows are concept by concept, c * prompts + p."""

    layout: Layout
    subjects: Sequence[Identity]
    prompts: Sequence[Attributes]
    counted: np.ndarray  # [P] which parameters the judge can read
    namespace: str

    @property
    def rows(self) -> list[tuple[int, Attributes]]:
        return [(number, attributes) for number in range(len(self.subjects)) for attributes in self.prompts]

    def table(self, values: np.ndarray) -> np.ndarray:
        """Values of rows as ``[concepts, prompts]``."""
        return values.reshape(len(self.subjects), len(self.prompts))

    def crowd(self, number: int) -> list[Identity]:
        """The individual and 49 others of its namespace."""
        kind, pool = self.subjects[number].kind, max(CROWD, len(self.subjects))
        return [identity(self.namespace, (number + other) % pool, kind) for other in range(CROWD)]

    def twins(self, number: int) -> list[Identity]:
        """The individual and 19 others that no caption tells from it."""
        return [self.subjects[number], *twins(self.subjects[number], TWINS - 1)]

    def nearest(self, readings: Readings, candidates: Callable[[int], list[Identity]]) -> np.ndarray:
        """Whether each row's reading is nearest to its own individual, the first of its candidates, bool ``[rows]``."""
        hits = []
        for number in range(len(self.subjects)):
            among = candidates(number)
            true = np.stack([identity_columns(one) for one in among])[None]
            for place, attributes in enumerate(self.prompts):
                row = number * len(self.prompts) + place
                weight = np.stack([self.weight(one, attributes) for one in among])[None]
                distance = metrics.distances(self.layout, readings.identity[row : row + 1], true, weight)
                hits.append(metrics.rank_one(distance)[0])
        return np.array(hits)

    def weight(self, subject: Identity, attributes: Attributes) -> np.ndarray:
        """Weights of ``subject``'s columns in a picture of these attributes, ``[D]``."""
        seen = visible_parameters(subject, _asked(subject, attributes))[self.layout.owners]
        return metrics.weights(self.layout, seen, self.counted)


@dataclass(frozen=True)
class Table:
    """Scores of one method as ``[concepts, prompts]``; identity as its two squared distances."""

    missed: np.ndarray
    spread: np.ndarray
    crowd: np.ndarray
    twin: np.ndarray
    found: np.ndarray
    joint: np.ndarray

    def part(self, prompt: int) -> Table:
        """The scores under one prompt."""
        return Table(*(getattr(self, name)[:, prompt : prompt + 1] for name in self.__dataclass_fields__))

    @property
    def identity(self) -> float:
        """The identity score, not divided by anything."""
        return float(1 - self.missed.sum() / self.spread.sum())

    @classmethod
    def mean(cls, tables: Sequence[Table]) -> Table:
        """Of the same concepts and prompts, as one: what several seeds made of them."""
        return cls(*(np.mean([getattr(table, name) for table in tables], axis=0) for name in cls.__dataclass_fields__))

    def statistics(self, ceiling: Table) -> dict[str, metrics.Statistic]:
        """A statistic of concept numbers for every one of `SCORES`; identity is divided by that of ``ceiling``."""
        means = (self.crowd, self.twin, self.found, self.joint)
        rest = dict(zip(SCORES[1:], map(metrics.mean_statistic, means), strict=True))
        mine, highest = (metrics.score_statistic(table.missed, table.spread) for table in (self, ceiling))
        return {"identity": metrics.share_of(highest, mine), **rest}


def score(examination: Examination, readings: Readings) -> Table:
    """All scores of one method's readings."""
    rows = examination.rows
    true = np.stack([identity_columns(examination.subjects[number]) for number, _ in rows])
    weight = np.stack([examination.weight(examination.subjects[number], asked) for number, asked in rows])
    missed, spread = metrics.identity_errors(readings.identity, true, weight, concepts=len(examination.subjects))
    twin = examination.nearest(readings, examination.twins)
    found = metrics.found([readings.answers(row) for row in range(len(rows))], [dict(asked) for _, asked in rows])
    crowd, joint = examination.nearest(readings, examination.crowd), metrics.joint_success(twin, found)
    return Table(*map(examination.table, (missed, spread, crowd, twin, found, joint)))


def summarise(tables: dict[str, Table], *, prompts: int, draws: int = 2000) -> dict[str, Any]:
    """Intervals of every score of every method, all prompts together and each alone, and paired differences."""
    samples = metrics.resamples(len(tables[DRAWINGS].missed), draws=draws)
    ceiling = tables[DRAWINGS]
    statistics = {method: table.statistics(ceiling) for method, table in tables.items()}

    def interval(statistic: metrics.Statistic) -> dict[str, float]:
        return metrics.bootstrap(statistic, samples).to_dict()

    methods = {m: {name: interval(statistic) for name, statistic in s.items()} for m, s in statistics.items()}
    learned = [method for method in tables if method != DRAWINGS]
    differences = {
        f"{after} − {before}": {
            name: interval(metrics.difference(statistics[after][name], statistics[before][name])) for name in SCORES
        }
        for before, after in itertools.pairwise(learned)
    }
    return {
        "identity_ceiling": interval(metrics.score_statistic(ceiling.missed, ceiling.spread)),
        "methods": methods,
        "differences": differences,
        "by_prompt": [_prompt_values(tables, prompt) for prompt in range(prompts)],
    }


def _prompt_values(tables: dict[str, Table], prompt: int) -> dict[str, dict[str, float | None]]:
    """Values under one prompt, identity over that very prompt's ceiling; None where the judge is blind under it."""
    ceiling = tables[DRAWINGS].part(prompt)
    everyone = np.arange(len(tables[DRAWINGS].missed))
    values = {
        method: {name: _number(s(everyone)) for name, s in table.part(prompt).statistics(ceiling).items()}
        for method, table in tables.items()
    }
    values[DRAWINGS]["identity"] = round(ceiling.identity, 4)
    return values


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 4)


# All of it


@dataclass(frozen=True)
class Evaluation:
    """The report, ready for JSON, the contact sheet, and what the report is of: scores by method."""

    report: dict[str, Any]
    sheet: Image.Image
    tables: dict[str, Table]

    def write(self, output: Path) -> list[Path]:
        """Write ``output`` (.json) and, beside it, .md and .png; returns the three paths."""
        paths = [output.with_suffix(".md"), output.with_suffix(".png"), output]  # where the report is, all of it is
        with new_files(paths) as (table, sheet, report):
            table.write_text(markdown(self.report), encoding="utf-8")
            self.sheet.save(sheet, "PNG")
            report.write_text(json.dumps(self.report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return [output, *paths[:2]]


def evaluate(
    pipe: E4TPipeline,
    namespace: str,
    count: int = 50,
    prompts: Sequence[Attributes] | None = None,
    steps: Sequence[int] = (0, 1, 5, 15),
    *,
    judge: Judge,
    seed: int = 0,
    num_inference_steps: int = 25,
    use_mask: bool = True,
    use_caption: bool = False,
    class_word: bool = True,
    progress: Progress = lambda _: None,
) -> Evaluation:
    """Examine the first ``count`` individuals of ``namespace``. Raises ConfigError where that would not be fair.

    With ``class_word`` what the base draws without a concept is examined too, which is the same for all settings.
    """
    if namespace in TRAINING_NAMESPACES:
        raise ConfigError(f"individuals of the namespace '{namespace}' were trained on; use any other word")
    if judge.kind != pipe.domain.class_word:
        raise ConfigError(f"this judge reads a {judge.kind}, but the domain is about a {pipe.domain.class_word}")
    at_least("count", count, 2)  # likeness is told by how far individuals are apart
    prompts = prompts_of(judge.kind) if prompts is None else prompts
    subjects = [identity(namespace, index, judge.kind) for index in range(count)]
    drawer = Drawer(pipe, prompts, seed, num_inference_steps)
    if not judge.readable.any():
        raise ConfigError("the judge reads no parameter of drawings well enough to count")
    examination = Examination(judge.layout, subjects, prompts, judge.readable, namespace)
    pictures = make_pictures(
        drawer,
        subjects,
        sorted(steps),
        use_mask=use_mask,
        use_caption=use_caption,
        class_word=class_word,
        progress=progress,
    )
    tables = {m: score(examination, judge.read(pictures.stacked(m))) for m in pictures.by_method}
    if tables[DRAWINGS].identity < metrics.LEAST_CEILING:
        raise ConfigError(f"the judge is blind here: identity of the drawings is {tables[DRAWINGS].identity:.2f}")
    report = {
        "domain": pipe.domain.name,
        "namespace": namespace,
        "count": count,
        "seed": seed,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": pipe.generate_config.guidance_scale,
        "use_mask": use_mask,
        "use_caption": use_caption,
        "judge": judge.number,
        "world": WORLD_VERSION,
        "readable": [name for name, kept in zip(judge.layout.names, judge.readable, strict=True) if kept],
        "prompts": drawer.texts(subjects[0]),
        "seconds": {method: round(seconds, 1) for method, seconds in pictures.seconds.items()},
        **summarise(tables, prompts=len(prompts)),
    }
    return Evaluation(report, contact_sheet(pictures.sheet), tables)


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], *, gap: int = 4) -> Image.Image:
    """Pictures in rows and columns on white, uint8 ``[128, 128, 3]`` each; the first column stands apart."""
    step = RESOLUTION + gap
    sheet = Image.new("RGB", (step * max(map(len, rows), default=1) + 3 * gap, step * len(rows) + gap), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (gap + x * step + (2 * gap if x else 0), gap + y * step))
    return sheet


def markdown(report: dict[str, Any]) -> str:
    """The report as two tables: all scores with intervals, and joint success by prompt."""
    methods = report["methods"]
    head = (
        f"{report['count']} unseen individuals of `{report['namespace']}` × {len(report['prompts'])} prompts, judge "
        f"{report['judge']}; value and 95 % interval over individuals. The drawings' identity is the ceiling "
        f"({_cell(report['identity_ceiling'])}) that the others are divided by.\n"
    )
    titles = [name.replace("_", " ") for name in SCORES]
    scores = [[method, *(_cell(values[name]) for name in SCORES)] for method, values in methods.items()]
    joint = [
        [text, *(f"{values[method]['joint_success']:.2f}" for method in methods)]
        for text, values in zip(report["prompts"], report["by_prompt"], strict=True)
    ]
    return "\n".join([head, table(["", *titles], scores), table(["joint success", *methods], joint)])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in markdown."""
    return "".join("| " + " | ".join(row) + " |\n" for row in [head, ["---"] * len(head), *rows])


def _cell(values: dict[str, float]) -> str:
    return f"{values['value']:.2f} ({values['low']:.2f} … {values['high']:.2f})"
