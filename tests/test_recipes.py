"""The recipes of `runs`, on a random model: a few steps instead of thousands."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from bases import save_folder
from conftest import build_backbone
from e4t import cli

RUNS = Path(__file__).parents[1] / "runs"
SMALL = ("--steps", "2", "--resolution", "16", "--device", "cpu", "--mixed-precision", "no")


def run(recipe: str, tmp_path: Path, *options: str, **variables: str) -> dict:
    """The config of the domain that a recipe makes: a small program notes its commands, which are then run here."""
    command, noted = tmp_path / "bin" / "e4t", tmp_path / "noted"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\n{{ printf '%s\\0' \"$@\"; echo; }} >> '{noted}'\n")
    command.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "BASE": str(save_folder(build_backbone(), tmp_path / "base")),
        "OUTPUT": str(tmp_path / "domain"),
    }
    result = subprocess.run(
        ["bash", str(RUNS / recipe), *options],
        env=environment | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    for line in noted.read_text().splitlines():
        assert cli.main(line.split("\0")[:-1]) == 0
    return json.loads((tmp_path / "domain" / "config.json").read_text())


@pytest.mark.parametrize(("recipe", "variable", "steps"), [("face", "FACES", 30_000), ("art", "ART", 100_000)])
def test_the_recipes_of_the_paper(recipe, variable, steps, image_folder, tmp_path):
    config = run(f"{recipe}.sh", tmp_path, *SMALL, ACCUMULATION="8", **{variable: str(image_folder)})
    assert (config["domain"]["name"], config["training"]["effective_batch"]) == (recipe, 16)
    assert config["pretrain"]["learning_rate"] == 1.6e-5
    assert f"STEPS:-{steps}" in (RUNS / f"{recipe}.sh").read_text()


def test_one_card_overnight(image_folder, tmp_path):
    """But for the 8-bit optimiser, which needs the card: cached in one type, trained in another."""
    text = (RUNS / "face-24gb.sh").read_text()
    assert " --use-8bit-adam --mixed-precision bf16" in text
    small = tmp_path / "runs" / "face-24gb.sh"
    small.parent.mkdir()
    assert "--dtype bfloat16" in text
    text = text.replace(" --use-8bit-adam", " --device cpu")
    small.write_text(text.replace("--views 1", "--views 1 --device cpu"))
    variables = {"FACES": str(image_folder), "CACHE": str(tmp_path / "cache"), "RESOLUTION": "16"}
    variables |= {"HELD_OUT_CACHE": variables["CACHE"], "WORKERS": "2"}
    config = run(str(small), tmp_path, "--validate-every", "2", STEPS="2", **variables)
    assert (tmp_path / "domain.validation" / "scores.jsonl").is_file()
    assert (tmp_path / "cache" / "index.json").is_file()
    assert config["training"]["effective_batch"] == 16
    assert (config["pretrain"]["batch_size"], config["pretrain"]["gradient_checkpointing"]) == (8, False)
