"""What files say of themselves: where they come from, and what web UIs show."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from e4t.config import PersonalizeConfig
from e4t.errors import CheckpointError
from e4t.export.places import MARK
from e4t.export.probe import PROBE_STEPS
from e4t.export.source import Source, is_sd1
from e4t.images import data_url
from e4t.provenance import public_name

_FROZEN = (
    "frozen: v_class + s E, with E the mean over the noise levels of the tuned picture; natively v* is predicted "
    "anew at every denoising step"
)
_THE_SAME = "v_class + s E, natively the same at every denoising step"


def embedding_metadata(source: Source) -> dict[str, str]:
    similarity, changes = source.similarity, source.pipe.model.encoder.config.sees_noise
    return file_metadata(source, "textual-inversion") | {
        "e4t.embedding": _FROZEN if changes else _THE_SAME,
        "e4t.live_cosine": f"{similarity.cosine:.4f}",
        "e4t.live_distance": f"{similarity.distance:.4f}",
        "e4t.live_measure": f"of the live v* and this embedding f, means over the U-Net's calls while drawing "
        f"'{source.probe.prompt}' natively in {PROBE_STEPS} steps, seed 0; the distance is |v* - f| / |f|",
    }


def file_metadata(source: Source, kind: str | None = None) -> dict[str, str]:
    """For every file: where it comes from, and what web UIs show."""
    concept, backbone = source.concept, source.pipe.backbone
    prediction = backbone.scheduler.config.prediction_type
    metadata = {
        "format": "pt",
        MARK: kind or source.to,
        "e4t.token": source.places.token,
        "e4t.domain": concept.domain.name,
        "e4t.domain_id": concept.domain_id or "none",
        "e4t.base": public_name(concept.base.name),
        "e4t.base_fingerprint": concept.base.fingerprint,
        "e4t.steps": str(concept.steps),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": "diffusers",
        "modelspec.title": source.places.main.stem,
        "modelspec.resolution": f"{backbone.resolution}x{backbone.resolution}",
        "modelspec.prediction_type": "v" if prediction == "v_prediction" else prediction,
        "modelspec.trigger_phrase": source.places.trigger,
    }
    if concept.preview:
        metadata["modelspec.thumbnail"] = data_url(concept.preview)
    if is_sd1(backbone.unet.config):
        kinds = {"textual-inversion": "/textual-inversion", "pipeline": "", "single-file": ""}
        metadata["modelspec.architecture"] = f"stable-diffusion-v1{kinds.get(kind or source.to, '/lora')}"
    return metadata


def kohya_metadata(source: Source, *, rank: int | None = None) -> dict[str, str]:
    concept, resolution = source.concept, source.pipe.backbone.resolution
    config = PersonalizeConfig.from_dict(concept.config)
    metadata = {
        "ss_output_name": source.places.main.stem,
        "ss_sd_model_name": public_name(concept.base.name),
        "ss_resolution": str((resolution, resolution)),
        "ss_num_train_images": "1",
        "ss_steps": str(concept.steps),
        "ss_learning_rate": str(config.learning_rate),
        "ss_seed": str(config.seed),
        "ss_tag_frequency": json.dumps({concept.domain.name: {source.places.trigger: 1}}),
    }
    if is_sd1(source.pipe.backbone.unet.config):
        metadata["ss_base_model_version"] = "sd_v1"
    if rank is not None:
        metadata |= {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    return metadata


def read_labels(path: Path) -> dict[str, str]:
    """What a file that was exported here says of itself, without its thumbnail. Raises CheckpointError for another."""
    try:
        with safe_open(path, framework="pt") as opened:
            said: dict[str, str] = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{path}' cannot be read as a .safetensors file: {error}") from error
    if MARK not in said:
        raise CheckpointError(
            f"'{path}' is no export of this package; 'e4t info' takes those, drawn pictures, and folders of a concept, "
            "domain or base model"
        )
    kind = said.pop(MARK)
    return {"export": kind, **{name: said[name] for name in sorted(said) if not name.endswith(".thumbnail")}}
