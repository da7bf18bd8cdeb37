"""The run folder: configuration, environment, metrics log, checkpoints. Files are whole or absent, never half."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sscl import __version__, ranks, writing
from sscl.config import Section, plain, read_yaml
from sscl.places import missing
from sscl.records import Record, read_record, write_record
from sscl.words import count
from sscl.writing import is_bare, is_ours, naming, to_yaml, write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

MetricsRow = dict[str, float]  # a row of metrics.jsonl by name; "epoch", from 1, is whole
# What every row of a training has.
PRETRAIN_ROW = ("loss", "loss_relative", "positive_similarity", "negative_similarity")
FINETUNE_ROW = ("train_loss", "validation_loss")


def check_run_folder(path: str | Path, *, overwrite: bool, resume: bool = False, trains: bool = False) -> Path:
    """Return the folder as a Path if this command may write it; touches nothing.

    Args:
        path: the folder.
        overwrite, resume: the flags of the command.
        trains: whether the command writes checkpoints; one that does not must not replace a folder that has some.

    Raises:
        ValueError: something is there and neither flag was given; or there is nothing to resume.
        FileNotFoundError: nothing to resume.
    """
    path = Path(path)
    if path.is_file():
        raise ValueError(f"{path}: is a file; name a folder to write")
    if resume:
        if overwrite:
            raise ValueError("--resume and --overwrite exclude each other")
        if not (path / "checkpoints" / "last.pt").is_file():
            if (path / ENDING).is_file():
                if unfinished(path) is None:
                    raise ValueError(f"{path}: nothing to resume, its training has ended")
                raise FileNotFoundError(
                    f"{path}: checkpoints/last.pt, which --resume goes on from, is gone; train again with --overwrite"
                )
            begun = (path / "config.yaml").is_file()
            again = "start without --resume"
            if begun:
                again = "no epoch was kept to go on from; start again with --overwrite"
            raise FileNotFoundError(f"{path}: nothing to resume (no checkpoints/last.pt); {again}")
    elif path.is_dir() and not is_bare(path):
        if not overwrite:
            raise ValueError(f"{path}: exists and is not empty; give --overwrite to replace it, or another folder")
        if not is_ours(path):
            raise ValueError(
                f"{path}: not written by sscl (no env.json of sscl), so --overwrite leaves it alone; "
                "name another folder"
            )
        if not trains and any(path.rglob("*.pt")):
            raise ValueError(f"{path}: holds checkpoints, which this command does not replace; name another folder")
    return path


@contextlib.contextmanager
def holding(path: str | Path) -> Iterator[None]:
    """Let no other command write a run folder meanwhile, and clear away what a killed one left in it.

    Of torchrun's ranks the first does so.

    Raises:
        InUse: another process writes there; who, and since when.
    """
    if ranks.rank() > 0:
        yield
        return
    path = Path(path)
    with writing.holding(path):
        for folder in (path, path / "checkpoints"):
            writing.remove_dead(folder)
        yield


@contextlib.contextmanager
def whole_folder(
    path: str | Path,
    config: Section,
    *,
    overwrite: bool,
    inputs: Mapping[str, str | None] | None = None,
    trains: bool = False,
) -> Iterator[Path]:
    """Give a folder to fill, with config.yaml and env.json in it; on success it takes the place of `path`.

    What is at `path` stays whole until then, and for good where an error or Ctrl-C comes. No other command writes there
    meanwhile.

    Args:
        path, overwrite, trains: as for `check_run_folder`.
        inputs: files and folders that the command reads, by key; they must not lie in `path`.

    Raises:
        ValueError: as `check_run_folder` and `check_inputs_outside`; another process writes there.
    """
    path = Path(path)
    with writing.holding(path):
        check_run_folder(path, overwrite=overwrite, trains=trains)
        check_inputs_outside(path, inputs or {})
        with writing.replacing_folder(path) as unfinished:
            write_origin(unfinished, config)
            yield unfinished
            check_run_folder(path, overwrite=overwrite, trains=trains)  # much time has passed


def start_folder(path: Path, config: Section, *, overwrite: bool) -> None:
    """Make the folder with config.yaml and env.json, in the place of what `check_run_folder` allowed to replace.

    Raises:
        ValueError: without `overwrite`, something has come there since.
    """
    with whole_folder(path, config, overwrite=overwrite, trains=True):
        pass


def write_origin(path: Path, config: Section) -> None:
    """Write config.yaml and env.json, which say how what lies in the folder was made."""
    write_record(path / "env.json", environment())
    write_text(path / "config.yaml", to_yaml(plain(config)))


class Environment(Record):
    """What a reader needs to place a result (env.json): versions, device, command. gpu: None without CUDA."""

    sscl: str
    torch: str
    torchvision: str
    python: str
    platform: str
    cpu_threads: int
    gpu: str | None
    date: str
    command: str


def environment() -> Environment:
    """Return the environment of this process, now."""
    return Environment(
        sscl=__version__,
        torch=torch.__version__,
        torchvision=importlib.metadata.version("torchvision"),  # importing it takes seconds
        python=platform.python_version(),
        platform=platform.platform(),
        cpu_threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        command=" ".join(["sscl", *sys.argv[1:]]),
    )


# --- how far a training has come ---


class Reason(Enum):
    """Why a training ended: all epochs are done, none was better for so long, or to go on later."""

    COMPLETED = "train.epochs"
    PATIENCE = "train.patience"
    STOPPED = "train.stop_after_epoch"


class Ending(Record):
    """How a training ended (training.json), the last file that it writes. epochs: done. planned: train.epochs."""

    epochs: int
    planned: int
    reason: Reason

    @property
    def final(self) -> bool:
        """Whether there is nothing to go on with."""
        return self.reason is not Reason.STOPPED


ENDING = "training.json"


def ending_of(folder: Path) -> Ending | None:
    """Return how the training of a run folder ended; None where it goes on, was killed, or never began."""
    if not (folder / ENDING).is_file():
        return None
    return read_record(Ending, folder / ENDING, made_by="sscl pretrain or finetune")


def unfinished(folder: Path) -> str | None:
    """Return how far the training of a run folder has come that has not ended, as in "unfinished: epoch 3 of 10".

    None where it has ended, and for a folder without a training.
    """
    begun = [folder / "metrics.jsonl", folder / "checkpoints" / "last.pt", folder / ENDING]
    if not (folder / "config.yaml").is_file() or not any(file.is_file() for file in begun):
        return None
    ending = ending_of(folder)
    if ending is not None:
        return None if ending.final else f"unfinished: epoch {ending.epochs} of {ending.planned}"
    last = max((row["epoch"] for _, row in _parsed(folder / "metrics.jsonl") if not isinstance(row, str)), default=0)
    train = read_yaml(folder / "config.yaml").get("train")
    planned = train.get("epochs", "?") if isinstance(train, dict) else "?"
    return f"unfinished: epoch {last} of {planned}"


def way_on(folder: Path) -> str:
    """Return what to do with an unfinished run."""
    if (folder / "checkpoints" / "last.pt").is_file():
        return "--resume goes on with it"
    return "no epoch was kept to go on from: train again with --overwrite"


class MetricsLog:
    """metrics.jsonl, one JSON object a line, and TensorBoard events when asked for.

    Args:
        keep_epochs: those of the checkpoint that a run goes on from, whose rows stay; None = a new run.
        needs: what a row of this command always has, see `kept_rows`.

    Attributes:
        rows: of all epochs so far.
        dropped: what was left out of the log that was there, in a line; empty = nothing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_epochs: int | None = None,
        needs: Collection[str] = (),
        tensorboard: bool = False,
    ) -> None:
        self.path = folder / "metrics.jsonl"
        self.rows: list[MetricsRow] = []
        self.dropped = ""
        if keep_epochs is not None:
            self.rows, self.dropped = kept_rows(self.path, epochs=keep_epochs, needs=needs)
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self._writer = tensorboard_writer(folder, keep_epochs=keep_epochs) if tensorboard else None

    def append(self, row: MetricsRow) -> None:
        """Add a row. It outlives this process, and after `sync` a power failure too."""
        line = json.dumps(row, allow_nan=False) + "\n"
        with naming(self.path), self.path.open("a", encoding="utf-8") as handle:
            handle.write(line)
        self.rows.append(row)
        if self._writer is not None:
            for key, value in row.items():
                if key != "epoch":
                    self._writer.add_scalar(key, value, int(row["epoch"]))

    def sync(self) -> None:
        """Bring all rows to the disk; another thread may call this."""
        writing.sync(self.path)

    def close(self) -> None:
        """Bring all rows to the disk and finish the TensorBoard file, if any."""
        self.sync()
        if self._writer is not None:
            self._writer.close()


def read_metrics(path: Path, *, needs: Collection[str] = ()) -> list[MetricsRow]:
    """Return the rows of a metrics.jsonl, without a last line that a killed run left half written.

    Args:
        needs: keys that every row has, such as FINETUNE_ROW.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another line is not a row of metrics, or of an earlier epoch than the one before.
    """
    if not path.is_file():
        raise FileNotFoundError(missing(path, "file"))
    rows: list[MetricsRow] = []
    for number, row in _parsed(path):
        if row == HALF_WRITTEN:
            continue
        if not isinstance(row, str):
            lacks = [key for key in needs if key not in row]
            if lacks:
                row = f"has no {lacks[0]!r}"
            elif rows and row["epoch"] <= rows[-1]["epoch"]:
                row = f"epoch {row['epoch']} comes after epoch {rows[-1]['epoch']}"
        if isinstance(row, str):
            raise ValueError(f"{path}: line {number}: {row}; remove that line")
        rows.append(row)
    return rows


def kept_rows(path: Path, *, epochs: int, needs: Collection[str] = ()) -> tuple[list[MetricsRow], str]:
    """Return the rows of the first `epochs` epochs in a metrics.jsonl, whatever else is in it, and what is left out.

    Args:
        needs: keys; a line without one of them is no row of this run.
    """
    rows: list[MetricsRow] = []
    later, foreign = 0, []
    for number, row in _parsed(path):
        if not isinstance(row, str) and row["epoch"] > epochs:
            later += 1
        elif isinstance(row, str) or (rows and row["epoch"] <= rows[-1]["epoch"]) or not row.keys() >= set(needs):
            foreign.append(number)
        else:
            rows.append(row)
    parts = []
    if later:
        parts.append(f"drops {count(later, 'row')} after epoch {epochs}")
    if foreign:
        parts.append(f"drops what is no row of this run ({count(len(foreign), 'line')}, the first is {foreign[0]})")
    if len(rows) < epochs:
        parts.append(f"has no row for {epochs - len(rows)} of {count(epochs, 'epoch')}")
    return rows, f"{path}: {'; '.join(parts)}" if parts else ""


HALF_WRITTEN = "half written"
_LOG_BYTES = 32 * 2**20  # far more than any training writes
_LINE_BYTES = 2**20
_LARGEST = 1e38  # float32
_EPOCHS = 10**6


def _parsed(path: Path) -> Iterator[tuple[int, MetricsRow | str]]:
    """Yield the number of each line of a metrics.jsonl, and its row or why it is none. Empty lines are passed over.

    A last line without an end is a row if it is whole.
    """
    if not path.is_file():
        return
    with path.open("rb") as handle:
        number = 0
        while line := handle.readline(_LINE_BYTES):
            number += 1
            row = _row_of(line) if line.strip() else None
            if isinstance(row, str) and not line.endswith(b"\n") and len(line) < _LINE_BYTES:
                row = HALF_WRITTEN
            if row is not None:
                yield number, row
            if len(line) == _LINE_BYTES or handle.tell() > _LOG_BYTES:
                yield number + 1, "too long for a log of metrics"
                return


def _row_of(line: bytes) -> MetricsRow | str:
    """Return the row in a line, or why it is none."""
    try:
        row = json.loads(line.decode("utf-8"))
        if not isinstance(row, dict):
            return "no row of metrics, which is a JSON object"
        for key, value in row.items():
            if type(value) not in (int, float) or not abs(value) <= _LARGEST:
                return f"{key!r} is not a number up to {_LARGEST:g}"
    except (ValueError, RecursionError):
        return "not JSON"
    if type(row.get("epoch")) is not int or not 1 <= row["epoch"] <= _EPOCHS:
        return f"has no 'epoch' from 1 to {_EPOCHS}"
    return row


def check_tensorboard() -> None:
    """Raise ValueError where TensorBoard is asked for and not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ValueError("log.tensorboard: TensorBoard is not installed; pip install 'sscl[tensorboard]'") from error


def tensorboard_writer(folder: Path, *, keep_epochs: int | None = None) -> SummaryWriter:
    """Return TensorBoard's writer of events in the folder (torch.utils.tensorboard, an extra).

    After a resumption it hides the events of earlier writers beyond `keep_epochs`, which are written again.
    """
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=None if keep_epochs is None else keep_epochs + 1)


def check_inputs_outside(folder: Path, inputs: Mapping[str, str | None]) -> None:
    """Raise ValueError if a file or folder to read, given by its key, lies in the folder that would be replaced."""
    real = os.path.realpath(folder)
    for key, value in inputs.items():
        if value not in (None, "imagenet") and Path(os.path.realpath(str(value))).is_relative_to(real):
            raise ValueError(f"{folder}: holds {key}={value}, which would be lost; name another folder to write")
