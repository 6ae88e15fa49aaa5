"""What the method costs, as ratios from one run: everything is timed in turn with what it is compared with.

    python benchmarks/performance.py --output out/performance-tiny.json
    python benchmarks/performance.py --model sd15 --side 128 --output out/performance-sd15.json
    python benchmarks/performance.py --model sd15 --side 512 --device cuda --output out/performance-gpu.json

A ratio is the median of single pairs, with the quartiles beside it, so that what else the machine does falls on both.
"sd15" has Stable Diffusion 1.5's U-Net, autoencoder and text encoder with random weights, and a small image encoder:
that one does not run in what is timed here. Peaks are of processes of their own, without what they held before loading.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
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
from torch.utils.flop_counter import FlopCounterMode

from e4t import loading, personalize
from e4t.backbone import Backbone
from e4t.checkpoint import TrainedDomain
from e4t.config import EncoderConfig, OffsetsConfig, PersonalizeConfig, PretrainConfig
from e4t.domain import Domain
from e4t.evaluation.memory import Peak
from e4t.memory import needed
from e4t.model import E4TModel
from e4t.pipeline import E4TPipeline
from e4t.pretrain import pretrain

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
    """What to measure on which model, and how often."""

    output: Path
    model: Literal["tiny", "sd15"] = "tiny"
    side: int = 128  # pixels, of sd15
    device: str = "cpu"
    parts: tuple[str, ...] = ("tuning", "sampling", "training", "costs", "memory", "start")
    pairs: int = 7
    batch_size: int = 4
    sampling_steps: int = 12
    rungs: tuple[str, ...] = ("as it is", "1 at a time", "checkpointed", "checkpointed, 1 at a time")
    optimizer: Literal["adamw", "sgd"] = "adamw"  # of both sides; sgd has no state, where memory is short


def pipeline(config: PerformanceConfig) -> E4TPipeline:
    """The shipped domain, or an untrained one on random weights."""
    if config.model == "tiny":
        return E4TPipeline.from_pretrained("tiny-face", device=config.device)
    backbone = random_stable_diffusion(config.side).to(config.device)
    model = E4TModel(
        backbone,
        Domain.named("face"),
        encoder=EncoderConfig(),
        offsets=OffsetsConfig(form="lowrank"),
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


def compared(jobs: Mapping[str, Callable[[], float]], pairs: int) -> dict[str, Any]:
    """Seconds of all jobs, and the ratios of all others to the first; in turn, forwards and backwards."""
    for job in jobs.values():
        job()  # what is slow the first time
    rows: list[dict[str, float]] = []
    for number in range(pairs):
        order = list(jobs) if number % 2 else list(jobs)[::-1]
        timed = {name: jobs[name]() for name in order}
        rows.append(timed)
    first, *others = jobs
    report: dict[str, Any] = {"seconds": {name: _short(statistics.median(row[name] for row in rows)) for name in jobs}}
    for name in others:
        ratios = [row[name] / row[first] for row in rows]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        report[f"{name} / {first}"] = {"median": _short(middle), "quartiles": [_short(low), _short(high)]}
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


def optimizer_of(config: PerformanceConfig, parameters: Any) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=1e-6)
    return torch.optim.AdamW(parameters, lr=1e-6)


class DreamBooth:
    """A plain U-Net step, as diffusers' example script takes it (arXiv 2208.12242, without prior preservation)."""

    def __init__(self, pipe: E4TPipeline, config: PerformanceConfig) -> None:
        self.backbone, self.config = pipe.backbone, config
        side = pipe.backbone.unet.config.sample_size
        self.latents = torch.randn(
            config.batch_size, pipe.backbone.unet.config.in_channels, side, side, device=config.device
        )
        self.tokens = pipe.model.tokens([PROMPT.format("face")] * config.batch_size, expected=False)

    def run(self, steps: int) -> list[float]:
        """Seconds of each step; weights and their values stay as they were."""
        unet, backbone, seconds = self.backbone.unet, self.backbone, []
        unet.requires_grad_(True)
        optimizer = optimizer_of(self.config, [{"params": list(unet.parameters()), "lr": 0.0}])
        for _ in range(steps):
            synchronize(self.config.device)
            began = time.perf_counter()
            noise = torch.randn_like(self.latents)
            timesteps = torch.randint(backbone.num_timesteps, (len(noise),), device=noise.device)
            noisy = backbone.scheduler.add_noise(self.latents, noise, timesteps)
            with torch.no_grad():
                words = backbone.text_encoder(self.tokens.ids)[0]
            prediction = unet(noisy, timesteps, words, return_dict=False)[0]
            F.mse_loss(prediction, noise).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            synchronize(self.config.device)
            seconds.append(time.perf_counter() - began)
        unet.requires_grad_(False)
        return seconds


def tuning_steps(pipe: E4TPipeline, config: PerformanceConfig, steps: int, **changes: Any) -> list[float]:
    """Seconds of each step of `e4t.personalize`."""
    settings = PersonalizeConfig().updated({"steps": steps, "batch_size": config.batch_size, **changes})
    constants = personalize.prepare(pipe.model, Image.open(PICTURE).convert("RGB"), None)
    with mock.patch.object(personalize, "_optimizer", lambda groups, *_: optimizer_of(config, groups)):
        done = personalize.tune(pipe.model, constants, config=settings, provenance={})
        return [step.training.seconds for step in done if step.training]


def tuning(config: PerformanceConfig) -> dict[str, Any]:
    """A step of the whole U-Net and of small deltas against DreamBooth's: time, and memory."""
    report, state = _tuning_times(config)
    peaks = {name: alone(_tuning_peak, config, name) for name in ("dreambooth", "small", "whole")}
    if config.optimizer == "sgd":
        peaks["dreambooth, AdamW's state added"] = peaks["dreambooth"] + state
    reference = list(peaks)[-1] if config.optimizer == "sgd" else "dreambooth"
    report["peak_bytes"] = peaks
    report[f"memory: small / {reference}"] = _short(peaks["small"] / peaks[reference])
    return report


def _tuning_times(config: PerformanceConfig) -> tuple[dict[str, Any], int]:
    """Ratios of steps, and the bytes of AdamW's state for the whole U-Net."""
    pipe = pipeline(config)
    plain = DreamBooth(pipe, config)
    jobs: dict[str, Callable[[], float]] = {
        "dreambooth": lambda: min(plain.run(3)[1:]),
        "small": lambda: min(tuning_steps(pipe, config, 3, tune=SMALL)[1:]),
        "whole": lambda: min(tuning_steps(pipe, config, 3, tune=WHOLE)[1:]),
    }
    report = compared(jobs, config.pairs)
    state = 8 * sum(parameter.numel() for parameter in pipe.backbone.unet.parameters())
    return report, state


def _tuning_peak(config: PerformanceConfig, kind: str) -> int:
    before = resident(config)
    pipe = pipeline(config)
    with Peak(torch.device(config.device)) as peak_of:
        if kind == "dreambooth":
            DreamBooth(pipe, config).run(2)
        else:  # AdamW's state of the small deltas is there, whatever the other side has
            adamw = replace(config, optimizer="adamw" if kind == "small" else config.optimizer)
            tuning_steps(pipe, adamw, 2, tune=SMALL if kind == "small" else WHOLE)
    return peak_of.bytes - before


def resident(config: PerformanceConfig) -> int:
    """What the process holds before it loads anything, libraries included."""
    import diffusers  # noqa: F401
    import transformers  # noqa: F401

    torch.set_flush_denormal(True)
    torch.ones(64, 64) @ torch.ones(64, 64)
    with Peak(torch.device(config.device)) as now:
        pass
    return now.bytes


def alone(job: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(job, *arguments).result()


# Sampling


def sampling(config: PerformanceConfig) -> dict[str, Any]:
    """The stock pipeline against the same with a concept in place; and whole calls, which put it on and take it off."""
    pipe = pipeline(config)
    concept = pipe.personalize(PICTURE, steps=1, batch_size=1, tune=SMALL, prior_weight=0.0)
    prompt = PROMPT.format("S*")
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
    report = compared(jobs, config.pairs)
    steps = {"num_inference_steps": config.sampling_steps}
    calls = {
        "stock": timed(lambda: pipe(PROMPT.format("face"), **steps), config.device),
        "live": timed(lambda: pipe(prompt, concept=concept, **steps), config.device),
        "frozen": timed(lambda: pipe(prompt, concept=concept, embedding="frozen", **steps), config.device),
    }
    return {"steps": config.sampling_steps, "drawing": report, "whole_call": compared(calls, max(3, config.pairs // 2))}


# Pre-training


def training(config: PerformanceConfig) -> dict[str, Any]:
    """Operations a second of pre-training against those of one large product, and of plain text-to-image training."""
    pipe = pipeline(config)
    own = pipe.trained.pretrain if pipe.trained and pipe.trained.pretrain else {}
    settings = PretrainConfig.from_dict(own).updated(
        {"warmup_steps": 0, "cooldown_steps": 0, "mixed_precision": "no", "checkpoint_every": 1000}
    )
    if config.model != "tiny":
        settings = settings.updated({"batch_size": config.batch_size, "offsets": {"form": "lowrank"}})
    plain = DreamBooth(pipe, replace(config, batch_size=settings.batch_size, optimizer="sgd"))

    def ours() -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            steps = pretrain(
                pipe.domain,
                PICTURES,
                backbone=pipe.backbone,
                config=settings.updated({"steps": 3}),
                output=Path(folder) / "domain",
            )
            return [step.seconds for step in steps]

    work = {"text-to-image": counted(lambda: plain.run(1)), "pre-training": counted(ours) / 3}
    jobs: dict[str, Callable[[], float]] = {
        "text-to-image": lambda: min(plain.run(3)[1:]) / work["text-to-image"],
        "pre-training": lambda: min(ours()[1:]) / work["pre-training"],
    }
    report = compared(jobs, config.pairs)
    report["seconds_per_gflop"] = {name: _short(value * 1e9) for name, value in report.pop("seconds").items()}
    rate = peak(torch.float32)
    report["share_of_peak"] = {n: _short(1e9 / (rate * value)) for n, value in report["seconds_per_gflop"].items()}
    report["peak_gflops"], report["batch_size"] = _short(rate / 1e9), settings.batch_size
    return report


def counted(job: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        job()
    return int(counter.get_total_flops())


# Costs


def costs(config: PerformanceConfig) -> dict[str, Any]:
    """Seconds of tuning against steps, batch, resolution and processes, as ratios to the smallest of each."""
    pipe = pipeline(config)
    side = pipe.backbone.unet.config.sample_size
    batches = {f"batch {n}": _step(pipe, config, batch_size=n) for n in (1, 2, 4, 8, 16)}
    parts = {f"{n} of 16 at a time": _step(pipe, config, batch_size=16, micro_batch_size=n) for n in (16, 4, 1)}
    checkpointed = {str(on): _step(pipe, config, batch_size=8, gradient_checkpointing=on) for on in (False, True)}
    sides = {f"{share * side * 8:.0f} pixels": _resolution(pipe, config, share) for share in (0.5, 1, 2)}
    steps = {f"{n} steps": timed(lambda n=n: tuning_steps(pipe, config, n, tune=SMALL), config.device) for n in (1, 5)}
    pairs = max(3, config.pairs // 2)
    report = {
        "steps": compared(steps, pairs),
        "batch": compared(batches, pairs),
        "micro_batches": compared(parts, pairs),
        "gradient_checkpointing": compared(checkpointed, pairs),
        "resolution": compared(sides, pairs),
    }
    if config.model == "tiny":
        report["processes"] = _processes(config)
    return report


def _step(pipe: E4TPipeline, config: PerformanceConfig, **changes: Any) -> Callable[[], float]:
    return lambda: min(tuning_steps(pipe, config, 2, tune=SMALL, **changes)[1:])


def _resolution(pipe: E4TPipeline, config: PerformanceConfig, share: float) -> Callable[[], float]:
    real = personalize.prepare

    def resized(*arguments: Any) -> Any:
        constants = real(*arguments)
        return replace(constants, latents=F.interpolate(constants.latents, scale_factor=share))

    def run() -> float:
        with mock.patch.object(personalize, "prepare", resized):
            return min(tuning_steps(pipe, config, 2, tune=SMALL)[1:])

    return run


def _processes(config: PerformanceConfig) -> dict[str, float]:
    """Concepts a second of several processes of one thread each, as ratios to one."""
    rates = {}
    for count in (1, 2):
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            rates[count] = sum(pool.map(_concepts_a_second, [config] * count))
    return {f"{count} / 1": _short(rate / rates[1]) for count, rate in rates.items()}


def _concepts_a_second(config: PerformanceConfig) -> float:
    torch.set_num_threads(1)
    pipe = pipeline(config)
    tuning_steps(pipe, config, 1, tune=SMALL)
    seconds = statistics.median(sum(tuning_steps(pipe, config, 3, tune=SMALL)) for _ in range(5))
    return 1 / seconds


# Memory

RUNGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "1 at a time": {"micro_batch_size": 1},
    "checkpointed": {"gradient_checkpointing": True},
    "checkpointed, 1 at a time": {"gradient_checkpointing": True, "micro_batch_size": 1},
}


def memory(config: PerformanceConfig) -> dict[str, Any]:
    """The estimated peak of tuning against the measured one, of a few rungs of the ladder."""
    rows = {}
    for name in config.rungs:
        changes = RUNGS[name]
        estimated, measured = alone(_memory_row, config, {"tune": SMALL, **changes})
        rows[name] = {
            "estimated": estimated,
            "measured": measured,
            "estimated / measured": _short(estimated / measured),
        }
    return rows


def _memory_row(config: PerformanceConfig, changes: dict[str, Any]) -> tuple[int, int]:
    before = resident(config)
    pipe = pipeline(config)
    settings = PersonalizeConfig().updated({"steps": 2, "batch_size": config.batch_size, **changes})
    estimated = needed(pipe.model, settings).peak
    with Peak(torch.device(config.device)) as measured:
        tuning_steps(pipe, config, 2, **changes)
    return estimated, measured.bytes - before


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
    """Of the tiny model, whatever else is measured: processes that do one thing."""
    folder = PICTURES.parent / "weights" / "tiny"
    commands = {name: [sys.executable, "-c", code.format(folder=folder)] for name, code in FIRST.items()}

    def running(command: list[str]) -> Callable[[], float]:
        return timed(lambda: subprocess.run(command, check=True, capture_output=True), "cpu")

    return {
        "processes": compared({name: running(command) for name, command in STARTS.items()}, config.pairs),
        "first_picture": compared({name: running(command) for name, command in commands.items()}, 3),
    }


PARTS: dict[str, Callable[[PerformanceConfig], dict[str, Any]]] = {
    "tuning": tuning,
    "sampling": sampling,
    "training": training,
    "costs": costs,
    "memory": memory,
    "start": start,
}


@contextmanager
def stopwatch(name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


def main(config: PerformanceConfig) -> None:
    """Measure the parts and write the file as it grows."""
    torch.set_flush_denormal(True)
    report: dict[str, Any] = {
        "model": config.model,
        "side": config.side if config.model == "sd15" else None,
        "device": config.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "batch_size": config.batch_size,
        "optimizer": config.optimizer,
        "aims": AIMS,
    }
    config.output.parent.mkdir(parents=True, exist_ok=True)
    for name in config.parts:
        with stopwatch(name):
            report[name] = PARTS[name](config)
        config.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main(tyro.cli(PerformanceConfig, config=(tyro.conf.FlagConversionOff,)))
