"""Calibration against scikit-learn, slow loops and truths known by construction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from sscl.evaluate import calibration
from sscl.evaluate.calibration import (
    binary_brier_score,
    brier_score,
    calibration_error,
    calibration_error_by_chance,
    expected_calibration_error,
    fit_calibration,
    fit_temperature,
    reliability_curve,
    soft_vote_brier,
    softmax,
)
from sscl.evaluate.decisions import choose_threshold
from sscl.evaluate.intervals import Sample
from sscl.evaluate.proportions import proportion_interval


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


def test_soft_vote_brier_is_about_fractions_of_seven() -> None:
    votes, scores = [0, 3, 7], [0.1, 0.5, 0.6]
    assert soft_vote_brier(votes, scores) == pytest.approx((0.1**2 + (0.5 - 3 / 7) ** 2 + 0.4**2) / 3)
    assert soft_vote_brier(votes, np.array(votes) / 7) == 0


@pytest.mark.parametrize("bins", [5, 10])
def test_reliability_is_the_curve_of_sklearn_with_counts(bins: int) -> None:
    logits, labels = drawn()
    p = softmax(logits)[:, 1]
    rows = reliability_curve(labels == 1, p, bins=bins)
    share, score = calibration_curve(labels, p, n_bins=bins)
    assert [row.frequency for row in rows] == pytest.approx(share)
    assert [row.score for row in rows] == pytest.approx(score)
    assert sum(row.count for row in rows) == 300
    for row in rows:
        assert row.low <= row.score <= row.high
        assert row.interval == proportion_interval(round(row.frequency * row.count), row.count)


def test_the_error_of_bins_of_equal_mass_is_the_mean_gap_of_sklearns_curve() -> None:
    logits, labels = drawn()
    p = softmax(logits)[:, 1]
    share, score = calibration_curve(labels, p, n_bins=15, strategy="quantile")  # 20 of the 300 tiles in each
    assert calibration_error(labels == 1, p, equal_mass=True) == pytest.approx(np.abs(share - score).mean())


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
    assert [(row.low, row.high, row.count) for row in rows] == [(0, 0.5, 2), (0.5, 1, 2)]


def test_the_error_by_chance_is_what_calibrated_scores_have() -> None:
    """Labels drawn from the probabilities themselves exceed the quantile in about 5% of the draws."""
    logits, _ = drawn(tiles=200)
    p = softmax(logits)
    by_chance = calibration_error_by_chance(p.max(1))
    mean, most = by_chance.mean(), np.quantile(by_chance, 0.95)
    rng = np.random.default_rng(5)
    errors = np.array([expected_calibration_error((rng.random(200) < p[:, 1]).astype(int), p) for _ in range(400)])
    assert errors.mean() == pytest.approx(mean, rel=0.05)
    assert 0.02 < (errors > most).mean() < 0.09
    overconfident = softmax(4 * logits)
    labels = (rng.random(200) < p[:, 1]).astype(int)
    assert expected_calibration_error(labels, overconfident) > calibration_error_by_chance(overconfident.max(1))[-1]
    assert np.median(calibration_error_by_chance(p.max(1), gap=0.1)) > most
    assert calibration_error_by_chance(p.max(1), worth=50).mean() > 1.5 * mean


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"scores": [0.2, 1.2]}, "within 0 to 1"),
        ({"scores": [0.2, math.nan]}, "within 0 to 1"),
        ({"outcomes": [0, 1]}, "must be bool"),
        ({"scores": [0.2]}, "must be bool"),
    ],
)
def test_impossible_outcomes_and_scores_are_refused(words: dict, message: str) -> None:
    arguments = {"outcomes": [True, False], "scores": [0.2, 0.8], **words}
    with pytest.raises(ValueError, match=message):
        calibration_error(arguments.pop("outcomes"), arguments.pop("scores"), **arguments)


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
    assert all(word in kept.method for word in ("left at 1", "30 validation tiles", "0.05"))
    wrong = fit_calibration(torch.from_numpy(logits), logits.argmin(1), classes=("HP", "SSA"), positive=1)
    assert wrong.temperature == calibration.TEMPERATURES[1]
    assert "limited to 20" in wrong.method


@pytest.mark.parametrize(("positive", "label"), [(None, None), (1, 0)])
def test_no_threshold_without_a_positive_class_or_tiles_of_it(positive: int | None, label: int | None) -> None:
    logits, labels = drawn(tiles=30)
    labels = labels if label is None else np.full(30, label)
    kept = fit_calibration(torch.from_numpy(logits), labels, classes=("HP", "SSA"), positive=positive)
    assert kept.threshold is None


class TestWhatSoManyTilesShow:
    """Tiles whose true probabilities are known."""

    @staticmethod
    def drawn(count: int, seed: int, *, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Labels drawn from probabilities of class 1 that are then shifted down."""
        rng = np.random.default_rng(seed)
        p = rng.uniform(0.15, 0.85, count)
        labels = (rng.random(count) < p).astype(np.int64)
        return labels, np.stack([1 - p + shift, p - shift], axis=1)

    def test_a_class_called_too_rarely_everywhere_is_named(self) -> None:
        labels, p = self.drawn(2000, 0, shift=0.12)
        under, over = sorted(calibration.miscalled_classes(labels, p), key=lambda of: not of.under)
        assert (under.index, under.under) == (1, True)
        assert (over.index, over.under) == (0, False)
        assert under.frequency == pytest.approx(np.mean(labels))
        assert under.score == pytest.approx(p[:, 1].mean())

    def test_a_probability_on_an_edge_is_of_the_lower_bin_as_in_the_curve(self) -> None:
        """At 0.5 the class is called too often, so its probability is not too low in every bin."""
        score, share = np.array([0.15, 0.25, 0.35, 0.5, 0.55]), np.array([0.4, 0.5, 0.6, 0.4, 0.9])
        labels = (np.arange(40)[:, None] < 40 * share).astype(np.int64).ravel()
        p = np.tile(score, 40)
        curve = calibration.reliability_curve(labels == 1, p)
        assert [row.frequency > row.score for row in curve] == [True, True, True, False, True]
        assert 1 not in [of.index for of in calibration.miscalled_classes(labels, np.column_stack([1 - p, p]))]

    def test_slides_that_are_called_alike_are_no_evidence(self) -> None:
        """Forty copies of forty tiles: the gap of forty tiles may be chance, however often they are shown."""
        score = np.repeat([0.35, 0.45, 0.55, 0.65], 10)
        labels, p = (np.tile(np.arange(10), 4) < 10 * score + 0.4).astype(np.int64), np.column_stack([1 - score, score])
        copies, many = np.repeat(labels, 40), np.repeat(p, 40, axis=0)
        sample = Sample.of(copies, classes=2, groups=np.repeat(np.arange(40), 40).astype(str))
        assert len(calibration.miscalled_classes(copies, many)) == 2
        assert calibration.miscalled_classes(copies, many, sample=sample) == ()
        (low, high), wide = (
            calibration.reliability_curve(copies == 1, many[:, 1], bins=3, sample=of)[0].interval
            for of in (None, sample)
        )
        assert wide[1] - wide[0] > 2 * (high - low)

    def test_calibrated_classes_are_not_named(self) -> None:
        assert sum(len(calibration.miscalled_classes(*self.drawn(300, seed))) for seed in range(20)) <= 2
        assert calibration.miscalled_classes(*self.drawn(5, 0, shift=0.1)) == ()
