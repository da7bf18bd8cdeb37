"""The report of an evaluation: what logits on a split are worth, with intervals, and the lines that say it.

N tiles, K classes, S resamples, T thresholds. Temperature and thresholds come from validation, never from these tiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sscl.data.tiles import Tiles
from sscl.evaluate import calibration, metrics
from sscl.evaluate.calibration import BoolArray
from sscl.evaluate.metrics import FloatArray
from sscl.models.calibration import KeptCalibration

NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "mcc": "MCC",
}
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
THRESHOLDS = np.arange(2, 100, 2) / 100  # of the decision curve


def evaluate(
    tiles: Tiles,
    logits: torch.Tensor,
    *,
    positive: int | None,
    kept: KeptCalibration | None = None,
    calibrate: bool = True,
    sensitivity: float | None = None,
    abstain: float = 0.2,
    samples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the figures of metrics.json. Argmax predictions are the same before and after calibration.

    Args:
        tiles: all of them labelled. logits: (N, K). positive: index of the positive class of two, or None.
        kept: what the checkpoint keeps of its validation tiles, see `calibration.fit_calibration`; None = nothing, and
            then there is neither a temperature, nor an operating point, nor an abstention threshold.
        calibrate: whether its temperature is applied.
        sensitivity: to be reached at the operating point on validation; None = Youden's index.
        abstain: share of the validation tiles to be left undecided, at most.
        samples, seed: of the bootstrap; whole groups are drawn where the tiles have them.
    """
    temperature = kept.temperature if kept is not None and calibrate else 1.0
    probabilities = calibration.softmax(logits, temperature=temperature)
    predictions = probabilities.argmax(1)
    matrix = metrics.confusion_matrix(tiles.labels, predictions, num_classes=len(tiles.classes))
    wilson = metrics.wilson_proportions(matrix, positive=positive)
    drawn: dict[str, Any] = {"groups": tiles.groups, "samples": samples, "seed": seed}
    intervals = metrics.bootstrap_intervals(tiles.labels, probabilities, positive=positive, **drawn)
    validation = None if kept is None else calibration.softmax(kept.logits, temperature=temperature)
    point, abstention = None, None
    if kept is not None and validation is not None:
        if positive is not None:
            is_positive = kept.labels.numpy() == positive
            point = _operating_point(
                tiles, probabilities, is_positive, validation, positive=positive, sensitivity=sensitivity, drawn=drawn
            )
        abstention = _abstention(tiles, probabilities, validation, share=abstain, drawn=drawn)
    return {
        "loss": _cross_entropy(tiles, probabilities),
        "metrics": metrics.classification_metrics(tiles.labels, probabilities, positive=positive),
        "intervals": intervals,
        "interval_method": interval_method(tiles, samples=samples, seed=seed),
        "wilson": wilson,
        "accuracy_wilson": wilson["accuracy"]["wilson"],
        "confusion_matrix": matrix.tolist(),
        "accuracy_by_agreement": (
            None if tiles.votes is None else metrics.accuracy_by_agreement(tiles.labels, predictions, tiles.votes)
        ),
        "calibration": {
            "temperature": temperature,
            "fitted_on": None if kept is None else kept.tiles,
            "method": _method(kept, calibrate=calibrate),
            "validation_ece": None if kept is None else {"before": kept.ece_before, "after": kept.ece_after},
            "definition": calibration.DEFINITION,
            "before": _calibration(tiles, calibration.softmax(logits), positive=positive),
            "after": _calibration(tiles, probabilities, positive=positive),
        },
        "operating_point": point,
        "decision_curve": (
            None
            if positive is None
            else _decision_curve(tiles, probabilities[:, positive], positive=positive, drawn=drawn)
        ),
        "coverage": {**_coverage(tiles, probabilities), "abstention": abstention},
    }


def interval_method(tiles: Tiles, *, samples: int, seed: int) -> str:
    """Return how the bootstrap draws."""
    drawn = (
        "stratified bootstrap"
        if tiles.groups is None
        else f"bootstrap of whole groups ({len(set(tiles.groups.tolist()))} {metrics.GROUPS})"
    )
    return f"95% intervals: {drawn}, {samples} resamples, seed {seed}; Wilson's beside shares of tiles"


def interval_caveats(tiles: Tiles) -> list[str]:
    """Return what to know before believing the intervals, a sentence each; all begin with "the intervals"."""
    if tiles.groups is None:
        return ["the intervals take tiles for independent; with several tiles a slide they are too narrow"]
    few = metrics.few_groups(tiles.groups)
    return [
        "the intervals by Wilson take tiles for independent; with several tiles a slide they are too narrow",
        *([f"the intervals draw whole groups, but {few}"] if few is not None else []),
    ]


def notes(report: Mapping[str, Any]) -> list[str]:
    """Return how to read intervals without width, probabilities, threshold and net benefit, a sentence each."""
    found = []
    flat = [name for name, _, interval, _ in figures(report) if interval is not None and interval[0] == interval[1]]
    if flat:
        found.append(
            f"no resample differs in {', '.join(flat)}: an interval without width does not mean that the figure is "
            "certain; read Wilson's"
        )
    if report["calibration"]["fitted_on"] is None:
        found.append(
            "the checkpoint is from before calibration was kept: temperature 1, no operating point, no abstention "
            "threshold; run sscl finetune again to have them"
        )
    else:
        found.append(
            "temperature and thresholds come from the validation tiles that also chose the epoch, and flatter it"
            + ("; they were fitted without test-time augmentation" if report["test_time_augmentation"] else "")
        )
        if report["calibration"]["fitted_on"] < calibration.FEW:
            found.append(
                f"{report['calibration']['fitted_on']} validation tiles are few: with others the temperature, the "
                "operating point and the abstention threshold may be quite different"
            )
        if report["positive"] is not None and report["operating_point"] is None:
            found.append("no operating point: the validation tiles are all of one class")
    before, after = (report["calibration"][stage]["loss"] for stage in ("before", "after"))
    if after > before:
        found.append(
            f"the temperature made the cross-entropy here worse ({before:.4f} to {after:.4f}): the validation tiles "
            "are too few, or too unlike these"
        )
    if report["calibration"]["temperature"] != 1:
        found.append("probabilities and losses, in predictions.csv too, are the calibrated ones (calibrate=false: raw)")
    if report["positive"] is not None:
        share = 100 * report["class_counts"][report["positive"]] / report["tiles"]
        found.append(
            f"PPV, NPV and net benefit hold where {share:.1f}% of tiles are {report['positive']}, as here; elsewhere "
            "they differ"
        )
    return found


# --- the parts of the report ---


def _method(kept: KeptCalibration | None, *, calibrate: bool) -> str:
    if kept is None:
        return "the checkpoint keeps none"
    return kept.method if calibrate else f"calibrate=false; that of the checkpoint is {kept.temperature:.3f}"


def _cross_entropy(tiles: Tiles, probabilities: FloatArray) -> float:
    """Return the mean cross-entropy in nats."""
    return float(tile_losses(tiles, probabilities).mean())


def tile_losses(tiles: Tiles, probabilities: FloatArray) -> FloatArray:
    """Return the cross-entropy of each tile in nats, (N,)."""
    found: FloatArray = -np.log(np.maximum(probabilities[np.arange(len(tiles)), tiles.labels], 1e-300))
    return found


def reliability(tiles: Tiles, probabilities: FloatArray, *, positive: int | None) -> tuple[BoolArray, FloatArray]:
    """Return what a reliability diagram is drawn of, outcomes and scores (N,) each.

    The positive class and its probability; without one whether the top label is right, and its confidence.
    """
    if positive is not None:
        return tiles.labels == positive, probabilities[:, positive]
    return probabilities.argmax(1) == tiles.labels, probabilities.max(1)


def _calibration(tiles: Tiles, probabilities: FloatArray, *, positive: int | None) -> dict[str, Any]:
    mean, most = calibration.calibration_error_by_chance(probabilities.max(1))
    outcomes, scores = reliability(tiles, probabilities, positive=positive)
    two_with_votes = tiles.votes is not None and len(tiles.classes) == 2
    return {
        "ece": calibration.expected_calibration_error(tiles.labels, probabilities),
        "ece_by_chance": {"mean": mean, "quantile_95": most},
        "ece_equal_mass": calibration.expected_calibration_error(tiles.labels, probabilities, binning="mass"),
        "ece_positive": None if positive is None else calibration.calibration_error(outcomes, scores),
        "brier": calibration.brier_score(tiles.labels, probabilities),
        "brier_positive": None if positive is None else calibration.binary_brier_score(outcomes, scores),
        "soft_vote_brier": calibration.soft_vote_brier(tiles.votes, probabilities[:, 1])  # type: ignore[arg-type]
        if two_with_votes
        else None,
        "loss": _cross_entropy(tiles, probabilities),
        "reliability": calibration.reliability_curve(outcomes, scores),
    }


def _shares(
    tiles: Tiles, masks: Mapping[str, tuple[BoolArray, BoolArray]], *, drawn: Mapping[str, Any]
) -> dict[str, Any]:
    """Return each proportion (tiles that count, tiles counted among) with Wilson's and the bootstrap's interval."""
    hits = np.column_stack([hit for hit, _ in masks.values()]).astype(np.float64)
    among = np.column_stack([among for _, among in masks.values()]).astype(np.float64)
    chunks = []
    for weights in metrics.resamples(tiles.labels, **drawn):
        counted = weights @ among
        chunks.append(np.divide(weights @ hits, counted, out=np.full_like(counted, np.nan), where=counted > 0))
    values = np.concatenate(chunks)  # (S, proportions)
    alone = tiles.groups is not None and len(set(tiles.groups.tolist())) == 1  # nothing to draw from
    found: dict[str, Any] = {}
    for index, (name, (hit, counted_among)) in enumerate(masks.items()):
        share = metrics.proportion(int(hit.sum()), int(counted_among.sum()))
        defined = values[~np.isnan(values[:, index]), index]
        if share is not None:
            enough = len(defined) >= 0.95 * len(values) and not alone
            share["interval"] = tuple(np.quantile(defined, [0.025, 0.975]).tolist()) if enough else None
        found[name] = share
    return found


def _operating_point(
    tiles: Tiles,
    probabilities: FloatArray,
    is_positive: BoolArray,
    validation: FloatArray,
    *,
    positive: int,
    sensitivity: float | None,
    drawn: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Return the threshold that validation chooses and what it does on these tiles; None where it cannot choose."""
    if is_positive.all() or not is_positive.any():
        return None
    threshold = calibration.choose_threshold(is_positive, validation[:, positive], sensitivity=sensitivity)
    there = calibration.outcomes_at(is_positive, validation[:, positive] >= threshold)
    here = calibration.outcomes_at(tiles.labels == positive, probabilities[:, positive] >= threshold)
    return {
        "threshold": threshold,
        "rule": "Youden's index" if sensitivity is None else f"sensitivity of {sensitivity:g} or more",
        "chosen_on": len(validation),
        "on_validation": {name: float(there[name][0].sum() / there[name][1].sum()) for name in list(there)[:2]},
        "here": _shares(tiles, here, drawn=drawn),
    }


def _abstention(
    tiles: Tiles, probabilities: FloatArray, validation: FloatArray, *, share: float, drawn: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the confidence below which a share of validation lies, and what deciding from it on does here."""
    threshold = calibration.choose_abstention(validation.max(1), share=share)
    decided = probabilities.max(1) >= threshold
    right = probabilities.argmax(1) == tiles.labels
    masks = {"decided": (decided, np.ones_like(decided)), "accuracy": (right & decided, decided)}
    return {
        "threshold": threshold,
        "share_on_validation": share,
        "left_out_on_validation": int((validation.max(1) < threshold).sum()),
        "chosen_on": len(validation),
        "here": _shares(tiles, masks, drawn=drawn),
    }


def _coverage(tiles: Tiles, probabilities: FloatArray) -> dict[str, Any]:
    """Return accuracy on the most confident tiles at some shares of them, and the areas of the whole curve."""
    curve = calibration.risk_coverage(probabilities.argmax(1) == tiles.labels, probabilities.max(1))
    counts, rows = np.array(curve["count"]), []
    for coverage in COVERAGES:
        at = int(np.argmax(counts >= coverage * len(tiles) - 1e-9))  # tiles of equal confidence go together
        rows.append(
            {
                "coverage": float(counts[at] / len(tiles)),
                "confidence": curve["confidence"][at],
                "accuracy": metrics.proportion(curve["correct"][at], int(counts[at])),
            }
        )
    areas = {key: curve[key] for key in ("area", "area_random", "area_best")}
    return {"definition": "area: mean error over all coverages, arXiv:1805.08206", **areas, "at": rows}


def _decision_curve(
    tiles: Tiles, scores: FloatArray, *, positive: int, drawn: Mapping[str, Any]
) -> dict[str, list[float]]:
    """Return net benefit at THRESHOLDS: of the model with its bootstrap interval, and of calling all tiles positive."""
    truth = tiles.labels == positive
    values = np.concatenate(
        [
            calibration.net_benefit(truth, scores, thresholds=THRESHOLDS, weights=weights)
            for weights in metrics.resamples(tiles.labels, **drawn)
        ]
    )
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    return {
        "threshold": THRESHOLDS.tolist(),
        "model": calibration.net_benefit(truth, scores, thresholds=THRESHOLDS).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "treat_all": calibration.net_benefit(truth, np.ones(len(truth)), thresholds=THRESHOLDS).tolist(),
    }


# --- the rows of a table ---

Row = tuple[str, float | None, Any, Any]  # name, value, bootstrap interval, `metrics.proportion`


def figures(report: Mapping[str, Any]) -> list[Row]:
    """Return the figures of the argmax, a row each; those of every class come last, three a class.

    A report from before Wilson's intervals has none.
    """
    values, intervals = report["metrics"], report["intervals"]
    wilson = report.get("wilson", {"per_class": [{} for _ in report["classes"]]})
    rows: list[Row] = [(name, values[key], intervals[key], wilson.get(key)) for key, name in NAMES.items()]
    if report["positive"] is not None:
        for key in ("sensitivity", "specificity"):
            rows.append((f"{report['positive']} {key}", values[key], intervals[key], wilson.get(key)))
    for i, name in enumerate(report["classes"]):
        for key in ("precision", "recall", "f1"):
            label = "F1" if key == "f1" else key
            of_class = (part["per_class"][i].get(key) for part in (values, intervals, wilson))
            rows.append((f"{name} {label}", *of_class))
    return rows


def share_rows(shares: Mapping[str, Any], names: Mapping[str, str]) -> list[Row]:
    """Return the proportions of an operating point or of abstention, a row each; names: {key: what it is called}."""
    found: list[Row] = []
    for key, name in names.items():
        share = shares[key]
        found.append((name, None, None, None) if share is None else (name, share["value"], share["interval"], share))
    return found


# --- the lines of the terminal ---


def _lines(rows: list[Row], *, width: int) -> list[str]:
    """Return rows as lines: value, bootstrap interval, Wilson's, counts."""

    def interval(pair: Any) -> str:
        return "" if pair is None else f"{pair[0]:.4f} to {pair[1]:.4f}"

    found = []
    for name, value, drawn, share in rows:
        shown = "undefined" if value is None else f"{value:.4f}"
        score = ("", "") if share is None else (interval(share["wilson"]), f"{share['count']} of {share['of']}")
        found.append(f"  {name:<{width}}  {shown:<9}  {interval(drawn):<16}  {score[0]:<16}  {score[1]}".rstrip())
    return found


def table(report: Mapping[str, Any]) -> str:
    """Return the report as lines for the terminal, each figure with its 95% intervals."""
    main = figures(report)
    for row in report["accuracy_by_agreement"] or []:
        if row["count"]:
            share = metrics.proportion(row["correct"], row["count"])
            main.append((f"accuracy, {row['agreement']} agree", row["accuracy"], None, share))
    positive = "" if report["positive"] is None else f"; positive class {report['positive']}"
    width = max(23, *(len(name) for name, *_ in main))
    lines = [f"{report['interval_method']}{positive}"]
    lines += [f"  {'':<{width}}  {'value':<9}  {'bootstrap':<16}  {'Wilson':<16}", *_lines(main, width=width)]
    classes = report["classes"]
    name_width = max(9, *map(len, classes))
    cells = "  ".join(f"{name:>{name_width}}" for name in classes)
    lines += ["confusion matrix (rows: truth, columns: prediction)", f"  {'':<{name_width}}  {cells}"]
    for name, counts in zip(classes, report["confusion_matrix"], strict=True):
        lines.append(f"  {name:<{name_width}}  " + "  ".join(f"{count:>{name_width}}" for count in counts))
    lines += [*_calibration_lines(report, width=width), *_decision_lines(report, width=width)]
    return "\n".join(line.rstrip() for line in lines)


def _calibration_lines(report: Mapping[str, Any], *, width: int) -> list[str]:
    found = report["calibration"]
    before, after = found["before"], found["after"]
    lines = [
        f"calibration: temperature {found['temperature']:.3f} ({found['method']})",
        f"  {'':<{width}}  {'before':<9}  after",
    ]
    chance = after["ece_by_chance"]
    beside = f"   true probabilities: {chance['mean']:.4f} on average, below {chance['quantile_95']:.4f} in 95%"
    rows = [
        ("ECE", "ece", beside),
        ("ECE, bins of equal mass", "ece_equal_mass", ""),
        ("Brier score", "brier", ""),
        ("cross-entropy", "loss", ""),
        (f"Brier against votes/{metrics.ANNOTATORS}", "soft_vote_brier", ""),
    ]
    for name, key, more in rows:
        if after[key] is not None:
            lines.append(f"  {name:<{width}}  {before[key]:<9.4f}  {after[key]:.4f}{more}")
    return lines


def _decision_lines(report: Mapping[str, Any], *, width: int) -> list[str]:
    lines = []
    point, coverage = report["operating_point"], report["coverage"]
    if point is not None:
        there = " and ".join(f"{name} {value:.3f}" for name, value in point["on_validation"].items())
        lines.append(
            f"operating point: {report['positive']} from a probability of {point['threshold']:.4f} on, by "
            f"{point['rule']} on {point['chosen_on']} validation tiles ({there} there)"
        )
        lines += _lines(share_rows(point["here"], {key: key for key in point["here"]}), width=width)
    lines.append(
        f"abstention: area under the risk {coverage['area']:.4f} ({coverage['area_random']:.4f} in an order by chance, "
        f"{coverage['area_best']:.4f} at best)"
    )
    rows: list[Row] = [
        (f"accuracy, surest {100 * row['coverage']:.0f}%", row["accuracy"]["value"], None, row["accuracy"])
        for row in coverage["at"]
        if row["coverage"] < 1
    ]
    lines += _lines(rows, width=width)
    abstention = coverage["abstention"]
    if abstention is not None:
        lines.append(
            f"  deciding from a confidence of {abstention['threshold']:.4f} on, which leaves out "
            f"{abstention['left_out_on_validation']} of {abstention['chosen_on']} validation tiles (at most "
            f"{100 * abstention['share_on_validation']:g}% wanted)"
        )
        names = {"decided": "tiles decided here", "accuracy": "accuracy on these"}
        lines += _lines(share_rows(abstention["here"], names), width=width)
    return lines
