from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from sscl.data.groups import Grouped, numbered
from sscl.data.rows import Rows
from sscl.data.split import stratified_folds, train_and_test
from sscl.data.tiles import JoinedIds, Tiles
from sscl.slides.places import Places, TileIds


class Drawn:
    """Tiles whose first pixel is their row: what `Rows` takes where nothing is an array."""

    def __init__(self, n: int, size_px: int = 4) -> None:
        self.shape = (n, size_px, size_px, 3)

    def read(self, rows: np.ndarray, out: np.ndarray, *, places: np.ndarray) -> None:
        out[places] = (rows % 251).astype(np.uint8)[:, None, None, None]

    def digests(self, rows: np.ndarray) -> np.ndarray:
        return rows.astype(np.uint64)


def cohort(slides: int, tiles: int) -> Tiles:
    """Tiles of slides with long names, each of one of two classes."""
    corner = np.stack([np.arange(tiles) % 300 * 224, np.arange(tiles) // 300 * 224], axis=1).astype(np.int32)
    names = [f"site_{i % 7}/TCGA-A6-{i:04d}-01Z-00-DX1.{'f' * 36}.svs" for i in range(slides)]
    places = Places.of(names, [tiles] * slides, [corner] * slides)
    numbers = np.repeat(np.arange(slides, dtype=np.int32), tiles)
    return Tiles(
        images=Rows([Drawn(slides * tiles)]),
        labels=(numbers % 2).astype(np.int64),
        classes=("HP", "SSA"),
        ids=TileIds(places, np.arange(slides * tiles)),
        groups=Grouped(np.array(names), numbers),
    )


def as_strings(tiles: Tiles) -> Tiles:
    """The same tiles with all ids and groups as strings."""
    return Tiles(
        images=tiles.images,
        labels=tiles.labels,
        classes=tiles.classes,
        ids=tuple(tiles.ids),
        groups=np.asarray(tiles.groups),
    )


def test_a_tile_takes_at_most_32_bytes_beyond_its_place_in_the_index() -> None:
    """T25."""
    n = 1_000_000
    tracemalloc.start()
    try:
        tiles = cohort(100, n // 100)
        places = tiles.ids.places.xy.nbytes  # type: ignore[attr-defined]
        assert (tracemalloc.get_traced_memory()[0] - places) / n <= 32
        part = tiles.subset(np.arange(0, n, 2))
        both = tracemalloc.get_traced_memory()[0]
        assert (both - places) / (n + len(part)) <= 32
        tracemalloc.reset_peak()
        train, test = train_and_test(tiles.labels, fraction=0.2, seed=0, groups=tiles.groups)
        assert len(train) + len(test) == n
        assert (tracemalloc.get_traced_memory()[1] - both) / n < 100  # names of 60 letters would be 240 each
    finally:
        tracemalloc.stop()
    assert part.ids[1] == f"{tiles.groups[2]}/448_0"  # type: ignore[index]


def test_computed_ids_and_groups_are_those_of_strings() -> None:
    tiles = cohort(6, 50)
    plain = as_strings(tiles)
    rows = np.random.default_rng(0).permutation(300)[:77]
    some, same = tiles.subset(rows), plain.subset(rows)
    assert tuple(some.ids) == same.ids
    assert some.ids[-1] == same.ids[-1]
    assert some.ids[3:6] == same.ids[3:6]
    assert some.groups is not None
    assert same.groups is not None
    assert some.groups.tolist() == same.groups.tolist()
    assert some.groups[4] == same.groups[4]
    assert len({found.fingerprint for found in (tiles, plain, some, same)}) == 4
    again = cohort(6, 50).subset(rows)
    assert again.fingerprint == some.fingerprint
    assert cohort(7, 50).subset(rows).fingerprint == some.fingerprint  # a slide more, without a tile
    assert again.subset(np.arange(77)[::-1]).fingerprint != some.fingerprint
    with pytest.raises(IndexError):
        some.ids[77]
    for found, expected in zip(numbered(some.groups), numbered(same.groups), strict=True):
        np.testing.assert_array_equal(found, expected)
    for groups in (tiles.groups, plain.groups):
        parts = train_and_test(tiles.labels, fraction=0.3, seed=1, groups=groups)
        folds = stratified_folds(tiles.labels, 3, seed=1, groups=groups)
        if groups is tiles.groups:
            expected_parts, expected_folds = parts, folds
    for found, expected in zip((*parts, *folds), (*expected_parts, *expected_folds), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_ids_of_several_sets_have_the_number_of_their_set() -> None:
    ids = JoinedIds([cohort(2, 3).ids, ("a.png", "b.png")])
    assert list(ids) == [*(f"0/{name}" for name in cohort(2, 3).ids), "1/a.png", "1/b.png"]
    assert [ids[i] for i in range(len(ids))] == list(ids)
    assert ids[-1] == "1/b.png"
    assert ids[4:8] == tuple(list(ids)[4:8])
