"""Looking at a training changes nothing in it; what it drew and measured is in files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bases import save_folder
from conftest import build_backbone
from e4t import cli
from e4t.cli import tracking
from e4t.cli.tracking import tracked
from e4t.config import PretrainConfig
from e4t.domain import Domain
from e4t.errors import ConfigError, DataError, TrainingError
from e4t.images import load_image
from e4t.pretrain import Pretraining
from e4t.validation import Validation, ValidationConfig
from packed import write_shards

QUICK = {"steps": 4, "batch_size": 2, "learning_rate": 1e-2, "ema_decay": 0.5, "checkpoint_every": 2}
LOOKS = ValidationConfig(every=2, batches=2, pictures=2, prompts=("a photo of {}", "{} at the beach"), steps=2)


def run(backbone, pictures, output, looks=None):
    config = PretrainConfig().updated(QUICK)
    training = Pretraining(Domain.named("face"), pictures, backbone=backbone, config=config, output=output)
    validation = Validation(training, pictures, output.with_suffix(".seen"), looks) if looks else None
    losses, scores = [], []
    for step in training.steps():
        losses.append(step.loss)
        if validation is not None and validation.due(step.number):
            scores.append(validation.look(step.number))
    return training, losses, scores


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_looking_changes_nothing(make_backbone, image_folder, tmp_path, prediction_type):
    one, straight, _ = run(make_backbone(prediction_type), image_folder, tmp_path / "one")
    two, looked, scores = run(make_backbone(prediction_type), image_folder, tmp_path / "two", LOOKS)
    assert looked == straight
    tensors = one.model.domain_tensors()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in two.model.domain_tensors().items())
    written = [json.loads(line) for line in (tmp_path / "two.seen" / "scores.jsonl").read_text().splitlines()]
    assert written == [{"step": step, **found} for step, found in zip((2, 4), scores, strict=True)]
    assert all(np.isfinite([*found.values()]).all() and -1 <= found["likeness"] <= 1 for found in scores)
    assert scores[0]["validation_loss"] != scores[1]["validation_loss"]
    with Image.open(tmp_path / "two.seen" / "step-000000004.png") as sheet:
        assert sheet.size == (3 * 16, 2 * 16)


def test_a_training_that_went_on_from_further_back_has_every_step_once(make_backbone, image_folder, tmp_path):
    run(make_backbone(), image_folder, tmp_path / "one", LOOKS)
    file = tmp_path / "one.seen" / "scores.jsonl"
    straight = file.read_text()
    file.write_text(straight + '{"step": 6, "validation_loss": 1.0}\n{"step": 8, "valid')  # as a killed one left it
    shutil.rmtree(tmp_path / "one.training")
    run(make_backbone(), image_folder, tmp_path / "one", LOOKS)
    assert file.read_text() == straight


def test_a_broken_picture_is_left_out_and_ends_nothing(make_backbone, image_folder, tmp_path):
    held_out = shutil.copytree(image_folder, tmp_path / "held-out")
    (held_out / "0.png").write_bytes(b"no picture")
    _, _, scores = run(make_backbone(), held_out, tmp_path / "one", LOOKS)
    assert len(scores) == 2
    with Image.open(tmp_path / "one.seen" / "step-000000004.png") as sheet:
        assert sheet.size == (3 * 16, 2 * 16)


def test_a_domain_is_asked_for_what_it_draws(make_backbone, image_folder, tmp_path):
    training, *_ = run(make_backbone(), image_folder, tmp_path / "one")
    asked = []
    for domain, prompts in ((Domain.named("face"), None), (Domain.named("art"), None), (Domain.named("art"), ("S*",))):
        training.model.domain = domain
        asked.append(Validation(training, image_folder, tmp_path / "seen", ValidationConfig(prompts=prompts))._prompts)
    assert asked == [
        ["a photo of S*", "a pencil sketch of S*"],
        ["art by S*", "a cat in the snow in the style of S*"],
        ["S*"],
    ]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
def test_pictures_are_drawn_as_the_domain_would_draw_them(make_backbone, image_folder, tmp_path, monkeypatch):
    """By samplers that draw noise as they go, always the same, and with the guidance that is recorded for it."""
    from diffusers import EulerAncestralDiscreteScheduler

    backbone = make_backbone()
    backbone.scheduler = EulerAncestralDiscreteScheduler.from_config(backbone.scheduler.config)
    likeness = {}
    for rescale in (0.0, 0.7):
        training = Pretraining(
            Domain.named("face"),
            image_folder,
            backbone=backbone,
            config=PretrainConfig().updated(QUICK),
            output=tmp_path / "face",
            generate={"guidance_rescale": rescale},
        )
        validation = Validation(training, image_folder, tmp_path / "seen", replace(LOOKS, pictures=1))
        drawn = torch.get_rng_state()
        likeness[rescale] = validation.look(2)["likeness"]
        assert torch.equal(torch.get_rng_state(), drawn)
        assert validation.look(2)["likeness"] == likeness[rescale]
    assert likeness[0.0] != likeness[0.7]

    def full(_: Image.Image, path: Path, *__: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    before = {path.name: path.read_bytes() for path in (tmp_path / "seen").iterdir()}
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DataError, match=r"step-000000002.png' cannot be written \(no space left\)"):
        validation.look(2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "seen").iterdir()} == before


def test_shards_are_looked_at_again_and_again(make_backbone, image_folder, tmp_path):
    pytest.importorskip("webdataset")
    write_shards(tmp_path / "shards", (3, 3))
    training = Pretraining(
        Domain.named("face"),
        image_folder,
        backbone=make_backbone(),
        config=PretrainConfig().updated(QUICK),
        output=tmp_path / "face",
    )
    validation = Validation(training, tmp_path / "shards", tmp_path / "seen", LOOKS)
    assert validation.look(2) == validation.look(4)  # nothing was trained in between


def test_looks_are_some_steps_apart():
    with pytest.raises(ConfigError, match="every is 0"):
        ValidationConfig(every=0)


def test_a_cache_is_looked_at_with_a_cache(make_backbone, image_folder, tmp_path):
    base = save_folder(build_backbone(), tmp_path / "base")
    cache = tmp_path / "cache"
    assert cli.main(["cache", str(image_folder), "--base", str(base), "--output", str(cache), "--device", "cpu"]) == 0
    _, _, scores = run(make_backbone(), cache, tmp_path / "face", LOOKS)
    assert [list(found) for found in scores] == [["validation_loss"]] * 2
    training = Pretraining(
        Domain.named("face"),
        image_folder,
        backbone=make_backbone(),
        config=PretrainConfig().updated(QUICK),
        output=tmp_path / "other",
    )
    with pytest.raises(DataError, match="has to be a cache if the training's data is one, and only then"):
        Validation(training, cache, tmp_path / "seen", LOOKS)


def test_trackers_end_also_where_training_fails(tmp_path, monkeypatch):
    ended = []

    class Tracked:
        def __init__(self, **_):
            pass

        def init_trackers(self, *_, **__):
            pass

        def end_training(self):
            ended.append(True)

    monkeypatch.setattr("accelerate.Accelerator", Tracked)
    monkeypatch.setattr(tracking, "require_extra", lambda *_: None)
    with pytest.raises(TrainingError), tracked("tensorboard", tmp_path, {"steps": 2}):
        raise TrainingError("no number")
    assert ended == [True]
    with tracked(None, tmp_path, {}) as log:
        log({"loss": 1.0}, 1)


def test_scores_reach_tensorboard_and_weights_and_biases(image_folder, tmp_path, monkeypatch):
    event_file = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    few = partial(ValidationConfig, batches=2, steps=2)
    monkeypatch.setattr("e4t.validation.ValidationConfig", few)
    base = save_folder(build_backbone(), tmp_path / "base")
    command = ["pretrain", str(image_folder), "--domain", "face", "--base", str(base), "--device", "cpu"]
    command += ["--steps", "2", "--batch-size", "2", "--output", str(tmp_path / "face"), "--report-to", "all"]
    looks = ["--validation_prompt", "a photo of S*", "--num_validation_images", "1", "--validate-every", "1"]
    assert cli.main([*command, "--validation", str(image_folder), *looks]) == 0
    files = list((tmp_path / "face.tracking").rglob("events.out.tfevents*"))
    tags = {
        value.tag
        for file in files
        for event in event_file.EventFileLoader(str(file)).Load()
        for value in event.summary.value
    }
    assert {"loss", "learning_rate", "validation_loss", "likeness"} <= tags
    assert list((tmp_path / "face.tracking").rglob("*.wandb"))
    sheets = list((tmp_path / "face.validation").glob("step-*.png"))
    assert [load_image(sheet).size for sheet in sheets] == [(2 * 16, 16)] * 2
