"""Commands that draw: demo and generate."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from e4t.cli.folders import ConceptOptions, OfConcept, shipped
from e4t.cli.options import (
    Device,
    Integer,
    Json,
    Many,
    Number,
    OptionalDtype,
    Output,
    Precision,
    Result,
    Settings,
    Steps,
    Text,
    each,
)
from e4t.cli.settings import asked_for, options_of, overridden
from e4t.cli.terminal import denoising, device_of, get_console, progress_bar, quiet
from e4t.config import GenerateConfig, at_least


@dataclass(frozen=True)
class Demo:
    """Turn shipped pictures, or one of yours, into concepts and draw them in new scenes and styles."""

    image: Annotated[Many[Path], arg(metavar="FILE ...", help_behavior_hint="")] = ()
    """Your own pictures instead of the shipped ones."""
    domain: Annotated[Many[str], arg(metavar="DOMAIN ...", help_behavior_hint="")] = ()
    """Domains that come with the package, or domain folders. Default: all shipped ones; tiny-face for your pictures."""
    output: Output = Path("out/demo")
    """Where the page, the grid and the concepts go, these in folders named after domain and picture."""
    steps: Steps = None
    """Tuning steps. Default: as measured for the domain."""
    num_inference_steps: int = 25
    """Denoising steps of every picture."""
    seed: int = 0
    """The first picture's seed; picture i has seed + i."""
    device: Device = "auto"
    """cpu, cuda, mps, ...; auto takes the best there is."""
    json: Json = False

    def run(self) -> Result:
        from e4t.demo import demo
        from e4t.images import load_image

        pictures = each(self.image)
        for image in pictures:
            load_image(image)  # what cannot be read is refused before anything slow
        at_least("steps", self.steps, 0)
        at_least("num-inference-steps", self.num_inference_steps, 1)
        quiet()
        began = time.perf_counter()
        stages = demo(
            self.output,
            domains=each(self.domain) or self._domains(),
            pictures=pictures,
            steps=self.steps,
            num_inference_steps=self.num_inference_steps,
            seed=self.seed,
            device=device_of(self.device),
        )
        with progress_bar("demo") as progress:
            for stage in stages:
                progress.say(f"{stage.seconds:6.1f} s  {stage.text}")
                for note in stage.notes:
                    progress.say(f"{'':10}{note}")
                progress.at(stage.done, stage.total, stage=stage.text, seconds=stage.seconds, notes=list(stage.notes))
        seconds = time.perf_counter() - began
        get_console().print(f"{seconds:6.1f} s  in all")
        page = self.output / "index.html"
        return Result([page], {"page": page, "grid": self.output / "grid.png", "seconds": seconds})

    def _domains(self) -> tuple[str, ...]:
        from e4t.demo import DOMAINS

        return tuple(name for name in DOMAINS if name in shipped() and not self.image) or DOMAINS[:1]


@dataclass(frozen=True)
class Generate:
    """Draw a concept from text."""

    concept: Annotated[Positional[Path], arg(metavar="CONCEPT")]
    """A concept folder."""
    prompt: Annotated[Positional[str], arg(metavar="PROMPT")]
    """What to draw; S* is the concept."""
    output: Output = Path("out")
    """The folder that the pictures go into."""
    num_images: Integer = None
    """How many pictures. Default: the domain's, else 1."""
    seed: Integer = None
    """The first picture's seed; picture i has seed + i. Default: the domain's, else 0."""
    negative_prompt: Text = None
    """What to keep out of the pictures."""
    num_inference_steps: Integer = None
    """Denoising steps. Default: the domain's, else 50."""
    guidance_scale: Number = None
    """How strictly to follow the prompt; 1 is without guidance. Default: the domain's, else 7.5."""
    strength: Number = None
    """How much of the concept: 0 is the bare domain, 1 the concept as tuned; more is allowed.
    Default: the domain's, else 1."""
    embedding: Annotated[Literal["live", "frozen"] | None, arg(metavar="{live,frozen}", help_behavior_hint="")] = None
    """live: the word predicted anew at every denoising step; frozen: one for all of them, faster, as exports have it.
    One and the same where the encoder sees the picture alone, as in shipped domains.
    Default: the domain's, else live."""
    scheduler: Text = None
    """A scheduler class of diffusers, e.g. DPMSolverMultistepScheduler. Default: the domain's, else the base's."""
    mixed_precision: Precision = None
    """Autocast: bf16 draws faster on processors that have it (e4t doctor says so); weights are float32 then.
    Default: the domain's, else no."""
    height: Integer = None
    """Height of the pictures, in pixels; a multiple of 8. Default: the base's own."""
    width: Integer = None
    """Width of the pictures, in pixels; a multiple of 8. Default: the base's own."""
    settings: Settings = ()
    """Any other setting of GenerateConfig, e.g. --set guidance_rescale=0.7. Can be repeated."""
    dtype: OptionalDtype = None
    """Number type of the model's weights; concepts cannot be drawn in bfloat16. Default: float16 on CUDA's GPUs without
    --mixed-precision, else float32; for a concept that was kept as a replay, what it was tuned in."""
    metadata: bool = True
    """Say in every picture how it was made; web UIs read it, and so does e4t info."""
    model: OfConcept = field(default_factory=ConceptOptions)
    json: Json = False

    def run(self) -> Result:
        at_least("num-images", self.num_images, 1)
        at_least("num-inference-steps", self.num_inference_steps, 1)

        from e4t.provenance import picture_notes
        from e4t.writing import require_room, save_anew, slug

        quiet()
        require_room(self.output)
        concept, pipe = self.model.open(self.concept, self.dtype, usual=self._usual())
        config = overridden(pipe.generate_config, self.settings, self._given())
        with denoising(pipe, "generate"):
            drawn = pipe(self.prompt, concept=concept, negative_prompt=self.negative_prompt, config=config)
        pictures: list[dict[str, Any]] = []
        self.output.mkdir(parents=True, exist_ok=True)
        name = "-".join(slug(text) or "picture" for text in (self._name(), self.prompt))
        for image, seed, made in zip(drawn.images, drawn.seeds, drawn.made, strict=True):
            notes = picture_notes({**made, "concept": self._name()}) if self.metadata else None
            path = save_anew(partial(image.save, format="PNG", pnginfo=notes), self.output / f"{name}-{seed}.png")
            pictures.append({"path": path, "seed": seed, "width": image.width, "height": image.height})
        return Result([picture["path"] for picture in pictures], {"pictures": pictures})

    def _usual(self) -> str:
        """The weights' type where nobody asks for one: autocast is of float32 ones."""
        cast = asked_for("mixed_precision", GenerateConfig(), self.settings, self._given()) not in (None, "no")
        return "float16" if device_of(self.model.device).startswith("cuda") and not cast else "float32"

    def _name(self) -> str:
        return self.concept.resolve().name

    def _given(self) -> dict[str, Any]:
        return options_of(self, GenerateConfig)
