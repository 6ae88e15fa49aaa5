"""Names of parameters in the one-file layout of Stable Diffusion 1.x, from their names in diffusers and transformers.

The original code numbers the U-Net's blocks in the order they run: ``input_blocks``, ``middle_block``,
``output_blocks``. With L residual blocks in each resolution, resolution b of the way down takes the numbers from
1 + b (L + 1), of the way up from b (L + 1); the last of each but one also changes the resolution. In the autoencoder,
``up.0`` is the *last* resolution of the decoder, because it is numbered as in the encoder.
"""

from __future__ import annotations

from collections.abc import Collection

from e4t.errors import ConfigError

UNET = "model.diffusion_model."
AUTOENCODER = "first_stage_model."
TEXT = "cond_stage_model.transformer.text_model."

_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}


def unet_keys(names: Collection[str], *, layers: int) -> dict[str, str]:
    """Original keys by diffusers name; ``layers`` is the U-Net's ``layers_per_block``.

    Raises ConfigError for a parameter that Stable Diffusion 1.x does not have.
    """
    attending = {name.split(".")[1] for name in names if name.startswith("up_blocks.") and ".attentions." in name}
    return {name: UNET + _unet_key(name, layers, attending) for name in names}


def autoencoder_keys(names: Collection[str], *, resolutions: int) -> dict[str, str]:
    """Original keys by diffusers name. Raises ConfigError as `unet_keys` does."""
    return {name: AUTOENCODER + _autoencoder_key(name, resolutions) for name in names}


def text_keys(names: Collection[str]) -> dict[str, str]:
    """Original keys by transformers name, whether or not that release has a ``text_model`` inside the model."""
    return {name: TEXT + name.removeprefix("text_model.") for name in names}


def _unet_key(name: str, layers: int, attending: Collection[str]) -> str:
    match name.split("."):
        case ["conv_in", leaf]:
            return f"input_blocks.0.0.{leaf}"
        case ["time_embedding", "linear_1" | "linear_2" as linear, leaf]:
            return f"time_embed.{0 if linear == 'linear_1' else 2}.{leaf}"
        case ["conv_norm_out", leaf]:
            return f"out.0.{leaf}"
        case ["conv_out", leaf]:
            return f"out.2.{leaf}"
        case ["mid_block", "attentions", "0", *rest]:
            return f"middle_block.1.{'.'.join(rest)}"
        case ["mid_block", "resnets", index, part, leaf]:
            return f"middle_block.{2 * int(index)}.{_residual(name, part)}.{leaf}"
        case ["down_blocks", block, "downsamplers", "0", "conv", leaf]:
            return f"input_blocks.{(int(block) + 1) * (layers + 1)}.0.op.{leaf}"
        case ["up_blocks", block, "upsamplers", "0", "conv", leaf]:
            place = 2 if block in attending else 1
            return f"output_blocks.{int(block) * (layers + 1) + layers}.{place}.conv.{leaf}"
        case ["down_blocks" | "up_blocks" as way, block, "attentions", index, *rest]:
            return f"{_numbered(way, block, index, layers)}.1.{'.'.join(rest)}"
        case ["down_blocks" | "up_blocks" as way, block, "resnets", index, part, leaf]:
            return f"{_numbered(way, block, index, layers)}.0.{_residual(name, part)}.{leaf}"
    raise _foreign(name)


def _numbered(way: str, block: str, index: str, layers: int) -> str:
    number = int(block) * (layers + 1) + int(index)
    return f"input_blocks.{number + 1}" if way == "down_blocks" else f"output_blocks.{number}"


def _residual(name: str, part: str) -> str:
    if part not in _RESIDUAL:
        raise _foreign(name)
    return _RESIDUAL[part]


def _autoencoder_key(name: str, resolutions: int) -> str:
    match name.split("."):
        case ["quant_conv" | "post_quant_conv", _]:
            return name
        case ["encoder" | "decoder", "conv_in" | "conv_out", _]:
            return name
        case ["encoder" | "decoder" as half, "conv_norm_out", leaf]:
            return f"{half}.norm_out.{leaf}"
        case ["encoder" | "decoder" as half, "mid_block", "resnets", index, *rest]:
            return f"{half}.mid.block_{int(index) + 1}.{_shortcut(rest)}"
        case ["encoder" | "decoder" as half, "mid_block", "attentions", "0", part, *_, leaf] if part in _ATTENTION:
            return f"{half}.mid.attn_1.{_ATTENTION[part]}.{leaf}"
        case ["encoder", "down_blocks", block, "resnets", index, *rest]:
            return f"encoder.down.{block}.block.{index}.{_shortcut(rest)}"
        case ["encoder", "down_blocks", block, "downsamplers", "0", "conv", leaf]:
            return f"encoder.down.{block}.downsample.conv.{leaf}"
        case ["decoder", "up_blocks", block, "resnets", index, *rest]:
            return f"decoder.up.{resolutions - 1 - int(block)}.block.{index}.{_shortcut(rest)}"
        case ["decoder", "up_blocks", block, "upsamplers", "0", "conv", leaf]:
            return f"decoder.up.{resolutions - 1 - int(block)}.upsample.conv.{leaf}"
    raise _foreign(name)


def _shortcut(rest: list[str]) -> str:
    return ".".join(rest).replace("conv_shortcut", "nin_shortcut")


def _foreign(name: str) -> ConfigError:
    return ConfigError(
        f"'{name}' has no place in a Stable Diffusion 1.x file: the base model is of another kind; use 'pipeline'"
    )
