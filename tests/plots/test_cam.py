"""Heatmaps over tiles, and boxes on them: pixel by pixel."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sscl.explain.boxes import Box
from sscl.plots.cam import draw_box, heatmap_rgb, overlay


def box_at(x0: int, y0: int, x1: int, y1: int) -> Box:
    return Box(x0, y0, x1, y1, threshold=0.2, components=1, area_fraction=0.1, raw_maximum=1.0)


class TestDrawing:
    def test_colours_get_lighter_with_the_map(self) -> None:
        ramp = np.tile(np.linspace(0, 1, 64), (2, 1))
        colours = heatmap_rgb(ramp)
        assert colours.shape == (2, 64, 3)
        assert colours.dtype == np.uint8
        luminance = colours[0] @ np.array([0.2126, 0.7152, 0.0722])
        assert (np.diff(luminance) > -0.5).all()
        assert luminance[-1] - luminance[0] > 100

    def test_colours_are_red_green_blue(self) -> None:
        low, high = heatmap_rgb(np.array([[0.0, 1.0]]))[0].astype(int)  # viridis: from dark violet to yellow
        assert low[2] > low[1]
        assert high[0] > 200
        assert high[1] > 200
        assert high[2] < 80

    def test_overlay_mixes_by_the_map(self) -> None:
        image = np.full((1, 3, 3), 200, np.uint8)
        map01 = np.array([[0.0, 0.5, 1.0]])
        colours = heatmap_rgb(map01).astype(float)
        mixed = overlay(image, map01, alpha=0.8)
        expected = np.stack([[200 * (1 - a) + a * c for a, c in zip([0, 0.4, 0.8], colours[0], strict=True)]])
        np.testing.assert_allclose(mixed, expected, atol=0.51)
        assert (image == 200).all()

    def test_box_is_drawn_inside_its_pixels_and_nowhere_else(self) -> None:
        image = np.full((50, 60, 3), 128, np.uint8)
        drawn = draw_box(image, box_at(5, 10, 35, 40))
        changed = (drawn != image).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        assert (rows[0], rows[-1], columns[0], columns[-1]) == (10, 39, 5, 34)
        assert changed[10, 5:35].all()
        assert changed[39, 5:35].all()
        assert changed[10:40, 5].all()
        assert changed[10:40, 34].all()
        assert not changed[15:35, 10:30].any()
        assert (image == 128).all()

    def test_further_regions_are_drawn_thinner_and_under_the_box(self) -> None:
        image = np.full((400, 400, 3), 128, np.uint8)
        box = dataclasses.replace(box_at(50, 50, 200, 200), further=((100, 150, 300, 350), (300, 10, 390, 100)))
        drawn = draw_box(image, box)
        yellow = (drawn == (255, 221, 0)).all(axis=2)
        assert yellow[10:60, 345].sum() == 2  # its upper line
        assert yellow[45:60, 125].sum() == 4  # that of the box
        assert (drawn == 0).all(axis=2)[50:60, 125].sum() == 4
        assert not (drawn == 0).all(axis=2)[:, 320:].any()
        assert (drawn[150:200, 196:200] == (255, 221, 0)).all()

    @pytest.mark.parametrize("box", [(0, 0, 1, 1), (63, 63, 64, 64), (0, 0, 64, 64), (10, 0, 11, 64)])
    def test_thin_and_bordering_boxes(self, box: tuple[int, int, int, int]) -> None:
        image = np.zeros((64, 64, 3), np.uint8)
        changed = (draw_box(image, box_at(*box)) != image).any(axis=2)
        assert changed[box[1] : box[3], box[0] : box[2]].any()
        changed[box[1] : box[3], box[0] : box[2]] = False
        assert not changed.any()

    def test_refusals(self) -> None:
        image = np.zeros((4, 4, 3), np.uint8)
        with pytest.raises(ValueError, match="alpha: got 70"):
            overlay(image, np.zeros((4, 4)), alpha=70)
