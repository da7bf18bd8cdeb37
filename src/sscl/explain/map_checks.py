"""Checks of heatmaps that make new maps: do they depend on the weights, and move with the tile?

N tiles, S the side of a tile in pixels, h x w cells of a map, D depths of a model.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sscl.evaluate.intervals import Groups
from sscl.evaluate.verdicts import Mean, Outcome, verdict_of
from sscl.explain import boxes, cam
from sscl.explain.map_similarity import constant, spearman, ssim
from sscl.explain.records import Equivariance, Randomisation, Spread
from sscl.progress import Bar, over

Array = npt.NDArray[np.float64]
Explain = Callable[[nn.Module, Tensor, Tensor], Tensor]  # model, tiles (B, 3, S, S), classes (B, 1 or 2) -> (B, h, w)

# Below it two maps count as different: the two orders of cells share less than a quarter of their variance.
UNRELATED = 0.5
# With fewer cells, unrelated maps look similar by chance: with 9, their mean |rank correlation| is 0.28.
FEWEST_CELLS = 16
STEADY = 0.7  # least mean rank correlation of a map with those of the rotated and flipped tile


# --- do they depend on the weights ---


def stages(model: nn.Module) -> list[tuple[str, list[str]]]:
    """Return the parts of a model from its head downwards: (name, prefixes of the parameters and buffers in it).

    Parts are its blocks: the items of its sequences; neighbouring single layers, such as the first convolution and its
    batch norm, are one part. The order is that in which the model names them.
    """
    found: list[tuple[str, list[str]]] = []

    def visit(module: nn.Module, prefix: str, *, wrapper: bool) -> None:
        direct = [f"{prefix}{name}" for name in module.state_dict() if "." not in name]
        if direct:
            found.append((direct[0], direct))
        children = {name: child for name, child in module.named_children() if child.state_dict()}
        after_single = False  # the one before was a single layer too
        for name, child in children.items():
            whole, single = f"{prefix}{name}", not any(True for _ in child.children())
            if isinstance(child, (nn.Sequential, nn.ModuleList)):
                visit(child, f"{whole}.", wrapper=False)
            elif wrapper and not single:  # the encoder, and another package's model inside it
                only = sum(bool(other.state_dict()) for other in child.children()) == 1
                visit(child, f"{whole}.", wrapper=only)
            elif single and after_single and prefix:  # not a model's head with its trunk
                found[-1][1].append(whole)
            else:
                found.append((whole, [whole]))
            after_single = single

    visit(model, "", wrapper=True)
    return found[::-1]


def cascade(model: nn.Module, random_model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name of the part, model) with more and more parts, from the head downwards, taken from `random_model`.

    Args:
        model: the trained model; it is not changed.
        random_model: the same model as it is before training.

    Source: cascading randomisation, Adebayo et al., arXiv:1810.03292, sec. 4.1.
    """
    mixed = copy.deepcopy(model).eval()
    state, fresh = mixed.state_dict(), random_model.state_dict()
    for name, prefixes in stages(model):
        for key, value in state.items():
            if any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes):
                value.copy_(fresh[key])
        yield name, mixed


def randomisation(
    model: nn.Module,
    random_models: Sequence[nn.Module],
    images: Tensor,
    classes: Tensor,
    *,
    explain: Explain,
    groups: Groups | None = None,
    batch_size: int = 32,
    progress: str | None = None,
) -> Randomisation:
    """Return how similar the maps remain while the model is randomised from its head downwards.

    Rank correlation is of the raw cells, SSIM of the maps as they are drawn. If only the random model's map is
    constant, the correlation counts as 0; tiles whose trained map is constant are left out.

    Args:
        model: the trained model, in eval mode.
        random_models: the model as it is before training, once per draw.
        images: (N, 3, S, S), normalised.
        classes: what is explained, the same for all models, (N, 1 or 2), from `targets.target_classes`.
        explain: makes maps, see `Explain`. groups: slide or patient of each tile, (N,); None = independent tiles.
        batch_size: tiles at a time. progress: name of a bar, or None.

    Source: Adebayo et al., arXiv:1810.03292.
    """
    trained = maps_of(model, images, classes, explain=explain, batch_size=batch_size)
    kept = [index for index, raw in enumerate(trained) if not constant(raw)]
    names, cells = tuple(name for name, _ in stages(model)), int(trained[0].size)
    outcome = Outcome.NOT_ASSESSED
    reason = "every map is constant, so there are no ranks to compare"
    signed = absolute = similar = Spread()
    if kept:
        trained, images, classes = trained[kept], images[kept], classes[kept]
        size = images.shape[-1]
        drawn = [_drawn(raw, size) for raw in trained]
        ranks = np.zeros((len(random_models), len(names), len(kept)))
        structure = np.zeros_like(ranks)
        total = len(random_models) * len(names)
        with Bar(total, desc=progress, unit="model") as bar:
            for draw, random_model in enumerate(random_models):
                for depth, (_, mixed) in enumerate(cascade(model, random_model)):
                    maps = maps_of(mixed, images, classes, explain=explain, batch_size=batch_size)
                    assert maps.shape == trained.shape
                    for tile, raw in enumerate(maps):
                        ranks[draw, depth, tile] = np.nan_to_num(spearman(trained[tile], raw))
                        structure[draw, depth, tile] = ssim(drawn[tile], _drawn(raw, size))
                    bar.update()
        left = Mean.of(np.abs(ranks)[:, -1].mean(0), groups=those_of(groups, kept))
        outcome, reason = _depends_on_weights(left, cells=cells)
        signed, absolute, similar = (Spread.over_tiles(of.mean(0)) for of in (ranks, np.abs(ranks), structure))
    return Randomisation(
        tiles=len(kept),
        outcome=outcome,
        verdict=verdict_of(outcome, reason),
        draws=len(random_models),
        cells=cells,
        stages=names,
        unrelated_below=UNRELATED,
        rank_correlation=signed,
        absolute_rank_correlation=absolute,
        ssim=similar,
    )


def _depends_on_weights(left: Mean, *, cells: int) -> tuple[Outcome, str]:
    """Return whether the maps depend on the weights, and why.

    Args:
        left: |rank correlation| of a tile's maps with all weights random, mean over draws.
    """
    by_chance, measured = chance_correlation(cells), f"mean |rank correlation| {left.value:.2f} with all weights random"
    if left.value >= 0.99:
        return Outcome.FAILED, f"the maps do not depend on the weights at all ({measured})"
    if cells < FEWEST_CELLS:
        return Outcome.NOT_ASSESSED, (
            f"maps of {cells} cells are too coarse (|rank correlation| {left.value:.2f}, unrelated maps have "
            f"{by_chance:.2f}); choose an earlier layer, several layers, or larger tiles"
        )
    outcome = left.below(UNRELATED)
    said = {
        Outcome.PASSED: "the maps depend on the trained weights",
        Outcome.FAILED: "the maps look much the same without training",
        Outcome.INCONCLUSIVE: "the maps may or may not depend on the trained weights",
    }[outcome]
    return outcome, (
        f"{said} (mean |rank correlation| with all weights random {left.measured}; passes below {UNRELATED:g}, "
        f"unrelated maps have {by_chance:.2f}{left.detects})"
    )


def chance_correlation(cells: int) -> float:
    """Return the mean |rank correlation| of two unrelated maps of so many independent cells (normal approximation)."""
    return math.sqrt(2 / (math.pi * (cells - 1)))


# --- do they move with the tile ---


def equivariance(
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    *,
    explain: Explain,
    groups: Groups | None = None,
    batch_size: int = 32,
    progress: str | None = None,
) -> Equivariance:
    """Return how well a map agrees with those of the rotated and flipped tile, moved back, by rank correlation.

    Args:
        model, images, classes, explain, groups, batch_size, progress: as for `randomisation`.
    """
    upright = maps_of(model, images, classes, explain=explain, batch_size=batch_size)
    kept = [index for index, raw in enumerate(upright) if not constant(raw)]
    if not kept:
        none = Outcome.NOT_ASSESSED
        return Equivariance(tiles=0, outcome=none, verdict=verdict_of(none, "every map is constant"))
    upright, images, classes = upright[kept], images[kept], classes[kept]
    found: dict[str, list[float]] = {}
    moves = [(turns, flip) for flip in (False, True) for turns in range(4) if turns or flip]
    for turns, flip in over(moves, total=len(moves), desc=progress, unit="tile position"):
        maps = maps_of(model, turned(images, turns, flip=flip), classes, explain=explain, batch_size=batch_size)
        back = turned(torch.from_numpy(maps), turns, flip=flip, back=True).numpy()
        name = f"{90 * turns}°{', mirrored' if flip else ''}"
        found[name] = [spearman(a, b) for a, b in zip(upright, back, strict=True)]
    table = np.nan_to_num(np.array(list(found.values())))  # (7, N)
    symmetries = {name: float(row.mean()) for name, row in zip(found, table, strict=True)}
    worst = min(symmetries, key=lambda name: symmetries[name])
    mean = Mean.of(table.mean(0), groups=those_of(groups, kept), bounds=(-1, 1))
    outcome = mean.above(STEADY)
    said = {
        Outcome.PASSED: "the maps rotate and flip with the tile",
        Outcome.FAILED: "a rotated or flipped tile gets a different map",
        Outcome.INCONCLUSIVE: "the maps may or may not rotate and flip with the tile",
    }[outcome]
    measured = (
        f"mean rank correlation {mean.measured}, lowest {symmetries[worst]:.2f} at {worst}; passes above "
        f"{STEADY:g}{mean.detects}"
    )
    return Equivariance(
        tiles=len(kept),
        outcome=outcome,
        verdict=verdict_of(outcome, f"{said} ({measured})"),
        symmetries=symmetries,
        mean=mean.value,
        sd=float(table.mean(0).std(ddof=1)) if table.shape[1] > 1 else 0.0,
    )


def turned(x: Tensor, turns: int, *, flip: bool, back: bool = False) -> Tensor:
    """Return tiles or maps (..., H, W) mirrored left to right if `flip`, then turned left by quarters; or `back`."""
    if back:
        x = torch.rot90(x, -turns, dims=(-2, -1))
        return x.flip(-1) if flip else x
    return torch.rot90(x.flip(-1) if flip else x, turns, dims=(-2, -1))


# --- shared ---


def those_of(groups: Groups | None, rows: Sequence[int]) -> Groups | None:
    """Return the groups of some of the tiles. groups: of all, (N,), or None. rows: which."""
    return None if groups is None else np.asarray(groups)[list(rows)]


def maps_of(model: nn.Module, images: Tensor, classes: Tensor, *, explain: Explain, batch_size: int) -> Array:
    """Return raw maps, float64 (N, h, w)."""
    parts = [
        explain(model, images[start : start + batch_size], classes[start : start + batch_size]).cpu().double()
        for start in range(0, len(images), batch_size)
    ]
    found: Array = torch.cat(parts).numpy()
    return found


def enlarged(maps: Array, size_px: int) -> Array:
    """Return maps (N, h, w) enlarged to (N, size_px, size_px)."""
    large: Array = cam.upsample(torch.from_numpy(maps), size_px=size_px).numpy()
    return large


def _drawn(raw: Array, size_px: int) -> Array:
    """Return a map as it is drawn: its positive part over its maximum, enlarged."""
    if not np.isfinite(raw).all():
        return np.zeros((size_px, size_px))
    return np.asarray(boxes.normalise(enlarged(raw[None], size_px)[0]), dtype=np.float64)
