from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Wedge
from PIL import Image
from sklearn import metrics as sk

import forked
from sscl.plots import base, charts

LONG = "the$odd$_stroma associated-with cancer and no end"
NINE = (*(f"class_{index}" for index in range(8)), LONG)
Capture = Callable[..., Figure]


def texts(figure: Figure) -> list[str]:
    """Return every text inside the axes of a figure."""
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def legend_of(figure: Figure, axes: int = 0) -> list[str]:
    legend = figure.axes[axes].get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def drawn(classes: int, count: int = 120) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, classes, count)
    scores = rng.random((count, classes)) + np.eye(classes)[labels]
    return labels, scores / scores.sum(axis=1, keepdims=True)


class TestConfusion:
    def test_counts_and_percent_of_the_papers_matrix(self, figure_of: Capture) -> None:
        figure = figure_of(charts.plot_confusion, [[84, 15], [13, 86]], classes=("HP", "SSA"), title="test, 198 tiles")
        assert texts(figure) == ["84", "15", "13", "86", "84.8", "15.2", "13.1", "86.9"]
        for axes in figure.axes:
            assert (axes.get_xlabel(), axes.get_ylabel()) == ("Predicted class", "True class")
            assert [label.get_text() for label in axes.get_xticklabels()] == ["HP", "SSA"]
            assert [label.get_text() for label in axes.get_yticklabels()] == ["HP", "SSA"]
        assert figure.get_suptitle() == "test, 198 tiles"

    def test_rows_are_drawn_as_rows(self, figure_of: Capture) -> None:
        figure = figure_of(charts.plot_confusion, [[0, 3], [1, 0]], classes=("a", "b"), title="")
        (three,) = [text for text in figure.axes[0].texts if text.get_text() == "3"]
        assert three.get_position() == (1, 0)  # column 1, row 0
        assert figure.axes[0].get_images()[0].get_array()[0, 1] == 3

    def test_class_without_tiles_has_no_percent(self, figure_of: Capture) -> None:
        figure = figure_of(charts.plot_confusion, [[5, 0], [0, 0]], classes=("a", "b"), title="")
        assert texts(figure)[4:] == ["100.0", "0.0", "–", "–"]

    def test_text_stands_out_from_its_cell(self, figure_of: Capture) -> None:
        matrix = np.arange(16).reshape(4, 4)
        figure = figure_of(charts.plot_confusion, matrix, classes=tuple("abcd"), title="")
        weights = np.array([0.2126, 0.7152, 0.0722])
        for axes in figure.axes:
            image = axes.get_images()[0]
            for text in axes.texts:
                column, row = text.get_position()
                cell = image.cmap(image.norm(image.get_array()[int(row), int(column)]))[:3] @ weights
                assert abs(cell - np.array(to_rgb(text.get_color())) @ weights) > 0.35


class TestCurves:
    @pytest.mark.parametrize("positive", [0, 1])
    def test_positive_class(self, figure_of: Capture, positive: int) -> None:
        labels, scores = drawn(2)
        truth = labels == positive
        options = {"classes": ("HP", "SSA"), "positive": positive}
        name = ("HP", "SSA")[positive]

        roc = figure_of(charts.plot_roc, labels, scores, **options)
        x, y = roc.axes[0].lines[0].get_data()
        assert sk.auc(x, y) == pytest.approx(sk.roc_auc_score(truth, scores[:, positive]))
        auroc = f"{sk.roc_auc_score(truth, scores[:, positive]):.3f}"
        assert legend_of(roc) == [f"{name}: AUROC {auroc}, {truth.sum()} of 120 tiles"]
        assert name in roc.axes[0].get_title()

        precision_recall = figure_of(charts.plot_precision_recall, labels, scores, **options)
        recall, precision = precision_recall.axes[0].lines[0].get_data()
        area = -np.sum(np.diff(recall) * precision[:-1])
        assert area == pytest.approx(sk.average_precision_score(truth, scores[:, positive]))
        assert f"AP {area:.3f}" in legend_of(precision_recall)[0]
        chance = precision_recall.axes[0].lines[1].get_ydata()
        assert chance == pytest.approx([truth.mean()] * 2)

    @pytest.mark.parametrize("function", [charts.plot_roc, charts.plot_precision_recall])
    def test_nine_classes_of_which_one_is_absent(self, figure_of: Capture, function: Callable[..., None]) -> None:
        labels, scores = drawn(9)
        labels[labels == 3] = 4
        figure = figure_of(function, labels, scores, classes=NINE, positive=None)
        entries = legend_of(figure)
        assert len(entries) == 9
        assert entries[3] == "class_3: no curve, 0 of 120 tiles"
        styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines[:9]}
        assert len(styles) == 9
        assert entries[8].startswith(r"the\$odd\$")  # no formula


class TestHistory:
    def test_points_that_are_missing_none_or_not_finite_are_left_out(self, figure_of: Capture) -> None:
        rows = [
            {"epoch": 1, "loss": 3.0},
            {"epoch": 2, "loss": None, "lr": 0.1},
            {"epoch": 3, "loss": math.nan, "lr": "0.1"},
            {"epoch": 4, "loss": math.inf},
            {"loss": 1.0},
            {"epoch": 6, "loss": 2.0, "lr": 0.2},
        ]
        figure = figure_of(charts.plot_history, rows, series=[("Loss", ["loss"]), ("Rate", ["lr"])], title="run")
        loss, rate = figure.axes
        assert [list(values) for values in loss.lines[0].get_data()] == [[1, 6], [3.0, 2.0]]
        assert [list(values) for values in rate.lines[0].get_data()] == [[2, 6], [0.1, 0.2]]
        assert (loss.get_ylabel(), rate.get_ylabel(), rate.get_xlabel()) == ("Loss", "Rate", "epoch")

    def test_single_epoch_shows_a_marker_on_a_whole_number(self, figure_of: Capture) -> None:
        figure = figure_of(charts.plot_history, [{"epoch": 1, "loss": 3.0}], series=[("Loss", ["loss"])], title="")
        axes = figure.axes[0]
        assert axes.lines[0].get_marker() == "o"
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]

    def test_nothing_logged_is_said(self, figure_of: Capture) -> None:
        figure = figure_of(charts.plot_history, [], series=[("Loss", ["loss"])], title="")
        assert texts(figure) == ["nothing logged"]

    def test_several_keys_are_told_apart_in_words(self, figure_of: Capture) -> None:
        rows = [{"epoch": epoch, "train_loss": 1 / epoch, "val_loss": 2 / epoch} for epoch in range(1, 101)]
        figure = figure_of(charts.plot_history, rows, series=[("Loss", ["train_loss", "val_loss"])], title="")
        assert legend_of(figure) == ["train loss", "val loss"]
        assert figure.axes[0].lines[0].get_color() != figure.axes[0].lines[1].get_color()


class TestClassDistribution:
    def test_mhist(self, figure_of: Capture) -> None:
        counts = {"train": {"HP": 1545, "SSA": 630}, "test": {"HP": 617, "SSA": 360}}
        figure = figure_of(charts.plot_class_distribution, counts, title="MHIST")
        pie, bars = figure.axes
        assert legend_of(figure, 0) == ["HP: 2,162 (68.6%)", "SSA: 990 (31.4%)"]
        angles = [patch.theta2 - patch.theta1 for patch in pie.patches if isinstance(patch, Wedge)]
        assert angles == pytest.approx([360 * 2162 / 3152, 360 * 990 / 3152], abs=1e-3)
        assert [patch.get_width() for patch in bars.patches] == [1545, 630, 617, 360]
        assert [text.get_text() for text in bars.texts] == ["1,545", "630", "617", "360"]
        assert legend_of(figure, 1) == ["train", "test"]

    def test_class_missing_from_a_split(self, figure_of: Capture) -> None:
        counts = {"train": {"a": 3}, "val": {}, "test": {"b": 2}}
        bars = figure_of(charts.plot_class_distribution, counts, title="").axes[1]
        assert [patch.get_width() for patch in bars.patches] == [3, 0, 0, 0, 0, 2]

    def test_nine_classes_have_nine_colours(self, figure_of: Capture) -> None:
        figure = figure_of(charts.plot_class_distribution, {"all": dict.fromkeys(NINE, 5)}, title="")
        assert len({patch.get_facecolor() for patch in figure.axes[0].patches}) == 9

    def test_refuses_an_empty_set(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no class has a tile"):
            charts.plot_class_distribution({"train": {"a": 0}}, path=tmp_path / "x.png", title="")


@pytest.mark.parametrize("name", ["short", LONG, "UNBROKENNAMEOFMANYLETTERSANDMORE" * 3, "a_b-c d", "x" * 17])
def test_long_class_names_fit_two_lines_and_keep_both_ends(name: str) -> None:
    lines = base.wrapped(name).replace(r"\$", "$").split("\n")
    assert len(lines) <= 2
    assert max(map(len, lines)) <= 18
    assert lines[0].startswith(name[:5])
    assert lines[-1].endswith(name[-5:])


class TestSaving:
    def save(self, path: Path) -> None:
        charts.plot_history([{"epoch": 1, "loss": 1.0}], series=[("Loss", ["loss"])], path=path, title="")

    def test_writes_one_png(self, tmp_path: Path) -> None:
        self.save(tmp_path / "loss.png")
        assert [entry.name for entry in tmp_path.iterdir()] == ["loss.png"]
        with Image.open(tmp_path / "loss.png") as image:
            assert image.format == "PNG"
            assert image.width > 600
            image.load()

    def test_failure_keeps_the_old_picture_and_leaves_no_half_one(self, tmp_path: Path, wrap: Any) -> None:
        path = tmp_path / "loss.png"
        path.write_bytes(b"old")

        def disk_full(real: Any, figure: Figure, target: Path, **options: object) -> None:
            Path(target).write_bytes(b"half")
            raise OSError("No space left on device")

        wrap(savefig=disk_full)
        with pytest.raises(OSError, match="No space left"):
            self.save(path)
        assert path.read_bytes() == b"old"
        assert [entry.name for entry in tmp_path.iterdir()] == ["loss.png"]

    def test_missing_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
            self.save(tmp_path / "nowhere" / "loss.png")

    def test_no_global_state(self) -> None:
        code = """
import sys
assert "matplotlib.pyplot" not in sys.modules
import sscl.plots.charts, sscl.plots.sheets
assert "matplotlib.pyplot" not in sys.modules
"""
        assert forked.run(code).returncode == 0


class TestManyClasses:
    """Neither time nor size grows with the square of the number of classes."""

    def test_a_confusion_matrix_has_colours_without_numbers(self, figure_of: Capture) -> None:
        sizes = []
        for count in (21, 300):
            figure = figure_of(
                charts.plot_confusion, np.eye(count, dtype=int), classes=[f"class {i}" for i in range(count)], title="t"
            )
            assert texts(figure) == []
            assert len(figure.axes[0].get_yticklabels()) <= 60
            sizes.append(figure.get_size_inches().tolist())
        assert sizes[0] == sizes[1]
        assert figure.axes[0].get_yticklabels()[-1].get_text() == "class 290"
        assert max(sizes[0]) * figure.dpi < 3000
        cells = figure.axes[0].images[0].get_array()
        assert cells.shape == (150, 150)
        assert np.array_equal(cells, np.eye(150)), "the most of four cells, as their mean would fade"

    def test_the_worst_classes_have_a_curve(self, figure_of: Capture) -> None:
        labels = np.arange(240) % 40
        scores = np.full((240, 40), 0.5)
        skill = np.linspace(-1, 1, 40)  # of each class
        scores[np.arange(240), labels] += 0.01 * skill[labels]
        scores /= scores.sum(1, keepdims=True)
        for plot in (charts.plot_roc, charts.plot_precision_recall):
            figure = figure_of(plot, labels, scores, classes=[f"c{i}" for i in range(40)], positive=None)
            assert [name.partition(":")[0] for name in legend_of(figure)] == [f"c{i}" for i in range(10)]
            assert "10 worst of 40" in figure.axes[0].get_legend().get_title().get_text()

    def test_small_classes_are_one(self, figure_of: Capture) -> None:
        counts = {"train": {f"c{i}": i + 1 for i in range(200)}, "test": {"c3": 1, "c199": 5}}
        figure = figure_of(charts.plot_class_distribution, counts, title="t")
        names = legend_of(figure)
        assert len(names) == 40
        total = sum(int(name.split(": ")[1].split(" ")[0].replace(",", "")) for name in names)
        assert total == 200 * 201 / 2 + 6
        assert names[-1].startswith("161 smaller classes: ")
