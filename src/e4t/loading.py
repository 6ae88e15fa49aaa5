"""The parts of a base model from a diffusers folder, a hub id or a single file, and the image encoder beside them.

A single file has no configs, no tokenizer and no word about what its U-Net predicts. The configs of Stable Diffusion
1.5 and 2.1 and CLIP's vocabulary come with the package (``bases/``), so that such a file needs no network.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.nn import functional as F

from e4t.config import DEFAULT_IMAGE_ENCODER, BaseConfig
from e4t.errors import CheckpointError
from e4t.sources import OneFile, check_file, check_folder, check_named, locate, locate_layout, variant_of

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_BASES = Path(__file__).parent / "bases"
_PADDING = {1: "<|endoftext|>", 2: "!"}
"""What prompts are filled up with, by the version of Stable Diffusion."""

_SIDES = {"epsilon": 64, "v_prediction": 96}
"""Side of the latents that Stable Diffusion 2.x was made for, by what it predicts: 512 and 768 pixels."""

_NOISE_COMES_BACK = 0.5
"""Cosine above which the answer to noise counts as that noise; see `_returns_noise`."""


@dataclass(frozen=True)
class Parts:
    """A base model without an image encoder. ``reading`` says all that it takes to read it again.

    ``folder`` is where it lies on this machine; None for a single file.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    reading: BaseConfig
    folder: Path | None


@dataclass(frozen=True)
class ImageEncoder:
    """A CLIP vision tower and how its pixels are normalised. The name is None for one inside the base's folder."""

    image_encoder: Any
    image_mean: Sequence[float]
    image_std: Sequence[float]
    image_encoder_name: str | None


def load_parts(
    name: str,
    reading: BaseConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    vae: Mapping[str, Any] | None = None,
) -> Parts:
    """Parts in ``dtype``; of a single file, the U-Net is on ``device`` already. Raises what `locate` raises.

    With a config as ``vae``, the autoencoder has that shape and no weights: it is on the meta device.
    """
    place = locate(name, reading)
    shape = shape_of_autoencoder(vae) if vae is not None else None
    if place.is_dir():
        return _from_folder(place, name, reading, dtype, shape)
    layout = locate_layout(reading.layout) if reading.layout else None
    parts = _from_file(check_file(place, known_layout=layout is not None), layout, reading, dtype, device)
    return parts if shape is None else replace(parts, vae=shape)


def load_shapes(name: str, reading: BaseConfig, *, dtype: torch.dtype) -> Parts:
    """The parts without weights, on the meta device; tokenizer and scheduler are whole."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    place = locate(name, reading, weights=False)
    folder = place if place.is_dir() else None
    layout = folder or (locate_layout(reading.layout) if reading.layout else None)
    version = None if folder else check_file(place, known_layout=layout is not None).version
    configs = layout or _BASES / f"stable-diffusion-{version}"
    with _loading(f"'{name}'"):
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(configs, subfolder="unet"))
            vae = AutoencoderKL.from_config(AutoencoderKL.load_config(configs, subfolder="vae"))
            text = CLIPTextModel(CLIPTextConfig.from_pretrained(configs, subfolder="text_encoder"))
        parts = Parts(
            unet=unet.to(dtype),
            vae=vae.to(dtype),
            text_encoder=text.to(dtype),
            tokenizer=_tokenizer(version, layout),
            scheduler=_scheduler(configs),
            reading=reading,
            folder=folder,
        )
    return _fitting(parts, name)


def image_encoder_config(chosen: str | None, base: Parts) -> dict[str, Any]:
    """The config of the vision tower that `load_image_encoder` would load."""
    from transformers import CLIPVisionConfig

    with _image_encoder(chosen, base) as (location, _):
        config: dict[str, Any] = CLIPVisionConfig.from_pretrained(location).to_dict()
    return config


def shape_of_autoencoder(config: Mapping[str, Any]) -> Any:
    """An autoencoder without weights."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        return AutoencoderKL.from_config(dict(config)).eval()


def shape_of_image_encoder(config: Mapping[str, Any]) -> Any:
    """A CLIP vision tower without weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    with torch.device("meta"):
        return CLIPVisionModel(CLIPVisionConfig.from_dict(dict(config))).eval()


@contextmanager
def _loading(what: str) -> Iterator[None]:
    """Turns what the libraries raise about files that are not what they seem into one sentence."""
    try:
        yield
    except (OSError, LookupError, AttributeError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split("\n")[0].split(". ")[0].split())  # advice for programmers follows
        raise CheckpointError(f"{what} cannot be loaded: {reason}") from error


def _from_folder(folder: Path, name: str, reading: BaseConfig, dtype: torch.dtype, vae: Any) -> Parts:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    variants = check_folder(folder, name, reading.variant, without=("vae",) if vae is not None else ())

    def whole(kind: Any, part: str, **read: Any) -> Any:
        read |= {"subfolder": part, "variant": variants[part]}
        return _whole(kind, folder, f"'{name}', part '{part}',", **read)

    with _loading(f"'{name}'"):
        parts = Parts(
            unet=whole(UNet2DConditionModel, "unet", torch_dtype=dtype),
            vae=vae or whole(AutoencoderKL, "vae", torch_dtype=dtype),
            text_encoder=whole(CLIPTextModel, "text_encoder", dtype=dtype, ignore_mismatched_sizes=True),
            tokenizer=_tokenizer(None, folder),
            scheduler=_scheduler(folder),
            reading=reading,
            folder=folder,
        )
    return _fitting(parts, name)


def _from_file(
    file: OneFile, layout: Path | None, reading: BaseConfig, dtype: torch.dtype, device: torch.device
) -> Parts:
    """With configs and tokenizer of ``layout``, else of the version of Stable Diffusion that the file has."""
    whole = _stock(file, layout, dtype)
    predicts = reading.prediction_type or file.prediction_type
    if predicts is None and file.version == 2:
        predicts = _predicts(file.path, whole.unet.to(device), whole.scheduler)
    if predicts is not None:
        whole.scheduler = type(whole.scheduler).from_config(whole.scheduler.config, prediction_type=predicts)
    if file.version == 2:
        whole.unet.register_to_config(sample_size=_SIDES[whole.scheduler.config.prediction_type])
    parts = {part: getattr(whole, part) for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")}
    return _fitting(Parts(**parts, reading=replace(reading, prediction_type=predicts), folder=None), str(file.path))


def _stock(file: OneFile, layout: Path | None, dtype: torch.dtype) -> Any:
    """The stock pipeline of a single file. Raises CheckpointError where tensors are missing or odd."""
    from diffusers import StableDiffusionPipeline

    configs = layout or _BASES / f"stable-diffusion-{file.version}"
    what = f"'{file.path}' with the configs of '{layout or configs.name}'"
    with _loading(what):
        try:
            stock = StableDiffusionPipeline.from_single_file(
                str(file.path),
                config=str(configs),
                tokenizer=_tokenizer(file.version, layout),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
                torch_dtype=dtype,
                local_files_only=True,
            )
        except NotImplementedError as error:  # what the file lacks is left without data, which has no dtype to change
            raise CheckpointError(f"{what} lacks some of the tensors that these ask for; download it anew") from error
    for part in (stock.unet, stock.vae, stock.text_encoder):
        _complete(part, [key for key, value in part.state_dict().items() if value.is_meta], what)
    return stock


def _tokenizer(version: int | None, layout: Path | None) -> Any:
    from transformers import CLIPTokenizer

    if layout is not None:
        return CLIPTokenizer.from_pretrained(layout, subfolder="tokenizer")
    return CLIPTokenizer.from_pretrained(_BASES / "clip-tokenizer", pad_token=_PADDING[version or 1])


def _scheduler(configs: Path) -> Any:
    """Of the kind that the index of ``configs`` names."""
    import diffusers

    kind = getattr(diffusers, diffusers.DiffusionPipeline.load_config(configs)["scheduler"][1])
    return kind.from_pretrained(configs, subfolder="scheduler")


def _whole(kind: Any, location: str | Path, what: str, **read: Any) -> Any:
    """Raises CheckpointError where weights are missing or odd: the libraries would draw them at random."""
    model, info = kind.from_pretrained(location, use_safetensors=True, output_loading_info=True, **read)
    odd = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    return _complete(model, [*info["missing_keys"], *odd], what)


def _complete(model: Any, missing: Sequence[str], what: str) -> Any:
    if missing:
        raise CheckpointError(
            f"{what} lacks {len(missing)} of the tensors that its config asks for, or has them in another shape, such "
            f"as '{min(missing)}'; download it anew, or use the configs it was made with"
        )
    return model.eval()


def _fitting(parts: Parts, name: str) -> Parts:
    """Parts that fit each other, prompts cut to what the text encoder takes.

    Raises CheckpointError where they are of different models, which the libraries notice at the first picture.
    """
    pairs = {
        "the U-Net reads prompts": (parts.unet.config.cross_attention_dim, parts.text_encoder.config.hidden_size),
        "the autoencoder's latents": (parts.unet.config.out_channels, parts.vae.config.latent_channels),
    }
    for what, (one, other) in pairs.items():
        if one != other:
            raise CheckpointError(f"the parts of '{name}' do not belong together: {what} of width {one}, not {other}")
    if len(parts.tokenizer) > parts.text_encoder.get_input_embeddings().num_embeddings:
        raise CheckpointError(f"the parts of '{name}' do not belong together: the tokenizer has words without a vector")
    positions = parts.text_encoder.config.max_position_embeddings
    parts.tokenizer.model_max_length = min(parts.tokenizer.model_max_length, positions)  # by default it has no end
    return parts


# What a single file's U-Net predicts


def _predicts(path: Path, unet: Any, scheduler: Any) -> str:
    """Found by trying it, because files of Stable Diffusion 2.x do not say; with a warning, because it is a guess."""
    predicts = "epsilon" if _returns_noise(unet, scheduler.config.num_train_timesteps - 1) else "v_prediction"
    warnings.warn(
        f"'{path}' does not say what its U-Net predicts; trying it says {predicts}, so pictures have "
        f"{8 * _SIDES[predicts]} pixels; set --prediction-type if that is wrong",
        stacklevel=2,
    )
    return predicts


@torch.no_grad()
def _returns_noise(unet: Any, last: int) -> bool:
    """Whether a U-Net answers noise with that noise, at the ``last`` timestep and without a prompt.

    There z_t is nearly the noise ε itself. So it is the right answer where ε is predicted, and has nothing to do with
    it where the velocity is, which is nearly -x (arXiv 2202.00512).
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, unet.config.in_channels, 32, 32, generator=generator).to(unet.device, unet.dtype)
    prompt = noise.new_zeros(1, 77, unet.config.cross_attention_dim)
    answer = unet(noise, last, encoder_hidden_states=prompt, return_dict=False)[0]
    return float(F.cosine_similarity(answer.flatten(), noise.flatten(), dim=0)) > _NOISE_COMES_BACK


# What stands beside a base


def load_image_encoder(chosen: str | None, base: Parts, *, dtype: torch.dtype) -> ImageEncoder:
    """The vision tower of a CLIP in transformers' format: ``chosen``, a folder or hub id.

    Without one, that of the base's own folder, else OpenCLIP ViT-H/14. Raises CheckpointError for what is no CLIP, is
    not whole, or is not at hand.
    """
    from transformers import AutoConfig, CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection

    with _image_encoder(chosen, base) as (location, own):
        config = AutoConfig.from_pretrained(location)
        if config.model_type not in ("clip", "clip_vision_model"):
            raise CheckpointError(f"the image encoder '{location}' is a {config.model_type}, not a CLIP")
        kind, tower = CLIPVisionModel, None
        if config.model_type == "clip":
            kind, tower = CLIPModel, "vision_model"
        elif "CLIPVisionModelWithProjection" in (config.architectures or ()):
            kind, tower = CLIPVisionModelWithProjection, "vision_model"
        read: dict[str, Any] = {"dtype": dtype, "ignore_mismatched_sizes": True}
        if own is not None:
            read["variant"] = variant_of(own, "model", location, base.reading.variant)
        check_named(Path(location))
        model = _whole(kind, location, f"the image encoder '{location}'", **read)
    mean, std = _normalisation(location, base.folder)
    return ImageEncoder(getattr(model, tower) if tower else model, mean, std, None if own else location)


@contextmanager
def _image_encoder(chosen: str | None, base: Parts) -> Iterator[tuple[str, Path | None]]:
    """Where it is loaded from, and that folder if it is the base's own; says how to get what is not at hand."""
    inside = base.folder / "image_encoder" if base.folder is not None else None
    own = inside if chosen is None and inside is not None and inside.is_dir() else None
    location = str(own or chosen or DEFAULT_IMAGE_ENCODER)
    try:
        with _loading(f"the image encoder '{location}'"):
            yield location, own
    except CheckpointError as error:
        if Path(location).is_dir() or not isinstance(error.__cause__, OSError):
            raise
        raise CheckpointError(
            f"the image encoder '{location}' is no folder here, nor in the Hub's cache, and cannot be fetched from the "
            "Hub: fetch it while online, or name a CLIP in transformers' format with --image-encoder"
        ) from error


def _normalisation(location: str, base: Path | None) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std from a preprocessor config beside the image encoder or in the base, else CLIP's own."""
    from transformers import ImageProcessingMixin

    places = [(location, ""), *((base, sub) for sub in ("", "feature_extractor") if base is not None)]
    for place, sub in places:
        with suppress(OSError):  # there is none
            values, _ = ImageProcessingMixin.get_image_processor_dict(place, subfolder=sub)
            return values.get("image_mean", CLIP_MEAN), values.get("image_std", CLIP_STD)
    return CLIP_MEAN, CLIP_STD


def load_safety(folder: Path | None, variant: str | None) -> dict[str, Any]:
    """The base model's own safety checker, where it has one: never switched off behind the user's back.

    A single file, which has no ``folder``, has none. Raises CheckpointError where it is named but cannot be read.
    """
    from diffusers import StableDiffusionPipeline

    index = StableDiffusionPipeline.load_config(folder) if folder is not None else {}
    if folder is None or not (index.get("safety_checker") or [None])[0]:
        return {}
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    what = f"the safety checker of '{folder}'"
    with _loading(what):
        read = {"subfolder": "safety_checker", "variant": variant_of(folder / "safety_checker", "model", what, variant)}
        return {
            "safety_checker": _whole(StableDiffusionSafetyChecker, folder, what, **read),
            "feature_extractor": CLIPImageProcessor.from_pretrained(folder, subfolder="feature_extractor"),
        }
