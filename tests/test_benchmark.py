"""The comparison on the shipped face domain, small: two concepts, one prompt, two denoising steps."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from e4t.config import PretrainConfig
from e4t.errors import CheckpointError, ConfigError, DataError
from e4t.evaluation import benchmark, report
from e4t.evaluation.benchmark import (
    DRAWINGS,
    METHODS,
    OURS,
    PLANS,
    DrawnContest,
    OwnContest,
    Plan,
    Record,
    compare,
    methods_of,
    records,
)
from e4t.evaluation.domain_base import on_domain_base, tune_base
from e4t.evaluation.evaluate import MORE_PROMPTS, prompts_of
from e4t.evaluation.search import best, rates_of, search
from e4t.pipeline import E4TPipeline
from e4t.tiny.album import snapshot
from e4t.tiny.world import draw

SMALL = Plan(
    domains=("tiny-face",),
    methods=("class word", "E4T", "Textual Inversion"),
    namespace="benchmark-test",
    concepts=2,
    prompts=1,
    seeds=2,
    e4t_steps=(0, 5),
    baseline_steps=(2,),
    num_inference_steps=2,
)


FOUND = {"tiny-face": {"Textual Inversion": {"residual_learning_rate": 0.1, "steps": 3}, "E4T": {"learning_rate": 9.0}}}


@pytest.fixture(autouse=True)
def best_of_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "found_best", lambda: FOUND)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "found_best", lambda: FOUND)
        folder = tmp_path_factory.mktemp("benchmark")
        steps = list(compare([DrawnContest("tiny-face", SMALL)], folder))
    assert [step.done for step in steps] == list(range(1, 9))
    assert steps[0].left is None
    assert steps[-1].left == pytest.approx(0, abs=1e-6)
    return folder


def test_every_method_and_step_is_in_the_table(finished: Path) -> None:
    with (finished / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["steps"]) for row in rows] == [
        (DRAWINGS, "0"),
        ("class word", "0"),
        (OURS, "0"),
        (OURS, "5"),
        ("Textual Inversion", "2"),
        ("Textual Inversion", "3"),
    ]
    for row in rows:
        for name in report.TITLES:
            low, value, high = (float(row[f"{name}_{bound}"]) for bound in ("low", "value", "high"))
            assert low <= value <= high or name.startswith("copied")
        assert float(row["prompt_accuracy_value"]) <= 1
    passes = {(row["method"], row["steps"]): int(row["passes"]) for row in rows}
    assert passes[OURS, "5"] == 80
    assert passes["Textual Inversion", "3"] == 12
    (results,) = json.loads((finished / "results.json").read_text())
    gaps = [row.get("against_ours") for row in results["rows"]]
    assert [gap is not None for gap in gaps] == [False, True, True, False, True, True]


def test_the_page_needs_nothing_beside_it(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert page.count("<h3>") == 3
    assert "data:image/svg+xml;base64," in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "Textual Inversion, 3 steps" in page


def test_a_second_run_and_a_larger_plan_take_over_what_is_there(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    save = Record.save
    monkeypatch.setattr(Record, "save", lambda self, path: (made.append(self.method), save(self, path)))
    before = (finished / "results.csv").read_bytes()
    list(compare([DrawnContest("tiny-face", SMALL)], finished))
    assert not made
    assert (finished / "results.csv").read_bytes() == before
    list(benchmark.run(DrawnContest("tiny-face", replace(SMALL, concepts=3)), finished / "records"))
    assert sorted(made) == sorted([DRAWINGS, "class word", OURS, OURS, "Textual Inversion", "Textual Inversion"])


def test_a_record_is_read_back_as_it_was(finished: Path, tmp_path: Path) -> None:
    path = next((finished / "records").glob("*.npz"))
    record = Record.load(path)
    record.save(tmp_path / "again.npz")
    again = Record.load(tmp_path / "again.npz")
    assert again.strip == record.strip
    np.testing.assert_array_equal(again.readings.identity, record.readings.identity)


def test_missing_records_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no record of drawings, concept 0"):
        records(DrawnContest("tiny-face", SMALL), tmp_path)


def test_an_unknown_method_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no method 'Magic'; there are class word"):
        methods_of(DrawnContest("tiny-face", Plan(methods=("Magic",), concepts=1)))


@pytest.mark.parametrize("size", PLANS)
def test_plans_name_methods_and_prompts_that_exist(size: str) -> None:
    plan = PLANS[size]
    assert set(plan.methods) <= set(METHODS)
    for kind in ("face", "cat", "art"):
        assert plan.prompts <= len(prompts_of(kind)) + len(MORE_PROMPTS[kind])


def test_the_domain_sets_our_own_rates_and_the_search_those_of_others() -> None:
    contest = DrawnContest("tiny-face", SMALL)
    assert contest.settings(OURS) == {}
    assert contest.settings("Textual Inversion") == {"residual_learning_rate": 0.1}
    assert contest.steps("Textual Inversion") == (2, 3)
    assert contest.steps("nearest name") == (0,)


def test_what_was_not_searched_takes_over_its_plain_form() -> None:
    contest = DrawnContest("tiny-face", SMALL)
    assert contest.settings("Textual Inversion, 5 images") == contest.settings("Textual Inversion")
    assert contest.steps("LoRA") == (2, 500)  # nothing was found for LoRA: a script's default


def test_the_search_tries_as_many_rates_of_every_tuned_method() -> None:
    tuned = {name: rates_of(name) for name in METHODS if rates_of(name)}
    assert len({len(rates[1]) for rates in tuned.values() if rates}) == 1
    assert set(METHODS) - set(tuned) == {"class word", "best caption", "nearest name"}


def test_the_search_keeps_the_best_row() -> None:
    contest = DrawnContest("tiny-face", replace(SMALL, seeds=1))
    rows = list(search(contest, "Textual Inversion", (1, 2)))
    assert len(rows) == 6
    assert {row["steps"] for row in rows} == {1, 2}
    scores = {"joint_success": 0.5, "prompt_accuracy": 1.0, "seconds": 1.0}
    tried = [{"learning_rate": rate, "steps": 2, "identity": rate, **scores} for rate in (0.1, 0.3, 0.2)]
    assert best(tried) == {"learning_rate": 0.3, "steps": 2}


def test_your_own_pictures_need_no_judge(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "several").mkdir(parents=True)
    for number in range(3):
        image = Image.fromarray(draw(snapshot("own", number)).rgb)
        image.save(photos / "several" / f"{number}.png") if number else image.save(photos / "one.png")
    plan = replace(SMALL, methods=(), seeds=1, e4t_steps=(1,), baseline_steps=())
    contest = OwnContest("tiny-face", plan, photos, prompts=("S* at the beach",))
    assert [len(paths) for paths in contest.concepts] == [1, 2]
    methods = methods_of(contest)
    assert "DreamBooth" in methods
    assert not {"best caption", "nearest name", "LoRA, 5 images", "LoRA on the domain"} & set(methods)
    contest.plan = replace(plan, methods=("class word", OURS))
    list(compare([contest], tmp_path / "out"))
    (results,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["judge"] is None
    assert [row["method"] for row in results["rows"]] == ["class word", OURS]
    assert "identity" not in results["rows"][0]
    assert results["rows"][1]["clip_i"]["value"] > results["rows"][0]["clip_i"]["value"]


def test_unusable_pictures_and_prompts_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        OwnContest("tiny-face", SMALL, tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no pictures"):
        OwnContest("tiny-face", SMALL, tmp_path)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"the prompt 'a face' has no S\*"):
        OwnContest("tiny-face", SMALL, tmp_path, prompts=("a face",))


def test_a_base_is_tuned_on_the_domain_and_methods_start_from_it(tmp_path: Path, image_folder: Path) -> None:
    pipe = E4TPipeline.from_pretrained("tiny-face")
    before = pipe.backbone.fingerprint
    losses = list(tune_base(pipe, image_folder, PretrainConfig(steps=2, batch_size=2, learning_rate=1e-3)))
    assert len(losses) == 2
    pipe.backbone.unet.half().save_pretrained(tmp_path / "tuned")
    contest = DrawnContest("tiny-face", SMALL, domain_base=tmp_path / "tuned")
    assert contest.pipe_on_domain.backbone.fingerprint != before == contest.pipe.backbone.fingerprint
    contest.plan = replace(SMALL, methods=())
    assert "LoRA on the domain" in methods_of(contest)
    with pytest.raises(CheckpointError, match="holds no U-Net"):
        on_domain_base(contest.pipe, tmp_path)
    with pytest.raises(ConfigError, match="--domain-base"):
        METHODS["LoRA on the domain"](DrawnContest("tiny-face", SMALL), {})


def test_without_a_search_scripts_defaults_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "found_best", dict)
    contest = DrawnContest("tiny-face", replace(SMALL, baseline_steps=()))
    assert contest.steps("DreamBooth + text encoder + prior") == (800,)
    assert contest.settings("LoRA, 5 images") == {"learning_rate": 1e-4}
    assert contest.settings("DreamBooth on the domain") == {"learning_rate": 5e-6}


def test_a_method_is_made_once_and_pictures_of_the_class_are_drawn_once() -> None:
    contest = DrawnContest("tiny-face", SMALL)
    learner = contest.learner("DreamBooth + prior")
    assert contest.learner("DreamBooth + prior") is learner


def test_records_of_another_clip_are_not_taken_for_these() -> None:
    contest = DrawnContest("tiny-face", SMALL)
    before = contest.key(OURS, 0)
    with torch.no_grad():
        contest.clip.model.visual_projection.weight.mul_(2)
    del contest.clip.__dict__["fingerprint"]
    assert contest.key(OURS, 0) != before
