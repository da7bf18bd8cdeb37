"""The grid of tiles against a loop over pixels."""

from __future__ import annotations

import numpy as np
import pytest

from sscl.slides.grid import tissue_tiles
from sscl.slides.records import Level, Overview, Scaling, Slide
from sscl.slides.tissue import Tissue


def slide(width, height, *, bounds=None, factor=1.0):
    levels = (Level(width=width, height=height, factor=1.0, exact=True),)
    if factor != 1:
        levels += (Level(width=int(width / factor), height=int(height / factor), factor=factor, exact=True),)
    return Slide(
        path="/s.svs",
        name="s.svs",
        width=width,
        height=height,
        mpp=0.25,
        mpp_from="given",
        bounds=bounds,
        levels=levels,
        reader="openslide",
        vendor="aperio",
        quickhash="",
        size=1,
        mtime_ns=1,
    )


def tiles(slide, mask, scaling, *, factor=16.0, min_coverage=0.0, overlap=0.0):
    overview = Overview(np.zeros((*mask.shape, 3), np.uint8), np.ones_like(mask), factor, factor, 4.0)
    tissue = Tissue(mask, 0.5, 0.0, (240, 240, 240), None)
    return tissue_tiles(slide, tissue, overview, scaling, min_coverage=min_coverage, overlap=overlap)


def everywhere(width, height, factor=16.0):
    return np.ones((int(np.ceil(height / factor)), int(np.ceil(width / factor))), bool)


def test_tiles_of_a_step_that_is_no_whole_number_do_not_drift_apart():
    """T7."""
    step = 443.2
    found = tiles(
        slide(100_000, 1_000), everywhere(100_000, 1_000), Scaling(0.5, 224, 0, 443, step, True), min_coverage=0.5
    )
    xs = np.unique(found[:, 0])
    assert len(xs) == int(100_000 / step)
    assert np.abs(xs - np.arange(len(xs)) * step).max() <= 0.5
    assert found.dtype == np.int32
    assert (found[:, 2] == 100).all()


def test_bounds_beyond_the_slide_end_at_its_border():
    found = tiles(
        slide(1000, 1000, bounds=(500, 500, 900, 900)),
        everywhere(1000, 1000),
        Scaling(0.25, 224, 0, 224, 224.0, False),
    )
    assert sorted(map(tuple, found[:, :2].tolist())) == [(500, 500), (500, 724), (724, 500), (724, 724)]


def test_tiles_lie_inside_the_bounds():
    bounds = (137, 91, 1000, 700)
    found = tiles(slide(4000, 3000, bounds=bounds), everywhere(4000, 3000), Scaling(0.25, 224, 0, 224, 224.0, False))
    assert found[:, :2].min(axis=0).tolist() == [137, 91]
    assert (found[:, 0] + 224 <= 1137).all()
    assert (found[:, 1] + 224 <= 791).all()
    assert len(found) == 4 * 3


@pytest.mark.parametrize("factor", [2.0, 4.0, 4.013])
def test_the_pixels_that_are_read_end_inside_the_level(factor):
    s = slide(4009, 3001, factor=factor)
    scaling = Scaling(0.25 * factor, 200, 1, 200, 200 * factor, False)
    found = tiles(s, everywhere(4009, 3001), scaling, overlap=0.3)
    ends = np.floor(found[:, :2] / factor + 0.5) + 200
    assert len(found)
    assert (ends <= [s.levels[1].width, s.levels[1].height]).all()
    assert ends.max() > s.levels[1].width - 200  # as far as it goes


def test_coverage_is_the_share_of_the_area_under_the_mask():
    rng = np.random.default_rng(0)
    mask = np.repeat(np.repeat(rng.random((9, 12)) < 0.5, 3, 0), 3, 1)  # 27 x 36 pixels of 10
    found = tiles(slide(355, 268), mask, Scaling(0.5, 32, 0, 64, 63.7, True), factor=10.0, overlap=0.25)
    for x, y, percent in found:
        fine = mask.repeat(10, 0).repeat(10, 1).astype(float)
        # Level-0 pixels, of which the last counts in part.
        weights = np.ones(64)
        weights[-1] = 0.7
        part = fine[y : y + 64, x : x + 64]
        share = (part * weights[: part.shape[1]] * weights[: part.shape[0], None]).sum() / 63.7**2
        assert abs(percent - 100 * share) <= 0.5 + 1e-6 or (percent == 1 and share > 0)


def test_least_coverage_chooses():
    mask = everywhere(1024, 1024)
    mask[:, 32:] = False  # the left half of 1,024
    scaling = Scaling(0.25, 320, 0, 320, 320.0, False)
    columns = {least: set(tiles(slide(1024, 1024), mask, scaling, min_coverage=least)[:, 0]) for least in (0, 0.5, 1)}
    assert columns == {0: {0, 320}, 0.5: {0, 320}, 1: {0}}  # of the second, 192 of 320 are tissue
    assert set(tiles(slide(1024, 1024), mask, scaling, min_coverage=0.61)[:, 0]) == {0}


def test_overlap_is_a_share_of_the_tile():
    scaling = Scaling(0.25, 100, 0, 100, 100.0, False)
    found = tiles(slide(1000, 200), everywhere(1000, 200), scaling, overlap=0.75)
    assert np.unique(found[:, 0]).tolist() == list(range(0, 901, 25))


def test_a_slide_smaller_than_a_tile_has_none():
    assert tiles(slide(100, 400), everywhere(100, 400), Scaling(0.25, 224, 0, 224, 224.0, False)).shape == (0, 3)


def test_rows_are_in_order_of_y_then_x():
    found = tiles(slide(2000, 2000), everywhere(2000, 2000), Scaling(0.25, 224, 0, 224, 224.0, False))
    assert np.lexsort((found[:, 0], found[:, 1])).tolist() == list(range(len(found)))
