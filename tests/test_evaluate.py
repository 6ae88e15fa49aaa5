"""The evaluation with stand-ins: a pipeline that draws the truth or strangers, and a judge that knows every drawing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from e4t.errors import ConfigError
from e4t.evaluation import evaluate as evaluation
from e4t.evaluation import metrics
from e4t.evaluation.evaluate import (
    CLASS_WORD,
    DRAWINGS,
    PROMPTS,
    SCORES,
    Evaluation,
    evaluate,
    input_caption,
    input_data,
    input_picture,
    prompt_text,
    prompted,
    prompts_of,
)
from e4t.evaluation.metrics import resamples
from e4t.evaluation.truth import Readings, Truth, class_answers
from e4t.tiny.columns import Layout
from e4t.tiny.world import Drawing, Identity, Picture, draw, identity

COUNT = 6


class World:
    """Stands in for drawing: a picture's number, written into a blank image, so that the judge can look it up."""

    def __init__(self) -> None:
        self.pictures: list[Picture] = []

    def draw(self, picture: Picture, size: int) -> Drawing:
        self.pictures.append(picture)
        rgb = np.zeros((size, size, 3), np.uint8)
        rgb.flat[:4] = np.frombuffer(np.uint32(len(self.pictures) - 1).tobytes(), np.uint8)
        return Drawing(rgb, np.ones((size, size), np.float32))


class Oracle:
    """A judge that is always right."""

    number, kind = 1, "face"
    layout = Layout.of("face")
    readable = np.ones(len(layout.names), bool)

    def __init__(self, world: World) -> None:
        self.world = world

    def read(self, rgb: np.ndarray) -> Readings:
        numbers = [int(np.frombuffer(image.tobytes()[:4], np.uint32)[0]) for image in rgb]
        truth = Truth.of([self.world.pictures[number] for number in numbers], "face")
        return Readings(truth.identity, truth.classes)


class Pipeline:
    """Draws the individual it was shown after one step or more, and strangers before that."""

    domain = SimpleNamespace(name="face", class_word="face", placeholder="S*")
    personalize_config = SimpleNamespace(steps=5)
    generate_config = SimpleNamespace(guidance_scale=3.0)
    backbone = SimpleNamespace(encode=lambda pixels: pixels, decode=lambda pixels: pixels)

    def __init__(self, world: World) -> None:
        self.world = world
        self.seeds: list[int] = []
        self.captions: list[str | None] = []

    def personalize_steps(self, image: Image.Image, **settings: Any) -> Iterator[Any]:
        assert settings["mask"] is None or settings["mask"].size == image.size
        self.captions.append(settings["caption"])
        shown = Oracle(self.world).world.pictures[int(np.frombuffer(np.asarray(image).tobytes()[:4], np.uint32)[0])]
        for number in range(settings["steps"] + 1):
            yield SimpleNamespace(number=number, concept=(number, shown.subject))

    def __call__(self, texts: list[str], *, concept: Any, seed: int, num_inference_steps: int) -> Any:
        self.seeds.append(seed)
        worn: Any = concept or (0, None)
        steps, subject = worn
        images = []
        for place, text in enumerate(texts):
            attributes = next(a for a in PROMPTS if prompt_text(identity("x", 0), a, "S*") == text)
            stranger = identity("strangers", seed + place)
            picture = prompted(subject if steps else stranger, attributes, key=seed)
            images.append(Image.fromarray(self.world.draw(picture, 128).rgb))
        return SimpleNamespace(images=images)


def examined(pipe: Any, *arguments: Any, judge: Any, **options: Any) -> Evaluation:
    """`evaluate` with stand-ins."""
    return evaluate(pipe, *arguments, judge=judge, **options)


def stand_ins(patch: pytest.MonkeyPatch) -> World:
    """For drawing, and for as many draws of intervals."""
    world = World()
    patch.setattr(evaluation, "draw", world.draw)
    patch.setattr(metrics, "resamples", lambda concepts, **_: resamples(concepts, draws=200))
    return world


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return stand_ins(monkeypatch)


@pytest.fixture(scope="module")
def done() -> Evaluation:
    with pytest.MonkeyPatch.context() as patch:
        world = stand_ins(patch)
        return examined(Pipeline(world), "unseen", COUNT, steps=(0, 1, 5), judge=Oracle(world))


def test_truth_scores_full_and_strangers_nothing(done: Evaluation) -> None:
    methods = done.report["methods"]
    assert list(methods) == [DRAWINGS, CLASS_WORD, "0 steps", "1 step", "5 steps"]
    for method in (DRAWINGS, "1 step", "5 steps"):
        assert {name: methods[method][name]["value"] for name in SCORES} == dict.fromkeys(SCORES, 1)
    for method in (CLASS_WORD, "0 steps"):
        assert methods[method]["identity"]["value"] < 0
        assert methods[method]["rank_1_of_50"]["value"] < 0.2
        assert methods[method]["rank_1_of_20_twins"]["value"] < 0.3
        assert methods[method]["prompt_accuracy"]["value"] == 1


def test_differences_are_between_neighbours(done: Evaluation) -> None:
    differences = done.report["differences"]
    assert list(differences) == ["0 steps − class word", "1 step − 0 steps", "5 steps − 1 step"]
    assert differences["1 step − 0 steps"]["joint_success"]["low"] > 0.5
    assert differences["5 steps − 1 step"]["joint_success"]["value"] == 0


def test_report_is_complete_and_written(done: Evaluation, tmp_path: Path) -> None:
    paths = done.write(tmp_path / "deep" / "report.json")
    assert [path.suffix for path in paths] == [".json", ".md", ".png"]
    report = json.loads(paths[0].read_text())
    assert report == done.report
    assert len(report["by_prompt"]) == len(report["prompts"]) == len(PROMPTS) >= 8
    table = paths[1].read_text()
    assert table.count("\n| ") >= 2 + len(PROMPTS)
    with Image.open(paths[2]) as sheet:
        assert sheet.height > COUNT * 128
        assert sheet.width > 7 * 128


def test_contact_sheet_is_by_the_fixed_rule(world: World) -> None:
    pipe = Pipeline(world)
    examined(pipe, "unseen", 3, steps=(5,), judge=Oracle(world))
    assert pipe.seeds == [0, 0, 1000, 1000, 2000, 2000]  # it shows what was judged: nothing is drawn for it alone


def test_the_class_word_is_not_drawn_where_it_is_not_wanted(world: World) -> None:
    pipe = Pipeline(world)
    found = examined(pipe, "unseen", 3, steps=(0, 5), judge=Oracle(world), class_word=False)
    assert list(found.tables) == [DRAWINGS, "0 steps", "5 steps"]
    assert pipe.seeds == [0, 0, 1000, 1000, 2000, 2000]


def test_captions_of_the_inputs_are_told_where_they_are_wanted(world: World) -> None:
    pipe = Pipeline(world)
    for use_caption in (False, True):
        examined(pipe, "unseen", 3, steps=(1,), judge=Oracle(world), use_caption=use_caption)
    assert pipe.captions == [None] * 3 + ["a photo of S*"] * 3


def test_training_individuals_are_refused(world: World) -> None:
    with pytest.raises(ConfigError, match="trained on"):
        examined(Pipeline(world), "train", 3, judge=Oracle(world))


def test_a_blind_judge_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Oracle(world)
    monkeypatch.setattr(judge, "read", lambda rgb: _inverted(Oracle(world).read(rgb)))
    with pytest.raises(ConfigError, match="blind"):
        examined(Pipeline(world), "unseen", 3, steps=(1,), judge=judge)
    monkeypatch.setattr(judge, "readable", np.zeros(len(judge.layout.names), bool))
    with pytest.raises(ConfigError, match="no parameter"):
        examined(Pipeline(world), "unseen", 3, steps=(1,), judge=judge)


def _inverted(readings: Readings) -> Readings:
    return Readings(1 - readings.identity, readings.classes)


def test_prompts_name_what_exists() -> None:
    subject = identity("x", 0)
    texts = [prompt_text(subject, attributes, "S*") for attributes in PROMPTS]
    assert len(set(texts)) == len(PROMPTS)
    assert all(text.count("S*") == 1 for text in texts)
    asked = {name for attributes in PROMPTS for name in attributes}
    assert {"scene", "style", "accessory", "transform"} <= asked
    for attributes in PROMPTS:
        draw(prompted(subject, attributes), 32)


def test_input_is_a_plain_photo_with_its_mask() -> None:
    subject: Identity = identity("x", 0)
    photo, mask = input_picture(subject)
    assert photo.size == mask.size == (128, 128)
    assert input_caption(subject, "S*") == "a photo of S*"
    assert (photo.mode, mask.mode) == ("RGB", "L")
    np.testing.assert_array_equal(np.asarray(photo), np.asarray(input_picture(subject)[0]))


def test_an_artist_is_asked_to_draw_somebody_somewhere() -> None:
    artist, other = identity("x", 0, "art"), identity("x", 1, "art")
    texts = [prompt_text(artist, attributes, "S*") for attributes in prompts_of("art")]
    assert len(set(texts)) == len(texts) >= 8
    assert texts[0] == "a cat in the snow in the style of S*"
    for attributes in prompts_of("art"):
        picture = prompted(artist, attributes)
        assert picture.art == artist
        answers = class_answers(picture)
        assert all(answers[name] == wanted for name, wanted in attributes.items())
        assert picture.subject != prompted(other, attributes).subject
    shown = input_data(artist)
    assert input_caption(artist, "S*").startswith(f"a {shown.subject.kind} ")
    assert input_caption(artist, "S*").endswith("in the style of S*")
    photo, mask = input_picture(artist)
    assert np.asarray(mask).min() == 255  # all of a picture is its artist's
    assert np.abs(np.asarray(photo, float) - np.asarray(input_picture(other)[0], float)).mean() > 5
