"""Intervals: what they are made of, against other ways to the same number, and how often they hold the truth."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from simulated.coverage import MAIN, Probe, simulated, without_slides
from simulated.regimes import Kind, Regime, Several
from sscl.evaluate import influence
from sscl.evaluate.intervals import (
    ENOUGH_GROUPS,
    FEWEST,
    Sample,
    few_groups,
    fraction_interval,
    group_count,
    metric_interval,
    share_intervals,
    spread,
    wald_interval,
)
from sscl.evaluate.metric_intervals import interval_method, metric_intervals
from sscl.evaluate.metrics import OVERALL, classification_metrics


class TestFractions:
    @pytest.mark.parametrize("tiles", [5, 20, 100])
    def test_holds_whatever_the_truth(self, tiles: int) -> None:
        """Exactly: over all outcomes, at 400 truths. Wilson's covers 83% near 1, Jeffreys's 88%."""
        truth, hits = np.linspace(0.5, 0.9999, 400)[:, None], np.arange(tiles + 1)
        low, high = fraction_interval(hits / tiles, tiles)
        held = (stats.binom.pmf(hits, tiles, truth) * ((low <= truth) & (truth <= high))).sum(1)
        assert held.min() > 0.928
        assert held.mean() < 0.985

    def test_lies_between_clopper_and_pearsons_and_jeffreys(self) -> None:
        for hits, tiles in ((3, 40), (20, 40), (38, 40), (1, 6)):
            (low, high), misses = fraction_interval(hits / tiles, tiles), tiles - hits
            exact = stats.binomtest(hits, tiles).proportion_ci()
            jeffreys = stats.beta.ppf([0.025, 0.975], hits + 0.5, misses + 0.5)
            assert exact.low < low < jeffreys[0]
            assert jeffreys[1] < high < exact.high

    def test_is_no_wider_than_wilsons_by_more_than_a_tenth(self) -> None:
        hits = np.arange(5, 51)
        low, high = fraction_interval(hits / 50, 50)
        wilson = [stats.binomtest(int(k), 50).proportion_ci(method="wilson") for k in hits]
        assert (high - low < 1.1 * np.array([one.high - one.low for one in wilson])).all()

    def test_all_or_none_right_is_not_certainty(self) -> None:
        assert fraction_interval(0, 10) == (0, pytest.approx(0.275, abs=0.005))
        assert fraction_interval(1, 10) == (pytest.approx(0.725, abs=0.005), 1)


def _weighted(labels: Any, probabilities: Any, weights: Any, *, positive: int | None) -> dict[str, float]:
    """The metrics by their definitions, for tiles that count as much as their weights; every class is there."""
    classes, predictions = probabilities.shape[1], probabilities.argmax(1)
    table = np.zeros((classes, classes))
    np.add.at(table, (labels, predictions), weights)
    right, actual, called, total = np.diag(table), table.sum(1), table.sum(0), table.sum()
    spread_of = [total**2 - (of**2).sum() for of in (actual, called)]
    ranks = []
    for label in range(classes) if positive is None else [positive]:
        score, one = probabilities[:, label], labels == label
        won = (score[:, None] > score) + (score[:, None] == score) / 2
        pairs = weights[one] @ won[np.ix_(one, ~one)] @ weights[~one]
        at_least = score >= score[:, None]
        precision = (at_least[:, one] @ weights[one] / (at_least @ weights))[one]
        own = weights[one].sum()
        ranks.append((pairs / own / weights[~one].sum(), weights[one] @ precision / own))
    auroc, average_precision = np.mean(ranks, axis=0)
    return {
        "accuracy": right.sum() / total,
        "balanced_accuracy": (right / actual).mean(),
        "macro_f1": (2 * right / (actual + called)).mean(),
        "mcc": (right.sum() * total - actual @ called) / np.sqrt(np.prod(spread_of)),
        "auroc": auroc,
        "average_precision": average_precision,
    }


class TestInfluence:
    @pytest.mark.parametrize(("classes", "positive"), [(2, 1), (2, None), (4, None)])
    def test_is_the_derivative_of_the_metric_by_the_weight_of_a_tile(
        self, classes: int, positive: int | None, drawn: Any
    ) -> None:
        labels, probabilities = drawn(tiles=300, classes=classes, seed=5)
        sample = Sample.of(labels, classes=classes, groups=None)
        predictions = probabilities.argmax(1)
        found = {
            "accuracy": influence.accuracy(predictions, sample),
            "balanced_accuracy": influence.balanced_accuracy(predictions, sample),
            "macro_f1": influence.macro_f1(predictions, sample),
            "mcc": influence.mcc(predictions, sample),
        }
        ranked = influence.ranking(probabilities, sample, positive=positive)
        assert ranked is not None
        found["auroc"], found["average_precision"] = ranked
        tiles, step = np.arange(0, 300, 7), 1e-5
        at_one = _weighted(labels, probabilities, np.ones(300), positive=positive)
        nearby = [_weighted(labels, probabilities, 1 + step * np.eye(300)[tile], positive=positive) for tile in tiles]
        for key, one in found.items():
            assert one is not None
            scale = 2 if key == "mcc" else 1  # its estimate is of (1 + MCC) / 2
            assert at_one[key] == pytest.approx(scale * one.value - (key == "mcc"))
            moved = (np.array([values[key] for values in nearby]) - at_one[key]) / step
            assert moved == pytest.approx(scale * one.influence[tiles], abs=2e-6), key
            assert one.influence.sum() == pytest.approx(0, abs=1e-9)

    def test_the_variance_of_an_auroc_is_delongs(self) -> None:
        rng = np.random.default_rng(0)
        labels = np.repeat([0, 1], [40, 25])
        scores = rng.normal(size=65) + labels
        above = scores[labels == 1][:, None] > scores[labels == 0]
        delong = above.mean(1).var(ddof=1) / 25 + above.mean(0).var(ddof=1) / 40
        sample = Sample.of(labels, classes=2, groups=None)
        found, _ = influence.ranking(np.column_stack([-scores, scores]), sample, positive=1)
        variance, _ = spread(found, floor=np.zeros(2))
        assert (found.value, variance) == (pytest.approx(above.mean()), pytest.approx(delong))


class TestGroups:
    def test_tiles_alone_in_their_group_are_independent(self, drawn: Any) -> None:
        labels, probabilities = drawn(tiles=80, classes=2)
        alone = [f"slide {i}" for i in range(80)]
        expected = metric_intervals(labels, probabilities, positive=1)
        assert metric_intervals(labels, probabilities, positive=1, groups=alone) == expected

    def test_copies_of_a_tile_tell_no_more_than_the_tile(self, drawn: Any) -> None:
        """Each tile three times, a slide each: about the intervals of the tiles for themselves."""
        labels, probabilities = drawn(tiles=200, classes=2)
        once = metric_intervals(labels, probabilities, positive=1)
        copies, slides = np.tile(labels, 3), np.tile(np.arange(200), 3).astype(str)
        thrice = metric_intervals(copies, np.tile(probabilities, (3, 1)), positive=1, groups=slides)
        for key in (*OVERALL, "sensitivity", "specificity"):
            assert getattr(thrice, key) == pytest.approx(getattr(once, key), abs=0.015), key

    def test_slides_that_err_as_a_whole_widen(self) -> None:
        slides, first = np.repeat(np.arange(12), 10), np.zeros(120, dtype=np.int64)
        even, whole = np.tile(np.arange(10) < 8, 12), slides % 5 > 0
        narrow, wide = (np.diff(share_intervals(hits, first, slides, shares=1), axis=0)[0, 0] for hits in (even, whole))
        assert wide > 2 * narrow

    def test_no_error_in_few_slides_is_not_certainty(self) -> None:
        """Twenty tiles of one slide may all be right together."""
        slides, first = np.repeat(np.arange(8), 20), np.zeros(160, dtype=np.int64)
        low, _ = share_intervals(np.ones(160, dtype=bool), first, slides, shares=1)
        assert 0.6 < low[0] < 0.9
        assert low[0] < fraction_interval(1.0, 160)[0] - 0.1

    def test_too_few_groups_have_no_interval_and_it_is_said(self, drawn: Any) -> None:
        labels, probabilities = drawn(tiles=120, classes=2)
        for groups in (1, FEWEST - 1, FEWEST, ENOUGH_GROUPS - 1, ENOUGH_GROUPS):
            slides = (np.arange(120) % groups).astype(str)
            found = metric_intervals(labels, probabilities, positive=1, groups=slides)
            said = few_groups(group_count(slides))
            assert (found.accuracy is None) == (groups < FEWEST)
            assert (said is None) == (groups >= ENOUGH_GROUPS)
            assert f"{groups} group" in interval_method(slides)
        assert few_groups(None) is None

    def test_tiles_alone_in_their_group_are_neither_few_nor_grouped_in_words(self) -> None:
        alone = [str(i) for i in range(4)]
        assert few_groups(group_count(alone)) is None
        assert "of its own" in interval_method(alone)

    def test_many_groups_and_classes_need_little_memory(self) -> None:
        """A table of 20,000 groups by 1,000 classes would take 160 MB."""
        rng = np.random.default_rng(0)
        labels, groups = rng.integers(0, 1000, 20_100), np.r_[np.arange(20_000), np.arange(100)].astype(str)
        tracemalloc.start()
        sample = Sample.of(labels, classes=1000, groups=groups)
        for estimate in influence.LABEL_METRICS:
            assert metric_interval(estimate(np.roll(labels, 1), sample)) is not None
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 30e6

    def test_too_few_tiles_of_a_class_have_no_interval(self) -> None:
        rng = np.random.default_rng(0)
        labels = np.repeat([0, 1], [50, 2])
        scores = rng.random(52)
        found = metric_intervals(labels, np.column_stack([1 - scores, scores]), positive=1)
        assert found.balanced_accuracy is found.auroc is None
        assert found.accuracy is not None
        assert found.sensitivity is not None


def test_a_class_that_is_only_predicted_keeps_the_interval_of_macro_f1() -> None:
    labels = np.arange(200) % 2
    for groups in (None, (np.arange(200) // 5).astype(str)):
        sample, ends = Sample.of(labels, classes=3, groups=groups), []
        for stray in (0, 1, 20):
            predictions = np.where(np.arange(200) % 7 == 0, 1 - labels, labels)
            predictions[:stray] = 2
            ends.append(metric_interval(influence.macro_f1(predictions, sample)))
        none, one, many = ends
        assert one is None  # whether the class counts at all hangs on one tile
        assert none[1] - none[0] < 0.2
        assert many[0] < f1_score(labels, predictions, average="macro") < many[1]
        assert many[1] - many[0] < 0.2


def test_every_metric_lies_in_its_interval(drawn: Any) -> None:
    for classes, positive in ((2, 0), (2, 1), (5, None)):
        labels, probabilities = drawn(tiles=120, classes=classes, seed=5)
        values = classification_metrics(labels, probabilities, positive=positive)
        found = metric_intervals(labels, probabilities, positive=positive)
        pairs = [(getattr(values, key), getattr(found, key)) for key in OVERALL]
        pairs += [
            (getattr(a, key), getattr(b, key))
            for a, b in zip(values.per_class, found.per_class, strict=True)
            for key in ("precision", "recall", "f1")
        ]
        for value, ends in pairs:
            assert ends[0] <= value <= ends[1]
            assert ends[0] < ends[1]


def test_equal_scores_have_an_auroc_of_a_half_on_any_tiles() -> None:
    assert metric_intervals(np.arange(40) % 2, np.full((40, 2), 0.5), positive=1).auroc == (0.5, 0.5)


def test_an_absent_class_leaves_undefined_what_is() -> None:
    found = metric_intervals([1] * 8, [[0.2, 0.8]] * 8, positive=1)
    assert (found.specificity, found.auroc, found.mcc) == (None, None, None)
    assert found.sensitivity is not None


class TestDifferences:
    def test_of_a_classifier_and_itself_has_a_width(self) -> None:
        """No tile differs, yet on other tiles some may: 1.96 / N on either side."""
        labels = np.arange(100) % 2
        estimate = influence.accuracy(labels, Sample.of(labels, classes=2, groups=None))
        assert wald_interval(influence.difference(estimate, estimate)) == pytest.approx((-0.0198, 0.0198), abs=5e-4)

    def test_is_that_of_students_test_of_paired_losses(self) -> None:
        rng = np.random.default_rng(0)
        ours, theirs = rng.exponential(size=(2, 40))
        sample = Sample.of(np.zeros(40, dtype=np.int64), classes=1, groups=None)
        found = influence.difference(*(influence.mean_of_tiles(values, sample) for values in (ours, theirs)))
        expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        assert wald_interval(found) == pytest.approx((expected.low, expected.high))

    def test_other_draws_widen(self) -> None:
        labels = np.arange(100) % 2
        estimate = influence.accuracy(labels ^ (np.arange(100) % 7 == 0), Sample.of(labels, classes=2, groups=None))
        alone, drawn = metric_interval(estimate), metric_interval(estimate, draws=(0.03**2, 2))
        assert drawn[0] < alone[0] < alone[1] < drawn[1]


@pytest.mark.parametrize(
    "kind",
    [
        Regime("", 50, sensitivity=0.95, specificity=0.95),
        Regime("", 100, prevalence=0.1, sensitivity=0.7, sd=2),
        Regime("", 100, 12, fixed=True),
        Regime("", 200, 15, 0.3, True, 10.0),
        Several("", 90, prevalences=(0.6, 0.25, 0.15)),
    ],
)
def test_simulated_sets_hold_the_truth(kind: Kind) -> None:
    """The small form of scripts/coverage."""
    found = simulated(kind, 50, 2)
    assert len(found) >= 14
    for key, one in found.items():
        assert one.held > 0.85 or not one.given, key


def test_intervals_fail_where_slides_are_not_known() -> None:
    """As the caveat says."""
    found = without_slides(Regime("", 200, 10, sensitivity=0.73, specificity=0.73, fixed=True), 50, 2)
    assert all(found[key].held < 0.75 for key in MAIN)


def test_intervals_over_two_draws_of_labels_hold() -> None:
    """Pooled degrees of freedom held in 89%."""
    found = Probe(Regime("", 200), 2, 0.2).coverage(100, 2)
    assert all(one.held >= 0.9 for one in found.values())
