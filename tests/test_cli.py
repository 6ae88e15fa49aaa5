"""The command line on a random model: every command from its arguments to its files, and every way to be refused."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bases import save_single_file
from conftest import build_backbone
from e4t import cli, demo, photos
from e4t.cli import drawing, folders, learning, settings, terminal
from e4t.cli.domains import Pretrain
from e4t.cli.options import each
from e4t.config import GenerateConfig, PersonalizeConfig, PretrainConfig
from e4t.errors import CheckpointError, ConfigError
from e4t.manifest import read_entries

RNG = np.random.default_rng(0)


def noise(path: Path, size: tuple[int, int] = (20, 24)) -> Path:
    Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Stable Diffusion as a diffusers folder."""
    folder = tmp_path_factory.mktemp("models") / "base"
    backbone = build_backbone()
    for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "image_encoder"):
        getattr(backbone, name).save_pretrained(folder / name)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(4):
        noise(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def domain(base: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("domains") / "face"
    settings = folder.parent / "settings.json"
    settings.write_text(json.dumps({"personalize": {"steps": 2, "batch_size": 2}, "generate": {"guidance_scale": 2.0}}))
    command = ["pretrain", str(pictures), "--domain", "face", "--base", str(base), "--output_dir", str(folder)]
    command += ["--config", str(settings), "--max_train_steps", "2", "--train_batch_size", "2", "--seed", "3"]
    assert cli.main([*command, "--set", "encoder.normalize=true", "--device", "cpu"]) == 0
    return folder


@pytest.fixture(scope="module")
def concept(domain: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("concepts") / "anna"
    assert cli.main(["personalize", str(domain), str(pictures / "0.png"), "--output", str(folder)]) == 0
    return folder


def test_pretrain_records_what_it_was_told(domain: Path) -> None:
    config = json.loads((domain / "config.json").read_text())
    assert config["domain"]["class_word"] == "face"
    assert (config["pretrain"]["steps"], config["pretrain"]["batch_size"], config["pretrain"]["seed"]) == (2, 2, 3)
    assert config["encoder"]["normalize"] is True
    assert config["personalize"] == {"steps": 2, "batch_size": 2}
    assert config["generate"] == {"guidance_scale": 2.0}


def test_personalize_uses_the_settings_of_the_domain(concept: Path) -> None:
    assert (concept / "preview.jpg").is_file()
    config = json.loads((concept / "config.json").read_text())
    assert (config["steps"], config["personalize"]["batch_size"]) == (2, 2)


def test_what_is_not_installed_is_named_with_the_extra_that_brings_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "find_spec", lambda name: None if name == "peft" else name)
    assert cli.main(["benchmark"]) == 2
    told = capsys.readouterr().err
    assert "this needs peft: install the extra with pip install '.[benchmark]' in the checkout of e4t" in told


@pytest.mark.parametrize("low", [False, True])
def test_personalize_estimates_the_likeness_and_helps_where_it_is_low(
    low: bool,
    domain: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(learning, "_LOW_LIKENESS", 9.0 if low else -9.0)
    assert cli.main(["personalize", str(domain), str(pictures / "0.png"), "--output", str(tmp_path / "anna")]) == 0
    said = capsys.readouterr().err
    assert "likeness about" in said
    assert ("--strength 1.3 may help" in said) is low


def test_personalize_with_other_settings_and_a_mask(
    domain: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = tmp_path / "mask.png"
    Image.new("L", (24, 20), 255).save(mask)
    command = ["personalize", str(domain), str(pictures / "0.png"), "--output", str(tmp_path / "anna")]
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
    domain: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    anna = tmp_path / "anna"
    command = ["personalize", str(domain), str(pictures / "0.png"), "--output", str(anna), "--no-preview"]
    assert cli.main([*command, "--steps", "auto", "--set", "automatic_loss=10"]) == 0
    assert json.loads((anna / "config.json").read_text())["steps"] == 1
    assert "learned after 1 step" in capsys.readouterr().err


def test_what_is_kept_can_be_chosen_and_drawn(domain: Path, pictures: Path, tmp_path: Path) -> None:
    sizes = []
    for keep in ("full", "vectors", "low-rank", "embedding", "replay"):
        folder = tmp_path / keep
        assert cli.main(["personalize", str(domain), str(pictures / "0.png"), "--keep", keep, "-o", str(folder)]) == 0
        assert cli.main(["generate", str(folder), "S*", "--num-inference-steps", "1", "-o", str(tmp_path / "out")]) == 0
        sizes.append((folder / "concept.safetensors").stat().st_size)
    assert sizes[0] > max(sizes[1:3]) > sizes[3]


def test_personalize_within_the_memory_there_is(
    domain: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["personalize", str(domain), str(pictures / "0.png"), "--no-preview", "--output"]
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


def test_personalize_without_a_domain(base: Path, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rex"
    command = ["personalize", "cat", str(pictures / "0.png"), "--base", str(base), "--output", str(folder)]
    assert cli.main([*command, "--steps", "1", "--batch-size", "1"]) == 0
    assert cli.main(["generate", str(folder), "a photo of S*", "--num-inference-steps", "1", "-o", str(tmp_path)]) == 0
    assert (tmp_path / "rex-a-photo-of-s-0.png").is_file()


def recorded(folder: Path) -> dict[str, str]:
    return json.loads((folder / "config.json").read_text())["base"]["reading"]


def test_a_single_file_is_a_base_and_how_it_is_read_is_remembered(base: Path, pictures: Path, tmp_path: Path) -> None:
    file = save_single_file(build_backbone(), tmp_path / "base.safetensors", open_clip=True)
    reading = ["--layout", str(base), "--prediction-type", "v_prediction"]
    options = ["--base", str(file), *reading, "--image-encoder", str(base / "image_encoder")]
    face, anna, rex = tmp_path / "face", tmp_path / "anna", tmp_path / "rex"
    command = ["pretrain", str(pictures), "--domain", "face", "--output", str(face), "--steps", "1"]
    assert cli.main([*command, "--batch-size", "1", *options]) == 0
    assert recorded(face) == {"layout": str(base), "prediction_type": "v_prediction"}
    quick = ["--steps", "1", "--batch-size", "1", "--no-preview", "--output"]
    assert cli.main(["personalize", str(face), str(pictures / "0.png"), *quick, str(anna)]) == 0
    assert cli.main(["personalize", "cat", str(pictures / "0.png"), *quick, str(rex), *options]) == 0
    assert recorded(anna) == recorded(rex) == recorded(face)
    for folder in (anna, rex):
        drawing = ["generate", str(folder), "S*", "--num-inference-steps", "1", "-o", str(tmp_path / "out")]
        assert cli.main(drawing) == 0
        assert cli.main([*drawing, "--base", str(base)]) == 0  # a copy in another form has options of its own
        assert cli.main([*drawing, "--base", str(file)]) == 2
    assert cli.main(["export", str(anna), "--to", "diff", "--output", str(tmp_path / "anna.safetensors")]) == 0
    assert cli.main(["replay", str(anna), str(pictures / "0.png")]) == 0


def test_a_concept_can_be_made_with_another_copy_of_its_domain_s_base(
    base: Path, domain: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from e4t.pipeline import Backbone

    seen: list[str] = []
    read = Backbone.from_pretrained
    monkeypatch.setattr(Backbone, "from_pretrained", lambda source, **o: seen.append(str(source)) or read(source, **o))
    file, anna = save_single_file(build_backbone(), tmp_path / "base.safetensors"), tmp_path / "anna"
    options = ["--base", str(file), "--layout", str(base), "--image-encoder", str(base / "image_encoder")]
    quick = ["--steps", "1", "--batch-size", "1", "--no-preview", "--output", str(anna)]
    assert cli.main(["personalize", str(domain), str(pictures / "0.png"), *quick, *options]) == 0
    assert (anna / "domain.txt").is_file()
    drawing = ["generate", str(anna), "S*", "--num-inference-steps", "1", "-o", str(tmp_path / "out")]
    assert cli.main([*drawing, "--image-encoder", str(base / "image_encoder")]) == 0
    file.unlink()
    assert cli.main(drawing) == 0
    assert seen == [str(file), str(file), str(base)]


@pytest.mark.parametrize(("dtype", "autocast"), [("float16", "fp16"), ("bfloat16", "bf16")])
def test_weights_of_half_precision_learn_with_their_own_autocast_alone(
    dtype: str, autocast: str, base: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["pretrain", str(pictures), "--domain", "face", "--base", str(base), "--output", str(tmp_path / "face")]
    command += ["--steps", "1", "--batch-size", "1", "--dtype", dtype]
    assert cli.main(command) == 2
    assert f"needs mixed_precision '{autocast}'" in capsys.readouterr().err
    assert cli.main([*command, "--mixed-precision", autocast]) == 0
    personalize = ["personalize", str(tmp_path / "face"), str(pictures / "0.png"), "--output", str(tmp_path / "anna")]
    personalize += ["--steps", "1", "--batch-size", "1", "--dtype", dtype]
    assert cli.main([*personalize, "--mixed-precision", autocast]) == 0
    assert ("no preview: concepts cannot be drawn in bfloat16" in capsys.readouterr().err) == (dtype == "bfloat16")
    assert (tmp_path / "anna" / "preview.jpg").exists() == (dtype != "bfloat16")
    drawing = ["generate", str(tmp_path / "anna"), "S*", "--num-inference-steps", "1", "-o", str(tmp_path / "out")]
    assert cli.main([*drawing, "--dtype", dtype]) == (2 if dtype == "bfloat16" else 0)
    assert cli.main(drawing) == 0  # in float32: it is the same base
    capsys.readouterr()
    again = ["replay", str(tmp_path / "anna"), str(pictures / "0.png")]
    assert cli.main(again) == 0
    assert "the same, bit for bit" in capsys.readouterr().out
    assert cli.main([*again, "--dtype", "float32"]) == 0
    assert f"weights in {dtype} then, in float32 now" in capsys.readouterr().out


def test_a_concept_kept_as_a_replay_is_tuned_again_in_the_dtype_it_was_made_in(
    domain: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["personalize", str(domain), str(pictures / "0.png"), "--keep", "replay", "--no-preview", "--steps", "1"]
    command += ["--batch-size", "1", "--dtype", "float16", "--mixed-precision", "fp16", "--output", str(tmp_path / "a")]
    assert cli.main(command) == 0
    drawing = ["generate", str(tmp_path / "a"), "S*", "--num-inference-steps", "1", "-o", str(tmp_path / "out")]
    assert cli.main(drawing) == 0
    assert "can differ" not in capsys.readouterr().err
    assert cli.main([*drawing, "--dtype", "float32"]) == 0
    assert "was tuned in float16 and is tuned again in float32" in capsys.readouterr().err


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


def test_switches_turn_off_what_is_on_by_default() -> None:
    off = ["--no-gradient-checkpointing", "--no-use-8bit-adam"]
    on = ["--gradient-checkpointing", "--use_8bit_adam"]
    pretrain = ["pretrain", "photos", "--domain", "face", "--base", "tiny", "--output", "face"]
    personalize = ["personalize", "tiny-face", "a.png", "--output", "anna"]
    saving = {"gradient_checkpointing": True, "optimizer": "adamw8bit"}
    for command, config in ((pretrain, PretrainConfig()), (personalize, PersonalizeConfig())):
        for given, wanted in ((off, (False, "adamw")), (on, (True, "adamw8bit")), ([], (True, "adamw8bit"))):
            parsed = cli._parsed([*command, *given])
            assert isinstance(parsed, (Pretrain, learning.Personalize))
            result = settings.overridden(config.updated(saving), (), parsed._given())
            assert (result.gradient_checkpointing, result.optimizer) == wanted
    parsed = cli._parsed([*pretrain, "--no-compile"])
    assert isinstance(parsed, Pretrain)
    assert parsed._given()["compile"] is False


def test_options_of_diffusers_scripts_are_understood() -> None:
    spelt = ["--checkpoints_total_limit", "3", "--validation_steps", "50"]
    pretrain = cli._parsed(["pretrain", "photos", "--domain", "face", "--base", "tiny", "--output", "face", *spelt])
    assert isinstance(pretrain, Pretrain)
    assert (pretrain.keep_states, pretrain.validate_every) == (3, 50)
    spelt = ["--gradient_accumulation_steps", "4", "--use_8bit_adam"]
    personalize = cli._parsed(["personalize", "tiny-face", "a.png", "--output_dir", "anna", *spelt])
    assert isinstance(personalize, learning.Personalize)
    assert (personalize._given()["accumulation"], personalize._given()["optimizer"]) == (4, "adamw8bit")


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    from e4t import __version__

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"e4t {__version__}\n"


def test_generate_prints_its_pictures(concept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", str(concept), "a photo of S* at the beach", "--num_images", "2", "--seed", "5"]
    command += ["--output", str(tmp_path), "--negative-prompt", "blue", "--num-inference-steps", "2"]
    assert cli.main(command) == 0
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in printed] == [f"anna-a-photo-of-s-at-the-beach-{seed}.png" for seed in (5, 6)]
    with Image.open(printed[1]) as image:
        assert image.size == (16, 16)
        lines = image.info["parameters"].splitlines()
    assert lines[:2] == ["a photo of S* at the beach", "Negative prompt: blue"]
    assert "Seed: 6" in lines[2]
    assert cli.main(["info", str(printed[1])]) == 0
    told = capsys.readouterr().out
    assert 'prompt: "a photo of S* at the beach"' in told
    assert "seed: 6" in told
    with Image.open(printed[1]) as image:
        avoiding = np.asarray(image)
    assert cli.main([*command, "--negative-prompt", ""]) == 0
    again = Path(capsys.readouterr().out.splitlines()[1])
    with Image.open(again) as image:
        assert not np.array_equal(np.asarray(image), avoiding)
    with Image.open(printed[1]) as image:  # the picture drawn before is still there
        assert np.array_equal(np.asarray(image), avoiding)
    assert cli.main([*command, "--no-metadata"]) == 0
    bare = Path(capsys.readouterr().out.splitlines()[1])
    assert [path.name for path in (again, bare)] == [f"{printed[1].stem}-{number}.png" for number in (2, 3)]
    assert cli.main(["info", str(bare)]) == 2
    assert "does not say how it was made" in capsys.readouterr().err


def test_export_writes_a_file_and_says_what_it_keeps(
    concept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "anna.safetensors"
    assert cli.main(["export", str(concept), "--to", "diff", "--output", str(file)]) == 0
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
    command = ["export", str(concept), "--to", "textual-inversion", "--output", str(tmp_path / "word.safetensors")]
    assert cli.main([*command, "--json"]) == 0
    assert events(capsys)[-1]["paths"] == [str(tmp_path / "word.safetensors")]
    assert cli.main(["export", str(concept), "--to", "single-file", "--output", str(tmp_path / "anna")]) == 2
    assert ".safetensors" in capsys.readouterr().err


def test_replay_makes_the_same_concept_or_says_what_differs(
    concept: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["replay", str(concept), str(pictures / "0.png")]) == 0
    assert "the same, bit for bit" in capsys.readouterr().out
    assert cli.main(["replay", str(concept), str(pictures / "1.png")]) == 0
    told = capsys.readouterr().out
    assert "the image is another one" in told
    assert "if it was made with --mask, give the same mask here" in told
    assert "image_half differs by" in told


def test_replay_crops_as_the_concept_was_cropped(
    domain: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a photo, by --mask auto, one at a time or many."""
    monkeypatch.setattr(photos, "framed", lambda image: photos.Framed(image.crop((2, 2, 18, 18)), None, ()))
    (tmp_path / "in").mkdir()
    picture = noise(tmp_path / "in" / "anna.png")
    quick = ["--mask", "auto", "--steps", "1", "--batch-size", "1", "--no-preview", "--output"]
    assert cli.main(["personalize", str(domain), str(picture), *quick, str(tmp_path / "one")]) == 0
    assert cli.main(["personalize", str(domain), str(tmp_path / "in"), *quick, str(tmp_path / "many")]) == 0
    capsys.readouterr()
    for folder in (tmp_path / "one", tmp_path / "many" / "anna"):
        assert cli.main(["replay", str(folder), str(picture)]) == 0
        assert capsys.readouterr().out == "the same, bit for bit\n"
    assert cli.main(["replay", str(tmp_path / "one"), str(picture), "--mask", "none"]) == 0
    assert "the image is another one" in capsys.readouterr().out


def test_settings_say_how_many_pictures_and_from_which_seed(concept: Path, tmp_path: Path) -> None:
    command = ["generate", str(concept), "S*", "--num-inference-steps", "1", "--output", str(tmp_path)]
    assert cli.main([*command, "--set", "num_images=2", "--set", "seed=5"]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["anna-s-5.png", "anna-s-6.png"]
    assert cli.main([*command, "--set", "seed=5", "--seed", "0"]) == 0
    assert (tmp_path / "anna-s-0.png").exists()


@pytest.mark.parametrize("name", ["DDIMPipeline", "__version__", "UNet2DModel", "NoScheduler"])
def test_what_is_no_scheduler_is_refused(
    name: str, concept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", str(concept), "S*", "--scheduler", name, "--output", str(tmp_path / "out")]) == 2
    assert f"diffusers has no scheduler '{name}'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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
    concept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["info", str(concept / "concept.safetensors")]) == 2
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


@pytest.mark.parametrize(
    ("option", "says"), [("--crop-scale 1 2", "crop_scale is"), ("--resolution 0", "resolution is 0")]
)
def test_views_that_no_picture_has_are_refused_at_once(
    option: str, says: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["cache", str(pictures), "--base", "nowhere", "--output", str(tmp_path / "cache"), *option.split()]
    assert cli.main(command) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("noted", [b"\xff\xfe", b"nowhere", b"a\0b"])
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


def test_a_concept_never_takes_the_place_of_a_domain(
    domain: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "face"
    shutil.copytree(domain, mine)
    (mine / "notes.txt").write_text("dear")
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    assert cli.main(["personalize", str(mine), str(pictures / "0.png"), "-o", str(mine)]) == 2
    assert "it is a domain folder; choose another place" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before


def test_generate_is_repeatable_and_the_seed_counts(concept: Path, tmp_path: Path) -> None:
    def drawn(seed: int, folder: str) -> bytes:
        command = ["generate", str(concept), "S*", "--num-inference-steps", "1", "--seed", str(seed)]
        assert cli.main([*command, "--output", str(tmp_path / folder)]) == 0
        return Image.open(tmp_path / folder / f"anna-s-{seed}.png").tobytes()

    assert drawn(0, "a") == drawn(0, "b")
    assert drawn(0, "a") != drawn(1, "a")


def test_a_moved_domain_is_asked_for(
    concept: Path, domain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "deeper" / "anna"
    shutil.copytree(concept, moved)
    command = ["generate", str(moved), "S*", "--num-inference-steps", "1", "--output", str(tmp_path)]
    assert cli.main(command) == 2
    assert "--domain" in capsys.readouterr().err
    assert cli.main([*command, "--domain", str(domain)]) == 0


def test_demo_writes_page_grid_and_concepts(
    domain: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The random model's tokenizer spells most words out and has room for few.
    monkeypatch.setattr(demo, "SUBJECT_PROMPTS", ("a photo of S*", "S* at the beach", "a blue S*", "<b>S*", "the S*"))
    other = noise(tmp_path / "0.png")  # of the same name as one of the others
    images = [word for path in (pictures / "0.png", pictures / "1.png", other) for word in ("--image", str(path))]
    place = tmp_path / "demo"
    command = ["demo", "--domain", str(domain), "--output", str(place), "--num-inference-steps", "1", *images]
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    assert out == f"{place / 'index.html'}\n"
    assert "2 tuning steps" in err
    assert {path.name for path in place.iterdir()} == {"index.html", "grid.png", "face-0", "face-1", "face-0-2"}
    page = (place / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3 + 3 * 3 * len(demo.SUBJECT_PROMPTS)
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # it fetches nothing
    assert "prefers-color-scheme: dark" in page
    assert "&lt;b&gt;" in page


def test_info(concept: Path, domain: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, words in ((concept, "concept face S*"), (domain, "domain face pretrain.steps"), (base, "base DDIM")):
        assert cli.main(["info", str(folder)]) == 0
        out = capsys.readouterr().out
        assert all(word in out for word in words.split())
    assert cli.main(["info"]) == 0


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("info nowhere", "neither a concept"),
        ("generate nowhere S*", "no concept folder"),
        ("personalize nowhere PICTURE --output x", "no domain folder"),
        ("personalize dog PICTURE --output x", "a class word needs --base MODEL"),
        ("personalize nowhere nothing.png --output x", "there is no picture"),
        ("demo --image nothing.png", "there is no picture"),
        ("demo --steps -1", "0 or more"),
        ("evaluate nowhere --count 0", "1 or more"),
        ("evaluate nowhere --steps 0 -1", "0 or more"),
        ("generate nowhere S* --num-images 0", "1 or more"),
        ("pretrain nowhere --domain face --base nowhere --output x", "nowhere"),
        ("pretrain nowhere --domain face --base x --output x --steps 0", "1 or more"),
        ("pretrain nowhere --domain face --base x.ckpt --output x", "is a pickle, which can run programs"),
        ("pretrain nowhere --domain face --base x.safetensors --output x", "there is no file"),
        ("pretrain nowhere --domain face --base owner/model --output x", "the Hub cannot be reached"),
        ("pretrain nowhere --domain face --base owner/model --layout y --output x", "leave --layout out"),
        ("personalize dog PICTURE --base PICTURE --output x", "is not a model"),
        ("pretrain nowhere --domain face --base x --output x --set steps", "has no value"),
        ("pretrain nowhere --domain face --base x --output x --set stepz=3", "unknown setting"),
        ("pretrain nowhere --domain face --base x --output x --config nothing.json", "no settings file"),
        ("personalize nowhere PICTURE --output x --device nonsense", "cannot be used"),
    ],
)
def test_what_the_user_can_put_right_is_one_sentence(
    command: str, says: str, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main(command.replace("PICTURE", str(pictures / "0.png")).split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["", "paint", "demo --nonsense", "personalize tiny-face"])
def test_wrong_usage_exits_with_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(command.split())
    assert caught.value.code == 2
    assert capsys.readouterr().out == ""


def test_settings_have_the_type_of_what_they_replace() -> None:
    config = settings.overridden(
        PretrainConfig(), ["crop_scale=[0.5, 1.0]", "resolution=64", "encoder.head=linear"], {}
    )
    assert (config.crop_scale, config.resolution, config.encoder.head) == ((0.5, 1.0), 64, "linear")
    assert settings.overridden(PersonalizeConfig(), ["tune=residual, deltas"], {}).tune == ("residual", "deltas")
    assert settings.overridden(GenerateConfig(), ["guidance_scale=3"], {"seed": 0, "height": None}).guidance_scale == 3
    for pair in ("steps=many", "steps=1.5", "steps=true", "flip=3", "encoder=3", "seed.x=1", "encoder.head=round"):
        with pytest.raises(ConfigError):
            settings.overridden(PretrainConfig(), [pair], {})


@pytest.mark.parametrize(
    ("config", "pairs", "wanted"),
    [
        (PretrainConfig(), ["offsets.form=none"], {"offsets": {"form": "none"}}),
        (PretrainConfig(), ["encoder.unet_blocks=none"], {"encoder": {"unet_blocks": "none"}}),
        (PretrainConfig(), ["encoder.head='linear'", "encoder.head_gain=1"], {"encoder": {"head_gain": 1.0}}),
        (PretrainConfig(), ["crop_scale=0.7,1.0"], {"crop_scale": (0.7, 1.0)}),
        (PretrainConfig(), ["crop_scale=(.7, 1)", "flip=True"], {"crop_scale": (0.7, 1.0), "flip": True}),
        (PretrainConfig(), ["resolution=none", "offsets.projections=[]"], {"resolution": None}),
        (PersonalizeConfig(), ["automatic=on", "learning_rate=.001"], {"automatic": True, "learning_rate": 0.001}),
        (PersonalizeConfig(), ["steps=auto", "memory=8"], {"steps": 15, "automatic": True, "memory": 8.0}),
        (PersonalizeConfig(), ["memory=auto", 'tune=["unet", "residual"]'], {"memory": "auto"}),
        (GenerateConfig(), ["scheduler=None", "guidance_scale=3"], {"scheduler": None, "guidance_scale": 3.0}),
    ],
)
def test_settings_are_read_as_they_are_documented(config: PretrainConfig, pairs: list[str], wanted: dict) -> None:
    values = settings.overridden(config, pairs, {}).to_dict()
    for name, value in wanted.items():
        assert values[name] == (values[name] | value if isinstance(value, dict) else value)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_order_of_settings_does_not_matter(order: tuple[int, ...]) -> None:
    pairs = ("cache=true", "crop_scale=[1.0,1.0]", "sample_latents=false")
    assert settings.overridden(PretrainConfig(), [pairs[place] for place in order], {}).cache
    with pytest.raises(ConfigError, match=r"cache needs crop_scale \[1.0, 1.0\]"):
        settings.overridden(PretrainConfig(), ["cache=true"], {})


def test_options_beat_settings_and_zero_counts() -> None:
    config = settings.overridden(PretrainConfig(), ["seed=4", "steps=9"], {"seed": 0, "steps": None})
    assert (config.seed, config.steps) == (0, 9)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a photo of S*", "a-photo-of-s"),
        ("../../x", "x"),
        ("**", "picture"),
        ("x" * 300, "x" * 60),
        ("é" * 300, "é" * 30),
    ],
)
def test_prompts_make_safe_file_names(prompt: str, name: str) -> None:
    assert drawing.slug(prompt) == name


def test_demo_prompts_are_made_of_what_the_world_can_draw() -> None:
    pytest.importorskip("cv2")
    pytest.importorskip("resvg_py")
    from e4t.tiny.accessories import ACCESSORIES
    from e4t.tiny.scenes import SCENES
    from e4t.tiny.styles import STYLES
    from e4t.tiny.transforms import TRANSFORMS

    before = [phrase for phrases in STYLES.values() for phrase in phrases]
    after = [phrase for table in (SCENES, ACCESSORIES) for phrases in table.values() for phrase in phrases if phrase]
    around = [phrase for phrases in TRANSFORMS.values() for phrase in phrases]
    seen = set()
    for prompt in demo.SUBJECT_PROMPTS:
        head, _, tail = prompt.partition("S*")
        assert head.strip() in before or any(phrase.startswith(f"{head}{{}}") for phrase in around), prompt
        assert not tail or any(phrase in tail for phrase in after), prompt
        seen |= {head} | {phrase for phrase in after if phrase in tail}
    assert len(demo.SUBJECT_PROMPTS) >= 8
    assert len(seen) >= 8


def test_readable_bytes() -> None:
    assert [demo.readable_bytes(n) for n in (900, 12_345, 2_500_000)] == ["0.9 kB", "12 kB", "2.5 MB"]


def test_denormal_numbers_are_flushed(concept: Path, tmp_path: Path) -> None:
    torch.set_flush_denormal(False)
    assert cli.main(["generate", str(concept), "S*", "--num-inference-steps", "1", "--output", str(tmp_path)]) == 0
    assert float(torch.tensor(1e-40) * torch.tensor(1.0)) == 0  # they make a CPU several times slower


def events(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_many_pictures_are_made_kept_and_failed(
    domain: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    manifest = tmp_path / "people.csv"
    manifest.write_text(f"image,name,steps\n{pictures / '0.png'},anna,\nbad.png,,\n{pictures / '1.png'},rex,1\n")
    command = ["personalize", str(domain), str(manifest), "-o", str(tmp_path / "out"), "--no-preview", "--json"]
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


def test_masks_of_a_folder_belong_to_its_pictures_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name in ("anna.jpg", "anna-mask.png", "rex.png", "eve-MASK.png", "IMG_1.HEIC", "notes", ".hidden.txt"):
        (folder / name).touch()
    said = r"other kinds than .*: 2 \(.heic, no ending\); sub-folders: 1; masks without a picture: 1 \(eve\)"
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
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_entries(folder, tmp_path / "out", domain="face")


def test_a_failure_among_many_is_one_sentence_for_people(
    domain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "bad.png").write_bytes(b"no picture")
    assert cli.main(["personalize", str(domain), str(folder), "-o", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "0 made, 0 kept, 1 failed" in err
    assert err.count("not a picture") == 1


def test_of_many_pictures_one_whose_place_is_taken_is_not_tuned(
    domain: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place is looked at before the tuning, which this one would end."""
    (tmp_path / "out" / "0").mkdir(parents=True)
    (tmp_path / "out" / "0" / "thesis.txt").write_text("years of work")
    (tmp_path / "m.jsonl").write_text(json.dumps({"image": str(pictures / "0.png")}))
    monkeypatch.setattr("e4t.pipeline.E4TPipeline.personalize_steps", lambda *_, **__: pytest.fail("it was tuned"))
    command = ["personalize", str(domain), str(tmp_path / "m.jsonl"), "-o", str(tmp_path / "out"), "--json"]
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


def test_every_command_speaks_json() -> None:
    for command in cli.Commands.__args__:
        assert "json" in command.__origin__.__dataclass_fields__, command


def test_wrong_usage_is_an_event_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["generate", "--json"])
    assert caught.value.code == 2
    (error,) = events(capsys)
    assert (error["event"], error["kind"], error["exit_code"]) == ("error", "usage", 2)
    assert "CONCEPT" in error["message"]


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt(), 130), (AssertionError("odd"), 1)])
def test_exit_codes_of_interruptions_and_faults(
    raised: BaseException, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise raised

    monkeypatch.setattr("e4t.cli.sharing.shipped", fail)
    assert cli.main(["info", "--json"]) == code
    (error,) = events(capsys)
    assert (error["event"], error["exit_code"]) == ("error", code)
    assert cli.main(["info"]) == code
    assert capsys.readouterr().out == ""


def test_info_is_one_object(concept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(concept), "--json"]) == 0
    (result,) = events(capsys)
    assert (result["command"], result["folder"]["kind"]) == ("info", "concept")


def test_doctor_says_what_is_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from e4t.cli import doctor

    assert cli.main(["doctor", "--json"]) == 0
    (result,) = events(capsys)
    found = {one["name"]: one for one in result["findings"]}
    assert result["healthy"]
    assert found["torch"]["text"] == torch.__version__
    assert found["tiny-face"]["state"] == "ok"
    broken = tmp_path / "tiny-face"
    broken.mkdir()
    (broken / "config.json").write_text('{"kind": "domain"}')
    monkeypatch.setattr(doctor, "shipped", lambda: {"tiny-face": broken})
    assert cli.main(["doctor"]) == 1
    told = capsys.readouterr().out
    assert re.search(r"BROKEN +models +tiny-face", told)
    assert "pip install --force-reinstall --no-deps " in told
    assert "no-deps e4t\n" not in told  # which is on no package index


def test_bash_completes_commands_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    assert cli.main(["completion", "bash"]) == 0
    script = tmp_path / "e4t.bash"
    script.write_text(capsys.readouterr().out)
    for words, wanted in (("e4t per", "personalize"), ("e4t personalize --see", "--seed")):
        parts = words.split()
        ask = f'source "{script}"; COMP_WORDS=({words}); COMP_CWORD={len(parts) - 1}; COMP_LINE="{words}"; '
        ask += f'COMP_POINT={len(words)}; _tyro_e4t e4t "{parts[-1]}" "{parts[-2]}"; echo "${{COMPREPLY[@]}}"'
        said = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=False)
        assert wanted in said.stdout, said.stderr
    for shell in ("zsh", "fish"):
        assert cli.main(["--print-completion", shell]) == 0
        assert "personalize" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "coloured"), [({}, False), ({"FORCE_COLOR": "1"}, True), ({"NO_COLOR": "1"}, False)]
)
@pytest.mark.parametrize("terminal_here", [False, True])
def test_colour_is_for_terminals_and_as_the_environment_says(
    setting: dict[str, str], coloured: bool, terminal_here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal_here

    for name in ("FORCE_COLOR", "NO_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    said = Stream()
    monkeypatch.setattr("sys.stderr", said)
    assert cli.main(["info", "nowhere"]) == 2
    assert ("\x1b[31m" in said.getvalue()) is (coloured or (terminal_here and not setting))
    with terminal.progress_bar("work") as progress:
        progress.at(1, 2)
    assert ("work" in said.getvalue()) is terminal_here  # a coloured log is no terminal: nothing moves in it


@pytest.mark.parametrize(
    ("file", "shown"),
    [
        (Path(terminal.__file__).parents[1] / "memory.py", True),
        (Path("/venv/lib/python3.11/site-packages/diffusers/utils.py"), False),
        (Path("/venv/lib/python3.11/dist-packages/torch/nn/modules/linear.py"), False),
        (Path("/people/anna/diffusers/src/diffusers/utils.py"), False),
        (Path("/people/anna/torch/venv/lib/python3.11/site-packages/mine/script.py"), True),
    ],
)
def test_warnings_of_libraries_alone_are_kept_back(
    file: Path, shown: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.show_warning("look here", UserWarning, str(file), 1)
    assert ("look here" in capsys.readouterr().err) is shown
    monkeypatch.setattr(terminal, "_OWN", Path("/people/anna/diffusers/src/e4t"))
    terminal.show_warning("and here", UserWarning, str(terminal._OWN / "memory.py"), 1)
    assert "and here" in capsys.readouterr().err


# Values given again, and readers that leave


def test_an_option_of_several_values_may_be_given_again() -> None:
    given = [
        ("demo --image a.png --image b.png c.png --domain x --domain y", ("image", "domain")),
        ("benchmark --domain x --domain y z --method p --method q --prompts r --prompts s", ("domain", "method")),
        ("evaluate d --steps 0 --steps 5 15", ("steps",)),
        ("web --domain x --domain y z", ("domain",)),
    ]
    for line, names in given:
        command = cli._parsed(line.split())
        for name in names:
            said = re.findall(rf"--{name} ([^-]+)", line)
            assert " ".join(map(str, each(getattr(command, name)))) == " ".join(said).replace("  ", " ").strip()


def unread(code: str) -> tuple[int, str]:
    """Exit code and stdout of a program whose stderr nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writing, text=True, check=False
        )
    finally:
        os.close(writing)
    return done.returncode, done.stdout


def test_nobody_reading_messages_stops_nothing() -> None:
    assert unread("from e4t.cli import terminal as t; t.say('a'); t.say('b'); print('done')") == (0, "done\n")
    assert unread("import sys; from e4t import cli; sys.exit(cli.main(['info', 'nowhere']))") == (2, "")
