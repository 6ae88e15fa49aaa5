"""Random models, tiny but complete, in the very classes of Stable Diffusion and CLIP."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's client is imported: no test waits for a network
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image

from commands import noise
from e4t import cli
from e4t.backbone import Backbone
from e4t.config import EncoderConfig, OffsetsConfig, PersonalizeConfig, PretrainConfig
from e4t.domain import Domain
from e4t.model import E4TModel

WORDS = ("face", "cat", "art", "a", "photo", "of", "the", "beach", "at", "blue")
DIM = 32
RESOLUTION = 16
GENERATE = {"guidance_scale": 2.0, "num_inference_steps": 2}


def tiny_tokenizer():
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    vocab = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        left = pieces[0]
        for right in pieces[1:]:
            if (left, right) not in merges:
                merges.append((left, right))
                vocab.append(left + right)
            left += right
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({token: index for index, token in enumerate(vocab)}, merges, model_max_length=32)


def build_backbone(prediction_type: str = "epsilon", *, in_channels: int = 4) -> Backbone:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=DIM,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=RESOLUTION,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=DIM,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, image_size=16, patch_size=8
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type=prediction_type,
        rescale_betas_zero_snr=prediction_type == "v_prediction",
        timestep_spacing="trailing" if prediction_type == "v_prediction" else "leading",
    )
    return Backbone(unet, vae, CLIPTextModel(text), tokenizer, scheduler, CLIPVisionModel(vision), name="tiny")


def build_model(backbone: Backbone, *, seed: int = 0, **encoder: object) -> E4TModel:
    """A domain with random, non-zero offsets."""
    torch.manual_seed(seed)
    model = E4TModel(
        backbone,
        Domain.named("face"),
        encoder=EncoderConfig().updated(encoder),
        offsets=OffsetsConfig(form="paper"),
        embedding_scale=0.1,
    )
    for parameter in model.offsets.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """Commands flush denormal numbers for their process; here one process runs all tests."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the processes that tests start; bits depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_backbone() -> Backbone:
    return build_backbone()


@pytest.fixture
def make_backbone() -> Callable[..., Backbone]:
    return build_backbone


@pytest.fixture
def tiny_model(tiny_backbone: Backbone) -> E4TModel:
    return build_model(tiny_backbone)


@pytest.fixture
def make_model() -> Callable[..., E4TModel]:
    return build_model


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 16, 3), dtype=np.uint8))


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(5):
        values = np.random.default_rng(index).integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def quick_pretrain() -> PretrainConfig:
    return PretrainConfig(steps=4, batch_size=2, learning_rate=1e-2, checkpoint_every=2)


@pytest.fixture
def quick_personalize() -> PersonalizeConfig:
    return PersonalizeConfig(steps=2, batch_size=2, learning_rate=1e-2, frozen_timesteps=2, save_dtype="float32")


# Folders for commands, made once by the commands themselves; tests leave them as they are


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


@pytest.fixture(scope="session")
def noise_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four random pictures, 0.png to 3.png."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(4):
        noise(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def domain_folder(model_folder: Path, noise_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A domain of faces, pre-trained for two steps on the random pictures."""
    folder = tmp_path_factory.mktemp("domains") / "face"
    settings = folder.parent / "settings.json"
    settings.write_text(json.dumps({"personalize": {"steps": 2, "batch_size": 2}, "generate": GENERATE}))
    command = ["pretrain", str(noise_folder), "--domain", "face", "--base", str(model_folder)]
    command += ["--output_dir", str(folder), "--config", str(settings), "--max_train_steps", "2"]
    command += ["--train_batch_size", "2", "--seed", "3", "--set", "encoder.normalize=true", "--device", "cpu"]
    assert cli.main(command) == 0
    return folder


@pytest.fixture(scope="session")
def concept_folder(domain_folder: Path, noise_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of the domain on the first of the random pictures."""
    folder = tmp_path_factory.mktemp("concepts") / "anna"
    assert cli.main(["personalize", str(domain_folder), str(noise_folder / "0.png"), "--output", str(folder)]) == 0
    return folder
