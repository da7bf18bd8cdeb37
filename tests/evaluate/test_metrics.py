from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from sscl.evaluate import metrics
from sscl.evaluate.metrics import OF_A_CLASS, Metrics, classification_metrics, confusion_matrix


def assert_same(ours: Metrics, theirs: dict[str, Any]) -> None:
    for key in theirs.keys() - {"per_class"}:
        assert getattr(ours, key) == pytest.approx(theirs[key], abs=1e-12), key
    for mine, other in zip(ours.per_class, theirs["per_class"], strict=True):
        assert mine.model_dump() == pytest.approx(other, abs=1e-12)


class TestThePapersMatrix:
    labels = np.repeat([0, 0, 1, 1], [84, 15, 13, 86])
    predictions = np.repeat([0, 1, 0, 1], [84, 15, 13, 86])

    def test_counts(self) -> None:
        assert confusion_matrix(self.labels, self.predictions, num_classes=2).tolist() == [[84, 15], [13, 86]]

    def test_metrics(self) -> None:
        result = classification_metrics(self.labels, np.eye(2)[self.predictions], positive=1)
        assert round(100 * result.accuracy, 2) == 85.86
        hp, ssa = ({key: round(100 * getattr(row, key), 2) for key in OF_A_CLASS} for row in result.per_class)
        assert hp == {"precision": 86.60, "recall": 84.85, "f1": 85.71}
        assert ssa == {"precision": 85.15, "recall": 86.87, "f1": 86.00}
        assert (result.sensitivity, result.specificity) == (86 / 99, 84 / 99)
        assert [row.support for row in result.per_class] == [99, 99]


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_scikit_learn(classes: int, seed: int, drawn: Any, sklearn_metrics: Any) -> None:
    labels, probabilities = drawn(tiles=300, classes=classes, seed=seed)
    ours = classification_metrics(labels, probabilities, positive=None)
    assert_same(ours, sklearn_metrics(labels, probabilities, positive=None))


@pytest.mark.parametrize("positive", [0, 1])
def test_binary_equal_to_scikit_learn(positive: int, drawn: Any, sklearn_metrics: Any) -> None:
    labels, probabilities = drawn(tiles=150, classes=2, seed=3)
    ours = classification_metrics(labels, probabilities, positive=positive)
    assert_same(ours, sklearn_metrics(labels, probabilities, positive=positive))


def test_more_classes_with_a_positive_one_add_its_sensitivity_and_specificity(drawn: Any) -> None:
    labels, probabilities = drawn(tiles=200, classes=4)
    with_positive = classification_metrics(labels, probabilities, positive=2)
    predictions = probabilities.argmax(axis=1)
    assert with_positive.sensitivity == pytest.approx(np.mean(predictions[labels == 2] == 2))
    assert with_positive.specificity == pytest.approx(np.mean(predictions[labels != 2] != 2))
    without = with_positive.model_copy(update={"sensitivity": None, "specificity": None})
    assert without == classification_metrics(labels, probabilities, positive=None)


def test_auroc_is_the_fraction_of_pairs_ranked_right_with_half_for_ties(drawn: Any) -> None:
    labels, probabilities = drawn(tiles=60, classes=2)
    scores = probabilities[:, 1]
    pairs = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high in scores[labels == 1]
        for low in scores[labels == 0]
    ]
    assert 0.5 in pairs
    assert classification_metrics(labels, probabilities, positive=1).auroc == pytest.approx(np.mean(pairs))


def test_many_small_classes_rank_as_one_at_a_time() -> None:
    """Each of their tiles is compared with all others, where scikit-learn sorts."""
    rng = np.random.default_rng(0)
    truth = np.concatenate([np.arange(150) % 40, np.full(70, 41)])  # class 40 is absent, 41 is not small
    scores = rng.integers(0, 9, (220, 42)) / 10  # with ties
    auroc, average_precision = metrics.one_against_rest(truth, scores)
    assert np.isnan([auroc[40], average_precision[40]]).all()
    for label in set(range(42)) - {40}:
        assert auroc[label] == pytest.approx(sk.roc_auc_score(truth == label, scores[:, label]))
        assert average_precision[label] == pytest.approx(sk.average_precision_score(truth == label, scores[:, label]))


def test_uninformative_scores_rank_at_chance() -> None:
    labels = np.array([0, 0, 0, 1])
    result = classification_metrics(labels, np.full((4, 2), 0.5), positive=1)
    assert (result.auroc, result.average_precision) == (0.5, 0.25)


class TestUndefined:
    def test_class_absent_from_the_truth(self, drawn: Any) -> None:
        labels, probabilities = drawn(tiles=90, classes=5, seed=2)
        labels = np.where(labels == 4, 0, labels)
        result = classification_metrics(labels, probabilities, positive=None)
        assert result.per_class[4].recall is None
        assert result.per_class[4].support == 0
        assert result.per_class[4].f1 == 0  # it was predicted, and never rightly
        assert result.auroc is None
        assert result.average_precision is None
        present = [row.recall for row in result.per_class[:4]]
        assert result.balanced_accuracy == pytest.approx(np.mean(present))

    def test_class_neither_true_nor_predicted_leaves_the_macro_f1_alone(self, drawn: Any) -> None:
        labels, probabilities = drawn(tiles=50, classes=2)
        padded = np.pad(probabilities, ((0, 0), (0, 1)))
        two = classification_metrics(labels, probabilities, positive=None)
        three = classification_metrics(labels, padded, positive=None)
        assert three.per_class[2].model_dump() == {"precision": None, "recall": None, "f1": None, "support": 0}
        assert three.macro_f1 == two.macro_f1
        assert three.balanced_accuracy == two.balanced_accuracy
        assert three.mcc == two.mcc

    def test_class_never_predicted_has_no_precision(self) -> None:
        result = classification_metrics([0, 0, 1], [[0.9, 0.1]] * 3, positive=1)
        assert result.per_class[1].model_dump() == {"precision": None, "recall": 0.0, "f1": 0.0, "support": 1}
        assert result.mcc is None

    def test_one_class_only(self) -> None:
        result = classification_metrics([1, 1], [[0.2, 0.8], [0.6, 0.4]], positive=1)
        assert (result.accuracy, result.sensitivity, result.specificity) == (0.5, 0.5, None)
        assert result.auroc is None
        assert result.average_precision is None


def test_confusion_matrix_equals_scikit_learn(drawn: Any) -> None:
    labels, probabilities = drawn(tiles=100, classes=5)
    predictions = probabilities.argmax(axis=1)
    ours = confusion_matrix(labels, predictions, num_classes=6)
    assert ours.dtype == np.int64
    assert (ours == sk.confusion_matrix(labels, predictions, labels=range(6))).all()


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 1], [[0.5, 0.5]], "2 against 1 tiles"),
        ([0, 2], np.eye(2), "labels: values from 0 to 2, must lie within 0 to 1"),
        ([-1, 0], np.eye(2), "labels: values from -1 to 0"),
        ([0.0, 1.0], np.eye(2), "must be a list of integers"),
        ([0, 1], [[3.0, -2.0], [0.0, 1.0]], "apply softmax"),
        ([0, 1], [[np.nan, 1.0], [0.0, 1.0]], "must be finite"),
        ([], np.zeros((0, 2)), "at least one"),
    ],
)
def test_refuses_bad_input(labels: list, probabilities: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_metrics(labels, probabilities, positive=None)


def test_refuses_a_positive_class_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="positive: 2, must be None or a class index 0 to 1"):
        classification_metrics([0, 1], np.eye(2), positive=2)
