"""Gates the tiny base has to pass before E4T is worth training on it.

    python -m e4t.tiny.gates MODEL --output gates.json

Conditional gain is the relative drop of the loss from another individual's caption to the right one, with the same
noise and timestep. It is the cheapest honest measure of whether a concept can be taught to this base at all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from e4t.tiny.captions import caption, describe, name_of, training_picture
from e4t.tiny.train import tokenise
from e4t.tiny.world import Picture, draw, stream, words

TIMESTEPS = (100, 300, 500, 600, 700, 800, 900, 999)


@dataclass(frozen=True)
class Pairs:
    """Pictures with the right caption and the same caption about another individual."""

    latents: Tensor
    right: list[str]
    wrong: list[str]


def _referred(picture: Picture, named: bool) -> str:
    if named:
        return str(name_of(picture.subject))
    return describe(picture.subject.kind, dict(words(picture.subject)), stream("gate", picture.subject.key))


def gate_pictures(count: int, *, named: bool, start: int = 10**8) -> list[Picture]:
    """Face pictures nobody trained on: of named individuals, or of validation individuals only words describe."""
    namespace = "train" if named else "validation"
    pictures: list[Picture] = []
    while len(pictures) < count:
        picture = training_picture(start, namespace=namespace, kinds=("face",))
        start += 1
        if picture.art is None and (name_of(picture.subject) is not None) == named:
            pictures.append(picture)
    return pictures


def caption_pairs(pipe: Any, count: int, *, named: bool) -> Pairs:
    """Latents, right captions and captions about somebody else for ``count`` pictures."""
    pictures = gate_pictures(count, named=named)
    rgb = np.stack([draw(picture).rgb for picture in pictures])
    pixels = torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    right: list[str] = []
    wrong: list[str] = []
    for number, picture in enumerate(pictures):
        other = pictures[(number + 1) % count]
        for captions, who in ((right, picture), (wrong, other)):
            captions.append(caption(picture, stream("gate", number), subject=_referred(who, named)))
    return Pairs(latents, right, wrong)


@torch.no_grad()
def conditional_gain(pipe: Any, pairs: Pairs, timesteps: Sequence[int] = TIMESTEPS) -> dict[int, float]:
    """Relative drop of the loss from the wrong to the right caption, by timestep."""
    states = {
        name: pipe.text_encoder(tokenise(pipe.tokenizer, captions)).last_hidden_state
        for name, captions in (("right", pairs.right), ("wrong", pairs.wrong))
    }
    gains = {}
    for timestep in timesteps:
        noise = torch.randn(pairs.latents.shape, generator=torch.Generator().manual_seed(timestep))
        t = torch.full((len(noise),), timestep)
        noisy = pipe.scheduler.add_noise(pairs.latents, noise, t)
        target = pipe.scheduler.get_velocity(pairs.latents, noise, t)
        loss = {name: float(F.mse_loss(pipe.unet(noisy, t, s).sample, target)) for name, s in states.items()}
        gains[timestep] = 1 - loss["right"] / loss["wrong"]
    return gains


def base_gate(pipe: Any, count: int = 96) -> dict[str, Any]:
    """Conditional gain for names and for attribute captions, and its mean over the upper half of t."""
    report: dict[str, Any] = {}
    for label, named in (("names", True), ("attributes", False)):
        gains = conditional_gain(pipe, caption_pairs(pipe, count, named=named))
        upper = float(np.mean([gain for t, gain in gains.items() if t >= 500]))
        report[label] = {"by_timestep": gains, "upper_half": upper, "passed": upper >= 0.05}
    return report


def gate(model: Path, output: Path) -> None:
    """Print the gates of ``model`` and write them to ``output`` as JSON."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(model)
    report = base_gate(pipe)
    output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    import tyro

    tyro.cli(gate)
