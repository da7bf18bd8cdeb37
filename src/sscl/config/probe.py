"""The configuration of `sscl probe`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from sscl.config.data import DataConfig
from sscl.config.encoders import RANDOM, EncoderConfig
from sscl.config.messages import shown
from sscl.config.sections import (
    LARGEST_BATCH,
    Fraction,
    Listed,
    Precision,
    Section,
    Seed,
    fault,
    precision_setting,
    setting,
)
from sscl.config.training import C_GRID, Strengths
from sscl.words import first_twice, nearest


class ProbeEncoder(EncoderConfig):
    """An encoder, one row of the table; or several that differ by their seed."""

    name: str = setting(..., "name of its row in the table", min_length=1)
    seeds: Annotated[tuple[Seed, ...], Listed] = setting(
        (), "several runs in one row, as in [0, 1, 2]: each replaces {seed} in weights; empty = [seed]"
    )
    adapt_batch_norm: bool = setting(
        False, "compute batch-norm statistics on the tiles of each split, the test tiles included (no labels)"
    )
    images: int | None = setting(
        None, "number of tiles it was pretrained on, for the curve of accuracy over them", ge=1, le=10**12
    )

    @model_validator(mode="after")
    def _seeds_differ(self) -> ProbeEncoder:
        if len(set(self.seeds)) < len(self.seeds):
            raise fault("seeds", f"must be different integers >= 0, got {shown(self.seeds)}")
        if len(self.seeds) > 1 and self.weights not in RANDOM and "{seed}" not in str(self.weights):
            raise fault(
                "weights",
                f"must hold {{seed}} where the runs of seeds={list(self.seeds)} differ, got {shown(self.weights)}",
            )
        return self


class ProbeSet(DataConfig):
    """Labelled tiles; the classifiers are fitted on their training split."""

    name: str = setting(..., "name of the set", min_length=1)
    holdout_fraction: float = setting(
        0.0, "fraction of the training tiles held out as a second evaluation set besides test; 0 = none", ge=0, lt=1
    )


class ProbeConfig(Section):
    """Compare encoders by linear probe, k-NN and SimpleShot on their frozen features, and by their robustness: to begin
    with, `sscl probe bench/tiles sets.0.root=TILES`.
    """

    out: str = setting(..., "folder to write", path=True, min_length=1)
    encoders: Annotated[tuple[ProbeEncoder, ...], Listed]
    sets: Annotated[tuple[ProbeSet, ...], Listed]
    fractions: Annotated[tuple[Fraction, ...], Listed] = setting(
        (1.0,), "fractions of the training labels to use, as in [0.01, 0.1, 1]", common=True
    )
    label_seeds: Annotated[tuple[Seed, ...], Listed] = setting(
        (0,), "seeds of the draw of labels and validation tiles", common=True
    )
    validation_fraction: float = setting(
        0.2, "fraction of the used labels that selects C; cross-validation if they are too few", gt=0, lt=1
    )
    c_grid: Strengths = setting(
        C_GRID,
        "values of C to choose from, the inverse strength of the L2 penalty of the linear probe",
    )
    max_iterations: int = setting(1000, "largest number of L-BFGS iterations in a fit", ge=1, le=1_000_000)
    neighbours: int = setting(
        20, "k of the k-NN classifier and of the robustness index, by cosine similarity", ge=1, le=10_000
    )
    shots: Annotated[tuple[Annotated[int, Field(ge=1, le=1000)], ...], Listed] = setting(
        (1, 2, 4, 8, 16), "labelled tiles a class of SimpleShot, nearest class mean; [] = none"
    )
    shot_draws: int = setting(100, "draws of these tiles, the same for every encoder", ge=2, le=1000)
    reference: str | None = setting(
        None, "name of the encoder that the others are compared with; null = no comparison", common=True
    )
    batch_size: int = setting(128, "tiles per batch", ge=1, le=LARGEST_BATCH)
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps", common=True)
    precision: Precision = precision_setting()
    cache_dir: str | None = setting(
        None, "cache of features and decoded tiles; null = $SSCL_CACHE or ~/.cache/sscl", path=True
    )
    progress: bool = setting(True, "show progress bars")

    @model_validator(mode="after")
    def _lists_make_sense(self) -> ProbeConfig:
        for key, entries in (("encoders", self.encoders), ("sets", self.sets)):
            names = [entry.name for entry in entries]
            if not names:
                raise fault(key, f"is empty; name at least 1: {key}='[{{name: NAME, ...}}]'")
            if twice := first_twice(names):
                raise fault(key, f"several of them have the name {twice!r}; give each a different name")
        if self.reference is not None:
            names = [entry.name for entry in self.encoders]
            if self.reference not in names:
                hint = nearest(self.reference, names)
                raise fault("reference", f"no encoder has the name {self.reference!r}; {hint}")
        for key, values in (
            ("fractions", self.fractions),
            ("label_seeds", self.label_seeds),
            ("c_grid", self.c_grid),
        ):
            if not values or len(set(values)) < len(values):
                raise fault(key, f"must be one or more different numbers, got {shown(values)}")
        if len(set(self.shots)) < len(self.shots):
            raise fault("shots", f"must be different numbers, got {shown(self.shots)}")
        return self
