"""Commands that learn a concept: personalize and replay."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from e4t.cli.folders import ConceptOptions, OfConcept, is_domain, made_in, remember_domain
from e4t.cli.options import (
    Accumulation,
    BaseOptions,
    BatchSize,
    Device,
    Integer,
    Json,
    Mask,
    Memory,
    Number,
    OptionalBase,
    OptionalDtype,
    Output,
    Precision,
    Reading,
    Result,
    Settings,
    StepsOrAuto,
    Switch,
    optimizer_of,
)
from e4t.cli.settings import asked_for, options_of, overridden
from e4t.cli.terminal import denoising, device_of, dtype_of, get_console, progress_bar, quiet, status
from e4t.config import PersonalizeConfig
from e4t.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from PIL import Image

    from e4t.checkpoint import Concept
    from e4t.domain import Domain
    from e4t.manifest import Outcome
    from e4t.pipeline import E4TPipeline


_LOW_LIKENESS = 0.6  # below it the shipped faces and cats are less often the right one of 20 (docs/results.md)


def _say(likeness: float, domain: Domain) -> None:
    scale = f"0: any {domain.class_word}, 1: the picture itself"
    scale += "; of a style it says little" if domain.is_style else ""
    get_console().print(f"likeness about {likeness:.2f} ({scale})")
    if likeness < _LOW_LIKENESS and not domain.is_style:
        get_console().print("low: a closer crop, --mask, --steps 15 or e4t generate --strength 1.3 may help")


def _opened(image: Path, mask: str | None, domain: Domain) -> tuple[Image.Image, Image.Image | None]:
    """A picture and its mask, as ``--mask`` says."""
    from e4t.photos import opened

    found = opened(image, mask, domain)
    for note in found.notes:
        get_console().print(f"warning: {note}", style="yellow")
    return found.picture, found.mask


@dataclass(frozen=True)
class Personalize:
    """Stage 2: turn one picture into a concept, in a few tuning steps."""

    domain: Annotated[Positional[str], arg(metavar="DOMAIN")]
    """A domain folder or a shipped domain; with --base, also just a class word such as dog."""
    image: Annotated[Positional[Path], arg(metavar="IMAGE")]
    """The picture; or many: a folder of pictures, or a manifest (.jsonl or .csv) with an image in each entry."""
    output: Output
    """The concept folder to write; of many pictures, the folder for theirs. The same command goes on with the rest."""
    base: OptionalBase = None
    """A folder, hub id or .safetensors file. With a domain, another copy of its base model; with a class word, any base
    model: more steps, from the bare word."""
    mask: Mask = None
    """Where the subject is. FILE: a black-and-white picture of the same shape, white inside; auto: for photos, crop to
    the largest face (of other things than people, to the centre) and cut the subject out (extra "photos"); none:
    everything counts, which is the default."""
    caption: Annotated[str | None, arg(aliases=["--instance-prompt"], metavar="TEXT", help_behavior_hint="")] = None
    """What the picture shows, with S* for what is to be learned, as in "a cat in the rain in the style of S*": the rest
    is left to the words. Of a folder, for pictures without a .txt file of their own; none: these are not read. Default:
    the domain's own prompts, which say nothing else."""
    preset: Literal["default", "paper"] = "default"
    """paper: every value known from the paper; default: as measured for the domain."""
    keep: Annotated[
        Literal["full", "vectors", "low-rank", "embedding", "replay"] | None,
        arg(metavar="{full,vectors,low-rank,embedding,replay}", help_behavior_hint=""),
    ] = None
    """What to tune and therefore to store: the whole U-Net, its biases and norms (vectors), low-rank changes, the word
    alone, or (replay) what tuning starts from, to repeat it. Default: what was measured for the domain."""
    steps: StepsOrAuto = None
    """Tuning steps; auto: until one brings hardly anything new, 15 at most.
    Default: the domain's, else 5; from a class word 100."""
    batch_size: BatchSize = None
    """Noise levels in a batch. Default: the domain's, else 16."""
    accumulation: Accumulation = None
    """Batches in a step: so many times the noise levels, in the memory of one batch.
    Default: the domain's, else 1."""
    learning_rate: Number = None
    """Learning rate of the weights that are tuned; --set residual_learning_rate is that of the word.
    Default: the domain's, else 1.6e-05; from a class word 5e-05."""
    memory: Memory = None
    """Keep within so many gigabytes, such as 24, 16, 12 or 8, or (auto) within what is free: fewer noise levels at a
    time, networks unloaded, checkpointing, and if it must be, less tuned. On a GPU, weights are float16 then."""
    mixed_precision: Precision = None
    """Autocast; what is tuned stays float32.
    Default: what --dtype needs, bf16 on CUDA's GPUs that are fast at it, else no."""
    dtype: OptionalDtype = None
    """Number type of the model's weights; float16 takes --mixed-precision fp16, bfloat16 bf16. What is tuned stays
    float32. Default: float32, but float16 with --memory on a GPU."""
    gradient_checkpointing: Switch = None
    """Less memory, about a third more time. Default: off."""
    use_8bit_adam: Switch = None
    """Keep the optimiser's moments in 8 bits (the extra 8bit). Default: off."""
    preview: bool = True
    """Draw one picture for the model card, and say how like it is; --no-preview saves the time."""
    seed: Integer = None
    """Seed of noise and timesteps. Default: the domain's, else 0."""
    settings: Settings = ()
    """Any other setting of PersonalizeConfig, e.g. --set tune=residual,deltas. Can be repeated."""
    device: Device = "auto"
    """cpu, cuda, mps, ...; auto takes the best there is."""
    base_model: Reading = field(default_factory=BaseOptions)
    json: Json = False

    def run(self) -> Result:
        from e4t.manifest import means_many

        return self._many() if means_many(self.image) else self._one()

    def _one(self) -> Result:
        from e4t.images import load_image
        from e4t.manifest import noted
        from e4t.photos import fitting_mask
        from e4t.saved import require_place

        require_place(self.output, "concept")
        picture = load_image(self.image)  # what cannot be read is refused before anything slow
        if self.mask not in (None, "auto", "none"):
            fitting_mask(self.mask, picture)
        quiet()
        pipe = self._pipeline(self.domain)
        image, mask = _opened(self.image, self.mask, pipe.domain)
        config = self._config(pipe)
        if pipe.trained is None:
            get_console().print(f"no pre-trained domain: {config.steps} steps from the class word '{self.domain}'")
        elif pipe.trained.had_captions and config.caption is None:
            example = pipe.domain.example
            get_console().print(f'here it helps to say what the picture shows, as in --caption "{example}"')
        concept = noted(tuned(pipe, image, mask, config), self.mask)
        if config.automatic:
            get_console().print(f"ended after {concept.steps} step{'s' if concept.steps > 1 else ''}")
        likeness = None
        if self.preview and not pipe.draws_concepts:
            get_console().print("no preview: concepts cannot be drawn in bfloat16")
        elif self.preview:
            with denoising(pipe, "preview", drawings=2):
                drawn, likeness = pipe.portrait(concept, image)
            concept = concept.with_preview(drawn)
            _say(likeness, pipe.domain)
        folder = concept.save(self.output)
        if pipe.trained is not None:
            remember_domain(folder, self.domain)
        return Result([folder], {"concept": folder, "steps": concept.steps, "likeness": likeness})

    def _many(self) -> Result:
        from e4t.manifest import personalize_many, read_entries

        if self.mask not in (None, "auto", "none"):
            raise ConfigError("a mask is of one picture: of many, name each after its own (anna-mask.png for anna.jpg)")
        captions = (self.caption or "").strip().lower() != "none"
        entries = read_entries(self.image, self.output, domain=self.domain, mask=self.mask, captions=captions)
        if captioned := sum("caption" in entry.overrides for entry in entries):
            get_console().print(f"captions of their own: {captioned} of {len(entries)} pictures")
        quiet()
        outcomes = []
        with progress_bar("personalize") as progress:
            steps = personalize_many(entries, open_pipeline=self._pipeline, settings=self._config, preview=self.preview)
            for step in steps:
                if step.outcome is None:
                    progress.at(step.done, step.total, image=step.entry.image)
                    continue
                outcomes.append(replace(step.outcome, concept=None))  # not all of them in memory
                told = _told(step.outcome)
                progress.at(step.done, step.total, f"{told['status']} {told['output']}", **told)
                concept = step.outcome.concept
                if concept is not None and concept.domain_id is not None:
                    remember_domain(step.entry.output, step.entry.domain)
        console = get_console()
        counts = {status: sum(one.status == status for one in outcomes) for status in ("made", "kept", "failed")}
        console.print(", ".join(f"{count} {status}" for status, count in counts.items()))
        for one in outcomes:
            for note in one.notes:
                console.print(f"'{one.entry.image}': {note}", style="yellow")
            if one.error is not None:
                console.print(f"failed: '{one.entry.image}': {one.error.rstrip('.')}.", style="red")
        folders = [one.entry.output for one in outcomes if one.error is None]
        values = {**counts, "outcomes": [_told(one) for one in outcomes]}
        return Result(folders, values, exit_code=1 if counts["failed"] else 0)

    def _pipeline(self, domain: str) -> E4TPipeline:
        from e4t.pipeline import E4TPipeline

        options: dict[str, Any] = {"device": device_of(self.device), "dtype": dtype_of(self._dtype())}
        options |= self.base_model.given()
        if self.base is None and not is_domain(domain) and not Path(domain).exists():
            hint = "'e4t info' lists what is shipped, and a class word needs --base MODEL"
            raise CheckpointError(f"there is no domain folder '{domain}'; {hint}")
        with status("loading the model"):
            if self.base is None or is_domain(domain):
                return E4TPipeline.from_pretrained(domain, base=self.base, **options)
            look = self.preview or self.base_model.image_encoder is not None  # only the likeness takes a look
            return E4TPipeline.from_base(self.base, class_word=domain, look=look, **options)

    def _config(self, pipe: E4TPipeline) -> PersonalizeConfig:
        from e4t.precision import chosen_precision

        config = PersonalizeConfig.paper() if self.preset == "paper" else pipe.personalize_config
        chosen = chosen_precision(pipe.backbone.device, pipe.backbone.dtype, measured=config.mixed_precision)
        config = overridden(config.updated({"mixed_precision": chosen}), self.settings, self._given())
        return config if config.memory is None else _fitted(pipe, config)

    def _dtype(self) -> str:
        """As asked for; half precision where memory is said to be short, and no other autocast is asked for."""
        short = self._asked("memory") is not None and self._asked("mixed_precision") in (None, "fp16")
        return self.dtype or ("float16" if short and device_of(self.device).startswith("cuda") else "float32")

    def _asked(self, name: str) -> Any:
        return asked_for(name, PersonalizeConfig(), self.settings, self._given())

    def _given(self) -> dict[str, Any]:
        return options_of(self, PersonalizeConfig) | {"optimizer": optimizer_of(self.use_8bit_adam)}


@dataclass(frozen=True)
class Replay:
    """Make a concept again from its picture, as its folder records it, and say where the two differ."""

    concept: Annotated[Positional[Path], arg(metavar="CONCEPT")]
    """A concept folder."""
    image: Annotated[Positional[Path], arg(metavar="IMAGE")]
    """The picture it was made from."""
    mask: Mask = None
    """The mask it was made with: auto, none or FILE. Default: auto where that is what the concept was made with."""
    dtype: OptionalDtype = None
    """Number type of the model's weights. Default: the one that the concept was made with."""
    model: OfConcept = field(default_factory=ConceptOptions)
    json: Json = False

    def run(self) -> Result:
        from e4t.checkpoint import Concept

        concept = Concept.load(self.concept)
        framing = "auto" if concept.provenance.get("framing") == "auto" else None
        image, mask = _opened(self.image, self.mask or framing, concept.domain)
        quiet()
        made = made_in(concept)
        used = self.dtype or made or "float32"
        pipe = self.model.pipeline(concept, self.concept, used)
        config = PersonalizeConfig.from_dict(concept.config).updated({"steps": concept.steps})
        again = tuned(pipe, image, mask, config)
        differences = concept.differences(again)
        then, by_now = concept.provenance, again.provenance
        inputs = [f"the {name} is another one" for name in ("image", "mask") if then.get(name) != by_now.get(name)]
        if inputs and self.mask is None:
            inputs.append("if it was made with --mask, give the same mask here")
        before, now = then.get("versions", {}), by_now.get("versions", {})
        changed = [f"{name} {before.get(name)} then, {now[name]} now" for name in now if before.get(name) != now[name]]
        changed += [f"weights in {made} then, in {used} now"] if made not in (None, used) else []
        rows = [f"{name} differs by {share:.2g} of its largest value" for name, share in sorted(differences.items())]
        lines = [*inputs, *changed, *rows] if rows else [*inputs, "the same, bit for bit"]
        return Result(lines, {"same": not rows, "inputs": inputs, "versions": changed, "differences": differences})


def _fitted(pipe: E4TPipeline, config: PersonalizeConfig) -> PersonalizeConfig:
    """Settings for the memory there is; what was chosen is said."""
    from e4t.memory import described, fitted, needed

    fit = fitted(pipe.model, config)
    half = f", weights in {dtype}" if (dtype := str(pipe.backbone.dtype).removeprefix("torch.")) != "float32" else ""
    get_console().print(f"memory: {described(fit, needed(pipe.model, fit))}{half}")
    return fit


def tuned(pipe: E4TPipeline, image: Image.Image, mask: Image.Image | None, config: PersonalizeConfig) -> Concept:
    """Personalize with a bar."""
    with progress_bar("personalize") as progress:
        for step in pipe.personalize_steps(image, mask=mask, config=config):
            loss = step.training.loss if step.training else None
            progress.at(step.number, step.total_steps, f"loss {loss:.4f}" if loss is not None else "", loss=loss)
    return step.kept


def _told(outcome: Outcome) -> dict[str, Any]:
    """An outcome as names and values."""
    values = {name: getattr(outcome, name) for name in ("status", "seconds", "error", "likeness")}
    return {"image": outcome.entry.image, "output": outcome.entry.output, **values}
