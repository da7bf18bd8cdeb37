"""The charts of the checks of heatmaps: what is drawn is what was found."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from matplotlib.figure import Figure

from sscl.plots import cam as cam_plots


@pytest.fixture
def figure_of(figure_of: Callable[..., Figure]) -> Callable[..., Figure]:
    return partial(figure_of, title="a$b$")


def lines_of(figure: Figure, axes: int = 0) -> dict[str, list[float]]:
    """The values of each line with a name."""
    lines = figure.axes[axes].lines
    return {str(line.get_label()): list(line.get_ydata()) for line in lines if line.get_marker() != "None"}


def test_randomisation_goes_from_the_trained_net_down_to_the_stem(figure_of):
    found = {
        "stages": ["head", "layer$4$", "stem"],
        "unrelated_below": 0.5,
        "absolute_rank_correlation": {"mean": [0.9, 0.7, 0.1], "sd": [0.1, 0.2, 0.05]},
        "rank_correlation": {"mean": [0.8, -0.6, 0.0], "sd": [0.1, 0.1, 0.1]},
        "ssim": {"mean": [0.95, 0.5, 0.3], "sd": [0.02, 0.1, 0.1]},
    }
    figure = figure_of(cam_plots.plot_randomisation, found)
    assert lines_of(figure) == {
        "|rank correlation|": [1, 0.9, 0.7, 0.1],
        "rank correlation": [1, 0.8, -0.6, 0.0],
        "SSIM": [1, 0.95, 0.5, 0.3],
    }
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.get_xticklabels()]
    assert names == ["as trained", "head", r"layer\$4\$", "stem"]
    assert list(axes.lines[-1].get_ydata()) == [0.5, 0.5]
    bands = [band.get_paths()[0].vertices for band in axes.collections]
    ends = [(at[at[:, 0] == 3, 1].min(), at[at[:, 0] == 3, 1].max()) for at in bands]
    assert ends == [pytest.approx((0.05, 0.15)), pytest.approx((0.2, 0.4))]


def test_deletion_and_insertion_have_their_own_curves_and_areas(figure_of):
    def entry(start: float, end: float) -> dict[str, object]:
        mean = (start + end) / 2
        return {"curve": [start, end], "auc": mean, "interval": [mean - 0.01, mean + 0.02]}

    found = {
        "fractions": [0, 1],
        "deletion": {"map": entry(0.9, 0.1), "centre": entry(0.9, 0.3)},
        "insertion": {"map": entry(0.2, 0.8), "centre": entry(0.4, 0.8)},
    }
    figure = figure_of(cam_plots.plot_deletion_insertion, found)
    deletion, insertion = figure.axes
    assert (deletion.get_title(), insertion.get_title()) == ("Deletion: lower is better", "Insertion: higher is better")
    assert "blurred" in deletion.get_xlabel()
    assert "brought back" in insertion.get_xlabel()
    assert lines_of(figure, 0) == {
        "map: area 0.500 (0.490 to 0.520)": [0.9, 0.1],
        "centre: area 0.600 (0.590 to 0.620)": [0.9, 0.3],
    }
    assert lines_of(figure, 1) == {
        "map: area 0.500 (0.490 to 0.520)": [0.2, 0.8],
        "centre: area 0.600 (0.590 to 0.620)": [0.4, 0.8],
    }


def test_box_sensitivity_has_area_overlap_and_shift(figure_of):
    found = {
        "tiles": 3,
        "threshold": 0.2,
        "thresholds": [0.1, 0.2, 0.6],
        "area_fraction": {"mean": [0.8, 0.6, 0.2], "sd": [0.1, 0.1, 0.1]},
        "iou": {"mean": [0.7, 1.0, 0.3], "sd": [0.1, 0.0, 0.1]},
        "centre_shift": {"mean": [0.05, 0.0, 0.15], "sd": [0.01, 0.0, 0.1]},
    }
    figure = figure_of(cam_plots.plot_box_sensitivity, found)
    assert lines_of(figure) == {
        "box area, of the tile": [0.8, 0.6, 0.2],
        "overlap (IoU) with the box at 20%": [0.7, 1.0, 0.3],
        "its centre's distance from that at 20%, of the side": [0.05, 0.0, 0.15],
    }
    (axes,) = figure.axes
    assert axes.lines[0].get_xdata() == pytest.approx([10, 20, 60])
    assert list(axes.lines[-1].get_xdata()) == [20, 20]


def test_of_a_map_without_evidence_the_table_keeps_its_maximum():
    values = dict(zip(cam_plots.BOX_FIELDS, cam_plots.box_values(-np.eye(4), None, threshold=0.3), strict=True))
    assert (values["x0"], values["threshold"], values["components"], values["raw_maximum"]) == (None, 0.3, 0, 0.0)
    assert cam_plots.box_values(np.full((4, 4), -0.5), None, threshold=0.3)[-1] == -0.5
