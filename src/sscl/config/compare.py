"""The configuration of `sscl compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from sscl.config.messages import shown
from sscl.config.sections import SEEDS, Fraction, Listed, Section, Seed, fault, setting


def _as_overrides(value: Any) -> Any:
    """Return keys and values, nested as in a YAML file, as `KEY=VALUE` words; a list of such stays."""
    if isinstance(value, dict):
        return tuple(_flattened(value))
    return tuple(value) if isinstance(value, list) else value


def _flattened(content: dict[str, Any], prefix: str = "") -> list[str]:
    words: list[str] = []
    for key, value in content.items():
        if isinstance(value, dict) and value:
            words += _flattened(value, f"{prefix}{key}.")
        else:
            # Text as it is; all else as JSON, which is YAML.
            words.append(f"{prefix}{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
    return words


# Keys for runs that compare makes; finished runs are compared as they are.
FOR_MADE = ("runs", "seeds", "fractions", "root", "set", "set_pretrain", "set_finetune", "grid", "grid_seed", "jobs")

MOST_RUNS = 10_000

Overrides = Annotated[tuple[str, ...], BeforeValidator(_as_overrides)]


class CompareEntry(Section):
    """A configuration to compare: it is run for each seed, and finetune also for each label fraction."""

    name: str = setting(..., "name of its row in the table; its run folders are NAME-SEED", min_length=1)
    command: Literal["pretrain", "finetune"] = setting(..., "command of its runs")
    config: str = setting(
        ...,
        "YAML file of that command, looked up beside the compare file, then from the working directory",
        path=True,
    )
    start: str | None = setting(
        None,
        "name of an earlier entry: model.weights is its run of the same seed (and label fraction)",
    )
    shown: bool = setting(True, "finetune: whether it has a row in the table; pretrain entries have none")
    set: Overrides = setting((), "changes to its config: {train: {epochs: 2}} or [train.epochs=2, ...]")
    published: dict[str, Annotated[float, Field(ge=-1000, le=1000)]] = setting(
        {}, "published results with all labels, for the table: {accuracy: 0.9}"
    )

    @field_validator("config")
    @classmethod
    def _beside_the_file(cls, value: str, info: ValidationInfo) -> str:
        folder: Path | None = (info.context or {}).get("folder")
        beside = folder / value if folder is not None else Path(value)
        return str(beside) if beside.is_file() else value


class CompareConfig(Section):
    """Compare configurations over seeds and label fractions, in one table and pictures.

    Complete runs with the same configuration are reused; interrupted ones are resumed. --overwrite runs those again
    whose configuration has changed.

    `sscl compare RUN RUN ...` compares finished runs as they are, and evaluates those that have not been evaluated.
    """

    out: str | None = setting(
        None,
        "folder to write; required with runs; null = compare_A_B beside the first finished run",
        path=True,
        min_length=1,
        common=True,
    )
    finished: Annotated[tuple[str, ...], Listed] = setting(
        (),
        "finished finetune runs, or folders with a predictions.csv, [runs/a, runs/b], instead of runs; also RUN ...",
        path=True,
        common=True,
    )
    runs: Annotated[tuple[CompareEntry, ...], Listed] = ()
    seeds: Annotated[tuple[Seed, ...], Listed] = setting(
        (0,), "seeds, as in [0, 1, 2]: one run of every entry for each", common=True
    )
    fractions: Annotated[tuple[Fraction, ...], Listed] = setting(
        (),
        "label fractions, as in [0.01, 0.1, 1]: train.label_fraction of finetune; empty = as in the configs",
        common=True,
    )
    root: str | None = setting(
        None, "data.root of every entry with one data set; null = as in the configs", path=True, common=True
    )
    set: Overrides = setting(
        (), "changes to every config: set.data.size_px=64, or in YAML {data: {size_px: 64}}", common=True
    )
    set_pretrain: Overrides = setting((), "changes to the pretrain configs: set_pretrain.train.epochs=10")
    set_finetune: Overrides = setting((), "changes to the finetune configs: set_finetune.train.epochs=10")
    reference: str | None = setting(None, "row that the others are compared with; null = the first", common=True)
    split: Literal["test", "train", "all"] = setting("test", "split to evaluate on", common=True)
    grid: int = setting(9, "tiles in the picture of predictions; 0 = no picture", ge=0, le=100)
    grid_seed: int = setting(0, "seed of the tiles in that picture", ge=0, lt=SEEDS)
    device: str | None = setting(None, "auto, cpu, cuda, cuda:N or mps; null = as in the configs", common=True)
    jobs: int = setting(1, "number of runs in parallel", ge=1, le=256, common=True)
    progress: bool = setting(True, "show progress bars; none are shown with jobs > 1")

    @model_validator(mode="after")
    def _made_or_finished(self) -> CompareConfig:
        made = len(self.runs) * len(self.seeds) * max(1, len(self.fractions))
        if made > MOST_RUNS:
            raise fault("runs", f"with seeds and fractions these are {made:,} runs; must be at most {MOST_RUNS:,}")
        if not self.finished:
            missing = "out" if self.out is None else "runs"
            if self.out is None or "runs" not in self.model_fields_set:
                raise fault(missing, "missing; set it in the YAML file, or name finished runs: sscl compare RUN RUN")
            return self
        for key in FOR_MADE:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise fault(key, "is for runs to be made, but finished runs are given; leave one of them out")
        if len(self.finished) < 2 or len(set(self.finished)) < len(self.finished):
            raise fault("finished", f"must name two or more different runs, got {shown(self.finished)}")
        return self
