"""Judges: what counts as visible, a few training steps, saving and loading."""

from __future__ import annotations

import json
import multiprocessing.dummy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from e4t.errors import CheckpointError, DataError
from e4t.evaluation import judge as judges
from e4t.evaluation.judge import Judge, JudgeConfig, JudgeNetwork, augment, round_trip, to_pixels, to_rgb, train_judge
from e4t.evaluation.truth import (
    ANSWERS,
    CLASSES,
    HIDDEN_BY,
    Truth,
    class_answers,
    classes_of,
    visible_parameters,
)
from e4t.tiny import pictures
from e4t.tiny.accessories import ACCESSORIES
from e4t.tiny.captions import training_picture
from e4t.tiny.columns import Layout, identity_columns
from e4t.tiny.world import EXPRESSIONS, PARAMETERS, Picture, draw, identity

COUNT = 12


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    return np.stack([draw(training_picture(i), 128).rgb for i in range(COUNT)]), np.arange(COUNT)


@pytest.mark.parametrize("kind", ["face", "cat", "art"])
def test_columns_hold_every_parameter(kind: str) -> None:
    layout, subject = Layout.of(kind), identity("judge", 1, kind)
    columns = identity_columns(subject)
    assert len(columns) == layout.columns
    for parameter, part in zip(PARAMETERS[kind], layout.slices, strict=True):
        value = subject.params[parameter.name]
        if parameter.options:
            assert columns[part].argmax() == value
            assert columns[part].sum() == 1
        elif parameter.circular:
            assert np.angle(complex(*columns[part])) % (2 * np.pi) == pytest.approx(2 * np.pi * value)
        else:
            assert columns[part].tolist() == [value]


def test_what_hides_exists_and_hides_something() -> None:
    known = {p.name for kind in ("face", "cat") for p in PARAMETERS[kind]}
    assert HIDDEN_BY
    for cause, beginnings in HIDDEN_BY.items():
        assert cause in ACCESSORIES or cause in EXPRESSIONS
        for beginning in beginnings:
            assert any(name.startswith(beginning) for name in known), beginning


def test_sunglasses_hide_the_eyes() -> None:
    subject = identity("judge", 0)
    plain = visible_parameters(subject, Picture(subject))
    worn = visible_parameters(subject, Picture(subject, accessory="sunglasses"))
    hidden = {p.name for p, a, b in zip(PARAMETERS["face"], plain, worn, strict=True) if a and not b}
    assert "eye_colour" in hidden
    assert "skin_tone" not in hidden


def test_classes_cover_the_training_pictures() -> None:
    for index in range(200):
        for name, answer in class_answers(training_picture(index)).items():
            assert answer in ANSWERS[name]


@pytest.mark.parametrize("number", [1, 2])
def test_size_and_shapes(number: int) -> None:
    layout = Layout.of("face")
    network = JudgeNetwork(number, "face")
    assert 0.6e6 < sum(p.numel() for p in network.parameters()) < 1.2e6
    seen, classes = network(torch.zeros(2, 3, 128, 128))
    assert seen.shape == (2, layout.columns)
    assert {name: logits.shape[1] for name, logits in classes.items()} == {n: len(o) for n, o in CLASSES.items()}


def test_judges_share_no_architecture() -> None:
    one, two = ({k for k, _ in JudgeNetwork(n, "face").named_parameters()} for n in (1, 2))
    assert one != two


def test_hidden_parameters_have_no_loss() -> None:
    layout = Layout.of("face")
    pictures = [Picture(identity("judge", i)) for i in range(3)]
    target = judges._Targets.of(Truth.of(pictures, "face"), layout)
    target.visible[:] = False
    answer = {name: torch.zeros(3, len(options)) for name, options in CLASSES.items()}
    seen = torch.randn(3, layout.columns, requires_grad=True)
    judges.judge_loss(layout, seen, answer, target).backward()
    assert seen.grad is not None
    assert not seen.grad.any()


def test_pixels_go_back_and_forth(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_array_equal(to_rgb(to_pixels(drawn[0])), drawn[0])
    np.testing.assert_array_equal(round_trip(drawn[0], lambda pixels: pixels, batch=7), drawn[0])


def test_augmentation_is_mild_and_seeded(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    pixels = to_pixels(drawn[0])
    one, two = (augment(pixels, torch.Generator().manual_seed(3)) for _ in range(2))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    blurred = torch.nn.functional.avg_pool2d(pixels, 16)  # a few pixels of shift hardly change what is left of it
    change = (torch.nn.functional.avg_pool2d(one, 16) - blurred).abs().mean()
    assert 0 < change < 0.15
    assert (one - pixels).abs().mean() > 0.02


def test_a_judge_may_have_pictures_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "SHARD", 4)
    monkeypatch.setattr(pictures, "multiprocessing", SimpleNamespace(get_context=lambda _: multiprocessing.dummy))
    config = JudgeConfig(tmp_path, kind="art", steps=1, batch=2, own_pictures=8, round_trips=0)
    list(pictures.draw_shards(config.pictures, 8, about="art"))
    rgb, indices = pictures.load_shards(config.pictures, 8)
    assert all(config.picture(int(index)).art is not None for index in indices)
    assert len({config.picture(index).art.key for index in range(100)}) == 100  # no artist to learn by heart
    np.testing.assert_array_equal(rgb[5], draw(config.picture(5), 128).rgb)
    assert train_judge(config, rgb, indices).kind == "art"


@pytest.mark.parametrize(("number", "kind"), [(1, "face"), (2, "face"), (1, "art")])
def test_trains_saves_and_loads_equal(
    number: int, kind: str, drawn: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    config = JudgeConfig(tmp_path, judge=number, kind=kind, steps=2, batch=4, warmup=1)
    judge = train_judge(config, *drawn)
    judge.save(tmp_path / "saved")
    loaded = Judge.load(tmp_path / "saved")
    one, two = judge.read(drawn[0]), loaded.read(drawn[0])
    assert one.identity.shape == (COUNT, Layout.of(kind).columns)
    turning = Layout.of(kind).turning
    assert one.identity[:, turning].min(initial=0) >= -1
    assert one.identity[:, ~turning].min() >= 0
    assert one.identity.max() <= 1
    np.testing.assert_array_equal(one.identity, two.identity)
    for name in classes_of(kind):
        np.testing.assert_array_equal(one.classes[name], two.classes[name])
    assert set(one.answers(0)) == set(classes_of(kind))
    assert ("subject" in one.answers(0)) == (kind == "art")


def test_a_judge_goes_on_from_one_of_its_kind(drawn: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    judge = train_judge(JudgeConfig(tmp_path, judge=2, steps=2, batch=4, warmup=1), *drawn)
    judge.save(tmp_path / "saved")
    (tmp_path / "new").mkdir()
    config = JudgeConfig(tmp_path / "new", judge=2, steps=0, initial=tmp_path / "saved")
    np.testing.assert_array_equal(train_judge(config, *drawn).read(drawn[0]).identity, judge.read(drawn[0]).identity)
    with pytest.raises(CheckpointError, match="holds judge 2; --initial needs one built as judge 1"):
        train_judge(replace(config, judge=1), *drawn)


def test_a_judge_lends_its_trunk_to_one_of_another_kind(drawn: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    faces = train_judge(JudgeConfig(tmp_path, judge=1, steps=2, batch=4, warmup=1), *drawn)
    faces.save(tmp_path / "saved")
    (tmp_path / "new").mkdir()
    config = JudgeConfig(tmp_path / "new", judge=1, kind="art", steps=0, initial=tmp_path / "saved")
    art = train_judge(config, *drawn)
    assert art.layout == Layout.of("art")
    for key, tensor in faces.network.trunk.state_dict().items():
        torch.testing.assert_close(art.network.trunk.state_dict()[key], tensor)


def test_pictures_without_the_kind_are_an_error(drawn: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="shows a dog"):
        train_judge(JudgeConfig(tmp_path, kind="dog"), *drawn)


def test_resuming_is_the_same_as_going_on(drawn: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    returned = round_trip(drawn[0][:8], lambda pixels: 0.9 * pixels)
    whole = JudgeConfig(tmp_path / "whole", steps=4, batch=4, checkpoint_every=2)
    halves = JudgeConfig(tmp_path / "halves", steps=4, batch=4, checkpoint_every=2)
    for config in (whole, halves):
        config.work.mkdir()
    expected = train_judge(whole, *drawn, returned=returned).read(drawn[0])
    with pytest.raises(KeyboardInterrupt):
        _stopped_after(2, halves, drawn, returned)
    resumed = train_judge(halves, *drawn, returned=returned).read(drawn[0])
    np.testing.assert_array_equal(expected.identity, resumed.identity)


def _stopped_after(steps: int, config: JudgeConfig, drawn: tuple[np.ndarray, np.ndarray], returned: np.ndarray) -> None:
    """Train until the checkpoint of ``steps`` is there, then stop as Ctrl-C would."""
    with pytest.MonkeyPatch.context() as patch:
        save = judges.Trained.save

        def save_and_stop(trained: judges.Trained, path: Path) -> None:
            save(trained, path)
            if trained.step == steps:
                raise KeyboardInterrupt

        patch.setattr(judges.Trained, "save", save_and_stop)
        train_judge(config, *drawn, returned=returned)


def test_overfitting_reads_what_it_was_shown(drawn: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    rgb, indices = drawn
    config = JudgeConfig(tmp_path, steps=40, batch=8, warmup=5, ema=0.5)
    judge = train_judge(config, rgb, indices)
    faces = [i for i in range(COUNT) if training_picture(i).subject.kind == "face"]
    truth = Truth.of([training_picture(i) for i in faces], "face")
    right = judge.read(rgb[faces]).classes["style"] == truth.classes["style"]
    assert right.mean() > 0.5


def test_round_trips_are_kept(drawn: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    config = JudgeConfig(tmp_path, round_trips=5)
    first = judges.cached_round_trips(config, drawn[0], lambda pixels: -pixels)

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the cache was not used")

    np.testing.assert_array_equal(judges.cached_round_trips(config, drawn[0], fail), first)
    assert len(first) == 5
    np.testing.assert_array_equal(judges.cached_round_trips(replace(config, round_trips=3), drawn[0], fail), first[:3])
    more = judges.cached_round_trips(replace(config, round_trips=8), drawn[0], lambda pixels: pixels)
    np.testing.assert_array_equal(more, np.concatenate([first, drawn[0][5:8]]))


def test_another_world_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no judge"):
        Judge.load(tmp_path)
    Judge(JudgeNetwork(1, "face"), 1, "face", np.ones(41, bool)).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"world": -1}))
    with pytest.raises(CheckpointError, match="another version of the world"):
        Judge.load(tmp_path)
