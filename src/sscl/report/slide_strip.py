"""The tiles of a slide that are worth a look first: those the classifier is least and most certain of.

n tiles, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST, MOST = 12, 8  # tiles that the classifier is least certain of; most certain of, of each class
MOST_CLASSES = 6  # that the strip has tiles of: those with the most tiles
APART = 3  # footprints between tiles of one group, at least: neighbours show the same
_SHARE = 20  # only the first of this many tiles of a kind are looked at, or twice as many as are shown
_LOOKED_AT = 5_000  # at most


@dataclass(frozen=True)
class Group:
    """Tiles that the strip shows together. label: the class they are of; None: the least certain ones."""

    label: int | None
    rows: tuple[int, ...]


def groups(probabilities: NDArray[np.float32], xy: NDArray[np.int32], footprint: float) -> list[Group]:
    """Return the groups of the strip: the least certain tiles, then the most certain ones of each class.

    Args:
        probabilities: (n, K). xy: corners, pixels of level 0, (n, 2). footprint: side of a tile there.
    """
    if not len(probabilities):
        return []
    confidence, predicted = probabilities.max(1), probabilities.argmax(1)
    order = np.argsort(confidence, kind="stable")
    found = [Group(None, _apart(order, xy, APART * footprint, LEAST))]
    labels, sizes = np.unique(predicted, return_counts=True)
    for label in labels[np.argsort(-sizes, kind="stable")][:MOST_CLASSES].tolist():
        rows = order[::-1][predicted[order[::-1]] == label]
        found.append(Group(label, _apart(rows, xy, APART * footprint, MOST)))
    return found


def strip_rows(probabilities: NDArray[np.float32], xy: NDArray[np.int32], footprint: float) -> list[int]:
    """Return the tiles of all groups, each once, in order: those whose pictures the page wants."""
    return sorted({row for group in groups(probabilities, xy, footprint) for row in group.rows})


def _apart(rows: NDArray[np.intp], xy: NDArray[np.int32], distance: float, most: int) -> tuple[int, ...]:
    """Return some of the first rows, of which no two are nearer than `distance`; where those are few, others too."""
    chosen: list[int] = []
    looked_at = rows[: min(_LOOKED_AT, max(2 * most, len(rows) // _SHARE))].tolist()
    for row in looked_at:
        if len(chosen) == most:
            break
        if all(np.abs(xy[row] - xy[other]).max() >= distance for other in chosen):
            chosen.append(row)
    for row in looked_at:
        if len(chosen) == most:
            break
        if row not in chosen:
            chosen.append(row)
    return tuple(row for row in looked_at if row in chosen)
