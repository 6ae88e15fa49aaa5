"""A personalized concept as files that other programs load, without this package.

What a concept is natively cannot be stored elsewhere: its word is predicted anew at every denoising step. Every export
freezes the word to one embedding, and says how far that is from the live one. The changed weights can be stored
exactly, as whole models or as dense differences; a LoRA only approximates them, because ``W * Δ`` has the rank of W
however low the rank of Δ is.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import inspect
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor, nn

from e4t.checkpoint import Concept
from e4t.config import PersonalizeConfig
from e4t.errors import CheckpointError, ConfigError
from e4t.model import E4TModel
from e4t.models.offsets import TunedWeights
from e4t.original_keys import autoencoder_keys, text_keys, unet_keys
from e4t.pipeline import E4TPipeline

FORMATS = ("textual-inversion", "pipeline", "single-file", "diff", "lora-diffusers", "lora-kohya")
RANKS = (8, 16, 32, 64, 128)
LORA_KEEPS = 0.95
"""Share of the concept's effect on the noise prediction that a LoRA must keep, unless its rank is asked for."""

PROBE_STEPS = 8
"""Denoising steps of the drawing at which everything is measured."""

_SUFFIX = ".safetensors"
_MARK = "e4t.export"
_PROVENANCE = "e4t.json"
_PARTS = ("unet", "text_encoder")
_SD1_CHANNELS = [320, 640, 1280, 1280]
_CARRIED: dict[str, tuple[type[nn.Module], ...]] = {
    "diff": (nn.Linear, nn.Conv2d),
    "lora-diffusers": (nn.Linear,),
    "lora-kohya": (nn.Linear,),
}
"""Layers whose weights every reader of a format applies. Biases, norms and embeddings only some readers do."""

Weights = Mapping[str, Mapping[str, Tensor]]
"""By part ("unet", "text_encoder") and parameter name."""


@dataclass(frozen=True)
class Similarity:
    """How near the frozen word f is to the words v* that are predicted live.

    Means over the U-Net's calls in a native drawing of the domain's first prompt, in `PROBE_STEPS` steps, seed 0:
    ``cosine`` of v* and f, and ``distance`` ‖v* - f‖ / ‖f‖.
    """

    cosine: float
    distance: float


@dataclass(frozen=True)
class LoraRow:
    """What a LoRA of one rank keeps. Matrices too small for the rank have a quarter of their smaller side.

    ``energy`` is the share of the changes' squared norm; ``error`` the noise prediction's relative error; ``kept`` is
    1 - ‖LoRA - merged‖ / ‖base - merged‖ of noise predictions, all of them with the concept's word.
    """

    rank: int
    energy: float
    error: float
    kept: float
    megabytes: float


@dataclass(frozen=True)
class Report:
    """What was written, and how true it is to the concept drawn natively with a frozen embedding.

    ``kept`` is 1 - ‖export - native‖ / ‖without - native‖ of noise predictions, where "without" lacks what the file
    carries: the base's own weights, for a textual inversion also the class word. None where the file holds the very
    numbers. ``embedding`` is the textual-inversion file that belongs to it. ``notes`` are sentences for the user.
    """

    format: str
    path: Path
    bytes: int  # of all files together
    token: str
    similarity: Similarity
    kept: float | None = None
    embedding: Path | None = None
    rank: int | None = None
    table: tuple[LoraRow, ...] = ()
    notes: tuple[str, ...] = ()


def export(
    pipe: E4TPipeline,
    concept: Concept,
    output: Path,
    *,
    to: str,
    token: str | None = None,
    dtype: str | None = None,
    rank: int | None = None,
) -> Report:
    """Write ``concept`` in the format ``to``, one of `FORMATS`, and measure what was kept.

    ``output`` is a folder for "pipeline" and otherwise a file ending in .safetensors; "textual-inversion" and
    "lora-diffusers" also take a folder, and use diffusers' own file names in it. ``token`` is what prompts say, by
    default the placeholder. ``dtype`` is "float16" or "float32". ``rank`` is of a LoRA: without it the smallest of
    `RANKS` that keeps `LORA_KEEPS`.

    Raises ConfigError where the format cannot carry the concept or an option is wrong, MismatchError for a concept of
    another domain, CheckpointError where ``output`` cannot be written or is not a former export.
    """
    places = _Places.of(Path(output), to, concept.domain.placeholder if token is None else token)
    _check_numbers(to, dtype, rank)
    _check_options(pipe, to, places.token, dtype)
    source = _Source.of(pipe, pipe.ready(concept), to, places, dtype)
    if to == "pipeline":
        return _export_pipeline(source)
    if to == "textual-inversion":
        return _export_embedding(source)
    if to == "single-file":
        return _export_single_file(source)
    return _export_diff(source) if to == "diff" else _export_lora(source, rank)


def lora_table(
    pipe: E4TPipeline, concept: Concept, *, ranks: Sequence[int] = RANKS, dtype: str = "float16"
) -> tuple[LoraRow, ...]:
    """What LoRAs of growing rank would keep of a concept, and their size. Raises ConfigError as `export` does."""
    _check_numbers("lora-diffusers", dtype, min(ranks, default=0))
    concept = pipe.ready(concept)
    merged = _Merged.of(pipe, concept)
    merged.require_changes("lora-diffusers")
    merged.require_layers(pipe, "lora-diffusers", _CARRIED["lora-diffusers"])
    return _Lora(pipe, merged, _Probe.of(pipe, concept), dtype).table(ranks)


# What a concept is made of


@dataclass(frozen=True)
class _Merged:
    """A concept on its base: the word v* [D], and every changed parameter as merged minus base, float32."""

    word: Tensor
    changes: Weights

    @classmethod
    def of(cls, pipe: E4TPipeline, concept: Concept) -> _Merged:
        pipe.backbone.require_in_place()
        model = pipe.model
        modules = {part: getattr(pipe.backbone, part) for part in _PARTS}
        before = {part: dict(module.named_parameters()) for part, module in modules.items()}
        with model.wearing(concept), torch.no_grad():
            word = model.word(concept.tensors["frozen_offset"].to(pipe.backbone.device))
            changes = {
                part: {
                    name: worn.float() - before[part][name].float()
                    for name, worn in module.named_parameters()
                    if not torch.equal(worn, before[part][name])
                }
                for part, module in modules.items()
            }
        return cls(word, changes)

    @property
    def changes_weights(self) -> bool:
        return any(self.changes.values())

    def require_changes(self, to: str) -> None:
        """Raise ConfigError if no weights are changed."""
        if not self.changes_weights:
            raise ConfigError(f"'{to}' would be empty: the concept changes no weights; use 'textual-inversion'")

    def require_layers(self, pipe: E4TPipeline, to: str, kinds: tuple[type[nn.Module], ...]) -> None:
        """Raise ConfigError unless all that is changed are weights of layers of these kinds."""
        foreign = [f"{part}.{name}" for part, name, module in self._places(pipe) if not isinstance(module, kinds)]
        if foreign:
            what = "linear layers" if len(kinds) == 1 else "linear layers and convolutions"
            raise ConfigError(
                f"'{to}' carries weights of {what} only, and this concept also tunes {len(foreign)} other parameters, "
                f"such as {foreign[0]}; use 'pipeline' or 'single-file'"
            )

    def _places(self, pipe: E4TPipeline) -> Iterator[tuple[str, str, nn.Module | None]]:
        """Part and name of every change, with the layer whose weight it is; None for a bias."""
        for part, tensors in self.changes.items():
            for name in tensors:
                owner, leaf = name.rsplit(".", 1)
                module: nn.Module = getattr(pipe.backbone, part).get_submodule(owner)
                yield part, name, module if leaf == "weight" else None

    def rounded(self, pipe: E4TPipeline, dtype: str) -> Weights:
        """The changes that are left when merged weights are stored in ``dtype``."""
        return {
            part: {
                name: _cast(name, base.float() + tensors[name], dtype).to(base.device).float() - base.float()
                for name, base in getattr(pipe.backbone, part).named_parameters()
                if name in tensors
            }
            for part, tensors in self.changes.items()
        }


@dataclass(frozen=True)
class _Probe:
    """Every call of the U-Net in one native drawing: samples [n, C, h, w], timesteps [n], live words [n, D]."""

    prompt: str
    samples: Tensor
    timesteps: Tensor
    words: Tensor

    @classmethod
    def of(cls, pipe: E4TPipeline, concept: Concept) -> _Probe:
        samples: list[Tensor] = []
        timesteps: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            samples.append(call["sample"][-1:].float())
            timesteps.append(torch.as_tensor(call["timestep"], device=pipe.backbone.device).reshape(-1)[-1:])

        prompt, settings = pipe.domain.prompts[0], pipe.generate_config
        with pipe.applied(concept, prompt) as applied:
            handle = pipe.backbone.unet.register_forward_pre_hook(keep, with_kwargs=True)
            try:
                applied.stock(
                    prompt_embeds=applied.prompt_embeds,
                    negative_prompt_embeds=applied.negative_prompt_embeds,
                    num_inference_steps=PROBE_STEPS,
                    guidance_scale=settings.guidance_scale,
                    guidance_rescale=settings.guidance_rescale,
                    generator=torch.Generator().manual_seed(0),
                    output_type="latent",
                )
            finally:
                handle.remove()
        return cls(prompt, torch.cat(samples), torch.cat(timesteps), torch.cat(applied.words))

    def similarity(self, word: Tensor) -> Similarity:
        frozen = word.expand_as(self.words)
        cosine = torch.cosine_similarity(self.words, frozen, dim=-1).mean()
        distance = ((self.words - frozen).norm(dim=-1) / frozen.norm(dim=-1)).mean()
        return Similarity(float(cosine), float(distance))

    @torch.no_grad()
    def predict(self, model: E4TModel, word: Tensor | None, changes: Weights) -> Tensor:
        """Noise predictions of the changed base at every other call, [n / 2, C, h, w]; no word is the class word."""
        backbone = model.backbone
        with (
            _changed(backbone.unet, changes.get("unet", {})),
            _changed(backbone.text_encoder, changes.get("text_encoder", {})),
        ):
            embeds = model.prompt_embeds(model.tokens([self.prompt]), word)
            rows = [slice(index, index + 1) for index in range(0, len(self.samples), 2)]
            return torch.cat([model.denoise(self.samples[row], self.timesteps[row], embeds) for row in rows])


@contextmanager
def _changed(module: nn.Module, changes: Mapping[str, Tensor]) -> Iterator[None]:
    tuned = TunedWeights(module)
    tuned.apply(changes)
    try:
        yield
    finally:
        tuned.restore()


def _share(export: Tensor, native: Tensor, without: Tensor) -> float:
    """Share of native's distance from "without" that is covered; negative where the export leads away."""
    effect = (without - native).norm().clamp(min=torch.finfo(torch.float32).tiny)
    return 1 - float((export - native).norm() / effect)


@dataclass(frozen=True)
class _Source:
    """Everything an export starts from."""

    pipe: E4TPipeline
    concept: Concept
    to: str
    places: _Places
    dtype: str
    merged: _Merged
    probe: _Probe
    similarity: Similarity

    @classmethod
    def of(cls, pipe: E4TPipeline, concept: Concept, to: str, places: _Places, dtype: str | None) -> _Source:
        """Refuses what cannot be carried before anything is drawn."""
        merged = _Merged.of(pipe, concept)
        bare = torch.equal(merged.word, pipe.model.class_embedding)
        if bare and (to == "textual-inversion" or not merged.changes_weights):
            raise ConfigError(f"'{to}' would be empty: the concept's word is the class word and nothing more")
        if to not in ("textual-inversion", "pipeline"):
            merged.require_changes(to)
        if to in _CARRIED:
            merged.require_layers(pipe, to, _CARRIED[to])
        probe = _Probe.of(pipe, concept)
        kind = dtype or ("float32" if to == "textual-inversion" else "float16")
        return cls(pipe, concept, to, places, kind, merged, probe, probe.similarity(merged.word))

    def kept(self, changes: Weights) -> float:
        """Of the effect of the changed weights, under the concept's word."""
        model, word = self.pipe.model, self.merged.word
        export, native, without = (
            self.probe.predict(model, word, weights) for weights in (changes, self.merged.changes, {})
        )
        return _share(export, native, without)

    @property
    def notes(self) -> tuple[str, ...]:
        """What differs from drawing natively, whatever the format."""
        config = self.pipe.backbone.unet.config
        notes = []
        if self.merged.changes["text_encoder"] and self.to != "textual-inversion":
            notes.append("the tuned text encoder also reads the negative prompt, which the untuned one reads natively")
        if self.to in ("single-file", "diff", "lora-kohya"):
            if not _is_sd1(config):
                notes.append("the base does not have the shape of Stable Diffusion 1.x, so web UIs will not load this")
            if self.pipe.backbone.scheduler.config.prediction_type != "epsilon":
                notes.append("the base predicts velocity, which web UIs must be told by hand")
        if self.to == "single-file" and self.pipe.stock.safety_checker is not None:
            notes.append("the base's safety checker is not in the file")
        if self.pipe.generate_config.unconditional == "base":
            notes.append("natively guidance starts from the untuned base; elsewhere it starts from what is exported")
        if rescale := self.pipe.generate_config.guidance_rescale:
            notes.append(f"natively this is drawn with guidance_rescale={rescale}; whoever draws must set it by hand")
        return (*notes, *self.places.notes)


# The formats


def _export_embedding(source: _Source) -> Report:
    model, probe, word = source.pipe.model, source.probe, source.merged.word
    export = probe.predict(model, word, {})
    native = probe.predict(model, word, source.merged.changes)
    kept = _share(export, native, probe.predict(model, None, {}))
    notes: tuple[str, ...] = ()
    if source.merged.changes_weights:
        notes = (f"the changed weights are not in the file; without them the word keeps {kept:.0%} of the concept",)
    metadata = _embedding_metadata(source) | {"e4t.kept": f"{kept:.4f}", "e4t.notes": " ".join(notes)}
    path = source.places.main
    _write_files({path: (_embedding(source, source.dtype), metadata)})
    return _report(source, [path], kept=kept, notes=notes)


def _export_pipeline(source: _Source) -> Report:
    from diffusers import StableDiffusionPipeline

    pipe, folder = source.pipe, source.places.main
    stock = pipe.stock
    with _new_folder(folder) as beside, pipe.model.wearing(source.concept):
        tokenizer, text_encoder = _with_token(pipe.backbone, source.places.token, source.merged.word)
        parts = {**stock.components, "tokenizer": tokenizer, "text_encoder": text_encoder}
        whole = StableDiffusionPipeline(**parts, requires_safety_checker=stock.config.requires_safety_checker)
        whole.save_pretrained(beside)
        text = json.dumps(_metadata(source), indent=2) + "\n"
        (beside / _PROVENANCE).write_text(text, encoding="utf-8")
    return _report(source, [file for file in folder.rglob("*") if file.is_file()])


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


def _export_single_file(source: _Source) -> Report:
    tensors = {key: _cast(key, value, source.dtype) for key, value in _original_tensors(source.pipe, source.merged)}
    kept = source.kept(source.merged.rounded(source.pipe, source.dtype))
    return _report(source, _write_with_embedding(source, tensors, {}), kept=kept)


def _original_tensors(pipe: E4TPipeline, merged: _Merged) -> Iterator[tuple[str, Tensor]]:
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


def _export_diff(source: _Source) -> Report:
    stored: Weights = {
        part: {name: _cast(name, change, source.dtype) for name, change in tensors.items()}
        for part, tensors in source.merged.changes.items()
    }
    paths = _write_with_embedding(source, _diff_tensors(stored), _kohya_metadata(source))
    return _report(source, paths, kept=source.kept(stored))


def _diff_tensors(changes: Weights) -> dict[str, Tensor]:
    return {
        f"{_kohya_name(part, name)}.diff": change
        for part, tensors in changes.items()
        for name, change in tensors.items()
    }


def _export_lora(source: _Source, rank: int | None) -> Report:
    lora = _Lora(source.pipe, source.merged, source.probe, source.dtype)
    table = lora.table(RANKS if rank is None else (rank,))
    row = table[-1] if rank is not None else _smallest_true(table, source.to)
    factors = lora.factors(row.rank)
    if source.to == "lora-kohya":
        tensors, metadata = _kohya_lora(factors, row.rank), _kohya_metadata(source, rank=row.rank)
        metadata["sshs_model_hash"] = _data_hash(tensors)
    else:
        tensors, metadata = _diffusers_lora(factors), {"lora_adapter_metadata": _peft_metadata(factors)}
    notes = [] if row.kept >= LORA_KEEPS else [_loss(row)]
    if rank is not None and row.rank < rank:
        notes.append(f"rank {rank} is more than a quarter of any changed matrix's side; {row.rank} was used")
    paths = _write_with_embedding(source, tensors, metadata | {"e4t.kept": f"{row.kept:.4f}"})
    return _report(source, paths, kept=row.kept, rank=row.rank, table=table, notes=tuple(notes))


def _smallest_true(table: Sequence[LoraRow], to: str) -> LoraRow:
    for row in table:
        if row.kept >= LORA_KEEPS:
            return row
    best = max(table, key=lambda row: row.kept)
    raise ConfigError(
        f"a '{to}' file would lose too much: {_loss(best)}, and {LORA_KEEPS:.0%} is the least; use 'diff' or "
        f"'pipeline', which keep everything, or give a rank to accept the loss"
    )


def _loss(row: LoraRow) -> str:
    return f"rank {row.rank} keeps {row.kept:.0%} of what the concept's weights do to the noise prediction"


Factors = dict[tuple[str, str], tuple[Tensor, Tensor]]
"""Down [r, in] and up [out, r] by part and parameter name; up @ down approximates the change."""


class _Lora:
    """Truncated singular value decompositions of a concept's changes."""

    def __init__(self, pipe: E4TPipeline, merged: _Merged, probe: _Probe, dtype: str) -> None:
        self.model, self.merged, self.probe, self.dtype = pipe.model, merged, probe, dtype
        self._full = {
            (part, name): _decomposed(change)
            for part, tensors in merged.changes.items()
            for name, change in tensors.items()
        }

    def factors(self, rank: int) -> Factors:
        """As they are stored: of this rank or of a quarter of the matrix's smaller side, in the file's type."""
        return {
            (part, name): (_cast(name, down[:rank], self.dtype), _cast(name, up[:, :rank], self.dtype))
            for (part, name), (down, up) in self._full.items()
        }

    def table(self, ranks: Sequence[int]) -> tuple[LoraRow, ...]:
        """One row for each rank that makes a difference."""
        largest = max(len(down) for down, _ in self._full.values())
        native = self.probe.predict(self.model, self.merged.word, self.merged.changes)
        without = self.probe.predict(self.model, self.merged.word, {})
        wanted = sorted({min(rank, largest) for rank in ranks})
        return tuple(self._row(rank, native, without) for rank in wanted)

    def _row(self, rank: int, native: Tensor, without: Tensor) -> LoraRow:
        factors = self.factors(rank)
        stored = {part: self._products(part, factors) for part in self.merged.changes}
        changes = [(stored[part][name], self.merged.changes[part][name]) for part, name in factors]
        lost = sum(float((product - change).square().sum()) for product, change in changes)
        whole = sum(float(change.square().sum()) for _, change in changes)
        prediction = self.probe.predict(self.model, self.merged.word, stored)
        return LoraRow(
            rank=rank,
            energy=1 - lost / whole,
            error=float((prediction - native).norm() / native.norm()),
            kept=_share(prediction, native, without),
            megabytes=sum(tensor.nbytes for pair in factors.values() for tensor in pair) / 1e6,
        )

    def _products(self, part: str, factors: Factors) -> dict[str, Tensor]:
        device = self.model.backbone.device
        return {
            name: up.to(device).float() @ down.to(device).float()
            for (of, name), (down, up) in factors.items()
            if of == part
        }


def _decomposed(change: Tensor) -> tuple[Tensor, Tensor]:
    """Down and up factor of the highest rank that is allowed, largest singular values first."""
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    rank = max(1, min(change.shape) // 4)
    roots = values[:rank].sqrt()  # on both sides, so that neither factor leaves float16's range
    return roots[:, None] * right[:rank], left[:, :rank] * roots


def _kohya_lora(factors: Factors, rank: int) -> dict[str, Tensor]:
    """Readers multiply each product by alpha / its own rank; alpha is ``rank`` everywhere.

    Matrices of a lower rank are scaled to make up for it, instead of having an alpha of their own: of alphas that
    differ, diffusers (0.42) applies the most common one to all matrices.
    """
    tensors: dict[str, Tensor] = {}
    for (part, name), (down, up) in factors.items():
        key = _kohya_name(part, name)
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up * (len(down) / rank)}
        tensors[f"{key}.alpha"] = torch.tensor(float(rank), dtype=down.dtype)
    return tensors


def _kohya_name(part: str, name: str) -> str:
    path = name.removesuffix(".weight")
    if part == "text_encoder":
        return "lora_te_text_model_" + path.removeprefix("text_model.").replace(".", "_")
    return "lora_unet_" + path.replace(".", "_")


def _diffusers_lora(factors: Factors) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for (part, name), (down, up) in factors.items():
        path = name.removesuffix(".weight")
        if part == "text_encoder":
            key = f"text_encoder.text_model.{path.removeprefix('text_model.')}.lora_linear_layer"
        else:
            key = f"unet.{path}.lora"
        tensors |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
    return tensors


def _peft_metadata(factors: Factors) -> str:
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


# The word beside weights, and what files say of themselves


def _embedding(source: _Source, dtype: str) -> dict[str, Tensor]:
    """One key, as every reader wants it: the token, [1, D]."""
    return {source.places.token: _cast("the embedding", source.merged.word.reshape(1, -1), dtype)}


def _embedding_metadata(source: _Source) -> dict[str, str]:
    similarity = source.similarity
    return _metadata(source, "textual-inversion") | {
        "e4t.embedding": "frozen: v_class + s E, with E the mean over the noise levels of the tuned picture; natively "
        "v* is predicted anew at every denoising step",
        "e4t.live_cosine": f"{similarity.cosine:.4f}",
        "e4t.live_distance": f"{similarity.distance:.4f}",
        "e4t.live_measure": f"of the live v* and this embedding f, means over the U-Net's calls while drawing "
        f"'{source.probe.prompt}' natively in {PROBE_STEPS} steps, seed 0; the distance is |v* - f| / |f|",
    }


def _metadata(source: _Source, kind: str | None = None) -> dict[str, str]:
    """For every file: where it comes from, and what web UIs show."""
    concept, backbone = source.concept, source.pipe.backbone
    prediction = backbone.scheduler.config.prediction_type
    metadata = {
        "format": "pt",
        _MARK: kind or source.to,
        "e4t.token": source.places.token,
        "e4t.domain": concept.domain.name,
        "e4t.domain_id": concept.domain_id or "none",
        "e4t.base": _public_name(concept.base.name),
        "e4t.base_fingerprint": concept.base.fingerprint,
        "e4t.steps": str(concept.steps),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": "diffusers",
        "modelspec.title": source.places.main.stem,
        "modelspec.resolution": f"{backbone.resolution}x{backbone.resolution}",
        "modelspec.prediction_type": "v" if prediction == "v_prediction" else prediction,
        "modelspec.trigger_phrase": source.places.trigger,
    }
    if concept.preview:
        metadata["modelspec.thumbnail"] = f"data:image/jpeg;base64,{base64.b64encode(concept.preview).decode()}"
    if _is_sd1(backbone.unet.config):
        kinds = {"textual-inversion": "/textual-inversion", "pipeline": "", "single-file": ""}
        metadata["modelspec.architecture"] = f"stable-diffusion-v1{kinds.get(kind or source.to, '/lora')}"
    return metadata


def _kohya_metadata(source: _Source, *, rank: int | None = None) -> dict[str, str]:
    concept, resolution = source.concept, source.pipe.backbone.resolution
    config = PersonalizeConfig.from_dict(concept.config)
    metadata = {
        "ss_output_name": source.places.main.stem,
        "ss_sd_model_name": _public_name(concept.base.name),
        "ss_resolution": str((resolution, resolution)),
        "ss_num_train_images": "1",
        "ss_steps": str(concept.steps),
        "ss_learning_rate": str(config.learning_rate),
        "ss_seed": str(config.seed),
        "ss_tag_frequency": json.dumps({concept.domain.name: {source.places.trigger: 1}}),
    }
    if _is_sd1(source.pipe.backbone.unet.config):
        metadata["ss_base_model_version"] = "sd_v1"
    if rank is not None:
        metadata |= {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    return metadata


def _is_sd1(config: Any) -> bool:
    return list(config.block_out_channels) == _SD1_CHANNELS and config.cross_attention_dim == 768


def _public_name(name: str) -> str:
    """A hub id as it is; of a path only the last part, because the file may be given away."""
    return Path(name).name if Path(name).is_absolute() else name


def _data_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a safetensors file behind its header, by which web UIs recognise a file whatever its metadata say."""
    data = save(dict(tensors))
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


# Files


@dataclass(frozen=True)
class _Places:
    """Where an export goes: ``main`` is a file, or the folder of a pipeline; ``embedding`` is the word beside it."""

    token: str
    trigger: str  # what prompts say where it is used: web UIs name a word after its file
    main: Path
    embedding: Path | None = None

    @classmethod
    def of(cls, output: Path, to: str, token: str) -> _Places:
        """Raises ConfigError for a wrong format or name, CheckpointError where something foreign is in the way."""
        if to not in FORMATS:
            raise ConfigError(f"there is no export format '{to}'; there are {', '.join(FORMATS)}")
        places = cls._named(output, to, token)
        for path in (places.main, places.embedding):
            if path is not None and path.exists() and not _is_ours(path):
                raise CheckpointError(f"'{path}' exists and is not a former export; choose another place")
        return places

    @classmethod
    def _named(cls, output: Path, to: str, token: str) -> _Places:
        is_file = output.suffix == _SUFFIX
        if is_file == (to == "pipeline") and to not in ("textual-inversion", "lora-diffusers"):
            what = "folder" if is_file else f"file, named so that it ends in {_SUFFIX}"
            raise ConfigError(f"'{output}' does not fit the format '{to}', which is a {what}")
        if to == "pipeline":
            return cls(token, token, output)
        if to == "textual-inversion":
            return cls(token, token, output if is_file else output / f"learned_embeds{_SUFFIX}")
        if not is_file:
            return cls(token, token, output / f"pytorch_lora_weights{_SUFFIX}", output / f"learned_embeds{_SUFFIX}")
        plain = re.sub(r"[^\w-]", "", token) or "word"  # "S*" is no file name everywhere
        word = f"{output.stem}.{plain}"
        return cls(token, token if to == "lora-diffusers" else word, output, output.with_name(word + _SUFFIX))

    @property
    def notes(self) -> tuple[str, ...]:
        """How to use the word that lies beside weights."""
        if self.embedding is None:
            return ()
        names = f"'{self.token}' in diffusers"
        if self.trigger != self.token:
            names += f", '{self.trigger}' in web UIs"
        return (f"the word itself is in '{self.embedding.name}', to be loaded as well; in prompts it is {names}",)


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


def _cast(name: str, tensor: Tensor, dtype: str) -> Tensor:
    """On the CPU in the file's type; integers stay. Raises ConfigError for numbers that float16 does not have."""
    if not tensor.is_floating_point():
        return tensor.detach().cpu().contiguous()
    stored = tensor.detach().to(getattr(torch, dtype)).cpu().contiguous()
    if not torch.isfinite(stored).all():
        raise ConfigError(f"{name} has values that {dtype} cannot hold; use dtype 'float32'")
    return stored


def _write_with_embedding(source: _Source, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> list[Path]:
    places = source.places
    assert places.embedding is not None
    word = (_embedding(source, "float32"), _embedding_metadata(source))
    _write_files({places.main: (tensors, _metadata(source) | dict(metadata)), places.embedding: word})
    return [places.main, places.embedding]


def _write_files(files: Mapping[Path, tuple[dict[str, Tensor], dict[str, str]]]) -> None:
    """All of them beside their places first, so that a full disk leaves nothing half written."""
    beside = {path: path.with_name(f".{path.name}.{os.getpid()}.new") for path in files}
    try:
        for path, (tensors, metadata) in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, beside[path], metadata=metadata)
        for path, new in beside.items():
            os.replace(new, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{next(iter(files))}' cannot be written: {error}") from error
    finally:
        for new in beside.values():
            with suppress(OSError):
                new.unlink()


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which then takes the place of ``folder``."""
    beside, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{what}") for what in ("new", "old"))
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        yield beside
        if folder.exists():
            folder.rename(old)
        beside.rename(folder)
    except OSError as error:
        if old.exists():
            old.rename(folder)
        raise CheckpointError(f"'{folder}' cannot be written: {error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _is_ours(path: Path) -> bool:
    """Whether something that exists was exported by this module, or is an empty folder."""
    if path.is_dir():
        return (path / _PROVENANCE).is_file() or not any(path.iterdir())
    try:
        with safe_open(path, framework="pt") as file:
            return _MARK in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _report(source: _Source, files: Sequence[Path], *, notes: tuple[str, ...] = (), **measured: Any) -> Report:
    return Report(
        format=source.to,
        path=source.places.main,
        bytes=sum(file.stat().st_size for file in files),
        token=source.places.token,
        similarity=source.similarity,
        embedding=source.places.embedding,
        notes=(*notes, *source.notes),
        **measured,
    )
