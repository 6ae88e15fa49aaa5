"""The command line. Progress and messages go to stderr, the result's path to stdout.

Nothing heavy is imported before a command runs, so that ``e4t --help`` answers at once.
"""

from __future__ import annotations

import json
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeVar

import tyro
from tyro.conf import Positional, UseAppendAction, arg, subcommand

from e4t.config import GenerateConfig, PersonalizeConfig, PretrainConfig, at_least
from e4t.errors import CheckpointError, ConfigError, E4TError

if TYPE_CHECKING:
    from PIL import Image

    from e4t.checkpoint import Concept
    from e4t.pipeline import E4TPipeline

Config = TypeVar("Config", PretrainConfig, PersonalizeConfig, GenerateConfig)

# The second spellings are those of the training scripts of diffusers. tyro takes - and _ alike.
Output = Annotated[Path, arg(aliases=["--output-dir", "-o"], metavar="DIR")]
OptionalBase = Annotated[
    str | None, arg(aliases=["--pretrained-model-name-or-path"], metavar="MODEL", help_behavior_hint="")
]
Steps = Annotated[int | None, arg(aliases=["--max-train-steps"], metavar="N", help_behavior_hint="")]
BatchSize = Annotated[int | None, arg(aliases=["--train-batch-size"], metavar="N", help_behavior_hint="")]
Accumulation = Annotated[int | None, arg(aliases=["--gradient-accumulation-steps"], metavar="N", help_behavior_hint="")]
Every = Annotated[int | None, arg(aliases=["--checkpointing-steps"], metavar="N", help_behavior_hint="")]
Settings = Annotated[UseAppendAction[tuple[str, ...]], arg(name="set", metavar="NAME=VALUE", help_behavior_hint="")]
Integer = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
Number = Annotated[float | None, arg(metavar="X", help_behavior_hint="")]
Text = Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")]
File = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]
Precision = Annotated[Literal["no", "fp16", "bf16"] | None, arg(metavar="{no,fp16,bf16}", help_behavior_hint="")]
Device = Annotated[str, arg(metavar="NAME")]
Dtype = Literal["float32", "float16", "bfloat16"]


_LOW_LIKENESS = 0.5


class Command(Protocol):
    """A sub-command: its fields are the options, its docstrings the help."""

    def run(self) -> Sequence[Path | str]:
        """Do the work; what is returned is printed, a line each."""
        ...


@dataclass(frozen=True)
class Demo:
    """Turn shipped pictures, or one of yours, into concepts and draw them in new scenes and styles."""

    image: Annotated[tuple[Path, ...], arg(metavar="FILE", help_behavior_hint="")] = ()
    """Your own pictures instead of the shipped ones."""
    domain: Annotated[tuple[str, ...], arg(metavar="DOMAIN", help_behavior_hint="")] = ()
    """Domains that come with the package, or domain folders. Default: all shipped ones; tiny-face for your pictures."""
    output: Output = Path("out/demo")
    """Where the page, the grid and the concepts go."""
    steps: Steps = None
    """Tuning steps. Default: as measured for the domain."""
    num_inference_steps: int = 25
    """Denoising steps of every picture."""
    seed: int = 0
    """The first picture's seed; picture i has seed + i."""
    device: Device = "auto"
    """cpu, cuda, mps, ...; auto takes the best there is."""

    def run(self) -> Sequence[Path | str]:
        from e4t.demo import demo
        from e4t.images import load_image

        for image in self.image:
            load_image(image)  # what cannot be read is refused before anything slow
        at_least("steps", self.steps, 0)
        at_least("num-inference-steps", self.num_inference_steps, 1)
        _quiet()
        began = time.perf_counter()
        stages = demo(
            self.output,
            domains=self.domain or self._domains(),
            pictures=self.image,
            steps=self.steps,
            num_inference_steps=self.num_inference_steps,
            seed=self.seed,
            device=_device(self.device),
        )
        with _progress("demo") as progress:
            for stage in stages:
                progress.say(f"{stage.seconds:6.1f} s  {stage.text}")
                for note in stage.notes:
                    progress.say(f"{'':10}{note}")
                progress.at(stage.done, stage.total)
        _console().print(f"{time.perf_counter() - began:6.1f} s  in all")
        return [self.output / "index.html"]

    def _domains(self) -> tuple[str, ...]:
        from e4t.demo import DOMAINS

        return tuple(name for name in DOMAINS if name in shipped() and not self.image) or DOMAINS[:1]


@dataclass(frozen=True)
class Pretrain:
    """Stage 1, once per domain: train encoder and weight offsets on many pictures. The same command resumes."""

    data: Annotated[Positional[Path], arg(metavar="DATA")]
    """A folder of pictures, or a uint8 .npy file of shape [N, H, W, 3]."""
    domain: Annotated[str, arg(metavar="NAME")]
    """face, cat, art, or a name of your own."""
    base: Annotated[str, arg(aliases=["--pretrained-model-name-or-path"], metavar="MODEL")]
    """The text-to-image model: a diffusers folder, a hub id, or a shipped one."""
    output: Output
    """The domain folder to write."""
    class_word: Text = None
    """One common word for what the pictures show. Default: the domain's own, else its name."""
    image_encoder: Text = None
    """A CLIP in transformers' format. Default: the base's own, else OpenCLIP ViT-H/14."""
    preset: Literal["default", "paper"] = "default"
    """paper: every value known of the paper."""
    config: File = None
    """A JSON file with sections "pretrain", "personalize" and "generate"; options given here come on top."""
    steps: Steps = None
    """Optimiser steps."""
    batch_size: BatchSize = None
    """Pictures in a batch."""
    accumulation: Accumulation = None
    """Batches in an optimiser step."""
    learning_rate: Number = None
    """Of the encoder, and of the offsets unless --set offsets_learning_rate says otherwise."""
    resolution: Integer = None
    """Side of the pictures. Default: the base's own."""
    mixed_precision: Precision = None
    """Autocast; what is trained stays float32."""
    gradient_checkpointing: bool = False
    """Less memory, more time."""
    checkpoint_every: Every = None
    """Steps between two saved states."""
    seed: Integer = None
    """Seed of weights, order, noise and timesteps."""
    settings: Settings = ()
    """Any other setting of PretrainConfig, e.g. --set encoder.head=linear. Can be repeated."""
    device: Device = "auto"
    """cpu, cuda, mps, ...; auto takes the best there is."""

    def run(self) -> Sequence[Path | str]:
        file = _read_sections(self.config)
        config = PretrainConfig.paper(self.domain) if self.preset == "paper" else PretrainConfig()
        config = overridden(config.updated(file.get("pretrain", {})), self.settings, self._given())

        from dataclasses import replace

        from e4t.backbone import Backbone
        from e4t.domain import Domain
        from e4t.pretrain import pretrain

        domain = Domain.named(self.domain)
        if self.class_word:
            domain = replace(domain, class_word=self.class_word)
        _quiet()
        with _status("loading the base model"):
            backbone = Backbone.from_pretrained(
                self.base, image_encoder=self.image_encoder, device=_device(self.device)
            )
        steps = pretrain(
            domain,
            self.data,
            backbone=backbone,
            config=config,
            output=self.output,
            personalize=file.get("personalize"),
            generate=file.get("generate"),
        )
        with _progress("pretrain") as progress:
            for step in steps:
                note = f"loss {step.loss:.4f}  word {step.embedding_ratio:.2f}  {step.seconds:.2f} s a step"
                progress.at(step.number, step.total_steps, note)
        return [self.output]

    def _given(self) -> dict[str, Any]:
        names = ("steps", "batch_size", "accumulation", "learning_rate", "resolution", "mixed_precision")
        given = {name: getattr(self, name) for name in (*names, "checkpoint_every", "seed")}
        return given | {"gradient_checkpointing": self.gradient_checkpointing or None}


@dataclass(frozen=True)
class Personalize:
    """Stage 2: turn one picture into a concept, in a few tuning steps."""

    domain: Annotated[Positional[str], arg(metavar="DOMAIN")]
    """A domain folder or a shipped domain; with --base, just a class word such as dog."""
    image: Annotated[Positional[Path], arg(metavar="IMAGE")]
    """The picture."""
    output: Output
    """The concept folder to write."""
    base: OptionalBase = None
    """Do without a pre-trained domain, on this base model: more steps, from the bare class word."""
    mask: File = None
    """Where the subject is: a black-and-white picture of the same shape, white inside."""
    preset: Literal["default", "paper"] = "default"
    """paper: every value known of the paper; default: as measured for the domain."""
    keep: Annotated[
        Literal["full", "low-rank", "embedding", "replay"] | None,
        arg(metavar="{full,low-rank,embedding,replay}", help_behavior_hint=""),
    ] = None
    """What to tune and therefore to store: the whole U-Net, low-rank changes, the word alone, or (replay) what tuning
    starts from, to be tuned again when loaded. Default: as measured for the domain."""
    steps: Steps = None
    """Tuning steps."""
    batch_size: BatchSize = None
    """Noise levels in a batch."""
    learning_rate: Number = None
    """Of weights; --set residual_learning_rate is that of the word."""
    mixed_precision: Precision = None
    """Autocast; what is tuned stays float32."""
    gradient_checkpointing: bool = False
    """Less memory, more time."""
    preview: bool = True
    """Draw one picture for the model card; --no-preview saves its time."""
    seed: Integer = None
    """Seed of noise and timesteps."""
    settings: Settings = ()
    """Any other setting of PersonalizeConfig, e.g. --set tune=residual,deltas. Can be repeated."""
    device: Device = "auto"
    """cpu, cuda, mps, ...; auto takes the best there is."""

    def run(self) -> Sequence[Path | str]:
        from e4t.images import load_image, load_mask

        image = load_image(self.image)  # what cannot be read is refused before anything slow
        mask = load_mask(self.mask) if self.mask is not None else None

        from e4t.pipeline import E4TPipeline

        _quiet()
        with _status("loading the model"):
            if self.base is None:
                pipe = E4TPipeline.from_pretrained(self.domain, device=_device(self.device))
            else:
                pipe = E4TPipeline.from_base(self.base, class_word=self.domain, device=_device(self.device))
        config = PersonalizeConfig.paper() if self.preset == "paper" else pipe.personalize_config
        config = overridden(config.keeping(self.keep), self.settings, self._given())
        if self.base is not None:
            _console().print(f"no pre-trained domain: {config.steps} steps from the class word '{self.domain}'")
        concept: Concept | None = None
        with _progress("personalize") as progress:
            for step in pipe.personalize_steps(image, mask=mask, config=config):
                note = f"loss {step.training.loss:.4f}" if step.training else ""
                progress.at(step.number, step.total_steps, note)
                concept = step.concept or concept
        if concept is None:
            raise CheckpointError("personalizing ended without a concept; please report this")
        if self.preview:
            with _status("drawing the preview"):
                concept = concept.with_preview(self._drawn(pipe, concept, image))
        folder = concept.save(self.output)
        if self.base is None:
            remember_domain(folder, self.domain)
        return [folder]

    def _drawn(self, pipe: E4TPipeline, concept: Concept, image: Image.Image) -> Image.Image:
        """A picture of the concept; how much it is like the one it was made from is said on the way."""
        neutral = pipe.domain.templates[0]
        drawn, stranger = (
            pipe(neutral.replace("{}", word), concept=worn).images[0]
            for word, worn in ((pipe.domain.placeholder, concept), (pipe.domain.class_word, None))
        )
        likeness = pipe.likeness(image, drawn, stranger)
        _console().print(f"likeness about {likeness:.2f} (0: any {pipe.domain.class_word}, 1: the picture itself)")
        if likeness < _LOW_LIKENESS:
            _console().print("that is low: a closer crop, --mask, --steps 15 or e4t generate --strength 1.3 may help")
        return drawn

    def _given(self) -> dict[str, Any]:
        names = ("steps", "batch_size", "learning_rate", "mixed_precision", "seed")
        given = {name: getattr(self, name) for name in names}
        return given | {"gradient_checkpointing": self.gradient_checkpointing or None}


@dataclass(frozen=True)
class Generate:
    """Draw a concept from text."""

    concept: Annotated[Positional[Path], arg(metavar="CONCEPT")]
    """A concept folder."""
    prompt: Annotated[Positional[str], arg(metavar="PROMPT")]
    """What to draw; S* is the concept."""
    output: Output = Path("out")
    """Where the pictures go."""
    num_images: int = 1
    """How many pictures."""
    seed: int = 0
    """The first picture's seed; picture i has seed + i."""
    negative_prompt: Text = None
    """What to keep out."""
    num_inference_steps: Integer = None
    """Denoising steps."""
    guidance_scale: Number = None
    """How strictly to follow the prompt."""
    strength: Number = None
    """Of the concept: 0 is the bare domain, 1 the concept as tuned."""
    embedding: Annotated[Literal["live", "frozen"] | None, arg(metavar="{live,frozen}", help_behavior_hint="")] = None
    """The word predicted anew at every denoising step, or once."""
    scheduler: Text = None
    """A scheduler class of diffusers, e.g. DPMSolverMultistepScheduler."""
    height: Integer = None
    """Of the pictures, in pixels."""
    width: Integer = None
    """Of the pictures, in pixels."""
    domain: File = None
    """The concept's domain, where it has moved since."""
    base: OptionalBase = None
    """Another copy of the base model."""
    settings: Settings = ()
    """Any other setting of GenerateConfig, e.g. --set guidance_rescale=0.7. Can be repeated."""
    dtype: Dtype = "float32"
    """Of the model's weights."""
    metadata: bool = True
    """Say in every picture how it was made; web UIs read it, and so does e4t info."""
    device: Device = "auto"
    """cpu, cuda, mps, ...; auto takes the best there is."""

    def run(self) -> Sequence[Path | str]:
        at_least("num-images", self.num_images, 1)
        at_least("num-inference-steps", self.num_inference_steps, 1)

        from e4t.checkpoint import Concept
        from e4t.provenance import picture_notes

        _quiet()
        concept = Concept.load(self.concept)
        with _status("loading the model"):
            pipe = pipeline_of(
                concept, self.concept, domain=self.domain, base=self.base, device=self.device, dtype=self.dtype
            )
        config = overridden(pipe.generate_config, self.settings, self._given())
        with _status(f"drawing {self.num_images} × {config.num_inference_steps} steps"):
            drawn = pipe(self.prompt, concept=concept, negative_prompt=self.negative_prompt, config=config)
        paths: list[Path] = []
        self.output.mkdir(parents=True, exist_ok=True)
        for image, seed in zip(drawn.images, drawn.seeds, strict=True):
            notes = picture_notes(self._made(pipe, concept, config, image, seed)) if self.metadata else None
            paths.append(self.output / f"{slug(self.prompt)}-{seed}.png")
            image.save(paths[-1], pnginfo=notes)
        return paths

    def _made(
        self, pipe: E4TPipeline, concept: Concept, config: GenerateConfig, image: Image.Image, seed: int
    ) -> dict[str, Any]:
        from e4t.provenance import versions

        return {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            **config.to_dict(),
            "seed": seed,
            "num_images": 1,
            "scheduler": type(pipe.stock.scheduler).__name__ if config.scheduler is None else config.scheduler,
            "width": image.width,
            "height": image.height,
            "base": concept.base.name,
            "concept": self.concept.resolve().name,
            "domain": concept.domain_id,
            "steps": concept.steps,
            "versions": versions(),
        }

    def _given(self) -> dict[str, Any]:
        names = ("num_images", "seed", "num_inference_steps", "guidance_scale", "strength", "embedding", "scheduler")
        return {name: getattr(self, name) for name in (*names, "height", "width")}


@dataclass(frozen=True)
class Export:
    """Write a concept as a file or folder that other programs load, and say how much of it that keeps."""

    concept: Annotated[Positional[Path], arg(metavar="CONCEPT")]
    """A concept folder."""
    to: Literal["textual-inversion", "pipeline", "single-file", "diff", "lora-diffusers", "lora-kohya"]
    """textual-inversion: the bare word; pipeline: a diffusers folder; single-file: a checkpoint for web UIs;
    diff: dense changes for AUTOMATIC1111 and ComfyUI; lora-...: an approximation of them."""
    output: Annotated[Path, arg(aliases=["-o"], metavar="PATH")]
    """The folder (pipeline) or .safetensors file to write."""
    token: Text = None
    """What prompts will say. Default: the placeholder."""
    dtype: Annotated[Literal["float16", "float32"] | None, arg(metavar="{float16,float32}", help_behavior_hint="")] = (
        None
    )
    """Of the written numbers. Default: float16, and the base's own for pipeline."""
    rank: Integer = None
    """Of a LoRA. Default: the smallest that keeps 95 %."""
    domain: File = None
    """The concept's domain, where it has moved since."""
    base: OptionalBase = None
    """Another copy of the base model."""
    device: Device = "auto"
    """cpu, cuda, mps, ...; auto takes the best there is."""

    def run(self) -> Sequence[Path | str]:
        from e4t.checkpoint import Concept
        from e4t.export import export

        at_least("rank", self.rank, 1)
        _quiet()
        concept = Concept.load(self.concept)
        with _status("loading the model"):
            pipe = pipeline_of(concept, self.concept, domain=self.domain, base=self.base, device=self.device)
        with _status(f"exporting to {self.to}"):
            report = export(pipe, concept, self.output, to=self.to, token=self.token, dtype=self.dtype, rank=self.rank)
        console = _console()
        for row in report.table:
            console.print(f"rank {row.rank:>3}: keeps {row.kept:.1%}, energy {row.energy:.1%}, {row.megabytes:.2f} MB")
        if report.kept is not None:
            console.print(f"keeps {report.kept:.1%} of what the concept does to the noise prediction")
        console.print(f"frozen word: cosine {report.similarity.cosine:.3f} with the live one")
        for note in report.notes:
            console.print(note)
        return [report.path]


@dataclass(frozen=True)
class Replay:
    """Make a concept again from its picture, as its folder records it, and say where the two differ."""

    concept: Annotated[Positional[Path], arg(metavar="CONCEPT")]
    """A concept folder."""
    image: Annotated[Positional[Path], arg(metavar="IMAGE")]
    """The picture it was made from."""
    mask: File = None
    """The mask it was made with."""
    domain: File = None
    """The concept's domain, where it has moved since."""
    base: OptionalBase = None
    """Another copy of the base model."""
    device: Device = "auto"
    """cpu, cuda, mps, ...; auto takes the best there is."""

    def run(self) -> Sequence[Path | str]:
        from e4t.checkpoint import Concept
        from e4t.images import load_image, load_mask

        image = load_image(self.image)
        mask = load_mask(self.mask) if self.mask is not None else None
        _quiet()
        concept = Concept.load(self.concept)
        with _status("loading the model"):
            pipe = pipeline_of(concept, self.concept, domain=self.domain, base=self.base, device=self.device)
        with _status(f"personalizing: {concept.steps} steps"):
            config = PersonalizeConfig.from_dict(concept.config)
            again = pipe.personalize(image, mask=mask, config=config, steps=concept.steps)
        differences = concept.differences(again)
        inputs = [f"the {name} is another one" for name in ("image", "mask") if _differs(concept, again, name)]
        if not differences:
            return [*inputs, "the same, bit for bit"]
        before, now = (c.provenance.get("versions", {}) for c in (concept, again))
        changed = [f"{name} {before.get(name)} then, {now[name]} now" for name in now if before.get(name) != now[name]]
        rows = [f"{name} differs by {share:.2g} of its largest value" for name, share in sorted(differences.items())]
        return [*inputs, *changed, *rows]


def _differs(concept: Concept, again: Concept, name: str) -> bool:
    return bool(concept.provenance.get(name) != again.provenance.get(name))


@dataclass(frozen=True)
class Benchmark:
    """Compare E4T with Textual Inversion, DreamBooth, LoRA and words on drawn concepts. The same command resumes."""

    domain: Annotated[tuple[str, ...], arg(metavar="DOMAIN", help_behavior_hint="")] = ()
    """Domains that come with the package, or domain folders. Default: those of the size that are shipped."""
    size: Literal["quick", "standard", "full"] = "quick"
    """quick: minutes; standard: about an hour; full: a day or more, resumable."""
    output: Output = Path("out/benchmark")
    """Where report.html, results.csv, results.json and the records go."""
    method: Annotated[tuple[str, ...], arg(metavar="NAME", help_behavior_hint="")] = ()
    """Some of the methods only."""
    images: File = None
    """Your own concepts instead of drawn ones: a folder of pictures, and of folders with several pictures of one."""
    prompts: Annotated[tuple[str, ...], arg(metavar="PROMPT", help_behavior_hint="")] = ()
    """What your own concepts are drawn for, with S* in each."""
    clip: Text = None
    """The CLIP that measures likeness: a folder or hub id. Default: the base's own, where it has a whole one."""
    domain_base: File = None
    """A U-Net tuned on the domain's pictures (e4t.evaluation.domain_base), to start further methods from."""
    namespace: Text = None
    """Where drawn concepts come from: any word makes new ones. Default: held-out-1."""
    concepts: Integer = None
    """How many concepts of each domain."""
    seeds: Integer = None
    """How many pictures of every prompt."""
    device: Device = "auto"
    """cpu, cuda, mps, ...; auto takes the best there is."""

    def run(self) -> Sequence[Path | str]:
        from dataclasses import replace

        from e4t.evaluation.benchmark import PLANS, DrawnContest, OwnContest, compare

        plan = PLANS[self.size]
        domains = self.domain or tuple(name for name in plan.domains if name in shipped())
        if len(domains) > 1 and (self.images or self.domain_base):
            raise ConfigError(
                "your own pictures, and a base tuned on a domain, are of one domain: name it with --domain"
            )
        for name in ("concepts", "seeds"):
            at_least(name, getattr(self, name), 1)
        plan = replace(
            plan,
            methods=self.method or plan.methods,
            namespace=self.namespace or plan.namespace,
            concepts=self.concepts or plan.concepts,
            seeds=self.seeds or plan.seeds,
        )
        _quiet()
        with _progress("benchmark") as progress:
            options: dict[str, Any] = {
                "device": _device(self.device),
                "clip": self.clip,
                "domain_base": self.domain_base,
            }
            contests = (
                OwnContest(name, plan, self.images, prompts=self.prompts, **options)
                if self.images
                else DrawnContest(name, plan, **options)
                for name in domains
            )
            for step in compare(contests, self.output):
                left = f", {step.left / 60:.0f} min left" if step.left else ""
                progress.at(step.done, step.total, f"{step.text}{left}")
        return [self.output / name for name in ("report.html", "results.csv", "results.json")]


@dataclass(frozen=True)
class Evaluate:
    """Examine a domain on drawn individuals it has never seen: identity, prompt and both, with intervals."""

    domain: Annotated[Positional[str], arg(metavar="DOMAIN")]
    """A domain folder or a shipped domain."""
    output: Annotated[Path, arg(aliases=["-o"], metavar="FILE")] = Path("out/evaluation.json")
    """The report; a table (.md) and a contact sheet (.png) come beside it."""
    namespace: str = "held-out-1"
    """Where the individuals come from: any word makes new ones."""
    count: int = 50
    """How many individuals."""
    steps: tuple[int, ...] = (0, 1, 5, 15)
    """Numbers of tuning steps to examine."""
    judge_folder: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Another judge than the shipped one, which fills published tables; select by another."""
    base: OptionalBase = None
    """Another copy of the base model."""
    num_inference_steps: int = 25
    """Denoising steps of every picture."""
    mask: bool = True
    """Give personalizing the drawing's mask."""
    seed: int = 0
    """Of all pictures."""
    device: Device = "auto"
    """cpu, cuda, mps, ...; auto takes the best there is."""

    def run(self) -> Sequence[Path | str]:
        at_least("count", self.count, 1)
        at_least("num-inference-steps", self.num_inference_steps, 1)
        for steps in self.steps or (-1,):
            at_least("steps", steps, 0)
        try:
            from e4t.evaluation.evaluate import evaluate
            from e4t.evaluation.judge import Judge
        except ModuleNotFoundError as error:
            if error.name not in ("cv2", "resvg_py"):
                raise
            raise ConfigError("evaluating draws pictures: install the extra with pip install 'e4t[tiny]'") from error
        from e4t.pipeline import E4TPipeline

        _quiet()
        device = _device(self.device)
        with _status("loading the model"):
            pipe = E4TPipeline.from_pretrained(self.domain, base=self.base, device=device)
            own, kind = self.judge_folder, pipe.domain.class_word
            judge = Judge.load(own, device=device) if own else Judge.shipped(kind, device=device)
        console = _console()
        evaluation = evaluate(
            pipe,
            self.namespace,
            self.count,
            steps=self.steps,
            judge=judge,
            seed=self.seed,
            num_inference_steps=self.num_inference_steps,
            use_mask=self.mask,
            progress=console.print,
        )
        return evaluation.write(self.output)


@dataclass(frozen=True)
class Info:
    """Say what a folder is, or how a picture was made; without a path, list what comes with the package."""

    path: Annotated[Positional[str | None], arg(metavar="[PATH]", help_behavior_hint="")] = None
    """A folder of a concept, domain or base model, the name of a shipped model, or a drawn picture."""

    def run(self) -> Sequence[Path | str]:
        if self.path is not None and Path(self.path).is_file():
            from e4t.provenance import read_notes

            made = read_notes(Path(self.path))
            return [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in made.items()]
        if self.path is None:
            return [f"{name}: {_kind(folder)}" for name, folder in shipped().items()] or ["no models are shipped"]
        return describe(shipped().get(self.path, Path(self.path)))


Commands = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Pretrain, subcommand("pretrain")]
    | Annotated[Personalize, subcommand("personalize")]
    | Annotated[Generate, subcommand("generate")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Replay, subcommand("replay")]
    | Annotated[Benchmark, subcommand("benchmark")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Info, subcommand("info")]
)

DESCRIPTION = "One image becomes a word of a text-to-image model, in a few tuning steps."


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, 2 for what the user can put right (one sentence on stderr), 130 when interrupted."""
    command: Command = tyro.cli(
        Commands,
        prog="e4t",
        description=DESCRIPTION,
        args=arguments,
    )
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            lines = command.run()
    except E4TError as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"{error.strerror or error}: '{error.filename}'" if error.filename else str(error))
    except KeyboardInterrupt:
        _console().print("interrupted")
        return 130
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        return _refuse("the device ran out of memory: use a smaller batch, gradient checkpointing or another device")
    for line in lines:
        print(line)
    return 0


# Settings


def overridden(config: Config, pairs: Sequence[str], given: Mapping[str, Any]) -> Config:
    """``config`` with ``NAME=VALUE`` pairs, and then with those of ``given`` that are not None."""
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair} has no value; write --set {pair}=VALUE")
        config = config.updated(_nested(config, name.strip().split("."), text.strip()))
    return config.updated({name: value for name, value in given.items() if value is not None})


def _nested(config: Any, names: Sequence[str], text: str) -> dict[str, Any]:
    current = getattr(config, names[0], None)
    if len(names) > 1:
        if not hasattr(current, "updated"):
            raise ConfigError(f"{names[0]!r} is no group of settings of {type(config).__name__}")
        return {names[0]: _nested(current, names[1:], text)}
    if hasattr(current, "updated"):
        raise ConfigError(f"{names[0]!r} is a group of settings; write --set {names[0]}.NAME={text}")
    return {names[0]: _value(names[0], text, current)}


def _value(name: str, text: str, current: Any) -> Any:
    """Text as the type of the value it replaces."""
    try:
        value = None if text.lower() == "none" else json.loads(text)
    except json.JSONDecodeError:
        value = text
    if isinstance(current, tuple):
        return tuple(part.strip() for part in text.split(",")) if not isinstance(value, list) else tuple(value)
    allowed: tuple[type, ...] = {bool: (bool,), int: (int,), float: (float, int), str: (str,)}.get(type(current), ())
    if allowed and (not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)):
        raise ConfigError(f"{name} is {text!r}; it must be of the kind of {current!r}")
    return value


def _read_sections(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        sections = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no settings file '{path}'") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{path}' is not JSON: {error}") from error
    known: dict[str, type[PretrainConfig] | type[PersonalizeConfig] | type[GenerateConfig]]
    known = {"pretrain": PretrainConfig, "personalize": PersonalizeConfig, "generate": GenerateConfig}
    if not isinstance(sections, dict) or not set(sections) <= set(known):
        raise ConfigError(f"'{path}' must hold sections named {', '.join(known)}, and nothing else")
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise ConfigError(f"section {name!r} of '{path}' must hold names and values")
        known[name].from_dict(section)
    return sections


# Folders


def shipped() -> dict[str, Path]:
    """Models inside the package, by name."""
    weights = Path(str(resources.files("e4t.tiny") / "weights"))
    folders = sorted(weights.iterdir()) if weights.is_dir() else []
    return {folder.name: folder for folder in folders if _kind(folder)}


def pipeline_of(
    concept: Concept, folder: Path, *, domain: Path | None, base: str | None, device: str, dtype: str = "float32"
) -> E4TPipeline:
    """The pipeline that a concept in ``folder`` needs: its domain on its base model."""
    import torch

    from e4t.pipeline import E4TPipeline

    placed: dict[str, Any] = {"device": _device(device), "dtype": getattr(torch, dtype)}
    if concept.domain_id is None:
        return E4TPipeline.from_base(
            base or concept.base.name,
            class_word=concept.domain.class_word,
            image_encoder=concept.base.image_encoder,
            **placed,
        )
    return E4TPipeline.from_pretrained(domain or find_domain(folder, concept.domain_id), base=base, **placed)


def remember_domain(concept: Path, domain: str) -> None:
    """Note in a concept folder where its domain lies, so that drawing it needs no further argument."""
    if domain in shipped():
        note = domain
    else:
        import os

        note = os.path.relpath(Path(domain).resolve(), concept.resolve())
    (concept / "domain.txt").write_text(note + "\n", encoding="utf-8")


def find_domain(concept: Path, domain_id: str) -> str:
    """The domain of a concept folder: as noted there, else the shipped one with the same id."""
    note = concept / "domain.txt"
    if note.is_file():
        noted = note.read_text(encoding="utf-8").strip()
        if noted in shipped():
            return noted
        if (concept / noted).is_dir():
            return str((concept / noted).resolve())
    for name, folder in shipped().items():
        if _config(folder).get("id") == domain_id:
            return name
    raise CheckpointError(f"the domain of '{concept}' (id {domain_id}) is not at hand; say where with --domain FOLDER")


def describe(folder: Path) -> list[str]:
    """What a folder holds, as lines of text. Reads no weights."""
    kind = _kind(folder)
    if kind is None:
        raise CheckpointError(f"'{folder}' is neither a concept, nor a domain, nor a diffusers model")
    from e4t.demo import folder_bytes, readable_bytes

    rows = {"kind": kind, "size": readable_bytes(folder_bytes(folder))}
    config = _config(folder)
    if kind == "base model":
        rows |= {part: of[1] for part, of in config.items() if isinstance(of, list) and len(of) == 2 and of[1]}
    else:
        domain, base = config.get("domain", {}), config.get("base", {})
        rows |= {"domain": str(domain.get("name")), "class word": str(domain.get("class_word"))}
        rows |= {"placeholder": str(domain.get("placeholder")), "base model": str(base.get("name"))}
        rows |= {"id": str(config["id"])} if "id" in config else {"domain id": str(config.get("domain_id"))}
        rows |= {"steps": str(config["steps"])} if "steps" in config else {}
        for section in ("pretrain", "personalize", "generate"):
            rows |= {f"{section}.{name}": json.dumps(value) for name, value in config.get(section, {}).items()}
    width = max(map(len, rows))
    return [f"{name:<{width}}  {value}" for name, value in rows.items()]


def _config(folder: Path) -> dict[str, Any]:
    for name in ("config.json", "model_index.json"):
        if (folder / name).is_file():
            try:
                config = json.loads((folder / name).read_text(encoding="utf-8"))
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise CheckpointError(f"'{folder / name}' cannot be read: {error}") from error
            return config if isinstance(config, dict) else {}
    return {}


def _kind(folder: Path) -> str | None:
    if (folder / "model_index.json").is_file():
        return "base model"
    kind = _config(folder).get("kind")
    return kind if kind in ("concept", "domain") else None


def slug(prompt: str) -> str:
    """A file name for a prompt: "a photo of S*" → "a-photo-of-s"."""
    return "-".join(re.findall(r"\w+", prompt.lower()))[:60].strip("-") or "picture"


# What people see


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def _refuse(sentence: str) -> int:
    text = " ".join(sentence.split()).rstrip(".") + "."
    _console().print(f"error: {text}", style="red")
    return 2


_OTHERS = ("accelerate", "diffusers", "huggingface_hub", "torch", "transformers")


def _show_warning(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
    """Our own warnings, as a line. What libraries say to each other is none of the user's business."""
    if issubclass(category, UserWarning) and not set(Path(filename).parts) & set(_OTHERS):
        _console().print(f"warning: {' '.join(str(message).split())}", style="yellow")


@contextmanager
def _status(text: str) -> Iterator[None]:
    console = _console()
    if not console.is_terminal:
        yield
        return
    with console.status(f"{text} …"):
        yield


class _Progress:
    """A bar on a terminal; elsewhere a line now and then."""

    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task, self._next = bar, task, 0.0

    def at(self, done: int, total: int, note: str = "") -> None:
        self._bar.update(self._task, completed=done, total=total, note=note)
        share = done / total if total else 1.0
        if note and not self._bar.console.is_terminal and share >= self._next:
            self._next = share + 0.02 if done < total else 2.0
            self.say(f"{done}/{total}  {note}")

    def say(self, text: str) -> None:
        self._bar.console.print(text)


@contextmanager
def _progress(name: str) -> Iterator[_Progress]:
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}"),
    )
    console = _console()
    with progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield _Progress(bar, bar.add_task(name, total=None, note=""))


def _quiet() -> None:
    """Settings of a process that is ours alone: no bars and notices of the libraries, no denormal numbers.

    CPUs are slow at numbers this close to zero, and training makes many of them.
    """
    import diffusers
    import torch
    import transformers

    torch.set_flush_denormal(True)

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except Exception as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"the device {name!r} cannot be used here ({first})") from error
    return name


if __name__ == "__main__":
    sys.exit(main())
