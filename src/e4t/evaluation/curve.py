"""What more training of the base buys: its scores after every so many steps.

    python -m e4t.evaluation.curve WORK --output docs/results/curve.json

Reads what the recipe kept in WORK/curve. Beside the JSON file come a table in markdown and a plot.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from e4t.evaluation.base import Painter, names_drawn, prompt_following
from e4t.evaluation.evaluate import table
from e4t.evaluation.judge import Judge, autoencoder
from e4t.tiny.train import TinyConfig, kept_pipelines


@dataclass(frozen=True)
class CurveConfig:
    """Whose training, and how many pictures each point of the curve is measured on."""

    work: tyro.conf.Positional[Path]  # the folder of the tiny model's training
    output: Path  # JSON; .md and .png come beside it
    kind: str = "face"
    judge_folder: Path | None = None  # instead of the shipped judge
    count: int = 300
    named: int = 100
    num_inference_steps: int = 16
    before: int = (
        0  # pictures the base had seen before the first step, in an earlier training that this one went on from
    )


def measure(config: CurveConfig) -> dict[str, Any]:
    """A row of scores for every kept number of steps: shares of what the judge reads in the world's own drawings."""
    tiny = TinyConfig(config.work)
    judge = Judge.of(config.kind, config.judge_folder)
    through = autoencoder(config.work / "tiny" / "vae")
    rows = []
    for step, pipe in kept_pipelines(tiny):
        pipe.set_progress_bar_config(disable=True)
        painter = Painter(pipe, through, config.num_inference_steps)
        prompts = prompt_following(painter, judge, count=config.count)
        named = names_drawn(painter, judge, count=config.named)
        shares = {name: values["share_of_ceiling"] for name, values in prompts["attributes"].items()}
        scores = {key: named[key] for key in ("identity", "rank_1_of_50", "rank_1_of_20_twins")}
        rows.append({"pictures": config.before + step * tiny.base_batch, "prompts": shares, "names": scores})
        print(json.dumps(rows[-1]), flush=True)
    if not rows:
        raise SystemExit(f"'{config.work / 'curve'}' is empty; the recipe keeps averages there while the base learns")
    return {"kind": config.kind, "judge": judge.number, "count": config.count, "named": config.named, "rows": rows}


def markdown(report: dict[str, Any]) -> str:
    """The rows as a table."""
    asked, known = report["rows"][0]["prompts"], report["rows"][0]["names"]
    head = ["pictures seen", *asked, *(f"by name: {name.replace('_', ' ')}" for name in known)]
    lines = []
    for row in report["rows"]:
        values = [*row["prompts"].values(), *row["names"].values()]
        lines.append([f"{row['pictures']:,}", *(f"{value:.2f}" for value in values)])
    return table(head, lines)


def plot(report: dict[str, Any], path: Path) -> None:
    """Two panels over the pictures seen: what is asked for in words, and who is asked for by name."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    seen = [row["pictures"] / 1e6 for row in report["rows"]]
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharex=True, layout="constrained")
    titles = {"prompts": "what is asked for, share of the ceiling", "names": "who is asked for by name"}
    for panel, (part, title) in zip(panels, titles.items(), strict=True):
        for name in report["rows"][0][part]:
            panel.plot(seen, [row[part][name] for row in report["rows"]], marker="o", label=name.replace("_", " "))
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("million pictures seen")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(config: CurveConfig) -> None:
    """Measure, write the three files and print the table."""
    report = measure(config)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(json.dumps(report, indent=2) + "\n")
    config.output.with_suffix(".md").write_text(markdown(report))
    plot(report, config.output.with_suffix(".png"))
    print(markdown(report))


if __name__ == "__main__":
    main(tyro.cli(CurveConfig, config=(tyro.conf.FlagConversionOff,)))
