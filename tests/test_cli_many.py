"""Personalizing a folder or a manifest of pictures by one command: what is made, kept and refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from commands import events, noise
from e4t import cli
from e4t.config import PersonalizeConfig
from e4t.manifest import read_entries


def test_many_pictures_are_made_kept_and_failed(
    domain_folder: Path, noise_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    manifest = tmp_path / "people.csv"
    manifest.write_text(
        f"image,name,steps\n{noise_folder / '0.png'},anna,\nbad.png,,\n{noise_folder / '1.png'},rex,1\n"
    )
    command = ["personalize", str(domain_folder), str(manifest), "-o", str(tmp_path / "out"), "--no-preview", "--json"]
    assert cli.main(command) == 1
    *steps, result = events(capsys)
    assert {step["event"] for step in steps} == {"progress"}
    assert [one["status"] for one in result["outcomes"]] == ["made", "failed", "made"]
    assert "not a picture" in result["outcomes"][1]["error"]
    assert json.loads((tmp_path / "out" / "rex" / "config.json").read_text())["steps"] == 1
    before = (tmp_path / "out" / "anna" / "concept.safetensors").stat().st_mtime_ns
    noise(tmp_path / "bad.png")
    manifest.write_text(manifest.read_text().replace("rex,1", "rex,2"))  # other settings are made again
    assert cli.main(command) == 0
    result = events(capsys)[-1]
    assert [one["status"] for one in result["outcomes"]] == ["kept", "made", "made"]
    assert (result["made"], result["kept"], result["failed"], result["exit_code"]) == (2, 1, 0, 0)
    assert (tmp_path / "out" / "anna" / "concept.safetensors").stat().st_mtime_ns == before
    assert cli.main([*command, "--set", "gradient_checkpointing=true"]) == 0  # as less memory may have it
    assert [one["status"] for one in events(capsys)[-1]["outcomes"]] == ["kept"] * 3
    assert cli.main([*command, "--set", "constant_steps=5", "--set", "automatic_gain=0.5"]) == 0  # no step is later
    assert [one["status"] for one in events(capsys)[-1]["outcomes"]] == ["kept"] * 3
    noise(tmp_path / "bad.png")  # another picture is another concept
    (tmp_path / "out" / "anna" / "concept.safetensors").write_bytes(b"")  # and a damaged one is none
    assert cli.main(command) == 0
    assert [one["status"] for one in events(capsys)[-1]["outcomes"]] == ["made", "made", "kept"]
    drawing = ["generate", str(tmp_path / "out" / "rex"), "S*", "--num-inference-steps", "2", "-o", str(tmp_path)]
    assert cli.main([*drawing, "--json"]) == 0
    *steps, result = events(capsys)
    assert [(step["done"], step["total"]) for step in steps] == [(1, 2), (2, 2)]
    assert Path(result["pictures"][0]["path"]).name == "rex-s-0.png"
    assert cli.main([*drawing, "--json"]) == 0
    second = Path(events(capsys)[-1]["pictures"][0]["path"])
    assert second.name == "rex-s-0-2.png"
    assert second.is_file()


def test_masks_and_captions_of_a_folder_belong_to_its_pictures_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name in ("anna.jpg", "anna-mask.png", "rex.png", "eve-MASK.png", "IMG_1.HEIC", "notes", ".hidden.txt"):
        (folder / name).touch()
    said = r"other kinds than .*: 2 \(.heic, no ending\); sub-folders: 1; masks without a picture: 1 \(eve-MASK.png\)"
    with pytest.warns(UserWarning, match=said):
        entries = read_entries(folder, tmp_path / "out", domain="face", mask="auto")
    assert [(entry.image.name, entry.mask) for entry in entries] == [
        ("anna.jpg", folder / "anna-mask.png"),
        ("rex.png", "auto"),
    ]
    with pytest.warns(UserWarning, match="left out"):
        assert {entry.mask for entry in read_entries(folder, tmp_path / "out", domain="face", mask="none")} == {"none"}
    for name in ("eve-MASK.png", "IMG_1.HEIC", "notes"):
        (folder / name).unlink()
    (folder / "more").rmdir()
    (folder / "anna.txt").write_text("S* in a\nred hat\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        entries = read_entries(folder, tmp_path / "out", domain="face")
    assert [entry.overrides for entry in entries] == [{"caption": "S* in a red hat"}, {}]
    assert [entry.overrides for entry in read_entries(folder, tmp_path, domain="face", captions=False)] == [{}, {}]


def test_a_caption_in_a_table_is_text(tmp_path: Path) -> None:
    table = tmp_path / "people.csv"
    table.write_text("image,name,caption,seed\na.png,a,2024,1\nb.png,b,{} at sea,2\nc.png,c,,3\n")
    entries = read_entries(table, tmp_path, domain="face")
    assert [entry.overrides.get("caption") for entry in entries] == ["2024", "{} at sea", None]
    assert [entry.overrides["seed"] for entry in entries] == [1, 2, 3]


def test_what_is_kept_can_be_said_in_a_manifest(tmp_path: Path) -> None:
    table = tmp_path / "people.csv"
    table.write_text("image,keep\na.png,low-rank\n")
    (entry,) = read_entries(table, tmp_path, domain="face")
    assert PersonalizeConfig().updated(entry.overrides) == PersonalizeConfig().keeping("low-rank")


def test_a_failure_among_many_is_one_sentence_for_people(
    domain_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "bad.png").write_bytes(b"no picture")
    assert cli.main(["personalize", str(domain_folder), str(folder), "-o", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "0 made, 0 kept, 1 failed" in err
    assert err.count("not a picture") == 1


def test_of_many_pictures_one_whose_place_is_taken_is_not_tuned(
    domain_folder: Path,
    noise_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The place is looked at before the tuning, which this one would end."""
    (tmp_path / "out" / "0").mkdir(parents=True)
    (tmp_path / "out" / "0" / "thesis.txt").write_text("years of work")
    (tmp_path / "m.jsonl").write_text(json.dumps({"image": str(noise_folder / "0.png")}))
    monkeypatch.setattr("e4t.pipeline.E4TPipeline.personalize_steps", lambda *_, **__: pytest.fail("it was tuned"))
    command = ["personalize", str(domain_folder), str(tmp_path / "m.jsonl"), "-o", str(tmp_path / "out"), "--json"]
    assert cli.main(command) == 1
    (told,) = events(capsys)[-1]["outcomes"]
    assert told["status"] == "failed"
    assert "exists and is no concept folder; choose another place" in told["error"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("m.jsonl", '{"image": "a.png"}\n{"image": "b/a.png"}', "line 2 and"),
        ("m.jsonl", "{", "line 1 is not JSON"),
        ("m.jsonl", "3", "no JSON object"),
        ("m.jsonl", '{"picture": "a.png"}', "'picture'"),
        ("m.jsonl", '{"name": "a"}', "no image"),
        ("m.jsonl", '{"image": "a.png", "name": "../a"}', "cannot be that of a folder"),
        ("m.jsonl", '{"image": "a.png", "overrides": {"stepz": 1}}', "unknown setting"),
        ("m.csv", "image,steps\na.png,many", "steps is 'many'"),
        ("m.csv", "image,name\na.png", "as many values"),
        ("m.csv", "image\n", "no pictures"),
        ("m.csv", "image,image\na.png,b.png", "a name of its own"),
        ("m.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("m.csv", f"image,steps\na.png,{'[' * 100_000}", "steps is '[[["),
        ("m.jsonl", '{"image": "a.png", "name": "Anna"}\n{"image": "b.png", "name": "anna"}', "would both write"),
        ("m.csv", None, "no manifest"),
    ],
)
def test_a_manifest_is_refused_before_anything_is_loaded(
    name: str, text: str | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    assert cli.main(["personalize", "nowhere", str(tmp_path / name), "-o", str(tmp_path / "out"), "--json"]) == 2
    (error,) = events(capsys)
    assert (error["event"], error["kind"], error["exit_code"]) == ("error", "ConfigError", 2)
    assert says in error["message"]
    assert not (tmp_path / "out").exists()
