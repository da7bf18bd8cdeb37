"""The pictures of calibration and decisions: what is drawn is what was given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from sscl.evaluate.calibration import reliability_curve
from sscl.evaluate.decisions import risk_coverage
from sscl.evaluate.proportions import Proportion, proportion_interval
from sscl.evaluate.records import DecisionCurve
from sscl.plots import calibration as calibration_plots

Capture = Callable[..., Figure]


@pytest.fixture
def figure_of(figure_of: Callable[..., Figure]) -> Callable[..., Figure]:
    return partial(figure_of, title="a$b$")


def stage(seed: int) -> SimpleNamespace:
    rng = np.random.default_rng(seed)
    scores = rng.random(80)
    return SimpleNamespace(ece=0.1 * (seed + 1), reliability=reliability_curve(rng.random(80) < scores, scores, bins=5))


@pytest.mark.parametrize("positive", ["SSA", None])
def test_reliability_has_the_curve_the_intervals_and_the_counts_of_each_stage(
    figure_of: Capture, positive: str | None
) -> None:
    stages = {"before": stage(0), "after": stage(1)}
    figure = figure_of(calibration_plots.plot_reliability, stages, temperature=1.5, positive=positive)
    upper, lower = figure.axes[:2], figure.axes[2:]
    for axes, below, (heading, found) in zip(upper, lower, stages.items(), strict=True):
        rows = found.reliability
        curve = axes.lines[-1]
        assert curve.get_xdata() == pytest.approx([row.score for row in rows])
        assert curve.get_ydata() == pytest.approx([row.frequency for row in rows])
        (bars,) = axes.collections
        assert [[y for _, y in segment] for segment in bars.get_segments()] == [
            pytest.approx(row.interval) for row in rows
        ]
        assert [bar.get_height() for bar in below.patches] == [row.count for row in rows]
        assert axes.get_title() == f"{heading}: top-label ECE {found.ece:.3f}"
        assert below.get_xlabel() == ("predicted confidence" if positive is None else "predicted probability of SSA")
    assert "temperature 1.5" in figure.get_suptitle()


def test_reliability_without_intervals_names_none(figure_of: Capture) -> None:
    bare = stage(0)
    bare.reliability = [row.model_copy(update={"interval": None}) for row in bare.reliability]
    for found, named in ((bare, False), (stage(0), True)):
        figure = figure_of(calibration_plots.plot_reliability, {"x": found}, temperature=1.0, positive=None)
        assert bool(figure.axes[0].texts) is named


def test_reliability_of_one_stage_says_no_temperature(figure_of: Capture) -> None:
    figure = figure_of(calibration_plots.plot_reliability, {"as trained": stage(0)}, temperature=1.0, positive="SSA")
    assert len(figure.axes) == 2
    assert "temperature" not in figure.get_suptitle()


@pytest.mark.parametrize("threshold", [0.35, None])
def test_decision_curve_has_model_all_none_and_the_operating_point(figure_of: Capture, threshold: float | None) -> None:
    curve = DecisionCurve(
        threshold=(0.1, 0.5, 0.9),
        model=(0.4, 0.3, 0.1),
        low=(0.3, 0.2, 0.0),
        high=(0.5, 0.4, 0.2),
        treat_all=(0.45, 0.0, -4.0),
    )
    figure = figure_of(calibration_plots.plot_decision_curve, curve, threshold=threshold, positive="SSA")
    (axes,) = figure.axes
    drawn = {line.get_label(): tuple(line.get_ydata()) for line in axes.lines}
    assert drawn["model, 95% interval"] == curve.model
    assert drawn["all called SSA"] == curve.treat_all
    assert drawn["none called SSA"] == (0, 0)
    assert ("operating point 0.350" in drawn) == (threshold is not None)
    assert axes.get_ylim()[0] > -0.5  # calling all would crush the rest
    (band,) = axes.collections
    assert band.get_paths()[0].get_extents().bounds == pytest.approx((0.1, 0, 0.8, 0.5))


def proportion(count: int, of: int) -> Proportion:
    return Proportion(count=count, of=of, value=count / of, interval=proportion_interval(count, of))


def covered(decided: Any, *rows: tuple[float, Proportion]) -> Any:
    """Return what of an evaluation is drawn with a curve of coverage."""
    at = [SimpleNamespace(coverage=coverage, accuracy=accuracy) for coverage, accuracy in rows]
    return SimpleNamespace(at=at, abstention=SimpleNamespace(here=decided))


def test_coverage_has_the_curve_from_ten_tiles_on_intervals_and_the_threshold(figure_of: Capture) -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(1000)
    right = rng.random(1000) < confidence
    decided = {"decided": proportion(800, 1000), "accuracy": proportion(600, 800)}
    whole, alone = proportion(int(right.sum()), 1000), Proportion(count=9, of=10, value=0.9, interval=None)
    found = covered(decided, (1.0, whole), (0.5, alone))
    figure = figure_of(calibration_plots.plot_coverage, risk_coverage(right, confidence), found=found)
    (axes,) = figure.axes
    line = axes.lines[0]
    assert line.get_xdata()[0] == pytest.approx(0.01)
    assert line.get_ydata()[0] == right[np.argsort(-confidence)[:10]].mean()
    assert (line.get_xdata()[-1], line.get_ydata()[-1]) == (1, pytest.approx(right.mean()))
    assert len(line.get_xdata()) <= 300
    ((bar,),) = (lines.get_segments() for lines in axes.collections)
    assert bar.tolist() == [[1, pytest.approx(whole.interval[0])], [1, pytest.approx(whole.interval[1])]]
    (diamond,) = [line for line in axes.lines if line.get_marker() == "D"]
    assert (diamond.get_xdata()[0], diamond.get_ydata()[0]) == (0.8, 0.75)


def test_coverage_of_few_tiles_of_which_none_is_decided_is_drawn(figure_of: Capture) -> None:
    curve = risk_coverage(np.array([True, True, False]), [0.9, 0.8, 0.8])
    found = covered({"decided": proportion(0, 3), "accuracy": None})
    figure = figure_of(calibration_plots.plot_coverage, curve, found=found)
    assert len(figure.axes[0].lines) == 2
