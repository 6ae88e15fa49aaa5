"""What a training in progress looks like: contact sheets of the averaged weights, drawn every so often."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from e4t.tiny.pictures import to_rgb

PROMPTS = (
    "a photo of a face",
    "a photo of a pale face with red hair in braids and green eyes",
    "a photo of a dark face with a full beard wearing a top hat",
    "a photo of a cat at the beach",
    "a watercolour of a tan face with glasses in a garden",
    "a pencil sketch of a face laughing",
    "pixel art of a face in space",
    "an oil painting of a cat in the snow",
    "a comic panel of a face wearing headphones in the city at night",
    "a snow globe with a face",
    "a stained glass window of a cat",
    "a marble statue of a face in a forest",
)


def sheet(rows: list[np.ndarray]) -> Image.Image:
    """Rows of pictures, uint8 ``[n, h, w, 3]`` each, as one picture."""
    return Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in rows]))


@torch.no_grad()
def round_trips(vae: Any, pixels: Tensor) -> Image.Image:
    """Pictures ``[n, 3, h, w]`` in [-1, 1] above what the autoencoder makes of them."""
    returned = vae.decode(vae.encode(pixels.to(vae.device)).latent_dist.mean).sample.clamp(-1, 1).cpu()
    return sheet([to_rgb(pixels), to_rgb(returned)])


def from_text(pipe: Any, *, seeds: int = 2) -> Image.Image:
    """`PROMPTS` drawn by a stock pipeline, one row for each seed."""
    pipe.set_progress_bar_config(disable=True)
    rows = []
    for seed in range(seeds):
        generators = [torch.Generator().manual_seed(seed) for _ in PROMPTS]
        images = pipe(list(PROMPTS), generator=generators, num_inference_steps=20, guidance_scale=4.0).images
        rows.append(np.stack([np.asarray(image) for image in images]))
    return sheet(rows)
