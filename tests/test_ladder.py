"""Tuning fitted to the memory there is: what is counted, what is chosen, and that the steps stay the same."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import build_backbone, build_model
from e4t import memory
from e4t.config import EncoderConfig, OffsetsConfig, PersonalizeConfig
from e4t.counting import RUNTIME, counting
from e4t.domain import Domain
from e4t.errors import ConfigError
from e4t.memory import GIB, available_memory, described, fitted, free_memory, needed
from e4t.model import E4TModel
from e4t.personalize import ClassPictures, personalize, prepare, tune
from test_shapes import published

CUDA = torch.device("cuda")
WHOLE = ("residual", "bias", "unet", "text_encoder")
CONFIG = PersonalizeConfig(steps=2, batch_size=16, learning_rate=1e-3, frozen_timesteps=2, save_dtype="float32")


@pytest.fixture(scope="module")
def counted():
    """A tiny model for all tests, so that every step is counted once; they leave it as it is."""
    return build_model(build_backbone())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tune": WHOLE},
        {"tune": WHOLE, "prior_weight": 1.0},
        {"gradient_checkpointing": True},
        {"micro_batch_size": 4},
    ],
)
def test_a_step_is_counted_to_hold_what_it_holds(tiny_model, counted, picture, changes):
    """Gone through without values it makes the same tensors as a real one, counted while it runs."""
    config = CONFIG.updated({"unload": False, **changes})
    constants = prepare(tiny_model, picture, None)
    if config.prior_weight:
        constants = replace(constants, prior=ClassPictures(constants.latents, ("a photo of a face",)))
    steps = tune(tiny_model, constants, config=config.updated({"steps": 3}), provenance={})
    next(steps)  # nothing was tuned yet
    with counting() as real:
        next(steps)
        next(steps)
    steps.close()
    need = needed(counted, config)
    assert not any(parameter.is_meta for parameter in tiny_model.backbone.unet.parameters())
    moments = need.states * 8 // 12  # the copy of what is trained was there before
    assert need.passing + moments == pytest.approx(real.peak, rel=0.02)


@pytest.mark.parametrize("trained", ["nothing", "attention", "all"])
def test_what_autograd_keeps_is_what_is_counted(tiny_model, trained):
    """By autograd's own account, which shares nothing with the counter; with values, and on the meta device."""
    unet, blank = tiny_model.backbone.unet, tiny_model.backbone.blank().unet
    names = {
        "nothing": set(),
        "attention": {f"{path}.weight" for path in tiny_model.offsets.paths},
        "all": {name for name, _ in unet.named_parameters()},
    }[trained]
    for module in (unet, blank):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in names)
    words = torch.randn(1, 77, 32, requires_grad=True)
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([3]), words)
    known = {tensor.untyped_storage().data_ptr() for tensor in (*unet.parameters(), *inputs)}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with counting() as real, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = unet(*inputs).sample
    drawn = result.untyped_storage()
    bytes_kept = sum(storage.nbytes() for storage in {**kept, drawn.data_ptr(): drawn}.values())
    assert real.now == pytest.approx(bytes_kept, rel=0.05)
    with counting() as without_values:
        result = blank(
            *(tensor.detach().to("meta") for tensor in inputs[:2]), words.detach().to("meta").requires_grad_()
        )
    assert without_values.now == pytest.approx(bytes_kept, rel=0.05)  # kernels of a device differ a little


def test_every_way_to_save_memory_saves_some(counted):
    def peak(**changes):
        return needed(counted, CONFIG.updated({"tune": WHOLE, **changes}), device=CUDA).peak

    plain = peak()
    for changes in (
        {"micro_batch_size": 4},
        {"gradient_checkpointing": True},
        {"optimizer": "adamw8bit"},
        {"optimizer": "muon"},
        {"tune": CONFIG.tune},
        {"tune": ("residual",)},
    ):
        assert peak(**changes) < plain
    assert peak(prior_weight=1.0) > plain
    weights = [needed(counted, CONFIG.updated({"unload": u}), device=CUDA).weights for u in (False, True)]
    assert weights[1] < weights[0]
    assert needed(counted, CONFIG.updated({"unload": True})).weights == weights[0]  # a CPU has one memory


def budget(model, config) -> float:
    """Gigabytes in which just this fits, beside the program itself."""
    return (needed(model, config).peak + 1000 + RUNTIME["cpu"]) / memory._SPARE / GIB


def test_the_fastest_settings_that_fit_are_chosen(counted):
    config = CONFIG.updated({"tune": WHOLE})
    rungs = [config, config.updated({"micro_batch_size": 4}), config.updated({"gradient_checkpointing": True})]
    assert fitted(counted, config) is config  # nothing was asked for
    for rung in rungs[:2]:
        chosen = fitted(counted, config.updated({"memory": budget(counted, rung)}))
        assert (chosen.micro_batch_size, chosen.memory, chosen.tune) == (rung.micro_batch_size, None, WHOLE)
        assert not chosen.gradient_checkpointing
    tight = config.updated({"micro_batch_size": 1, "gradient_checkpointing": True})
    assert fitted(counted, config.updated({"memory": budget(counted, tight)})).gradient_checkpointing
    assert fitted(counted, config.updated({"memory": "auto"})) == config  # there is plenty for so small a model


def test_the_whole_unet_is_given_up_last_and_it_is_said(counted, monkeypatch):
    config = CONFIG.updated({"tune": WHOLE})
    least = config.updated({"micro_batch_size": 1, "gradient_checkpointing": True})
    small = budget(counted, least.updated({"tune": CONFIG.tune}))
    with pytest.warns(UserWarning, match="the whole U-Net and text encoder: q, k and v are tuned instead"):
        assert fitted(counted, config.updated({"memory": small})).tune == CONFIG.tune
    eight = budget(counted, least.updated({"optimizer": "adamw8bit"}))
    monkeypatch.setattr(memory, "has_adamw8bit", lambda device: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fitted(counted, config.updated({"memory": eight})).optimizer == "adamw8bit"
    by_muon = config.updated({"optimizer": "muon"})
    with pytest.warns(UserWarning, match="q, k and v are tuned instead"):
        assert fitted(counted, by_muon.updated({"memory": eight})).optimizer == "muon"
    *_, last = memory._tunings(config.updated({"tune": (*WHOLE, "deltas")}), CUDA)
    assert last.tune == CONFIG.tune


def test_too_little_is_said(counted):
    with pytest.warns(
        UserWarning, match="tuning needs about 0.6 GB even with everything that saves memory, but only 0.0"
    ):
        chosen = fitted(counted, CONFIG.updated({"memory": 0.0001}))
    assert (chosen.micro_batch_size, chosen.gradient_checkpointing, chosen.unload) == (1, True, True)
    assert "1 of 16 noise levels at a time" in described(chosen, needed(counted, chosen))


@pytest.mark.parametrize("value", ["much", -1, True])
def test_odd_amounts_are_refused(value):
    with pytest.raises(ConfigError, match="memory"):
        PersonalizeConfig().updated({"memory": value})


def test_what_is_free(tiny_model):
    taken = sum(p.numel() * 4 for part in tiny_model.backbone.modules() for p in part.parameters())
    assert free_memory(torch.device("cpu"), tiny_model) > taken
    assert free_memory(torch.device("cpu")) > 2**20


@pytest.mark.parametrize(("limit", "left"), [("1000000\n", 650_000), ("max\n", None), ("100\n", 0), (None, None)])
def test_a_container_has_what_its_limit_leaves(monkeypatch, limit, left):
    files = {"memory.max": limit, "memory.current": "400000\n", "memory.stat": "anon 7\ninactive_file 50000\n"}

    def read(path):
        if files[path.name] is None:
            raise FileNotFoundError(path)
        return files[path.name]

    monkeypatch.setattr(Path, "read_text", read)
    assert available_memory() == left if left is not None else available_memory() > 2**20


def test_steps_are_the_same_whatever_the_memory(counted, picture):
    """Losses within a millionth of each other, before the first step and after it within a thousandth."""
    config = CONFIG.updated({"batch_size": 8})
    last = {}
    for size in (8, 4, 2, 1):
        rung = config.updated({"micro_batch_size": size, "gradient_checkpointing": size < 4, "unload": True})
        rung = config.updated({"memory": budget(counted, rung)})
        first, last[size] = [s for s in personalize(counted, picture, config=rung) if s.training]
        assert last[size].concept.config["memory"] is None
        last[size] = (first.training.loss, last[size].training.loss, last[size].concept.config["micro_batch_size"])
    losses = list(last.values())
    assert len({size for *_, size in losses}) >= 3  # really other settings
    assert [first for first, *_ in losses] == pytest.approx([losses[0][0]] * 4, rel=1e-6)
    assert [second for _, second, _ in losses] == pytest.approx([losses[0][1]] * 4, rel=1e-3)


def test_half_precision_begins_with_the_loss_of_float32(make_backbone, make_model, picture):
    """Within a fiftieth: what the ladder has on GPUs, weights in float16 under fp16's autocast."""
    losses = []
    for half in (False, True):
        backbone = make_backbone()
        for part in backbone.modules() if half else ():
            part.half()
        config = CONFIG.updated({"steps": 1, "micro_batch_size": 4, "mixed_precision": "fp16" if half else "no"})
        losses += [s.training.loss for s in personalize(make_model(backbone), picture, config=config) if s.training]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)


@pytest.fixture(scope="module")
def stable_diffusion():
    """1.5 in half precision: shapes without weights."""
    backbone = published.__wrapped__(1)  # changed here, so it is nobody else's
    for part in backbone.modules():
        part.half()
    vars(backbone).update(fingerprint="", image_encoder_fingerprint="")
    with torch.device("meta"):
        return E4TModel(
            backbone,
            Domain.named("face"),
            encoder=EncoderConfig(),
            offsets=OffsetsConfig(form="lowrank"),
            embedding_scale=0.1,
        )


@pytest.mark.parametrize("gigabytes", [24, 16, 12, 8])
def test_stable_diffusion_at_512_pixels_has_a_rung_for_every_card(stable_diffusion, gigabytes):
    """By the estimate: nothing here runs."""
    config = PersonalizeConfig(mixed_precision="fp16", memory=gigabytes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = fitted(stable_diffusion, config, device=CUDA)
    assert chosen.tune == config.tune
    assert needed(stable_diffusion, chosen, device=CUDA).peak < 0.95 * gigabytes * GIB - RUNTIME["cuda"]
    assert math.prod((chosen.parts, chosen.micro_batch_size)) == 16


@pytest.mark.slow
@pytest.mark.parametrize("gigabytes", [24, 16, 8])
def test_stable_diffusion_s_whole_unet_fits_on_16_gigabytes_and_not_on_8(stable_diffusion, gigabytes):
    whole = PersonalizeConfig(mixed_precision="fp16", memory=gigabytes, tune=("residual", "bias", "deltas", "unet"))
    if gigabytes >= 16:
        assert fitted(stable_diffusion, whole, device=CUDA).tune == whole.tune
    else:
        with pytest.warns(UserWarning, match="whole U-Net"):
            fitted(stable_diffusion, whole, device=CUDA)
