"""Which tiles may show one place? Keypoints vote: each for the tiles with the keypoints most like it.

Trees of cells take the place of comparing all with all: each cell is split among codes of its own, drawn at random,
until it is small; what is alike mostly ends in one cell. Several trees make up for what one tears apart. The cost grows
with n log n. Votes count together where they agree on a mirror image, a turn and a zoom (Jegou et al., IJCV 2010).

n keypoints of all pictures, T trees, D parts of a keypoint's code (see `keypoints.Coder`). A keypoint's number is its
row; its mirror image has n more.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sscl.data.keypoints import Collected, mirrored_codes
from sscl.data.threads import in_threads
from sscl.progress import Bar

Codes = NDArray[np.int8]
Indices = NDArray[np.int64]
Rows = NDArray[np.int32]

_TREES = 6
_CELL = 768  # keypoints, upright and mirrored ones
_WORDS = 32  # parts of a split, at most
_LEAST = 5  # votes that agree
_TURNS, _ZOOMS = 24, 12  # bins: 15 degrees, half an octave
_NEAR = 2, 1  # bins to either side that agree: 37 degrees and 3/4 of an octave
_BLOCK = 256  # pictures


def candidates(points: Collected, *, count: int, desc: str | None = None) -> Indices:
    """Return pairs of a picture and a tile that share keypoints, (m, 2), sorted: for each picture up to `count`.

    All pictures vote, for the tiles as they are; for a squeezed one a quarter of `count` is returned.
    """
    if points.tiles < 2 or len(points.codes) < 2:
        return np.empty((0, 2), np.int64)
    voted = np.full((_TREES, len(points.codes)), -1, np.int32)
    for tree, of in enumerate(voted):
        _vote(points, of, seed=tree, desc=desc)
    starts = range(0, points.count, _BLOCK)
    blocks = in_threads(
        lambda start: _best(points, voted, (start, min(start + _BLOCK, points.count)), count=count), starts, desc=None
    )
    return np.concatenate(list(blocks))


def _vote(points: Collected, voted: Rows, *, seed: int, desc: str | None) -> None:
    """Write the keypoint of another tile that is most like each one in its cell of one tree; -1 = none there."""
    rng = np.random.default_rng(seed)
    codes, shown = points.codes, points.tile_of[points.pictures]
    targets = points.first[points.tiles]  # those of the tiles as they are, which come first
    rows = np.arange(len(codes) + targets, dtype=np.int32)
    with Bar(len(rows), desc=desc, unit="keypoint") as bar:
        for cell in _cells(codes, rows, rng):
            asking, asked = cell[cell < len(codes)], cell[cell % len(codes) < targets]
            if len(asking) and len(asked):
                likeness = _floats(codes, asking) @ _floats(codes, asked).T
                likeness[shown[asking][:, None] == shown[asked % len(codes)]] = -np.inf
                nearest = likeness.argmax(1)
                found = likeness[np.arange(len(asking)), nearest] > -np.inf
                voted[asking[found]] = asked[nearest[found]]
            bar.update(len(cell))


def _cells(codes: Codes, rows: Rows, rng: np.random.Generator) -> Iterator[Rows]:
    if len(rows) <= _CELL:
        yield rows
        return
    words = _floats(codes, rng.choice(rows, min(_WORDS, 2 * len(rows) // _CELL), replace=False))
    blocks = np.array_split(rows, len(rows) // 65536 + 1)
    of = np.concatenate([(_floats(codes, block) @ words.T).argmax(1).astype(np.int8) for block in blocks])
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


def _best(points: Collected, voted: Rows, block: tuple[int, int], *, count: int) -> Indices:
    """Return the tiles with most votes that agree, up to `count` for each picture of a block, (m, 2)."""
    first, end = points.first[block[0]], points.first[block[1]]
    of = voted[:, first:end].ravel()
    asking = np.tile(np.arange(first, end), len(voted))[of >= 0]
    of = of[of >= 0]
    mirrored, asked = of >= len(points.codes), of % len(points.codes)
    key = (points.pictures[asking].astype(np.int64) * points.tiles + points.pictures[asked]) * 2 + mirrored
    pairs, group, number = np.unique(key, return_inverse=True, return_counts=True)
    several = number >= _LEAST
    kept = several[group]
    group = (np.cumsum(several) - 1)[group[kept]]
    pairs, asking, asked, mirrored = pairs[several], asking[kept], asked[kept], mirrored[kept]
    votes = _agreeing(points, asking, asked, mirrored, group, len(pairs))
    # In a small set many votes fall on each tile by chance.
    cast = np.bincount(pairs // (2 * points.tiles), weights=number[several], minlength=points.count)
    chance = np.minimum(cast // (8 * (points.tiles - 1)), _LEAST)
    likely = votes >= _LEAST + chance[pairs // (2 * points.tiles)]
    pairs, votes = pairs[likely] // 2, votes[likely]
    picture = pairs // points.tiles
    order = np.lexsort((-votes, picture))
    _, start, which = np.unique(picture[order], return_index=True, return_inverse=True)
    most = np.where(picture[order] < points.tiles, count, count / 4)
    best = pairs[order[np.arange(len(order)) - start[which] < most]]
    return np.stack([best // points.tiles, best % points.tiles], 1)


def _agreeing(
    points: Collected, asking: Indices, asked: Rows, mirrored: NDArray[np.bool_], group: Indices, groups: int
) -> Indices:
    """Return the largest number of votes of each group that agree on a turn and a zoom, (groups,)."""
    turn = points.angles[asked] * np.where(mirrored, -1, 1) - points.angles[asking]
    zoom = points.octaves[asked] - points.octaves[asking]
    turns = (turn // (360 / _TURNS)).astype(np.int64) % _TURNS
    zooms = np.clip(zoom * 2 + _ZOOMS // 2, 0, _ZOOMS - 1).astype(np.int64)
    bins = np.bincount((group * _TURNS + turns) * _ZOOMS + zooms, minlength=groups * _TURNS * _ZOOMS)
    bins = bins.reshape(groups, _TURNS, _ZOOMS).astype(np.int16)
    agree = np.sum([np.roll(bins, step, axis=1) for step in range(-_NEAR[0], _NEAR[0] + 1)], axis=0)
    padded = np.pad(agree, ((0, 0), (0, 0), (_NEAR[1], _NEAR[1])))
    agree = np.sum([padded[:, :, step : step + _ZOOMS] for step in range(2 * _NEAR[1] + 1)], axis=0)
    return np.asarray(agree.reshape(groups, -1).max(1, initial=0), np.int64)
