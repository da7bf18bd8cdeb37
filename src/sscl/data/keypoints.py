"""Tiles that show one place, however turned, mirrored, zoomed or shifted: SIFT keypoints matched by an affine map.

A keypoint's descriptor is relative to its own direction and size, so turning and zooming change little. A mirrored tile
has the same keypoints with the descriptor's cells in mirrored order: no second detection is needed.

Tiles of S x S pixels, k keypoints of a tile, D parts of a keypoint's code.
Source: Lowe, IJCV 2004 (SIFT, ratio test); Arandjelovic and Zisserman, CVPR 2012 (root of the descriptor); Jegou et
al., IJCV 2010 (matches that agree on a turn and a zoom).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Affine = NDArray[np.float64]

KEYPOINTS = 200
LEAST = 5  # in unrelated tissue tiles, at most 3 or 4 agree on an affine map
CODE = 64  # parts of a code
SQUEEZES = 3  # directions that tiles are squeezed in, see `squeezes`
_CONTRAST = 0.015  # less than half of OpenCV's: pale tissue has keypoints too
_RATIO = 0.9  # nearest against second nearest descriptor; Lowe's is 0.8, but here turns and zooms must agree too
_REPROJECTION_PX = 4.0
_SCALES = (0.25, 4.0)  # of the second tile against the first
_STRETCH = 3.0  # one way against the other
_TURN = 40.0  # degrees that the turns of two keypoints may differ by
_ZOOM = 0.8  # the same for the zoom, in octaves
_BLUR_PX = 1.5  # before correlating: an alignment is accurate to a pixel or two, nuclei are hardly larger
_COARSE_PX = 8.0  # what is smoother than this does not count in the correlation
_STRETCHED = 1.15  # from here on the words say so
_NEAR_PX = 10.0  # how far a keypoint corrects the map around it
_UNIT = 256.0  # length of a code: its parts are int8

# OpenCV's order is 4 rows x 4 columns x 8 directions, in the keypoint's own frame: mirrored along its direction, rows
# are reversed and directions negated.
_MIRRORED = np.arange(128).reshape(4, 4, 8)[::-1][:, :, -np.arange(8) % 8].ravel()


@dataclass(frozen=True)
class Keypoints:
    """The strongest keypoints of a tile, k of them.

    Attributes:
        places: x and y in pixels, (k, 2). angles: their directions in degrees, (k,), measured from the vertical, so
            that mirroring left-right negates them. octaves: log2 of their sizes, (k,).
        codes: int8, (k, D), see `Coder`.
    """

    places: Floats
    angles: Floats
    octaves: Floats
    codes: NDArray[np.int8]


@dataclass(frozen=True)
class Alignment:
    """The affine map between two tiles.

    Attributes:
        matrix: (2, 3), place in the first -> place in the second (mirrored left-right first, where `mirrored`).
        inliers: keypoints that agree with it.
        overlap: fraction of the first tile that the second covers.
        correlation: of the luma where they overlap, -1 to 1.
    """

    matrix: NDArray[np.float64]
    mirrored: bool
    inliers: int
    overlap: float
    correlation: float

    def reversed(self, size_px: int) -> Alignment:
        """Return the alignment in the other direction, from the second tile to the first, for tiles of that side."""
        whole = np.vstack([self.matrix, [0, 0, 1]])
        matrix = np.linalg.inv(whole)
        if self.mirrored:  # first is mirrored instead of second
            mirror = np.array([[-1, 0, size_px - 1], [0, 1, 0], [0, 0, 1]])
            matrix = mirror @ matrix @ mirror
        overlap = min(1.0, self.overlap * float(np.linalg.det(self.matrix[:, :2])))
        return Alignment(matrix[:2], self.mirrored, self.inliers, overlap, self.correlation)

    @property
    def words(self) -> str:
        """The movement in words, such as `mirrored, turned 90°, 1.11 times as large`."""
        (a, b, _), (c, d, _) = self.matrix
        angle = round(float(np.degrees(np.arctan2(c - b, a + d)))) % 360
        scale = float(np.sqrt(np.linalg.det(self.matrix[:, :2])))
        large, small = np.linalg.svd(self.matrix[:, :2], compute_uv=False)
        turned = f"turned {angle}°" if angle else "upright"
        stretched = f", stretched {large / small:.1f} times" if large > _STRETCHED * small else ""
        return f"{'mirrored, ' if self.mirrored else ''}{turned}, {scale:.2f} times as large{stretched}"


def detect(luma: Bytes, *, most: int = KEYPOINTS, inside: Bytes | None = None) -> tuple[Floats, Bytes]:
    """Return the keypoints of a tile, luma uint8 (H, W): x, y, size and angle, (k, 4), and descriptors, (k, 128).

    A bland tile has few or none.

    Args:
        most: k at most. inside: not 0 where keypoints count, (H, W); None = everywhere.
    """
    sift = cv2.SIFT_create(nfeatures=most, contrastThreshold=_CONTRAST)  # type: ignore[attr-defined]
    points, found = sift.detectAndCompute(luma, inside)
    if found is None:
        return np.empty((0, 4), np.float32), np.empty((0, 128), np.uint8)
    values = np.array([(*point.pt, point.size, point.angle) for point in points], np.float32)
    return values[:most], found[:most].astype(np.uint8)


def coded(points: Floats, descriptors: Bytes, coder: Coder) -> Keypoints:
    """Return what `detect` gives of a tile, with codes for its descriptors."""
    return Keypoints(points[:, :2].copy(), points[:, 3] - 90, np.log2(points[:, 2]), coder(descriptors))


class Collected:
    """The keypoints of many pictures in four arrays: with an array for each, 100,000 tiles take twice the memory.

    Pictures are tiles as they are, one each in the order of the tiles, then squeezed ones; `first` has the first
    keypoint of each, and n.
    """

    def __init__(self, tiles: int, *, squeezed: bool = False) -> None:
        most = tiles * KEYPOINTS * (1 + SQUEEZES if squeezed else 1)  # memory that is not written to is not taken
        self.tiles = tiles
        self._places = np.empty((most, 2), np.float32)
        self._angles, self._octaves = np.empty((2, most), np.float32)
        self._codes = np.empty((most, CODE), np.int8)
        self.first, self._tile = [0], list[int]()

    def add(self, points: Keypoints, *, tile: int) -> None:
        """Add the keypoints of the next picture, which shows a tile."""
        new = slice(self.first[-1], self.first[-1] + len(points.codes))
        self._places[new], self._angles[new], self._octaves[new] = points.places, points.angles, points.octaves
        self._codes[new] = points.codes
        self.first.append(new.stop)
        self._tile.append(tile)

    def __getitem__(self, picture: int) -> Keypoints:
        """Return a picture's keypoints."""
        of = slice(*self.first[picture : picture + 2])
        return Keypoints(self._places[of], self._angles[of], self._octaves[of], self._codes[of])

    @property
    def count(self) -> int:
        """Number of pictures."""
        return len(self._tile)

    @cached_property
    def tile_of(self) -> NDArray[np.int32]:
        """The tile that each picture shows, once all are added."""
        return np.array(self._tile, np.int32)

    @property
    def codes(self) -> NDArray[np.int8]:
        """The codes of all keypoints, (n, D)."""
        return self._codes[: self.first[-1]]

    @property
    def angles(self) -> Floats:
        """The directions of all keypoints, (n,)."""
        return self._angles[: self.first[-1]]

    @property
    def octaves(self) -> Floats:
        """The sizes of all keypoints, (n,)."""
        return self._octaves[: self.first[-1]]

    @cached_property
    def pictures(self) -> NDArray[np.int32]:
        """The picture of each keypoint, (n,), once all are added."""
        return np.repeat(np.arange(self.count, dtype=np.int32), np.diff(self.first))


def align(first: Bytes, second: Bytes, points: tuple[Keypoints, Keypoints]) -> Alignment | None:
    """Return the alignment of two tiles, None if fewer than `LEAST` keypoints agree on one.

    Args:
        first, second: luma, uint8 (S, S).
    """
    found: tuple[Matches, Affine] | None = None
    for matches in _matches(*points, side=len(second)):
        matrix, agrees = cv2.estimateAffine2D(
            matches.first, matches.second, ransacReprojThreshold=_REPROJECTION_PX, maxIters=1000
        )
        if matrix is None or not np.isfinite(matrix).all():
            continue
        large, small = np.linalg.svd(matrix[:, :2], compute_uv=False)
        if np.linalg.det(matrix[:, :2]) <= 0 or not _SCALES[0] <= small <= large <= min(_SCALES[1], _STRETCH * small):
            continue
        inliers = matches.subset(agrees.ravel() > 0)
        if inliers.places >= LEAST and (found is None or inliers.places > found[0].places):
            found = inliers, matrix.astype(np.float64)
    if found is None:
        return None
    inliers, matrix = found
    overlap, correlation = _compare(first, second[:, ::-1] if inliers.mirrored else second, matrix, inliers)
    return Alignment(matrix, inliers.mirrored, inliers.places, overlap, correlation)


@dataclass(frozen=True)
class Matches:
    """Keypoints of two tiles that are alike: places in the first, and in the second (mirrored first, where so)."""

    first: Floats
    second: Floats
    mirrored: bool

    def subset(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Matches:
        """Return some of the matches."""
        return Matches(self.first[rows], self.second[rows], self.mirrored)

    @cached_property
    def places(self) -> int:
        """How many different places match: several keypoints of one place, of different directions, count once."""
        return min(len(set(map(tuple, np.round(ends).tolist()))) for ends in (self.first, self.second))


def _matches(a: Keypoints, b: Keypoints, *, side: int) -> Iterator[Matches]:
    """Yield the matches of upright and of mirrored keypoints, where enough of them agree on a turn and a zoom."""
    if min(len(a.codes), len(b.codes)) < LEAST:
        return
    one, other = a.codes.astype(np.float32), b.codes.astype(np.float32)
    half = one.shape[1] // 2
    even, odd = one[:, :half] @ other[:, :half].T, one[:, half:] @ other[:, half:].T
    rows = np.arange(len(one))
    for mirrored in (False, True):
        likeness = even - odd if mirrored else even + odd
        nearest = likeness.argmax(1)
        best = likeness[rows, nearest]
        likeness[rows, nearest] = -np.inf
        distinct = np.flatnonzero(_UNIT**2 - best < _RATIO**2 * (_UNIT**2 - likeness.max(1)))
        if len(distinct) < LEAST:
            continue
        onto = nearest[distinct]
        angle = b.angles[onto] * (-1 if mirrored else 1) - a.angles[distinct]
        octaves = b.octaves[onto] - a.octaves[distinct]
        turns = np.abs((angle[:, None] - angle + 180) % 360 - 180) < _TURN
        agree = turns & (np.abs(octaves[:, None] - octaves) < _ZOOM)
        most = agree[agree.sum(1).argmax()]
        if most.sum() >= LEAST:
            ends = b.places[onto[most]]
            if mirrored:
                ends = np.stack([side - 1 - ends[:, 0], ends[:, 1]], 1)
            yield Matches(a.places[distinct[most]], ends, mirrored)


def _compare(first: Bytes, second: Bytes, matrix: Affine, inliers: Matches) -> tuple[float, float]:
    """Return the fraction of the first tile that the second covers, and the correlation of both there.

    The second is laid on the first by the affine map, corrected near the inliers by what is left at them: elastic
    deformation bends tiles by a few pixels.
    """
    side = len(first)
    left = inliers.second - (inliers.first @ matrix[:, :2].T + matrix[:, 2])
    spread = np.zeros((side, side, 3), np.float32)
    x, y = np.clip(np.round(inliers.first), 0, side - 1).astype(int).T
    np.add.at(spread, (y, x), np.column_stack([left, np.ones(len(left))]))
    spread = cv2.GaussianBlur(spread, (0, 0), _NEAR_PX) * (2 * np.pi * _NEAR_PX**2)
    moved = spread[..., :2] / (spread[..., 2:] + 0.3)
    rows, columns = np.mgrid[:side, :side]
    places = (np.stack([columns, rows], -1) @ matrix[:, :2].T + matrix[:, 2] + moved).astype(np.float32)
    covered = ((places >= 0) & (places <= side - 1)).all(-1)
    warped = cv2.remap(np.ascontiguousarray(second), places, None, cv2.INTER_LINEAR)  # type: ignore[call-overload]
    one, other = _details(covered, first, warped)
    return float(covered.mean()), _correlation(one, other, covered)


def _details(covered: NDArray[np.bool_], *lumas: Bytes) -> Iterator[Floats]:
    """Yield what tiles show between two scales: not where tissue ends, which many tiles share, and not the noise."""

    def blurred(values: NDArray[Any], sd: float) -> Floats:
        return np.asarray(cv2.GaussianBlur(values.astype(np.float32), (0, 0), sd), np.float32)

    weights = {sd: np.maximum(blurred(covered, sd), 1e-3) for sd in (_BLUR_PX, _COARSE_PX)}
    for luma in lumas:  # means over covered pixels only: nothing leaks in across the border
        seen = np.where(covered, luma, 0)
        fine, coarse = (blurred(seen, sd) / weight for sd, weight in weights.items())
        yield np.asarray(fine - coarse, np.float32)


@dataclass(frozen=True)
class Coder:
    """Turns descriptors into short codes: principal parts, first those that a mirror keeps, then those that it negates.

    The product of two codes says how alike the keypoints are; with the second half negated, how alike one is to the
    other's mirror image. So one code serves both.

    Attributes:
        mean: (128,). axes: (128, D).
    """

    mean: Floats
    axes: Floats

    def __call__(self, descriptors: Bytes) -> NDArray[np.int8]:
        """Return the codes of descriptors, uint8 (k, 128) -> int8 (k, D), of about the same length."""
        parts = _unit(np.asarray((_rooted(descriptors) - self.mean) @ self.axes, np.float32))
        return np.round(_UNIT * parts).clip(-127, 127).astype(np.int8)


def learn(descriptors: Bytes) -> Coder:
    """Return the coder learned from descriptors, uint8 (n, 128)."""
    rooted = _rooted(descriptors)
    mirrored = rooted[:, _MIRRORED]
    half = np.float32(0.5)
    even: Floats = half * (rooted + mirrored)
    odd: Floats = half * (rooted - mirrored)
    mean: Floats = even.mean(0)
    centred: Floats = even - mean
    return Coder(mean, np.hstack([_axes(centred, CODE // 2), _axes(odd, CODE // 2)]))


def mirrored_codes(codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return the codes of the mirrored keypoints, (k, D)."""
    half = codes.shape[1] // 2
    return np.hstack([codes[:, :half], -codes[:, half:]])


def _rooted(descriptors: Bytes) -> Floats:
    """Return the square roots of the descriptors divided by their sums, (k, 128), of unit length (RootSIFT)."""
    values = descriptors.astype(np.float32)
    rooted: Floats = np.sqrt(values / np.maximum(values.sum(1, keepdims=True), 1))
    return rooted


def _unit(rows: Floats) -> Floats:
    found: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return found


def _axes(rows: Floats, count: int) -> Floats:
    """Return the first principal axes of the rows (n, d), about zero, as columns (d, count)."""
    _, vectors = np.linalg.eigh(rows.T @ rows)
    return np.ascontiguousarray(vectors[:, ::-1][:, :count])


def _correlation(first: Floats, second: Floats, covered: NDArray[np.bool_]) -> float:
    """Return the correlation of two lumas where `covered`; 0 where one of them is flat, or hardly anything is."""
    if covered.sum() < 64:
        return 0.0
    a, b = first[covered].astype(np.float64), second[covered].astype(np.float64)
    if min(a.std(), b.std()) < 0.5:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
