"""Boxes of raw maps, and how they hit truth masks."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sscl.explain.boxes import (
    BOX_COLUMNS,
    MOST_FURTHER,
    Box,
    box_cells,
    boxes_iou,
    centre_map,
    find_box,
    has_evidence,
    localisation,
    mask_parts,
    normalise,
    remark,
    remarks,
)
from sscl.plots.cam import draw_box, overlay


def blob_map(size: int = 64, *, centre: tuple[int, int] = (20, 40), width: float = 6.0) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * width**2))


def box_at(x0: int, y0: int, x1: int, y1: int) -> Box:
    return Box(x0, y0, x1, y1, threshold=0.2, components=1, area_fraction=0.1, raw_maximum=1.0)


class TestEvidence:
    """Min-max scaling shows a red spot in every one of these."""

    @pytest.mark.parametrize(
        "raw",
        [
            np.zeros((8, 8)),
            -blob_map(8),
            np.full((8, 8), -1.0),
            1e-5 * blob_map(8),  # a peak too small to move a probability
            np.where(np.eye(8) > 0, 1e-3, -1e3),  # rounding beside evidence against the class
        ],
        ids=["zero", "negative", "constant negative", "negligible", "rounding"],
    )
    def test_none(self, raw: np.ndarray) -> None:
        assert not has_evidence(raw)
        assert find_box(raw) is None
        assert (normalise(raw) == 0).all()
        image = np.full((8, 8, 3), 100, np.uint8)
        assert (overlay(image, normalise(raw)) == image).all()
        assert (draw_box(image, find_box(raw)) == image).all()

    def test_constant_positive_map_is_evidence_everywhere(self) -> None:
        raw = np.full((8, 8), 0.3)
        assert (normalise(raw) == 1).all()
        box = find_box(raw)
        assert box is not None
        assert (box.x0, box.y0, box.x1, box.y1, box.area_fraction) == (0, 0, 8, 8, 1.0)

    def test_normalise_keeps_proportions_and_drops_the_negative_part(self) -> None:
        raw = np.array([[-3.0, 0.0], [1.0, 4.0]])
        assert normalise(raw).tolist() == [[0.0, 0.0], [0.25, 1.0]]
        assert normalise(raw).dtype == np.float32

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_refuses_broken_maps(self, value: float) -> None:
        raw = blob_map(8)
        raw[3, 3] = value
        for function in (find_box, normalise):
            with pytest.raises(ValueError, match="NaN or infinite"):
                function(raw)


class TestBox:
    @pytest.mark.parametrize("threshold", [0.15, 0.2, 0.5])
    def test_blob(self, threshold: float) -> None:
        raw = 3.0 * blob_map(64, centre=(20, 40), width=6)
        box = find_box(raw, threshold=threshold)
        assert box is not None
        reach = int(6 * np.sqrt(-2 * np.log(threshold)))  # pixels from the centre where the Gaussian falls below
        assert (box.x0, box.x1) == (40 - reach, 40 + reach + 1)
        assert (box.y0, box.y1) == (20 - reach, 20 + reach + 1)
        assert (box.threshold, box.components) == (threshold, 1)
        assert box.area_fraction == pytest.approx((2 * reach + 1) ** 2 / 64**2)
        assert box.raw_maximum == pytest.approx(3.0)

    def test_the_region_with_the_peak_is_boxed(self) -> None:
        raw = np.zeros((20, 30))
        raw[2:4, 2:4] = 1.0  # 4 pixels, sum 4
        raw[10:18, 15:25] = 0.6  # 80 pixels, sum 48: the largest, as CAM's authors box it
        box = find_box(raw)
        assert box is not None
        assert (*box.corners, box.components) == (2, 2, 4, 4, 2)
        assert remark(box) == ""

    @pytest.mark.parametrize(("rows", "localises"), [(16, True), (17, False), (20, False)])
    def test_a_box_over_four_fifths_of_the_tile_says_no_place(self, rows: int, localises: bool) -> None:
        raw = np.zeros((20, 20))
        raw[:rows] = 1.0
        box = find_box(raw)
        assert box is not None
        assert box.localises is localises
        assert ("no localisation" in remark(box)) is not localises
        assert ("no localisation" in remarks([box, None])) is not localises
        assert "1 without positive evidence" in remarks([box, None])
        cells = dict(zip(BOX_COLUMNS, box_cells(raw, box, threshold=0.2), strict=True))
        assert cells["localisation"] == ("yes" if localises else "not assessed")

    def test_regions_smaller_than_a_cell_are_measured_but_not_drawn(self) -> None:
        raw = np.zeros((64, 64))
        raw[2:12, 2:12] = 1.0
        raw[20:29, 20:28] = 0.9  # 9 x 8
        raw[40:41, 2:60] = 0.8  # a bar
        raw[50:57, 50:57] = 0.7  # 7 x 7
        box = find_box(raw, cells=8)
        assert box is not None
        assert (len(box.further), box.shown) == (3, ((20, 20, 28, 29),))
        assert box.all == find_box(raw).all  # type: ignore[union-attr]
        changed = (draw_box(np.zeros((64, 64, 3), dtype=np.uint8), box) > 0).any(axis=2)
        assert changed[20, 20:28].all()
        assert not changed[30:].any()

    def test_regions_that_touch_at_a_corner_are_one(self) -> None:
        raw = np.zeros((10, 10))
        raw[2:5, 2:5] = raw[5:7, 5:7] = 1.0
        box = find_box(raw)
        assert box is not None
        assert (box.components, box.x1, box.y1) == (1, 7, 7)

    def test_a_pixel_at_the_threshold_belongs_to_the_box(self) -> None:
        raw = np.zeros((8, 8))
        raw[2, 3:6] = [4.0, 2.0, 1.0]
        for threshold, columns in ((1.0, 1), (0.5, 2), (0.25, 3)):
            box = find_box(raw, threshold=threshold)
            assert box is not None
            assert box.corners == (3, 2, 3 + columns, 3)

    def test_scale_of_the_map_does_not_matter(self) -> None:
        raw = blob_map() - 0.1
        one, thousand = find_box(raw), find_box(1000 * raw)
        assert one is not None
        assert thousand is not None
        assert (one.x0, one.y0, one.x1, one.y1) == (thousand.x0, thousand.y0, thousand.x1, thousand.y1)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"threshold": 0.0}, "threshold: got 0.0"),
            ({"threshold": 20}, "threshold: got 20"),
        ],
    )
    def test_refuses_impossible_options(self, options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            find_box(blob_map(), **options)

    def test_refuses_a_batch(self) -> None:
        with pytest.raises(ValueError, match=r"must be \(height, width\)"):
            find_box(np.ones((1, 4, 4)))

    @pytest.mark.parametrize("seed", range(5))
    def test_on_noise_the_box_is_around_cv2s_region_of_the_peak(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        raw = cv2.resize(rng.normal(size=(9, 9)), (72, 72))
        box = find_box(raw, threshold=0.4)
        assert box is not None
        above = (raw >= 0.4 * raw.max()).astype(np.uint8)
        count, regions, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
        x, y, width, height, _ = stats[regions.ravel()[raw.argmax()]].tolist()
        assert (box.corners, box.components) == ((x, y, x + width, y + height), count - 1)

    def test_further_regions_come_with_the_strongest_first(self) -> None:
        raw = np.zeros((40, 40), np.float32)
        raw[2:6, 3:9], raw[20:30, 20:25], raw[35, 1], raw[10, 30:40] = 0.5, 1.0, 0.9, 0.1
        box = find_box(raw, threshold=0.3)
        assert box is not None
        assert box.corners == (20, 20, 25, 30)
        assert box.further == ((1, 35, 2, 36), (3, 2, 9, 6))
        assert box_cells(raw, box, threshold=0.3)[-1] == "1 35 2 36; 3 2 9 6"
        many = np.zeros((40, 40), np.float32)
        many[::4, ::4] = np.linspace(0.5, 1, 100).reshape(10, 10)
        found = find_box(many)
        assert found is not None
        assert (len(found.further), found.components) == (MOST_FURTHER, 100)
        assert [many[y0, x0] for x0, y0, *_ in found.further] == sorted(many[::4, ::4].ravel())[-2:-10:-1]
        whole = np.ones((40, 40), np.float32)
        whole[36], whole[38, 38] = 0, 0.5
        none = find_box(whole)
        assert none is not None
        assert (none.components, none.localises, none.further) == (2, False, ())

    def test_the_cells_of_a_table(self) -> None:
        raw = 2.0 * blob_map()
        box = find_box(raw, threshold=0.3)
        assert box is not None
        found = dict(zip(BOX_COLUMNS, box_cells(raw, box, threshold=0.3), strict=True))
        assert [found[key] for key in ("x0", "y0", "x1", "y1")] == list(box.corners)
        assert (found["threshold"], found["connectivity"], found["raw_maximum"]) == (0.3, 8, pytest.approx(2.0))

    def test_without_evidence_the_table_keeps_the_maximum(self) -> None:
        found = dict(zip(BOX_COLUMNS, box_cells(np.full((4, 4), -0.5), None, threshold=0.3), strict=True))
        assert (found["x0"], found["threshold"], found["components"], found["raw_maximum"]) == (None, 0.3, 0, -0.5)


class TestLocalisation:
    mask = np.zeros((40, 40), bool)
    mask[10:30, 10:20] = True

    def test_peak(self) -> None:
        raw = blob_map(40, centre=(29, 19))
        assert localisation(raw, None, self.mask).peak_hit is False  # no box: no evidence, all are misses
        assert localisation(raw, find_box(raw), self.mask).peak_hit is True
        outside = blob_map(40, centre=(30, 19))
        assert localisation(outside, find_box(outside), self.mask).peak_hit is False
        against = raw.copy()
        against[0, 0] = -9  # speaks against the target, however loudly
        assert localisation(against, find_box(against), self.mask).peak_hit is True

    @pytest.mark.parametrize(
        ("box", "iou", "hit"),
        [
            ((10, 10, 20, 30), 1.0, True),
            ((10, 10, 20, 20), 0.5, True),
            ((10, 10, 20, 19), 0.45, False),
            ((15, 10, 25, 30), 100 / 300, False),
            ((20, 10, 30, 30), 0.0, False),
            ((0, 0, 40, 40), 200 / 1600, False),
        ],
    )
    def test_box(self, box: tuple[int, int, int, int], iou: float, hit: bool) -> None:
        result = localisation(blob_map(40), box_at(*box), self.mask)
        assert result.box_iou == pytest.approx(iou)
        assert result.box_hit is hit

    def test_box_is_held_to_the_rectangle_around_the_whole_mask(self) -> None:
        two = np.zeros((40, 40), bool)
        two[10, 10] = two[29, 19] = True
        assert localisation(blob_map(40), box_at(10, 10, 20, 30), two).box_iou == 1.0

    def test_centre_map_is_a_fair_baseline(self) -> None:
        raw = centre_map(100)
        box = find_box(raw)
        assert box is not None
        assert box.x0 == box.y0 == 100 - box.x1 == 100 - box.y1
        assert 0.45 < box.area_fraction < 0.55
        centred = np.zeros((100, 100), bool)
        centred[40:60, 40:60] = True
        assert localisation(raw, box, centred).peak_hit is True
        assert localisation(raw, box, ~centred).peak_hit is False

    def test_refuses_what_cannot_be_hit(self) -> None:
        with pytest.raises(ValueError, match="no true pixel"):
            localisation(blob_map(40), None, np.zeros((40, 40), bool))
        with pytest.raises(ValueError, match=r"\(8, 8\) and \(40, 40\)"):
            localisation(blob_map(8), None, self.mask)


class TestSeveralBoxes:
    def test_two_parts_are_hit_by_two_boxes_though_not_by_one_around_both(self) -> None:
        mask = np.zeros((40, 40), bool)
        mask[5:10, 5:10] = mask[30:35, 30:35] = True
        raw = np.where(mask, 1.0, 0.0)
        raw[7, 7] = 1.1
        box = find_box(raw, threshold=0.5)
        assert box is not None
        assert box.all == ((5, 5, 10, 10), (30, 30, 35, 35))
        hit = localisation(raw, box, mask)
        assert hit.boxes_iou == 1
        assert hit.box_iou == pytest.approx(25 / 900)
        assert localisation(-raw, None, mask).boxes_iou == 0

    def test_overlap_of_areas_counts_no_pixel_twice(self) -> None:
        covered = np.zeros((2, 20, 20), bool)
        some, others = [(0, 0, 10, 10), (5, 5, 15, 12)], [(8, 8, 20, 20), (0, 0, 3, 3), (1, 1, 4, 4)]
        for area, rectangles in zip(covered, (some, others), strict=True):
            for x0, y0, x1, y1 in rectangles:
                area[y0:y1, x0:x1] = True
        expected = (covered[0] & covered[1]).sum() / (covered[0] | covered[1]).sum()
        assert boxes_iou(some, others, shape=(20, 20)) == pytest.approx(expected)
        assert boxes_iou([], others, shape=(20, 20)) == 0

    def test_parts_that_touch_at_a_corner_are_one(self) -> None:
        mask = np.zeros((20, 20), bool)
        mask[2:4, 2:4] = mask[4:6, 4:6] = mask[10:12, 15:20] = True
        assert mask_parts(mask) == [(2, 2, 6, 6), (15, 10, 20, 12)]
