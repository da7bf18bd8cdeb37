"""predictions.csv: what a classifier said of every tile; written and read here alone."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sscl.evaluate.metrics import FloatArray, IntArray


@dataclass(frozen=True)
class Predictions:
    """What a classifier said of each tile.

    Attributes:
        ids: N names. classes: K names, in the order of the probabilities. groups: slide or patient, N, or None.
        labels, predictions: class indices, (N,). losses: cross-entropy of each tile, nats, (N,).
        probabilities: (N, K), to six digits. votes: annotators who chose class 1, (N,), or None.
    """

    ids: tuple[str, ...]
    classes: tuple[str, ...]
    labels: IntArray
    predictions: IntArray
    losses: FloatArray
    groups: tuple[str, ...] | None = None
    probabilities: FloatArray | None = None
    votes: IntArray | None = None

    def unlike(self, other: Predictions) -> str | None:
        """Return why the two do not pair tile by tile, in words; None where they do."""
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


def read_predictions(path: str | Path) -> Predictions:
    """Return what eval wrote to predictions.csv: id, label, prediction, loss, probability_CLASS; votes, group if there.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column is missing, or a value in it is none.
    """
    with Path(path).open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        columns, rows = list(reader.fieldnames or ()), list(reader)
    for needed in ("id", "label", "prediction", "loss"):
        if needed not in columns:
            raise ValueError(f"{path}: has no column {needed!r}; write it again with sscl eval")
    classes = tuple(name.removeprefix("probability_") for name in columns if name.startswith("probability_"))
    index = {name: i for i, name in enumerate(classes)}
    try:
        found = Predictions(
            ids=tuple(row["id"] for row in rows),
            classes=classes,
            labels=np.array([index[row["label"]] for row in rows], dtype=np.int64),
            predictions=np.array([index[row["prediction"]] for row in rows], dtype=np.int64),
            losses=np.array([float(row["loss"]) for row in rows]),
            groups=tuple(row["group"] for row in rows) if "group" in columns else None,
            probabilities=np.array([[float(row[f"probability_{name}"]) for name in classes] for row in rows]),
            votes=np.array([int(row["votes"]) for row in rows], dtype=np.int64) if "votes" in columns else None,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: has a value that is none of sscl eval ({error}); write it again") from error
    shares = found.probabilities
    if shares is not None and not ((shares >= 0) & (shares <= 1)).all():  # NaN neither
        raise ValueError(f"{path}: has a probability that is not within 0 to 1; write it again with sscl eval")
    return found


def prediction_table(
    ids: Sequence[str],
    classes: Sequence[str],
    *,
    labels: IntArray,
    probabilities: FloatArray,
    losses: FloatArray,
    votes: IntArray | None = None,
    groups: Sequence[str] | None = None,
) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a predictions.csv, as `read_predictions` reads it.

    Args:
        ids: N names. classes: K names. labels: class indices, (N,). probabilities: (N, K). losses, votes, groups: (N,).
    """
    header = ["id", "label", "prediction", *(f"probability_{name}" for name in classes), "loss"]
    header += ["votes"] if votes is not None else []
    header += ["group"] if groups is not None else []
    rows = []
    for i, name in enumerate(ids):
        row = [name, classes[labels[i]], classes[int(probabilities[i].argmax())]]
        row += [*(f"{p:.6f}" for p in probabilities[i]), f"{losses[i]:.6g}"]
        row += [str(votes[i])] if votes is not None else []
        row += [str(groups[i])] if groups is not None else []
        rows.append(row)
    return header, rows
