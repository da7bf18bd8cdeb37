"""The pictures of a comparison: what is drawn is what was given."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from sscl.plots import comparison as comparison_plots

Capture = Callable[..., Figure]


def log(*values: float) -> list[dict[str, float]]:
    return [{"epoch": i + 1, "acc": value, "loss": 1 - value} for i, value in enumerate(values)]


def test_curves_have_a_colour_a_row_a_line_a_run_and_the_mean_of_all(figure_of: Capture) -> None:
    histories = {"a$b$": [log(0.1, 0.3, 0.5), log(0.3, 0.5)], "one": [log(0.7)]}
    figure = figure_of(
        comparison_plots.plot_overlaid, {"": histories}, series=[("accuracy", "acc"), ("loss", "loss")], title="t"
    )
    upper, lower = figure.axes
    first, second, mean, alone = upper.lines
    assert first.get_ydata() == pytest.approx([0.1, 0.3, 0.5])
    assert second.get_ydata() == pytest.approx([0.3, 0.5])
    assert mean.get_xdata() == pytest.approx([1, 2])  # as far as both runs go
    assert mean.get_ydata() == pytest.approx([0.2, 0.4])
    assert first.get_color() == mean.get_color() != alone.get_color()
    assert mean.get_linewidth() > 2 * first.get_linewidth()
    assert lower.lines[2].get_ydata() == pytest.approx([0.8, 0.6])
    assert [text.get_text() for text in upper.get_legend().get_texts()] == [r"a\$b\$", "one"]


def test_a_row_has_its_colour_in_every_column(figure_of: Capture) -> None:
    columns = {"1% labels": {"a": [log(0.1, 0.3)], "b": [log(0.2)]}, "all labels": {"b": [log(0.7, 0.8, 0.9)]}}
    figure = figure_of(
        comparison_plots.plot_overlaid, columns, series=[("accuracy", "acc"), ("loss", "loss")], title="t"
    )
    few, many, *_ = figure.axes
    assert [few.get_title(), many.get_title()] == list(columns)
    assert [few.get_ylabel(), many.get_ylabel()] == ["accuracy", ""]
    assert few.lines[1].get_color() == many.lines[0].get_color() != few.lines[0].get_color()
    assert few.get_ylim() == many.get_ylim()
    assert [text.get_text() for text in many.get_legend().get_texts()] == ["a", "b"]


def test_grid_says_right_and_wrong_by_mark_and_colour(figure_of: Capture) -> None:
    images = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    figure = figure_of(
        comparison_plots.plot_predictions,
        images,
        truths=["x", "y", "x", "y"],
        predicted={"base": ["x", "x", "x", "y"], "ssl": ["y", "y", "y", "y"]},
        title="t",
    )
    assert [axes.get_title() for axes in figure.axes] == ["true: x", "true: y", "true: x", "true: y"]
    _, *texts = figure.texts
    assert [text.get_text() for text in texts[:4]] == ["✓ base: x", "✗ ssl: y", "✗ base: x", "✓ ssl: y"]
    assert texts[0].get_color() == texts[3].get_color() != texts[1].get_color()
    for text in texts:  # readable on white
        assert np.dot(to_rgb(text.get_color()), [0.2126, 0.7152, 0.0722]) < 0.5
    # Every text lies below its own tile and above the next row's title.
    boxes = [axes.get_position() for axes in figure.axes]
    for i, box in enumerate(boxes):
        for text in texts[2 * i : 2 * i + 2]:
            assert text.get_position()[1] < box.y0
    assert min(text.get_position()[1] for text in texts[:2]) > boxes[3].y1


def test_label_curve(figure_of: Capture) -> None:
    lines = {"scratch": [(100, [0.5, 0.7]), (10, [0.2, 0.4])], "ssl": [(10, [0.6]), (100, [0.8])]}
    figure = figure_of(comparison_plots.plot_label_curve, lines, measure="balanced accuracy", title="t")
    (axes,) = figure.axes
    means = [line for line in axes.lines if line.get_linewidth() == 2 and len(line.get_xdata()) == 2]
    assert means[0].get_xdata().tolist() == [10, 100]  # in order
    assert means[0].get_ydata() == pytest.approx([0.3, 0.6])
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "100"]
    (band,) = axes.collections  # one row has several runs
    sd = np.std([0.2, 0.4], ddof=1)
    assert band.get_paths()[0].vertices[:, 1].min() == pytest.approx(0.3 - sd)


def test_folds_are_points_with_intervals_the_pooled_one_last(figure_of: Capture) -> None:
    folds = {
        "accuracy": [(0.5, (0.4, 0.6)), (0.7, (0.6, 0.9)), (0.6, None)],
        "AUR$OC$": [(0.5, (0.5, 0.5)), (None, None), (0.9, (0.8, 1.0))],
    }
    pooled = {"accuracy": (0.61, (0.55, 0.7)), "AUR$OC$": (0.7, (0.6, 0.8))}
    figure = figure_of(comparison_plots.plot_folds, folds, pooled=pooled, title="t")
    accuracy, auroc = figure.axes
    assert accuracy.get_xlim() == auroc.get_xlim()
    mean, *lines = accuracy.lines
    assert list(mean.get_xdata()) == pytest.approx([0.6, 0.6])
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in lines]
    assert drawn == [
        *(([0.4, 0.6], [0, 0]), ([0.5], [0])),
        *(([0.6, 0.9], [1, 1]), ([0.7], [1])),
        ([0.6], [2]),
        *(([0.55, 0.7], [3, 3]), ([0.61], [3])),
    ]
    assert lines[-1].get_color() != lines[0].get_color()
    band = accuracy.patches[0].get_extents().transformed(accuracy.transData.inverted())
    assert (band.x0, band.x1) == pytest.approx((0.5, 0.7))  # sd 0.1
    assert [text.get_text() for text in accuracy.get_yticklabels()] == ["fold 1", "fold 2", "fold 3", "pooled"]
    assert accuracy.get_ylim()[0] > accuracy.get_ylim()[1]  # fold 1 on top
    assert len(auroc.lines) == 1 + 2 + 2 + 2  # nothing for the undefined one


def test_one_metric_without_an_interval_is_drawn(figure_of: Capture) -> None:
    figure_of(comparison_plots.plot_folds, {"a": [(0.5, None), (None, None)]}, pooled={"a": (None, None)}, title="t")
