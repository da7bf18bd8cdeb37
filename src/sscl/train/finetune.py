"""Fine-tuning: a classifier from labels, with or without contrastive steps, read from top to bottom.

N tiles a batch, K classes, D dimensions of the projection, V validation tiles; under torchrun each of R ranks has N / R
tiles of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sscl import ranks, run, writing
from sscl.config import FinetuneConfig
from sscl.data import split
from sscl.data.load import groups_are, has_test, slides_known
from sscl.data.task import outcome_warnings
from sscl.device import autocast, pick_device, sum_dtype
from sscl.evaluate import model_card
from sscl.evaluate.calibration import fit_calibration
from sscl.metrics_log import MetricsLog, MetricsRow, name_of_row
from sscl.models import features
from sscl.models.calibration import KeptCalibration
from sscl.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sscl.models.classifier import inference_precision, positive_class
from sscl.models.lora import merged_state
from sscl.progress import Bar
from sscl.run import Ending
from sscl.train import optim
from sscl.train.adaptation import hold_statistics
from sscl.train.curves import draw_finetuning
from sscl.train.epoch import STOPPED, Best, check_finite_mean
from sscl.train.labelled import epoch_rows
from sscl.train.objectives import OBJECTIVES, score, validation_metrics
from sscl.train.pace import Pace, Writer, on_host
from sscl.train.preparation import Finetuning, announce, prepare
from sscl.train.setup import (
    blank_checkpoint,
    end_run,
    open_run,
    progress_bar,
    seed_epoch,
    start_log,
    with_weights_settings,
)
from sscl.train.step import project_pairs, take_step
from sscl.words import count, next_command, say_next, wrapped


def train_classifier(config: FinetuneConfig, *, overwrite: bool, resume: bool = False) -> None:
    """Train one classifier, as one of torchrun's ranks where there are some, and write its run folder."""
    device = pick_device(config.device, local_rank=ranks.local_rank())
    with ranks.group(device, timeout_minutes=config.train.timeout_minutes), run.holding(config.run):
        finetune(config, device=device, overwrite=overwrite, resume=resume)


def finetune(config: FinetuneConfig, *, device: torch.device, overwrite: bool, resume: bool = False) -> None:
    """Train on this rank's device; rank 0 validates and writes.

    Raises:
        ValueError, FileNotFoundError: bad input, or a loss that is not finite; one line.
    """
    opened = open_run(config, device=device, overwrite=overwrite, resume=resume)
    config = with_weights_settings(config, resume=resume)
    job = prepare(config, opened, resume=resume)
    log = start_log(opened, config, overwrite=overwrite, kept=job.kept)
    if log is not None and job.kept is not None:
        tell_scale(job)
    announce(job)
    if config.train.head == "logistic":
        if log is not None:
            train_by_regression(job, log)
        return

    best, epochs, patience_over = job.best, job.first_epoch, False
    last_epoch = min(config.train.epochs, config.train.stop_after_epoch or config.train.epochs)
    pace = Pace(config.log.every_seconds)
    bar = progress_bar(opened, job.schedule, command="finetune", first_epoch=job.first_epoch)
    with bar, Writer() as writer:
        for epoch in range(job.first_epoch, last_epoch):
            means = train_epoch(job, epoch, bar=bar)
            check_finite_mean(means.loss + means.contrast_loss, epoch=epoch, best=best, folder=opened.folder)
            row: MetricsRow = {}
            if opened.writes:
                logits = validation_logits(job)  # (V, K)
                row = {**metrics_row(job, epoch, means, logits), "busy": pace.busy(means.seconds)}
            row = ranks.from_first(row)
            check_finite_mean(row["validation_loss"], epoch=epoch, best=best, folder=opened.folder, what="validation ")
            bar.note(
                f"loss {means.loss:.3f}, validation {row['validation_loss']:.3f}, "
                f"balanced accuracy {row['validation_balanced_accuracy']:.3f}"
            )
            better = best is None or score(row, config) > score(best.row, config)
            if better or best is None:
                best = Best(row, calibrate(job, logits) if opened.writes else None)
            epochs = epoch + 1
            patience_over = epochs - best.row["epoch"] >= config.train.patience
            goes_on = epochs < config.train.epochs and not patience_over
            if log is not None:
                log.append(row)
                if better or goes_on:
                    copy = partial(checkpoints_of, job, epochs, best if better else None, goes_on=goes_on)
                    writer.put(copy, partial(keep, job, log), whole=better)
                if pace.due(last=epochs == last_epoch or not goes_on):
                    draw_finetuning(log.rows, opened.folder / "curves.png")
                    pace.measured()
            if patience_over:
                bar.write(f"stopped: no better epoch than {best.row['epoch']} in {config.train.patience}")
                break
    if log is not None:
        log.close()
        assert best is not None
        ending = finish(job, best, epochs=epochs, patience_over=patience_over)
        print_summary(job, best, pace=pace, ending=ending)


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
    seed_epoch(config.seed, epoch)
    model.train()
    if config.train.freeze_encoder:
        model.encoder.eval()  # no dropout; batch-norm statistics stay those of pretraining
    else:
        hold_statistics(model.encoder, config)
    order = epoch_rows(job.data.train, job.data.tiles, config, epoch=epoch)[: steps * job.batch_size]
    repeats = split.occurrences(order)  # balanced draws repeat tiles; each repeat is another view
    order, repeats = order.reshape(steps, job.batch_size), repeats.reshape(steps, job.batch_size)
    share = job.opened.share_of(job.batch_size)
    rows = torch.from_numpy(order[:, share]).to(device)  # (steps, N / R)
    exact = sum_dtype(device)
    total = torch.zeros(3, device=device, dtype=exact)  # loss, accuracy, contrastive loss
    started = time.perf_counter()
    for step, logits in enumerate(step_logits(job, order[:, share], repeats[:, share], epoch=epoch)):  # (N / R, K)
        at = epoch * steps + step
        optim.set_learning_rate(job.optimizer, job.schedule.at(at))
        target = job.labels[rows[step]]  # (N / R,)
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


def step_logits(
    job: Finetuning, order: NDArray[np.int64], repeats: NDArray[np.int64], *, epoch: int
) -> Iterator[torch.Tensor]:
    """Yield the logits of this rank's tiles in each step, (N / R, K), as the model is when they are asked for.

    Args:
        order: tiles, (steps, N / R). repeats: how often each came before in this epoch.
    """
    device = job.opened.device
    if job.frozen is not None:
        for x in job.frozen.steps(order, repeats, epoch=epoch, device=device):  # (N / R, C)
            yield job.parallel_model(x)
        return
    rows, number = (torch.from_numpy(x).to(device) for x in (order, repeats))
    drawn = job.views.steps(rows, number, epoch=epoch, count=1)
    for images in job.store.batches(order):  # uint8 (N / R, H, W, 3)
        x = job.views.render(images, next(drawn))  # (N / R, 3, H, W)
        with autocast(device, job.opened.precision):
            logits = job.parallel_model(x)
        yield logits


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


# --- without epochs ---


def train_by_regression(job: Finetuning, log: MetricsLog) -> None:
    """Fit the head by logistic regression instead, and write what epochs would have written; a row is a value of C."""
    from sscl.train.logistic import fit_logistic  # with scikit-learn, which would delay the first step of others

    assert job.frozen is not None
    pace, began = Pace(job.config.log.every_seconds), time.perf_counter()
    held = job.data.validation_tiles.labels[job.data.validation]
    labels = job.data.tiles.labels[job.frozen.rows]
    found = fit_logistic(job.config, job.frozen, labels, held, num_classes=len(job.data.classes))
    pace.busy(time.perf_counter() - began)
    job.model.head.load_state_dict(found.head)
    best = Best(found.rows[found.chosen], calibrate(job, validation_logits(job)))
    for row in found.rows:
        log.append(row)
    for note in found.notes():
        print(note)
    draw_finetuning(log.rows, job.opened.folder / "curves.png")
    keep(job, log, checkpoints_of(job, len(found.rows), best, goes_on=False))
    log.close()
    ending = finish(job, best, epochs=len(found.rows), patience_over=False)
    print_summary(job, best, pace=pace, ending=ending)


# --- after an epoch ---


def validation_logits(job: Finetuning) -> torch.Tensor:
    """Return the logits of the validation tiles as they are, (V, K) on the CPU.

    In the precision of `eval` and `predict`: the temperature and the thresholds fitted to them are applied in it.
    """
    if job.frozen is not None:
        with torch.inference_mode():
            found: torch.Tensor = job.model.head(job.frozen.validation.to(job.opened.device)).cpu()
        return found
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


def checkpoint_of(job: Finetuning) -> Checkpoint:
    """Return what every checkpoint of the run says, still without epoch and tensors."""
    data = job.data
    return blank_checkpoint(
        *(job.config, job.opened, job.start), classes=data.classes, fingerprint=data.fingerprint, scale=data.scale
    )


def best_of(job: Finetuning, best: Best) -> Checkpoint:
    """Return the facts of best.pt."""
    return replace(checkpoint_of(job), epoch=int(best.row["epoch"]), validation=best.row, calibration=best.calibration)


def tell_scale(job: Finetuning) -> None:
    """Write in best.pt of a run that goes on at which scale its tiles are, where that was not known, or corrected."""
    file, (source_px, mpp, mpp_range) = job.opened.folder / "checkpoints" / "best.pt", job.data.scale
    if load_checkpoint(file, tensors=False).scale != job.data.scale:
        best = load_checkpoint(file)
        save_checkpoint(file, replace(best, source_px=source_px, mpp=mpp, mpp_range=mpp_range, config=job.config))


def checkpoints_of(job: Finetuning, epoch: int, best: Best | None, *, goes_on: bool) -> list[Checkpoint]:
    """Return what is to be written after an epoch, counted from 1, copied to the host: best.pt if it is the best, and
    last.pt if training goes on.
    """
    found = []
    if best is not None:
        facts = best_of(job, best)
        found.append(on_host(replace(facts, encoder=merged_state(job.model.encoder), head=job.model.head.state_dict())))
    if goes_on:
        facts = replace(checkpoint_of(job), epoch=epoch)
        model, optimizer, scaler = (part.state_dict() for part in (job.trained, job.optimizer, job.scaler))
        found.append(on_host(replace(facts, model=model, optimizer=optimizer, scaler=scaler)))
    return found


def keep(job: Finetuning, log: MetricsLog, checkpoints: list[Checkpoint]) -> None:
    """Write the checkpoints of an epoch, and with the best one its model card, once the rows are on the disk.

    best.pt comes first: last.pt relies on it.
    """
    folder = job.opened.folder
    log.sync()
    for checkpoint in checkpoints:
        save_checkpoint(folder / "checkpoints" / ("last.pt" if checkpoint.goes_on else "best.pt"), checkpoint)
        if not checkpoint.goes_on:
            write_card(job, checkpoint.without_tensors(), unfinished=True)


def write_card(job: Finetuning, best: Checkpoint, *, unfinished: bool) -> None:
    """Write the model card of the best epoch so far."""
    config, data, folder = job.config, job.data, job.opened.folder
    card = model_card.model_card(
        best,
        folder=folder,
        origin=job.origin,
        train=model_card.part_of(data.tiles, data.train),
        validation=model_card.part_of(data.validation_tiles, data.validation),
        carved=data.carved,
        groups_are=groups_are(config.data),
        slides_known=slides_known(config.data),
        unlabelled=0 if job.joint is None else len(data.unlabelled),
        warnings=data.warnings,
        unfinished=unfinished,
    )
    writing.write_text(folder / model_card.FILE, card)


def finish(job: Finetuning, best: Best, *, epochs: int, patience_over: bool) -> Ending:
    """Say in the model card, then in training.json, that the training has ended, if it has; return how it did."""
    config, folder = job.config, job.opened.folder
    ended = patience_over or epochs >= config.train.planned
    if ended:
        write_card(job, best_of(job, best), unfinished=False)
    ending = end_run(job.opened, config, epochs=epochs, patience_over=patience_over)
    if ended:
        (folder / "checkpoints" / "last.pt").unlink(missing_ok=True)  # nothing goes on from it
    return ending


def print_summary(job: Finetuning, best: Best, *, pace: Pace, ending: Ending) -> None:
    """Print the best epoch's metrics, its calibration, how the time was spent and what was written."""
    config, data, row, fitted = job.config, job.data, best.row, best.fitted
    origin = "carved from train" if data.carved else "the set's own"
    regression = config.train.head == "logistic"
    chosen = f"{'' if regression else 'best '}{name_of_row(row['epoch'], row.get('c'))}"
    print(
        f"{chosen} by {config.train.select} on {count(len(data.validation), 'validation tile')}, {origin}:\n"
        f"  accuracy {row['validation_accuracy']:.3f}, balanced accuracy {row['validation_balanced_accuracy']:.3f}, "
        f"loss {row['validation_loss']:.3f}"
    )
    print(
        f"calibrated on them: temperature {fitted.temperature:.3f}; ECE {fitted.ece_before:.3f} before, "
        f"{fitted.ece_after:.3f} after"
    )
    called = fitted.logits.argmax(1).numpy()
    for warning in outcome_warnings(fitted.labels.numpy(), called, data.classes, tiles="validation tile"):
        print(wrapped(f"warning: {warning}"))
    print(pace.line("fits of the head") if regression else pace.line())
    print(f"wrote {job.opened.folder}/checkpoints/best.pt, metrics.jsonl, curves.png, {model_card.FILE}")
    if ending.final:
        say_next("eval", job.opened.folder, *([] if has_test(config.data) else ["OTHER_TILES"]))
    else:
        print(STOPPED)
        print(next_command("finetune", job.opened.folder, "--resume"))
