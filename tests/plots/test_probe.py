from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from matplotlib.figure import Figure

from sscl.evaluate.probe_results import OverRuns, Summary
from sscl.evaluate.probe_shots import FewShot
from sscl.plots import probe as probe_plots
from sscl.plots.probe import BarPanel, CurvePanel, plot_bars, plot_curves

ROWS = ["random", "a$b$_imagenet with a long name and more", "ours"]
POINTS = [(0.4, (0.35, 0.44)), (0.6, None), (0.7, (0.65, 0.75))]


@pytest.fixture
def figure_of(figure_of: Callable[..., Figure]) -> Callable[..., Figure]:
    return partial(figure_of, title="title")


@pytest.mark.parametrize("count", [1, 4, 5])
def test_bars_have_their_values_whiskers_and_names(figure_of, count):
    panels = [
        BarPanel(f"set {i}, test", 0.25, POINTS, [0.45, 0.4, 0.6], runs=[[0.3, 0.5], [], [0.7]], few=[0.2, None, 0.3])
        for i in range(count)
    ]
    figure = figure_of(plot_bars, panels, rows=ROWS, whiskers="95% interval", shots=16)
    assert "16 shots" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(figure.axes) == count
    for axes in figure.axes:
        assert [bar.get_width() for bar in axes.patches] == [0.4, 0.6, 0.7]
        whiskers = [segment for collection in axes.collections for segment in collection.get_segments()]
        assert [[x for x, _ in segment] for segment in whiskers] == [
            pytest.approx([0.35, 0.44]),
            pytest.approx([0.65, 0.75]),
        ]
        diamonds = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"]
        assert diamonds == [0.45, 0.4, 0.6]
        assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "^"] == [0.2, 0.3]
        ticks = [line for line in axes.lines if line.get_marker() == "|" and line.get_alpha()]  # not a whisker's ends
        assert [list(line.get_xdata()) for line in ticks] == [[0.3, 0.5], [], [0.7]]
        assert [text.get_text() for text in axes.texts] == ["0.40", "0.60", "0.70"]
        assert axes.yaxis_inverted()
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[0] == "random"
    assert r"\$" in names[1]
    assert figure.axes[0].yaxis.get_tick_params()["labelleft"]


def test_legends_name_only_what_is_drawn(figure_of):
    bare = [(0.4, None), (0.6, None)]

    def legend(figure: Figure) -> list[str]:
        return [text.get_text() for text in figure.legends[0].get_texts()]

    for points, named in ((bare, False), (POINTS[:2], True)):
        bars = figure_of(plot_bars, [BarPanel("s", 0.5, points, [0.5, 0.5])], rows=["a", "b"], whiskers="ends")
        assert ("ends" in legend(bars)) is named
        assert (len(bars.axes[0].collections) > 0) is named
        lines = CurvePanel("s", 0.5, {"a": list(zip((1.0, 4.0), points, strict=True))})
        assert ("ends" in legend(figure_of(plot_curves, [lines], x_label="x", band="ends"))) is named


def test_charts_of_a_summary_have_each_figure_in_its_place(wrap, tmp_path):
    def row(name: str, part: str, fraction: float, classifier: Any, mean: float, sd: float | None) -> Summary:
        over = OverRuns(mean=mean, sd=sd, interval=(mean - 0.01, mean + 0.02), values=(mean - 0.1, mean + 0.1))
        return Summary(
            encoder=name,
            set="s",
            part=part,
            fraction=fraction,
            classifier=classifier,
            labels=round(1000 * fraction),
            runs=2 if sd else 1,
            **dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1"), over),
        )

    means = {("a", 0.1): 0.3, ("a", 1.0): 0.5, ("b", 0.1): 0.4, ("b", 1.0): 0.7}
    sds = {"a": 0.05, "b": None}
    summary = [
        row(name, part, fraction, classifier, mean + (part == "val") / 100 + (classifier == "knn") / 1000, sds[name])
        for part in ("test", "val")
        for (name, fraction), mean in means.items()
        for classifier in ("linear", "knn")
    ]
    drawn = {}

    def keep(plot: Any, panels: Any, *, path: Any, **_: Any) -> None:
        drawn[path.name] = panels

    wrap(probe_bars=keep, probe_curves=keep)
    written = probe_plots.draw_charts(
        summary, chance={("s", "test"): 0.2, ("s", "val"): 0.25}, images={"a": 40, "b": None}, folder=tmp_path
    )
    assert written == list(drawn) == ["probe.png", "labels.png", "images.png"]
    for part, more, chance in (("test", 0.0, 0.2), ("val", 0.01, 0.25)):
        bars, lines, grown = (next(p for p in panels if p.title == f"s, {part}") for panels in drawn.values())
        assert bars.chance == lines.chance == grown.chance == chance
        assert bars.knn == pytest.approx([0.501 + more, 0.701 + more])
        assert [mean for mean, _ in bars.linear] == pytest.approx([0.5 + more, 0.7 + more])
        assert bars.linear[0][1] == pytest.approx((0.49 + more, 0.52 + more))
        assert bars.runs[0] == pytest.approx([0.4 + more, 0.6 + more])
        assert [x for x, _ in lines.lines["a"]] == [100, 1000]
        ends = [(m + more - 0.05, m + more + 0.05) for m in (0.3, 0.5)]  # sd of several runs
        assert [band for _, (_, band) in lines.lines["a"]] == [pytest.approx(end) for end in ends]
        ends = [(m + more - 0.01, m + more + 0.02) for m in (0.4, 0.7)]  # interval of a single one
        assert [band for _, (_, band) in lines.lines["b"]] == [pytest.approx(end) for end in ends]
        ((name, level),) = grown.levels.items()
        assert (name, level) == ("b, 100% of the labels", pytest.approx(0.7 + more))
        at = {name: [(x, point[0]) for x, point in points] for name, points in grown.lines.items()}
        assert at["pretrained, 10% of the labels"] == [(40, pytest.approx(0.3 + more))]
        assert at["pretrained, 100% of the labels"] == [(40, pytest.approx(0.5 + more))]


def test_curves_have_their_points_bands_and_levels(figure_of):
    whole = [(20.0, POINTS[0]), (200.0, POINTS[0]), (2000.0, POINTS[2])]
    single = [(20.0, POINTS[0]), (200.0, POINTS[1])]
    panel = CurvePanel("set, test", 0.2, {"ours": whole, "random": single}, {"ImageNet": 0.8})
    figure = figure_of(plot_curves, [panel, panel], x_label="Labelled tiles", band="±1 sd")
    for axes in figure.axes:
        assert axes.get_xscale() == "log"
        ours, random = (line for line in axes.lines if line.get_marker() == "o")
        assert [list(values) for values in ours.get_data()] == [[20, 200, 2000], [0.4, 0.4, 0.7]]
        assert ours.get_color() != random.get_color()
        (band,) = axes.collections  # the other line has one whisker: no band
        assert band.get_paths()[0].get_extents().bounds == pytest.approx((20, 0.35, 1980, 0.4))
        (level,) = [line for line in axes.lines if list(line.get_ydata()) == [0.8, 0.8]]
        assert level.get_linestyle() == "--"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["ours", "random", "ImageNet", "±1 sd", "chance"]


def test_simpleshot_has_a_curve_over_shots(wrap, tmp_path):
    def few(name: str, shots: int, mean: float) -> FewShot:
        over = OverRuns(mean=mean, sd=0.1, values=(mean,), interval=(mean - 0.05, mean + 0.04))
        metrics = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1"), over)
        return FewShot(encoder=name, set="s", part="test", shots=shots, draws=100, left_out=(), **metrics)

    rows = [few(name, shots, base + shots / 100) for name, base in (("a", 0.3), ("b", 0.4)) for shots in (16, 1, 4)]
    drawn = {}
    wrap(probe_curves=lambda plot, panels, *, path, ticks, **_: drawn.update({path.name: (panels, ticks)}))
    assert probe_plots.draw_shots(rows, chance={("s", "test"): 0.2}, folder=tmp_path) == ["shots.png"]
    ((panel,), ticks) = drawn["shots.png"]
    assert list(ticks) == [1, 4, 16]
    assert [(x, point[0]) for x, point in panel.lines["b"]] == [
        (1, pytest.approx(0.41)),
        (4, pytest.approx(0.44)),
        (16, pytest.approx(0.56)),
    ]
    assert panel.lines["a"][0][1][1] == pytest.approx((0.26, 0.35))
    assert probe_plots.draw_shots(rows[:1], chance={("s", "test"): 0.2}, folder=tmp_path) == []
