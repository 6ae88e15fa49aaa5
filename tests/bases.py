"""Base models as files and folders, for tests: tiny ones that load, and true shapes without weights."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from e4t.backbone import Backbone
from e4t.export.original_keys import TEXT, autoencoder_keys, text_keys, unet_keys

OPEN_CLIP = "cond_stage_model.model."


def save_folder(backbone: Backbone, folder: Path, *, variant: str | None = None) -> Path:
    """In diffusers' format, with the image encoder inside."""
    from diffusers import StableDiffusionPipeline

    StableDiffusionPipeline(
        backbone.vae,
        backbone.text_encoder,
        backbone.tokenizer,
        backbone.unet,
        backbone.scheduler,
        None,
        None,
        requires_safety_checker=False,
    ).save_pretrained(folder, variant=variant)
    backbone.image_encoder.save_pretrained(folder / "image_encoder")
    return folder


def original_tensors(backbone: Backbone, *, open_clip: bool = False) -> dict[str, Tensor]:
    """Under the names of the original code: of Stable Diffusion 1.x, or with ``open_clip`` of 2.x."""
    unet, vae, text = (part.state_dict() for part in (backbone.unet, backbone.vae, backbone.text_encoder))
    resolutions = len(backbone.vae.config.block_out_channels)
    tensors = {key: unet[name] for name, key in unet_keys(unet, layers=backbone.unet.config.layers_per_block).items()}
    tensors |= {key: vae[name] for name, key in autoencoder_keys(vae, resolutions=resolutions).items()}
    words = {key: text[name] for name, key in text_keys(text).items()}
    tensors |= as_open_clip(words) if open_clip else words
    return {key: tensor.clone() for key, tensor in tensors.items()}


def as_open_clip(words: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Transformers' text encoder as OpenCLIP names it; q, k and v are one matrix there."""
    words = {key.removeprefix(TEXT): tensor for key, tensor in words.items()}
    fixed = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    parts = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    named = {new: words[old] for old, new in fixed.items()}
    layers = sorted({int(key.split(".")[2]) for key in words if key.startswith("encoder.layers.")})
    for layer in layers:
        old, new = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for leaf in ("weight", "bias"):
            for theirs, ours in parts.items():
                named[f"{new}.{ours}.{leaf}"] = words[f"{old}.{theirs}.{leaf}"]
            joined = [words[f"{old}.self_attn.{letter}_proj.{leaf}"] for letter in "qkv"]
            named[f"{new}.attn.in_proj_{leaf}"] = torch.cat(joined)
    return {OPEN_CLIP + key: tensor for key, tensor in named.items()}


def save_single_file(backbone: Backbone, path: Path, *, open_clip: bool = False, **metadata: str) -> Path:
    save_file(original_tensors(backbone, open_clip=open_clip), path, metadata=metadata or None)
    return path


def save_shapes(shapes: Mapping[str, tuple[int, ...] | list[int]], path: Path) -> Path:
    """A safetensors file of float16 zeros that takes no room on the disk."""
    header: dict[str, object] = {}
    end = 0
    for key, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path
