"""The method on the very shapes of Stable Diffusion and CLIP as they are published: counted without a weight."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bases import OPEN_CLIP, as_open_clip
from e4t import loading
from e4t.backbone import Backbone
from e4t.config import EncoderConfig, OffsetsConfig
from e4t.export.original_keys import TEXT
from e4t.model import _build_encoder
from e4t.models.features import feature_widths, pooled_features
from e4t.models.offsets import PaperForm, WeightOffsets

SD15 = json.loads((Path(__file__).parent / "data" / "sd15-single-file.json").read_text())

PUBLISHED = {1: (859_520_964, 83_653_863, 123_060_480), 2: (865_910_724, 83_653_863, 340_387_840)}
"""Parameters of U-Net, autoencoder and text encoder, by version."""

WIDTHS = [320] * 4 + [640] * 3 + [1280] * 6
"""Of the pooled features: conv_in and two blocks and a downsampler of 320, …, two blocks of 1280, and the middle."""

VIT_H = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
VIT_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}


@functools.cache
def published(version: int) -> Backbone:
    """From the configs in the package, on torch's meta device."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = loading._BASES / f"stable-diffusion-{version}"
    with torch.device("meta"):
        return Backbone(
            unet=UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet")),
            vae=AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae")),
            text_encoder=CLIPTextModel(CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder")),
            tokenizer=loading._tokenizer(version, None),
            scheduler=DDIMScheduler.from_config(DDIMScheduler.load_config(folder, subfolder="scheduler")),
            image_encoder=image_encoder(VIT_H),
        )


def image_encoder(vision: dict[str, int]) -> torch.nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    with torch.device("meta"):
        return CLIPVisionModel(CLIPVisionConfig(image_size=224, patch_size=14, **vision))


@pytest.fixture(scope="module", params=[1, 2], ids=["1.5", "2.1"])
def version(request):
    return request.param


@pytest.fixture(scope="module")
def backbone(version):
    return published(version)


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_configs_in_the_package_are_the_published_ones(version, backbone):
    assert (size(backbone.unet), size(backbone.vae), size(backbone.text_encoder)) == PUBLISHED[version]
    assert backbone.resolution == {1: 512, 2: 768}[version]
    assert backbone.embedding_dim == {1: 768, 2: 1024}[version]


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_every_tensor_of_the_published_file_has_its_place(part):
    """By the converters that read it, from the names and shapes in the file of Stable Diffusion 1.5."""
    from diffusers.loaders import single_file_utils as utils

    backbone = published(1)
    file = {key: torch.empty(shape, device="meta") for key, shape in SD15.items()}
    if part == "text_encoder":
        found = {key.removeprefix("text_model."): t for key, t in utils.convert_ldm_clip_checkpoint(file).items()}
    else:
        convert = utils.convert_ldm_unet_checkpoint if part == "unet" else utils.convert_ldm_vae_checkpoint
        found = convert(file, config=dict(getattr(backbone, part).config))
    module = getattr(backbone, part)
    wanted = {key.removeprefix("text_model."): tensor.shape for key, tensor in module.state_dict().items()}
    assert {key: tensor.shape for key, tensor in found.items()} == wanted


def test_the_text_encoder_of_2_1_is_read_from_open_clip_s_names():
    from diffusers.loaders import single_file_utils as utils

    text = published(2).text_encoder
    wanted = {key.removeprefix("text_model."): tensor for key, tensor in text.state_dict().items()}
    file = as_open_clip({TEXT + key: tensor for key, tensor in wanted.items()})
    file[f"{OPEN_CLIP}text_projection"] = torch.empty(1024, 1024, device="meta")
    last = {key.replace("blocks.22.", "blocks.23."): tensor for key, tensor in file.items()}  # never used
    found = utils.convert_open_clip_checkpoint(text, last | file)
    found = {key.removeprefix("text_model."): tensor.shape for key, tensor in found.items()}
    found.pop("text_projection.weight", None)
    assert found == {key: tensor.shape for key, tensor in wanted.items()}


def test_offsets_in_the_paper_s_form(version, backbone):
    with torch.device("meta"):
        offsets = WeightOffsets(backbone.unet, OffsetsConfig(form="paper"))
    pairs = list(offsets.items())
    assert len(pairs) == 96
    assert all((linear.out_features, linear.in_features) == offset.shape for linear, offset in pairs)
    assert sum(size(offset.domain) for _, offset in pairs) == {1: 143_226_592, 2: 157_931_232}[version]
    for _, offset in pairs:
        assert isinstance(offset.domain, PaperForm)
        left, right = offset.domain.factors()
        assert (left.shape, right.shape) == ((offset.shape[0], 3), (offset.shape[1], 3))  # rank 3 at most
    reduced = sum(3 * sum(offset.shape) for _, offset in pairs)
    assert round(reduced / 1e6, 2) == {1: 0.45, 2: 0.47}[version]


def test_offsets_of_a_true_size_have_rank_three():
    torch.manual_seed(0)
    offset = PaperForm(640, 768)
    for parameter in offset.parameters():
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        left, right = offset.factors()
        values = torch.linalg.svdvals(left @ right.T)
    assert values[2] > 1e-4 * values[0]
    assert values[3] < 1e-5 * values[0]


def test_pooled_features_of_the_unet_s_encoder_half(version, backbone):
    assert feature_widths(backbone.unet, "all") == WIDTHS
    assert sum(WIDTHS) == 10_880
    sample = torch.empty(2, 4, 16, 16, device="meta")
    prompt = torch.empty(1, 77, backbone.embedding_dim, device="meta")
    for blocks in ("all", "resolutions", "mid", "none"):
        found = pooled_features(backbone.unet, sample, torch.empty(2, device="meta"), prompt, blocks=blocks)
        assert [tuple(feature.shape) for feature in found] == [(2, w) for w in feature_widths(backbone.unet, blocks)]


@pytest.mark.parametrize(
    ("vision", "layers", "width"), [(VIT_H, 16, 1280), (VIT_L, 12, 1024)], ids=["ViT-H/14", "ViT-L/14"]
)
def test_features_of_the_image_encoder(vision, layers, width, version):
    backbone = replace(published(version), image_encoder=image_encoder(vision))
    features = backbone.image_features(torch.empty(1, 3, 224, 224, device="meta"), layer_stride=2)
    assert [tuple(feature.shape) for feature in features] == [(1, width)] * layers
    assert backbone.image_pixels(torch.empty(1, 3, 512, 512, device="meta")).shape == (1, 3, 224, 224)


def test_the_encoder_has_a_linear_for_every_feature(version, backbone):
    with torch.device("meta"):
        encoder = _build_encoder(backbone, EncoderConfig(), None)
    widths = [linear.in_features for linear in (*encoder.image_linears, *encoder.unet_linears)]
    assert widths == [1280] * 16 + WIDTHS
    half = encoder.image_half([torch.empty(1, 1280, device="meta")] * 16)
    offset = encoder(half, [torch.empty(2, width, device="meta") for width in WIDTHS])
    assert offset.shape == (2, backbone.embedding_dim)


def test_a_picture_and_a_prompt_pass_through(version, backbone):
    """Shapes alone: latents of 1/8 of the side, prompts of the width that the U-Net reads."""
    side = backbone.resolution // 8
    assert backbone.vae.encode(torch.empty(1, 3, 64, 64, device="meta")).latent_dist.mean.shape == (1, 4, 8, 8)
    prompt = backbone.text_encoder(torch.zeros(1, 77, dtype=torch.long, device="meta"))[0]
    assert prompt.shape == (1, 77, backbone.unet.config.cross_attention_dim)
    noisy = torch.empty(1, 4, side, side, device="meta")
    assert backbone.unet(noisy, torch.empty(1, device="meta"), prompt).sample.shape == noisy.shape


@pytest.mark.parametrize(("side", "most"), [(64, 1.2), (16, 1.4)])
def test_a_live_word_costs_few_operations_when_guided(side, most):
    """Encoder half and text encoder for one row beside a U-Net call of two, for Stable Diffusion 1.5."""
    from torch.utils.flop_counter import FlopCounterMode

    backbone, device = published(1), {"device": "meta"}
    noisy, prompt, step = (
        torch.empty(2, 4, side, side, **device),
        torch.empty(2, 77, 768, **device),
        torch.empty(2, **device),
    )

    def operations(work):
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    stock = operations(lambda: backbone.unet(noisy, step, prompt))
    features = operations(lambda: pooled_features(backbone.unet, noisy[:1], step[:1], prompt[:1], blocks="all"))
    words = operations(lambda: backbone.text_encoder(torch.zeros(1, 77, dtype=torch.long, **device)))
    print(f"{8 * side} pixels: {1 + (features + words) / stock:.3f}, of that features {features / stock:.3f}")
    assert 1.05 < 1 + (features + words) / stock < most
