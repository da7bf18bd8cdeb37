"""sscl eval: metrics with intervals on a split that selected nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sscl import features, metrics, plots, run
from sscl.commands.inputs import (
    all_rows,
    check_classes,
    check_inputs_outside,
    describe_tiles,
    load_classifier,
    load_tiles,
    merge_data,
    normalisation,
    positive_class,
    run_of,
    split_changes,
)
from sscl.config import DataConfig, EvalConfig, plain
from sscl.data.tiles import UNLABELLED, Tiles, place_store
from sscl.device import describe_device, pick_device

NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "mcc": "MCC",
}


def main(config: EvalConfig, *, overwrite: bool = False) -> None:
    """Evaluate a finetune checkpoint and write metrics.json, predictions.csv and the pictures.

    Raises:
        ValueError, FileNotFoundError: input that a user can mend, in one line.
    """
    device = pick_device(config.device)
    model, content = load_classifier(config.checkpoint, device=device)
    out = Path(config.out) if config.out is not None else run_of(config.checkpoint) / f"eval_{config.split}"
    run.check_run_folder(out, overwrite=overwrite)
    data = merge_data(content["config"]["data"], config.data)
    check_inputs_outside(out, {"data.root": data.root})
    tiles = load_tiles(data, split=config.split, progress=config.progress)
    check_classes(tiles, content, checkpoint=config.checkpoint, root=data.root)
    unlabelled = np.flatnonzero(tiles.labels == UNLABELLED)
    if len(unlabelled):
        tiles = tiles.subset(np.setdiff1d(all_rows(tiles), unlabelled))
    positive = positive_class(tiles.classes, config.positive)

    mean, std = normalisation(content, device)
    store = place_store(tiles.images, device=device, budget_gb=data.device_budget_gb)
    logits = features.outputs(
        model,
        store,
        all_rows(tiles),
        mean=mean,
        std=std,
        batch_size=config.batch_size,
        progress="evaluate" if config.progress else None,
    )
    probabilities = logits.double().softmax(1).numpy()  # (N, K)
    predictions = probabilities.argmax(1)
    losses = F.cross_entropy(logits.double(), torch.from_numpy(tiles.labels), reduction="none")  # (N,), nats
    values = metrics.classification_metrics(tiles.labels, probabilities, positive=positive)
    intervals = metrics.bootstrap_intervals(
        tiles.labels,
        probabilities,
        positive=positive,
        samples=config.bootstrap_samples,
        seed=config.bootstrap_seed,
    )
    matrix = metrics.confusion_matrix(tiles.labels, predictions, num_classes=len(tiles.classes))
    agreement = None if tiles.votes is None else metrics.accuracy_by_agreement(tiles.labels, predictions, tiles.votes)
    right = int((predictions == tiles.labels).sum())
    report: dict[str, Any] = {
        "checkpoint": str(config.checkpoint),
        "epoch": content["epoch"],
        "data": plain(data),
        "split": config.split,
        "protocol": data.protocol if data.source == "mhist" else None,
        "tiles": len(tiles),
        "classes": list(tiles.classes),
        "class_counts": tiles.class_counts(),
        "positive": None if positive is None else tiles.classes[positive],
        "data_fingerprint": tiles.fingerprint,
        "loss": losses.mean().item(),
        "metrics": values,
        "intervals": intervals,
        "interval_method": (
            f"95% intervals: stratified bootstrap, {config.bootstrap_samples} resamples, seed {config.bootstrap_seed}"
        ),
        "accuracy_wilson": metrics.wilson_interval(right, len(tiles)),
        "confusion_matrix": matrix.tolist(),
        "accuracy_by_agreement": agreement,
        "caveats": [
            *guessed_positive(tiles.classes, positive, wanted=config.positive),
            *([f"{len(unlabelled)} tiles without a label are left out"] if len(unlabelled) else []),
            *caveats(data, tiles, content, split=config.split),
        ],
    }

    run.start_folder(out, config=plain(config), overwrite=overwrite)
    run.write_json(out / "metrics.json", report)
    write_predictions(out / "predictions.csv", tiles, probabilities=torch.from_numpy(probabilities), losses=losses)
    title = f"{config.split} split, {len(tiles)} tiles"
    plots.plot_confusion(matrix, classes=tiles.classes, path=out / "confusion.png", title=title)
    plots.plot_roc(tiles.labels, probabilities, classes=tiles.classes, positive=positive, path=out / "roc.png")
    plots.plot_precision_recall(
        tiles.labels, probabilities, classes=tiles.classes, positive=positive, path=out / "precision_recall.png"
    )
    print(f"device: {describe_device(device)}")
    print(describe_tiles(data, tiles, split=config.split))
    print(table(report))
    for caveat in report["caveats"]:
        print(f"note: {caveat}")
    print(f"wrote {out}/metrics.json, predictions.csv, confusion.png, roc.png, precision_recall.png")


def guessed_positive(classes: Sequence[str], positive: int | None, *, wanted: str | None) -> list[str]:
    """Return a sentence where the positive class was neither named nor SSA."""
    if positive is None or wanted is not None or classes[positive] == "SSA":
        return []
    return [f"{classes[positive]} is taken for the positive class, as the second of two; set positive=NAME to choose"]


def caveats(data: DataConfig, tiles: Tiles, content: dict[str, Any], *, split: str) -> list[str]:
    """Return what a reader must know before believing the figures, a sentence each."""
    notes = [
        seen_in_training(data, section, split=split) for section in (*content["history"], content["config"]["data"])
    ]
    found = list(dict.fromkeys(note for note in notes if note is not None))
    train = training_tiles(data, content) if split == "test" else None
    if train is not None and not found and train.fingerprint != content["data_fingerprint"]:
        found.append("the training tiles are not those that were trained on: test tiles may have been among those")
    if tiles.groups is None:
        found.append("no slide or patient ids: tiles of one slide may lie in train and test")
    elif train is not None and train.groups is not None:
        shared = sorted(set(tiles.groups.tolist()) & set(train.groups.tolist()))
        if shared:
            found.append(f"{len(shared)} slides lie in train and test (such as {shared[0]}): the figures are too good")
    found.append("the intervals take tiles for independent; with several tiles a slide they are too narrow")
    return found


def training_tiles(data: DataConfig, content: dict[str, Any]) -> Tiles | None:
    """Return the training split as it is now, at the size trained on; None for another folder than training's."""
    trained = content["config"]["data"]
    if Path(data.root).resolve() != Path(trained["root"]).resolve():
        return None
    return load_tiles(data.model_copy(update={"size_px": trained["size_px"]}), split="train", progress=False)


def seen_in_training(data: DataConfig, trained: dict[str, Any], *, split: str) -> str | None:
    """Return a warning where tiles of the split took, or may have taken, part in training; else None."""
    here, there = Path(data.root).resolve(), Path(trained["root"]).resolve()
    may_have = "tiles of this test split may have taken part in it, so the figures may say nothing about new tiles"
    if there not in (here, here / "train"):
        if not (there.is_relative_to(here) or here.is_relative_to(there)):
            return None
        return f"training took tiles of {there}, which overlaps {here}: {may_have}"
    if split != "test":
        return "these tiles took part in training: the figures say nothing about new tiles"
    changed = split_changes(data, trained) if there == here else []
    return f"{', '.join(changed)} differs from training: {may_have}" if changed else None


def write_predictions(path: Path, tiles: Tiles, *, probabilities: torch.Tensor, losses: torch.Tensor) -> None:
    """Write id, label, prediction, a probability per class, the cross-entropy, and votes and group where known."""
    header = ["id", "label", "prediction", *(f"probability_{name}" for name in tiles.classes), "loss"]
    header += ["votes"] if tiles.votes is not None else []
    header += ["group"] if tiles.groups is not None else []
    rows = []
    for i, name in enumerate(tiles.ids):
        row = [name, tiles.classes[tiles.labels[i]], tiles.classes[int(probabilities[i].argmax())]]
        row += [f"{p:.6f}" for p in probabilities[i].tolist()]
        row.append(f"{losses[i].item():.6g}")
        row += [str(tiles.votes[i])] if tiles.votes is not None else []
        row += [str(tiles.groups[i])] if tiles.groups is not None else []
        rows.append(row)
    run.write_csv(path, header, rows)


def table(report: dict[str, Any]) -> str:
    """Return the report as lines for the terminal, each figure with its 95% interval."""

    def cell(value: float | None, interval: Any) -> str:
        if value is None:
            return "undefined"
        return f"{value:.4f}" + ("" if interval is None else f"  ({interval[0]:.4f} to {interval[1]:.4f})")

    values, intervals, classes = report["metrics"], report["intervals"], report["classes"]
    rows = [(name, cell(values[key], intervals[key])) for key, name in NAMES.items()]
    if report["positive"] is not None:
        for key in ("sensitivity", "specificity"):
            rows.append((f"{report['positive']} {key}", cell(values[key], intervals[key])))
    for i, name in enumerate(classes):
        for key in ("precision", "recall", "f1"):
            label = "F1" if key == "f1" else key
            rows.append((f"{name} {label}", cell(values["per_class"][i][key], intervals["per_class"][i][key])))
    low, high = report["accuracy_wilson"]
    rows.append(("accuracy, Wilson 95%", f"        ({low:.4f} to {high:.4f})"))
    for row in report["accuracy_by_agreement"] or []:
        if row["count"]:
            text = f"{cell(row['accuracy'], row['interval'])}  {row['correct']} of {row['count']}"
            rows.append((f"accuracy, {row['agreement']} agree", text))
    width = max(len(name) for name, _ in rows)
    positive = "" if report["positive"] is None else f"; positive class {report['positive']}"
    lines = [f"{report['interval_method']}{positive}", *(f"  {name:<{width}}  {text}" for name, text in rows)]
    name_width = max(9, *map(len, classes))
    cells = "  ".join(f"{name:>{name_width}}" for name in classes)
    lines += ["confusion matrix (rows: truth, columns: prediction)", f"  {'':<{name_width}}  {cells}"]
    for name, counts in zip(classes, report["confusion_matrix"], strict=True):
        lines.append(f"  {name:<{name_width}}  " + "  ".join(f"{count:>{name_width}}" for count in counts))
    return "\n".join(lines)
