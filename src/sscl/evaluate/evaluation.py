"""An evaluation: metrics, calibration, operating point and abstention on a split, with intervals.

N tiles, K classes, S resamples, T thresholds. Temperature and thresholds come from validation, never from these tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from sscl.data.tiles import Tiles
from sscl.evaluate import bootstrap, calibration, decisions, metrics, proportions
from sscl.evaluate.bootstrap import GROUPS
from sscl.evaluate.decisions import BoolArray
from sscl.evaluate.metrics import FloatArray
from sscl.evaluate.predictions import cross_entropy
from sscl.evaluate.proportions import DrawnProportion
from sscl.evaluate.records import (
    Abstention,
    BeforeAfter,
    ByChance,
    CalibrationErrors,
    CalibrationReport,
    Coverage,
    CoverageRow,
    DecisionCurve,
    OperatingPoint,
    Results,
)
from sscl.models.calibration import KeptCalibration

COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
THRESHOLDS = np.arange(2, 100, 2) / 100  # of the decision curve


@dataclass(frozen=True)
class Resampling:
    """How the bootstrap draws: whole groups where tiles have them, how often, from which seed."""

    groups: bootstrap.Groups | None
    samples: int
    seed: int

    def weights(self, labels: metrics.IntArray) -> Iterator[FloatArray]:
        """Yield chunks (s, N) of how often each tile is drawn, see `bootstrap.resamples`."""
        return bootstrap.resamples(labels, groups=self.groups, samples=self.samples, seed=self.seed)


def evaluate(
    tiles: Tiles,
    logits: torch.Tensor,
    *,
    positive: int | None,
    kept: KeptCalibration,
    calibrate: bool = True,
    sensitivity: float | None = None,
    abstain: float = 0.2,
    samples: int = 2000,
    seed: int = 0,
) -> Results:
    """Return the results on labelled tiles. Argmax predictions are the same before and after calibration.

    Args:
        tiles: all of them labelled. logits: (N, K). positive: index of the positive class of two, or None.
        kept: what the checkpoint keeps of its validation tiles.
        calibrate: whether its temperature is applied.
        sensitivity: to be reached at the operating point on validation; None = Youden's index.
        abstain: fraction of the validation tiles to be left undecided, at most.
        samples, seed: of the bootstrap; whole groups are drawn where the tiles have them.
    """
    temperature = kept.temperature if calibrate else 1.0
    probabilities = calibration.softmax(logits, temperature=temperature)
    predictions = probabilities.argmax(1)
    matrix = metrics.confusion_matrix(tiles.labels, predictions, num_classes=len(tiles.classes))
    wilson = proportions.wilson_proportions(matrix, positive=positive)
    assert wilson.accuracy is not None  # there are tiles
    drawn = Resampling(tiles.groups, samples, seed)
    validation = calibration.softmax(kept.logits, temperature=temperature)
    point = curve = None
    if positive is not None:
        is_positive = kept.labels.numpy() == positive
        point = _operating_point(
            tiles, probabilities, is_positive, validation, positive=positive, sensitivity=sensitivity, drawn=drawn
        )
        curve = _decision_curve(tiles, probabilities[:, positive], positive=positive, drawn=drawn)
    return Results(
        loss=float(cross_entropy(tiles.labels, probabilities).mean()),
        metrics=metrics.classification_metrics(tiles.labels, probabilities, positive=positive),
        intervals=bootstrap.bootstrap_intervals(
            tiles.labels, probabilities, positive=positive, groups=tiles.groups, samples=samples, seed=seed
        ),
        interval_method=interval_method(tiles, samples=samples, seed=seed),
        wilson=wilson,
        accuracy_wilson=wilson.accuracy.wilson,
        confusion_matrix=tuple(map(tuple, matrix.tolist())),
        accuracy_by_agreement=(
            None if tiles.votes is None else proportions.accuracy_by_agreement(tiles.labels, predictions, tiles.votes)
        ),
        calibration=CalibrationReport(
            temperature=temperature,
            fitted_on=kept.tiles,
            fitted_in=kept.precision,
            method=kept.method if calibrate else f"calibrate=false; the checkpoint has {kept.temperature:.3f}",
            validation_ece=BeforeAfter(before=kept.ece_before, after=kept.ece_after),
            definition=calibration.DEFINITION,
            before=_calibration(tiles, calibration.softmax(logits), positive=positive, drawn=drawn),
            after=_calibration(tiles, probabilities, positive=positive, drawn=drawn),
        ),
        operating_point=point,
        decision_curve=curve,
        coverage=_coverage(
            tiles, probabilities, abstention=_abstention(tiles, probabilities, validation, limit=abstain, drawn=drawn)
        ),
    )


def interval_method(tiles: Tiles, *, samples: int, seed: int) -> str:
    """Return how the bootstrap draws, in words."""
    drawn = (
        "stratified bootstrap"
        if tiles.groups is None
        else f"bootstrap of whole groups ({len(set(tiles.groups.tolist()))} {GROUPS})"
    )
    return f"95% intervals: {drawn}, {samples} resamples, seed {seed}; Wilson's for fractions of tiles"


def reliability(tiles: Tiles, probabilities: FloatArray, *, positive: int | None) -> tuple[BoolArray, FloatArray]:
    """Return outcomes and scores of a reliability diagram, (N,) each.

    The positive class and its probability; without one, whether the top label is right, and its confidence.
    """
    if positive is not None:
        return tiles.labels == positive, probabilities[:, positive]
    return probabilities.argmax(1) == tiles.labels, probabilities.max(1)


def _calibration(
    tiles: Tiles, probabilities: FloatArray, *, positive: int | None, drawn: Resampling
) -> CalibrationErrors:
    mean, most = calibration.calibration_error_by_chance(probabilities.max(1))
    outcomes, scores = reliability(tiles, probabilities, positive=positive)
    two_with_votes = tiles.votes is not None and len(tiles.classes) == 2
    return CalibrationErrors(
        ece=calibration.expected_calibration_error(tiles.labels, probabilities),
        ece_interval=calibration.calibration_error_interval(tiles.labels, probabilities, drawn.weights(tiles.labels)),
        ece_by_chance=ByChance(mean=mean, quantile_95=most),
        ece_equal_mass=calibration.expected_calibration_error(tiles.labels, probabilities, binning="mass"),
        ece_positive=None if positive is None else calibration.calibration_error(outcomes, scores),
        brier=calibration.brier_score(tiles.labels, probabilities),
        brier_positive=None if positive is None else calibration.binary_brier_score(outcomes, scores),
        soft_vote_brier=(
            calibration.soft_vote_brier(tiles.votes, probabilities[:, 1])  # type: ignore[arg-type]
            if two_with_votes
            else None
        ),
        loss=float(cross_entropy(tiles.labels, probabilities).mean()),
        miscalled=calibration.miscalled_classes(tiles.labels, probabilities),
        reliability=calibration.reliability_curve(outcomes, scores),
    )


def _proportions(
    tiles: Tiles, masks: Mapping[str, tuple[BoolArray, BoolArray]], *, drawn: Resampling
) -> dict[str, DrawnProportion | None]:
    """Return each proportion (tiles that count, tiles counted among) with Wilson's and the bootstrap's interval."""
    hits = np.column_stack([hit for hit, _ in masks.values()]).astype(np.float64)
    among = np.column_stack([among for _, among in masks.values()]).astype(np.float64)
    chunks = []
    for weights in drawn.weights(tiles.labels):
        counted = weights @ among
        chunks.append(np.divide(weights @ hits, counted, out=np.full_like(counted, np.nan), where=counted > 0))
    values = np.concatenate(chunks)  # (S, proportions)
    alone = tiles.groups is not None and len(set(tiles.groups.tolist())) == 1  # nothing to draw from
    found: dict[str, DrawnProportion | None] = {}
    for index, (name, (hit, counted_among)) in enumerate(masks.items()):
        proportion = proportions.proportion(int(hit.sum()), int(counted_among.sum()))
        defined = values[~np.isnan(values[:, index]), index]
        enough = len(defined) >= 0.95 * len(values) and not alone
        interval = tuple(np.quantile(defined, [0.025, 0.975]).tolist()) if enough and proportion is not None else None
        found[name] = None if proportion is None else DrawnProportion(**dict(proportion), interval=interval)
    return found


def _operating_point(
    tiles: Tiles,
    probabilities: FloatArray,
    is_positive: BoolArray,
    validation: FloatArray,
    *,
    positive: int,
    sensitivity: float | None,
    drawn: Resampling,
) -> OperatingPoint | None:
    """Return the threshold that validation chooses and what it does on these tiles; None where it cannot choose."""
    if is_positive.all() or not is_positive.any():
        return None
    threshold = decisions.choose_threshold(is_positive, validation[:, positive], sensitivity=sensitivity)
    there = decisions.outcomes_at(is_positive, validation[:, positive] >= threshold)
    here = decisions.outcomes_at(tiles.labels == positive, probabilities[:, positive] >= threshold)
    return OperatingPoint(
        threshold=threshold,
        rule="maximises Youden's index" if sensitivity is None else f"highest with a sensitivity >= {sensitivity:g}",
        chosen_on=len(validation),
        on_validation={
            name: float(there[name][0].sum() / there[name][1].sum()) for name in ("sensitivity", "specificity")
        },
        here=_proportions(tiles, here, drawn=drawn),
    )


def _abstention(
    tiles: Tiles, probabilities: FloatArray, validation: FloatArray, *, limit: float, drawn: Resampling
) -> Abstention:
    """Return the confidence below which a fraction of validation lies, and what abstaining below it does here."""
    threshold = decisions.choose_abstention(validation.max(1), limit=limit)
    decided = probabilities.max(1) >= threshold
    right = probabilities.argmax(1) == tiles.labels
    masks = {"decided": (decided, np.ones_like(decided)), "accuracy": (right & decided, decided)}
    return Abstention(
        threshold=threshold,
        limit=limit,
        left_out_on_validation=int((validation.max(1) < threshold).sum()),
        chosen_on=len(validation),
        here=_proportions(tiles, masks, drawn=drawn),
    )


def _coverage(tiles: Tiles, probabilities: FloatArray, *, abstention: Abstention) -> Coverage:
    """Return accuracy on the most confident tiles at some coverages, and the areas of the whole curve."""
    curve = decisions.risk_coverage(probabilities.argmax(1) == tiles.labels, probabilities.max(1))
    counts, rows = np.array(curve.count), []
    for coverage in COVERAGES:
        at = int(np.argmax(counts >= coverage * len(tiles) - 1e-9))  # tiles of equal confidence go together
        accuracy = proportions.proportion(curve.correct[at], int(counts[at]))
        assert accuracy is not None  # counts are never 0
        rows.append(
            CoverageRow(
                coverage=float(counts[at] / len(tiles)), confidence=float(curve.confidence[at]), accuracy=accuracy
            )
        )
    return Coverage(
        definition="area: mean error over all coverages, arXiv:1805.08206",
        area=curve.area,
        area_random=curve.area_random,
        area_best=curve.area_best,
        at=tuple(rows),
        abstention=abstention,
    )


def _decision_curve(tiles: Tiles, scores: FloatArray, *, positive: int, drawn: Resampling) -> DecisionCurve:
    """Return net benefit at THRESHOLDS: of the model with its bootstrap interval, and of calling all tiles positive."""
    truth = tiles.labels == positive
    values = np.concatenate(
        [
            decisions.net_benefit(truth, scores, thresholds=THRESHOLDS, weights=weights)
            for weights in drawn.weights(tiles.labels)
        ]
    )
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    return DecisionCurve(
        threshold=tuple(THRESHOLDS.tolist()),
        model=tuple(decisions.net_benefit(truth, scores, thresholds=THRESHOLDS).tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        treat_all=tuple(decisions.net_benefit(truth, np.ones(len(truth)), thresholds=THRESHOLDS).tolist()),
    )
