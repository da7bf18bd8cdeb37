"""How often verdicts are right: each is given on simulated sets of which the answer is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from scipy.stats import norm

from simulated.coverage import now
from simulated.regimes import Regime, TestSet
from sscl.evaluate import comparison, influence
from sscl.evaluate.calibration import expected_calibration_error, miscalled_classes
from sscl.evaluate.evaluation import error_by_chance
from sscl.evaluate.intervals import Sample, wald_interval
from sscl.evaluate.metrics import FloatArray, IntArray
from sscl.evaluate.verdicts import Mean, Outcome, better_than_chance, calibrated
from sscl.explain.box_checks import SAME_BOX
from sscl.explain.deletion_insertion import highlights_what_matters, order_curves
from sscl.explain.map_checks import STEADY

Size = tuple[int, int | None]  # tiles, slides; None = independent tiles
Names = npt.NDArray[np.str_]
Draw = Callable[[Size, float, np.random.Generator], str]

SIZES: tuple[Size, ...] = ((50, None), (200, None), (1000, None), (200, 20), (1000, 30))
CHECKED: tuple[Size, ...] = ((6, None), (16, None), (32, None), (32, 8), (100, 20))
COMPARED: tuple[Size, ...] = ((100, None), (500, None), (2000, None), (500, 25), (2000, 100))


def _shared(size: Size, correlation: float, rng: np.random.Generator) -> tuple[FloatArray, Names | None]:
    """Return standard normal numbers, (N,), of which those of a slide share a part, and the slides."""
    tiles, slides = size
    own = rng.standard_normal(tiles)
    if slides is None:
        return own, None
    groups = np.arange(tiles) * slides // tiles
    of_slide = rng.standard_normal(slides)[groups]
    return correlation**0.5 * of_slide + (1 - correlation) ** 0.5 * own, groups.astype(str)


def _confident(size: Size, off: float, rng: np.random.Generator) -> tuple[IntArray, FloatArray, Sample]:
    """Return labels, probabilities whose confidence is too high by `off`, and their sample."""
    noise, groups = _shared(size, 0.3, rng)
    logit = 1.5 * rng.standard_normal(size[0])
    probabilities = np.column_stack([expit(-logit), expit(logit)])
    right = norm.cdf(noise) < np.maximum(probabilities.max(1) - off, 0)
    labels = np.where(right, probabilities.argmax(1), probabilities.argmin(1))
    return labels, probabilities, Sample.of(labels, classes=2, groups=groups)


def is_calibrated(size: Size, off: float, rng: np.random.Generator) -> str:
    """Return the verdict on probabilities that are too sure by `off`."""
    labels, probabilities, sample = _confident(size, off, rng)
    chance = error_by_chance(labels, probabilities, sample)
    error = expected_calibration_error(labels, probabilities)
    return calibrated(error, bound=chance.quantile_95, power=chance.power).value


def is_called_fairly(size: Size, off: float, rng: np.random.Generator) -> str:
    """Return whether no class is named as called too often, or too rarely, where class 1 is by `off`."""
    noise, groups = _shared(size, 0.3, rng)
    score = rng.uniform(0.15, 0.85, size[0])
    labels = (norm.cdf(noise) < score + off).astype(np.int64)
    sample = Sample.of(labels, classes=2, groups=groups)
    return Outcome.of(not miscalled_classes(labels, np.column_stack([1 - score, score]), sample=sample)).value


def is_better(size: Size, gain: float, rng: np.random.Generator) -> str:
    """Return the verdict on a balanced accuracy of two classes that is `gain` above chance."""
    kind = Regime("", *size, sensitivity=0.5 + gain, specificity=0.5 + gain, fixed=True)
    ends = now(kind.draw(rng))["balanced_accuracy"]
    return (Outcome.INCONCLUSIVE if ends is None else better_than_chance(ends, 0.5, tiles=size[0])).value


def _mean(bound: float, alike: bool) -> Draw:
    """Return what draws a verdict on whether a mean over tiles is above a bound.

    Args:
        alike: whether nine tiles of ten are all alike and the tenth is 0; else they are spread evenly.
    """

    def draw(size: Size, away: float, rng: np.random.Generator) -> str:
        noise, groups = _shared(size, 0.5, rng)
        place, mean = norm.cdf(noise), bound + away
        values = np.where(place < 0.1, 0.0, mean / 0.9) if alike else mean + (2 * place - 1) * min(mean, 1 - mean)
        return Mean.of(values, groups=groups).above(bound).value

    return draw


def is_highlighted(size: Size, gain: float, rng: np.random.Generator) -> str:
    """Return the verdict on maps whose order gains `gain` over the random one, where blurring changes 0.5."""
    moves, ways = 0.5, []
    for sign in (-1, 1):
        noise, groups = _shared(size, 0.5, rng)
        base = 0.5 + 0.1 * rng.standard_normal(size[0])
        skewed = np.exp(noise - 0.5) - 1  # a few tiles differ a lot
        areas = {"map": base + sign * (gain + 0.08 * skewed), "random order": base, "centre": base}
        curves = {name: np.repeat(area[:, None], 11, axis=1) for name, area in areas.items()}
        ways.append(order_curves(curves, groups=groups, span=moves / 2))
    return highlights_what_matters(moves, *ways, tiles=size[0], groups=size[1])[0].value


QUESTIONS: Sequence[tuple[str, Draw, Mapping[str, float], Sequence[Size]]] = (
    ("calibrated?", is_calibrated, {"yes": 0.0, "off by 0.1": 0.1}, SIZES),
    ("no class called too often?", is_called_fairly, {"yes": 0.0, "by 0.1": 0.1}, SIZES),
    ("better than chance?", is_better, {"no": 0.0, "by 0.1": 0.1}, SIZES),
    ("same box? tiles spread", _mean(SAME_BOX, False), {"at the bound": 0, "0.15 above": 0.15}, CHECKED),
    ("same box? tiles alike", _mean(SAME_BOX, True), {"at the bound": 0, "0.15 above": 0.15}, CHECKED),
    ("same box? tiles alike", _mean(SAME_BOX, True), {"0.15 below": -0.15}, CHECKED),
    ("rotates? tiles spread", _mean(STEADY, False), {"at the bound": 0, "0.15 above": 0.15}, CHECKED),
    ("highlights what matters?", is_highlighted, {"no": 0.0, "by 0.05": 0.05, "by 0.1": 0.1}, CHECKED),
)


def verdict_rows(sets: int, seed: int) -> list[list[str]]:
    """Return how often each verdict is given, a row a case."""
    said = (Outcome.PASSED.value, Outcome.INCONCLUSIVE.value, Outcome.FAILED.value)
    lines = [["question", "truth", "tiles", "slides", *said]]
    for question, draw, truths, sizes in QUESTIONS:
        for truth, size in truths.items():
            for tiles, slides in sizes:
                rng = np.random.default_rng([seed, tiles, slides or 0])
                found = [draw((tiles, slides), size, rng) for _ in range(sets)]
                shares = [f"{found.count(one) / sets:.3f}" for one in said]
                lines.append([question, truth, str(tiles), str(slides or "independent"), *shares])
    return lines


# --- which of two is better ---


def _two(size: Size, worse: float, rng: np.random.Generator) -> TestSet:
    return Regime("", *size, mixed=True, worse=worse).draw(rng)


def compared(size: Size, worse: float, rng: np.random.Generator) -> str:
    """Return the verdict on the accuracies of two classifiers, of which the second is worse."""
    one = _two(size, worse, rng)
    ours, theirs = (influence.accuracy(call, one.sample) for call in one.calls)
    ends = wald_interval(influence.difference(ours, theirs), bounds=(-1, 1))
    return comparison.verdict(ends, metric="accuracy", row="first", reference="second")


def rejects(size: Size, worse: float, rng: np.random.Generator) -> tuple[bool, bool]:
    """Return whether McNemar's test is significant, by slides, and by tiles as if these were independent."""
    one = _two(size, worse, rng)
    right = (one.calls == one.labels).astype(np.int64)
    net = right[0] - right[1]
    by_slide = comparison.by_group(net, one.sample)
    return comparison.mcnemar(by_slide) < 0.05, comparison.mcnemar(net) < 0.05


def comparison_rows(sets: int, seed: int) -> list[list[str]]:
    """Return how often two classifiers are told apart, a row a case."""
    said = ("first is better", "second is better", comparison.EQUAL, comparison.INCONCLUSIVE)
    lines = [["truth", "tiles", "slides", *said, "McNemar, p < 0.05", "the same without slides"]]
    for truth, worse in (("equally good", 0.0), ("first better by 0.05", 0.32)):
        for tiles, slides in COMPARED:
            size = (tiles, slides)
            rng, again = (np.random.default_rng([seed, tiles, slides or 0]) for _ in range(2))
            found = [compared(size, worse, rng) for _ in range(sets)]
            tests = np.array([rejects(size, worse, again) for _ in range(sets)]).mean(0)
            shares = [f"{found.count(one) / sets:.3f}" for one in said]
            lines.append(
                [truth, str(tiles), str(slides or "independent"), *shares, f"{tests[0]:.3f}", f"{tests[1]:.3f}"]
            )
    return lines
