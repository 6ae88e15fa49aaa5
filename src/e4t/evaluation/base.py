"""How well the base model itself does what it is told: the limit of everything built on it.

    python -m e4t.evaluation.base MODEL --output docs/results/base.json

Three questions to a judge: is what a caption says in the picture, for individuals nobody trained on; is a named
individual drawn by its name; and what does the autoencoder take away. Every figure stands beside its ceiling: what the
judge reads in the world's own drawings after the autoencoder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from e4t.evaluation import metrics
from e4t.evaluation.evaluate import Attributes, Examination, prompt_text, prompted, score, table
from e4t.evaluation.gates import described, gate_pictures
from e4t.evaluation.judge import RESOLUTION, Judge, RoundTrip, autoencoder, round_trip
from e4t.evaluation.truth import Truth, classes_of
from e4t.tiny.captions import names
from e4t.tiny.world import Picture, draw, identity

NAMED_PROMPTS: tuple[Attributes, ...] = ({"style": "photo"}, {"style": "photo", "scene": "beach"})
NAMED_ART_PROMPTS: tuple[Attributes, ...] = ({"subject": "face"}, {"subject": "cat", "scene": "beach"})


@dataclass(frozen=True)
class Painter:
    """A stock pipeline and how it draws; picture i of a list is drawn with seed i."""

    pipe: Any
    through: RoundTrip  # its autoencoder
    num_inference_steps: int = 25
    guidance_scale: float = 4.0
    guidance_rescale: float = 0.5
    batch: int = 16

    def draw(self, captions: Sequence[str]) -> np.ndarray:
        """One picture per caption, uint8 ``[n, 128, 128, 3]``."""
        parts = []
        for start in range(0, len(captions), self.batch):
            texts = list(captions[start : start + self.batch])
            parts += self.pipe(
                texts,
                generator=[torch.Generator().manual_seed(start + row) for row in range(len(texts))],
                num_inference_steps=self.num_inference_steps,
                guidance_scale=self.guidance_scale,
                guidance_rescale=self.guidance_rescale,
            ).images
        return np.stack([np.asarray(image.convert("RGB")) for image in parts])


def _drawings(pictures: Sequence[Picture]) -> np.ndarray:
    return np.stack([draw(picture, RESOLUTION).rgb for picture in pictures])


def prompt_following(painter: Painter, judge: Judge, *, count: int) -> dict[str, Any]:
    """Accuracy of every attribute and of each of its options in ``count`` pictures, and the ceilings.

    Captions say everything there is to say of unseen individuals; of artists, who cannot be described, names.
    """
    pictures = gate_pictures(count, named=judge.kind == "art", kind=judge.kind)
    right = Truth.of(pictures, judge.kind).classes
    drawn = painter.draw([described(picture, number) for number, picture in enumerate(pictures)])
    read = judge.read(drawn).classes
    best = judge.read(round_trip(_drawings(pictures), painter.through)).classes
    report: dict[str, Any] = {}
    for name, options in classes_of(judge.kind).items():
        hits, ceiling = read[name] == right[name], best[name] == right[name]
        asked = {option: right[name] == number for number, option in enumerate(options)}
        report[name] = _shares(hits, ceiling) | {
            "options": {option: _shares(hits[rows], ceiling[rows]) for option, rows in asked.items() if rows.any()}
        }
    values = [report[name]["share_of_ceiling"] for name in report]
    return {"pictures": count, "share_of_ceiling": round(float(np.mean(values)), 4), "attributes": report}


def _shares(hits: np.ndarray, ceiling: np.ndarray) -> dict[str, float]:
    best = float(ceiling.mean())
    return {
        "pictures": len(hits),
        "accuracy": round(float(hits.mean()), 4),
        "ceiling": round(best, 4),
        "share_of_ceiling": round(float(hits.mean()) / max(best, 1e-9), 4),
    }


def names_drawn(painter: Painter, judge: Judge, *, count: int) -> dict[str, Any]:
    """Identity and rank-1 of the first ``count`` named individuals, drawn by nothing but their names."""
    subjects = [identity("train", index, judge.kind) for index in range(count)]
    prompts = NAMED_ART_PROMPTS if judge.kind == "art" else NAMED_PROMPTS
    examination = Examination(judge.layout, subjects, prompts, judge.readable, "train")
    known = names(judge.kind)
    texts = [prompt_text(subject, asked, known[number]) for number, subject in enumerate(subjects) for asked in prompts]
    drawings = _drawings([prompted(subject, asked) for subject in subjects for asked in prompts])
    ceiling = score(examination, judge.read(round_trip(drawings, painter.through)))
    table = score(examination, judge.read(painter.draw(texts)))
    return {
        "individuals": count,
        "prompts": texts[: len(prompts)],
        "identity": round(table.identity / ceiling.identity, 4),
        "identity_ceiling": round(ceiling.identity, 4),
        "rank_1_of_50": round(float(table.crowd.mean()), 4),
        "rank_1_of_20_twins": round(float(table.twin.mean()), 4),
    }


def autoencoder_loss(painter: Painter, judge: Judge, *, count: int) -> dict[str, Any]:
    """What the judge reads before and after the autoencoder: mean R² of what it can read, mean class accuracy."""
    pictures = gate_pictures(count, named=judge.kind == "art", kind=judge.kind)
    truth, rgb = Truth.of(pictures, judge.kind), _drawings(pictures)
    report: dict[str, Any] = {"pictures": count}
    for label, shown in (("drawings", rgb), ("round trips", round_trip(rgb, painter.through))):
        readings = judge.read(shown)
        shares = metrics.explained(judge.layout, readings.identity, truth.identity, truth.visible)[judge.readable]
        accuracy = np.mean([(answers == truth.classes[name]).mean() for name, answers in readings.classes.items()])
        report[label] = {"identity": round(float(shares.mean()), 4), "classes": round(float(accuracy), 4)}
    before, after = report["drawings"], report["round trips"]
    report["lost"] = {name: round(1 - after[name] / before[name], 4) for name in before}
    return report


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    following, named, lost = report["prompts"], report["names"], report["autoencoder"]["lost"]
    rows = []
    for name, values in following["attributes"].items():
        option, worst = min(values["options"].items(), key=lambda item: item[1]["share_of_ceiling"])
        shares = (f"{values[score]:.2f}" for score in ("accuracy", "ceiling", "share_of_ceiling"))
        rows.append([name, *shares, f"{option}: {worst['share_of_ceiling']:.2f} of {worst['pictures']}"])
    head = (
        f"Prompts on {following['pictures']} unseen individuals, judge {report['judge']}: "
        f"{following['share_of_ceiling']:.2f} of the ceiling.\n"
    )
    by_name = (
        f"\n{named['individuals']} named individuals by name alone: identity {named['identity']:.2f} of the ceiling "
        f"({named['identity_ceiling']:.2f}), found among 50 {named['rank_1_of_50']:.2f}, "
        f"among 20 twins {named['rank_1_of_20_twins']:.2f}."
    )
    taken = (
        f"\nThe autoencoder takes {lost['identity']:.1%} of what is read of identity and {lost['classes']:.1%} of the "
        "classes.\n"
    )
    titles = ["", "accuracy", "ceiling", "share of the ceiling", "weakest option"]
    return "\n".join([head, table(titles, rows) + by_name, taken])


@dataclass(frozen=True)
class BaseConfig:
    """Which base, and how many pictures."""

    model: tyro.conf.Positional[Path]  # a folder as the recipe exports it
    output: Path  # JSON; a table in markdown comes beside it
    kind: str = "face"
    judge_folder: Path | None = None  # instead of the shipped judge
    count: int = 1000
    named: int = 100
    num_inference_steps: int = 25
    guidance_scale: float = 4.0


def main(config: BaseConfig) -> None:
    """Ask the three questions, write the answers and print them."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(config.model)
    pipe.set_progress_bar_config(disable=True)
    judge = Judge.of(config.kind, config.judge_folder)
    painter = Painter(pipe, autoencoder(config.model / "vae"), config.num_inference_steps, config.guidance_scale)
    report = {
        "judge": judge.number,
        "kind": judge.kind,
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.guidance_scale,
        "prompts": prompt_following(painter, judge, count=config.count),
        "names": names_drawn(painter, judge, count=config.named),
        "autoencoder": autoencoder_loss(painter, judge, count=min(config.count, 500)),
    }
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(json.dumps(report, indent=2) + "\n")
    config.output.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main(tyro.cli(BaseConfig, config=(tyro.conf.FlagConversionOff,)))
