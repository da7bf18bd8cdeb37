"""The data section, and the commands of `sscl data`."""

from __future__ import annotations

from typing import Literal

from sscl.config.base import Section, knob


class DataConfig(Section):
    """Which tiles, from where, in which split."""

    source: Literal["mhist", "folder"] = knob(
        "mhist", "mhist: annotations.csv + images/; folder: train/CLASS/*, test/CLASS/*, or CLASS/*, or flat"
    )
    root: str = knob(..., "folder of the data set", min_length=1)
    protocol: Literal["paper_balanced", "official"] = knob(
        "official", "mhist: official = its Partition column; paper_balanced = all SSA + as many HP, 90:10"
    )
    published: bool = knob(True, "mhist: hold the set to MHIST's published counts and 224 px; false for other sets")
    split_seed: int = knob(0, "seed of the splits made here (paper_balanced, a folder without test/)", ge=0)
    test_fraction: float = knob(0.2, "folder without test/: share of each class held out for test", gt=0, lt=1)
    groups_csv: str | None = knob(None, "folder: CSV `path,group`; no group lands on both sides of a split")
    unlabelled: str | None = knob(
        None, "pretrain: a folder of further tiles without labels, added to the training tiles"
    )
    size_px: int = knob(224, "side to which tiles are brought, pixels", ge=16, le=1024)
    cache_dir: str | None = knob(None, "folder for decoded tiles; null = $SSCL_CACHE or ~/.cache/sscl")
    device_budget_gb: float = knob(4.0, "tiles go to the GPU as a whole up to this size, GiB", ge=0)


class SynthConfig(Section):
    """sscl data synth: procedural polyp tiles in the MHIST layout."""

    root: str = knob(..., "folder to write", min_length=1)
    count: int = knob(1000, "number of tiles", ge=4)
    size_px: int = knob(224, "side of a tile, pixels", ge=32, le=1024)
    seed: int = knob(0, "seed of the tiles", ge=0)
    ssa_fraction: float = knob(0.5, "share of SSA tiles", gt=0, lt=1)
    test_fraction: float = knob(0.3, "share of slides in the test partition", gt=0, lt=1)
    progress: bool = knob(True, "show progress bars")
