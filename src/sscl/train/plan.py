"""What a comparison runs: each run of its list, with its command."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sscl.config import (
    CompareConfig,
    CompareEntry,
    FinetuneConfig,
    ModelConfig,
    PretrainConfig,
    load_config,
    read_yaml,
    shipped,
    shown,
    sources_of,
)
from sscl.evaluate.comparison import METRICS
from sscl.models.start import check_weights, facts_to_be, inherit
from sscl.places import missing
from sscl.train.labelled import labelled_tiles
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
        for one in sources_of(step.config).values():
            if not Path(one.root).exists():
                faults[f"{step.entry.name}: data.root: {missing(one.root, 'file or folder')}"] = None
        try:
            if step.start is None:
                check_weights(step.config.model)
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
