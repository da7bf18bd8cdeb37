"""SimpleShot: nearest class means of a few labelled tiles, over many draws of these.

N training tiles, M queries, C features, K classes, S classes with enough tiles, D draws.

Source: Wang et al. 2019, SimpleShot, arXiv:1911.04623 (the variant CL2N).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from sscl.evaluate.metrics import IntArray

_NUMBERS_AT_ONCE = 2**25  # similarities of queries to class means


def enough_tiles(labels: IntArray, *, shots: int, num_classes: int) -> IntArray:
    """Return the classes with at least `shots` tiles, (S,)."""
    return np.flatnonzero(np.bincount(labels, minlength=num_classes) >= shots)


def draw_shots(labels: IntArray, classes: IntArray, *, most: int, draws: int, seed: int) -> list[IntArray]:
    """Return for each class rows of its tiles in random order, (D, at most `most`) each.

    The first ones of a row are the draw of fewer shots: a curve over shots is made of tiles that are added.

    Args:
        labels: (N,). classes: those to draw from, (S,). most: the largest number of shots.
    """
    found = []
    for label in classes:
        rng = np.random.default_rng([seed, int(label)])
        rows = np.flatnonzero(labels == label)
        found.append(np.stack([rng.permutation(rows)[:most] for _ in range(draws)]))
    return found


def simpleshot_predictions(
    features: torch.Tensor, drawn: list[IntArray], queries: torch.Tensor, *, shots: int
) -> IntArray:
    """Return the nearest class of each query in each draw, indices into `drawn`, (D, M).

    The mean of all training features, which needs no labels, is subtracted, and what remains has length 1; a class is
    the mean of its `shots` tiles, the nearest by Euclidean distance.

    Args:
        features: of the training tiles, (N, C). drawn: rows of each class, (D, >= shots) each. queries: (M, C).
    """
    centre = features.float().mean(0)
    bank, points = (F.normalize(one.float() - centre, dim=1) for one in (features, queries))
    draws, classes = len(drawn[0]), len(drawn)
    rows = torch.from_numpy(np.stack([of[:, :shots] for of in drawn], axis=1))  # (D, S, shots)
    found = np.empty((draws, len(points)), dtype=np.int64)
    at_once = max(1, _NUMBERS_AT_ONCE // (classes * max(len(points), 1)))
    for start in range(0, draws, at_once):
        part = rows[start : start + at_once]
        means = torch.stack([bank[of].mean(1) for of in part])  # (d, S, C)
        # |x - m|² without |x|², which is the same for all classes
        far = means.square().sum(2)[:, None, :] - 2 * torch.einsum("mc,dsc->dms", points, means)
        found[start : start + at_once] = far.argmin(2).numpy()
    return found
