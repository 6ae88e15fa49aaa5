"""What each part of the method is worth: one thing taken away or changed at a time.

    python benchmarks/ablations.py WORK --judge-folder WORK/judge-1/face --output docs/results/ablations.json

Every row has the same short pre-training on the same pictures, the reference too, from two seeds; rows that differ in
tuning alone share the reference's domains. Validation individuals, read by judge 1, or by the shipped one where no
other is at hand: what is chosen here is not seen in published tables. Intervals are of the paired difference to the
reference over individuals, both seeds averaged inside each. What is finished is not done again: the same command goes
on where it stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from e4t.backbone import Backbone
from e4t.checkpoint import TrainedDomain
from e4t.config import PretrainConfig
from e4t.domain import Domain
from e4t.errors import ConfigError
from e4t.evaluation import metrics
from e4t.evaluation.evaluate import DRAWINGS, Table, evaluate, method_of, table
from e4t.evaluation.judge import Judge
from e4t.pipeline import E4TPipeline
from e4t.pretrain import pretrain
from e4t.provenance import settings_digest
from e4t.tiny.album import AlbumConfig, write_album
from e4t.writing import new_files

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

    def differs_before_tuning(self) -> bool:
        """Whether a concept after 0 steps is another than the reference's."""
        return bool(self.pretrain or self.generate or not self.use_mask or not self.domain)


REFERENCE: dict[str, Any] = {"encoder": {"unet_blocks": "resolutions"}}
"""What the reference has instead of the shipped domains' setting, which these rows led to."""
VECTORS = ["residual", "bias"]
# Whether ‖E‖² is summed or averaged is no row: λ summed and λ times the width averaged are the same loss.
# A direct Δ moves by the rate where the paper's form moves by about width times the rate: it has rows of its own rates.
# s is a factor of the word's rate as well: while tuning that is made up for, in pre-training the encoder learns faster.
ROWS: dict[str, Row] = {
    "reference": Row(),
    "no offsets": Row({"offsets": {"form": "none"}}),
    "offsets only": Row({"encoder": {"use_image": False, "unet_blocks": "none"}}),
    "no regulariser": Row({"regularisation": 0.0}, {"regularisation": 0.0}),
    "regulariser x 10": Row({"regularisation": 1e-4}, {"regularisation": 1e-4}),
    "regulariser x 100": Row({"regularisation": 1e-3}, {"regularisation": 1e-3}),
    "held to the nearest word": Row({"regularisation_anchor": "nearest"}, {"regularisation_anchor": "nearest"}),
    "held to the nearest word x 100": Row(
        {"regularisation_anchor": "nearest", "regularisation": 1e-3},
        {"regularisation_anchor": "nearest", "regularisation": 1e-3},
    ),
    "no denoiser features": Row({"encoder": {"unet_blocks": "none"}}),
    "all denoiser features": Row({"encoder": {"unet_blocks": "all"}}),
    "features not normalised": Row({"encoder": {"normalize": False}}),
    "no image features": Row({"encoder": {"use_image": False}}),
    "last CLIP layer only": Row({"encoder": {"layer_stride": 8}}),
    "every CLIP layer": Row({"encoder": {"layer_stride": 1}}),
    "LeakyReLU 0.01": Row({"encoder": {"negative_slope": 0.01}}),
    "direct rank 3": Row({"offsets": {"form": "lowrank"}}),
    "direct rank 3, rate x 50": Row({"offsets": {"form": "lowrank"}, "offsets_learning_rate": 1e-3}),
    "offsets' rate x 10": Row({"offsets_learning_rate": 2e-4}),
    "s = 0.03": Row({"embedding_scale": 0.03}, {"residual_learning_rate": 0.33}),
    "s = 0.3": Row({"embedding_scale": 0.3}, {"residual_learning_rate": 0.033}),
    "timesteps not spread": Row({"stratified_timesteps": False}, {"stratified_timesteps": False}),
    "timesteps from 350": Row({"min_timestep": 350}),
    "random crops": Row({"crop_scale": [0.8, 1.0], "cache": False}),
    "mirrored": Row({"flip": True, "cache": False}),
    "frozen embedding": Row(generate={"embedding": "frozen"}),
    "no domain pre-training": Row(domain=False),
    "batch 1": Row(personalize={"batch_size": 1}),
    "batch 4": Row(personalize={"batch_size": 4}),
    "no mask": Row(use_mask=False),
    "word ten times slower": Row(personalize={"residual_learning_rate": 0.01}),
    "tuned: word": Row(personalize={"tune": VECTORS}),
    "tuned: attention": Row(personalize={"tune": ["deltas"]}),
    "tuned: word, attention": Row(personalize={"tune": [*VECTORS, "deltas"]}),
    "tuned: word, attention, rate x 3": Row(personalize={"tune": [*VECTORS, "deltas"], "learning_rate": 1.2e-3}),
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
    pretrain_steps: int = 150
    pictures: int = 2_000
    seeds: tuple[int, ...] = (0, 1)
    steps: tuple[int, ...] = (0, 5)
    count: int = 12
    namespace: str = "validation"
    num_inference_steps: int = 16


def reference_config(settings: Mapping[str, Any]) -> PretrainConfig:
    """The reference's pre-training, in all of its steps, by a file of `runs`."""
    return PretrainConfig.from_dict(settings["pretrain"]).updated(REFERENCE)


def domain_of(config: AblationConfig, name: str, row: Row, seed: int) -> TrainedDomain:
    """The row's own domain, trained where it is not there yet; the reference's where only tuning differs."""
    settings = json.loads((ROOT / "runs" / f"tiny-{config.kind}.json").read_text())
    short = {"steps": config.pretrain_steps, "cooldown_steps": config.pretrain_steps // 4, "seed": seed}
    training_config = reference_config(settings).updated(short).updated(row.pretrain)
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


def measure(config: AblationConfig, name: str, seed: int, judge: Judge) -> dict[str, Table]:
    """The scores of one row and seed, by method of evaluation; kept in the work folder."""
    row = ROWS[name]
    if name != "reference" and not row.differs_before_tuning() and 0 in config.steps and max(config.steps) > 0:
        before = measure(config, "reference", seed, judge)
        tuned = replace(config, steps=tuple(step for step in config.steps if step > 0))
        return {**before, **measure(tuned, name, seed, judge)}
    pipe = pipeline_of(config, name, row, seed)
    depends = [pipe.trained.id if pipe.trained else None, pipe.personalize_config.to_dict()]
    depends += [pipe.generate_config.to_dict(), row.use_mask, row.domain, judge.fingerprint, config.namespace]
    depends += [config.count, config.steps, config.num_inference_steps]
    path = config.work / "ablations" / "results" / f"{config.kind}-{_slug(name)}-{seed}-{settings_digest(depends)}.json"
    if not path.exists():
        tables = evaluate(
            pipe,
            config.namespace,
            config.count,
            steps=config.steps,
            judge=judge,
            num_inference_steps=config.num_inference_steps,
            use_mask=row.use_mask,
            class_word=False,
        ).tables
        kept = {method: {key: value.tolist() for key, value in vars(table).items()} for method, table in tables.items()}
        with new_files([path]) as (place,):
            place.write_text(json.dumps(kept))
    read = json.loads(path.read_text())
    return {method: Table(**{key: np.array(value) for key, value in t.items()}) for method, t in read.items()}


def compared(config: AblationConfig, measured: Mapping[str, Sequence[Mapping[str, Table]]]) -> dict[str, Any]:
    """Every score of every row by number of steps: its value, and with interval how far it is from the reference."""
    samples, found = metrics.resamples(config.count), dict[str, Any]()
    for name, seeds in measured.items():
        found[name] = {}
        for steps in config.steps:
            mine, reference = (_statistics(of, steps) for of in (seeds, measured["reference"]))
            found[name][str(steps)] = {
                score: {
                    "value": round(statistic(np.arange(config.count)), 4),
                    "seeds": [round(_statistics([one], steps)[score](np.arange(config.count)), 4) for one in seeds],
                    "gap": metrics.bootstrap(metrics.difference(statistic, reference[score]), samples).to_dict(),
                }
                for score, statistic in mine.items()
                if score in SCORES
            }
    return found


def _statistics(seeds: Sequence[Mapping[str, Table]], steps: int) -> dict[str, metrics.Statistic]:
    ceiling, drawn = (Table.mean([one[method] for one in seeds]) for method in (DRAWINGS, method_of(steps)))
    return drawn.statistics(ceiling)


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def markdown(report: dict[str, Any]) -> str:
    """A row each: joint success, and with its interval how far identity and joint success are from the reference."""
    steps = [str(number) for number in report["steps"]]
    head = ["", *(f"{title}, {number} steps" for number in steps for title in ("identity", "twins", "prompt", "joint"))]
    head += [f"{title} − reference, {number} steps" for number in steps for title in ("identity", "joint")]
    lines = []
    for name, scores in report["rows"].items():
        values = [f"{scores[number][score]['value']:.2f}" for number in steps for score in SCORES]
        gaps = [scores[number][score]["gap"] for number in steps for score in ("identity", "joint_success")]
        lines.append([name, *values, *(f"{g['value']:+.2f} ({g['low']:+.2f} … {g['high']:+.2f})" for g in gaps)])
    return table(head, lines)


def main(config: AblationConfig) -> None:
    """Measure all rows, writing the files as they grow. Raises ConfigError for a row that there is not."""
    unknown = [name for name in config.rows if name not in ROWS]
    if unknown:
        raise ConfigError(f"there is no row {unknown[0]!r}; there are {', '.join(ROWS)}")
    judge = Judge.of(config.kind, config.judge_folder)
    report: dict[str, Any] = {
        "kind": config.kind,
        "judge": judge.number,
        "namespace": config.namespace,
        "count": config.count,
        "seeds": config.seeds,
        "pretrain_steps": config.pretrain_steps,
        "pictures": config.pictures,
        "steps": config.steps,
    }
    measured: dict[str, list[dict[str, Table]]] = {}
    config.output.parent.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(("reference", *(config.rows or ROWS))):
        measured[name] = [measure(config, name, seed, judge) for seed in config.seeds]
        report["rows"] = compared(config, measured)
        print(json.dumps({name: report["rows"][name]}), flush=True)
        config.output.write_text(json.dumps(report, indent=1) + "\n")
        config.output.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main(tyro.cli(AblationConfig, config=(tyro.conf.FlagConversionOff,)))
