"""Whole models with the concept merged in: diffusers' folder, and the single file of web UIs."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from e4t.errors import ConfigError
from e4t.export.embedding import write_with_embedding
from e4t.export.labels import file_metadata
from e4t.export.merged import Merged, cast
from e4t.export.original_keys import autoencoder_keys, text_keys, unet_keys
from e4t.export.places import PROVENANCE
from e4t.export.source import Report, Source, report
from e4t.pipeline import E4TPipeline
from e4t.writing import new_folder


def export_pipeline(source: Source) -> Report:
    from diffusers import StableDiffusionPipeline

    pipe, folder = source.pipe, source.places.main
    stock = pipe.stock
    own = (*stock.components, "model_index.json", PROVENANCE)
    with new_folder(folder, own) as beside, pipe.model.wearing(source.concept):
        tokenizer, text_encoder = _with_token(pipe.backbone, source.places.token, source.merged.word)
        parts = {**stock.components, "tokenizer": tokenizer, "text_encoder": text_encoder}
        whole = StableDiffusionPipeline(**parts, requires_safety_checker=stock.config.requires_safety_checker)
        whole.save_pretrained(beside)
        text = json.dumps(file_metadata(source), indent=2) + "\n"
        (beside / PROVENANCE).write_text(text, encoding="utf-8")
        written = [folder / file.relative_to(beside) for file in beside.rglob("*") if file.is_file()]
    return report(source, written)


def _with_token(backbone: Any, token: str, word: Tensor) -> tuple[Any, Any]:
    """Copies of tokenizer and text encoder that know ``token`` as one more word.

    The token is matched in the prompt as it is written, before CLIP's tokenizer lowercases: that is how the native
    pipeline finds the placeholder.
    """
    from transformers import AddedToken

    tokenizer, text_encoder = copy.deepcopy(backbone.tokenizer), copy.deepcopy(backbone.text_encoder)
    tokenizer.add_tokens(AddedToken(token, normalized=False, lstrip=False, rstrip=False, single_word=False))
    rows = max(len(tokenizer), text_encoder.get_input_embeddings().num_embeddings)
    text_encoder.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        text_encoder.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(token)] = word
    return tokenizer, text_encoder


def export_single_file(source: Source) -> Report:
    tensors = {key: cast(key, value, source.dtype) for key, value in original_tensors(source.pipe, source.merged)}
    kept = source.kept(source.merged.rounded(source.pipe, source.dtype))
    return report(source, write_with_embedding(source, tensors, {}), kept=kept)


def original_tensors(pipe: E4TPipeline, merged: Merged) -> Iterator[tuple[str, Tensor]]:
    """The whole model under the names and in the shapes of the original code, one tensor after another."""
    backbone = pipe.backbone
    unet, vae, text_encoder = (part.state_dict() for part in (backbone.unet, backbone.vae, backbone.text_encoder))
    layers = backbone.unet.config.layers_per_block
    if not isinstance(layers, int):
        raise ConfigError("blocks of different length have no place in a Stable Diffusion 1.x file; use 'pipeline'")
    for name, key in unet_keys(unet, layers=layers).items():
        yield key, _plus(unet[name], merged.changes["unet"].get(name))
    for name, key in autoencoder_keys(vae, resolutions=len(backbone.vae.config.block_out_channels)).items():
        attention = ".attentions." in name and vae[name].ndim == 2
        yield key, vae[name][:, :, None, None] if attention else vae[name]  # a convolution of one pixel in the original
    for name, key in text_keys(text_encoder).items():
        yield key, _plus(text_encoder[name], merged.changes["text_encoder"].get(name))


def _plus(base: Tensor, change: Tensor | None) -> Tensor:
    return base if change is None else base.float() + change
