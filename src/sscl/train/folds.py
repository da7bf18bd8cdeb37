"""Cross-validation of finetune: a run a fold, the predictions of its held-out tiles, and what is complete already.

Only the training split is divided; the test split stays untouched. A fold's held-out tiles select nothing: its
validation tiles are carved from what it trains on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sscl import ranks, run
from sscl.config import FinetuneConfig, changed_keys, load_config
from sscl.data.load import all_rows, describe_tiles, groups_are, has_test, has_validation, load_tiles
from sscl.data.task import check_task
from sscl.data.tiles import Tiles, place_store
from sscl.device import pick_device, pick_precision, tune
from sscl.evaluate import calibration, lineage, predictions
from sscl.models import checkpoint, features
from sscl.models.classifier import inference_precision, load_classifier
from sscl.models.pixels import normalisation
from sscl.models.start import check_weights, inherit, start_encoder, weights_file
from sscl.train.finetune import train_classifier
from sscl.train.fold_report import build_report, table, write_report
from sscl.train.labelled import held_out, labelled_parts, training_rows
from sscl.train.setup import inputs_of
from sscl.words import say_next


def cross_validate(config: FinetuneConfig, *, overwrite: bool, resume: bool = False) -> None:
    """Train every fold that is not complete; write predictions of all held-out tiles, their metrics and a picture.

    A fold that was interrupted goes on after its last complete epoch.

    With `train.fold` that fold alone is trained, in the run folder itself.

    Args:
        overwrite: whether folds that are there are trained again.
        resume: whether the folder must be there already; with `train.fold`, whether that fold goes on.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line, before anything is written.
    """
    if ranks.expected_ranks() > 1:
        raise ValueError("train.folds: folds run in one process, in turn; start it without torchrun")
    device = pick_device(config.device)
    pick_precision(config.precision, device)
    folder = Path(config.run)
    run.check_inputs_outside(folder, inputs_of(config))
    config, inherited = inherit(config)
    check_weights(config.model)
    alone = config.train.fold is not None
    if alone:
        run.check_run_folder(folder, overwrite=overwrite, resume=resume, trains=True)
        goes_on = False
    else:
        goes_on = check_folder(folder, config, overwrite=overwrite, resume=resume)
    tiles = load_tiles(config.data, split="train", progress=config.progress)
    held = held_out(tiles, config)
    numbers = [config.train.fold] if config.train.fold is not None else list(range(1, len(held) + 1))
    configs = {number: fold_config(config, number) for number in numbers}
    if not has_validation(config.data):
        for one in configs.values():
            labelled_parts(tiles.subset(training_rows(tiles, one)), one)
    notes = caveats(config, tiles)
    for number in numbers:
        parts = {"training": tiles.subset(np.setdiff1d(np.concatenate(held), held[number - 1]))}
        parts["held-out"] = tiles.subset(held[number - 1])
        notes += [f"fold {number}: {text}" for text in check_task(parts, data=config.data, made_here={"held-out"})]
    complete = [n for n in numbers if goes_on and is_complete(configs[n], tiles, held[n - 1])]
    for line in inherited:
        print(line)
    if not alone:
        if not goes_on:
            run.start_folder(folder, config, overwrite=overwrite)
        print(describe_tiles(config.data, tiles, split="train"))
        print(f"{len(numbers)} folds in {folder}: {len(complete)} complete, {len(numbers) - len(complete)} to train")
    for number in numbers:
        one = configs[number]
        if number in complete:
            print(f"reused: {Path(one.run).name}", flush=True)
            continue
        rows = held[number - 1]
        print(f"\nfold {number} of {len(held)}: {describe(tiles, rows, groups_are(config.data))} held out", flush=True)
        if alone or not goes_on or not is_trained(one, tiles):
            again = resume if alone else goes_on and is_interrupted(one)
            train_classifier(one, overwrite=not again and (overwrite or not alone), resume=again)
        with run.holding(one.run):
            predict(one, tiles.subset(rows), device=device)
    report = build_report(config, tiles, [Path(one.run) for one in configs.values()], numbers=numbers, notes=notes)
    if not alone:
        write_report(folder, tiles, report)
    print(table(report))
    for note in report.caveats:
        print(f"note: {note}")
    written = "predictions.csv" if alone else "predictions.csv, folds.json, folds.png"
    print(f"wrote {folder}/{written}")
    others = ["OTHER_TILES"] if alone and not has_test(config.data) else []
    say_next("eval" if alone else "report", folder, *others)


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


def check_folder(folder: Path, config: FinetuneConfig, *, overwrite: bool, resume: bool) -> bool:
    """Return whether the folder holds folds of this configuration, with which to go on.

    Raises:
        ValueError: it holds something else, and is not to be overwritten.
        FileNotFoundError: with `resume`, it holds nothing.
    """
    kept = folder / "config.yaml"
    before = load_config(FinetuneConfig, kept) if kept.is_file() and not overwrite else None
    if before is None or before.train.folds is None:
        run.check_run_folder(folder, overwrite=overwrite, resume=resume, trains=True)
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


def is_interrupted(config: FinetuneConfig) -> bool:
    """Return whether a fold can go on: it has a last checkpoint of this configuration, from weights still the same."""
    folder = Path(config.run)
    if not (folder / "checkpoints" / "last.pt").is_file() or run.unfinished(folder) is None:
        return False
    return is_unchanged(config)


def is_trained(config: FinetuneConfig, tiles: Tiles) -> bool:
    """Return whether a fold has ended, with this configuration and on these tiles, so that it can be predicted."""
    folder = Path(config.run)
    ending = run.ending_of(folder)
    if ending is None or not ending.final or not is_unchanged(config):
        return False
    try:
        kept = checkpoint.load_checkpoint(folder / "checkpoints" / "best.pt", kind="finetune", tensors=False)
    except (FileNotFoundError, ValueError):  # then it is trained again
        return False
    return kept.fingerprint == tiles.fingerprint


def is_unchanged(config: FinetuneConfig) -> bool:
    """Return whether the run that is there was made with this configuration, from weights that are still the same."""
    made = Path(config.run) / "config.yaml"
    weights = weights_file(config.model.weights, key="model.weights")
    newer = weights is not None and weights.stat().st_mtime > made.stat().st_mtime
    return not newer and not changed_keys(load_config(FinetuneConfig, made), config)


def is_complete(config: FinetuneConfig, tiles: Tiles, rows: NDArray[np.int64]) -> bool:
    """Return whether a fold is trained and its held-out tiles, those at `rows`, are predicted.

    Raises:
        ValueError: it is, but with another configuration, on other tiles or groups, or from weights that have changed
            since.
    """
    folder = Path(config.run)
    ending = run.ending_of(folder)
    # The predictions are the last file that is written.
    if not (folder / "predictions.csv").is_file() or ending is None or not ending.final:
        return False
    refuse_changes(folder, load_config(FinetuneConfig, folder / "config.yaml"), config)
    again = "train all folds again with --overwrite"
    if checkpoint.load_checkpoint(folder, kind="finetune", tensors=False).fingerprint != tiles.fingerprint:
        raise ValueError(f"{folder}: was trained on other tiles than {config.data.root} holds now; {again}")
    weights = weights_file(config.model.weights, key="model.weights")
    if weights is not None and weights.stat().st_mtime > (folder / "config.yaml").stat().st_mtime:
        raise ValueError(f"{folder}: model.weights={config.model.weights} is newer than this fold; {again}")
    try:
        kept = predictions.read_predictions(folder / "predictions.csv")
        held = (list(kept.ids), [kept.classes[i] for i in kept.labels], kept.groups and list(kept.groups))
    except ValueError:
        held = ([], [], None)
    groups = None if tiles.groups is None else tiles.groups[rows].tolist()
    # The groups decide what is held out, and may have changed while the tiles have not.
    if held != ([tiles.ids[i] for i in rows], [tiles.classes[i] for i in tiles.labels[rows]], groups):
        raise ValueError(f"{folder}/predictions.csv: holds other tiles or groups than this fold holds out now; {again}")
    return True


# --- the held-out tiles ---


def predict(config: FinetuneConfig, tiles: Tiles, *, device: torch.device) -> None:
    """Write predictions.csv of a fold's held-out tiles, by its best checkpoint and with its temperature."""
    model, trained = load_classifier(config.run, device=device)
    tune(device)
    mean, std = normalisation(trained, device)
    precision = inference_precision("auto", device, fitted=trained.fitted.precision)
    store = place_store(tiles.images, device=device, budget_gb=config.data.device_budget_gb)
    progress = "held-out tiles" if config.progress else None
    logits = features.outputs(model, store, all_rows(tiles), mean=mean, std=std, precision=precision, progress=progress)
    probabilities = calibration.softmax(logits, temperature=trained.fitted.temperature)
    predictions.write_predictions(Path(config.run) / predictions.FILE, predictions.predictions_of(tiles, probabilities))


def caveats(config: FinetuneConfig, tiles: Tiles) -> list[str]:
    """Return what a reader must know of the folds, a sentence each."""
    found = []
    start = start_encoder(config.model)
    here = Path(config.data.root).resolve()
    for there in dict.fromkeys(Path(section.root).resolve() for section in start.lineage):
        if there.is_relative_to(here) or here.is_relative_to(there):
            how = "with their labels, so the numbers are optimistic" if start.saw_labels else "without their labels"
            found.append(f"model.weights was trained on tiles of {there}, perhaps on held-out ones, {how}")
    unknown = lineage.without_slides(config.data, tiles.groups)
    found += [unknown] if unknown is not None else []
    return found
