"""What pretraining and fine-tuning do before their first step: open the run, announce it, show progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sscl import augment, ranks, run
from sscl.config import FinetuneConfig, PretrainConfig, changed_keys, shown
from sscl.config.training import PretrainTrainConfig
from sscl.data.tiles import tile_budget_gb
from sscl.device import describe_device, free_memory, pick_precision, tune
from sscl.models.checkpoint import Checkpoint
from sscl.models.start import NO_STATISTICS
from sscl.progress import Bar
from sscl.train import memory
from sscl.train.schedule import Schedule


@dataclass(frozen=True)
class OpenRun:
    """Where a run computes, and what this process does in it.

    Attributes:
        folder: the run folder.
        device: of this rank.
        precision: fp32, bf16 or fp16.
        world: number of ranks, 1 without torchrun.
        writes: whether this rank validates and writes; rank 0 alone does.
        progress: whether this rank shows a progress bar.
        free: bytes of the GPU that nobody used before the work started; None on another device.
    """

    folder: Path
    device: torch.device
    precision: str
    world: int
    writes: bool
    progress: bool
    free: int | None = None

    def budget_gb(self, given: float | None) -> float:
        """Return up to which size tiles are kept on the device, GiB, from data.device_budget_gb."""
        return tile_budget_gb(given, free=self.free)

    def share_of(self, batch_size: int) -> slice:
        """Return which tiles of a batch are this rank's; the batch size is a multiple of `world`."""
        part = batch_size // self.world
        return slice(ranks.rank() * part, (ranks.rank() + 1) * part)

    def scaler(self) -> torch.amp.GradScaler:
        """Return the gradient scaler of fp16, which does nothing at another precision."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")


def open_run(
    config: PretrainConfig | FinetuneConfig,
    *,
    device: torch.device,
    inputs: Mapping[str, str | None],
    overwrite: bool,
    resume: bool = False,
) -> OpenRun:
    """Return the run after all checks that need no data; prints the device and writes nothing.

    Args:
        device: of this rank.
        inputs: files and folders that the run reads, by key; --overwrite must not delete them.
        overwrite, resume: the flags of the command.

    Raises:
        ValueError, FileNotFoundError: the run folder, the precision or TensorBoard; one line.
    """
    precision = pick_precision(config.precision, device)
    tune(device, deterministic=config.deterministic)
    folder = run.check_run_folder(config.run, overwrite=overwrite, resume=resume, trains=True)
    if not resume:
        run.check_inputs_outside(folder, inputs)
    if config.log.tensorboard:
        run.check_tensorboard()
    world, first = ranks.world_size(), ranks.rank() == 0
    over = f", {world} ranks" if world > 1 else ""
    how = f"precision {precision}{', deterministic' if config.deterministic else ''}"
    print(f"device: {describe_device(device)}{over}, {how}")
    lack = augment.kernels_lack(device) if device.type == "cuda" else None
    if lack is not None:
        print(f"note: views are made by slower operations than the CUDA kernels: {lack}")
    if config.train.freeze_batch_norm and config.model.weights is None:
        print(NO_STATISTICS)
    progress = config.progress and first
    return OpenRun(folder, device, precision, world, writes=first, progress=progress, free=free_memory(device))


def check_resumable(kept: Checkpoint, config: PretrainConfig, fingerprint: str, *, precision: str) -> None:
    """Raise ValueError unless a checkpoint's run and this one would learn the same; one line a changed setting."""
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


def start_log(
    opened: OpenRun, config: PretrainConfig | FinetuneConfig, *, overwrite: bool, keep_epochs: int | None = None
) -> run.MetricsLog | None:
    """Make the run folder, once all ranks have checked it, and return its log; None on ranks that do not write.

    Args:
        keep_epochs: epochs of a resumed run that its checkpoint holds; None for a new run.
    """
    ranks.barrier()
    if not opened.writes:
        return None
    if keep_epochs is None:
        run.start_folder(opened.folder, config, overwrite=overwrite)
    return run.MetricsLog(opened.folder, keep_epochs=keep_epochs, tensorboard=config.log.tensorboard)


def memory_lines(
    opened: OpenRun,
    *,
    command: str,
    model: nn.Module,
    optimizer: str,
    views: int,
    size_px: int,
    store_bytes: int,
    budget_gb: float,
) -> list[str]:
    """Return lines that say what the training will need of memory; none on ranks that do not write.

    Call it before the batch norms are synchronised: a pass of fake tensors through those would meet no other rank.

    Args:
        command: pretrain or finetune, for the advice where it does not fit.
        model: all that is trained. optimizer: sgd, lars or adamw.
        views: forwarded at a time on one rank. size_px: their side.
        store_bytes: the tiles. budget_gb: up to which size they go to a GPU, GiB, see `OpenRun.budget_gb`.
    """
    if not opened.writes:
        return []
    return memory.report(
        command=command,
        model=model,
        optimizer=optimizer,
        shape=(views, 3, size_px, size_px),
        device=opened.device,
        free=opened.free,
        precision=opened.precision,
        store_bytes=store_bytes,
        budget_gb=budget_gb,
    )


def check_batch(train: PretrainTrainConfig, *, world: int) -> None:
    """Raise ValueError unless the batch divides over the ranks, and a rank's part into microbatches."""
    whole, micro = train.batch_size, train.microbatch
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


def progress_bar(opened: OpenRun, schedule: Schedule, *, command: str, first_epoch: int = 0) -> Bar:
    """Return a bar over all steps of the run, those of earlier epochs included."""
    return Bar(
        schedule.steps_per_epoch * schedule.settings.epochs,
        desc=command if opened.progress else None,
        unit="step",
        done=schedule.steps_per_epoch * first_epoch,
        leave=True,
    )
