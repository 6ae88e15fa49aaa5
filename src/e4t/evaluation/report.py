"""Figures, tables, plots and grids of a benchmark: CSV, JSON, Markdown, and one HTML page that needs nothing beside it.

Every score has a 95 % interval over concepts, seeds and prompts averaged inside a concept, and every method is compared
with E4T on the same concepts (paired bootstrap).
"""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from e4t.evaluation import metrics
from e4t.evaluation.contest import BY_NAME, NAMED_DRAWINGS, REFERENCES, Contest, DrawnContest, Record
from e4t.evaluation.copying import backdrop, correlation_statistic
from e4t.evaluation.evaluate import DRAWINGS, Examination, score, small, table
from e4t.evaluation.judge import RESOLUTION
from e4t.evaluation.methods import OURS, Lineup
from e4t.evaluation.metrics import Statistic
from e4t.evaluation.similarity import same_face
from e4t.evaluation.truth import joined
from e4t.images import data_url, square
from e4t.writing import new_files

Tuning = tuple[str, int]
"""A method and its number of steps."""

_OTHERS = (BY_NAME, NAMED_DRAWINGS)
"""Rows of others than the concepts that are learned: they had no input picture."""

TITLES = {
    "identity": "identity",
    "rank_1_of_20_twins": "of 20 twins",
    "prompt_accuracy": "prompt",
    "joint_success": "joint success",
    "clip_t": "CLIP-T",
    "clip_i": "CLIP-I",
    "same_face": "same face",
    "diversity": "diversity",
    "copied_pose": "copied pose",
    "copied_backdrop": "copied backdrop",
}
COSTS = {"seconds": "seconds", "passes": "passes", "peak_bytes": "peak MB", "stored_bytes": "stored kB"}


@dataclass(frozen=True)
class Given:
    """What the methods were given, concept by concept, and what was asked for."""

    clip: np.ndarray  # [concepts, W]
    backdrop: np.ndarray  # [concepts, 3]
    texts: np.ndarray  # [concepts, prompts, W], CLIP's vectors of the prompts with the class word
    faces: np.ndarray | None  # [concepts, 128]

    @classmethod
    def of(cls, contest: Contest) -> Given:
        inputs = (contest.examples(number, 1)[0].image for number in range(contest.size))
        images = [square(image.convert("RGB"), min(image.size)) for image in inputs]  # what methods learn from
        word, placeholder = contest.pipe.domain.class_word, contest.pipe.domain.placeholder
        texts = [
            contest.clip.texts([text.replace(placeholder, word) for text in contest.texts(number)])
            for number in range(contest.size)
        ]
        return cls(
            np.concatenate([contest.clip.images([image]) for image in images]),
            np.concatenate([backdrop(np.asarray(small(image))[None]) for image in images]),
            np.stack(texts),
            contest.faces.images(images) if contest.faces else None,
        )


def figures(
    contest: Contest, records: Mapping[Tuning, Sequence[Record]], lineup: Lineup, *, draws: int = 1000
) -> dict[str, Any]:
    """Every score of every method and number of steps, and how far it is from E4T's own default."""
    given = Given.of(contest)
    statistics = _statistics(contest, records, given)
    samples = metrics.resamples(contest.size, draws=draws)
    ours = (OURS, contest.pipe.personalize_config.steps)
    rows = []
    for tuning, scores in statistics.items():
        found = lineup.found(tuning[0])
        settings = {"settings": found.origin} if found else {}
        row: dict[str, Any] = {"method": tuning[0], "steps": tuning[1], **settings, **_costs(records[tuning])}
        for name, statistic in scores.items():
            interval = metrics.bootstrap(statistic, samples)
            if np.isnan(interval.value):
                continue  # identity where the judge sees nothing in the world's own drawings
            row[name] = interval.to_dict()
            if tuning != ours and ours in statistics and tuning[0] not in REFERENCES:
                gap = metrics.bootstrap(metrics.difference(statistic, statistics[ours][name]), samples)
                if not np.isnan(gap.value):
                    row.setdefault("against_ours", {})[name] = gap.to_dict()
        rows.append(row)
    judge = contest.judge.number if contest.judge else None
    run = {"concepts": contest.size, "prompts": len(contest.texts(0))}
    run |= {name: contest.sampling[name] for name in ("num_inference_steps", "mixed_precision")}
    return {
        "domain": contest.name,
        "judge": judge,
        "concepts": contest.size,
        "plan": contest.plan.to_dict() | run,
        "default_steps": ours[1],
        "left_out": lineup.left_out,
        "rows": rows,
    }


def _statistics(
    contest: Contest, records: Mapping[Tuning, Sequence[Record]], given: Given
) -> dict[Tuning, dict[str, Statistic]]:
    judged = _judged(contest, records) if isinstance(contest, DrawnContest) else {}
    seen = {t: _seen(of, given, contest.plan.seeds) for t, of in records.items() if t[0] not in _OTHERS}
    if contest.kind == "art":  # the colours at the border are the style's, and should come back
        for scores in seen.values():
            del scores["copied_backdrop"]
    return {tuning: judged.get(tuning, {}) | seen.get(tuning, {}) for tuning in records}


def _judged(contest: DrawnContest, records: Mapping[Tuning, Sequence[Record]]) -> dict[Tuning, dict[str, Statistic]]:
    """What a judge reads, and the pose that comes back."""
    counted, given = contest.poses.counted, contest.true_poses()
    tables = {
        tuning: score(_examination(contest, tuning[0]), joined([record.readings for record in of]))
        for tuning, of in records.items()
    }
    found: dict[Tuning, dict[str, Statistic]] = {}
    for tuning, of in records.items():
        ceiling = tables[NAMED_DRAWINGS if tuning[0] in _OTHERS else DRAWINGS, 0]
        found[tuning] = {name: s for name, s in tables[tuning].statistics(ceiling).items() if name in TITLES}
        if tuning[0] not in _OTHERS:
            pose = np.stack([record.pose for record in of if record.pose is not None])[:, :, counted]
            found[tuning]["copied_pose"] = correlation_statistic(given[:, counted], pose)
    return found


def _examination(contest: DrawnContest, row: str) -> Examination:
    plan, judge = contest.plan, contest.judge
    subjects = [contest.subject(row, number) for number in range(contest.size)]
    namespace = "train" if row in _OTHERS else plan.namespace
    return Examination(judge.layout, subjects, contest.prompts * plan.seeds, judge.readable, namespace)


def _seen(records: Sequence[Record], given: Given, seeds: int) -> dict[str, Statistic]:
    """What needs no judge: similarities, diversity over seeds, and the backdrop that comes back."""
    vectors = np.stack([record.clip for record in records])  # [concepts, rows, W]
    texts = np.tile(given.texts, (1, seeds, 1))
    scores: dict[str, Statistic] = {
        "clip_t": metrics.mean_statistic((vectors * texts).sum(-1)),
        "clip_i": metrics.mean_statistic((vectors * given.clip[:, None]).sum(-1)),
        "copied_backdrop": correlation_statistic(given.backdrop, np.stack([record.backdrop for record in records])),
    }
    if given.faces is not None:
        drawn = np.stack([record.faces for record in records if record.faces is not None])
        scores["same_face"] = metrics.mean_statistic(same_face(drawn, given.faces[:, None]).astype(float))
    if seeds > 1:
        apart = vectors.reshape(len(vectors), seeds, -1, vectors.shape[-1])
        likeness = np.einsum("cspw,ctpw->cpst", apart, apart)
        scores["diversity"] = metrics.mean_statistic(1 - likeness[..., ~np.eye(seeds, dtype=bool)])
    return scores


def _costs(records: Sequence[Record]) -> dict[str, Any]:
    return {
        "threads": sorted({record.threads for record in records}),  # seconds of one and of two are not the same
        "passes": records[0].passes,
        "seconds": round(float(np.median([record.seconds for record in records])), 2),
        "peak_bytes": int(np.median([record.peak_bytes for record in records])),
        "stored_bytes": int(np.median([record.stored_bytes for record in records])),
    }


# Files

FILES = ("report.html", "results.csv", "results.json", "results.md")


def write(folder: Path, contests: Sequence[tuple[dict[str, Any], str]]) -> list[Path]:
    """`FILES` in ``folder``, from the `figures` and the `grids` of every contest; returns their paths."""
    reports = [report for report, _ in contests]
    paths = [folder / name for name in FILES]
    with new_files(paths) as (page, comma_separated, everything, short):
        page.write_text(_PAGE.format(sections="\n".join(_section(*one) for one in contests)), encoding="utf-8")
        with comma_separated.open("w", newline="") as file:
            _write_csv(file, reports)
        everything.write_text(json.dumps(reports, indent=1, allow_nan=False) + "\n")
        short.write_text("\n".join(map(markdown, reports)), encoding="utf-8")
    return paths


def _write_csv(file: Any, reports: Sequence[dict[str, Any]]) -> None:
    bounds = ("value", "low", "high")
    scores = [(name, bound) for name in TITLES for bound in bounds]
    writer = csv.writer(file)
    head = ["domain", "method", "steps", "settings", *COSTS]
    writer.writerow([*head, *map("_".join, scores), *(f"{name}_minus_ours_{bound}" for name, bound in scores)])
    for report in reports:
        for row in report["rows"]:
            said = [report["domain"], row["method"], row["steps"], row.get("settings", ""), *(row[c] for c in COSTS)]
            for values in (row, row.get("against_ours", {})):
                said += [values.get(name, {}).get(bound, "") for name, bound in scores]
            writer.writerow(said)


def markdown(report: dict[str, Any]) -> str:
    """The scores that are claimed by, what they cost, and how far joint success is from ours."""
    names = [
        name for name in ("identity", "rank_1_of_20_twins", "prompt_accuracy", "joint_success") if _has(report, name)
    ]
    names = names or ["clip_i", "clip_t"]
    gap = f"{TITLES[names[-1]]} − ours"
    lines = []
    for row in report["rows"]:
        against = row.get("against_ours", {}).get(names[-1])
        cells = [f"{row[name]['value']:.2f}" if name in row else "" for name in names]
        last = row.get(names[-1])
        cells[-1] += f" ({last['low']:.2f} … {last['high']:.2f})" if last else ""
        apart = f"{against['value']:+.2f} ({against['low']:+.2f} … {against['high']:+.2f})" if against else ""
        cost = [f"{row['seconds']:.1f}", f"{row['passes']:,}"] if row["passes"] else ["", ""]
        lines.append([label(row), *cells, apart, *cost, row.get("settings", "")])
    head = ["", *(TITLES[name] for name in names), gap, COSTS["seconds"], COSTS["passes"], "settings"]
    return f"**{report['domain']}**: {_setting(report)}\n\n{table(head, lines)}"


def _has(report: dict[str, Any], name: str) -> bool:
    return any(name in row for row in report["rows"])


def _setting(report: dict[str, Any]) -> str:
    """In one line, on what a table was made."""
    plan = report["plan"]
    seen_by = f" of {plan['namespace']}, judge {report['judge']}" if report["judge"] else ""
    return (
        f"{report['concepts']} concepts{seen_by}; prompts: {plan['prompts']}, pictures of each: {plan['seeds']}, "
        f"denoising steps: {plan['num_inference_steps']}; ours is E4T after {report['default_steps']}."
    )


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>e4t benchmark</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }}
th, td {{ padding: .25rem .5rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }}
th:first-child, td:first-child {{ text-align: left }}
small {{ color: #666 }}
img {{ max-width: 100% }}
.ours td {{ background: #eef6ff }}
</style>
<h1>One image, a few steps: E4T and what it is compared with</h1>
<p>Value and 95 % interval over concepts. <b>identity</b> is a share of what the judge reads in the world's own
drawings; <b>joint success</b> is being told from 19 twins and showing everything that was asked for; <b>copied</b> is
the correlation with how the (first) input happened to be taken, 0 is wanted. Seconds are of learning one concept, the
median, without drawing pictures of the class; passes are pictures in all batches. <b>settings</b> says whether rates
and steps were searched for this very method.
</p>
{sections}
</html>
"""


def _section(report: dict[str, Any], pictures: str) -> str:
    names = [name for name in TITLES if _has(report, name)]
    rows = "\n".join(_table_row(row, names) for row in report["rows"])
    gaps = "\n".join(_gap_row(row, names) for row in report["rows"] if "against_ours" in row)
    missing = ", ".join(report["left_out"])
    titles = "".join(f"<th>{title}</th>" for title in ["", *(TITLES[name] for name in names)])
    costs = "".join(f"<th>{title}</th>" for title in [*COSTS.values(), "settings"])
    return "\n".join(
        [
            f"<h2>{html.escape(report['domain'])}</h2>",
            f"<p>{html.escape(_setting(report))}</p>",
            f"<table><tr>{titles}{costs}</tr>\n{rows}</table>",
            f"<p>Left out, for want of what they need: {missing}.</p>" if missing else "",
            f"<h3>Against ours, concept by concept</h3>\n<table><tr>{titles}</tr>\n{gaps}</table>" if gaps else "",
            f'<img alt="plots" src="{data_url(plot(report), "svg+xml")}">',
            pictures,
        ]
    )


def label(row: Mapping[str, Any]) -> str:
    """A method and its steps, where it has any."""
    return f"{row['method']}, {row['steps']} steps" if row["passes"] or row["method"] == OURS else str(row["method"])


def _table_row(row: dict[str, Any], names: Sequence[str]) -> str:
    cells = [html.escape(label(row))]
    for name in names:
        values = row.get(name)
        cells.append(f"{values['value']:.2f} <small>{values['low']:.2f}…{values['high']:.2f}</small>" if values else "")
    megabytes, kilobytes = row["peak_bytes"] / 1e6, row["stored_bytes"] / 1e3
    cells += [f"{row['seconds']:.1f}", f"{row['passes']:,}", f"{megabytes:,.0f}", f"{kilobytes:,.1f}"]
    cells.append(html.escape(row.get("settings", "")))
    ours = ' class="ours"' if row["method"] == OURS else ""
    return f"<tr{ours}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _gap_row(row: dict[str, Any], names: Sequence[str]) -> str:
    gaps = [row["against_ours"].get(name) for name in names]
    cells = [f"{g['value']:+.2f} <small>{g['low']:+.2f}…{g['high']:+.2f}</small>" if g else "" for g in gaps]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in (html.escape(label(row)), *cells)) + "</tr>"


def plot(report: dict[str, Any]) -> bytes:
    """An SVG: likeness against prompt, a curve per method over its steps; quality against seconds; our steps.

    Judged concepts have identity, prompt accuracy and joint success; others CLIP-I and CLIP-T.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    like, asked, both = _JUDGED if _JUDGED[0] in report["rows"][0] else _UNJUDGED
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in report["rows"]:
        rows.setdefault(row["method"], []).append(row)
    figure, (plane, clock, curve) = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    colours = plt.get_cmap("tab20")
    for number, (method, found) in enumerate(rows.items()):
        style = {"color": colours(number % 20), "marker": "o", "label": method, "markersize": 4}
        style |= {"linewidth": 2.5, "zorder": 5} if method == OURS else {"linewidth": 1}
        plane.plot(_values(found, like), _values(found, asked), **style)
        tuned = [row for row in found if row["passes"] or method == OURS]
        clock.plot([row["seconds"] for row in tuned], _values(tuned, both), **style)
    ours = rows.get(OURS, [])
    for name in dict.fromkeys((like, asked, both)):
        curve.plot([row["steps"] for row in ours], _values(ours, name), marker="o", label=TITLES[name])
    plane.set(xlabel=TITLES[like], ylabel=TITLES[asked], title="A curve for every method, over its steps")
    clock.set(xlabel="seconds of learning", ylabel=TITLES[both], xscale="log", title="What the seconds buy")
    curve.set(xlabel="tuning steps", title="E4T, step by step")
    plane.legend(fontsize=7)
    curve.legend(fontsize=8)
    for panel in (plane, clock, curve):
        panel.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    plt.close(figure)
    return buffer.getvalue()


def _values(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [float(row[name]["value"]) if name in row else float("nan") for row in rows]


_JUDGED, _UNJUDGED = ("identity", "prompt_accuracy", "joint_success"), ("clip_i", "clip_t", "clip_i")


def grids(contest: Contest, records: Mapping[Tuning, Sequence[Record]], lineup: Lineup) -> str:
    """The best, median and worst concept: its input picture, and what every method drew of it.

    Ours is shown after its default number of steps, others after the number that was found best for them.
    """
    shown = {method: _steps_shown(contest, records, lineup, method) for method, _ in records if method not in _OTHERS}
    by = OURS if OURS in shown else list(shown)[-1]
    order, rule = _ranked(contest, records, (by, shown[by]))
    rule = f"Chosen by {rule} of {by} after {shown[by]} steps."
    parts = [f"<h3>What was drawn</h3>\n<p>{html.escape(rule)}</p>"]
    for name, concept in {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}.items():
        photo = data_url(_jpeg(contest.examples(concept, 1)[0].image))
        given = f"<img alt='input' width='{RESOLUTION}' src='{photo}'>"
        asked = " · ".join(map(html.escape, contest.texts(concept)))
        rows = [
            f"<tr><td>{html.escape(method)}, {steps} steps</td>"
            f"<td><img alt='' src='{data_url(records[method, steps][concept].strip)}'></td></tr>"
            for method, steps in shown.items()
        ]
        parts.append(f"<h4>{name} of {len(order)}</h4>\n{given}\n<p>{asked}</p>\n<table>{''.join(rows)}</table>")
    return "\n".join(parts)


def _steps_shown(contest: Contest, records: Mapping[Tuning, Sequence[Record]], lineup: Lineup, method: str) -> int:
    found, drawn = lineup.found(method), [steps for name, steps in records if name == method]
    wanted = contest.pipe.personalize_config.steps if method == OURS else found.steps if found else 0
    return wanted if wanted in drawn else max(drawn)


def _ranked(contest: Contest, records: Mapping[Tuning, Sequence[Record]], by: Tuning) -> tuple[list[int], str]:
    """Concepts from the best to the worst, and by what: the judge's word, or CLIP's where there is no judge."""
    drawn = records[by]
    if isinstance(contest, DrawnContest):
        scores = score(_examination(contest, by[0]), joined([record.readings for record in drawn]))
        missed, spread = scores.missed.sum(1), scores.spread.sum(1)
        return list(np.lexsort((missed / spread, -scores.joint.mean(1)))), "joint success, then identity,"
    given = Given.of(contest).clip
    return list(np.argsort([-float((of.clip @ one).mean()) for of, one in zip(drawn, given, strict=True)])), "CLIP-I"


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    small(square(image.convert("RGB"), min(image.size))).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
