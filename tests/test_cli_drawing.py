"""Pictures by command, on a random model: seeds, settings and names of files; the demo's page."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commands import noise
from e4t import cli, demo
from e4t.cli import drawing, folders
from e4t.errors import CheckpointError
from e4t.provenance import read_notes


def test_generate_prints_its_pictures(concept_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", str(concept_folder), "a photo of S* at the beach", "--num_images", "2", "--seed", "5"]
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


def test_settings_say_how_many_pictures_and_from_which_seed(concept_folder: Path, tmp_path: Path) -> None:
    command = ["generate", str(concept_folder), "S*", "--num-inference-steps", "1", "--output", str(tmp_path)]
    assert cli.main([*command, "--set", "num_images=2", "--set", "seed=5"]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["anna-s-5.png", "anna-s-6.png"]
    assert cli.main([*command, "--set", "seed=5", "--seed", "0"]) == 0
    assert (tmp_path / "anna-s-0.png").exists()


def test_drawing_and_exporting_load_no_image_encoder(
    concept_folder: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """But a LoRA's likeness is looked at, and so is an image encoder that is named."""
    shutil.copytree(model_folder, base := tmp_path / "base", ignore=shutil.ignore_patterns("image_encoder"))
    drawing = ["generate", str(concept_folder), "S*", "--num-inference-steps", "1", "--output", str(tmp_path)]
    assert cli.main(drawing) == 0
    assert cli.main([*drawing, "--base", str(base)]) == 0
    pictures = [Image.open(path) for path in capsys.readouterr().out.splitlines()]
    assert np.array_equal(*map(np.asarray, pictures))
    file = tmp_path / "anna.safetensors"
    exporting = ["export", str(concept_folder), "--base", str(base), "--output", str(file), "--to"]
    assert cli.main([*exporting, "textual-inversion"]) == 0
    capsys.readouterr()
    for command in ([*exporting, "lora-diffusers"], [*drawing, "--base", str(base), "--image-encoder", "owner/clip"]):
        assert cli.main(command) == 2
        assert "is no folder here, nor in the Hub's cache" in capsys.readouterr().err


def test_too_little_memory_is_one_sentence_that_says_what_to_make_smaller(
    concept_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("e4t.pipeline.E4TPipeline.__call__", full)
    assert cli.main(["generate", str(concept_folder), "S*", "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "the device ran out of memory" in error
    assert "draw with --dtype float16 or fewer pictures at a time" in " ".join(error.split())
    assert error.split().count("last") == 1


@pytest.mark.parametrize("name", ["DDIMPipeline", "__version__", "UNet2DModel", "NoScheduler"])
def test_what_is_no_scheduler_is_refused(
    name: str, concept_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", str(concept_folder), "S*", "--scheduler", name, "--output", str(tmp_path / "out")]
    assert cli.main(command) == 2
    assert f"diffusers has no scheduler '{name}'; name one of its classes, as Euler" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_generate_is_repeatable_and_the_seed_counts(concept_folder: Path, tmp_path: Path) -> None:
    def drawn(seed: int, folder: str) -> bytes:
        command = ["generate", str(concept_folder), "S*", "--num-inference-steps", "1", "--seed", str(seed)]
        assert cli.main([*command, "--output", str(tmp_path / folder)]) == 0
        return Image.open(tmp_path / folder / f"anna-s-{seed}.png").tobytes()

    assert drawn(0, "a") == drawn(0, "b")
    assert drawn(0, "a") != drawn(1, "a")


def test_generate_says_what_it_drew_in(concept_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e4t.training.has_fast_bfloat16", lambda device: True)
    command = ["generate", str(concept_folder), "S*", "--num-inference-steps", "1", "--output", str(tmp_path / "out")]
    assert cli.main([*command, "--mixed-precision", "bf16"]) == 0
    assert read_notes(tmp_path / "out" / "anna-s-0.png")["mixed_precision"] == "bf16"


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        ([], "float16"),
        (["--mixed-precision", "no"], "float16"),
        (["--mixed-precision", "bf16"], "float32"),
        (["--set", "mixed_precision=bf16"], "float32"),
    ],
)
def test_a_gpu_draws_from_float16_weights_but_for_autocast(
    given: list[str], weights: str, concept_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "device_of", lambda name: "cuda:0")
    usual: list[str] = []

    def opened(*_: object, **options: str) -> None:
        usual.append(options["usual"])
        raise CheckpointError("that is enough")

    monkeypatch.setattr(folders.ConceptOptions, "open", opened)
    assert cli.main(["generate", str(concept_folder), "S*", *given]) == 2
    assert usual == [weights]


def test_demo_writes_page_grid_and_concepts(
    domain_folder: Path,
    noise_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The random model's tokenizer spells most words out and has room for few.
    monkeypatch.setattr(demo, "SUBJECT_PROMPTS", ("a photo of S*", "S* at the beach", "a blue S*", "<b>S*", "the S*"))
    other = noise(tmp_path / "0.png")  # of the same name as one of the others
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "0.txt").write_text("S* <3")
    images = [
        word for path in (noise_folder / "0.png", noise_folder / "1.png", other) for word in ("--image", str(path))
    ]
    place = tmp_path / "demo"
    command = ["demo", "--domain", str(domain_folder), "--output", str(place), "--num-inference-steps", "1", *images]
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    assert out == f"{place / 'index.html'}\n"
    assert "2 tuning steps" in err
    folders = ("face-0", "face-1", "face-0-2")
    assert {path.name for path in place.iterdir()} == {"index.html", "grid.png", *folders}
    page = (place / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3 + 3 * 3 * len(demo.SUBJECT_PROMPTS)
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # it fetches nothing
    assert "prefers-color-scheme: dark" in page
    assert "&lt;b&gt;" in page
    assert page.count("<q>") == 1
    assert "<q>S* &lt;3</q>" in page
    assert [
        json.loads((place / name / "config.json").read_text())["personalize"].get("caption") for name in folders
    ] == [
        None,
        None,
        "S* <3",
    ]


def test_a_full_disk_leaves_no_half_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("RGB", (8, 8))
    shown = demo.Shown("anna", picture, [picture], [picture], 1.0, 1000, masked=False, caption=None)
    gallery = demo.Gallery("tiny-face", "face", 5, ["S*"], [picture], [shown])
    demo._write(tmp_path, [gallery], [])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path: Path, text: str, **_: object) -> None:
        path.write_bytes(text[:100].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    other = Image.new("RGB", (8, 8), "red")
    with pytest.raises(CheckpointError, match=r"cannot be written .*No space left"):
        demo._write(tmp_path, [replace(gallery, class_only=[other])], [])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


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


def test_denormal_numbers_are_flushed(concept_folder: Path, tmp_path: Path) -> None:
    torch.set_flush_denormal(False)
    command = ["generate", str(concept_folder), "S*", "--num-inference-steps", "1", "--output", str(tmp_path)]
    assert cli.main(command) == 0
    assert float(torch.tensor(1e-40) * torch.tensor(1.0)) == 0  # they make a CPU several times slower
