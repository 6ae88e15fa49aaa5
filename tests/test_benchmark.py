"""The comparison on the shipped face domain, small: two concepts, one prompt, two denoising steps."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from bases import save_folder
from conftest import build_backbone
from desk import lay_out
from e4t import cli
from e4t.config import GenerateConfig, PretrainConfig
from e4t.errors import CheckpointError, ConfigError, DataError
from e4t.evaluation import baselines, benchmark, methods, metrics, report
from e4t.evaluation.benchmark import PLANS, Benchmark, compare
from e4t.evaluation.contest import (
    BY_NAME,
    NAMED_DRAWINGS,
    REFERENCES,
    DrawnContest,
    OwnContest,
    Plan,
    Record,
)
from e4t.evaluation.copying import PoseReader
from e4t.evaluation.domain_base import on_domain_base, tune_base
from e4t.evaluation.evaluate import DRAWINGS, MORE_PROMPTS, prompts_of
from e4t.evaluation.judge import Judge
from e4t.evaluation.methods import METHODS, OURS, Lineup
from e4t.evaluation.metrics import resamples
from e4t.evaluation.search import (
    FINALISTS,
    MOST_DOUBLINGS,
    Row,
    Trials,
    _beyond,
    best,
    ranked,
    rates_of,
    search,
)
from e4t.evaluation.similarity import Clip, Faces, same_face
from e4t.objective import Batch, E4TObjective, Loss
from e4t.pipeline import E4TPipeline
from e4t.shipped import WEIGHTS
from e4t.tiny.album import snapshot
from e4t.tiny.world import draw

SMALL = Plan(
    domains=("tiny-face",),
    methods=("class word", "E4T", "Textual Inversion"),
    namespace="benchmark-test",
    concepts=2,
    prompts=1,
    seeds=2,
    e4t_steps=(0, 2),
    baseline_steps=(2,),
    num_inference_steps=2,
)


TINY = json.loads((WEIGHTS / "tiny-face" / "config.json").read_text())["base"]["fingerprint"]
FOUND = {
    TINY: {"face": {"Textual Inversion": {"residual_learning_rate": 0.1, "steps": 3}, "E4T": {"learning_rate": 9.0}}}
}


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """What contests load is the same for all of them, and none of them changes it; intervals are of fewer draws."""
    with pytest.MonkeyPatch.context() as patch:
        loaders = (E4TPipeline, "from_pretrained"), (Clip, "load"), (Judge, "of"), (PoseReader, "shipped")
        for owner, name in loaders:
            patch.setattr(owner, name, cache(getattr(owner, name)))
        patch.setattr(metrics, "resamples", lambda concepts, **_: resamples(concepts, draws=200))
        yield


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A domain that takes two steps of two rows by itself."""
    return str(lay_out(tmp_path_factory.mktemp("desk")) / "tiny-face")


def make(domain: str, plan: Plan = SMALL) -> list[partial[DrawnContest]]:
    return [partial(DrawnContest, domain, plan)]


@pytest.fixture(autouse=True)
def best_of_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "found_best", lambda: FOUND)


@pytest.fixture(scope="module")
def finished(quick: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "found_best", lambda: FOUND)
        folder = tmp_path_factory.mktemp("benchmark")
        steps = list(compare(make(quick), folder))
    assert [step.done for step in steps] == list(range(1, 13))
    assert steps[0].left is None
    assert steps[6].left > steps[-2].left > steps[-1].left == 0
    return folder


def test_every_method_and_step_is_in_the_table(finished: Path) -> None:
    with (finished / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["steps"]) for row in rows] == [
        (DRAWINGS, "0"),
        (BY_NAME, "0"),
        (NAMED_DRAWINGS, "0"),
        ("class word", "0"),
        (OURS, "0"),
        (OURS, "2"),
        ("Textual Inversion", "2"),
        ("Textual Inversion", "3"),
    ]
    for row in rows:
        for name in report.TITLES:
            if name == "same_face" or (row["method"] in (BY_NAME, NAMED_DRAWINGS) and row[f"{name}_value"] == ""):
                continue  # no photos; others, who had no input
            low, value, high = (float(row[f"{name}_{bound}"]) for bound in ("low", "value", "high"))
            assert low <= value <= high or name.startswith("copied")
        assert float(row["prompt_accuracy_value"]) <= 1
    passes = {(row["method"], row["steps"]): int(row["passes"]) for row in rows}
    assert passes[OURS, "2"] == 4
    assert passes["Textual Inversion", "3"] == 12
    (results,) = json.loads((finished / "results.json").read_text())
    gaps = [row.get("against_ours") for row in results["rows"]]
    joint = results["rows"][-1]["against_ours"]["joint_success"]
    assert float(rows[-1]["joint_success_minus_ours_low"]) == joint["low"]
    assert rows[0]["joint_success_minus_ours_low"] == ""
    assert [gap is not None for gap in gaps] == [False, False, False, True, True, False, True, True]
    assert {row["settings"] for row in rows} == {"", "searched"}
    assert [row["identity"]["value"] for row in results["rows"] if row["method"] in (DRAWINGS, NAMED_DRAWINGS)] == [
        1,
        1,
    ]


def test_the_page_needs_nothing_beside_it(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert page.count("<h4>") == 3
    assert "data:image/svg+xml;base64," in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "Textual Inversion, 3 steps" in page
    assert "benchmark-test, judge 2; prompts: 1, pictures of each: 2, denoising steps: 2; ours is E4T after 2" in page
    assert "Chosen by joint success, then identity, of E4T after 2 steps." in page
    assert page.count("<img alt='input'") == 3
    assert page.count("<td>E4T, 2 steps</td><td><img") == 3
    assert "E4T, 0 steps</td><td><img" not in page
    assert "<td>Textual Inversion, 2 steps</td><td><img" not in page  # 3 were found best
    assert "Against ours, concept by concept" in page
    short = (finished / "results.md").read_text()
    assert "tiny-face**: 2 concepts of benchmark-test, judge 2; prompts: 1, pictures" in short
    assert "| Textual Inversion, 3 steps |" in short


def test_the_grid_is_of_the_best_the_median_and_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    contest = DrawnContest("tiny-face", replace(SMALL, concepts=3))
    right = np.array([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])  # joint success
    scores = SimpleNamespace(joint=right, missed=np.ones((3, 2)), spread=np.ones((3, 2)))
    monkeypatch.setattr(report, "score", lambda *_: scores)
    monkeypatch.setattr(report, "joined", lambda _: None)
    order, rule = report._ranked(contest, {(OURS, 2): [SimpleNamespace(readings=None)] * 3}, (OURS, 2))
    assert (order, rule) == ([1, 0, 2], "joint success, then identity,")
    scores.joint[:], scores.missed[1:] = 0.5, [[0.5, 0.5], [2, 2]]
    assert report._ranked(contest, {(OURS, 2): [SimpleNamespace(readings=None)] * 3}, (OURS, 2))[0] == [1, 0, 2]


def test_a_second_run_and_a_larger_plan_take_over_what_is_there(
    finished: Path, quick: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    save = Record.save
    monkeypatch.setattr(Record, "save", lambda self, path: (made.append(self.method), save(self, path)))
    before = (finished / "results.csv").read_bytes()
    list(compare(make(quick), finished))
    assert not made
    assert (finished / "results.csv").read_bytes() == before
    list(compare(make(quick, replace(SMALL, concepts=3)), finished))
    assert sorted(made) == sorted([*REFERENCES, "class word", OURS, OURS, "Textual Inversion", "Textual Inversion"])


def test_a_record_is_read_back_as_it_was(finished: Path, tmp_path: Path) -> None:
    path = next((finished / "records").glob("*.npz"))
    record = Record.load(path)
    record.save(tmp_path / "again.npz")
    again = Record.load(tmp_path / "again.npz")
    assert again.strip == record.strip
    np.testing.assert_array_equal(again.readings.identity, record.readings.identity)


def test_missing_records_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no record of drawings, concept 0"):
        Benchmark(DrawnContest("tiny-face", SMALL), tmp_path).records()


def test_an_unknown_method_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no method 'Magic'; there are 'class word'"):
        Lineup(DrawnContest("tiny-face", Plan(methods=("Magic",), concepts=2)))


@pytest.mark.parametrize("size", PLANS)
def test_plans_name_methods_and_prompts_that_exist(size: str) -> None:
    plan = PLANS[size]
    assert set(plan.methods) <= set(METHODS)
    for kind in ("face", "cat", "art"):
        assert plan.prompts <= len(prompts_of(kind)) + len(MORE_PROMPTS[kind])


def test_the_domain_sets_our_own_rates_and_the_search_those_of_others() -> None:
    lineup = Lineup(DrawnContest("tiny-face", SMALL))
    assert lineup.settings(OURS) == {}
    assert lineup.settings("Textual Inversion") == {"residual_learning_rate": 0.1}
    assert lineup.steps("Textual Inversion") == (2, 3)
    assert lineup.steps("nearest name") == (0,)


def test_what_was_not_searched_takes_over_its_plain_form() -> None:
    lineup = Lineup(DrawnContest("tiny-face", SMALL))
    assert lineup.settings("Textual Inversion, 5 images") == lineup.settings("Textual Inversion")
    assert lineup.found("Textual Inversion, 5 images").origin == "as Textual Inversion"
    assert lineup.steps("LoRA") == (2, 500)  # nothing was found for LoRA: a script's default
    assert lineup.found("LoRA").origin == "as training scripts have it"
    assert lineup.found(OURS) is None


def test_another_kind_on_the_same_base_takes_over_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    lineup = Lineup(DrawnContest("tiny-face", SMALL))
    lineup.contest.kind = "cat"
    assert lineup.settings("Textual Inversion") == {"residual_learning_rate": 0.1}
    assert lineup.found("Textual Inversion").origin == "as Textual Inversion of a face"
    monkeypatch.setattr(methods, "found_best", lambda: {"another base": FOUND[TINY]})
    assert lineup.found("Textual Inversion").origin == "as training scripts have it"


def test_the_search_tries_as_many_rates_of_every_tuned_method() -> None:
    untuned = {"class word", "best caption", "nearest name"}
    assert len({len(rates_of(name)[1]) for name in set(METHODS) - untuned}) == 1
    for name in (*untuned, "Magic", "DreamBooth by magic"):
        with pytest.raises(ConfigError, match="nothing to look for"):
            rates_of(name)


class Scripted(Trials):
    """Trials whose joint success is a given function of rate, steps and round, and that are made at once."""

    def __init__(self, method: str, joint: Callable[[float, int, int], float], rows: Iterable[Row] = ()) -> None:
        super().__init__(SimpleNamespace(size=5), method, rows)
        self.joint, self.asked = joint, []

    def _tried(self, rate: float, steps: tuple[int, ...], concepts: range) -> Iterator[Row]:
        number = 1 if concepts == range(2) else 2
        assert concepts in (range(2), range(2, 5))
        self.asked.append((number, rate, steps))
        for count in steps:
            yield {
                "steps": count,
                "joint_success": self.joint(rate, count, number),
                "prompt_accuracy": 1,
                "identity": 1,
            }


def searched(trials: Trials) -> list[Row]:
    return list(search(trials, (1, 2), concepts=2))


def test_the_search_keeps_what_wins_the_second_round() -> None:
    joint = {(0.1, 1): 0.9, (0.1, 2): 0.8, (0.03, 1): 0.7}
    again = {(0.1, 1): 0.2, (0.1, 2): 0.3, (0.03, 1): 0.6}
    trials = Scripted("Textual Inversion", lambda rate, steps, n: (again if n == 2 else joint).get((rate, steps), 0.1))
    rows = searched(trials)
    assert [ask for ask in trials.asked if ask[0] == 1] == [(1, rate, (1, 2)) for rate in (0.03, 0.1, 0.3)]
    assert [ask for ask in trials.asked if ask[0] == 2] == [(2, 0.1, (1, 2)), (2, 0.03, (1,))]
    assert FINALISTS == 3
    assert best(rows) == {"residual_learning_rate": 0.03, "steps": 1}
    even = [{"learning_rate": rate, "steps": 2, "round": 2, **EVEN, "identity": rate} for rate in (0.1, 0.3, 0.2)]
    assert best(even) == {"learning_rate": 0.3, "steps": 2}
    even[0]["prompt_accuracy"] = 1.5
    assert best(even) == {"learning_rate": 0.1, "steps": 2}


EVEN = {"joint_success": 0.5, "prompt_accuracy": 1.0, "seconds": 1.0}


def test_the_search_doubles_the_steps_while_the_most_are_best() -> None:
    rows = searched(Scripted("DreamBooth", lambda rate, steps, _: steps / 10 * (rate == 1e-4)))
    assert sorted({row["steps"] for row in rows}) == [1, 2, *(2 * 2**n for n in range(1, MOST_DOUBLINGS + 1))]
    assert {row["learning_rate"] for row in rows if row["steps"] > 2} == {1e-4}
    rows = searched(Scripted("DreamBooth", lambda rate, steps, _: (steps == 4) + steps / 10 * (rate == 1e-4)))
    assert {row["steps"] for row in rows} == {1, 2, 4, 8}  # 8 were not better than 4


def test_a_search_goes_on_where_it_was_stopped() -> None:
    def joint(rate: float, steps: int, _: int) -> float:
        return rate * steps  # the most of both

    whole = Scripted("LoRA", joint)
    searched(whole)
    for kept in (1, 7, len(whole.rows)):
        resumed = Scripted("LoRA", joint, whole.rows[:kept])
        assert len(searched(resumed)) == len(whole.rows) - kept
        assert resumed.rows == whole.rows


def test_the_search_learns_draws_and_judges() -> None:
    contest = DrawnContest("tiny-face", replace(SMALL, concepts=4, seeds=1, num_inference_steps=1))
    trials = Trials(contest, "Textual Inversion")
    rows = [
        *trials.at(0.1, (2, 1), 1, range(2)),
        *trials.at(0.1, (1, 2), 1, range(2)),
        *trials.at(0.1, (1,), 2, range(2, 4)),
    ]
    assert [(row["round"], row["steps"]) for row in rows] == [(1, 1), (1, 2), (2, 1)]
    assert rows[0]["identity"] != rows[1]["identity"] != rows[2]["identity"]
    assert 0 < rows[0]["seconds"] < rows[1]["seconds"]


def test_the_search_goes_on_where_the_best_is_at_an_edge() -> None:
    assert _beyond([0.03, 0.1, 0.3], 0.1) == []
    assert _beyond([0.03, 0.1, 0.3], 0.3) == [0.9]
    assert _beyond([0.03, 0.1, 0.3], 0.03) == [0.009]
    assert _beyond([0.01, 0.03, 0.1, 0.3, 0.9], 0.9) == []  # as many as everybody may have


@pytest.mark.parametrize("method", ["Textual Inversion", "LoRA"])
def test_what_diverges_is_the_worst_and_ends_nothing(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(SMALL, seeds=1, num_inference_steps=1, methods=(method,), baseline_steps=(1, 2))
    contest, broken = DrawnContest("tiny-face", plan), {"after": 1}

    def loss(self: E4TObjective, batch: Batch) -> Loss:
        broken["after"] -= 1
        found = forward(self, batch)
        return found if broken["after"] >= 0 else replace(found, total=found.total * float("nan"))

    forward = E4TObjective.forward
    monkeypatch.setattr(E4TObjective, "forward", loss)
    learned = METHODS[method](contest, {}).learn(contest.examples(0, 1), (1, 2, 3))
    assert [(one.steps, one.diverged) for one in learned] == [(1, False), (2, True), (3, True)]
    assert learned[1].passes == learned[0].passes
    (row,) = Trials(contest, method).at(0.1, (1,), 1, range(2))
    assert row["diverged"]
    assert ranked([row, {**row, "joint_success": 0, "prompt_accuracy": 0.1}])[1] is row
    monkeypatch.setattr(methods, "found_best", lambda: {TINY: {"face": {method: {"steps": 1}}}})
    list(compare([lambda: contest], tmp_path))  # it is drawn as it was before
    assert (tmp_path / "results.csv").exists()


def test_methods_that_need_what_is_not_there_are_left_out_of_a_size(tmp_path: Path) -> None:
    Image.fromarray(draw(snapshot("own", 0)).rgb).save(tmp_path / "one.png")
    lineup = Lineup(OwnContest("tiny-face", PLANS["standard"], tmp_path))
    assert lineup.left_out == (
        "best caption",
        "nearest name",
        "DreamBooth, 5 images",
        "LoRA, 5 images",
    )
    assert OURS in lineup.names
    art = Lineup(DrawnContest("tiny-art", PLANS["standard"]))
    assert art.left_out == ("best caption",)
    assert PLANS["quick"].namespace not in {PLANS["standard"].namespace, PLANS["full"].namespace}  # a look is no table
    assert PLANS["standard"].namespace == PLANS["full"].namespace
    assert PLANS["standard"].mixed_precision == PLANS["full"].mixed_precision  # drawn alike, to be compared
    assert PLANS["standard"].baseline_steps == ()  # what was found best, alone
    with pytest.raises(ConfigError, match="'nearest name' needs what is not there"):
        Lineup(OwnContest("tiny-face", replace(SMALL, methods=("nearest name",)), tmp_path))


def test_likeness_needs_two() -> None:
    with pytest.raises(ConfigError, match="concepts is 1"):
        DrawnContest("tiny-face", replace(SMALL, concepts=1))


def test_your_own_pictures_may_have_masks(tmp_path: Path) -> None:
    Image.fromarray(draw(snapshot("own", 0)).rgb).save(tmp_path / "anna.png")
    plain = OwnContest("tiny-face", SMALL, tmp_path)
    Image.new("L", (128, 128), 255).save(tmp_path / "anna-mask.png")
    masked = OwnContest("tiny-face", SMALL, tmp_path)
    assert masked.size == plain.size == 1
    assert plain.examples(0, 1)[0].mask is None
    assert masked.examples(0, 1)[0].mask is not None
    assert masked.identifies(0) != plain.identifies(0)


def test_your_own_pictures_need_no_judge(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "several").mkdir(parents=True)
    for number in range(3):
        image = Image.fromarray(draw(snapshot("own", number)).rgb)
        image.save(photos / "several" / f"{number}.png") if number else image.save(photos / "one.png")
    plan = replace(SMALL, methods=(), seeds=1, e4t_steps=(1,), baseline_steps=())
    contest = OwnContest("tiny-face", plan, photos, prompts=("S* at the beach",))
    assert [len(paths) for paths in contest.concepts] == [1, 2]
    names = Lineup(contest).names
    assert "DreamBooth" in names
    assert not {"best caption", "nearest name", "LoRA, 5 images", "LoRA on the domain"} & set(names)
    contest.plan = replace(plan, methods=("class word", OURS))
    list(compare([lambda: contest], tmp_path / "out"))
    (results,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["judge"] is None
    assert [row["method"] for row in results["rows"]] == ["class word", OURS]
    assert "identity" not in results["rows"][0]
    assert results["rows"][1]["clip_i"]["value"] > results["rows"][0]["clip_i"]["value"]


def test_any_base_is_compared_on_your_own_pictures_with_a_word_for_a_domain(
    tmp_path: Path, picture: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_folder(build_backbone(), tmp_path / "base")
    picture.save(tmp_path / "rex.png")
    plan = {"methods": ["class word", "E4T", "DreamBooth"], "e4t_steps": [1], "prompts": 1, "num_inference_steps": 2}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    command = ["benchmark", "--images", str(tmp_path), "--domain", "face", "--base", str(base)]
    command += ["--config", str(tmp_path / "plan.json"), "--processes", "1", "--device", "cpu", "--clip", "tiny"]
    with patch.object(methods, "_DEFAULTS", {"DreamBooth": {"learning_rate": 1e-3, "batch_size": 1, "steps": 2}}):
        assert cli.main([*command, "--output", str(tmp_path / "out")]) == 0
    (results,) = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = [(row["method"], row["steps"]) for row in results["rows"]]
    assert rows == [("class word", 0), (OURS, 1), ("DreamBooth", 2)]
    assert results["rows"][2]["settings"] == "as training scripts have it"
    assert cli.main([*command, "--domain", "face", "cat", "--output", str(tmp_path / "two")]) == 2
    assert "--base and --domain-base are of one domain" in capsys.readouterr().err


def test_your_own_pictures_are_drawn_as_the_domain_draws(tmp_path: Path, picture: Image.Image) -> None:
    picture.save(tmp_path / "anna.png")
    contest = OwnContest("tiny-face", replace(SMALL, num_inference_steps=None), tmp_path)
    assert contest.sampling["num_inference_steps"] == contest.pipe.generate_config.num_inference_steps


def test_what_pictures_are_drawn_in_makes_other_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where bfloat16 would be emulated, float32 is taken, and records are those of float32."""

    def drawn_in(mixed_precision: str, *, fast: bool) -> tuple[str, str]:
        monkeypatch.setattr("e4t.training.has_fast_bfloat16", lambda device: fast)
        contest = DrawnContest("tiny-face", replace(SMALL, mixed_precision=mixed_precision))
        return contest.sampling["mixed_precision"], Lineup(contest).key(OURS, 0)

    single = drawn_in("no", fast=True)
    assert single[0] == "no"
    assert drawn_in("bf16", fast=False) == single
    assert drawn_in("bf16", fast=True)[0] == "bf16"
    assert drawn_in("bf16", fast=True)[1] != single[1]
    with pytest.raises(ConfigError, match="mixed_precision is 'half'"):
        replace(SMALL, mixed_precision="half")


class _OnlySame:
    """A recogniser that finds a face everywhere, and the same person wherever pictures are bright."""

    def images(self, images: list[Image.Image]) -> np.ndarray:
        return np.stack([np.full(128, float(np.asarray(image).mean() > 100)) for image in images])


def test_faces_are_compared_with_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(draw(snapshot("own", 0)).rgb).save(tmp_path / "one.png")
    monkeypatch.setattr(Faces, "load", classmethod(lambda cls: _OnlySame()))
    plan = replace(SMALL, methods=("class word",))
    contest = OwnContest("tiny-face", plan, tmp_path, prompts=("S* at the beach", "S* in space"), faces=True)
    list(compare([lambda: contest], tmp_path / "out"))
    (results,) = json.loads((tmp_path / "out" / "results.json").read_text())
    drawn = np.stack([Record.load(path).faces for path in (tmp_path / "out" / "records").glob("*.npz")])
    same = same_face(drawn, contest.faces.images([contest.examples(0, 1)[0].image]))
    assert results["rows"][0]["same_face"]["value"] == pytest.approx(same.mean(), abs=1e-4)


def test_no_face_is_nobodys() -> None:
    nobody, somebody = np.full(128, np.nan), np.zeros(128)
    assert same_face(somebody, somebody + 0.05)
    assert not same_face(somebody, somebody + 0.06)
    assert not same_face(nobody, nobody)


def test_without_the_recogniser_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e4t.evaluation.similarity.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"'\.\[faces\]'"):
        Faces.load()


def test_the_recogniser_sees_no_face_where_none_is() -> None:
    for module in ("dlib", "face_recognition_models"):
        pytest.importorskip(module, reason="the extra faces is not installed")
    assert np.isnan(Faces.load().images([Image.new("RGB", (128, 128), "white")])).all()


def test_unusable_pictures_and_prompts_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        OwnContest("tiny-face", SMALL, tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no pictures"):
        OwnContest("tiny-face", SMALL, tmp_path)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"the prompt 'a face' has no S\*"):
        OwnContest("tiny-face", SMALL, tmp_path, prompts=("a face",))


def test_a_base_is_tuned_on_the_domain_and_methods_start_from_it(tmp_path: Path, image_folder: Path) -> None:
    pipe = E4TPipeline.from_pretrained.__wrapped__("tiny-face")  # changed here, so it is nobody else's
    before = pipe.backbone.fingerprint
    losses = list(tune_base(pipe, image_folder, PretrainConfig(steps=2, batch_size=2, learning_rate=1e-3)))
    assert len(losses) == 2
    pipe.backbone.unet.half().save_pretrained(tmp_path / "tuned")
    contest = DrawnContest("tiny-face", SMALL, domain_base=tmp_path / "tuned")
    assert contest.pipe_on_domain.backbone.fingerprint != before == contest.pipe.backbone.fingerprint
    contest.plan = replace(SMALL, methods=())
    assert "LoRA on the domain" in Lineup(contest).names
    with pytest.raises(CheckpointError, match="holds no U-Net"):
        on_domain_base(contest.pipe, tmp_path)
    with pytest.raises(ConfigError, match="--domain-base"):
        METHODS["LoRA on the domain"](DrawnContest("tiny-face", SMALL), {})


def test_a_base_is_tuned_with_captions_where_the_domain_was(tmp_path: Path, image_folder: Path) -> None:
    folder = shutil.copytree(image_folder, tmp_path / "captioned")
    for picture in sorted(folder.glob("*.png")):
        picture.with_suffix(".txt").write_text("a pencil sketch of S*", encoding="utf-8")

    def first_loss(data: Path, share: float) -> float:
        pipe = E4TPipeline.from_pretrained.__wrapped__("tiny-face")
        return next(tune_base(pipe, data, PretrainConfig(steps=1, batch_size=2, caption_share=share)))

    plain = first_loss(folder, 0.0)
    assert plain == first_loss(image_folder, 0.0)
    assert plain != first_loss(folder, 1.0)


def test_without_a_search_scripts_defaults_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "found_best", dict)
    lineup = Lineup(DrawnContest("tiny-face", replace(SMALL, baseline_steps=())))
    assert lineup.steps("DreamBooth + text encoder + prior") == (800,)
    assert lineup.settings("LoRA, 5 images") == {"learning_rate": 1e-4, "batch_size": 1}
    assert lineup.settings("DreamBooth on the domain") == {"learning_rate": 5e-6, "batch_size": 1}
    assert lineup.settings("DreamBooth + prior, 5 images")["prior_pictures"] == 200


def test_a_method_is_made_once_and_pictures_of_the_class_are_drawn_once() -> None:
    lineup = Lineup(DrawnContest("tiny-face", SMALL))
    learner = lineup.learner("DreamBooth + prior")
    assert lineup.learner("DreamBooth + prior") is learner


def test_every_method_is_drawn_with_the_guidance_of_the_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    lineup, seen = Lineup(DrawnContest("tiny-face", SMALL)), []
    call = E4TPipeline.__call__

    def drawn(self: E4TPipeline, *arguments: object, **settings: object) -> object:
        seen.append((settings.get("guidance_scale"), settings.get("guidance_rescale")))
        return call(self, *arguments, **settings)

    monkeypatch.setattr(E4TPipeline, "__call__", drawn)
    for method in ("class word", "Textual Inversion", "DreamBooth", "LoRA", OURS):
        learner = lineup.learner(method)
        learner.learn(lineup.contest.examples(0, 1), (0,))[0].draw(["a photo of S*"], 0)
    domain = lineup.contest.pipe.generate_config
    assert set(seen) == {(domain.guidance_scale, domain.guidance_rescale)}
    assert domain.guidance_scale != GenerateConfig().guidance_scale


def test_records_of_other_settings_are_not_taken_for_these(monkeypatch: pytest.MonkeyPatch) -> None:
    contest = DrawnContest("tiny-face", SMALL)
    before = {method: Lineup(contest).key(method, 0) for method in ("DreamBooth", "LoRA", OURS)}
    assert len(set(before.values())) == 3
    monkeypatch.setattr(baselines, "DREAMBOOTH", replace(baselines.DREAMBOOTH, mask_loss=False))
    after = {method: Lineup(contest).key(method, 0) for method in before}
    assert [after[method] == before[method] for method in before] == [False, False, True]


def test_another_training_of_the_domain_concerns_ours_alone() -> None:
    contest = DrawnContest("tiny-face", SMALL)
    rows = (DRAWINGS, "class word", "DreamBooth", "LoRA", "Textual Inversion", OURS)
    before = [Lineup(contest).key(row, 0) for row in rows]
    assert contest.pipe.trained is not None
    tensors = {name: tensor + 1 for name, tensor in contest.pipe.trained.tensors.items()}
    contest.pipe.trained = replace(contest.pipe.trained, tensors=tensors)
    after = [Lineup(contest).key(row, 0) for row in rows]
    assert [row for row, one, other in zip(rows, before, after, strict=True) if one != other] == [OURS]


def in_a_thread(_processes: int, _context: object, *start: object) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "worker", *start)


@pytest.mark.parametrize("pool", [in_a_thread, pytest.param(ProcessPoolExecutor, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("one_thread")
def test_two_processes_make_the_same_records(
    pool: object, quick: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "ProcessPoolExecutor", pool)
    monkeypatch.setattr(benchmark, "_AT_WORK", {})
    monkeypatch.setattr(benchmark, "_HERE", [])
    plan = replace(SMALL, methods=("class word", OURS), seeds=1, e4t_steps=(1,))
    list(compare(make(quick, plan), tmp_path / "one"))
    steps = list(compare(make(quick, plan), tmp_path / "two", processes=2))
    assert (len(steps), steps[-1].left) == (10, 0)
    one, two = (json.loads((tmp_path / name / "results.json").read_text())[0]["rows"] for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert a["clip_i"] == pytest.approx(b["clip_i"], abs=1e-3) if "clip_i" in a else "clip_i" not in b


def test_a_plan_is_read_from_a_file_and_kept_with_the_results(finished: Path) -> None:
    plan = PLANS["quick"].updated({"methods": ["E4T"], "e4t_steps": [0, 2], "concepts": 2})
    assert (plan.methods, plan.e4t_steps, plan.concepts, plan.prompts) == (("E4T",), (0, 2), 2, PLANS["quick"].prompts)
    for odd in ({"concepts": 0}, {"e4t_steps": [-1]}, {"concept": 3}, {"methods": "E4T"}):
        with pytest.raises(ConfigError):
            plan.updated(odd)
    (results,) = json.loads((finished / "results.json").read_text())
    assert Plan.from_dict(results["plan"]) == replace(SMALL, concepts=results["concepts"])


def test_concepts_that_were_trained_on_are_refused() -> None:
    with pytest.raises(ConfigError, match="'train' were trained on"):
        DrawnContest("tiny-face", replace(SMALL, namespace="train"))


def test_a_wide_photo_is_compared_by_the_square_that_is_learned(tmp_path: Path) -> None:
    square = Image.fromarray(draw(snapshot("own", 0)).rgb)
    wide = Image.new("RGB", (192, 128), "white")
    wide.paste(square, (32, 0))
    wide.save(tmp_path / "wide.png")
    (tmp_path / "square").mkdir()
    square.save(tmp_path / "square" / "square.png")
    one, other = (
        report.Given.of(OwnContest("tiny-face", SMALL, folder, prompts=("S* at the beach",))).clip[0]
        for folder in (tmp_path, tmp_path / "square")
    )
    assert float(one @ other) == pytest.approx(1, abs=1e-5)


def test_records_of_another_clip_are_not_taken_for_these() -> None:
    contest = DrawnContest("tiny-face", SMALL)
    contest.clip = deepcopy(contest.clip)
    before = Lineup(contest).key(OURS, 0)
    with torch.no_grad():
        contest.clip.model.visual_projection.weight.mul_(2)
    del contest.clip.__dict__["fingerprint"]
    assert Lineup(contest).key(OURS, 0) != before
