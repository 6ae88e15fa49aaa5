"""What a domain is worth that had fewer steps, or fewer pictures, to learn from.

    python benchmarks/budget.py WORK --kind face --output docs/results/budget-face.json

Trains the domain of runs/tiny-KIND.json again with a share of its steps (the cooldown shrinks with them) and, at one of
these shares, on fewer pictures, each in a folder of its own under WORK/budget, and evaluates every one of them on the
same unseen individuals. The whole budget is the shipped domain, if `--whole tiny-KIND` says so, and else trained too.
What is finished is not done again: the same command goes on where it stopped. Beside the JSON file come a table in
markdown and a plot.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from e4t.backbone import Backbone
from e4t.config import PretrainConfig
from e4t.domain import Domain
from e4t.evaluation.evaluate import evaluate, table
from e4t.evaluation.judge import Judge
from e4t.pipeline import E4TPipeline
from e4t.pretrain import pretrain
from e4t.provenance import settings_digest
from e4t.tiny.album import AlbumConfig, write_album

ROOT = Path(__file__).parents[1]
SCORES = ("identity", "rank_1_of_20_twins", "prompt_accuracy", "joint_success")


@dataclass(frozen=True)
class BudgetConfig:
    """Which domain, what of its budget, and on how many individuals to measure."""

    work: tyro.conf.Positional[Path]
    output: Path
    kind: str = "face"
    whole: str | None = None  # a domain that had all steps and pictures already
    shares: tuple[float, ...] = (0.1, 1 / 3, 1.0)  # of the steps, on all pictures
    pictures: tuple[int, ...] = (100, 1_000, 10_000)  # the most is "all pictures"
    pictures_share: float = 1.0  # of the steps, for those that get fewer pictures
    steps: tuple[int, ...] = (0, 5)  # of tuning
    count: int = 25
    namespace: str = "validation"  # budgets are chosen by it
    judge_folder: Path | None = None
    num_inference_steps: int = 16
    use_caption: bool = False  # say what the input shows beside the concept


def budgets(config: BudgetConfig, full: int) -> list[tuple[int, int]]:
    """Steps and pictures of every domain to train."""
    most = max(config.pictures)

    def steps(share: float) -> int:
        return max(1, round(share * full))

    by_steps = [(steps(share), most) for share in config.shares]
    return list(dict.fromkeys([*by_steps, *((steps(config.pictures_share), count) for count in config.pictures)]))


def measure(config: BudgetConfig) -> Iterator[dict[str, Any]]:
    """Train and evaluate one domain after the other."""
    settings = json.loads((ROOT / "runs" / f"tiny-{config.kind}.json").read_text())
    full = PretrainConfig.from_dict(settings["pretrain"])
    judge = Judge.of(config.kind, config.judge_folder)
    drawn = [config.steps, config.num_inference_steps, config.use_caption]
    measured = [judge.fingerprint, config.namespace, config.count, *drawn]
    base = Backbone.from_pretrained("tiny", device="cpu").fingerprint
    for steps, count in budgets(config, full.steps):
        folder = (
            config.work / "budget" / f"{config.kind}-{steps}-steps-{count}-pictures-{settings_digest([settings, base])}"
        )
        pipe = E4TPipeline.from_pretrained(domain_of(config, settings, steps, count, folder), device="cpu")
        assert pipe.trained is not None
        result = folder.with_name(f"{folder.name}-{settings_digest([measured, pipe.trained.id])}.json")
        if not result.exists():
            evaluation = evaluate(
                pipe,
                config.namespace,
                config.count,
                steps=config.steps,
                judge=judge,
                use_caption=config.use_caption,
                num_inference_steps=config.num_inference_steps,
                progress=lambda text: print(text, file=sys.stderr, flush=True),
            )
            evaluation.write(result)
        methods = json.loads(result.read_text())["methods"]
        yield {"steps": steps, "pictures": count, "methods": methods}


def domain_of(config: BudgetConfig, settings: dict[str, Any], steps: int, count: int, folder: Path) -> Path | str:
    """The domain that had this budget: the one that is there already for the whole, else a new one in ``folder``."""
    if config.whole and (steps, count) == (settings["pretrain"]["steps"], max(config.pictures)):
        return config.whole
    if not (folder / "config.json").exists():
        train(config, settings, steps, count, folder)
    return folder


def train(config: BudgetConfig, settings: dict[str, Any], steps: int, count: int, folder: Path) -> None:
    """Pre-train one domain with the settings of the shipped one."""
    album = config.work / "budget" / f"{config.kind}-album-{count}"
    full = PretrainConfig.from_dict(settings["pretrain"])
    write_album(AlbumConfig(album, "train", count, config.kind, captions=full.caption_share > 0))
    shorter = full.updated({"steps": steps, "cooldown_steps": round(full.cooldown_steps * steps / full.steps)})
    training = pretrain(
        Domain.named(config.kind),
        album,
        backbone=Backbone.from_pretrained("tiny", device="cpu"),
        config=shorter,
        output=folder,
        personalize=settings["personalize"],
        generate=settings["generate"],
    )
    for step in training:
        if step.number % 100 == 0:
            print(f"{folder.name}: step {step.number}, loss {step.loss:.4f}", file=sys.stderr, flush=True)


def markdown(report: dict[str, Any]) -> str:
    """A row for each budget and number of tuning steps."""
    head = ["pre-training steps", "pictures", "tuning", *(name.replace("_", " ") for name in SCORES)]
    lines = []
    for row in report["rows"]:
        for method, values in row["methods"].items():
            if method.endswith(("step", "steps")):
                scores = (f"{values[name]['value']:.2f}" for name in SCORES)
                lines.append([f"{row['steps']:,}", f"{row['pictures']:,}", method, *scores])
    return table(head, lines)


def plot(report: dict[str, Any], path: Path) -> None:
    """Identity and joint success over the steps, and over the pictures, with 95 % intervals."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = report["rows"]
    fixed = {"pictures": max(row["pictures"] for row in rows), "steps": report["steps_of_fewer_pictures"]}
    figure, panels = plt.subplots(2, 2, figsize=(9, 6), layout="constrained", sharey="row")
    for column, (over, other) in enumerate((("steps", "pictures"), ("pictures", "steps"))):
        chosen = sorted((row for row in rows if row[other] == fixed[other]), key=lambda row: row[over])
        for line, score in enumerate(("identity", "joint_success")):
            panel = panels[line][column]
            for method in chosen[0]["methods"]:
                values = [row["methods"][method][score] for row in chosen]
                middle = [value["value"] for value in values]
                reach = [
                    [value["value"] - value["low"] for value in values],
                    [value["high"] - value["value"] for value in values],
                ]
                panel.errorbar([row[over] for row in chosen], middle, yerr=reach, marker="o", capsize=3, label=method)
            panel.set_xscale("log")
            panel.set_xlabel(f"{over} of pre-training, {fixed[other]:,} {other}")
            panel.set_ylabel(score.replace("_", " "))
            panel.grid(alpha=0.3)
    panels[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(config: BudgetConfig) -> None:
    """Measure all budgets, writing the files as they grow."""
    settings = json.loads((ROOT / "runs" / f"tiny-{config.kind}.json").read_text())["pretrain"]
    report: dict[str, Any] = {
        "kind": config.kind,
        "namespace": config.namespace,
        "count": config.count,
        "num_inference_steps": config.num_inference_steps,
        "use_caption": config.use_caption,
        "batch_size": settings["batch_size"],
        "steps_of_fewer_pictures": round(config.pictures_share * settings["steps"]),
        "rows": [],
    }
    config.output.parent.mkdir(parents=True, exist_ok=True)
    for row in measure(config):
        report["rows"].append(row)
        config.output.write_text(json.dumps(report, indent=2) + "\n")
    config.output.with_suffix(".md").write_text(markdown(report))
    plot(report, config.output.with_suffix(".png"))
    print(markdown(report))


if __name__ == "__main__":
    main(tyro.cli(BudgetConfig, config=(tyro.conf.FlagConversionOff,)))
