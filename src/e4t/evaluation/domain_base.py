"""The base, tuned on a domain's pictures under its class word: no encoder, no offsets, no concepts.

    python -m e4t.evaluation.domain_base tiny-face PICTURES --output WORK/face-base

What methods that start from here are better at than from the plain base is the worth of the domain's pictures; what
E4T is better at still, that of encoder and offsets. It sees as many pictures as the domain's pre-training did, with the
captions that had, which have the class word here where they have the placeholder there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

from e4t.batches import batches
from e4t.checkpoint import TrainedDomain
from e4t.config import PretrainConfig
from e4t.errors import CheckpointError
from e4t.objective import masked_mean
from e4t.pipeline import E4TPipeline
from e4t.pretrain import data_of


@dataclass(frozen=True)
class DomainBaseConfig:
    """Which domain, on which pictures."""

    domain: tyro.conf.Positional[str]
    pictures: tyro.conf.Positional[Path]  # what the domain was pre-trained on
    output: Path
    learning_rate: float = 1e-4
    steps: int | None = None  # None: as many as the domain's pre-training
    device: str = "cpu"


def tune_base(pipe: E4TPipeline, data: Path, config: PretrainConfig) -> Iterator[float]:
    """Tune the U-Net in place, at a rate that falls to nothing over the last quarter; yields the loss of every step."""
    backbone, model = pipe.backbone, pipe.model
    # Offsets may leave some noise levels to the base, which here is all that learns.
    everywhere = replace(config, min_timestep=0, max_timestep=None)
    backbone.unet.requires_grad_(True)
    optimizer = torch.optim.AdamW(backbone.unet.parameters(), lr=config.learning_rate)
    with ExitStack() as during:
        during.callback(backbone.unet.requires_grad_, False)
        batch_at = batches(model, data_of(data, backbone, config), everywhere, during=during)
        for step in range(config.steps):
            batch = batch_at(step)
            inputs = batch.latents, batch.noise, batch.timesteps
            with torch.no_grad():
                prompts = model.prompt_embeds(batch.tokens)  # without a concept's word, the class word
            predicted = model.denoise(backbone.add_noise(*inputs), batch.timesteps, prompts)
            loss = masked_mean((predicted - backbone.target(*inputs)) ** 2, None)
            torch.autograd.backward(loss)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * min(1.0, 4 * (config.steps - step) / config.steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield float(loss.detach())


def on_domain_base(pipe: E4TPipeline, folder: Path) -> E4TPipeline:
    """The pipeline's base with a tuned U-Net, without a domain. Raises CheckpointError for an unreadable folder."""
    from diffusers import UNet2DConditionModel

    try:
        unet = UNet2DConditionModel.from_pretrained(folder, use_safetensors=True).to(pipe.backbone.device)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{folder}' holds no U-Net: {error}") from error
    name = f"{pipe.backbone.name} on {folder.name}"
    return E4TPipeline(replace(pipe.backbone, unet=unet, name=name, known_fingerprint=None), domain=pipe.domain)


def main(config: DomainBaseConfig) -> None:
    """Tune, write the U-Net's folder and print it."""
    pipe = E4TPipeline.from_pretrained(config.domain, device=config.device)
    trained: TrainedDomain | None = pipe.trained
    settings = PretrainConfig.from_dict(trained.pretrain if trained else {})
    settings = replace(settings, learning_rate=config.learning_rate, steps=config.steps or settings.steps)
    for step, loss in enumerate(tune_base(pipe, config.pictures, settings), 1):
        if step % 50 == 0 or step == settings.steps:
            print(f"step {step} of {settings.steps}: loss {loss:.4f}", flush=True)
    pipe.backbone.unet.half().save_pretrained(config.output)
    print(config.output)


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    main(tyro.cli(DomainBaseConfig, config=(tyro.conf.FlagConversionOff,)))
