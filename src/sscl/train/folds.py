"""Cross-validation of finetune: which tiles each fold holds out, its runs, and what the held-out tiles say together.

The training split alone is divided; the test split stays untouched. A fold's held-out tiles select nothing: its
validation tiles are carved from what it trains on. Shape letters: N tiles, K classes.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sscl import ranks, run, writing
from sscl.config import FinetuneConfig, changed_keys, load_config, plain
from sscl.data.load import all_rows, groups_are, has_validation, load_tiles
from sscl.data.tiles import Tiles, place_store
from sscl.device import pick_device, pick_precision
from sscl.evaluate import calibration, lineage, metrics, predictions, tables
from sscl.evaluate.bootstrap import bootstrap_intervals, few_groups
from sscl.models import checkpoint, features
from sscl.models.classifier import load_classifier, positive_class
from sscl.models.pixels import normalisation
from sscl.models.start import start_encoder, weights_file
from sscl.plots import comparison as comparison_plots
from sscl.run import check_inputs_outside
from sscl.train.finetune import train_classifier
from sscl.train.labelled import held_out, labelled_parts, training_rows

SHOWN = {key: metrics.display_name(key) for key in ("accuracy", "balanced_accuracy", "macro_f1", "auroc")}
SAMPLES = 2000  # resamples behind each interval
SHARED = (
    "folds share training tiles, so their figures are not independent: the sd over folds understates what other tiles "
    "would change (Bengio & Grandvalet 2004)"
)
MODELS = "the pooled predictions are of different classifiers: they judge the recipe, not any one of them"


def cross_validate(config: FinetuneConfig, *, overwrite: bool) -> None:
    """Train every fold that is not complete, and write predictions of all held-out tiles, their figures and a picture.

    With `train.fold` that fold alone is trained, in the run folder itself.

    Args:
        overwrite: whether folds that are there are trained again.

    Raises:
        ValueError, FileNotFoundError: input that a user can mend, in one line, before anything is written.
    """
    if ranks.expected_ranks() > 1:
        raise ValueError("train.folds: folds run one after the other in one process; start it without torchrun")
    device = pick_device(config.device)
    pick_precision(config.precision, device)
    folder = Path(config.run)
    check_inputs_outside(folder, {"model.weights": config.model.weights, "data.root": config.data.root})
    alone = config.train.fold is not None
    if alone:
        run.check_run_folder(folder, overwrite=overwrite, trains=True)
        goes_on = False
    else:
        goes_on = check_folder(folder, config, overwrite=overwrite)
    tiles = load_tiles(config.data, split="train", progress=config.log.progress)
    held = held_out(tiles, config)
    numbers = [config.train.fold] if config.train.fold is not None else list(range(1, len(held) + 1))
    configs = {number: fold_config(config, number) for number in numbers}
    if not has_validation(config.data):
        for one in configs.values():
            labelled_parts(tiles.subset(training_rows(tiles, one)), one)
    notes = caveats(config, tiles)
    complete = [n for n in numbers if goes_on and is_complete(configs[n], tiles, held[n - 1])]
    if not alone:
        if not goes_on:
            run.start_folder(folder, config=plain(config), overwrite=overwrite)
        print(f"{len(numbers)} folds in {folder}: {len(complete)} complete, {len(numbers) - len(complete)} to train")
    for number in numbers:
        one = configs[number]
        if number in complete:
            print(f"reused: {Path(one.run).name}", flush=True)
            continue
        rows = held[number - 1]
        print(f"\nfold {number} of {len(held)}: {describe(tiles, rows, groups_are(config.data))} held out", flush=True)
        train_classifier(one, overwrite=overwrite or not alone)
        predict(one, tiles.subset(rows), device=device)
    report = build_report(config, tiles, [Path(one.run) for one in configs.values()], numbers=numbers, notes=notes)
    if not alone:
        write(folder, tiles, report)
    print(table(report))
    for note in report["caveats"]:
        print(f"note: {note}")
    written = "predictions.csv" if alone else "predictions.csv, folds.json, folds.png"
    print(f"wrote {folder}/{written}")


def fold_config(config: FinetuneConfig, number: int) -> FinetuneConfig:
    """Return the configuration of a fold, which trains it alone when it is run again."""
    if config.train.fold is not None:
        return config
    train = config.train.model_copy(update={"fold": number})
    return config.model_copy(update={"run": str(Path(config.run) / f"fold_{number}"), "train": train})


def describe(tiles: Tiles, rows: NDArray[np.int64], groups: str) -> str:
    """Return how many tiles, and groups (what they are, in words), in words."""
    if tiles.groups is None:
        return f"{len(rows)} tiles"
    return f"{len(rows)} tiles of {len(np.unique(tiles.groups[rows]))} {groups}"


# --- what is there already ---


def check_folder(folder: Path, config: FinetuneConfig, *, overwrite: bool) -> bool:
    """Return whether the folder holds folds of this configuration, with which to go on.

    Raises:
        ValueError: it holds something else, and is not to be overwritten.
    """
    kept = folder / "config.yaml"
    before = load_config(FinetuneConfig, kept) if kept.is_file() and not overwrite else None
    if before is None or before.train.folds is None:
        run.check_run_folder(folder, overwrite=overwrite, trains=True)
        return False
    refuse_changes(folder, before, config)
    return True


def refuse_changes(folder: Path, before: FinetuneConfig, now: FinetuneConfig) -> None:
    """Raise ValueError where a run that is there was made with other values of keys that decide about the result."""
    changed = changed_keys(before, now)
    if changed:
        raise ValueError(
            f"{folder}: was made with {'; '.join(map(str, changed))}; set it back, name another run, or make "
            "all folds again with --overwrite"
        )


def is_complete(config: FinetuneConfig, tiles: Tiles, rows: NDArray[np.int64]) -> bool:
    """Return whether a fold is trained and its held-out tiles, those at `rows`, are predicted.

    Raises:
        ValueError: it is, but with another configuration, on other tiles or groups, or from weights that have changed
            since.
    """
    folder = Path(config.run)
    if not (folder / "predictions.csv").is_file():  # the last file that is written
        return False
    refuse_changes(folder, load_config(FinetuneConfig, folder / "config.yaml"), config)
    again = "make all folds again with --overwrite"
    if checkpoint.load_checkpoint(folder, kind="finetune", tensors=False).fingerprint != tiles.fingerprint:
        raise ValueError(f"{folder}: was trained on other tiles than {config.data.root} holds now; {again}")
    weights = weights_file(config.model.weights)
    if weights is not None and weights.stat().st_mtime > (folder / "config.yaml").stat().st_mtime:
        raise ValueError(f"{folder}: model.weights={config.model.weights} is newer than this fold; {again}")
    held = [(row.get("id"), row.get("label"), row.get("group")) for row in read(folder / "predictions.csv")]
    groups = [None] * len(rows) if tiles.groups is None else tiles.groups[rows].tolist()
    # The groups decide what is held out, and may have changed while the tiles have not.
    if held != [(tiles.ids[i], tiles.classes[tiles.labels[i]], group) for i, group in zip(rows, groups, strict=True)]:
        raise ValueError(f"{folder}/predictions.csv: holds other tiles or groups than this fold holds out now; {again}")
    return True


# --- the held-out tiles ---


def predict(config: FinetuneConfig, tiles: Tiles, *, device: torch.device) -> None:
    """Write predictions.csv of a fold's held-out tiles, by its best checkpoint and with its temperature."""
    model, trained = load_classifier(config.run, device=device)
    mean, std = normalisation(trained, device)
    store = place_store(tiles.images, device=device, budget_gb=config.data.device_budget_gb)
    progress = "held-out tiles" if config.log.progress else None
    logits = features.outputs(model, store, all_rows(tiles), mean=mean, std=std, progress=progress)
    probabilities = calibration.softmax(logits, temperature=trained.fitted.temperature)
    predictions.write_predictions(Path(config.run) / predictions.FILE, predictions.predictions_of(tiles, probabilities))


def caveats(config: FinetuneConfig, tiles: Tiles) -> list[str]:
    """Return what a reader must know of the folds, a sentence each."""
    found = []
    start = start_encoder(config.model)
    here = Path(config.data.root).resolve()
    for there in dict.fromkeys(Path(section.root).resolve() for section in start.lineage):
        if there.is_relative_to(here) or here.is_relative_to(there):
            how = "with their labels: the figures are too good" if start.saw_labels else "without their labels"
            found.append(f"model.weights was trained on tiles of {there}, held-out ones may be among them, {how}")
    unknown = lineage.without_slides(config.data, tiles.groups)
    found += [unknown] if unknown is not None else []
    return found


def build_report(
    config: FinetuneConfig, tiles: Tiles, folders: Sequence[Path], *, numbers: Sequence[int], notes: Sequence[str]
) -> dict[str, Any]:
    """Return the content of folds.json: figures of each fold, mean and sd over folds, and of all held-out tiles."""
    tables = [read(folder / "predictions.csv") for folder in folders]
    positive = positive_class(tiles.classes, None)
    runs = []
    for number, folder, rows in zip(numbers, folders, tables, strict=True):
        trained = checkpoint.load_checkpoint(folder, kind="finetune", tensors=False)
        log = run.read_metrics(folder / "metrics.jsonl")
        facts = {"fold": number, "folder": str(folder), "epoch": trained.epoch, "epochs": len(log)}
        runs.append({**facts, **figures(rows, tiles.classes, positive=positive)})
    report: dict[str, Any] = {
        "folds": config.train.folds,
        "seed": config.seed,
        "split": "held-out folds",
        "data": plain(config.data),
        "classes": list(tiles.classes),
        "positive": None if positive is None else tiles.classes[positive],
        "runs": runs,
    }
    everything = [row for rows in tables for row in rows]
    groups = None if tiles.groups is None else [row["group"] for row in everything]
    drawn = "stratified bootstrap" if groups is None else f"bootstrap of whole {groups_are(config.data)}"
    report["interval_method"] = (
        f"95% intervals: {drawn}, {SAMPLES} resamples, seed 0; they tell of other tiles for these classifiers, not of "
        "other training tiles"
    )
    notes = [*few_notes(groups, runs), *notes]
    if len(runs) > 1:
        report["pooled"] = figures(everything, tiles.classes, positive=positive)
        series = {"loss": [one["loss"] for one in runs]}
        series |= {key: [one["metrics"][key] for one in runs] for key in SHOWN}
        report["mean"] = {key: statistics.fmean(values) for key, values in series.items()}
        report["sd"] = {key: statistics.stdev(values) for key, values in series.items()}
        notes = [*([SHARED] if len(runs) > 2 else []), MODELS, *notes]  # two folds share no training tile
    report["caveats"] = notes
    report["environment"] = run.environment()
    return report


def few_notes(groups: Sequence[str] | None, runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return a sentence where the intervals rest on few slides, for all held-out tiles and for single folds."""
    if groups is None:
        return []
    fewest = min(one["groups"] for one in runs)
    found = {"": few_groups(groups)}
    if len(runs) > 1:
        found["of single folds, "] = few_groups([str(i) for i in range(fewest)])
    return [f"{which}{text}" for which, text in found.items() if text is not None]


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a predictions.csv by column."""
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def figures(rows: Sequence[dict[str, str]], classes: Sequence[str], *, positive: int | None) -> dict[str, Any]:
    """Return counts, mean loss, metrics and intervals of some predictions; whole groups are drawn where they have some.

    The keys of `metrics` and `intervals` are those of `metrics.classification_metrics`.
    """
    labels = np.array([classes.index(row["label"]) for row in rows], dtype=np.int64)
    probabilities = np.array([[float(row[f"probability_{name}"]) for name in classes] for row in rows])  # (N, K)
    groups = [row["group"] for row in rows] if "group" in rows[0] else None
    return {
        "tiles": len(rows),
        "groups": None if groups is None else len(set(groups)),
        "class_counts": dict(zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=True)),
        "loss": statistics.fmean(float(row["loss"]) for row in rows),
        "metrics": metrics.classification_metrics(labels, probabilities, positive=positive).model_dump(),
        "intervals": bootstrap_intervals(
            labels, probabilities, positive=positive, groups=groups, samples=SAMPLES
        ).model_dump(),
    }


def write(folder: Path, tiles: Tiles, report: dict[str, Any]) -> None:
    """Write the predictions of all held-out tiles in the order of the set, the picture, and the report."""
    row_of = {name: i for i, name in enumerate(tiles.ids)}
    rows = [
        {**row, "fold": one["fold"]} for one in report["runs"] for row in read(Path(one["folder"]) / "predictions.csv")
    ]
    rows.sort(key=lambda row: row_of[row["id"]])
    writing.write_csv(folder / "predictions.csv", list(rows[0]), [list(row.values()) for row in rows])
    comparison_plots.plot_folds(
        {name: [value_of(one, key) for one in report["runs"]] for key, name in SHOWN.items()},
        pooled={name: value_of(report["pooled"], key) for key, name in SHOWN.items()},
        path=folder / "folds.png",
        title=f"{report['folds']} folds of the training split, {report['pooled']['tiles']} held-out tiles",
    )
    writing.write_json(folder / "folds.json", report)


def value_of(one: dict[str, Any], key: str) -> tuple[float | None, Sequence[float] | None]:
    """Return a figure and its interval."""
    return one["metrics"][key], one["intervals"][key]


def table(report: dict[str, Any]) -> str:
    """Return the report as lines for the terminal."""

    def cell(one: dict[str, Any], key: str) -> str:
        value, interval = value_of(one, key)
        if value is None:
            return "undefined"
        return f"{value:.4f}" + ("" if interval is None else f" ({interval[0]:.4f} to {interval[1]:.4f})")

    lines = [["held out", "tiles", *SHOWN.values(), "loss"]]
    rows = {f"fold {one['fold']}": one for one in report["runs"]}
    rows |= {"all, pooled": report["pooled"]} if "pooled" in report else {}
    for name, one in rows.items():
        lines.append([name, str(one["tiles"]), *(cell(one, key) for key in SHOWN), f"{one['loss']:.4f}"])
    if "mean" in report:
        over = [f"{report['mean'][key]:.4f} ± {report['sd'][key]:.4f}" for key in (*SHOWN, "loss")]
        lines.append(["mean ± sd of folds", "", *over])
    positive = "" if report["positive"] is None else f"; positive class {report['positive']}"
    return f"\n{tables.as_text(lines)}\n{report['interval_method']}{positive}"
