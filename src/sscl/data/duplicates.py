"""Near-duplicate tiles: equal pixels, near-equal ones however turned, and overlapping views of one place.

Three searches, each with what it misses: equal pixels; a perceptual hash of 63 bits under the 8 turns and flips,
confirmed by the correlation of the thumbnails (misses crops); keypoints (`keypoints.py`), confirmed by one affine map
and the correlation under it (misses tiles with fewer than 5 keypoints). A similar hash or descriptor alone never makes
a pair: bland tissue looks the same everywhere.

N tiles. Cost: 8 N^2 / 2 products of 63 numbers for the hash, 2 N^2 of 256 for the neighbours, then N detections and
about 15 N alignments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from sscl.data import keypoints
from sscl.data.rows import Images
from sscl.data.threads import in_threads
from sscl.progress import Bar

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

# The side of the tiles searched, whatever side is trained on, so that what is found does not depend on that.
SIZE_PX = 128
# Part of every cache key: raise it when other pairs are found in the same tiles.
VERSION = 1

KINDS = ("exact", "hash", "keypoints", "embedding")  # most certain first
HASH_BITS = 63
SYMMETRIES = (
    "as it is",
    "mirrored left-right",
    "mirrored top-bottom",
    "turned 180°",
    "mirrored along the diagonal",
    "turned 90° clockwise",
    "turned 90° counter-clockwise",
    "mirrored along the other diagonal",
)

_INVERSE = (0, 1, 2, 3, 4, 6, 5, 7)
_THUMBNAIL_PX = 32
_HASH_SIDE = 8
_HASH_DISTANCE = 12  # bits
_THUMBNAIL_CORRELATION = 0.9
_FLAT = 3.0  # standard deviation of a thumbnail's luma, grey levels: below, there is nothing to compare
_KEYPOINTS = 5  # in unrelated tissue tiles, at most 3 or 4 agree on an affine map
_ALIGNED_CORRELATION = 0.8  # 0.97 and more for one place, below 0.4 for different ones
_LEAST_OVERLAP = 0.05
_BLOCK = 256  # rows compared with all others at a time


@dataclass(frozen=True)
class Pair:
    """Two tiles that show the same.

    Attributes:
        first, second: rows, first < second.
        kind: exact (equal pixels), hash, keypoints, or embedding (near by an encoder's features alone: only similar).
        score: correlation of the luma with the second tile laid on the first; for `embedding` pairs the cosine.
        movement: what was done to the first to get the second, in words.
        distance: bits of 63 in which the hashes differ; None for other kinds.
        keypoints: number of keypoints that agree on the movement; None for other kinds.
        overlap: fraction of the first that the second covers; None for `embedding`.
    """

    first: int
    second: int
    kind: str
    score: float
    movement: str
    distance: int | None = None
    keypoints: int | None = None
    overlap: float | None = 1.0


def find_pairs(
    images: Images,
    *,
    embeddings: Floats | None = None,
    min_cosine: float = 0.95,
    neighbours: int = 20,
    progress: bool = False,
) -> list[Pair]:
    """Return the pairs of tiles that show the same, by kind and then by row.

    Of n tiles with equal pixels only the first is compared with others: it is in n - 1 `exact` pairs.

    Args:
        images: uint8, (N, H, W, 3); `SIZE_PX` is what the thresholds were chosen at.
        embeddings: (N, C); their nearest neighbours are aligned by keypoints too. Pairs that cannot be aligned but
            have a cosine of `min_cosine` or more become `embedding` pairs.
        neighbours: how many nearest tiles, by keypoints and by embedding, are aligned with each tile.
        progress: show bars.

    Raises:
        ValueError: images or embeddings are not as above.
    """
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ValueError(f"images: expected uint8 (N, H, W, 3), got {images.dtype} {images.shape}")
    if embeddings is not None and (embeddings.ndim != 2 or len(embeddings) != len(images)):
        raise ValueError(f"embeddings: expected (N, C) with N = {len(images)}, got {embeddings.shape}")

    tiles = list(in_threads(lambda row: _read(images, row), range(len(images)), desc="read" if progress else None))
    exact = exact_pairs([tile.digest for tile in tiles])
    copies = {pair.second for pair in exact}
    originals = np.array([row for row in range(len(images)) if row not in copies], dtype=np.int64)
    if len(originals) < 2:
        return exact

    hashed = [
        replace(pair, first=int(originals[pair.first]), second=int(originals[pair.second]))
        for pair in hash_pairs(np.stack([tiles[row].thumbnail for row in originals]), progress=progress)
    ]
    known = {(pair.first, pair.second) for pair in hashed}
    # In an order that depends on the pixels alone, as do visual words and axes then: the tiles may come in any order.
    rows = np.array(sorted(originals, key=lambda row: tiles[row].digest), dtype=np.int64)
    candidates = _keypoint_candidates(tiles, rows, count=neighbours, progress=progress)
    cosine: dict[tuple[int, int], float] = {}
    if embeddings is not None:
        cosine = _near_embeddings(embeddings, rows, count=neighbours, progress=progress)
    tried = sorted((candidates | cosine.keys()) - known)
    aligned = in_threads(lambda pair: _align(images, tiles, pair), tried, desc="align" if progress else None)
    overlapping = [pair for pair in aligned if pair is not None]
    known |= {(pair.first, pair.second) for pair in overlapping}
    similar = [
        Pair(first, second, "embedding", value, "not aligned", overlap=None)
        for (first, second), value in sorted(cosine.items())
        if value >= min_cosine and (first, second) not in known
    ]
    return [*exact, *hashed, *overlapping, *similar]


@dataclass(frozen=True)
class _Tile:
    """What the search keeps of a tile: the digest of its pixels, its thumbnail, its keypoints."""

    digest: bytes
    thumbnail: Floats
    points: keypoints.Keypoints


def _read(images: Images, row: int) -> _Tile:
    pixels = np.ascontiguousarray(images[row])
    luma = luma_of(pixels)
    return _Tile(hashlib.sha256(pixels.tobytes()).digest(), thumbnail(luma), keypoints.detect(luma))


def _keypoint_candidates(tiles: Sequence[_Tile], rows: Indices, *, count: int, progress: bool) -> set[tuple[int, int]]:
    """Return the pairs among `rows` that are near by their keypoints, of tiles with enough of them."""
    points = [tiles[row].points for row in rows]
    upright, mirrored = keypoints.describe(points)
    enough = np.array([len(tile.places) >= _KEYPOINTS for tile in points])
    near = nearest_pairs(upright, mirrored, count=count, desc="nearest keypoints" if progress else None)
    return {_ordered(rows[i], rows[j]) for i, j, _ in near if enough[i] and enough[j]}


def _near_embeddings(embeddings: Floats, rows: Indices, *, count: int, progress: bool) -> dict[tuple[int, int], float]:
    """Return the cosine of each pair among `rows` that is near by its embeddings."""
    unit = embeddings[rows].astype(np.float32)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-9)
    near = nearest_pairs(unit, None, count=count, desc="nearest embeddings" if progress else None)
    return {_ordered(rows[i], rows[j]): value for i, j, value in near}


def _align(images: Images, tiles: Sequence[_Tile], pair: tuple[int, int]) -> Pair | None:
    """Return the pair if one affine map brings the second tile onto the first, else None."""
    # From the tile of the smaller digest, so that the order of the tiles does not matter.
    swapped = tiles[pair[0]].digest > tiles[pair[1]].digest
    one, other = pair[::-1] if swapped else pair
    found = keypoints.align(luma_of(images[one]), luma_of(images[other]), (tiles[one].points, tiles[other].points))
    if found is None or found.inliers < _KEYPOINTS or found.overlap < _LEAST_OVERLAP:
        return None
    if found.correlation < _ALIGNED_CORRELATION:
        return None
    if swapped:
        found = found.reversed(images.shape[1])
    return Pair(*pair, "keypoints", found.correlation, found.words, keypoints=found.inliers, overlap=found.overlap)


def exact_pairs(digests: Sequence[bytes]) -> list[Pair]:
    """Return a pair for each tile whose digest came before: the first tile with that digest, and this one."""
    first_of: dict[bytes, int] = {}
    pairs = []
    for row, digest in enumerate(digests):
        first = first_of.setdefault(digest, row)
        if first != row:
            pairs.append(Pair(first, row, "exact", 1.0, SYMMETRIES[0], distance=0))
    return pairs


def luma_of(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the luma of a tile, uint8 (H, W, 3) -> (H, W)."""
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(tile), cv2.COLOR_RGB2GRAY), dtype=np.uint8)


def thumbnail(luma: NDArray[np.uint8]) -> Floats:
    """Return a tile of 32 x 32 grey values with mean 0 and length 1, all 0 where it is flat."""
    small = cv2.resize(luma, (_THUMBNAIL_PX, _THUMBNAIL_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    small -= small.mean()
    if small.std() < _FLAT:
        return np.zeros_like(small)
    return small / np.linalg.norm(small)  # type: ignore[no-any-return]


def turned(values: Floats, symmetry: int) -> Floats:
    """Return square arrays (..., S, S) moved by one of `SYMMETRIES`: the diagonal first, then the mirrors."""
    values = values.swapaxes(-1, -2) if symmetry & 4 else values
    values = values[..., ::-1, :] if symmetry & 2 else values
    return values[..., ::-1] if symmetry & 1 else values


def hash_signs(thumbnails: Floats) -> Floats:
    """Return the hashes of thumbnails (N, S, S) under each symmetry, -1 or 1, float32 (8, N, 63).

    They are the signs of the lowest 8 x 8 cosine coefficients except the mean. Mirroring a tile changes the sign of
    every second one, and the diagonal swaps rows and columns, so one transform serves all 8.
    """
    low = np.stack([cv2.dct(tile)[:_HASH_SIDE, :_HASH_SIDE] for tile in thumbnails])
    alternating = np.where(np.arange(_HASH_SIDE) % 2, -1, 1).astype(np.float32)
    found = []
    for symmetry in range(len(SYMMETRIES)):
        moved = low.swapaxes(1, 2) if symmetry & 4 else low
        moved = moved * alternating[:, None] if symmetry & 2 else moved
        moved = moved * alternating if symmetry & 1 else moved
        found.append(moved.reshape(len(low), -1)[:, 1:])
    return np.where(np.stack(found) < 0, -1, 1).astype(np.float32)


def hash_pairs(thumbnails: Floats, *, progress: bool = False) -> list[Pair]:
    """Return the pairs of thumbnails (N, 32, 32) with similar hashes and a high correlation, with the best symmetry.

    The product of two hashes of -1 and 1 is 63 - 2 x their distance, so the search is a matrix product.
    """
    full = np.flatnonzero((thumbnails != 0).any((1, 2)))
    if len(full) < 2:
        return []
    tiles = thumbnails[full]
    signs = hash_signs(tiles)
    best: dict[tuple[int, int], Pair] = {}
    for start in _blocks(len(tiles), desc="hashes" if progress else None):
        block = signs[0, start : start + _BLOCK]
        for symmetry, inverse in enumerate(_INVERSE):
            product = block @ signs[symmetry, start:].T
            i, j = np.nonzero(product >= HASH_BITS - 2 * _HASH_DISTANCE)
            later = j > i
            i, j = i[later], j[later]
            for part in np.array_split(np.arange(len(i)), len(i) // 8192 + 1):
                a, b = i[part], j[part]
                score = (tiles[start + a] * turned(tiles[start + b], symmetry)).sum((1, 2))
                for k in np.flatnonzero(score >= _THUMBNAIL_CORRELATION):
                    key = int(full[start + a[k]]), int(full[start + b[k]])
                    if key not in best or score[k] > best[key].score:
                        bits = int(HASH_BITS - product[a[k], b[k]]) // 2
                        best[key] = Pair(*key, "hash", min(1.0, float(score[k])), SYMMETRIES[inverse], distance=bits)
    return [best[key] for key in sorted(best)]


def nearest_pairs(
    vectors: Floats, others: Floats | None, *, count: int, desc: str | None = None
) -> list[tuple[int, int, float]]:
    """Return each tile's nearest tiles by cosine, `count` of them, as (first, second, cosine) with first < second.

    Args:
        vectors: unit length, (N, D). others: the same of the mirrored tiles, (N, D); the nearer of the two counts.
        desc: name of a progress bar; None = no bar.
    """
    found: dict[tuple[int, int], float] = {}
    count = min(count, len(vectors) - 1)
    for start in _blocks(len(vectors), desc=desc) if count > 0 else ():
        block = vectors[start : start + _BLOCK]
        cosine = block @ vectors.T
        if others is not None:
            np.maximum(cosine, block @ others.T, out=cosine)
        diagonal = np.arange(len(block))
        cosine[diagonal, start + diagonal] = -np.inf
        nearest = np.argpartition(cosine, -count, axis=1)[:, -count:]
        for row, columns in enumerate(nearest):
            for column in columns:
                key = min(start + row, int(column)), max(start + row, int(column))
                found[key] = float(cosine[row, column])
    return [(*key, found[key]) for key in sorted(found)]


def clusters_of(count: int, pairs: Iterable[tuple[int, int]]) -> Indices:
    """Return the cluster (connected component) of each tile, (count,): 0 is that of tile 0, numbered in tile order."""
    first, second = np.array(list(pairs), dtype=np.int64).reshape(-1, 2).T
    from scipy.sparse import coo_array  # training starts without it
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    _, labels = connected_components(links, directed=False)
    _, at, cluster = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(at))[cluster].astype(np.int64)


def join_groups(clusters: Indices, groups: NDArray[np.str_] | None, *, ids: Sequence[str]) -> NDArray[np.str_]:
    """Return groups (N,) in which tiles of one cluster, and tiles of one given group, are together.

    A group is named after the given group, or the id, of its first tile.
    """
    names = np.array(ids, dtype=np.str_) if groups is None else groups
    links = []
    for values in (clusters, names):
        _, first, of = np.unique(values, return_index=True, return_inverse=True)
        links += list(zip(first[of].tolist(), range(len(ids)), strict=True))
    joined = clusters_of(len(ids), links)
    _, first = np.unique(joined, return_index=True)
    return names[first[joined]]


def _ordered(first: np.int64, second: np.int64) -> tuple[int, int]:
    return min(int(first), int(second)), max(int(first), int(second))


def _blocks(count: int, *, desc: str | None) -> Iterator[int]:
    """Yield the first row of each block, with a progress bar."""
    with Bar(count, desc=desc, unit="tile") as bar:
        for start in range(0, count, _BLOCK):
            yield start
            bar.update(min(_BLOCK, count - start))
