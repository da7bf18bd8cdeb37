"""Charts for a page: nothing but known parts gets through, in the page's colours, and the picture stays the same."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from sscl.evaluate import calibration
from sscl.evaluate.decisions import risk_coverage
from sscl.evaluate.records import DecisionCurve
from sscl.evaluate.verdicts import Outcome
from sscl.explain.records import BoxSensitivity, DeletionInsertion, OrderCurve, Randomisation, Spread
from sscl.plots import base, charts, svg
from sscl.plots import calibration as calibration_plots
from sscl.plots import checks as check_plots
from sscl.plots import comparison as comparison_plots

HOSTILE = "</text><script>alert(1)</script> & \"'<b onload=x>"


def drawn(figure: Figure) -> str:
    return svg.inline(lambda path: base.save_figure(figure, path), prefix="f")


def wrapped(body: str, root: str = 'width="72pt" height="36pt" viewBox="0 0 72 36"') -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'version="1.1" {root}>{body}</svg>'
    )


def example() -> Figure:
    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1, 2], [1, 3, 2], marker="o", linestyle="--", color="#0072B2", label=HOSTILE)
    axes.fill_between([0, 1, 2], [1, 2, 1], [2, 3, 2], color="#D55E00", alpha=0.13)
    axes.text(0, 1, "grey", color="0.4")
    axes.grid(color="0.9")
    axes.set_title(HOSTILE)
    axes.legend()
    return figure


def test_a_chart_holds_only_foreseen_elements_and_attributes_and_no_style():
    root = ElementTree.fromstring(drawn(example()))

    assert {element.tag for element in root.iter()} <= svg._ELEMENTS
    names = {name for element in root.iter() for name in element.attrib}
    assert names <= set(svg._FORM)
    assert not any(name.startswith("on") or name in ("style", "class") for name in names)


def test_text_that_looks_like_markup_stays_text():
    text = drawn(example())

    assert "<script" not in text
    assert "<b" not in text
    assert HOSTILE in [element.text for element in ElementTree.fromstring(text).iter("text")]


def test_greys_become_the_text_colour_as_strong_as_they_are_dark_and_white_vanishes():
    body = "".join(
        f'<path d="M 0 0" style="fill: {fill}; stroke: {stroke}; stroke-opacity: 0.5"/>'
        for fill, stroke in (("#000000", "#ffffff"), ("#ffffff", "#000000"), ("#999999", "#0072b2"))
    )

    first, second, third = ElementTree.fromstring(svg.clean(wrapped(body), prefix="f"))

    assert (first.get("fill"), first.get("stroke")) == ("currentColor", "none")
    assert (second.get("fill"), second.get("stroke"), second.get("stroke-opacity")) == ("none", "currentColor", "0.5")
    assert (third.get("fill"), third.get("fill-opacity"), third.get("stroke")) == ("currentColor", "0.4", "#0072b2")


def test_a_grey_on_white_is_what_matplotlib_drew():
    """Black, as transparent as the grey is light, laid on white, is that grey."""
    for grey in range(0, 250, 7):
        colour, strength = svg._paint(f"#{grey:02x}{grey:02x}{grey:02x}")
        assert colour == "currentColor"
        assert (1 - strength) * 255 == pytest.approx(grey)


def test_ids_are_new_all_links_are_kept_and_two_figures_share_none():
    texts = [svg.inline(lambda path: base.save_figure(example(), path), prefix=name) for name in ("a", "b")]

    found = []
    for text in texts:
        root = ElementTree.fromstring(text)
        ids = [element.get("id") for element in root.iter() if element.get("id")]
        links = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', text))
        assert sorted(ids) == sorted(links), "an id that nothing links to, or a link to nothing"
        assert len(set(ids)) == len(ids) > 2
        found += ids
    assert len(set(found)) == len(found)


def test_size_is_in_pixels_and_numbers_keep_two_digits():
    text = svg.clean(wrapped('<path d="M 1.23456 -0.001&#10;L 3e1 2.5" style="stroke-width: 0.8"/>'), prefix="f")
    root = ElementTree.fromstring(text)

    assert (root.get("width"), root.get("height"), root.get("viewBox")) == ("96", "48", "0 0 72 36")
    assert root[0].get("d") == "M 1.23 0 L 30 2.5"
    assert root[0].get("stroke-width") == "0.8"


def test_what_matplotlib_leaves_to_its_style_sheet_is_on_the_root():
    root = ElementTree.fromstring(svg.clean(wrapped("<text>x</text>"), prefix="f"))

    assert root.get("fill") == "currentColor"  # text and marks without a colour are black
    assert root.get("stroke-linejoin") == "round"
    assert root.get("stroke-linecap") == "butt"


@pytest.mark.parametrize(
    "style", ["font: 10px 'DejaVu Sans', serif; text-anchor: middle", "font-size: 10px; text-anchor: middle"]
)
def test_fonts_of_either_way_of_writing_become_the_pages_own(style):
    (text,) = ElementTree.fromstring(svg.clean(wrapped(f'<text x="1" y="2" style="{style}">a</text>'), prefix="f"))

    assert text.attrib == {"x": "1", "y": "2", "font-size": "10px", "text-anchor": "middle"}


def test_weight_and_slope_of_a_font_in_one_line():
    (text,) = ElementTree.fromstring(
        svg.clean(wrapped("<text style=\"font: italic 700 9.5px 'A B'\">a</text>"), prefix="f")
    )

    assert text.attrib == {"font-size": "9.5px", "font-style": "italic", "font-weight": "700"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('<image xlink:href="data:image/png;base64,AA"/>', "element 'image'"),
        ("<script>x</script>", "element 'script'"),
        ("<foreignObject/>", "element 'foreignObject'"),
        ('<path d="M 0 0" onclick="x"/>', "onclick='x'"),
        ('<use xlink:href="http://example.org/#a"/>', "href='http://example.org/#a'"),
        ('<path d="M 0 0" style="fill: url(http://example.org/a)"/>', "fill="),
        ('<path d="M 0 0" style="background: red"/>', "background='red'"),
        ('<path d="javascript:x"/>', "d='javascript:x'"),
    ],
)
def test_what_is_not_foreseen_is_an_error(body, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        svg.clean(wrapped(body), prefix="f")


@pytest.mark.parametrize("prefix", ["", "1a", 'a"b', "a b"])
def test_a_prefix_is_a_name(prefix):
    with pytest.raises(ValueError, match="prefix"):
        svg.clean(wrapped(""), prefix=prefix)


def test_the_same_chart_gives_the_same_text():
    assert drawn(example()) == drawn(example())


def examples() -> dict[str, object]:
    """Every chart that a report has, of odd content."""
    rng = np.random.default_rng(0)
    names = ("a$b", "<i>", HOSTILE)
    labels = rng.integers(0, 3, 60)
    probabilities = rng.dirichlet(np.ones(3), 60)
    right = probabilities.argmax(1) == labels
    values = dict.fromkeys(("model", "low", "high", "treat_all"), (0.1, 0.0, -0.1))
    curve = DecisionCurve(threshold=(0.2, 0.5, 0.8), **values)
    spread = Spread(mean=(0.5, 0.2), sd=(0.1, 0.1))
    common = {"tiles": 2, "outcome": Outcome.PASSED, "verdict": "passed: so it is"}
    stages = Randomisation(
        **common,
        draws=1,
        cells=49,
        stages=("head", "all"),
        unrelated_below=0.5,
        rank_correlation=spread,
        absolute_rank_correlation=spread,
        ssim=spread,
    )
    way = OrderCurve(curve=(0.9, 0.5), auc=0.7, interval=(0.6, 0.8))
    patches = DeletionInsertion(
        **common, fractions=(0, 1), moves=0.4, deletion={"map": way, "centre": way}, insertion={"map": way}
    )
    boxes = BoxSensitivity(
        **common, threshold=0.2, thresholds=(0.1, 0.2), area_fraction=spread, iou=spread, centre_shift=spread
    )
    stage = SimpleNamespace(ece=0.1, reliability=calibration.reliability_curve(right, probabilities.max(1)))
    nothing = SimpleNamespace(here={"decided": None, "accuracy": None})
    coverage = SimpleNamespace(at=(), abstention=nothing)
    log = [{"epoch": 1, "x": 0.5}, {"epoch": 2, "x": 0.25}]
    return {
        "history": lambda path: charts.plot_history(log, series=[("x", ["x"]), (HOSTILE, ["y"])], path=path, title=""),
        "roc": lambda path: charts.plot_roc(labels, probabilities, classes=names, positive=None, path=path),
        "precision": lambda path: charts.plot_precision_recall(
            labels, probabilities, classes=names, positive=None, path=path
        ),
        "reliability": lambda path: calibration_plots.plot_reliability(
            {"before": stage, "after": stage}, temperature=2, positive=None, path=path, title=HOSTILE
        ),
        "coverage": lambda path: calibration_plots.plot_coverage(
            risk_coverage(right, probabilities.max(1)), found=coverage, path=path, title="t"
        ),
        "decision": lambda path: calibration_plots.plot_decision_curve(
            curve, threshold=0.5, positive=HOSTILE, path=path, title="t"
        ),
        "randomisation": lambda path: check_plots.plot_randomisation(stages, path=path, title="t"),
        "deletion": lambda path: check_plots.plot_deletion_insertion(patches, path=path, title="t"),
        "boxes": lambda path: check_plots.plot_box_sensitivity(boxes, path=path, title="t"),
        "overlaid": lambda path: comparison_plots.plot_overlaid(
            {"all": {HOSTILE: [log, log]}}, series=[("x", "x")], path=path, title="t"
        ),
        "labels": lambda path: comparison_plots.plot_label_curve(
            {HOSTILE: [(10, [0.5, 0.6]), (1000, [0.7, 0.8])]}, measure="m", path=path, title="t"
        ),
        "folds": lambda path: comparison_plots.plot_folds(
            {"m": [(0.5, (0.4, 0.6)), (None, None)]}, pooled={"m": (0.5, (0.4, 0.6))}, path=path, title="t"
        ),
    }


@pytest.mark.parametrize("name", list(examples()))
def test_every_chart_of_a_report_is_made_of_foreseen_parts(name):
    text = svg.inline(examples()[name], prefix=name)

    assert text.startswith("<svg ")
    assert "style=" not in text
    assert "#000000" not in text
    assert "#ffffff" not in text
    assert len(text) < 60_000


def test_png_stays_png(tmp_path: Path):
    base.save_figure(example(), tmp_path / "a.png")
    base.save_figure(example(), tmp_path / "a.svg")

    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
