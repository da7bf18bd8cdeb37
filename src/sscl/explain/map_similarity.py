"""How similar two maps are: rank correlation of their cells, structural similarity of their pictures."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

FloatArray = npt.NDArray[np.float64]


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Return Spearman's rank correlation of two arrays of the same shape; NaN if one is `constant`.

    Ties get their mean rank. `scipy.stats.spearmanr` would add a p-value, at several times the cost.

    Raises:
        ValueError: the shapes differ, or there are fewer than two values.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.size < 2:
        raise ValueError(f"maps: got shapes {first.shape} and {second.shape}, must be equal, with at least two values")
    if constant(first) or constant(second):
        return math.nan
    return float(np.corrcoef(rankdata(first.ravel()), rankdata(second.ravel()))[0, 1])


def ssim(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Return the structural similarity of two maps in 0..1, (S, S): the mean over all whole windows.

    Windows are Gaussian, 11 x 11 px with a standard deviation of 1.5 px; K1 = 0.01, K2 = 0.03.

    Raises:
        ValueError: the shapes differ, or a side is below 11.

    Source: Wang et al., IEEE TIP 2004, doi 10.1109/TIP.2003.819861, Eq. 13 to 17.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 2 or min(x.shape) < 11:
        raise ValueError(f"maps: got shapes {x.shape} and {y.shape}, must be equal, (height, width) of 11 px or more")

    def mean(values: FloatArray) -> FloatArray:
        return np.asarray(cv2.GaussianBlur(values, (11, 11), 1.5)[5:-5, 5:-5], dtype=np.float64)

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y, covariance = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2, mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((similar / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def constant(values: FloatArray) -> bool:
    """Return whether the range of values is at most rounding, a millionth of the largest."""
    return bool(np.ptp(values) <= 1e-6 * np.abs(values).max())
