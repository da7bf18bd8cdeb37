"""Several classifiers on the same tiles: metrics by run, over seeds, and paired differences with their intervals.

Every resample of the tiles is the same for all runs, so a difference loses what is easy or hard about a
tile. One whose interval holds 0 is called indistinguishable; no other number names a winner. Shape letters: N tiles, K
classes, R runs (seeds) of a row, S resamples, s of them in a chunk, M metrics.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from sscl.evaluate import bootstrap, lineage, metrics
from sscl.evaluate.bootstrap import GROUPS, Interval
from sscl.evaluate.metrics import FloatArray
from sscl.evaluate.predictions import TilePredictions
from sscl.records import Record
from sscl.run import Environment

FILE = "compare.json"
METRICS = ("loss", *metrics.OF_LABELS)
LOWER_IS_BETTER = ("loss",)
EQUAL = "indistinguishable"
UNDETERMINED = "undetermined"  # all resamples are the same: one group, or one tile of each class
PUBLISHED = "a difference from a published value is meaningful only on the data and split of that publication"
ONE_RUN = "one run a row: other seeds may differ by as much; the intervals are over the tiles alone"
DEPENDENT = (
    f"McNemar's test assumes independent tiles, and several are of one group ({GROUPS}): its p values may be too "
    "small; rely on the intervals, which resample whole groups"
)


class RunFacts(Record):
    """Which run it is; None where it is not known."""

    seed: int | None
    folder: str
    epoch: int | None


class RunMetrics(Record):
    """Metrics of a run and their 95% intervals, by METRICS."""

    metrics: dict[str, float]
    intervals: dict[str, Interval]


class RunResult(RunMetrics, RunFacts):
    """A run with its metrics."""


class RowMetrics(Record):
    """The runs of a row, and mean and sample standard deviation over them (None for one run), by METRICS."""

    runs: tuple[RunMetrics, ...]
    mean: dict[str, float]
    sd: dict[str, float | None]


class RowFacts(Record):
    """What is known of a row: its entry, its fraction of the labels (None = as its config says), published values."""

    name: str
    entry: str
    fraction: float | None
    labelled_tiles: int | None
    published: dict[str, float]


class RowResult(RowMetrics, RowFacts):
    """A row with its metrics."""

    ours_minus_published: dict[str, float]
    runs: tuple[RunResult, ...]


class McNemar(Record):
    """McNemar's exact test of two runs: the tiles that one alone gets right, p, and p after Holm's correction."""

    only_row: int
    only_reference: int
    p: float
    p_holm: float


class Difference(Record):
    """A row minus the one it is compared with, by METRICS: by seed, over the seeds, with intervals and verdicts."""

    against: str
    by_seed: dict[str, tuple[float, ...]]
    mean: dict[str, float]
    sd: dict[str, float | None]
    intervals: dict[str, Interval]
    verdicts: dict[str, str]
    mcnemar: tuple[McNemar, ...]


class SideBySide(Record):
    """Rows, and the differences of those that have one, by name."""

    rows: dict[str, RowMetrics]
    differences: dict[str, Difference]


class Comparison(Record):
    """compare.json. `seeds` is empty where rows share none."""

    split: str
    tiles: int
    classes: tuple[str, ...]
    seeds: tuple[int, ...]
    interval_method: str
    caveats: tuple[str, ...]
    rows: tuple[RowResult, ...]
    differences: dict[str, Difference]
    environment: Environment


def run_metrics(found: TilePredictions, weights: FloatArray | None = None) -> FloatArray:
    """Return the metrics of a run, in the order of METRICS, under each row of weights (s, N): (s, M); NaN = undefined.

    Without weights every tile counts once, and s is 1. The definitions are those of `metrics.classification_metrics`.
    """
    weights = np.ones((1, len(found.labels))) if weights is None else weights
    loss = weights @ found.losses / weights.sum(axis=1)
    return np.column_stack([loss, metrics.label_metrics(found.labels, found.predictions, weights=weights)])


def side_by_side(
    rows: Mapping[str, Sequence[TilePredictions]], *, against: Mapping[str, str], samples: int, seed: int
) -> SideBySide:
    """Return metrics and 95% percentile intervals by run, by row over its runs, and of paired differences.

    The interval of a difference is that of its mean over the seeds when the tiles are resampled, and the verdict says
    whether it holds 0.

    Args:
        rows: the runs of each row, R the same and the seeds in the same order for all; all on the same tiles.
        against: which row each difference is against, {row: reference}; a row that is not in it has no difference.
        samples, seed: of the bootstrap over the tiles, which is the same for all runs.

    Raises:
        ValueError: the runs are not on the same tiles, or rows differ in their number of runs.
    """
    first = _check_pairs(rows)
    point = {name: np.concatenate([run_metrics(run) for run in runs]) for name, runs in rows.items()}  # (R, M)
    chunks: dict[str, list[FloatArray]] = {name: [] for name in rows}
    for weights in bootstrap.resamples(first.labels, groups=first.groups, samples=samples, seed=seed):
        for name, runs in rows.items():
            chunks[name].append(np.stack([run_metrics(run, weights) for run in runs]))
    drawn = {name: np.concatenate(parts, axis=1) for name, parts in chunks.items()}  # (R, S, M)
    few = bootstrap.few_groups(first.groups) is not None
    tests = _mcnemar_tests(rows, against)
    differences = {}
    for name, other in against.items():
        intervals = _intervals((drawn[name] - drawn[other]).mean(axis=0))
        mean, sd = _over_seeds(point[name] - point[other])
        differences[name] = Difference(
            against=other,
            by_seed=_by_metric([tuple(column) for column in (point[name] - point[other]).T.tolist()]),
            mean=mean,
            sd=sd,
            intervals=intervals,
            verdicts={
                metric: verdict(intervals[metric], metric=metric, row=name, reference=other, few=few)
                for metric in METRICS
            },
            mcnemar=tests[name],
        )
    found = {}
    for name in rows:
        mean, sd = _over_seeds(point[name])
        found[name] = RowMetrics(
            runs=tuple(
                RunMetrics(metrics=_by_metric(values.tolist()), intervals=_intervals(drawn[name][i]))
                for i, values in enumerate(point[name])
            ),
            mean=mean,
            sd=sd,
        )
    return SideBySide(rows=found, differences=differences)


def _check_pairs(rows: Mapping[str, Sequence[TilePredictions]]) -> TilePredictions:
    """Return the first run; raises ValueError where runs are not on its tiles, or rows differ in their number."""
    reference = next(iter(rows))
    first = rows[reference][0]
    for name, runs in rows.items():
        if len(runs) != len(rows[reference]):
            raise ValueError(f"{name}: {len(runs)} runs, other rows have {len(rows[reference])}")
        for run in runs:
            unlike = run.unlike(first)
            if unlike is not None:
                raise ValueError(f"{name} and {reference}: evaluated on {unlike}; they cannot be compared")
    return first


def verdict(interval: Sequence[float], *, metric: str, row: str, reference: str, few: bool = False) -> str:
    """Return which of the two is better by the interval of row - reference: EQUAL where it holds 0.

    UNDETERMINED where the interval has no width. few: whether it rests on few groups, which the verdict then says.
    """
    low, high = interval
    if low <= 0 <= high:
        return EQUAL
    if low == high:
        return UNDETERMINED
    better = row if (low > 0) != (metric in LOWER_IS_BETTER) else reference
    return f"{better} is better" + (", on few groups" if few else "")


def _mcnemar_tests(
    rows: Mapping[str, Sequence[TilePredictions]], against: Mapping[str, str]
) -> dict[str, tuple[McNemar, ...]]:
    """Return the tests of each difference, a run each, with Holm's correction over all of them."""
    pairs = {name: list(zip(rows[name], rows[other], strict=True)) for name, other in against.items()}
    counts = {name: [discordant(ours, theirs) for ours, theirs in of] for name, of in pairs.items()}
    raw = [mcnemar(*pair) for of in counts.values() for pair in of]
    corrected = iter(zip(raw, holm(raw), strict=True))
    found = {}
    for name, of in counts.items():
        tests = []
        for only_row, only_reference in of:
            p, p_holm = next(corrected)
            tests.append(McNemar(only_row=only_row, only_reference=only_reference, p=p, p_holm=p_holm))
        found[name] = tuple(tests)
    return found


def discordant(ours: TilePredictions, theirs: TilePredictions) -> tuple[int, int]:
    """Return how many tiles the first alone and the second alone predicts correctly."""
    right, theirs_right = ours.predictions == ours.labels, theirs.predictions == theirs.labels
    return int((right & ~theirs_right).sum()), int((theirs_right & ~right).sum())


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p value of McNemar's exact test of two classifiers on the same tiles.

    It assumes independent tiles: where several are of one slide it is too small.

    Args:
        only_first, only_second: tiles that one classifier alone predicts correctly. If both were right equally often,
            these would be split like tosses of a fair coin.

    Source: McNemar 1947, Psychometrika 12:153; exact: Fagerland, Lydersen & Laake 2013, BMC Med. Res. Methodol. 13:91.
    """
    from scipy.stats import binomtest  # takes half a second to import

    total = only_first + only_second
    return float(binomtest(only_first, total).pvalue) if total else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number, in the order given.

    Source: Holm 1979, Scand. J. Statist. 6:65.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


Value = TypeVar("Value")


def _by_metric(values: Sequence[Value]) -> dict[str, Value]:
    return dict(zip(METRICS, values, strict=True))


def _over_seeds(values: FloatArray) -> tuple[dict[str, float], dict[str, float | None]]:
    """Return the mean and the sample's standard deviation of (R, M) over the runs; None for one run."""
    columns = values.T.tolist()
    return (
        _by_metric([statistics.fmean(column) for column in columns]),
        _by_metric([statistics.stdev(column) if len(column) > 1 else None for column in columns]),
    )


def _intervals(drawn: FloatArray) -> dict[str, Interval]:
    """Return the 95% percentile intervals of (S, M)."""
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0).tolist()
    return _by_metric(list(zip(low, high, strict=True)))


def build(
    found: Mapping[str, Sequence[TilePredictions]],
    *,
    facts: Sequence[tuple[RowFacts, Sequence[RunFacts]]],
    against: Mapping[str, str],
    seeds: Sequence[int],
    split: str,
    caveats: Sequence[str],
    samples: int,
    bootstrap_seed: int,
    environment: Environment,
) -> Comparison:
    """Return the content of compare.json.

    Args:
        found: the predictions of each row's runs. facts: what is known of each row and of its runs, in that order.
        against: the row that each row is compared with. seeds: those that all rows share; empty = none.
        split, caveats: of the evaluations; caveats about intervals that whole groups answer are left out.
        samples, bootstrap_seed: of the bootstrap.

    Raises:
        ValueError: as `side_by_side`.
    """
    result = side_by_side(found, against=against, samples=samples, seed=bootstrap_seed)
    rows = []
    for row, runs in facts:
        values = result.rows[row.name]
        rows.append(
            RowResult(
                **dict(row),
                ours_minus_published={key: values.mean[key] - value for key, value in row.published.items()},
                mean=values.mean,
                sd=values.sd,
                runs=tuple(RunResult(**dict(known), **dict(run)) for known, run in zip(runs, values.runs, strict=True)),
            )
        )
    first = next(iter(found.values()))[0]
    drawn = "stratified by class" if first.groups is None else f"of whole groups ({len(set(first.groups))} {GROUPS})"
    return Comparison(
        split=split,
        tiles=len(first.labels),
        classes=first.classes,
        seeds=tuple(seeds),
        interval_method=(
            f"95% intervals: bootstrap over the tiles, {drawn}, {samples} resamples, seed {bootstrap_seed}, the same "
            "for all runs; sd is over seeds; loss is cross-entropy in nats"
        ),
        caveats=tuple(_caveats(found, result, published=any(row.published for row, _ in facts), said=caveats)),
        rows=tuple(rows),
        differences=result.differences,
        environment=environment,
    )


def _caveats(
    found: Mapping[str, Sequence[TilePredictions]], result: SideBySide, *, published: bool, said: Sequence[str]
) -> list[str]:
    """Return what a reader must know, a sentence each, without repetition."""
    groups = next(iter(found.values()))[0].groups
    few = bootstrap.few_groups(groups)
    several = groups is not None and len(set(groups)) < len(groups)
    caveats = [PUBLISHED] if published else []
    if result.differences:
        caveats += [_many_differences(result.differences), *([DEPENDENT] if several else [])]
    if len(found) > 1 and all(len(runs) == 1 for runs in found.values()):
        caveats.append(ONE_RUN)
    caveats += [few] if few is not None else []
    answered = [] if groups is None else lineage.interval_caveats(groups)  # by drawing whole groups
    return list(dict.fromkeys([*caveats, *(text for text in said if text not in answered)]))


def _many_differences(differences: Mapping[str, Difference]) -> str:
    """Return a sentence on how many differences are shown, and what was done about that."""
    shown, tests = len(METRICS) * len(differences), sum(len(one.mcnemar) for one in differences.values())
    text = (
        f"{shown} differences are shown and their intervals are not corrected for that number: without any true "
        "difference, about 1 in 20 intervals excludes 0"
    )
    return text + (
        f"; the {tests} p values of McNemar's test are also given after Holm's correction" if tests > 1 else ""
    )
