"""What a training is predicted to take, beside what it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from bases import save_folder
from conftest import build_backbone
from e4t import cli, training
from e4t.backbone import Backbone
from e4t.batches import batches
from e4t.config import PersonalizeConfig, PretrainConfig
from e4t.counting import count_step, counting, numbers
from e4t.domain import Domain
from e4t.errors import ConfigError
from e4t.forecast import forecast
from e4t.objective import E4TObjective
from e4t.pretrain import new_model, pictures_of

FACE = Domain.named("face")
TOLERANCE = 0.15


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_folder(build_backbone(), tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module", autouse=True)
def counted_once():
    """Tests ask for the same few steps."""
    known = {}

    def count(model, **how):
        key = (numbers(model), *how.items())
        if key not in known:
            known[key] = count_step(model, **how)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("e4t.forecast.count_step", count)
        yield


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}, {"offsets": {"form": "lowrank"}}])
def test_a_step_is_predicted_to_hold_what_it_holds(base, image_folder, changes):
    """Of the same tensors, counted while a real step runs: gone through without values, they are the same."""
    config = PretrainConfig(steps=1, batch_size=4).updated(changes)
    predicted = forecast(Backbone.shapes(base), FACE, config, device=torch.device("cpu"))
    backbone = Backbone.from_pretrained(base, device="cpu")
    model = new_model(backbone, FACE, config)
    assert predicted.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert predicted.frozen == sum(p.numel() for part in backbone.modules() for p in part.parameters())
    batch = batches(model, pictures_of(image_folder, backbone, config), config)(0)
    objective = E4TObjective(model, PersonalizeConfig(regularisation=0.01))
    with model.offsets.injected(), backbone.differentiable_attention():
        if config.gradient_checkpointing:
            backbone.unet.enable_gradient_checkpointing()
            backbone.unet.train()
        with counting() as real:
            objective(batch).total.backward()
    assert predicted.passing == pytest.approx(real.peak, rel=0.02)


def test_more_takes_more(base):
    def bytes_of(**changes):
        config = PretrainConfig(steps=1, batch_size=2, resolution=32).updated(changes)
        return forecast(Backbone.shapes(base), FACE, config, device=torch.device("cpu"))

    plain, twice = bytes_of(), bytes_of(batch_size=8)
    assert twice.peak > plain.peak
    assert twice.operations > 3 * plain.operations
    assert bytes_of(batch_size=8, gradient_checkpointing=True).passing < twice.passing
    assert bytes_of(ema_decay=0.9).states == plain.states * 16 // 12
    assert bytes_of(optimizer="adamw8bit").states == plain.states // 2
    assert bytes_of(optimizer="muon").states == plain.states * 8 // 12


@pytest.mark.parametrize(
    ("fast", "weights", "share"),
    [(False, torch.float32, 1.0), (True, torch.float32, 0.5), (False, torch.bfloat16, 0.5)],
)
def test_bf16_is_reckoned_as_it_would_run(base, monkeypatch, fast, weights, share):
    """In float32 where it would only be emulated, unless the weights themselves are bfloat16."""
    monkeypatch.setattr(training, "has_fast_bfloat16", lambda device: fast)
    config = PretrainConfig(steps=1, batch_size=16, resolution=32)
    shapes = Backbone.shapes(base, dtype=weights)

    def passing(mixed_precision):
        changed = config.updated({"mixed_precision": mixed_precision})
        predicted = forecast(shapes, FACE, changed, device=torch.device("cpu"))
        return predicted.passing - 4 * predicted.trained, predicted.frozen

    plain, _ = passing("no")
    half, frozen = passing("bf16")
    copies = 2 * frozen if weights == torch.float32 and fast else 0
    assert share * plain <= half <= share * plain + copies


def test_a_dry_run_loads_and_writes_nothing(base, image_folder, tmp_path, capsys):
    command = ["pretrain", str(image_folder), "--domain", "face", "--base", str(base), "--steps", "7", "--dry-run"]
    assert cli.main([*command, "--output", str(tmp_path / "face"), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    for part in ("million trained", "peak memory: ", "GB predicted for each process", "all 7 steps: about"):
        assert part in said
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_dry_run_tells_what_another_machine_s_device_would_need(base, image_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("e4t.forecast.is_here", lambda device: device.type == "cpu")
    monkeypatch.setattr("e4t.cli.domains.device_of", partial(raised, ConfigError("it is not here")))
    command = ["pretrain", str(image_folder), "--domain", "face", "--base", str(base), "--output", str(tmp_path / "x")]
    assert cli.main([*command, "--device", "cuda:0", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "GB predicted for each process" in said
    assert "TFLOP; the time is not known, because that device is not here" in said
    assert cli.main([*command, "--device", "nonsense", "--dry-run"]) == 2
    assert cli.main([*command, "--device", "cuda:0"]) == 2
    assert capsys.readouterr().err.count("it is not here") == 2


def raised(error, *_):
    raise error


def test_of_several_processes_one_tells_what_each_takes(base, image_folder, tmp_path, capsys, monkeypatch):
    command = ["pretrain", str(image_folder), "--domain", "face", "--base", str(base), "--output", str(tmp_path / "x")]
    command += ["--device", "cpu", "--dry-run", "--json"]
    passing = {}
    for count in (1, 2):
        monkeypatch.setenv("WORLD_SIZE", str(count))
        assert cli.main(command) == 0
        told = json.loads(capsys.readouterr().out)
        passing[count] = told["passing"]
    assert passing[2] - passing[1] == 4 * told["trained"]
    monkeypatch.setenv("RANK", "1")
    assert cli.main([option for option in command if option != "--json"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_the_memory_of_stable_diffusion_is_predicted(size, tmp_path):
    """On random weights in the shapes of Stable Diffusion 1.5 and ViT-H/14, at 128 pixels on a CPU."""
    from test_stable_diffusion import SIDE, write_base, write_pictures

    base = write_base(tmp_path / "base")
    pictures = write_pictures(tmp_path / "pictures")
    arguments = ["pretrain", pictures, "--domain", "face", "--base", base, "--variant", "fp16", "--steps", 2]
    arguments += ["--batch-size", size, "--device", "cpu", "--output", tmp_path / "face"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.Popen([sys.executable, "-m", "e4t.cli", *map(str, arguments)], env=environment)
    _, code, used = os.wait4(run.pid, 0)
    run.returncode = os.waitstatus_to_exitcode(code)  # which Popen does not learn from wait4
    assert run.returncode == 0
    config = PretrainConfig(steps=2, batch_size=size, resolution=SIDE)
    shapes = Backbone.shapes(base, variant="fp16")
    predicted = forecast(shapes, FACE, config, device=torch.device("cpu"))
    measured = used.ru_maxrss * 1024
    print(f"batch {size}: {predicted.peak / 2**30:.2f} GB predicted, {measured / 2**30:.2f} GB measured")
    assert predicted.peak == pytest.approx(measured, rel=TOLERANCE)
