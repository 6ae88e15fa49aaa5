"""Base models in every form they are spread in, read back to the very weights; what is not whole is refused."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from bases import original_tensors, save_folder, save_single_file
from conftest import build_backbone
from e4t import loading, sources
from e4t.backbone import Backbone
from e4t.errors import CheckpointError

CLIP_IDS = [49406, 320, 1125, 539, 320, 2368, 49407]
"""“a photo of a cat”, as CLIP's own tokenizer has it."""


@pytest.fixture(scope="module")
def backbone():
    return build_backbone()


@pytest.fixture(scope="module")
def whole(backbone, tmp_path_factory):
    return save_folder(backbone, tmp_path_factory.mktemp("bases") / "whole")


@pytest.fixture
def folder(whole, tmp_path):
    """A copy to be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "base"))


def read(source, whole=None, **options):
    """On the CPU, with the image encoder of the folder ``whole`` if the source has none."""
    if whole is not None:
        options["image_encoder"] = whole / "image_encoder"
    return Backbone.from_pretrained(source, device="cpu", **options)


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# Folders


def test_a_variant_of_a_folder(backbone, tmp_path):
    folder = save_folder(build_backbone(), tmp_path / "base", variant="fp16")
    with pytest.raises(CheckpointError, match="say --variant fp16"):
        read(folder)
    loaded = read(folder, variant="fp16")
    assert loaded.fingerprint == backbone.fingerprint
    assert loaded.reading.given() == {"variant": "fp16"}
    assert loaded.folder == folder


def rename(file, **names):
    """Names of tensors as older releases of the libraries wrote them."""
    tensors = load_file(file)
    for old, new in names.items():
        tensors = {key.replace(old, new): tensor for key, tensor in tensors.items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return tensors


def test_folders_of_older_releases_are_whole(backbone, folder):
    """As Stable Diffusion 1.5 was published: nothing is taken to be missing because it had another name."""
    text = folder / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in load_file(text).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(32)[None]
    save_file(tensors, text, metadata={"format": "pt"})
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    assert any("mid_block.attentions.0.query" in key for key in rename(vae, **older))
    loaded = read(folder)
    assert loaded.fingerprint == backbone.fingerprint
    for name, tensor in backbone.vae.state_dict().items():
        assert torch.equal(loaded.vae.state_dict()[name], tensor)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "image_encoder"])
def test_weights_that_lack_a_tensor_are_not_filled_up_at_random(part, folder):
    file = next((folder / part).glob("*.safetensors"))
    tensors = load_file(file)
    lost = max(tensors)
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks 1 of the tensors that its config asks for"):
        read(folder)


@pytest.mark.parametrize(
    ("part", "field", "says"),
    [
        ("unet", "cross_attention_dim", "expected shape"),
        ("vae", "layers_per_block", "expected shape|lacks"),
        ("text_encoder", "intermediate_size", "lacks 6 of the tensors .* or has them in another shape"),
        ("image_encoder", "patch_size", "lacks . of the tensors .* or has them in another shape"),
    ],
)
def test_weights_of_another_shape(part, field, says, folder):
    edit_json(folder / part / "config.json", **{field: 4})
    with pytest.raises(CheckpointError, match=says):
        read(folder)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "scheduler", "image_encoder"])
def test_configs_that_are_not_what_they_should_be(part, folder):
    file = next((folder / part).glob("*config.json"))
    for text in ("[]", "{", ""):
        file.write_text(text)
        with pytest.raises(CheckpointError):
            read(folder)


def test_parts_of_different_models(folder, tmp_path):
    other = build_backbone()
    from diffusers import UNet2DConditionModel

    config = dict(other.unet.config) | {"cross_attention_dim": 48}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    with pytest.raises(CheckpointError, match="do not belong together: the U-Net reads prompts of width 48, not 32"):
        read(folder)


def test_a_tokenizer_with_more_words_than_vectors(folder):
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(loading._BASES / "clip-tokenizer", folder / "tokenizer")
    with pytest.raises(CheckpointError, match="the tokenizer has words without a vector"):
        read(folder)


def test_prompts_end_where_the_text_encoder_does(folder):
    (folder / "tokenizer" / "tokenizer_config.json").unlink()
    assert read(folder).tokenizer.model_max_length == 32


@pytest.fixture
def checked(folder):
    """With a safety checker."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPVisionConfig

    tower = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=tower.to_dict(), projection_dim=16))
    checker.save_pretrained(folder / "safety_checker")
    CLIPImageProcessor().save_pretrained(folder / "feature_extractor")
    edit_json(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    return folder


def test_a_safety_checker_has_the_variant_too(checked):
    weights = checked / "safety_checker" / "model.safetensors"
    rename(weights, vision_model="vision_model.vision_model")  # as it was published
    assert loading.load_safety(checked, "fp16").keys() == {"safety_checker", "feature_extractor"}  # its plain file
    weights.rename(weights.with_name("model.fp16.safetensors"))
    assert loading.load_safety(checked, "fp16").keys() == {"safety_checker", "feature_extractor"}
    with pytest.raises(CheckpointError, match=r"the safety checker of .* of variant 'fp16' only"):
        loading.load_safety(checked, None)


def test_a_safety_checker_that_is_named_but_missing_or_pickled(checked):
    weights = checked / "safety_checker" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(CheckpointError, match="only a pickle as safety_checker"):
        loading.load_safety(checked, None)
    shutil.rmtree(checked / "safety_checker")
    with pytest.raises(CheckpointError, match=r"the safety checker of .* cannot be loaded"):
        loading.load_safety(checked, None)


# Single files


@pytest.mark.parametrize("open_clip", [False, True], ids=["as 1.x", "as 2.x"])
def test_a_single_file_is_the_model_it_was_made_from(open_clip, backbone, whole, tmp_path):
    file = save_single_file(backbone, tmp_path / "base.safetensors", open_clip=open_clip)
    loaded = read(file, whole, layout=str(whole))
    assert loaded.fingerprint == backbone.fingerprint
    for name, tensor in backbone.vae.state_dict().items():
        assert torch.equal(loaded.vae.state_dict()[name], tensor)
    assert loaded.tokenizer.get_vocab() == backbone.tokenizer.get_vocab()
    assert loaded.scheduler.config.prediction_type == "epsilon"
    assert loaded.reading.given() == {"layout": str(whole)}
    assert (loaded.name, loaded.folder) == (str(file), None)
    assert loading.load_safety(loaded.folder, None) == {}
    assert not any(p.requires_grad for module in loaded.modules() for p in module.parameters())


def test_a_single_file_in_half_precision(backbone, whole, tmp_path):
    file = save_single_file(backbone, tmp_path / "base.safetensors")
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    assert read(file, whole, layout=str(whole)).dtype == torch.float32
    half = read(file, whole, layout=str(whole), dtype=torch.float16)
    assert half.dtype == half.vae.dtype == half.text_encoder.dtype == torch.float16
    brain = read(file, whole, layout=str(whole), dtype=torch.bfloat16)
    assert brain.dtype == brain.vae.dtype == brain.text_encoder.dtype == brain.image_encoder.dtype == torch.bfloat16
    assert half.fingerprint == brain.fingerprint == backbone.fingerprint
    assert half.image_encoder_fingerprint == brain.image_encoder_fingerprint == backbone.image_encoder_fingerprint


@pytest.mark.parametrize("part", ["model.", "first_stage_model.", "cond_stage_model."])
def test_a_single_file_that_lacks_a_tensor(part, backbone, whole, tmp_path):
    tensors = original_tensors(backbone)
    lost = [name for name in tensors if name.startswith(part)][5]
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, tmp_path / "base.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks (some|1) of the tensors"):
        read(tmp_path / "base.safetensors", whole, layout=str(whole))


def test_a_single_file_with_the_configs_of_another_model(backbone, whole, folder, tmp_path):
    file = save_single_file(backbone, tmp_path / "base.safetensors")
    with pytest.raises(CheckpointError, match="does not have the shapes of Stable Diffusion"):
        read(file, whole)
    edit_json(folder / "unet" / "config.json", layers_per_block=2)
    with pytest.raises(CheckpointError, match=r"cannot be loaded: Cannot load because .* expected shape"):
        read(file, whole, layout=str(folder))
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(CheckpointError, match="it has no tokenizer"):
        read(file, whole, layout=str(folder))


def test_a_file_or_an_option_says_what_is_predicted(backbone, whole, tmp_path):
    path = tmp_path / "base.safetensors"
    save_file(original_tensors(backbone), path, metadata={"modelspec.prediction_type": "v"})
    loaded = read(path, whole, layout=str(whole))
    assert loaded.scheduler.config.prediction_type == loaded.reading.prediction_type == "v_prediction"
    told = read(path, whole, layout=str(whole), prediction_type="epsilon")
    assert told.scheduler.config.prediction_type == told.reading.prediction_type == "epsilon"


@pytest.fixture
def small_versions(whole, tmp_path, monkeypatch):
    """The package's own configs, replaced by those of the tiny model, which goes by as version 1 or 2."""
    bases = tmp_path / "bases"
    for version in (1, 2):
        shutil.copytree(whole, bases / f"stable-diffusion-{version}", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(whole / "tokenizer", bases / "clip-tokenizer")
    monkeypatch.setattr(loading, "_BASES", bases)
    monkeypatch.setattr(loading, "_PADDING", {1: "<|endoftext|>", 2: "a"})

    def as_version(version: int) -> None:
        monkeypatch.setattr(sources, "_WIDTHS", {32: version})

    return as_version


def test_without_a_layout_configs_and_tokenizer_come_with_the_package(backbone, whole, small_versions, tmp_path):
    small_versions(1)
    loaded = read(save_single_file(backbone, tmp_path / "base.safetensors"), whole)
    assert loaded.fingerprint == backbone.fingerprint
    assert loaded.tokenizer.pad_token == "<|endoftext|>"
    assert loaded.reading.given() == {}
    assert loaded.scheduler.config.prediction_type == "epsilon"
    assert loaded.unet.config.sample_size == 8


@pytest.mark.parametrize(("noise", "predicts", "side"), [(True, "epsilon", 64), (False, "v_prediction", 96)])
def test_version_2_is_tried(noise, predicts, side, backbone, whole, small_versions, tmp_path, monkeypatch):
    small_versions(2)
    monkeypatch.setattr(loading, "_returns_noise", lambda unet, last: noise and last == 999)
    file = save_single_file(backbone, tmp_path / "base.safetensors", open_clip=True)
    with pytest.warns(UserWarning, match=f"trying it says {predicts}, so pictures have {8 * side} pixels"):
        loaded = read(file, whole)
    assert loaded.tokenizer.pad_token == "a"
    assert loaded.scheduler.config.prediction_type == loaded.reading.prediction_type == predicts
    assert loaded.unet.config.sample_size == side
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = read(file, whole, prediction_type=predicts)  # as a domain records it
    assert again.unet.config.sample_size == side


class Unet(torch.nn.Module):
    """Answers as one would that predicts noise or velocity, of pictures that are all alike."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.config = SimpleNamespace(in_channels=4, cross_attention_dim=8)
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(self, sample, timestep, *, encoder_hidden_states, return_dict):
        signal, picture = 0.0047**0.5, torch.ones_like(sample)
        noise = (sample - signal * picture) / (1 - 0.0047) ** 0.5
        return (noise if self.kind == "epsilon" else signal * noise - picture,)


def test_a_unet_that_predicts_noise_gives_noise_back():
    assert loading._returns_noise(Unet("epsilon"), 999)
    assert not loading._returns_noise(Unet("v_prediction"), 999)


def test_the_shipped_base_predicts_velocity():
    loaded = read(loading._BASES.parent / "tiny" / "weights" / "tiny")
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert not loading._returns_noise(loaded.unet, loaded.num_timesteps - 1)


@pytest.mark.parametrize(("version", "padding"), [(1, 49407), (2, 0)])
def test_clip_s_tokenizer_comes_with_the_package(version, padding):
    tokenizer = loading._tokenizer(version, None)
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == CLIP_IDS
    assert tokenizer("A Photo  of a CAT").input_ids == CLIP_IDS
    padded = tokenizer("a photo of a cat", padding="max_length").input_ids
    assert padded == CLIP_IDS + [padding] * 70
    licence = (loading._BASES / "clip-tokenizer" / "LICENSE").read_text()
    assert "OpenAI" in licence


# The image encoder


def test_an_image_encoder_that_is_no_clip_or_not_at_hand(whole, tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="is a bert, not a CLIP"):
        read(whole, image_encoder=tmp_path / "bert")
    with pytest.raises(CheckpointError, match=r"no folder here, nor in the Hub's cache.*--image-encoder"):
        read(whole, image_encoder="owner/clip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty' cannot be loaded"):
        read(whole, image_encoder=tmp_path / "empty")


def test_the_default_image_encoder_is_named_where_it_cannot_be_had(folder):
    shutil.rmtree(folder / "image_encoder")
    with pytest.raises(CheckpointError, match="laion/CLIP-ViT-H-14-laion2B-s32B-b79K"):
        read(folder)


def test_the_image_encoder_of_a_folder_has_its_variant(backbone, tmp_path):
    folder = save_folder(build_backbone(), tmp_path / "base", variant="fp16")
    build_backbone().image_encoder.save_pretrained(folder / "image_encoder", variant="fp16")
    (folder / "image_encoder" / "model.safetensors").unlink()
    assert read(folder, variant="fp16").image_encoder_fingerprint == backbone.image_encoder_fingerprint
