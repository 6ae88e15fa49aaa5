"""Commands that learn a concept: personalize and replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from e4t.cli.folders import ConceptOptions, OfConcept, is_domain, remember_domain
from e4t.cli.options import (
    BaseOptions,
    BatchSize,
    Device,
    Dtype,
    File,
    Integer,
    Number,
    OptionalBase,
    Output,
    Precision,
    Reading,
    Settings,
    StepsOrAuto,
)
from e4t.cli.settings import overridden
from e4t.cli.terminal import device_of, dtype_of, get_console, progress_bar, quiet, status
from e4t.config import PersonalizeConfig
from e4t.errors import CheckpointError

if TYPE_CHECKING:
    from PIL import Image

    from e4t.checkpoint import Concept
    from e4t.pipeline import E4TPipeline


_LOW_LIKENESS = 0.5


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
        from e4t.images import load_image, load_mask

        image = load_image(self.image)  # what cannot be read is refused before anything slow
        mask = load_mask(self.mask) if self.mask is not None else None

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
    mask: File = None
    """The mask it was made with."""
    model: OfConcept = field(default_factory=ConceptOptions)

    def run(self) -> Sequence[Path | str]:
        from e4t.images import load_image, load_mask

        image = load_image(self.image)
        mask = load_mask(self.mask) if self.mask is not None else None
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
