"""When a check has passed, when it has failed, and when so many tiles cannot tell."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap, ttest_1samp

from sscl.evaluate.proportions import proportion_interval
from sscl.evaluate.verdicts import (
    FEWEST,
    POWER,
    Outcome,
    balanced_interval,
    better_than_chance,
    detectable,
    mean_interval,
    outcome_above,
    outcome_below,
    too_few,
)
from sscl.train.health import knn_verdict


@pytest.mark.parametrize(
    ("interval", "tiles", "outcome"),
    [
        ((0.51, 0.9), FEWEST, Outcome.PASSED),
        ((0.1, 0.49), FEWEST, Outcome.FAILED),
        ((0.49, 0.51), 1000, Outcome.INCONCLUSIVE),
        ((0.51, 0.9), FEWEST - 1, Outcome.INCONCLUSIVE),
        ((0.1, 0.49), FEWEST - 1, Outcome.INCONCLUSIVE),
        ((-np.inf, np.inf), 1, Outcome.INCONCLUSIVE),
    ],
)
def test_the_whole_interval_decides_and_enough_tiles(interval, tiles, outcome):
    assert outcome_above(interval, 0.5, tiles=tiles) is outcome
    opposite = {Outcome.PASSED: Outcome.FAILED, Outcome.FAILED: Outcome.PASSED}.get(outcome, outcome)
    assert outcome_below(interval, 0.5, tiles=tiles) is opposite
    assert (too_few(tiles) != "") is (tiles < FEWEST)


def test_fewest_is_where_a_sign_test_can_first_tell():
    assert 2 * 0.5 ** (FEWEST - 1) > 0.05 > 2 * 0.5**FEWEST


def test_the_interval_of_a_mean_is_that_of_students_test():
    values = np.random.default_rng(0).normal(size=9)
    assert mean_interval(values) == pytest.approx(tuple(ttest_1samp(values, 0).confidence_interval(0.95)))
    drawn = bootstrap((np.tile(values, 30),), np.mean, random_state=0).confidence_interval
    assert mean_interval(np.tile(values, 30)) == pytest.approx((drawn.low, drawn.high), abs=0.02)
    assert mean_interval([3.0]) == (-np.inf, np.inf)


def test_a_detectable_difference_is_seen_in_eight_of_ten_samples():
    rng = np.random.default_rng(0)
    gain = detectable(balanced_interval(0.5, [50, 50]))
    drawn = rng.binomial(50, 0.5 + gain, (1000, 2)).mean(1) / 50
    seen = [balanced_interval(value, [50, 50])[0] > 0.5 for value in drawn]
    assert np.mean(seen) == pytest.approx(POWER, abs=0.06)


def test_a_mean_at_the_bound_rarely_passes():
    rng = np.random.default_rng(0)
    for tiles in (6, 16):
        drawn = rng.beta(2, 2, (1000, tiles))  # mean 0.5
        found = [outcome_above(mean_interval(row), 0.5, tiles=tiles) for row in drawn]
        assert found.count(Outcome.PASSED) <= 40  # 2.5% by design
        assert found.count(Outcome.INCONCLUSIVE) >= 900


def test_the_interval_of_a_balanced_accuracy_is_that_of_a_proportion_where_classes_are_equally_many():
    assert balanced_interval(0.75, [40, 40]) == pytest.approx(proportion_interval(60, 80), abs=1e-6)
    assert balanced_interval(1.0, [10, 10, 10]) == pytest.approx(proportion_interval(30, 30), abs=1e-6)
    rare, many = balanced_interval(0.75, [10, 70]), balanced_interval(0.75, [40, 40])
    assert rare[0] < many[0] < many[1] < rare[1]


def test_the_interval_of_a_balanced_accuracy_covers_it():
    rng = np.random.default_rng(0)
    counts, recalls = np.array([12, 60]), np.array([0.8, 0.7])
    drawn = (rng.binomial(counts, recalls, (2000, 2)) / counts).mean(1)
    ends = [balanced_interval(value, counts.tolist()) for value in drawn]
    assert np.mean([low <= recalls.mean() <= high for low, high in ends]) > 0.93


@pytest.mark.parametrize(
    ("accuracy", "each", "word"),
    [
        (0.52, 36, "inconclusive"),
        (0.52, 500, "not above chance"),
        (0.52, 20000, "learned"),
        (0.75, 36, "learned"),
        (1.0, 2, "inconclusive"),
    ],
)
def test_what_nearest_neighbours_say_of_two_classes(accuracy, each, word):
    low, high = balanced_interval(accuracy, [each, each])
    ends = {"knn_low": low, "knn_high": high, "knn_chance": 0.5, "knn_tiles": 2 * each}
    outcome, said = knn_verdict({"knn_balanced_accuracy": accuracy, **ends})
    assert said.startswith(f"{word}: ")
    assert better_than_chance((low, high), 0.5, tiles=2 * each) is outcome
    assert knn_verdict({"loss": 1.0}) is None
