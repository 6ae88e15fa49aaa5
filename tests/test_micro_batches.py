"""Parts of a batch add up to the batch: the same loss, the same gradients, the same step."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from e4t import personalize as module
from e4t.config import PersonalizeConfig
from e4t.errors import ConfigError
from e4t.objective import E4TObjective
from e4t.personalize import ClassPictures, personalize, prepare, replayed

TOLERANCE = 1e-5
"""Of the loss and of gradients, as a share of the largest: float32 adds up in another order."""

TUNE = ("residual", "bias", "deltas")


@pytest.fixture
def config(quick_personalize):
    return quick_personalize.updated({"batch_size": 5, "tune": TUNE, "prior_weight": 0.5})


@pytest.fixture
def prior():
    torch.manual_seed(3)
    return ClassPictures(torch.randn(3, 4, 8, 8), ("a photo of a face", "a face", "the face at the beach"))


def half_masked(picture: Image.Image) -> Image.Image:
    mask = Image.new("L", picture.size)
    mask.paste(255, (0, 0, picture.width, picture.height // 2))
    return mask


def losses_and_gradients(model, config, constants, size):
    """Of one batch in parts of ``size``."""
    objective = E4TObjective(model, PersonalizeConfig(regularisation=0.1, prior_weight=config.prior_weight))
    try:
        with module.tuning(model, config) as groups:
            losses = [objective(part) for part in module.batches(model, constants, config)(0).split(size)]
            sum(loss.total for loss in losses).backward()
            sums = [sum(float(getattr(one, name).detach()) for one in losses) for name in vars(losses[0])]
            return sums, [p.grad.clone() for group in groups for p in group["params"]]
    finally:
        model.zero_grad()


@pytest.mark.parametrize("masks", ["none", "one", "of two pictures"])
def test_parts_add_up_to_the_batch(tiny_model, picture, config, prior, masks):
    constants = prepare(tiny_model, picture, half_masked(picture) if masks == "one" else None)
    if masks == "of two pictures":  # parts then hold different shares of the mask
        latents = torch.cat([constants.latents, -constants.latents])
        mask = torch.zeros(2, 1, 8, 8)
        mask[0, :, :1] = 1
        mask[1, :, :6] = 1
        constants = replace(constants, latents=latents, mask=mask)
    constants = replace(constants, prior=prior)
    whole, gradients = losses_and_gradients(tiny_model, config, constants, None)
    assert all(one.any() for one in gradients)
    for size in (1, 2, 4):
        parts, others = losses_and_gradients(tiny_model, config, constants, size)
        assert parts == pytest.approx(whole, rel=TOLERANCE)
        for one, other in zip(gradients, others, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE * float(one.abs().max()))


def test_one_part_is_scaled_too(tiny_model, picture, config):
    """As many are, so that a mean over parts is the batch's loss however many there are."""
    objective = E4TObjective(tiny_model, PersonalizeConfig(regularisation=0.1))
    batch = module.batches(tiny_model, prepare(tiny_model, picture, None), config)(0)
    with torch.no_grad():
        whole, (twice,) = objective(batch), (objective(part) for part in batch.split(None, scale=2.0))
    assert [float(value) for value in vars(twice).values()] == [2 * float(value) for value in vars(whole).values()]


def test_a_part_without_any_mask_adds_nothing_to_the_error(tiny_model, picture, config):
    constants = prepare(tiny_model, picture, None)
    latents = torch.cat([constants.latents, -constants.latents])
    mask = torch.cat([torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)])
    constants = replace(constants, latents=latents, mask=mask)
    whole, _ = losses_and_gradients(tiny_model, config, constants, None)
    parts, _ = losses_and_gradients(tiny_model, config, constants, 1)
    assert parts == pytest.approx(whole, rel=TOLERANCE)


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}, {"unload": True}])
def test_steps_are_the_same_whatever_the_parts(tiny_model, picture, quick_personalize, changes):
    config = quick_personalize.updated({"batch_size": 4, "tune": TUNE, "steps": 3, "learning_rate": 1e-3})
    *_, whole = personalize(tiny_model, picture, config=config)
    *_, parts = personalize(tiny_model, picture, config=config.updated({"micro_batch_size": 3, **changes}))
    assert parts.training.loss == pytest.approx(whole.training.loss, rel=1e-4)
    for name, tensor in whole.concept.tensors.items():
        torch.testing.assert_close(parts.concept.tensors[name], tensor, rtol=0, atol=2e-3 * 3)  # of Adam's steps


def test_parts_as_large_as_the_batch_change_no_bit(tiny_model, picture, quick_personalize):
    *_, whole = personalize(tiny_model, picture, config=quick_personalize)
    *_, part = personalize(tiny_model, picture, config=quick_personalize.updated({"micro_batch_size": 16}))
    assert all(torch.equal(part.concept.tensors[name], tensor) for name, tensor in whole.concept.tensors.items())


def test_accumulated_batches_are_split_too_and_automatic_tuning_ends_alike(tiny_model, picture, quick_personalize):
    config = quick_personalize.updated({"batch_size": 4, "accumulation": 2, "steps": "auto", "automatic_gain": 0.3})
    ends = [list(personalize(tiny_model, picture, config=config.updated({"micro_batch_size": n})))[-1] for n in (4, 1)]
    assert ends[0].concept.steps == ends[1].concept.steps
    assert ends[1].loss_left == pytest.approx(ends[0].loss_left, rel=1e-3)


def test_a_replay_is_tuned_in_the_same_parts(tiny_model, picture, quick_personalize):
    config = quick_personalize.updated({"micro_batch_size": 1, "unload": True}).keeping("replay")
    *_, step = personalize(tiny_model, picture, config=config)
    again = replayed(tiny_model, step.concept)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in step.concept.tensors.items())


def test_the_state_of_the_optimiser_in_8_bits(tiny_model, picture, quick_personalize):
    pytest.importorskip("bitsandbytes")
    config = quick_personalize.updated({"tune": ("residual", "deltas"), "steps": 3, "learning_rate": 1e-3})
    *_, exact = personalize(tiny_model, picture, config=config)
    *_, coarse = personalize(tiny_model, picture, config=config.updated({"optimizer": "adamw8bit"}))
    assert coarse.training.loss == pytest.approx(exact.training.loss, rel=1e-2)
    one, other = (step.concept.tensors["deltas/value"] for step in (exact, coarse))
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.9


def test_8_bits_are_refused_where_there_are_none(tiny_model, picture, quick_personalize, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    before = tiny_model.encoder.residual.clone()
    with pytest.raises(ConfigError, match=r"'\.\[8bit\]'"):
        list(personalize(tiny_model, picture, config=quick_personalize.updated({"optimizer": "adamw8bit"})))
    assert torch.equal(tiny_model.encoder.residual, before)
    assert tiny_model.offsets.state == "ejected"
