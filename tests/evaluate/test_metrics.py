from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from sscl.evaluate import metrics
from sscl.evaluate.metrics import (
    accuracy_by_agreement,
    bootstrap_intervals,
    classification_metrics,
    confusion_matrix,
    wilson_interval,
)

SCALARS = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "average_precision", "mcc")
PER_CLASS = ("precision", "recall", "f1")


def drawn(*, tiles: int, classes: int, seed: int = 0, decimals: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and better-than-chance probabilities; few decimals make many tied scores."""
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(classes), rng.integers(0, classes, tiles - classes)]
    logits = rng.normal(size=(tiles, classes))
    logits[np.arange(tiles), labels] += 1
    scores = np.exp(logits)
    return labels, (scores / scores.sum(axis=1, keepdims=True)).round(decimals)


def sklearn_metrics(labels: np.ndarray, probabilities: np.ndarray, *, positive: int | None) -> dict:
    """Return what scikit-learn says, for tiles where all of it is defined."""
    classes = probabilities.shape[1]
    predictions = probabilities.argmax(axis=1)
    if positive is not None:
        truth, scores = labels == positive, probabilities[:, positive]
    else:
        truth, scores = np.eye(classes)[labels], probabilities
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        labels, predictions, labels=range(classes), zero_division=np.nan
    )
    result = {
        "accuracy": sk.accuracy_score(labels, predictions),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predictions),
        "macro_f1": sk.f1_score(labels, predictions, average="macro"),
        "auroc": sk.roc_auc_score(truth, scores, average="macro"),
        "average_precision": sk.average_precision_score(truth, scores, average="macro"),
        "mcc": sk.matthews_corrcoef(labels, predictions),
        "per_class": [
            {"precision": precision[k], "recall": recall[k], "f1": f1[k], "support": support[k]} for k in range(classes)
        ],
    }
    if positive is not None:
        result["sensitivity"] = sk.recall_score(labels == positive, predictions == positive)
        result["specificity"] = sk.recall_score(labels != positive, predictions != positive)
    return result


def assert_same(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for key in theirs.keys() - {"per_class"}:
        assert ours[key] == pytest.approx(theirs[key], abs=1e-12), key
    for mine, other in zip(ours["per_class"], theirs["per_class"], strict=True):
        assert mine == pytest.approx(other, abs=1e-12)


class TestThePapersMatrix:
    labels = np.repeat([0, 0, 1, 1], [84, 15, 13, 86])
    predictions = np.repeat([0, 1, 0, 1], [84, 15, 13, 86])

    def test_counts(self) -> None:
        assert confusion_matrix(self.labels, self.predictions, num_classes=2).tolist() == [[84, 15], [13, 86]]

    def test_figures(self) -> None:
        result = classification_metrics(self.labels, np.eye(2)[self.predictions], positive=1)
        assert round(100 * result["accuracy"], 2) == 85.86
        hp, ssa = ({key: round(100 * row[key], 2) for key in PER_CLASS} for row in result["per_class"])
        assert hp == {"precision": 86.60, "recall": 84.85, "f1": 85.71}
        assert ssa == {"precision": 85.15, "recall": 86.87, "f1": 86.00}
        assert (result["sensitivity"], result["specificity"]) == (86 / 99, 84 / 99)
        assert [row["support"] for row in result["per_class"]] == [99, 99]

    def test_wilson_interval(self) -> None:
        low, high = wilson_interval(170, 198)
        assert (round(100 * low, 1), round(100 * high, 1)) == (80.3, 90.0)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_scikit_learn(classes: int, seed: int) -> None:
    labels, probabilities = drawn(tiles=300, classes=classes, seed=seed)
    ours = classification_metrics(labels, probabilities, positive=None)
    assert_same(ours, sklearn_metrics(labels, probabilities, positive=None))


@pytest.mark.parametrize("positive", [0, 1])
def test_binary_equal_to_scikit_learn(positive: int) -> None:
    labels, probabilities = drawn(tiles=150, classes=2, seed=3)
    ours = classification_metrics(labels, probabilities, positive=positive)
    assert_same(ours, sklearn_metrics(labels, probabilities, positive=positive))


def test_more_classes_with_a_positive_one_add_its_sensitivity_and_specificity() -> None:
    labels, probabilities = drawn(tiles=200, classes=4)
    with_positive = classification_metrics(labels, probabilities, positive=2)
    predictions = probabilities.argmax(axis=1)
    assert with_positive.pop("sensitivity") == pytest.approx(np.mean(predictions[labels == 2] == 2))
    assert with_positive.pop("specificity") == pytest.approx(np.mean(predictions[labels != 2] != 2))
    assert with_positive == classification_metrics(labels, probabilities, positive=None)


def test_auroc_is_the_share_of_pairs_ranked_right_with_half_for_ties() -> None:
    labels, probabilities = drawn(tiles=60, classes=2)
    scores = probabilities[:, 1]
    pairs = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high in scores[labels == 1]
        for low in scores[labels == 0]
    ]
    assert 0.5 in pairs
    assert classification_metrics(labels, probabilities, positive=1)["auroc"] == pytest.approx(np.mean(pairs))


def test_uninformative_scores_rank_at_chance() -> None:
    labels = np.array([0, 0, 0, 1])
    result = classification_metrics(labels, np.full((4, 2), 0.5), positive=1)
    assert (result["auroc"], result["average_precision"]) == (0.5, 0.25)


class TestUndefined:
    def test_class_absent_from_the_truth(self) -> None:
        labels, probabilities = drawn(tiles=90, classes=5, seed=2)
        labels = np.where(labels == 4, 0, labels)
        result = classification_metrics(labels, probabilities, positive=None)
        assert result["per_class"][4]["recall"] is None
        assert result["per_class"][4]["support"] == 0
        assert result["per_class"][4]["f1"] == 0  # it was predicted, and never rightly
        assert result["auroc"] is None
        assert result["average_precision"] is None
        present = [row["recall"] for row in result["per_class"][:4]]
        assert result["balanced_accuracy"] == pytest.approx(np.mean(present))

    def test_class_neither_true_nor_predicted_leaves_the_macro_f1_alone(self) -> None:
        labels, probabilities = drawn(tiles=50, classes=2)
        padded = np.pad(probabilities, ((0, 0), (0, 1)))
        two = classification_metrics(labels, probabilities, positive=None)
        three = classification_metrics(labels, padded, positive=None)
        assert three["per_class"][2] == {"precision": None, "recall": None, "f1": None, "support": 0}
        assert three["macro_f1"] == two["macro_f1"]
        assert three["balanced_accuracy"] == two["balanced_accuracy"]
        assert three["mcc"] == two["mcc"]

    def test_class_never_predicted_has_no_precision(self) -> None:
        result = classification_metrics([0, 0, 1], [[0.9, 0.1]] * 3, positive=1)
        assert result["per_class"][1] == {"precision": None, "recall": 0.0, "f1": 0.0, "support": 1}
        assert result["mcc"] is None

    def test_one_class_only(self) -> None:
        result = classification_metrics([1, 1], [[0.2, 0.8], [0.6, 0.4]], positive=1)
        assert (result["accuracy"], result["sensitivity"], result["specificity"]) == (0.5, 0.5, None)
        assert result["auroc"] is None
        assert result["average_precision"] is None
        intervals = bootstrap_intervals([1, 1], [[0.2, 0.8], [0.6, 0.4]], positive=1, samples=50)
        assert (intervals["specificity"], intervals["auroc"]) == (None, None)
        assert intervals["accuracy"] == (0.0, 1.0)

    def test_results_are_plain_json(self) -> None:
        labels, probabilities = drawn(tiles=30, classes=3)
        json.dumps(classification_metrics(labels, probabilities, positive=0), allow_nan=False)
        json.dumps(bootstrap_intervals(labels, probabilities, positive=0, samples=20), allow_nan=False)


class TestBootstrap:
    @pytest.mark.parametrize(("classes", "positive"), [(2, 1), (5, None)])
    def test_each_resample_equals_scikit_learn_on_the_same_tiles(self, classes: int, positive: int | None) -> None:
        labels, probabilities = drawn(tiles=120, classes=classes, seed=5)
        assert len(np.unique(probabilities[:, 1])) < 15  # tied scores
        weights = np.concatenate(list(metrics.resamples(labels, samples=8, seed=1)))
        values = metrics._weighted_metrics(labels, probabilities, weights, positive=positive)
        for sample in range(8):
            tiles = np.repeat(np.arange(120), weights[sample].astype(int))
            theirs = sklearn_metrics(labels[tiles], probabilities[tiles], positive=positive)
            for key in theirs.keys() - {"per_class"}:
                assert values[key][sample] == pytest.approx(theirs[key], abs=1e-12), key
            for label, row in enumerate(theirs["per_class"]):
                for key in PER_CLASS:
                    assert values[f"{key} {label}"][sample] == pytest.approx(row[key], abs=1e-12)

    def test_intervals_are_the_quantiles_of_the_resamples(self) -> None:
        labels, probabilities = drawn(tiles=80, classes=2)
        weights = np.concatenate(list(metrics.resamples(labels, samples=60, seed=7)))
        values = []
        for row in weights:
            tiles = np.repeat(np.arange(80), row.astype(int))
            values.append(sklearn_metrics(labels[tiles], probabilities[tiles], positive=1))
        intervals = bootstrap_intervals(labels, probabilities, positive=1, samples=60, seed=7, level=0.8)
        for key in (*SCALARS, "sensitivity", "specificity"):
            assert intervals[key] == pytest.approx(tuple(np.quantile([v[key] for v in values], [0.1, 0.9]))), key
        precision = [v["per_class"][0]["precision"] for v in values]
        assert intervals["per_class"][0]["precision"] == pytest.approx(tuple(np.quantile(precision, [0.1, 0.9])))

    def test_resamples_are_stratified_and_differ(self) -> None:
        labels = np.repeat([0, 1, 2], [1, 2, 40])
        weights = np.concatenate(list(metrics.resamples(labels, samples=300, seed=0)))
        for label, count in enumerate([1, 2, 40]):
            assert (weights[:, labels == label].sum(axis=1) == count).all()
        # Of two tiles each resample draws both (half the time) or one twice (a quarter each).
        pairs = weights[:, labels == 1][:, 0]
        assert 0.4 < np.mean(pairs == 1) < 0.6
        assert 0.15 < np.mean(pairs == 2) < 0.35
        assert len(np.unique(weights, axis=0)) > 290

    def test_classes_are_resampled_independently(self) -> None:
        labels = np.repeat([0, 1], 20)
        weights = np.concatenate(list(metrics.resamples(labels, samples=50, seed=0)))
        assert not np.array_equal(weights[:, :20], weights[:, 20:])

    def test_same_keys_as_the_point_values_which_lie_inside(self) -> None:
        labels, probabilities = drawn(tiles=200, classes=3, decimals=6)
        point = classification_metrics(labels, probabilities, positive=None)
        intervals = bootstrap_intervals(labels, probabilities, positive=None, samples=300)
        assert intervals.keys() == point.keys()
        for key in SCALARS:
            assert intervals[key][0] < point[key] < intervals[key][1]
        for row, interval in zip(point["per_class"], intervals["per_class"], strict=True):
            assert interval["support"] is None
            for key in PER_CLASS:
                assert interval[key][0] < row[key] < interval[key][1]

    def test_depends_on_the_seed_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        labels, probabilities = drawn(tiles=101, classes=3)
        first = bootstrap_intervals(labels, probabilities, positive=None, samples=101, seed=4)
        assert first != bootstrap_intervals(labels, probabilities, positive=None, samples=101, seed=5)
        monkeypatch.setattr(metrics, "_CHUNK_ELEMENTS", 1000)  # many small chunks instead of one
        assert first == bootstrap_intervals(labels, probabilities, positive=None, samples=101, seed=4)

    def test_a_wider_level_gives_wider_intervals(self) -> None:
        labels, probabilities = drawn(tiles=100, classes=2)
        narrow = bootstrap_intervals(labels, probabilities, positive=1, samples=200, level=0.5)["accuracy"]
        wide = bootstrap_intervals(labels, probabilities, positive=1, samples=200, level=0.95)["accuracy"]
        assert wide[0] < narrow[0] < narrow[1] < wide[1]

    def test_covers_the_truth_about_as_often_as_it_says(self) -> None:
        rng = np.random.default_rng(0)
        labels = np.repeat([0, 1], 100)
        covered = 0
        for seed in range(200):
            right = rng.random(200) < 0.8
            predictions = np.where(right, labels, 1 - labels)
            intervals = bootstrap_intervals(labels, np.eye(2)[predictions], positive=1, samples=200, seed=seed)
            low, high = intervals["accuracy"]
            covered += low <= 0.8 <= high
        assert 180 <= covered <= 199

    def test_one_tile_of_a_class_has_an_interval_without_width(self) -> None:
        labels, probabilities = [0, 0, 0, 1], [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.1, 0.9]]
        intervals = bootstrap_intervals(labels, probabilities, positive=1, samples=100)
        assert intervals["sensitivity"] == (1.0, 1.0)
        assert intervals["specificity"][0] < intervals["specificity"][1]

    def test_no_interval_where_many_resamples_leave_the_metric_undefined(self) -> None:
        # The only tile called 1 is left out of about a third of the resamples: no precision there.
        probabilities = [[0.9, 0.1]] * 5 + [[0.1, 0.9]]
        intervals = bootstrap_intervals([0, 0, 0, 1, 1, 1], probabilities, positive=1, samples=200)
        assert intervals["per_class"][1]["precision"] is None
        assert intervals["per_class"][0]["precision"] is not None

    def test_groups_are_drawn_whole(self) -> None:
        labels, probabilities = drawn(tiles=90, classes=2, seed=2)
        groups = [f"slide {i % 9}" for i in range(90)]
        weights = np.concatenate(list(metrics.resamples(labels, groups=groups, samples=60, seed=7)))
        values = []
        for row in weights:
            tiles = np.repeat(np.arange(90), row.astype(int))
            values.append(sklearn_metrics(labels[tiles], probabilities[tiles], positive=1))
        intervals = bootstrap_intervals(labels, probabilities, positive=1, groups=groups, samples=60, seed=7)
        for key in (*SCALARS, "sensitivity", "specificity"):
            assert intervals[key] == pytest.approx(tuple(np.quantile([v[key] for v in values], [0.025, 0.975]))), key

    @pytest.mark.parametrize("options", [{"samples": 0}, {"level": 1.0}, {"level": 0.0}])
    def test_refuses_impossible_options(self, options: dict) -> None:
        with pytest.raises(ValueError, match=next(iter(options))):
            bootstrap_intervals([0, 1], np.eye(2), positive=1, **options)


class TestWilson:
    def test_bounds_solve_the_score_equation(self) -> None:
        # The defining property: the bounds p are where |p_hat - p| = z * sqrt(p (1 - p) / n).
        for successes, total in ((1, 9), (170, 198), (50, 100)):
            for bound in wilson_interval(successes, total):
                distance = abs(successes / total - bound) / np.sqrt(bound * (1 - bound) / total)
                assert distance == pytest.approx(1.959963984540054, rel=1e-9)

    @pytest.mark.parametrize("positive", [None, 0, 1])
    def test_proportions_are_the_metrics_with_their_counts(self, positive: int | None) -> None:
        labels, probabilities = drawn(tiles=80, classes=3, seed=4)
        matrix = confusion_matrix(labels, probabilities.argmax(axis=1), num_classes=3)
        values = classification_metrics(labels, probabilities, positive=positive)
        found = metrics.wilson_proportions(matrix, positive=positive)
        shares = [(found[key], values[key]) for key in found if key != "per_class"]
        assert len(shares) == (1 if positive is None else 3)
        for mine, point in zip(found["per_class"], values["per_class"], strict=True):
            shares += [(mine[key], point[key]) for key in ("precision", "recall")]
        for share, value in shares:
            assert share["value"] == share["count"] / share["of"] == pytest.approx(value)
            assert share["wilson"] == wilson_interval(share["count"], share["of"])

    def test_proportion_of_nothing_is_none(self) -> None:
        found = metrics.wilson_proportions([[3, 0], [0, 0]], positive=1)
        assert found["sensitivity"] is found["per_class"][1]["precision"] is None
        assert found["specificity"] == {"count": 3, "of": 3, "value": 1.0, "wilson": wilson_interval(3, 3)}

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
        assert [(row["agreement"], row["count"], row["correct"]) for row in rows] == [
            ("7/7", 2, 2),
            ("6/7", 2, 1),
            ("5/7", 2, 2),
            ("4/7", 3, 1),
        ]
        assert rows[3]["accuracy"] == pytest.approx(1 / 3)
        assert rows[3]["interval"] == wilson_interval(1, 3)

    def test_agreement_that_no_tile_has(self) -> None:
        rows = accuracy_by_agreement([1], [1], [7])
        assert [row["accuracy"] for row in rows] == [1.0, None, None, None]
        assert rows[1] == {"agreement": "6/7", "count": 0, "correct": 0, "accuracy": None, "interval": None}

    @pytest.mark.parametrize("vote", [8, -1])
    def test_refuses_impossible_votes(self, vote: int) -> None:
        with pytest.raises(ValueError, match=r"votes: .*within 0 to 7"):
            accuracy_by_agreement([1], [1], [vote])

    def test_refuses_unequal_lengths(self) -> None:
        with pytest.raises(ValueError, match="must be equal"):
            accuracy_by_agreement([1, 0], [1, 0], [7])


def test_confusion_matrix_equals_scikit_learn() -> None:
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


def test_figures_of_predicted_classes_equal_the_other_metrics_and_count_weights() -> None:
    labels, probabilities = drawn(tiles=60, classes=4, seed=3)
    predictions = probabilities.argmax(1)
    values = metrics.classification_metrics(labels, probabilities, positive=None)
    assert metrics.figures(labels, predictions)[0] == pytest.approx([values[name] for name in metrics.FIGURES])
    weights = np.random.default_rng(0).integers(0, 4, (3, 60))
    for row, counts in zip(metrics.figures(labels, predictions, weights=weights.astype(float)), weights, strict=True):
        rows = np.repeat(np.arange(60), counts)
        truth, said = labels[rows], predictions[rows]
        expected = [
            sk.accuracy_score(truth, said),
            sk.balanced_accuracy_score(truth, said),
            sk.f1_score(truth, said, average="macro", labels=np.union1d(truth, said)),
        ]
        assert row == pytest.approx(expected)


def test_resamples_of_groups_draw_them_whole() -> None:
    labels = np.random.default_rng(1).integers(0, 3, 60)
    groups = [f"slide {i // 5}" for i in range(60)]
    weights = np.concatenate(list(metrics.resamples(labels, groups=groups, samples=250, seed=0)))
    assert weights.shape == (250, 60)
    assert (weights.reshape(250, 12, 5) == weights.reshape(250, 12, 5)[:, :, :1]).all()  # tiles of a slide go together
    assert (weights.sum(1) == 60).all()
    assert len(np.unique(weights[:, 0])) > 2


@pytest.mark.parametrize("groups", [None, [str(i // 5) for i in range(60)]])
def test_the_same_seed_gives_the_same_resamples_whatever_the_chunks(groups, monkeypatch) -> None:
    labels = np.random.default_rng(1).integers(0, 3, 60)

    def resamples(seed: int) -> np.ndarray:
        return np.concatenate(list(metrics.resamples(labels, groups=groups, samples=50, seed=seed)))

    first = resamples(0)
    monkeypatch.setattr(metrics, "_CHUNK_ELEMENTS", 7 * 60)
    assert (resamples(0) == first).all()
    assert not (resamples(1) == first).all()


def test_few_groups_are_told() -> None:
    assert metrics.few_groups(None) is metrics.few_groups([str(i % 10) for i in range(40)]) is None
    assert metrics.few_groups([str(i % 9) for i in range(40)]).startswith("9 groups (slides, patients or")
    assert metrics.few_groups(["one"] * 40).startswith("1 group (slides, patients or")


def test_one_group_alone_gives_no_interval() -> None:
    labels, scores = np.arange(40) % 2, np.random.default_rng(0).dirichlet((1, 1), 40)
    one = metrics.bootstrap_intervals(labels, scores, positive=1, groups=["slide"] * 40, samples=50)
    two = metrics.bootstrap_intervals(labels, scores, positive=1, groups=["slide"] * 20 + ["other"] * 20, samples=50)
    assert one["accuracy"] is one["auroc"] is one["per_class"][0]["recall"] is None
    assert two["accuracy"] is not None
