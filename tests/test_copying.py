"""Poses and backdrops that come back."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from e4t.errors import CheckpointError
from e4t.evaluation.copying import PoseConfig, PoseReader, backdrop, correlation_statistic, poses, train_pose_reader
from e4t.evaluation.evaluate import input_data
from e4t.evaluation.judge import RESOLUTION
from e4t.tiny.captions import training_picture
from e4t.tiny.world import draw

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import tuning


def test_what_comes_back_correlates_and_what_does_not_does_not() -> None:
    rng = np.random.default_rng(0)
    given = rng.normal(size=(200, 2))
    everyone = np.arange(200)
    same = np.repeat(given[:, None], 3, axis=1)
    assert correlation_statistic(given, 5 * same + 1)(everyone) == pytest.approx(1)
    assert correlation_statistic(given, -same)(everyone) == pytest.approx(-1)
    assert abs(correlation_statistic(given, rng.normal(size=(200, 3, 2)))(everyone)) < 0.1
    assert np.isnan(correlation_statistic(given, np.zeros((200, 3, 2)))(everyone))


def test_the_backdrop_is_the_border() -> None:
    rgb = np.full((2, 32, 32, 3), 200, np.uint8)
    rgb[:, :6] = rgb[:, -6:] = rgb[:, :, :6] = rgb[:, :, -6:] = (10, 20, 30)
    np.testing.assert_allclose(backdrop(rgb), [[10, 20, 30]] * 2)


def test_a_reader_learns_resumes_and_is_read_back(tmp_path: Path) -> None:
    indices = np.arange(8)
    rgb = np.stack([draw(training_picture(int(index)), 128).rgb for index in indices])
    first = train_pose_reader(PoseConfig(tmp_path, steps=2, batch=4, checkpoint_every=1), rgb, indices)
    again = train_pose_reader(PoseConfig(tmp_path, steps=2, batch=4), rgb, indices)
    np.testing.assert_array_equal(first.read(rgb), again.read(rgb))
    assert first.read(rgb).shape == poses([training_picture(0)] * 8).shape
    first.counted[:] = [True, False, False, True, False, False]
    first.save(tmp_path / "reader")
    loaded = PoseReader.load(tmp_path / "reader")
    assert loaded.counted.tolist() == first.counted.tolist()
    np.testing.assert_allclose(loaded.read(rgb), first.read(rgb), atol=0.05)
    with pytest.raises(CheckpointError, match="holds no pose reader"):
        PoseReader.load(tmp_path / "nowhere")


def test_the_shipped_reader_reads_poses() -> None:
    reader = PoseReader.shipped()
    pictures = [training_picture(index, namespace="poses") for index in range(30)]
    read, true = reader.read(np.stack([draw(picture, 128).rgb for picture in pictures])), poses(pictures)
    counted = reader.counted
    assert counted.sum() >= 3
    explained = 1 - ((read - true) ** 2).mean(0) / true.var(0)
    assert explained[counted].min() > 0.3


def test_the_benchmark_of_tuning_tells_copied_poses_from_others(tmp_path: Path) -> None:
    bench = tuning.Bench.of(tuning.TuningConfig("tiny-face", tmp_path / "tuning.json", count=6))
    copies = [np.stack([draw(input_data(subject), RESOLUTION).rgb] * 2) for subject in bench.subjects]
    others = [bench.drawer.drawings(subject) for subject in bench.subjects]
    assert bench.copied(copies) > 0.9
    assert abs(bench.copied(others)) < 0.3
