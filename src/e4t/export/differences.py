"""The changed weights alone: exactly, and as a LoRA."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from e4t.errors import UnfaithfulError
from e4t.export.embedding import write_with_embedding
from e4t.export.labels import kohya_metadata
from e4t.export.lora import LORA_ERROR, LORA_KEEPS, RANKS, Factors, Lora, LoraRow, Told
from e4t.export.merged import NORMS, Weights, cast
from e4t.export.source import Report, Source, report


def export_diff(source: Source) -> Report:
    stored: Weights = {
        part: {name: cast(name, change, source.dtype) for name, change in tensors.items()}
        for part, tensors in _with_whole_norms(source).items()
    }
    paths = write_with_embedding(source, diff_tensors(stored), kohya_metadata(source))
    return report(source, paths, kept=source.kept(stored))


def _with_whole_norms(source: Source) -> Weights:
    """The changes, with zeros for what stands still of a norm: web UIs take its scale and bias together."""
    unet, changes = source.pipe.backbone.unet, source.merged.changes
    changed = {name.rpartition(".")[0] for name in changes["unet"]}
    norms = [name for name, layer in unet.named_modules() if name in changed and isinstance(layer, NORMS)]
    still = {
        f"{norm}.{leaf}": torch.zeros_like(value)
        for norm in norms
        for leaf, value in unet.get_submodule(norm).named_parameters()
    }
    return {**changes, "unet": {**still, **changes["unet"]}}


def diff_tensors(changes: Weights) -> dict[str, Tensor]:
    """Differences by the names that web UIs know; what has a bias has a weight beside it."""
    tensors: dict[str, Tensor] = {}
    for part, of_part in changes.items():
        for name, change in of_part.items():
            layer, leaf = name.rsplit(".", 1)
            is_norm = of_part[f"{layer}.weight"].ndim == 1
            kind = _NORM_LEAVES[leaf] if is_norm else _LEAVES[leaf]
            tensors[f"{kohya_name(part, layer)}.{kind}"] = change
            if (part, layer) == ("unet", "conv_norm_out"):  # AUTOMATIC1111 translates all of diffusers' names but this
                tensors[f"diffusion_model_out_0.{kind}"] = change.clone()  # safetensors takes no tensor twice
    return tensors


_LEAVES = {"weight": "diff", "bias": "diff_b"}
_NORM_LEAVES = {"weight": "w_norm", "bias": "b_norm"}


def export_lora(source: Source, rank: int | None, progress: Told) -> Report:
    lora = Lora(source.pipe, source.merged, source.probe, source.dtype, progress)
    table = lora.table(RANKS if rank is None else (rank,))
    row = table[-1] if rank is not None else _smallest_true(table, source.to)
    factors = lora.factors(row.rank)
    if source.to == "lora-kohya":
        tensors, metadata = kohya_lora(factors, row.rank), kohya_metadata(source, rank=row.rank)
        metadata["sshs_model_hash"] = data_hash(tensors)
    else:
        tensors, metadata = diffusers_lora(factors), {"lora_adapter_metadata": peft_metadata(factors)}
    notes = [] if row.faithful else [_loss(row)]
    if rank is not None and row.rank < rank:
        notes.append(f"rank {rank} is more than a quarter of any changed matrix's side; {row.rank} was used")
    paths = write_with_embedding(source, tensors, metadata | {"e4t.kept": f"{row.kept:.4f}"})
    return report(source, paths, kept=row.kept, rank=row.rank, table=table, notes=tuple(notes))


def _smallest_true(table: Sequence[LoraRow], to: str) -> LoraRow:
    for row in table:
        if row.faithful:
            return row
    best = min(table, key=lambda row: row.error)
    raise UnfaithfulError(
        f"a '{to}' file would lose too much: {_loss(best)}; {LORA_KEEPS:.0%} at the least, and no more than "
        f"{LORA_ERROR:.0%} off, is asked for; use 'diff' or 'pipeline', which keep everything, or give a rank "
        f"to accept the loss",
        table,
    )


def _loss(row: LoraRow) -> str:
    return f"rank {row.rank} keeps {row.identity:.0%} of the identity, with a noise prediction off by {row.error:.1%}"


def kohya_lora(factors: Factors, rank: int) -> dict[str, Tensor]:
    """Readers multiply each product by alpha / its own rank; alpha is ``rank`` everywhere.

    Matrices of a lower rank are scaled to make up for it, instead of having an alpha of their own: of alphas that
    differ, diffusers (0.42) applies the most common one to all matrices.
    """
    tensors: dict[str, Tensor] = {}
    for (part, name), (down, up) in factors.items():
        key = kohya_name(part, name)
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up * (len(down) / rank)}
        tensors[f"{key}.alpha"] = torch.tensor(float(rank), dtype=down.dtype)
    return tensors


def kohya_name(part: str, name: str) -> str:
    path = name.removesuffix(".weight")
    if part == "text_encoder":
        return "lora_te_text_model_" + path.removeprefix("text_model.").replace(".", "_")
    return "lora_unet_" + path.replace(".", "_")


def diffusers_lora(factors: Factors) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for (part, name), (down, up) in factors.items():
        path = name.removesuffix(".weight")
        if part == "text_encoder":
            key = f"text_encoder.text_model.{path.removeprefix('text_model.')}.lora_linear_layer"
        else:
            key = f"unet.{path}.lora"
        tensors |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
    return tensors


def peft_metadata(factors: Factors) -> str:
    """Ranks and alphas, which are equal, for diffusers: some of its releases guess alphas wrong where ranks differ."""
    values: dict[str, Any] = {}
    for part, group in groupby(factors, key=lambda place: place[0]):
        ranks = {
            name.removesuffix(".weight").removeprefix("text_model."): len(factors[part, name][0]) for _, name in group
        }
        usual = max(ranks.values())
        unusual = {path: rank for path, rank in ranks.items() if rank != usual}
        config = {"r": usual, "lora_alpha": usual, "rank_pattern": unusual, "alpha_pattern": unusual}
        values |= {f"{part}.{key}": value for key, value in config.items()}
        values[f"{part}.target_modules"] = list(ranks)
    return json.dumps(values, sort_keys=True)


def data_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a safetensors file behind its header, by which web UIs recognise a file whatever its metadata say."""
    data = save(dict(tensors))
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
