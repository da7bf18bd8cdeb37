"""The run folder: configuration, environment, metrics log, checkpoints. Files are whole or absent, never half."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path

from sscl import __version__, writing
from sscl.config import Section, plain, read_yaml
from sscl.config.encoders import NO_FILES
from sscl.cores import cpu_cores
from sscl.metrics_log import parsed
from sscl.records import Record, read_record, write_record
from sscl.writing import is_bare, is_ours, to_yaml, write_text

SOME_FAILED = 3  # exit code where some of what was asked for could not be had, and the rest was done


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
    if path.exists() and not path.is_dir():
        what = "a file" if path.is_file() else "a device, a named pipe or a socket"
        raise ValueError(f"{path}: is {what}; name a folder to write")
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
    from sscl import ranks  # imports torch, which much is done without

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
    """What a reader needs to place a result (env.json): versions, device, command.

    Attributes:
        cpu_threads: that torch computes with, or cores where nothing needed torch. gpu: None without CUDA, or torch.
    """

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
    torch = sys.modules.get("torch")  # importing it, or torchvision, takes seconds
    return Environment(
        sscl=__version__,
        torch=importlib.metadata.version("torch") if torch is None else torch.__version__,
        torchvision=importlib.metadata.version("torchvision"),
        python=platform.python_version(),
        platform=platform.platform(),
        cpu_threads=cpu_cores() if torch is None else torch.get_num_threads(),
        gpu=torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None,
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
    last = max((row["epoch"] for _, row in parsed(folder / "metrics.jsonl") if not isinstance(row, str)), default=0)
    train = read_yaml(folder / "config.yaml").get("train")
    planned = train.get("epochs", "?") if isinstance(train, dict) else "?"
    return f"unfinished: epoch {last} of {planned}"


def way_on(folder: Path) -> str:
    """Return what to do with an unfinished run."""
    if (folder / "checkpoints" / "last.pt").is_file():
        return "--resume goes on with it"
    return "no epoch was kept to go on from: train again with --overwrite"


def check_inputs_outside(folder: Path, inputs: Mapping[str, str | None]) -> None:
    """Raise ValueError if a file or folder to read, given by its key, lies in the folder that would be replaced."""
    real = os.path.realpath(folder)
    for key, value in inputs.items():
        if value not in (None, *NO_FILES) and Path(os.path.realpath(str(value))).is_relative_to(real):
            raise ValueError(f"{folder}: holds {key}={value}, which would be lost; name another folder to write")
