"""Memory that personalizing takes on a GPU for Stable Diffusion 1.5, counted without a weight or a GPU.

    python benchmarks/rungs.py

By what is tuned (docs/cat.md), and by `--memory` (docs/performance.md): estimates of `e4t.memory` for 512 pixels,
ViT-H/14 and batches of 16. Minutes on a CPU.
"""

from __future__ import annotations

import warnings

import torch
from recipes import stable_diffusion

from e4t.backbone import Backbone
from e4t.config import EncoderConfig, OffsetsConfig, PersonalizeConfig
from e4t.domain import Domain
from e4t.memory import GIB, described, fitted, needed
from e4t.model import E4TModel

CUDA = torch.device("cuda")
CARDS = (24, 16, 12, 8, 6)


def in_type(backbone: Backbone, dtype: torch.dtype) -> None:
    for part in backbone.modules():
        part.to(dtype)


def by_what_is_tuned() -> None:
    """Without a domain, whole batches, gradient checkpointing; weights in float32 and float16."""
    backbone, usual = stable_diffusion(torch.float32), PersonalizeConfig.without_domain()
    with torch.device("meta"):
        model = E4TModel.without_domain(backbone, Domain.named("cat"), embedding_scale=0.1)
    kinds = {name: usual.keeping(name) for name in ("embedding", "vectors", "low-rank")}
    kinds |= {"default": usual, "full": usual.keeping("full"), "paper": PersonalizeConfig.paper()}
    print("| tuned | what is trained | all, float32 | all, float16 |\n|---|---|---|---|")
    for name, config in kinds.items():
        needs = []
        for dtype, cast in ((torch.float32, "bf16"), (torch.float16, "fp16")):
            in_type(backbone, dtype)
            settings = config.updated({"gradient_checkpointing": True, "mixed_precision": cast})
            needs.append(needed(model, settings, device=CUDA))
        peaks = " | ".join(f"{need.peak / GIB:.1f} GB" for need in needs)
        print(f"| {name} | {needs[0].states / GIB:.2f} GB | {peaks} |", flush=True)


def by_memory() -> None:
    """In a domain, weights in float16: what is chosen for a card, of the default and of the whole U-Net."""
    backbone = stable_diffusion(torch.float16)
    with torch.device("meta"):
        offsets = OffsetsConfig(form="lowrank")  # as a domain is loaded
        model = E4TModel(backbone, Domain.named("face"), encoder=EncoderConfig(), offsets=offsets, embedding_scale=0.1)
    usual = PersonalizeConfig(mixed_precision="fp16")
    print("\n| --memory | tuned | chosen |\n|---|---|---|")
    for name, config in {"default": usual, "whole U-Net": usual.keeping("full")}.items():
        for memory in (None, *CARDS):
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                chosen = fitted(model, config.updated({"memory": memory}), device=CUDA)
            said = [described(chosen, needed(model, chosen, device=CUDA)), *(str(one.message) for one in told)]
            print(f"| {memory or 'none'} | {name} | {'; '.join(said)} |", flush=True)


if __name__ == "__main__":
    by_what_is_tuned()
    by_memory()
