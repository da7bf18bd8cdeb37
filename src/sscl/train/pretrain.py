"""sscl pretrain: contrastive pretraining (SimCLR with NT-Xent), read from top to bottom.

N tiles a batch, two views each; under torchrun each of R ranks has N / R of them.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import record_function
from tqdm import tqdm

from sscl import ranks, run, writing
from sscl.augment import Augmentation
from sscl.config import PretrainConfig, changed_keys, plain, shown
from sscl.data.sources import epoch_rows, load_sources, source_key
from sscl.data.split import occurrences
from sscl.data.tiles import place_store
from sscl.device import describe_device, pick_precision, tune
from sscl.losses import cross_view_at_collapse, cross_view_info_nce, nt_xent, nt_xent_at_collapse
from sscl.models import checkpoint
from sscl.models.batch_norm import keep_batch_statistics
from sscl.models.checkpoint import Checkpoint
from sscl.models.heads import ContrastiveModel, build_projection
from sscl.models.start import NO_STATISTICS, start_encoder
from sscl.run import check_inputs_outside
from sscl.train import memory, optim
from sscl.train.health import carve_health, collapse_warning, health
from sscl.train.profiling import Profile
from sscl.train.step import ContrastiveStep, Views


def pretrain(config: PretrainConfig, *, device: torch.device, overwrite: bool, resume: bool) -> None:
    """Pretrain on this rank's device; rank 0 writes."""
    world, writes, progress = ranks.world_size(), ranks.rank() == 0, config.log.progress and ranks.rank() == 0
    precision = pick_precision(config.precision, device)
    tune(device)
    folder = run.check_run_folder(config.run, overwrite=overwrite, resume=resume, trains=True)
    if not resume:
        roots = {source_key(config, i, "root"): source.root for i, source in enumerate(config.data)}
        check_inputs_outside(folder, {"model.weights": config.model.weights, **roots})
    if config.log.tensorboard:
        run.check_tensorboard()
    batch_size, share = config.train.batch_size, share_of_batch(config, world=world)
    over = f", {world} ranks" if world > 1 else ""
    print(f"device: {describe_device(device)}{over}, precision {precision}")

    with ranks.first_on_each_machine():
        tiles, source_of = load_sources(config)
    watch = carve_health(tiles, config)
    train, weighted = watch.train, config.data[0].weight is not None
    steps = len(epoch_rows(train, source_of, config, epoch=0))
    if steps == 0:
        raise ValueError(
            f"train.batch_size: got {batch_size}, but there are only {len(train)} tiles to train on; "
            "lower train.batch_size or add tiles"
        )

    torch.manual_seed(config.seed)
    start = start_encoder(config.model)
    encoder, mean, std = start.encoder, start.mean, start.std
    if config.train.freeze_batch_norm and config.model.weights is None:
        print(NO_STATISTICS)
    projection = build_projection(
        encoder.num_features, kind=config.projection.kind, hidden=config.projection.hidden, dim=config.projection.dim
    )
    model = ContrastiveModel(encoder, projection=projection).to(device).to(memory_format=torch.channels_last)
    ranks.synchronise_batch_norm(model, device)
    peak = optim.scaled_learning_rate(
        config.train.learning_rate, batch_size=batch_size, scaling=config.train.learning_rate_scaling
    )
    groups = optim.parameter_groups(model, learning_rate=peak, weight_decay=config.train.weight_decay)
    optimizer = optim.build_optimizer(config.train.optimizer, groups, momentum=config.train.momentum)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    fingerprint = tiles.fingerprint
    store = place_store(tiles.images, device=device, budget_gb=config.data[0].device_budget_gb)
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

    first_epoch = 0
    if resume:
        kept = checkpoint.load_checkpoint(folder / "checkpoints" / "last.pt", kind="pretrain")
        check_same(kept, config, fingerprint, precision=precision)
        model.load_state_dict(kept.model)
        optimizer.load_state_dict(kept.optimizer)
        scaler.load_state_dict(kept.scaler)
        first_epoch = kept.epoch
        print(f"resuming {folder} after epoch {first_epoch}")
    ranks.barrier()  # all have looked at the folder
    log = None
    if writes:
        if not resume:
            run.start_folder(folder, config=plain(config), overwrite=overwrite)
        log = run.MetricsLog(folder, keep_epochs=first_epoch if resume else None, tensorboard=config.log.tensorboard)

    views = Views(
        augmentation=Augmentation(**config.augment.model_dump()),
        seed=config.seed,
        mean=torch.tensor(mean, device=device),
        std=torch.tensor(std, device=device),
        clean_second=config.train.second_view == "clean",
    )
    loss_of, collapse = nt_xent, nt_xent_at_collapse(batch_size)
    if config.train.loss == "cross_view":
        loss_of, collapse = cross_view_info_nce, cross_view_at_collapse(batch_size)
    contrast = ContrastiveStep(
        model,
        views=views,
        loss=loss_of,
        temperature=config.train.temperature,
        precision=precision,
        scaler=scaler,
        microbatch=config.train.microbatch,
        compile=config.train.compile,
    )
    sources = torch.from_numpy(source_of).to(device)
    if writes:
        side, at_once = config.data[0].size_px, 2 * (config.train.microbatch or batch_size // world)
        needs = memory.report(
            model=model,
            optimizer=config.train.optimizer,
            shape=(at_once, 3, side, side),
            device=device,
            precision=precision,
            store_bytes=tiles.images.nbytes,
            budget_gb=config.data[0].device_budget_gb,
        )
        print("\n".join(needs))
    last_epoch = min(config.train.epochs, config.train.stop_after_epoch or config.train.epochs)
    print(f"{len(train)} tiles to train on, {steps} steps of {batch_size} an epoch, peak learning rate {peak:.4g}")
    if config.train.schedule == "cosine":
        hint = optim.warmup_warning(warmup_epochs=config.train.warmup_epochs, epochs=config.train.epochs)
        if hint is not None:
            print(hint)
    bar = tqdm(
        total=steps * config.train.epochs,
        initial=steps * first_epoch,
        unit="step",
        disable=not progress,
        desc="pretrain",
        dynamic_ncols=True,
    )
    profile = Profile(folder, enabled=config.train.profile and writes, steps=steps, device=device)
    with bar, profile:
        for epoch in range(first_epoch, last_epoch):
            model.train()
            if config.train.freeze_batch_norm:
                keep_batch_statistics(model.encoder)
            order = epoch_rows(train, source_of, config, epoch=epoch)  # (steps, N)
            # Weights repeat tiles; each time has other views.
            repeats = occurrences(order.ravel()).reshape(order.shape) if weighted else np.zeros_like(order)
            order, repeats = order[:, share], repeats[:, share]
            rows, number = torch.from_numpy(order).to(device), 2 * torch.from_numpy(repeats).to(device)
            at = torch.tensor(epoch, device=device)
            total = torch.zeros(3, device=device, dtype=torch.float64)  # loss, positive and negative similarity
            per_source = torch.zeros(2, len(config.data), device=device, dtype=torch.float64)  # loss, tiles
            late: torch.Tensor | None = None
            started = time.perf_counter()
            batches = store.batches(order)
            for step in range(steps):
                with record_function("data"):
                    images = next(batches)
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
                optimizer.zero_grad(set_to_none=True)
                signs = contrast.backward(images, rows[step], number[step], at)
                with record_function("optimizer"):
                    scaler.step(optimizer)
                    scaler.update()
                loss = signs.losses.mean()
                total += torch.stack([loss.double(), signs.positive, signs.negative])
                if len(config.data) > 1:
                    part = torch.stack([signs.losses.double(), torch.ones_like(signs.losses, dtype=torch.float64)])
                    per_source.index_add_(1, sources[rows[step]], part)
                # Looked at one step late: reading this step's loss would leave the device idle until the next.
                if late is not None:
                    value = check_finite(late.item(), epoch=epoch, step=step - 1, folder=folder)
                    speed = batch_size * (step + 1) / (time.perf_counter() - started)
                    relative = f"{value / collapse:.2f} of {collapse_name(config)}"
                    bar.set_postfix_str(f"loss {value:.3f} ({relative}), {speed:.0f} tiles/s")
                late = loss
                bar.update()
                profile.step()
            assert late is not None
            check_finite(late.item(), epoch=epoch, step=steps - 1, folder=folder)

            seconds = time.perf_counter() - started
            mean_loss, positive, negative = (ranks.mean(total) / steps).tolist()
            per_source = ranks.mean(per_source)
            if log is None:
                continue
            row = {
                "epoch": epoch + 1,
                "loss": mean_loss,
                "loss_relative": mean_loss / collapse,
                **losses_by_source(per_source, config),
                "learning_rate": optimizer.param_groups[0]["lr"],
                "positive_similarity": positive,
                "negative_similarity": negative,
                **health(model.encoder, store, tiles, watch, views=views, config=config, precision=precision),
                "tiles_per_second": steps * batch_size / seconds,
                "seconds": seconds,
            }
            # During warm-up the loss of random guessing is what one expects.
            warm = config.train.schedule == "multistep" or epoch + 1 > config.train.warmup_epochs
            warning = collapse_warning(row) if warm else None
            if warning:
                bar.write(f"warning: epoch {epoch + 1}: {warning}")
            log.append(row)
            now = replace(
                blank,
                epoch=epoch + 1,
                encoder=model.encoder.state_dict(),
                model=model.state_dict(),
                optimizer=optimizer.state_dict(),
                scaler=scaler.state_dict(),
            )
            checkpoint.save_checkpoint(folder / "checkpoints" / "last.pt", now)
            draw_curves(log.rows, folder / "curves.png")
    if log is not None:
        log.close()
        with writing.replacing(folder / "encoder.pt") as temporary:
            torch.save({key: value.cpu().contiguous() for key, value in model.encoder.state_dict().items()}, temporary)
        print("".join(f"{line}\n" for line in profile.lines()), end="")
        report_end(log.rows, folder, config=config, finished=last_epoch == config.train.epochs)


def share_of_batch(config: PretrainConfig, *, world: int) -> slice:
    """Return which tiles of a batch are this rank's.

    Raises:
        ValueError: the batch does not divide over the ranks, or a rank's part not into microbatches.
    """
    whole, micro = config.train.batch_size, config.train.microbatch
    if whole % world:
        raise ValueError(
            f"train.batch_size: got {whole}, which does not divide over {world} ranks; "
            f"{whole // world * world or world} or {(whole // world + 1) * world} would"
        )
    part = whole // world
    if micro is not None and part % micro:
        raise ValueError(
            f"train.microbatch: got {micro}, which does not divide the {part} tiles of a batch on "
            f"{'this device' if world == 1 else 'each rank'}; allowed are its divisors"
        )
    return slice(ranks.rank() * part, (ranks.rank() + 1) * part)


def losses_by_source(per_source: torch.Tensor, config: PretrainConfig) -> dict[str, float]:
    """Return the mean loss of each source's tiles from sums of loss and tiles, (2, sources); none for one source."""
    if len(config.data) == 1:
        return {}
    sums, tiles = per_source.tolist()
    return {
        f"loss_{i}_{Path(source.root).resolve().stem}": sums[i] / tiles[i]
        for i, source in enumerate(config.data)
        if tiles[i]
    }


def check_finite(loss: float, *, epoch: int, step: int, folder: Path) -> float:
    """Return the loss; raise ValueError, saying what to try, if it is not a finite number."""
    if np.isfinite(loss):
        return loss
    kept = folder / "checkpoints" / "last.pt"
    left = f"{kept} holds epoch {epoch}" if epoch else "no checkpoint yet"
    raise ValueError(
        f"the loss became {loss} in epoch {epoch + 1}, step {step + 1}; lower train.learning_rate, lengthen "
        f"train.warmup_epochs, or set precision=fp32 ({left})"
    )


def check_same(kept: Checkpoint, config: PretrainConfig, fingerprint: str, *, precision: str) -> None:
    """Raise ValueError unless a checkpoint's run and this one would learn the same."""

    changes = changed_keys(kept.pretrain_config, config)
    if changes:
        raise ValueError(
            "\n".join(
                f"{change.key}: got {shown(change.now)}, but the run to resume has {shown(change.before)}; "
                "leave it as it was"
                for change in changes
            )
        )
    if kept.precision != precision:
        raise ValueError(f"precision: is {precision} here, but the run to resume had {kept.precision}; set it")
    if kept.fingerprint != fingerprint:
        raise ValueError(
            f"data.root: the tiles of {', '.join(source.root for source in config.data)} are not those that the run to "
            "resume was trained on"
        )


def collapse_name(config: PretrainConfig) -> str:
    """Return the formula of the loss at collapse, in which N is the batch size."""
    return "ln(2N-1)" if config.train.loss == "nt_xent" else "ln N"


def draw_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the loss, the similarities and the health signs against the epoch."""
    from sscl.plots.charts import plot_history  # matplotlib would hold the first step up

    series = [
        ("loss / loss at collapse", ["loss_relative"]),
        ("cosine similarity", ["positive_similarity", "negative_similarity"]),
        ("effective rank", ["effective_rank"]),
    ]
    by_source = list(dict.fromkeys(key for row in rows for key in row if re.match(r"loss_\d", key)))
    if by_source:
        series.append(("loss of each source", by_source))
    if any("knn_balanced_accuracy" in row for row in rows):
        series.append(("kNN balanced accuracy", ["knn_balanced_accuracy"]))
    plot_history(rows, series=series, path=path, title="Pretraining")


def report_end(rows: list[dict[str, Any]], folder: Path, *, config: PretrainConfig, finished: bool) -> None:
    """Print the last epoch's signs and where everything lies."""
    if rows:
        last = rows[-1]
        knn = f", kNN balanced accuracy {last['knn_balanced_accuracy']:.3f}" if "knn_balanced_accuracy" in last else ""
        print(
            f"epoch {last['epoch']}: loss {last['loss']:.4f} ({last['loss_relative']:.3f} of {collapse_name(config)}), "
            f"similarity {last['positive_similarity']:.3f} of pairs, {last['negative_similarity']:.3f} of others, "
            f"effective rank {last['effective_rank']:.1f}{knn}"
        )
    print(f"wrote {folder}/checkpoints/last.pt, encoder.pt, metrics.jsonl, curves.png")
    if not finished:
        print("stopped early (train.stop_after_epoch); --resume goes on")
