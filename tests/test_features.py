from __future__ import annotations

import pytest
import torch

from e4t.errors import ConfigError
from e4t.models.features import feature_widths, pooled_features


@pytest.mark.parametrize("blocks", ["all", "resolutions", "mid", "none"])
def test_widths_from_config_are_the_real_ones(tiny_backbone, blocks):
    features = pooled_features(
        tiny_backbone.unet, torch.randn(2, 4, 8, 8), torch.tensor([1, 9]), torch.randn(1, 5, 32), blocks=blocks
    )
    assert [f.shape for f in features] == [(2, width) for width in feature_widths(tiny_backbone.unet, blocks)]


def test_widths_of_stable_diffusion():
    class Unet:
        class config:  # noqa: N801
            block_out_channels = (320, 640, 1280, 1280)
            layers_per_block = 2

    assert sum(feature_widths(Unet, "all")) == 10_880
    assert feature_widths(Unet, "resolutions") == [320, 640, 1280, 1280, 1280]


def test_equal_to_what_the_unet_computes(tiny_backbone):
    """The mid block's input and output, taken by hooks from the U-Net's own forward pass."""
    unet, seen = tiny_backbone.unet, {}
    unet.mid_block.register_forward_hook(lambda module, args, output: seen.update(skip=args[0], mid=output))
    sample, prompt, timesteps = torch.randn(2, 4, 8, 8), torch.randn(1, 5, 32), torch.tensor([1, 9])
    with torch.no_grad():
        unet(sample, timesteps, encoder_hidden_states=prompt.expand(2, -1, -1))
    expected = seen["skip"].mean(dim=(2, 3)), seen["mid"].mean(dim=(2, 3))
    features = pooled_features(unet, sample, timesteps, prompt, blocks="all")
    torch.testing.assert_close(features[-2], expected[0])
    torch.testing.assert_close(features[-1], expected[1])


def test_depends_on_timestep_without_gradients(tiny_backbone):
    sample = torch.randn(1, 4, 8, 8, requires_grad=True)
    early, late = (
        pooled_features(tiny_backbone.unet, sample, torch.tensor([t]), torch.randn(1, 5, 32), blocks="mid")[0]
        for t in (1, 900)
    )
    assert not torch.equal(early, late)
    assert not early.requires_grad


def test_unsupported_unets_are_refused(tiny_backbone):
    tiny_backbone.unet.register_to_config(addition_embed_type="text_time")
    with pytest.raises(ConfigError, match="SDXL"):
        pooled_features(tiny_backbone.unet, torch.ones(1, 4, 8, 8), torch.tensor(1), torch.ones(1, 5, 32), blocks="mid")
