"""Which labelled tiles are used, train, validate, or are held out by a fold; their order in an epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sscl import ranks
from sscl.config import FinetuneConfig
from sscl.data import split
from sscl.data.load import all_rows, describe_tiles, has_validation, load_tiles
from sscl.data.tiles import UNLABELLED, Tiles, epoch_order

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class LabelledTiles:
    """The tiles of a fine-tuning.

    Attributes:
        tiles: of the training split, without what `train.fold` holds out.
        train: rows of `tiles` that the labels train on.
        validation_tiles: `tiles`, or the data set's own validation split.
        validation: rows of `validation_tiles` that choose the epoch.
        unlabelled: rows of `tiles` without a label, or beyond train.label_fraction.
        fingerprint: of the whole training split.
    """

    tiles: Tiles
    train: Rows
    validation_tiles: Tiles
    validation: Rows
    unlabelled: Rows
    fingerprint: str

    @property
    def carved(self) -> bool:
        """Whether the validation tiles are carved from the training split."""
        return self.validation_tiles is self.tiles

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes in order."""
        return tuple(self.tiles.classes)


def load_labelled(config: FinetuneConfig, *, progress: bool) -> LabelledTiles:
    """Return the tiles of a fine-tuning, and print how many there are.

    Raises:
        ValueError: no tile has a label, or too few to carve validation tiles from.
    """
    with ranks.first_on_each_machine():
        tiles = load_tiles(config.data, split="train", progress=progress)
        own = load_tiles(config.data, split="validation", progress=progress) if has_validation(config.data) else None
    check_labels(tiles, config)
    print(describe_tiles(config.data, tiles, split="train"))
    if own is not None:
        print(describe_tiles(config.data, own, split="validation") + "; train.validation_fraction is not used")
    fingerprint = tiles.fingerprint
    if config.train.fold is not None:
        tiles = tiles.subset(training_rows(tiles, config))
    train, validation = labelled_parts(tiles, config, own=own)
    unlabelled = np.setdiff1d(all_rows(tiles), used_labels(tiles, config))
    if len(unlabelled):
        use = "in the contrastive steps only" if config.contrast.kind != "none" else "not used (contrast.kind is none)"
        print(f"{len(unlabelled)} tiles without a label, or beyond train.label_fraction: {use}")
    return LabelledTiles(tiles, train, tiles if own is None else own, validation, unlabelled, fingerprint)


def check_labels(tiles: Tiles, config: FinetuneConfig) -> None:
    """Raise ValueError where no tile has a label."""
    if not (tiles.labels != UNLABELLED).any():
        raise ValueError(f"data.root: {config.data.root} has no labels; finetune needs tiles in classes")


def warn_of_absent_classes(data: LabelledTiles) -> None:
    """Print a warning where a class has no training or no validation tile."""
    for part, labels in (
        ("training", data.tiles.labels[data.train]),
        ("validation", data.validation_tiles.labels[data.validation]),
    ):
        absent = [name for i, name in enumerate(data.classes) if not (labels == i).any()]
        if absent:
            print(f"warning: no {part} tile of {', '.join(absent)}")


def labelled_parts(tiles: Tiles, config: FinetuneConfig, *, own: Tiles | None = None) -> tuple[Rows, Rows]:
    """Return the rows to train on and the rows for validation, both within the labels that may be used.

    The label fraction comes first: an honest few-label result may not choose its epoch on labels it does not have. It
    cuts the data set's own validation tiles (`own`) in the same proportion; the second rows are then theirs.

    Raises:
        ValueError: too few tiles, or groups, to carve validation tiles from.
    """
    used = used_labels(tiles, config)
    if own is not None:
        train, validation = used, used_labels(own, config)
    else:
        groups = None if tiles.groups is None else tiles.groups[used]
        try:
            rest, held = split.stratified_split(
                tiles.labels[used], fraction=config.train.validation_fraction, seed=config.seed, groups=groups
            )
        except ValueError as error:
            raise ValueError(f"train.validation_fraction: {error} ({len(used)} labelled tiles are used)") from error
        train, validation = used[rest], used[held]
    if config.train.balance == "down":
        train = train[split.balance_down(tiles.labels[train], seed=config.seed)]
    return train, validation


def used_labels(tiles: Tiles, config: FinetuneConfig) -> Rows:
    """Return the rows whose labels may be used: `label_fraction` of each class.

    Raises:
        ValueError: no tile has a label.
    """
    labelled = np.flatnonzero(tiles.labels != UNLABELLED)
    return labelled[
        split.label_fraction(tiles.labels[labelled], fraction=config.train.label_fraction, seed=config.seed)
    ]


def batch_size_of(config: FinetuneConfig, *, tiles: int, world: int) -> int:
    """Return the batch size for some training tiles: train.batch_size, or as many tiles as there are.

    Raises:
        ValueError: train.batch_size does not divide over the ranks, or fewer than two tiles a rank.
    """
    wanted = config.train.batch_size
    if wanted % world:
        raise ValueError(f"train.batch_size: got {wanted}, which does not divide over {world} ranks")
    size = min(wanted, tiles)
    size -= size % world
    if size < 2 * world:
        each = " per rank" if world > 1 else ""
        raise ValueError(f"train.label_fraction: leaves {tiles} training tiles, at least 2{each} are needed; raise it")
    if size < wanted:
        print(f"train.batch_size: {wanted} is lowered to {size}, for {tiles} training tiles")
    return size


def epoch_rows(train: Rows, tiles: Tiles, config: FinetuneConfig, *, epoch: int) -> Rows:
    """Return the rows of an epoch in their order; with balanced draws, classes come equally often.

    With `train.steps_per_epoch`, whole shuffled passes and a part of one, as many as fill those steps.
    """

    def one_pass(number: int) -> Rows:
        if config.train.balance == "draws":
            return train[split.balanced_order(tiles.labels[train], seed=config.seed, epoch=number)]
        return train[epoch_order(len(train), seed=config.seed, epoch=number)]

    if config.train.steps_per_epoch is None:
        return one_pass(epoch)
    draws = config.train.steps_per_epoch * min(config.train.batch_size, len(train))
    passes = -(-draws // len(train))
    return np.concatenate([one_pass(epoch * passes + i) for i in range(passes)])[:draws]


def held_out(tiles: Tiles, config: FinetuneConfig) -> list[Rows]:
    """Return the rows that each fold holds out; together they are all labelled tiles.

    Raises:
        ValueError: no tile has a label, or the tiles cannot be divided so.
    """
    check_labels(tiles, config)
    labelled = np.flatnonzero(tiles.labels != UNLABELLED)
    assert config.train.folds is not None
    groups = None if tiles.groups is None else tiles.groups[labelled]
    try:
        found = split.stratified_folds(tiles.labels[labelled], config.train.folds, seed=config.seed, groups=groups)
    except ValueError as error:
        raise ValueError(f"train.{error}") from error
    return [labelled[part] for part in found]


def training_rows(tiles: Tiles, config: FinetuneConfig) -> Rows:
    """Return the rows that `train.fold` may see: neither its held-out tiles nor unlabelled ones of their groups."""
    assert config.train.fold is not None
    held = held_out(tiles, config)[config.train.fold - 1]
    if tiles.groups is not None:
        return np.flatnonzero(~np.isin(tiles.groups, np.unique(tiles.groups[held])))
    return np.setdiff1d(all_rows(tiles), held)
