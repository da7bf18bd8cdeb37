"""What pretraining and fine-tuning do before their first step: open the run, announce it, show progress."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sscl import augment, metrics_log, ranks, run, writing
from sscl.config import Change, FinetuneConfig, PretrainConfig, changed_keys, plain, shown, sources_of
from sscl.config.encoders import RANDOM
from sscl.config.training import PretrainTrainConfig
from sscl.data.scale import Scale
from sscl.data.tiles import tile_budget_gb
from sscl.device import describe_device, free_memory, pick_precision, tune
from sscl.draws import Augmentation
from sscl.memory import raise_if_short
from sscl.models.checkpoint import Checkpoint, Kind, build_checkpoint, load_checkpoint
from sscl.models.start import NO_STATISTICS, Start, Training, inherit, side_of
from sscl.models.tensors import misfits
from sscl.progress import Bar
from sscl.records import write_record
from sscl.train import memory, optim
from sscl.train.schedule import Schedule
from sscl.train.step import Views


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
        free: bytes of the GPU, or of this rank's share of the machine's memory, that nobody used before the work
            started; None where nothing says so.
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
    overwrite: bool,
    resume: bool = False,
) -> OpenRun:
    """Return the run after all checks that need no data; prints the device and writes nothing.

    Args:
        device: of this rank.
        overwrite, resume: the flags of the command.

    Raises:
        ValueError, FileNotFoundError: the run folder, the precision, TensorBoard or Weights & Biases; one line.
    """
    precision = pick_precision(config.precision, device)
    tune(device, deterministic=config.deterministic)
    folder = run.check_run_folder(config.run, overwrite=overwrite, resume=resume, trains=True)
    if not resume:
        run.check_inputs_outside(folder, inputs_of(config))
    if config.log.tensorboard:
        metrics_log.check_tensorboard()
    if (wanted := wandb_of(config)) is not None and ranks.rank() == 0:
        metrics_log.check_wandb(wanted)
    world, first = ranks.world_size(), ranks.rank() == 0
    over = f", {world} ranks" if world > 1 else ""
    how = f"precision {precision}{', deterministic' if config.deterministic else ''}"
    print(f"device: {describe_device(device)}{over}, {how}")
    lack = augment.kernels_lack(device) if device.type == "cuda" else None
    if lack is not None:
        print(f"note: views are made by slower operations than the CUDA kernels: {lack}")
    if config.train.freeze_batch_norm and config.model.weights in RANDOM:
        print(NO_STATISTICS)
    progress = config.progress and first
    free = free_memory(device)
    if free is not None and device.type == "cpu":
        free //= ranks.on_this_machine()
    return OpenRun(folder, device, precision, world, writes=first, progress=progress, free=free)


def inputs_of(config: PretrainConfig | FinetuneConfig) -> dict[str, str | None]:
    """Return the files and folders that a training reads, by key; --overwrite must not delete them."""
    found: dict[str, str | None] = {"model.weights": config.model.weights}
    for key, source in sources_of(config).items():
        found |= source.files(key)
    return found


def with_weights_settings(config: Training, *, resume: bool) -> Training:
    """Return the configuration with the encoder and tile size of its weights where it gives none, and print them.

    A run goes on whatever has become of its starting weights: it has what it needs of them.

    Raises:
        ValueError, FileNotFoundError: as `inherit`.
    """
    with contextlib.suppress(*((FileNotFoundError, ValueError) if resume else ())):
        config, lines = inherit(config)
        for line in lines:
            print(line)
    return config


def views_of(config: PretrainConfig | FinetuneConfig, opened: OpenRun, start: Start) -> Views:
    return Views(
        augmentation=Augmentation(**config.augment.model_dump()),
        seed=config.seed,
        mean=torch.tensor(start.mean, device=opened.device),
        std=torch.tensor(start.std, device=opened.device),
        size_px=side_of(config),
        precision=opened.precision,
        clean_second=isinstance(config, PretrainConfig) and config.train.second_view == "clean",
    )


def blank_checkpoint(
    config: PretrainConfig | FinetuneConfig,
    opened: OpenRun,
    start: Start,
    *,
    classes: Sequence[str],
    fingerprint: str,
    scale: Scale,
) -> Checkpoint:
    """Return what every checkpoint of a run says, still without epoch and tensors; the last three are of its tiles."""
    return build_checkpoint(
        config,
        mean=start.mean,
        std=start.std,
        pooling=start.encoder.pooling,
        encoder_name=start.encoder.name,
        kwargs=start.encoder.kwargs,
        classes=classes,
        lineage=start.lineage,
        fingerprint=fingerprint,
        precision=opened.precision,
        scale=scale,
    )


def wandb_of(config: PretrainConfig | FinetuneConfig) -> metrics_log.Wandb | None:
    """Return what a run is called at Weights & Biases; None where it is not logged there."""
    log = config.log
    if not log.wandb:
        return None
    return metrics_log.Wandb(log.wandb_project, log.wandb_name, log.wandb_mode, plain(config))


# --- going on with a run ---


def load_last(
    opened: OpenRun, config: PretrainConfig | FinetuneConfig, *, kind: Kind, fingerprint: str, scale: Scale
) -> Checkpoint:
    """Return what the run to resume left in last.pt, and print in what the tiles are others now: place and scale.

    Raises:
        ValueError: no such file, or it is of another configuration or of other tiles; one line a changed setting.
    """
    kept = load_checkpoint(opened.folder / "checkpoints" / "last.pt", kind=kind, to_resume=True)
    check_resumable(kept, config, fingerprint, precision=opened.precision)
    print(f"resuming {opened.folder} after epoch {kept.epoch} of {config.train.epochs}")
    for change in changed_keys(kept.config, config):
        print(f"{change.key}: {shown(change.now)} holds the tiles that {shown(change.before)} held")
    if scale.span != kept.scale.span:
        print(f"data.mpp: {scale} from here on, the run had: {kept.scale}")
    return kept


def other_mpp(
    before: PretrainConfig | FinetuneConfig, now: PretrainConfig | FinetuneConfig
) -> list[tuple[str, float | None, float | None]]:
    """Return the key, the former and the present value of each data.mpp that differs; nothing learned depends on it."""
    pairs = zip(sources_of(before).values(), sources_of(now).items(), strict=True)
    return [(f"{key}.mpp", old.mpp, new.mpp) for old, (key, new) in pairs if old.mpp != new.mpp]


def check_resumable(
    kept: Checkpoint, config: PretrainConfig | FinetuneConfig, fingerprint: str, *, precision: str
) -> None:
    """Raise ValueError unless a checkpoint's run and this one would learn the same; one line a changed setting.

    Where the tiles lie may have changed: their fingerprint says whether they are the same.
    """
    changes = [change for change in changed_keys(kept.config, config) if not moved(change)]
    if changes:
        raise ValueError(
            "\n".join(
                f"{change.key}: got {shown(change.now, mappings=True)}, but the run to resume has "
                f"{shown(change.before, mappings=True)}; leave it as it was"
                for change in changes
            )
        )
    if kept.precision != precision:
        raise ValueError(f"precision: is {precision} here, but the run to resume had {kept.precision}; set it")
    if kept.fingerprint != fingerprint:
        roots = ", ".join(source.root for source in sources_of(config).values())
        raise ValueError(
            f"data.root: the tiles of {roots} are not those that the run to resume was trained on (other names, "
            "labels, groups or pixels)"
        )


def moved(change: Change) -> bool:
    """Return whether a change is only of the place of tiles, or of their groups."""
    return change.path and change.key.startswith("data.")


def restore(
    kept: Checkpoint,
    folder: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """Put model, optimizer and scaler back to where the checkpoint of a run folder left them.

    Raises:
        ValueError: it holds the state of others; one line.
        MemoryError, torch.OutOfMemoryError: it does not fit into memory, which is no fault of the checkpoint.
    """
    try:
        if faults := misfits(model, kept.model):
            raise ValueError(f"model: {faults}")
        model.load_state_dict(kept.model)
        optim.load_state(optimizer, kept.optimizer)
        if not all(isinstance(value, (int, float)) for value in kept.scaler.values()):
            raise ValueError("scaler: holds other values than numbers")
        scaler.load_state_dict(kept.scaler)
    except torch.OutOfMemoryError:  # of a GPU
        raise
    except Exception as error:  # torch raises KeyError, RuntimeError, AttributeError, ... for a state of nonsense
        raise_if_short(error)
        raise ValueError(
            f"{folder}/checkpoints/last.pt: is not of this training ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); train again with --overwrite"
        ) from error


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed what the network itself draws (dropout), so that an epoch is the same whether or not the run was resumed."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, ranks.rank()]).generate_state(1)[0]))


def start_log(
    opened: OpenRun, config: PretrainConfig | FinetuneConfig, *, overwrite: bool, kept: Checkpoint | None = None
) -> metrics_log.MetricsLog | None:
    """Make the run folder, once all ranks have checked it, and return its log; None on ranks that do not write.

    Args:
        kept: the last checkpoint of a run that goes on; None for a new run.
    """
    ranks.barrier()
    if not opened.writes:
        return None
    if kept is None:
        run.start_folder(opened.folder, config, overwrite=overwrite)
    else:
        (opened.folder / run.ENDING).unlink(missing_ok=True)
        if changed_keys(kept.config, config) or other_mpp(kept.config, config):  # the tiles have moved
            writing.write_text(opened.folder / "config.yaml", writing.to_yaml(plain(config)))
    log = metrics_log.MetricsLog(
        opened.folder,
        keep_epochs=None if kept is None else kept.epoch,
        needs=metrics_log.PRETRAIN_ROW if isinstance(config, PretrainConfig) else metrics_log.FINETUNE_ROW,
        tensorboard=config.log.tensorboard,
        wandb=wandb_of(config),
    )
    if log.dropped:
        print(log.dropped)
    return log


def end_run(
    opened: OpenRun, config: PretrainConfig | FinetuneConfig, *, epochs: int, patience_over: bool = False
) -> run.Ending:
    """Write, as the last file of a run, how its training ended, and return it.

    Args:
        epochs: that are done.
    """
    planned, reason = config.train.planned, run.Reason.STOPPED
    if epochs >= planned:
        reason = run.Reason.COMPLETED
    elif patience_over:
        reason = run.Reason.PATIENCE
    ending = run.Ending(epochs=epochs, planned=planned, reason=reason)
    write_record(opened.folder / run.ENDING, ending)
    return ending


def print_memory(
    opened: OpenRun,
    config: PretrainConfig | FinetuneConfig,
    model: nn.Module,
    *,
    views: int,
    store_bytes: int,
    budget_gb: float,
) -> None:
    """Print what the training will need of memory, before anything of it is taken.

    Call it before the batch norms are synchronised: a pass of fake tensors through those would meet no other rank.

    Args:
        model: all that is trained. views: forwarded at a time on one rank.
        store_bytes: the tiles. budget_gb: up to which size they go to a GPU, GiB, see `OpenRun.budget_gb`.
    """
    if not opened.writes:
        return
    lines = memory.report(
        command="pretrain" if isinstance(config, PretrainConfig) else "finetune",
        model=model,
        optimizer=config.train.optimizer,
        shape=(views, 3, side_of(config), side_of(config)),
        device=opened.device,
        free=opened.free,
        precision=opened.precision,
        store_bytes=store_bytes,
        budget_gb=budget_gb,
    )
    print("\n".join(lines))


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
