"""A concept on its base: its word, and every weight that differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from e4t.checkpoint import Concept
from e4t.errors import ConfigError
from e4t.pipeline import E4TPipeline

PARTS = ("unet", "text_encoder")


CARRIED: dict[str, tuple[type[nn.Module], ...]] = {
    "diff": (nn.Linear, nn.Conv2d),
    "lora-diffusers": (nn.Linear,),
    "lora-kohya": (nn.Linear,),
}
"""Layers whose weights every reader of a format applies. Biases, norms and embeddings only some readers do."""


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
