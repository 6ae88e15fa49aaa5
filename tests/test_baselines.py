"""The methods E4T is compared with: what each trains, what it leaves alone, and what it draws with."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from PIL import Image

from e4t.backbone import Backbone
from e4t.domain import Domain
from e4t.evaluation import baselines
from e4t.evaluation.baselines import Example, Learned, Personalizer
from e4t.personalize import batches, tune
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


def test_every_picture_is_learned_with_its_own_caption(pipe: E4TPipeline, examples: list[Example]) -> None:
    captioned = [
        replace(one, caption=f"a {word} of S*") for one, word in zip(examples, ("cat", "dog", "face"), strict=True)
    ]
    seen: list[list[str]] = []

    def watched(texts: Any, **options: Any) -> Any:
        seen.append(list(texts))
        return tokens(texts, **options)

    method = baselines.dreambooth(pipe, SAMPLING, rare_token=RARE, examples=3, learning_rate=0.01)
    tokens = method.pipe.model.tokens
    with patch.object(method.pipe.model, "tokens", watched):
        method.learn(captioned, (1,))
        assert seen == [["a cat of S* face", "a dog of S* face", "a face of S* face"]]
        method.learn([*captioned[:2], examples[2]], (1,))
        assert seen[1] == [text.replace("{}", "S*") for text in method.pipe.domain.templates]
    constants = baselines._together(method.pipe, captioned, method.config, method.subject)
    batch = batches(method.pipe.model, constants, method.config.updated({"batch_size": 4}))(0)
    rows = method.pipe.model.tokens(constants.captions)[torch.tensor([0, 1, 2, 0])]
    assert torch.equal(batch.tokens.ids, rows.ids)


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
    assert start.stored_bytes < end.stored_bytes or name == "lora"  # whose adapters begin at random
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
    vectors = baselines.image_vectors(pipe, (one.image for one in examples), batch=2)
    method = baselines.nearest_name(pipe, SAMPLING, lambda: dict(zip("012", vectors, strict=True)))
    assert [method.says(one) for one in examples] == ["0", "1", "2"]


def test_rare_token_and_class_word_stand_in_the_training_prompts(pipe: E4TPipeline) -> None:
    method = baselines.dreambooth(pipe, SAMPLING, rare_token=RARE, text_encoder=True, prior=True)
    assert method.name == "DreamBooth + text encoder + prior"
    assert method.subject == "S* face"
    assert method.pipe.domain.class_word == RARE
    assert all("S* face" in prompt for prompt in method.pipe.domain.prompts)
    assert "text_encoder" in method.config.tune
    assert method.prior is not None
    assert all("S*" not in prompt and "face" in prompt for prompt in method.prior(3).prompts)


def test_with_the_text_encoder_the_rare_token_learns_at_its_rate(pipe: E4TPipeline, examples: list[Example]) -> None:
    rate = 1e-3
    method = baselines.dreambooth(pipe, SAMPLING, rare_token=RARE, text_encoder=True, learning_rate=rate)
    constants = baselines._together(method.pipe, examples[:1], method.config, method.subject)
    *_, last = tune(method.pipe.model, constants, config=replace(method.config, steps=2), provenance={})
    moved = method.pipe.model.embedding_scale * last.concept.tensors["residual"]
    assert 0.5 * rate < moved.abs().max() < 2.1 * rate


def test_the_optimiser_is_a_scripts_unless_ours_is_asked_for(pipe: E4TPipeline) -> None:
    plain, ours = (baselines.dreambooth(pipe, SAMPLING, rare_token=RARE, muon=muon) for muon in (False, True))
    assert (plain.config.optimizer, plain.name) == ("adamw", "DreamBooth")
    assert (ours.config.optimizer, ours.name) == ("muon", "DreamBooth by Muon")


def test_nothing_is_composed_where_there_are_no_offsets(pipe: E4TPipeline) -> None:
    """So that a step costs what it does in a plain script: every weight of the U-Net is tuned as it is."""
    method = baselines.dreambooth(pipe, SAMPLING, rare_token=RARE)
    assert not list(method.pipe.model.offsets.items())
    tuned = method.pipe.model.tunable("unet").start()
    try:
        assert sum(p.numel() for p in tuned) == sum(p.numel() for p in pipe.backbone.unet.parameters())
    finally:
        method.pipe.model.take_off()


@pytest.mark.parametrize("name", METHODS)
def test_settings_tell_what_is_learned_apart(name: str, pipe: E4TPipeline) -> None:
    make = getattr(baselines, name)
    one, other = (make(pipe, SAMPLING, **METHODS[name], batch_size=size).settings for size in (2, 4))
    assert one != other
    assert one == make(pipe, SAMPLING, **METHODS[name], batch_size=2).settings
    assert one == make(pipe, SAMPLING, **METHODS[name], batch_size=2, steps=7, automatic_gain=0.5).settings
    assert "mask_loss" in one["config"]
    assert "constant_steps" not in one["config"]  # not given: what a new setting leaves alone keeps its records
    assert json.loads(json.dumps(one))


def test_several_pictures_teach_something_else_than_one(pipe: E4TPipeline, examples: list[Example]) -> None:
    def drawn(count: int) -> Learned:
        method = baselines.dreambooth(pipe, SAMPLING, rare_token=RARE, examples=count, learning_rate=0.01)
        return method.learn(examples, (2,))[0]

    assert _difference(drawn(1).draw(["a photo of S*"], 0), drawn(3).draw(["a photo of S*"], 0))


def test_prior_preservation_changes_what_is_learned(pipe: E4TPipeline, examples: list[Example]) -> None:
    fixed: dict[str, Any] = {"rare_token": RARE, "learning_rate": 0.01, "prior_pictures": 2}
    method = baselines.dreambooth(pipe, SAMPLING, prior=True, **fixed)
    assert method.prior is not None
    pictures = method.prior(2)
    assert len(pictures.latents) == len(pictures.prompts) == 2
    assert (
        baselines.dreambooth(pipe, SAMPLING, prior=True, text_encoder=True, **fixed).prior(2) is pictures
    )  # drawn once
    with_prior = method.learn(examples, (2,))[0]
    without = replace(method, config=replace(method.config, prior_weight=0.0)).learn(examples, (2,))[0]
    assert _difference(with_prior.draw(["a photo of S*"], 0), without.draw(["a photo of S*"], 0))
    assert with_prior.passes == 2 * without.passes  # as many of the class as of the concept
