"""What every export starts from, and the report it ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from e4t.checkpoint import Concept
from e4t.config import GenerateConfig
from e4t.errors import ConfigError
from e4t.export.lora import LoraRow
from e4t.export.merged import CARRIED, Merged, Weights
from e4t.export.places import Places
from e4t.export.probe import Probe, Similarity, share_covered
from e4t.pipeline import E4TPipeline

_SD1_CHANNELS = [320, 640, 1280, 1280]


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


@dataclass(frozen=True)
class Source:
    """Everything an export starts from."""

    pipe: E4TPipeline
    concept: Concept
    to: str
    places: Places
    dtype: str
    merged: Merged
    probe: Probe
    similarity: Similarity

    @classmethod
    def of(cls, pipe: E4TPipeline, concept: Concept, to: str, places: Places, dtype: str | None) -> Source:
        """Refuses what cannot be carried before anything is drawn."""
        merged = Merged.of(pipe, concept)
        bare = torch.equal(merged.word, pipe.model.class_embedding)
        if bare and (to == "textual-inversion" or not merged.changes_weights):
            raise ConfigError(f"'{to}' would be empty: the concept's word is the class word and nothing more")
        if to not in ("textual-inversion", "pipeline"):
            merged.require_changes(to)
        if to in CARRIED:
            merged.require_carried(pipe, to)
        probe = Probe.of(pipe, concept)
        kind = dtype or ("float32" if to == "textual-inversion" else "float16")
        return cls(pipe, concept, to, places, kind, merged, probe, probe.similarity(merged.word))

    def kept(self, changes: Weights) -> float:
        """Of the effect of the changed weights, under the concept's word."""
        model, word = self.pipe.model, self.merged.word
        export, native, without = (
            self.probe.predict(model, word, weights) for weights in (changes, self.merged.changes, {})
        )
        return share_covered(export, native, without)

    @property
    def notes(self) -> tuple[str, ...]:
        """What differs from drawing natively, whatever the format."""
        config = self.pipe.backbone.unet.config
        notes = []
        if self.merged.changes["text_encoder"] and self.to != "textual-inversion":
            notes.append("the tuned text encoder also reads the negative prompt, which the untuned one reads natively")
        if self.to in ("single-file", "diff", "lora-kohya"):
            if not is_sd1(config):
                notes.append("the base does not have the shape of Stable Diffusion 1.x, so web UIs will not load this")
            if self.pipe.backbone.scheduler.config.prediction_type != "epsilon":
                notes.append("the base predicts velocity, which web UIs must be told by hand")
        if self.to == "single-file" and self.pipe.stock.safety_checker is not None:
            notes.append("the base's safety checker is not in the file")
        if self.pipe.generate_config.unconditional == "base":
            notes.append("natively guidance starts from the untuned base; elsewhere it starts from what is exported")
        for name in ("guidance_rescale", "scheduler"):
            if value := getattr(self.pipe.generate_config, name):
                notes.append(f"natively this is drawn with {name}={value}; whoever draws must set it by hand")
        for name in ("strength", "weights", "delay", "dual_path"):
            value = getattr(self.pipe.generate_config, name)
            if value != getattr(GenerateConfig(), name):
                notes.append(f"natively this is drawn with {name}={value}, which no export carries")
        return (*notes, *self.places.notes)


def report(source: Source, files: Sequence[Path], *, notes: tuple[str, ...] = (), **measured: Any) -> Report:
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


def is_sd1(config: Any) -> bool:
    return list(config.block_out_channels) == _SD1_CHANNELS and config.cross_attention_dim == 768
