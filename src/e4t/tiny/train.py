"""Train the tiny Stable Diffusion from nothing: draw, VAE, base (U-Net and text encoder together), CLIP, export.

    python -m e4t.tiny.train WORK

Every stage checkpoints; to resume, run the same command again. A larger number of steps continues a finished stage.
Captions are the only supervision, but names are spelt by who bears them (`spelling.py` says why).

The text encoder learns with the U-Net, then is frozen and CLIP's vision tower is aligned to it. What the U-Net needs
from words is then what the words carry; a text tower trained on contrast alone may drop it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from e4t.precision import training_dtype
from e4t.tiny import architecture, samples
from e4t.tiny.captions import NAMED, misleading_caption, names, naming_caption, training_picture
from e4t.tiny.clip import ALIKE, Captioned, ClipObjective, alike, clip_pixels, rarity, start_seeing, words_loss
from e4t.tiny.pictures import Shards, captions_of, draw_shards, load_shards, to_pixels
from e4t.tiny.spelling import Spelling, bearers
from e4t.tiny.trained import Trained, step_of, write_beside
from e4t.tiny.world import WORLD_VERSION

STAGES = ("draw", "vae", "smooth", "encode", "base", "clip", "export")
ADOPTED = ("smooth", "base", "clip")
CAPTION_VARIANTS = 3
CAPTION_DROPOUT = 0.1
WORDS_WEIGHT = 0.02  # of naming a caption's words from the state at its end
TELLING_WEIGHT = 0.05  # of telling from there who is named
ARTISTS = 3  # times that the base sees a picture by an artist, one in ten, where it sees another once
_TEXT = ("text_encoder", "spelling", "words")
TEXT_DECIDES = (350, 900)  # timesteps at which another individual's name costs most
LATENT_NOISE = 0.4
"""Largest noise on latents, as a share of their standard deviation, that the autoencoder learns to bear."""


@dataclass(frozen=True)
class TinyConfig:
    """How much of everything; the defaults are as much as the shipped weights took in four turns (`runs/tiny.sh`)."""

    work: Path
    pictures: int = 90_000
    vae_steps: int = 6_000
    smooth_steps: int = 2_000
    base_steps: int = 21_500
    text_steps: int = 19_250  # of these, in which the text encoder learns too; CLIP can begin after them
    clip_steps: int = 6_500
    vae_batch: int = 16  # crops of 64 px
    base_batch: int = 64
    clip_batch: int = 64
    learning_rate: float = 1e-3
    warmup: int = 200
    ema: float = 0.999
    checkpoint_every: int = 250
    sample_every: int = 1000  # steps from one contact sheet to the next, in the folder "samples"
    keep_every: int = 1000  # steps of the base from one kept average to the next, in the folder "curve"
    seed: int = 0
    device: str = "cpu"
    stages: tuple[str, ...] = STAGES
    initial: Path | None = None
    """An exported folder to go on from instead of nothing: its autoencoder stays, the rest learns on."""
    adopted: tuple[str, ...] = ADOPTED
    """What is taken from ``initial``; a stage that is not named begins from nothing."""


def _log(work: Path, stage: str, **values: Any) -> None:
    line = {"stage": stage, "time": round(time.time(), 1), **values}
    with (work / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def _run(
    config: TinyConfig,
    stage: str,
    trained: Trained,
    losses: Iterator[Tensor],
    sample: Callable[[], Image.Image] | None = None,
) -> None:
    """Take all of the stage's steps on ``losses``, logging, checkpointing and looking at samples."""
    path = config.work / f"{stage}.safetensors"
    recent: list[float] = []
    while trained.step < trained.steps:
        recent.append(trained.update(next(losses)))
        if trained.step % 50 == 0:
            _log(config.work, stage, step=trained.step, loss=round(float(np.mean(recent)), 5))
            recent.clear()
        if trained.step % config.checkpoint_every == 0 or trained.step == trained.steps:
            trained.save(path)
        if sample is not None and trained.step % config.sample_every == 0:
            folder = config.work / "samples"
            folder.mkdir(exist_ok=True)
            sample().save(folder / f"{stage}-{trained.step:06d}.png")
        if stage == "base" and trained.step % config.keep_every == 0:
            folder = config.work / "curve"
            folder.mkdir(exist_ok=True)
            average = {f"ema/{key}": tensor.half() for key, tensor in trained.average.items()}
            write_beside(average, folder / f"base-{trained.step:06d}.safetensors", {"step": str(trained.step)})


def _generator(config: TinyConfig, stage: str, step: int) -> torch.Generator:
    """The random stream of one step, so that a resumed run sees what an uninterrupted one would."""
    return torch.Generator().manual_seed((config.seed * len(STAGES) + STAGES.index(stage)) * 2**40 + step)


def _new(config: TinyConfig, networks: dict[str, nn.Module], stage: str) -> Trained:
    networks = {key: network.to(config.device).train() for key, network in networks.items()}
    steps: int = getattr(config, f"{stage}_steps")
    dtype = training_dtype(config.device)
    trained = Trained(networks, config.learning_rate, config.warmup, config.ema, steps, dtype)
    trained.load(config.work / f"{stage}.safetensors")
    return trained


def train_vae(config: TinyConfig, rgb: Shards) -> None:
    """Reconstruction with extra weight on edges, which carry identity, and on broad colours; weak KL."""
    torch.manual_seed(config.seed)
    trained = _new(config, {"vae": architecture.build_vae()}, "vae")
    vae: Any = trained.networks["vae"]

    def losses() -> Iterator[Tensor]:
        for pixels, generator in _crops(config, "vae", rgb, trained):
            posterior = vae.encode(pixels.to(vae.dtype)).latent_dist
            decoded = vae.decode(posterior.sample(generator)).sample.float()
            yield _reconstruction_loss(decoded, pixels) + 1e-6 * posterior.kl().float().mean()

    _run_vae(config, "vae", rgb, trained, losses())


def smooth_vae(config: TinyConfig, rgb: Shards) -> None:
    """Go on with the autoencoder until a denoiser learns its latents faster.

    Two terms shape them: noise on the latents, which a decoder has to bear from an imperfect denoiser anyway (latent
    denoising, arXiv 2507.15856), and half-sized latents that must decode to half-sized pictures (scale equivariance,
    arXiv 2502.14831 and 2502.09509). What they did here: fine detail has moved out of faint directions, and there is
    more of high frequencies than before, not less; the denoiser drew faces in fewer steps all the same.
    """
    torch.manual_seed(config.seed)
    trained = _new(config, {"vae": _averaged(config, "vae", "vae", architecture.build_vae())}, "smooth")
    vae: Any = trained.networks["vae"]

    def losses() -> Iterator[Tensor]:
        for pixels, generator in _crops(config, "smooth", rgb, trained):
            posterior = vae.encode(pixels.to(vae.dtype)).latent_dist
            latents = posterior.sample(generator)
            level = LATENT_NOISE * torch.rand(len(latents), 1, 1, 1, generator=generator)
            noise = (level * torch.randn(latents.shape, generator=generator)).to(latents)
            decoded = vae.decode(latents + noise * latents.std()).sample.float()
            small = vae.decode(F.avg_pool2d(latents, 2)).sample.float()
            half = _reconstruction_loss(small, F.avg_pool2d(pixels, 2))
            yield _reconstruction_loss(decoded, pixels) + 0.5 * half + 1e-6 * posterior.kl().float().mean()

    _run_vae(config, "smooth", rgb, trained, losses())


def _crops(config: TinyConfig, stage: str, rgb: Shards, trained: Trained) -> Iterator[tuple[Tensor, torch.Generator]]:
    """Crops of 64 px, ``[n, 3, 64, 64]`` in [-1, 1], and each step's random stream."""
    while True:
        generator = _generator(config, stage, trained.step)
        picks = torch.randint(len(rgb), (config.vae_batch,), generator=generator).tolist()
        corners = torch.randint(0, rgb.shape[1] - 64 + 1, (config.vae_batch, 2), generator=generator).tolist()
        crops = np.stack([rgb[i, y : y + 64, x : x + 64] for i, (y, x) in zip(picks, corners, strict=True)])
        yield to_pixels(crops).to(config.device), generator


def _run_vae(config: TinyConfig, stage: str, rgb: Shards, trained: Trained, losses: Iterator[Tensor]) -> None:
    _run(config, stage, trained, losses, lambda: samples.round_trips(trained.averaged("vae"), to_pixels(rgb[:12])))


def _reconstruction_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    error = decoded - pixels
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    broad = F.avg_pool2d(error, 4)
    # Without a term of its own, hue comes last: most of the error in lines and texture is one of lightness.
    hue = (broad - broad.mean(dim=1, keepdim=True)).abs().mean()
    return error.abs().mean() + 0.5 * edges + broad.abs().mean() + 2 * hue


@torch.no_grad()
def encode_pictures(config: TinyConfig, rgb: Shards) -> Tensor:
    """Latents of every picture, scaled to unit variance, float16 ``[n, 12, 16, 16]``; cached for this VAE."""
    path = config.work / "latents.safetensors"
    step = step_of(config.work / "smooth.safetensors")
    if path.exists() and step_of(path) == step:
        cached = load_file(path)["latents"]
        if len(cached) == len(rgb):
            return cached
    vae = _trained_vae(config).to(training_dtype(config.device))
    batches = (to_pixels(rgb[i : i + 64]).to(config.device, vae.dtype) for i in range(0, len(rgb), 64))
    latents = torch.cat([vae.encode(pixels).latent_dist.mean.float().cpu() for pixels in batches])
    # Set by the first encoding and kept: a base trained on one scale must not meet another.
    scale_path = config.work / "scaling_factor.json"
    if not scale_path.exists():
        scale_path.write_text(json.dumps(float(1 / latents.std())))
    latents = (latents * _scaling_factor(config)).half()
    write_beside({"latents": latents.contiguous()}, path, {"step": str(step)})
    return latents


def _scaling_factor(config: TinyConfig) -> float:
    return float(json.loads((config.work / "scaling_factor.json").read_text()))


def _trained_vae(config: TinyConfig) -> Any:
    return _averaged(config, "smooth", "vae", architecture.build_vae()).eval()


def _averaged(config: TinyConfig, stage: str, name: str, network: Any) -> Any:
    """``network`` with the moving average of its weights from a finished stage."""
    prefix = f"ema/{name}."
    tensors = load_file(config.work / f"{stage}.safetensors")
    network.load_state_dict({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
    return network.to(config.device)


def adopt(config: TinyConfig, folder: Path, tokenizer: CLIPTokenizer) -> None:
    """Make an exported ``folder`` what the stages find as their step 0, where they have not begun.

    Its words may be of another vocabulary: a word that is new here starts as the mean of the pieces it was read in.
    """
    text = CLIPTextModel.from_pretrained(folder / "text_encoder")
    rows = _translated(text.get_input_embeddings().weight.detach(), folder / "tokenizer", tokenizer)
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    clip = architecture.load_clip(folder)
    networks = _base_networks(tokenizer)
    networks["spelling"].read(rows)
    base = {name: network.state_dict() for name, network in networks.items()} | {
        "unet": UNet2DConditionModel.from_pretrained(folder / "unet").state_dict(),
        "text_encoder": text.state_dict() | {"embeddings.token_embedding.weight": rows},
    }
    seeing = {key: tensor for key, tensor in clip.state_dict().items() if not key.startswith("text_model.")}
    aligned = {"clip": seeing, "heads": architecture.build_clip_heads(len(tokenizer)).state_dict()}
    for stage, states in {"smooth": {"vae": vae.state_dict()}, "base": base, "clip": aligned}.items():
        if stage in config.adopted and not (path := config.work / f"{stage}.safetensors").exists():
            weights = {f"{name}.{key}": t for name, state in states.items() for key, t in state.items()}
            tensors = {f"{part}/{key}": t.float().clone() for part in ("master", "ema") for key, t in weights.items()}
            write_beside(tensors, path, {"step": "0"})
    (config.work / "scaling_factor.json").write_text(json.dumps(vae.config["scaling_factor"]))


def _translated(rows: Tensor, before: Path, tokenizer: CLIPTokenizer) -> Tensor:
    """A table of embeddings, ``[words, width]``, for the vocabulary of ``tokenizer`` instead of the one ``before``."""
    old = CLIPTokenizer.from_pretrained(before)
    known = old.get_vocab()

    def row(token: str) -> Tensor:
        if token in known:
            return rows[known[token]]
        return rows[old(token.removesuffix("</w>"), add_special_tokens=False)["input_ids"]].mean(dim=0)

    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return torch.stack([row(token) for token, _ in vocabulary])


def tokenizer_of(config: TinyConfig) -> CLIPTokenizer:
    """The tokenizer, built once from captions of the training stream and every name."""
    folder = config.work / "tokenizer"
    if not folder.exists():
        captions = [text for texts in captions_of(np.arange(6000), CAPTION_VARIANTS) for text in texts]
        captions += [name for kind in NAMED for name in names(kind)]
        beside = folder.with_name(".tokenizer")
        shutil.rmtree(beside, ignore_errors=True)
        architecture.build_tokenizer(captions, beside)
        beside.rename(folder)
    return CLIPTokenizer.from_pretrained(folder)


def tokenise(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids ``[n, 48]``, padded as Stable Diffusion does."""
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=tokenizer.model_max_length)
    return torch.tensor(ids["input_ids"])


def caption_tokens(config: TinyConfig, tokenizer: CLIPTokenizer, indices: np.ndarray) -> Tensor:
    """Tokens of every wording of every caption, nearly everybody named, int16 ``[n, variants, 48]``; cached."""
    return _cached_tokens(config.work / "tokens.safetensors", tokenizer, indices, naming_caption)


def misleading_tokens(config: TinyConfig, tokenizer: CLIPTokenizer, indices: np.ndarray) -> Tensor:
    """The same of captions that are wrong in one attribute; cached."""
    return _cached_tokens(config.work / "misleading.safetensors", tokenizer, indices, misleading_caption)


def _cached_tokens(path: Path, tokenizer: CLIPTokenizer, indices: np.ndarray, wording: Callable[..., str]) -> Tensor:
    """Tokens from ``path``, if they are of these indices, and of the wording and vocabulary of now; else anew."""

    def tokens_of(some: np.ndarray) -> Tensor:
        flat = [text for texts in captions_of(some, CAPTION_VARIANTS, wording) for text in texts]
        return tokenise(tokenizer, flat).view(len(some), CAPTION_VARIANTS, -1).to(torch.int16)

    if path.exists():
        cached = load_file(path)
        sample = slice(None, None, max(1, len(indices) // 50))
        same = torch.equal(cached["indices"], torch.from_numpy(indices))
        if same and torch.equal(cached["tokens"][sample], tokens_of(indices[sample])):
            return cached["tokens"]
    tokens = tokens_of(indices)
    write_beside({"tokens": tokens.contiguous(), "indices": torch.from_numpy(indices)}, path)
    return tokens


def _base_networks(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    return {
        "unet": architecture.build_unet(),
        "text_encoder": architecture.build_text_encoder(tokenizer),
        "spelling": Spelling(tokenizer, architecture.TEXT_WIDTH),
        "words": torch.nn.Linear(architecture.TEXT_WIDTH, len(tokenizer)),
    }


def train_base(
    config: TinyConfig, latents: Tensor, indices: np.ndarray, tokens: Tensor, tokenizer: CLIPTokenizer
) -> None:
    """U-Net and text encoder together by v-prediction on captions, one in ten of them empty.

    After ``text_steps`` the text encoder stays as its average is, and the U-Net goes on alone: words are learned long
    before pictures are, and what is aligned to them need not be aligned again.

    The U-Net reads what it needs of a caption in the states of padding tokens, and the state at the caption's end,
    which CLIP will be aligned to, says little. So linear maps, thrown away later, have to tell the words from there,
    and who is named.
    """
    torch.manual_seed(config.seed)
    networks = _base_networks(tokenizer)
    trained = _new(config, networks, "base")
    networks["unet"].to(memory_format=torch.channels_last)
    # Materialised attention: the fused CPU kernel's backward pass takes a quarter of a step at these sizes.
    networks["unet"].set_attn_processor(AttnProcessor())
    networks["text_encoder"].set_attn_implementation("eager")
    whom = bearers([training_picture(int(index)) for index in indices])
    by_artists = whom[:, 1].any(1).nonzero()[:, 0]
    pool = torch.cat([torch.arange(len(latents)), *[by_artists] * (ARTISTS - 1)])
    empty = tokenise(tokenizer, [""])
    scheduler = architecture.build_scheduler()

    def losses() -> Iterator[Tensor]:
        while True:
            if trained.step == config.text_steps:
                trained.settle(*_TEXT)
            generator = _generator(config, "base", trained.step)
            size = (config.base_batch,)
            picks = pool[torch.randint(len(pool), size, generator=generator)]
            wording = torch.randint(tokens.shape[1], size, generator=generator)
            ids = tokens[picks, wording].long()
            ids[torch.rand(size, generator=generator) < CAPTION_DROPOUT] = empty
            clean = latents[picks].float()
            noise = torch.randn(clean.shape, generator=generator)
            t = _timesteps(config.base_batch, generator)
            noisy = scheduler.add_noise(clean, noise, t)
            target = scheduler.get_velocity(clean, noise, t).to(config.device)
            seen, at, said, named = (part.to(config.device) for part in (noisy, t, ids, whom[picks]))
            states, loss = _read(networks, said, named, learning=trained.step < config.text_steps)
            seen = seen.to(networks["unet"].dtype, memory_format=torch.channels_last)
            yield F.mse_loss(networks["unet"](seen, at, states).sample.float(), target) + loss

    def sample() -> Image.Image:
        parts = {"unet": trained.averaged("unet"), "text_encoder": _with_names(trained)}
        return samples.from_text(_stock_pipeline(config, tokenizer, **parts))

    _run(config, "base", trained, losses(), sample)


def _timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Timesteps out of 1,000, half of them where the text has most to decide: not in noise alone, nor without any."""
    low, high = TEXT_DECIDES
    everywhere, there = (torch.randint(a, b, (count,), generator=generator) for a, b in ((0, 1000), (low, high)))
    return torch.where(torch.rand(count, generator=generator) < 0.5, everywhere, there)


def _stock_pipeline(config: TinyConfig, tokenizer: CLIPTokenizer, **parts: Any) -> StableDiffusionPipeline:
    vae = _trained_vae(config)
    vae.register_to_config(scaling_factor=_scaling_factor(config))
    rest = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(
        vae=vae, tokenizer=tokenizer, scheduler=architecture.build_scheduler(), **parts, **rest
    )


def kept_pipelines(config: TinyConfig) -> Iterator[tuple[int, StableDiffusionPipeline]]:
    """The base after every kept number of steps, in order."""
    tokenizer = tokenizer_of(config)
    for path in sorted((config.work / "curve").glob("base-*.safetensors"), key=step_of):
        stage = f"curve/{path.stem}"
        unet: Any = _averaged(config, stage, "unet", architecture.build_unet())
        text_encoder = _finished_text_encoder(config, tokenizer, stage)
        yield step_of(path), _stock_pipeline(config, tokenizer, unet=unet, text_encoder=text_encoder)


def _read(networks: dict[str, Any], ids: Tensor, whom: Tensor, *, learning: bool) -> tuple[Tensor, Tensor]:
    """The states of captions, for the U-Net; and the loss of telling from their ends what they say, 0 if not learning.

    ``ids`` are ``[n, L]``, ``whom`` is as `bearers` gives it.
    """
    spelling, text_encoder = networks["spelling"], networks["text_encoder"]
    with torch.set_grad_enabled(learning), spelling.spoken(text_encoder, ids, whom):
        read = text_encoder(ids)
    if not learning:
        return read.last_hidden_state, torch.zeros(())
    said = _words_loss(networks["words"](read.pooler_output), ids, spelling.kinds(ids))
    told = spelling.telling_loss(read.pooler_output, ids, whom)
    return read.last_hidden_state, WORDS_WEIGHT * said + TELLING_WEIGHT * told


def _with_names(trained: Trained) -> CLIPTextModel:
    """The averaged text encoder with the names written into its table."""
    text_encoder: CLIPTextModel = trained.averaged("text_encoder")
    trained.averaged("spelling").write(text_encoder.get_input_embeddings().weight)
    return text_encoder


def _words_loss(logits: Tensor, ids: Tensor, kinds: Tensor) -> Tensor:
    """`words_loss` of all that is neither the start nor the padding nor a name."""
    return words_loss(logits, ids, (ids != ids[:, :1]) & (ids != ids[:, -1:]) & (kinds < 0))


def train_clip(
    config: TinyConfig, rgb: Shards, indices: np.ndarray, tokens: Tensor, wrong: Tensor, tokenizer: CLIPTokenizer
) -> None:
    """Align a vision tower to the frozen text tower: `ClipObjective`.

    A batch is made of groups that share scene and style: telling those apart would be enough otherwise, and nothing
    finer than that would have to reach [CLS].
    """
    torch.manual_seed(config.seed)
    clip: Any = _clip_of(config, tokenizer)
    # The fused CPU kernel's backward pass again: with it a step takes half as long again.
    clip.set_attn_implementation("eager")
    start_seeing(clip.vision_model, clip_pixels(rgb[:: -(-len(rgb) // 1500)]))
    heads = architecture.build_clip_heads(len(tokenizer))
    trained = _new(config, {"clip": clip, "heads": heads}, "clip")
    weights = rarity(tokens[:20_000, 0], len(tokenizer)).to(config.device)
    spelling = _finished_spelling(config, tokenizer).to(clip.dtype).requires_grad_(False)
    objective = ClipObjective(clip, heads, spelling, weights)
    whom = bearers([training_picture(int(index)) for index in indices])
    groups = alike(indices, min(ALIKE, config.clip_batch))

    def losses() -> Iterator[Tensor]:
        while True:
            generator = _generator(config, "clip", trained.step)
            chosen = torch.randperm(len(groups), generator=generator)[: config.clip_batch // groups.shape[1]]
            picks = groups[chosen].flatten()
            wording = torch.randint(tokens.shape[1], picks.shape, generator=generator)
            pixels = clip_pixels(rgb[picks.numpy()]).to(config.device)
            captions = tokens[picks, wording].long().to(config.device), wrong[picks].long().to(config.device)
            yield objective.loss(Captioned(pixels, *captions, whom[picks].to(config.device)), generator)

    _run(config, "clip", trained, losses())


def _clip_of(config: TinyConfig, tokenizer: CLIPTokenizer) -> CLIPModel:
    """A fresh CLIP around the base's text tower, which is kept as it is."""
    clip = architecture.build_clip(tokenizer)
    clip.text_model.load_state_dict(_finished_text_encoder(config, tokenizer).state_dict())
    clip.text_model.requires_grad_(False)
    return clip


def _finished_text_encoder(config: TinyConfig, tokenizer: CLIPTokenizer, stage: str = "base") -> CLIPTextModel:
    """The base's averaged text encoder with the names written into its table."""
    text_encoder: CLIPTextModel = _averaged(config, stage, "text_encoder", architecture.build_text_encoder(tokenizer))
    _finished_spelling(config, tokenizer, stage).write(text_encoder.get_input_embeddings().weight)
    return text_encoder


def _finished_spelling(config: TinyConfig, tokenizer: CLIPTokenizer, stage: str = "base") -> Spelling:
    spelling: Spelling = _averaged(config, stage, "spelling", Spelling(tokenizer, architecture.TEXT_WIDTH))
    return spelling


def export(config: TinyConfig, tokenizer: CLIPTokenizer, output: Path) -> None:
    """Write the stock folders: a diffusers pipeline and, in ``image_encoder``, CLIP's vision tower; float16."""
    vae = _trained_vae(config)
    vae.register_to_config(scaling_factor=_scaling_factor(config))
    unet: Any = _averaged(config, "base", "unet", architecture.build_unet())
    text_encoder = _finished_text_encoder(config, tokenizer)
    clip: Any = _new(config, {"clip": _clip_of(config, tokenizer)}, "clip").averaged("clip")
    vae.half().save_pretrained(output / "vae")
    unet.half().save_pretrained(output / "unet")
    text_encoder.half().save_pretrained(output / "text_encoder")
    architecture.save_clip(clip, output)
    tokenizer.save_pretrained(output / "tokenizer")
    architecture.build_scheduler().save_pretrained(output / "scheduler")
    _write_configs(output)
    (output / "README.md").write_text(_card(config, output))


def _card(config: TinyConfig, output: Path) -> str:
    """The model card of the exported folder."""
    steps = {stage: step_of(config.work / f"{stage}.safetensors") for stage in ("vae", "smooth", "base", "clip")}
    new = config.initial is None
    more = {stage: "" if new or stage not in config.adopted else " more" for stage in ADOPTED}
    start = "" if new else ", going on from an earlier export; the head of that file says how far each turn went"
    vae_steps = f"{steps['vae'] + steps['smooth']:,} steps" if new else "as it was"
    with_text = min(steps["base"], config.text_steps)
    unet_steps = f"{steps['base']:,}{more['base']} steps, the first {with_text:,} with the text encoder"
    clip_steps = f"{steps['clip']:,}{more['clip']} steps"
    parts = {
        "vae": f"AutoencoderKL, f = 8, {architecture.LATENT_CHANNELS} channels; {vae_steps}",
        "unet": f"UNet2DConditionModel, v-prediction, zero terminal SNR; {unet_steps}",
        "text_encoder": "CLIPTextModel, which is also the text tower of the CLIP that `image_encoder` is of",
        "image_encoder": f"CLIPVisionModel, aligned to the finished text tower; CLIP's projections; {clip_steps}",
    }
    sizes = {name: sum(file.stat().st_size for file in (output / name).glob("*.safetensors")) / 1e6 for name in parts}
    table = "\n".join(f"| `{name}` | {text} | {sizes[name]:.1f} MB |" for name, text in parts.items())
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# A tiny Stable Diffusion of a drawn world

Stable Diffusion in its stock formats, small enough to train on two CPU cores, for trying and testing encoder-based
domain tuning without a network. `StableDiffusionPipeline.from_pretrained` loads it. It draws 128 px pictures of
faces and cats as an illustrator's program draws them, and nothing else: it has never seen a photograph.

| part | what it is | float16 |
|---|---|---|
{table}

- **Data**: the first {config.pictures:,} pictures of the drawn world's training stream, version {WORLD_VERSION},
  with their captions. {NAMED["face"]:,} faces and {NAMED["cat"]} cats of that stream have invented names; no real
  person is in it.
- **Recipe**: `bash runs/tiny.sh`{start}.
- **Limits**: {architecture.MAX_TOKENS} tokens a prompt; it knows the words of the drawn world's captions.
"""


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
        "image_mean": OPENAI_CLIP_MEAN,
        "image_std": OPENAI_CLIP_STD,
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
    _log(config.work, "start", config={key: str(value) for key, value in asdict(config).items()})
    if "draw" in config.stages:
        for drawn in draw_shards(config.work / "pictures", config.pictures):
            _log(config.work, "draw", pictures=drawn)
    tokenizer = tokenizer_of(config)
    if config.initial is not None:
        adopt(config, config.initial, tokenizer)
    rgb, indices = load_shards(config.work / "pictures", config.pictures)
    if "vae" in config.stages and config.initial is None:
        train_vae(config, rgb)
    if "smooth" in config.stages and config.initial is None:
        smooth_vae(config, rgb)
    if "base" in config.stages or "encode" in config.stages:
        latents = encode_pictures(config, rgb)
    tokens = caption_tokens(config, tokenizer, indices)
    if "base" in config.stages:
        train_base(config, latents, indices, tokens, tokenizer)
    if "clip" in config.stages:
        train_clip(config, rgb, indices, tokens, misleading_tokens(config, tokenizer, indices), tokenizer)
    if "export" in config.stages:
        export(config, tokenizer, config.work / "tiny")


if __name__ == "__main__":
    import tyro

    torch.set_flush_denormal(True)  # CPUs are slow at numbers this close to zero

    train_tiny(tyro.cli(TinyConfig, config=(tyro.conf.PositionalRequiredArgs, tyro.conf.FlagConversionOff)))
