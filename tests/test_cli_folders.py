"""How concepts find their domains again, and what a command may write over."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from e4t import cli
from e4t.checkpoint import TrainedDomain
from e4t.cli import folders
from e4t.errors import CheckpointError


@pytest.mark.parametrize("noted", [b"\xff\xfe", b"nowhere", b"a\0b", b"", b" \n"])
def test_a_note_of_the_domain_that_leads_nowhere_is_one_sentence(tmp_path: Path, noted: bytes) -> None:
    (tmp_path / "domain.txt").write_bytes(noted)
    with pytest.raises(CheckpointError, match=r"\(id x\) is not at hand; say where with --domain"):
        folders.find_domain(tmp_path, "x")


def test_the_way_to_a_domain_is_noted_for_every_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    concept, domain = tmp_path / "made" / "anna", tmp_path / "domains" / "f\udcffce"
    concept.mkdir(parents=True)
    domain.mkdir(parents=True)
    folders.remember_domain(concept, str(domain))
    assert (concept / "domain.txt").read_bytes() == b"../../domains/f\xffce\n"
    assert folders.find_domain(concept, "x") == str(domain)

    def drives(end: Path, start: Path) -> str:
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(os.path, "relpath", drives)
    folders.remember_domain(concept, str(domain))
    assert folders.find_domain(concept, "x") == str(domain)


def test_a_folder_here_comes_before_a_shipped_model_of_its_name(
    domain_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For every command alike; what a concept notes of a shipped one means that, whatever lies here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "anna").mkdir()
    assert folders.is_domain("tiny-face")
    folders.remember_domain(tmp_path / "anna", "tiny-face")
    shutil.copytree(domain_folder, tmp_path / "tiny-face")
    assert folders.find_domain(tmp_path / "anna", "x") == str(folders.shipped()["tiny-face"])
    folders.remember_domain(tmp_path / "anna", "tiny-face")
    assert folders.find_domain(tmp_path / "anna", "x") == str(tmp_path / "tiny-face")
    assert cli.main(["info", "tiny-face"]) == 0
    assert TrainedDomain.load(domain_folder).id in capsys.readouterr().out
    (tmp_path / "tiny-face" / "config.json").unlink()
    assert not folders.is_domain("tiny-face")


def test_a_concept_never_takes_the_place_of_a_domain(
    domain_folder: Path, noise_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "face"
    shutil.copytree(domain_folder, mine)
    (mine / "notes.txt").write_text("dear")
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    assert cli.main(["personalize", str(mine), str(noise_folder / "0.png"), "-o", str(mine)]) == 2
    assert "it is a domain folder; choose another place" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before


def test_a_moved_domain_is_asked_for(
    concept_folder: Path, domain_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "deeper" / "anna"
    shutil.copytree(concept_folder, moved)
    command = ["generate", str(moved), "S*", "--num-inference-steps", "1", "--output", str(tmp_path)]
    assert cli.main(command) == 2
    assert "--domain" in capsys.readouterr().err
    assert cli.main([*command, "--domain", str(domain_folder)]) == 0
