"""The shipped weights: in stock formats, small enough, and good for the whole job."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from e4t import Concept, E4TPipeline
from e4t.config import PretrainConfig
from e4t.evaluation.evaluate import (
    Drawer,
    Examination,
    input_caption,
    input_picture,
    learn,
    prompts_of,
    score,
)
from e4t.evaluation.judge import Judge
from e4t.evaluation.transfer import OtherDrawings
from e4t.tiny.world import identity

TINY = Path(str(resources.files("e4t.tiny")))
WEIGHTS = TINY / "weights"
RESULTS = Path(__file__).parents[1] / "docs" / "results"
pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="this checkout ships no weights; runs/tiny.sh makes them")
EXAMPLES = sorted((TINY / "examples").glob("face-*.png"))
WORTH = {"face": 0.28, "cat": 0.24, "art": 0.084}
"""How much of the loss one's own concept takes away: 0.8 of 0.36, 0.30 and 0.105, which the shipped weights reach."""


@pytest.fixture(scope="module")
def pipe() -> E4TPipeline:
    return E4TPipeline.from_pretrained("tiny-face", device="cpu")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), np.float32)


def test_all_weights_together_stay_small() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md"}
    assert sum(path.stat().st_size for path in files) <= 50e6


def test_unmodified_diffusers_samples_it() -> None:
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

    stock = StableDiffusionPipeline.from_pretrained(WEIGHTS / "tiny")
    stock.set_progress_bar_config(disable=True)
    first = stock("a photo of a face", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert first.size == (128, 128)
    again = StableDiffusionImg2ImgPipeline(**stock.components, requires_safety_checker=False)
    again.set_progress_bar_config(disable=True)
    assert again("a photo of a face", image=first, num_inference_steps=4).images[0].size == (128, 128)


def test_the_domain_is_what_its_arguments_make(pipe: E4TPipeline, tmp_path: Path) -> None:
    """The first recorded losses come again: same base, same pictures, same settings."""
    from e4t.pretrain import pictures_of, pretrain
    from e4t.tiny.album import snapshot
    from e4t.tiny.world import draw

    record = json.loads((WEIGHTS / "tiny-face" / "config.json").read_text())
    config = replace(PretrainConfig.from_dict(record["pretrain"]), steps=2)
    folder = tmp_path / record["training"]["data"]
    folder.mkdir()
    for index in range(record["training"]["pictures"]):
        (folder / f"face-{index:05d}.png").touch()  # only those that two batches take are drawn
    taken = pictures_of(folder, pipe.backbone, config).picks(range(2 * config.batch_size))
    for index in taken:
        Image.fromarray(draw(snapshot("train", index)).rgb).save(folder / f"face-{index:05d}.png")
    steps = pretrain(pipe.domain, folder, backbone=pipe.backbone, config=config, output=tmp_path / "again")
    assert [step.loss for step in steps] == pytest.approx(record["training"]["first_losses"][:2], rel=0.02)


def test_one_picture_becomes_a_concept_that_draws(pipe: E4TPipeline, tmp_path: Path) -> None:
    concept = pipe.personalize(EXAMPLES[0])
    assert concept.steps == 5
    settings = {"num_inference_steps": 4, "seed": 0}
    drawn = pipe("a photo of S*", concept=concept, **settings).images[0]
    bare = pipe("a photo of S*", concept=None, **settings).images[0]
    assert np.abs(pixels(drawn) - pixels(bare)).mean() > 1
    kept = Concept.load(concept.save(tmp_path / "anna"))
    again = pipe("a photo of S*", concept=kept, **settings).images[0]
    assert np.abs(pixels(again) - pixels(drawn)).mean() < 2  # kept in half precision


@pytest.mark.parametrize("kind", WORTH)
def test_a_concept_is_worth_something_on_other_drawings_of_its_own(kind: str) -> None:
    pipe = E4TPipeline.from_pretrained(f"tiny-{kind}", device="cpu")
    subjects = [identity("validation", 500 + index, kind) for index in range(2)]
    drawings = OtherDrawings.of(pipe, subjects, prompts_of(kind)[:2])
    captions = [input_caption(subject, "S*") if kind == "art" else None for subject in subjects]
    concepts = [pipe.personalize(input_picture(s)[0], caption=c) for s, c in zip(subjects, captions, strict=True)]
    bare = drawings.loss(0, None)
    assert drawings.gains(concepts)["over_another"] > WORTH[kind]
    assert drawings.loss(0, None) == bare  # taken off again


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("face", 12), ("cat", 24), ("art", 24)])  # which differ more
def test_joint_success_stays_above_its_floor(kind: str, count: int) -> None:
    """The whole job on the unseen: the right one of 20 twins and all that was prompted, in 5 steps."""
    published = json.loads((RESULTS / f"tiny-{kind}.json").read_text())
    floor = 0.8 * published["methods"]["5 steps"]["joint_success"]["value"]
    pipe = E4TPipeline.from_pretrained(f"tiny-{kind}", device="cpu")
    judge, prompts = Judge.of(kind), prompts_of(kind)
    subjects = [identity("floor", number, kind) for number in range(count)]
    drawer = Drawer(pipe, prompts, 0, published["num_inference_steps"])
    pictures = []
    for number, subject in enumerate(subjects):
        caption = input_caption(subject, "S*") if published.get("use_caption") else None
        concept = learn(pipe, *input_picture(subject), (5,), caption=caption)[5]
        pictures.append(drawer.generate(drawer.texts(subject), concept, 1000 * number))
    examination = Examination(judge.layout, subjects, prompts, judge.readable, "floor")
    assert score(examination, judge.read(np.concatenate(pictures))).joint.mean() >= floor
