"""The command that asks what frozen features are worth: probe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import model_validator

from sscl.config.data import DataConfig
from sscl.config.messages import shown
from sscl.config.sections import Listed, Section, fault, setting
from sscl.config.training import EncoderConfig
from sscl.words import nearest


class ProbeEncoder(EncoderConfig):
    """A row of the table: an encoder, or several that differ by their seed."""

    name: str = setting(..., "name of the row", min_length=1)
    seeds: Annotated[tuple[int, ...], Listed] = setting(
        (), "one row from several runs, [0, 1, 2]: each takes the place of {seed} in weights; empty = [seed]"
    )
    adapt_batch_norm: bool = setting(
        False, "take batch-norm statistics from the tiles of each part themselves, the test tiles' too (no labels)"
    )
    images: int | None = setting(None, "tiles it was pretrained on, for the curve over them", ge=1)

    @model_validator(mode="after")
    def _seeds_differ(self) -> ProbeEncoder:
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds, default=0) < 0:
            raise fault("seeds", f"must be different integers >= 0, got {list(self.seeds)}")
        if len(self.seeds) > 1 and self.weights is not None and "{seed}" not in self.weights:
            raise fault(
                "weights",
                f"must hold {{seed}} where the runs of seeds={list(self.seeds)} differ, got {shown(self.weights)}",
            )
        return self


class ProbeSet(DataConfig):
    """Labelled tiles: a classifier is fitted on their training part."""

    name: str = setting(..., "name of the set", min_length=1)
    holdout_fraction: float = setting(
        0.0, "share of the training tiles held out as a second part to evaluate on, beside test; 0 = none", ge=0, lt=1
    )


class ProbeConfig(Section):
    """sscl probe: what frozen features are worth to a linear classifier and to nearest neighbours."""

    out: str = setting(..., "folder to write", min_length=1)
    encoders: Annotated[tuple[ProbeEncoder, ...], Listed]
    sets: Annotated[tuple[ProbeSet, ...], Listed]
    fractions: Annotated[tuple[float, ...], Listed] = setting(
        (1.0,), "shares of the training labels to use, [0.01, 0.1, 1]"
    )
    label_seeds: Annotated[tuple[int, ...], Listed] = setting(
        (0,), "each draws another share of the labels, and another validation part of it"
    )
    validation_fraction: float = setting(0.2, "share of the used labels that chooses C; folds where none", gt=0, lt=1)
    c_grid: Annotated[tuple[float, ...], Listed] = setting(
        tuple(10.0**power for power in range(-4, 4)), "values of C, the inverse strength of the linear probe's penalty"
    )
    max_iterations: int = setting(1000, "iterations of L-BFGS in one fit, at most", ge=1)
    neighbours: int = setting(20, "k of the kNN classifier (cosine)", ge=1)
    reference: str | None = setting(None, "name of the row that the others are compared with, pair by pair")
    bootstrap_samples: int = setting(2000, "resamples behind each interval", ge=10)
    bootstrap_seed: int = setting(0, "seed of the resamples", ge=0)
    batch_size: int = setting(128, "tiles at a time", ge=1)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("auto", "auto: bf16 on a GPU that has it, else fp32")
    cache_dir: str | None = setting(None, "folder for features and decoded tiles; null = $SSCL_CACHE or ~/.cache/sscl")
    progress: bool = setting(True, "show progress bars")

    @model_validator(mode="after")
    def _lists_make_sense(self) -> ProbeConfig:
        for key, entries in (("encoders", self.encoders), ("sets", self.sets)):
            names = [entry.name for entry in entries]
            if not names:
                raise fault(key, f"is empty; name at least 1: {key}='[{{name: ours, ...}}]'")
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise fault(key, f"{len(twice)} of them have the name {twice[0]!r}; give each a different name")
        if self.reference is not None:
            names = [entry.name for entry in self.encoders]
            if self.reference not in names:
                hint = nearest(self.reference, names)
                raise fault("reference", f"no encoder has the name {self.reference!r}; {hint}")
        for key, values, fine, allowed in (
            ("fractions", self.fractions, lambda v: 0 < v <= 1, "different numbers > 0 and <= 1"),
            ("label_seeds", self.label_seeds, lambda v: v >= 0, "different integers >= 0"),
            ("c_grid", self.c_grid, lambda v: v > 0, "different numbers > 0"),
        ):
            if not values or len(set(values)) < len(values) or not all(map(fine, values)):
                raise fault(key, f"must be one or more {allowed}, got {list(values)}")
        return self
