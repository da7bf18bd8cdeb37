"""slide.html in a browser: the map, what the pointer shows, the strip, the worksheet, names that are hostile."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sscl.report.page import parts
from sscl.report.slide_page import SlideContent, _grid, page_of
from sscl.report.slide_picture import pyramid
from sscl.report.slide_record import PredictedSlide
from sscl.report.slide_strip import groups, strip_rows

CLASSES = ("HP", "</script><script>window.harmed = 1</script>")
NAME = '"><img src=x onerror="window.harmed = 2">.svs'
FOOTPRINT, COLUMNS, ROWS = 443.2, 12, 10
DARK = (3, 2)  # column and row of the tile that is black in the picture
FACTOR = 4.0
DRAWN = "() => document.documentElement.dataset.open === 'yes'"


def slide_content(**changes: Any) -> SlideContent:
    """12 x 10 tiles of steps that are not whole; those of the left half are HP, one is undecided, one is black."""
    columns, rows = np.meshgrid(np.arange(COLUMNS), np.arange(ROWS))
    xy = np.rint(np.stack([columns.ravel(), rows.ravel()], 1) * FOOTPRINT + (137, 91)).astype(np.int32)
    second = np.where(columns.ravel() < 6, 0.2, 0.9).astype(np.float32) + rows.ravel().astype(np.float32) / 1000
    second[0] = 0.49
    second[DARK[1] * COLUMNS + DARK[0]] = 0.7
    decided = np.ones(len(xy), bool)
    decided[0] = False
    width, height = 5600, 4700
    base = np.full((round(height / FACTOR), round(width / FACTOR), 3), 230, np.uint8)
    x, y = xy[DARK[1] * COLUMNS + DARK[0]]
    base[round(y / FACTOR) : round((y + FOOTPRINT) / FACTOR), round(x / FACTOR) : round((x + FOOTPRINT) / FACTOR)] = 0
    record = PredictedSlide.model_construct(
        name=NAME,
        path="/gone",
        quickhash="ab" * 16,
        width=width,
        height=height,
        mpp=0.25,
        mpp_from="aperio.MPP",
        bounds=(137, 91, 5400, 4500),
        size_px=224,
        tile_mpp=0.4946,
        footprint=FOOTPRINT,
        most_over=1,
        classes=CLASSES,
        colours=((0, 114, 178), (230, 159, 0)),
        positive=CLASSES[1],
        threshold=0.5,
        checkpoint="runs/x",
        temperature=1.0,
        calibrated=True,
        decide_from=0.6,
        tiles=len(xy),
        class_counts={},
        damaged=(),
        notes=("tiles are classified, one by one: this is no diagnosis of the slide",),
    )
    given = dict(
        record=record,
        xy=xy,
        coverage=np.full(len(xy), 80),
        probabilities=np.stack([1 - second, second], 1),
        decided=decided,
        base=base,
        base_factor=(FACTOR, FACTOR),
    )
    return SlideContent(**{**given, **changes})


@pytest.fixture(scope="module")
def tab(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Return a function that opens a page from disk; what it asks for or complains of fails the test."""
    context = chromium.new_context(viewport={"width": 1200, "height": 800}, accept_downloads=True)
    complaints: list[str] = []
    context.on("request", lambda request: complaints.append(f"request: {request.url[:80]}"))
    context.on("console", lambda message: complaints.append(f"console: {message.text}"))
    context.on("weberror", lambda error: complaints.append(f"error: {error.error}"))

    def open_page(file: Path) -> Any:
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.goto(file.as_uri())
        page.wait_for_function(DRAWN)
        return page

    yield open_page
    harmed = [page.evaluate("window.harmed ?? null") for page in context.pages]
    context.close()
    own = ("request: file://", "request: data:", "request: blob:", "console: Canvas2D: Multiple readback")  # ours, here
    assert [found for found in complaints if not found.startswith(own)] == []
    assert set(harmed) <= {None}, "T31: a script of a name ran"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "slide.html"
    path.write_text(page_of(slide_content()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(tab: Callable[..., Any], file: Path) -> Any:
    return tab(file)


def colour_at(page: Any, column: float, row: float) -> list[int]:
    """The map's own pixel over a tile, RGBA: of the overlay's canvas, at its place in the window."""
    return page.evaluate(
        """([x, y]) => {
          const canvas = document.getElementById("page-over");
          const ratio = canvas.width / canvas.clientWidth;
          return [...canvas.getContext("2d").getImageData(Math.round(x * ratio), Math.round(y * ratio), 1, 1).data];
        }""",
        place_of(page, column, row),
    )


def place_of(page: Any, column: float, row: float) -> list[float]:
    """Where a place of the grid is in the window: found by eye, the black tile's corners in the picture."""
    black = page.evaluate(
        """() => {
          const canvas = document.querySelector("#page-view canvas");
          const pen = canvas.getContext("2d");
          const { width, height } = canvas;
          const data = pen.getImageData(0, 0, width, height).data;
          let box = [width, height, 0, 0];
          for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
            const at = 4 * (y * width + x);
            if (data[at + 3] !== 255 || data[at] >= 115) continue;
            box = [Math.min(box[0], x), Math.min(box[1], y), Math.max(box[2], x + 1), Math.max(box[3], y + 1)];
          }
          const ratio = width / canvas.clientWidth;
          return box.map((value) => value / ratio);
        }"""
    )
    side = ((black[2] - black[0]) + (black[3] - black[1])) / 2
    return [black[0] + (column - DARK[0]) * side, black[1] + (row - DARK[1]) * side]


def slide_to(page: Any, name: str, value: int) -> float:
    """Move a slider; return the milliseconds that the page takes."""
    return page.evaluate(
        """([name, value]) => {
          const slider = document.getElementById(`page-${name}`);
          const began = performance.now();
          slider.value = value;
          slider.dispatchEvent(new Event("input"));
          return performance.now() - began;
        }""",
        [name, value],
    )


def test_the_map_lies_on_its_tiles_and_the_sliders_change_it(page):
    page.wait_for_timeout(700)  # until the first zoom has come to rest
    page.locator("#page-group").select_option("reviewed")  # none yet: no outlines
    left, right = colour_at(page, 4.5, 4.5), colour_at(page, 8.5, 4.5)
    assert left != right
    assert left[3] == pytest.approx(0.55 * 255, abs=2)
    # T8: the black tile of the picture is the one of another colour on the map
    x, y = place_of(page, *DARK)
    corner = page.evaluate(
        """([x, y]) => {
          const pen = document.getElementById("page-over").getContext("2d");
          const changes = (data) => {
            const differs = (at) => Math.abs(data[4 * at] - data[0]) + Math.abs(data[4 * at + 1] - data[1]) > 60;
            return Array.from({ length: 20 }, (_, at) => at).find(differs) - 10;
          };
          const [left, top] = [Math.round(x), Math.round(y)];
          const across = pen.getImageData(left - 10, top + 15, 20, 1).data;
          return [changes(across), changes(pen.getImageData(left + 15, top - 10, 1, 20).data)];
        }""",
        [x, y],
    )
    assert corner == pytest.approx([0, 0], abs=1)
    slide_to(page, "opacity", 20)
    assert colour_at(page, 8.5, 4.5)[3] == pytest.approx(0.2 * 255, abs=2)
    slide_to(page, "threshold", 50)
    assert colour_at(page, 4.5, 4.5)[3] == 0
    assert colour_at(page, 8.5, 4.5)[3] > 0
    assert slide_to(page, "threshold", 0) < 1_000  # 100 on a machine with nothing else to do
    page.keyboard.press("h")
    assert colour_at(page, 8.5, 4.5)[3] == 0
    page.keyboard.press("h")


def test_the_pointer_shows_values_and_places_from_the_scanned_corner(page):
    box = page.locator("#page-view").bounding_box()
    x, y = place_of(page, 8.5, 4.5)
    page.mouse.move(box["x"] + x, box["y"] + y)
    said = page.locator("#page-readout").inner_text()
    assert "0.904" in said
    assert "0.096" in said
    numbers = [int(part.replace(",", "")) for part in re.search(r"x ([\d,]+), y ([\d,]+) px", said).groups()]
    assert numbers == pytest.approx([8.5 * FOOTPRINT, 4.5 * FOOTPRINT], abs=40)  # T9: without the bounds' 137 and 91
    page.mouse.click(box["x"] + x, box["y"] + y)
    assert "90%" in page.locator("#page-said").inner_text()


def test_the_strip_leads_to_the_least_certain_tile(page):
    page.locator("#page-group").select_option("0")
    first = page.locator("#page-strip .thumb").first
    assert first.get_attribute("data-index") == "0"
    page.keyboard.press(".")
    page.locator("#page-group").select_option("1")
    first = page.locator("#page-strip .thumb").first
    first.click()
    assert first.get_attribute("aria-current") == "true"
    assert "of 8" in page.locator("#page-strip-place").inner_text()


def test_the_worksheet_s_round_trip(page, tab, file, tmp_path):
    page.locator("#page-strip .thumb").first.click()
    page.keyboard.press("d")
    page.locator("#page-note").fill('=fold, "ink"')
    with page.expect_download() as kept:
        page.locator("#page-download").click()
    path = tmp_path / "sheet.csv"
    kept.value.save_as(path)
    rows = [row for row in csv.DictReader(io.StringIO(path.read_text("utf-8-sig"))) if row["review"]]
    assert [(row["review"], row["note"]) for row in rows] == [("disagree", '\'=fold, "ink"')]
    x, y = rows[0]["id"].removeprefix(NAME + "/").split("_")
    assert [int(x), int(y)] in slide_content().xy.tolist()
    page.locator("#page-reset").click()
    page.locator("#page-ask-answers button").first.click()
    assert page.locator("#page-note").input_value() == ""
    page.locator("#page-file").set_input_files(path)
    page.wait_for_function("() => document.getElementById('page-note').value !== ''")
    assert page.locator('#page-review [data-review="disagree"]').get_attribute("aria-pressed") == "true"


def test_blind_review_hides_the_map_and_the_prediction_until_a_class_is_named(page):
    page.locator("#page-blind").check()
    assert colour_at(page, 8.5, 4.5)[3] == 0
    page.keyboard.press(".")
    assert page.locator("#page-probabilities").is_hidden()
    assert NAME not in page.locator("#page-place").inner_text()
    page.keyboard.press("1")
    assert page.locator("#page-probabilities").is_visible()
    assert "you said HP" in page.locator("#page-place").inner_text()


def test_nothing_of_a_name_becomes_markup_and_the_licence_is_kept():
    html = page_of(slide_content())
    assert "<img src=x" not in html
    assert "</script><script>window" not in html
    assert "CodePlex Foundation" in html
    assert "sourceMappingURL" not in html
    assert parts.read("openseadragon/openseadragon.min.js").startswith("//! openseadragon 6.1.1")


def test_overlapping_tiles_have_half_cells_and_others_small_ones():
    even = np.rint(np.arange(20)[:, None] * 221.6 + (5, 7)).astype(np.int32)
    assert _grid(even, 443.2) == {"start": [5.0, 7.0], "side": [221.6, 221.6], "cells": [21, 21], "span": [2, 2]}
    free = np.random.default_rng(0).integers(0, 50_000, (200, 2)).astype(np.int32)
    grid = _grid(free, 443.2)
    assert max(grid["cells"]) <= 1_011
    assert grid["span"][0] == round(443.2 / grid["side"][0])


def test_the_strip_s_tiles_are_apart_where_they_can_be():
    content = slide_content()
    found = groups(content.probabilities, content.xy, FOOTPRINT)
    assert [group.label for group in found] == [None, 1, 0]
    assert found[0].rows[0] == 0
    assert strip_rows(content.probabilities, content.xy, FOOTPRINT) == sorted({r for g in found for r in g.rows})


def test_a_picture_keeps_within_its_bytes():
    rgb = np.random.default_rng(0).integers(0, 255, (1200, 1100, 3), dtype=np.uint8)
    found = pyramid(rgb, most_bytes=500_000)
    assert sum(map(len, found.squares)) <= 500_000
    assert found.reduced > 1 or found.quality < 80
    assert found.levels[-1] == (found.width, found.height)
