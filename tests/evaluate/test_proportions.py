from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from sscl.evaluate.metrics import classification_metrics, confusion_matrix
from sscl.evaluate.proportions import accuracy_by_agreement, wilson_interval, wilson_proportions


class TestWilson:
    def test_bounds_solve_the_score_equation(self) -> None:
        # The defining property: the bounds p are where |p_hat - p| = z * sqrt(p (1 - p) / n).
        for successes, total in ((1, 9), (170, 198), (50, 100)):
            for bound in wilson_interval(successes, total):
                distance = abs(successes / total - bound) / np.sqrt(bound * (1 - bound) / total)
                assert distance == pytest.approx(norm.ppf(0.975), rel=1e-9)

    @pytest.mark.parametrize("positive", [None, 0, 1])
    def test_proportions_are_the_metrics_with_their_counts(self, positive: int | None, drawn: Any) -> None:
        labels, probabilities = drawn(tiles=80, classes=3, seed=4)
        matrix = confusion_matrix(labels, probabilities.argmax(axis=1), num_classes=3)
        values = classification_metrics(labels, probabilities, positive=positive)
        found = wilson_proportions(matrix, positive=positive)
        keys = ["accuracy", *(["sensitivity", "specificity"] if positive is not None else [])]
        shares = [(getattr(found, key), getattr(values, key)) for key in keys]
        assert (found.sensitivity is None) == (positive is None)
        for mine, point in zip(found.per_class, values.per_class, strict=True):
            shares += [(getattr(mine, key), getattr(point, key)) for key in ("precision", "recall")]
        for share, value in shares:
            assert share.value == share.count / share.of == pytest.approx(value)
            assert share.wilson == wilson_interval(share.count, share.of)

    def test_proportion_of_nothing_is_none(self) -> None:
        found = wilson_proportions([[3, 0], [0, 0]], positive=1)
        assert found.sensitivity is found.per_class[1].precision is None
        assert found.specificity.model_dump() == {
            **{"count": 3, "of": 3, "value": 1.0},
            "wilson": wilson_interval(3, 3),
        }

    def test_all_or_none_right_is_not_certainty(self) -> None:
        assert wilson_interval(0, 10) == (0.0, pytest.approx(0.27753, abs=1e-5))
        assert wilson_interval(10, 10) == (pytest.approx(0.72247, abs=1e-5), 1.0)

    @pytest.mark.parametrize(("successes", "total"), [(0, 0), (3, 2), (-1, 2)])
    def test_refuses_impossible_counts(self, successes: int, total: int) -> None:
        with pytest.raises(ValueError, match=f"{successes} of {total}"):
            wilson_interval(successes, total)


class TestAgreement:
    def test_votes_for_and_against_count_alike(self) -> None:
        votes = [7, 0, 6, 1, 5, 2, 4, 3, 4]
        labels = [1, 0, 1, 0, 1, 0, 1, 0, 1]
        predictions = [1, 0, 1, 1, 1, 0, 0, 1, 1]
        rows = accuracy_by_agreement(labels, predictions, votes)
        assert [(row.agreement, row.count, row.correct) for row in rows] == [
            ("7/7", 2, 2),
            ("6/7", 2, 1),
            ("5/7", 2, 2),
            ("4/7", 3, 1),
        ]
        assert rows[3].accuracy == pytest.approx(1 / 3)
        assert rows[3].interval == wilson_interval(1, 3)

    def test_agreement_that_no_tile_has(self) -> None:
        rows = accuracy_by_agreement([1], [1], [7])
        assert [row.accuracy for row in rows] == [1.0, None, None, None]
        assert rows[1].model_dump() == {
            "agreement": "6/7",
            "count": 0,
            "correct": 0,
            "accuracy": None,
            "interval": None,
        }

    @pytest.mark.parametrize("vote", [8, -1])
    def test_refuses_impossible_votes(self, vote: int) -> None:
        with pytest.raises(ValueError, match=r"votes: .*within 0 to 7"):
            accuracy_by_agreement([1], [1], [vote])

    def test_refuses_unequal_lengths(self) -> None:
        with pytest.raises(ValueError, match="must be equal"):
            accuracy_by_agreement([1, 0], [1, 0], [7])
