"""Fine-tuning: a classifier from labels, with or without contrastive steps, read from top to bottom.

N tiles a batch, K classes, D dimensions of the projection, V validation tiles; under torchrun each of R ranks has N / R
tiles of a batch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sscl import ranks, writing
from sscl.config import FinetuneConfig
from sscl.data import split
from sscl.data.load import groups_are, slides_known
from sscl.data.task import outcome_warnings
from sscl.data.tiles import TileStore, place_store
from sscl.device import autocast, pick_device, sum_dtype
from sscl.draws import Augmentation
from sscl.evaluate import model_card
from sscl.evaluate.calibration import fit_calibration
from sscl.explain.cells import map_cells
from sscl.models import features
from sscl.models.batch_norm import keep_batch_statistics
from sscl.models.calibration import KeptCalibration
from sscl.models.checkpoint import Checkpoint, build_checkpoint, on_host, save_checkpoint
from sscl.models.classifier import inference_precision, positive_class
from sscl.models.heads import Classifier, ContrastiveModel, build_projection
from sscl.models.start import Start, start_encoder
from sscl.models.sync_batch_norm import synchronise_batch_norm
from sscl.progress import Bar
from sscl.run import MetricsLog, MetricsRow
from sscl.train import optim
from sscl.train.curves import draw_finetuning
from sscl.train.epoch import check_finite_mean
from sscl.train.labelled import LabelledTiles, batch_size_of, epoch_rows, load_labelled
from sscl.train.objectives import OBJECTIVES, LabelLoss, build_loss, score, validation_metrics
from sscl.train.pace import Pace, Writer
from sscl.train.schedule import Schedule
from sscl.train.setup import OpenRun, memory_lines, open_run, progress_bar, start_log
from sscl.train.step import Views, project_pairs, take_step
from sscl.words import count, wrapped


def train_classifier(config: FinetuneConfig, *, overwrite: bool) -> None:
    """Train one classifier, as one of torchrun's ranks where there are some, and write its run folder."""
    device = pick_device(config.device, local_rank=ranks.local_rank())
    with ranks.group(device, timeout_minutes=config.train.timeout_minutes):
        finetune(config, device=device, overwrite=overwrite)


def finetune(config: FinetuneConfig, *, device: torch.device, overwrite: bool) -> None:
    """Train on this rank's device; rank 0 validates and writes.

    Raises:
        ValueError, FileNotFoundError: bad input, or a loss that is not finite; one line.
    """
    inputs = {"model.weights": config.model.weights, "data.root": config.data.root}
    opened = open_run(config, device=device, inputs=inputs, overwrite=overwrite)
    job = prepare(config, opened)
    log = start_log(opened, config, overwrite=overwrite)
    announce(job)

    best: MetricsRow | None = None
    calibration: KeptCalibration | None = None
    pace = Pace(config.log.every_seconds)
    with progress_bar(opened, job.schedule, command="finetune") as bar, Writer() as writer:
        for epoch in range(config.train.epochs):
            means = train_epoch(job, epoch, bar=bar)
            check_finite_mean(means.loss + means.contrast_loss, epoch=epoch, best=best, folder=opened.folder)
            row: MetricsRow = {}
            if opened.writes:
                logits = validation_logits(job)  # (V, K)
                row = {**metrics_row(job, epoch, means, logits), "busy": pace.busy(means.seconds)}
            row = ranks.from_first(row)
            bar.note(
                f"loss {means.loss:.3f}, validation {row['validation_loss']:.3f}, "
                f"balanced accuracy {row['validation_balanced_accuracy']:.3f}"
            )
            better = best is None or score(row, config) > score(best, config)
            best = row if better or best is None else best
            if log is not None:
                log.append(row)
                if better:
                    calibration = calibrate(job, logits)
                    writer.put(partial(checkpoint_of, job, row, calibration), partial(keep, job, log))
            stop = epoch + 1 - best["epoch"] >= config.train.patience
            if log is not None and pace.due(last=stop or epoch + 1 == config.train.epochs):
                draw_finetuning(log.rows, opened.folder / "curves.png")
                pace.measured()
            if stop:
                bar.write(f"stopped: no better epoch than {best['epoch']} in {config.train.patience}")
                break
    if log is not None:
        log.close()
        assert best is not None
        assert calibration is not None
        print_summary(job, best, calibration, pace=pace)


# --- before the first step ---


@dataclass(frozen=True)
class Finetuning:
    """All that an epoch needs.

    Attributes:
        data: tiles, and which of them train and validate. batch_size: N.
        start: the encoder as it began, with mean and standard deviation of the pixels.
        model: the classifier. joint: its encoder under a projection head, None without contrastive steps.
        parallel_model, parallel_joint: the same, with gradients averaged over ranks.
        labels: of all tiles, on the device.
        needs: lines that say what it takes of memory.
    """

    config: FinetuneConfig
    opened: OpenRun
    data: LabelledTiles
    batch_size: int
    start: Start
    model: Classifier
    joint: ContrastiveModel | None
    parallel_model: nn.Module
    parallel_joint: nn.Module | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    schedule: Schedule
    loss: LabelLoss
    views: Views
    labels: torch.Tensor
    store: TileStore
    validation_store: TileStore
    needs: list[str]


def prepare(config: FinetuneConfig, opened: OpenRun) -> Finetuning:
    """Return tiles, model and optimizer as at the start.

    Raises:
        ValueError: tiles without labels, or too few; weights that do not fit.
    """
    device = opened.device
    data = load_labelled(config, progress=opened.progress)
    batch_size = batch_size_of(config, tiles=len(data.train), world=opened.world)
    steps = max(1, len(epoch_rows(data.train, data.tiles, config, epoch=0)) // batch_size)

    torch.manual_seed(config.seed)
    start = start_encoder(config.model)
    model = Classifier(start.encoder, num_classes=len(data.classes)).to(device).to(memory_format=torch.channels_last)
    model.encoder.requires_grad_(not config.train.freeze_encoder)
    part = batch_size // opened.world
    budget_gb = opened.budget_gb(config.data.device_budget_gb)
    needs = memory_lines(
        opened,
        command="finetune",
        model=model,
        optimizer=config.train.optimizer,
        # Joint training has two views of these tiles and of as many unlabelled ones.
        views=part if config.contrast.kind == "none" else 4 * part,
        size_px=config.data.size_px,
        store_bytes=data.tiles.images.nbytes,
        budget_gb=budget_gb,
    )
    joint = build_joint(config, model, device=device)
    synchronise_batch_norm(model if joint is None else joint)  # the classifier's head has no norm
    new = [model.head] if joint is None else [model.head, joint.projection]
    optimizer = optim.two_rates(config.train, encoder=model.encoder, new=new)

    store = place_store(data.tiles.images, device=device, budget_gb=budget_gb)
    own = None if data.carved else place_store(data.validation_tiles.images, device=device, budget_gb=budget_gb)
    views = Views(
        augmentation=Augmentation(**config.augment.model_dump()),
        seed=config.seed,
        mean=torch.tensor(start.mean, device=device),
        std=torch.tensor(start.std, device=device),
        size_px=config.data.size_px,
        precision=opened.precision,
    )
    return Finetuning(
        config,
        opened,
        data,
        batch_size,
        start,
        model,
        joint,
        parallel_model=ranks.parallel(model),
        parallel_joint=None if joint is None else ranks.parallel(joint),
        optimizer=optimizer,
        scaler=opened.scaler(),
        schedule=Schedule(config.train, steps),
        loss=build_loss(config, data.tiles.labels[data.train], num_classes=len(data.classes), device=device),
        views=views,
        labels=torch.from_numpy(data.tiles.labels).to(device),
        store=store,
        validation_store=store if own is None else own,
        needs=needs,
    )


def build_joint(config: FinetuneConfig, model: Classifier, *, device: torch.device) -> ContrastiveModel | None:
    """Return the classifier's encoder under a projection head, or None without contrastive steps.

    The projection exists during training only and is in no checkpoint.
    """
    if config.contrast.kind == "none":
        return None
    head = config.contrast.projection
    projection = build_projection(model.encoder.num_features, kind=head.kind, hidden=head.hidden, dim=head.dim)
    return ContrastiveModel(model.encoder, projection=projection.to(device))


def announce(job: Finetuning) -> None:
    """Print how long the epochs are, and what the run needs of memory."""
    data = job.data
    print(
        f"{len(data.train)} training tiles, {len(data.validation)} validation tiles; "
        f"{count(job.schedule.steps_per_epoch, 'step')} per epoch, batch size {job.batch_size}"
    )
    print("".join(f"{line}\n" for line in job.needs), end="")
    print(wrapped(str(map_cells(job.model, size_px=job.config.data.size_px))))
    warning = job.schedule.warning()
    if warning is not None:
        print(warning)


# --- an epoch ---


@dataclass(frozen=True)
class EpochMeans:
    """Means over the steps and ranks of an epoch: losses, accuracy on random views; its seconds and tiles."""

    loss: float
    accuracy: float
    contrast_loss: float
    seconds: float
    tiles: int


def train_epoch(job: Finetuning, epoch: int, *, bar: Bar) -> EpochMeans:
    """Train one epoch, counted from 0: a step on labels each time, followed by a contrastive one in joint training."""
    config, model, device, steps = job.config, job.model, job.opened.device, job.schedule.steps_per_epoch
    model.train()
    if config.train.freeze_encoder:
        model.encoder.eval()  # no dropout; batch-norm statistics stay those of pretraining
    elif config.train.freeze_batch_norm:
        keep_batch_statistics(model.encoder)
    order = epoch_rows(job.data.train, job.data.tiles, config, epoch=epoch)[: steps * job.batch_size]
    repeats = split.occurrences(order)  # balanced draws repeat tiles; each repeat is another view
    order, repeats = order.reshape(steps, job.batch_size), repeats.reshape(steps, job.batch_size)
    share = job.opened.share_of(job.batch_size)
    rows, number = (torch.from_numpy(x[:, share]).to(device) for x in (order, repeats))  # (steps, N / R)
    exact = sum_dtype(device)
    total = torch.zeros(3, device=device, dtype=exact)  # loss, accuracy, contrastive loss
    started = time.perf_counter()
    drawn = job.views.steps(rows, number, epoch=epoch, count=1)
    for step, images in enumerate(job.store.batches(order[:, share])):  # uint8 (N / R, H, W, 3)
        at = epoch * steps + step
        optim.set_learning_rate(job.optimizer, job.schedule.at(at))
        target = job.labels[rows[step]]  # (N / R,)
        x = job.views.render(images, next(drawn))  # (N / R, 3, H, W)
        with autocast(device, job.opened.precision):
            logits = job.parallel_model(x)  # (N / R, K)
        loss = job.loss(logits.float(), target)
        take_step(loss, optimizer=job.optimizer, scaler=job.scaler)
        right = (logits.detach().argmax(1) == target).to(exact).mean()
        total[:2] += torch.stack([loss.detach().to(exact), right])
        if job.parallel_joint is not None:
            pairs = split.with_unlabelled(order[step], job.data.unlabelled, seed=config.seed, step=at)
            total[2] += contrast_step(job, job.parallel_joint, pairs, epoch=epoch, step=step)
        bar.update()
    train_loss, accuracy, contrast_loss = (ranks.mean(total) / steps).tolist()
    seconds = time.perf_counter() - started
    return EpochMeans(train_loss, accuracy, contrast_loss, seconds, tiles=steps * job.batch_size)


def contrast_step(
    job: Finetuning, joint: nn.Module, pairs: NDArray[np.int64], *, epoch: int, step: int
) -> torch.Tensor:
    """Take a contrastive step on the tiles at `pairs`, labelled and unlabelled, and return its loss, detached."""
    config, world = job.config, job.opened.world
    own = torch.from_numpy(pairs[: len(pairs) // world * world].reshape(world, -1)[ranks.rank()])  # (M,)
    with autocast(job.opened.device, job.opened.precision):
        # The step is the view's number, so that a tile met twice in an epoch gives two views.
        a, b = project_pairs(joint, job.store, own, views=job.views, epoch=epoch, number=step)  # (M, D) each
    loss = OBJECTIVES[config.contrast.kind].loss(a, b, temperature=config.contrast.temperature)
    take_step(loss, optimizer=job.optimizer, scaler=job.scaler)
    return loss.detach()


# --- after an epoch ---


def validation_logits(job: Finetuning) -> torch.Tensor:
    """Return the logits of the validation tiles as they are, (V, K) on the CPU.

    In the precision of `eval` and `predict`: the temperature and the thresholds fitted to them are applied in it.
    """
    return features.outputs(
        job.model,
        job.validation_store,
        job.data.validation,
        mean=job.views.mean,
        std=job.views.std,
        batch_size=job.config.train.batch_size,
        precision=validation_precision(job),
    )


def validation_precision(job: Finetuning) -> str:
    """Return in which precision validation tiles go through the encoder, see `inference_precision`."""
    return inference_precision("auto", job.opened.device, fitted=job.opened.precision)


def metrics_row(job: Finetuning, epoch: int, means: EpochMeans, logits: torch.Tensor) -> MetricsRow:
    """Return the epoch's row of metrics.jsonl."""
    return {
        "epoch": epoch + 1,
        "train_loss": means.loss,
        "train_accuracy": means.accuracy,
        **({} if job.joint is None else {"contrast_loss": means.contrast_loss}),
        **validation_metrics(logits, job.data.validation_tiles.labels[job.data.validation]),
        "learning_rate": job.optimizer.param_groups[-1]["lr"],
        "tiles_per_second": means.tiles / means.seconds,
    }


def calibrate(job: Finetuning, logits: torch.Tensor) -> KeptCalibration:
    """Return the calibration fitted to the validation logits, (V, K)."""
    labels = job.data.validation_tiles.labels[job.data.validation]
    classes = job.data.classes
    positive = positive_class(classes, None)
    return fit_calibration(logits, labels, classes=classes, positive=positive, precision=validation_precision(job))


def checkpoint_of(job: Finetuning, row: MetricsRow, calibration: KeptCalibration) -> Checkpoint:
    """Return the best checkpoint so far, copied to the host."""
    data = job.data
    blank = build_checkpoint(
        job.config,
        mean=job.start.mean,
        std=job.start.std,
        pooling=job.model.encoder.pooling,
        classes=data.classes,
        lineage=job.start.lineage,
        fingerprint=data.fingerprint,
        precision=job.opened.precision,
    )
    facts = replace(blank, epoch=int(row["epoch"]), validation=row, calibration=calibration)
    return on_host(replace(facts, encoder=job.model.encoder.state_dict(), head=job.model.head.state_dict()))


def keep(job: Finetuning, log: MetricsLog, checkpoint: Checkpoint) -> None:
    """Write the best checkpoint so far and its model card, once the rows of its epochs are on the disk."""
    config, data, folder = job.config, job.data, job.opened.folder
    log.sync()
    save_checkpoint(folder / "checkpoints" / "best.pt", checkpoint)
    card = model_card.model_card(
        checkpoint.without_tensors(),
        folder=folder,
        origin=model_card.origin_of_weights(config.model.weights, job.start.checkpoint),
        train=model_card.part_of(data.tiles, data.train),
        validation=model_card.part_of(data.validation_tiles, data.validation),
        carved=data.carved,
        groups_are=groups_are(config.data),
        slides_known=slides_known(config.data),
        unlabelled=0 if job.joint is None else len(data.unlabelled),
        warnings=data.warnings,
    )
    writing.write_text(folder / model_card.FILE, card)


def print_summary(job: Finetuning, best: MetricsRow, calibration: KeptCalibration, *, pace: Pace) -> None:
    """Print the best epoch's metrics, its calibration, how the time was spent and what was written."""
    config, data = job.config, job.data
    origin = "carved from the training split" if data.carved else "of the data set's own validation split"
    print(
        f"best epoch {best['epoch']} by validation {config.train.select} ({len(data.validation)} tiles {origin}): "
        f"accuracy {best['validation_accuracy']:.3f}, balanced accuracy {best['validation_balanced_accuracy']:.3f}, "
        f"loss {best['validation_loss']:.3f}"
    )
    print(
        f"calibrated on the same tiles: temperature {calibration.temperature:.3f}, expected calibration error "
        f"{calibration.ece_before:.3f} before, {calibration.ece_after:.3f} after"
    )
    called = calibration.logits.argmax(1).numpy()
    for warning in outcome_warnings(calibration.labels.numpy(), called, data.classes, tiles="validation tile"):
        print(f"warning: {warning}")
    print(pace.line())
    print(f"wrote {job.opened.folder}/checkpoints/best.pt, metrics.jsonl, curves.png, {model_card.FILE}")
