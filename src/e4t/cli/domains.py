"""Commands that make a domain: pretrain and cache."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from e4t.cli.options import (
    Accumulation,
    BaseOptions,
    BatchSize,
    ClassWord,
    Device,
    Dtype,
    Every,
    File,
    Integer,
    Json,
    KeepStates,
    Many,
    Number,
    Output,
    Precision,
    Reading,
    Result,
    Settings,
    Steps,
    Switch,
    Text,
    each,
    optimizer_of,
)
from e4t.cli.settings import asked_for, options_of, overridden, read_sections
from e4t.cli.terminal import device_of, dtype_of, get_console, progress_bar, quiet, status
from e4t.cli.tracking import Services, tracked
from e4t.config import PretrainConfig
from e4t.errors import ConfigError

if TYPE_CHECKING:
    from e4t.backbone import Backbone
    from e4t.domain import Domain
    from e4t.pretrain import Pretraining

_GPUS = ("cuda", "mps", "xpu")
_TRACKED = ("loss", "diffusion", "regularizer", "embedding_ratio", "learning_rate", "seconds")

Data = Annotated[Positional[str], arg(metavar="DATA")]
Model = Annotated[str, arg(aliases=["--pretrained-model-name-or-path"], metavar="MODEL")]


@dataclass(frozen=True)
class Pretrain:
    """Stage 1, once per domain: train encoder and weight offsets on many pictures. The same command resumes."""

    data: Data
    """A folder of pictures, a .zip or .tar, a .npy array, hf:NAME or a saved dataset, shards (a folder of .tar files, a
    pattern such as shards/{000..099}.tar, or a URL), or a cache by 'e4t cache'; docs/pretraining.md tells more."""
    domain: Annotated[str, arg(metavar="NAME")]
    """face, cat, art, or a name of your own."""
    base: Model
    """The text-to-image model, a Stable Diffusion 1.x or 2.x: a diffusers folder, a hub id, a .safetensors file, or a
    shipped one."""
    output: Output
    """The domain folder to write."""
    class_word: ClassWord = None
    """One common word for what the pictures show. Default: the domain's own, else its name."""
    placeholder: Annotated[str | None, arg(aliases=["--placeholder-token"], metavar="WORD", help_behavior_hint="")] = (
        None
    )
    """What prompts say for the concept. Default: S*."""
    prompt_template: Annotated[Many[str], arg(metavar="TEXT ...", help_behavior_hint="")] = ()
    """Neutral prompts to train with, with {} for the concept, e.g. "a photo of {}". Default: the domain's own."""
    preset: Literal["default", "paper"] = "default"
    """paper: every value known from the paper."""
    config: File = None
    """A JSON file with sections "pretrain", "personalize" and "generate"; options given here come on top."""
    steps: Steps = None
    """Optimiser steps. Default: 30000; with --preset paper 60000 for cats and 100000 for art."""
    batch_size: BatchSize = None
    """Pictures in a batch, in each process. Default: 16."""
    accumulation: Accumulation = None
    """Batches in an optimiser step. Default: 1."""
    learning_rate: Number = None
    """Learning rate of the encoder, and of the offsets unless --set offsets_learning_rate says otherwise.
    Default: 1.6e-05."""
    resolution: Integer = None
    """Side of the pictures, in pixels. Default: the base's own."""
    mixed_precision: Precision = None
    """Autocast; what is trained stays float32.
    Default: what --dtype needs, bf16 on CUDA's GPUs that are fast at it, else no."""
    dtype: Dtype = "float32"
    """Number type of the base's weights, not of what is trained; float16 takes --mixed-precision fp16, bfloat16
    bf16."""
    gradient_checkpointing: Switch = None
    """Less memory, about a third more time. Default: off."""
    compile: Switch = None
    """Compile the U-Net: minutes before the first step, faster ones afterwards. Default: off."""
    checkpoint_every: Every = None
    """Steps between two saved states. Default: 1000."""
    keep_states: KeepStates = None
    """How many of the last saved states stay on the disk. Default: 1."""
    resume: Annotated[str, arg(aliases=["--resume-from-checkpoint"], metavar="latest|DIR")] = "latest"
    """Where to go on from: the last saved state beside the output, if there is one, or a folder of states. Where one is
    named, learning rates, max_grad_norm and the like may change."""
    schedule: Annotated[
        Literal["constant", "linear", "cosine", "constant_with_warmup"] | None,
        arg(aliases=["--lr-scheduler"], metavar="{constant,linear,cosine}", help_behavior_hint=""),
    ] = None
    """How the learning rate goes on after the warm-up. constant_with_warmup, as diffusers has it, is constant.
    Default: constant."""
    warmup_steps: Annotated[int | None, arg(aliases=["--lr-warmup-steps"], metavar="N", help_behavior_hint="")] = None
    """Steps over which the learning rate rises. Default: 0."""
    max_grad_norm: Number = None
    """Longer gradients are shortened to this. Default: none are."""
    ema_decay: Number = None
    """Save a moving average of the weights, of this decay, e.g. 0.9999. Default: 0, the weights themselves."""
    use_8bit_adam: Switch = None
    """Keep the optimiser's moments in 8 bits (the extra 8bit). Default: off."""
    workers: Annotated[int | None, arg(aliases=["--dataloader-num-workers"], metavar="N", help_behavior_hint="")] = None
    """Threads that prepare pictures ahead. Default: 0, each when it is needed."""
    seed: Integer = None
    """Seed of weights, order, noise and timesteps. Default: 0."""
    validation: Text = None
    """Pictures to look at while training, not among those of DATA: as DATA, and a cache if that is one."""
    validate_every: Annotated[int, arg(aliases=["--validation-steps"], metavar="N")] = 1_000
    """Steps between two looks at them: their loss, and what the encoder alone draws of the first ones."""
    validation_prompt: Annotated[Many[str], arg(metavar="TEXT ...", help_behavior_hint="")] = ()
    """What to draw of them, with S* for the concept. Default: the domain's first template, and its example."""
    num_validation_images: Integer = None
    """How many of them to draw, 0 for none. Default: 4."""
    report_to: Annotated[Services | None, arg(metavar="{tensorboard,wandb,all}", help_behavior_hint="")] = None
    """Also send losses and scores there (the extra lab); files go to OUTPUT.tracking."""
    dry_run: bool = False
    """Load nothing; say how many parameters there are, and what memory and time the training is predicted to take."""
    settings: Settings = ()
    """Any other setting of PretrainConfig, e.g. --set encoder.head=linear. Can be repeated."""
    device: Device = "auto"
    """cpu, cuda, mps, ...; auto takes the best there is."""
    base_model: Reading = field(default_factory=BaseOptions)
    json: Json = False

    def run(self) -> Result:
        file = read_sections(self.config)
        config = PretrainConfig.paper(self.domain) if self.preset == "paper" else PretrainConfig()
        config = overridden(config.updated(file.get("pretrain", {})), self.settings, self._given())

        from e4t.pretrain import Pretraining
        from e4t.processes import Processes
        from e4t.saved import require_place

        require_place(self.output)
        domain = self._domain()
        quiet()
        device = self._device()
        self._require_data()
        if "mixed_precision" not in file.get("pretrain", {}):
            config = self._precise(config, device)
        if self.dry_run:
            return self._forecast(domain, config, device)
        processes = Processes.launched(device)
        training = Pretraining(
            domain,
            self.data,
            backbone=self._backbone(device),
            config=config,
            output=self.output,
            personalize=file.get("personalize"),
            generate=file.get("generate"),
            processes=processes,
            resume=self.resume,
        )
        if not processes.is_first:
            for _ in training.steps():
                pass
            return Result([])
        get_console().print(_said(training))
        self._watched(training)
        report_broken(training.data.broken)
        return Result([self.output], {"domain": self.output, "broken": len(training.data.broken)})

    def _precise(self, config: PretrainConfig, device: str) -> PretrainConfig:
        """With the mixed precision that suits device and weights, unless one is asked for."""
        from e4t.precision import chosen_precision

        if asked_for("mixed_precision", config, self.settings, self._given()) is not None:
            return config
        return config.updated({"mixed_precision": chosen_precision(device, dtype_of(self.dtype))})

    def _domain(self) -> Domain:
        from e4t.domain import Domain

        domain = Domain.named(self.domain)
        domain = replace(
            domain,
            class_word=self.class_word or domain.class_word,
            placeholder=domain.placeholder if self.placeholder is None else self.placeholder,
        )
        templates = tuple(text.replace(domain.placeholder, "{}") for text in each(self.prompt_template))
        return replace(domain, templates=templates or domain.templates)

    def _watched(self, training: Pretraining) -> None:
        """Train, and say, draw and send how it goes on the way."""
        from e4t.validation import Validation, ValidationConfig

        validation = None
        if self.validation is not None:
            looks = {"pictures": self.num_validation_images, "prompts": each(self.validation_prompt) or None}
            given: dict[str, Any] = {name: value for name, value in looks.items() if value is not None}
            folder = self.output.with_name(f"{self.output.name}.validation")
            config = ValidationConfig(every=self.validate_every, **given)
            validation = Validation(training, self.validation, folder, config)
        place = self.output.with_name(f"{self.output.name}.tracking")
        tracking = tracked(self.report_to, place, training.config.to_dict())
        with tracking as log, progress_bar("pretrain") as progress:
            for step in training.steps():
                note = f"loss {step.loss:.4f}  rate {step.learning_rate:.2g}  {step.seconds:.2f} s a step"
                values = {name: getattr(step, name) for name in _TRACKED}
                progress.at(step.number, step.total_steps, note, **values)
                log(values, step.number)
                if validation is not None and validation.due(step.number):
                    scores = validation.look(step.number)
                    progress.say(f"step {step.number}: " + ", ".join(f"{n} {v:.4f}" for n, v in scores.items()))
                    log(scores, step.number)

    def _device(self) -> str:
        """This process's; a dry run is also told what another machine's would need."""
        from e4t.processes import launched_device

        try:
            return launched_device(device_of(self.device))
        except ConfigError:
            kind = self.device.partition(":")[0]
            if not self.dry_run or kind not in _GPUS:
                raise
            return kind

    def _require_data(self) -> None:
        """Before the base is fetched and loaded; a dry run, which fetches nothing, passes by datasets of the Hub."""
        from e4t.pictures import HUB
        from e4t.pretrain import require_data

        for source in (self.data, self.validation):
            if source is not None and not (self.dry_run and source.startswith(HUB)):
                require_data(source)

    def _forecast(self, domain: Domain, config: PretrainConfig, device: str) -> Result:
        import torch

        from e4t.backbone import Backbone
        from e4t.cache import CachedData
        from e4t.forecast import forecast
        from e4t.processes import launched_as

        rank, count = launched_as()
        if rank:
            return Result([])
        options = {"dtype": dtype_of(self.dtype)} | self.base_model.given()
        cached = CachedData.is_one(self.data)
        if cached:
            config = config.updated({"resolution": CachedData(self.data, seed=0).pictures["resolution"]})
        with status("going through a step"):
            shapes = Backbone.shapes(self.base, **options)
            place = torch.device(device)
            predicted = forecast(shapes, domain, config, device=place, cached=cached, processes=count)
            return Result(predicted.sentences(), {**asdict(predicted), "peak": predicted.peak})

    def _backbone(self, device: str) -> Backbone:
        """The base; without autoencoder and image encoder where the data is a cache of what they see."""
        from e4t.backbone import Backbone
        from e4t.cache import CachedData

        with status("loading the base model"):
            options: dict[str, Any] = {"device": device, "dtype": dtype_of(self.dtype)} | self.base_model.given()
            eyes = CachedData(self.data, seed=0).eyes() if CachedData.is_one(self.data) else None
            return Backbone.from_pretrained(self.base, eyes=eyes, **options)

    def _given(self) -> dict[str, Any]:
        given = options_of(self, PretrainConfig) | {"optimizer": optimizer_of(self.use_8bit_adam)}
        return given | ({"schedule": "constant"} if self.schedule == "constant_with_warmup" else {})


def _said(training: Pretraining) -> str:
    """What an optimiser step is, and what of it has changed: printed, and stored in the domain."""
    config = training.config
    parts = f"{config.batch_size} pictures × {config.accumulation} × {training.processes.count} processes"
    shape = f"{config.schedule}, {config.warmup_steps} steps of warm-up"
    begun = f", from step {training.start}" if training.start else ""
    offsets = f", {config.offsets_learning_rate:g} of the offsets" if config.offsets_learning_rate is not None else ""
    rate = f"learning rate {config.learning_rate:g}{offsets} ({shape})"
    return f"effective batch {training.effective_batch} ({parts}), {rate}{begun}{_said_to_change(training)}"


def _said_to_change(training: Pretraining) -> str:
    """What is other than it was before the state that is gone on from."""
    if not training.changes or training.changes[-1]["after_step"] != training.start:
        return ""
    was = training.changes[-1]["was"]
    redrawn = "; noise and timesteps are other ones from here on" if {"batch_size", "processes"} & set(was) else ""
    return f"; {', '.join(f'{name} was {value}' for name, value in was.items())}{redrawn}"


def report_broken(broken: dict[str, str]) -> None:
    """How many pictures were left out, or shards ended early, and why the first of them did."""
    if not broken:
        return
    console = get_console()
    console.print(f"warning: {len(broken)} pictures or shards could not be read to their end", style="yellow")
    for reason in list(broken.values())[:3]:
        console.print(f"  {reason}", style="yellow")


@dataclass(frozen=True)
class Cache:
    """Write what autoencoder and image encoder see in pictures, so that pre-training needs neither. Goes on when rerun.

    Under torchrun, every process writes a share of the shards.
    """

    data: Data
    """A folder of pictures, a .zip or .tar, a .npy array, hf:NAME or a saved dataset, or shards."""
    base: Model
    """The text-to-image model to train later."""
    output: Output
    """The folder to write."""
    views: Annotated[int, arg(metavar="N")] = 1
    """How many views of every picture to keep, each cropped in its own way."""
    resolution: Integer = None
    """Side of the pictures, in pixels. Default: the base's own."""
    crop_scale: Annotated[tuple[float, float], arg(metavar="LOW HIGH")] = (1.0, 1.0)
    """The share of a picture's area that a random square crop keeps; 1 1 is the centre square."""
    flip: bool = False
    """Mirror half of the views; mirroring changes identities."""
    color_jitter: Annotated[float, arg(metavar="X")] = 0.0
    """How far colours change in what the image encoder sees: brightness, contrast, saturation by up to this share."""
    layer_stride: Annotated[int, arg(metavar="N")] = 2
    """Keep every N-th layer of the image encoder."""
    shard_size: Annotated[int, arg(metavar="N")] = 1_000
    """Pictures in a file; of shards, what each of them holds."""
    workers: Annotated[int, arg(aliases=["--dataloader-num-workers"], metavar="N")] = 0
    """Threads that decode pictures ahead; worth it on a GPU."""
    save_dtype: Literal["float16", "float32"] = "float16"
    """Number type of the cached values."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Seed of the crops."""
    dtype: Dtype = "float32"
    """Number type of the networks' weights; pictures in which one sees no numbers are left out."""
    device: Device = "auto"
    """cpu, cuda, mps, ...; auto takes the best there is."""
    base_model: Reading = field(default_factory=BaseOptions)
    json: Json = False

    def run(self) -> Result:
        from e4t.cache import CacheConfig, CachedData, write_cache

        kept = CacheConfig(self.views, self.layer_stride, self.shard_size, self.save_dtype, self.workers)
        looks = {name: getattr(self, name) for name in ("resolution", "crop_scale", "flip", "color_jitter", "seed")}
        config = PretrainConfig().updated(looks)  # refuses what no training would take

        from e4t.backbone import Backbone
        from e4t.data import require_pictures
        from e4t.pretrain import pictures_of
        from e4t.processes import Processes, launched_device

        quiet()
        device = launched_device(device_of(self.device))
        require_pictures(self.data)  # before the base is fetched and loaded
        processes = Processes.launched(device)
        with status("loading the base model"):
            options: dict[str, Any] = {"device": device, "dtype": dtype_of(self.dtype)} | self.base_model.given()
            backbone = Backbone.from_pretrained(self.base, **options)
        data = pictures_of(self.data, backbone, config)
        rows = 0
        with progress_bar("cache", shown=processes.is_first) as progress:
            for shard in write_cache(data, backbone, kept, self.output, processes):
                rows += shard.rows
                progress.at(shard.number, shard.shards, f"{rows} views")
        broken = dict(processes.gathered(list(data.broken.items())))
        if not processes.is_first:
            return Result([])
        report_broken(broken)
        written = CachedData(self.output, seed=self.seed)
        views = len(written) * written.views
        return Result([self.output], {"cache": self.output, "views": views, "broken": len(broken)})
