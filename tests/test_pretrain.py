from __future__ import annotations

import dataclasses
import gc
from contextlib import ExitStack

import pytest
import torch

from e4t.batches import _look
from e4t.checkpoint import TrainedDomain
from e4t.config import EncoderConfig, OffsetsConfig, PersonalizeConfig, PretrainConfig
from e4t.data import Ahead
from e4t.domain import Domain
from e4t.errors import CheckpointError, ConfigError
from e4t.model import E4TModel
from e4t.objective import E4TObjective
from e4t.pretrain import Pretraining, batches, new_model, pictures_of, pretrain
from e4t.processes import Processes
from e4t.saved import require_place

FACE = Domain.named("face")


def run(backbone, folder, config, output, stop=None):
    losses = []
    for step in pretrain(FACE, folder, backbone=backbone, config=config, output=output):
        losses.append(step.loss)
        if step.number == stop:
            break
    return losses


def test_writes_a_domain_that_loads(make_backbone, image_folder, quick_pretrain, tmp_path):
    backbone = make_backbone("v_prediction")
    before = [p.clone() for p in backbone.unet.parameters()]
    losses = run(backbone, image_folder, quick_pretrain, tmp_path / "face")
    trained = TrainedDomain.load(tmp_path / "face")
    assert PretrainConfig.from_dict(trained.pretrain) == quick_pretrain
    assert trained.training["first_losses"] == losses
    model = E4TModel.from_domain(backbone, trained)
    assert any(delta.any() for name, delta in model.offsets.domain_state().items() if name.endswith("right"))
    assert all(torch.equal(a, b) for a, b in zip(before, backbone.unet.parameters(), strict=True))
    assert model.offsets.state == "ejected"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resuming_is_exact(make_backbone, image_folder, quick_pretrain, tmp_path, optimizer):
    quick_pretrain = quick_pretrain.updated({"optimizer": optimizer})
    straight = run(make_backbone(), image_folder, quick_pretrain, tmp_path / "one")
    first = run(make_backbone(), image_folder, quick_pretrain, tmp_path / "two", stop=3)  # the state is of step 2
    rest = run(make_backbone(), image_folder, quick_pretrain, tmp_path / "two")
    assert first == straight[:3]
    assert rest == straight[2:]
    one, two = TrainedDomain.load(tmp_path / "one"), TrainedDomain.load(tmp_path / "two")
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
    assert one.training == two.training


def test_a_finished_training_can_be_prolonged(tiny_backbone, image_folder, quick_pretrain, tmp_path):
    run(tiny_backbone, image_folder, quick_pretrain, tmp_path / "face")
    assert run(tiny_backbone, image_folder, quick_pretrain, tmp_path / "face") == []
    longer = dataclasses.replace(quick_pretrain, steps=5)
    assert len(run(tiny_backbone, image_folder, longer, tmp_path / "face")) == 1


def test_other_settings_are_refused(tiny_backbone, image_folder, quick_pretrain, tmp_path):
    run(tiny_backbone, image_folder, quick_pretrain, tmp_path / "face", stop=2)
    other = dataclasses.replace(quick_pretrain, learning_rate=1.0)
    with pytest.raises(CheckpointError, match="other settings"):
        run(tiny_backbone, image_folder, other, tmp_path / "face")


def test_more_steps_are_refused_where_the_rate_of_each_depends_on_them(
    tiny_backbone, image_folder, quick_pretrain, tmp_path
):
    cooled = dataclasses.replace(quick_pretrain, cooldown_steps=2)
    run(tiny_backbone, image_folder, cooled, tmp_path / "face", stop=3)
    longer = dataclasses.replace(cooled, steps=6)
    with pytest.raises(CheckpointError, match=r"was begun with other settings \(steps\)"):
        run(tiny_backbone, image_folder, longer, tmp_path / "face")


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    for output, why in (("file/face", "'.*file' is a file"), ("file", "choose another"), ("other", "choose another")):
        with pytest.raises(CheckpointError, match=why):
            Pretraining(FACE, tmp_path / "nothing", backbone=None, config=None, output=tmp_path / output)
    require_place(tmp_path / "new" / "face")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"min_timestep": 500, "max_timestep": 500}, "min_timestep is 500; it must be below 500"),
        ({"max_timestep": 5000}, "max_timestep is 5000, but the base model has 1000 timesteps"),
    ],
)
def test_timesteps_that_the_base_has_not_are_refused(tiny_backbone, image_folder, quick_pretrain, changes, why):
    config = quick_pretrain.updated(changes)
    with pytest.raises(ConfigError, match=why):
        batches(new_model(tiny_backbone, FACE, config), pictures_of(image_folder, tiny_backbone, config), config)


@pytest.mark.parametrize(
    "changes",
    [
        {"mixed_precision": "bf16"},
        {"gradient_checkpointing": True},
        {"offsets": {"form": "lowrank"}, "encoder": {"head": "linear"}},
        {"offsets": {"form": "none"}, "save_dtype": "float16"},
        {"cache": True, "crop_scale": (1.0, 1.0), "flip": False, "color_jitter": 0.0, "sample_latents": False},
        {"accumulation": 2, "color_jitter": 0.1, "stratified_timesteps": True, "warmup_steps": 2, "max_grad_norm": 1.0},
    ],
)
def test_options(tiny_backbone, image_folder, quick_pretrain, tmp_path, changes):
    assert len(run(tiny_backbone, image_folder, quick_pretrain.updated(changes), tmp_path / "face")) == 4
    E4TModel.from_domain(tiny_backbone, TrainedDomain.load(tmp_path / "face"))
    assert not tiny_backbone.unet.training


def test_what_is_cached_is_what_would_be_seen(make_backbone, image_folder, quick_pretrain, tmp_path):
    plain = {"crop_scale": (1.0, 1.0), "flip": False, "color_jitter": 0.0, "sample_latents": False}
    fresh = run(make_backbone(), image_folder, quick_pretrain.updated(plain), tmp_path / "fresh")
    cached = quick_pretrain.updated({**plain, "cache": True})
    straight = run(make_backbone(), image_folder, cached, tmp_path / "cached")
    assert straight == pytest.approx(fresh, rel=1e-4)
    run(make_backbone(), image_folder, cached, tmp_path / "two", stop=3)
    assert run(make_backbone(), image_folder, cached, tmp_path / "two") == straight[2:]


def test_views_that_differ_are_not_cached():
    with pytest.raises(ConfigError, match="cannot be kept"):
        PretrainConfig(cache=True)


def test_initial_weights_and_batches_follow_from_the_seed(tiny_backbone, image_folder, quick_pretrain):
    def first_batch(seed):
        config = dataclasses.replace(quick_pretrain, seed=seed)
        model = new_model(tiny_backbone, FACE, config)
        batch = batches(model, pictures_of(image_folder, tiny_backbone, config), config)(0)
        return model.encoder.unet_linears[0].weight, batch.noise, batch.latents

    torch.manual_seed(5)
    one = first_batch(0)
    torch.manual_seed(6)
    assert all(torch.equal(a, b) for a, b in zip(one, first_batch(0), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, first_batch(1), strict=True))


def test_without_encoder_inputs_and_offsets_there_is_nothing_to_learn(tiny_backbone):
    nothing = PretrainConfig(encoder=EncoderConfig.blind(), offsets=OffsetsConfig(form="none"))
    with pytest.raises(ConfigError, match="nothing can be learned: the encoder has no input, and there are no offsets"):
        new_model(tiny_backbone, FACE, nothing)


def test_offsets_alone_are_learned_on_the_class_word(tiny_backbone, image_folder, quick_pretrain):
    config = dataclasses.replace(quick_pretrain, encoder=EncoderConfig.blind())
    model = new_model(tiny_backbone, FACE, config)
    batch = batches(model, pictures_of(image_folder, tiny_backbone, config), config)(0)
    with model.offsets.injected():
        loss = E4TObjective(model, PersonalizeConfig(regularisation=0.1))(batch)
        loss.total.backward()
    assert float(loss.embedding_ratio) == float(loss.regularizer) == 0
    assert any(p.grad is not None and p.grad.any() for p in model.offsets.domain_parameters())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own tracing asks for it
@pytest.mark.parametrize(("backend", "checkpointing"), [("eager", False), ("aot_eager", True)])
def test_a_compiled_unet_learns_the_same(
    make_backbone, image_folder, quick_pretrain, tmp_path, monkeypatch, backend, checkpointing
):
    """Offsets, autocast and swapped weights go through torch's tracing, with "aot_eager" gradients as well; its code
    generation is left out."""
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: plain(function, backend=backend))
    losses = []
    for compiled in (False, True):
        config = quick_pretrain.updated({"compile": compiled, "steps": 2, "gradient_checkpointing": checkpointing})
        backbone = make_backbone()
        losses.append(run(backbone, image_folder, config, tmp_path / str(compiled)))
        assert "forward" not in vars(backbone.unet)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert TrainedDomain.load(tmp_path / "True").pretrain["compile"] is True


def test_captions_are_prompts_and_lose_words_that_do_not_fit(tiny_backbone, image_folder, quick_pretrain):
    for index in range(5):
        (image_folder / f"{index}.txt").write_text("a face" if index else "a face of " + "the beach " * 40)
    prompts = [dataclasses.replace(quick_pretrain, caption_share=share, batch_size=5) for share in (0.0, 1.0)]
    model = new_model(tiny_backbone, FACE, quick_pretrain)
    plain, written = (batches(model, pictures_of(image_folder, tiny_backbone, c), c)(0) for c in prompts)
    assert torch.equal(plain.noise, written.noise)
    short = model.tokens(["a S*"])
    alike = [torch.equal(row, short.ids[0]) for row in written.tokens.ids]
    assert sorted(alike) == [False, True, True, True, True]
    assert written.tokens.placeholder.sum(dim=1).tolist() == [1] * 5
    assert not any(torch.equal(row, short.ids[0]) for row in plain.tokens.ids)


@pytest.mark.parametrize("stop", [None, 1])
def test_threads_that_prepare_pictures_end_with_the_training(
    tiny_backbone, image_folder, quick_pretrain, tmp_path, monkeypatch, stop
):
    ahead, close = [], Ahead.close
    monkeypatch.setattr(Ahead, "close", lambda self: ahead.append(self) or close(self))
    run(tiny_backbone, image_folder, quick_pretrain.updated({"workers": 2, "steps": 2}), tmp_path / "face", stop)
    gc.collect()  # a training that is left is over once nobody holds it
    assert len(ahead) == 1
    assert not any(thread.is_alive() for pool in (ahead[0]._reader, ahead[0]._workers) for thread in pool._threads)


def test_what_is_remembered_of_pictures_is_what_will_be_asked(tiny_backbone, image_folder, quick_pretrain, monkeypatch):
    """No spread to draw latents from, as large as the latents: they are the same every time."""
    plain = {"crop_scale": (1.0, 1.0), "flip": False, "color_jitter": 0.0, "sample_latents": False, "cache": True}
    config = quick_pretrain.updated(plain)
    model, pictures = new_model(tiny_backbone, FACE, config), pictures_of(image_folder, tiny_backbone, config)
    look = _look(model, pictures, config, Processes(), ExitStack())
    looks, posterior = [], tiny_backbone.posterior
    monkeypatch.setattr(tiny_backbone, "posterior", lambda pixels: looks.append(len(pixels)) or posterior(pixels))
    seen = [look(0), look(1), look(0)]
    assert looks == [1] * 4
    for one in seen:
        assert (one.mean.shape, one.std.shape, len(one.features)) == ((2, 4, 8, 8), (2, 1, 1, 1), 2)
