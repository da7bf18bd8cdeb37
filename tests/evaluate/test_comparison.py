"""Metrics of several runs: against scikit-learn, against `metric_intervals`, and by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from sscl import run
from sscl.evaluate.comparison import (
    EQUAL,
    INCONCLUSIVE,
    METRICS,
    UNDETERMINED,
    Comparison,
    RowFacts,
    RunFacts,
    build,
    holm,
    mcnemar,
    run_estimates,
    side_by_side,
    verdict,
)
from sscl.evaluate.comparison_tables import NAMES, comparison_tables
from sscl.evaluate.intervals import Sample
from sscl.evaluate.metric_intervals import metric_intervals
from sscl.evaluate.metrics import OF_LABELS
from sscl.evaluate.predictions import TilePredictions

CLASSES = ("adipose", "mucus", "stroma")


def made(seed: int, *, count: int = 60, groups: bool = False, labels: Any = None) -> tuple[TilePredictions, np.ndarray]:
    """Random predictions, and the probabilities (N, K) behind them."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(9).integers(0, 3, count) if labels is None else labels
    logits = rng.normal(size=(count, 3)) + 1.2 * np.eye(3)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = TilePredictions(
        ids=tuple(map(str, range(count))),
        classes=CLASSES,
        labels=truth,
        predictions=probabilities.argmax(1),
        probabilities=probabilities,
        losses=-np.log(probabilities[np.arange(count), truth]),
        groups=tuple(f"slide {i // 5}" for i in range(count)) if groups else None,
    )
    return found, probabilities


def by_hand(found: TilePredictions, rows: Any) -> list[float]:
    """The four metrics of the tiles at `rows`, with scikit-learn."""
    truth, predicted = found.labels[rows], found.predictions[rows]
    return [
        float(found.losses[rows].mean()),
        sk.accuracy_score(truth, predicted),
        sk.balanced_accuracy_score(truth, predicted),
        sk.f1_score(truth, predicted, average="macro"),
    ]


def test_run_metrics_are_those_of_sklearn() -> None:
    found, probabilities = made(0)
    expected = by_hand(found, np.arange(60))
    assert expected[0] == pytest.approx(sk.log_loss(found.labels, probabilities))
    sample = Sample.of(found.labels, classes=3, groups=None)
    assert [one.value for one in run_estimates(found, sample)] == pytest.approx(expected)
    assert list(METRICS) == ["loss", "accuracy", "balanced_accuracy", "macro_f1"]


def test_intervals_of_a_run_are_those_of_metrics() -> None:
    """One method in the whole program: eval and compare say the same of one run."""
    found, probabilities = made(2)
    theirs = metric_intervals(found.labels, probabilities, positive=None)
    ours = side_by_side({"a": [found]}, against={}).rows["a"].runs[0].intervals
    for metric in OF_LABELS:
        assert ours[metric] == getattr(theirs, metric)
    assert ours["loss"] is None


def test_mean_sd_and_paired_differences_by_hand() -> None:
    ours, theirs = [made(seed)[0] for seed in (1, 2, 3)], [made(seed)[0] for seed in (4, 5, 6)]
    result = side_by_side({"ours": ours, "theirs": theirs}, against={"ours": "theirs"})
    everything = np.arange(60)
    a, b = (np.array([by_hand(run, everything) for run in runs]) for runs in (ours, theirs))
    row, difference = result.rows["ours"], result.differences["ours"]
    for column, metric in enumerate(METRICS):
        assert row.mean[metric] == pytest.approx(a[:, column].mean())
        assert row.sd[metric] == pytest.approx(a[:, column].std(ddof=1))
        assert [run.metrics[metric] for run in row.runs] == pytest.approx(a[:, column])
        assert difference.by_seed[metric] == pytest.approx(a[:, column] - b[:, column])
        assert difference.mean[metric] == pytest.approx((a - b)[:, column].mean())
        assert difference.sd[metric] == pytest.approx((a - b)[:, column].std(ddof=1))

    # The interval of the accuracy: of the mean difference of each tile, and one tile more on either side.
    right = [np.mean([run.predictions == run.labels for run in runs], axis=0) for runs in (ours, theirs)]
    gains = right[0] - right[1]
    half = stats.t.ppf(0.975, 59) * np.sqrt(gains.var(ddof=1) / 60 + 1 / 60**2)
    assert difference.intervals["accuracy"] == pytest.approx((gains.mean() - half, gains.mean() + half))


def report_of(rows: Any, *, against: Any = None, seeds: Any = ()) -> Comparison:
    """Return the comparison of rows, their runs numbered by the seeds."""
    numbers = seeds or [0]
    facts = [
        (
            RowFacts(name=name, entry=name, fraction=None, labelled_tiles=None, published={}),
            [RunFacts(seed=seed, folder=name, epoch=1) for seed in numbers],
        )
        for name in rows
    ]
    return build(
        rows,
        facts=facts,
        against=against or {},
        seeds=seeds,
        split="test",
        caveats=(),
        environment=run.environment(),
    )


def test_each_run_has_its_own_metrics_and_intervals_also_in_the_table() -> None:
    runs = [made(seed)[0] for seed in (1, 2)]
    together = side_by_side({"a": runs}, against={}).rows["a"]
    for each, one in zip(runs, together.runs, strict=True):
        (alone,) = side_by_side({"a": [each]}, against={}).rows["a"].runs
        assert one == alone
    first, second = together.runs
    assert first.intervals["accuracy"] != second.intervals["accuracy"]

    report = report_of({"a": runs}, seeds=[7, 8])
    by_seed = next(table.lines for table in comparison_tables(report) if table.title.startswith("by seed"))
    for line, one in zip(by_seed[1:], report.rows[0].runs, strict=True):
        low, high = one.intervals["accuracy"]
        shown = f"{one.metrics['accuracy']:.4f} ({low:.4f} to {high:.4f})"
        assert (line[:2], line[3]) == (["a", str(one.seed)], shown)


def test_a_p_value_of_many_zeros_is_not_shown_as_none() -> None:
    right = right_on([1] * 40)
    report = report_of({"a": [right_on([0] * 40)], "b": [right], "c": [right]}, against={"b": "a", "c": "a"})
    assert comparison_tables(report)[-1].lines[1][-4:] == ["40", "0", "1.8e-12", "3.6e-12"]


def test_pairing_narrows_the_interval_and_equal_rows_differ_by_nothing() -> None:
    found, _ = made(3, count=200)
    better = replace(found, **{"predictions": np.where(np.arange(200) % 20 == 0, found.labels, found.predictions)})
    result = side_by_side({"a": [found], "same": [found], "better": [better]}, against={"same": "a", "better": "a"})
    same, gain = (result.differences[name].intervals["accuracy"] for name in ("same", "better"))
    alone = result.rows["better"].runs[0].intervals["accuracy"]
    assert same[0] == -same[1]
    assert 0 < same[1] < 0.011  # about two tiles of 200
    assert -0.005 < gain[0] <= result.differences["better"].mean["accuracy"] <= gain[1]
    assert gain[1] - gain[0] < 0.5 * (alone[1] - alone[0])
    assert result.rows["a"].sd["accuracy"] is None


def test_slides_that_err_as_a_whole_widen() -> None:
    """A fifth of the tiles is wrong: one of five in each slide, or all of a fifth of the slides."""
    found, _ = made(4, groups=True)
    widths = []
    for wrong in (np.arange(60) % 5 == 0, np.arange(60) // 5 % 5 == 0):
        calls = replace(found, **{"predictions": np.where(wrong, (found.labels + 1) % 3, found.labels)})
        low, high = side_by_side({"a": [calls]}, against={}).rows["a"].runs[0].intervals["accuracy"]
        widths.append(high - low)
    assert widths[1] > 1.8 * widths[0]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"ids": tuple(f"x{i}" for i in range(58)) + ("0", "1")}, "other tiles (60 and 60, 2 of them in both)"),
        (
            {"ids": tuple(str(59 - i) for i in range(60))},
            "other tiles (60 and 60, 60 of them in both, in another order)",
        ),
        ({"classes": ("a", "b", "c")}, "other classes (a, b, c and adipose, mucus, stroma)"),
        ({"labels": np.r_[1 - made(0)[0].labels[:1] % 2, made(0)[0].labels[1:]]}, "other labels (of 1 of 60 tiles)"),
        ({"groups": ("s",) * 60}, "other groups of the same tiles"),
    ],
)
def test_other_tiles_are_refused(change: dict[str, Any], why: str) -> None:
    a = made(0)[0]
    wrong = replace(a, **{**change})
    with pytest.raises(ValueError) as error:
        side_by_side({"first": [a], "second": [wrong]}, against={})
    assert str(error.value).startswith(f"second and first: evaluated on {why}")


def test_rows_of_other_lengths_are_refused() -> None:
    a = made(0)[0]
    with pytest.raises(ValueError, match="second: 2 runs, other rows have 1"):
        side_by_side({"first": [a], "second": [a, a]}, against={})


def right_on(right: Any) -> TilePredictions:
    """TilePredictions of tiles of one class, right where `right` says."""
    wrong = 1 - np.asarray(right, dtype=np.int64)
    count = len(wrong)
    labels = np.zeros(count, np.int64)
    return TilePredictions(tuple(map(str, range(count))), CLASSES, labels, wrong, np.eye(3)[wrong], np.ones(count))


@pytest.mark.parametrize(
    ("both", "ours", "theirs", "neither"),
    [(5, 0, 0, 1), (0, 1, 0, 0), (9, 5, 5, 2), (9, 12, 3, 0), (0, 3, 12, 4), (100, 40, 25, 3), (1000, 900, 1050, 50)],
)
def test_mcnemar_is_the_binomial_test_of_the_discordant_tiles(both: int, ours: int, theirs: int, neither: int) -> None:
    a = right_on([1] * both + [1] * ours + [0] * theirs + [0] * neither)
    b = right_on([1] * both + [0] * ours + [1] * theirs + [0] * neither)
    (test,) = side_by_side({"a": [a], "b": [b]}, against={"a": "b"}).differences["a"].mcnemar
    found = mcnemar([1] * ours + [-1] * theirs + [0] * both)
    # What statsmodels does with exact=True.
    assert found == pytest.approx(min(1, 2 * stats.binom.cdf(min(ours, theirs), ours + theirs, 0.5)), rel=1e-9)
    assert (test.only_row, test.only_reference, test.p) == (ours, theirs, found)
    assert mcnemar([1] * theirs + [-1] * ours) == pytest.approx(found, rel=1e-12)


def test_a_published_mcnemar_value() -> None:
    """Fagerland, Lydersen & Laake 2013: airway hyper-responsiveness, 7 against 1 discordant pairs, exact p 0.070."""
    assert mcnemar([1] * 7 + [-1]) == pytest.approx(0.0703125)


@pytest.mark.parametrize("net", [[5, 3, 2, -1], [4, -4, 1], [3, 3, 3, 0, 3, 3, 3], [-7, 2, 2, 1, 1, -1, 3], [0, 0]])
def test_slides_change_sign_as_a_whole(net: list[int]) -> None:
    signs = np.array(list(itertools.product((-1, 1), repeat=len(net))))
    expected = (np.abs(signs @ np.abs(net)) >= abs(sum(net))).mean()
    assert mcnemar(net) == pytest.approx(expected)


def test_many_slides_change_sign_as_in_scipys_permutation_test() -> None:
    """Against scipy's own draws of signs, for more slides than can be tried one by one."""
    net = np.random.default_rng(2).integers(-6, 9, 30)
    found = stats.permutation_test((net,), np.sum, permutation_type="samples", n_resamples=20_000, rng=0)
    assert mcnemar(net) == pytest.approx(found.pvalue, abs=0.012)


def test_equal_classifiers_rarely_have_a_small_p_on_slides() -> None:
    rng = np.random.default_rng(0)
    found = [mcnemar(np.round(4 * rng.standard_normal(12)).astype(int)) for _ in range(600)]
    assert np.mean(np.array(found) <= 0.05) <= 0.065


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_verdict_names_the_better_one_only_where_the_interval_leaves_zero_out() -> None:
    def said(low: float, high: float, metric: str = "accuracy") -> str:
        return verdict((low, high), metric=metric, row="new", reference="old")

    assert said(-0.02, 0.04) == said(0, 0.05) == said(-0.05, 0) == said(0, 0) == EQUAL
    assert said(0, 0.06) == said(-0.06, 0) == said(-0.1, 0.2) == said(-0.2, 0) == said(-1, 1, "loss") == INCONCLUSIVE
    assert said(0.01, 0.2) == said(-0.2, -0.01, "loss") == "new is better"
    assert said(-0.2, -0.01) == said(0.01, 0.2, "loss") == "old is better"
    assert verdict(None, metric="accuracy", row="new", reference="old") == UNDETERMINED


@pytest.mark.parametrize(("size", "words"), [(60, UNDETERMINED), (20, UNDETERMINED), (5, "sure is better")])
def test_too_few_slides_give_no_verdict(size: int, words: str) -> None:
    """One slide tells nothing of others, however many tiles it has."""
    run = made(1)[0]
    groups = tuple(str(i // size) for i in range(60))
    rows = {
        "a": [replace(run, groups=groups)],
        "sure": [replace(run, groups=groups, predictions=run.labels, losses=run.losses / 9)],
    }
    assert set(side_by_side(rows, against={"sure": "a"}).differences["sure"].verdicts.values()) == {words}


def test_differences_come_with_verdicts_and_tests_of_each_seed() -> None:
    rows = {name: [made(seed)[0] for seed in seeds] for name, seeds in (("a", (1, 2)), ("b", (3, 4)), ("c", (5, 6)))}
    rows["sure"] = [replace(run, **{"predictions": run.labels, "losses": run.losses / 9}) for run in rows["a"]]
    result = side_by_side(rows, against=dict.fromkeys(("b", "c", "sure"), "a")).differences
    for name, one in result.items():
        for metric, (low, high) in one.intervals.items():
            assert (one.verdicts[metric] in (EQUAL, INCONCLUSIVE)) == (low <= 0 <= high), (name, metric)
        assert len(one.mcnemar) == 2
        for test, ours, theirs in zip(one.mcnemar, rows[name], rows["a"], strict=True):
            right, theirs_right = ours.predictions == ours.labels, theirs.predictions == theirs.labels
            first, second = int((right & ~theirs_right).sum()), int((theirs_right & ~right).sum())
            assert (test.only_row, test.only_reference) == (first, second)
            assert test.p == mcnemar([1] * first + [-1] * second)
    assert set(result["sure"].verdicts.values()) == {"sure is better"}
    every = [test for one in result.values() for test in one.mcnemar]
    assert [test.p_holm for test in every] == holm([test.p for test in every])
    assert any(test.p_holm > test.p for test in every)


@pytest.mark.parametrize("seeds", [[], [3], [0, 1]])
def test_tables_say_in_words_what_the_intervals_say(seeds: list[int]) -> None:
    rows = {"a": [made(1 + seed)[0] for seed in seeds or [0]], "b": [made(5 + seed)[0] for seed in seeds or [0]]}
    report = report_of(rows, against={"b": "a"}, seeds=seeds)
    found = comparison_tables(report)
    for line, row in zip(found[0].lines[1:], report.rows, strict=True):
        low, high = row.runs[0].intervals["accuracy"]
        beside = f"± {row.sd['accuracy']:.4f}" if len(seeds) == 2 else f"({low:.4f} to {high:.4f})"
        assert (line[0], line[2]) == (row.name, f"{row.mean['accuracy']:.4f} {beside}")
    title, lines, _ = next(table for table in found if table.title.startswith("paired differences"))
    assert [line[:2] for line in lines[1:]] == [["b - a", name] for name in NAMES]
    assert [line[-1] for line in lines[1:]] == list(report.differences["b"].verdicts.values())
    low, high = report.differences["b"].intervals["accuracy"]
    assert lines[2][3] == f"{low:+.4f} to {high:+.4f}"
    assert ("±" in lines[2][2]) == ("sd" in title) == (len(seeds) == 2)
    title, lines, _ = found[-1]
    assert title.startswith("McNemar's exact test")
    tests = report.differences["b"].mcnemar
    assert len(lines) == 1 + len(tests)
    assert (lines[0][-1] == "p, Holm") == (len(tests) == 2)
    words = ["row alone right", "reference alone right", "p", *(["p, Holm"] if len(tests) == 2 else [])]
    assert lines[0][-len(words) :] == words
    for line, test in zip(lines[1:], tests, strict=True):
        counts = [str(test.only_row), str(test.only_reference)]
        p_values = [f"{getattr(test, key):.4f}" for key in ("p", "p_holm")[: len(words) - 2]]
        assert line[-len(words) :] == [*counts, *p_values]
    assert any(test.only_row != test.only_reference for test in tests)
