"""sscl eval: metrics with intervals on a split that selected nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sscl import run, writing
from sscl.config import DataConfig, EvalConfig, plain
from sscl.data.load import all_rows, describe_tiles, groups_are, load_tiles, merge_data, slides_known, split_changes
from sscl.data.tiles import UNLABELLED, Tiles, place_store
from sscl.device import describe_device, pick_device
from sscl.evaluate import calibration, evaluation, model_card
from sscl.evaluate.metrics import FloatArray
from sscl.models import features
from sscl.models.checkpoint import Checkpoint, run_of
from sscl.models.classifier import check_classes, load_classifier, positive_class
from sscl.models.pixels import normalisation
from sscl.plots import calibration as calibration_plots
from sscl.plots import charts
from sscl.run import check_inputs_outside


def main(config: EvalConfig, *, overwrite: bool = False) -> None:
    """Evaluate a finetune checkpoint and write metrics.json, predictions.csv and the pictures.

    Raises:
        ValueError, FileNotFoundError: input that a user can mend, in one line.
    """
    device = pick_device(config.device)
    model, trained = load_classifier(config.checkpoint, device=device)
    out = Path(config.out) if config.out is not None else run_of(config.checkpoint) / f"eval_{config.split}"
    run.check_run_folder(out, overwrite=overwrite)
    data = merge_data(trained.finetune_config.data, config.data)
    check_inputs_outside(out, {"data.root": data.root})
    tiles = load_tiles(data, split=config.split, progress=config.progress)
    check_classes(tiles, trained.classes, checkpoint=config.checkpoint, root=data.root)
    unlabelled = np.flatnonzero(tiles.labels == UNLABELLED)
    if len(unlabelled):
        tiles = tiles.subset(np.setdiff1d(all_rows(tiles), unlabelled))
    positive = positive_class(tiles.classes, config.positive)

    mean, std = normalisation(trained, device)
    store = place_store(tiles.images, device=device, budget_gb=data.device_budget_gb)
    logits = features.outputs(
        model,
        store,
        all_rows(tiles),
        mean=mean,
        std=std,
        batch_size=config.batch_size,
        symmetric=config.tta,
        progress="evaluate" if config.progress else None,
    )
    report: dict[str, Any] = {
        "checkpoint": str(config.checkpoint),
        "epoch": trained.epoch,
        "data": plain(data),
        "split": config.split,
        "protocol": data.protocol if data.source == "mhist" else None,
        "tiles": len(tiles),
        "classes": list(tiles.classes),
        "class_counts": tiles.class_counts(),
        "positive": None if positive is None else tiles.classes[positive],
        "data_fingerprint": tiles.fingerprint,
        "test_time_augmentation": config.tta,
        **evaluation.evaluate(
            tiles,
            logits,
            positive=positive,
            kept=trained.fitted,
            calibrate=config.calibrate,
            sensitivity=config.sensitivity,
            abstain=config.abstain,
            samples=config.bootstrap_samples,
            seed=config.bootstrap_seed,
        ),
    }
    report["caveats"] = [
        *guessed_positive(tiles.classes, positive, wanted=config.positive),
        *([f"{len(unlabelled)} tiles without a label are left out"] if len(unlabelled) else []),
        *caveats(data, tiles, trained, split=config.split),
        *evaluation.interval_caveats(tiles),
    ]
    report["notes"] = evaluation.notes(report)
    probabilities = calibration.softmax(logits, temperature=report["calibration"]["temperature"])

    run.start_folder(out, config=plain(config), overwrite=overwrite)
    writing.write_json(out / "metrics.json", report)
    write_predictions(out / "predictions.csv", tiles, probabilities=probabilities)
    draw(out, tiles, report, probabilities=probabilities, positive=positive)
    print(f"device: {describe_device(device)}")
    print(describe_tiles(data, tiles, split=config.split))
    print(evaluation.table(report))
    for caveat in (*report["caveats"], *report["notes"]):
        print(f"note: {caveat}")
    pictures = sorted(path.name for path in out.glob("*.png"))
    print(f"wrote {out}/metrics.json, predictions.csv, {', '.join(pictures)}")
    if config.split == "test":
        update_card(run_of(config.checkpoint) / model_card.FILE, report, trained, out=out)


def update_card(path: Path, report: dict[str, Any], trained: Checkpoint, *, out: Path) -> None:
    """Put the figures into the run's model card; runs of earlier versions, and files moved elsewhere, have none."""
    if not path.is_file():
        return
    why_not = model_card.refresh(path, model_card.test_section(report, sections=trained.trained_on, folder=out))
    print(f"note: {why_not}" if why_not is not None else f"the test figures in {path} are these now")


def draw(out: Path, tiles: Tiles, report: dict[str, Any], *, probabilities: FloatArray, positive: int | None) -> None:
    """Write the pictures."""
    title = f"{report['split']} split, {len(tiles)} tiles"
    curves: dict[str, Any] = {"classes": tiles.classes, "positive": positive}
    charts.plot_confusion(report["confusion_matrix"], classes=tiles.classes, path=out / "confusion.png", title=title)
    charts.plot_roc(tiles.labels, probabilities, path=out / "roc.png", **curves)
    charts.plot_precision_recall(tiles.labels, probabilities, path=out / "precision_recall.png", **curves)
    found, class_name = report["calibration"], report["positive"]
    changed = found["temperature"] != 1
    calibration_plots.plot_reliability(
        {"before": found["before"], "after": found["after"]} if changed else {"as trained": found["after"]},
        temperature=found["temperature"],
        positive=class_name,
        path=out / "reliability.png",
        title=title,
    )
    abstention = report["coverage"]["abstention"]
    calibration_plots.plot_coverage(
        calibration.risk_coverage(probabilities.argmax(1) == tiles.labels, probabilities.max(1)),
        decided=None if abstention is None else abstention["here"],
        path=out / "coverage.png",
        title=title,
    )
    if report["decision_curve"] is not None:
        point = report["operating_point"]
        calibration_plots.plot_decision_curve(
            report["decision_curve"],
            threshold=None if point is None else point["threshold"],
            positive=class_name,
            path=out / "decision_curve.png",
            title=title,
        )


def guessed_positive(classes: Sequence[str], positive: int | None, *, wanted: str | None) -> list[str]:
    """Return a sentence where the positive class was neither named nor SSA."""
    if positive is None or wanted is not None or classes[positive] == "SSA":
        return []
    return [f"{classes[positive]} is taken for the positive class, as the second of two; set positive=NAME to choose"]


def caveats(data: DataConfig, tiles: Tiles, trained: Checkpoint, *, split: str) -> list[str]:
    """Return what a reader must know before believing the figures, a sentence each."""
    notes = [seen_in_training(data, section, split=split) for section in trained.trained_on]
    found = list(dict.fromkeys(note for note in notes if note is not None))
    train = training_tiles(data, trained.finetune_config.data) if split == "test" else None
    if train is not None and not found and train.fingerprint != trained.fingerprint:
        found.append("the training tiles are not those that were trained on: test tiles may have been among those")
    if tiles.groups is None or (data.group_near_duplicates and not slides_known(data)):
        found.append("no slide or patient ids: tiles of one slide may lie in train and test")
    if tiles.groups is not None and train is not None and train.groups is not None:
        shared = sorted(set(tiles.groups.tolist()) & set(train.groups.tolist()))
        if shared:
            found.append(
                f"of the {groups_are(data)} {len(shared)} lie in train and test (such as {shared[0]}): the figures are "
                "too good"
            )
    return found


def training_tiles(data: DataConfig, trained: DataConfig) -> Tiles | None:
    """Return the training split as it is now, at the size trained on; None for another folder than training's."""
    if Path(data.root).resolve() != Path(trained.root).resolve():
        return None
    return load_tiles(data.model_copy(update={"size_px": trained.size_px}), split="train", progress=False)


def seen_in_training(data: DataConfig, trained: DataConfig, *, split: str) -> str | None:
    """Return a warning where tiles of the split took, or may have taken, part in training; else None."""
    here, there = Path(data.root).resolve(), Path(trained.root).resolve()
    may_have = "tiles of this test split may have taken part in it, so the figures may say nothing about new tiles"
    if there not in (here, here / "train"):
        if not (there.is_relative_to(here) or here.is_relative_to(there)):
            return None
        return f"training took tiles of {there}, which overlaps {here}: {may_have}"
    if split != "test":
        return "these tiles took part in training: the figures say nothing about new tiles"
    changed = split_changes(data, trained) if there == here else []
    return f"{', '.join(changed)} differs from training: {may_have}" if changed else None


def write_predictions(path: Path, tiles: Tiles, *, probabilities: FloatArray) -> None:
    """Write id, label, prediction, a probability per class, the cross-entropy, and votes and group where known.

    The probabilities are those after temperature scaling, and so is the cross-entropy.
    """
    header = ["id", "label", "prediction", *(f"probability_{name}" for name in tiles.classes), "loss"]
    header += ["votes"] if tiles.votes is not None else []
    header += ["group"] if tiles.groups is not None else []
    losses = evaluation.tile_losses(tiles, probabilities)
    rows = []
    for i, name in enumerate(tiles.ids):
        row = [name, tiles.classes[tiles.labels[i]], tiles.classes[int(probabilities[i].argmax())]]
        row += [f"{p:.6f}" for p in probabilities[i].tolist()]
        row.append(f"{losses[i]:.6g}")
        row += [str(tiles.votes[i])] if tiles.votes is not None else []
        row += [str(tiles.groups[i])] if tiles.groups is not None else []
        rows.append(row)
    writing.write_csv(path, header, rows)
