"""What `e4t pretrain` says: of its data before anything large is loaded, of its steps, and of what went wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import noise
from e4t import cli
from e4t.checkpoint import TrainedDomain
from e4t.cli.domains import Pretrain


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_where_no_pictures_are_the_base_is_not_asked_for(
    options: list[str], empty: Path, noise_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = tmp_path / "cache"
    unfinished.mkdir()
    (unfinished / "begun.json").write_text("{}")
    command = ["--domain", "face", "--base", "owner/nothing", "--output", str(tmp_path / "face"), *options]
    for given, says in (
        ([str(empty)], f"'{empty}' holds no images"),
        (["nowhere"], "'nowhere' is neither a folder of images"),
        ([str(unfinished)], "is unfinished"),
        ([str(noise_folder), "--validation", str(empty)], f"'{empty}' holds no images"),
    ):
        assert cli.main(["pretrain", *given, *command]) == 2
        assert says in capsys.readouterr().err


def test_a_cache_of_no_pictures_is_refused_before_the_base_is_asked_for(
    empty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["cache", str(empty), "--base", "owner/nothing", "--output", str(tmp_path / "cache")]) == 2
    assert f"'{empty}' holds no images" in capsys.readouterr().err


def test_rates_changes_and_broken_pictures_are_told(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        noise(pictures / f"{number}.png")
    (pictures / "3.png").write_bytes(b"no picture")
    command = ["pretrain", str(pictures), "--domain", "face", "--base", str(model_folder), "--device", "cpu"]
    command += ["--output", str(tmp_path / "face"), "--checkpoint-every", "1", "--json"]
    first = ["--steps", "2", "--batch-size", "2", "--set", "offsets_learning_rate=0.002"]
    assert cli.main([*command, *first, "--learning-rate", "0.001"]) == 0
    out, err = capsys.readouterr()
    assert "learning rate 0.001, 0.002 of the offsets (constant" in err
    assert "1 pictures or shards could not be read to their end" in err
    assert f"'{pictures / '3.png'}'" in err
    assert json.loads(out.splitlines()[-1])["broken"] == 1
    assert TrainedDomain.load(tmp_path / "face").training["skipped"] == 1

    then = ["--steps", "3", "--batch-size", "1", "--accumulation", "2", "--learning-rate", "0.0005"]
    then += ["--set", "offsets_learning_rate=0.002", "--resume", str(tmp_path / "face.training")]
    assert cli.main([*command, *then]) == 0
    said = capsys.readouterr().err
    assert "from step 2; learning_rate was 0.001, batch_size was 2, accumulation was 1; noise and timesteps" in said


def test_too_little_memory_is_one_sentence(
    noise_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(self: Pretrain) -> None:
        raise MemoryError

    monkeypatch.setattr(Pretrain, "run", run)
    assert cli.main(["pretrain", str(noise_folder), "--domain", "face", "--base", "tiny", "--output", "face"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the device ran out of memory: ")
    for advice in ("--memory auto", "--gradient-checkpointing", "smaller --batch-size and more --accumulation"):
        assert advice in said
    assert said.count("\n") == 1
