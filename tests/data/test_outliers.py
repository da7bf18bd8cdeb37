"""Blank, blurred and unusually stained tiles, on tiles made for it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sscl.data import outliers
from sscl.data.synthetic import draw_tile

COUNT = 20


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.stack([draw_tile(index, seed=1, size_px=64).image for index in range(COUNT)])


def flagged(images: np.ndarray) -> dict[int, str]:
    return {flag.row: flag.kind for flag in outliers.find_outliers(outliers.measure(images))}


def test_ordinary_tiles_are_not_flagged(images):
    assert flagged(images) == {}


def test_blank_blurred_and_unusually_stained_tiles_are_flagged(images):
    images = images.copy()
    images[3] = 243
    images[3, :8, :8] = 120  # 1.6% tissue
    images[7] = cv2.GaussianBlur(images[7], (0, 0), 4)
    images[11] = images[11][..., [1, 2, 0]]
    assert flagged(images) == {3: "blank", 7: "blurred", 11: "stain"}
    (blank,) = [flag for flag in outliers.find_outliers(outliers.measure(images)) if flag.kind == "blank"]
    assert blank.reason == "1.6% tissue"


def test_measures_are_those_of_a_plain_loop(images):
    found = outliers.measure(images[:2])
    for row, tile in enumerate(images[:2].astype(float)):
        density = -np.log((tile + 1) / 240)
        tissue = [pixel for pixel in density.reshape(-1, 3) if pixel.mean() >= 0.15]
        red, green, blue = np.mean(tissue, axis=0)
        assert found.tissue[row] == pytest.approx(len(tissue) / 64**2)
        expected = [(red + green + blue) / 3, red / (red + green + blue), blue / (red + green + blue)]
        np.testing.assert_allclose(found.stain[row], expected)


def test_the_reason_names_the_part_of_the_stain_and_the_side():
    stain = np.random.default_rng(0).normal([0.4, 0.3, 0.3], 0.01, (40, 3))
    stain[[3, 5, 7], [0, 1, 2]] += [0.5, -0.5, 0.5]
    flags = outliers.find_outliers(outliers.Measures(np.ones(40), np.full(40, 100.0), stain))
    assert {flag.row: flag.kind for flag in flags} == {3: "stain", 5: "stain", 7: "stain"}
    for flag, part, side in zip(flags, outliers.STAIN_MEASURES, ("above", "below", "above"), strict=True):
        assert flag.reason == f"{part} {abs(flag.value):.1f} SD {side} the median"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_tiles_have_no_outliers(count, images):
    assert flagged(images[:count]) == {}


def test_only_blank_tiles():
    assert flagged(np.full((3, 32, 32, 3), 250, np.uint8)) == {0: "blank", 1: "blank", 2: "blank"}


def test_robust_z_scores_are_standard_ones_of_normal_values_and_no_outlier_widens_them():
    rng = np.random.default_rng(0)
    values = rng.normal(5, 2, 20000)
    values[:4000] = 1e6
    values[4000] = np.nan
    found = outliers.robust_z(values)
    assert found[4000] == 0
    rest = found[4001:]
    assert abs(np.median(rest)) < 0.5
    assert 0.6 < rest.std() < 1
    assert (outliers.robust_z(np.array([1.0, 1, 1, 9])) == 0).all()
