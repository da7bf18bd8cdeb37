"""sscl finetune: a classifier from labels, alone or joined by contrastive steps, read from top to bottom.

N tiles a batch, K classes, D dimensions of the projection; under torchrun each of R ranks has N / R tiles.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from sscl import augment, ranks, run, writing
from sscl.augment import Augmentation
from sscl.config import FinetuneConfig, plain
from sscl.data import split
from sscl.data.load import all_rows, describe_tiles, groups_are, has_validation, load_tiles, slides_known
from sscl.data.tiles import UNLABELLED, Tiles, TileStore, epoch_order, place_store
from sscl.device import autocast, describe_device, pick_device, pick_precision, tune
from sscl.evaluate import metrics, model_card
from sscl.evaluate.calibration import fit_calibration
from sscl.losses import cross_view_info_nce, focal_loss, nt_xent
from sscl.models import checkpoint, features
from sscl.models.batch_norm import keep_batch_statistics
from sscl.models.calibration import KeptCalibration
from sscl.models.classifier import positive_class
from sscl.models.heads import Classifier, ContrastiveModel, build_projection
from sscl.models.start import NO_STATISTICS, start_encoder
from sscl.run import check_inputs_outside
from sscl.train import folds, memory, optim

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
CONTRAST_LOSSES = {"cross_view": cross_view_info_nce, "nt_xent": nt_xent}


def train_classifier(config: FinetuneConfig, *, overwrite: bool) -> None:
    """Train one classifier, on all ranks."""
    device = pick_device(config.device, local_rank=ranks.local_rank())
    with ranks.group(device, timeout_minutes=config.train.timeout_minutes):
        finetune(config, device=device, overwrite=overwrite)


def finetune(config: FinetuneConfig, *, device: torch.device, overwrite: bool) -> None:
    """Train on this rank's device; rank 0 validates and writes."""
    world, writes, progress = ranks.world_size(), ranks.rank() == 0, config.log.progress and ranks.rank() == 0
    precision = pick_precision(config.precision, device)
    tune(device)
    folder = run.check_run_folder(config.run, overwrite=overwrite, trains=True)
    check_inputs_outside(folder, {"model.weights": config.model.weights, "data.root": config.data.root})
    if config.log.tensorboard:
        run.check_tensorboard()
    over = f", {world} ranks" if world > 1 else ""
    print(f"device: {describe_device(device)}{over}, precision {precision}")

    with ranks.first_on_each_machine():
        tiles = load_tiles(config.data, split="train", progress=progress)
        # Tiles that the data set itself keeps for validation.
        own = load_tiles(config.data, split="validation", progress=progress) if has_validation(config.data) else None
    if not (tiles.labels != UNLABELLED).any():
        raise ValueError(f"data.root: {config.data.root} has no labels; finetune needs tiles in classes")
    print(describe_tiles(config.data, tiles, split="train"))
    if own is not None:
        print(describe_tiles(config.data, own, split="validation") + "; train.validation_fraction is not used")
    fingerprint = tiles.fingerprint  # of the split, whatever is held out of it
    if config.train.fold is not None:
        tiles = tiles.subset(folds.training_rows(tiles, config))
    train, validation = labelled_parts(tiles, config, own=own)
    watched, origin = (tiles, "carved from train") if own is None else (own, "of the set's own validation split")
    unlabelled = np.setdiff1d(all_rows(tiles), used_labels(tiles, config))
    if len(unlabelled):
        use = "in the contrastive steps alone" if config.contrast.kind != "none" else "not used (contrast.kind is none)"
        print(f"{len(unlabelled)} tiles without a label, or beyond train.label_fraction: {use}")
    batch_size = min(config.train.batch_size, len(train))
    if config.train.batch_size % world:
        raise ValueError(f"train.batch_size: got {config.train.batch_size}, which does not divide over {world} ranks")
    batch_size -= batch_size % world
    if batch_size < 2 * world:
        each = " on each rank" if world > 1 else ""
        raise ValueError(f"train.label_fraction: leaves {len(train)} tiles to train on, at least 2{each} are needed")
    if batch_size < config.train.batch_size:
        print(f"train.batch_size is {config.train.batch_size}; for {len(train)} training tiles it becomes {batch_size}")

    torch.manual_seed(config.seed)
    start = start_encoder(config.model)
    encoder, mean, std = start.encoder, start.mean, start.std
    model = Classifier(encoder, num_classes=len(tiles.classes)).to(device).to(memory_format=torch.channels_last)
    frozen = config.train.freeze_encoder
    ranks.synchronise_batch_norm(model, device)
    model.encoder.requires_grad_(not frozen)
    if config.train.freeze_batch_norm and config.model.weights is None:
        print(NO_STATISTICS)
    decay = config.train.weight_decay
    groups = optim.parameter_groups(model.encoder, learning_rate=config.train.learning_rate, weight_decay=decay)
    groups += optim.parameter_groups(model.head, learning_rate=config.train.head_learning_rate, weight_decay=decay)
    joint = build_joint(config, model, device=device)  # shares the encoder; None without contrast
    if joint is not None:
        groups += optim.parameter_groups(
            joint.projection, learning_rate=config.train.head_learning_rate, weight_decay=decay
        )
    optimizer = optim.build_optimizer(config.train.optimizer, groups, momentum=config.train.momentum)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    loss_of = build_loss(config, tiles.labels[train], num_classes=len(tiles.classes), device=device)

    store = place_store(tiles.images, device=device, budget_gb=config.data.device_budget_gb)
    watched_store = (
        store if own is None else place_store(own.images, device=device, budget_gb=config.data.device_budget_gb)
    )
    ranks.barrier()  # all have looked at the folder
    log = None
    if writes:
        run.start_folder(folder, config=plain(config), overwrite=overwrite)
        log = run.MetricsLog(folder, tensorboard=config.log.tensorboard)
    step_model = ranks.parallel(model)
    step_joint = None if joint is None else ranks.parallel(joint)
    part = batch_size // world
    share = slice(ranks.rank() * part, (ranks.rank() + 1) * part)
    labels = torch.from_numpy(tiles.labels).to(device)
    means, stds = torch.tensor(mean, device=device), torch.tensor(std, device=device)
    augmentation = Augmentation(**config.augment.model_dump())
    view_of = partial(augment.view, augmentation=augmentation, seed=config.seed, mean=means, std=stds)
    steps = max(1, len(epoch_rows(train, tiles, config, epoch=0)) // batch_size)
    blank = checkpoint.build_checkpoint(
        config,
        mean=mean,
        std=std,
        pooling=encoder.pooling,
        classes=tiles.classes,
        lineage=start.lineage,
        fingerprint=fingerprint,
        precision=precision,
    )
    print(f"{len(train)} tiles to train on, {len(validation)} for validation, {steps} steps of {batch_size} an epoch")
    for what, held in (("train on", tiles.labels[train]), ("validate with", watched.labels[validation])):
        absent = [name for i, name in enumerate(tiles.classes) if not (held == i).any()]
        if absent:
            print(f"warning: there is no tile to {what} of {', '.join(absent)}")
    if writes:
        at_once = part if joint is None else 4 * part  # two views of these tiles and of as many unlabelled ones
        side = config.data.size_px
        needs = memory.report(
            model=model,
            optimizer=config.train.optimizer,
            shape=(at_once, 3, side, side),
            device=device,
            precision=precision,
            store_bytes=tiles.images.nbytes,
            budget_gb=config.data.device_budget_gb,
        )
        print("\n".join(needs))
    best: dict[str, Any] | None = None
    calibration: KeptCalibration | None = None
    hint = optim.warmup_warning(warmup_epochs=config.train.warmup_epochs, epochs=config.train.epochs)
    if hint is not None and config.train.schedule == "cosine":
        print(hint)
    bar = tqdm(
        total=steps * config.train.epochs,
        unit="step",
        disable=not progress,
        desc="finetune",
        dynamic_ncols=True,
    )
    with bar:
        for epoch in range(config.train.epochs):
            model.train()
            if frozen:
                model.encoder.eval()  # no dropout; batch-norm statistics stay those of pretraining
            elif config.train.freeze_batch_norm:
                keep_batch_statistics(model.encoder)
            order = epoch_rows(train, tiles, config, epoch=epoch)[: steps * batch_size]
            repeats = split.occurrences(order)  # balanced draws repeat tiles; each repeat is another view
            order, repeats = order.reshape(steps, batch_size), repeats.reshape(steps, batch_size)
            rows, view = (torch.from_numpy(x[:, share]).to(device) for x in (order, repeats))
            total = torch.zeros(3, device=device, dtype=torch.float64)  # loss, tiles right, contrastive loss
            started = time.perf_counter()
            for step, images in enumerate(store.batches(order[:, share])):
                factor = optim.schedule_factor(
                    config.train.schedule,
                    epoch * steps + step,
                    steps_per_epoch=steps,
                    epochs=config.train.epochs,
                    warmup_epochs=config.train.warmup_epochs,
                    milestones=config.train.milestones,
                    gamma=config.train.gamma,
                )
                optim.set_learning_rate(optimizer, factor)
                target = labels[rows[step]]
                x = view_of(images, rows[step], epoch=epoch, view=view[step])
                with autocast(device, precision):
                    logits = step_model(x)  # (N / R, K)
                loss = loss_of(logits.float(), target)
                take_step(loss, optimizer=optimizer, scaler=scaler)
                right = (logits.detach().argmax(1) == target).double().mean()
                total[:2] += torch.stack([loss.detach().double(), right])
                if step_joint is not None:
                    pairs = split.with_unlabelled(order[step], unlabelled, seed=config.seed, step=epoch * steps + step)
                    own_pairs = pairs[: len(pairs) // world * world].reshape(world, -1)[ranks.rank()]
                    # Each step has a view number of its own, so that a tile met twice in an epoch gives two views.
                    pair_view = partial(view_of, epoch=epoch, view=step)
                    with autocast(device, precision):
                        a, b = project_pairs(
                            step_joint, store, torch.from_numpy(own_pairs), view_of=pair_view, mean=means, std=stds
                        )  # (M, D) each
                    contrast = CONTRAST_LOSSES[config.contrast.kind](a, b, temperature=config.contrast.temperature)
                    take_step(contrast, optimizer=optimizer, scaler=scaler)
                    total[2] += contrast.detach()
                bar.update()
            train_loss, train_accuracy, contrast_loss = (ranks.mean(total) / steps).tolist()
            seconds = time.perf_counter() - started  # of training; validation comes after
            if not np.isfinite(train_loss + contrast_loss):
                left = f"{folder}/checkpoints/best.pt holds epoch {best['epoch']}" if best else "no checkpoint yet"
                raise ValueError(
                    f"the loss became {train_loss + contrast_loss} in epoch {epoch + 1}; lower train.learning_rate and "
                    f"train.head_learning_rate, or set precision=fp32 ({left})"
                )
            row: dict[str, Any] = {}
            if writes:
                logits = features.outputs(
                    model,
                    watched_store,
                    validation,
                    mean=means,
                    std=stds,
                    batch_size=config.train.batch_size,
                    precision=precision,
                )
                row = {
                    "epoch": epoch + 1,
                    "train_loss": train_loss,
                    "train_accuracy": train_accuracy,
                    **({} if joint is None else {"contrast_loss": contrast_loss}),
                    **validate(logits, watched.labels[validation]),
                    "learning_rate": optimizer.param_groups[-1]["lr"],
                    "tiles_per_second": steps * batch_size / seconds,
                }
            row = ranks.from_first(row)
            bar.set_postfix_str(
                f"loss {train_loss:.3f}, validation {row['validation_loss']:.3f}, "
                f"balanced accuracy {row['validation_balanced_accuracy']:.3f}"
            )
            better = best is None or score(row, config) > score(best, config)
            best = row if better or best is None else best
            if log is not None:
                log.append(row)
                if better:
                    positive = positive_class(tiles.classes, None)
                    calibration = fit_calibration(
                        logits, watched.labels[validation], classes=tiles.classes, positive=positive
                    )
                    found = replace(blank, epoch=epoch + 1, validation=row, calibration=calibration)
                    checkpoint.save_checkpoint(
                        folder / "checkpoints" / "best.pt",
                        replace(found, encoder=model.encoder.state_dict(), head=model.head.state_dict()),
                    )
                    card = model_card.model_card(
                        found,
                        folder=folder,
                        origin=model_card.origin_of_weights(config.model.weights, start.checkpoint),
                        train=model_card.part_of(tiles, train),
                        validation=model_card.part_of(watched, validation),
                        carved=own is None,
                        groups_are=groups_are(config.data),
                        slides_known=slides_known(config.data),
                        unlabelled=0 if joint is None else len(unlabelled),
                    )
                    writing.write_text(folder / model_card.FILE, card)
                draw_curves(log.rows, folder / "curves.png")
            if epoch + 1 - best["epoch"] >= config.train.patience:
                bar.write(f"stopped: no better epoch than {best['epoch']} in {config.train.patience}")
                break
    if log is not None:
        log.close()
    assert best is not None
    print(
        f"best epoch {best['epoch']} by validation {config.train.select} ({len(validation)} tiles {origin}): "
        f"accuracy {best['validation_accuracy']:.3f}, balanced accuracy {best['validation_balanced_accuracy']:.3f}, "
        f"loss {best['validation_loss']:.3f}"
    )
    if calibration is not None:
        print(
            f"calibration on these: temperature {calibration.temperature:.3f}, expected calibration error "
            f"{calibration.ece_before:.3f} before, {calibration.ece_after:.3f} after"
        )
    print(f"wrote {folder}/checkpoints/best.pt, metrics.jsonl, curves.png, {model_card.FILE}")


def labelled_parts(
    tiles: Tiles, config: FinetuneConfig, *, own: Tiles | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows to train on and the rows for validation, both within the labels that may be used.

    The label fraction comes first: an honest few-label result may not choose its epoch on labels it does not have. It
    cuts the tiles that the data set itself keeps for validation (`own`) alike; the second rows are then theirs.
    """
    used = used_labels(tiles, config)
    if own is not None:
        train, validation = used, used_labels(own, config)
    else:
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


def used_labels(tiles: Tiles, config: FinetuneConfig) -> NDArray[np.int64]:
    """Return the rows whose labels may be used: `label_fraction` of each class, unlabelled tiles apart.

    Raises:
        ValueError: no tile has a label.
    """
    labelled = np.flatnonzero(tiles.labels != UNLABELLED)
    return labelled[
        split.label_fraction(tiles.labels[labelled], fraction=config.train.label_fraction, seed=config.seed)
    ]


def epoch_rows(train: NDArray[np.int64], tiles: Tiles, config: FinetuneConfig, *, epoch: int) -> NDArray[np.int64]:
    """Return the rows of an epoch in their order; with balanced draws, classes come equally often.

    With `train.steps_per_epoch`, whole shuffled passes and a part of one, as many as fill those steps.
    """

    def one_pass(number: int) -> NDArray[np.int64]:
        if config.train.balance == "draws":
            return train[split.balanced_order(tiles.labels[train], seed=config.seed, epoch=number)]
        return train[epoch_order(len(train), seed=config.seed, epoch=number)]

    if config.train.steps_per_epoch is None:
        return one_pass(epoch)
    draws = config.train.steps_per_epoch * min(config.train.batch_size, len(train))
    passes = -(-draws // len(train))
    return np.concatenate([one_pass(epoch * passes + i) for i in range(passes)])[:draws]


def build_joint(config: FinetuneConfig, model: Classifier, *, device: torch.device) -> ContrastiveModel | None:
    """Return the classifier's own encoder under a projection head, or None without contrastive steps.

    The projection serves training alone and is in no checkpoint.
    """
    if config.contrast.kind == "none":
        return None
    head = config.contrast.projection
    projection = build_projection(model.encoder.num_features, kind=head.kind, hidden=head.hidden, dim=head.dim)
    return ContrastiveModel(model.encoder, projection=projection.to(device))


def project_pairs(
    joint: nn.Module,
    store: TileStore,
    rows: torch.Tensor,
    *,
    view_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    mean: torch.Tensor,
    std: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the projections of a random view of the tiles at `rows` (M,) and of the tiles as they are, (M, D) each."""
    images = store.gather(rows)
    view = view_of(images, rows.to(store.device, non_blocking=True))
    clean = augment.normalise(augment.to_unit(images), mean=mean, std=std)
    a, b = joint(torch.cat([view, clean])).chunk(2)
    return a, b


def take_step(loss: torch.Tensor, *, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Take one optimizer step down a loss; parameters that the loss does not depend on stay as they are."""
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    scaler.step(optimizer)
    scaler.update()


def build_loss(config: FinetuneConfig, labels: NDArray[np.int64], *, num_classes: int, device: torch.device) -> Loss:
    """Return the loss on (logits (N, K), labels (N,)); class weights come from the training labels.

    The mean of it over ranks is the loss of all their tiles, although weights may differ in sum from rank to rank.
    """
    weight: torch.Tensor | None = None
    if config.train.loss.startswith("weighted_"):
        weight = torch.from_numpy(split.class_weights(labels, num_classes=num_classes)).float().to(device)

    def loss_of(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if config.train.loss.endswith("focal"):
            loss = focal_loss(logits, target, gamma=config.train.focal_gamma, weight=weight)
        else:
            loss = F.cross_entropy(logits, target, weight=weight)
        if weight is None or ranks.world_size() == 1:
            return loss
        total = weight[target].sum()
        return loss * total / ranks.mean(total)

    return loss_of


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
    from sscl.plots.charts import plot_history  # matplotlib would hold the first step up

    series = [
        ("loss", ["train_loss", "validation_loss"]),
        ("accuracy", ["train_accuracy", "validation_accuracy", "validation_balanced_accuracy"]),
    ]
    if "contrast_loss" in rows[0]:
        series.append(("contrastive loss", ["contrast_loss"]))
    plot_history(rows, series=series, path=path, title="Fine-tuning")
