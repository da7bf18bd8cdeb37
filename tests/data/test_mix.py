"""Batches from several sources: whose tiles, how often, and from what they are drawn."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from sscl.data.mix import drawn_of_slides, draws_per_source, epoch_batches, passes
from sscl.data.split import occurrences
from sscl.data.tiles import epoch_order


def naive_draws(sizes: list[int], weights: list[int]) -> list[int]:
    """The largest-remainder method in exact fractions, a seat at a time."""
    ideal = [Fraction(weight * sum(sizes), sum(weights)) for weight in weights]
    draws = [int(share) for share in ideal]
    while sum(draws) < sum(sizes):
        left = [share - draw for share, draw in zip(ideal, draws, strict=True)]
        draws[left.index(max(left))] += 1
    return draws


def batches(sizes: list[int], *, batch_size: int = 4, seed: int = 0, epoch: int = 0, **named: object) -> np.ndarray:
    settings = {"weights": None, "mix": "batch", **named}
    return epoch_batches(sizes, batch_size=batch_size, seed=seed, epoch=epoch, **settings)  # type: ignore[arg-type]


def sources_of(rows: np.ndarray, sizes: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes)[rows]


# --- how many draws ---


def test_without_weights_each_source_is_drawn_from_as_often_as_it_has_tiles():
    assert draws_per_source([5, 0, 7], weights=None).tolist() == [5, 0, 7]


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [
        ([10, 20, 30], [1, 1, 1]),
        ([10, 20, 30], [1, 2, 4]),
        ([3, 2], [1, 1]),
        ([7, 5, 3, 1], [5, 0, 1, 1]),
        ([1, 1, 999], [1, 1, 0]),
        ([100, 3], [0, 7]),
        ([13], [2]),
        ([17, 23, 9, 31, 2], [3, 1, 4, 1, 5]),
    ],
)
def test_weights_share_the_draws_by_the_largest_remainders(sizes, weights):
    found = draws_per_source(sizes, weights=weights)

    assert found.tolist() == naive_draws(sizes, weights)
    assert found.sum() == sum(sizes)
    assert draws_per_source(sizes, weights=[weight / 64 for weight in weights]).tolist() == found.tolist()  # any scale


# --- the batches ---


def test_one_source_without_weights_is_the_order_of_an_epoch():
    for epoch in (0, 3):
        expected = epoch_order(22, seed=5, epoch=epoch)[:20].reshape(5, 4)
        np.testing.assert_array_equal(batches([22], seed=5, epoch=epoch), expected)
        # Several without weights too: how the tiles are divided makes no difference.
        np.testing.assert_array_equal(batches([9, 13], seed=5, epoch=epoch), expected)


@pytest.mark.parametrize("mix", ["batch", "source"])
def test_without_weights_every_tile_comes_once(mix):
    found = batches([8, 12, 4], mix=mix)

    assert found.shape == (6, 4)
    assert found.dtype == np.int64
    assert sorted(found.ravel()) == list(range(24))


def test_what_fills_no_batch_is_left_out():
    sizes = [9, 7, 3]  # 19 tiles: 4 mixed batches of 4; of one source each 2, 1 and none

    mixed, apart = batches(sizes), batches(sizes, mix="source")

    assert mixed.shape == (4, 4)
    assert len(set(mixed.ravel())) == 16
    assert apart.shape == (3, 4)
    assert Counter(sources_of(apart, sizes).ravel().tolist()) == {0: 8, 1: 4}
    assert batches([2, 1]).shape == (0, 4)
    assert batches([2, 1], mix="source").shape == (0, 4)


@pytest.mark.parametrize("mix", ["batch", "source"])
def test_weights_set_the_fractions_and_a_source_s_tiles_differ_by_one_draw(mix):
    sizes, weights = [6, 30, 12], [3.0, 1.0, 2.0]  # 48 draws: 24, 8, 16; so 4 passes, a part of one, and 1 1/3

    found = batches(sizes, weights=weights, mix=mix, epoch=2)

    sources = sources_of(found, sizes)
    assert np.bincount(sources.ravel()).tolist() == [24, 8, 16]
    counts = np.bincount(found.ravel(), minlength=48)
    assert counts[:6].tolist() == [4] * 6
    assert sorted(counts[6:36]) == [0] * 22 + [1] * 8
    assert sorted(counts[36:]) == [1] * 8 + [2] * 4


def test_each_pass_over_a_source_is_in_another_order():
    rows = passes(9, draws=30, rng=np.random.default_rng(0))

    whole = rows[:27].reshape(3, 9)
    assert (np.sort(whole) == np.arange(9)).all()
    assert len({tuple(order) for order in whole.tolist()}) == 3
    assert len(set(rows[27:].tolist())) == 3


def test_another_epoch_draws_other_tiles_of_a_source_that_is_not_gone_through():
    drawn = {
        tile
        for epoch in range(40)
        for tile in batches([40, 40], weights=[1, 9], mix="source", epoch=epoch).ravel().tolist()
        if tile < 40
    }

    assert drawn == set(range(40))


def test_a_source_of_weight_zero_is_never_drawn_from():
    for mix in ("batch", "source"):
        assert sources_of(batches([8, 8], weights=[0, 1], mix=mix), [8, 8]).min() == 1
    assert batches([0, 8], weights=[0, 1]).min() >= 0  # nor missed


def test_each_batch_is_of_one_source_and_the_sources_take_turns_at_random():
    sizes = [40, 40, 40]

    orders = [sources_of(batches(sizes, mix="source", epoch=epoch), sizes) for epoch in range(2)]

    for order in orders:
        assert (order == order[:, :1]).all()
    first, second = (order[:, 0].tolist() for order in orders)
    assert first != second
    assert first != sorted(first)
    # The other mix, for comparison, puts several into a batch.
    mixed = sources_of(batches(sizes), sizes)
    assert np.mean([len(set(row)) > 1 for row in mixed.tolist()]) > 0.9


@pytest.mark.parametrize("mix", ["batch", "source"])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0]])
def test_an_epoch_is_a_function_of_seed_and_number_alone(mix, weights):
    def rows(seed: int, epoch: int) -> list[int]:
        return batches([16, 24], weights=weights, mix=mix, seed=seed, epoch=epoch).ravel().tolist()

    expected = rows(1, 5)
    rows(1, 4)  # what came before does not matter

    assert rows(1, 5) == expected
    assert rows(1, 6) != expected
    assert rows(2, 5) != expected


def test_occurrences_equal_a_count_along_the_way():
    order = np.random.default_rng(0).integers(0, 9, 60)
    seen: Counter[int] = Counter()
    expected = []
    for tile in order.tolist():
        expected.append(seen[tile])
        seen[tile] += 1

    assert occurrences(order).tolist() == expected
    assert occurrences(np.empty(0, dtype=np.int64)).tolist() == []


def test_every_tile_of_a_slide_is_drawn_before_any_is_drawn_again() -> None:
    slide_of = np.repeat([4, 0, 2], [10, 3, 7])
    rows = [drawn_of_slides(slide_of, each=4, seed=1, epoch=epoch) for epoch in range(12)]
    for drawn in rows:
        assert len(set(drawn.tolist())) == len(drawn)
        assert np.bincount(slide_of[drawn], minlength=5).tolist() == [3, 0, 4, 0, 4]
    for slide, epochs in ((4, 3), (2, 2), (0, 1)):  # of a pass: the tiles of a slide by 4
        tiles = set(np.flatnonzero(slide_of == slide).tolist())
        for first in range(0, 12, epochs):
            seen = np.concatenate(rows[first : first + epochs])
            assert set(seen[slide_of[seen] == slide].tolist()) == tiles
            before_last = np.concatenate([[], *rows[first : first + epochs - 1]]).astype(int)
            before_last = before_last[slide_of[before_last] == slide]
            assert len(set(before_last.tolist())) == len(before_last)
    again = [drawn_of_slides(slide_of, each=4, seed=1, epoch=epoch) for epoch in range(12)]
    other = [drawn_of_slides(slide_of, each=4, seed=2, epoch=epoch) for epoch in range(12)]
    assert all(map(np.array_equal, rows, again))
    assert not all(map(np.array_equal, rows, other))
    assert not np.array_equal(rows[0][slide_of[rows[0]] == 4], rows[3][slide_of[rows[3]] == 4])
