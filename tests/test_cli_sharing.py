"""`e4t export`, `e4t replay` and `e4t info`: what they write, and what they say of files of every kind."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from commands import events, noise
from e4t import cli, photos
from e4t.domain import Domain


def test_export_writes_a_file_and_says_what_it_keeps(
    concept_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "anna.safetensors"
    assert cli.main(["export", str(concept_folder), "--to", "diff", "--output", str(file)]) == 0
    out, err = capsys.readouterr()
    word = tmp_path / "anna.S.safetensors"
    assert out == f"{file}\n{word}\n"
    assert re.search(r"keeps \d+\.\d% of what the concept does", err)
    assert file.is_file()
    assert word.is_file()
    assert cli.main(["info", str(word)]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^export +textual-inversion$", told, re.MULTILINE)
    assert re.search(r"^e4t.token +S\*$", told, re.MULTILINE)
    assert "thumbnail" not in told
    command = [
        "export",
        str(concept_folder),
        "--to",
        "textual-inversion",
        "--output",
        str(tmp_path / "word.safetensors"),
    ]
    assert cli.main([*command, "--json"]) == 0
    assert events(capsys)[-1]["paths"] == [str(tmp_path / "word.safetensors")]
    assert cli.main(["export", str(concept_folder), "--to", "single-file", "--output", str(tmp_path / "anna")]) == 2
    assert ".safetensors" in capsys.readouterr().err


def test_export_of_a_lora_says_how_far_it_is(
    domain_folder: Path, noise_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    anna = tmp_path / "anna"
    command = ["personalize", str(domain_folder), str(noise_folder / "0.png"), "--keep", "low-rank", "--no-preview"]
    assert cli.main([*command, "--output", str(anna)]) == 0
    capsys.readouterr()
    command = ["export", str(anna), "--to", "lora-kohya", "--rank", "2", "--output", str(tmp_path / "anna.safetensors")]
    assert cli.main([*command, "--json"]) == 0
    *steps, _ = events(capsys)
    rounds = {step["text"]: (step["done"], step["total"]) for step in steps}
    decomposed, total = rounds.pop("matrices decomposed")
    assert decomposed == total > 1
    assert rounds == {"ranks measured": (0, 1)}


def test_replay_makes_the_same_concept_or_says_what_differs(
    concept_folder: Path, noise_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["replay", str(concept_folder), str(noise_folder / "0.png")]) == 0
    assert "the same, bit for bit" in capsys.readouterr().out
    assert cli.main(["replay", str(concept_folder), str(noise_folder / "1.png")]) == 0
    told = capsys.readouterr().out
    assert "the image is another one" in told
    assert "if it was made with --mask, give the same mask here" in told
    assert "image_half differs by" in told


def test_replay_crops_as_the_concept_was_cropped(
    domain_folder: Path,
    noise_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a photo, by --mask auto, one at a time or many."""

    def framed(image: Image.Image, domain: Domain) -> photos.Framed:
        assert domain.shows_people
        return photos.Framed(image.crop((2, 2, 18, 18)), None, ())

    monkeypatch.setattr(photos, "framed", framed)
    (tmp_path / "in").mkdir()
    picture = noise(tmp_path / "in" / "anna.png")
    quick = ["--mask", "auto", "--steps", "1", "--batch-size", "1", "--no-preview", "--output"]
    assert cli.main(["personalize", str(domain_folder), str(picture), *quick, str(tmp_path / "one")]) == 0
    assert cli.main(["personalize", str(domain_folder), str(tmp_path / "in"), *quick, str(tmp_path / "many")]) == 0
    capsys.readouterr()
    for folder in (tmp_path / "one", tmp_path / "many" / "anna"):
        assert cli.main(["replay", str(folder), str(picture)]) == 0
        assert capsys.readouterr().out == "the same, bit for bit\n"
    assert cli.main(["replay", str(tmp_path / "one"), str(picture), "--mask", "none"]) == 0
    assert "the image is another one" in capsys.readouterr().out


def test_info_of_odd_files_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep = "[" * 100_000
    for name, text in (("odd", '{"kind": "concept", "domain": 5}'), ("deep", deep)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    assert cli.main(["info", str(tmp_path / "odd")]) == 0
    assert cli.main(["info", str(tmp_path / "deep")]) == 2
    notes = PngInfo()
    notes.add_itxt("e4t", deep)
    Image.new("RGB", (4, 4)).save(tmp_path / "deep.png", pnginfo=notes)
    assert cli.main(["info", str(tmp_path / "deep.png")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_info_says_what_it_takes_where_it_cannot_tell(
    concept_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["info", str(concept_folder / "concept.safetensors")]) == 2
    assert "is no export of this package; 'e4t info' takes those" in capsys.readouterr().err
    (tmp_path / "text.safetensors").write_text("text")
    assert cli.main(["info", str(tmp_path / "text.safetensors")]) == 2
    assert "cannot be read as a .safetensors file" in capsys.readouterr().err
    assert cli.main(["info", str(tmp_path / "nothing")]) == 2
    assert "there is nothing there" in capsys.readouterr().err


def test_info_shows_what_a_file_says_and_obeys_none_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters would move the cursor or set a title, and halves of characters cannot be printed."""
    notes = PngInfo()
    notes.add_itxt("e4t", '{"prompt": "\\ud800 \u00fc", "\\u001b[2Jx": "\\u009b2J"}')
    Image.new("RGB", (4, 4)).save(tmp_path / "odd.png", pnginfo=notes)
    (tmp_path / "odd").mkdir()
    config = {"kind": "concept", "domain": {"name": "\x1b]0;title\x07", "class_word": "\ud800"}}
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config))
    for name, shown in (("odd.png", 'prompt: "\\ud800 ü"\n\\x1b[2Jx: "\\x9b2J"'), ("odd", "\\x1b]0;title\\x07")):
        assert cli.main(["info", str(tmp_path / name)]) == 0
        out = capsys.readouterr().out
        assert shown in out
        assert not set(out) & {"\x1b", "\x9b", "\x07"}
        assert cli.main(["info", str(tmp_path / name), "--json"]) == 0
        out = capsys.readouterr().out
        assert "\\ud800" in out
        assert json.loads(out)["event"] == "result"
    assert cli.main(["info", str(tmp_path / "\x1b[2J")]) == 2
    assert "\\x1b[2J" in capsys.readouterr().err


def test_info(
    concept_folder: Path, domain_folder: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, words in (
        (concept_folder, "concept face S*"),
        (domain_folder, "domain face pretrain.steps"),
        (model_folder, "base DDIM"),
    ):
        assert cli.main(["info", str(folder)]) == 0
        out = capsys.readouterr().out
        assert all(word in out for word in words.split())
    assert cli.main(["info"]) == 0


def test_info_is_one_object(concept_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(concept_folder), "--json"]) == 0
    (result,) = events(capsys)
    assert (result["command"], result["folder"]["kind"]) == ("info", "concept")
