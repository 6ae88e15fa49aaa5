"""A concept on its base: its word, and every weight that differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from e4t.checkpoint import Concept
from e4t.errors import ConfigError
from e4t.pipeline import E4TPipeline

PARTS = ("unet", "text_encoder")
NORMS = (nn.GroupNorm, nn.LayerNorm)

CARRIED = {
    "diff": "linear layers, convolutions and the U-Net's norms",
    "lora-diffusers": "weights of linear layers",
    "lora-kohya": "weights of linear layers",
}
"""What every reader of a format applies: of biases alone, and norms of a text encoder, only some readers do."""

Weights = Mapping[str, Mapping[str, Tensor]]
"""By part ("unet", "text_encoder") and parameter name."""


@dataclass(frozen=True)
class Merged:
    """A concept on its base: the word v* [D], and every changed parameter as merged minus base, float32."""

    word: Tensor
    changes: Weights

    @classmethod
    def of(cls, pipe: E4TPipeline, concept: Concept) -> Merged:
        pipe.backbone.require_in_place()
        model = pipe.model
        modules = {part: getattr(pipe.backbone, part) for part in PARTS}
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

    def require_carried(self, pipe: E4TPipeline, to: str) -> None:
        """Raise ConfigError unless the format carries all that is changed."""
        foreign = [
            f"{part}.{name}"
            for part, tensors in self.changes.items()
            for name in tensors
            if not self._carried(pipe, to, part, name)
        ]
        if foreign:
            others = (
                ""
                if to == "diff"
                else ", or 'diff', or personalize anew with --keep low-rank (in Python, keep='low-rank')"
            )
            raise ConfigError(
                f"'{to}' carries {CARRIED[to]} only, and this concept also tunes {len(foreign)} other parameters, "
                f"such as {foreign[0]}; use 'pipeline' or 'single-file'{others}"
            )

    def _carried(self, pipe: E4TPipeline, to: str, part: str, name: str) -> bool:
        owner, leaf = name.rsplit(".", 1)
        layer: nn.Module = getattr(pipe.backbone, part).get_submodule(owner)
        if to != "diff":
            return isinstance(layer, nn.Linear) and leaf == "weight"
        if isinstance(layer, NORMS):
            return part == "unet"
        # AUTOMATIC1111 takes a bias beside its layer's weight only
        return isinstance(layer, (nn.Linear, nn.Conv2d)) and f"{owner}.weight" in self.changes[part]

    def rounded(self, pipe: E4TPipeline, dtype: str) -> Weights:
        """The changes that are left when merged weights are stored in ``dtype``."""
        return {
            part: {
                name: cast(name, base.float() + tensors[name], dtype).to(base.device).float() - base.float()
                for name, base in getattr(pipe.backbone, part).named_parameters()
                if name in tensors
            }
            for part, tensors in self.changes.items()
        }


def cast(name: str, tensor: Tensor, dtype: str) -> Tensor:
    """On the CPU in the file's type; integers stay. Raises ConfigError for numbers that float16 does not have."""
    if not tensor.is_floating_point():
        return tensor.detach().cpu().contiguous()
    stored = tensor.detach().to(getattr(torch, dtype)).cpu().contiguous()
    if not torch.isfinite(stored).all():
        raise ConfigError(f"{name} has values that {dtype} cannot hold; use dtype 'float32'")
    return stored
