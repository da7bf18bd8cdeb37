"""sscl compare: a list of runs, each over seeds and shares of the labels, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationInfo, field_validator, model_validator

from sscl.config.loader import parse_value
from sscl.config.sections import Listed, Section, fault, setting


def _as_overrides(value: Any) -> Any:
    """Return keys and values, nested as in a YAML file, as `key.path=value` words; a list of such stays."""
    if isinstance(value, dict):
        return tuple(_flattened(value))
    return tuple(value) if isinstance(value, list) else value


def _flattened(content: dict[str, Any], prefix: str = "") -> list[str]:
    words: list[str] = []
    for key, value in content.items():
        if isinstance(value, dict) and value:
            words += _flattened(value, f"{prefix}{key}.")
        else:
            bare = isinstance(value, str) and parse_value(value) == value
            words.append(f"{prefix}{key}={value if bare else json.dumps(value)}")  # JSON is YAML
    return words


# Keys of runs that are made; finished ones are taken as they are.
FOR_MADE = ("runs", "seeds", "fractions", "root", "set", "set_pretrain", "set_finetune", "grid", "grid_seed", "jobs")

Overrides = Annotated[tuple[str, ...], BeforeValidator(_as_overrides)]


class CompareEntry(Section):
    """One configuration of the comparison; it is run once for each seed, finetune also for each share of the labels."""

    name: str = setting(..., "its row in the table, and the beginning of its run folders' names", min_length=1)
    command: Literal["pretrain", "finetune"] = setting(..., "the command that makes its runs")
    config: str = setting(
        ..., "YAML file of that command; looked for beside the compare file, then from the working directory"
    )
    start: str | None = setting(
        None, "name of an earlier entry: its run of the same seed (and share of the labels) becomes model.weights"
    )
    shown: bool = setting(True, "finetune: whether it is a row; pretrain entries never are")
    set: Overrides = setting(
        (), "keys of its config, nested as in YAML ({train: {epochs: 2}}) or [train.epochs=2, ...]"
    )
    published: dict[str, float] = setting({}, "published figures to put beside: {accuracy: 0.9}, of all labels")

    @field_validator("config")
    @classmethod
    def _beside_the_file(cls, value: str, info: ValidationInfo) -> str:
        folder: Path | None = (info.context or {}).get("folder")
        beside = folder / value if folder is not None else Path(value)
        return str(beside) if beside.is_file() else value


class CompareConfig(Section):
    """sscl compare: runs over seeds and shares of the labels, made or reused, side by side in one table and pictures.

    A run that is complete and was made with the same configuration is reused; an interrupted one goes on (pretrain) or
    starts again (finetune). --overwrite makes those again whose configuration has changed.

    `sscl compare RUN RUN ...` compares finished runs as they are, evaluating those that are not yet.
    """

    out: str | None = setting(
        None,
        "folder to write: runs/, compare.md, compare.json, pictures; null = compare_A_B beside the first finished run",
        min_length=1,
    )
    finished: Annotated[tuple[str, ...], Listed] = setting(
        (),
        "finetune runs that are there, or folders with a predictions.csv, [runs/a, runs/b], instead of runs: the words "
        "of `sscl compare runs/a runs/b`",
    )
    runs: Annotated[tuple[CompareEntry, ...], Listed] = ()
    seeds: Annotated[tuple[int, ...], Listed] = setting((0,), "seeds, [0, 1, 2]: each gives one run of every entry")
    fractions: Annotated[tuple[float, ...], Listed] = setting(
        (), "shares of the labels, [0.01, 0.1, 1]: train.label_fraction of finetune; empty = as the configs say"
    )
    root: str | None = setting(None, "data.root of every entry whose data is one set; null = as the configs say")
    set: Overrides = setting((), "keys of every entry's config: set.data.size_px=64, or in YAML {data: {size_px: 64}}")
    set_pretrain: Overrides = setting((), "keys of the pretrain entries: set_pretrain.train.epochs=10")
    set_finetune: Overrides = setting((), "keys of the finetune entries: set_finetune.train.epochs=10")
    reference: str | None = setting(None, "row that the paired differences are against; null = the first")
    split: Literal["test", "train", "all"] = setting("test", "which tiles")
    grid: int = setting(9, "tiles of the grid of predictions; 0 = no grid", ge=0, le=100)
    grid_seed: int = setting(0, "seed of the tiles in the grid", ge=0)
    bootstrap_samples: int = setting(2000, "resamples of the tiles behind each interval", ge=10)
    bootstrap_seed: int = setting(0, "seed of the resamples", ge=0)
    device: str | None = setting(None, "auto, cpu, cuda or cuda:N; null = as the configs say")
    jobs: int = setting(1, "runs at a time, within an entry", ge=1)
    progress: bool = setting(True, "show progress bars (with jobs above 1 none are shown)")

    @model_validator(mode="after")
    def _made_or_finished(self) -> CompareConfig:
        if not self.finished:
            missing = "out" if self.out is None else "runs"
            if self.out is None or "runs" not in self.model_fields_set:
                raise fault(missing, "missing; set it in the YAML file, or name finished runs: sscl compare RUN RUN")
            return self
        for key in FOR_MADE:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise fault(key, "is for runs to be made, but finished runs are given; leave one of them out")
        if len(self.finished) < 2 or len(set(self.finished)) < len(self.finished):
            raise fault("finished", f"must name two or more different runs, got {', '.join(self.finished)}")
        return self
