"""When a check has passed, when it has failed, and when so many tiles cannot tell."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from simulated.verdicts import compared, is_better, is_calibrated, is_called_fairly, is_highlighted, rejects
from sscl.evaluate.proportions import proportion_interval
from sscl.evaluate.verdicts import (
    FEWEST,
    POWER,
    Mean,
    Outcome,
    better_than_chance,
    detectable,
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


def test_the_interval_of_a_mean_is_students_with_one_tile_more():
    values = np.random.default_rng(0).uniform(size=9)
    half = t.ppf(0.975, 8) * np.sqrt(values.var(ddof=1) / 9 + 1 / 9**2)
    found = Mean.of(values, bounds=(-np.inf, np.inf))
    assert found.interval == pytest.approx((values.mean() - half, values.mean() + half))
    assert (found.tiles, found.groups, found.units) == (9, None, 9)
    assert Mean.of(values).interval[0] == max(found.interval[0], 0)
    assert Mean.of([3.0]).interval == (-np.inf, np.inf)


def test_tiles_of_slides_are_worth_less_than_as_many_slides():
    """Twelve slides of eight tiles that are alike: about the interval of twelve tiles."""
    rng = np.random.default_rng(0)
    slides = rng.uniform(size=12)
    found = Mean.of(np.repeat(slides, 8), groups=np.repeat(np.arange(12), 8).astype(str))
    alone = Mean.of(slides)
    assert (found.tiles, found.groups, found.units) == (96, 12, 12)
    assert np.subtract(found.interval, alone.interval) == pytest.approx([0, 0], abs=0.02)
    assert "12 slides or patients" in found.measured
    few = Mean.of(np.full(20, 0.9), groups=np.repeat(np.arange(4), 5).astype(str))
    assert few.above(0.1) is Outcome.INCONCLUSIVE
    assert "4 slides or patients are too few" in few.detects


def test_a_detectable_difference_is_seen_in_eight_of_ten_samples():
    rng = np.random.default_rng(0)
    gain = detectable(proportion_interval(50, 100))
    drawn = rng.binomial(100, 0.5 + gain, 1000)
    seen = [proportion_interval(int(hits), 100)[0] > 0.5 for hits in drawn]
    assert np.mean(seen) == pytest.approx(POWER, abs=0.06)


def test_what_shows_goes_by_the_interval_before_it_is_cut():
    middle = Mean.of([0.4, 0.5, 0.6, 0.4, 0.5, 0.6, 0.4, 0.6])
    high = Mean.of([0.85, 0.95, 1.05, 0.85, 0.95, 1.05, 0.85, 1.05])
    assert high.interval[1] == 1
    assert high.detects == middle.detects != ""


def test_a_mean_at_the_bound_rarely_passes():
    """Also where most tiles are alike: by Student's t alone 55 of 100 sets of 6 pass."""
    rng = np.random.default_rng(0)
    for tiles in (6, 16):
        for drawn in (rng.beta(2, 2, (300, tiles)), np.where(rng.random((300, tiles)) < 0.1, 0.05, 0.55)):  # mean 0.5
            found = [Mean.of(row).above(0.5) for row in drawn]
            assert found.count(Outcome.PASSED) <= 12
            assert found.count(Outcome.INCONCLUSIVE) >= 270


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
    low, high = proportion_interval(round(2 * each * accuracy), 2 * each)
    ends = {"knn_low": low, "knn_high": high, "knn_chance": 0.5, "knn_tiles": 2 * each}
    outcome, said = knn_verdict({"knn_balanced_accuracy": accuracy, **ends})
    assert said.startswith(f"{word}: ")
    assert better_than_chance((low, high), 0.5, tiles=2 * each) is outcome
    assert ("would show" in said) is (2 * each >= FEWEST)
    assert knn_verdict({"loss": 1.0}) is None


def test_nearest_neighbours_of_too_few_slides_say_nothing():
    outcome, said = knn_verdict({"knn_balanced_accuracy": 0.9, "knn_chance": 0.5, "knn_tiles": 80})
    assert outcome is Outcome.INCONCLUSIVE
    assert "too few slides" in said


WRONG = {  # how often, of 20 sets, each may be said; the rates of 1,000 are in docs/intervals.md
    (is_calibrated, 0.0): ("FAILED", 5),
    (is_calibrated, 0.1): ("passed", 2),
    (is_called_fairly, 0.0): ("FAILED", 4),
    (is_better, 0.0): ("passed", 4),
    (is_better, 0.1): ("FAILED", 4),
    (is_highlighted, 0.0): ("passed", 2),
    (is_highlighted, 0.1): ("FAILED", 2),
    (compared, 0.0): ("first is better", 4),
    (compared, 0.32): ("second is better", 1),
}


@pytest.mark.parametrize(("draw", "truth"), WRONG, ids=lambda of: getattr(of, "__name__", of))
@pytest.mark.parametrize("size", [(100, None), (200, 20)], ids=["tiles", "slides"])
def test_verdicts_are_rarely_wrong(draw, truth, size):
    """The small form of scripts/coverage --tables verdicts."""
    rng = np.random.default_rng(1)
    word, most = WRONG[draw, truth]
    assert [draw(size, truth, rng) for _ in range(20)].count(word) <= most


def test_mcnemars_test_needs_the_slides():
    rng = np.random.default_rng(0)
    by_slides, by_tiles = np.mean([rejects((400, 20), 0.0, rng) for _ in range(100)], axis=0)
    assert by_slides <= 0.09 < by_tiles
