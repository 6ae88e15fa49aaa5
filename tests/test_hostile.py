"""Damaged and forged files: the examination in small, and that it can fail at all."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from e4t.checkpoint import Concept, TrainedDomain
from e4t.config import PersonalizeConfig
from e4t.errors import CheckpointError, E4TError
from e4t.evaluation import hostile
from e4t.pipeline import E4TPipeline


@pytest.fixture
def pipe(tiny_model) -> E4TPipeline:
    built = tiny_model
    trained = TrainedDomain(
        domain=built.domain,
        base=built.base,
        encoder=built.encoder.config,
        offsets=built.offsets.config,
        embedding_scale=0.1,
        tensors=built.domain_tensors(),
        personalize=PersonalizeConfig(steps=1, batch_size=2, frozen_timesteps=2, delta_rank=1).to_dict(),
    )
    return E4TPipeline(built.backbone, trained)


def test_no_damaged_file_does_harm(pipe):
    report = hostile.examine(pipe, folders=3 * len(hostile.DAMAGES), pictures=150)
    for values in report["kinds"].values():
        assert values["failures"] == []
        assert values["refused"] > values["loaded"]
    assert "| concept folders |" in hostile.page(report, "command")


def test_the_trap_works(monkeypatch):
    import pickle

    monkeypatch.setattr(hostile, "_sprung", [])
    pickle.loads(hostile.pickled(b"", random.Random(0)))
    assert hostile._sprung


def test_failures_are_found():
    def explode() -> None:
        raise RuntimeError("boom")

    def ramble() -> None:
        raise E4TError("one line\nand another")

    tally = hostile.Tally()
    hostile.attempt(tally, "explosion", explode)
    hostile.attempt(tally, "rambling", ramble)
    assert [failure.split(":")[0] for failure in tally.failures] == ["explosion", "rambling"]


def test_a_reader_that_leaves_files_or_changes_is_found(pipe, tmp_path):
    folder = pipe.trained.save(tmp_path / "domain")

    def litter(copy: Path) -> None:
        (copy / "rubbish").touch()

    assert "left behind" in hostile.examine_folder(folder, litter, lambda: True, 1).failures[0]
    intact = hostile.watch(pipe)
    assert intact()
    next(pipe.backbone.unet.parameters()).data[0] += 1
    assert not intact()
    assert "not what it was" in hostile.examine_folder(folder, lambda copy: None, intact, 1).failures[0]


@pytest.fixture
def concept_folder(pipe, picture, tmp_path) -> Path:
    return pipe.personalize(picture).save(tmp_path / "concept")


def test_any_change_of_the_weights_is_noticed(concept_folder):
    weights = concept_folder / "concept.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="not the file that was saved"):
        Concept.load(concept_folder)
    hostile.unseal(concept_folder)
    Concept.load(concept_folder)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("bias", torch.full((32,), float("nan")), "no numbers"),
        ("bias", torch.zeros(3), "one length"),
        ("bias", torch.zeros(32, dtype=torch.int64), "not a float"),
        ("elsewhere", torch.zeros(1), "no tensor called"),
    ],
)
def test_wrong_tensors_are_named(concept_folder, name, value, sentence):
    tensors = load_file(concept_folder / "concept.safetensors") | {name: value}
    save_file(tensors, concept_folder / "concept.safetensors")
    hostile.unseal(concept_folder)
    with pytest.raises(CheckpointError, match=sentence):
        Concept.load(concept_folder)


def test_a_wrong_type_in_the_config_is_named(concept_folder):
    config = json.loads((concept_folder / "config.json").read_text())
    config["personalize"]["steps"] = "five"
    (concept_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="steps is 'five'"):
        Concept.load(concept_folder)


@pytest.mark.parametrize("name", ["model.ckpt", "pytorch_model.bin"])
def test_pickled_base_models_are_refused(name):
    with pytest.raises(CheckpointError, match="pickle"):
        E4TPipeline.from_base(name, class_word="face")
