"""The results of a probe: metrics of its runs, over seeds, and paired differences, with 95% intervals."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sscl.evaluate import influence
from sscl.evaluate.intervals import Estimate, Interval, Sample, draw_variance, metric_interval, wald_interval
from sscl.evaluate.metrics import OF_LABELS, IntArray
from sscl.records import Record

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
    def part_of(self) -> Part:
        """The part of the set."""
        return self.set, self.part

    @property
    def place(self) -> Place:
        """Where other encoders have such a run too."""
        return Place(self.set, self.part, self.fraction, self.classifier)


class ProbeRun(RunFacts):
    """A run with its metrics and their intervals over the tiles, by OF_LABELS; None: too few groups or tiles."""

    metrics: dict[str, float]
    intervals: dict[str, Interval | None]


class OverRuns(Record):
    """A metric over runs: values, mean, sample standard deviation (None for one), and the interval of the mean.

    The interval is over other tiles and, of several runs, over other draws of labels and seeds.
    """

    mean: float
    sd: float | None
    values: tuple[float, ...]
    interval: Interval | None


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
    """How much better an encoder is than the reference at a place, over pairs of runs."""

    encoder: str
    reference: str
    set: str
    part: str
    fraction: float
    classifier: Classifier
    pairs: int


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
    """The runs of a probe with their metrics. estimates: of each run's, in the order of OF_LABELS."""

    runs: tuple[ProbeRun, ...]
    estimates: Sequence[Sequence[Estimate]]


def measure(found: Found) -> Measured:
    """Return each run with its metrics and their 95% intervals over the tiles, or whole groups where there are any."""
    samples = {}
    for where, labels in found.labels.items():
        calls = [labels, *(of for run, of in zip(found.runs, found.predictions, strict=True) if run.part_of == where)]
        classes = int(max(one.max() for one in calls)) + 1
        samples[where] = Sample.of(labels, classes=classes, groups=found.groups[where])
    runs, estimates = [], []
    for run, predictions in zip(found.runs, found.predictions, strict=True):
        of_run = [estimate(predictions, samples[run.part_of]) for estimate in influence.LABEL_METRICS]
        values = {metric: one.value for metric, one in zip(OF_LABELS, of_run, strict=True)}
        ends = {metric: metric_interval(one) for metric, one in zip(OF_LABELS, of_run, strict=True)}
        runs.append(ProbeRun(**dict(run), metrics=values, intervals=ends))
        estimates.append(of_run)
    return Measured(tuple(runs), estimates)


def summarise(measured: Measured) -> tuple[Summary, ...]:
    """Return the metrics of each encoder at each place, over its runs."""
    rows: dict[tuple[str, Place], list[tuple[ProbeRun, Sequence[Estimate]]]] = {}
    for run, estimates in zip(measured.runs, measured.estimates, strict=True):
        rows.setdefault((run.encoder, run.place), []).append((run, estimates))
    summaries = []
    for (encoder, place), found in rows.items():
        seeds = [(run.seed, run.label_seed) for run, _ in found]
        over = _over_runs([estimates for _, estimates in found], seeds, of=metric_interval)
        facts = {"encoder": encoder, **place._asdict(), "labels": found[0][0].labels, "runs": len(found)}
        summaries.append(Summary.model_validate(facts | over))
    return tuple(summaries)


def _over_runs(
    runs: Sequence[Sequence[Estimate]],
    seeds: Sequence[tuple[Hashable, Hashable]],
    *,
    of: Callable[..., Interval | None],
) -> dict[str, OverRuns]:
    """Return each metric over runs. seeds: seed and label seed of each. of: makes the interval."""
    found = {}
    for metric, estimates in zip(OF_LABELS, zip(*runs, strict=True), strict=True):
        column = [one.value for one in estimates]
        mean = influence.mean_estimate(estimates)
        found[metric] = OverRuns(
            mean=float(np.mean(column)),
            sd=float(np.std(column, ddof=1)) if len(column) > 1 else None,
            values=tuple(column),
            interval=of(mean, draws=draw_variance(column, seeds)),
        )
    return found


def differences(measured: Measured, *, reference: str) -> tuple[Gain, ...]:
    """Return how much better each encoder is than the reference, over pairs of the same seed and label seed.

    An encoder of one seed is paired with every seed of the other. The interval of the mean is over other tiles and
    other seeds.
    """
    rows: dict[tuple[str, Place], dict[tuple[int, int], Sequence[Estimate]]] = {}
    for run, estimates in zip(measured.runs, measured.estimates, strict=True):
        rows.setdefault((run.encoder, run.place), {})[run.seed, run.label_seed] = estimates
    gains = []
    for (encoder, place), ours in rows.items():
        if encoder == reference:
            continue
        theirs = rows[reference, place]
        paired = seed_pairs({seed for seed, _ in ours}, {seed for seed, _ in theirs})
        pairs = {
            ((seed, other), label_seed): list(map(influence.difference, a, b))
            for (seed, label_seed), a in ours.items()
            for (other, same), b in theirs.items()
            if label_seed == same and (seed, other) in paired
        }
        over = _over_runs(list(pairs.values()), list(pairs), of=partial(wald_interval, bounds=(-1, 1)))
        facts = {"encoder": encoder, "reference": reference, **place._asdict(), "pairs": len(pairs)}
        gains.append(Gain.model_validate(facts | over))
    return tuple(gains)


def seed_pairs(ours: Collection[int], theirs: Collection[int]) -> list[tuple[int, int]]:
    """Return pairs of equal seeds, ours first; where one side has a single seed, it meets all of the other."""
    alone = len(ours) == 1 or len(theirs) == 1
    return [(a, b) for a in ours for b in theirs if alone or a == b]
