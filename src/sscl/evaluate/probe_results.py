"""The results of a probe: metrics of its runs, over seeds, and paired differences, with 95% bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sscl.config import EncoderConfig, ProbeSet
from sscl.evaluate.bootstrap import Interval, resamples
from sscl.evaluate.metrics import OF_LABELS, FloatArray, IntArray, label_metrics
from sscl.progress import Bar
from sscl.records import Record

FILE = "probe.json"
Classifier = Literal["linear", "knn"]
Part = tuple[str, str]  # names of a set and of its part


class Place(NamedTuple):
    """Where encoders are compared: one classifier, fitted on a fraction of a set's labels, on one part of the set."""

    set: str
    part: str
    fraction: float
    classifier: Classifier


class RunFacts(Record):
    """One classifier on the features of one encoder, evaluated on one part of a set.

    Attributes:
        label_seed: drew the labels used. labels: how many they are.
        c: inverse strength of the linear probe's penalty. validation: where the tiles that chose it came from.
        validation_scores: balanced accuracy there by C. The last three are None for kNN.
    """

    encoder: str
    seed: int
    set: str
    part: str
    fraction: float
    label_seed: int
    labels: int
    classifier: Classifier
    c: float | None = None
    validation: str | None = None
    validation_scores: dict[str, float] | None = None

    @property
    def place(self) -> Place:
        """Where other encoders have such a run too."""
        return Place(self.set, self.part, self.fraction, self.classifier)


class ProbeRun(RunFacts):
    """A run with its metrics and their intervals, by OF_LABELS."""

    metrics: dict[str, float]
    intervals: dict[str, Interval]


class OverRuns(Record):
    """A metric over runs: values, mean, sample standard deviation (None for one), and the interval of the mean."""

    mean: float
    sd: float | None
    values: tuple[float, ...]
    interval: Interval


class LabelMetrics(Record):
    """The metrics of OF_LABELS over runs."""

    accuracy: OverRuns
    balanced_accuracy: OverRuns
    macro_f1: OverRuns


class Summary(LabelMetrics):
    """An encoder at a place, over its runs; `labels` of the training part were used."""

    encoder: str
    set: str
    part: str
    fraction: float
    classifier: Classifier
    labels: int
    runs: int

    @property
    def place(self) -> Place:
        """Where other encoders have a summary too."""
        return Place(self.set, self.part, self.fraction, self.classifier)


class Gain(LabelMetrics):
    """How much better an encoder is than the reference at a place, over pairs of runs; `resampled`: tiles or groups."""

    encoder: str
    reference: str
    set: str
    part: str
    fraction: float
    classifier: Classifier
    pairs: int
    resampled: str

    @property
    def place(self) -> Place:
        """Where other encoders have a gain too."""
        return Place(self.set, self.part, self.fraction, self.classifier)


class ProbedEncoder(EncoderConfig):
    """An encoder as it was opened: its settings, and what they led to."""

    name: str
    adapt_batch_norm: bool
    images: int | None
    num_features: int
    fingerprint: str


class ProbedSet(ProbeSet):
    """A set as it was opened: its settings, classes, and tiles of each class by part."""

    classes: tuple[str, ...]
    tiles: dict[str, dict[str, int]]
    data_fingerprints: dict[str, str]


class Fits(Record):
    """Linear fits in all, and those that stopped before they had converged."""

    fits: int
    unconverged: int


class ProbeReport(Record):
    """probe.json."""

    device: str
    precision: str
    encoders: tuple[ProbedEncoder, ...]
    sets: tuple[ProbedSet, ...]
    interval_method: str
    linear_fits: Fits
    notes: tuple[str, ...]
    summary: tuple[Summary, ...]
    differences: tuple[Gain, ...]
    runs: tuple[ProbeRun, ...]


@dataclass(frozen=True, eq=False)
class Found:
    """What the runs of a probe predicted.

    Attributes:
        runs: in any order. predictions: class indices of each run for its part's tiles, (N,), in the order of `runs`.
        labels: true classes of the tiles, (N,). groups: their slides or patients, (N,), or None. Both by part.
    """

    runs: list[RunFacts] = field(default_factory=list)
    predictions: list[IntArray] = field(default_factory=list)
    labels: dict[Part, IntArray] = field(default_factory=dict)
    groups: dict[Part, NDArray[np.str_] | None] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Measured:
    """The runs of a probe with their metrics.

    Attributes:
        runs: in the order of `Found`. drawn: metrics of each in each resample of its tiles, (S, 3), in that order.
        grouped: whether whole groups were resampled, by part.
    """

    runs: tuple[ProbeRun, ...]
    drawn: Sequence[FloatArray]
    grouped: Mapping[Part, bool]


def measure(found: Found, *, samples: int, seed: int, progress: bool = False) -> Measured:
    """Return each run with its metrics and their 95% bootstrap intervals, and what each resample gave.

    All runs on a part see the same resamples: tiles within each class, or whole groups where there are any.
    """
    of: dict[Part, list[int]] = {}
    for index, run in enumerate(found.runs):
        of.setdefault((run.set, run.part), []).append(index)
    parts: list[list[FloatArray]] = [[] for _ in found.runs]
    with Bar(samples * len(found.runs), desc="intervals" if progress else None, unit="resample") as bar:
        for where, indices in of.items():
            labels = found.labels[where]
            for weights in resamples(labels, groups=found.groups[where], samples=samples, seed=seed):
                for index in indices:
                    parts[index].append(label_metrics(labels, found.predictions[index], weights=weights))
                    bar.update(len(weights))
    drawn = [np.concatenate(of_run) for of_run in parts]
    runs = []
    for run, predictions, values in zip(found.runs, found.predictions, drawn, strict=True):
        (point,) = label_metrics(found.labels[run.set, run.part], predictions).tolist()
        runs.append(
            ProbeRun(**dict(run), metrics=dict(zip(OF_LABELS, point, strict=True)), intervals=_intervals(values))
        )
    return Measured(tuple(runs), drawn, {where: groups is not None for where, groups in found.groups.items()})


def _intervals(drawn: FloatArray) -> dict[str, Interval]:
    """Return the 95% percentile intervals of (S, 3), by name."""
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0).tolist()
    return dict(zip(OF_LABELS, zip(low, high, strict=True), strict=True))


def summarise(measured: Measured) -> tuple[Summary, ...]:
    """Return the metrics of each encoder at each place, over its runs."""
    rows: dict[tuple[str, Place], list[int]] = {}
    for index, run in enumerate(measured.runs):
        rows.setdefault((run.encoder, run.place), []).append(index)
    summaries = []
    for (encoder, place), indices in rows.items():
        values = [measured.runs[index].metrics for index in indices]
        over = _over_runs(values, np.mean([measured.drawn[index] for index in indices], axis=0))
        labels = measured.runs[indices[0]].labels
        facts = {"encoder": encoder, **place._asdict(), "labels": labels, "runs": len(indices)}
        summaries.append(Summary.model_validate(facts | over))
    return tuple(summaries)


def _over_runs(values: Sequence[Mapping[str, float]], drawn: FloatArray) -> dict[str, OverRuns]:
    """Return each metric over runs. values: by metric, of each run. drawn: their mean in each resample, (S, 3)."""
    intervals = _intervals(drawn)
    found = {}
    for metric in OF_LABELS:
        column = [of_run[metric] for of_run in values]
        sd = float(np.std(column, ddof=1)) if len(column) > 1 else None
        found[metric] = OverRuns(mean=float(np.mean(column)), sd=sd, values=tuple(column), interval=intervals[metric])
    return found


def differences(measured: Measured, *, reference: str) -> tuple[Gain, ...]:
    """Return how much better each encoder is than the reference, over pairs of the same seed and label seed.

    An encoder of one seed is paired with every seed of the other. The interval, of the mean over the same resamples for
    both, says what other tiles would give; the standard deviation what other seeds would.
    """
    rows: dict[tuple[str, Place], dict[tuple[int, int], int]] = {}
    for index, run in enumerate(measured.runs):
        rows.setdefault((run.encoder, run.place), {})[run.seed, run.label_seed] = index
    gains = []
    for (encoder, place), ours in rows.items():
        if encoder == reference:
            continue
        pairs = _pairs(ours, rows[reference, place])
        values = [
            {metric: measured.runs[a].metrics[metric] - measured.runs[b].metrics[metric] for metric in OF_LABELS}
            for a, b in pairs
        ]
        over = _over_runs(values, np.mean([measured.drawn[a] - measured.drawn[b] for a, b in pairs], axis=0))
        resampled = "whole groups" if measured.grouped[place.set, place.part] else "tiles of each class"
        facts = {"encoder": encoder, "reference": reference, **place._asdict(), "pairs": len(pairs)}
        gains.append(Gain.model_validate(facts | over | {"resampled": resampled}))
    return tuple(gains)


def _pairs(ours: dict[tuple[int, int], int], theirs: dict[tuple[int, int], int]) -> list[tuple[int, int]]:
    """Return (our run, their run) of the same seed and label seed; a single seed meets all of the other side."""
    seeds, other = {seed for seed, _ in ours}, {seed for seed, _ in theirs}
    alone = len(seeds) == 1 or len(other) == 1
    return [
        (index, match)
        for (seed, label_seed), index in ours.items()
        for (their_seed, their_label_seed), match in theirs.items()
        if label_seed == their_label_seed and (alone or seed == their_seed)
    ]
