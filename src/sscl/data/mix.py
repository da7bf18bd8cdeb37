"""The batches of an epoch, when tiles come from several sources.

N tiles in all, S steps per epoch, B tiles per batch. Rows are numbered through all sources, source by source.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sscl.data.tiles import epoch_order


def draws_per_source(sizes: Sequence[int], *, weights: Sequence[float] | None) -> NDArray[np.int64]:
    """Return how many tiles an epoch draws from each source, int64 (number of sources,); they add up to N.

    Args:
        sizes: tiles of each source.
        weights: relative number of draws of each source, any scale, not all 0; None draws every tile once.
    """
    if weights is None:
        return np.array(sizes, dtype=np.int64)
    weight = np.array(weights, dtype=np.float64)
    ideal = weight / weight.sum() * sum(sizes)
    draws = np.floor(ideal).astype(np.int64)
    rest = np.argsort(draws - ideal, kind="stable")[: sum(sizes) - int(draws.sum())]  # the largest remainders
    draws[rest] += 1
    return np.asarray(draws)


def drawn_of_slides(slide_of: NDArray[np.int64], *, each: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the rows that an epoch draws of some slides, sorted: a function of the arguments alone.

    Of a slide with fewer tiles all are drawn. Of the others as many as `each`, none twice in an epoch, and none again
    until all were: where the last of them do not fill their epoch, the first of the same pass come with them.

    Args:
        slide_of: the slide of each tile, (N,). each: tiles that are drawn of a slide.
    """
    order = np.argsort(slide_of, kind="stable")
    slides, starts = np.unique(slide_of[order], return_index=True)
    drawn = [np.empty(0, dtype=np.int64)]
    for slide, rows in zip(slides.tolist(), np.split(order, starts[1:]), strict=True):
        epochs = -(-len(rows) // each)  # of a pass
        turn, part = divmod(epoch, epochs)
        shuffled = np.random.default_rng([seed, 3, slide, turn]).permutation(rows)
        found = shuffled[part * each : (part + 1) * each]
        missing = min(each, len(rows)) - len(found)
        drawn += [found, shuffled[:missing]]
    return np.sort(np.concatenate(drawn))


def epoch_batches(
    sizes: Sequence[int], *, weights: Sequence[float] | None, mix: str, batch_size: int, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Return the rows of an epoch's batches, int64 (S, B): a function of the arguments alone.

    A source with more draws than tiles is passed through repeatedly, each time in another order, so that the draws of
    its tiles differ by one at most. Draws that do not fill a batch are dropped: with `batch` less than B in all, with
    `source` less than B of each source.

    Args:
        sizes, weights: see `draws_per_source`.
        mix: "batch" shuffles all draws; "source" makes each batch of one source and shuffles the batches.
    """
    if mix == "batch" and weights is None:
        order = epoch_order(sum(sizes), seed=seed, epoch=epoch)
        return order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
    rng = np.random.default_rng([seed, epoch])
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    drawn = [
        start + passes(size, draws=draws, rng=rng)
        for start, size, draws in zip(first, sizes, draws_per_source(sizes, weights=weights), strict=True)
    ]
    if mix == "batch":
        order = rng.permutation(np.concatenate(drawn))
        return order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
    batches = [rows[: len(rows) // batch_size * batch_size].reshape(-1, batch_size) for rows in drawn]
    return rng.permutation(np.concatenate(batches))


def passes(size: int, *, draws: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return `draws` rows of 0..size-1 in whole shuffled passes and a part of one, int64 (draws,)."""
    if draws == 0:
        return np.empty(0, dtype=np.int64)
    rows = [rng.permutation(size) for _ in range(-(-draws // size))]
    return np.concatenate(rows)[:draws].astype(np.int64, copy=False)
