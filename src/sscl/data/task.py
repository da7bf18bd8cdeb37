"""Is this a task that a classifier can learn and a test can measure? Asked here by all that trains or measures.

Refused: fewer than two classes, or half of a split's tiles equal to training tiles, or half of the training tiles equal
to tiles of another class. Fewer such tiles are warned of: published sets have some, and a user cannot change them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sscl.config import DataConfig, FinetuneConfig
from sscl.config.encoders import RANDOM
from sscl.data.rows import Images
from sscl.data.tiles import UNLABELLED, Tiles, as_rows
from sscl.words import count, listed

MOST = 0.5  # from this fraction of equal tiles on, a task is refused
TOGETHER = "data.group_near_duplicates=true keeps copies on one side of a split that sscl makes"
ADD_A_CLASS = {
    "folder": "put the tiles into a folder for each class",
    "table": "give the tiles of each class their label in the column label",
    "slides": "give slides their label in the column label of slides_csv, and run sscl slides tile again; or tiles "
    "that of areas drawn in QuPath (data.annotations)",
    "pathmnist": "give the tiles of each class their number in train_labels",
}
# What follows where a part has no tile of a class.
WITHOUT = {
    "training": "the classifier cannot learn it",
    "validation": "it has no say in which epoch is best",
    "test": "nothing measures how often it is found",
    "held-out": "nothing measures how often it is found",
}

Place = tuple[int, int]  # which set of tiles, and which of its rows


def check_task(
    parts: Mapping[str, Tiles], *, data: DataConfig, made_here: Collection[str] = (), key: str = "data.root"
) -> list[str]:
    """Return what to know before training on a set or measuring on it, a sentence each.

    Args:
        parts: "training" and, where there are such, "validation", "test", "held-out"; labelled tiles alone.
        data: the section they come from. made_here: the parts that sscl took out of a larger one.
        key: what names the set in errors.

    Raises:
        ValueError: it is no task; the line says why and what to do.
    """
    check_two_classes(parts["training"], data=data, key=key)
    lacking = {name: absent_classes(tiles) for name, tiles in parts.items()}
    found = [f"no {name} tile of {listed(names)}: {WITHOUT[name]}" for name, names in lacking.items() if names]
    refused, warned = _copies(parts, made_here=made_here)
    if refused:
        raise ValueError(f"{key}: {data.root}: {refused[0]}")
    return found + warned


def check_two_classes(tiles: Tiles, *, data: DataConfig, key: str = "data.root") -> None:
    """Raise ValueError unless the tiles with a label are of two classes or more."""
    present = [name for name, tiles_of in tiles.class_counts().items() if tiles_of and name in tiles.classes]
    advice = ADD_A_CLASS.get(data.source, "add tiles of another class")
    if data.annotations is not None:
        key, advice = f"{key.removesuffix('root')}annotations", "draw areas of another class too"
    elif data.reviews:
        key, advice = f"{key.removesuffix('root')}reviews", "review tiles of another class too"
    elif tiles.account is not None and (name := tiles.account.passed_over.examples.get(".csv")):
        advice += f", or give the table of their labels ({data.root}/{name}?)"
    if not present:
        raise ValueError(f"{key}: {data.root} has no labels; a classifier learns from tiles in classes: {advice}")
    if len(present) == 1 and len(tiles.classes) == 1:
        raise ValueError(f"{key}: {data.root} has one class ({present[0]}); a classifier needs two: {advice}")
    if len(present) == 1:
        others = listed([name for name in tiles.classes if name not in present])
        raise ValueError(
            f"{key}: {data.root}: all training tiles are of {present[0]}, none of {others}; a classifier needs two "
            "classes: add training tiles of another one"
        )


def absent_classes(tiles: Tiles) -> list[str]:
    """Return the classes of which there is no tile."""
    return [name for i, name in enumerate(tiles.classes) if not (tiles.labels == i).any()]


def settings_warnings(config: FinetuneConfig) -> list[str]:
    """Return what is doubtful about the settings of a fine-tuning, whatever its tiles, a sentence each."""
    found = []
    train = config.train
    if train.freeze_encoder and config.model.weights in RANDOM:
        found.append(
            "train.freeze_encoder keeps random weights as they are, so that the head learns on random features; give "
            "model.weights, or leave it out"
        )
    if train.loss.startswith("weighted_") and train.balance != "none":
        equal = "are drawn equally often" if train.balance == "draws" else "have equally many tiles"
        found.append(
            f"train.loss={train.loss} adds nothing to train.balance={train.balance}: the classes {equal}, so each "
            "weighs 1 (both would correct the imbalance twice)"
        )
    return found


def outcome_warnings(
    labels: NDArray[np.int64], predictions: NDArray[np.int64], classes: Sequence[str], *, tiles: str = "tile"
) -> list[str]:
    """Return why metrics on labelled tiles say little, whatever their value, a sentence each.

    Args:
        labels, predictions: (N,). tiles: what one of them is called.
    """
    found = []
    truths, calls = np.unique(labels), np.unique(predictions)
    if len(truths) == 1:
        name = classes[truths[0]]
        found.append(
            f"every {tiles} is of {name}: accuracy is the recall of {name} alone, and nothing measures how often other "
            f"tiles are called {name}"
        )
    if len(calls) == 1 and len(truths) > 1:
        found.append(f"the classifier calls every {tiles} {classes[calls[0]]}: it tells nothing apart")
    return found


# --- tiles that are equal ---


def _copies(parts: Mapping[str, Tiles], *, made_here: Collection[str]) -> tuple[list[str], list[str]]:
    """Return why the tiles are no task, and what to warn of, where some of them are equal."""
    refused, warned = [], []
    for name, pairs in _copies_of_training(parts).items():
        if not pairs:
            continue
        remedy = TOGETHER if name in made_here else "take them out of one of the two (sscl data audit lists them)"
        if name == "training":
            too_many, some = "give each tile one class", "one of the two labels is wrong"
        else:
            too_many, some = f"nothing could be measured; {remedy}", f"the metrics are optimistic; {remedy}"
        text = _in_words(pairs, parts, name=name)
        if len(pairs) >= MOST * len(parts[name]):
            refused.append(f"{text}: {too_many}")
        else:
            warned.append(f"{text}: {some}")
    return refused, warned


def shared_tiles(train: Tiles, tiles: Tiles, *, name: str) -> str | None:
    """Return how many tiles are training tiles too, pixel for pixel, with an example; None if there are none."""
    parts = {"training": train, name: tiles}
    pairs = _copies_of_training(parts)[name]
    return _in_words(pairs, parts, name=name) if pairs else None


def _copies_of_training(parts: Mapping[str, Tiles]) -> dict[str, list[tuple[int, int]]]:
    """Return the tiles of each part that equal a training tile: pairs of its row and that of the training tile.

    Of the training tiles themselves, those that equal one of another class.
    """
    names, labels = list(parts), parts["training"].labels
    found: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    for places in equal_tiles([tiles.images for tiles in parts.values()]):
        trained = [row for part, row in places if names[part] == "training"]
        first_of = {int(labels[row]): row for row in reversed(trained)}  # of each class
        for part, row in places:
            if names[part] != "training":
                others = trained[:1]
            else:
                others = [other for label, other in first_of.items() if label != labels[row]][:1]
            found[names[part]] += [(row, other) for other in others]
    return found


def _in_words(pairs: Sequence[tuple[int, int]], parts: Mapping[str, Tiles], *, name: str) -> str:
    tiles, train = parts[name], parts["training"]
    what = "are in two classes" if name == "training" else "are training tiles too"
    row, other = pairs[0]
    return (
        f"{len(pairs):,} of {count(len(tiles), f'{name} tile')} {what}, pixel for pixel (such as {tiles.ids[row]}, "
        f"equal to {train.ids[other]})"
    )


def equal_tiles(sets: Sequence[Images]) -> list[list[Place]]:
    """Return the tiles that are equal pixel for pixel, a list of places for each picture that occurs more than once.

    By their digests, which files of the cache have: no pixel of those is read. Tiles of one colour are passed over: two
    blank tiles are no copies. Tiles of slides are equal where they are of one place in slides that are copies of each
    other, whatever their colour; nothing of them is read.
    """
    rows = [as_rows(images) for images in sets]
    digests = [of.digests() for of in rows]
    part_of = np.repeat(np.arange(len(sets)), [len(found) for found in digests])
    row_of = np.concatenate([np.arange(len(found)) for found in digests])
    _, number, often = np.unique(np.concatenate(digests), return_inverse=True, return_counts=True)
    places: dict[int, list[Place]] = {}
    for at in np.flatnonzero(often[number] > 1):
        places.setdefault(int(number[at]), []).append((int(part_of[at]), int(row_of[at])))
    made = any(of.made for of in rows)
    return [equal for equal in places.values() if made or not _is_of_one_colour(sets, *equal[0])]


def _is_of_one_colour(sets: Sequence[Images], part: int, row: int) -> bool:
    pixels = np.asarray(sets[part][row])
    return not (pixels != pixels[0, 0]).any()


def labelled(tiles: Tiles) -> Tiles:
    """Return the tiles that have a label."""
    return tiles.subset(np.flatnonzero(tiles.labels != UNLABELLED)) if (tiles.labels == UNLABELLED).any() else tiles
