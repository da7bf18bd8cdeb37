"""Splits, balancing and label fractions."""

from __future__ import annotations

import numpy as np
import pytest

from sscl.data.split import (
    balance_down,
    balanced_order,
    class_weights,
    label_fraction,
    stratified_folds,
    stratified_split,
    with_unlabelled,
)

LABELS = np.repeat([0, 1, 2], [50, 30, 20])[np.random.default_rng(5).permutation(100)]


def counts(labels: np.ndarray) -> list[int]:
    return np.bincount(labels, minlength=3).tolist()


def test_stratified_split_holds_the_fraction_of_every_class():
    rest, held = stratified_split(LABELS, fraction=0.1, seed=0)
    assert counts(LABELS[held]) == [5, 3, 2]
    assert sorted([*rest, *held]) == list(range(100))
    assert (np.diff(rest) > 0).all()
    assert (np.diff(held) > 0).all()
    assert held.dtype == np.int64


def test_paper_split_is_99_and_99():
    labels = np.repeat([0, 1], 990)
    _, held = stratified_split(labels, fraction=0.1, seed=3)
    assert counts(labels[held]) == [99, 99, 0]


def test_split_is_a_function_of_the_seed():
    first, again, other = (stratified_split(LABELS, fraction=0.3, seed=seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other)


def test_a_small_class_is_on_both_sides():
    labels = np.repeat([0, 1], [100, 2])
    for fraction in (0.01, 0.99):
        rest, held = stratified_split(labels, fraction=fraction, seed=0)
        assert (labels[rest] == 1).sum() == (labels[held] == 1).sum() == 1


def test_split_faults():
    with pytest.raises(ValueError, match="class 1 has 1 tile, but a split needs at least 2"):
        stratified_split(np.array([0, 0, 1]), fraction=0.5, seed=0)
    with pytest.raises(ValueError, match="no tiles to split"):
        stratified_split(np.array([], np.int64), fraction=0.5, seed=0)


@pytest.mark.parametrize("seed", range(5))
def test_grouped_split_keeps_groups_whole_and_fractions_near(seed):
    rng = np.random.default_rng(seed)
    groups = np.array([f"slide{g}" for g in rng.integers(0, 60, 1000)])
    labels = rng.choice(3, 1000, p=[0.6, 0.3, 0.1])
    rest, held = stratified_split(labels, fraction=0.2, seed=seed, groups=groups)
    assert not set(groups[rest]) & set(groups[held])
    assert sorted([*rest, *held]) == list(range(1000))
    shares = np.bincount(labels[held]) / np.bincount(labels)
    np.testing.assert_allclose(shares, 0.2, atol=0.05)
    np.testing.assert_array_equal(held, stratified_split(labels, fraction=0.2, seed=seed, groups=groups)[1])


def test_grouped_split_with_pure_groups_of_unequal_size():
    sizes = [40, 3, 5, 2, 10, 25, 4, 4, 6, 1]
    groups = np.repeat([f"g{i}" for i in range(10)], sizes)
    labels = np.repeat([i % 2 for i in range(10)], sizes)
    for seed in range(5):
        rest, held = stratified_split(labels, fraction=0.2, seed=seed, groups=groups)
        assert not set(groups[rest]) & set(groups[held])
        for side in (rest, held):
            assert set(labels[side]) == {0, 1}


def test_grouped_split_finds_the_one_way_when_groups_are_few():
    # Each class lies in two groups of ten: half must go, though a fifth was asked for.
    groups = np.repeat(["a", "b", "c", "d"], 10)
    labels = np.repeat([0, 0, 1, 1], 10)
    _, held = stratified_split(labels, fraction=0.2, seed=0, groups=groups)
    assert counts(labels[held]) == [10, 10, 0]


def test_grouped_split_faults():
    with pytest.raises(ValueError, match="class 1 are in one group"):
        stratified_split(np.array([0, 0, 1, 1]), fraction=0.5, seed=0, groups=np.array(["a", "b", "c", "c"]))
    # Classes in pairs over three groups: whichever group goes, or any two, a side lacks a class.
    labels = np.array([0, 1, 1, 2, 2, 0])
    groups = np.array(["a", "a", "b", "b", "c", "c"])
    with pytest.raises(ValueError, match="the 3 groups cannot be divided so that both sides have every class"):
        stratified_split(labels, fraction=0.5, seed=0, groups=groups)


def test_balance_down_keeps_all_of_the_smallest_class():
    kept = balance_down(LABELS, seed=0)
    assert counts(LABELS[kept]) == [20, 20, 20]
    assert set(np.flatnonzero(LABELS == 2)) <= set(kept)
    assert (np.diff(kept) > 0).all()
    assert set(kept) != set(balance_down(LABELS, seed=1))


def test_class_weights_equal_the_loop_and_have_mean_one_over_tiles():
    weights = class_weights(LABELS, num_classes=3)
    expected = [100 / (3 * sum(1 for label in LABELS if label == k)) for k in range(3)]
    np.testing.assert_allclose(weights, expected, rtol=1e-15)
    assert weights[LABELS].mean() == pytest.approx(1.0, abs=1e-12)
    with pytest.raises(ValueError, match=r"all 4 classes, got \[50, 30, 20, 0\]"):
        class_weights(LABELS, num_classes=4)


def test_balanced_order_draws_classes_equally_and_repeats_evenly():
    order = balanced_order(LABELS, seed=0, epoch=0)
    assert len(order) == 100
    assert sorted(counts(LABELS[order])) == [33, 33, 34]
    times = np.bincount(order, minlength=100)
    for label in range(3):
        assert np.ptp(times[label == LABELS]) <= 1
    # Random order: the classes are mixed, not one after another.
    assert (np.diff(LABELS[order]) != 0).sum() > 40
    np.testing.assert_array_equal(order, balanced_order(LABELS, seed=0, epoch=0))
    assert set(order) != set(balanced_order(LABELS, seed=0, epoch=1))
    most = {int(np.argmax(counts(LABELS[balanced_order(LABELS, seed=0, epoch=epoch)]))) for epoch in range(20)}
    assert most == {0, 1, 2}  # the draw that is over goes to each class in turn


def test_label_fractions_are_nested_stratified_and_never_lose_a_class():
    labels = np.repeat([0, 1, 2], [891, 400, 9])
    previous: set[int] = set()
    for fraction in (0.001, 0.01, 0.05, 0.1, 0.25, 1.0):
        kept = label_fraction(labels, fraction=fraction, seed=4)
        expected = [max(1, int(fraction * n + 0.5)) for n in (891, 400, 9)]
        assert counts(labels[kept]) == expected
        assert previous <= set(kept)
        previous = set(kept)
    assert len(previous) == 1300
    assert set(label_fraction(labels, fraction=0.1, seed=4)) != set(label_fraction(labels, fraction=0.1, seed=5))


@pytest.mark.parametrize(
    "function",
    [
        lambda labels: balance_down(labels, seed=0),
        lambda labels: class_weights(labels, num_classes=2),
        lambda labels: balanced_order(labels, seed=0, epoch=0),
        lambda labels: label_fraction(labels, fraction=0.5, seed=0),
    ],
)
def test_what_needs_labels_refuses_unlabelled_tiles(function):
    with pytest.raises(ValueError, match="2 of 4 tiles are unlabelled"):
        function(np.array([0, -1, 1, -1]))
    with pytest.raises(ValueError, match="no labelled tiles"):
        function(np.array([], dtype=np.int64))


def test_purposes_draw_from_streams_of_their_own():
    """With one stream for all, balancing would keep the very tiles that the split holds out."""
    labels = np.repeat([0, 1], [200, 100])
    kept = set(balance_down(labels, seed=0)) - set(range(200, 300))
    held = set(stratified_split(labels, fraction=0.5, seed=0)[1]) - set(range(200, 300))
    assert 25 < len(kept & held) < 75  # 50 expected of independent draws, 100 of equal ones


def test_unlabelled_tiles_come_in_passes_and_never_twice_in_a_step():
    labelled, unlabelled = np.array([4, 2, 4, 9]), np.arange(100, 110)  # balanced draws repeat tile 4
    steps = [with_unlabelled(labelled, unlabelled, seed=0, step=step) for step in range(6)]
    for rows in steps:
        assert set(rows) >= {2, 4, 9}
        assert len(set(rows)) == len(rows) == 3 + 4
    drawn = [set(rows) - {2, 4, 9} for rows in steps]
    assert all(part <= set(unlabelled) for part in drawn)
    for first, second in (drawn[0:2], drawn[2:4], drawn[4:6]):  # two steps of 4 make a pass of 10
        assert not first & second
    assert set().union(*drawn) == set(unlabelled)
    again = with_unlabelled(labelled, unlabelled, seed=0, step=3)
    assert again.tolist() == steps[3].tolist()
    assert with_unlabelled(labelled, unlabelled, seed=1, step=3).tolist() != again.tolist()


def test_few_or_no_unlabelled_tiles_join_as_they_are():
    labelled = np.array([4, 2, 9])
    assert with_unlabelled(labelled, np.array([], dtype=np.int64), seed=0, step=7).tolist() == [2, 4, 9]
    assert with_unlabelled(labelled, np.array([20, 10]), seed=0, step=7).tolist() == [2, 4, 9, 10, 20]


# --- folds ---


@pytest.mark.parametrize("k", [2, 5, 20])
def test_folds_hold_every_tile_once_and_equal_parts_of_every_class(k):
    folds = stratified_folds(LABELS, k, seed=0)
    assert len(folds) == k
    assert sorted(np.concatenate(folds)) == list(range(100))
    per_fold = np.array([counts(LABELS[held]) for held in folds])
    assert (np.ptp(per_fold, axis=0) <= 1).all()
    assert all((np.diff(held) > 0).all() and held.dtype == np.int64 for held in folds)


def test_folds_are_a_function_of_the_seed():
    first, again, other = (stratified_folds(LABELS, 4, seed=seed) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any(set(a) != set(b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_grouped_folds_keep_groups_whole_and_fractions_near(seed):
    rng = np.random.default_rng(seed)
    groups = np.array([f"slide{g}" for g in rng.integers(0, 60, 1000)])
    of_slide = rng.choice(3, 60, p=[0.5, 0.3, 0.2])  # a slide has mostly one class
    slide = np.array([int(name[5:]) for name in groups])
    labels = np.where(rng.random(1000) < 0.8, of_slide[slide], rng.integers(0, 3, 1000))
    folds = stratified_folds(labels, 5, seed=seed, groups=groups)
    assert sorted(np.concatenate(folds)) == list(range(1000))
    for i, held in enumerate(folds):
        others = np.concatenate([fold for j, fold in enumerate(folds) if j != i])
        assert not set(groups[held]) & set(groups[others])
        np.testing.assert_allclose(np.bincount(labels[held]) / np.bincount(labels), 0.2, atol=0.05)
    again = stratified_folds(labels, 5, seed=seed, groups=groups)
    assert all((a == b).all() for a, b in zip(folds, again, strict=True))


def test_the_seed_moves_groups_that_are_alike():
    labels, groups = np.tile([0, 1], 40), np.repeat([f"g{i}" for i in range(20)], 4)
    found = {tuple(map(tuple, stratified_folds(labels, 4, seed=seed, groups=groups))) for seed in range(5)}
    assert len(found) > 1
    for folds in found:
        assert [counts(labels[list(held)]) for held in folds] == [[10, 10, 0]] * 4


def test_faults_of_folds():
    labels = np.repeat([0, 1], [20, 3])
    with pytest.raises(ValueError, match="folds: 4 folds need at least 4 tiles per class, class 1 has 3"):
        stratified_folds(labels, 4, seed=0)
    groups = np.array(["a", "b", "c", "d"] * 5 + ["a", "b", "a"])
    with pytest.raises(ValueError, match="folds: 3 folds need at least 3 groups per class, class 1 has 2"):
        stratified_folds(labels, 3, seed=0, groups=groups)
    assert len(stratified_folds(labels, 2, seed=0, groups=groups)) == 2
    with pytest.raises(ValueError, match="unlabelled"):
        stratified_folds(np.array([0, 0, -1]), 2, seed=0)
    # Each class is in two of the three groups, and each two groups share one.
    labels, groups = np.array([0, 0, 1, 1, 2, 2]), np.array(["a", "b", "a", "c", "b", "c"])
    with pytest.raises(ValueError, match="found no way to divide the 3 groups into 2 folds"):
        stratified_folds(labels, 2, seed=0, groups=groups)
