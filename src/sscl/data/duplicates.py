"""Near-duplicate tiles: equal pixels, near-equal ones however turned, and overlapping views of one place.

Three searches, each with what it misses: equal pixels; a perceptual hash of 63 bits under the 8 turns and flips,
confirmed by the correlation of the thumbnails (misses crops); keypoints, which vote for tiles (`voting`) that are then
aligned (`keypoints`) and compared (misses tiles with fewer than 5 keypoints). A similar hash or descriptor alone never
makes a pair: bland tissue looks the same everywhere. Blank tiles are not compared.

N tiles. Cost: 8 N^2 / 2 products of 63 numbers for the hash, N detections, and up to 40 N alignments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # of scikit-learn

from sscl.data import keypoints, outliers, voting
from sscl.data.rows import Images
from sscl.data.threads import in_threads
from sscl.progress import Bar

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Thumbnails = NDArray[np.float32] | NDArray[np.float16]

# The side of the tiles searched, whatever side is trained on, so that what is found does not depend on that.
SIZE_PX = 128
# Part of every cache key: raise it when other pairs are found in the same tiles.
VERSION = 2

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
_HASH_DISTANCE = 10  # bits
_THUMBNAIL_CORRELATION = 0.95  # blurred tiles of different places reach 0.947
_FLAT = 3.0  # standard deviation of a thumbnail's luma, grey levels: below, there is nothing to compare
_CONFIDENCE = (-13.5, 2.4, 12.1)  # logistic regression: constant, log of the inliers, correlation
_LEAST_CONFIDENCE = 0.5
_WHOLE = 0.9  # overlap from which on mean colours can be compared
_OTHER_COLOUR = 6.0  # grey levels of a channel: JPEG changes the mean of a tile by less than one
_LEARNED = 512  # tiles that the codes of keypoints are learned from
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
        confidence: how probable it is that both show one place, by `scripts/audit_recall`; None for `embedding`.
        distance: bits of 63 in which the hashes differ; None for other kinds.
        keypoints: number of keypoints that agree on the movement; None for other kinds.
        overlap: fraction of the first that the second covers; None for `embedding`.
        recoloured: both show nearly the same, and their mean colours differ.
    """

    first: int
    second: int
    kind: str
    score: float
    movement: str
    confidence: float | None = 1.0
    distance: int | None = None
    keypoints: int | None = None
    overlap: float | None = 1.0
    recoloured: bool = False

    @property
    def reason(self) -> str:
        """What kind of copy the second is, and the evidence, in words."""
        if self.kind == "exact":
            return "identical pixels"
        if self.kind == "embedding":
            return "similar features; not aligned"
        colours = ", in other colours" if self.recoloured else ""
        if self.kind == "hash":
            how = colours or ", compressed or resized again"
            return f"the same picture, {self.movement}{how}: r {self.score:.2f}, {self.distance} of 63 bits differ"
        shared = f"{100 * (self.overlap or 0):.0f}% of the first"
        return f"one place, {self.movement}{colours}: {self.keypoints} keypoints agree, r {self.score:.2f} on {shared}"


def find_pairs(
    images: Images,
    *,
    embeddings: Floats | None = None,
    min_cosine: float = 0.95,
    neighbours: int = 40,
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

    with threadpool_limits(
        1
    ):  # many small products in threads of our own: a library's threads would wait for each other
        return _find(images, embeddings, min_cosine=min_cosine, neighbours=neighbours, progress=progress)


def _find(
    images: Images, embeddings: Floats | None, *, min_cosine: float, neighbours: int, progress: bool
) -> list[Pair]:
    tiles = list(in_threads(lambda row: _read(images, row), range(len(images)), desc="read" if progress else None))
    compared = [row for row, tile in enumerate(tiles) if not tile.blank]
    exact = [
        replace(pair, first=compared[pair.first], second=compared[pair.second])
        for pair in exact_pairs([tiles[row].digest for row in compared])
    ]
    originals = np.array(sorted(set(compared) - {pair.second for pair in exact}), dtype=np.int64)
    if len(originals) < 2:
        return exact

    hashed = [
        replace(pair, first=int(originals[pair.first]), second=int(originals[pair.second]))
        for pair in hash_pairs(np.stack([tiles[row].thumbnail for row in originals]), progress=progress)
    ]
    known = {(pair.first, pair.second) for pair in hashed}
    # In an order that depends on the pixels alone, as do axes and cells then: the tiles may come in any order.
    digests = [tile.digest for tile in tiles]
    rows = np.array(sorted(originals, key=digests.__getitem__), dtype=np.int64)
    colours = np.stack([tile.colour for tile in tiles])
    del tiles
    points = _keypoints(images, rows, progress=progress)
    near = voting.candidates(points, count=neighbours, desc="vote" if progress else None)
    cosine: dict[tuple[int, int], float] = {}
    if embeddings is not None:
        cosine = _near_embeddings(embeddings, rows, count=neighbours, progress=progress)
    tried = np.unique(np.concatenate([near, np.array(list(cosine), np.int64).reshape(-1, 2)]), axis=0)
    aligned = in_threads(
        lambda pair: _align(images, points, rows, pair), list(tried), desc="align" if progress else None
    )
    overlapping = [pair for pair in aligned if pair is not None and (pair.first, pair.second) not in known]
    overlapping.sort(key=lambda pair: (pair.first, pair.second))
    known |= {(pair.first, pair.second) for pair in overlapping}
    hashed, overlapping = ([_with_colours(pair, colours) for pair in pairs] for pairs in (hashed, overlapping))
    similar = [
        Pair(*ends, "embedding", value, "not aligned", confidence=None, overlap=None)
        for ends, value in sorted((_ordered(rows[i], rows[j]), value) for (i, j), value in cosine.items())
        if value >= min_cosine and ends not in known
    ]
    return [*exact, *hashed, *overlapping, *similar]


@dataclass(frozen=True)
class _Tile:
    """What the search keeps of a tile; digest: of its pixels."""

    digest: bytes
    thumbnail: NDArray[np.float16]
    colour: Floats
    blank: bool


def _read(images: Images, row: int) -> _Tile:
    pixels = np.ascontiguousarray(images[row])
    small = thumbnail(luma_of(pixels)).astype(np.float16)
    colour = pixels.mean((0, 1), dtype=np.float32)
    return _Tile(hashlib.sha256(pixels.tobytes()).digest(), small, colour, outliers.is_blank(pixels))


def _with_colours(pair: Pair, colours: Floats) -> Pair:
    """Return the pair with `recoloured` set, by the mean colour of each tile, (N, 3)."""
    whole = pair.overlap is not None and pair.overlap > _WHOLE
    differs = np.abs(colours[pair.first] - colours[pair.second]).max() > _OTHER_COLOUR
    return replace(pair, recoloured=bool(whole and differs))


def _keypoints(images: Images, rows: Indices, *, progress: bool) -> keypoints.Collected:
    """Return the keypoints of rows, with codes learned from the first of them."""
    sample = in_threads(lambda row: keypoints.detect(luma_of(images[row]))[1], rows[:_LEARNED].tolist(), desc=None)
    coder = keypoints.learn(np.concatenate(list(sample)))
    found = keypoints.Collected(len(rows))
    desc = "keypoints" if progress else None
    for points in in_threads(lambda row: keypoints.keypoints_of(luma_of(images[row]), coder), rows.tolist(), desc=desc):
        found.add(points)
    return found


def _near_embeddings(embeddings: Floats, rows: Indices, *, count: int, progress: bool) -> dict[tuple[int, int], float]:
    """Return the cosine of each pair of places in `rows` that is near by its embeddings."""
    unit = embeddings[rows].astype(np.float32)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-9)
    near = nearest_pairs(unit, None, count=count, desc="nearest embeddings" if progress else None)
    return {(i, j): value for i, j, value in near}


def _align(images: Images, points: keypoints.Collected, rows: Indices, pair: Indices) -> Pair | None:
    """Return the pair of places in `rows` if one map brings the second tile onto the first, else None."""
    one, other = (int(rows[place]) for place in pair)
    ends = points[int(pair[0])], points[int(pair[1])]
    found = keypoints.align(luma_of(images[one]), luma_of(images[other]), ends)
    if found is None or found.overlap < _LEAST_OVERLAP:
        return None
    confidence = confidence_of(found.inliers, found.correlation)
    if confidence < _LEAST_CONFIDENCE:
        return None
    if one > other:
        found = found.reversed(images.shape[1])
    return Pair(
        *_ordered(one, other),
        "keypoints",
        found.correlation,
        found.words,
        confidence=confidence,
        keypoints=found.inliers,
        overlap=found.overlap,
    )


def confidence_of(inliers: int, correlation: float) -> float:
    """Return how probable it is that two aligned tiles show one place, as on the beds of `scripts/audit_recall`."""
    logit = _CONFIDENCE[0] + _CONFIDENCE[1] * np.log(inliers) + _CONFIDENCE[2] * correlation
    return float(1 / (1 + np.exp(-logit)))


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


def turned(values: Thumbnails, symmetry: int) -> Thumbnails:
    """Return square arrays (..., S, S) moved by one of `SYMMETRIES`: the diagonal first, then the mirrors."""
    values = values.swapaxes(-1, -2) if symmetry & 4 else values
    values = values[..., ::-1, :] if symmetry & 2 else values
    return values[..., ::-1] if symmetry & 1 else values


def hash_signs(thumbnails: Thumbnails) -> Floats:
    """Return the hashes of thumbnails (N, S, S) under each symmetry, -1 or 1, float32 (8, N, 63).

    They are the signs of the lowest 8 x 8 cosine coefficients except the mean. Mirroring a tile changes the sign of
    every second one, and the diagonal swaps rows and columns, so one transform serves all 8.
    """
    low = np.stack([cv2.dct(tile.astype(np.float32))[:_HASH_SIDE, :_HASH_SIDE] for tile in thumbnails])
    alternating = np.where(np.arange(_HASH_SIDE) % 2, -1, 1).astype(np.float32)
    found = []
    for symmetry in range(len(SYMMETRIES)):
        moved = low.swapaxes(1, 2) if symmetry & 4 else low
        moved = moved * alternating[:, None] if symmetry & 2 else moved
        moved = moved * alternating if symmetry & 1 else moved
        found.append(moved.reshape(len(low), -1)[:, 1:])
    return np.where(np.stack(found) < 0, -1, 1).astype(np.float32)


def hash_pairs(thumbnails: Thumbnails, *, progress: bool = False) -> list[Pair]:
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
                score = (tiles[start + a].astype(np.float32) * turned(tiles[start + b], symmetry)).sum((1, 2))
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


def _ordered(first: int | np.int64, second: int | np.int64) -> tuple[int, int]:
    return min(int(first), int(second)), max(int(first), int(second))


def _blocks(count: int, *, desc: str | None) -> Iterator[int]:
    """Yield the first row of each block, with a progress bar."""
    with Bar(count, desc=desc, unit="tile") as bar:
        for start in range(0, count, _BLOCK):
            yield start
            bar.update(min(_BLOCK, count - start))
