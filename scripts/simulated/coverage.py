"""How often the intervals of the program hold the truth, and how wide they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from simulated.regimes import Kind, Regime, TestSet
from sscl.evaluate import influence
from sscl.evaluate.decisions import risk_coverage, tile_benefits
from sscl.evaluate.intervals import Interval, draw_variance, metric_interval, wald_interval
from sscl.evaluate.metric_intervals import metric_intervals
from sscl.evaluate.metrics import classification_metrics
from sscl.evaluate.proportions import proportions_among

Ends = Mapping[str, Interval | None]

MAIN = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "recall": "recall of the rarest class",
}
MORE = {
    "precision": "its precision",
    "f1": "its F1",
    "macro_f1": "macro F1",
    "mcc": "MCC",
    "average_precision": "average precision",
    "selected": "accuracy of the 80% most confident",
    "benefit": "net benefit at 0.3",
}
PAIRED = {
    "accuracy -": "accuracy",
    "balanced_accuracy -": "balanced accuracy",
    "macro_f1 -": "macro F1",
    "loss -": "cross-entropy",
}
COVERED, ACTING = 0.8, 0.3


def now(one: TestSet, kind: Kind | None = None) -> Ends:
    """Return the intervals of the program. The positive of two classes, and the last of several, is the rarest.

    Args:
        kind: of the set, for the accuracy of the most confident tiles; None = without.
    """
    found = metric_intervals(one.labels, one.probabilities[0], positive=one.positive, groups=one.groups)
    ends = {key: getattr(found, key) for key in type(found).model_fields if key != "per_class"}
    ends |= {key: getattr(found.per_class[-1], key) for key in ("precision", "recall", "f1")}
    estimates = zip(("accuracy -", "balanced_accuracy -", "macro_f1 -"), influence.LABEL_METRICS, strict=True)
    for name, estimate in estimates:
        ours, theirs = (estimate(call, one.sample) for call in one.calls)
        ends[name] = wald_interval(influence.difference(ours, theirs), bounds=(-1, 1))
    losses = [influence.mean_of_tiles(each, one.sample) for each in one.losses]
    ends["loss -"] = wald_interval(influence.difference(*losses))
    if kind is not None:
        at = confident(one)
        right, among = one.calls[0] == one.labels, one.probabilities[0].max(1) >= at
        share = proportions_among({"": (right, among)}, one.sample)[""]
        confidences, accuracies = _accuracy_from(kind)
        true = float(accuracies[min(int(np.searchsorted(confidences, at - 1e-12)), len(accuracies) - 1)])
        assert share is not None
        ends["selected"] = None if share.interval is None else (share.interval[0] - true, share.interval[1] - true)
    if one.positive is not None:
        step = max(1, ACTING / (1 - ACTING)) / len(one.labels)
        ends["benefit"] = wald_interval(influence.mean_of_tiles(benefits(one), one.sample, step=step), bounds=(-1, 1))
    return ends


def confident(one: TestSet) -> float:
    """Return the lowest confidence of the COVERED most confident tiles."""
    confidence = one.probabilities[0].max(1)
    curve = risk_coverage(one.calls[0] == one.labels, confidence)
    at = int(np.argmax(np.array(curve.count) >= COVERED * len(confidence) - 1e-9))
    return float(curve.confidence[at])


@cache
def _accuracy_from(kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """Return confidences, ascending, and the accuracy of infinitely many tiles at or above each."""
    huge = kind.huge
    confidence, right = huge.probabilities[0].max(1), huge.calls[0] == huge.labels
    order = np.argsort(-confidence, kind="stable")
    return confidence[order][::-1], (right[order].cumsum() / np.arange(1, len(order) + 1))[::-1]


def benefits(one: TestSet) -> np.ndarray:
    """Return what each tile adds to the net benefit at ACTING, (N,)."""
    return tile_benefits(one.labels == 1, one.probabilities[0][:, 1], thresholds=[ACTING])[:, 0]


@cache
def truth(kind: Kind) -> Mapping[str, float]:
    """Return the metrics of infinitely many tiles, nearly."""
    huge = kind.huge
    both = [classification_metrics(huge.labels, each, positive=huge.positive) for each in huge.probabilities]
    values = {key: getattr(both[0], key) for key in type(both[0]).model_fields if key != "per_class"}
    values |= {key: getattr(both[0].per_class[-1], key) for key in ("precision", "recall", "f1")}
    for key in ("accuracy", "balanced_accuracy", "macro_f1"):
        values[f"{key} -"] = getattr(both[0], key) - getattr(both[1], key)
    values["loss -"] = float(huge.losses[0].mean() - huge.losses[1].mean())
    values["selected"] = 0.0  # its intervals are of the difference to the truth at the set's own confidence
    if huge.positive is not None:
        values["benefit"] = float(benefits(huge).mean())
    return {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True)
class Coverage:
    """How often intervals held the truth, how wide they were, and in how many sets there was one."""

    held: float
    width: float
    given: float

    def __str__(self) -> str:
        if not self.given:
            return "none"
        rare = f" in {100 * self.given:.0f}%" if self.given < 0.995 else ""
        return f"{self.held:.3f} ({self.width:.3f}){rare}"


def coverage(true: Mapping[str, float], found: Sequence[Ends]) -> dict[str, Coverage]:
    """Return the coverage of each metric's intervals over the sets."""
    result = {}
    for key, value in true.items():
        ends = np.array([one[key] for one in found if one.get(key) is not None]).reshape(-1, 2)
        inside = (ends[:, 0] <= value + 1e-12) & (value <= ends[:, 1] + 1e-12)
        mean = (float(inside.mean()), float(np.ptp(ends, axis=1).mean())) if len(ends) else (0.0, 0.0)
        result[key] = Coverage(*mean, len(ends) / len(found))
    return result


@cache
def simulated(kind: Kind, sets: int, seed: int) -> dict[str, Coverage]:
    """Return the coverage of the program's intervals."""
    return coverage(truth(kind), [now(one, kind) for one in kind.sets(sets, seed)])


def without_slides(kind: Kind, sets: int, seed: int) -> dict[str, Coverage]:
    """Return the coverage of the intervals where the program does not know the slides."""
    return coverage(truth(kind), [now(replace(one, groups=None)) for one in kind.sets(sets, seed)])


@dataclass(frozen=True)
class Probe:
    """Several draws of labels, each of which gives a classifier of its own, on the same tiles.

    Attributes:
        kind: of the tiles. draws: of labels. spread: standard deviation of the classifiers' shift.
    """

    kind: Regime
    draws: int
    spread: float

    def one(self, rng: np.random.Generator) -> Ends:
        """Return the intervals of the mean over the draws, and of its difference to another encoder's."""
        base = self.kind.draw(rng)
        logit = np.log(base.probabilities[:, :, 1] / base.probabilities[:, :, 0])
        moved = rng.normal(0, 1.5 * self.spread, (self.draws, 2))
        runs = [[(logit[i] + own[i] * (2 * base.labels - 1) >= 0).astype(np.int64) for i in (0, 1)] for own in moved]
        ends: dict[str, Interval | None] = {}
        seeds = [(0, number) for number in range(self.draws)]
        for key, estimate in zip(("accuracy", "balanced_accuracy", "macro_f1"), influence.LABEL_METRICS, strict=True):
            ours, theirs = ([estimate(run[i], base.sample) for run in runs] for i in (0, 1))
            values = [one.value for one in ours]
            ends[key] = metric_interval(influence.mean_estimate(ours), draws=draw_variance(values, seeds))
            gains = list(map(influence.difference, ours, theirs))
            over = draw_variance([one.value for one in gains], seeds)
            ends[f"{key} -"] = wald_interval(influence.mean_estimate(gains), draws=over, bounds=(-1, 1))
        return ends

    def coverage(self, sets: int, seed: int) -> dict[str, Coverage]:
        """Return how often they hold the mean over all draws, on all tiles."""
        huge = self.kind.huge
        logit = np.log(huge.probabilities[0][:, 1] / huge.probabilities[0][:, 0])
        rng = np.random.default_rng(1)
        own = rng.normal(0, 1.5 * self.spread, len(logit))  # a draw a tile: the mean over draws and tiles
        found = classification_metrics(
            huge.labels, np.eye(2)[(logit + own * (2 * huge.labels - 1) >= 0).astype(int)], positive=1
        )
        values = {"accuracy": found.accuracy, "balanced_accuracy": found.balanced_accuracy}
        values |= dict.fromkeys(("accuracy -", "balanced_accuracy -", "macro_f1 -"), 0.0)
        rng = np.random.default_rng([seed, self.draws, self.kind.tiles])
        return coverage(values, [self.one(rng) for _ in range(sets)])


PROBES = (
    *(Probe(Regime("200 tiles", 200), draws, 0.2) for draws in (2, 3, 5, 10)),
    Probe(Regime("200 tiles", 200), 5, 0.5),
    Probe(Regime("2,000 tiles", 2000), 5, 0.5),
    Probe(Regime("200 tiles, accuracy .95", 200, sensitivity=0.95, specificity=0.95), 5, 0.2),
    Probe(Regime("20 slides", 200, 20, fixed=True), 5, 0.2),
)
