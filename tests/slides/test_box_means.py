"""A slide in small: its pixels are means over squares."""

from __future__ import annotations

import numpy as np
import pytest

from sscl.slides.overview import box_means, box_sums


@pytest.mark.parametrize(
    ("height", "width", "ratio"), [(101, 133, 4), (64, 64, 1), (60, 70, 2.7), (4, 4, 16), (50, 77, 3)]
)
def test_means_of_boxes_are_those_of_their_sums_where_the_ratio_is_whole_too(height, width, ratio):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    lines, columns = (np.minimum(np.arange(-(-n // ratio) + 2) * ratio, n).astype(float) for n in (height, width))
    area = np.diff(lines)[:, None] * np.diff(columns)
    expected = np.full((*area.shape, 3), 7, dtype=np.uint8)
    expected[area > 0] = np.rint(box_sums(pixels, lines, columns)[area > 0] / area[area > 0][:, None])
    found = np.full_like(expected, 7)
    box_means(pixels, lines, columns, out=found)
    assert np.array_equal(found, expected)
