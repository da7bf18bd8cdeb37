"""What a comparison does with the runs that are there already: keep, resume, make again; and their evaluations."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from sscl import run
from sscl.config import (
    EvalConfig,
    FinetuneConfig,
    PretrainConfig,
    changed_keys,
    load_config,
    read_yaml,
    shown,
)
from sscl.models.checkpoint import Checkpoint, load_checkpoint
from sscl.train.plan import KINDS, Step
from sscl.train.setup import moved, other_mpp


class Action(Enum):
    """What a comparison does with a run."""

    NEW = "new"
    REUSED = "reused"  # complete, with this configuration
    RESUME = "resume"
    AGAIN = "again"  # in the place of what is there


FLAGS = {Action.NEW: [], Action.RESUME: ["--resume"], Action.AGAIN: ["--overwrite"]}  # of the command that does so


@dataclass(frozen=True)
class Decision:
    """What happens to a run, and why it is made again, or what is to be said of one that is not."""

    action: Action
    reason: str = ""


def decide(steps: Sequence[Step], *, overwrite: bool) -> dict[Path, Decision]:
    """Return what happens to each run folder.

    Raises:
        ValueError: one line for each run that is there with another configuration, and for each folder not of sscl.
    """
    decisions: dict[Path, Decision] = {}
    faults = []
    for step in steps:
        try:
            decisions[step.folder] = _decision(step, decisions, overwrite=overwrite)
        except ValueError as error:
            decisions[step.folder] = Decision(Action.REUSED)  # what starts from it has no fault of its own
            faults.append(str(error))
    if faults:
        raise ValueError("\n".join(faults))
    return decisions


def _decision(step: Step, earlier: Mapping[Path, Decision], *, overwrite: bool) -> Decision:
    folder = run.check_run_folder(step.folder, overwrite=True, trains=True)
    if not folder.is_dir() or not any(folder.iterdir()):
        return Decision(Action.NEW)
    if not (folder / "config.yaml").is_file():
        return Decision(Action.AGAIN, INTERRUPTED)
    try:
        before = load_config(KINDS[step.entry.command], folder / "config.yaml")
    except ValueError as error:
        found = Progress(ended=True, checkpoints=True)  # as far as one can tell
        changes = [f"a config.yaml that this version does not accept ({str(error).splitlines()[0]})"]
    else:
        found = progress_of(step, before)
        changes = changes_of(before, step)
    if not found.complete and not found.resumable:
        return Decision(Action.AGAIN, NOT_ITS_OWN if found.ended else INTERRUPTED)
    if changes and not overwrite:
        raise ValueError(
            f"{folder}: was made with {'; '.join(changes)}; set it back, name another folder, or make it again with "
            "--overwrite"
        )
    if changes:
        return Decision(Action.AGAIN, "its configuration changed")
    if step.start is not None:
        start = step.start
        newer = not start.checkpoint.is_file() or modified(start.checkpoint) > modified(folder / "config.yaml")
        if earlier[start.folder].action is not Action.REUSED or newer:
            return Decision(Action.AGAIN, f"{start.folder.name}, which it starts from, is newer")
    if not found.complete:
        return Decision(Action.RESUME)
    others = [f"{key}={shown(was)} (now {shown(now)})" for key, was, now in other_mpp(before, step.config)]
    return Decision(Action.REUSED, f"its checkpoint keeps {', '.join(others)}" if others else "")


def modified(path: Path) -> float:
    """Return when a file was last written, seconds."""
    return path.stat().st_mtime


INTERRUPTED = "it was interrupted"
NOT_ITS_OWN = "it has ended, but its checkpoint is missing, damaged, or of another run"


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        ended: its training says so. checkpoints: what others read of it is there, and is what that training wrote.
        resumable: training can go on.
    """

    ended: bool
    checkpoints: bool
    resumable: bool = False

    @property
    def complete(self) -> bool:
        """Whether there is nothing to do."""
        return self.ended and self.checkpoints


def progress_of(step: Step, config: FinetuneConfig | PretrainConfig) -> Progress:
    """Return how far the run of a step has come, whose config.yaml says `config`."""
    ending = run.ending_of(step.folder)
    last = _kept(step, config, "last.pt")
    if step.entry.command == "pretrain":
        whole = last is not None and step.checkpoint.is_file() and ending is not None and last.epoch == ending.epochs
        resumable = last is not None
    else:
        best = _kept(step, config, "best.pt")
        whole = best is not None and ending is not None and best.epoch <= ending.epochs
        resumable = last is not None and best is not None
    return Progress(ended=ending is not None and ending.final, checkpoints=whole, resumable=resumable)


def _kept(step: Step, config: FinetuneConfig | PretrainConfig, name: str) -> Checkpoint | None:
    """Return the facts of a checkpoint; None where it is missing, damaged, or of a run with another configuration."""
    file = step.folder / "checkpoints" / name
    try:
        found = load_checkpoint(file, kind=step.entry.command, tensors=False, to_resume=True)
    except (FileNotFoundError, ValueError):
        return None
    others = [change for change in changed_keys(found.config, config) if not moved(change)]
    return None if others else found


def changes_of(before: FinetuneConfig | PretrainConfig, step: Step) -> list[str]:
    """Return each key in which a run differs from what would run now, as `key=before (now value)`."""
    now = step.config
    # A comparison may have moved as a whole: the run that this one starts from is known by its folder's name.
    if step.start is not None and Path(str(before.model.weights)).name == step.start.folder.name:
        model = before.model.model_copy(update={"weights": now.model.weights})
        before = before.model_copy(update={"model": model})
    return [str(change) for change in changed_keys(before, now)]


# --- what is evaluated already ---


def evaluated(folder: Path, split: str) -> bool:
    """Return whether a run has predictions of its checkpoint on this split, made with eval's defaults."""
    found = folder / f"eval_{split}"
    written = found / "predictions.csv"
    if not all(file.is_file() for file in (written, found / "metrics.json", found / "config.yaml")):
        return False
    if modified(found / "metrics.json") < modified(folder / "checkpoints" / "best.pt"):
        return False
    with written.open(encoding="utf-8", errors="replace") as handle:
        columns = handle.readline(2**16).strip().split(",")
    settings, usual = read_yaml(found / "config.yaml"), EvalConfig.model_fields
    # Keys that change the predictions.
    own = [key for key in ("calibrate", "tta") if settings.get(key, usual[key].default) != usual[key].default]
    return "loss" in columns and not settings.get("data") and not own


def table_of(folder: Path, split: str) -> Path:
    """Return the predictions to compare: those in the folder itself, else those of its evaluation."""
    own = folder / "predictions.csv"
    return own if own.is_file() else folder / f"eval_{split}" / "predictions.csv"


def short_names(paths: Sequence[str]) -> list[str]:
    """Return a name for each path: its last part, or where these are not different what comes after the shared part."""
    names = [Path(os.path.abspath(path)).name for path in paths]
    if len(set(names)) == len(names):
        return names
    whole = [os.path.abspath(path) for path in paths]
    return [Path(os.path.relpath(path, os.path.commonpath(whole))).as_posix() for path in whole]


def is_evaluated(folder: Path, split: str, *, overwrite: bool) -> bool:
    """Return whether a finished run has predictions to compare, and False where they are to be made.

    Raises:
        FileNotFoundError: nothing to compare there.
        ValueError: training has not ended; the evaluation there is not of this checkpoint, or of other data, and
            without `overwrite` it is left alone.
    """
    made = (folder / "predictions.csv").is_file()
    trained = folder.parent if made else folder
    unfinished = run.unfinished(trained)
    if unfinished is not None:
        raise ValueError(f"{folder}: the training is {unfinished}; {run.way_on(trained)}")
    if made:
        return True
    if not (folder / "checkpoints" / "best.pt").is_file():
        raise FileNotFoundError(
            f"{folder}: neither a finetune run (checkpoints/best.pt) nor a folder with predictions.csv"
        )
    if evaluated(folder, split):
        return True
    there = folder / f"eval_{split}"
    if there.is_dir() and any(there.iterdir()) and not overwrite:
        raise ValueError(
            f"{there}: was made from an older checkpoint, or with other settings (data, tta, calibrate); give "
            f"--overwrite to evaluate again, or name {there} itself to compare it as it is"
        )
    return False
