"""What `sscl gradcam` writes as JSON: checks.json (`MapChecks`) and localisation.json (`Localisation`).

D depths of a model, K steps of a curve, T thresholds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from sscl.evaluate.intervals import FEWEST, Interval, few_groups
from sscl.evaluate.verdicts import Outcome
from sscl.records import Record
from sscl.words import count

Numbers = tuple[float, ...]

CHECKED_BY = "sscl gradcam checks=true"  # writes checks.json


class Spread(Record):
    """Mean and standard deviation over tiles, one of each per depth or threshold; empty if nothing was measured."""

    mean: Numbers = ()
    sd: Numbers = ()

    @classmethod
    def over_tiles(cls, values: npt.NDArray[np.float64]) -> Spread:
        """Return the spread of values (D or T, N) over their N tiles; the standard deviation of one tile is 0."""
        sd = values.std(1, ddof=1) if values.shape[1] > 1 else np.zeros(len(values))
        return cls(mean=tuple(values.mean(1).tolist()), sd=tuple(sd.tolist()))


class Check(Record):
    """What every check says.

    Attributes:
        question: what is checked. tiles: how many were assessed.
        outcome: passed, failed, inconclusive on so many tiles, or not assessed on these maps.
        verdict: outcome and reason, in words.
    """

    question: str
    tiles: int
    outcome: Outcome
    verdict: str

    @property
    def reason(self) -> str:
        """The verdict without its outcome."""
        return self.verdict.removeprefix(f"{self.outcome.value}: ")


class Randomisation(Check):
    """How similar the maps remain while the model is randomised from its head down; see `map_checks.randomisation`.

    Attributes:
        draws: random models. cells: of a map. stages: D names. unrelated_below: |rank correlation| that passes.
        rank_correlation, absolute_rank_correlation, ssim: D numbers each, of the mean over draws.
    """

    question: str = "Do the maps depend on the trained weights?"
    draws: int
    cells: int
    stages: tuple[str, ...]
    unrelated_below: float
    rank_correlation: Spread = Spread()
    absolute_rank_correlation: Spread = Spread()
    ssim: Spread = Spread()


class OrderCurve(Record):
    """The mean probability of the explained class while pixels are blurred, or restored, in one order.

    Attributes:
        curve: K + 1 probabilities, means over tiles.
        auc: area under it. interval: of the area, 95% over tiles; None of one tile, or one slide.
        difference: area of the map's order - this area, with its interval; None for the map's own order.
    """

    curve: Numbers
    auc: float
    interval: Interval | None
    difference: float | None = None
    difference_interval: Interval | None = None


class DeletionInsertion(Check):
    """Whether the highlighted pixels matter more than others; see `map_checks.deletion_insertion`.

    Attributes:
        fractions: of the tile, K + 1 from 0 to 1. moves: largest mean change of the probability along a curve.
        deletion, insertion: by order: "map", "random order", "centre".
    """

    question: str = "Does the model rely on what the maps highlight?"
    fractions: Numbers
    moves: float
    deletion: dict[str, OrderCurve]
    insertion: dict[str, OrderCurve]


class Equivariance(Check):
    """Whether the map rotates and flips with its tile; see `map_checks.equivariance`.

    Attributes:
        symmetries: mean rank correlation over tiles, by symmetry. mean, sd: over tiles, of their mean over symmetries.
    """

    question: str = "Do the maps rotate and flip with the tile?"
    symmetries: dict[str, float] = Field(default_factory=dict)
    mean: float | None = None
    sd: float | None = None


class BoxSensitivity(Check):
    """How the box changes with its threshold; see `box_checks.box_sensitivity`.

    Attributes:
        threshold: in use. thresholds: T fractions of the maximum.
        whole_tile: tiles whose box in use says no place, see `boxes.Box.localises`.
        area_fraction: of the tile. centre_shift: from the box in use, in tile sides. iou: with the box in use.
        ends: mean IoU of the boxes a fifth below and above the threshold in use, 0 where that box is the whole tile.
    """

    question: str = "Does the box stay the same when its threshold changes?"
    threshold: float
    thresholds: Numbers
    whole_tile: int = 0
    area_fraction: Spread = Spread()
    centre_shift: Spread = Spread()
    iou: Spread = Spread()
    ends: float | None = None


class MapChecks(Record):
    """The content of checks.json."""

    tiles: int
    randomisation: Randomisation
    deletion_insertion: DeletionInsertion
    equivariance: Equivariance
    box_sensitivity: BoxSensitivity

    @property
    def each(self) -> dict[str, Check]:
        """The checks by name, in the order in which they are reported."""
        names = ("randomisation", "deletion_insertion", "equivariance", "box_sensitivity")
        return {name: getattr(self, name) for name in names}


class BoxAccuracy(Record):
    """The fraction of boxes that overlap enough at the best threshold; the whole tile has no threshold."""

    accuracy: float
    threshold: float | None


class HitRates(Record):
    """How often peaks and boxes hit truth masks; see `box_checks.localisation_rates`.

    Attributes:
        tiles: with a mask that is not empty. groups: of which they are; None = independent tiles.
        peak_hit, box_hit: fractions of these, with 95% intervals.
        peak_hit_interval: None where peak_hit is an expectation, not a count. Intervals None: too few groups.
        mean_box_iou: of the box with the peak and the rectangle around the whole mask.
        mean_boxes_iou: of all boxes together and the rectangles around the parts of the mask, see `boxes.localisation`.
        max_box_accuracy: by least IoU; None unless all thresholds were tried.
    """

    tiles: int
    groups: int | None = None
    peak_hit: float
    peak_hit_interval: Interval | None = None
    box_hit: float
    box_hit_interval: Interval | None
    mean_box_iou: float
    mean_boxes_iou: float
    mean_boxes_iou_interval: Interval | None = None
    max_box_accuracy: dict[str, BoxAccuracy] | None = None

    @property
    def interval_method(self) -> str:
        """How the intervals are made, or why there are none."""
        if self.groups is None:
            return "95% intervals, tiles taken as independent"
        few = few_groups(self.groups) if self.groups < FEWEST else None
        return few or f"95% intervals over {count(self.groups, 'group')} of tiles"


class Gain(Record):
    """By how much the mean boxes IoU of the model's maps exceeds that of a baseline, over the same tiles."""

    mean: float
    interval: Interval | None


class Localisation(Record):
    """The content of localisation.json: hit rates of the model's maps, and of baselines; gains: over each of these."""

    model_config = ConfigDict(alias_generator=lambda name: name.replace("_", " "), populate_by_name=True)

    this_model: HitRates
    centre: HitRates
    random_weights: HitRates
    whole_tile: HitRates
    gains: dict[str, Gain]

    @property
    def each(self) -> dict[str, HitRates]:
        """The rates by what made the maps."""
        rows = ("this_model", "centre", "random_weights", "whole_tile")
        return {name.replace("_", " "): getattr(self, name) for name in rows}
