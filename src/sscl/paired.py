"""Paired comparison of classifiers on the same tiles.

Shape letters: N tiles, K classes, P pairs of runs, S resamples, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_CHUNK_ELEMENTS = 4_000_000  # resamples are worked through in chunks of about this many weights (32 MB)


def balanced_accuracy_difference(
    labels: IntArray,
    ours: IntArray,
    theirs: IntArray,
    *,
    groups: npt.NDArray[np.str_] | None = None,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Return how much higher our balanced accuracy is, on average over the pairs, with a paired bootstrap interval.

    Keys: `values` (P differences), `mean`, `sd` over the pairs (None for one), `interval` (low, high). A resample draws
    tiles within each true class or, with groups, whole groups (slides, patients), for both sides and all pairs alike;
    a class that it misses is left out of its balanced accuracy. The interval tells what other tiles would give, `sd`
    what other seeds would.

    Args:
        labels: true classes, (N,).
        ours, theirs: predicted classes of each pair, (P, N).
        groups: group of each tile, (N,); None = tiles are drawn one by one.
        samples, seed, level: number of resamples, their seed, coverage of the interval.

    Raises:
        ValueError: the shapes do not agree, or there is no tile.

    Source: Efron & Tibshirani 1993, ch. 13 (percentile interval); clusters: Davison & Hinkley 1997, sec. 3.8.
    """
    if labels.ndim != 1 or not len(labels) or ours.shape != theirs.shape or ours.shape[1:] != labels.shape:
        raise ValueError(
            f"labels, ours and theirs: shapes {labels.shape}, {ours.shape} and {theirs.shape}, "
            "must be (N,), (P, N) and (P, N)"
        )
    _, class_of = np.unique(labels, return_inverse=True)
    member = np.eye(class_of.max() + 1)[class_of]  # (N, K)
    gains = (ours == labels).astype(np.float64) - (theirs == labels)  # (P, N): 1 where only we are right
    values = (gains @ (member / member.sum(0))).mean(1)  # (P,)
    gain = gains.mean(0)[:, None] * member  # (N, K)
    if groups is None:
        strata = class_of
    else:
        # A group counts as one unit with its sums over tiles; nothing is kept fixed by class.
        _, unit = np.unique(groups, return_inverse=True)
        gain, member = _sums(gain, unit), _sums(member, unit)  # (G, K) each
        strata = np.zeros(len(gain), dtype=np.int64)
    # A generator per stratum makes the draws independent of the chunk size.
    generators = [np.random.default_rng([seed, index]) for index in range(strata.max() + 1)]
    drawn = []
    chunk = max(1, _CHUNK_ELEMENTS // len(gain))
    for start in range(0, samples, chunk):
        weights = _resample(strata, generators, samples=min(chunk, samples - start))  # (s, N or G)
        tiles = weights @ member
        recall_gain = np.divide(weights @ gain, tiles, out=np.full(tiles.shape, np.nan), where=tiles > 0)
        drawn.append(np.nanmean(recall_gain, axis=1))
    low, high = np.quantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2])
    return {
        "values": values.tolist(),
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
        "interval": (float(low), float(high)),
    }


def _sums(values: FloatArray, unit: IntArray) -> FloatArray:
    """Return the rows of values (N, K) summed over each unit, (G, K)."""
    total = np.zeros((unit.max() + 1, values.shape[1]))
    np.add.at(total, unit, values)
    return total


def _resample(strata: IntArray, generators: Sequence[np.random.Generator], *, samples: int) -> FloatArray:
    """Return how often each unit is drawn with replacement within its stratum, (samples, units)."""
    weights = np.zeros((samples, len(strata)))
    for stratum, generator in enumerate(generators):
        members = np.flatnonzero(strata == stratum)
        shares = np.full(len(members), 1 / len(members))
        weights[:, members] = generator.multinomial(len(members), shares, size=samples)
    return weights
