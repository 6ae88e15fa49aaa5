"""Pre-training and personalizing by command, on a random model: from arguments to files, in every precision."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bases import save_single_file
from conftest import GENERATE, build_backbone
from e4t import cli
from e4t.cli import drawing, folders, learning
from e4t.cli.terminal import dtype_of
from e4t.counting import Count
from e4t.domain import Domain


def test_pretrain_records_what_it_was_told(domain_folder: Path) -> None:
    config = json.loads((domain_folder / "config.json").read_text())
    assert config["domain"]["class_word"] == "face"
    assert (config["pretrain"]["steps"], config["pretrain"]["batch_size"], config["pretrain"]["seed"]) == (2, 2, 3)
    assert config["encoder"]["normalize"] is True
    assert config["personalize"] == {"steps": 2, "batch_size": 2}
    assert config["generate"] == GENERATE


def test_personalize_uses_the_settings_of_the_domain(concept_folder: Path) -> None:
    assert (concept_folder / "preview.jpg").is_file()
    config = json.loads((concept_folder / "config.json").read_text())
    assert (config["steps"], config["personalize"]["batch_size"]) == (2, 2)


@pytest.mark.parametrize("low", [False, True])
def test_personalize_estimates_the_likeness_and_helps_where_it_is_low(
    low: bool,
    domain_folder: Path,
    noise_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(learning, "_LOW_LIKENESS", 9.0 if low else -9.0)
    command = ["personalize", str(domain_folder), str(noise_folder / "0.png"), "--output", str(tmp_path / "anna")]
    assert cli.main(command) == 0
    said = capsys.readouterr().err
    assert "likeness about" in said
    assert ("--strength 1.3 may help" in said) is low


def test_of_a_style_the_likeness_is_never_called_low(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "_LOW_LIKENESS", 9.0)
    learning._say(0.1, Domain.named("art"))
    said = capsys.readouterr().err
    assert "of a style it says little" in said
    assert "may help" not in said


def test_personalize_with_other_settings_and_a_mask(
    domain_folder: Path, noise_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = tmp_path / "mask.png"
    Image.new("L", (24, 20), 255).save(mask)
    command = ["personalize", str(domain_folder), str(noise_folder / "0.png"), "--output", str(tmp_path / "anna")]
    command += [
        "--mask",
        str(mask),
        "--steps",
        "1",
        "--no-preview",
        "--set",
        "tune=residual",
        "--set",
        "frozen_timesteps=2",
    ]
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'anna'}\n"
    assert "1/1  loss" in err
    settings = json.loads((tmp_path / "anna" / "config.json").read_text())["personalize"]
    assert (settings["steps"], settings["tune"], settings["frozen_timesteps"]) == (1, ["residual"], 2)
    assert not (tmp_path / "anna" / "preview.jpg").exists()


def test_steps_can_be_left_to_the_picture(
    domain_folder: Path, noise_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    anna = tmp_path / "anna"
    command = ["personalize", str(domain_folder), str(noise_folder / "0.png"), "--output", str(anna), "--no-preview"]
    assert cli.main([*command, "--steps", "auto", "--set", "automatic_gain=10"]) == 0
    assert json.loads((anna / "config.json").read_text())["steps"] == 1
    assert "ended after 1 step" in capsys.readouterr().err


def test_what_is_kept_can_be_chosen_and_drawn(domain_folder: Path, noise_folder: Path, tmp_path: Path) -> None:
    sizes = []
    for keep in ("full", "vectors", "low-rank", "embedding", "replay"):
        folder = tmp_path / keep
        command = ["personalize", str(domain_folder), str(noise_folder / "0.png"), "--keep", keep]
        assert cli.main([*command, "--no-preview", "-o", str(folder)]) == 0
        assert cli.main(["generate", str(folder), "S*", "--num-inference-steps", "1", "-o", str(tmp_path / "out")]) == 0
        sizes.append((folder / "concept.safetensors").stat().st_size)
    assert sizes[0] > max(sizes[1:3]) > sizes[3]


def test_personalize_within_the_memory_there_is(
    domain_folder: Path,
    noise_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("e4t.memory._counted", lambda *_: (10, Count(1000, 0, 1000)))  # test_ladder counts
    command = ["personalize", str(domain_folder), str(noise_folder / "0.png"), "--no-preview", "--output"]
    assert cli.main([*command, str(tmp_path / "anna"), "--memory", "auto"]) == 0
    assert re.search(r"memory: about \d+\.\d GB \(an estimate\) with nothing done", capsys.readouterr().err)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main([*command, str(tmp_path / "tight"), "--memory", "0.0001"]) == 0
    said = capsys.readouterr().err
    assert "but only 0.0 GB can be used" in said
    assert "1 of 2 noise levels at a time, gradient checkpointing" in said
    recorded = json.loads((tmp_path / "tight" / "config.json").read_text())["personalize"]
    assert (recorded["micro_batch_size"], recorded["gradient_checkpointing"], recorded["memory"]) == (1, True, None)


def test_personalize_without_a_domain(model_folder: Path, noise_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rex"
    command = ["personalize", "cat", str(noise_folder / "0.png"), "--base", str(model_folder), "--output", str(folder)]
    assert cli.main([*command, "--steps", "1", "--batch-size", "1", "--no-preview"]) == 0
    assert cli.main(["generate", str(folder), "a photo of S*", "--num-inference-steps", "1", "-o", str(tmp_path)]) == 0
    assert (tmp_path / "rex-a-photo-of-s-0.png").is_file()


def test_without_a_domain_an_image_encoder_is_only_for_the_likeness(
    model_folder: Path, noise_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ViT-H is 3.9 GB to fetch: without a preview, and however little memory there is, nobody needs it."""
    monkeypatch.setattr("e4t.memory._step_bytes", lambda *_: (10, 1000))  # test_ladder counts
    base, picture = shutil.copytree(model_folder, tmp_path / "base"), str(noise_folder / "0.png")
    shutil.rmtree(base / "image_encoder")
    command = ["personalize", "cat", picture, "--base", str(base), "--steps", "1", "--batch-size", "1", "--output"]
    assert cli.main([*command, str(tmp_path / "rex"), "--memory", "auto", "--no-preview"]) == 0
    assert cli.main([*command, str(tmp_path / "seen")]) == 2


def recorded(folder: Path) -> dict[str, str]:
    return json.loads((folder / "config.json").read_text())["base"]["reading"]


def test_a_single_file_is_a_base_and_how_it_is_read_is_remembered(
    model_folder: Path, noise_folder: Path, tmp_path: Path
) -> None:
    file = save_single_file(build_backbone(), tmp_path / "base.safetensors", open_clip=True)
    reading = ["--layout", str(model_folder), "--prediction-type", "v_prediction"]
    options = ["--base", str(file), *reading, "--image-encoder", str(model_folder / "image_encoder")]
    face, anna, rex = tmp_path / "face", tmp_path / "anna", tmp_path / "rex"
    command = ["pretrain", str(noise_folder), "--domain", "face", "--output", str(face), "--steps", "1"]
    assert cli.main([*command, "--batch-size", "1", *options]) == 0
    assert recorded(face) == {"layout": str(model_folder), "prediction_type": "v_prediction"}
    quick = ["--steps", "1", "--batch-size", "1", "--no-preview", "--output"]
    assert cli.main(["personalize", str(face), str(noise_folder / "0.png"), *quick, str(anna)]) == 0
    assert cli.main(["personalize", "cat", str(noise_folder / "0.png"), *quick, str(rex), *options]) == 0
    assert recorded(anna) == recorded(rex) == recorded(face)
    for folder in (anna, rex):
        drawing = ["generate", str(folder), "S*", "--num-inference-steps", "1", "-o", str(tmp_path / "out")]
        assert cli.main(drawing) == 0
        assert cli.main([*drawing, "--base", str(model_folder)]) == 0  # a copy in another form has options of its own
        assert cli.main([*drawing, "--base", str(file)]) == 2
    assert cli.main(["export", str(anna), "--to", "diff", "--output", str(tmp_path / "anna.safetensors")]) == 0
    assert cli.main(["replay", str(anna), str(noise_folder / "0.png")]) == 0


def test_a_concept_can_be_made_with_another_copy_of_its_domain_s_base(
    model_folder: Path, domain_folder: Path, noise_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from e4t.pipeline import Backbone

    seen: list[str] = []
    read = Backbone.from_pretrained
    monkeypatch.setattr(Backbone, "from_pretrained", lambda source, **o: seen.append(str(source)) or read(source, **o))
    file, anna = save_single_file(build_backbone(), tmp_path / "base.safetensors"), tmp_path / "anna"
    options = [
        "--base",
        str(file),
        "--layout",
        str(model_folder),
        "--image-encoder",
        str(model_folder / "image_encoder"),
    ]
    quick = ["--steps", "1", "--batch-size", "1", "--no-preview", "--output", str(anna)]
    assert cli.main(["personalize", str(domain_folder), str(noise_folder / "0.png"), *quick, *options]) == 0
    assert (anna / "domain.txt").is_file()
    drawing = ["generate", str(anna), "S*", "--num-inference-steps", "1", "-o", str(tmp_path / "out")]
    assert cli.main([*drawing, "--image-encoder", str(model_folder / "image_encoder")]) == 0
    file.unlink()
    assert cli.main(drawing) == 0
    assert seen == [str(file), str(file), str(model_folder)]


@pytest.mark.parametrize(("dtype", "autocast"), [("float16", "fp16"), ("bfloat16", "bf16")])
def test_weights_of_half_precision_learn_with_their_own_autocast_alone(
    dtype: str,
    autocast: str,
    model_folder: Path,
    noise_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [
        "pretrain",
        str(noise_folder),
        "--domain",
        "face",
        "--base",
        str(model_folder),
        "--output",
        str(tmp_path / "face"),
    ]
    command += ["--steps", "1", "--batch-size", "1", "--dtype", dtype]
    assert cli.main([*command, "--mixed-precision", "no"]) == 2
    assert f"needs mixed_precision '{autocast}'" in capsys.readouterr().err
    assert cli.main(command) == 0
    assert json.loads((tmp_path / "face" / "config.json").read_text())["pretrain"]["mixed_precision"] == autocast
    personalize = [
        "personalize",
        str(tmp_path / "face"),
        str(noise_folder / "0.png"),
        "--output",
        str(tmp_path / "anna"),
    ]
    personalize += ["--steps", "1", "--batch-size", "1", "--dtype", dtype]
    assert cli.main(personalize) == 0
    assert ("no preview: concepts cannot be drawn in bfloat16" in capsys.readouterr().err) == (dtype == "bfloat16")
    assert (tmp_path / "anna" / "preview.jpg").exists() == (dtype != "bfloat16")
    drawing = ["generate", str(tmp_path / "anna"), "S*", "--num-inference-steps", "1", "-o", str(tmp_path / "out")]
    assert cli.main([*drawing, "--dtype", dtype]) == (2 if dtype == "bfloat16" else 0)
    assert cli.main(drawing) == 0  # in float32: it is the same base
    capsys.readouterr()
    again = ["replay", str(tmp_path / "anna"), str(noise_folder / "0.png")]
    assert cli.main(again) == 0
    assert "the same, bit for bit" in capsys.readouterr().out
    assert cli.main([*again, "--dtype", "float32"]) == 0
    assert f"weights in {dtype} then, in float32 now" in capsys.readouterr().out


def test_a_concept_kept_as_a_replay_is_tuned_again_in_the_dtype_it_was_made_in(
    domain_folder: Path, noise_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "personalize",
        str(domain_folder),
        str(noise_folder / "0.png"),
        "--keep",
        "replay",
        "--no-preview",
        "--steps",
        "1",
    ]
    command += ["--batch-size", "1", "--dtype", "float16", "--mixed-precision", "fp16", "--output", str(tmp_path / "a")]
    assert cli.main(command) == 0
    drawing = ["generate", str(tmp_path / "a"), "S*", "--num-inference-steps", "1", "-o", str(tmp_path / "out")]
    assert cli.main(drawing) == 0
    assert "can differ" not in capsys.readouterr().err
    assert cli.main([*drawing, "--dtype", "float32"]) == 0
    assert "was tuned in float16 and is tuned again in float32" in capsys.readouterr().err


def test_a_domain_that_had_captions_asks_for_one(
    domain_folder: Path, noise_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = shutil.copytree(domain_folder, tmp_path / "told")
    config = json.loads((told / "config.json").read_text())
    config["pretrain"]["caption_share"] = 1.0
    (told / "config.json").write_text(json.dumps(config))
    for number, (domain, caption, asks) in enumerate(
        ((told, [], True), (told, ["--caption", "S* in the snow"], False), (domain_folder, [], False))
    ):
        command = ["personalize", str(domain), str(noise_folder / "0.png"), "--steps", "1", "--no-preview", *caption]
        assert cli.main([*command, "--output", str(tmp_path / str(number))]) == 0
        assert ("as in --caption" in capsys.readouterr().err.replace("\n", " ")) == asks


def test_what_a_gpu_is_fast_at_is_chosen_unless_something_else_is_asked_for(
    domain_folder: Path, noise_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice is made for a GPU that has bfloat16; what is chosen then runs here."""
    monkeypatch.setattr("e4t.precision.chosen_precision", lambda device, weights=torch.float32, measured="no": "bf16")
    command = ["personalize", str(domain_folder), str(noise_folder / "0.png"), "--steps", "1", "--batch-size", "1"]
    for number, (further, wanted) in enumerate(
        (([], "bf16"), (["--mixed-precision", "no"], "no"), (["--set", "mixed_precision=fp16"], "fp16"))
    ):
        assert cli.main([*command, "--no-preview", "--output", str(tmp_path / str(number)), *further]) == 0
        made = json.loads((tmp_path / str(number) / "config.json").read_text())
        assert made["personalize"]["mixed_precision"] == wanted


def test_gpus_draw_in_float16_but_for_what_was_tuned_in_float32_and_is_tuned_again(
    domain_folder: Path, noise_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["personalize", str(domain_folder), str(noise_folder / "0.png"), "--steps", "1", "--batch-size", "1"]
    for name, keep in (("tuned", "vectors"), ("again", "replay")):
        assert cli.main([*command, "--no-preview", "--keep", keep, "--output", str(tmp_path / name)]) == 0
    asked: list[str] = []

    def without_the_gpu(name: str) -> Any:
        asked.append(name)
        return dtype_of(name)

    monkeypatch.setattr(folders, "dtype_of", without_the_gpu)
    monkeypatch.setattr(drawing, "device_of", lambda name: "cuda:0")
    for name, further in (("tuned", []), ("tuned", ["--dtype", "float32"]), ("again", [])):
        words = ["generate", str(tmp_path / name), "S*", "--num-inference-steps", "1", "-o", str(tmp_path / "out")]
        assert cli.main([*words, "--device", "cpu", *further]) == 0
    assert asked == ["float16", "float32", "float32"]


@pytest.mark.parametrize("spelling", [["--memory", "8"], ["--set", "memory=8"], ["--set", "memory=auto"]])
def test_little_memory_means_half_precision_however_it_is_said(
    spelling: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "device_of", lambda name: "cuda:0" if name == "auto" else name)
    command = ["personalize", "tiny-face", "a.png", "--output", "anna", *spelling]
    for further, wanted in (
        ([], "float16"),
        (["--dtype", "float32"], "float32"),
        (["--mixed-precision", "bf16"], "float32"),  # which float16 weights would refuse
        (["--device", "cpu"], "float32"),
    ):
        asked = cli._parsed([*command, *further])
        assert isinstance(asked, learning.Personalize)
        assert asked._dtype() == wanted
