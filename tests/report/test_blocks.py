"""The pieces of a report: what the page takes, and figures as they are shown."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image

from sscl.evaluate.verdicts import Outcome
from sscl.plots import charts
from sscl.report import blocks, page
from sscl.report.page.content import Block


def test_the_page_takes_every_kind(tmp_path: Path):
    Image.new("RGB", (10, 10)).save(tmp_path / "a.png")
    rows = [{"epoch": 1, "x": 1.0}, {"epoch": 2, "x": 2.0}]

    def draw(path: Path) -> None:
        charts.plot_history(rows, series=[("x", ["x"])], path=path, title="")

    every = [
        blocks.paragraph("<b>text</b>"),
        blocks.lead({"What": "It."}),
        blocks.facts({"name": "value"}),
        blocks.bullets(["one", "two"]),
        blocks.table("caption", [["", "value"], ["row", "1"]]),
        blocks.code("config", "a: 1\n"),
        blocks.verdict(Outcome.INCONCLUSIVE, "Is it?", "Not known."),
        blocks.confusion(["a", "b"], [[1, 2], [3, 4]], note="note"),
        blocks.figure("x", draw, alt="alt", caption="caption"),
        blocks.picture(tmp_path / "a.png", alt="alt", caption="caption"),
    ]
    content = {"title": "t", "subtitle": "s", "made": "m", "id": "0" * 16, "gallery": None}

    html = page.render({**content, "sections": [blocks.section("all", "All", every)]})

    assert {block["kind"] for block in every} == {get_type_hints(kind)["kind"].__args__[0] for kind in get_args(Block)}
    assert "<b>text" not in html
    assert "<svg " in html


def test_a_picture_is_a_jpeg_of_at_most_1600_px(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 255, (400, 3200, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")

    block = blocks.picture(tmp_path / "wide.png", alt="a", caption="c")

    head, _, data = block["png"].partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (head, image.format, image.size) == ("data:image/jpeg;base64", "JPEG", (1600, 200))


@pytest.mark.parametrize(("value", "said"), [(0.80555, "0.806"), (1, "1.000"), (-0.25, "-0.250"), (None, "undefined")])
def test_number(value, said):
    assert blocks.number(value) == said


def test_interval():
    assert blocks.interval((0.75, 0.8125)) == "0.750 to 0.812"
    assert blocks.interval(None) == ""


def test_sentence():
    assert blocks.sentence("passes: x") == "Passes: x."
    assert blocks.sentence("FAILS.") == "FAILS."


@pytest.mark.parametrize(
    ("root", "name"), [("/data/colon5", "colon5"), ("/runs/demo/tiles", "demo/tiles"), ("/x/set.npz", "set.npz")]
)
def test_sets_are_called_by_what_says_something(root, name):
    assert blocks.name_of(root) == name
