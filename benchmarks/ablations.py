"""What each part of the method is worth: one thing taken away or changed at a time.

    python benchmarks/ablations.py WORK --judge-folder WORK/judge-1/face --output docs/results/ablations.json

Every row has the same short pre-training on the same pictures, the reference too, from two seeds; rows that differ in
tuning alone share the reference's domains. Validation individuals, read by judge 1: what is chosen here is not seen in
published tables. What is finished is not done again: the same command goes on where it stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from e4t.backbone import Backbone
from e4t.checkpoint import TrainedDomain
from e4t.config import PretrainConfig
from e4t.domain import Domain
from e4t.evaluation.evaluate import evaluate, method_of, table
from e4t.evaluation.judge import Judge
from e4t.pipeline import E4TPipeline
from e4t.pretrain import pretrain
from e4t.provenance import settings_digest
from e4t.tiny.album import AlbumConfig, write_album

ROOT = Path(__file__).parents[1]
SCORES = ("identity", "rank_1_of_20_twins", "prompt_accuracy", "joint_success")


@dataclass(frozen=True)
class Row:
    """What differs from the reference: settings of pre-training, of tuning, of sampling, and whether masks are used."""

    pretrain: Mapping[str, Any] = field(default_factory=dict)
    personalize: Mapping[str, Any] = field(default_factory=dict)
    generate: Mapping[str, Any] = field(default_factory=dict)
    use_mask: bool = True
    domain: bool = True  # False: no pre-trained domain at all


VECTORS = ["residual", "bias"]
# Whether ‖E‖² is summed or averaged is no row: λ summed and λ times the width averaged are the same loss.
ROWS: dict[str, Row] = {
    "reference": Row(),
    "no offsets": Row({"offsets": {"form": "none"}}),
    "offsets only": Row({"encoder": {"use_image": False, "unet_blocks": "none"}}),
    "no regulariser": Row({"regularisation": 0.0}, {"regularisation": 0.0}),
    "regulariser x 10": Row({"regularisation": 1e-5}, {"regularisation": 1e-5}),
    "regulariser x 1000": Row({"regularisation": 1e-3}, {"regularisation": 1e-3}),
    "held to the nearest word": Row({"regularisation_anchor": "nearest"}, {"regularisation_anchor": "nearest"}),
    "held to the nearest word x 100": Row(
        {"regularisation_anchor": "nearest", "regularisation": 1e-4},
        {"regularisation_anchor": "nearest", "regularisation": 1e-4},
    ),
    "no denoiser features": Row({"encoder": {"unet_blocks": "none"}}),
    "all denoiser features": Row({"encoder": {"unet_blocks": "all"}}),
    "no image features": Row({"encoder": {"use_image": False}}),
    "last CLIP layer only": Row({"encoder": {"layer_stride": 8}}),
    "every CLIP layer": Row({"encoder": {"layer_stride": 1}}),
    "LeakyReLU 0.01": Row({"encoder": {"negative_slope": 0.01}}),
    "direct rank 3": Row({"offsets": {"form": "lowrank"}}),
    "s = 0.03": Row({"embedding_scale": 0.03}),
    "s = 0.3": Row({"embedding_scale": 0.3}),
    "frozen embedding": Row(generate={"embedding": "frozen"}),
    "no domain pre-training": Row(domain=False),
    "batch 1": Row(personalize={"batch_size": 1}),
    "batch 4": Row(personalize={"batch_size": 4}),
    "no mask": Row(use_mask=False),
    "tuned: word": Row(personalize={"tune": VECTORS}),
    "tuned: attention": Row(personalize={"tune": ["deltas"]}),
    "tuned: word, attention": Row(personalize={"tune": [*VECTORS, "deltas"]}),
    "tuned: word, attention at rank 4": Row(personalize={"tune": [*VECTORS, "deltas"], "delta_rank": 4}),
    "tuned: encoder, attention": Row(personalize={"tune": ["encoder", "deltas"]}),
    "tuned: word, U-Net, text encoder": Row(personalize={"tune": [*VECTORS, "deltas", "unet", "text_encoder"]}),
    "prior preservation": Row(personalize={"prior_weight": 1.0}),
}


@dataclass(frozen=True)
class AblationConfig:
    """How much of everything."""

    work: tyro.conf.Positional[Path]
    output: Path
    judge_folder: Path | None = None  # judge 1; without one, the shipped judge
    rows: tuple[str, ...] = ()  # () are all
    kind: str = "face"
    pretrain_steps: int = 300
    pictures: int = 8_000
    seeds: tuple[int, ...] = (0, 1)
    steps: tuple[int, ...] = (0, 5)
    count: int = 12
    namespace: str = "validation"
    num_inference_steps: int = 16


def domain_of(config: AblationConfig, name: str, row: Row, seed: int) -> TrainedDomain:
    """The row's own domain, trained where it is not there yet; the reference's where only tuning differs."""
    settings = json.loads((ROOT / "runs" / f"tiny-{config.kind}.json").read_text())
    short = {"steps": config.pretrain_steps, "cooldown_steps": config.pretrain_steps // 4, "seed": seed}
    training_config = PretrainConfig.from_dict(settings["pretrain"]).updated({**short, **row.pretrain})
    backbone = Backbone.from_pretrained("tiny", device="cpu")
    made_of = settings_digest([training_config.to_dict(), settings, config.pictures, backbone.fingerprint])
    folder = config.work / "ablations" / f"{config.kind}-{_slug(name if row.pretrain else 'reference')}-{made_of}"
    if not (folder / "config.json").exists():
        album = config.work / "ablations" / f"{config.kind}-album-{config.pictures}"
        captions = training_config.caption_share > 0
        write_album(AlbumConfig(album, "train", config.pictures, config.kind, captions=captions))
        training = pretrain(
            Domain.named(config.kind),
            album,
            backbone=backbone,
            config=training_config,
            output=folder,
            personalize=settings["personalize"],
            generate=settings["generate"],
        )
        for step in training:
            if step.number % 100 == 0:
                print(f"{folder.name}: step {step.number}, loss {step.loss:.4f}", file=sys.stderr, flush=True)
    return TrainedDomain.load(folder)


def pipeline_of(config: AblationConfig, name: str, row: Row, seed: int) -> E4TPipeline:
    """The row's domain with its settings of tuning and sampling."""
    trained = domain_of(config, name, row, seed)
    trained = replace(
        trained,
        personalize={**trained.personalize, **row.personalize, "seed": seed},
        generate={**trained.generate, **row.generate},
    )
    pipe = E4TPipeline(Backbone.from_pretrained("tiny", device="cpu"), trained)
    return pipe if row.domain else _without_domain(pipe)


def _without_domain(pipe: E4TPipeline) -> E4TPipeline:
    """The same settings of tuning and sampling on the bare base."""
    bare = E4TPipeline(pipe.backbone, domain=pipe.domain)
    bare.trained = replace(pipe.trained, tensors={}) if pipe.trained else None  # carries the settings, no weights
    return bare


def measure(config: AblationConfig, name: str, seed: int, judge: Judge) -> dict[str, Any]:
    """The scores of one row and seed, by number of tuning steps; kept in the work folder."""
    row = ROWS[name]
    pipe = pipeline_of(config, name, row, seed)
    depends = [pipe.trained.id if pipe.trained else None, pipe.personalize_config.to_dict()]
    depends += [pipe.generate_config.to_dict(), row.use_mask, row.domain, judge.fingerprint, config.namespace]
    depends += [config.count, config.steps, config.num_inference_steps]
    result = config.work / "ablations" / "results" / f"{config.kind}-{_slug(name)}-{settings_digest(depends)}.json"
    if not result.exists():
        evaluation = evaluate(
            pipe,
            config.namespace,
            config.count,
            steps=config.steps,
            judge=judge,
            num_inference_steps=config.num_inference_steps,
            use_mask=row.use_mask,
        )
        evaluation.write(result)
    methods = json.loads(result.read_text())["methods"]
    return {
        str(steps): {score: methods[method_of(steps)][score]["value"] for score in SCORES} for steps in config.steps
    }


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def markdown(report: dict[str, Any]) -> str:
    """A row each, the mean over seeds and, behind it, half the distance between them."""
    steps = [str(number) for number in report["steps"]]
    head = ["", *(f"{score.replace('_', ' ')}, {number} steps" for number in steps for score in SCORES)]
    lines = []
    for name, seeds in report["rows"].items():
        cells = [name]
        for number in steps:
            for score in SCORES:
                values = [seed[number][score] for seed in seeds.values()]
                cells.append(f"{np.mean(values):.2f} ± {np.ptp(values) / 2:.2f}")
        lines.append(cells)
    return table(head, lines)


def main(config: AblationConfig) -> None:
    """Measure all rows, writing the files as they grow."""
    judge = Judge.of(config.kind, config.judge_folder)
    report: dict[str, Any] = {
        "kind": config.kind,
        "judge": judge.number,
        "namespace": config.namespace,
        "count": config.count,
        "pretrain_steps": config.pretrain_steps,
        "steps": config.steps,
        "rows": {},
    }
    config.output.parent.mkdir(parents=True, exist_ok=True)
    for name in config.rows or tuple(ROWS):
        report["rows"][name] = {str(seed): measure(config, name, seed, judge) for seed in config.seeds}
        print(json.dumps({name: report["rows"][name]}), flush=True)
        config.output.write_text(json.dumps(report, indent=2) + "\n")
        config.output.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main(tyro.cli(AblationConfig, config=(tyro.conf.FlagConversionOff,)))
