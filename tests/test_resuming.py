"""A training that is killed at random moments ends bit for bit like one that is left alone."""

from __future__ import annotations

import dataclasses
import random
import shutil
from functools import partial

import pytest
import torch

from bases import save_folder
from conftest import build_backbone
from e4t import cli
from e4t.checkpoint import TrainedDomain
from e4t.config import PretrainConfig
from e4t.domain import Domain
from e4t.errors import CheckpointError, ConfigError, TrainingError
from e4t.pretrain import Pretraining
from e4t.saved import prefixed
from e4t.states import States, TrainingState, require_fitting
from packed import png, write_shards
from runs import command, kill_after, start

SETTINGS = {
    "steps": 12,
    "batch_size": 2,
    "learning_rate": 1e-2,
    "checkpoint_every": 1,
    "keep_states": 100,
    "ema_decay": 0.9,
    "schedule": "cosine",
    "warmup_steps": 2,
    "max_grad_norm": 1.0,
    "shuffle_buffer": 3,
    "caption_share": 0.5,
    "workers": 1,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_folder(build_backbone(), tmp_path_factory.mktemp("models") / "base")


def tensors(folder):
    return TrainedDomain.load(folder).tensors


@pytest.mark.parametrize("counts", [(2,), pytest.param((1, 3), marks=pytest.mark.slow)])
def test_killed_at_random_moments(counts, base, tmp_path, one_thread, capsys):
    """Data order from shards, augmentation, captions, noise, average, optimiser and schedule go on where they were."""
    pytest.importorskip("webdataset")
    write_shards(tmp_path / "shards", (3, 4, 2))
    delays = [random.random() * 0.2 for _ in counts]
    print("killed", delays, "seconds after its states")  # another moment in every run
    assert cli.main(command(base, tmp_path / "shards", tmp_path / "straight", SETTINGS)[2:]) == 0
    for count, delay in zip(counts, delays, strict=True):
        killed = start(command(base, tmp_path / "shards", tmp_path / "killed", SETTINGS))
        kill_after(killed, tmp_path / "killed.training", count, delay)
        assert not (tmp_path / "killed").exists()
    assert cli.main(command(base, tmp_path / "shards", tmp_path / "killed", SETTINGS)[2:]) == 0
    assert "from step" in capsys.readouterr().err
    one, two = tensors(tmp_path / "straight"), tensors(tmp_path / "killed")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    records = [TrainedDomain.load(tmp_path / name).training for name in ("straight", "killed")]
    assert records[0] == records[1]


def training(backbone, pictures, output, **changes):
    resume = changes.pop("resume", "latest")
    config = PretrainConfig().updated({**SETTINGS, "steps": 4, "caption_share": 0.0, "keep_states": 2, **changes})
    return Pretraining(Domain.named("face"), pictures, backbone=backbone, config=config, output=output, resume=resume)


def test_the_last_states_are_kept_and_one_can_be_chosen(make_backbone, image_folder, tmp_path):
    straight = [step.loss for step in training(make_backbone(), image_folder, tmp_path / "face").steps()]
    states = States(tmp_path / "face.training")
    assert sorted(states.found()) == [3, 4]
    config = PretrainConfig().updated({**SETTINGS, "steps": 4, "caption_share": 0.0})
    other = Pretraining(
        Domain.named("face"),
        image_folder,
        backbone=make_backbone(),
        config=config,
        output=tmp_path / "other",
        resume=str(states.found()[3]),
    )
    assert other.start == 3
    assert [step.loss for step in other.steps()] == straight[3:]
    one, two = tensors(tmp_path / "face"), tensors(tmp_path / "other")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_going_on_from_further_back_leaves_what_came_after_behind(copied):
    states = States(copied / "face.training", keep=1)
    early = TrainingState.load(states.found()[3])
    states.save(early)
    assert sorted(states.found()) == [3]


def test_what_is_deleted_is_no_state_any_more_whenever_a_kill_comes(tmp_path, monkeypatch):
    states = States(tmp_path / "states", keep=2)
    for step in (1, 2, 3):
        states.save(TrainingState(step, {}, {"weights": torch.zeros(1)}))
    assert sorted(states.found()) == [2, 3]
    monkeypatch.setattr("e4t.states.shutil.rmtree", lambda *_, **__: None)  # as where it comes before that
    save, there = TrainingState.save, []
    monkeypatch.setattr(TrainingState, "save", lambda *given: there.append(sorted(states.found())) or save(*given))
    states.save(TrainingState(2, {}, {"weights": torch.ones(1)}))
    assert there == [[2]]
    States(tmp_path / "states", keep=1).save(TrainingState(4, {}, {"weights": torch.ones(1)}))
    assert sorted(states.found()) == [4]


def test_the_same_command_resumes_also_where_it_began_from_another_training(make_backbone, image_folder, tmp_path):
    list(training(make_backbone(), image_folder, tmp_path / "face", keep_states=4).steps())
    early = str(States(tmp_path / "face.training").found()[1])
    killed = training(make_backbone(), image_folder, tmp_path / "other", resume=early)
    steps = killed.steps()
    assert [next(steps).number for _ in range(2)] == [2, 3]
    steps.close()
    again = training(make_backbone(), image_folder, tmp_path / "other", resume=early)
    assert (again.start, again.kept_in) == (3, tmp_path / "other.training")
    back = training(make_backbone(), image_folder, tmp_path / "face", resume=early)  # of its own: that is meant
    assert back.start == 1


def test_another_base_or_fewer_steps_are_refused(make_backbone, image_folder, tmp_path):
    list(training(make_backbone(), image_folder, tmp_path / "face", schedule="constant").steps())
    with pytest.raises(ConfigError, match="is of step 4, and only 2 are asked for"):
        training(make_backbone(), image_folder, tmp_path / "face", schedule="constant", steps=2)
    other = make_backbone()
    with torch.no_grad():
        other.unet.conv_in.weight += 1
    with pytest.raises(CheckpointError, match="begun with other base weights"):
        training(other, image_folder, tmp_path / "face", schedule="constant")


def test_a_state_cut_in_half_is_one_sentence(make_backbone, copied):
    found = States(copied / "face.training").found()
    weights = found[4] / "training.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"damaged or changed.*delete '.*step-000000004' to go on from step 3"):
        training(make_backbone(), copied / "images", copied / "face")
    with pytest.raises(CheckpointError, match="there is no training folder"):
        States(copied / "face.training").load(str(copied / "nowhere"))


def _without(name):
    return lambda given: {key: value for key, value in given.items() if key != name}


def _first(tensors, start):
    return next(name for name in sorted(tensors) if name.startswith(start) and tensors[name].ndim)


def _changed(start, change):
    """The first tensor of a group made another, or taken away."""

    def apply(tensors):
        name = _first(tensors, start)
        made = change(tensors[name])
        return {key: value for key, value in {**tensors, name: made}.items() if value is not None}

    return apply


@pytest.mark.parametrize(
    ("step", "arguments", "changed", "says"),
    [
        (-5, None, None, "counts steps or processes below zero"),
        *((4, _without(name), None, f"it has no '{name}'") for name in ("config", "domain", "data", "first_losses")),
        (4, lambda a: {**a, "processes": "x"}, None, "'processes' is not of type int"),
        (4, lambda a: {**a, "broken": [1]}, None, "'broken' is not of type dict"),
        (4, lambda a: {**a, "broken": {"a": 1}}, None, r"'broken' is not of type dict\[str, str\]"),
        (4, lambda a: {**a, "changes": ["a"]}, None, r"'changes' is not of type list\[dict"),
        (4, lambda a: {**a, "first_losses": ["a"]}, None, r"'first_losses' is not of type list\[float\]"),
        (4, lambda a: {**a, "shards": {"a.tar": [[0, "x"]]}}, None, "'shards' is not of type dict"),
        (4, lambda a: {**a, "shards": {"a.tar": [[5]]}}, None, "sizes of its shards are no pairs"),
        (4, lambda a: {**a, "domain": {"name": "face"}}, None, "it has no 'templates'"),
        (4, None, lambda t: {**t, "encoder/foreign": torch.zeros(1)}, "no tensor called 'encoder/foreign'"),
        (4, None, lambda t: {**t, "optimizer/9999.step": torch.zeros(())}, "no tensor called 'optimizer/9999.step'"),
        (4, None, _changed("encoder/", lambda one: torch.zeros(1, 2, 3)), r"has the shape \(1, 2, 3\), not"),
        (4, None, _changed("encoder/", lambda one: one.flatten()[:1]), r"has the shape \(1,\), not"),
        (4, None, _changed("offsets/", lambda one: None), "it lacks the tensor 'offsets/"),
        (4, None, _changed("average/", lambda one: None), "it lacks the tensor 'average/"),
        (4, None, _changed("encoder/", lambda one: one * float("nan")), "values that are no numbers"),
        (4, None, _changed("encoder/", lambda one: one.long()), "is of type torch.int64, not a float"),
        (4, None, _changed("optimizer/", lambda one: one.flatten()[:1]), r"has the shape \(1,\), not"),
    ],
)
def test_a_state_that_no_training_wrote_is_one_sentence(ended, step, arguments, changed, says):
    run, state, _ = ended
    given = arguments(state.arguments) if arguments else state.arguments
    forged = TrainingState(step, given, changed(state.tensors) if changed else state.tensors)
    trained = prefixed("encoder", run.model.encoder.heads())
    trained |= prefixed("offsets", dict(run.model.offsets.named_parameters()))
    require_fitting(state, run.arguments, trained, run.optimizer)
    with pytest.raises(CheckpointError, match=rf"^the state after step {step} cannot be gone on from: .*{says}.*; del"):
        require_fitting(forged, run.arguments, trained, run.optimizer)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A short training on five pictures, its last state, and the folder of pictures, states and domain."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "images").mkdir()
    for number in range(5):
        (folder / "images" / f"{number}.png").write_bytes(png(number))
    run = training(build_backbone(), folder / "images", folder / "face")
    list(run.steps())
    return run, States(folder / "face.training").load("latest"), folder


@pytest.fixture
def copied(ended, tmp_path):
    """Its folder, to be changed."""
    return shutil.copytree(ended[-1], tmp_path / "copied")


def test_such_a_state_is_refused_before_training(make_backbone, copied):
    states = States(copied / "face.training")
    last = states.load("latest")
    kept = {name: tensor for name, tensor in last.tensors.items() if not name.startswith("offsets/")}
    states.save(TrainingState(last.step, last.arguments, kept))
    with pytest.raises(CheckpointError, match="it lacks the tensor 'offsets/"):
        training(make_backbone(), copied / "images", copied / "face")
    with pytest.raises(CheckpointError, match=r"begun with other settings \(offsets\)"):  # which is why it lacks them
        training(make_backbone(), copied / "images", copied / "face", offsets={"form": "none"})


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(make_backbone, image_folder, tmp_path):
    run = training(make_backbone(), image_folder, tmp_path / "face", checkpoint_every=100)
    steps = run.steps()
    for _ in range(2):
        next(steps)
    good = {name: tensor.clone() for name, tensor in run.model.domain_tensors().items()}
    run.model.class_embedding.fill_(float("nan"))  # as an overflow somewhere in the networks would
    with pytest.raises(TrainingError, match=r"the loss of step 3 is nan.*the state after step 2 is kept in"):
        next(steps)
    again = training(make_backbone(), image_folder, tmp_path / "face", checkpoint_every=100)
    assert again.start == 2
    assert all(torch.equal(good[name], tensor) for name, tensor in again.model.domain_tensors().items())
    assert len(list(again.steps())) == 2
    assert not (tmp_path / "face").with_suffix(".new").exists()


def test_after_it_a_training_goes_on_with_what_may_help(make_backbone, image_folder, tmp_path):
    run = training(make_backbone(), image_folder, tmp_path / "face")
    steps = run.steps()
    next(steps)
    next(steps)
    run.model.class_embedding.fill_(float("nan"))
    kept = str(tmp_path / "face.training")
    with pytest.raises(TrainingError, match=rf"max_grad_norm may help; .* change a setting and add --resume '{kept}'"):
        next(steps)
    helping = {"learning_rate": 1e-3, "max_grad_norm": 0.5, "seed": 7}
    with pytest.raises(CheckpointError, match=rf"\(learning_rate, max_grad_norm, seed\); .*name it: --resume '{kept}'"):
        training(make_backbone(), image_folder, tmp_path / "face", **helping)
    again = training(make_backbone(), image_folder, tmp_path / "new", resume=kept, **helping)
    was = {"after_step": 2, "was": {"learning_rate": 1e-2, "max_grad_norm": 1.0, "seed": 0}}
    assert (again.start, again.changes) == (2, [was])
    steps = again.steps()
    assert next(steps).learning_rate == 1e-3
    steps.close()
    last = training(make_backbone(), image_folder, tmp_path / "new", resume=kept, **helping)
    assert (last.start, len(list(last.steps()))) == (3, 1)
    assert TrainedDomain.load(tmp_path / "new").training["changes"] == [was]


def test_what_is_no_number_is_not_kept_and_it_is_said_what_is(make_backbone, image_folder, tmp_path):
    run = training(make_backbone(), image_folder, tmp_path / "face", checkpoint_every=2, schedule="constant")
    steps = run.steps()
    for _ in range(3):
        next(steps)
    run.model.offsets.domain_parameters()[0].data.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"the loss of step 4 is nan.*the state after step 2 is kept in"):
        next(steps)


def test_a_step_is_shared_out_in_smaller_batches_where_memory_is_short(make_backbone, image_folder, tmp_path):
    steps = training(make_backbone(), image_folder, tmp_path / "face").steps()
    next(steps)
    steps.close()
    less = {"batch_size": 1, "accumulation": 2}
    with pytest.raises(CheckpointError, match=r"other settings \(effective batch\)"):
        training(make_backbone(), image_folder, tmp_path / "face", batch_size=1)
    smaller = training(make_backbone(), image_folder, tmp_path / "face", **less)
    assert (smaller.start, smaller.changes) == (1, [{"after_step": 1, "was": {"batch_size": 2, "accumulation": 1}}])
    seen = []
    views_at = smaller.data.views_at
    smaller.data.views_at = lambda rows, run: seen.extend(rows) or views_at(rows, run)
    next(smaller.steps())
    assert seen[:2] == [2, 3]  # the pictures that would have come


def test_a_training_goes_on_with_gradient_checkpointing(make_backbone, image_folder, tmp_path):
    straight = [step.loss for step in training(make_backbone(), image_folder, tmp_path / "straight").steps()]
    steps = training(make_backbone(), image_folder, tmp_path / "face").steps()
    next(steps)
    steps.close()
    saving = training(make_backbone(), image_folder, tmp_path / "face", gradient_checkpointing=True)
    assert (saving.start, saving.changes) == (1, [])
    assert [step.loss for step in saving.steps()] == pytest.approx(straight[1:], rel=1e-4)


def test_the_scale_of_fp16_goes_on_where_it_was(make_backbone, image_folder, tmp_path, monkeypatch):
    large = partial(torch.amp.GradScaler, "cpu", init_scale=2.0**30)
    monkeypatch.setattr("e4t.pretrain.gradient_scaler", lambda *_: large())
    straight = [
        step.loss
        for step in training(make_backbone(), image_folder, tmp_path / "straight", mixed_precision="fp16").steps()
    ]
    stopped = training(make_backbone(), image_folder, tmp_path / "face", mixed_precision="fp16")
    steps = stopped.steps()
    next(steps)
    steps.close()
    again = training(make_backbone(), image_folder, tmp_path / "face", mixed_precision="fp16")
    assert again.scaler.get_scale() == stopped.scaler.get_scale() < 2.0**30
    assert [step.loss for step in again.steps()] == straight[1:]
    one, two = tensors(tmp_path / "straight"), tensors(tmp_path / "face")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_before_the_first_step_there_is_nothing_to_keep(make_backbone, image_folder, tmp_path):
    run = training(make_backbone(), image_folder, tmp_path / "face")
    run.model.class_embedding.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"the loss of step 1 is nan.*; no step was taken$"):
        next(run.steps())
    assert not (tmp_path / "face.training").exists()


def test_what_is_said_of_another_folder_of_states_names_it(make_backbone, image_folder, tmp_path):
    steps = training(make_backbone(), image_folder, tmp_path / "face").steps()
    next(steps)
    steps.close()
    begun = str(tmp_path / "face.training")
    other = rf"'{begun}' was begun with other settings \(regularisation\); resume from another state"
    with pytest.raises(CheckpointError, match=other):
        training(make_backbone(), image_folder, tmp_path / "new", regularisation=0.5, resume=begun)
    run = training(make_backbone(), image_folder, tmp_path / "new", resume=begun)
    run.model.class_embedding.fill_(float("nan"))
    with pytest.raises(TrainingError, match=f"the state after step 1 is kept in '{begun}'"):
        next(run.steps())


def test_what_is_saved_is_the_average(make_backbone, image_folder, tmp_path):
    run = training(make_backbone(), image_folder, tmp_path / "face")
    list(run.steps())
    saved, last = tensors(tmp_path / "face"), run.model.domain_tensors()
    assert any(not torch.equal(saved[name], last[name]) for name in saved)
    with run.average.worn():
        assert all(torch.equal(saved[name], tensor) for name, tensor in run.model.domain_tensors().items())
    for name, tensor in run.model.domain_tensors().items():
        assert torch.equal(tensor, last[name])


def test_a_schedule_that_ends_cannot_be_prolonged(make_backbone, copied):
    with pytest.raises(CheckpointError, match="other settings"):
        training(make_backbone(), copied / "images", copied / "face", steps=6)
    assert dataclasses.replace(PretrainConfig(), steps=6).schedule == "constant"


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    """By the limit on the size of files, which the system reports where a full disk would be."""
    resource = pytest.importorskip("resource")
    state = TrainingState(1, {}, {"weights": torch.randn(100_000)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"cannot be written \(.*make room and run the same again"):
            States(tmp_path / "states").save(state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "states").iterdir()) == []
    States(tmp_path / "states").save(state)
    assert States(tmp_path / "states").load("latest").step == 1


def test_too_little_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50)
    assert cli.out_of_memory(raised.value)
    assert cli.out_of_memory(MemoryError())
    assert not cli.out_of_memory(RuntimeError("something else"))
