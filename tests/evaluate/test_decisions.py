"""Thresholds, net benefit and abstention against scikit-learn, slow loops and truths known by construction."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from sscl.evaluate.calibration import softmax
from sscl.evaluate.decisions import choose_abstention, choose_threshold, outcomes_at, risk_coverage, tile_benefits


def drawn(*, tiles: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and labels drawn from their softmax."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (tiles, 2))
    p = softmax(logits)
    labels = (rng.random((tiles, 1)) > p.cumsum(1)).sum(1)
    return logits, labels.astype(np.int64)


# --- thresholds ---


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("decimals", [1, 9])
def test_youdens_threshold_reaches_the_best_point_of_sklearns_roc(seed: int, decimals: int) -> None:
    logits, labels = drawn(tiles=80, seed=seed)
    truth, p = labels == 1, softmax(logits)[:, 1].round(decimals)
    false_positive, true_positive, _ = roc_curve(truth, p, drop_intermediate=False)
    threshold = choose_threshold(truth, p)
    called = p >= threshold
    assert called[truth].mean() - called[~truth].mean() == pytest.approx((true_positive - false_positive).max())
    assert threshold not in p  # half-way between two


@pytest.mark.parametrize("wanted", [0.05, 0.5, 0.9, 0.95, 1.0])
def test_a_stated_sensitivity_is_reached_by_the_highest_threshold(wanted: float) -> None:
    logits, labels = drawn(tiles=80)
    truth, p = labels == 1, softmax(logits)[:, 1]
    threshold = choose_threshold(truth, p, sensitivity=wanted)
    assert (p >= threshold)[truth].mean() >= wanted
    higher = np.sort(p[p >= threshold])[0] + 1e-12  # past the next score
    assert (p >= higher)[truth].mean() < wanted


def test_thresholds_lie_half_way_and_ties_of_youden_near_one_half() -> None:
    assert choose_threshold(np.array([False, True]), [0.2, 0.9]) == pytest.approx(0.55)
    # Calling down to 0.9 and down to 0.6 is equally good.
    truth, p = np.array([True, False, True, False]), [0.9, 0.7, 0.6, 0.1]
    assert choose_threshold(truth, p) == pytest.approx(0.35)
    close = np.nextafter(0.5, 1)
    assert choose_threshold(np.array([False, True]), [0.5, close]) == close


@pytest.mark.parametrize(
    ("truth", "words", "message"),
    [
        ([True, True], {}, "2 of 2 tiles are positive"),
        ([True, False], {"sensitivity": 0.0}, "sensitivity"),
        ([True, False], {"sensitivity": 1.1}, "sensitivity"),
    ],
)
def test_impossible_thresholds_are_refused(truth: list[bool], words: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_threshold(np.array(truth), [0.2, 0.8], **words)


def test_outcomes_at_a_threshold_are_the_four_ratios_of_the_table() -> None:
    truth = np.repeat([True, True, False, False], [8, 2, 5, 25])  # TP 8, FN 2, FP 5, TN 25
    called = np.repeat([True, False, True, False], [8, 2, 5, 25])
    found = {name: (int(a.sum()), int(b.sum())) for name, (a, b) in outcomes_at(truth, called).items()}
    expected = {"sensitivity": (8, 10), "specificity": (25, 30), "PPV": (8, 13), "NPV": (25, 27), "accuracy": (33, 40)}
    assert found == expected


def test_net_benefit_is_the_formula_of_vickers_and_elkin() -> None:
    logits, labels = drawn(tiles=90)
    truth, p = labels == 1, softmax(logits)[:, 1]
    thresholds = [0.1, 0.5, 0.8]
    for t, value in zip(thresholds, tile_benefits(truth, p, thresholds=thresholds).mean(0), strict=True):
        hits, alarms = ((p >= t) & truth).sum(), ((p >= t) & ~truth).sum()
        assert value == pytest.approx(hits / 90 - alarms / 90 * t / (1 - t))
    everyone = tile_benefits(truth, np.ones(90), thresholds=[truth.mean()]).mean(0)
    assert everyone == pytest.approx([0], abs=1e-12)  # calling all is worth nothing where the odds are even
    assert tile_benefits(np.array([True]), [0.5], thresholds=[0.5])[0] == pytest.approx([1])  # at the threshold too
    with pytest.raises(ValueError, match="thresholds"):
        tile_benefits(truth, p, thresholds=[1.0])


def test_risk_coverage_is_counted_from_the_most_confident_tile_on() -> None:
    found = risk_coverage(np.array([True, False, True, True]), [0.9, 0.6, 0.8, 0.7])
    assert found.confidence == (0.9, 0.8, 0.7, 0.6)
    assert (found.count, found.correct) == ((1, 2, 3, 4), (1, 2, 3, 3))
    assert found.area == found.area_best == pytest.approx(1 / 4 / 4)
    assert found.area_random == 0.25
    worst = risk_coverage(np.array([True, False, True, True]), [0.6, 0.9, 0.8, 0.7])
    assert worst.area == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_tied_confidences_count_in_their_mean_order() -> None:
    rng = np.random.default_rng(0)
    right, confidence = rng.random(30) < 0.7, rng.integers(3, 6, 30) / 6
    found = risk_coverage(right, confidence)
    areas = []
    for _ in range(4000):
        order = np.lexsort((rng.random(30), -confidence))
        areas.append(((~right[order]).cumsum() / np.arange(1, 31)).mean())
    assert found.area == pytest.approx(np.mean(areas), abs=0.004)
    assert found.confidence == (5 / 6, 4 / 6, 3 / 6)
    shuffled = rng.permutation(30)
    assert risk_coverage(right[shuffled], confidence[shuffled]) == found


def test_abstention_leaves_out_at_most_its_limit() -> None:
    confidence = np.arange(10) / 10
    assert choose_abstention(confidence, limit=0.0) == 0.0
    assert choose_abstention(confidence, limit=0.3) == 0.3  # 0, 0.1 and 0.2 lie below
    assert choose_abstention(confidence, limit=0.39) == 0.3
    assert choose_abstention(np.full(10, 0.5), limit=0.9) == 0.5  # all equal: none is left out
    for limit in (1.0, -0.1):
        with pytest.raises(ValueError, match="limit"):
            choose_abstention(confidence, limit=limit)
