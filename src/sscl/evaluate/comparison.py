"""Several classifiers on the same tiles: metrics by run, over seeds, and paired differences with their intervals.

A difference is taken tile by tile, so it loses what is easy or hard about a tile. One whose interval holds 0 is called
indistinguishable, or inconclusive; no other number names a winner. Shape letters: N tiles, R runs (seeds) of a row,
M metrics.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from sscl.evaluate import influence, intervals, metrics, verdicts
from sscl.evaluate.intervals import Estimate, Interval, Sample
from sscl.evaluate.metric_intervals import interval_method
from sscl.evaluate.metrics import FloatArray, IntArray
from sscl.evaluate.predictions import TilePredictions
from sscl.records import Record
from sscl.run import Environment

FILE = "compare.json"
METRICS = ("loss", *metrics.OF_LABELS)
LOWER_IS_BETTER = ("loss",)
BOUNDS: dict[str, Interval] = dict.fromkeys(metrics.OF_LABELS, (-1, 1)) | {"loss": (-np.inf, np.inf)}
EQUAL, INCONCLUSIVE = "indistinguishable", "inconclusive"
UNDETERMINED = "undetermined: too few slides, or tiles of a class"
PUBLISHED = "a difference from a published value is meaningful only on the data and split of that publication"
WORDS = (
    f'"{EQUAL}": the interval holds 0, and nothing further than {verdicts.DIFFERENCE:g} from it; '
    f'"{INCONCLUSIVE}": it holds 0, and greater differences too'
)
ONE_RUN = "one run a row: other seeds may differ by as much; the intervals are over the tiles alone"


class RunFacts(Record):
    """Which run it is; None where it is not known."""

    seed: int | None
    folder: str
    epoch: int | None


class RunMetrics(Record):
    """Metrics of a run and their 95% intervals, by METRICS; None = no interval: of the loss, or on too few slides."""

    metrics: dict[str, float]
    intervals: dict[str, Interval | None]


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
    """McNemar's exact test of two runs: the tiles that one alone gets right, p, and p after Holm's correction.

    Where tiles have groups, p is that of whole groups.
    """

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
    intervals: dict[str, Interval | None]
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


def run_estimates(found: TilePredictions, sample: Sample) -> tuple[Estimate, ...]:
    """Return the metrics of a run, in the order of METRICS. sample: its tiles."""
    loss = influence.mean_of_tiles(found.losses, sample)
    return (loss, *(estimate(found.predictions, sample) for estimate in influence.LABEL_METRICS))


def side_by_side(rows: Mapping[str, Sequence[TilePredictions]], *, against: Mapping[str, str]) -> SideBySide:
    """Return metrics and their 95% intervals by run, by row over its runs, and of paired differences.

    The interval of a difference is that of its mean over the seeds on other tiles, and the verdict says whether it
    holds 0. A loss has no interval: few tiles decide it, and no method was found that holds (scripts/coverage).

    Args:
        rows: the runs of each row, R the same and the seeds in the same order for all; all on the same tiles.
        against: which row each difference is against, {row: reference}; a row that is not in it has no difference.

    Raises:
        ValueError: the runs are not on the same tiles, or rows differ in their number of runs.
    """
    first = _check_pairs(rows)
    sample = Sample.of(first.labels, classes=len(first.classes), groups=first.groups)
    estimates = {name: [run_estimates(run, sample) for run in runs] for name, runs in rows.items()}
    point = {name: np.array([[one.value for one in run] for run in runs]) for name, runs in estimates.items()}  # (R, M)
    tests = _mcnemar_tests(rows, against, sample)
    differences = {}
    for name, other in against.items():
        pairs = list(zip(estimates[name], estimates[other], strict=True))
        found = [
            influence.mean_estimate([influence.difference(ours[i], theirs[i]) for ours, theirs in pairs])
            for i in range(len(METRICS))
        ]
        ends = _by_metric(
            [intervals.wald_interval(one, bounds=BOUNDS[m]) for m, one in zip(METRICS, found, strict=True)]
        )
        mean, sd = _over_seeds(point[name] - point[other])
        differences[name] = Difference(
            against=other,
            by_seed=_by_metric([tuple(column) for column in (point[name] - point[other]).T.tolist()]),
            mean=mean,
            sd=sd,
            intervals=ends,
            verdicts={metric: verdict(ends[metric], metric=metric, row=name, reference=other) for metric in METRICS},
            mcnemar=tests[name],
        )
    return SideBySide(
        rows={name: _row(point[name], runs) for name, runs in estimates.items()},
        differences=differences,
    )


def _row(point: FloatArray, runs: Sequence[tuple[Estimate, ...]]) -> RowMetrics:
    mean, sd = _over_seeds(point)
    return RowMetrics(
        runs=tuple(
            RunMetrics(
                metrics=_by_metric(values.tolist()),
                intervals=_by_metric([None, *map(intervals.metric_interval, run[1:])]),
            )
            for values, run in zip(point, runs, strict=True)
        ),
        mean=mean,
        sd=sd,
    )


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


def verdict(interval: Interval | None, *, metric: str, row: str, reference: str) -> str:
    """Return which of the two is better by the interval of row - reference.

    Where it holds 0: EQUAL if all of it is within `verdicts.DIFFERENCE`, else INCONCLUSIVE.
    """
    if interval is None:
        return UNDETERMINED
    low, high = interval
    if low <= 0 <= high:
        return EQUAL if max(-low, high) <= verdicts.DIFFERENCE else INCONCLUSIVE
    better = row if (low > 0) != (metric in LOWER_IS_BETTER) else reference
    return f"{better} is better"


def _mcnemar_tests(
    rows: Mapping[str, Sequence[TilePredictions]], against: Mapping[str, str], sample: Sample
) -> dict[str, tuple[McNemar, ...]]:
    """Return the tests of each difference, a run each, with Holm's correction over all of them."""
    nets = {
        name: [_net(*pair) for pair in zip(rows[name], rows[other], strict=True)] for name, other in against.items()
    }
    raw = [mcnemar(by_group(net, sample)) for of in nets.values() for net in of]
    corrected = iter(zip(raw, holm(raw), strict=True))
    found: dict[str, tuple[McNemar, ...]] = {}
    for name, of in nets.items():
        tests = zip(of, itertools.islice(corrected, len(of)), strict=True)
        found[name] = tuple(
            McNemar(only_row=int((net > 0).sum()), only_reference=int((net < 0).sum()), p=p, p_holm=p_holm)
            for net, (p, p_holm) in tests
        )
    return found


def _net(ours: TilePredictions, theirs: TilePredictions) -> IntArray:
    """Return of each tile 1 where the first alone has it right, -1 where the second alone, else 0, (N,)."""
    found: IntArray = (ours.predictions == ours.labels).astype(np.int64) - (theirs.predictions == theirs.labels)
    return found


def by_group(net: IntArray, sample: Sample) -> IntArray:
    """Return the sums of each group, or the tiles themselves where they are independent. net: of each tile, (N,)."""
    return net if sample.groups is None else np.bincount(sample.groups, net).astype(np.int64)


def mcnemar(net: Sequence[int] | IntArray) -> float:
    """Return the two-sided p value of McNemar's exact test of two classifiers on the same tiles.

    If both were right equally often, each difference might as well have the other sign. p is the fraction of all such
    choices of signs whose sum is as far from 0. Where each is of one tile, that is McNemar's test; where they are sums
    over slides, its tiles need not be independent. Fewer than six slides cannot give p < 0.05.

    Args:
        net: of each tile, or group of tiles, how many the first alone predicts correctly less those of the second.

    Source: McNemar 1947, Psychometrika 12:153; signs of clusters: Good 2005, Permutation, Parametric and Bootstrap
    Tests of Hypotheses, sec. 3.2.
    """
    from scipy.stats import binomtest  # takes half a second to import

    sizes = np.abs(np.asarray(net, dtype=np.int64))
    sizes, total = sizes[sizes > 0], abs(int(np.sum(net)))
    if not len(sizes):
        return 1.0
    if (sizes == 1).all():
        return float(binomtest((len(sizes) + total) // 2, len(sizes)).pvalue)
    # A negative sign takes twice its size off the largest sum: the distribution of what is taken off.
    taken = np.zeros(int(sizes.sum()) + 1)
    taken[0], reached = 1.0, 0
    for size in sizes:
        reached += int(size)
        taken[size : reached + 1] += taken[: reached + 1 - size].copy()
        taken[: reached + 1] /= 2
    sums = sizes.sum() - 2 * np.arange(len(taken))
    return min(1.0, float(taken[np.abs(sums) >= total].sum()))


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


def build(
    found: Mapping[str, Sequence[TilePredictions]],
    *,
    facts: Sequence[tuple[RowFacts, Sequence[RunFacts]]],
    against: Mapping[str, str],
    seeds: Sequence[int],
    split: str,
    caveats: Sequence[str],
    environment: Environment,
) -> Comparison:
    """Return the content of compare.json.

    Args:
        found: the predictions of each row's runs. facts: what is known of each row and of its runs, in that order.
        against: the row that each row is compared with. seeds: those that all rows share; empty = none.
        split, caveats: of the evaluations.

    Raises:
        ValueError: as `side_by_side`.
    """
    result = side_by_side(found, against=against)
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
    return Comparison(
        split=split,
        tiles=len(first.labels),
        classes=first.classes,
        seeds=tuple(seeds),
        interval_method=(
            f"{interval_method(first.groups)}; differences are taken tile by tile; sd is over seeds; loss is "
            "cross-entropy in nats"
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
    few = intervals.few_groups(intervals.group_count(groups))
    caveats = [PUBLISHED] if published else []
    if result.differences:
        caveats.append(WORDS)
        caveats.append(_many_differences(result.differences))
    if len(found) > 1 and all(len(runs) == 1 for runs in found.values()):
        caveats.append(ONE_RUN)
    caveats += [few] if few is not None else []
    return list(dict.fromkeys([*caveats, *said]))


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
