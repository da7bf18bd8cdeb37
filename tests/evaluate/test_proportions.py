from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sscl.evaluate.intervals import Sample
from sscl.evaluate.metric_intervals import metric_intervals
from sscl.evaluate.metrics import classification_metrics, confusion_matrix
from sscl.evaluate.proportions import (
    accuracy_by_agreement,
    metric_proportions,
    proportion_interval,
    proportions_among,
)


class TestProportions:
    @pytest.mark.parametrize("positive", [None, 0, 1])
    def test_are_the_metrics_with_their_counts(self, positive: int | None, drawn: Any) -> None:
        labels, probabilities = drawn(tiles=80, classes=3, seed=4)
        matrix = confusion_matrix(labels, probabilities.argmax(axis=1), num_classes=3)
        values = classification_metrics(labels, probabilities, positive=positive)
        intervals = metric_intervals(labels, probabilities, positive=positive)
        found = metric_proportions(matrix, intervals, positive=positive)
        keys = ["accuracy", *(["sensitivity", "specificity"] if positive is not None else [])]
        shares = [(getattr(found, key), getattr(values, key)) for key in keys]
        assert (found.sensitivity is None) == (positive is None)
        for mine, point in zip(found.per_class, values.per_class, strict=True):
            shares += [(getattr(mine, key), getattr(point, key)) for key in ("precision", "recall")]
        for share, value in shares:
            assert share.value == share.count / share.of == pytest.approx(value)
            assert share.interval == pytest.approx(proportion_interval(share.count, share.of))

    def test_of_nothing_is_none(self) -> None:
        intervals = metric_intervals([0] * 3, [[0.9, 0.1]] * 3, positive=1)
        found = metric_proportions([[3, 0], [0, 0]], intervals, positive=1)
        assert found.sensitivity is found.per_class[1].precision is None
        assert (found.specificity.count, found.specificity.of, found.specificity.value) == (3, 3, 1.0)

    def test_among_some_tiles_go_by_their_groups(self) -> None:
        truth = np.arange(120) % 2
        right, among = np.arange(120) % 5 > 0, np.arange(120) < 100
        slides = [str(i // 10) for i in range(120)]
        for groups in (None, slides):
            sample = Sample.of(truth, classes=2, groups=groups)
            found = proportions_among({"x": (right, among), "none": (right, among & ~among)}, sample)
            assert (found["x"].count, found["x"].of, found["none"]) == (80, 100, None)
        assert found["x"].interval[0] < proportion_interval(80, 100)[0]

    @pytest.mark.parametrize(("successes", "total"), [(0, 0), (3, 2), (-1, 2)])
    def test_refuses_impossible_counts(self, successes: int, total: int) -> None:
        with pytest.raises(ValueError, match=f"{successes} of {total}"):
            proportion_interval(successes, total)


class TestAgreement:
    def test_votes_for_and_against_count_alike(self) -> None:
        votes = [7, 0, 6, 1, 5, 2, 4, 3, 4]
        labels = [1, 0, 1, 0, 1, 0, 1, 0, 1]
        predictions = [1, 0, 1, 1, 1, 0, 0, 1, 1]
        rows = accuracy_by_agreement(labels, predictions, votes)
        assert [(row.agreement, row.accuracy.of, row.accuracy.count) for row in rows] == [
            ("7/7", 2, 2),
            ("6/7", 2, 1),
            ("5/7", 2, 2),
            ("4/7", 3, 1),
        ]
        assert rows[3].accuracy.interval == pytest.approx(proportion_interval(1, 3))

    def test_agreement_that_no_tile_has(self) -> None:
        rows = accuracy_by_agreement([1], [1], [7])
        assert [None if row.accuracy is None else row.accuracy.value for row in rows] == [1.0, None, None, None]

    @pytest.mark.parametrize("vote", [8, -1])
    def test_refuses_impossible_votes(self, vote: int) -> None:
        with pytest.raises(ValueError, match=r"votes: .*within 0 to 7"):
            accuracy_by_agreement([1], [1], [vote])

    def test_refuses_unequal_lengths(self) -> None:
        with pytest.raises(ValueError, match="must be equal"):
            accuracy_by_agreement([1, 0], [1, 0], [7])
