"""Commands that learn: pretrain, personalize and replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from e4t.cli.folders import ConceptOptions, OfConcept, is_domain, remember_domain
from e4t.cli.options import (
    Accumulation,
    BaseOptions,
    BatchSize,
    Device,
    Dtype,
    Every,
    File,
    Integer,
    Mask,
    Number,
    OptionalBase,
    Output,
    Precision,
    Reading,
    Settings,
    Steps,
    StepsOrAuto,
    Text,
)
from e4t.cli.settings import overridden, read_sections
from e4t.cli.terminal import device_of, dtype_of, get_console, progress_bar, quiet, require_extra, status
from e4t.config import PersonalizeConfig, PretrainConfig
from e4t.errors import CheckpointError

if TYPE_CHECKING:
    from PIL import Image

    from e4t.checkpoint import Concept
    from e4t.pipeline import E4TPipeline


_LOW_LIKENESS = 0.5


def _pictures(image: Path, mask: str | None) -> tuple[Image.Image, Image.Image | None]:
    """A picture and its mask, as ``--mask`` says."""
    from e4t.images import load_image, load_mask

    picture = load_image(image)
    if mask == "auto":
        require_extra("photos", "dlib", "cv2")
        from e4t.photos import framed

        found = framed(picture)
        for note in found.notes:
            get_console().print(f"warning: {note}", style="yellow")
        return found.picture, found.mask
    return picture, load_mask(mask) if mask is not None and mask != "none" else None


@dataclass(frozen=True)
class Pretrain:
    """Stage 1, once per domain: train encoder and weight offsets on many pictures. The same command resumes."""

    data: Annotated[Positional[Path], arg(metavar="DATA")]
    """A folder of pictures, or a uint8 .npy file of shape [N, H, W, 3]."""
    domain: Annotated[str, arg(metavar="NAME")]
    """face, cat, art, or a name of your own."""
    base: Annotated[str, arg(aliases=["--pretrained-model-name-or-path"], metavar="MODEL")]
    """The text-to-image model, a Stable Diffusion 1.x or 2.x: a diffusers folder, a hub id, a .safetensors file, or a
    shipped one."""
    output: Output
    """The domain folder to write."""
    class_word: Text = None
    """One common word for what the pictures show. Default: the domain's own, else its name."""
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
    dtype: Dtype = "float32"
    """Of the base's weights; float16 needs --mixed-precision fp16, bfloat16 bf16. What is trained stays float32."""
    gradient_checkpointing: bool = False
    """Less memory, more time."""
    compile: bool = False
    """Compile the U-Net: minutes before the first step, faster ones afterwards."""
    checkpoint_every: Every = None
    """Steps between two saved states."""
    seed: Integer = None
    """Seed of weights, order, noise and timesteps."""
    settings: Settings = ()
    """Any other setting of PretrainConfig, e.g. --set encoder.head=linear. Can be repeated."""
    device: Device = "auto"
    """cpu, cuda, mps, ...; auto takes the best there is."""
    base_model: Reading = field(default_factory=BaseOptions)

    def run(self) -> Sequence[Path | str]:
        file = read_sections(self.config)
        config = PretrainConfig.paper(self.domain) if self.preset == "paper" else PretrainConfig()
        config = overridden(config.updated(file.get("pretrain", {})), self.settings, self._given())

        from dataclasses import replace

        from e4t.backbone import Backbone
        from e4t.domain import Domain
        from e4t.pretrain import pretrain

        domain = Domain.named(self.domain)
        if self.class_word:
            domain = replace(domain, class_word=self.class_word)
        quiet()
        with status("loading the base model"):
            options: dict[str, Any] = {"device": device_of(self.device), "dtype": dtype_of(self.dtype)}
            backbone = Backbone.from_pretrained(self.base, **options | self.base_model.given())
        steps = pretrain(
            domain,
            self.data,
            backbone=backbone,
            config=config,
            output=self.output,
            personalize=file.get("personalize"),
            generate=file.get("generate"),
        )
        with progress_bar("pretrain") as progress:
            for step in steps:
                note = f"loss {step.loss:.4f}  word {step.embedding_ratio:.2f}  {step.seconds:.2f} s a step"
                progress.at(step.number, step.total_steps, note)
        return [self.output]

    def _given(self) -> dict[str, Any]:
        names = ("steps", "batch_size", "accumulation", "learning_rate", "resolution", "mixed_precision")
        given = {name: getattr(self, name) for name in (*names, "checkpoint_every", "seed")}
        switches = {"gradient_checkpointing": self.gradient_checkpointing, "compile": self.compile}
        return given | {name: on or None for name, on in switches.items()}


@dataclass(frozen=True)
class Personalize:
    """Stage 2: turn one picture into a concept, in a few tuning steps."""

    domain: Annotated[Positional[str], arg(metavar="DOMAIN")]
    """A domain folder or a shipped domain; with --base, also just a class word such as dog."""
    image: Annotated[Positional[Path], arg(metavar="IMAGE")]
    """The picture."""
    output: Output
    """The concept folder to write."""
    base: OptionalBase = None
    """A folder, hub id or .safetensors file. With a domain, another copy of its base model; with a class word, any base
    model: more steps, from the bare word."""
    mask: Mask = None
    """Where the subject is. FILE: a black-and-white picture of the same shape, white inside; auto: for photos, crop to
    the largest face and cut the subject out (extra "photos"); none: everything counts, which is the default."""
    preset: Literal["default", "paper"] = "default"
    """paper: every value known of the paper; default: as measured for the domain."""
    keep: Annotated[
        Literal["full", "low-rank", "embedding", "replay"] | None,
        arg(metavar="{full,low-rank,embedding,replay}", help_behavior_hint=""),
    ] = None
    """What to tune and therefore to store: the whole U-Net, low-rank changes, the word alone, or (replay) what tuning
    starts from, to be tuned again when loaded. Default: as measured for the domain."""
    steps: StepsOrAuto = None
    """Tuning steps; auto: as many as the picture needs, 15 at most."""
    batch_size: BatchSize = None
    """Noise levels in a batch."""
    learning_rate: Number = None
    """Of weights; --set residual_learning_rate is that of the word."""
    mixed_precision: Precision = None
    """Autocast; what is tuned stays float32."""
    dtype: Dtype = "float32"
    """Of the model's weights; float16 needs --mixed-precision fp16, bfloat16 bf16. What is tuned stays float32."""
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
    base_model: Reading = field(default_factory=BaseOptions)

    def run(self) -> Sequence[Path | str]:
        image, mask = _pictures(self.image, self.mask)  # what cannot be read is refused before anything slow

        from e4t.pipeline import E4TPipeline

        quiet()
        with status("loading the model"):
            options: dict[str, Any] = {"device": device_of(self.device), "dtype": dtype_of(self.dtype)}
            options |= self.base_model.given()
            if self.base is None or is_domain(self.domain):
                pipe = E4TPipeline.from_pretrained(self.domain, base=self.base, **options)
            else:
                pipe = E4TPipeline.from_base(self.base, class_word=self.domain, **options)
        config = PersonalizeConfig.paper() if self.preset == "paper" else pipe.personalize_config
        config = overridden(config.keeping(self.keep), self.settings, self._given())
        if pipe.trained is None:
            get_console().print(f"no pre-trained domain: {config.steps} steps from the class word '{self.domain}'")
        concept: Concept | None = None
        with progress_bar("personalize") as progress:
            for step in pipe.personalize_steps(image, mask=mask, config=config):
                note = f"loss {step.training.loss:.4f}" if step.training else ""
                progress.at(step.number, step.total_steps, note)
                concept = step.concept or concept
        if concept is None:
            raise CheckpointError("personalizing ended without a concept; please report this")
        if config.automatic:
            get_console().print(f"learned after {concept.steps} step{'s' if concept.steps > 1 else ''}")
        if self.preview:
            with status("drawing the preview"):
                concept = concept.with_preview(self._drawn(pipe, concept, image))
        folder = concept.save(self.output)
        if pipe.trained is not None:
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
        get_console().print(f"likeness about {likeness:.2f} (0: any {pipe.domain.class_word}, 1: the picture itself)")
        if likeness < _LOW_LIKENESS:
            get_console().print("low: a closer crop, --mask, --steps 15 or e4t generate --strength 1.3 may help")
        return drawn

    def _given(self) -> dict[str, Any]:
        names = ("steps", "batch_size", "learning_rate", "mixed_precision", "seed")
        given = {name: getattr(self, name) for name in names}
        return given | {"gradient_checkpointing": self.gradient_checkpointing or None}


@dataclass(frozen=True)
class Replay:
    """Make a concept again from its picture, as its folder records it, and say where the two differ."""

    concept: Annotated[Positional[Path], arg(metavar="CONCEPT")]
    """A concept folder."""
    image: Annotated[Positional[Path], arg(metavar="IMAGE")]
    """The picture it was made from."""
    mask: Mask = None
    """The mask it was made with: auto, none or FILE."""
    model: OfConcept = field(default_factory=ConceptOptions)

    def run(self) -> Sequence[Path | str]:
        image, mask = _pictures(self.image, self.mask)
        quiet()
        concept, pipe = self.model.open(self.concept)
        with status(f"personalizing: {concept.steps} steps"):
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
