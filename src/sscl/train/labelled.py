"""Which labelled tiles are used, train, validate, or are held out by a fold; their order in an epoch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sscl.config import FinetuneConfig
from sscl.data import split
from sscl.data.groups import numbered
from sscl.data.load import all_rows, describe_tiles, has_test, has_validation, load_tiles, split_is_made_here
from sscl.data.scale import Scale, scale_of
from sscl.data.task import absent_classes, check_task, check_two_classes, labelled, settings_warnings
from sscl.data.tiles import UNLABELLED, Tiles, epoch_order
from sscl.words import count, listed, wrapped

Rows = NDArray[np.int64]
NO_TEST = "{root} has no test split; evaluate the run on other tiles (sscl eval RUN OTHER_TILES)"


@dataclass(frozen=True)
class LabelledTiles:
    """The tiles of a fine-tuning.

    Attributes:
        tiles: of the training split, without what `train.fold` holds out.
        train: rows of `tiles` that the labels train on.
        validation_tiles: `tiles`, or the data set's own validation split.
        validation: rows of `validation_tiles` that choose the epoch.
        unlabelled: rows of `tiles` without a label, or beyond train.label_fraction.
        whole, places: the whole training split, and the rows of `tiles` in it. fingerprint: of the whole.
        scale: of the training files. warnings: what is doubtful about the task, a sentence each.
    """

    tiles: Tiles
    train: Rows
    validation_tiles: Tiles
    validation: Rows
    unlabelled: Rows
    whole: Tiles
    places: Rows
    fingerprint: str
    scale: Scale
    warnings: tuple[str, ...] = ()

    @property
    def carved(self) -> bool:
        """Whether the validation tiles are carved from the training split."""
        return self.validation_tiles is self.tiles

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.tiles.classes)


def labelled_tiles(config: FinetuneConfig, *, progress: bool) -> tuple[LabelledTiles, list[str]]:
    """Return the tiles of a fine-tuning, checked, and the lines that say so.

    Raises:
        ValueError: no task for a classifier, see `check_task`; or too few tiles to carve validation tiles from.
    """
    data = config.data
    tiles = load_tiles(data, split="train", progress=progress)
    check_two_classes(tiles, data=data)
    lines = [describe_tiles(data, tiles, split="train")]
    own = load_tiles(data, split="validation", progress=progress) if has_validation(data) else None
    if own is not None:
        shown = describe_tiles(data, own, split="validation", account=False)
        lines += [shown, wrapped("none is carved from train (train.validation_fraction is not used)", indent=2)]
    whole, places = tiles, all_rows(tiles)
    if config.train.fold is not None:
        places = training_rows(tiles, config)
        tiles = tiles.subset(places)
    train, validation = labelled_parts(tiles, config, own=own)
    unlabelled = np.setdiff1d(all_rows(tiles), used_labels(tiles, config))
    held = tiles if own is None else own
    scale = scale_of(data, tiles)
    found = LabelledTiles(tiles, train, held, validation, unlabelled, whole, places, whole.fingerprint, scale)
    if scale.span:
        lines.append(f"data: {scale} at {data.size_px} px")
    warnings, not_compared = task_warnings(found, config, progress=progress)
    found = replace(found, warnings=(*settings_warnings(config), *warnings))
    lines += [wrapped(f"warning: {text}") for text in (*found.warnings, *not_compared)]
    if len(unlabelled):
        use = "in the contrastive steps only" if config.contrast.kind != "none" else "not used (contrast.kind is none)"
        what = count(len(unlabelled), "tile")
        lines.append(wrapped(f"{what} without a label, or beyond train.label_fraction: {use}"))
    return found, lines


def task_warnings(found: LabelledTiles, config: FinetuneConfig, *, progress: bool) -> tuple[list[str], list[str]]:
    """Return what is doubtful about the task, and why test tiles could not be compared with training tiles.

    Nothing else is done with the test tiles.

    Raises:
        ValueError: no task for a classifier, see `check_task`; or weights by class without a tile of each.
    """
    data = config.data
    parts = {"training": found.tiles.subset(found.train), "validation": found.validation_tiles.subset(found.validation)}
    absent = absent_classes(parts["training"])
    if absent and config.train.loss.startswith("weighted_"):
        raise ValueError(
            f"train.loss: {config.train.loss} weights a class by its training tiles, and {listed(absent)} has none; "
            "add some, or take another loss"
        )
    if absent and config.train.head == "logistic":
        raise ValueError(
            f"train.head: logistic fits a class to its training tiles, and {listed(absent)} has none; add some, or "
            "take train.head=linear"
        )
    made_here = {"validation"} if found.carved else set()
    not_compared: list[str] = []
    if not has_test(data):
        return check_task(parts, data=data, made_here=made_here), [NO_TEST.format(root=data.root)]
    try:
        parts["test"] = labelled(load_tiles(data, split="test", progress=progress))
        made_here |= {"test"} if split_is_made_here(data) else set()
    except (ValueError, FileNotFoundError) as error:
        not_compared = [f"test tiles were not compared with the training tiles: {str(error).splitlines()[0]}"]
    return check_task(parts, data=data, made_here=made_here), not_compared


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
                tiles.labels[used],
                fraction=config.train.validation_fraction,
                seed=config.seed,
                groups=groups,
                classes=tiles.classes,
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
    rows = np.flatnonzero(tiles.labels != UNLABELLED)
    return rows[split.label_fraction(tiles.labels[rows], fraction=config.train.label_fraction, seed=config.seed)]


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
        ValueError: fewer than two classes, or the tiles cannot be divided so.
    """
    check_two_classes(tiles, data=config.data)
    rows = np.flatnonzero(tiles.labels != UNLABELLED)
    assert config.train.folds is not None
    groups = None if tiles.groups is None else tiles.groups[rows]
    try:
        found = split.stratified_folds(
            tiles.labels[rows], config.train.folds, seed=config.seed, groups=groups, classes=tiles.classes
        )
    except ValueError as error:
        raise ValueError(f"train.{error}") from error
    return [rows[part] for part in found]


def training_rows(tiles: Tiles, config: FinetuneConfig) -> Rows:
    """Return the rows that `train.fold` may see: neither its held-out tiles nor unlabelled ones of their groups."""
    assert config.train.fold is not None
    held = held_out(tiles, config)[config.train.fold - 1]
    if tiles.groups is not None:
        _, numbers = numbered(tiles.groups)
        return np.flatnonzero(~np.isin(numbers, numbers[held]))
    return np.setdiff1d(all_rows(tiles), held)
