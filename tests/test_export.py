"""Every export is loaded by diffusers alone, or by the reader below, which shares nothing with what wrote it."""

from __future__ import annotations

import base64
import functools
import json
import re
import struct
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bases import save_folder
from conftest import build_backbone, build_model
from e4t.checkpoint import TrainedDomain
from e4t.config import OffsetsConfig
from e4t.domain import Domain
from e4t.errors import CheckpointError, ConfigError, MismatchError, UnfaithfulError
from e4t.export import FORMATS, LORA_ERROR, LORA_KEEPS, PROBE_STEPS, LoraRow, export, labels, lora_table, places, source
from e4t.export.differences import diff_tensors, kohya_lora
from e4t.export.merged import Merged
from e4t.export.original_keys import autoencoder_keys, text_keys, unet_keys
from e4t.export.probe import Probe
from e4t.export.source import is_sd1
from e4t.export.whole import original_tensors
from e4t.models.offsets import WeightOffsets
from e4t.pipeline import E4TPipeline

# diffusers' schedulers turn tensors into arrays in a way NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

DATA = Path(__file__).parent / "data"
PROMPT = "a photo of S* at the beach"
STEPS = 4
EXACT = 1  # levels of 255, at the worst pixel: rounding to whole levels may go either way
HALF = 3  # the same, where weights are stored in float16


# Readers


def header(path):
    """Entries and metadata of a safetensors file, read by hand."""
    raw = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    entries = json.loads(raw[8 : 8 + length])
    return entries, entries.pop("__metadata__")


def numbers(path):
    """Arrays by key, float32, read by hand."""
    raw = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    kinds = {"F32": np.float32, "F16": np.float16}
    arrays = {}
    for key, entry in header(path)[0].items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        values = np.frombuffer(raw[begin:end], dtype=kinds[entry["dtype"]])
        arrays[key] = torch.from_numpy(values.astype(np.float32).reshape(entry["shape"]))
    return arrays


def load_folder(folder):
    from diffusers import StableDiffusionPipeline

    stock = StableDiffusionPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    return stock


def load_lora(base, location, embedding):
    from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE

    folder, name = (location, LORA_WEIGHT_NAME_SAFE) if location.is_dir() else (location.parent, location.name)
    stock = load_folder(base)
    stock.load_lora_weights(folder, weight_name=name)  # by name, because diffusers 0.39 asks for it offline
    stock.load_textual_inversion(embedding)
    return stock


def load_single_file(base, path, embedding):
    from diffusers import StableDiffusionPipeline

    stock = StableDiffusionPipeline.from_single_file(str(path), config=str(base), torch_dtype=torch.float32)
    stock.set_progress_bar_config(disable=True)
    stock.load_textual_inversion(embedding)
    return stock


KINDS = {"diff": "weight", "diff_b": "bias", "w_norm": "weight", "b_norm": "bias"}


def load_diff(base, path, embedding, last_norm="lora_unet_conv_norm_out"):
    """As web UIs do it: find every layer by its path with underscores, and add.

    AUTOMATIC1111 wants "diff" with or without "diff_b", or "w_norm" and "b_norm", and knows the last norm by another
    name, as ``last_norm`` says.
    """
    stock = load_folder(base)
    layers = {"lora_unet_" + path.replace(".", "_"): layer for path, layer in stock.unet.named_modules()}
    layers[last_norm] = layers.pop("lora_unet_conv_norm_out")
    for name, layer in stock.text_encoder.named_modules():
        layers["lora_te_text_model_" + name.removeprefix("text_model.").replace(".", "_")] = layer
    of_layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in numbers(path).items():
        name, kind = key.split(".")
        of_layers.setdefault(name, {})[kind] = value
    for name, values in of_layers.items():
        assert set(values) in ({"diff"}, {"diff", "diff_b"}, {"w_norm", "b_norm"})
        if layer := layers.get(name):
            for kind, value in values.items():
                getattr(layer, KINDS[kind]).data += value
    assert of_layers.keys() - layers.keys() <= {"lora_unet_conv_norm_out", "diffusion_model_out_0"}
    stock.load_textual_inversion(embedding)
    return stock


def draw(stock, prompt=PROMPT, **options):
    options = {"guidance_scale": 7.5, **options}
    generator = torch.Generator().manual_seed(0)
    return np.asarray(stock(prompt, num_inference_steps=STEPS, generator=generator, **options).images[0], dtype=float)


def apart(one, other):
    return np.abs(one - other).max()


# Concepts


@pytest.fixture(scope="module")
def pipe():
    model = build_model(build_backbone())
    trained = TrainedDomain(
        model.domain,
        model.base,
        model.encoder.config,
        model.offsets.config,
        2.0,
        model.domain_tensors(),
        generate={"num_inference_steps": STEPS},
    )
    return E4TPipeline(model.backbone, trained)


@pytest.fixture(scope="module")
def base(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save_folder(pipe.backbone, folder)
    return folder


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 16, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def concept(pipe, image):
    """Full-rank changes: a domain's offsets and a dense delta of its own."""
    return pipe.personalize(image, steps=2, batch_size=2, learning_rate=1e-2, frozen_timesteps=2)


@pytest.fixture(scope="module")
def bare():
    return E4TPipeline(build_backbone(), domain=Domain.named("face"))


@pytest.fixture(scope="module")
def low_rank(bare, image):
    """Changes of rank 2, and nothing of a domain: a LoRA holds them truly."""
    return bare.personalize(
        image,
        steps=3,
        batch_size=2,
        tune=("residual", "deltas"),
        delta_rank=2,
        learning_rate=0.1,
        residual_learning_rate=1.0,
    )


@pytest.fixture(scope="module")
def word_only(bare, image):
    return bare.personalize(image, steps=2, batch_size=1, tune=("residual",), residual_learning_rate=1.0)


@pytest.fixture(scope="module")
def whole(pipe, image):
    """All that can be tuned: biases, norms, convolutions, embeddings."""
    tune = ("residual", "deltas", "unet", "text_encoder")
    return pipe.personalize(image, steps=2, batch_size=1, tune=tune, learning_rate=1e-2, frozen_timesteps=2)


@pytest.fixture(scope="module")
def whole_unet(pipe, image):
    """What the shipped domains tune: biases, norms and convolutions too."""
    tune = ("residual", "deltas", "unet")
    return pipe.personalize(image, steps=2, batch_size=1, tune=tune, learning_rate=1e-2, frozen_timesteps=2)


@pytest.fixture(scope="module", autouse=True)
def probed_once():
    """All exports of a concept are measured at the same drawing."""
    real, known = Probe.of, {}

    @functools.wraps(real)
    def of(pipe, concept):
        key = id(pipe), id(concept)
        if key not in known:
            known[key] = real(pipe, concept), pipe, concept  # which are kept, so that nothing else gets their ids
        return known[key][0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Probe, "of", of)
        yield


def with_tensors(concept, **tensors):
    """The concept with more tuned parameters: ``unet__a__b`` stands for ``unet/a.b``."""
    more = {name.replace("__", "/", 1).replace("__", "."): tensor for name, tensor in tensors.items()}
    return replace(concept, tensors={**concept.tensors, **more})


def native(pipe, concept, **options):
    options = {"guidance_scale": 7.5, **options}
    drawn = pipe(PROMPT, concept=concept, embedding="frozen", num_inference_steps=STEPS, **options)
    return np.asarray(drawn.images[0], dtype=float)


def check_picture(stock, pipe, concept, base, bound, **options):
    """The native picture within the bound, and the bare base ten times as far off."""
    expected = native(pipe, concept, **options)
    assert apart(draw(stock, **options), expected) <= bound
    assert apart(class_word(base, **options), expected) > 10 * max(bound, EXACT)


@functools.cache
def class_word(base, **options):
    return draw(load_folder(base), PROMPT.replace("S*", "face"), **options)


# Textual inversion


def test_textual_inversion_is_one_frozen_word(pipe, concept, tmp_path):
    report = export(pipe, concept, tmp_path / "anna.safetensors", to="textual-inversion")
    entries, metadata = header(report.path)
    assert {key: (entry["dtype"], entry["shape"]) for key, entry in entries.items()} == {"S*": ("F32", [1, 32])}
    word = pipe.model.class_embedding + pipe.model.embedding_scale * concept.tensors["frozen_offset"]
    torch.testing.assert_close(numbers(report.path)["S*"][0], word)
    assert metadata["e4t.embedding"].startswith("frozen")
    assert float(metadata["e4t.live_cosine"]) == pytest.approx(report.similarity.cosine, abs=1e-4)
    assert float(metadata["e4t.live_distance"]) == pytest.approx(report.similarity.distance, abs=1e-4)
    assert metadata["e4t.base_fingerprint"] == pipe.model.base.fingerprint
    assert report.bytes == report.path.stat().st_size
    assert report.kept < 0.9
    assert "changed weights are not in the file" in report.notes[0]
    assert metadata["e4t.notes"] == report.notes[0]


def test_a_word_in_a_file_goes_by_the_files_name_in_web_uis(bare, word_only, tmp_path):
    report = export(bare, word_only, tmp_path / "anna.safetensors", to="textual-inversion")
    metadata = header(report.path)[1]
    assert (metadata["modelspec.trigger_phrase"], metadata["e4t.token"]) == ("anna", "S*")
    assert "the same at every denoising step" in metadata["e4t.embedding"]
    assert (metadata["e4t.live_cosine"], metadata["e4t.live_distance"]) == ("1.0000", "0.0000")
    assert any("in prompts the word is 'S*' in diffusers, 'anna' in web UIs" in note for note in report.notes)
    report = export(bare, word_only, tmp_path / "anna", to="textual-inversion")  # a name that says nothing
    assert header(report.path)[1]["modelspec.trigger_phrase"] == "S*"
    assert not any("in prompts" in note for note in report.notes)


def test_similarity_is_that_of_the_words_of_a_live_drawing(pipe, concept, bare, word_only, tmp_path):
    report = export(pipe, concept, tmp_path / "anna.safetensors", to="textual-inversion")
    with pipe.applied(concept, "a photo of S*") as applied:
        applied.stock(
            prompt_embeds=applied.prompt_embeds,
            negative_prompt_embeds=applied.negative_prompt_embeds,
            num_inference_steps=PROBE_STEPS,
            guidance_scale=7.5,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        )
    frozen = pipe.model.word(concept.tensors["frozen_offset"])
    gaps = [float((word[0] - frozen).norm() / frozen.norm()) for word in applied.words]
    assert len(gaps) == PROBE_STEPS
    assert report.similarity.distance == pytest.approx(np.mean(gaps), rel=1e-4)
    assert 0 < report.similarity.cosine < 0.9999
    still = export(bare, word_only, tmp_path / "still.safetensors", to="textual-inversion")
    assert still.similarity.cosine == pytest.approx(1)
    assert still.similarity.distance == pytest.approx(0, abs=1e-5)  # its encoder sees nothing: the word never moves
    sample, image_half = torch.randn(1, 4, 8, 8), word_only.tensors["image_half"]
    with torch.no_grad(), bare.model.wearing(word_only):
        word = bare.model.word(bare.model.offset(sample, torch.tensor([700]), image_half[None]))
    torch.testing.assert_close(numbers(still.path)["S*"], word)


@pytest.mark.parametrize("token", [None, "<anna>"])
def test_textual_inversion_draws_a_concept_that_is_only_a_word(bare, word_only, base, tmp_path, token):
    report = export(bare, word_only, tmp_path / "anna", to="textual-inversion", token=token)
    assert report.path == tmp_path / "anna" / "learned_embeds.safetensors"
    assert report.kept == pytest.approx(1)
    assert report.notes == ()
    stock = load_folder(base)
    stock.load_textual_inversion(tmp_path / "anna")
    expected = native(bare, word_only)
    assert apart(draw(stock, PROMPT.replace("S*", token or "S*")), expected) <= EXACT
    assert apart(class_word(base), expected) > 10 * EXACT


# Whole models


def test_pipeline_draws_the_concept(pipe, concept, base, tmp_path):
    report = export(pipe, concept, tmp_path / "anna", to="pipeline")
    written = {file.suffix for file in report.path.rglob("*") if file.is_file()}
    assert written <= {".safetensors", ".json", ".txt"}  # no pickle
    stock = load_folder(report.path)
    check_picture(stock, pipe, concept, base, EXACT)
    assert report.kept is None
    assert report.bytes == sum(file.stat().st_size for file in report.path.rglob("*") if file.is_file())
    original = load_folder(base)
    assert dict(stock.scheduler.config) == dict(original.scheduler.config)
    assert all(torch.equal(a, b) for a, b in zip(stock.vae.parameters(), original.vae.parameters(), strict=True))
    assert len(stock.tokenizer) == len(original.tokenizer) + 1
    assert stock.safety_checker is None


def test_pipeline_finds_the_token_exactly_where_the_native_one_does(pipe, concept, tmp_path):
    stock = load_folder(export(pipe, concept, tmp_path / "anna", to="pipeline").path)
    for prompt in ("S*", "a photo of S*, the beach", "S*'s cat", "XS*Y", "cats* at s* and S* S*"):
        tokens = pipe.model.tokens([prompt])
        expected = torch.where(tokens.placeholder, len(pipe.backbone.tokenizer), tokens.ids)
        ids = stock.tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids
        assert torch.equal(ids, expected)
        with torch.no_grad(), pipe.model.wearing(concept):
            embeds = pipe.model.prompt_embeds(tokens, pipe.model.word(concept.tensors["frozen_offset"]))
            torch.testing.assert_close(stock.text_encoder(ids)[0], embeds)


def test_pipeline_and_single_file_carry_everything_that_can_be_tuned(pipe, whole, base, tmp_path):
    """Without guidance, because the tuned text encoder also reads the negative prompt: a note says so."""
    folder = export(pipe, whole, tmp_path / "anna", to="pipeline")
    file = export(pipe, whole, tmp_path / "anna.safetensors", to="single-file", dtype="float32")
    for report in (folder, file):
        assert any("negative prompt" in note for note in report.notes)
    check_picture(load_folder(folder.path), pipe, whole, base, EXACT, guidance_scale=1.0)
    check_picture(load_single_file(base, file.path, file.embedding), pipe, whole, base, EXACT, guidance_scale=1.0)


def test_pipeline_keeps_the_safety_checker(pipe, concept, tmp_path):
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(text_config=small, vision_config={**small, "image_size": 8, "patch_size": 8}, projection_dim=8)
    safety = {
        "safety_checker": StableDiffusionSafetyChecker(config),
        "feature_extractor": CLIPImageProcessor(size=8, crop_size=8),
    }
    checked = E4TPipeline(pipe.backbone, pipe.trained, safety=safety)
    stock = load_folder(export(checked, concept, tmp_path / "anna", to="pipeline").path)
    assert isinstance(stock.safety_checker, StableDiffusionSafetyChecker)
    assert stock.config.requires_safety_checker
    report = export(checked, concept, tmp_path / "anna.safetensors", to="single-file")
    assert any("safety checker is not in the file" in note for note in report.notes)


@pytest.mark.parametrize(("dtype", "bound"), [(None, HALF), ("float32", EXACT)])
def test_single_file_draws_the_concept(pipe, concept, base, tmp_path, dtype, bound):
    report = export(pipe, concept, tmp_path / "anna.safetensors", to="single-file", dtype=dtype)
    kinds = {entry["dtype"] for entry in header(report.path)[0].values()}
    assert kinds == {"F32" if dtype else "F16"}
    assert report.embedding == tmp_path / "anna.S.safetensors"
    assert report.kept > 0.999
    check_picture(load_single_file(base, report.path, report.embedding), pipe, concept, base, bound)


def test_single_file_has_the_names_and_shapes_of_stable_diffusion_1_5():
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, attention_head_dim=8, cross_attention_dim=768
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                max_position_embeddings=77,
                vocab_size=49408,
            )
        )
    stock = E4TPipeline.__new__(E4TPipeline)
    stock.backbone = replace(build_backbone(), unet=unet, vae=vae, text_encoder=text)
    merged = Merged(torch.zeros(768), {"unet": {}, "text_encoder": {}})
    found = {key: list(tensor.shape) for key, tensor in original_tensors(stock, merged)}
    assert found == json.loads((DATA / "sd15-single-file.json").read_text())


def test_parameters_without_a_place_are_refused():
    for names in (["class_embedding.weight"], ["down_blocks.0.resnets.0.norm3.weight"], ["down_blocks.0.motion.0.a"]):
        with pytest.raises(ConfigError, match=names[0]):
            unet_keys(names, layers=2)
    for name in ("encoder.mid_block.attentions.0.to_add.weight", "decoder.temporal.weight"):
        with pytest.raises(ConfigError, match=name):
            autoencoder_keys([name], resolutions=4)
    expected = "cond_stage_model.transformer.text_model.final_layer_norm.bias"  # by any release of transformers
    assert set(text_keys(["final_layer_norm.bias", "text_model.final_layer_norm.bias"]).values()) == {expected}


# Differences


def golden_changes():
    """A change of every attention matrix of Stable Diffusion 1.5 and every linear layer of its text encoder."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, attention_head_dim=8, cross_attention_dim=768
        )
        text = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        )
    everywhere = OffsetsConfig(projections=("to_q", "to_k", "to_v", "to_out"))
    touched = {id(linear.weight) for linear, _ in WeightOffsets(unet, everywhere).items()}
    linears = {f"{name}.weight" for name, layer in text.named_modules() if isinstance(layer, torch.nn.Linear)}
    return {
        "unet": {name: tensor for name, tensor in unet.named_parameters() if id(tensor) in touched},
        "text_encoder": {name: tensor for name, tensor in text.named_parameters() if name in linears},
    }


def test_diff_and_kohya_have_the_names_and_shapes_of_stable_diffusion_1_5():
    golden = json.loads((DATA / "sd15-kohya.json").read_text())
    changes = golden_changes()
    found = {key: list(tensor.shape) for key, tensor in diff_tensors(changes).items()}
    assert found == {f"{name}.diff": shape for name, shape in golden.items()}

    factors = {
        (part, name): (torch.zeros(5, change.shape[1]), torch.zeros(change.shape[0], 5))
        for part, tensors in changes.items()
        for name, change in tensors.items()
    }
    found = {key: list(tensor.shape) for key, tensor in kohya_lora(factors, 5).items()}
    expected = {}
    for name, (rows, columns) in golden.items():
        expected |= {f"{name}.lora_down.weight": [5, columns], f"{name}.lora_up.weight": [rows, 5], f"{name}.alpha": []}
    assert found == expected


@pytest.mark.parametrize(("dtype", "bound"), [(None, HALF), ("float32", EXACT)])
def test_diff_draws_the_concept(pipe, concept, base, tmp_path, dtype, bound):
    report = export(pipe, concept, tmp_path / "anna.safetensors", to="diff", dtype=dtype)
    entries, metadata = header(report.path)
    assert {entry["dtype"] for entry in entries.values()} == {"F32" if dtype else "F16"}
    assert len(entries) == len(list(pipe.model.offsets.items()))
    assert metadata["ss_output_name"] == "anna"
    assert report.kept > 0.999
    check_picture(load_diff(base, report.path, report.embedding), pipe, concept, base, bound)


def test_diff_carries_convolutions_and_lora_refuses_them(bare, low_rank, base, tmp_path):
    more = with_tensors(low_rank, unet__conv_in__weight=0.1 * torch.randn(32, 4, 3, 3))
    report = export(bare, more, tmp_path / "anna.safetensors", to="diff", dtype="float32")
    assert header(report.path)[0]["lora_unet_conv_in.diff"]["shape"] == [32, 4, 3, 3]
    check_picture(load_diff(base, report.path, report.embedding), bare, more, base, EXACT)
    for to in ("lora-kohya", "lora-diffusers"):
        with pytest.raises(
            ConfigError, match=r"linear layers only, .* 1 other parameters, such as unet.conv_in.weight; .*'low-rank'"
        ):
            export(bare, more, tmp_path / "lora.safetensors", to=to, rank=4)
    with pytest.raises(ConfigError, match="conv_in"):
        lora_table(bare, more)


def test_what_the_refusal_of_a_lora_advises_can_be_done(pipe, whole_unet, quick_personalize, picture, tmp_path):
    with pytest.raises(ConfigError, match="--keep") as refused:
        export(pipe, whole_unet, tmp_path / "lora.safetensors", to="lora-kohya", rank=4)
    advice = re.search(r"keep='(.+?)'", str(refused.value))
    advised = pipe.personalize(picture, config=quick_personalize, keep=advice[1])
    assert export(pipe, advised, tmp_path / "lora.safetensors", to="lora-kohya", rank=4).path.is_file()


@pytest.mark.parametrize("last_norm", ["lora_unet_conv_norm_out", "diffusion_model_out_0"])
def test_diff_carries_the_whole_unet(pipe, whole_unet, base, tmp_path, last_norm):
    report = export(pipe, whole_unet, tmp_path / "anna.safetensors", to="diff", dtype="float32")
    check_picture(load_diff(base, report.path, report.embedding, last_norm), pipe, whole_unet, base, EXACT)


def test_a_norm_of_which_one_half_is_tuned_is_written_whole(bare, low_rank, base, tmp_path):
    more = with_tensors(low_rank, unet__conv_norm_out__bias=torch.full((32,), 0.5))
    report = export(bare, more, tmp_path / "anna.safetensors", to="diff", dtype="float32")
    assert not numbers(report.path)["lora_unet_conv_norm_out.w_norm"].any()
    check_picture(load_diff(base, report.path, report.embedding), bare, more, base, EXACT)


def test_what_only_some_readers_apply_is_refused(pipe, whole, bare, low_rank, tmp_path):
    biased = with_tensors(low_rank, unet__conv_in__bias=torch.ones(32))
    with pytest.raises(ConfigError, match=r"convolutions and the U-Net's norms only, .* such as unet.conv_in.bias"):
        export(bare, biased, tmp_path / "anna.safetensors", to="diff")
    for to in ("diff", "lora-kohya", "lora-diffusers"):
        with pytest.raises(ConfigError, match="'pipeline' or 'single-file'"):
            export(pipe, whole, tmp_path / "anna.safetensors", to=to)
    assert list(tmp_path.iterdir()) == []


# LoRA


@pytest.mark.parametrize("to", ["lora-diffusers", "lora-kohya"])
def test_lora_of_a_low_rank_concept_draws_it(bare, low_rank, base, tmp_path, to):
    report = export(bare, low_rank, tmp_path / "anna.safetensors", to=to)
    assert report.rank == 8
    assert report.kept > 0.99
    check_picture(load_lora(base, report.path, report.embedding), bare, low_rank, base, HALF)


def test_lora_folder_has_the_names_diffusers_looks_for(bare, low_rank, base, tmp_path):
    report = export(bare, low_rank, tmp_path / "anna", to="lora-diffusers")
    assert sorted(file.name for file in (tmp_path / "anna").iterdir()) == [
        "learned_embeds.safetensors",
        "pytorch_lora_weights.safetensors",
    ]
    assert all(key.startswith("unet.") and ".lora." in key for key in header(report.path)[0])
    check_picture(load_lora(base, tmp_path / "anna", tmp_path / "anna"), bare, low_rank, base, HALF)


@pytest.mark.parametrize("to", ["lora-diffusers", "lora-kohya"])
def test_ranks_may_differ_between_matrices(bare, low_rank, base, tmp_path, to):
    """The narrow matrices have a quarter of their side. A wrong alpha anywhere would scale a matrix."""
    if to == "lora-kohya" and version("diffusers") < "0.41":
        pytest.skip("this diffusers cannot read kohya's names of transformers 5's text encoders")
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(32, 2, generator=generator) for _ in range(2))
    tuned = with_tensors(
        low_rank,
        text_encoder__encoder__layers__0__self_attn__q_proj__weight=0.3 * left @ right.T,
        text_encoder__encoder__layers__1__mlp__fc1__weight=0.3 * torch.cat([left, left]) @ right.T,
    )
    report = export(bare, tuned, tmp_path / "anna.safetensors", to=to, rank=16)
    downs = {entry["shape"][0] for key, entry in header(report.path)[0].items() if "down.weight" in key}
    assert downs == {8, 16}
    stock = load_lora(base, report.path, report.embedding)
    check_picture(stock, bare, tuned, base, HALF, guidance_scale=1.0)
    keys = set(header(report.path)[0])
    assert len([key for key in keys if "text_model" in key]) == (4 if to == "lora-diffusers" else 6)
    if to == "lora-diffusers":
        assert "text_encoder.text_model.encoder.layers.1.mlp.fc1.lora_linear_layer.up.weight" in keys
        assert "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora.down.weight" in keys
    alphas = {float(value) for key, value in numbers(report.path).items() if key.endswith(".alpha")}
    assert alphas == ({16.0} if to == "lora-kohya" else set())  # diffusers drops alphas that differ


def test_lora_that_would_lose_too_much_is_refused_unless_asked_for(pipe, concept, base, tmp_path):
    table = lora_table(pipe, concept)
    assert [row.rank for row in table] == [8, 16]  # a quarter of 64: more is never given
    assert table[0].energy < table[1].energy < 1
    assert table[0].megabytes < table[1].megabytes
    best = min(table, key=lambda row: row.error)
    assert best.error > LORA_ERROR
    with pytest.raises(UnfaithfulError, match=rf"off by {best.error:.1%}; .* use 'diff' or 'pipeline'") as refusal:
        export(pipe, concept, tmp_path / "anna.safetensors", to="lora-kohya")
    assert refusal.value.table == table
    assert list(tmp_path.iterdir()) == []

    report = export(pipe, concept, tmp_path / "anna.safetensors", to="lora-kohya", rank=8)
    assert report.table == (table[0],)
    assert any(f"rank 8 keeps {table[0].identity:.0%}" in note for note in report.notes)
    stock = load_lora(base, report.path, report.embedding)
    expected = native(pipe, concept)
    off = np.abs(draw(stock) - expected).mean()
    assert 0 < off < np.abs(draw(load_folder(base), "a photo of face at the beach") - expected).mean() / 2


def test_identity_is_of_the_picture_that_is_drawn(pipe, bare, low_rank, concept):
    """A LoRA that holds everything draws the merged weights' picture; one that holds little draws something else."""
    assert lora_table(bare, low_rank, ranks=(8,), dtype="float32")[0].identity == pytest.approx(1, abs=0.01)
    rows = lora_table(pipe, concept, ranks=(1, 16))
    assert rows[0].identity < rows[1].identity < 1
    assert not rows[0].faithful


def test_faithful_is_of_picture_and_prediction():
    row = LoraRow(rank=8, energy=1.0, error=LORA_ERROR, kept=0.99, identity=LORA_KEEPS, megabytes=1.0)
    assert row.faithful
    assert not replace(row, identity=0.9).faithful
    assert not replace(row, error=0.03).faithful


def test_table_is_true_to_the_file(bare, low_rank, tmp_path):
    """Energy and error from the file's own numbers, against the changes the model really has."""
    capped = export(bare, low_rank, tmp_path / "anna.safetensors", to="lora-kohya", rank=99)
    assert capped.rank == 16
    assert any("rank 99 is more than a quarter" in note for note in capped.notes)
    report = export(bare, low_rank, tmp_path / "anna.safetensors", to="lora-kohya", rank=1, dtype="float32")
    row = report.table[0]
    arrays = numbers(report.path)
    lost = whole = 0.0
    unet = bare.backbone.unet
    before = {path.replace(".", "_"): layer.weight for path, layer in unet.named_modules() if hasattr(layer, "weight")}
    with bare.model.wearing(low_rank):
        after = {
            path.replace(".", "_"): layer.weight for path, layer in unet.named_modules() if hasattr(layer, "weight")
        }
    for key, down in arrays.items():
        if key.endswith(".lora_down.weight"):
            name = key.removesuffix(".lora_down.weight")
            change = after[name.removeprefix("lora_unet_")] - before[name.removeprefix("lora_unet_")]
            lost += float((change - arrays[f"{name}.lora_up.weight"] @ down).square().sum())
            whole += float(change.square().sum())
    assert row.energy == pytest.approx(1 - lost / whole, abs=1e-5)
    assert 0.3 < row.energy < 0.999
    size = sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header(report.path)[0].values())
    assert row.megabytes == pytest.approx(size / 1e6, rel=0.05)
    assert row.kept < 1
    assert row.error > 0


# Metadata


def test_the_preview_goes_along(bare, low_rank, picture, tmp_path):
    shown = low_rank.with_preview(picture)
    _, metadata = header(export(bare, shown, tmp_path / "anna.safetensors", to="diff").path)
    assert base64.b64decode(metadata["modelspec.thumbnail"].removeprefix("data:image/jpeg;base64,")) == shown.preview


def test_metadata_that_web_uis_read(bare, low_rank, tmp_path):
    report = export(bare, low_rank, tmp_path / "anna.safetensors", to="lora-kohya", rank=2)
    _, metadata = header(report.path)
    expected = {
        "format": "pt",
        "e4t.export": "lora-kohya",
        "e4t.token": "S*",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "2",
        "ss_output_name": "anna",
        "ss_resolution": "(16, 16)",
        "ss_tag_frequency": '{"face": {"anna.S": 1}}',
        "modelspec.trigger_phrase": "anna.S",  # web UIs name an embedding after its file
        "modelspec.prediction_type": "epsilon",
        "modelspec.resolution": "16x16",
        "modelspec.title": "anna",
    }
    assert {key: metadata[key] for key in expected} == expected
    assert not {"modelspec.architecture", "ss_base_model_version"} & set(metadata)  # it is no Stable Diffusion 1.x
    assert any("shape of Stable Diffusion 1.x" in note for note in report.notes)
    assert any("'S*' in diffusers, 'anna.S' in web UIs" in note for note in report.notes)

    import hashlib

    raw = report.path.read_bytes()
    data = raw[8 + struct.unpack("<Q", raw[:8])[0] :]
    assert metadata["sshs_model_hash"] == hashlib.sha256(data).hexdigest()


def test_stable_diffusion_1_bases_are_named_as_such(bare, low_rank, tmp_path, monkeypatch):
    for module in (source, labels):
        monkeypatch.setattr(module, "is_sd1", lambda config: True)
    report = export(bare, low_rank, tmp_path / "anna.safetensors", to="lora-kohya", rank=2)
    metadata = header(report.path)[1]
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert header(report.embedding)[1]["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert len(report.notes) == 1


def test_shape_of_stable_diffusion_1():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        real = UNet2DConditionModel(block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768)
    assert is_sd1(real.config)
    assert not is_sd1(build_backbone().unet.config)


def test_paths_of_this_machine_are_not_given_away(bare, low_rank, tmp_path):
    private = replace(low_rank, base=replace(low_rank.base, name=str(tmp_path / "secret" / "model")))
    report = export(bare, private, tmp_path / "anna.safetensors", to="diff")
    assert header(report.path)[1]["ss_sd_model_name"] == header(report.path)[1]["e4t.base"] == "model"
    hub = replace(low_rank, base=replace(low_rank.base, name="owner/model"))
    report = export(bare, hub, tmp_path / "anna.safetensors", to="diff")
    assert header(report.path)[1]["e4t.base"] == "owner/model"


def test_how_a_domain_draws_is_noted_where_no_export_carries_it(pipe, concept, tmp_path):
    report = export(pipe, concept, tmp_path / "anna.safetensors", to="textual-inversion")
    assert not any("natively" in note for note in report.notes)
    settings = {"strength": 0.8, "weights": 0.5, "delay": 0.25, "scheduler": "DDIMScheduler"}
    usual = E4TPipeline(pipe.backbone, replace(pipe.trained, generate=settings))
    notes = export(usual, concept, tmp_path / "anna.safetensors", to="textual-inversion").notes
    for name in ("strength=0.8", "weights=0.5", "delay=0.25"):
        assert f"natively this is drawn with {name}, which no export carries" in notes
    assert "natively this is drawn with scheduler=DDIMScheduler; whoever draws must set it by hand" in notes


def test_velocity_and_rescaled_guidance_are_noted(pipe, image, base, tmp_path):
    settings = {"guidance_rescale": 0.7, "unconditional": "base"}
    rescaled = E4TPipeline(pipe.backbone, replace(pipe.trained, generate=settings))
    concept = rescaled.personalize(image, steps=1, batch_size=1, learning_rate=1e-2)
    report = export(rescaled, concept, tmp_path / "anna", to="pipeline")
    assert any("guidance_rescale=0.7" in note for note in report.notes)
    assert any("starts from the untuned base" in note for note in report.notes)
    plain = E4TPipeline(pipe.backbone, replace(pipe.trained, generate={"guidance_rescale": 0.7}))
    check_picture(load_folder(report.path), plain, concept, base, EXACT, guidance_rescale=0.7)

    pipe = E4TPipeline(build_backbone("v_prediction"), domain=Domain.named("face"))
    concept = pipe.personalize(image, steps=1, batch_size=1, learning_rate=1e-2)
    report = export(pipe, concept, tmp_path / "anna.safetensors", to="diff")
    assert header(report.path)[1]["modelspec.prediction_type"] == "v"
    assert any("velocity" in note for note in report.notes)


# What is refused, and what is left behind


def test_nothing_to_carry_is_an_error(bare, word_only, image, tmp_path):
    for to in ("single-file", "diff", "lora-diffusers", "lora-kohya"):
        with pytest.raises(ConfigError, match=f"'{to}' would be empty: .* use 'textual-inversion'"):
            export(bare, word_only, tmp_path / "anna.safetensors", to=to)
    with pytest.raises(ConfigError, match="no weights"):
        lora_table(bare, word_only)
    nobody = bare.personalize(image, steps=0)
    for to, name in (("textual-inversion", "anna.safetensors"), ("pipeline", "anna")):
        with pytest.raises(ConfigError, match=f"'{to}' would be empty"):
            export(bare, nobody, tmp_path / name, to=to)
    assert list(tmp_path.iterdir()) == []


def test_a_pipeline_of_a_word_alone_is_not_empty(bare, word_only, base, tmp_path):
    report = export(bare, word_only, tmp_path / "anna", to="pipeline", token="<anna>")
    expected = native(bare, word_only)
    assert apart(draw(load_folder(report.path), PROMPT.replace("S*", "<anna>")), expected) <= EXACT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "onnx"}, "no export format 'onnx'; there are textual-inversion"),
        ({"to": "pipeline"}, "does not fit the format 'pipeline', which is a folder"),
        ({"to": "diff", "output": "anna"}, "which is a file, named so that it ends in .safetensors"),
        ({"to": "diff", "dtype": "bfloat16"}, "'float16' or 'float32'"),
        ({"to": "pipeline", "output": "anna", "dtype": "float16"}, "keeps the base's type, float32"),
        ({"to": "diff", "rank": 8}, "only LoRA formats have a rank"),
        ({"to": "lora-kohya", "rank": 0}, "at least 1"),
        ({"to": "diff", "token": "face"}, "does not know yet"),
        ({"to": "diff", "token": "an na"}, "one word"),
        ({"to": "diff", "token": " "}, "one word"),
    ],
)
def test_wrong_options(pipe, concept, tmp_path, options, message):
    options = {"output": "anna.safetensors", **options}
    with pytest.raises(ConfigError, match=message):
        export(pipe, concept, tmp_path / options.pop("output"), **options)
    assert list(tmp_path.iterdir()) == []
    for ranks, dtype in (((), "float16"), ((0, 8), "float16"), ((8,), "int8")):
        with pytest.raises(ConfigError, match=r"at least 1|'float16' or"):
            lora_table(pipe, concept, ranks=ranks, dtype=dtype)


def test_numbers_beyond_float16_are_refused(bare, low_rank, tmp_path):
    huge = with_tensors(low_rank, unet__conv_in__weight=torch.full((32, 4, 3, 3), 1e6))
    with pytest.raises(ConfigError, match=r"conv_in.weight has values that float16 cannot hold; use dtype 'float32'"):
        export(bare, huge, tmp_path / "anna.safetensors", to="diff")
    assert list(tmp_path.iterdir()) == []


def test_concept_of_another_domain_is_refused(bare, concept, tmp_path):
    with pytest.raises(MismatchError, match="made in the domain 'face'"):
        export(bare, concept, tmp_path / "anna", to="pipeline")


def test_only_former_exports_are_replaced(pipe, concept, tmp_path):
    file, folder = tmp_path / "anna.safetensors", tmp_path / "anna"
    for _ in range(2):
        export(pipe, concept, file, to="diff")
        export(pipe, concept, folder, to="pipeline")
    before = sorted(tmp_path.iterdir())
    assert [path.name for path in before] == ["anna", "anna.S.safetensors", "anna.safetensors"]

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    (tmp_path / "other.safetensors").write_bytes(b"not one of ours")
    for name, to in (("other", "pipeline"), ("other.safetensors", "diff")):
        with pytest.raises(CheckpointError, match="not a former export"):
            export(pipe, concept, tmp_path / name, to=to)
    (tmp_path / "mine.S.safetensors").write_bytes(b"not one of ours")
    with pytest.raises(CheckpointError, match=r"mine.S.safetensors' exists"):
        export(pipe, concept, tmp_path / "mine.safetensors", to="diff")
    assert not (tmp_path / "mine.safetensors").exists()


@pytest.mark.parametrize("name", ["anna.safetensors", "anna.S.safetensors"])
def test_an_empty_folder_is_no_place_of_a_file(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match="exists and is not a former export"):
        places.Places.of(tmp_path / "anna.safetensors", "diff", "S*")
    (tmp_path / "empty").mkdir()
    places.Places.of(tmp_path / "empty", "pipeline", "S*")


def test_what_lies_in_a_former_folder_stays(pipe, concept, tmp_path):
    folder = export(pipe, concept, tmp_path / "anna", to="pipeline").path
    (folder / "notes.txt").write_text("dear")
    (folder / "unet" / "stray.bin").write_bytes(b"not ours, but in a folder that is")
    export(pipe, concept, folder, to="pipeline", token="<anna>")
    assert (folder / "notes.txt").read_text() == "dear"
    assert not (folder / "unet" / "stray.bin").exists()


def test_a_folder_that_cannot_be_exchanged_is_refused_before_anything_is_drawn(pipe, concept, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(CheckpointError, match="is the folder this runs in"):
        export(pipe, concept, Path("."), to="pipeline")


def test_a_full_disk_under_safetensors_is_one_sentence(pipe, concept, tmp_path):
    """By the limit on the size of files; safetensors reports it as an error of its own."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        for to, name in (("pipeline", "anna"), ("diff", "anna.safetensors")):
            with pytest.raises(CheckpointError, match=r"cannot be written \(.*make room"):
                export(pipe, concept, tmp_path / name, to=to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_error(pipe, concept, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for to, name in (("diff", "anna.safetensors"), ("pipeline", "anna")):
        with pytest.raises(CheckpointError, match="cannot be written"):
            export(pipe, concept, tmp_path / "file" / name, to=to)


def test_a_broken_write_leaves_the_former_export(pipe, concept, tmp_path, monkeypatch):
    files = [export(pipe, concept, tmp_path / "anna.safetensors", to="diff")]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    real, calls = places.save_file, []

    def full_disk(tensors, path, metadata):
        calls.append(path)
        if len(calls) == 2:
            raise OSError("no space left on device")
        real(tensors, path, metadata=metadata)

    monkeypatch.setattr(places, "save_file", full_disk)
    with pytest.raises(CheckpointError, match="no space left"):
        export(pipe, concept, files[0].path, to="diff", dtype="float32")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_broken_write_leaves_the_former_folder(pipe, concept, tmp_path, monkeypatch):
    folder = export(pipe, concept, tmp_path / "anna", to="pipeline").path
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    real = Path.rename

    def refuse(self, target):
        if self.name.endswith(".new"):
            raise OSError("not permitted")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(CheckpointError, match="not permitted"):
        export(pipe, concept, folder, to="pipeline", token="<anna>")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("to", FORMATS)
def test_the_model_is_left_as_it_was(pipe, concept, tmp_path, to, monkeypatch):
    monkeypatch.setattr(Probe, "of", Probe.of.__wrapped__)
    backbone = pipe.backbone
    parameters = [id(p) for part in backbone.modules() for p in part.parameters()]
    values = [p.clone() for part in backbone.modules() for p in part.parameters()]
    words = len(backbone.tokenizer)
    name = "anna" if to == "pipeline" else "anna.safetensors"
    export(pipe, concept, tmp_path / name, to=to, rank=4 if to.startswith("lora") else None)
    assert [id(p) for part in backbone.modules() for p in part.parameters()] == parameters
    assert all(
        torch.equal(a, b)
        for a, b in zip(values, (p for part in backbone.modules() for p in part.parameters()), strict=True)
    )
    assert len(backbone.tokenizer) == words
    assert backbone.text_encoder.get_input_embeddings().num_embeddings == words
    assert pipe.model.offsets.state == "ejected"
    assert not backbone.unet._forward_pre_hooks
