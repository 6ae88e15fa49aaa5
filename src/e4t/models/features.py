"""What the denoiser itself sees in a noisy latent: pooled outputs of the U-Net's encoder half.

Runs diffusers' `UNet2DConditionModel` from its public sub-modules. Callers put the base weights in place
(`E4TModel.base_weights`): the paper takes these features from the U-Net without offsets.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from e4t.errors import ConfigError


def feature_widths(unet: Any, blocks: str) -> list[int]:
    """Channels of each pooled feature, from the U-Net's config (Stable Diffusion 1.5, "all": 10,880 together)."""
    channels = list(unet.config.block_out_channels)
    layers = unet.config.layers_per_block
    layers = [layers] * len(channels) if isinstance(layers, int) else list(layers)
    if blocks == "none":
        return []
    if blocks == "mid":
        return [channels[-1]]
    if blocks == "resolutions":
        return [*channels, channels[-1]]
    last = len(channels) - 1
    skips = [
        width
        for index, width in enumerate(channels)
        for _ in range(layers[index] + (index < last))  # every block but the last ends with a downsampler
    ]
    return [channels[0], *skips, channels[-1]]


@torch.no_grad()
def pooled_features(unet: Any, sample: Tensor, timesteps: Tensor, empty_prompt: Tensor, *, blocks: str) -> list[Tensor]:
    """Encoder half of the U-Net, averaged over space.

    sample [B, C, h, w] as the U-Net takes it, timesteps [B] or [], empty_prompt [1, L, D]: the encoded "" → one
    [B, width] float32 tensor per entry of `feature_widths`.
    """
    if blocks == "none":
        return []
    if unet.config.addition_embed_type is not None or unet.config.class_embed_type is not None:
        raise ConfigError("features of U-Nets with added conditions (SDXL, class labels) are not supported yet")
    dtype = unet.conv_in.weight.dtype
    sample = sample.to(dtype)
    prompt = empty_prompt.to(dtype).expand(len(sample), -1, -1)
    if unet.config.center_input_sample:
        sample = 2 * sample - 1.0
    temb = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timesteps))
    prompt = unet.process_encoder_hidden_states(encoder_hidden_states=prompt, added_cond_kwargs={})

    hidden = unet.conv_in(sample)
    stages = [[hidden]]
    for block in unet.down_blocks:
        condition = {"encoder_hidden_states": prompt} if getattr(block, "has_cross_attention", False) else {}
        hidden, skips = block(hidden_states=hidden, temb=temb, **condition)
        stages.append(list(skips))
    if unet.mid_block is not None:
        condition = {"encoder_hidden_states": prompt} if getattr(unet.mid_block, "has_cross_attention", False) else {}
        hidden = unet.mid_block(hidden, temb, **condition)
    return [feature.float().mean(dim=(2, 3)) for feature in _select(stages, hidden, blocks)]


def _select(stages: list[list[Tensor]], mid: Tensor, blocks: str) -> list[Tensor]:
    if blocks == "mid":
        return [mid]
    if blocks == "resolutions":
        return [*(skips[-1] for skips in stages[1:]), mid]
    return [*(skip for skips in stages for skip in skips), mid]
