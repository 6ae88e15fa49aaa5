"""What the method costs, as ratios from one run: everything is timed in turn with what it is compared with.

    python benchmarks/performance.py --output out/performance-tiny.json
    python benchmarks/performance.py --model sd15 --side 128 --output out/performance-sd15.json
    python benchmarks/performance.py --model sd15 --side 512 --device cuda --mixed-precision bf16 \\
        --output out/performance-gpu.json

A ratio is the median of single pairs, with the quartiles beside it, so that what else the machine does falls on both.
Each part runs in a process of its own and goes into the file at once. What is there is not measured again, unless
``--again`` says so: a file may be filled part by part (``--parts tuning sampling``).
The domain is an untrained one with the package's own settings (on sd15 with offsets of low rank instead of the paper's
form), so that the encoder takes the denoiser's features; "shipped" is of `tiny-face`, which takes none.
"sd15" has Stable Diffusion 1.5's U-Net, autoencoder and text encoder with random weights, and a small image encoder:
that one does not run in what is timed here. Peaks are of processes of their own, without what they held before loading.

The file records each part's seconds under "taken": on tiny and two idle cores a minute at most for each part, "memory"
and "first-picture" one and a half. On sd15 it is estimated from operations, for one idle core at 128 pixels, batch 1,
where a step of tuning is 0.14 TFLOP, or 4 seconds: "tuning" 4 minutes and 18 GB ("--optimizer sgd": 13 GB),
"tuning-memory" 2 minutes and the same memory, "sampling", "calls", "training" and "memory" 2 to 3 minutes and 8 GB
each, all others one. Muon is timed on tiny alone: on sd15 a step of it is 14 TFLOP more, or minutes.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
import tyro
from peak import peak
from PIL import Image
from torch.nn import functional as F

from e4t import loading, personalize
from e4t.backbone import Backbone
from e4t.checkpoint import Concept, TrainedDomain
from e4t.config import EncoderConfig, OffsetsConfig, PersonalizeConfig, PretrainConfig
from e4t.counting import counting, numbers
from e4t.domain import Domain
from e4t.evaluation.memory import Peak
from e4t.forecast import forecast
from e4t.memory import needed
from e4t.model import E4TModel
from e4t.pipeline import E4TPipeline
from e4t.precision import has_fast_bfloat16
from e4t.pretrain import pretrain
from e4t.training import Step, arithmetic, autocast

PICTURES = Path(__file__).parents[1] / "src" / "e4t" / "tiny" / "examples"
PICTURE = PICTURES / "face-00000.png"
SMALL = ("residual", "bias", "deltas")
WHOLE = (*SMALL, "unet")
PROMPT = "a photo of {} at the beach"
AIMS = {
    "tuning": {"whole": 1.15, "small": 0.85, "memory": 0.5},
    "sampling": {"live": {"tiny": 1.35, "sd15": 1.2}, "frozen": 1.02},
    "training": {"share_of_peak": {"cpu": 0.4, "cuda": 0.3}},
}


@dataclass(frozen=True)
class PerformanceConfig:
    """What to measure on which model, and how often. Without a number, one that takes minutes."""

    output: Path
    model: Literal["tiny", "sd15"] = "tiny"
    side: int = 128  # pixels, of sd15
    device: str = "cpu"
    parts: tuple[str, ...] = ()  # of those there are; none: all
    again: bool = False  # also what the output has already
    pairs: int | None = None  # tiny: 7, sd15: 3
    batch_size: int | None = None  # tiny: 4, sd15: 1
    sampling_steps: int | None = None  # tiny: 12, sd15: 4
    optimizer: Literal["adamw", "sgd"] = "adamw"  # of both sides; sgd has no state, where memory is short
    mixed_precision: Literal["no", "bf16"] = "no"  # of all that trains, and of the product it is compared with

    def filled(self) -> PerformanceConfig:
        pairs, batch_size, steps = (7, 4, 12) if self.model == "tiny" else (3, 1, 4)
        return replace(
            self,
            pairs=self.pairs or pairs,
            batch_size=self.batch_size or batch_size,
            sampling_steps=self.sampling_steps or steps,
        )


def pipeline(config: PerformanceConfig) -> E4TPipeline:
    """An untrained domain with the package's own settings, but for the form of sd15's offsets."""
    if config.model == "tiny":
        backbone, offsets = Backbone.from_pretrained("tiny", device=config.device), OffsetsConfig()
    else:
        backbone, offsets = random_stable_diffusion(config.side).to(config.device), OffsetsConfig(form="lowrank")
    model = E4TModel(
        backbone,
        Domain.named("face"),
        encoder=EncoderConfig(),
        offsets=offsets,
        embedding_scale=0.1,
    )
    tensors = model.domain_tensors()
    trained = TrainedDomain(
        model.domain, model.base, model.encoder.config, model.offsets.config, model.embedding_scale, tensors
    )
    return E4TPipeline(backbone, trained)


def random_stable_diffusion(side: int) -> Backbone:
    """1.5, for pictures of ``side`` pixels."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

    configs = loading._BASES / "stable-diffusion-1"
    torch.manual_seed(0)
    unet = UNet2DConditionModel.load_config(configs, subfolder="unet") | {"sample_size": side // 8}
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, patch_size=32
    )
    with mock.patch.object(torch.nn.init, "kaiming_uniform_", _filled):
        parts = (
            UNet2DConditionModel.from_config(unet),
            AutoencoderKL.from_config(AutoencoderKL.load_config(configs, subfolder="vae")),
        )
    return Backbone(
        *parts,
        text_encoder=CLIPTextModel(CLIPTextConfig.from_pretrained(configs, subfolder="text_encoder")),
        tokenizer=loading._tokenizer(1, None),
        scheduler=DDIMScheduler.from_config(DDIMScheduler.load_config(configs, subfolder="scheduler")),
        image_encoder=CLIPVisionModel(vision),
        name="random Stable Diffusion 1.5",
    )


def _filled(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """The same few random numbers again and again: a billion of them, one by one, take longer than what is timed."""
    block = 0.02 * torch.randn(min(tensor.numel(), 65_521))
    with torch.no_grad():
        return tensor.copy_(block.repeat(-(-tensor.numel() // len(block)))[: tensor.numel()].view_as(tensor))


# Ratios


def compared(
    jobs: Mapping[str, Callable[[], float]], pairs: int, *, warm: bool = False, also: tuple[tuple[str, str], ...] = ()
) -> dict[str, Any]:
    """Seconds of all jobs, and the ratios of all others to the first, and ``also`` of some; in turn, to and fro.

    ``warm``: jobs whose first run counts like any other.
    """
    rows: list[dict[str, float]] = []
    for number in range(0 if warm else -1, pairs):
        order = list(jobs) if number % 2 else list(jobs)[::-1]
        timed = {name: jobs[name]() for name in order}
        said = ", ".join(f"{name} {timed[name]:.3g}" for name in jobs)
        print(f"  {f'{number + 1} of {pairs}' if number >= 0 else 'to warm up'}: {said}", file=sys.stderr, flush=True)
        rows += [timed] if number >= 0 else []  # what is slow the first time
    first, *others = jobs
    report: dict[str, Any] = {"seconds": {name: _short(statistics.median(row[name] for row in rows)) for name in jobs}}
    for name, reference in (*((name, first) for name in others), *also):
        ratios = [row[name] / row[reference] for row in rows]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        report[f"{name} / {reference}"] = {"median": _short(middle), "quartiles": [_short(low), _short(high)]}
    return report


def timed(job: Callable[[], object], device: str) -> Callable[[], float]:
    """``job``, returning how long it took."""

    def run() -> float:
        synchronize(device)
        began = time.perf_counter()
        job()
        synchronize(device)
        return time.perf_counter() - began

    return run


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _short(value: float) -> float:
    return float(f"{value:.4g}")


# Tuning


def optimizer_of(config: PerformanceConfig, parameters: Any, *, fused: bool = False) -> torch.optim.Optimizer:
    """Of the other side: as diffusers' scripts make it, or fused as ours is."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=1e-6)
    return torch.optim.AdamW(parameters, lr=1e-6, fused=fused or None)  # False would also forbid the default's loop


class DreamBooth:
    """A plain U-Net step, as diffusers' example scripts take it.

    Of DreamBooth (arXiv 2208.12242, without prior preservation); ``looking`` encodes pictures first, as the script for
    text-to-image training does.
    """

    def __init__(self, pipe: E4TPipeline, config: PerformanceConfig) -> None:
        self.backbone, self.config = pipe.backbone, config
        side = pipe.backbone.unet.config.sample_size
        self.latents = torch.randn(
            config.batch_size, pipe.backbone.unet.config.in_channels, side, side, device=config.device
        )
        self.pixels = torch.rand(config.batch_size, 3, *(2 * [self.backbone.resolution])) * 2 - 1
        self.tokens = pipe.model.tokens([PROMPT.format("face")] * config.batch_size, expected=False)

    def run(self, steps: int, *, looking: bool = False, fused: bool = False) -> list[float]:
        """Seconds of each step; weights and their values stay as they were."""
        unet, backbone, seconds = self.backbone.unet, self.backbone, []
        unet.requires_grad_(True)
        optimizer = optimizer_of(self.config, [{"params": list(unet.parameters()), "lr": 0.0}], fused=fused)
        for _ in range(steps):
            synchronize(self.config.device)
            began = time.perf_counter()
            latents = backbone.encode(self.pixels, torch.Generator().manual_seed(0)) if looking else self.latents
            noise = torch.randn_like(latents)
            timesteps = torch.randint(backbone.num_timesteps, (len(noise),), device=noise.device)
            noisy = backbone.scheduler.add_noise(latents, noise, timesteps)
            with autocast(self.config.mixed_precision, backbone.device, backbone.dtype):
                with torch.no_grad():
                    words = backbone.text_encoder(self.tokens.ids)[0]
                prediction = unet(noisy, timesteps, words, return_dict=False)[0]
            F.mse_loss(prediction.float(), noise).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            synchronize(self.config.device)
            seconds.append(time.perf_counter() - began)
        unet.requires_grad_(False)
        return seconds


def prepared(pipe: E4TPipeline) -> personalize.Constants:
    return personalize.prepare(pipe.model, Image.open(PICTURE).convert("RGB"), None)


def tuning_steps(
    pipe: E4TPipeline, config: PerformanceConfig, constants: personalize.Constants, steps: int, **changes: Any
) -> list[float]:
    """Seconds of each step of `e4t.personalize`, by its own AdamW, by Muon, or by the other side's SGD."""
    return [step.seconds for step in steps_of_tuning(pipe, config, constants, steps, **changes)]


def steps_of_tuning(
    pipe: E4TPipeline, config: PerformanceConfig, constants: personalize.Constants, steps: int, **changes: Any
) -> list[Step]:
    settings = tuning_settings(config, steps=steps, **changes)
    theirs = mock.patch.object(personalize, "new_optimizer", lambda _, groups, **__: optimizer_of(config, groups))
    with theirs if config.optimizer == "sgd" and settings.optimizer != "muon" else nullcontext():
        done = personalize.tune(pipe.model, constants, config=settings, provenance={})
        return [step.training for step in done if step.training]


def tuning_settings(config: PerformanceConfig, **changes: Any) -> PersonalizeConfig:
    own = {"batch_size": config.batch_size, "mixed_precision": config.mixed_precision}
    return PersonalizeConfig().updated({**own, **changes})


def tuning(config: PerformanceConfig) -> dict[str, Any]:
    """A step of the whole U-Net, by AdamW and on tiny by Muon, and of small deltas against DreamBooth's.

    DreamBooth's by AdamW as the scripts make it, and as fast as torch can.
    """
    return _tuning(pipeline(config), config)


def _tuning(pipe: E4TPipeline, config: PerformanceConfig) -> dict[str, Any]:
    plain, constants = DreamBooth(pipe, config), prepared(pipe)
    jobs: dict[str, Callable[[], float]] = {
        "dreambooth": lambda: min(plain.run(3)[1:]),
        "dreambooth, fused": lambda: min(plain.run(3, fused=True)[1:]),
        "small": lambda: min(tuning_steps(pipe, config, constants, 3, tune=SMALL)[1:]),
        "whole": lambda: min(tuning_steps(pipe, config, constants, 3, tune=WHOLE)[1:]),
    }
    also = [(ours, "dreambooth, fused") for ours in ("small", "whole")]
    if config.model == "tiny":
        jobs["muon"] = lambda: min(tuning_steps(pipe, config, constants, 3, tune=WHOLE, optimizer="muon")[1:])
        also.append(("muon", "whole"))
    return compared(jobs, config.pairs, warm=True, also=tuple(also))


def tuning_memory(config: PerformanceConfig) -> dict[str, Any]:
    """Peaks of the same."""
    peaks = {}
    for name in ("dreambooth", "small", "whole"):
        peaks[name], state = alone(_tuning_peak, config, name)
        print(f"  {name}: {peaks[name] / 2**30:.2f} GB", file=sys.stderr, flush=True)
    reference = "dreambooth"
    if config.optimizer == "sgd":
        reference = "dreambooth, AdamW's state added"
        peaks[reference] = peaks["dreambooth"] + state
    return {"peak_bytes": peaks, f"small / {reference}": _short(peaks["small"] / max(1, peaks[reference]))}


def _tuning_peak(config: PerformanceConfig, kind: str) -> tuple[int, int]:
    """What it takes, and the bytes of AdamW's state for the whole U-Net."""
    before = resident(config)
    pipe = pipeline(config)
    peak = Peak(torch.device(config.device))
    if kind == "dreambooth":
        DreamBooth(pipe, config).run(2)
    else:  # AdamW's state of the small deltas is there, whatever the other side has
        adamw = replace(config, optimizer="adamw" if kind == "small" else config.optimizer)
        tuning_steps(pipe, adamw, prepared(pipe), 2, tune=SMALL if kind == "small" else WHOLE)
    return peak.bytes - before, 8 * numbers(pipe.backbone.unet)


def resident(config: PerformanceConfig) -> int:
    """What the process holds before it loads anything, libraries included."""
    import diffusers  # noqa: F401
    import transformers  # noqa: F401

    torch.set_flush_denormal(True)
    torch.ones(64, 64) @ torch.ones(64, 64)
    return Peak(torch.device(config.device)).bytes


def alone(job: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(job, *arguments).result()


# Sampling


def sampling(config: PerformanceConfig) -> dict[str, Any]:
    """The stock pipeline against the same with a concept in place."""
    return _sampling(pipeline(config), config)


def _sampling(pipe: E4TPipeline, config: PerformanceConfig) -> dict[str, Any]:
    concept, prompt = tuned_concept(pipe), PROMPT.format("S*")
    options = {"num_inference_steps": config.sampling_steps, "guidance_scale": 7.5, "output_type": "latent"}

    def stock() -> None:
        pipe.stock(PROMPT.format("face"), generator=torch.Generator().manual_seed(0), **options)

    def placed(embedding: str) -> float:
        with pipe.applied(concept, prompt, embedding=embedding) as applied:
            embeds = {
                "prompt_embeds": applied.prompt_embeds,
                "negative_prompt_embeds": applied.negative_prompt_embeds,
            }
            return timed(
                lambda: pipe.stock(**embeds, generator=torch.Generator().manual_seed(0), **options), config.device
            )()

    jobs: dict[str, Callable[[], float]] = {
        "stock": timed(stock, config.device),
        "live": lambda: placed("live"),
        "frozen": lambda: placed("frozen"),
    }
    return {"steps": config.sampling_steps, **compared(jobs, config.pairs)}


def calls(config: PerformanceConfig) -> dict[str, Any]:
    """Whole calls, which put a concept on and take it off, against one without a concept."""
    pipe = pipeline(config)
    concept, prompt = tuned_concept(pipe), PROMPT.format("S*")
    steps = {"num_inference_steps": config.sampling_steps}
    jobs = {
        "stock": timed(lambda: pipe(PROMPT.format("face"), **steps), config.device),
        "live": timed(lambda: pipe(prompt, concept=concept, **steps), config.device),
        "frozen": timed(lambda: pipe(prompt, concept=concept, embedding="frozen", **steps), config.device),
    }
    if has_fast_bfloat16(config.device):
        jobs["bf16"] = timed(lambda: pipe(prompt, concept=concept, mixed_precision="bf16", **steps), config.device)
    also = (("bf16", "live"),) if "bf16" in jobs else ()
    return {"steps": config.sampling_steps, **compared(jobs, _few(config), also=also)}


def tuned_concept(pipe: E4TPipeline) -> Concept:
    return pipe.personalize(PICTURE, steps=1, batch_size=1, tune=SMALL, prior_weight=0.0, frozen_timesteps=1)


def shipped(config: PerformanceConfig) -> dict[str, Any]:
    """`tuning` and `sampling` of a domain without features of the denoiser, whatever else is measured."""
    tiny = replace(config, model="tiny", batch_size=4, sampling_steps=12)
    pipe = E4TPipeline.from_pretrained("tiny-face", device=config.device)
    return {"tuning": _tuning(pipe, tiny), "sampling": _sampling(pipe, tiny)}


def _few(config: PerformanceConfig) -> int:
    return max(1, config.pairs // 2)


# Pre-training


def training(config: PerformanceConfig) -> dict[str, Any]:
    """Operations a second of pre-training against those of one large product, and of plain text-to-image training.

    Seconds are those of a billion operations, so that work is equal; both encode their pictures at every step.
    """
    pipe = pipeline(config)
    settings = pretraining_settings(config, pipe)
    plain = DreamBooth(pipe, config)
    work = {
        "text-to-image": counted(lambda: plain.run(1, looking=True)) / 1e9,
        "pre-training": counted(lambda: _pretrained(pipe, settings, 2)) / 2e9,
    }
    jobs: dict[str, Callable[[], float]] = {
        "matrix product": lambda: 1e9 / peak(numbers_of(config), device=config.device, seconds=0.5),
        "text-to-image": lambda: min(plain.run(3, looking=True)[1:]) / work["text-to-image"],
        "pre-training": lambda: min(_pretrained(pipe, settings, 3)[1:]) / work["pre-training"],
    }
    report = compared(jobs, config.pairs, warm=True, also=(("pre-training", "text-to-image"),))
    seconds = report.pop("seconds")
    ratios = {name: report[f"{name} / matrix product"]["median"] for name in work}
    return {
        **report,
        "share_of_peak": {name: _short(1 / ratio) for name, ratio in ratios.items()},
        "peak_gflops": _short(1 / seconds["matrix product"]),
        "gflop_a_step": {name: _short(value) for name, value in work.items()},
        "seconds_a_step": {name: _short(seconds[name] * value) for name, value in work.items()},
    }


def numbers_of(config: PerformanceConfig) -> torch.dtype:
    """What the training multiplies; float32 where bfloat16 would only be emulated."""
    return arithmetic(config.mixed_precision, torch.device(config.device), torch.float32)


def pretraining_settings(config: PerformanceConfig, pipe: E4TPipeline) -> PretrainConfig:
    changes = {"warmup_steps": 0, "cooldown_steps": 0, "checkpoint_every": 1000, "cache": False}
    changes |= {"batch_size": config.batch_size, "mixed_precision": config.mixed_precision}
    return PretrainConfig().updated({**changes, "offsets": {"form": pipe.model.offsets.config.form}})


def _pretrained(pipe: E4TPipeline, settings: PretrainConfig, steps: int) -> list[float]:
    """Seconds of each step of `e4t.pretrain`."""
    return [step.seconds for step in steps_of_pretraining(pipe, settings, steps)]


def steps_of_pretraining(pipe: E4TPipeline, settings: PretrainConfig, steps: int, data: Path = PICTURES) -> list[Step]:
    with tempfile.TemporaryDirectory() as folder:
        done = pretrain(
            pipe.domain,
            data,
            backbone=pipe.backbone,
            config=settings.updated({"steps": steps}),
            output=Path(folder) / "domain",
        )
        return list(done)


def counted(job: Callable[[], object]) -> int:
    """Operations; torch's own counter lacks a processor's fused attention."""
    with counting() as counter:
        job()
    return counter.operations


# Costs: seconds of tuning, as ratios to the smallest of each


def steps(config: PerformanceConfig) -> dict[str, Any]:
    """One step against five, with all that is done once."""
    pipe = pipeline(config)
    constants = prepared(pipe)
    jobs = {
        f"{n} steps": timed(lambda n=n: tuning_steps(pipe, config, constants, n, tune=SMALL), config.device)
        for n in (1, 5)
    }
    return compared(jobs, _few(config))


def batch(config: PerformanceConfig) -> dict[str, Any]:
    return _tuned(config, {f"batch {n}": {"batch_size": n} for n in _sizes(config)})


def micro_batches(config: PerformanceConfig) -> dict[str, Any]:
    *_, most = _sizes(config)
    sizes = (most, most // 4, 1) if most > 4 else (most, 1)
    whole = {"batch_size": most}
    return _tuned(config, {f"{n} of {most} at a time": {**whole, "micro_batch_size": n} for n in sizes})


def checkpointing(config: PerformanceConfig) -> dict[str, Any]:
    return _tuned(config, {word: {"gradient_checkpointing": word == "on"} for word in ("off", "on")})


def _sizes(config: PerformanceConfig) -> tuple[int, ...]:
    return (1, 2, 4, 8, 16) if config.model == "tiny" else (1, 2, 4)


def _tuned(config: PerformanceConfig, settings: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    pipe = pipeline(config)
    constants = prepared(pipe)
    jobs = {
        name: lambda changes=changes: min(tuning_steps(pipe, config, constants, 2, tune=SMALL, **changes)[1:])
        for name, changes in settings.items()
    }
    return compared(jobs, _few(config), warm=True)


def resolution(config: PerformanceConfig) -> dict[str, Any]:
    """Half, once and twice the side."""
    pipe = pipeline(config)
    constants = prepared(pipe)

    def job(share: float) -> Callable[[], float]:
        other = replace(constants, latents=F.interpolate(constants.latents, scale_factor=share))
        return lambda: min(tuning_steps(pipe, config, other, 2, tune=SMALL)[1:])

    side = pipe.backbone.resolution
    return compared({f"{share * side:.0f} pixels": job(share) for share in (0.5, 1, 2)}, _few(config), warm=True)


def processes(config: PerformanceConfig) -> dict[str, Any]:
    """Concepts a second of two processes of one thread each, as a ratio to one; of tiny, whatever else is measured."""
    tiny = replace(config, model="tiny", batch_size=4)
    rates = {}
    for count in (1, 2):
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            rates[count] = sum(pool.map(_concepts_a_second, [tiny] * count))
    return {
        "concepts_a_second": {count: _short(rate) for count, rate in rates.items()},
        "2 / 1": _short(rates[2] / rates[1]),
    }


def _concepts_a_second(config: PerformanceConfig) -> float:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    pipe = pipeline(config)
    constants = prepared(pipe)
    tuning_steps(pipe, config, constants, 1, tune=SMALL)
    return 1 / statistics.median(sum(tuning_steps(pipe, config, constants, 2, tune=SMALL)) for _ in range(_few(config)))


# Memory

RUNGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "1 at a time": {"micro_batch_size": 1},
    "checkpointed": {"gradient_checkpointing": True},
    "checkpointed, 1 at a time": {"gradient_checkpointing": True, "micro_batch_size": 1},
}


def memory(config: PerformanceConfig) -> dict[str, Any]:
    """Estimated peaks against measured ones, without the program itself: rungs of tuning's ladder, and pre-training."""
    rows = {}
    rungs = {name: changes for name, changes in RUNGS.items() if config.batch_size > 1 or "1 at" not in name}
    for name in (*rungs, "pre-training"):
        estimated, measured = alone(_memory_row, config, rungs.get(name))
        share = _short(estimated / max(1, measured))
        print(f"  {name}: {measured / 2**30:.2f} GB, estimated / measured {share}", file=sys.stderr, flush=True)
        rows[name] = {"estimated": estimated, "measured": measured, "estimated / measured": share}
    return rows


def _memory_row(config: PerformanceConfig, changes: dict[str, Any] | None) -> tuple[int, int]:
    """Of tuning with changes, or without any of pre-training."""
    before = resident(config)
    pipe = pipeline(config)
    if changes is None:
        settings = pretraining_settings(config, pipe)
        peak = Peak(torch.device(config.device))
        _pretrained(pipe, settings, 2)
        measured = peak.bytes - before
        predicted = forecast(pipe.backbone, pipe.domain, settings, device=torch.device(config.device))
        return predicted.peak - predicted.runtime, measured
    peak = Peak(torch.device(config.device))
    tuning_steps(pipe, config, prepared(pipe), 2, tune=SMALL, **changes)
    measured = peak.bytes - before
    tuned = tuning_settings(config, steps=2, tune=SMALL, **changes)
    return needed(pipe.model, tuned).peak, measured


# Start-up

STARTS = {
    "python": [sys.executable, "-c", "pass"],
    "e4t --help": [sys.executable, "-m", "e4t.cli", "--help"],
    "import e4t": [sys.executable, "-c", "import e4t"],
    "import torch": [sys.executable, "-c", "import torch"],
    "import e4t.pipeline": [sys.executable, "-c", "import e4t.pipeline"],
}
FIRST = {
    "stock": "from diffusers import StableDiffusionPipeline as P; "
    "P.from_pretrained(r'{folder}')('a photo of a face', num_inference_steps=8, guidance_scale=2.0)",
    "e4t": "from e4t import E4TPipeline as P; "
    "P.from_pretrained('tiny-face', device='cpu')('a photo of a face', num_inference_steps=8, guidance_scale=2.0)",
}


def start(config: PerformanceConfig) -> dict[str, Any]:
    """Help and imports, as processes that do one thing."""
    return compared({name: _running(command) for name, command in STARTS.items()}, config.pairs)


def first_picture(config: PerformanceConfig) -> dict[str, Any]:
    """From nothing to a picture of the tiny model, whatever else is measured."""
    folder = PICTURES.parent / "weights" / "tiny"
    commands = {name: [sys.executable, "-c", code.format(folder=folder)] for name, code in FIRST.items()}
    return compared({name: _running(command) for name, command in commands.items()}, _few(config))


def _running(command: list[str]) -> Callable[[], float]:
    return timed(lambda: subprocess.run(command, check=True, capture_output=True), "cpu")


Part = Callable[[PerformanceConfig], dict[str, Any]]
PARTS: dict[str, Part] = {
    "tuning": tuning,
    "tuning-memory": tuning_memory,
    "sampling": sampling,
    "calls": calls,
    "shipped": shipped,
    "training": training,
    "steps": steps,
    "batch": batch,
    "micro-batches": micro_batches,
    "checkpointing": checkpointing,
    "resolution": resolution,
    "processes": processes,
    "memory": memory,
    "start": start,
    "first-picture": first_picture,
}
SAME = ("model", "side", "device", "torch", "batch_size", "optimizer", "mixed_precision")
"""What has to be the same of all parts in a file."""


def measured(part: Part, config: PerformanceConfig) -> dict[str, Any]:
    """A part, with how long it took and how busy the machine was."""
    torch.set_flush_denormal(True)
    began, before, load = time.perf_counter(), _processor_seconds(), os.getloadavg()[0]
    found = part(config)
    wall, cpu = time.perf_counter() - began, _processor_seconds() - before
    taken = {"wall": _short(wall), "cpu": _short(cpu), "load_before": _short(load)}
    return {**found, "taken": {**taken, "threads": torch.get_num_threads()}}


def _processor_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main(config: PerformanceConfig) -> None:
    """Each part in a process of its own: peaks of memory are among what is measured."""
    fill(config, PARTS, {"aims": AIMS}, run=alone)


def fill(
    config: PerformanceConfig, parts: Mapping[str, Part], said: Mapping[str, Any], *, run: Callable[..., Any]
) -> None:
    """Measure parts, each by ``run``, and write the file as it grows; ``said`` is at its head."""
    config = config.filled()
    if odd := sorted(set(config.parts) - parts.keys()):
        sys.exit(f"there is no part '{odd[0]}'; there are {', '.join(parts)}")
    report: dict[str, Any] = {
        "model": config.model,
        "side": config.side if config.model == "sd15" else None,
        "device": config.device,
        "torch": torch.__version__,
        "batch_size": config.batch_size,
        "optimizer": config.optimizer,
        "mixed_precision": config.mixed_precision,
        **said,
    }
    if config.output.is_file():
        there = json.loads(config.output.read_text())
        if other := [name for name in SAME if there.get(name) != report[name]]:
            sys.exit(f"'{config.output}' is of another {other[0]}: {there.get(other[0])}; choose another file")
        report = there
    config.output.parent.mkdir(parents=True, exist_ok=True)
    for name in config.parts or parts:
        if name in report and not config.again:
            continue
        print(f"{name}:", file=sys.stderr, flush=True)
        report[name] = run(measured, parts[name], config)
        config.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main(tyro.cli(PerformanceConfig, config=(tyro.conf.FlagConversionOff,)))
