"""Tiles back on one map: the mean of those that overlap, and how many they are (T37)."""

from __future__ import annotations

import numpy as np
import pytest

from sscl.predict.outputs import regions_of
from sscl.slides.stitch import cells_of, mean_map


@pytest.mark.parametrize(("step", "footprint"), [(40.0, 40.0), (20.0, 40.0), (28.0, 40.0), (40.3, 40.3)])
def test_a_map_is_the_mean_of_all_tiles_over_a_pixel(step: float, footprint: float) -> None:
    rng = np.random.default_rng(0)
    corners = np.stack(np.meshgrid(*[np.floor(np.arange(5) * step + 0.5).astype(np.int32)] * 2), -1).reshape(-1, 2)
    corners = corners[rng.permutation(25)[:17]] + (137, 91)
    values = rng.random(17)
    cells = cells_of(corners, footprint)
    sums, counts = np.zeros((400, 400)), np.zeros((400, 400), int)
    for (x, y), value in zip(corners.tolist(), values.tolist(), strict=True):
        part = np.s_[y : y + round(footprint), x : x + round(footprint)]
        sums[part] += value
        counts[part] += 1
    middle_y, middle_x = ((edges[1:] + edges[:-1]) // 2 for edges in (cells.y_edges, cells.x_edges))
    at = np.ix_(middle_y, middle_x)
    assert np.array_equal(cells.counts, counts[at])
    assert cells.counts.max() == (1 if step == footprint else 4)
    with np.errstate(invalid="ignore"):
        assert np.allclose(cells.mean(values), (sums / counts)[at], equal_nan=True, atol=1e-6)
    assert (np.isnan(cells.mean(values)) == (cells.counts == 0)).all()
    assert np.diff(cells.x_edges).min() > 1


def test_regions_are_connected_places_with_holes_and_their_area() -> None:
    corners = np.stack(np.meshgrid(np.arange(3) * 10, np.arange(3) * 10), -1).reshape(-1, 2)
    ring = np.array([0.9, 0.9, 0.9, 0.9, 0.2, 0.9, 0.9, 0.9, 0.6])
    found = list(
        regions_of(cells_of(corners, 10.0), np.stack([1 - ring, ring], 1), ("a", "b"), threshold=0.7, mpp=100.0)
    )
    assert [region.label for region in found] == ["a", "b"]  # 0.6 is of none
    one, other = found
    assert [[ring.tolist() for ring in rings] for rings in one.polygons] == [
        [[[10, 10], [20, 10], [20, 20], [10, 20], [10, 10]]]
    ]
    assert len(other.polygons[0]) == 2  # its hole
    assert one.measurements == pytest.approx({"area mm²": 1.0, "mean probability": 0.8})
    assert other.measurements == pytest.approx({"area mm²": 7.0, "mean probability": 0.9})


def test_maps_of_overlapping_tiles_fade_into_each_other_and_none_is_scaled() -> None:
    rng = np.random.default_rng(0)
    places = [(left, top) for top in (-5, 3, 11) for left in (-8, 0, 8, 16)]
    maps = [rng.normal(size=(16, 16)).astype(np.float32) for _ in places]
    found, counts = mean_map(zip(places, maps, strict=True), height=20, width=28)
    weight = [np.sin(np.pi * (at + 0.5) / 16) ** 2 for at in range(16)]
    for row in range(20):
        for column in range(28):
            over = [
                (weight[row - y] * weight[column - x], tile[row - y, column - x])
                for (x, y), tile in zip(places, maps, strict=True)
                if 0 <= row - y < 16 and 0 <= column - x < 16
            ]
            assert counts[row, column] == len(over)
            shares, values = zip(*over, strict=True)
            assert found[row, column] == pytest.approx(np.average(values, weights=shares), abs=1e-5)
    alone, counts = mean_map([((2, 1), 5 * maps[0]), ((40, 0), maps[0])], height=20, width=28)
    assert np.allclose(alone[1:17, 2:18], 5 * maps[0])
    assert np.array_equal(np.isnan(alone), counts == 0)
