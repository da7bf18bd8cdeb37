"""The section on heatmaps shows what their checks found."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sscl.config import GradcamConfig
from sscl.explain.records import Gain, HitRates, Localisation, MapChecks
from sscl.report import heatmaps

from .conftest import kinds, rendered

MadeChecks = Callable[..., MapChecks]


class TestHeatmaps:
    CONFIG = GradcamConfig(checkpoint="c", threshold=0.2, method="layercam", layer=("a", "b"), fuse="max")

    @pytest.mark.parametrize("passed", [True, False])
    def test_every_check_has_its_verdict_and_chart(self, passed: bool, map_checks: MadeChecks) -> None:
        checks = map_checks(passed)
        section = heatmaps.heatmaps("gradcam", config=self.CONFIG, checks=checks, localised=None)

        assert "LayerCAM of a, b (max)" in rendered(section)
        found = {verdict["title"]: verdict["outcome"] for verdict in kinds(section, "verdict")}
        assert found == {check.question: "passed" if passed else "failed" for check in checks.each.values()}
        figures = kinds(section, "figure")
        assert len(figures) == 3
        assert figures[0]["alt"].endswith("rank correlation head 0.40, all -0.10")

    def test_what_was_not_assessed_has_no_chart(self, map_checks: MadeChecks) -> None:
        section = heatmaps.heatmaps("gradcam", config=self.CONFIG, checks=map_checks(None), localised=None)

        assert rendered(section)
        assert not kinds(section, "figure")

    def test_localisation_beside_centre_and_random_weights(self) -> None:
        rates = HitRates(
            tiles=10,
            peak_hit=0.1,
            box_hit=0.2,
            box_hit_interval=(0.1, 0.4),
            mean_box_iou=0.3,
            mean_boxes_iou=0.4,
            mean_boxes_iou_interval=(0.3, 0.5),
        )
        gains = {"centre": Gain(mean=0.05, interval=(-0.01, 0.11)), "whole tile": Gain(mean=0.1, interval=None)}
        found = Localisation(this_model=rates, centre=rates, random_weights=rates, whole_tile=rates, gains=gains)
        section = heatmaps.heatmaps("gradcam", config=self.CONFIG, checks=None, localised=found)

        (table,) = kinds(section, "table")
        assert [row[0] for row in table["rows"]] == ["this model", "centre", "random weights", "whole tile"]
        shown = ["0.100", "0.400 (0.300 to 0.500)", "", "0.200 (0.100 to 0.400)", "0.300"]
        assert table["rows"][0][1:] == shown
        assert [row[3][:6] for row in table["rows"]] == ["", "+0.050", "", "+0.100"]
        assert "10 tiles" in table["caption"]
