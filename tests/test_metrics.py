"""Scores must not flatter: constants and strangers score at most 0 and chance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e4t.evaluation import metrics
from e4t.evaluation.truth import visible_parameters
from e4t.tiny.columns import Layout, identity_columns
from e4t.tiny.world import identity, twins

LAYOUT = Layout(("size", "shape", "hue"), (1, 3, 1))
ALL = np.array([True, True, True])


def population(n: int, seed: int = 0) -> np.ndarray:
    """True readings of ``n`` made-up individuals, ``[n, 5]``."""
    rng = np.random.default_rng(seed)
    return np.hstack([rng.random((n, 1)), np.eye(3)[rng.integers(3, size=n)], rng.random((n, 1))])


def everything(true: np.ndarray) -> np.ndarray:
    return metrics.weights(LAYOUT, np.ones_like(true, bool), ALL)


def test_layout_describes_its_columns() -> None:
    assert LAYOUT.columns == 5
    assert LAYOUT.owners.tolist() == [0, 1, 1, 1, 2]
    assert LAYOUT.slices[1] == slice(1, 4)
    np.testing.assert_allclose(population(20000).std(0), LAYOUT.scales, atol=0.01)


def test_perfect_readings_score_one() -> None:
    true = population(40)
    assert metrics.identity_score(true, true, everything(true)) == 1


@settings(max_examples=30, deadline=None)
@given(constant=st.lists(st.floats(0, 1), min_size=5, max_size=5), seed=st.integers(0, 99))
def test_no_constant_scores_above_what_knowing_the_sample_is_worth(constant: list[float], seed: int) -> None:
    true = population(30, seed)
    assert metrics.identity_score(np.tile(constant, (30, 1)), true, everything(true)) <= 1 / 30 + 1e-9


def test_the_domains_average_scores_zero_and_strangers_less() -> None:
    true = population(5000)
    average = np.tile(LAYOUT.means, (5000, 1))
    assert metrics.identity_score(average, true, everything(true)) == pytest.approx(0, abs=0.001)
    assert metrics.identity_score(np.roll(true, 1, axis=0), true, everything(true)) < -0.5


def test_few_concepts_and_many_are_scored_alike() -> None:
    """The sum over many small samples is what a large one has: no score depends on how many were compared."""

    def summed(size: int, prompts: int) -> np.ndarray:
        total = np.zeros(2)
        for seed in range(1200 // size):
            true = np.repeat(population(size, seed), prompts, axis=0)
            noise = np.random.default_rng(seed).normal(0, 0.2, true.shape)
            total += [
                part.sum() for part in metrics.identity_errors(true + noise, true, everything(true), concepts=size)
            ]
        return total / prompts

    few, many = summed(3, prompts=4), summed(300, prompts=1)
    assert 1 - few[0] / few[1] == pytest.approx(1 - many[0] / many[1], abs=0.02)


def test_every_parameter_counts_once_however_many_options_it_has() -> None:
    true = population(5000)
    errors = [
        metrics.identity_errors(true, true, metrics.weights(LAYOUT, np.ones_like(true, bool), np.eye(3, dtype=bool)[i]))
        for i in range(3)
    ]
    for _, spread in errors:
        assert spread.mean() == pytest.approx(1, abs=0.05)


def test_hidden_and_unreadable_parameters_do_not_count() -> None:
    true = population(30)
    read = true.copy()
    read[:, 0], read[:, 4] = 0.9, 0.1
    visible = np.ones_like(true, bool)
    visible[:, 0] = False
    counted = metrics.readable(LAYOUT, read, true, visible, least=0.7)
    assert counted.tolist() == [False, True, False]
    assert metrics.identity_score(read, true, metrics.weights(LAYOUT, visible, counted)) == 1


def test_explained_is_the_share_of_variance() -> None:
    true = population(4000)
    noise = np.random.default_rng(1).normal(0, 0.5 * np.sqrt(1 / 12), 4000)
    read = true.copy()
    read[:, 0] += noise
    shares = metrics.explained(LAYOUT, read, true, np.ones_like(true, bool))
    np.testing.assert_allclose(shares, [0.75, 1, 1], atol=0.03)


def test_constant_readings_find_people_by_chance() -> None:
    true = population(50)
    candidates = np.stack([np.roll(true, -i, axis=0) for i in range(50)], axis=1)
    weight = everything(candidates.reshape(-1, 5)).reshape(candidates.shape)
    constant = np.tile(true.mean(0), (50, 1))
    assert metrics.rank_one(metrics.distances(LAYOUT, true, candidates, weight)).all()
    assert metrics.rank_one(metrics.distances(LAYOUT, constant, candidates, weight)).sum() <= 1


@pytest.mark.parametrize("kind", ["face", "cat"])
def test_constant_readings_find_twins_by_chance(kind: str) -> None:
    layout, hits = Layout.of(kind), []
    subjects = [identity("metrics", i, kind) for i in range(300)]
    constant = np.stack([identity_columns(s) for s in subjects]).mean(0, keepdims=True)
    counted = np.ones(len(layout.names), bool)
    for subject in subjects:
        among = [subject, *twins(subject, 19)]
        true = np.stack([identity_columns(one) for one in among])[None]
        seen = np.stack([visible_parameters(one)[layout.owners] for one in among])[None]
        weight = metrics.weights(layout, seen, counted)
        hits.append(metrics.rank_one(metrics.distances(layout, constant, true, weight))[0])
    assert 0.005 < np.mean(hits) < 0.1


def test_a_tie_is_a_miss() -> None:
    assert metrics.rank_one(np.array([[0.5, 0.5], [0.1, 0.2], [0.3, 0.2]])).tolist() == [False, True, False]


def test_prompt_and_joint_success() -> None:
    answers = [{"scene": "beach", "style": "photo"}] * 3
    asked = [{"scene": "beach"}, {"scene": "beach", "style": "comic"}, {}]
    share = metrics.found(answers, asked)
    assert share.tolist() == [1, 0.5, 1]
    assert metrics.joint_success(np.array([True, True, False]), share).tolist() == [True, False, False]


def test_intervals_cover_and_pairing_narrows_them() -> None:
    rng = np.random.default_rng(0)
    skill = rng.random((80, 4))
    better = skill + 0.05
    samples = metrics.resamples(80, draws=500)
    one, other = metrics.mean_statistic(better), metrics.mean_statistic(skill)
    alone = metrics.bootstrap(one, samples)
    paired = metrics.bootstrap(metrics.difference(one, other), samples)
    assert alone.low < alone.value < alone.high
    assert paired.value == pytest.approx(0.05)
    assert paired.high - paired.low < 1e-9 < alone.high - alone.low


def test_identity_statistic_equals_the_score_over_its_ceiling() -> None:
    true = population(24)
    read = 0.5 * true + 0.5 * true.mean(0)
    weight = everything(true)
    missed, spread = metrics.identity_errors(read, true, weight)
    statistic = metrics.share_of(lambda _: 0.5, metrics.score_statistic(missed.reshape(6, 4), spread.reshape(6, 4)))
    assert statistic(np.arange(6)) == pytest.approx(metrics.identity_score(read, true, weight) / 0.5)


def test_a_ceiling_is_of_the_same_concepts() -> None:
    one, other = metrics.mean_statistic(np.array([1.0, 3.0])), metrics.mean_statistic(np.array([2.0, 4.0]))
    share = metrics.share_of(other, one)
    assert share(np.array([0, 0])) == 0.5
    assert share(np.array([1, 1])) == 0.75


def test_nothing_is_divided_by_a_ceiling_of_a_blind_judge() -> None:
    for ceiling in (-0.8, 0.0, 0.05):
        low = metrics.mean_statistic(np.full(3, ceiling))
        assert np.isnan(metrics.share_of(low, metrics.mean_statistic(np.ones(3)))(np.arange(3)))


@pytest.mark.parametrize(("concepts", "least", "most"), [(6, 0.9, 0.97), (12, 0.92, 0.97), (50, 0.92, 0.97)])
def test_intervals_hold_the_truth_as_often_as_they_say(concepts: int, least: float, most: float) -> None:
    rng = np.random.default_rng(1)
    samples = metrics.resamples(concepts, draws=400)
    held = []
    for _ in range(400):
        values = rng.normal(size=concepts)
        interval = metrics.bootstrap(metrics.mean_statistic(values), samples)
        held.append(interval.low <= 0 <= interval.high)
    assert least <= np.mean(held) <= most


def test_of_two_concepts_the_interval_is_everything() -> None:
    interval = metrics.bootstrap(metrics.mean_statistic(np.array([0.0, 1.0])), metrics.resamples(2, draws=100))
    assert (interval.low, interval.high) == (0, 1)
