"""Memory, arithmetic and hours of the recipes in `runs` for Stable Diffusion 1.5, counted without a weight or a GPU.

    python benchmarks/recipes.py

Counted as `e4t pretrain --dry-run` does it on a GPU, for 512 pixels and ViT-H/14. Hours are estimates: operations over
a share of the dense bfloat16 rate that a card's maker states.
"""

from __future__ import annotations

from typing import Any

import torch

from e4t import loading
from e4t.backbone import Backbone
from e4t.config import EncoderConfig, OffsetsConfig, PretrainConfig
from e4t.counting import count_looking
from e4t.domain import Domain
from e4t.forecast import forecast
from e4t.model import E4TModel

CARDS = {"A100": 312e12, "RTX 4090": 165e12, "RTX 3090": 71e12}  # dense bfloat16, operations a second
DOLLARS = {"A100": 2.0}  # an hour

PAPER: dict[str, Any] = {"batch_size": 16, "mixed_precision": "bf16"}
ONE_CARD: dict[str, Any] = {
    "batch_size": 8,
    "accumulation": 2,
    "optimizer": "adamw8bit",
    "mixed_precision": "bf16",
}
RECIPES: dict[str, tuple[dict[str, Any], torch.dtype, int, tuple[str, ...]]] = {
    "face.sh": (PAPER, torch.float32, 30_000, ("A100",)),
    "cat.sh": (PAPER, torch.float32, 60_000, ("A100",)),
    "art.sh": (PAPER, torch.float32, 100_000, ("A100",)),
    "face-24gb.sh": (ONE_CARD, torch.bfloat16, 20_000, ("RTX 4090", "RTX 3090")),
}


def stable_diffusion(dtype: torch.dtype) -> Backbone:
    """Stable Diffusion 1.5 and ViT-H/14 on torch's meta device, from the configs in the package."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

    folder = loading._BASES / "stable-diffusion-1"
    vision = CLIPVisionConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
    )
    with torch.device("meta"):
        parts = {
            "unet": UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet")),
            "vae": AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae")),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder")),
            "image_encoder": CLIPVisionModel(vision),
        }
    return Backbone(
        **{name: part.to(dtype) for name, part in parts.items()},
        tokenizer=loading._tokenizer(1, None),
        scheduler=DDIMScheduler.from_config(DDIMScheduler.load_config(folder, subfolder="scheduler")),
        known_fingerprint="none",
        known_image_encoder="none",
    )


def main() -> None:
    domain, cuda = Domain.named("face"), torch.device("cuda")
    print("| recipe | a step of 16 pictures | peak | steps | time | cost |\n|---|---|---|---|---|---|")
    for name, (settings, dtype, steps, cards) in RECIPES.items():
        config = PretrainConfig().updated(settings | {"steps": steps})
        base, cached = stable_diffusion(dtype), dtype != torch.float32
        found = forecast(base, domain, config, device=cuda, cached=cached, rate=1.0)
        hours = {card: found.seconds * steps / CARDS[card] / 3600 for card in cards}
        times = ", ".join(f"{time:.1f} hours on an {card}" for card, time in hours.items())
        costs = ", ".join(f"{time * DOLLARS[card]:.0f} dollars" for card, time in hours.items() if card in DOLLARS)
        step, peak = f"{found.operations / 1e12:.0f} TFLOP", f"{found.peak / 2**30:.1f} GB"
        print(f"| `runs/{name}` | {step} | {peak} | {steps:,} | {times} | {costs or 'electricity'} |")
    print(f"\nA view for the cache: {view() / 1e12:.2f} TFLOP.")


def view() -> float:
    """Operations of autoencoder and image encoder on one picture."""
    backbone = stable_diffusion(torch.float32)
    with torch.device("meta"):
        model = E4TModel(
            backbone.blank(),
            Domain.named("face"),
            encoder=EncoderConfig(),
            offsets=OffsetsConfig(),
            embedding_scale=1.0,
        )
    return count_looking(model, rows=1, resolution=512).operations


if __name__ == "__main__":
    main()
