"""What a comparison runs: each run of its list with its command, and what is done with those that exist."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from sscl import run
from sscl.config import (
    CompareConfig,
    CompareEntry,
    EvalConfig,
    FinetuneConfig,
    ModelConfig,
    PretrainConfig,
    changed_keys,
    load_config,
    read_yaml,
    shipped,
    shown,
)
from sscl.evaluate.comparison import METRICS
from sscl.models.checkpoint import Checkpoint, load_checkpoint
from sscl.models.start import facts_to_be, inherit, weights_file
from sscl.places import missing
from sscl.train.labelled import labelled_tiles
from sscl.train.setup import moved
from sscl.words import nearest

KINDS: dict[str, type[FinetuneConfig] | type[PretrainConfig]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}


@dataclass(frozen=True)
class Step:
    """One run of an entry, with one seed and one fraction of the labels (None: as its config says; pretrain)."""

    entry: CompareEntry
    seed: int
    fraction: float | None
    folder: Path
    words: list[str]  # after `sscl`
    config: FinetuneConfig | PretrainConfig
    start: Step | None

    @property
    def row(self) -> str:
        """The name of its row."""
        return f"{self.entry.name}, {self.labels}" if self.labels else self.entry.name

    @property
    def labels(self) -> str:
        """Its fraction of the labels in words; empty where its config says it."""
        return "" if self.fraction is None else f"{100 * self.fraction:g}% labels"

    @property
    def checkpoint(self) -> Path:
        """The file that a complete run has."""
        return self.folder / ("encoder.pt" if self.entry.command == "pretrain" else "checkpoints/best.pt")


def plan(config: CompareConfig) -> list[Step]:
    """Return every run in the order of the entries.

    Raises:
        ValueError: one line a fault of the list and of every entry's configuration, all at once.
    """
    assert config.out is not None  # the configuration says so
    faults = list_faults(config)
    if faults:
        raise ValueError("\n".join(faults))
    steps: dict[tuple[str, int, float | None], Step] = {}
    for entry in config.runs:
        fractions = (config.fractions or (None,)) if entry.command == "finetune" else (None,)
        for fraction in fractions:
            for seed in config.seeds:
                part = "" if fraction in (None, 1) else f"-{fraction:g}"
                folder = Path(config.out) / "runs" / f"{entry.name}{part}-{seed}"
                start = None
                if entry.start is not None:
                    start = steps.get((entry.start, seed, fraction)) or steps.get((entry.start, seed, None))
                try:
                    words = command_of(entry, config, seed=seed, fraction=fraction, folder=folder, start=start)
                    resolved = load_config(KINDS[entry.command], entry.config, overrides=words[3:])
                    if isinstance(resolved, FinetuneConfig):
                        with contextlib.suppress(FileNotFoundError):  # `check_inputs` says it
                            resolved = inherit(resolved, facts=None if start is None else facts_to_be(start.config))[0]
                except (ValueError, FileNotFoundError) as error:
                    faults += [f"{entry.name}: {line}" for line in str(error).splitlines()]
                    break  # the other seeds have the same faults
                if isinstance(resolved, FinetuneConfig) and resolved.train.folds is not None:
                    faults.append(
                        f"{entry.name}: train.folds: runs of a comparison have no folds; cross-validate first, then "
                        "sscl compare RUN RUN"
                    )
                    break
                step = Step(entry, seed, fraction, folder, words, resolved, start)
                steps[entry.name, seed, fraction] = step
    folders = [step.folder for step in steps.values()]
    twice = sorted({folder for folder in folders if folders.count(folder) > 1})
    faults += [f"runs: two of them would write {folder}; rename one" for folder in twice]
    if faults:
        raise ValueError("\n".join(dict.fromkeys(faults)))
    return list(steps.values())


def check_inputs(steps: Sequence[Step], *, progress: bool) -> None:
    """Raise where a run would end at its tiles or weights, perhaps hours later: a line for each.

    Raises:
        FileNotFoundError: no such data set, run or file.
        ValueError: no task for a classifier, or too few tiles, see `labelled_tiles`.
    """
    faults: dict[str, None] = {}
    for step in steps:
        data = step.config.data
        for one in data if isinstance(data, tuple) else (data,):
            if not Path(one.root).exists():
                faults[f"{step.entry.name}: data.root: {missing(one.root, 'file or folder')}"] = None
        try:
            if step.start is None:
                weights_file(step.config.model.weights, key="model.weights")
        except FileNotFoundError as error:
            faults[f"{step.entry.name}: {error}"] = None
    if faults:
        raise FileNotFoundError("\n".join(faults))
    seen = set()
    for step in steps:
        if isinstance(step.config, FinetuneConfig):
            same = step.config.model_copy(update={"run": "", "seed": 0, "model": ModelConfig()}).model_dump_json()
            if same not in seen:
                seen.add(same)
                try:
                    labelled_tiles(step.config, progress=progress)
                except (ValueError, FileNotFoundError) as error:
                    faults[f"{step.entry.name}: {error}"] = None
    if faults:
        raise ValueError("\n".join(faults))


def command_of(
    entry: CompareEntry,
    config: CompareConfig,
    *,
    seed: int,
    fraction: float | None,
    folder: Path,
    start: Step | None,
) -> list[str]:
    """Return the words after `sscl` that make a run; later keys win.

    Raises:
        FileNotFoundError: the entry's config is neither a file nor a shipped one.
    """
    shipped.find(entry.config, key="config")
    words = [entry.command, "--config", entry.config]
    if config.root is not None and not isinstance(read_yaml(entry.config).get("data"), list):
        words.append(f"data.root={config.root}")
    words += [*config.set, *(config.set_pretrain if entry.command == "pretrain" else config.set_finetune), *entry.set]
    words += [f"run={folder}", f"seed={seed}"]
    if fraction is not None:
        words.append(f"train.label_fraction={fraction}")
    if start is not None:
        words.append(f"model.weights={start.folder}")
    if config.device is not None:
        words.append(f"device={config.device}")
    if not config.progress or config.jobs > 1:
        words.append("progress=false")
    return words


def list_faults(config: CompareConfig) -> list[str]:
    """Return one line for each fault of the list itself."""
    faults = []
    for key, values in (("seeds", config.seeds), ("fractions", config.fractions)):
        if len(set(values)) != len(values) or (key == "seeds" and not values):
            faults.append(f"{key}: must be different values, at least one seed, got {shown(values)}")
    before: dict[str, CompareEntry] = {}
    taken = {"run": "the folder comes from out and name", "seed": "give seeds"}
    taken |= {"train.label_fraction": "give it in one place, here or as fractions"} if config.fractions else {}
    for i, entry in enumerate(config.runs):
        where = f"runs.{i}"
        if not re.fullmatch(r"\w[\w.+-]*", entry.name):
            faults.append(f"{where}.name: must be letters, digits, _ - + and ., got {entry.name!r}")
        if entry.name in before:
            faults.append(f"{where}.name: {entry.name!r} is given twice; names must differ")
        if entry.start is not None:
            faults += [f"{where}.start: {fault}" for fault in start_faults(entry, config, before)]
        for metric in entry.published:
            if metric not in METRICS:
                faults.append(f"{where}.published: unknown metric {metric!r}; {nearest(metric, list(METRICS))}")
        own = taken | ({"model.weights": "start gives it"} if entry.start is not None else {})
        given = {word.partition("=")[0] for word in entry.set}
        faults += [f"{where}.set: must not set {key}: {why}" for key, why in own.items() if key in given]
        before[entry.name] = entry
    for name in ("set", "set_pretrain", "set_finetune"):
        given = {word.partition("=")[0] for word in getattr(config, name)}
        faults += [f"{name}: must not set {key}: {why}" for key, why in taken.items() if key in given]
    rows = [entry.name for entry in config.runs if entry.shown and entry.command == "finetune"]
    if not rows:
        faults.append("runs: no finetune entry with shown: true, so there is no row")
    elif config.reference is not None and config.reference not in rows:
        faults.append(f"reference: no row {config.reference!r}; {nearest(config.reference, rows)}")
    return faults


def start_faults(entry: CompareEntry, config: CompareConfig, before: dict[str, CompareEntry]) -> list[str]:
    """Return why an entry cannot start from the one it names."""
    names = list(before)
    if entry.start not in before:
        later = any(other.name == entry.start for other in config.runs)
        why = f"{entry.start!r} does not come before {entry.name}; move it up" if later else f"no entry {entry.start!r}"
        return [f"{why}; {nearest(str(entry.start), names)}" if names else f"{why}; no entry comes before it"]
    if entry.command == "pretrain" and before[entry.start].command == "finetune" and config.fractions:
        return [f"{entry.start!r} runs once for each of fractions, a pretrain entry once a seed"]
    return []


# --- what is there already ---


class Action(Enum):
    """What a comparison does with a run."""

    NEW = "new"
    REUSED = "reused"  # complete, with this configuration
    RESUME = "resume"
    AGAIN = "again"  # in the place of what is there


@dataclass(frozen=True)
class Decision:
    """What happens to a run, and why, where it is made again."""

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
            f"{folder}: was made with {'; '.join(changes)}; set it back, give another out, or make it again with "
            "--overwrite"
        )
    if changes:
        return Decision(Action.AGAIN, "its configuration changed")
    if step.start is not None:
        start = step.start
        newer = not start.checkpoint.is_file() or modified(start.checkpoint) > modified(folder / "config.yaml")
        if earlier[start.folder].action is not Action.REUSED or newer:
            return Decision(Action.AGAIN, f"{start.folder.name}, which it starts from, is newer")
    return Decision(Action.REUSED if found.complete else Action.RESUME)


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
