"""The charts of the checks of heatmaps: what is drawn is what was found."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from matplotlib.figure import Figure

from sscl.evaluate.verdicts import Outcome
from sscl.explain.records import BoxSensitivity, DeletionInsertion, OrderCurve, Randomisation, Spread
from sscl.plots import checks as check_plots

COMMON = {"tiles": 3, "outcome": Outcome.PASSED, "verdict": "passed: so it is"}


@pytest.fixture
def figure_of(figure_of: Callable[..., Figure]) -> Callable[..., Figure]:
    return partial(figure_of, title="a$b$")


def lines_of(figure: Figure, axes: int = 0) -> dict[str, list[float]]:
    """The values of each line with a name."""
    lines = figure.axes[axes].lines
    return {str(line.get_label()): list(line.get_ydata()) for line in lines if line.get_marker() != "None"}


def test_randomisation_goes_from_the_trained_model_down_to_the_stem(figure_of):
    found = Randomisation(
        **COMMON,
        draws=1,
        cells=49,
        stages=("head", "layer$4$", "stem"),
        unrelated_below=0.5,
        absolute_rank_correlation=Spread(mean=(0.9, 0.7, 0.1), sd=(0.1, 0.2, 0.05)),
        rank_correlation=Spread(mean=(0.8, -0.6, 0.0), sd=(0.1, 0.1, 0.1)),
        ssim=Spread(mean=(0.95, 0.5, 0.3), sd=(0.02, 0.1, 0.1)),
    )
    figure = figure_of(check_plots.plot_randomisation, found)
    assert lines_of(figure) == {
        "|rank correlation|": [1, 0.9, 0.7, 0.1],
        "rank correlation": [1, 0.8, -0.6, 0.0],
        "SSIM": [1, 0.95, 0.5, 0.3],
    }
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.get_xticklabels()]
    assert names == ["trained", "head", r"layer\$4\$", "stem"]
    assert list(axes.lines[-1].get_ydata()) == [0.5, 0.5]
    bands = [band.get_paths()[0].vertices for band in axes.collections]
    ends = [(at[at[:, 0] == 3, 1].min(), at[at[:, 0] == 3, 1].max()) for at in bands]
    assert ends == [pytest.approx((0.05, 0.15)), pytest.approx((0.2, 0.4))]


def test_deletion_and_insertion_have_their_own_curves_and_areas(figure_of):
    def of(start: float, end: float) -> OrderCurve:
        mean = (start + end) / 2
        return OrderCurve(curve=(start, end), auc=mean, interval=(mean - 0.01, mean + 0.02))

    found = DeletionInsertion(
        **COMMON,
        fractions=(0, 1),
        moves=0.8,
        deletion={"map": of(0.9, 0.1), "centre": of(0.9, 0.3)},
        insertion={"map": of(0.2, 0.8), "centre": of(0.4, 0.8)},
    )
    figure = figure_of(check_plots.plot_deletion_insertion, found)
    deletion, insertion = figure.axes
    assert "lower" in deletion.get_title()
    assert "higher" in insertion.get_title()
    assert "blurred" in deletion.get_xlabel()
    assert "restored" in insertion.get_xlabel()
    assert lines_of(figure, 0) == {
        "map: AUC 0.500 (0.490 to 0.520)": [0.9, 0.1],
        "centre: AUC 0.600 (0.590 to 0.620)": [0.9, 0.3],
    }
    assert lines_of(figure, 1) == {
        "map: AUC 0.500 (0.490 to 0.520)": [0.2, 0.8],
        "centre: AUC 0.600 (0.590 to 0.620)": [0.4, 0.8],
    }


def test_box_sensitivity_has_area_overlap_and_shift(figure_of):
    found = BoxSensitivity(
        **COMMON,
        threshold=0.2,
        thresholds=(0.1, 0.2, 0.6),
        area_fraction=Spread(mean=(0.8, 0.6, 0.2), sd=(0.1, 0.1, 0.1)),
        iou=Spread(mean=(0.7, 1.0, 0.3), sd=(0.1, 0.0, 0.1)),
        centre_shift=Spread(mean=(0.05, 0.0, 0.15), sd=(0.01, 0.0, 0.1)),
    )
    figure = figure_of(check_plots.plot_box_sensitivity, found)
    assert list(lines_of(figure).values()) == [[0.8, 0.6, 0.2], [0.7, 1.0, 0.3], [0.05, 0.0, 0.15]]
    assert [name.split()[0] for name in lines_of(figure)] == ["box", "IoU", "distance"]
    (axes,) = figure.axes
    assert axes.lines[0].get_xdata() == pytest.approx([0.1, 0.2, 0.6])
    assert list(axes.lines[-1].get_xdata()) == [0.2, 0.2]
