"""Whether heatmaps can be trusted: do they depend on the weights, mark what matters, and stand still.

Everything takes raw maps (see `cam`), or a function that makes them, and gives plain numbers. N tiles, S the side of a
tile in pixels, h x w cells of a map, D depths, K steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from sscl.evaluate.metrics import resamples
from sscl.explain import cam
from sscl.explain.map_similarity import constant, spearman, ssim

Array = npt.NDArray[np.float64]
Explain = Callable[[nn.Module, Tensor, Tensor], Tensor]  # net, tiles (B, 3, S, S), classes (B, 1 or 2) -> (B, h, w)

# Below it a map is called another one: the two orders of cells share less than a quarter of their variance.
UNRELATED = 0.5
# Of maps with fewer cells unrelated ones look alike by chance: of 9, by 0.28 in the mean.
FEWEST_CELLS = 16
LEAST_MOVE = 0.05  # of a probability; where blurring moves it by less, the order of blurring says nothing
STEADY = 0.7  # least mean rank correlation of a map with those of the turned tile
_STEPS = 10
_GRID = 7


# --- do they depend on the weights ---


def stages(model: nn.Module) -> list[tuple[str, list[str]]]:
    """Return the parts of a net from its head downwards: (name, prefixes of the parameters and buffers in it).

    Parts are its blocks: the items of its sequences; layers beside one another, such as the first convolution and its
    batch norm, are one part. The order is that in which the model names them.
    """
    found: list[tuple[str, list[str]]] = []

    def visit(module: nn.Module, prefix: str, *, wrapper: bool) -> None:
        own = [f"{prefix}{name}" for name in module.state_dict() if "." not in name]
        if own:
            found.append((own[0], own))
        children = {name: child for name, child in module.named_children() if child.state_dict()}
        beside = False  # the one before was a single layer too
        for name, child in children.items():
            whole, single = f"{prefix}{name}", not any(True for _ in child.children())
            if isinstance(child, (nn.Sequential, nn.ModuleList)):
                visit(child, f"{whole}.", wrapper=False)
            elif wrapper and not single:  # the encoder, and the net of another package in it
                only = sum(bool(other.state_dict()) for other in child.children()) == 1
                visit(child, f"{whole}.", wrapper=only)
            elif single and beside and prefix:  # not a net's head with its trunk
                found[-1][1].append(whole)
            else:
                found.append((whole, [whole]))
            beside = single

    visit(model, "", wrapper=True)
    return found[::-1]


def cascade(model: nn.Module, blank: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name of the part, net) with ever more parts, from the head downwards, as in `blank`.

    Args:
        model: the trained net; it is left as it is.
        blank: the same net as it is before training.

    Source: cascading randomisation, Adebayo et al., arXiv:1810.03292, sec. 4.1.
    """
    mixed = copy.deepcopy(model).eval()
    state, fresh = mixed.state_dict(), blank.state_dict()
    for name, prefixes in stages(model):
        for key, value in state.items():
            if any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes):
                value.copy_(fresh[key])
        yield name, mixed


def randomisation(
    model: nn.Module,
    blanks: Sequence[nn.Module],
    images: Tensor,
    classes: Tensor,
    *,
    explain: Explain,
    batch_size: int = 32,
    progress: str | None = None,
) -> dict[str, Any]:
    """Return how alike the maps stay while the net is made random from its head downwards.

    Rank correlation is of the raw cells, SSIM of the maps as they are drawn. Where only the random net's map is
    constant the correlation counts as 0; tiles whose own map is constant are left out.

    Args:
        model: the trained net, in eval mode.
        blanks: nets as they are before training, one a draw.
        images: (N, 3, S, S), normalised.
        classes: what is explained, of all nets alike, (N, 1 or 2), from `cam.target_classes`.
        explain: makes maps, see `Explain`.
        batch_size: tiles at a time. progress: name of a bar, or None.

    Returns:
        {`draws`, `tiles`, `cells`, `stages`: D names, `rank_correlation`, `absolute_rank_correlation`, `ssim`:
        {`mean`, `sd`}, D numbers each, `passed`, `verdict`}; means and deviations are over tiles, of the mean over
        draws.

    Source: Adebayo et al., arXiv:1810.03292.
    """
    own = _maps(model, images, classes, explain=explain, batch_size=batch_size)
    judged = [index for index, raw in enumerate(own) if not constant(raw)]
    names = [name for name, _ in stages(model)]
    shape = own.shape[1:]
    size = images.shape[-1]
    facts: dict[str, Any] = {"draws": len(blanks), "tiles": len(judged), "cells": int(own[0].size), "stages": names}
    facts["unrelated_below"] = UNRELATED
    if not judged:
        said = "cannot be judged: every map is constant, so there is no order of cells to compare"
        nothing: dict[str, list[float]] = {"mean": [], "sd": []}
        empty = dict.fromkeys(("rank_correlation", "absolute_rank_correlation", "ssim"), nothing)
        return facts | empty | {"passed": None, "verdict": said}
    ranks = np.zeros((len(blanks), len(names), len(judged)))
    alike = np.zeros_like(ranks)
    drawn = [_drawn(own[index], size) for index in judged]
    kept, wanted = images[judged], classes[judged]
    with tqdm(total=len(blanks) * len(names), desc=progress, unit="net", disable=progress is None, leave=False) as bar:
        for draw, blank in enumerate(blanks):
            for depth, (_, mixed) in enumerate(cascade(model, blank)):
                maps = _maps(mixed, kept, wanted, explain=explain, batch_size=batch_size)
                if maps.shape[1:] != shape:
                    raise ValueError(f"maps: {maps.shape[1:]} cells of the random net, {shape} of the trained one")
                for tile, raw in enumerate(maps):
                    ranks[draw, depth, tile] = np.nan_to_num(spearman(own[judged[tile]], raw))
                    alike[draw, depth, tile] = ssim(drawn[tile], _drawn(raw, size))
                bar.update()
    absolute = np.abs(ranks)
    passed, verdict = _randomisation_verdict(float(absolute[:, -1].mean()), cells=facts["cells"])
    return facts | {
        "rank_correlation": _over_tiles(ranks.mean(0)),
        "absolute_rank_correlation": _over_tiles(absolute.mean(0)),
        "ssim": _over_tiles(alike.mean(0)),
        "passed": passed,
        "verdict": verdict,
    }


def _randomisation_verdict(left: float, *, cells: int) -> tuple[bool | None, str]:
    by_chance = chance_correlation(cells)
    criterion = f"mean |rank correlation| {left:.2f} with all weights random; passes below {UNRELATED:g}"
    if left >= 0.99:
        return False, f"FAILS: the maps do not depend on the weights at all ({criterion})"
    if cells < FEWEST_CELLS:
        return None, (
            f"cannot be judged: a map of {cells} cells is too coarse ({left:.2f}; chance alone gives {by_chance:.2f}); "
            "name an earlier layer or several, or use larger tiles"
        )
    if left < UNRELATED:
        return True, f"passes: the maps depend on what was learned ({criterion}, {by_chance:.2f} is chance)"
    return False, f"FAILS: much of the maps is there without anything learned ({criterion}, {by_chance:.2f} is chance)"


def chance_correlation(cells: int) -> float:
    """Return the mean |rank correlation| of two unrelated maps of so many independent cells, by the normal law."""
    return math.sqrt(2 / (math.pi * (cells - 1)))


# --- do they mark what matters ---


def deletion_insertion(
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    maps: Tensor,
    *,
    seed: int = 0,
    samples: int = 2000,
    batch_size: int = 32,
    progress: str | None = None,
) -> dict[str, Any]:
    """Return how the explained class's probability falls and rises as marked pixels are blurred and brought back.

    Deletion blurs a tenth of the tile after the other, the map's highest first; insertion starts from the blurred tile
    and brings them back. A good map has a small area under the first curve and a large one under the second. The
    baselines are a random map of at most 7 x 7 cells, as coarse as Grad-CAM's, and `cam.centre_map`. The blur is by a
    Gaussian of a standard deviation of an eighth of the tile: it leaves the local colour and no edge, where a flat
    patch would be a shape of its own.

    Args:
        model: in eval mode. images: (N, 3, S, S), normalised. classes: (N, 1 or 2); the first is the class.
        maps: raw, (N, h, w).
        seed: of the random order and the bootstrap. samples: resamples behind each 95% interval over tiles.
        batch_size: tiles at a time. progress: name of a bar, or None.

    Returns:
        {`tiles`, `fractions`: K, `deletion`, `insertion`: {order: {`curve`: K, `auc`, `interval`, and of the baselines
        `difference`: map - baseline, `difference_interval`}}, `moves`: by how much the probability moves at most, in
        the mean over tiles, `passed`, `verdict`}.

    Source: Petsiuk et al., arXiv:1806.07421, sec. 3.3; they delete to grey and insert into blur.
    """
    count, size = len(images), images.shape[-1]
    rng = np.random.default_rng(seed)
    raw = maps.double().cpu().numpy()
    grid = (count, min(_GRID, raw.shape[1]), min(_GRID, raw.shape[2]))
    centre = np.broadcast_to(cam.centre_map(size).astype(np.float64), (count, size, size))
    orders = {"map": _enlarged(raw, size), "random order": _enlarged(rng.random(grid), size), "centre": centre}
    blurred = _blurred(images)
    fractions = np.linspace(0, 1, _STEPS + 1)
    wanted = classes[:, :1]
    curves = {way: {name: np.zeros((count, _STEPS + 1)) for name in orders} for way in ("deletion", "insertion")}
    # A tie, as all of a constant map is, is broken by chance, and no more finely than by the random order.
    ranks = {name: _pixel_ranks(of, _enlarged(rng.random(grid), size)) for name, of in orders.items()}
    total = 2 * len(orders) * (_STEPS + 1) * count
    with tqdm(total=total, desc=progress, unit="tile", disable=progress is None, leave=False) as bar, torch.no_grad():
        for start in range(0, count, batch_size):
            part = slice(start, start + batch_size)
            for name, rank in ranks.items():
                place = torch.from_numpy(rank[part]).to(images.device)[:, None]  # 0 = first, in shares of the tile
                for step, fraction in enumerate(fractions):
                    first = place < fraction
                    for way, mixed in (
                        ("deletion", torch.where(first, blurred[part], images[part])),
                        ("insertion", torch.where(first, images[part], blurred[part])),
                    ):
                        probability = model(mixed).double().softmax(1).gather(1, wanted[part])[:, 0]
                        curves[way][name][part, step] = probability.cpu().numpy()
                        bar.update(len(mixed))
    found: dict[str, Any] = {"tiles": count, "fractions": fractions.tolist()}
    every = [np.ptp(curve, axis=1).mean() for by_order in curves.values() for curve in by_order.values()]
    found["moves"] = float(max(every))
    weights = np.concatenate(list(resamples(np.zeros(count, dtype=np.int64), samples=samples, seed=seed))) / count
    for way, by_order in curves.items():
        areas = {name: ((c[:, 1:] + c[:, :-1]) / 2 * np.diff(fractions)).sum(1) for name, c in by_order.items()}
        found[way] = {}
        for name, area in areas.items():
            entry = {"curve": by_order[name].mean(0).tolist(), "auc": float(area.mean())}
            entry["interval"] = _interval(weights @ area)
            if name != "map":
                difference = areas["map"] - area
                entry |= {
                    "difference": float(difference.mean()),
                    "difference_interval": _interval(weights @ difference),
                }
            found[way][name] = entry
    found["passed"], found["verdict"] = _deletion_verdict(found)
    return found


def _deletion_verdict(found: dict[str, Any]) -> tuple[bool | None, str]:
    if found["moves"] < LEAST_MOVE:
        return None, (
            f"cannot be judged: the probability moves by {found['moves']:.1g} of 1 at most, whatever is blurred "
            f"(at least {LEAST_MOVE:g} is needed)"
        )
    said, better = [], []
    for way, sign in (("deletion", -1), ("insertion", 1)):
        for name in ("random order", "centre"):
            low, high = sorted(sign * bound for bound in found[way][name]["difference_interval"])
            state = "beats" if low > 0 else "loses to" if high < 0 else "not told from"
            said.append(f"{way} {state} {name}")
            better.append(low > 0 or name == "centre")
    passed = all(better)
    start = (
        "passes: what the map marks matters more than chance"
        if passed
        else "FAILS: what the map marks does not clearly matter more than patches drawn by chance"
    )
    return passed, f"{start} ({', '.join(said)}; passes where both beat random order, by 95% intervals)"


# --- do they stand still ---


def equivariance(
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    *,
    explain: Explain,
    batch_size: int = 32,
    progress: str | None = None,
) -> dict[str, Any]:
    """Return how well a map agrees with those of the turned and mirrored tile, turned back, by rank correlation.

    Args:
        model, images, classes, explain, batch_size: as for `randomisation`. progress: name of a bar, or None.

    Returns:
        {`tiles`, `symmetries`: {name: mean over tiles}, `mean`, `sd` (over tiles, of their mean over the seven),
        `passed`, `verdict`}.
    """
    own = _maps(model, images, classes, explain=explain, batch_size=batch_size)
    judged = [index for index, raw in enumerate(own) if not constant(raw)]
    if not judged:
        said = "cannot be judged: every map is constant"
        return {"tiles": 0, "symmetries": {}, "mean": None, "sd": None, "passed": None, "verdict": said}
    own, images, classes = own[judged], images[judged], classes[judged]
    found: dict[str, list[float]] = {}
    moves = [(turns, flip) for flip in (False, True) for turns in range(4) if turns or flip]
    for turns, flip in tqdm(moves, desc=progress, unit="symmetry", disable=progress is None, leave=False):
        maps = _maps(model, turned(images, turns, flip=flip), classes, explain=explain, batch_size=batch_size)
        back = turned(torch.from_numpy(maps), turns, flip=flip, back=True).numpy()
        name = f"{90 * turns}°{', mirrored' if flip else ''}"
        found[name] = [spearman(a, b) for a, b in zip(own, back, strict=True)]
    table = np.nan_to_num(np.array(list(found.values())))  # (7, N)
    mean = float(table.mean())
    passed = mean >= STEADY
    worst = min(range(len(moves)), key=lambda move: table[move].mean())
    name = list(found)[worst]
    word = "passes: the map turns with the tile" if passed else "FAILS: a turned or mirrored tile gets another map"
    return {
        "tiles": len(judged),
        "symmetries": {name: float(row.mean()) for name, row in zip(found, table, strict=True)},
        "mean": mean,
        "sd": float(table.mean(0).std(ddof=1)) if table.shape[1] > 1 else 0.0,
        "passed": passed,
        "verdict": (
            f"{word} (mean rank correlation {mean:.2f}, least {table[worst].mean():.2f} at {name}; "
            f"passes from {STEADY:g})"
        ),
    }


def turned(x: Tensor, turns: int, *, flip: bool, back: bool = False) -> Tensor:
    """Return tiles or maps (..., H, W) mirrored left to right if `flip`, then turned left by quarters; or `back`."""
    if back:
        x = torch.rot90(x, -turns, dims=(-2, -1))
        return x.flip(-1) if flip else x
    return torch.rot90(x.flip(-1) if flip else x, turns, dims=(-2, -1))


# --- shared ---


def _maps(model: nn.Module, images: Tensor, classes: Tensor, *, explain: Explain, batch_size: int) -> Array:
    """Return raw maps, float64 (N, h, w)."""
    parts = [
        explain(model, images[start : start + batch_size], classes[start : start + batch_size]).double().cpu()
        for start in range(0, len(images), batch_size)
    ]
    found: Array = torch.cat(parts).numpy()
    return found


def _enlarged(maps: Array, size_px: int) -> Array:
    large: Array = cam.upsample(torch.from_numpy(maps), size_px=size_px).numpy()
    return large


def _drawn(raw: Array, size_px: int) -> Array:
    """Return a map as it is drawn: its positive part over its maximum, enlarged."""
    if not np.isfinite(raw).all():
        return np.zeros((size_px, size_px))
    return np.asarray(cam.normalise(_enlarged(raw[None], size_px)[0]), dtype=np.float64)


def _pixel_ranks(maps: Array, ties: Array) -> npt.NDArray[np.float32]:
    """Return when each pixel's turn comes, highest first, as a share of the tile, 0..1, 1 excluded; (N, S, S)."""
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


def _over_tiles(values: Array) -> dict[str, list[float]]:
    """Return the mean and the standard deviation over tiles of values (D, N)."""
    sd = values.std(1, ddof=1) if values.shape[1] > 1 else np.zeros(len(values))
    return {"mean": values.mean(1).tolist(), "sd": sd.tolist()}


def _interval(values: Array) -> list[float]:
    return [float(bound) for bound in np.quantile(values, [0.025, 0.975])]
