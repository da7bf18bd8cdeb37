"""An evaluation: metrics, calibration, operating point and abstention on a split, with intervals.

N tiles, K classes, T thresholds. Temperature and thresholds come from validation, never from these tiles.
"""

from __future__ import annotations

import numpy as np
import torch

from sscl.data.tiles import Tiles
from sscl.evaluate import calibration, decisions, influence, intervals, metrics, proportions
from sscl.evaluate.decisions import BoolArray
from sscl.evaluate.intervals import Sample, wald_interval
from sscl.evaluate.metric_intervals import interval_method, metric_intervals
from sscl.evaluate.metrics import FloatArray
from sscl.evaluate.predictions import cross_entropy
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


def evaluate(
    tiles: Tiles,
    logits: torch.Tensor,
    *,
    positive: int | None,
    kept: KeptCalibration,
    calibrate: bool = True,
    sensitivity: float | None = None,
    abstain: float = 0.2,
) -> Results:
    """Return the results on labelled tiles. Argmax predictions are the same before and after calibration.

    Args:
        tiles: all of them labelled. logits: (N, K). positive: index of the positive class of two, or None.
        kept: what the checkpoint keeps of its validation tiles.
        calibrate: whether its temperature is applied.
        sensitivity: to be reached at the operating point on validation; None = Youden's index.
        abstain: fraction of the validation tiles to be left undecided, at most.
    """
    temperature = kept.temperature if calibrate else 1.0
    probabilities = calibration.softmax(logits, temperature=temperature)
    predictions = probabilities.argmax(1)
    matrix = metrics.confusion_matrix(tiles.labels, predictions, num_classes=len(tiles.classes))
    sample = Sample.of(tiles.labels, classes=len(tiles.classes), groups=tiles.groups)
    ends = metric_intervals(tiles.labels, probabilities, positive=positive, groups=tiles.groups)
    validation = calibration.softmax(kept.logits, temperature=temperature)
    point = curve = None
    if positive is not None:
        is_positive = kept.labels.numpy() == positive
        point = _operating_point(
            tiles, probabilities, is_positive, validation, positive=positive, sensitivity=sensitivity, sample=sample
        )
        curve = _decision_curve(tiles, probabilities[:, positive], positive=positive, sample=sample)
    return Results(
        loss=float(cross_entropy(tiles.labels, probabilities).mean()),
        metrics=metrics.classification_metrics(tiles.labels, probabilities, positive=positive),
        intervals=ends,
        interval_method=interval_method(tiles.groups),
        groups=None if tiles.groups is None else len(set(tiles.groups.tolist())),
        proportions=proportions.metric_proportions(matrix, ends, positive=positive),
        confusion_matrix=tuple(map(tuple, matrix.tolist())),
        accuracy_by_agreement=(
            None
            if tiles.votes is None
            else proportions.accuracy_by_agreement(tiles.labels, predictions, tiles.votes, sample=sample)
        ),
        calibration=CalibrationReport(
            temperature=temperature,
            fitted_on=kept.tiles,
            fitted_in=kept.precision,
            method=kept.method if calibrate else f"calibrate=false; the checkpoint has {kept.temperature:.3f}",
            validation_ece=BeforeAfter(before=kept.ece_before, after=kept.ece_after),
            definition=calibration.DEFINITION,
            before=_calibration(tiles, calibration.softmax(logits), positive=positive, sample=sample),
            after=_calibration(tiles, probabilities, positive=positive, sample=sample),
        ),
        operating_point=point,
        decision_curve=curve,
        coverage=_coverage(
            tiles,
            probabilities,
            abstention=_abstention(tiles, probabilities, validation, limit=abstain, sample=sample),
            sample=sample,
        ),
    )


def reliability(tiles: Tiles, probabilities: FloatArray, *, positive: int | None) -> tuple[BoolArray, FloatArray]:
    """Return outcomes and scores of a reliability diagram, (N,) each.

    The positive class and its probability; without one, whether the top label is right, and its confidence.
    """
    if positive is not None:
        return tiles.labels == positive, probabilities[:, positive]
    return probabilities.argmax(1) == tiles.labels, probabilities.max(1)


def error_by_chance(labels: metrics.IntArray, probabilities: FloatArray, sample: Sample) -> ByChance:
    """Return which calibration errors chance gives; tiles of slides that err together are worth fewer."""
    confidence = probabilities.max(1)
    worth = None
    if sample.groups is not None:
        gaps = influence.mean_of_tiles((probabilities.argmax(1) == labels) - confidence, sample)
        apart = max(float((gaps.influence**2).sum()), 1e-12)
        worth = max(1, round(len(labels) * min(1.0, apart / max(intervals.spread(gaps, floor=np.zeros(1))[0], apart))))
    true = calibration.calibration_error_by_chance(confidence, worth=worth)
    off = calibration.calibration_error_by_chance(confidence, gap=calibration.MATTERS_ECE, worth=worth, seed=1)
    most = float(np.quantile(true, 0.95))
    return ByChance(mean=float(true.mean()), quantile_95=most, power=float((off > most).mean()))


def _calibration(tiles: Tiles, probabilities: FloatArray, *, positive: int | None, sample: Sample) -> CalibrationErrors:
    outcomes, scores = reliability(tiles, probabilities, positive=positive)
    two_with_votes = tiles.votes is not None and len(tiles.classes) == 2
    return CalibrationErrors(
        ece=calibration.expected_calibration_error(tiles.labels, probabilities),
        ece_by_chance=error_by_chance(tiles.labels, probabilities, sample),
        ece_equal_mass=calibration.expected_calibration_error(tiles.labels, probabilities, equal_mass=True),
        ece_positive=None if positive is None else calibration.calibration_error(outcomes, scores),
        brier=calibration.brier_score(tiles.labels, probabilities),
        brier_positive=None if positive is None else calibration.binary_brier_score(outcomes, scores),
        soft_vote_brier=(
            calibration.soft_vote_brier(tiles.votes, probabilities[:, 1])  # type: ignore[arg-type]
            if two_with_votes
            else None
        ),
        loss=float(cross_entropy(tiles.labels, probabilities).mean()),
        miscalled=calibration.miscalled_classes(tiles.labels, probabilities, sample=sample),
        reliability=calibration.reliability_curve(outcomes, scores, sample=sample),
    )


def _operating_point(
    tiles: Tiles,
    probabilities: FloatArray,
    is_positive: BoolArray,
    validation: FloatArray,
    *,
    positive: int,
    sensitivity: float | None,
    sample: Sample,
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
        here=proportions.proportions_among(here, sample),
    )


def _abstention(
    tiles: Tiles, probabilities: FloatArray, validation: FloatArray, *, limit: float, sample: Sample
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
        here=proportions.proportions_among(masks, sample),
    )


def _coverage(tiles: Tiles, probabilities: FloatArray, *, abstention: Abstention, sample: Sample) -> Coverage:
    """Return accuracy on the most confident tiles at some coverages, and the areas of the whole curve."""
    right, confidence = probabilities.argmax(1) == tiles.labels, probabilities.max(1)
    curve = decisions.risk_coverage(right, confidence)
    counts, masks = np.array(curve.count), {}
    for coverage in COVERAGES:
        at = int(np.argmax(counts >= coverage * len(tiles) - 1e-9))  # tiles of equal confidence go together
        masks[str(coverage)] = (right, confidence >= curve.confidence[at])
    rows = []
    for (_, among), accuracy in zip(masks.values(), proportions.proportions_among(masks, sample).values(), strict=True):
        assert accuracy is not None  # some tile is counted
        lowest = float(confidence[among].min())
        rows.append(CoverageRow(coverage=accuracy.of / len(tiles), confidence=lowest, accuracy=accuracy))
    return Coverage(
        definition="area: mean error over all coverages, arXiv:1805.08206",
        area=curve.area,
        area_random=curve.area_random,
        area_best=curve.area_best,
        at=tuple(rows),
        abstention=abstention,
    )


def _decision_curve(tiles: Tiles, scores: FloatArray, *, positive: int, sample: Sample) -> DecisionCurve:
    """Return net benefit at THRESHOLDS: of the model with its 95% interval, and of calling all tiles positive."""
    truth = tiles.labels == positive
    gains = decisions.tile_benefits(truth, scores, thresholds=THRESHOLDS)  # (N, T)
    steps = np.maximum(1, THRESHOLDS / (1 - THRESHOLDS)) / len(truth)
    ends = [
        wald_interval(influence.mean_of_tiles(gain, sample, step=step), bounds=(-np.inf, 1))
        for gain, step in zip(gains.T, steps, strict=True)
    ]
    given = [pair for pair in ends if pair is not None]
    band = tuple(zip(*given, strict=True)) if len(given) == len(ends) else (None, None)
    return DecisionCurve(
        threshold=tuple(THRESHOLDS.tolist()),
        model=tuple(gains.mean(0).tolist()),
        low=band[0],
        high=band[1],
        treat_all=tuple(decisions.tile_benefits(truth, np.ones(len(truth)), thresholds=THRESHOLDS).mean(0).tolist()),
    )
