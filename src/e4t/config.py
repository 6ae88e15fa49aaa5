"""The settings of both stages and of drawing, with their defaults: what domains and concepts record.

Marks: [P] said by the authors, [R] agreed on by independent re-implementations, [?] open, our choice. ``paper()`` gives
every [P] and [R] value at once. Learning rates, ``embedding_scale`` and ``regularisation`` depend on the width of the
word embeddings and do not carry over to other base models: a domain's config.json records those measured for it, in
sections named after the classes here ("pretrain", "personalize", "generate"), and they take precedence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from typing_extensions import Self

from e4t.errors import ConfigError

DEFAULT_IMAGE_ENCODER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # [R], in transformers' format
_MOST_FROZEN = 1_000  # timesteps whose mean is the frozen embedding: they are looked at together
_LARGE = 2**63  # what no whole number of torch or safetensors can be, and no setting means
_SMALLEST = 8  # pixels of a side, of which an autoencoder makes one latent
PRECISIONS = ("no", "bf16", "fp16")  # of products, by autocast; numbers that are kept have types of their own
_MOST_STEPS = 15  # [P] the most that the authors take for a concept
TUNABLE = ("residual", "bias", "encoder", "deltas", "unet", "unet_vectors", "text_encoder")
"""Parts of a model that one image can tune. "unet_vectors" are the U-Net's biases and the scales of its norms."""
KEPT = ("full", "vectors", "low-rank", "embedding", "replay")
"""What can be kept of a concept (`PersonalizeConfig.keeping`)."""


class Section:
    """What all configurations share: reading and writing themselves."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        return cls().updated(values)

    def updated(self, values: Mapping[str, Any]) -> Self:
        """A copy with some fields replaced; lists become tuples. Unknown names and odd values are errors."""
        known = get_type_hints(type(self))
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(
                f"unknown setting {_shortened(unknown[0])} for {type(self).__name__}; known: {', '.join(known)}"
            )
        plain = {name: self._plain(name, value) for name, value in values.items()}
        for name, value in plain.items():
            if not fits(value, known[name]):
                large = isinstance(value, (int, float)) and not abs(value) < _LARGE
                kind = f"of type {getattr(known[name], '__name__', known[name])}"
                wanted = "between -2**63 and 2**63" if large else kind
                raise ConfigError(f"{name} is {_shortened(value)}; it must be {wanted}")
        return replace(self, **plain)  # type: ignore[type-var]

    def _plain(self, name: str, value: Any) -> Any:
        current = getattr(self, name)
        if isinstance(current, Section) and isinstance(value, Mapping):
            return current.updated(value)
        return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class BaseConfig(Section):
    """How a base model is read, where its name alone does not say. See docs/bases.md."""

    revision: str | None = None  # of a hub id: a branch, a tag or a commit
    variant: str | None = None  # of the weight files of a folder or hub id, such as "fp16"
    layout: str | None = None  # of a single file: a folder or hub id with its configs and tokenizer
    prediction_type: str | None = None  # of a single file; None: as the file says, else found by trying it

    def __post_init__(self) -> None:
        if self.prediction_type is not None:
            one_of("prediction_type", self.prediction_type, ("epsilon", "v_prediction"))

    def given(self) -> dict[str, str]:
        """The fields that say something."""
        return {name: value for name, value in self.to_dict().items() if value is not None}


@dataclass(frozen=True)
class EncoderConfig(Section):
    """How the encoder looks at its inputs."""

    layer_stride: int = 2  # [P] the [CLS] of every 2nd CLIP layer
    use_image: bool = True  # [P]; False for ablations
    unet_blocks: str = "all"  # [?] "all": conv_in, every skip, mid; "resolutions": last of each; "mid"; "none"
    normalize: bool = False  # [?] layer norm without parameters before each linear
    negative_slope: float = 0.01  # [?] of the LeakyReLU
    head: str = "paper"  # "paper": ends with LeakyReLU [P]; "linear": one more linear after it [?]
    head_gain: float = 0.0  # [?] "linear" only: 0 starts at E = 0, else a factor on torch's initialisation

    def __post_init__(self) -> None:
        at_least("layer_stride", self.layer_stride, 1)
        one_of("unet_blocks", self.unet_blocks, ("all", "resolutions", "mid", "none"))
        one_of("head", self.head, ("paper", "linear"))

    @property
    def sees_noise(self) -> bool:
        """Whether the word depends on the noisy latent, so that it changes while a picture is drawn."""
        return self.unet_blocks != "none"

    @classmethod
    def blind(cls) -> EncoderConfig:
        """No input at all: E is the concept's own vectors, for base models without a domain."""
        return cls(use_image=False, unet_blocks="none")


@dataclass(frozen=True)
class OffsetsConfig(Section):
    """Where the weight offsets of a domain sit and how they are parametrised."""

    form: str = "paper"  # "paper": four linears [P]; "lowrank": the same matrices, directly; "none"
    rank: int = 3  # of "lowrank"; the paper's form has rank 3 at most
    projections: tuple[str, ...] = ("to_q", "to_k", "to_v")  # [P]; "to_out" can be added
    attentions: tuple[str, ...] = ("self", "cross")  # [P]

    def __post_init__(self) -> None:
        at_least("rank", self.rank, 1)
        one_of("form", self.form, ("paper", "lowrank", "none"))
        for name in self.projections:
            one_of("projections", name, ("to_q", "to_k", "to_v", "to_out"))
        for name in self.attentions:
            one_of("attentions", name, ("self", "cross"))


@dataclass(frozen=True)
class PretrainConfig(Section):
    """Stage 1, once per domain."""

    steps: int = 30_000  # [R] faces; cats 60,000, art 100,000
    batch_size: int = 16  # [R]
    accumulation: int = 1  # batches per optimiser step
    learning_rate: float = 1.6e-5  # [R] constant
    offsets_learning_rate: float | None = None  # None: as above
    weight_decay: float = 0.01  # AdamW's default
    warmup_steps: int = 0
    cooldown_steps: int = 0  # [?] at the end, over which the rates fall to nothing; the rate is constant [R]
    schedule: str = "constant"  # [R] "constant"; "linear" and "cosine" fall to nothing from the warm-up to the end
    max_grad_norm: float | None = None
    optimizer: str = "adamw"  # [R] "adamw8bit": its moments in 8 bits, by bitsandbytes; "muon": orthogonal steps
    ema_decay: float = 0.0  # of an average of the weights, which is what is saved then; 0: the weights themselves
    embedding_scale: float = 0.1  # [R] s in v* = v_class + s E
    regularisation: float = 0.01  # [R] λ
    regularisation_reduction: str = "sum"  # [?] over the embedding's dimensions: "sum" or "mean"
    regularisation_anchor: str = "class"  # [P] "class": ‖E‖²; "nearest": from the vocabulary's nearest word
    min_timestep: int = 0  # [?] timesteps are uniform in [min_timestep, max_timestep)
    max_timestep: int | None = None  # None: all of the schedule
    stratified_timesteps: bool = False  # [?] one timestep from each of batch_size equal intervals
    resolution: int | None = None  # None: the base model's own
    crop_scale: tuple[float, float] = (0.8, 1.0)  # [?] share of the area; (1, 1) turns cropping off
    flip: bool = False  # [?] mirroring changes identities
    color_jitter: float = 0.0  # [?] of the encoder's view only
    sample_latents: bool = True  # draw from the autoencoder's posterior instead of taking its mean
    caption_share: float = 0.0  # of prompts that are the picture's own caption, with the placeholder put into it
    shuffle_buffer: int = 1_000  # samples of a shard that wait at a time, one of which comes next
    cache: bool = False  # encode every picture once and keep it in memory; only where every view of it is the same
    mixed_precision: str = "no"  # "no", "bf16" (where it is fast), "fp16"; what is trained stays float32
    gradient_checkpointing: bool = False
    compile: bool = False  # the U-Net, by torch.compile: minutes before the first step, faster ones afterwards
    seed: int = 0
    checkpoint_every: int = 1_000
    keep_states: int = 1  # how many of the last saved states stay on the disk
    workers: int = 0  # threads that prepare pictures ahead; 0: each when it is needed
    save_dtype: str = "float32"  # of the domain folder
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    offsets: OffsetsConfig = field(default_factory=OffsetsConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "checkpoint_every", "keep_states", "shuffle_buffer"):
            at_least(name, getattr(self, name), 1)
        for name in ("warmup_steps", "cooldown_steps", "workers", "min_timestep"):
            at_least(name, getattr(self, name), 0)
        at_least("max_timestep", self.max_timestep, 1)
        at_least("resolution", self.resolution, _SMALLEST)
        _check_training(self)
        for name, most in (("ema_decay", 0.99999), ("caption_share", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be between 0 and {most}")
        one_of("schedule", self.schedule, ("constant", "linear", "cosine"))
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ConfigError(
                f"crop_scale is {self.crop_scale}; it must be two shares of the area, 0 < from <= to <= 1"
            )
        if self.cache and (self.crop_scale != (1.0, 1.0) or self.flip or self.color_jitter or self.sample_latents):
            raise ConfigError(
                "cache needs crop_scale [1.0, 1.0], flip false, color_jitter 0 and sample_latents false: "
                "a picture that looks different every time cannot be kept"
            )

    @classmethod
    def paper(cls, domain: str = "face") -> PretrainConfig:
        """Every [P] and [R] value; steps by domain: faces 30,000, cats 60,000, art 100,000."""
        return cls(
            steps={"cat": 60_000, "art": 100_000}.get(domain, 30_000),
            batch_size=16,
            learning_rate=1.6e-5,
            embedding_scale=0.1,
            regularisation=0.01,
            resolution=512,
            encoder=EncoderConfig(layer_stride=2, use_image=True, head="paper"),
            offsets=OffsetsConfig(form="paper", projections=("to_q", "to_k", "to_v"), attentions=("self", "cross")),
        )


@dataclass(frozen=True)
class PersonalizeConfig(Section):
    """Stage 2, once per concept."""

    steps: int = 5  # [P] 5 to 15
    automatic: bool = False  # end before ``steps``, once a step takes hardly anything off the loss on the image
    automatic_gain: float = 0.025  # "hardly anything": less than this share of what all steps took off it; 0: never
    batch_size: int = 16  # [R] the same image with independent (t, noise)
    accumulation: int = 1
    caption: str | None = None  # what the image shows, with the placeholder: the rest need not be learned
    tune: tuple[str, ...] = ("residual", "bias", "deltas")  # [?] any of TUNABLE
    delta_rank: int = 0  # of "deltas": 0 is dense, else low-rank
    learning_rate: float = 1.6e-5  # [R] 5e-6 to 1.6e-5
    constant_steps: int | None = None  # [?] of the first steps; later ones have (constant_steps / step)² of the rate
    residual_learning_rate: float = 1e-3  # [?] of "residual" and "bias": a few hundred numbers, not millions
    unet_vectors_learning_rate: float = 1e-3  # [?] biases and norms: few numbers as well
    encoder_learning_rate: float | None = None  # None: learning_rate; so are the next three
    deltas_learning_rate: float | None = None
    unet_learning_rate: float | None = None
    text_encoder_learning_rate: float | None = None
    weight_decay: float = 0.01
    max_grad_norm: float | None = None
    regularisation: float = 0.1  # [R]
    regularisation_reduction: str = "sum"
    regularisation_anchor: str = "class"
    min_timestep: int = 0
    max_timestep: int | None = None
    stratified_timesteps: bool = False  # [?] one timestep from each of batch_size equal intervals
    mask_loss: bool = True  # [P] for faces, where a mask is at hand
    prior_weight: float = 0.0  # of the loss on pictures of the class that the base draws; DreamBooth has 1
    prior_pictures: int = 50  # how many of those are drawn, once for all concepts
    mixed_precision: str = "no"
    memory: float | str | None = None  # gigabytes to keep within, or "auto": what is free; None: as set here
    gradient_checkpointing: bool = False
    micro_batch_size: int | None = None  # noise levels at a time, of the same batch: less memory, the same step
    unload: bool = False  # autoencoder and image encoder leave the device while tuning
    optimizer: str = "adamw"  # "adamw8bit": its moments in 8 bits, by bitsandbytes; "muon": orthogonal steps
    seed: int = 0
    keep: str = "tuned"  # is what is stored; "replay": what tuning starts from; given as in --keep, sets "tune" too
    save_dtype: str = "float16"  # of a concept folder
    frozen_timesteps: int = 8  # the frozen embedding is the mean prediction over so many timesteps

    def __post_init__(self) -> None:
        for name in ("steps", "delta_rank", "min_timestep"):
            at_least(name, getattr(self, name), 0)
        at_least("max_timestep", self.max_timestep, 1)
        at_least("constant_steps", self.constant_steps, 1)
        if self.frozen_timesteps > _MOST_FROZEN:
            raise ConfigError(f"frozen_timesteps is {self.frozen_timesteps}; it must be {_MOST_FROZEN} or less")
        for name in ("batch_size", "accumulation", "frozen_timesteps", "prior_pictures"):
            at_least(name, getattr(self, name), 1)
        at_least("micro_batch_size", self.micro_batch_size, 1)
        at_least("prior_weight", self.prior_weight, 0)
        at_least("automatic_gain", self.automatic_gain, 0)
        _check_training(self)
        if self.prior_weight and self.keep == "replay":
            raise ConfigError("a replay keeps one image, not the pictures of the class; set prior_weight to 0")
        if not self.tune:
            raise ConfigError(f"tune is empty; it must name some of {', '.join(TUNABLE)}")
        for name in self.tune:
            one_of("tune", name, TUNABLE)
        if {"unet", "unet_vectors"} <= set(self.tune):
            raise ConfigError("tune has both unet and unet_vectors, which are part of it; leave one of them out")
        if not _is_text(self.caption or ""):
            raise ConfigError(f"caption is {_shortened(self.caption)}, which no file of text can hold")
        if isinstance(self.memory, str):
            one_of("memory", self.memory, ("auto",))
        at_least("memory", self.memory if not isinstance(self.memory, str) else None, 0)
        one_of("keep", self.keep, ("tuned", *KEPT))
        if self.keep not in ("tuned", "replay"):
            raise ConfigError(
                f"keep {self.keep!r} means several settings: write PersonalizeConfig().keeping({self.keep!r})"
            )

    def updated(self, values: Mapping[str, Any]) -> Self:
        """As usual, and ``steps`` may be "auto": until one brings hardly anything new, at most 15.

        A number of steps is meant: it takes "auto" back. A caption is a line of text; a blank one, or "none", is none.
        ``keep`` may be any of KEPT, as in `keeping`; a ``tune`` or ``delta_rank`` beside it counts.
        """
        if (kept := values.get("keep")) in KEPT:
            changes = self._changes(kept)
            values = {**changes, **values, "keep": changes["keep"]}
        if isinstance(caption := values.get("caption"), str):
            line = " ".join(caption.split())
            values = {**values, "caption": line if line.lower() not in ("", "none") else None}
        if "steps" in values:
            auto = values["steps"] == "auto"
            values = {"automatic": auto, **values, **({"steps": _MOST_STEPS} if auto else {})}
        return super().updated(values)

    @property
    def parts(self) -> int:
        """Into how many micro-batches a batch is split."""
        return -(-self.batch_size // min(self.batch_size, self.micro_batch_size or self.batch_size))

    def rate(self, part: str) -> float:
        """Learning rate of one of TUNABLE."""
        if part in ("residual", "bias"):
            return self.residual_learning_rate
        own: float | None = getattr(self, f"{part}_learning_rate")
        return self.learning_rate if own is None else own

    def keeping(self, what: str) -> PersonalizeConfig:
        """Tuned so that ``what`` is stored: one of KEPT."""
        return replace(self, **self._changes(what))

    def _changes(self, what: str) -> dict[str, Any]:
        word = ("residual", "bias")
        changes: dict[str, dict[str, Any]] = {
            "full": {"tune": (*word, "deltas", "unet"), "delta_rank": 0},
            "vectors": {"tune": (*word, "unet_vectors")},
            "low-rank": {"tune": (*word, "deltas"), "delta_rank": self.delta_rank or 4},
            "embedding": {"tune": word},
            "replay": {"keep": "replay"},
        }
        if what not in changes:
            raise ConfigError(f"keep is {what!r}; it must be one of {', '.join(KEPT)}")
        return {"keep": "tuned", **changes[what]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Folders of before may have ``automatic_loss``; the rule that followed needs no number of a domain."""
        return super().from_dict({name: value for name, value in values.items() if name != "automatic_loss"})

    @classmethod
    def paper(cls) -> PersonalizeConfig:
        """Every [P] and [R] value: encoder, whole U-Net and text encoder tuned in tandem."""
        return cls(
            steps=15,
            batch_size=16,
            tune=("encoder", "deltas", "unet", "text_encoder"),
            learning_rate=1.6e-5,
            regularisation=0.1,
            mask_loss=True,
        )

    @classmethod
    def without_domain(cls) -> PersonalizeConfig:
        """For a base model without a pre-trained domain: more steps, from the bare class word."""
        return cls(steps=100, tune=("residual", "deltas"), residual_learning_rate=5e-3, learning_rate=5e-5)


@dataclass(frozen=True)
class GenerateConfig(Section):
    """Sampling."""

    num_inference_steps: int = 50  # [R]
    guidance_scale: float = 7.5  # [R]
    guidance_rescale: float = 0.0  # about 0.7 for models with zero terminal SNR (arXiv 2305.08891, section 3.4)
    num_images: int = 1
    seed: int = 0
    strength: float = 1.0  # of the concept: scales its embedding offset and its own weight deltas
    embedding: str = "live"  # "live": predicted at every denoising step [R]; "frozen": one vector
    unconditional: str = "concept"  # whose prediction without a prompt guides: "concept" or "base" (arXiv 2503.20240)
    weights: float | None = None  # scales the concept's own weight deltas alone; None: by ``strength``
    delay: float = 0.0  # share of denoising that is the base's and the class word's, at its start (arXiv 2305.10431)
    dual_path: float = 0.0  # share of every attention that comes from the base and the class word (arXiv 2307.06925)
    scheduler: str | None = None  # a diffusers scheduler class; None: the base model's own
    mixed_precision: str = "no"  # "bf16" (where it is fast) or "fp16": products of float32 weights are taken in it
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        at_least("num_images", self.num_images, 1)
        at_least("num_inference_steps", self.num_inference_steps, 1)
        at_least("seed", self.seed, 0)
        for name, side in (("height", self.height), ("width", self.width)):
            if side is not None and (side < _SMALLEST or side % _SMALLEST):
                raise ConfigError(f"{name} is {_shortened(side)}; it must be a multiple of {_SMALLEST}")
        one_of("embedding", self.embedding, ("live", "frozen"))
        one_of("unconditional", self.unconditional, ("concept", "base"))
        one_of("mixed_precision", self.mixed_precision, PRECISIONS)
        for name in ("dual_path", "delay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")
        if self.dual_path and self.unconditional == "base":
            raise ConfigError("dual_path needs unconditional 'concept': it already mixes the base into every row")

    @classmethod
    def paper(cls) -> GenerateConfig:
        return cls(num_inference_steps=50, guidance_scale=7.5, embedding="live", scheduler="DDIMScheduler")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value read from a file is what a type hint says. Whole numbers pass as float; infinite ones never."""
    if isinstance(hint, UnionType):
        return any(fits(value, one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        parts = parts[:1] * len(value) if isinstance(value, tuple) and parts[-1] is Ellipsis else parts
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(fits, value, parts))
    if get_origin(hint) is list:
        return isinstance(value, list) and all(fits(one, get_args(hint)[0]) for one in value)
    if get_origin(hint) is dict:  # whose names are text, in a file
        return isinstance(value, dict) and all(fits(one, get_args(hint)[1]) for one in value.values())
    if hint in (int, float):
        kinds = (int, float) if hint is float else int
        return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) < _LARGE
    return hint is Any or isinstance(value, hint)


def at_least(name: str, value: float | None, least: float) -> None:
    """Raises ConfigError for a number below ``least``; None is a setting that was not given."""
    if value is not None and value < least:
        raise ConfigError(f"{name} is {_shortened(value)}; it must be {least} or more")


def _check_training(config: PretrainConfig | PersonalizeConfig) -> None:
    """What holds in both stages."""
    rates = [name for name in vars(config) if name.endswith("learning_rate")]
    for name in (*rates, "weight_decay", "regularisation", "seed"):
        at_least(name, getattr(config, name), 0)
    if config.max_grad_norm is not None and config.max_grad_norm <= 0:
        raise ConfigError(f"max_grad_norm is {_shortened(config.max_grad_norm)}; it must be above 0, or left out")
    one_of("optimizer", config.optimizer, ("adamw", "adamw8bit", "muon"))
    one_of("regularisation_reduction", config.regularisation_reduction, ("sum", "mean"))
    one_of("regularisation_anchor", config.regularisation_anchor, ("class", "nearest"))
    one_of("mixed_precision", config.mixed_precision, PRECISIONS)
    one_of("save_dtype", config.save_dtype, ("float32", "float16"))


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates
        return False
    return True


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ConfigError for anything that is not ``allowed``."""
    if value not in allowed:
        raise ConfigError(f"{name} is {_shortened(value)}; it must be one of {', '.join(map(repr, allowed))}")


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
