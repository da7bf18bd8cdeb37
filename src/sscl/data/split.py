"""Which tiles go where: stratified and grouped splits, balancing, label fractions.

Pure functions of labels (int64, (N,)) and groups (str, (N,)): each returns indices into the N tiles, the same for
the same seed; `take_split` returns the tiles themselves.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sscl.data.groups import Groups, numbered
from sscl.data.tiles import Tiles

Indices = NDArray[np.int64]

# A grouped split tries the groups in this many random orders and keeps the best, but stops at the first in which the
# held-out fraction of every class is this close to the target.
_GROUP_ORDERS = 32
_CLOSE_ENOUGH = 0.01


def stratified_split(
    labels: NDArray[np.int64],
    *,
    fraction: float,
    seed: int,
    groups: Groups | None = None,
    classes: Sequence[str] = (),
) -> tuple[Indices, Indices]:
    """Return (rest, held_out), sorted indices: about `fraction` of every class is held out.

    Without groups each class gives round(fraction × its tiles), at least one, and keeps at least one. With
    groups (slides, patients) no group is on both sides, and the fractions are as close as whole groups allow.

    Args:
        fraction: held out, between 0 and 1.
        groups: group of each tile, (N,); None = every tile by itself.

    Raises:
        ValueError: there are no tiles, or a class has too few tiles (groups) to be on both sides.
    """
    if len(labels) == 0:
        raise ValueError("there are no tiles to split")
    rng = _generator("split", seed)
    if groups is not None:
        held = _held_groups(labels, groups, fraction=fraction, rng=rng, names_of=classes)
    else:
        held = np.zeros(len(labels), dtype=bool)
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            if len(rows) < 2:
                raise ValueError(
                    f"class {_called(label, classes)} has 1 tile, but a split needs at least 2, one for each side: "
                    "add tiles or remove the class"
                )
            count = min(max(_rounded(fraction * len(rows)), 1), len(rows) - 1)
            held[rng.permutation(rows)[:count]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def train_and_test(
    labels: NDArray[np.int64],
    *,
    fraction: float,
    seed: int,
    groups: Groups | None = None,
    classes: Sequence[str] = (),
) -> tuple[Indices, Indices]:
    """Return (train, test), sorted indices of all tiles: `stratified_split` of those with a label.

    A tile without a label (-1) is in train, or in test if a tile of its group is.

    Raises:
        ValueError: as `stratified_split`; no tile has a label.
    """
    labelled = np.flatnonzero(labels >= 0)
    some = None if groups is None else groups[labelled]
    _, held = stratified_split(labels[labelled], fraction=fraction, seed=seed, groups=some, classes=classes)
    test = np.zeros(len(labels), dtype=bool)
    test[labelled[held]] = True
    if groups is not None:
        _, numbers = numbered(groups)
        test |= np.isin(numbers, numbers[test])
    return np.flatnonzero(~test), np.flatnonzero(test)


def take_split(tiles: Tiles, parts: Mapping[str, int], split: str, *, test_fraction: float, seed: int) -> Tiles:
    """Return the tiles of one split of a set.

    Args:
        tiles: of the whole set, with its account, part by part.
        parts: number of tiles in each, by split; "all" where the set has no splits, and is split here.
        split: one of the parts, or "all"; train or test of a set that is split here.
        test_fraction, seed: see `train_and_test`.

    Raises:
        ValueError: as `train_and_test`.
    """
    if split == "all" or (parts.keys() == {"all"} and not tiles.classes):
        return tiles
    if "all" not in parts:
        # The parts lie one after the other, so each is one contiguous range of the memmap and is not copied.
        names = list(parts)
        start = sum(parts[name] for name in names[: names.index(split)])
        return tiles.subset(np.arange(start, start + parts[split]))
    train, test = train_and_test(
        tiles.labels, fraction=test_fraction, seed=seed, groups=tiles.groups, classes=tiles.classes
    )
    assert tiles.account is not None
    account = replace(tiles.account, parts={"train": len(train), "test": len(test)})
    return replace(tiles, account=account).subset(train if split == "train" else test)


def stratified_folds(
    labels: NDArray[np.int64],
    k: int,
    *,
    seed: int,
    groups: Groups | None = None,
    classes: Sequence[str] = (),
) -> list[Indices]:
    """Return the k folds of cross-validation, sorted indices: every tile is in one fold, every class in all folds.

    Without groups the tiles of a class per fold differ by one at most. With groups (slides, patients) each group is in
    one fold as a whole, and the classes are as even as scikit-learn's greedy rule makes them: the most uneven groups
    first, each put where the folds become most equal. The seed then only decides between groups with equal counts.

    Args:
        k: number of folds, at least 2.
        groups: group of each tile, (N,); None = every tile by itself.

    Raises:
        ValueError: a class has fewer tiles (groups) than k, no such folds of whole groups were found, or
            a tile is unlabelled.
    """
    rows_of = _rows_per_class(labels)
    counts = [len(rows) if groups is None else len(numbered(groups[rows])[0]) for rows in rows_of]
    if min(counts) < k:
        what, label = "tiles" if groups is None else "groups", labels[rows_of[int(np.argmin(counts))][0]]
        raise ValueError(
            f"folds: {k} folds need at least {k} {what} per class, class {_called(label, classes)} has {min(counts)}: "
            "use fewer folds"
        )

    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # the import takes a second

    rng = _generator("folds", seed)
    if groups is None:
        splitter = StratifiedKFold(k, shuffle=True, random_state=int(rng.integers(2**32)))
        return [np.sort(held).astype(np.int64) for _, held in splitter.split(labels, labels)]
    # Its own shuffle lost the stratification before 1.8 (scikit-learn issue 32478); renumbering the groups has the same
    # effect.
    names, group_of = numbered(groups)
    codes = rng.permutation(len(names))[group_of]
    folds = [np.sort(held).astype(np.int64) for _, held in StratifiedGroupKFold(k).split(labels, labels, codes)]
    if any(len(np.unique(labels[held])) < len(rows_of) for held in folds):
        raise ValueError(
            f"folds: found no way to divide the {len(names)} groups into {k} folds that all have every class: "
            "use fewer folds"
        )
    return folds


def balance_down(labels: NDArray[np.int64], *, seed: int) -> Indices:
    """Return sorted indices with as many tiles of every class as the smallest class has, drawn at random.

    Raises:
        ValueError: a tile is unlabelled, or there are none.
    """
    rng = _generator("balance", seed)
    rows_of = _rows_per_class(labels)
    smallest = min(len(rows) for rows in rows_of)
    return np.sort(np.concatenate([rng.permutation(rows)[:smallest] for rows in rows_of]))


def class_weights(labels: NDArray[np.int64], *, num_classes: int) -> NDArray[np.float64]:
    """Return a weight per class, (num_classes,), inverse to its frequency; the mean over the tiles is 1.

    Raises:
        ValueError: a tile is unlabelled, or a class has no tile.
    """
    _rows_per_class(labels)
    counts = np.bincount(labels, minlength=num_classes)
    if len(counts) > num_classes or counts.min() == 0:
        raise ValueError(f"class weights need tiles of all {num_classes} classes, got {counts.tolist()} per class")
    return len(labels) / (num_classes * counts.astype(np.float64))


def balanced_order(labels: NDArray[np.int64], *, seed: int, epoch: int) -> Indices:
    """Return N indices in random order that draw all classes equally often (a difference of one at most).

    The tiles of a small class repeat, their numbers of draws differing by one at most; a large class shows a different
    part of its tiles each epoch. A function of (labels, seed, epoch) alone.

    Raises:
        ValueError: a tile is unlabelled, or there are none.
    """
    rng = _generator("balanced order", seed, epoch)
    rows_of = _rows_per_class(labels)
    draws_of = np.full(len(rows_of), len(labels) // len(rows_of))
    draws_of[rng.permutation(len(rows_of))[: len(labels) % len(rows_of)]] += 1
    draws = []
    for rows, count in zip(rows_of, draws_of, strict=True):
        rounds = -(-int(count) // len(rows))
        draws.append(np.concatenate([rng.permutation(rows) for _ in range(rounds)])[:count])
    return rng.permutation(np.concatenate(draws))


def label_fraction(labels: NDArray[np.int64], *, fraction: float, seed: int) -> Indices:
    """Return sorted indices of `fraction` of every class, at least one tile of each.

    For one seed a smaller fraction is a subset of every larger one, so a curve over fractions only adds labels.

    Raises:
        ValueError: a tile is unlabelled, or there are none.
    """
    rng = _generator("labels", seed)
    kept = [rng.permutation(rows)[: max(_rounded(fraction * len(rows)), 1)] for rows in _rows_per_class(labels)]
    return np.sort(np.concatenate(kept))


def occurrences(order: NDArray[np.int64]) -> Indices:
    """Return how often each entry of `order` occurred before, (N,): 0 the first time."""
    by_value = np.argsort(order, kind="stable")
    value = order[by_value]
    starts = np.flatnonzero(np.r_[True, value[1:] != value[:-1]])
    counts = np.empty(len(order), dtype=np.int64)
    counts[by_value] = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    return counts


def with_unlabelled(labelled: NDArray[np.int64], unlabelled: NDArray[np.int64], *, seed: int, step: int) -> Indices:
    """Return the rows of a step that uses no labels, (M,): the labelled batch (N,) and up to N unlabelled tiles.

    The unlabelled tiles come in passes over all of them (those that do not fill a step are dropped from the pass). No
    row comes twice, not even one that balanced draws repeat: it would be its own negative.
    """
    count = min(len(labelled), len(unlabelled))
    if count:
        turn, part = divmod(step, len(unlabelled) // count)
        order = _generator("unlabelled", seed, turn).permutation(unlabelled)
        labelled = np.concatenate([labelled, order[part * count : (part + 1) * count]])
    return np.unique(labelled)


def _generator(purpose: str, *numbers: int) -> np.random.Generator:
    """Return a random generator for one purpose: with one for all, dropping tiles to balance would change the split."""
    return np.random.default_rng([zlib.crc32(purpose.encode()), *numbers])


def _called(label: int, classes: Sequence[str]) -> str:
    """Return a class as an error names it: by its name where that is known, else by its number."""
    return repr(str(classes[label])) if classes else str(label)


def _rounded(value: float) -> int:
    """Return the nearest whole number; half rounds up (Python's round takes 0.5 to 0 and 1.5 to 2)."""
    return int(np.floor(value + 0.5))


def _rows_per_class(labels: NDArray[np.int64]) -> list[Indices]:
    if len(labels) == 0:
        raise ValueError("there are no labelled tiles")
    unlabelled = int((labels < 0).sum())
    if unlabelled:
        raise ValueError(
            f"{unlabelled} of {len(labels)} tiles are unlabelled; this needs a label on every tile: "
            "remove the unlabelled ones"
        )
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _held_groups(
    labels: NDArray[np.int64],
    groups: Groups,
    *,
    fraction: float,
    rng: np.random.Generator,
    names_of: Sequence[str],
) -> NDArray[np.bool_]:
    """Return which tiles are held out, (N,), whole groups only.

    Groups come in random order and are held out if that brings the held-out fraction of each class closer to the
    target; the best of several orders is kept.
    """
    classes, label_of = np.unique(labels, return_inverse=True)
    names, group_of = numbered(groups)
    counts = np.zeros((len(names), len(classes)))  # tiles of each group and class
    np.add.at(counts, (group_of, label_of), 1)
    groups_of_class = (counts > 0).sum(axis=0)
    if groups_of_class.min() < 2:
        label = classes[groups_of_class.argmin()]
        raise ValueError(
            f"all tiles of class {_called(label, names_of)} are in one group, so one side of a grouped split would not "
            "have it: add groups of that class, or split without groups"
        )
    totals = counts.sum(axis=0)
    parts = counts / totals
    target = np.maximum(fraction, 1 / totals)
    best, smallest = None, np.inf
    for _ in range(_GROUP_ORDERS):
        held = _fill(parts, target, rng.permutation(len(names)))
        if held is None:
            continue
        distance = float(np.abs(target - parts[held].sum(axis=0)).max())
        if distance < smallest:
            best, smallest = held, distance
        if distance < _CLOSE_ENOUGH:
            break
    if best is None:
        raise ValueError(
            f"the {len(names)} groups cannot be divided so that both sides have every class: "
            "add groups, or split without groups"
        )
    return best[group_of]


def _fill(parts: NDArray[np.float64], target: NDArray[np.float64], order: Indices) -> NDArray[np.bool_] | None:
    """Return the groups held out, (G,), going through `order` once; None if a side lacks a class.

    parts: the fraction of each class's tiles that is in each group, (G, K). target: the fraction to hold out, (K,).
    """
    held = np.zeros(len(parts), dtype=bool)
    missing = target.copy()
    left = (parts > 0).sum(axis=0)  # groups of each class not held out

    def hold(group: int) -> None:
        nonlocal missing, left
        held[group] = True
        missing = missing - parts[group]
        left = left - (parts[group] > 0)

    # First one group for each class that has none yet, rarest first: a class whose groups are all larger than the
    # target would otherwise never be held out.
    for index in np.argsort(left, kind="stable"):
        if not (held & (parts[:, index] > 0)).any():
            candidates = [
                group
                for group in order
                if parts[group, index] > 0 and not held[group] and ((parts[group] == 0) | (left > 1)).all()
            ]
            if not candidates:
                return None
            hold(min(candidates, key=lambda group: float(((missing - parts[group]) ** 2).sum())))
    for group in order:
        nearer = ((missing - parts[group]) ** 2).sum() < (missing**2).sum()
        if nearer and not held[group] and ((parts[group] == 0) | (left > 1)).all():
            hold(group)
    return held
