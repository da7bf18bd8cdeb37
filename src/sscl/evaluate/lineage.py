"""What earlier training has seen of the tiles that are evaluated, and whether slides are known: one wording each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sscl.config import DataConfig
from sscl.data.load import groups_are, load_tiles, slides_known, split_changes
from sscl.data.tiles import Tiles
from sscl.evaluate import bootstrap
from sscl.models.checkpoint import Checkpoint

NO_SLIDE_IDS = "no slide or patient ids: tiles of one slide may be on both sides of a split, which inflates the metrics"
INDEPENDENT = "these intervals assume independent tiles; several tiles per slide make them too narrow"


def same_root(data: DataConfig, trained: DataConfig) -> bool:
    """Return whether two sets are one folder or file."""
    return Path(data.root).resolve() == Path(trained.root).resolve()


def overlap(data: DataConfig, trained: DataConfig) -> str | None:
    """Return how the folder of a set overlaps with one that was trained on: "same", "overlaps", or None.

    The set's own train/ is "same".
    """
    here, there = Path(data.root).resolve(), Path(trained.root).resolve()
    if there in (here, here / "train"):
        return "same"
    return "overlaps" if there.is_relative_to(here) or here.is_relative_to(there) else None


def seen_in_training(data: DataConfig, trained: DataConfig, *, split: str) -> str | None:
    """Return a warning where tiles of the split were, or may have been, training tiles; else None."""
    may_have = "tiles of this test split may have been training tiles, so the metrics may not hold for new tiles"
    found = overlap(data, trained)
    if found is None:
        return None
    if found == "overlaps":
        return f"training used {Path(trained.root).resolve()}, which overlaps {Path(data.root).resolve()}: {may_have}"
    if split != "test":
        return "these tiles were training tiles: the metrics say nothing about new tiles"
    changed = split_changes(data, trained) if same_root(data, trained) else []
    return f"{', '.join(changed)} differs from training: {may_have}" if changed else None


def without_slides(data: DataConfig, groups: NDArray[np.str_] | None) -> str | None:
    """Return a warning where tiles of one slide cannot be told: no groups, or clusters of near-duplicates alone."""
    if groups is None or (data.group_near_duplicates and not slides_known(data)):
        return NO_SLIDE_IDS
    return None


def shared_groups(data: DataConfig, train: NDArray[np.str_] | None, test: NDArray[np.str_] | None) -> str | None:
    """Return a warning where groups have tiles in both splits; else None. train, test: group of each tile, or None."""
    if train is None or test is None:
        return None
    shared = sorted(set(train.tolist()) & set(test.tolist()))
    if not shared:
        return None
    return (
        f"{len(shared)} of the {groups_are(data)} are in both train and test (such as {shared[0]}): the metrics are "
        "optimistic"
    )


def caveats(data: DataConfig, tiles: Tiles, trained: Checkpoint, *, split: str, train: Tiles | None) -> list[str]:
    """Return what a reader must know before trusting metrics on a split, a sentence each.

    Args:
        data: the set. tiles: of the split. trained: the classifier's checkpoint. split: its name.
        train: the training split as it is now, see `training_tiles`; None = not to be compared.
    """
    seen = [seen_in_training(data, section, split=split) for section in trained.trained_on]
    found = list(dict.fromkeys(text for text in seen if text is not None))
    if train is not None and not found and train.fingerprint != trained.fingerprint:
        found.append("the training tiles have changed since training: test tiles may have been among the former ones")
    unknown = without_slides(data, tiles.groups)
    shared = None if train is None else shared_groups(data, train.groups, tiles.groups)
    return found + [text for text in (unknown, shared) if text is not None]


def training_tiles(data: DataConfig, trained: DataConfig) -> Tiles | None:
    """Return the training split as it is now, at the size trained on; None for another folder than training's."""
    if not same_root(data, trained):
        return None
    return load_tiles(data.model_copy(update={"size_px": trained.size_px}), split="train", progress=False)


def interval_caveats(groups: bootstrap.Groups | None) -> list[str]:
    """Return what to know before trusting the intervals, a sentence each; all of them name "intervals"."""
    if groups is None:
        return [INDEPENDENT]
    few = bootstrap.few_groups(groups)
    return [INDEPENDENT.replace("these", "Wilson's", 1), *([few] if few is not None else [])]
