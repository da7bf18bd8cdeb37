"""Which tiles may show one place? Keypoints vote: each for the tiles with the keypoints most like it.

Trees of cells take the place of comparing all with all: each cell is split among descriptors of its own, drawn at
random, until it is small; what is alike mostly ends in one cell. Several trees make up for what one tears apart. The
cost grows with n log n.

n keypoints of all tiles, D parts of a descriptor's code (see `keypoints.Coder`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sscl.data.keypoints import Collected, mirrored_codes
from sscl.progress import Bar

Codes = NDArray[np.int8]
Indices = NDArray[np.int64]
Rows = NDArray[np.int32]

_TREES = 6
_CELL = 768  # keypoints, upright and mirrored ones
_WORDS = 32  # parts of a split, at most


def candidates(points: Collected, *, count: int, desc: str | None = None) -> Indices:
    """Return pairs of tiles that share keypoints, (m, 2), first < second, sorted: for each tile up to `count`.

    Args:
        desc: name of a progress bar; None = no bar.
    """
    if len(points.codes) < 2:
        return np.empty((0, 2), np.int64)
    votes = np.concatenate([_votes(points, seed=tree, desc=desc) for tree in range(_TREES)])
    votes.sort()
    # A pair with v votes is there v - 1 times; most pairs have one vote, which says nothing.
    pairs, number = np.unique(votes[1:][votes[1:] == votes[:-1]], return_counts=True)
    return _best(np.stack([pairs // points.count, pairs % points.count], 1), number, count=count)


def _votes(points: Collected, *, seed: int, desc: str | None) -> Indices:
    """Return the votes of one tree: first tile x number of tiles + second tile, for the best match of each keypoint."""
    rng = np.random.default_rng(seed)
    codes, tiles = points.codes, points.tiles
    found = []
    with Bar(2 * len(codes), desc=desc, unit="keypoint") as bar:
        for cell in _cells(codes, np.arange(2 * len(codes), dtype=np.int32), rng):
            upright = cell[cell < len(codes)]
            if len(upright):
                one, other = tiles[upright], tiles[cell % len(codes)]
                likeness = _floats(codes, upright) @ _floats(codes, cell).T
                likeness[one[:, None] == other] = -np.inf
                nearest = likeness.argmax(1)
                voted = np.sort(np.stack([one, other[nearest]], 1)[likeness.max(1) > -np.inf], axis=1)
                found.append(voted[:, 0].astype(np.int64) * points.count + voted[:, 1])
            bar.update(len(cell))
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _cells(codes: Codes, rows: Rows, rng: np.random.Generator) -> Iterator[Rows]:
    """Yield the cells of rows: those from n on are the mirror images of the first n."""
    if len(rows) <= _CELL:
        yield rows
        return
    words = _floats(codes, rng.choice(rows, min(_WORDS, 2 * len(rows) // _CELL), replace=False))
    blocks = np.array_split(rows, len(rows) // 65536 + 1)
    of = np.concatenate([(_floats(codes, block) @ words.T).argmax(1) for block in blocks])
    parts = [rows[of == word] for word in range(len(words))]
    if max(map(len, parts)) == len(rows):  # all alike: a cell as it is, cut
        yield from (rows[start : start + _CELL] for start in range(0, len(rows), _CELL))
        return
    for part in parts:
        yield from _cells(codes, part, rng)


def _floats(codes: Codes, rows: Rows) -> NDArray[np.float32]:
    """Return the codes of rows, of the mirror images from n on, (len(rows), D)."""
    found = codes[rows % len(codes)]
    mirrored = rows >= len(codes)
    found[mirrored] = mirrored_codes(found[mirrored])
    return found.astype(np.float32)


def _best(pairs: Indices, votes: Indices, *, count: int) -> Indices:
    """Return the pairs that are among the `count` with most votes of either tile."""
    both = np.concatenate([pairs, pairs[:, ::-1]])
    order = np.lexsort((np.tile(-votes, 2), both[:, 0]))
    _, first, of = np.unique(both[order, 0], return_index=True, return_inverse=True)
    rank = np.arange(len(order)) - first[of]
    kept = np.zeros(len(pairs), np.bool_)
    kept[order[rank < count] % len(pairs)] = True
    return pairs[kept]
