"""Metrics of each slide or site apart, and whether the worst is worse than the others.

N tiles, K classes, G places.
"""

from __future__ import annotations

import math

import numpy as np

from sscl.data.tiles import Tiles
from sscl.evaluate import influence
from sscl.evaluate.intervals import (
    FEWEST,
    Estimate,
    Groups,
    Interval,
    Sample,
    ends_text,
    group_count,
    metric_interval,
    spread,
)
from sscl.evaluate.metrics import IntArray
from sscl.evaluate.tables import as_text
from sscl.records import Record
from sscl.words import short_names, some, wrapped

NAMES = {"group": ("slide or patient", "slides or patients"), "site": ("site", "sites")}
SHOWN = 40  # rows in the terminal, the worst; all are in metrics.json
TESTED = 40  # places, the lowest
_LEVEL = 0.05


class Place(Record):
    """The metrics of one slide or site, with 95% intervals: over its slides where it has several, else its tiles.

    Attributes:
        slides: how many slides or patients the tiles of a site are of; None = not known, or the place is one itself.
        balanced_accuracy: None where all tiles are of one class.
        accuracy_interval, balanced_accuracy_interval: None = too few tiles or slides.
        difference: its accuracy minus that of all other tiles together. p: of no difference, times the number of places
            with enough tiles, since the lowest of many is low by chance. Both None: too few tiles or slides, or not
            among the TESTED lowest.
    """

    name: str
    tiles: int
    slides: int | None
    class_counts: dict[str, int]
    accuracy: float
    accuracy_interval: Interval | None
    balanced_accuracy: float | None
    balanced_accuracy_interval: Interval | None
    difference: float | None = None
    p: float | None = None


class ByPlace(Record):
    """Metrics by slide or site: of each place, those with the lowest accuracy first.

    Attributes:
        by: group or site.
        worst: the place with the lowest accuracy of those with enough tiles; None = fewer than two have.
        worse: places that are worse than the others beyond chance.
    """

    by: str
    places: tuple[Place, ...]
    worst: str | None
    worse: tuple[str, ...]


def check(tiles: Tiles, *, by: str) -> Groups:
    """Return the slide (by="group") or site (by="site") of each tile, (N,).

    Raises:
        ValueError: they are not known.
    """
    names = tiles.sites if by == "site" else tiles.groups
    if names is None:
        raise ValueError(
            f"by: got {by}, but the {NAMES[by][1]} of the tiles are not known; give them in the column {by!r} of the "
            "table or of data.groups_csv, or leave by out"
        )
    return names


def metrics_by_place(tiles: Tiles, predictions: IntArray, *, by: str) -> ByPlace:
    """Return the metrics of each slide (by="group") or site (by="site").

    Args:
        tiles: all of them labelled. predictions: class indices, (N,).

    Raises:
        ValueError: the slides or sites are not known.
    """
    names = check(tiles, by=by)
    slides = tiles.groups if by == "site" else None
    distinct, of, sizes = np.unique(names, return_inverse=True, return_counts=True)
    parts = np.split(np.argsort(of, kind="stable"), sizes.cumsum()[:-1])  # rows of each place
    found = [
        _of_place(str(name), tiles, predictions, rows=rows, slides=slides)
        for name, rows in zip(distinct, parts, strict=True)
    ]
    found.sort(key=lambda place: (place.accuracy, place.name))
    known = [place for place in found if place.tiles >= FEWEST]
    tested = {}
    for place in known[:TESTED] if len(known) > 1 else []:
        here = np.asarray(names) == place.name
        ours = influence.accuracy(predictions[here], _sample(tiles, np.flatnonzero(here), slides))
        # Slide by slide, the other tiles are a sample of slides.
        around = _sample(tiles, np.flatnonzero(~here), names if by == "group" else slides)
        theirs = influence.accuracy(predictions[~here], around)
        p = _p_value(ours, theirs)
        changes = {"difference": ours.value - theirs.value, "p": None if p is None else min(1.0, p * len(known))}
        tested[place.name] = place.model_copy(update=changes)
    places = tuple(tested.get(place.name, place) for place in found)
    return ByPlace(
        by=by,
        places=places,
        worst=known[0].name if len(known) > 1 else None,
        worse=tuple(one.name for one in places if one.p is not None and one.p < _LEVEL and (one.difference or 0) < 0),
    )


def _sample(tiles: Tiles, rows: IntArray, slides: Groups | None) -> Sample:
    return Sample.of(
        tiles.labels[rows], classes=len(tiles.classes), groups=None if slides is None else np.asarray(slides)[rows]
    )


def _of_place(name: str, tiles: Tiles, predictions: IntArray, *, rows: IntArray, slides: Groups | None) -> Place:
    sample = _sample(tiles, rows, slides)
    enough = len(rows) >= FEWEST
    accuracy = influence.accuracy(predictions[rows], sample)
    several = int((sample.counts > 0).sum()) > 1
    balanced = influence.balanced_accuracy(predictions[rows], sample) if several else None
    return Place(
        name=name,
        tiles=len(rows),
        slides=None if slides is None else group_count(np.asarray(slides)[rows]),
        class_counts={c: int(n) for c, n in zip(tiles.classes, sample.counts, strict=True) if n},
        accuracy=accuracy.value,
        accuracy_interval=metric_interval(accuracy) if enough else None,
        balanced_accuracy=None if balanced is None else balanced.value,
        balanced_accuracy_interval=None if balanced is None or not enough else metric_interval(balanced),
    )


def _p_value(here: Estimate, elsewhere: Estimate) -> float | None:
    """Return the two-sided p-value of equal accuracies, by Welch's t; None: too few tiles or slides on a side."""
    from scipy.special import stdtr

    variances, freedoms = zip(*(spread(one, floor=one.step**2) for one in (here, elsewhere)), strict=True)
    if min(freedoms) < FEWEST - 1:
        return None
    total = sum(variances)
    freedom = total**2 / sum(v**2 / min(f, 1e9) for v, f in zip(variances, freedoms, strict=True))
    return float(2 * stdtr(freedom, -abs(here.value - elsewhere.value) / math.sqrt(total)))


def as_lines(found: ByPlace) -> list[str]:
    """Return the table of the terminal, the worst first, and a sentence on the worst."""
    one, _ = NAMES[found.by]
    shown = found.places[:SHOWN]
    rows = [[one, "tiles", "accuracy", "95% interval", "balanced", "95% interval"]]
    for name, place in zip(short_names([place.name for place in shown], 16), shown, strict=True):
        few = "too few tiles" if place.slides is None or place.tiles < FEWEST else "too few slides"
        both = (place.accuracy_interval, place.balanced_accuracy_interval)
        of_all, of_balanced = (few if ends is None else ends_text(ends) for ends in both)
        if place.balanced_accuracy is None:
            balanced = ["one class", ""]
        else:
            balanced = [f"{place.balanced_accuracy:.3f}", of_balanced]
        rows.append([name, f"{place.tiles:,}", f"{place.accuracy:.3f}", of_all, *balanced])
    lines = [f"By {one}, the worst first", *(f"  {line}" for line in as_text(rows).splitlines())]
    if len(shown) < len(found.places):
        lines.append(f"  and {len(found.places) - len(shown):,} more, in metrics.json")
    return [*lines, *wrapped(worst_in_words(found), indent=2).splitlines()]


def worst_in_words(found: ByPlace) -> str:
    """Return which slide or site is the worst, and which ones are worse than the others beyond chance."""
    one, many = NAMES[found.by]
    if found.worst is None:
        return f"worst {one}: none to name; fewer than two {many} have {FEWEST} tiles"
    of = {place.name: place for place in found.places}
    worst, tested = of[found.worst], sum(place.tiles >= FEWEST for place in found.places)
    gap = f"{worst.difference:+.3f} accuracy to the other {many}"
    if found.worse:
        told = [f"{name} ({of[name].difference:+.3f}, p = {of[name].p:.2g})" for name in found.worse]
        verdict = f"worse than the others: {some(told)}; p is corrected for {tested:,} {many}"
    elif worst.p is None:
        verdict = "inconclusive: too few tiles or slides to tell it from chance"
    else:
        verdict = f"inconclusive: the lowest of {tested:,} is as low by chance (p = {worst.p:.2g})"
    return f"worst {one}: {found.worst}, {gap}; {verdict}"
