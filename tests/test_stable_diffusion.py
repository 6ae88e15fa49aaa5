"""The whole story in the shapes of Stable Diffusion 1.5 and CLIP ViT-H/14, with random weights.

Takes seven minutes on a CPU core, 11 GB of memory and 8 GB of disk, so it is left out unless asked for:

    python -m pytest -m slow tests/test_stable_diffusion.py
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from e4t import loading
from e4t.sources import check_file

pytestmark = pytest.mark.slow

SOURCES = Path(__file__).parents[1] / "src"
SIDE = 128  # pixels: one sixteenth of the work of 512
MOST_MEMORY = 12 * 2**30  # bytes, of any one command; 10.4 GB when this was written
DRAWING = ("--num-inference-steps", "2", "--seed", "3")


def random_parts() -> Iterator[tuple[str, torch.nn.Module]]:
    """One at a time: together they would take 7 GB."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

    configs = loading._BASES / "stable-diffusion-1"
    unet = UNet2DConditionModel.load_config(configs, subfolder="unet") | {"sample_size": SIDE // 8}
    yield "unet", UNet2DConditionModel.from_config(unet)
    yield "vae", AutoencoderKL.from_config(AutoencoderKL.load_config(configs, subfolder="vae"))
    yield "text_encoder", CLIPTextModel(CLIPTextConfig.from_pretrained(configs, subfolder="text_encoder"))
    vit = CLIPVisionConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        patch_size=14,
        hidden_act="gelu",
    )
    yield "image_encoder", CLIPVisionModel(vit)


def write_base(folder: Path) -> Path:
    """A folder as people have it: half-precision files of the variant fp16."""
    configs = loading._BASES / "stable-diffusion-1"
    shutil.copytree(configs / "scheduler", folder / "scheduler")
    shutil.copytree(loading._BASES / "clip-tokenizer", folder / "tokenizer")
    shutil.copy(configs / "model_index.json", folder)
    torch.manual_seed(0)
    for name, part in random_parts():
        part.half().save_pretrained(folder / name, variant="fp16")
    return folder


def write_pictures(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for seed in range(3):
        values = np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "stable-diffusion")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def e4t(*arguments: object) -> str:
    """What a command prints, run in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(SOURCES), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "e4t.cli", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    peak = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"e4t {arguments[0]}: the most memory so far is {peak / 2**30:.1f} GB", file=sys.stderr)
    assert peak < MOST_MEMORY
    return result.stdout.strip()


def drawn(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.size == (SIDE, SIDE)
        return np.asarray(image, dtype=float)


def test_from_pretraining_to_another_program(base: Path, pictures: Path, tmp_path: Path) -> None:
    domain, concept, file = tmp_path / "face", tmp_path / "anna", tmp_path / "anna.safetensors"
    learning = ("--batch-size", "1", "--device", "cpu", "--output")
    half = ("--base", base, "--variant", "fp16")
    e4t("pretrain", pictures, "--domain", "face", *half, "--steps", "2", *learning, domain)
    recorded = json.loads((domain / "config.json").read_text())
    assert recorded["base"]["reading"] == {"variant": "fp16"}
    assert np.isfinite(recorded["training"]["first_losses"]).all()

    e4t("personalize", domain, pictures / "0.png", "--steps", "5", "--no-preview", *learning, concept)
    drawing = ("generate", concept, "a photo of S* at the beach", "--embedding", "frozen", *DRAWING, "--device", "cpu")
    native = drawn(e4t(*drawing, "--output", tmp_path / "native"))
    assert native.std() > 0

    e4t("export", concept, "--to", "single-file", "--output", file, "--device", "cpu")
    assert check_file(file, known_layout=False).version == 1  # a base itself, by its shapes
    again = stock_drawing(file, base)
    assert np.abs(again - native).mean() < 3  # of 255: the file's weights are float16


def stock_drawing(file: Path, base: Path) -> np.ndarray:
    """As any program with diffusers would draw it: the word comes in the one other file of the export."""
    from diffusers import StableDiffusionPipeline

    stock = StableDiffusionPipeline.from_single_file(str(file), config=str(base), local_files_only=True)
    (embedding,) = set(file.parent.glob("*.safetensors")) - {file}
    stock.load_textual_inversion(embedding)
    stock.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "guidance_scale": 7.5, "generator": torch.Generator().manual_seed(3)}
    image = stock("a photo of S* at the beach", **options).images[0]
    assert image.size == (SIDE, SIDE)
    return np.asarray(image, dtype=float)
