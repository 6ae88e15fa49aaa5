"""Two processes on this machine do what one does with twice the batch."""

from __future__ import annotations

import json
import random
import shutil
from types import SimpleNamespace

import pytest
import torch

from bases import save_folder
from conftest import build_backbone
from e4t import cli
from e4t.checkpoint import TrainedDomain
from e4t.errors import ConfigError
from e4t.processes import Processes, launched_device
from runs import command, finish, kill_after, start, start_machines

SETTINGS = {
    "steps": 4,
    "batch_size": 2,
    "accumulation": 2,
    "learning_rate": 1e-3,
    "checkpoint_every": 1,
    "keep_states": 100,
    "ema_decay": 0.9,
    "stratified_timesteps": True,
    "max_grad_norm": 1.0,
}
STARTED = {"process_index": 0, "num_processes": 2}
TOLERANCE = 1e-4  # of the largest weight: the order of sums differs


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_folder(build_backbone(), tmp_path_factory.mktemp("models") / "base")


def test_two_processes_are_one_with_twice_the_batch_also_when_resumed(base, image_folder, tmp_path):
    assert cli.main(command(base, image_folder, tmp_path / "alone", {**SETTINGS, "batch_size": 4})[2:]) == 0
    said = finish(start(command(base, image_folder, tmp_path / "two", SETTINGS), processes=2))
    assert "effective batch 8 (2 pictures × 2 × 2 processes), learning rate 0.001" in said
    shutil.copytree(tmp_path / "two.training", tmp_path / "resumed.training")
    for step in (3, 4):
        shutil.rmtree(tmp_path / "resumed.training" / f"step-{step:09d}")
    resumed = start(command(base, image_folder, tmp_path / "resumed", SETTINGS), processes=2, by="accelerate")
    assert ", from step 2" in finish(resumed)
    one, two, three = (TrainedDomain.load(tmp_path / name) for name in ("alone", "two", "resumed"))
    for name, tensor in one.tensors.items():
        assert (tensor - two.tensors[name]).abs().max() <= TOLERANCE * tensor.abs().max().clamp(min=1e-3), name
        assert torch.equal(two.tensors[name], three.tensors[name]), name
    assert two.training["first_losses"] == pytest.approx(one.training["first_losses"], rel=1e-4)
    assert (two.training["effective_batch"], two.training["processes"]) == (8, 2)
    assert json.loads((tmp_path / "two" / "config.json").read_text())["training"]["learning_rate"] == 1e-3


def test_of_two_processes_one_tells_machines_what_both_did(base, image_folder, tmp_path):
    (image_folder / "1.png").write_bytes(b"no picture")
    (image_folder / "4.png").write_bytes(b"no picture")
    cache = ["cache", image_folder, "--base", base, "--output", tmp_path / "cache", "--shard-size", "1", "--json"]
    run = start(["-m", "e4t.cli", *map(str, cache), "--device", "cpu"], processes=2)
    out, err = run.communicate()
    assert run.returncode == 0, err[-3000:]
    told = [json.loads(line) for line in out.splitlines()]
    assert [one["event"] for one in told] == ["progress"] * 3 + ["result"]  # of shards 0, 2 and 4
    assert (told[-1]["views"], told[-1]["broken"]) == (3, 2)
    assert err.count("2 pictures or shards could not be read") == 1


@pytest.mark.slow
def test_two_processes_that_are_killed_go_on_as_if_they_were_not(base, image_folder, tmp_path):
    finish(start(command(base, image_folder, tmp_path / "two", SETTINGS), processes=2))
    killed = start(command(base, image_folder, tmp_path / "killed", SETTINGS), processes=2)
    delay = random.random() * 0.2
    print("killed", delay, "seconds after its second state")  # another moment in every run
    kill_after(killed, tmp_path / "killed.training", 2, delay)
    finish(start(command(base, image_folder, tmp_path / "killed", SETTINGS), processes=2, by="accelerate"))
    two, killed = (TrainedDomain.load(tmp_path / name).tensors for name in ("two", "killed"))
    assert all(torch.equal(two[name], killed[name]) for name in two)


@pytest.mark.slow
def test_two_machines_do_what_two_processes_of_one_do(base, image_folder, tmp_path):
    """Each machine has a launcher of its own; here both are this one."""
    finish(start(command(base, image_folder, tmp_path / "one", SETTINGS), processes=2))
    for run in start_machines(command(base, image_folder, tmp_path / "two", SETTINGS), 2):
        finish(run)
    one, two = (TrainedDomain.load(tmp_path / name).tensors for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("count", ["1", "2"])
@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_ways_of_splitting_networks_are_refused(monkeypatch, variable, count):
    monkeypatch.setenv("WORLD_SIZE", count)
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ConfigError, match="only a small encoder and offsets are trained"):
        Processes.launched("cpu")


def test_what_a_launcher_says_of_precision_and_compiling_is_not_used(monkeypatch):
    accelerate, given = pytest.importorskip("accelerate"), {}
    monkeypatch.setattr(
        accelerate, "Accelerator", lambda **options: given.update(options) or SimpleNamespace(**STARTED)
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Processes.launched("cpu").count == 2
    assert given == {"cpu": True, "mixed_precision": "no", "dynamo_backend": "no"}


def test_every_process_takes_the_device_of_its_number(monkeypatch):
    assert launched_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [launched_device(name) for name in ("cuda", "cuda:0", "cpu")] == ["cuda:1", "cuda:0", "cpu"]


def test_alone_nothing_is_done():
    alone = Processes.launched("cpu")
    numbers = torch.ones(2)
    module = torch.nn.Linear(1, 1)
    assert alone.is_first
    assert alone.mean(numbers) is numbers
    assert alone.shared(module) is module
    assert alone.gathered([1]) == [1]
    assert range(8)[Processes(1, 2).rows(4)] == range(4, 8)
