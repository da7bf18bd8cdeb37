"""Contrastive pretraining (SimCLR with NT-Xent), read from top to bottom.

N tiles a batch, two views each; under torchrun each of R ranks has N / R of them. S sources.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.profiler import record_function

from sscl import augment, ranks, writing
from sscl.config import PretrainConfig
from sscl.data.rows import Images
from sscl.data.scale import Scale
from sscl.data.sources import epoch_rows, load_sources, slide_numbers, steps_of
from sscl.data.split import occurrences
from sscl.data.tiles import Tiles, TileStore, as_rows, place_store
from sscl.device import Later, sum_dtype
from sscl.metrics_log import MetricsLog, MetricsRow
from sscl.models import features
from sscl.models.checkpoint import Checkpoint, save_checkpoint
from sscl.models.heads import ContrastiveModel, build_projection
from sscl.models.lora import merged_state
from sscl.models.start import Start, resumed_encoder, start_encoder
from sscl.models.sync_batch_norm import synchronise_batch_norm
from sscl.progress import Bar
from sscl.train import optim
from sscl.train.adaptation import adapt_encoder, hold_statistics
from sscl.train.curves import draw_pretraining
from sscl.train.epoch import EpochMeans, check_finite, losses_by_source, print_summary
from sscl.train.health import (
    HealthTiles,
    carve_health,
    collapse_warning,
    health_batch_size,
    health_metrics,
)
from sscl.train.objectives import OBJECTIVES
from sscl.train.pace import Pace, Writer, on_host
from sscl.train.profiling import Profile
from sscl.train.schedule import Schedule, peak_of
from sscl.train.setup import (
    OpenRun,
    blank_checkpoint,
    check_batch,
    end_run,
    load_last,
    open_run,
    print_memory,
    progress_bar,
    restore,
    seed_epoch,
    start_log,
    views_of,
    with_weights_settings,
)
from sscl.train.step import ContrastiveStep, Views
from sscl.words import count, wrapped

WORTH_COMPILING = 5000  # steps; compiling takes as long as some hundreds of them


def pretrain(config: PretrainConfig, *, device: torch.device, overwrite: bool, resume: bool) -> None:
    """Pretrain on this rank's device; rank 0 writes the run folder.

    Raises:
        ValueError, FileNotFoundError: bad input, or a loss that is not finite; one line.
    """
    opened = open_run(config, device=device, overwrite=overwrite, resume=resume)
    config = with_weights_settings(config, resume=resume)
    job = prepare(config, opened, resume=resume)
    log = start_log(opened, config, overwrite=overwrite, kept=job.kept)
    announce(job)

    steps = job.schedule.steps_per_epoch
    last_epoch = min(config.train.epochs, config.train.stop_after_epoch or config.train.epochs)
    profile = Profile(opened.folder, enabled=config.train.profile and opened.writes, steps=steps, device=device)
    bar = progress_bar(opened, job.schedule, command="pretrain", first_epoch=job.first_epoch)
    pace = Pace(config.log.every_seconds)
    with bar, profile, Writer() as writer:
        for epoch in range(job.first_epoch, last_epoch):
            means = train_epoch(job, epoch, bar=bar, profile=profile)
            count_damage(job.tiles.images)
            if log is None:
                continue
            measure = pace.due(last=epoch + 1 == last_epoch)
            row = metrics_row(job, epoch, means, measure=measure, pace=pace)
            # During warm-up, the loss of random guessing is to be expected.
            warning = None if job.schedule.warms_up(epoch) else collapse_warning(row)
            if warning:
                bar.write(f"warning: epoch {epoch + 1}: {warning}")
            log.append(row)
            writer.put(partial(checkpoint_of, job, epoch), partial(keep, log))
            if measure and epoch + 1 < last_epoch:
                draw_pretraining(log.rows, opened.folder / "curves.png")
                pace.measured()
    if log is not None:
        log.close()
        draw_pretraining(log.rows, opened.folder / "curves.png")  # even where a killed run had done all epochs
        with writing.replacing(opened.folder / "encoder.pt") as temporary:  # the encoder alone, by torchvision's names
            torch.save({key: x.cpu().contiguous() for key, x in merged_state(job.model.encoder).items()}, temporary)
        print("".join(f"{line}\n" for line in profile.lines()), end="")
        for note in as_rows(job.tiles.images).notes():
            print(wrapped(f"warning: {note}"))
        ended = end_run(opened, config, epochs=max(last_epoch, job.first_epoch))
        print_summary(log.rows, opened.folder, config=config, pace=pace, finished=ended.final)


# --- before the first step ---


@dataclass(frozen=True)
class Pretraining:
    """All that an epoch needs.

    Attributes:
        tiles: of all sources. source_of: int64 (len(tiles),), the source of each tile. scale: of all.
        slide_of: its slide, where an epoch draws some tiles of each.
        health_tiles: rows that are trained on, and those that the health metrics are of.
        start: the encoder as it began, with mean and standard deviation of the pixels.
        kept: the facts of the checkpoint to go on from; None for a new run.
    """

    config: PretrainConfig
    opened: OpenRun
    tiles: Tiles
    source_of: NDArray[np.int64]
    slide_of: NDArray[np.int64] | None
    scale: Scale
    health_tiles: HealthTiles
    start: Start
    model: ContrastiveModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    schedule: Schedule
    views: Views
    step: ContrastiveStep
    store: TileStore
    kept: Checkpoint | None

    @property
    def first_epoch(self) -> int:
        """Epochs that are done already."""
        return 0 if self.kept is None else self.kept.epoch


def prepare(config: PretrainConfig, opened: OpenRun, *, resume: bool) -> Pretraining:
    """Return tiles, model and optimizer, as at the start or as the checkpoint to resume left them.

    Raises:
        ValueError: a batch that the ranks or the tiles do not allow; a checkpoint of another configuration.
    """
    check_batch(config.train, world=opened.world)
    torch.manual_seed(config.seed)
    with ranks.first_on_each_machine():
        start = None if resume else start_encoder(config.model)  # before the tiles: its weights may not be had
        tiles, source_of, scale = load_sources(config)
    health_tiles = carve_health(tiles, config)
    some = any(source.tiles_per_slide is not None for source in config.data)
    slide_of = slide_numbers(tiles) if some else None
    steps = steps_of(health_tiles.train, source_of, config, slide_of=slide_of)

    kept = None
    if start is None:
        kept = load_last(opened, config, kind="pretrain", fingerprint=tiles.fingerprint, scale=scale)
        start = resumed_encoder(kept)
    for line in start.suits(scale, size_px=config.data[0].size_px):
        print(line)
    adapt_encoder(start.encoder, config, size_px=config.data[0].size_px)
    head = config.projection
    projection = build_projection(start.encoder.num_features, kind=head.kind, hidden=head.hidden, dim=head.dim)
    model = ContrastiveModel(start.encoder, projection=projection)
    model = model.to(opened.device).to(memory_format=torch.channels_last)
    budget_gb = opened.budget_gb(config.data[0].device_budget_gb)
    views_at_once = 2 * (config.train.microbatch or config.train.batch_size // opened.world)
    print_memory(opened, config, model, views=views_at_once, store_bytes=tiles.images.nbytes, budget_gb=budget_gb)
    synchronise_batch_norm(model)
    peak = peak_of(config.train)
    optimizer = optim.optimizer_of(config.train, [(model.encoder, peak), (model.projection, peak)])
    scaler = opened.scaler()
    store = place_store(tiles.images, device=opened.device, budget_gb=budget_gb)

    if kept is not None:
        as_rows(tiles.images).count_damaged(kept.damaged)
        restore(kept, opened.folder, model=model, optimizer=optimizer, scaler=scaler)
    views = views_of(config, opened, start)
    step = ContrastiveStep(
        model,
        views=views,
        loss=OBJECTIVES[config.train.loss].loss,
        temperature=config.train.temperature,
        scaler=scaler,
        microbatch=config.train.microbatch,
        compile=config.train.compile,
    )
    return Pretraining(
        config,
        opened,
        tiles,
        source_of,
        slide_of,
        scale,
        health_tiles,
        start,
        model,
        optimizer,
        scaler,
        Schedule(config.train, steps),
        views,
        step,
        store,
        kept=None if kept is None else kept.without_tensors(),
    )


def announce(job: Pretraining) -> None:
    """Print which encoder it is, and how long the epochs are."""
    print(wrapped(str(job.start)))
    tiles, steps = count(len(job.health_tiles.train), "training tile"), count(job.schedule.steps_per_epoch, "step")
    peak = peak_of(job.config.train)
    if job.slide_of is not None:
        tiles += f", {job.schedule.steps_per_epoch * job.config.train.batch_size:,} of them an epoch"
    print(f"{tiles}; {steps} per epoch, batch size {job.config.train.batch_size}, peak learning rate {peak:.4g}")
    if (warning := job.schedule.warning()) is not None:
        print(warning)
    all_steps = job.schedule.steps_per_epoch * job.config.train.epochs
    if augment.uses_kernels(job.opened.device) and not job.config.train.compile and all_steps >= WORTH_COMPILING:
        print("note: train.compile=true compiles for a minute, then steps are faster (1.4 times on an H100, ResNet50)")


# --- an epoch ---


def train_epoch(job: Pretraining, epoch: int, *, bar: Bar, profile: Profile) -> EpochMeans:
    """Train one epoch, counted from 0.

    Raises:
        ValueError: the loss is not a finite number.
    """
    config, opened, optimizer, device = job.config, job.opened, job.optimizer, job.opened.device
    batch_size, steps = config.train.batch_size, job.schedule.steps_per_epoch
    seed_epoch(config.seed, epoch)
    job.model.train()
    hold_statistics(job.model.encoder, config)
    order = epoch_rows(job.health_tiles.train, job.source_of, config, epoch=epoch, slide_of=job.slide_of)  # (steps, N)
    # Weighted sources repeat tiles; each repeat has other views.
    weighted = config.data[0].weight is not None
    repeats = occurrences(order.ravel()).reshape(order.shape) if weighted else np.zeros_like(order)
    share = opened.share_of(batch_size)
    order, repeats = order[:, share], repeats[:, share]  # (steps, N / R)
    rows, number = torch.from_numpy(order).to(device), 2 * torch.from_numpy(repeats).to(device)
    sources = torch.from_numpy(job.source_of).to(device)
    at = torch.tensor(epoch, device=device)
    exact = sum_dtype(device)
    total = torch.zeros(3, device=device, dtype=exact)  # loss, positive and negative similarity
    per_source = torch.zeros(2, len(config.data), device=device, dtype=exact)  # loss and tiles, (2, S)
    late: Later | None = None
    objective = OBJECTIVES[config.train.loss]
    collapse = objective.at_collapse(batch_size)
    started = time.perf_counter()
    batches = job.store.batches(order)
    drawn = job.views.steps(rows, number, epoch=at)
    for step in range(steps):
        with record_function("data"):
            images = next(batches)  # uint8 (N / R, H, W, 3)
        optim.set_learning_rate(optimizer, job.schedule.at(epoch * steps + step))
        optimizer.zero_grad(set_to_none=True)
        result = job.step.backward(images, next(drawn))
        with record_function("optimizer"):
            job.scaler.step(optimizer)
            job.scaler.update()
        loss = result.losses.mean()
        total += torch.stack([loss.to(exact), result.positive, result.negative])
        if len(config.data) > 1:
            part = torch.stack([result.losses.to(exact), torch.ones_like(result.losses, dtype=exact)])
            per_source.index_add_(1, sources[rows[step]], part)
        # Read one step late: while the host waits for the last step's loss, the device has this step to do.
        if late is not None:
            value = check_finite(late.value(), epoch=epoch, step=step - 1, folder=opened.folder)
            speed = batch_size * (step + 1) / (time.perf_counter() - started)
            relative = f"{value / collapse:.2f} of {objective.formula}"
            bar.note(f"loss {value:.3f} ({relative}), {speed:.0f} tiles/s")
        late = Later(loss)
        bar.update()
        profile.step()
    assert late is not None
    check_finite(late.value(), epoch=epoch, step=steps - 1, folder=opened.folder)

    seconds = time.perf_counter() - started
    mean_loss, positive, negative = (ranks.mean(total) / steps).tolist()
    return EpochMeans(
        loss=mean_loss,
        by_source=losses_by_source(ranks.mean(per_source), config),
        positive=positive,
        negative=negative,
        learning_rate=optimizer.param_groups[-1]["lr"],
        seconds=seconds,
        tiles=steps * batch_size,
    )


# --- after an epoch ---


def count_damage(images: Images) -> None:
    """Have each rank count the damaged tiles that any of them has read.

    Raises:
        ValueError: they are too many of a slide.
    """
    rows = as_rows(images)
    if rows.made:
        for found in ranks.from_all(rows.damaged()):
            rows.count_damaged(found)


def metrics_row(job: Pretraining, epoch: int, means: EpochMeans, *, measure: bool, pace: Pace) -> MetricsRow:
    """Return the epoch's row of metrics.jsonl; with `measure`, the health metrics of the encoder as it is now.

    Raises:
        ValueError: the embeddings are not finite numbers; a few of them are looked at without `measure` too, so that a
            checkpoint never holds weights that have diverged.
    """
    config, encoder, mean, std = job.config, job.model.encoder, job.views.mean, job.views.std
    health: dict[str, float] = {}
    if measure:
        health = health_metrics(
            encoder,
            job.store,
            job.tiles.labels,
            job.health_tiles,
            mean=mean,
            std=std,
            batch_size=health_batch_size(config),
            neighbours=config.health.neighbours,
        )
    else:
        few = job.health_tiles.queries[:8]
        features.outputs(encoder, job.store, few, mean=mean, std=std, batch_size=len(few), precision="fp32")
    return {
        "epoch": epoch + 1,
        "loss": means.loss,
        "loss_relative": means.loss / OBJECTIVES[config.train.loss].at_collapse(config.train.batch_size),
        **means.by_source,
        "learning_rate": means.learning_rate,
        "positive_similarity": means.positive,
        "negative_similarity": means.negative,
        **health,
        "tiles_per_second": means.tiles / means.seconds,
        "seconds": means.seconds,
        "busy": pace.busy(means.seconds),
    }


def checkpoint_of(job: Pretraining, epoch: int) -> Checkpoint:
    """Return what last.pt holds after an epoch, copied to the host."""
    tiles = job.tiles
    blank = blank_checkpoint(
        *(job.config, job.opened, job.start), classes=tiles.classes, fingerprint=tiles.fingerprint, scale=job.scale
    )
    whole = replace(
        blank,
        epoch=epoch + 1,
        damaged=as_rows(tiles.images).damaged(),
        encoder=merged_state(job.model.encoder),
        model=job.model.state_dict(),
        optimizer=job.optimizer.state_dict(),
        scaler=job.scaler.state_dict(),
    )
    return on_host(whole)


def keep(log: MetricsLog, checkpoint: Checkpoint) -> None:
    """Write last.pt, once the rows of its epochs are on the disk."""
    log.sync()
    save_checkpoint(log.path.parent / "checkpoints" / "last.pt", checkpoint)
