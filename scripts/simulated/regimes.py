"""Kinds of test sets, and sets drawn from them. N tiles, K classes, G slides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax
from scipy.stats import norm

from sscl.evaluate.intervals import Sample
from sscl.evaluate.metrics import FloatArray, IntArray

SHARED = 0.7  # correlation of two classifiers' scores of a tile
SCALE = 1.5  # of the logits


@dataclass(frozen=True, eq=False)
class TestSet:
    """Labels (N,), probabilities of two classifiers (2, N, K), and slides (N,) or None."""

    labels: IntArray
    probabilities: FloatArray
    groups: npt.NDArray[np.str_] | None

    @property
    def classes(self) -> int:
        """K."""
        return int(self.probabilities.shape[2])

    @property
    def positive(self) -> int | None:
        """The positive class, where there are two."""
        return 1 if self.classes == 2 else None

    @cached_property
    def calls(self) -> IntArray:
        """The predicted classes, (2, N)."""
        found: IntArray = self.probabilities.argmax(2).astype(np.int64)
        return found

    @cached_property
    def losses(self) -> FloatArray:
        """The cross-entropy of each tile, (2, N)."""
        found: FloatArray = -np.log(np.maximum(self.probabilities[:, np.arange(len(self.labels)), self.labels], 1e-12))
        return found

    @cached_property
    def sample(self) -> Sample:
        """Its tiles."""
        return Sample.of(self.labels, classes=self.classes, groups=self.groups)


@dataclass(frozen=True)
class Kind:
    """What all kinds of test sets have.

    Attributes:
        tiles: in all. slides: None = independent tiles. correlation: of the scores of two tiles of a slide.
        mixed: whether slides hold several classes. uneven: largest slide over smallest, about.
        fixed: whether exactly as many tiles, or slides, are of each class as the prevalence says.
    """

    name: str
    tiles: int
    slides: int | None = None
    correlation: float = 0.5
    mixed: bool = False
    uneven: float = 1.0
    fixed: bool = False

    @property
    def shares(self) -> FloatArray:
        """Prevalence of each class, (K,)."""
        raise NotImplementedError

    def probabilities(self, labels: IntArray, noise: FloatArray) -> FloatArray:
        """Return probabilities (2, N, K) from labels (N,) and standard normal noise (2, N, K or 1)."""
        raise NotImplementedError

    @property
    def scores(self) -> int:
        """Scores of a tile."""
        raise NotImplementedError

    def sets(self, number: int, seed: int) -> Iterator[TestSet]:
        """Yield simulated test sets."""
        rng = np.random.default_rng([seed, self.tiles, self.slides or 0])
        for _ in range(number):
            yield self.draw(rng)

    def draw(self, rng: np.random.Generator) -> TestSet:
        """Return one test set, scored by two classifiers."""
        if self.slides is None:
            labels, groups = self._classes(self.tiles, rng), None
            noise = self._pair(self.tiles, rng)
        else:
            spread = np.exp(np.linspace(0, np.log(self.uneven), self.slides))
            sizes = rng.permutation(np.maximum(1, np.round(spread / spread.sum() * self.tiles)).astype(int))
            groups = np.repeat(np.arange(self.slides), sizes)
            labels = self._classes(len(groups), rng) if self.mixed else self._classes(self.slides, rng)[groups]
            slide, own = self._pair(self.slides, rng)[:, groups], self._pair(len(groups), rng)
            noise = self.correlation**0.5 * slide + (1 - self.correlation) ** 0.5 * own
        found = self.probabilities(labels, noise)
        return TestSet(labels, found, None if groups is None else groups.astype(str))

    def _classes(self, number: int, rng: np.random.Generator) -> IntArray:
        ends = self.shares.cumsum()[:-1]
        place = (np.arange(number) + 0.5) / number if self.fixed else rng.random(number)
        return np.searchsorted(ends, place, side="right").astype(np.int64)

    def _pair(self, number: int, rng: np.random.Generator) -> FloatArray:
        common, own = rng.standard_normal((number, self.scores)), rng.standard_normal((2, number, self.scores))
        found: FloatArray = SHARED**0.5 * common + (1 - SHARED) ** 0.5 * own
        return found

    @property
    def huge(self) -> TestSet:
        """So many tiles that their metrics are the truth."""
        return replace(self, tiles=400_000, slides=None, fixed=True).draw(np.random.default_rng(0))


@dataclass(frozen=True)
class Regime(Kind):
    """Two classes: the negative one scores N(0, 1), the positive one N(shift, sd^2).

    Attributes:
        sensitivity, specificity: of both classifiers. prevalence: of the positive class. sd: of its scores.
        step: scores are rounded to multiples of it, so that many are equal; 0 = not. worse: how much less the second
            classifier moves the positives.
    """

    sensitivity: float = 0.8
    specificity: float = 0.8
    prevalence: float = 0.5
    sd: float = 1.0
    step: float = 0.0
    worse: float = 0.0

    scores = 1

    @property
    def shares(self) -> FloatArray:
        """Prevalence of the classes, (2,)."""
        return np.array([1 - self.prevalence, self.prevalence])

    def probabilities(self, labels: IntArray, noise: FloatArray) -> FloatArray:
        """Return probabilities that say positive at and above the threshold, (2, N, 2)."""
        threshold = norm.ppf(self.specificity)
        shift = threshold + self.sd * norm.ppf(self.sensitivity) - self.worse * np.arange(2)[:, None]
        z = np.where(labels == 1, shift + self.sd * noise[:, :, 0], noise[:, :, 0]) - threshold
        if self.step:
            z = np.round(z / self.step + 0.5) * self.step - self.step / 2
        positive = expit(SCALE * z)
        return np.stack([1 - positive, positive], axis=2)


@dataclass(frozen=True)
class Several(Kind):
    """K classes: the score of a tile's own class is moved by `shift`, all scores have standard normal noise.

    Attributes:
        prevalences: of each class, the rarest last. shift: of the own class's score, a number a class.
    """

    prevalences: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3)
    shift: tuple[float, ...] = (2.0, 2.0, 2.0)

    @property
    def scores(self) -> int:
        """K."""
        return len(self.prevalences)

    @property
    def shares(self) -> FloatArray:
        """Prevalence of the classes, (K,)."""
        return np.array(self.prevalences)

    def probabilities(self, labels: IntArray, noise: FloatArray) -> FloatArray:
        """Return the probabilities, (2, N, K)."""
        z = noise + np.eye(self.scores)[labels] * np.array(self.shift)[labels][:, None]
        found: FloatArray = softmax(SCALE * z, axis=2)
        return found


INDEPENDENT = (
    Regime("200 independent tiles, accuracy .73", 200, sensitivity=0.73, specificity=0.73),
    Regime("50 tiles, accuracy .95", 50, sensitivity=0.95, specificity=0.95),
    Regime("200 tiles, accuracy .95", 200, sensitivity=0.95, specificity=0.95),
    Regime("50 tiles, prevalence .1", 50, prevalence=0.1),
    Regime("200 tiles, recalls .97 and .40, class counts random", 200, sensitivity=0.4, specificity=0.97),
    Regime("20 tiles, accuracy .85", 20, sensitivity=0.85, specificity=0.85),
    Regime("30 tiles, accuracy .80", 30),
    Regime("100 tiles, accuracy .99", 100, sensitivity=0.99, specificity=0.99),
    Regime("500 tiles, accuracy .99", 500, sensitivity=0.99, specificity=0.99),
    Regime("100 tiles, accuracy .55", 100, sensitivity=0.55, specificity=0.55),
    Regime("100 tiles, recalls .60 and .99", 100, sensitivity=0.6, specificity=0.99),
    Regime("50 tiles, prevalence .1, accuracy .95", 50, sensitivity=0.95, specificity=0.95, prevalence=0.1),
    Regime("200 tiles, prevalence .05", 200, specificity=0.95, prevalence=0.05),
    Regime("150 tiles, prevalence .3", 150, sensitivity=0.7, specificity=0.9, prevalence=0.3),
    Regime("1,000 tiles, prevalence .02", 1000, sensitivity=0.9, specificity=0.9, prevalence=0.02),
    Regime("200 tiles, prevalence .1, positives twice as spread", 200, prevalence=0.1, sd=2),
    Regime("60 tiles, positives thrice as spread", 60, sensitivity=0.9, sd=3),
    Regime("100 tiles, prevalence .1, positives twice as spread", 100, sensitivity=0.7, prevalence=0.1, sd=2),
    Regime("200 tiles, scores of about 6 values", 200, step=1.0),
    Regime("50 tiles, accuracy .95, scores of about 6 values", 50, sensitivity=0.95, specificity=0.95, step=1.0),
    Regime("200 tiles, the second classifier is worse", 200, sensitivity=0.9, specificity=0.8, worse=0.7),
    Several("60 tiles of 3 classes", 60),
    Several("150 tiles of 3 classes, prevalences .7, .2, .1", 150, prevalences=(0.7, 0.2, 0.1)),
    Several("200 tiles of 5 classes", 200, prevalences=(0.2,) * 5, shift=(3.0,) * 5),
    Several(
        "400 tiles of 5 classes, prevalences .5 to .05",
        400,
        prevalences=(0.5, 0.2, 0.15, 0.1, 0.05),
        shift=(3.0, 2.0, 1.5, 3.0, 2.0),
    ),
    Several("450 tiles of 9 classes, accuracy .97", 450, prevalences=(1 / 9,) * 9, shift=(5.0,) * 9),
)
GROUPED = (
    Regime("200 tiles of 20 slides, one class a slide", 200, 20, sensitivity=0.73, specificity=0.73, fixed=True),
    Regime("200 tiles of 10 slides, one class a slide", 200, 10, sensitivity=0.73, specificity=0.73, fixed=True),
    Regime("200 tiles of 9 patients", 200, 9, 0.2, True, 4.0, sensitivity=0.73, specificity=0.73),
    Regime("10 slides, classes by chance", 200, 10, sensitivity=0.73, specificity=0.73),
    Regime("6 patients", 120, 6, 0.3, True, sensitivity=0.8, specificity=0.8),
    Regime("20 slides, accuracy .95", 200, 20, sensitivity=0.95, specificity=0.95, fixed=True),
    Regime("20 slides, accuracy .95, correlation .8", 200, 20, 0.8, sensitivity=0.95, specificity=0.95, fixed=True),
    Regime("20 slides, correlation .1", 200, 20, 0.1, fixed=True),
    Regime("30 slides of 3 to 30 tiles", 300, 30, uneven=10, specificity=0.9),
    Regime("15 patients of 4 to 40 tiles", 225, 15, 0.3, True, 10.0, specificity=0.9),
    Regime("40 slides of 2 to 60 tiles", 600, 40, uneven=30, specificity=0.9),
    Regime("30 slides, prevalence .2", 300, 30, specificity=0.9, prevalence=0.2, fixed=True),
    Regime("40 slides, recalls .97 and .40", 400, 40, sensitivity=0.4, specificity=0.97),
    Regime("30 slides of both classes", 300, 30, mixed=True, specificity=0.9),
    Regime("30 slides, scores of about 6 values", 300, 30, mixed=True, step=1.0),
    Regime("50 slides", 500, 50),
    Regime("50 slides, the second classifier is worse", 500, 50, mixed=True, worse=0.7),
    Regime("200 slides of 2 tiles, accuracy .9", 400, 200, sensitivity=0.9, specificity=0.9),
    Several("36 slides of 3 classes", 360, 36, fixed=True),
    Several("30 patients of 3 classes", 300, 30, 0.3, True, 5.0, prevalences=(0.6, 0.25, 0.15)),
    Several("60 slides of 5 classes", 600, 60, fixed=True, prevalences=(0.2,) * 5, shift=(3.0,) * 5),
)
