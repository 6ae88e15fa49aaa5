"""A personalized concept as files that other programs load, without this package.

A word that is predicted anew at every denoising step cannot be stored elsewhere. Every export freezes it to one
embedding, and says how far that is from the live one. The changed weights can be stored exactly, as whole models or as
dense differences; a LoRA only approximates them, because ``W * Δ`` has the rank of W however low the rank of Δ is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from e4t.checkpoint import Concept
from e4t.errors import ConfigError
from e4t.export.differences import export_diff, export_lora
from e4t.export.embedding import export_embedding
from e4t.export.lora import LORA_ERROR, LORA_KEEPS, RANKS, Lora, LoraRow, Told, untold
from e4t.export.merged import Merged
from e4t.export.places import FORMATS, Places
from e4t.export.probe import PROBE_STEPS, Probe, Similarity
from e4t.export.source import Report, Source
from e4t.export.whole import export_pipeline, export_single_file
from e4t.pipeline import E4TPipeline

__all__ = [
    "FORMATS",
    "LORA_ERROR",
    "LORA_KEEPS",
    "PROBE_STEPS",
    "RANKS",
    "LoraRow",
    "Report",
    "Similarity",
    "export",
    "lora_table",
]


def export(
    pipe: E4TPipeline,
    concept: Concept,
    output: Path,
    *,
    to: str,
    token: str | None = None,
    dtype: str | None = None,
    rank: int | None = None,
    progress: Told = untold,
) -> Report:
    """Write ``concept`` in the format ``to``, one of `FORMATS`, and measure what was kept.

    ``output`` is a folder for "pipeline" and otherwise a file ending in .safetensors; "textual-inversion" and
    "lora-diffusers" also take a folder, and use diffusers' own file names in it. ``token`` is what prompts say, by
    default the placeholder. ``dtype`` is "float16" or "float32". ``rank`` is of a LoRA: without it the smallest of
    `RANKS` that is `LoraRow.faithful`. ``progress`` is told how much of a LoRA's two rounds of work is done.

    Raises ConfigError where the format cannot carry the concept or an option is wrong, MismatchError for a concept of
    another domain, CheckpointError where ``output`` cannot be written or is not a former export.
    """
    places = Places.of(Path(output), to, concept.domain.placeholder if token is None else token)
    _check_numbers(to, dtype, rank)
    _check_options(pipe, to, places.token, dtype)
    source = Source.of(pipe, pipe.ready(concept), to, places, dtype)
    if to == "pipeline":
        return export_pipeline(source)
    if to == "textual-inversion":
        return export_embedding(source)
    if to == "single-file":
        return export_single_file(source)
    return export_diff(source) if to == "diff" else export_lora(source, rank, progress)


def lora_table(
    pipe: E4TPipeline, concept: Concept, *, ranks: Sequence[int] = RANKS, dtype: str = "float16"
) -> tuple[LoraRow, ...]:
    """What LoRAs of growing rank would keep of a concept, and their size. Raises ConfigError as `export` does."""
    _check_numbers("lora-diffusers", dtype, min(ranks, default=0))
    concept = pipe.ready(concept)
    merged = Merged.of(pipe, concept)
    merged.require_changes("lora-diffusers")
    merged.require_carried(pipe, "lora-diffusers")
    return Lora(pipe, merged, Probe.of(pipe, concept), dtype).table(ranks)


def _check_numbers(to: str, dtype: str | None, rank: int | None) -> None:
    if dtype not in (None, "float16", "float32"):
        raise ConfigError(f"dtype is '{dtype}'; it must be 'float16' or 'float32'")
    if rank is not None and (rank < 1 or not to.startswith("lora-")):
        raise ConfigError(f"rank is {rank}; only LoRA formats have a rank, and it must be at least 1")


def _check_options(pipe: E4TPipeline, to: str, token: str, dtype: str | None) -> None:
    if dtype and to == "pipeline" and getattr(torch, dtype) != pipe.backbone.dtype:
        own = str(pipe.backbone.dtype).removeprefix("torch.")
        raise ConfigError(f"a pipeline keeps the base's type, {own}; load the base in {dtype} to export it so")
    pieces = pipe.backbone.tokenizer(token, add_special_tokens=False, verbose=False).input_ids
    if not token.strip() or re.search(r"\s", token) or len(pieces) == 1:
        raise ConfigError(f"the token '{token}' cannot be used: take one word that the text encoder does not know yet")
