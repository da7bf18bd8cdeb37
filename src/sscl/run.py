"""The run folder: configuration, environment, metrics log, checkpoints. Files are whole or absent, never half."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sscl import __version__
from sscl.config import Section, plain, read_yaml
from sscl.records import Record, read_record, write_record
from sscl.writing import is_ours, naming, to_yaml, write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

MetricsRow = dict[str, float]  # a row of metrics.jsonl by name; "epoch", from 1, is whole


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
    elif path.is_dir() and any(path.iterdir()):
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


def start_folder(path: Path, config: Section, *, overwrite: bool) -> None:
    """Make the folder with config.yaml and env.json, in the place of what `check_run_folder` allowed to replace.

    Raises:
        ValueError: without `overwrite`, something has come there since.
    """
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise ValueError(f"{path}: another command has written there meanwhile; name another folder")
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    write_origin(path, config)


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


def unfinished(folder: Path) -> str | None:
    """Return how far the training of a run folder has come that has not ended, as in "unfinished: epoch 3 of 10".

    None where it has ended, and for a folder without a training.
    """
    if not (folder / "metrics.jsonl").is_file() or not (folder / "config.yaml").is_file():
        return None
    if (folder / ENDING).is_file():
        ending = read_record(Ending, folder / ENDING, made_by="sscl pretrain or finetune")
        if ending.final:
            return None
        return f"unfinished: epoch {ending.epochs} of {ending.planned}"
    rows = read_metrics(folder / "metrics.jsonl")
    train = read_yaml(folder / "config.yaml").get("train")
    planned = train.get("epochs", "?") if isinstance(train, dict) else "?"
    return f"unfinished: epoch {rows[-1]['epoch'] if rows else 0} of {planned}"


def way_on(folder: Path) -> str:
    """Return what to do with an unfinished run."""
    if (folder / "checkpoints" / "last.pt").is_file():
        return "--resume goes on with it"
    return "no epoch was kept to go on from: train again with --overwrite"


class MetricsLog:
    """metrics.jsonl, one JSON object a line, and TensorBoard events when asked for."""

    def __init__(self, folder: Path, *, keep_epochs: int | None = None, tensorboard: bool = False) -> None:
        self.path = folder / "metrics.jsonl"
        self.rows: list[MetricsRow] = []
        if keep_epochs is not None and self.path.is_file():
            self.rows = [row for row in read_metrics(self.path) if row["epoch"] <= keep_epochs]
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
        with self.path.open("rb+") as handle:
            os.fsync(handle.fileno())

    def close(self) -> None:
        """Bring all rows to the disk and finish the TensorBoard file, if any."""
        self.sync()
        if self._writer is not None:
            self._writer.close()


def read_metrics(path: Path) -> list[MetricsRow]:
    """Return the rows of a metrics.jsonl, without a last line that a killed run left half written.

    Raises:
        ValueError: another line is not JSON.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last line end is not whole
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is not JSON; fix it or remove the file") from error
    return rows


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
    for key, value in inputs.items():
        if value not in (None, "imagenet") and Path(str(value)).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{folder}: holds {key}={value}, which would be lost; name another folder to write")
