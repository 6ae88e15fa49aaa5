"""Train the tiny Stable Diffusion from nothing: draw, VAE, base (U-Net and text encoder together), CLIP, export.

    python -m e4t.tiny.train WORK --pictures 30000 --base-steps 20000

Every stage checkpoints; to resume, run the same command again. A larger number of steps continues a finished stage.
Captions are the only supervision: nothing here sees an identity's parameters.

The text encoder learns with the U-Net, then is frozen and CLIP's vision tower is aligned to it. What the U-Net needs
from words is then what the words carry; a text tower trained on contrast alone may drop it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from e4t.tiny import architecture
from e4t.tiny.pictures import captions_of, draw_shards, load_shards

STAGES = ("draw", "vae", "encode", "base", "clip", "export")
CAPTION_VARIANTS = 3
CAPTION_DROPOUT = 0.1


@dataclass(frozen=True)
class TinyConfig:
    """How much of everything; the defaults are the recipe of the shipped weights."""

    work: Path
    pictures: int = 30_000
    vae_steps: int = 6_000
    base_steps: int = 20_000
    clip_steps: int = 6_000
    vae_batch: int = 48  # crops of 64 px
    base_batch: int = 48
    clip_batch: int = 64
    learning_rate: float = 6e-4
    warmup: int = 200
    ema: float = 0.999
    checkpoint_every: int = 250
    seed: int = 0
    device: str = "cpu"
    stages: tuple[str, ...] = STAGES


@dataclass
class Trained:
    """Networks in bfloat16 with float32 master weights, Adam moments and an exponential moving average.

    On a CPU with bfloat16 dot products this is several times faster than float32 and, unlike plain bfloat16, loses no
    small update. The state is a flat safetensors file: no pickle.
    """

    networks: dict[str, nn.Module]
    learning_rate: float
    warmup: int
    ema_decay: float
    step: int = 0
    masters: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, network in self.networks.items():
            self.masters |= {f"{name}.{key}": p.detach().float().clone() for key, p in network.named_parameters()}
            network.to(torch.bfloat16)
        self.parameters = {f"{n}.{k}": p for n, net in self.networks.items() for k, p in net.named_parameters()}
        self.average = {key: master.clone() for key, master in self.masters.items()}
        self.optimizer = torch.optim.AdamW(
            list(self.masters.values()), lr=self.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )

    def update(self, loss: Tensor) -> float:
        """One optimiser step on ``loss``; returns its value."""
        loss.backward()  # type: ignore[no-untyped-call]
        for key, parameter in self.parameters.items():
            self.masters[key].grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(list(self.masters.values()), 1.0)
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * min(1.0, self.step / self.warmup)
        self.optimizer.step()
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            masters = list(self.masters.values())
            torch._foreach_copy_(list(self.parameters.values()), masters)
            torch._foreach_lerp_(list(self.average.values()), masters, 1 - decay)
        return float(loss.detach())

    def save(self, path: Path) -> None:
        """Write everything needed to continue, beside and then renamed."""
        tensors = {f"master/{key}": t for key, t in self.masters.items()}
        tensors |= {f"ema/{key}": t for key, t in self.average.items()}
        for key, master in self.masters.items():
            state = self.optimizer.state.get(master, {})
            tensors |= {f"adam/{key}/{part}": state[part] for part in ("exp_avg", "exp_avg_sq") if part in state}
        beside = path.with_suffix(".partial")
        save_file({k: t.contiguous() for k, t in tensors.items()}, beside, metadata={"step": str(self.step)})
        beside.rename(path)

    def load(self, path: Path) -> None:
        """Continue from `save`'s file, if there is one."""
        if not path.exists():
            return
        tensors = load_file(path)
        self.step = _read_step(path)
        with torch.no_grad():
            for key, master in self.masters.items():
                master.copy_(tensors[f"master/{key}"])
                self.average[key].copy_(tensors[f"ema/{key}"])
                self.parameters[key].copy_(master)
                if f"adam/{key}/exp_avg" in tensors:
                    self.optimizer.state[master] = {
                        "step": torch.tensor(float(self.step)),
                        "exp_avg": tensors[f"adam/{key}/exp_avg"].to(master.device),
                        "exp_avg_sq": tensors[f"adam/{key}/exp_avg_sq"].to(master.device),
                    }

    @torch.no_grad()
    def averaged(self, name: str) -> Any:
        """The named network in float32 with the moving average's weights."""
        network: Any = self.networks[name].float()
        for key, parameter in network.named_parameters():
            parameter.copy_(self.average[f"{name}.{key}"])
        return network.eval()


def _read_step(path: Path) -> int:
    """The step a file was written at; 0 where there is none."""
    from safetensors import safe_open

    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])


def _log(work: Path, stage: str, **values: Any) -> None:
    line = {"stage": stage, "time": round(time.time(), 1), **values}
    with (work / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def _run(config: TinyConfig, stage: str, trained: Trained, steps: int, losses: Iterator[Tensor]) -> None:
    """Take ``steps`` optimiser steps in all on ``losses``, logging and checkpointing."""
    path = config.work / f"{stage}.safetensors"
    recent: list[float] = []
    while trained.step < steps:
        recent.append(trained.update(next(losses)))
        if trained.step % 50 == 0:
            _log(config.work, stage, step=trained.step, loss=round(float(np.mean(recent)), 5))
            recent.clear()
        if trained.step % config.checkpoint_every == 0 or trained.step == steps:
            trained.save(path)


def _generator(config: TinyConfig, stage: str, step: int) -> torch.Generator:
    """The random stream of one step, so that a resumed run sees what an uninterrupted one would."""
    return torch.Generator().manual_seed((config.seed * len(STAGES) + STAGES.index(stage)) * 2**40 + step)


def _new(config: TinyConfig, networks: dict[str, nn.Module], stage: str) -> Trained:
    trained = Trained(
        {k: n.to(config.device).train() for k, n in networks.items()}, config.learning_rate, config.warmup, config.ema
    )
    trained.load(config.work / f"{stage}.safetensors")
    return trained


def train_vae(config: TinyConfig, rgb: np.ndarray) -> None:
    """Reconstruction with extra weight on edges, which carry identity, and on broad colours; weak KL."""
    torch.manual_seed(config.seed)
    trained = _new(config, {"vae": architecture.build_vae()}, "vae")
    vae: Any = trained.networks["vae"]

    def losses() -> Iterator[Tensor]:
        while True:
            generator = _generator(config, "vae", trained.step)
            picks = torch.randint(len(rgb), (config.vae_batch,), generator=generator).tolist()
            corners = torch.randint(0, rgb.shape[1] - 64 + 1, (config.vae_batch, 2), generator=generator).tolist()
            crops = np.stack([rgb[i, y : y + 64, x : x + 64] for i, (y, x) in zip(picks, corners, strict=True)])
            pixels = _to_pixels(crops).to(config.device)
            posterior = vae.encode(pixels.bfloat16()).latent_dist
            decoded = vae.decode(posterior.sample(generator)).sample.float()
            yield _reconstruction_loss(decoded, pixels) + 1e-6 * posterior.kl().float().mean()

    _run(config, "vae", trained, config.vae_steps, losses())


def _reconstruction_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    error = decoded - pixels
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    broad = F.avg_pool2d(error, 4)
    # Without a term of its own, hue comes last: most of the error in lines and texture is one of lightness.
    hue = (broad - broad.mean(dim=1, keepdim=True)).abs().mean()
    return error.abs().mean() + 0.5 * edges + broad.abs().mean() + 2 * hue


def _to_pixels(rgb: np.ndarray) -> Tensor:
    """uint8 ``[n, h, w, 3]`` to float ``[n, 3, h, w]`` in [-1, 1]."""
    return torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode_pictures(config: TinyConfig, rgb: np.ndarray) -> Tensor:
    """Latents of every picture, scaled to unit variance, float16 ``[n, 12, 16, 16]``; cached for this VAE."""
    path = config.work / "latents.safetensors"
    step = _read_step(config.work / "vae.safetensors")
    if path.exists() and _read_step(path) == step:
        cached = load_file(path)["latents"]
        if len(cached) == len(rgb):
            return cached
    vae = _trained_vae(config).to(torch.bfloat16)
    batches = (_to_pixels(rgb[i : i + 64]).to(config.device, torch.bfloat16) for i in range(0, len(rgb), 64))
    latents = torch.cat([vae.encode(pixels).latent_dist.mean.float().cpu() for pixels in batches])
    # Set by the first encoding and kept: a base trained on one scale must not meet another.
    scale_path = config.work / "scaling_factor.json"
    if not scale_path.exists():
        scale_path.write_text(json.dumps(float(1 / latents.std())))
    latents = (latents * _scaling_factor(config)).half()
    save_file({"latents": latents.contiguous()}, path, metadata={"step": str(step)})
    return latents


def _scaling_factor(config: TinyConfig) -> float:
    return float(json.loads((config.work / "scaling_factor.json").read_text()))


def _trained_vae(config: TinyConfig) -> Any:
    trained = _new(config, {"vae": architecture.build_vae()}, "vae")
    return trained.averaged("vae")


def tokenizer_of(config: TinyConfig) -> CLIPTokenizer:
    """The tokenizer, built once from captions of the training stream and every name."""
    folder = config.work / "tokenizer"
    if not folder.exists():
        from e4t.tiny.captions import NAMED, names

        captions = [text for texts in captions_of(np.arange(6000), CAPTION_VARIANTS) for text in texts]
        captions += [name for kind in NAMED for name in names(kind)]
        return architecture.build_tokenizer(captions, folder)
    return CLIPTokenizer.from_pretrained(folder)


def tokenise(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids ``[n, 48]``, padded as Stable Diffusion does."""
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=tokenizer.model_max_length)
    return torch.tensor(ids["input_ids"])


def caption_tokens(config: TinyConfig, tokenizer: CLIPTokenizer, indices: np.ndarray) -> Tensor:
    """Tokens of every wording of every caption, int16 ``[n, variants, 48]``; cached."""
    path = config.work / "tokens.safetensors"
    if path.exists():
        cached = load_file(path)["tokens"]
        if len(cached) == len(indices):
            return cached
    flat = [text for texts in captions_of(indices, CAPTION_VARIANTS) for text in texts]
    tokens = tokenise(tokenizer, flat).view(len(indices), CAPTION_VARIANTS, -1).to(torch.int16)
    save_file({"tokens": tokens.contiguous()}, path)
    return tokens


def train_base(config: TinyConfig, latents: Tensor, tokens: Tensor, tokenizer: CLIPTokenizer) -> None:
    """U-Net and text encoder together by v-prediction on captions, one in ten of them empty."""
    torch.manual_seed(config.seed)
    networks = {"unet": architecture.build_unet(), "text_encoder": architecture.build_text_encoder(tokenizer)}
    trained = _new(config, networks, "base")
    networks["unet"].to(memory_format=torch.channels_last)
    # Materialised attention: the fused CPU kernel's backward pass takes a quarter of a step at these sizes.
    from diffusers.models.attention_processor import AttnProcessor

    networks["unet"].set_attn_processor(AttnProcessor())
    empty = tokenise(tokenizer, [""])
    scheduler = architecture.build_scheduler()

    def losses() -> Iterator[Tensor]:
        while True:
            generator = _generator(config, "base", trained.step)
            size = (config.base_batch,)
            picks = torch.randint(len(latents), size, generator=generator)
            wording = torch.randint(tokens.shape[1], size, generator=generator)
            ids = tokens[picks, wording].long()
            ids[torch.rand(size, generator=generator) < CAPTION_DROPOUT] = empty
            clean = latents[picks].float()
            noise = torch.randn(clean.shape, generator=generator)
            t = torch.randint(scheduler.config["num_train_timesteps"], size, generator=generator)
            noisy = scheduler.add_noise(clean, noise, t)
            target = scheduler.get_velocity(clean, noise, t).to(config.device)
            yield _velocity_loss(networks, noisy.to(config.device), t.to(config.device), ids.to(config.device), target)

    _run(config, "base", trained, config.base_steps, losses())


def _velocity_loss(networks: dict[str, nn.Module], noisy: Tensor, t: Tensor, ids: Tensor, target: Tensor) -> Tensor:
    states = networks["text_encoder"](ids).last_hidden_state
    noisy = noisy.to(torch.bfloat16, memory_format=torch.channels_last)
    return F.mse_loss(networks["unet"](noisy, t, states).sample.float(), target)


def train_clip(config: TinyConfig, rgb: np.ndarray, tokens: Tensor, tokenizer: CLIPTokenizer) -> None:
    """Align a vision tower to the frozen text tower, with an image-image term between two views of one drawing."""
    torch.manual_seed(config.seed)
    clip: Any = architecture.build_clip(tokenizer)
    _load_text_tower(config, clip)
    clip.text_model.requires_grad_(False)
    trained = _new(config, {"clip": clip}, "clip")

    def losses() -> Iterator[Tensor]:
        while True:
            generator = _generator(config, "clip", trained.step)
            picks = torch.randint(len(rgb), (config.clip_batch,), generator=generator)
            wording = torch.randint(tokens.shape[1], (config.clip_batch,), generator=generator)
            pixels = _clip_pixels(rgb[picks.numpy()]).to(config.device)
            first, second = _view(pixels, generator), _view(pixels, generator)
            yield _contrastive_loss(clip, first, second, tokens[picks, wording].long().to(config.device))

    _run(config, "clip", trained, config.clip_steps, losses())


def _load_text_tower(config: TinyConfig, clip: CLIPModel) -> None:
    average = {
        key.removeprefix("ema/text_encoder."): tensor
        for key, tensor in load_file(config.work / "base.safetensors").items()
        if key.startswith("ema/text_encoder.")
    }
    clip.text_model.load_state_dict({key.removeprefix("text_model."): t for key, t in average.items()}, strict=False)


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def _clip_pixels(rgb: np.ndarray) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return (torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255 - mean) / std


def _view(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """A mild random crop and colour change of every picture."""
    n = len(pixels)
    scale = 0.85 + 0.15 * torch.rand(n, generator=generator)
    shift = (torch.rand(n, 2, generator=generator) * 2 - 1) * (1 - scale)[:, None]
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta.to(pixels.device), list(pixels.shape), align_corners=False)
    cropped = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    gain = 1 + 0.1 * torch.randn(n, 1, 1, 1, generator=generator).to(pixels.device)
    return cropped * gain + 0.1 * torch.randn(n, 3, 1, 1, generator=generator).to(pixels.device)


def _contrastive_loss(clip: Any, first: Tensor, second: Tensor, ids: Tensor) -> Tensor:
    images = torch.cat([first, second]).bfloat16()
    seen = clip.visual_projection(clip.vision_model(pixel_values=images).pooler_output).float()
    one, two = F.normalize(seen, dim=-1).chunk(2)
    read = F.normalize(clip.text_projection(clip.text_model(input_ids=ids).pooler_output).float(), dim=-1)
    scale = clip.logit_scale.float().exp().clamp(max=100)
    target = torch.arange(len(one), device=one.device)
    pairs = [(one, read), (read, one), (two, read), (one, two), (two, one)]
    return torch.stack([F.cross_entropy(scale * a @ b.T, target) for a, b in pairs]).mean()


def export(config: TinyConfig, tokenizer: CLIPTokenizer, output: Path) -> None:
    """Write the stock folders: a diffusers pipeline and, in ``image_encoder``, a transformers CLIP; float16."""
    vae = _trained_vae(config)
    vae.register_to_config(scaling_factor=_scaling_factor(config))
    networks = {"unet": architecture.build_unet(), "text_encoder": architecture.build_text_encoder(tokenizer)}
    base = _new(config, networks, "base")
    clip = architecture.build_clip(tokenizer)
    vision = _new(config, {"clip": clip}, "clip")
    vision.averaged("clip")
    vae.half().save_pretrained(output / "vae")
    base.averaged("unet").half().save_pretrained(output / "unet")
    text_encoder: CLIPTextModel = base.averaged("text_encoder").half()
    text_encoder.save_pretrained(output / "text_encoder")
    _load_text_tower(config, clip)
    clip.half().save_pretrained(output / "image_encoder")
    tokenizer.save_pretrained(output / "tokenizer")
    architecture.build_scheduler().save_pretrained(output / "scheduler")
    _write_configs(output)


def _write_configs(output: Path) -> None:
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (output / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    preprocessor = {
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "size": {"shortest_edge": architecture.RESOLUTION},
        "crop_size": {"height": architecture.RESOLUTION, "width": architecture.RESOLUTION},
    }
    (output / "image_encoder" / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    # Stored in half precision, loaded in single: transformers follows the config, and CPUs cannot sample in half.
    for name in ("text_encoder", "image_encoder"):
        path = output / name / "config.json"
        path.write_text(path.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))


def train_tiny(config: TinyConfig) -> None:
    """Run the stages named in ``config``, each from where it stands."""
    config.work.mkdir(parents=True, exist_ok=True)
    if "draw" in config.stages:
        for drawn in draw_shards(config.work / "pictures", config.pictures):
            _log(config.work, "draw", pictures=drawn)
    tokenizer = tokenizer_of(config)
    rgb, indices = load_shards(config.work / "pictures", config.pictures)
    if "vae" in config.stages:
        train_vae(config, rgb)
    if "base" in config.stages or "encode" in config.stages:
        latents = encode_pictures(config, rgb)
    tokens = caption_tokens(config, tokenizer, indices)
    if "base" in config.stages:
        train_base(config, latents, tokens, tokenizer)
    if "clip" in config.stages:
        train_clip(config, rgb, tokens, tokenizer)
    if "export" in config.stages:
        export(config, tokenizer, config.work / "tiny")


if __name__ == "__main__":
    import tyro

    torch.set_flush_denormal(True)  # two and a half times faster training steps on CPUs

    train_tiny(tyro.cli(TinyConfig, config=(tyro.conf.PositionalRequiredArgs, tyro.conf.FlagConversionOff)))
