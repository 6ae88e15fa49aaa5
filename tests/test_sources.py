"""What can be a base, told by names and headers: everything else is refused in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bases import save_folder, save_shapes
from conftest import build_backbone
from e4t.config import BaseConfig
from e4t.errors import CheckpointError, ConfigError
from e4t.loading import load_shapes
from e4t.sources import check_file, check_folder, locate, locate_layout

SD15 = json.loads((Path(__file__).parent / "data" / "sd15-single-file.json").read_text())
CROSS = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
LATENTS = "model.diffusion_model.input_blocks.0.0.weight"
TOKENS = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
PLAIN = BaseConfig()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_folder(build_backbone(), tmp_path_factory.mktemp("bases") / "whole")


@pytest.fixture
def folder(whole, tmp_path):
    """A copy to be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "base"))


def said(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


# Names


@pytest.mark.parametrize("name", ["v1-5-pruned.ckpt", "model.PT", "diffusion_pytorch_model.bin", "x.pth", "x.pkl"])
def test_pickles_are_refused_by_name(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="is a pickle, which can run programs"):
        locate(str(tmp_path / name), PLAIN)


def test_files_and_folders_that_are_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="there is no file"):
        locate(str(tmp_path / "model.safetensors"), PLAIN)
    with pytest.raises(CheckpointError, match="looks like owner/model"):
        locate(str(tmp_path / "nothing"), PLAIN)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"a folder, a hub id or a \.safetensors file"):
        locate(str(tmp_path / "notes.txt"), PLAIN)


def test_options_are_refused_where_they_mean_nothing(folder, tmp_path):
    file = save_shapes(SD15, tmp_path / "sd15.safetensors")
    for place, options in (
        (folder, {"revision": "main"}),
        (folder, {"prediction_type": "epsilon"}),
        (folder, {"layout": "x"}),
        (file, {"revision": "main"}),
        (file, {"variant": "fp16"}),
        ("owner/model", {"layout": "x"}),
        ("owner/model", {"prediction_type": "epsilon"}),
    ):
        with pytest.raises(ConfigError, match=f"leave --{next(iter(options)).replace('_', '-')} out") as error:
            locate(str(place), BaseConfig(**options))
        said(error)
    with pytest.raises(ConfigError, match="'epsilon', 'v_prediction'"):
        BaseConfig(prediction_type="v")


# The Hub, without a network


@pytest.fixture
def cached(whole, tmp_path, monkeypatch):
    """The base as ``owner/model`` in the Hub's cache; its revision ``main``."""
    cache = tmp_path / "hub"
    place = cache / "models--owner--model"
    shutil.copytree(whole, place / "snapshots" / ("a" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return place / "snapshots" / ("a" * 40)


def test_what_the_hub_s_cache_holds_needs_no_network(cached):
    assert locate("owner/model", PLAIN) == cached
    assert locate("owner/model", BaseConfig(revision="main")) == cached
    assert locate("owner/model", BaseConfig(revision="a" * 40)) == cached
    assert locate_layout("owner/model") == cached


def test_shapes_need_no_weights_of_a_hub_id(cached, monkeypatch):
    import huggingface_hub
    from diffusers import DiffusionPipeline

    fetch, asked = huggingface_hub.snapshot_download, []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: asked.append(k) or fetch(*a, **k))
    monkeypatch.setattr(DiffusionPipeline, "download", lambda *_, **__: pytest.fail("fetched"))
    for file in cached.rglob("*.safetensors"):
        file.unlink()
    shapes = load_shapes("owner/model", BaseConfig(revision="main"), dtype=torch.float32)
    assert shapes.folder == cached
    assert [one["revision"] for one in asked] == ["main"]
    assert all(pattern.endswith((".json", ".txt")) for one in asked for pattern in one["allow_patterns"])
    (cached / "tokenizer" / "vocab.json").unlink(missing_ok=True)
    (cached / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"is incomplete: it has no tokenizer/vocab.json"):
        load_shapes("owner/model", PLAIN, dtype=torch.float32)


def test_what_the_cache_does_not_hold_is_one_sentence(cached):
    for name, options in (("owner/other", {}), ("owner/model", {"revision": "fp16"}), ("nowhere", {})):
        with pytest.raises(CheckpointError, match="the Hub cannot be reached and its cache") as error:
            locate(name, BaseConfig(**options))
        said(error)
    with pytest.raises(CheckpointError, match="the Hub cannot be reached and its cache"):
        locate_layout("owner/other")


def test_another_kind_is_refused_before_anything_large_is_fetched(cached, monkeypatch):
    from diffusers import DiffusionPipeline

    monkeypatch.setattr(DiffusionPipeline, "download", lambda *_, **__: pytest.fail("fetched"))
    index = json.loads((cached / "model_index.json").read_text())
    index |= {"_class_name": "StableDiffusionXLPipeline", "text_encoder_2": ["transformers", "CLIPTextModel"]}
    (cached / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="is a StableDiffusionXLPipeline, not a Stable Diffusion"):
        locate("owner/model", PLAIN)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("GatedRepoError", "hf auth login"),
        ("RepositoryNotFoundError", "no model of that name"),
        ("RevisionNotFoundError", "no such revision"),
        ("RemoteEntryNotFoundError", "has no model_index.json"),
    ],
)
def test_what_the_hub_answers_is_one_sentence(kind, says, monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    def fail(*_: object, **__: object) -> None:
        answer = getattr(errors, kind)
        raise answer.__new__(answer)  # what it is made of is the client's business

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(CheckpointError, match=says) as error:
        locate("owner/model", PLAIN)
    said(error)


def test_a_variant_that_the_hub_does_not_have(cached, monkeypatch):
    from diffusers import DiffusionPipeline

    def fail(*_: object, **__: object) -> None:
        raise ValueError("there are no files of the variant fp16")

    monkeypatch.setattr(DiffusionPipeline, "download", fail)
    with pytest.raises(CheckpointError, match="no files of the variant fp16"):
        locate("owner/model", BaseConfig(variant="fp16"))


# Folders


def test_whole_folder(whole):
    assert check_folder(whole, "base", None) == {"unet": None, "vae": None, "text_encoder": None}


@pytest.mark.parametrize(
    "file",
    ["unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"],
)
def test_a_folder_without_a_config(folder, file):
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=f"incomplete: it has no {file}") as error:
        check_folder(folder, "base", None)
    said(error)


def test_a_config_that_is_far_too_large_is_not_read(folder):
    with (folder / "unet" / "config.json").open("ab") as file:
        file.truncate(5 * 2**20)
    with pytest.raises(CheckpointError, match="more than 4 MB, which no config needs"):
        check_folder(folder, "mine", None)


def test_a_folder_without_tokenizer_index_or_scheduler(folder):
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    with pytest.raises(CheckpointError, match="tokenizer/vocab"):
        check_folder(folder, "base", None)
    index = json.loads((folder / "model_index.json").read_text())
    del index["scheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="names no scheduler"):
        check_folder(folder, "base", None)
    (folder / "model_index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds no names and values"):
        check_folder(folder, "base", None)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        check_folder(folder, "base", None)
    (folder / "model_index.json").unlink()
    with pytest.raises(CheckpointError, match=r"which has a model_index\.json$"):
        check_folder(folder, "base", None)


def test_a_text_model_is_called_by_its_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(CheckpointError, match="is of a LlamaForCausalLM") as error:
        check_folder(tmp_path, "llama", None)
    said(error)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(CheckpointError, match="is of a UNet2DConditionModel"):
        check_folder(tmp_path, "unet", None)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (
            {"_class_name": "FluxPipeline", "unet": None, "transformer": ["diffusers", "FluxTransformer2DModel"]},
            "a FluxPipeline, not a Stable Diffusion 1.x or 2.x: it has no unet",
        ),
        (
            {
                "_class_name": "StableDiffusionXLPipeline",
                "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            },
            "a StableDiffusionXLPipeline, .*second text encoder",
        ),
        (
            {"_class_name": "AltDiffusionPipeline", "text_encoder": ["alt_diffusion", "RobertaSeriesModel"]},
            "its text_encoder is a RobertaSeriesModel, not a CLIPTextModel",
        ),
        ({"_class_name": "KandinskyPipeline", "vae": ["diffusers", "VQModel"]}, "its vae is a VQModel"),
    ],
)
def test_other_models_in_diffusers_format(folder, index, says):
    known = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(known | index))
    with pytest.raises(CheckpointError, match=says) as error:
        check_folder(folder, "base", None)
    said(error)


def test_weights_of_a_variant(folder):
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (folder / part / f"{stem}.safetensors").rename(folder / part / f"{stem}.fp16.safetensors")
    with pytest.raises(CheckpointError, match="of variant 'fp16' only: say --variant fp16"):
        check_folder(folder, "base", None)
    found = check_folder(folder, "base", "fp16")
    assert found == {"unet": "fp16", "vae": None, "text_encoder": "fp16"}  # as diffusers mixes them
    with pytest.raises(CheckpointError, match="of variant 'fp16' only"):
        check_folder(folder, "base", "bf16")


def test_no_weights_of_a_variant(folder):
    with pytest.raises(CheckpointError, match="no weights of variant 'fp16'; leave --variant out"):
        check_folder(folder, "base", "fp16")


def test_weights_that_are_missing_pickled_or_cut(folder):
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="is cut, damaged or no safetensors file") as error:
        check_folder(folder, "base", None)
    said(error)
    weights.unlink()
    with pytest.raises(CheckpointError, match="incomplete: vae has no weights"):
        check_folder(folder, "base", None)
    (folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="only a pickle as vae"):
        check_folder(folder, "base", None)


def test_weights_in_several_files_are_left_to_the_library(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model-00001-of-00001.safetensors"))
    weights.with_name("diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    assert check_folder(folder, "base", None)["unet"] is None


@pytest.mark.parametrize(("part", "stem"), [("unet", "diffusion_pytorch_model"), ("text_encoder", "model")])
@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("evil.bin", "names 'evil.bin', and may only name .safetensors files beside it"),
        ("../evil.safetensors", "may only name .safetensors files beside it"),
        ("..\\evil.safetensors", "may only name .safetensors files beside it"),
        ("absent.safetensors", "absent.safetensors' is cut, damaged or no safetensors file"),
        ("cut.safetensors", "cut.safetensors' is cut, damaged or no safetensors file"),
        (5, "its weight_map is no list of tensors and files"),
    ],
)
@pytest.mark.parametrize("beside", [True, False])
def test_an_index_names_whole_safetensors_files_beside_it(folder, part, stem, named, says, beside):
    weights = folder / part / f"{stem}.safetensors"
    (folder / part / "cut.safetensors").write_bytes(weights.read_bytes()[:100])
    if not beside:
        weights.rename(weights.with_name(f"{stem}-00001-of-00001.safetensors"))
    index = {"weight_map": {"a": f"{stem}-00001-of-00001.safetensors" if not beside else weights.name, "b": named}}
    (folder / part / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=says) as error:
        check_folder(folder, "base", None)
    said(error)
    index["weight_map"].pop("b")
    (folder / part / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    assert check_folder(folder, "base", None)[part] is None


# Single files


@pytest.mark.parametrize(("width", "version"), [(768, 1), (1024, 2)])
def test_the_version_is_read_from_the_shapes(width, version, tmp_path):
    file = save_shapes(SD15 | {CROSS: [320, width]}, tmp_path / "sd.safetensors")
    assert check_file(file, known_layout=False).version == version
    assert check_file(file, known_layout=True).version is None


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({"weight": [4, 4]}, "none of its tensors has a name from one"),
        ({"model.embed_tokens.weight": [8, 8], "lm_head.weight": [8, 8]}, "not a Stable Diffusion 1.x or 2.x"),
        ({"lora_unet_down_blocks_0.lora_down.weight": [4, 8], "lora_te_x.alpha": []}, "but a LoRA"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": [128], "img_in.weight": [3072, 64]}, "looks like 'flux"),
        (
            {LATENTS: [320, 4, 3, 3], "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": [1280]},
            "looks like 'xl_base'",
        ),
        ({key: shape for key, shape in SD15.items() if not key.startswith("first_stage")}, "has no autoencoder"),
        ({key: shape for key, shape in SD15.items() if not key.startswith("cond_stage")}, "has no text encoder"),
        ({key: shape for key, shape in SD15.items() if not key.startswith("model.")}, "not a Stable Diffusion"),
        (SD15 | {LATENTS: [320, 9, 3, 3]}, "takes 9 channels .* inpainting"),
        (SD15 | {CROSS: [320, 2048]}, "say with --layout"),
        ({LATENTS: [], TOKENS: [1], "first_stage_model.decoder.conv_in.weight": [1]}, "takes 0 channels"),
        ({}, "not a Stable Diffusion"),
    ],
)
def test_files_that_are_no_base(shapes, says, tmp_path):
    file = save_shapes(shapes, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=says) as error:
        check_file(file, known_layout=False)
    said(error)


def test_what_a_file_says_it_predicts(tmp_path):
    tensors = {name: torch.zeros(1, 4) for name in (LATENTS, TOKENS, "first_stage_model.decoder.conv_in.weight")}
    for metadata, expected in (("v", "v_prediction"), ("epsilon", "epsilon"), ("x", None)):
        save_file(tensors, tmp_path / "sd.safetensors", metadata={"modelspec.prediction_type": metadata})
        assert check_file(tmp_path / "sd.safetensors", known_layout=True).prediction_type == expected


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_cut_files(keep, tmp_path):
    tensors = {name: torch.zeros(64, 4) for name in (LATENTS, TOKENS, "first_stage_model.decoder.conv_in.weight")}
    file = tmp_path / "sd.safetensors"
    save_file(tensors, file)
    assert load_file(file).keys() == tensors.keys()
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="is cut, damaged or no safetensors file") as error:
        check_file(file, known_layout=True)
    said(error)
