"""Do the nearest neighbours of a tile share its class, or only its slide or site? The robustness index of an encoder.

N tiles, C features, k neighbours.

Source: Kömen, de Jong et al. 2025, Towards Robust Foundation Models for Digital Pathology (PathoROB), arXiv:2507.17845.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from sscl.evaluate import influence
from sscl.evaluate.intervals import Estimate, Groups, Interval, Sample, draw_variance, metric_interval, wald_interval
from sscl.evaluate.metrics import FloatArray, IntArray
from sscl.evaluate.probe_results import seed_pairs
from sscl.records import Record

MOST_TILES = 10_000  # every tile is compared with every other
_QUERIES_AT_ONCE = 1024
Confounder = Literal["site", "group"]
NAMES: dict[Confounder, str] = {"group": "slide or patient", "site": "site"}


class Robustness(Record):
    """The robustness index of an encoder on a set's labelled tiles.

    Attributes:
        confounder: what else than the class neighbours may share. neighbours: k.
        tiles: that were compared. groups: of how many slides or patients they are; None = not known.
        index: of neighbours that share either the class or the confounder, the share of those that share the class;
            None: there are none. values: of each seed of the encoder.
        interval: 95%, over whole slides or patients, and over seeds where there are several.
        chance: the index of neighbours that were drawn at random.
    """

    encoder: str
    set: str
    confounder: Confounder
    neighbours: int
    tiles: int
    groups: int | None
    index: float | None
    values: tuple[float, ...]
    interval: Interval | None
    chance: float | None


class RobustnessGain(Record):
    """How much higher an encoder's index is than the reference's, on the same tiles."""

    encoder: str
    reference: str
    set: str
    difference: float
    interval: Interval | None


@dataclass(frozen=True, eq=False)
class Compared:
    """The tiles of a set whose neighbours are looked at.

    Attributes:
        rows: which they are of all, (N,). labels: (N,).
        confounders: number of each tile's site or slide, (N,). confounder: which of the two.
        slides: number of each tile's slide, (N,), where neighbours of the same slide do not count; None: they do.
        sample: the tiles without their classes, whole slides together, for the interval.
    """

    rows: IntArray
    labels: IntArray
    confounders: IntArray
    confounder: Confounder
    slides: IntArray | None
    sample: Sample

    @classmethod
    def of(cls, labels: IntArray, *, groups: Groups | None, sites: Groups | None) -> Compared | str:
        """Return the tiles, at most MOST_TILES, or why there is nothing to compare.

        Where sites are known, neighbours from the same slide do not count, as in PathoROB; else the slide is what
        neighbours may share.
        """
        rows = chosen_tiles(labels)
        labels = labels[rows]
        sites, groups = (None if names is None else np.asarray(names)[rows] for names in (sites, groups))
        given = sites if sites is not None else groups
        if given is None:
            return "no slides, patients or sites are known"
        what: Confounder = "group" if sites is None else "site"
        name = NAMES[what]
        confounders = np.unique(given, return_inverse=True)[1].astype(np.int64)
        if confounders.max(initial=0) == 0:
            return f"all tiles are of one {name}"
        both = np.unique(np.stack([confounders, labels]), axis=1)
        if np.bincount(both[0]).max() < 2:
            return f"no {name} has tiles of two classes"
        slides = None
        if sites is not None and groups is not None:
            slides = np.unique(groups, return_inverse=True)[1].astype(np.int64)
        return cls(rows, labels, confounders, what, slides, Sample.of(labels, classes=1, groups=groups).pooled)


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """Neighbours of one seed of an encoder. estimate: of the index, None where no neighbour counts."""

    encoder: str
    seed: int
    set: str
    estimate: Estimate | None
    neighbours: int


def chosen_tiles(labels: IntArray, *, most: int = MOST_TILES) -> IntArray:
    """Return rows of at most `most` tiles, the same share of each class, drawn with a fixed seed."""
    if len(labels) <= most:
        return np.arange(len(labels))
    order = np.random.default_rng(0).permutation(len(labels))
    ranked = order[np.argsort(labels[order], kind="stable")]  # by class, in random order within
    return np.sort(ranked[np.linspace(0, len(labels) - 1, most).astype(np.int64)])


def counts_of_neighbours(features: torch.Tensor, compared: Compared, *, neighbours: int) -> tuple[IntArray, IntArray]:
    """Return for each tile its neighbours of the same class elsewhere, and of another class at the same place, (N,).

    Args:
        features: (N, C). neighbours: k, by cosine similarity; the tile itself does not count.
    """
    unit = F.normalize(features.float(), dim=1)
    labels, places = torch.from_numpy(compared.labels), torch.from_numpy(compared.confounders)
    own = torch.arange(len(unit)) if compared.slides is None else torch.from_numpy(compared.slides)
    same_class, same_place = [], []
    for rows in torch.split(torch.arange(len(unit)), _QUERIES_AT_ONCE):
        alike = unit[rows] @ unit.T
        alike[own[rows, None] == own[None, :]] = -2.0
        similarity, where = alike.topk(min(neighbours, len(unit)), dim=1)
        real = similarity > -2
        of_class, of_place = labels[where] == labels[rows, None], places[where] == places[rows, None]
        same_class.append((real & of_class & ~of_place).sum(1))
        same_place.append((real & ~of_class & of_place).sum(1))
    return torch.cat(same_class).numpy(), torch.cat(same_place).numpy()


def index_of(same_class: IntArray, same_place: IntArray, sample: Sample) -> Estimate | None:
    """Return the estimate of the robustness index, a ratio of sums over tiles; None where no neighbour counts."""
    counted = same_class + same_place
    total = int(counted.sum())
    if not total:
        return None
    value = float(same_class.sum() / total)
    moved: FloatArray = (same_class - value * counted) / total
    tiles = int((counted > 0).sum())
    centre = (value * tiles + 1) / (tiles + 2)
    extra = max(centre * (1 - centre) - value * (1 - value), 0.0) / tiles
    step = float(counted.max() / total)
    return Estimate(value, moved, centre, np.array([extra]), np.array([step]), sample)


def chance_of(compared: Compared) -> float | None:
    """Return the index where each tile's neighbours are drawn at random from those that may be; None: as `index_of`."""
    labels, places = compared.labels, compared.confounders
    same_class = _sharing(labels) - _sharing(labels, places)
    same_place = _sharing(places) - _sharing(labels, places)
    allowed: IntArray = np.full(len(labels), len(labels) - 1)
    if (slides := compared.slides) is not None:
        same_class = same_class - _sharing(labels, slides) + _sharing(labels, places, slides)
        same_place = same_place - _sharing(places, slides) + _sharing(labels, places, slides)
        allowed = np.maximum(len(labels) - _sharing(slides), 1)
    expected = float((same_class / allowed).sum()), float((same_place / allowed).sum())
    return None if not sum(expected) else expected[0] / sum(expected)


def _sharing(*keys: IntArray) -> IntArray:
    """Return how many tiles have all these keys in common with each, itself included, (N,). keys: (N,) each."""
    _, of, counts = np.unique(np.stack(keys), axis=1, return_inverse=True, return_counts=True)
    found: IntArray = counts[of.ravel()]
    return found


def summarise_robustness(found: Sequence[Neighbourhood], compared: dict[str, Compared]) -> tuple[Robustness, ...]:
    """Return the index of each encoder on each set, over its seeds. compared: the tiles of each set."""
    rows: dict[tuple[str, str], list[Neighbourhood]] = {}
    for one in found:
        rows.setdefault((one.encoder, one.set), []).append(one)
    summaries = []
    for (encoder, where), runs in rows.items():
        tiles = compared[where]
        estimates = [one.estimate for one in runs if one.estimate is not None]
        values = tuple(one.value for one in estimates)
        summaries.append(
            Robustness(
                encoder=encoder,
                set=where,
                confounder=tiles.confounder,
                neighbours=runs[0].neighbours,
                tiles=len(tiles.labels),
                groups=None if tiles.sample.groups is None else len(np.unique(tiles.sample.groups)),
                index=float(np.mean(values)) if values else None,
                values=values,
                interval=_interval(estimates, [one.seed for one in runs]) if values else None,
                chance=chance_of(tiles),
            )
        )
    return tuple(summaries)


def _interval(estimates: Sequence[Estimate], seeds: Sequence[int]) -> Interval | None:
    values = [one.value for one in estimates]
    draws = draw_variance(values, [(seed,) for seed in seeds]) if len(values) == len(seeds) else None
    return metric_interval(influence.mean_estimate(estimates), draws=draws)


def robustness_differences(found: Sequence[Neighbourhood], *, reference: str) -> tuple[RobustnessGain, ...]:
    """Return how much higher each encoder's index is than the reference's, over pairs of seeds."""
    rows: dict[tuple[str, str], dict[int, Estimate]] = {}
    for one in found:
        if one.estimate is not None:
            rows.setdefault((one.encoder, one.set), {})[one.seed] = one.estimate
    gains = []
    for (encoder, where), ours in rows.items():
        theirs = rows.get((reference, where), {})
        pairs = seed_pairs(ours, theirs)
        if encoder == reference or not pairs:
            continue
        each = [influence.difference(ours[a], theirs[b]) for a, b in pairs]
        values = [one.value for one in each]
        interval = wald_interval(
            influence.mean_estimate(each), draws=draw_variance(values, [(pair,) for pair in pairs]), bounds=(-1, 1)
        )
        gains.append(
            RobustnessGain(
                encoder=encoder,
                reference=reference,
                set=where,
                difference=float(np.mean(values)),
                interval=interval,
            )
        )
    return tuple(gains)
