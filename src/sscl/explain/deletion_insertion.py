"""The check by deletion and insertion: does the model rely on what its maps highlight?

N tiles, S the side of a tile in pixels, h x w cells of a map, K steps of a curve.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import numpy.typing as npt
import torch
from scipy.integrate import trapezoid
from torch import Tensor, nn

from sscl import words
from sscl.device import sum_dtype
from sscl.evaluate.intervals import Groups, group_count
from sscl.evaluate.verdicts import POWER, Mean, Outcome, detectable, outcome_above, too_few, verdict_of
from sscl.explain import boxes
from sscl.explain.map_checks import enlarged
from sscl.explain.records import DeletionInsertion, OrderCurve
from sscl.progress import Bar

Array = npt.NDArray[np.float64]

LEAST_MOVE = 0.05  # of a probability; where blurring changes it by less, the order of blurring says nothing
MATTERS = 0.1  # an advantage in area, as a fraction of what blurring changes, that one would want to see
_STEPS = 10
_GRID = 7


def deletion_insertion(
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    maps: Tensor,
    *,
    groups: Groups | None = None,
    seed: int = 0,
    batch_size: int = 32,
    progress: str | None = None,
) -> DeletionInsertion:
    """Return how the class's probability falls as pixels are blurred in the map's order, and rises as they come back.

    Deletion blurs one tenth of the tile after another, the map's highest values first; insertion starts from the
    blurred tile and restores them. A good map has a small area under the first curve and a large one under the second.
    The baselines are a random map of at most 7 x 7 cells, as coarse as Grad-CAM's, and `boxes.centre_map`. The blur is
    a Gaussian whose standard deviation is an eighth of the tile: it keeps the local colour and adds no edge, whereas a
    flat patch would be a new shape.

    Args:
        model: in eval mode. images: (N, 3, S, S), normalised. classes: (N, 1 or 2); the first is the class.
        maps: raw, (N, h, w). groups: slide or patient of each tile, (N,); None = independent tiles.
        seed: of the random order.
        batch_size: tiles at a time. progress: name of a bar, or None.

    Source: Petsiuk et al., arXiv:1806.07421, sec. 3.3; they delete to grey and insert into blur.
    """
    count, size = len(images), images.shape[-1]
    rng = np.random.default_rng(seed)
    raw = maps.cpu().double().numpy()
    grid = (count, min(_GRID, raw.shape[1]), min(_GRID, raw.shape[2]))
    centre = np.broadcast_to(boxes.centre_map(size).astype(np.float64), (count, size, size))
    orders = {"map": enlarged(raw, size), "random order": enlarged(rng.random(grid), size), "centre": centre}
    # A tie, as all of a constant map is, is broken by chance, and no more finely than by the random order.
    ranks = {name: _pixel_ranks(of, enlarged(rng.random(grid), size)) for name, of in orders.items()}
    curves = _curves(model, images, classes[:, :1], ranks, batch_size=batch_size, progress=progress)
    moves = float(max(np.ptp(curve, axis=1).mean() for of in curves.values() for curve in of.values()))
    deletion, insertion = (
        order_curves(curves[way], groups=groups, span=moves / 2) for way in ("deletion", "insertion")
    )
    number = group_count(groups)
    outcome, reason = highlights_what_matters(moves, deletion, insertion, tiles=count, groups=number)
    return DeletionInsertion(
        tiles=count,
        outcome=outcome,
        verdict=verdict_of(outcome, reason),
        fractions=tuple(_fractions().tolist()),
        moves=moves,
        deletion=deletion,
        insertion=insertion,
    )


def _fractions() -> Array:
    return np.linspace(0, 1, _STEPS + 1)


def _curves(
    model: nn.Module,
    images: Tensor,
    wanted: Tensor,
    ranks: Mapping[str, npt.NDArray[np.float32]],
    *,
    batch_size: int,
    progress: str | None,
) -> dict[str, dict[str, Array]]:
    """Return the probability of the wanted class (N, 1) of each tile at each step, (N, K + 1), by way and order."""
    count, fractions, blurred = len(images), _fractions(), _blurred(images)
    curves = {way: {name: np.zeros((count, len(fractions))) for name in ranks} for way in ("deletion", "insertion")}
    total = 2 * len(ranks) * len(fractions) * count
    with Bar(total, desc=progress, unit="tile") as bar, torch.no_grad():
        for start in range(0, count, batch_size):
            part = slice(start, start + batch_size)
            for name, rank in ranks.items():
                place = torch.from_numpy(rank[part]).to(images.device)[:, None]  # 0 = first, in fractions of the tile
                for step, fraction in enumerate(fractions):
                    first = place < fraction
                    for way, mixed in (
                        ("deletion", torch.where(first, blurred[part], images[part])),
                        ("insertion", torch.where(first, images[part], blurred[part])),
                    ):
                        probability = model(mixed).to(sum_dtype(mixed.device)).softmax(1).gather(1, wanted[part])[:, 0]
                        curves[way][name][part, step] = probability.cpu().numpy()
                        bar.update(len(mixed))
    return curves


def order_curves(curves: Mapping[str, Array], *, groups: Groups | None, span: float) -> dict[str, OrderCurve]:
    """Return the record of each order's curves, (N, K + 1).

    Args:
        groups: of the tiles, (N,), or None. span: what blurring changes, see `verdicts.Mean`.
    """
    areas = {name: trapezoid(curve, _fractions(), axis=1) for name, curve in curves.items()}
    found = {}
    for name, area in areas.items():
        less = None if name == "map" else Mean.of(areas["map"] - area, groups=groups, span=span, bounds=(-1, 1))
        found[name] = OrderCurve(
            curve=tuple(curves[name].mean(0).tolist()),
            auc=float(area.mean()),
            interval=Mean.of(area, groups=groups, span=span).ends,
            difference=None if less is None else less.value,
            difference_interval=None if less is None else less.ends,
        )
    return found


def highlights_what_matters(
    moves: float,
    deletion: Mapping[str, OrderCurve],
    insertion: Mapping[str, OrderCurve],
    *,
    tiles: int,
    groups: int | None,
) -> tuple[Outcome, str]:
    """Return whether the map's order beats the random one both ways, and why.

    It does where both 95% intervals are above zero; it does not where one of them excludes an advantage that matters,
    MATTERS of what blurring changes; between the two, so many tiles cannot tell.
    """
    if moves < LEAST_MOVE:
        return Outcome.NOT_ASSESSED, (
            f"blurring changes the probability by at most {moves:.1g} ({LEAST_MOVE:g} is needed), so the order of "
            "blurring says nothing"
        )
    said, better, outcomes, units = [], [], [], tiles if groups is None else groups
    shown = 0.0
    for way, curves, sign in (("deletion", deletion, -1), ("insertion", insertion, 1)):
        for name in ("random order", "centre"):
            interval = curves[name].difference_interval or (-np.inf, np.inf)  # of one tile or slide there is none
            low, high = sorted(sign * bound for bound in interval)
            state = "beats" if low > 0 else "loses to" if high < 0 else "ties with"
            said.append(f"{way} {state} {name}")
            if name == "random order":
                better.append(outcome_above((low, high), 0, tiles=units))
                outcomes.append(outcome_above((low, high), MATTERS * moves, tiles=units))
                shown = max(shown, detectable((low, high)))
    if all(outcome is Outcome.PASSED for outcome in better):
        outcome, start = Outcome.PASSED, "the highlighted regions matter more than random ones"
    elif Outcome.FAILED in outcomes:
        outcome, start = Outcome.FAILED, "the highlighted regions matter no more than random ones"
    else:
        outcome, start = Outcome.INCONCLUSIVE, "the highlighted regions may or may not matter more than random ones"
    few = too_few(units, grouped=groups is not None)
    of = "" if groups is None else f" of {words.count(groups, 'slide or patient', 'slides or patients')}"
    return outcome, (
        f"{start} ({', '.join(said)}; passes if both beat random order, by 95% intervals over {tiles} tiles{of}, fails "
        f"if one gains less than {MATTERS * moves:.2f}"
        + (few or f"; a gain of {shown:.2f} shows in {100 * POWER:.0f}% of such samples")
        + ")"
    )


def _pixel_ranks(maps: Array, ties: Array) -> npt.NDArray[np.float32]:
    """Return when each pixel's turn comes, highest first, as a fraction of the tile, 0..1, 1 excluded; (N, S, S)."""
    count, pixels = len(maps), maps[0].size
    ranks = np.empty((count, pixels), dtype=np.float32)
    for row, raw, tie in zip(ranks, maps, ties, strict=True):
        row[np.lexsort((tie.ravel(), -raw.ravel()))] = np.arange(pixels) / pixels
    return ranks.reshape(maps.shape)


def _blurred(images: Tensor) -> Tensor:
    """Return tiles (N, 3, S, S) blurred by a Gaussian of an eighth of their side, borders mirrored."""
    sigma = images.shape[-1] / 8
    rows = images.detach().cpu().permute(0, 2, 3, 1).contiguous().numpy()
    blurred = np.stack([cv2.GaussianBlur(row, (0, 0), sigma) for row in rows])
    return torch.from_numpy(blurred).permute(0, 3, 1, 2).to(images.device)
