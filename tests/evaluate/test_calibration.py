"""Calibration against scikit-learn, slow loops and truths known by construction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss, roc_curve

from sscl.evaluate import calibration, metrics
from sscl.evaluate.calibration import (
    binary_brier_score,
    brier_score,
    calibration_error,
    calibration_error_by_chance,
    choose_abstention,
    choose_threshold,
    expected_calibration_error,
    fit_calibration,
    fit_temperature,
    net_benefit,
    outcomes_at,
    reliability_curve,
    risk_coverage,
    soft_vote_brier,
    softmax,
)


def drawn(*, tiles: int = 300, classes: int = 2, scale: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits, scaled, and labels drawn from the softmax of the unscaled ones: their temperature is `scale`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (tiles, classes))
    p = softmax(logits)
    labels = (rng.random((tiles, 1)) > p.cumsum(1)).sum(1)
    return logits * scale, labels.astype(np.int64)


# --- temperature ---


@pytest.mark.parametrize(("classes", "scale"), [(2, 3.0), (2, 0.4), (5, 2.0)])
def test_temperature_is_the_one_that_made_the_logits(classes: int, scale: float) -> None:
    logits, labels = drawn(tiles=40_000, classes=classes, scale=scale)
    assert fit_temperature(logits, labels) == pytest.approx(scale, rel=0.03)


@pytest.mark.parametrize("seed", range(5))
def test_temperature_has_the_least_log_loss_of_sklearn(seed: int) -> None:
    logits, labels = drawn(tiles=60, classes=3, scale=2.5, seed=seed)
    expected = minimize_scalar(
        lambda log_t: log_loss(labels, softmax(logits, temperature=math.exp(log_t)), labels=[0, 1, 2]),
        bounds=np.log(calibration.TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert fit_temperature(torch.from_numpy(logits), labels) == pytest.approx(math.exp(expected.x), rel=1e-5)


def test_temperature_is_indifferent_to_shifts_of_a_tiles_logits_and_scales_with_them() -> None:
    logits, labels = drawn()
    shifted = logits + np.linspace(-200, 200, len(logits))[:, None]
    assert fit_temperature(shifted, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-6)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3 * fit_temperature(logits, labels), rel=1e-6)


def test_temperature_is_bounded_where_the_tiles_know_none() -> None:
    logits, _ = drawn()
    assert fit_temperature(logits, logits.argmax(1)) == calibration.TEMPERATURES[0]
    assert fit_temperature(logits, logits.argmin(1)) == calibration.TEMPERATURES[1]
    assert fit_temperature([[1e4, 0.0], [0.0, 1e4]], [0, 1]) == calibration.TEMPERATURES[0]


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((3, 2)), [0, 1], "must be"),
        (np.zeros((0, 2)), [], "must be"),
        (np.zeros((2, 2)), [0, 2], "within 0 to 1"),
        ([[0.0, math.nan]], [0], "not finite"),
    ],
)
def test_temperature_refuses_what_it_cannot_fit(logits: object, labels: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, labels)


def test_softmax_at_a_temperature() -> None:
    logits, _ = drawn(classes=4)
    naive = np.exp(logits / 2)
    assert softmax(logits, temperature=2) == pytest.approx(naive / naive.sum(1, keepdims=True))
    assert (softmax(logits, temperature=7).argmax(1) == logits.argmax(1)).all()
    with pytest.raises(ValueError, match="temperature"):
        softmax(logits, temperature=0)


# --- Brier, ECE, reliability ---


def test_brier_scores_are_sklearns_and_the_definition_s() -> None:
    logits, labels = drawn()
    p = softmax(logits)
    assert binary_brier_score(labels == 1, p[:, 1]) == pytest.approx(brier_score_loss(labels, p[:, 1]))
    assert brier_score(labels, p) == pytest.approx(2 * brier_score_loss(labels, p[:, 1]))
    logits, labels = drawn(classes=4, tiles=50)
    p = softmax(logits)
    slow = sum((p[i, k] - (labels[i] == k)) ** 2 for i in range(50) for k in range(4)) / 50
    assert brier_score(labels, p) == pytest.approx(slow)


def test_soft_vote_brier_is_about_shares_of_seven() -> None:
    votes, scores = [0, 3, 7], [0.1, 0.5, 0.6]
    assert soft_vote_brier(votes, scores) == pytest.approx((0.1**2 + (0.5 - 3 / 7) ** 2 + 0.4**2) / 3)
    assert soft_vote_brier(votes, np.array(votes) / 7) == 0


@pytest.mark.parametrize(("binning", "strategy"), [("width", "uniform"), ("mass", "quantile")])
@pytest.mark.parametrize("bins", [5, 10])
def test_reliability_is_the_curve_of_sklearn_with_counts(binning: str, strategy: str, bins: int) -> None:
    logits, labels = drawn()
    p = softmax(logits)[:, 1]
    rows = reliability_curve(labels == 1, p, bins=bins, binning=binning)
    share, score = calibration_curve(labels, p, n_bins=bins, strategy=strategy)
    assert [row["share"] for row in rows] == pytest.approx(share)
    assert [row["score"] for row in rows] == pytest.approx(score)
    assert sum(row["count"] for row in rows) == 300
    if binning == "mass":
        assert {row["count"] for row in rows} == {300 // bins}
    for row in rows:
        assert row["low"] <= row["score"] <= row["high"]
        assert row["interval"] == metrics.wilson_interval(round(row["share"] * row["count"]), row["count"])


@pytest.mark.parametrize("classes", [2, 5])
def test_ece_is_equation_3_of_guo_et_al(classes: int) -> None:
    logits, labels = drawn(classes=classes, scale=2.0)
    p = softmax(logits)
    slow = 0.0
    for m in range(15):
        inside = [i for i in range(300) if m / 15 < p[i].max() <= (m + 1) / 15]
        if inside:
            accuracy = np.mean([p[i].argmax() == labels[i] for i in inside])
            slow += len(inside) / 300 * abs(accuracy - np.mean([p[i].max() for i in inside]))
    assert expected_calibration_error(labels, p) == pytest.approx(slow)


def test_a_score_on_an_edge_belongs_to_the_lower_bin_and_both_ends_to_a_bin() -> None:
    rows = reliability_curve(np.array([True, False, True, True]), [0.0, 0.5, 0.51, 1.0], bins=2)
    assert [(row["low"], row["high"], row["count"]) for row in rows] == [(0, 0.5, 2), (0.5, 1, 2)]


def test_the_error_by_chance_is_what_calibrated_scores_have() -> None:
    """Labels drawn from the probabilities themselves exceed the quantile in about 5% of the draws."""
    logits, _ = drawn(tiles=200)
    p = softmax(logits)
    mean, most = calibration_error_by_chance(p.max(1))
    rng = np.random.default_rng(5)
    errors = np.array([expected_calibration_error((rng.random(200) < p[:, 1]).astype(int), p) for _ in range(400)])
    assert errors.mean() == pytest.approx(mean, rel=0.05)
    assert 0.02 < (errors > most).mean() < 0.09
    overconfident = softmax(4 * logits)
    labels = (rng.random(200) < p[:, 1]).astype(int)
    assert expected_calibration_error(labels, overconfident) > calibration_error_by_chance(overconfident.max(1))[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"binning": "equal"}, "'width' and 'mass'"),
        ({"bins": 0}, "bins"),
        ({"scores": [0.2, 1.2]}, "within 0 to 1"),
        ({"scores": [0.2, math.nan]}, "within 0 to 1"),
        ({"outcomes": [0, 1]}, "must be bool"),
        ({"scores": [0.2]}, "must be bool"),
    ],
)
def test_impossible_bins_and_scores_are_refused(words: dict, message: str) -> None:
    arguments = {"outcomes": [True, False], "scores": [0.2, 0.8], **words}
    with pytest.raises(ValueError, match=message):
        calibration_error(arguments.pop("outcomes"), arguments.pop("scores"), **arguments)


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
    for t, value in zip(thresholds, net_benefit(truth, p, thresholds=thresholds), strict=True):
        hits, alarms = ((p >= t) & truth).sum(), ((p >= t) & ~truth).sum()
        assert value == pytest.approx(hits / 90 - alarms / 90 * t / (1 - t))
    everyone = net_benefit(truth, np.ones(90), thresholds=[truth.mean()])
    assert everyone == pytest.approx([0], abs=1e-12)  # calling all is worth nothing where the odds are even
    assert net_benefit(np.array([True]), [0.5], thresholds=[0.5]) == pytest.approx([1])  # at the threshold too
    with pytest.raises(ValueError, match="thresholds"):
        net_benefit(truth, p, thresholds=[1.0])


def test_net_benefit_under_weights_is_that_of_the_repeated_tiles() -> None:
    logits, labels = drawn(tiles=40)
    truth, p = labels == 1, softmax(logits)[:, 1]
    weights = np.random.default_rng(0).integers(0, 3, (4, 40))
    found = net_benefit(truth, p, thresholds=[0.3, 0.6], weights=weights.astype(float))
    for row, counts in zip(found, weights, strict=True):
        rows = np.repeat(np.arange(40), counts)
        assert row == pytest.approx(net_benefit(truth[rows], p[rows], thresholds=[0.3, 0.6]))


# --- abstention ---


def test_risk_coverage_is_counted_from_the_surest_tile_on() -> None:
    found = risk_coverage(np.array([True, False, True, True]), [0.9, 0.6, 0.8, 0.7])
    assert found["confidence"] == [0.9, 0.8, 0.7, 0.6]
    assert (found["count"], found["correct"]) == ([1, 2, 3, 4], [1, 2, 3, 3])
    assert found["area"] == found["area_best"] == pytest.approx(1 / 4 / 4)
    assert found["area_random"] == 0.25
    worst = risk_coverage(np.array([True, False, True, True]), [0.6, 0.9, 0.8, 0.7])
    assert worst["area"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_tied_confidences_count_in_their_mean_order() -> None:
    rng = np.random.default_rng(0)
    right, confidence = rng.random(30) < 0.7, rng.integers(3, 6, 30) / 6
    found = risk_coverage(right, confidence)
    areas = []
    for _ in range(4000):
        order = np.lexsort((rng.random(30), -confidence))
        areas.append(((~right[order]).cumsum() / np.arange(1, 31)).mean())
    assert found["area"] == pytest.approx(np.mean(areas), abs=0.004)
    assert found["confidence"] == [5 / 6, 4 / 6, 3 / 6]
    shuffled = rng.permutation(30)
    assert risk_coverage(right[shuffled], confidence[shuffled]) == found


def test_abstention_leaves_out_at_most_its_share() -> None:
    confidence = np.arange(10) / 10
    assert choose_abstention(confidence, share=0.0) == 0.0
    assert choose_abstention(confidence, share=0.3) == 0.3  # 0, 0.1 and 0.2 lie below
    assert choose_abstention(confidence, share=0.39) == 0.3
    assert choose_abstention(np.full(10, 0.5), share=0.9) == 0.5  # all alike: none is left out
    for share in (1.0, -0.1):
        with pytest.raises(ValueError, match="share"):
            choose_abstention(confidence, share=share)


# --- what a checkpoint keeps ---


def test_kept_calibration_is_fitted_on_these_tiles() -> None:
    logits, labels = drawn(tiles=120, scale=4.0)
    kept = fit_calibration(torch.from_numpy(logits), labels, classes=("HP", "SSA"), positive=1)
    assert kept.temperature == pytest.approx(fit_temperature(logits, labels))
    assert kept.ece_before == pytest.approx(expected_calibration_error(labels, softmax(logits)))
    assert kept.ece_after < kept.ece_before
    after = softmax(logits, temperature=kept.temperature)
    assert kept.threshold == pytest.approx(choose_threshold(labels == 1, after[:, 1]))
    assert (kept.positive, kept.tiles) == ("SSA", 120)
    assert (kept.labels.numpy() == labels).all()
    assert kept.logits.numpy() == pytest.approx(logits, rel=1e-6)


def test_tiles_that_do_not_err_leave_the_temperature_at_one_and_say_so() -> None:
    logits, _ = drawn(tiles=30)
    kept = fit_calibration(torch.from_numpy(logits), logits.argmax(1), classes=("HP", "SSA"), positive=1)
    assert kept.temperature == 1
    assert "that of 30 validation tiles would be below 0.05" in kept.method
    wrong = fit_calibration(torch.from_numpy(logits), logits.argmin(1), classes=("HP", "SSA"), positive=1)
    assert wrong.temperature == calibration.TEMPERATURES[1]
    assert "would be above 20: held there" in wrong.method


@pytest.mark.parametrize(("positive", "label"), [(None, None), (1, 0)])
def test_no_threshold_without_a_positive_class_or_tiles_of_it(positive: int | None, label: int | None) -> None:
    logits, labels = drawn(tiles=30)
    labels = labels if label is None else np.full(30, label)
    kept = fit_calibration(torch.from_numpy(logits), labels, classes=("HP", "SSA"), positive=positive)
    assert kept.threshold is None
