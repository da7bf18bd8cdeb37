"""Agreement of two readers: kappa as scikit-learn's, its interval by the closed formula, and what it covers."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from sscl.evaluate.agreement import FEWEST_TILES, agreement, kappa
from sscl.evaluate.intervals import Sample


def readers(rng: np.random.Generator, tiles: int, *, true: float, classes: int = 2, rare: float = 0.5):
    """Two readers whose kappa is `true`: the second repeats the first so often, or answers at random."""
    shares = np.r_[1 - rare, np.full(classes - 1, rare / (classes - 1))]
    first, other = rng.choice(classes, (2, tiles), p=shares)
    return first, np.where(rng.random(tiles) < true, first, other)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_kappa_is_that_of_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    for tiles in (60, 61, 200):
        first, second = readers(rng, tiles, true=0.5, classes=classes, rare=0.6)
        found = agreement(first, second)
        assert found.kappa == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)
        assert (found.tiles, found.same) == (tiles, int((first == second).sum()))
        assert found.kappa_interval[0] < found.kappa < found.kappa_interval[1]
        for same in (agreement(second, first), agreement(first + 3, second + 3)):  # class numbers do not count
            assert same.kappa_interval == pytest.approx(found.kappa_interval, abs=1e-12)


def closed_formula(first: np.ndarray, second: np.ndarray) -> float:
    """The standard error of Fleiss, Cohen & Everitt 1969, as in statsmodels' cohens_kappa."""
    size = int(max(first.max(), second.max())) + 1
    table = np.zeros((size, size))
    np.add.at(table, (first, second), 1 / len(first))
    rows, columns = table.sum(1), table.sum(0)
    chance = rows @ columns
    value = (np.trace(table) - chance) / (1 - chance)
    on = sum(table[i, i] * (1 - (rows[i] + columns[i]) * (1 - value)) ** 2 for i in range(size))
    off = sum(table[i, j] * (columns[i] + rows[j]) ** 2 for i in range(size) for j in range(size) if i != j)
    variance = on + (1 - value) ** 2 * off - (value - chance * (1 - value)) ** 2
    return float(np.sqrt(max(variance, 0.0) / len(first)) / (1 - chance))


def test_the_interval_of_many_tiles_is_that_of_the_closed_formula():
    first, second = readers(np.random.default_rng(0), 20_000, true=0.6, classes=3)
    found = agreement(first, second)
    low, high = found.kappa_interval
    assert high - low == pytest.approx(2 * 1.96 * closed_formula(first, second), rel=0.01)
    assert (low + high) / 2 == pytest.approx(found.kappa, abs=1e-3)


@pytest.mark.parametrize(("tiles", "true", "rare"), [(20, 0.97, 0.5), (20, 0.3, 0.15), (50, 0.9, 0.15)])
def test_the_interval_covers_where_the_closed_formula_does_not(tiles, true, rare):
    rng, inside, closed, drawn = np.random.default_rng(0), 0, 0, 0
    for _ in range(200):
        first, second = readers(rng, tiles, true=true, rare=rare)
        found = kappa(first, second, Sample(np.zeros(tiles, dtype=np.int64), 1, None))
        if found is None:
            continue
        value, (low, high) = found
        drawn += 1
        inside += low <= true <= high
        closed += abs(value - true) <= 1.96 * closed_formula(first, second) + 1e-12
    assert inside / drawn > 0.92
    assert closed / drawn < 0.85


def test_slides_make_it_wider_and_few_slides_leave_it_out():
    rng = np.random.default_rng(1)
    slide = np.repeat(np.arange(20), 10)
    first = rng.integers(0, 2, 20)[slide]
    second = np.where((rng.random(20) < 0.7)[slide], first, 1 - first)  # a reader errs on whole slides
    alone, together = agreement(first, second), agreement(first, second, groups=slide.astype(str))
    assert together.kappa == alone.kappa
    assert np.diff(together.kappa_interval)[0] > 1.5 * np.diff(alone.kappa_interval)[0]
    few = agreement(first, second, groups=(slide // 7).astype(str))
    assert few.kappa == alone.kappa
    assert few.kappa_interval is few.share_interval is None


def test_there_is_no_kappa_of_few_tiles_or_of_one_answer():
    rng = np.random.default_rng(2)
    few = agreement(*readers(rng, FEWEST_TILES - 1, true=0.5))
    assert few.kappa is None
    assert "20 are needed" in few.why_no_kappa
    assert few.share_interval is not None
    assert "50 are needed" in agreement(*readers(rng, 49, true=0.1, classes=5, rare=0.8)).why_no_kappa
    same = np.ones(30, dtype=np.int64)
    assert agreement(same, same).kappa is None
    assert agreement(same, same).share == 1
    nothing = agreement(same[:0], same[:0])
    assert (nothing.tiles, nothing.share, nothing.kappa) == (0, None, None)
