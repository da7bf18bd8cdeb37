"""Several classifiers on the same tiles: figures by run, over seeds, and paired differences with their intervals.

Every resample of the tiles is the same for all runs, so a difference loses what is easy or hard about a
tile. One whose interval holds 0 is called indistinguishable; no other figure names a winner. Shape letters: N tiles, K
classes, R runs (seeds) of a row, S resamples, s of them in a chunk, M metrics.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sscl.evaluate import metrics
from sscl.evaluate.metrics import FloatArray
from sscl.evaluate.predictions import Predictions

METRICS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
}
LOWER_IS_BETTER = ("loss",)
EQUAL = "indistinguishable"
UNTOLD = "cannot be told"  # the tiles drawn anew are always the same: one group, or one tile of each class


def figures(found: Predictions, weights: FloatArray | None = None) -> FloatArray:
    """Return the metrics of a run, in the order of METRICS, under each row of weights (s, N): (s, M); NaN = undefined.

    Without weights every tile counts once, and s is 1. The definitions are those of `metrics.classification_metrics`.
    """
    weights = np.ones((1, len(found.labels))) if weights is None else weights
    loss = weights @ found.losses / weights.sum(axis=1)
    return np.column_stack([loss, metrics.figures(found.labels, found.predictions, weights=weights)])


def side_by_side(
    rows: Mapping[str, Sequence[Predictions]], *, against: Mapping[str, str], samples: int, seed: int
) -> dict[str, Any]:
    """Return figures and 95% percentile intervals by run, by row over its runs, and of paired differences.

    Args:
        rows: the runs of each row, R the same and the seeds in the same order for all; all on the same tiles.
        against: which row each difference is against, {row: reference}; a row that is not in it has no difference.
        samples, seed: of the bootstrap over the tiles, which is the same for all runs.

    Returns:
        {"rows": {row: {"runs": [{"metrics", "intervals"}], "mean", "sd"}}, "differences": {row: {"against", "by_seed",
        "mean", "sd", "intervals", "verdicts", "mcnemar"}}}; each of these by metric, but for `mcnemar`, a list by seed
        with p values after Holm's correction over all of them. sd is the sample's over the seeds, None for one seed;
        the interval of a difference is that of its mean over the seeds when the tiles are drawn anew, and the verdict
        says whether it holds 0.

    Raises:
        ValueError: the runs are not about the same tiles, or rows differ in their number of runs.
    """
    first = next(iter(rows.values()))[0]
    for name, runs in rows.items():
        if len(runs) != len(next(iter(rows.values()))):
            raise ValueError(f"{name}: {len(runs)} runs, other rows have {len(next(iter(rows.values())))}")
        for run in runs:
            unlike = run.unlike(first)
            if unlike is not None:
                raise ValueError(f"{name} and {next(iter(rows))}: evaluated on {unlike}; nothing to compare")
    point = {name: np.concatenate([figures(run) for run in runs]) for name, runs in rows.items()}  # (R, M)
    chunks: dict[str, list[FloatArray]] = {name: [] for name in rows}
    for weights in metrics.resamples(first.labels, groups=first.groups, samples=samples, seed=seed):
        for name, runs in rows.items():
            chunks[name].append(np.stack([figures(run, weights) for run in runs]))
    drawn = {name: np.concatenate(parts, axis=1) for name, parts in chunks.items()}  # (R, S, M)
    few = metrics.few_groups(first.groups) is not None
    differences: dict[str, Any] = {}
    for name, other in against.items():
        intervals = _intervals((drawn[name] - drawn[other]).mean(axis=0))
        differences[name] = {
            "against": other,
            "by_seed": _by_metric((point[name] - point[other]).T.tolist()),
            **_over_seeds(point[name] - point[other]),
            "intervals": intervals,
            "verdicts": {
                metric: verdict(intervals[metric], metric=metric, row=name, reference=other, few=few)
                for metric in METRICS
            },
            "mcnemar": [mcnemar(ours, theirs) for ours, theirs in zip(rows[name], rows[other], strict=True)],
        }
    tests = [test for difference in differences.values() for test in difference["mcnemar"]]
    for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = p
    return {
        "rows": {
            name: {
                "runs": [
                    {"metrics": _by_metric(values.tolist()), "intervals": _intervals(drawn[name][i])}
                    for i, values in enumerate(point[name])
                ],
                **_over_seeds(point[name]),
            }
            for name in rows
        },
        "differences": differences,
    }


def verdict(interval: Sequence[float], *, metric: str, row: str, reference: str, few: bool = False) -> str:
    """Return what the interval of row - reference says: which is better, or "indistinguishable" where it holds 0.

    An interval without width is none, and says nothing; `few` says that it rests on few groups.
    """
    low, high = interval
    if low <= 0 <= high:
        return EQUAL
    if low == high:
        return UNTOLD
    better = row if (low > 0) != (metric in LOWER_IS_BETTER) else reference
    return f"{better} is better" + (", on few groups" if few else "")


def mcnemar(ours: Predictions, theirs: Predictions) -> dict[str, Any]:
    """Return McNemar's exact test of two classifiers on the same tiles: {`only_row`, `only_reference`, `p`}.

    The first two count the tiles that one alone gets right. If both were right equally often, these would share the
    discordant tiles like a fair coin; p is the two-sided binomial probability, exact at any count. It takes tiles for
    independent: where several are of one slide it is too small.

    Source: McNemar 1947, Psychometrika 12:153; exact: Fagerland, Lydersen & Laake 2013, BMC Med. Res. Methodol. 13:91.
    """
    right, theirs_right = ours.predictions == ours.labels, theirs.predictions == theirs.labels
    only_ours, only_theirs = int((right & ~theirs_right).sum()), int((theirs_right & ~right).sum())
    discordant, fewer = only_ours + only_theirs, min(only_ours, only_theirs)
    tail = sum(math.comb(discordant, i) for i in range(fewer + 1))  # integers: no rounding before the division
    return {"only_row": only_ours, "only_reference": only_theirs, "p": min(1.0, 2 * tail / 2**discordant)}


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


def _by_metric(values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(METRICS, values, strict=True))


def _over_seeds(values: FloatArray) -> dict[str, Any]:
    """Return the mean and the sample's standard deviation of (R, M) over the runs."""
    columns = values.T.tolist()
    return {
        "mean": _by_metric([statistics.fmean(column) for column in columns]),
        "sd": _by_metric([statistics.stdev(column) if len(column) > 1 else None for column in columns]),
    }


def _intervals(drawn: FloatArray) -> dict[str, Any]:
    """Return the 95% percentile intervals of (S, M)."""
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0).tolist()
    return _by_metric(list(zip(low, high, strict=True)))


# --- tables ---


def tables(report: Mapping[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """Return the tables of a comparison, each a title and rows of cells, the header first.

    Args:
        report: what `sscl compare` writes to compare.json: `side_by_side`'s rows as a list with `name`, `published`,
            `labelled_tiles` (may be None) and each run's `seed`; its differences; `seeds`, empty where rows share none.
    """
    rows, seeds = report["rows"], report["seeds"]
    published = [metric for metric in METRICS if any(metric in row["published"] for row in rows)]
    counted = any(row["labelled_tiles"] is not None for row in rows)
    header = ["row", *(["labelled tiles"] if counted else []), *METRICS.values()]
    header += [text for metric in published for text in (f"published {METRICS[metric]}", "ours - published")]
    lines = [header]
    for row in rows:
        cells = [row["name"], *([f"{row['labelled_tiles']:,}"] if counted else [])]
        for metric in METRICS:
            interval = row["runs"][0]["intervals"][metric] if len(seeds) < 2 else None
            cells.append(_cell(row["mean"][metric], sd=row["sd"][metric], interval=interval))
        for metric in published:
            value = row["published"].get(metric)
            cells += ["", ""] if value is None else [f"{value:.4f}", f"{row['mean'][metric] - value:+.4f}"]
        lines.append(cells)
    over = "95% interval" if not seeds else f"seed {seeds[0]}, 95% interval"
    over = over if len(seeds) < 2 else f"mean ± sd over seeds {', '.join(map(str, seeds))}"
    found = [(f"{report['split']} split, {report['tiles']} tiles; {over}", lines)]

    if len(seeds) > 1:
        lines = [["row", "seed", *METRICS.values()]]
        for row in rows:
            for run in row["runs"]:
                cells = [_cell(run["metrics"][metric], interval=run["intervals"][metric]) for metric in METRICS]
                lines.append([row["name"], str(run["seed"]), *cells])
        found.append(("by seed, 95% interval", lines))

    if report["differences"]:
        found += [_differences(report["differences"], seeds), _tests(report["differences"], seeds)]
    return found


def _differences(differences: Mapping[str, Any], seeds: Sequence[int]) -> tuple[str, list[list[str]]]:
    """Return the table of paired differences: a line a metric, which says what the interval says."""
    several = len(seeds) > 1
    lines = [["row - reference", "metric", "mean ± sd" if several else "difference", "95% interval", "in words"]]
    for name, one in differences.items():
        for metric, text in METRICS.items():
            low, high = one["intervals"][metric]
            value = _cell(one["mean"][metric], sd=one["sd"][metric], sign="+")
            pair = f"{name} - {one['against']}"
            lines.append([pair, text, value, f"{low:+.4f} to {high:+.4f}", one["verdicts"][metric]])
    over = "mean ± sd over seeds, " if several else ""
    return f"paired differences: {over}95% interval over the same tiles", lines


def _tests(differences: Mapping[str, Any], seeds: Sequence[int]) -> tuple[str, list[list[str]]]:
    """Return the table of McNemar's tests, a line a pair of runs."""
    several = len(seeds) > 1
    count = sum(len(one["mcnemar"]) for one in differences.values())
    lines = [["row against reference", *(["seed"] if several else []), "row alone right", "reference alone right", "p"]]
    lines[0] += ["p, Holm"] if count > 1 else []
    for name, one in differences.items():
        for i, test in enumerate(one["mcnemar"]):
            cells = [f"{name} against {one['against']}", *([str(seeds[i])] if several else [])]
            cells += [str(test["only_row"]), str(test["only_reference"]), _p(test["p"])]
            lines.append(cells + ([_p(test["p_holm"])] if count > 1 else []))
    return "McNemar's exact test: tiles that one of the two alone gets right", lines


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else f"{value:.1e}"


def _cell(value: float, *, sd: float | None = None, interval: Sequence[float] | None = None, sign: str = "") -> str:
    text = f"{value:{sign}.4f}"
    if sd is not None:
        text += f" ± {sd:.4f}"
    if interval is not None:
        text += f" ({interval[0]:{sign}.4f} to {interval[1]:{sign}.4f})"
    return text
