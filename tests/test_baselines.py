"""The methods E4T is compared with: what each trains, what it leaves alone, and what it draws with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from e4t.backbone import Backbone
from e4t.domain import Domain
from e4t.evaluation import baselines
from e4t.evaluation.baselines import Example, Learned, Personalizer
from e4t.pipeline import E4TPipeline

SAMPLING = {"num_inference_steps": 2}
RARE = "photo"  # any word the stand-in's tokenizer has


@pytest.fixture
def pipe(tiny_backbone: Backbone) -> E4TPipeline:
    return E4TPipeline(tiny_backbone, domain=Domain("face", class_word="face"))


@pytest.fixture
def examples(picture: Image.Image) -> list[Example]:
    others = [picture.rotate(angle) for angle in (0, 90, 180)]
    return [Example(image, Image.new("L", image.size, 255), "a tan face") for image in others]


def _weights(pipe: E4TPipeline) -> dict[str, torch.Tensor]:
    modules = {"unet": pipe.backbone.unet, "text": pipe.backbone.text_encoder}
    return {f"{n}.{k}": t.clone() for n, module in modules.items() for k, t in module.state_dict().items()}


def _difference(one: list[Image.Image], other: list[Image.Image]) -> bool:
    return any(a.tobytes() != b.tobytes() for a, b in zip(one, other, strict=True))


METHODS: dict[str, dict[str, Any]] = {
    "textual_inversion": {"residual_learning_rate": 1.0},
    "dreambooth": {"rare_token": RARE, "learning_rate": 0.01},
    "lora": {"rare_token": RARE, "learning_rate": 0.1},
    "e4t": {"learning_rate": 0.01},
}


@pytest.mark.parametrize("name", METHODS)
def test_learns_something_and_leaves_the_base_as_it_was(name: str, pipe: E4TPipeline, examples: list[Example]) -> None:
    before = _weights(pipe)
    method: Personalizer = getattr(baselines, name)(pipe, SAMPLING, **METHODS[name])
    start, end = method.learn(examples, (0, 4))
    assert (start.steps, end.steps) == (0, 4)
    assert start.passes == 0
    assert end.passes % 4 == 0
    assert end.stored_bytes > 0
    assert end.seconds > start.seconds
    assert _difference(start.draw(["a photo of S*"], 0), end.draw(["a photo of S*"], 0))
    after = _weights(pipe)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_before_any_step_an_adapter_draws_what_the_base_draws(pipe: E4TPipeline, examples: list[Example]) -> None:
    (start,) = baselines.lora(pipe, SAMPLING, rare_token=RARE).learn(examples, (0,))
    plain = pipe([f"a photo of {RARE} face"], seed=3, **SAMPLING).images
    assert not _difference(start.draw(["a photo of S*"], 3), plain)


def test_words_stand_where_the_placeholder_was(pipe: E4TPipeline, examples: list[Example]) -> None:
    (described,) = baselines.best_caption(pipe, SAMPLING).learn(examples, (0,))
    assert not _difference(described.draw(["S*"], 0), pipe(["a tan face"], seed=0, **SAMPLING).images)
    (bare,) = baselines.class_word(pipe, SAMPLING).learn(examples, (0,))
    assert not _difference(bare.draw(["S*"], 0), pipe(["face"], seed=0, **SAMPLING).images)


def test_the_nearest_name_is_of_the_picture_most_alike(pipe: E4TPipeline, examples: list[Example]) -> None:
    known = {str(number): baselines.image_vector(pipe, one.image) for number, one in enumerate(examples)}
    method = baselines.nearest_name(pipe, SAMPLING, known)
    assert [method.says(one) for one in examples] == ["0", "1", "2"]


def test_rare_token_and_class_word_stand_in_the_training_prompts(pipe: E4TPipeline) -> None:
    method = baselines.dreambooth(pipe, SAMPLING, rare_token=RARE, text_encoder=True, prior=True)
    assert method.name == "DreamBooth + text encoder + prior"
    assert method.subject == "S* face"
    assert method.pipe.domain.class_word == RARE
    assert all("S* face" in prompt for prompt in method.pipe.domain.prompts)
    assert "text_encoder" in method.config.tune
    assert all("S*" not in prompt and "face" in prompt for prompt in method.class_prompts)


def test_several_pictures_teach_something_else_than_one(pipe: E4TPipeline, examples: list[Example]) -> None:
    def drawn(count: int) -> Learned:
        method = baselines.dreambooth(pipe, SAMPLING, rare_token=RARE, examples=count, learning_rate=0.01)
        return method.learn(examples, (2,))[0]

    assert _difference(drawn(1).draw(["a photo of S*"], 0), drawn(3).draw(["a photo of S*"], 0))


def test_prior_preservation_changes_what_is_learned(pipe: E4TPipeline, examples: list[Example]) -> None:
    fixed: dict[str, Any] = {"rare_token": RARE, "learning_rate": 0.01, "prior_pictures": 2}
    method = baselines.dreambooth(pipe, SAMPLING, prior=True, **fixed)
    pictures = method.pipe.class_pictures(2, method.class_prompts)
    assert len(pictures.latents) == len(pictures.prompts) == 2
    assert method.pipe.class_pictures(2, method.class_prompts) is pictures  # drawn once
    with_prior = method.learn(examples, (2,))[0]
    without = replace(method, config=replace(method.config, prior_weight=0.0)).learn(examples, (2,))[0]
    assert _difference(with_prior.draw(["a photo of S*"], 0), without.draw(["a photo of S*"], 0))
