"""sscl finetune: a classifier from labels, read from top to bottom.

N tiles a batch, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tqdm import tqdm

from sscl import augment, features, metrics, optim, run
from sscl.augment import Augmentation
from sscl.commands.inputs import check_inputs_outside, describe_tiles, load_tiles, start_encoder
from sscl.config import FinetuneConfig, plain
from sscl.data import split
from sscl.data.tiles import Tiles, epoch_order, place_store
from sscl.device import autocast, describe_device, pick_device, pick_precision
from sscl.losses import focal_loss
from sscl.models import Classifier
from sscl.plots import plot_history

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def main(config: FinetuneConfig, *, overwrite: bool = False) -> None:
    """Train a classifier and write a run folder with its best checkpoint, chosen on validation.

    Raises:
        ValueError, FileNotFoundError: input that a user can mend, in one line.
    """
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    folder = run.check_run_folder(config.run, overwrite=overwrite, trains=True)
    check_inputs_outside(folder, {"model.weights": config.model.weights, "data.root": config.data.root})
    if config.log.tensorboard:
        run.check_tensorboard()
    print(f"device: {describe_device(device)}, precision {precision}")

    tiles = load_tiles(config.data, split="train", progress=config.log.progress)
    if not tiles.classes:
        raise ValueError(f"data.root: {config.data.root} has no labels; finetune needs tiles in classes")
    print(describe_tiles(config.data, tiles, split="train"))
    train, validation = labelled_parts(tiles, config)
    batch_size = min(config.train.batch_size, len(train))
    if batch_size < 2:
        raise ValueError(f"train.label_fraction: leaves {len(train)} tiles to train on, at least 2 are needed")
    if batch_size < config.train.batch_size:
        print(f"train.batch_size is {config.train.batch_size}; for {len(train)} training tiles it becomes {batch_size}")

    torch.manual_seed(config.seed)
    start = start_encoder(config.model)
    encoder, mean, std = start.encoder, start.mean, start.std
    model = Classifier(encoder, num_classes=len(tiles.classes)).to(device).to(memory_format=torch.channels_last)
    frozen = config.train.freeze_encoder
    model.encoder.requires_grad_(not frozen)
    decay = config.train.weight_decay
    groups = optim.parameter_groups(model.encoder, learning_rate=config.train.learning_rate, weight_decay=decay)
    groups += optim.parameter_groups(model.head, learning_rate=config.train.head_learning_rate, weight_decay=decay)
    optimizer = optim.build_optimizer(config.train.optimizer, groups, momentum=config.train.momentum)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    loss_of = build_loss(config, tiles.labels[train], num_classes=len(tiles.classes), device=device)

    store = place_store(tiles.images, device=device, budget_gb=config.data.device_budget_gb)
    run.start_folder(folder, config=plain(config), overwrite=overwrite)
    log = run.MetricsLog(folder, tensorboard=config.log.tensorboard)
    labels = torch.from_numpy(tiles.labels).to(device)
    augmentation = Augmentation(**config.augment.model_dump())
    means, stds = torch.tensor(mean, device=device), torch.tensor(std, device=device)
    steps = max(1, len(epoch_rows(train, tiles, config, epoch=0)) // batch_size)
    content: dict[str, Any] = {
        "kind": "finetune",
        "encoder_name": config.model.name,
        "stem": config.model.stem,
        "output_stride": config.model.output_stride,
        "preprocessing": {"size_px": config.data.size_px, "mean": list(mean), "std": list(std)},
        "classes": list(tiles.classes),
        "config": plain(config),
        "history": start.history,
        "precision": precision,
        "data_fingerprint": tiles.fingerprint,
    }
    print(f"{len(train)} tiles to train on, {len(validation)} for validation, {steps} steps of {batch_size} an epoch")
    best: dict[str, Any] | None = None
    hint = optim.warmup_warning(warmup_epochs=config.train.warmup_epochs, epochs=config.train.epochs)
    if hint is not None:
        print(hint)
    bar = tqdm(
        total=steps * config.train.epochs,
        unit="step",
        disable=not config.log.progress,
        desc="finetune",
        dynamic_ncols=True,
    )
    with bar:
        for epoch in range(config.train.epochs):
            model.train()
            if frozen:
                model.encoder.eval()  # batch-norm statistics stay those of pretraining
            order = epoch_rows(train, tiles, config, epoch=epoch)
            repeats = occurrences(order)  # balanced draws repeat tiles; each repeat is another view
            total = torch.zeros(2, device=device, dtype=torch.float64)  # loss, tiles right
            started = time.perf_counter()
            for step in range(steps):
                factor = optim.warmup_cosine(
                    epoch * steps + step,
                    warmup_steps=round(config.train.warmup_epochs * steps),
                    total_steps=config.train.epochs * steps,
                )
                optim.set_learning_rate(optimizer, factor)
                batch = slice(step * batch_size, (step + 1) * batch_size)
                rows = torch.from_numpy(order[batch])
                target = labels[rows.to(device, non_blocking=True)]
                x = augment.view(
                    store.gather(rows),
                    rows.to(device, non_blocking=True),
                    augmentation=augmentation,
                    seed=config.seed,
                    epoch=epoch,
                    view=torch.from_numpy(repeats[batch]).to(device, non_blocking=True),
                    mean=means,
                    std=stds,
                )
                with autocast(device, precision):
                    logits = model(x)  # (N, K)
                loss = loss_of(logits.float(), target)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                scaler.step(optimizer)
                scaler.update()
                right = (logits.detach().argmax(1) == target).double().mean()
                total += torch.stack([loss.detach().double(), right])
                bar.update()
            train_loss, train_accuracy = (total / steps).tolist()
            seconds = time.perf_counter() - started  # of training; validation comes after
            if not np.isfinite(train_loss):
                left = f"{folder}/checkpoints/best.pt holds epoch {best['epoch']}" if best else "no checkpoint yet"
                raise ValueError(
                    f"the loss became {train_loss} in epoch {epoch + 1}; lower train.learning_rate and "
                    f"train.head_learning_rate, or set precision=fp32 ({left})"
                )
            logits = features.outputs(
                model, store, validation, mean=means, std=stds, batch_size=config.train.batch_size, precision=precision
            )
            row = {
                "epoch": epoch + 1,
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                **validate(logits, tiles.labels[validation]),
                "learning_rate": optimizer.param_groups[-1]["lr"],
                "tiles_per_second": steps * batch_size / seconds,
            }
            log.append(row)
            bar.set_postfix_str(
                f"loss {train_loss:.3f}, validation {row['validation_loss']:.3f}, "
                f"balanced accuracy {row['validation_balanced_accuracy']:.3f}"
            )
            if best is None or score(row, config) > score(best, config):
                best = row
                state = {"encoder": model.encoder.state_dict(), "head": model.head.state_dict()}
                run.save_checkpoint(
                    folder / "checkpoints" / "best.pt", {**content, **state, "epoch": epoch + 1, "validation": row}
                )
            draw_curves(log.rows, folder / "curves.png")
            if epoch + 1 - best["epoch"] >= config.train.patience:
                bar.write(f"stopped: no better epoch than {best['epoch']} in {config.train.patience}")
                break
    log.close()
    assert best is not None
    print(
        f"best epoch {best['epoch']} by validation {config.train.select} ({len(validation)} tiles carved from train): "
        f"accuracy {best['validation_accuracy']:.3f}, balanced accuracy {best['validation_balanced_accuracy']:.3f}, "
        f"loss {best['validation_loss']:.3f}"
    )
    print(f"wrote {folder}/checkpoints/best.pt, metrics.jsonl, curves.png")


def labelled_parts(tiles: Tiles, config: FinetuneConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows to train on and the rows for validation, both within the labels that may be used.

    The label fraction comes first: an honest few-label result may not choose its epoch on labels it does not have.
    """
    used = split.label_fraction(tiles.labels, fraction=config.train.label_fraction, seed=config.seed)
    groups = None if tiles.groups is None else tiles.groups[used]
    try:
        rest, held = split.stratified_split(
            tiles.labels[used], fraction=config.train.validation_fraction, seed=config.seed, groups=groups
        )
    except ValueError as error:
        raise ValueError(f"train.validation_fraction: {error} ({len(used)} labelled tiles are used)") from error
    train, validation = used[rest], used[held]
    if config.train.balance == "down":
        train = train[split.balance_down(tiles.labels[train], seed=config.seed)]
    return train, validation


def epoch_rows(train: NDArray[np.int64], tiles: Tiles, config: FinetuneConfig, *, epoch: int) -> NDArray[np.int64]:
    """Return the rows of an epoch in their order; with balanced draws, classes come equally often."""
    if config.train.balance == "draws":
        return train[split.balanced_order(tiles.labels[train], seed=config.seed, epoch=epoch)]
    return train[epoch_order(len(train), seed=config.seed, epoch=epoch)]


def occurrences(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how often each entry stood in `order` before, (N,): 0 for the first time."""
    by_value = np.argsort(order, kind="stable")
    value = order[by_value]
    starts = np.flatnonzero(np.r_[True, value[1:] != value[:-1]])
    counts = np.empty(len(order), dtype=np.int64)
    counts[by_value] = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    return counts


def build_loss(config: FinetuneConfig, labels: NDArray[np.int64], *, num_classes: int, device: torch.device) -> Loss:
    """Return the loss on (logits (N, K), labels (N,)); class weights come from the training labels."""
    weight: torch.Tensor | None = None
    if config.train.loss.startswith("weighted_"):
        weight = torch.from_numpy(split.class_weights(labels, num_classes=num_classes)).float().to(device)
    if config.train.loss.endswith("focal"):
        return lambda logits, target: focal_loss(logits, target, gamma=config.train.focal_gamma, weight=weight)
    return lambda logits, target: F.cross_entropy(logits, target, weight=weight)


def validate(logits: torch.Tensor, labels: NDArray[np.int64]) -> dict[str, float]:
    """Return the unweighted loss, accuracy and balanced accuracy on the validation tiles."""
    values = metrics.classification_metrics(labels, logits.softmax(1).double().numpy(), positive=None)
    return {
        "validation_loss": F.cross_entropy(logits, torch.from_numpy(labels)).item(),
        "validation_accuracy": values["accuracy"],
        "validation_balanced_accuracy": values["balanced_accuracy"],
    }


def score(row: dict[str, Any], config: FinetuneConfig) -> tuple[float, float]:
    """Return what a better epoch has more of; ties go to the lower loss."""
    loss = row["validation_loss"]
    return (-loss, 0.0) if config.train.select == "loss" else (row[f"validation_{config.train.select}"], -loss)


def draw_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw training against validation."""
    series = [
        ("loss", ["train_loss", "validation_loss"]),
        ("accuracy", ["train_accuracy", "validation_accuracy", "validation_balanced_accuracy"]),
    ]
    plot_history(rows, series=series, path=path, title="Fine-tuning")
