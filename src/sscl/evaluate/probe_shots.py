"""What SimpleShot finds on an encoder's features, over draws and seeds, and paired differences, with 95% intervals.

N tiles, K classes, D draws.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from sscl.evaluate import influence
from sscl.evaluate.intervals import Estimate, Groups, Interval, Sample, draw_variance, metric_interval, wald_interval
from sscl.evaluate.metrics import OF_LABELS, IntArray
from sscl.evaluate.probe_results import LabelMetrics, OverRuns, seed_pairs
from sscl.evaluate.simpleshot import draw_shots, enough_tiles, simpleshot_predictions


class ShotPlace(NamedTuple):
    """Where encoders are compared: so many shots of a set's training tiles, on one part of the set."""

    set: str
    part: str
    shots: int


class FewShot(LabelMetrics):
    """An encoder with a number of shots on a part of a set, over draws.

    Attributes:
        left_out: classes with fewer training tiles than shots.
        balanced_accuracy, ...: `sd` is over the draws; `values`: the mean over these for each seed of the encoder.
    """

    encoder: str
    set: str
    part: str
    shots: int
    draws: int
    left_out: tuple[str, ...]


class FewShotGain(LabelMetrics):
    """How much better an encoder is than the reference with the same draws; the metrics as of `FewShot`."""

    encoder: str
    reference: str
    set: str
    part: str
    shots: int
    draws: int


@dataclass(frozen=True, eq=False)
class ShotRun:
    """One seed of an encoder at a place.

    Attributes:
        values: of each metric in each draw, (3, D). means: estimates of their means over the draws.
        left_out: names of classes.
    """

    encoder: str
    seed: int
    place: ShotPlace
    values: np.ndarray
    means: tuple[Estimate, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Features of labelled tiles, (N, C), their labels, (N,), and their slides or patients, (N,), or None."""

    features: torch.Tensor
    labels: IntArray
    groups: Groups | None = None


def shot_runs(
    train: Labelled,
    queries: Labelled,
    *,
    classes: Sequence[str],
    shots: Sequence[int],
    draws: int,
    encoder: str,
    seed: int,
    part: tuple[str, str],
) -> list[ShotRun]:
    """Return what SimpleShot finds with each number of shots.

    A class with fewer training tiles than shots is left out, its queries too; where fewer than two classes or no
    queries remain, that number of shots is.

    Args:
        classes: their names. encoder, seed, part: what the runs are of; part: names of a set and of its part.
    """
    found = []
    for number in shots:
        kept = enough_tiles(train.labels, shots=number, num_classes=len(classes))
        asked = np.flatnonzero(np.isin(queries.labels, kept))
        if len(kept) < 2 or not len(asked):
            continue
        drawn = draw_shots(train.labels, kept, most=max(shots), draws=draws, seed=0)
        points = queries.features[torch.from_numpy(asked)]
        called = kept[simpleshot_predictions(train.features, drawn, points, shots=number)]
        groups = None if queries.groups is None else np.asarray(queries.groups)[asked]
        sample = Sample.of(queries.labels[asked], classes=len(classes), groups=groups)
        values, means = [], []
        for metric in influence.LABEL_METRICS:
            estimates = [metric(predictions, sample) for predictions in called]
            values.append([one.value for one in estimates])
            means.append(influence.mean_estimate(estimates))
        left_out = tuple(name for label, name in enumerate(classes) if label not in kept)
        found.append(ShotRun(encoder, seed, ShotPlace(*part, number), np.array(values), tuple(means), left_out))
    return found


def summarise_shots(runs: Sequence[ShotRun]) -> tuple[FewShot, ...]:
    """Return the metrics of each encoder at each place, over draws and seeds."""
    rows: dict[tuple[str, ShotPlace], list[ShotRun]] = {}
    for run in runs:
        rows.setdefault((run.encoder, run.place), []).append(run)
    found = []
    for (encoder, place), of in rows.items():
        over = _over_draws(
            [run.values for run in of], [run.means for run in of], [run.seed for run in of], of=metric_interval
        )
        facts = {"encoder": encoder, **place._asdict(), "draws": of[0].values.shape[1], "left_out": of[0].left_out}
        found.append(FewShot.model_validate(facts | over))
    return tuple(found)


def shot_differences(runs: Sequence[ShotRun], *, reference: str) -> tuple[FewShotGain, ...]:
    """Return how much better each encoder is than the reference, over pairs of the same seed and draw.

    An encoder of one seed is paired with every seed of the other.
    """
    rows: dict[tuple[str, ShotPlace], dict[int, ShotRun]] = {}
    for run in runs:
        rows.setdefault((run.encoder, run.place), {})[run.seed] = run
    gains = []
    for (encoder, place), ours in rows.items():
        if encoder == reference:
            continue
        theirs = rows[reference, place]
        pairs = seed_pairs(ours, theirs)
        over = _over_draws(
            [ours[a].values - theirs[b].values for a, b in pairs],
            [tuple(map(influence.difference, ours[a].means, theirs[b].means)) for a, b in pairs],
            pairs,
            of=partial(wald_interval, bounds=(-1, 1)),
        )
        facts = {"encoder": encoder, "reference": reference, **place._asdict()}
        draws = next(iter(ours.values())).values.shape[1]
        gains.append(FewShotGain.model_validate(facts | {"draws": draws} | over))
    return tuple(gains)


def _over_draws(
    values: Sequence[np.ndarray],
    means: Sequence[Sequence[Estimate]],
    seeds: Sequence[Hashable],
    *,
    of: Callable[..., Interval | None],
) -> dict[str, OverRuns]:
    """Return each metric over draws and seeds. values, means: of each run. of: makes the interval."""
    found = {}
    for index, metric in enumerate(OF_LABELS):
        columns = [one[index] for one in values]
        each = np.concatenate(columns)
        levels = [(seed, draw) for seed, column in zip(seeds, columns, strict=True) for draw in range(len(column))]
        over_draws = np.mean(columns, axis=0)
        found[metric] = OverRuns(
            mean=float(each.mean()),
            sd=float(over_draws.std(ddof=1)) if len(over_draws) > 1 else None,
            values=tuple(float(column.mean()) for column in columns),
            interval=of(
                influence.mean_estimate([one[index] for one in means]), draws=draw_variance(each.tolist(), levels)
            ),
        )
    return found
