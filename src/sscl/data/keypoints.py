"""Tiles that show one place, however turned, mirrored, zoomed or shifted: SIFT keypoints matched by an affine map.

A keypoint's descriptor is relative to its own direction and size, so turning and zooming change little. A mirrored tile
has the same keypoints with the descriptor's cells in mirrored order: no second detection is needed.

N tiles of S x S pixels, k keypoints of a tile, D numbers that describe a whole tile.
Source: Lowe, IJCV 2004 (SIFT, ratio test); Arandjelovic and Zisserman, CVPR 2012 (root of the descriptor); Jegou et
al., CVPR 2010 (VLAD, one vector for all keypoints of an image).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

KEYPOINTS = 150
_CONTRAST = 0.02  # half of OpenCV's: pale tissue has keypoints too
_RATIO = 0.8  # nearest against second nearest descriptor, Lowe's
_REPROJECTION_PX = 3.0
_SCALES = (0.4, 2.5)  # of the second tile against the first
_STRETCH = 1.6  # one way against the other: LC25000's tiles are stretched
_BLUR_PX = 2.0  # before correlating: an alignment is accurate to a pixel or two, nuclei are hardly larger
_WORDS = 256
_DESCRIPTOR_PARTS = 32
_TILE_PARTS = 256
_SAMPLE = 2048  # tiles that the words and the axes are learned from

# OpenCV's order is 4 rows x 4 columns x 8 directions, in the keypoint's own frame: mirrored along its direction, rows
# are reversed and directions negated.
_MIRRORED = np.arange(128).reshape(4, 4, 8)[::-1][:, :, -np.arange(8) % 8].ravel()


@dataclass(frozen=True)
class Keypoints:
    """The strongest keypoints of a tile: places, x and y in pixels, (k, 2), and SIFT descriptors, uint8 (k, 128)."""

    places: Floats
    descriptors: Bytes


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
        turned = f"turned {angle}°" if angle else "upright"
        return f"{'mirrored, ' if self.mirrored else ''}{turned}, {scale:.2f} times as large"


def detect(luma: Bytes) -> Keypoints:
    """Return the keypoints of a tile, luma uint8 (S, S); a bland tile has few or none."""
    sift = cv2.SIFT_create(nfeatures=KEYPOINTS, contrastThreshold=_CONTRAST)  # type: ignore[attr-defined]
    points, found = sift.detectAndCompute(luma, None)
    if found is None:
        return Keypoints(np.empty((0, 2), np.float32), np.empty((0, 128), np.uint8))
    return Keypoints(np.array([point.pt for point in points], np.float32), found.astype(np.uint8))


def align(first: Bytes, second: Bytes, points: tuple[Keypoints, Keypoints]) -> Alignment | None:
    """Return the alignment of two tiles, None if fewer than three keypoints agree on one.

    Args:
        first, second: luma, uint8 (S, S).
        points: their keypoints.
    """
    a, b = points
    if len(a.places) < 3 or len(b.places) < 3:
        return None
    best: tuple[int, bool, NDArray[np.float64]] | None = None
    for mirrored in (False, True):
        similarity = _rooted(a.descriptors) @ _rooted(b.descriptors[:, _MIRRORED] if mirrored else b.descriptors).T
        second_best, nearest = np.partition(similarity, -2, axis=1)[:, -2:].T
        distinct = np.flatnonzero(1 - nearest < _RATIO**2 * (1 - second_best))
        if len(distinct) < 3:
            continue
        target = b.places[similarity[distinct].argmax(1)]
        if mirrored:
            target = np.stack([second.shape[1] - 1 - target[:, 0], target[:, 1]], 1)
        matrix, agrees = cv2.estimateAffine2D(
            a.places[distinct], target, ransacReprojThreshold=_REPROJECTION_PX, maxIters=1000
        )
        if matrix is None or not np.isfinite(matrix).all():
            continue
        large, small = np.linalg.svd(matrix[:, :2], compute_uv=False)
        if np.linalg.det(matrix[:, :2]) > 0 and _SCALES[0] <= small <= large <= min(_SCALES[1], _STRETCH * small):
            # Several keypoints may be at one place, with different directions: they count once.
            inlier = agrees.ravel() > 0
            ends = (np.unique(np.round(places[inlier]), axis=0) for places in (a.places[distinct], target))
            count = min(map(len, ends))
            if best is None or count > best[0]:
                best = count, mirrored, matrix.astype(np.float64)
    if best is None:
        return None
    inliers, mirrored, matrix = best
    moved = second[:, ::-1] if mirrored else second
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(np.ascontiguousarray(moved), matrix, first.shape[::-1], flags=flags)
    covered = cv2.warpAffine(np.full_like(second, 255), matrix, first.shape[::-1], flags=flags) == 255
    weight = np.maximum(cv2.GaussianBlur(covered.astype(np.float32), (0, 0), _BLUR_PX), 1e-3)
    blurred = [  # the mean over covered pixels only, so that nothing leaks in across the border
        cv2.GaussianBlur(np.where(covered, luma, 0).astype(np.float32), (0, 0), _BLUR_PX) / weight
        for luma in (first, warped)
    ]
    correlation = _correlation(blurred[0], blurred[1], covered)
    return Alignment(matrix, mirrored, inliers, float(covered.mean()), correlation)


def describe(points: Iterable[Keypoints], *, seed: int = 0) -> tuple[Floats, Floats]:
    """Return a vector for each tile, and one for its mirror image, float32 (N, D) each, of unit length or zero.

    Tiles of one place have similar vectors, however turned and zoomed. The visual words and axes are learned from the
    tiles themselves (2048 of them, drawn at random).
    """
    tiles = list(points)
    rng = np.random.default_rng(seed)
    learned = [tiles[row] for row in np.sort(rng.permutation(len(tiles))[:_SAMPLE])]
    sample = np.concatenate([part for tile in learned for part in (tile.descriptors, tile.descriptors[:, _MIRRORED])])
    if len(sample) == 0:
        empty = np.zeros((len(tiles), 1), np.float32)
        return empty, empty
    sample = _rooted(sample[rng.permutation(len(sample))[: 16 * _SAMPLE]])
    mean = sample.mean(0)
    axes = _axes(sample - mean, _DESCRIPTOR_PARTS)
    words = (sample[:_WORDS] - mean) @ axes  # descriptors drawn at random: k-means is hardly better

    def vector(descriptors: Bytes) -> Floats:
        parts = (_rooted(descriptors) - mean) @ axes
        word = (parts @ words.T - 0.5 * (words**2).sum(1)).argmax(1)
        sums = np.zeros_like(words)
        np.add.at(sums, word, parts - words[word])
        whole: Floats = _unit(_unit(sums).ravel()[None])[0]
        return whole

    def project(rows: list[Keypoints], mirrored: bool, onto: Floats | None) -> Floats:
        found = [vector(tile.descriptors[:, _MIRRORED] if mirrored else tile.descriptors) for tile in rows]
        return np.stack(found if onto is None else [part @ onto for part in found])

    whole = np.concatenate([project(learned, mirrored, None) for mirrored in (False, True)])
    onto = _axes(whole, _TILE_PARTS)
    return _unit(project(tiles, False, onto)), _unit(project(tiles, True, onto))


def _rooted(descriptors: Bytes) -> Floats:
    """Return the square roots of the descriptors divided by their sums, (k, 128), of unit length (RootSIFT)."""
    values = descriptors.astype(np.float32)
    rooted: Floats = np.sqrt(values / np.maximum(values.sum(1, keepdims=True), 1))
    return rooted


def _unit(rows: Floats) -> Floats:
    found: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return found


def _axes(rows: Floats, count: int) -> Floats:
    """Return the first principal axes of the rows (n, d), about zero, as columns (d, <= count)."""
    if len(rows) >= rows.shape[1]:
        _, vectors = np.linalg.eigh(rows.T @ rows)
        return np.ascontiguousarray(vectors[:, ::-1][:, :count])
    values, vectors = np.linalg.eigh(rows @ rows.T)
    kept = np.flatnonzero(values > 1e-5 * values[-1])[::-1][:count]
    return np.ascontiguousarray(_unit((rows.T @ vectors[:, kept]).T).T)


def _correlation(first: Floats, second: Floats, covered: NDArray[np.bool_]) -> float:
    """Return the correlation of two lumas where `covered`; 0 where one of them is flat, or hardly anything is."""
    if covered.sum() < 64:
        return 0.0
    a, b = first[covered].astype(np.float64), second[covered].astype(np.float64)
    if min(a.std(), b.std()) < 1:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
