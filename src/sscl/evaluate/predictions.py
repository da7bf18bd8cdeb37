"""predictions.csv: what a classifier predicted for every tile; written and read here alone. N tiles, K classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sscl import writing
from sscl.data.csv_files import finite, read_rows, whole_number
from sscl.data.tiles import Tiles
from sscl.evaluate.metrics import FloatArray, IntArray
from sscl.words import first_twice, short, some

FILE = "predictions.csv"
_ROUNDING = 1e-6  # of a probability, to six digits


@dataclass(frozen=True, eq=False)
class TilePredictions:
    """What a classifier predicted for each tile.

    Attributes:
        ids: N names. classes: K names, in the order of the probabilities.
        labels, predictions: class indices, (N,).
        probabilities: (N, K), after temperature scaling; to six digits in a file.
        losses: cross-entropy of each tile, nats, (N,).
        votes: annotators who chose class 1, (N,), or None. groups: slide or patient of each tile, N, or None.
        folds: which fold held the tile out, from 1, (N,); None without cross-validation.
    """

    ids: tuple[str, ...]
    classes: tuple[str, ...]
    labels: IntArray
    predictions: IntArray
    probabilities: FloatArray
    losses: FloatArray
    votes: IntArray | None = None
    groups: tuple[str, ...] | None = None
    folds: IntArray | None = None

    def unlike(self, other: TilePredictions) -> str | None:
        """Return in words why two sets of predictions cannot be paired tile by tile; None where they can."""
        if self.ids != other.ids:
            shared = len(set(self.ids) & set(other.ids))
            order = ", in another order" if shared == len(self.ids) == len(other.ids) else ""
            return f"other tiles ({len(self.ids)} and {len(other.ids)}, {shared} of them in both{order})"
        if self.classes != other.classes:
            return f"other classes ({', '.join(self.classes)} and {', '.join(other.classes)})"
        differing = int((self.labels != other.labels).sum())
        if differing:
            return f"other labels (of {differing} of {len(self.ids)} tiles)"
        return None if self.groups == other.groups else "other groups of the same tiles"


def predictions_of(tiles: Tiles, probabilities: FloatArray) -> TilePredictions:
    """Return the predictions that probabilities (N, K) make for labelled tiles."""
    return TilePredictions(
        ids=tuple(tiles.ids),
        classes=tuple(tiles.classes),
        labels=tiles.labels,
        predictions=probabilities.argmax(1).astype(np.int64),
        probabilities=probabilities,
        losses=cross_entropy(tiles.labels, probabilities),
        votes=tiles.votes,
        groups=None if tiles.groups is None else tuple(tiles.groups.tolist()),
    )


def cross_entropy(labels: IntArray, probabilities: FloatArray) -> FloatArray:
    """Return the cross-entropy of each tile in nats, (N,)."""
    found: FloatArray = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-300))
    return found


def joined(parts: Sequence[TilePredictions], *, folds: Sequence[int], order: Sequence[str]) -> TilePredictions:
    """Return the held-out tiles of all folds as one.

    Args:
        parts: of the same classes, each with votes or none, and with groups or none. folds: the number of each part.
        order: ids in the order wanted, of these tiles at least.
    """
    ids = [name for part in parts for name in part.ids]
    place = {name: i for i, name in enumerate(order)}
    rows = np.array(sorted(range(len(ids)), key=lambda i: place[ids[i]]), dtype=np.int64)
    votes = [part.votes for part in parts if part.votes is not None]
    groups = [name for part in parts if part.groups is not None for name in part.groups]
    return TilePredictions(
        ids=tuple(ids[i] for i in rows),
        classes=parts[0].classes,
        labels=np.concatenate([part.labels for part in parts])[rows],
        predictions=np.concatenate([part.predictions for part in parts])[rows],
        probabilities=np.concatenate([part.probabilities for part in parts])[rows],
        losses=np.concatenate([part.losses for part in parts])[rows],
        votes=np.concatenate(votes)[rows] if votes else None,
        groups=tuple(groups[i] for i in rows) if groups else None,
        folds=np.repeat(folds, [len(part.ids) for part in parts])[rows],
    )


def write_predictions(path: Path, found: TilePredictions) -> None:
    """Write predictions.csv: id, label, prediction, probability_CLASS, loss; votes, group and fold where known."""
    header = ["id", "label", "prediction", *(f"probability_{name}" for name in found.classes), "loss"]
    extra = {"votes": found.votes, "group": found.groups, "fold": found.folds}
    header += [name for name, values in extra.items() if values is not None]
    rows = []
    for i, name in enumerate(found.ids):
        row = [name, found.classes[found.labels[i]], found.classes[found.predictions[i]]]
        row += [*(f"{p:.6f}" for p in found.probabilities[i].tolist()), f"{found.losses[i]:.6g}"]
        rows.append(row + [str(values[i]) for values in extra.values() if values is not None])
    writing.write_csv(path, header, rows)


def read_predictions(path: str | Path) -> TilePredictions:
    """Return what is in a predictions.csv.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column is missing, or a value is not as sscl writes it; with the line.
    """
    path = Path(path)
    table = read_rows(path, columns=("id", "label", "prediction", "loss"))
    columns = next(table)[1]
    for needed in ("id", "label", "prediction", "loss"):
        if needed not in columns:
            raise ValueError(f"{path}: no column {needed!r}; write it again with sscl eval")
    twice = first_twice(columns)
    if twice is not None:
        raise ValueError(f"{path}: column {short(twice)!r} comes twice; write it again with sscl eval")
    classes = tuple(name.removeprefix("probability_") for name in columns if name.startswith("probability_"))
    label_of = {name: i for i, name in enumerate(classes)}
    at = {name: columns.index(name) for name in columns}
    ids: list[str] = []
    groups: list[str] = []
    labels: dict[str, list[int]] = {"label": [], "prediction": []}
    numbers: dict[str, list[int]] = {name: [] for name in ("votes", "fold") if name in at}
    losses: list[float] = []
    probabilities: list[list[float]] = []
    for line, row in table:
        try:
            ids.append(row[at["id"]])
            for name, found in labels.items():
                found.append(_label(row[at[name]], label_of))
            for name, found in numbers.items():
                found.append(_whole(row[at[name]], name))
            losses.append(finite(row[at["loss"]], name="loss"))
            probabilities.append(class_probabilities(row, at, classes))
        except ValueError as error:
            raise ValueError(f"{path}: line {line}: {error}; write it again with sscl eval") from None
        if "group" in at:
            groups.append(row[at["group"]])
    if not ids:
        raise ValueError(f"{path}: has a header but no rows; write it again with sscl eval")
    return TilePredictions(
        ids=tuple(ids),
        classes=classes,
        labels=np.array(labels["label"], dtype=np.int64),
        predictions=np.array(labels["prediction"], dtype=np.int64),
        probabilities=np.array(probabilities),
        losses=np.array(losses),
        votes=np.array(numbers["votes"], dtype=np.int64) if "votes" in at else None,
        groups=tuple(groups) if "group" in at else None,
        folds=np.array(numbers["fold"], dtype=np.int64) if "fold" in at else None,
    )


def class_probabilities(row: Sequence[str], at: Mapping[str, int], classes: Sequence[str]) -> list[float]:
    """Return the probabilities in a row of predictions.csv, one for each class.

    Args:
        at: place of each column in the row.

    Raises:
        ValueError: one is not a number within 0 to 1, or they do not add up to 1.
    """
    found = [finite(row[at[f"probability_{name}"]], name="probability") for name in classes]
    if not all(0 <= number <= 1 for number in found):
        raise ValueError("a probability is not within 0 to 1")
    if abs(sum(found) - 1) > _ROUNDING * (len(classes) + 2):
        raise ValueError(f"the probabilities add up to {sum(found):.6g}, not to 1")
    return found


def _label(name: str, label_of: Mapping[str, int]) -> int:
    if name not in label_of:
        raise ValueError(f"{short(name)!r} is none of the classes ({some(list(label_of))})")
    return label_of[name]


def _whole(text: str, column: str) -> int:
    number = whole_number(text)
    if number is None:
        raise ValueError(f"{column} {short(text)!r} is no whole number from 0")
    return number
