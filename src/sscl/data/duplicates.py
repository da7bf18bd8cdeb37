"""Near-duplicate tiles: equal pixels, near-equal ones however turned, and overlapping views of one place.

Three searches, each with what it misses: equal pixels; a perceptual hash under the 8 turns and flips, confirmed by the
correlation of the thumbnails (`hashes`; misses crops); keypoints, which vote for tiles (`voting`) that are then aligned
(`keypoints`) and compared (misses tiles with fewer than 5 keypoints). A similar hash or descriptor alone never makes a
pair: bland tissue looks the same everywhere. Blank tiles are not compared.

N tiles. Cost: N^2 / 2 products of 80 numbers for the hash, N detections (and 3 N of squeezed tiles), N log N for the
votes, and up to `neighbours` alignments for each detection, some 5 a tile in colon tissue.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import cv2
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # of scikit-learn

from sscl.data import hashes, keypoints, outliers, squeezes, voting
from sscl.data.groups import Groups
from sscl.data.rows import Images
from sscl.data.threads import blocks, in_threads

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

# The side of the tiles searched, whatever side is trained on, so that what is found does not depend on that.
SIZE_PX = 128
# Part of every cache key: raise it when other pairs are found in the same tiles.
VERSION = 3
# Up to so many tiles, copies stretched by about 2 are searched too, which takes twice the time and memory.
STRETCHED_TILES = 30_000

KINDS = ("exact", "hash", "keypoints", "embedding")  # most certain first
_CONFIDENCE = (-13.5, 2.4, 12.1)  # logistic regression: constant, log of the inliers, correlation
_LEAST_CONFIDENCE = 0.5
_AS_SIMILAR = 100  # pairs
_MISSED = 0.01  # of altered copies, by `scripts/audit_recall`
_SURE = 0.95  # no other picture of the two tiles is tried
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
        confidence: how probable it is that both show one place, by `scripts/audit_recall`; for `embedding` pairs see
            `confidence_by_cosine`.
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
    confidence: float = 1.0
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
            return f"similar features, cosine {self.score:.2f}, but no map lays one on the other"
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
    neighbours: int = 20,
    stretched: bool | None = None,
    progress: bool = False,
) -> list[Pair]:
    """Return the pairs of tiles that show the same, by kind and then by row.

    Of n tiles with equal pixels only the first is compared with others: it is in n - 1 `exact` pairs.

    Args:
        images: uint8, (N, H, W, 3); `SIZE_PX` is what the thresholds were chosen at.
        embeddings: (N, C); their nearest neighbours are aligned by keypoints too. Pairs that cannot be aligned but
            have a cosine of `min_cosine` or more become `embedding` pairs.
        neighbours: how many nearest tiles, by keypoints and by embedding, are aligned with each tile at most.
        stretched: search copies stretched by about 2 too; None = where there are up to `STRETCHED_TILES`.

    Raises:
        ValueError: images or embeddings are not as above.
    """
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ValueError(f"images: expected uint8 (N, H, W, 3), got {images.dtype} {images.shape}")
    if embeddings is not None and (embeddings.ndim != 2 or len(embeddings) != len(images)):
        raise ValueError(f"embeddings: expected (N, C) with N = {len(images)}, got {embeddings.shape}")
    stretched = len(images) <= STRETCHED_TILES if stretched is None else stretched
    with threadpool_limits(1):  # many small products in threads of our own: a library's threads would wait
        tiles = list(in_threads(lambda row: _read(images, row), range(len(images)), desc="read" if progress else None))
        compared = [row for row, tile in enumerate(tiles) if not tile.blank]
        exact = exact_pairs({row: tiles[row].digest for row in compared})
        originals = np.array(sorted(set(compared) - {pair.second for pair in exact}), dtype=np.int64)
        if len(originals) < 2:
            return exact
        hashed = _by_hash(tiles, originals, progress=progress)
        known = {(pair.first, pair.second) for pair in hashed}
        # In an order that depends on the pixels alone, as do axes and cells then: the tiles may come in any order.
        digests = [tile.digest for tile in tiles]
        rows = np.array(sorted(originals, key=digests.__getitem__), dtype=np.int64)
        colours = np.stack([tile.colour for tile in tiles])
        del tiles
        points = _keypoints(images, rows, squeezed=stretched, progress=progress)
        tried = voting.candidates(points, count=neighbours, desc="vote" if progress else None)
        cosine: dict[tuple[int, int], float] = {}
        if embeddings is not None:
            cosine = _near_embeddings(embeddings, rows, count=neighbours, progress=progress)
            tried = np.concatenate([tried, np.array(list(cosine), np.int64).reshape(-1, 2)])
        overlapping = _aligned(images, points, rows, tried, known, progress=progress)
    known |= {(pair.first, pair.second) for pair in overlapping}
    hashed, overlapping = ([_with_colours(pair, colours) for pair in pairs] for pairs in (hashed, overlapping))
    near = sorted((_ordered(rows[i], rows[j]), value) for (i, j), value in cosine.items())
    similar = _by_embedding(near, known, min_cosine=min_cosine)
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
    small = hashes.thumbnail(luma_of(pixels)).astype(np.float16)
    colour = pixels.mean((0, 1), dtype=np.float32)
    return _Tile(hashlib.sha256(pixels.tobytes()).digest(), small, colour, outliers.is_blank(pixels))


def _with_colours(pair: Pair, colours: Floats) -> Pair:
    """Return the pair with `recoloured` set, by the mean colour of each tile, (N, 3)."""
    whole = pair.overlap is not None and pair.overlap > _WHOLE
    differs = np.abs(colours[pair.first] - colours[pair.second]).max() > _OTHER_COLOUR
    return replace(pair, recoloured=bool(whole and differs))


def _by_hash(tiles: Sequence[_Tile], originals: Indices, *, progress: bool) -> list[Pair]:
    thumbnails = np.stack([tiles[row].thumbnail for row in originals])
    return [
        Pair(
            int(originals[same.first]),
            int(originals[same.second]),
            "hash",
            same.score,
            same.movement,
            distance=same.distance,
        )
        for same in hashes.same_pictures(thumbnails, desc="hashes" if progress else None)
    ]


def _keypoints(images: Images, rows: Indices, *, squeezed: bool, progress: bool) -> keypoints.Collected:
    """Return the keypoints of rows, with codes learned from the first of them, then those of the squeezed tiles."""

    def detect(row: int) -> tuple[keypoints.Floats, keypoints.Bytes]:
        return keypoints.detect(luma_of(images[row]))

    def squeeze(row: int) -> list[keypoints.Keypoints]:
        return squeezes.squeezed_keypoints(luma_of(images[row]), coder)

    desc = "keypoints" if progress else None
    first, others = rows[:_LEARNED].tolist(), rows[_LEARNED:].tolist()
    sample = list(in_threads(detect, first, desc=desc))
    coder = keypoints.learn(np.concatenate([descriptors for _, descriptors in sample]))
    found = keypoints.Collected(len(rows), squeezed=squeezed)
    rest = in_threads(lambda row: keypoints.coded(*detect(row), coder), others, desc=desc) if others else ()
    for tile, points in enumerate(chain((keypoints.coded(*one, coder) for one in sample), rest)):
        found.add(points, tile=tile)
    if squeezed:
        pictures = in_threads(squeeze, rows.tolist(), desc="squeezed" if progress else None)
        for tile, several in enumerate(pictures):
            for points in several:
                found.add(points, tile=tile)
    return found


def _near_embeddings(embeddings: Floats, rows: Indices, *, count: int, progress: bool) -> dict[tuple[int, int], float]:
    """Return the cosine of each pair of places in `rows` that is near by its embeddings."""
    unit = embeddings[rows].astype(np.float32)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-9)
    return nearest_pairs(unit, count=count, desc="nearest embeddings" if progress else None)


def _by_embedding(
    near: Sequence[tuple[tuple[int, int], float]], known: Collection[tuple[int, int]], *, min_cosine: float
) -> list[Pair]:
    """Return those of the near pairs (rows, cosine) that are similar and not known to show one place."""
    cosine = np.array([value for _, value in near])
    sure = confidence_by_cosine(cosine, np.array([ends in known for ends, _ in near], dtype=bool))
    return [
        Pair(*ends, "embedding", value, "not aligned", confidence=float(confidence), overlap=None)
        for (ends, value), confidence in zip(near, sure, strict=True)
        if value >= min_cosine and ends not in known
    ]


def confidence_by_cosine(cosine: Floats, found: NDArray[np.bool_]) -> Floats:
    """Return how probable it is that near pairs (n,) that were not found otherwise show one place all the same.

    Encoders differ in what a cosine means, so the set itself tells: of the `_AS_SIMILAR` pairs with the next cosines,
    the share that was `found` by pixels, hash or keypoints. Those searches miss `_MISSED` of the copies.
    """
    order = np.argsort(cosine, kind="stable")
    total = np.concatenate([[0], np.cumsum(found[order])])
    end = np.minimum(np.maximum(np.arange(len(cosine)) + _AS_SIMILAR // 2, _AS_SIMILAR), len(cosine))
    start = np.maximum(end - _AS_SIMILAR, 0)
    hits, pairs = total[end] - total[start], end - start
    confidence = np.empty(len(cosine), np.float32)
    missed = hits * _MISSED / (1 - _MISSED)
    confidence[order] = (missed + _MISSED) / (pairs - hits + missed + 1)  # a pair more: few pairs make nothing sure
    return confidence


def _aligned(
    images: Images,
    points: keypoints.Collected,
    rows: Indices,
    tried: Indices,
    known: Collection[tuple[int, int]],
    *,
    progress: bool,
) -> list[Pair]:
    """Return the pairs of rows of which one map brings one tile onto the other, the surest map of each, by row.

    Args:
        tried: pictures and tiles that may show one place, (m, 2), as places in `rows`. known: pairs to leave out.
    """
    pictures: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for picture, tile in np.unique(tried, axis=0).tolist():
        ends = _ordered(rows[points.tile_of[picture]], rows[tile])
        if ends not in known:
            pictures.setdefault(ends, []).append((picture, tile))
    found = in_threads(
        lambda pairs: _align(images, points, rows, pairs), list(pictures.values()), desc="align" if progress else None
    )
    return sorted((pair for pair in found if pair is not None), key=lambda pair: (pair.first, pair.second))


def _align(images: Images, points: keypoints.Collected, rows: Indices, pairs: Sequence[tuple[int, int]]) -> Pair | None:
    """Return the surest of the pairs of a picture and a tile, which are pictures of the same two tiles, else None."""
    best: Pair | None = None
    for picture, tile in pairs:
        one, other = int(rows[points.tile_of[picture]]), int(rows[tile])
        found = keypoints.align(luma_of(images[one]), luma_of(images[other]), (points[picture], points[tile]))
        if found is None or found.overlap < _LEAST_OVERLAP:
            continue
        confidence = confidence_of(found.inliers, found.correlation)
        if confidence < max(_LEAST_CONFIDENCE, best.confidence if best else 0):
            continue
        if one > other:
            found = found.reversed(images.shape[1])
        best = Pair(
            *_ordered(one, other),
            "keypoints",
            found.correlation,
            found.words,
            confidence=confidence,
            keypoints=found.inliers,
            overlap=found.overlap,
        )
        if confidence > _SURE:
            break
    return best


def confidence_of(inliers: int, correlation: float) -> float:
    """Return how probable it is that two aligned tiles show one place, as on the beds of `scripts/audit_recall`."""
    logit = _CONFIDENCE[0] + _CONFIDENCE[1] * np.log(inliers) + _CONFIDENCE[2] * correlation
    return float(1 / (1 + np.exp(-logit)))


def exact_pairs(digests: Mapping[int, bytes]) -> list[Pair]:
    """Return a pair for each row whose digest came before: the first row with that digest, and this one."""
    first_of: dict[bytes, int] = {}
    pairs = []
    for row, digest in digests.items():
        first = first_of.setdefault(digest, row)
        if first != row:
            pairs.append(Pair(first, row, "exact", 1.0, hashes.SYMMETRIES[0], distance=0))
    return pairs


def luma_of(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the luma of a tile, uint8 (H, W, 3) -> (H, W)."""
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(tile), cv2.COLOR_RGB2GRAY), dtype=np.uint8)


def nearest_pairs(vectors: Floats, *, count: int, desc: str | None = None) -> dict[tuple[int, int], float]:
    """Return the cosine of each unit vector of (N, D) with its `count` nearest ones, by both rows, the lower first."""
    found: dict[tuple[int, int], float] = {}
    count = min(count, len(vectors) - 1)
    for rows in blocks(len(vectors), _BLOCK, desc=desc) if count > 0 else ():
        start, block = rows.start, vectors[rows]
        cosine = block @ vectors.T
        diagonal = np.arange(len(block))
        cosine[diagonal, start + diagonal] = -np.inf
        nearest = np.argpartition(cosine, -count, axis=1)[:, -count:]
        for row, columns in enumerate(nearest):
            for column in columns:
                key = min(start + row, int(column)), max(start + row, int(column))
                found[key] = float(cosine[row, column])
    return dict(sorted(found.items()))


def clusters_of(count: int, pairs: Iterable[tuple[int, int]]) -> Indices:
    """Return the cluster (connected component) of each tile, (count,): 0 is that of tile 0, numbered in tile order."""
    first, second = np.array(list(pairs), dtype=np.int64).reshape(-1, 2).T
    from scipy.sparse import coo_array  # training starts without it
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    _, labels = connected_components(links, directed=False)
    _, at, cluster = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(at))[cluster].astype(np.int64)


def join_groups(clusters: Indices, groups: Groups | None, *, ids: Sequence[str]) -> NDArray[np.str_]:
    """Return groups (N,) in which tiles of one cluster, and tiles of one given group, are together.

    A group is named after the given group, or the id, of its first tile.
    """
    names = np.array(ids, dtype=np.str_) if groups is None else np.asarray(groups)
    links = []
    for values in (clusters, names):
        _, first, of = np.unique(values, return_index=True, return_inverse=True)
        links += list(zip(first[of].tolist(), range(len(ids)), strict=True))
    joined = clusters_of(len(ids), links)
    _, first = np.unique(joined, return_index=True)
    return names[first[joined]]


def _ordered(first: int | np.int64, second: int | np.int64) -> tuple[int, int]:
    return min(int(first), int(second)), max(int(first), int(second))
