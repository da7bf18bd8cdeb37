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

from sscl.data.worksheets import read_answers
from sscl.report.page import parts
from sscl.report.slide_page import SlideContent, _grid, page_of
from sscl.report.slide_picture import in_squares
from sscl.report.slide_record import PredictedSlide, SlideCam
from sscl.report.slide_strip import groups, strip_rows

from .conftest import CONTRAST, STORE, UNNAMED, as_kept

CLASSES = ("HP", "</script><script>window.harmed = 1</script>")
NAME = '"><img src=x onerror="window.harmed = 2">.svs'
FOOTPRINT, COLUMNS, ROWS = 443.2, 12, 10
DARK = (3, 2)  # column and row of the tile that is black in the picture
FACTOR, MPP = 4.0, 0.25
START = (142.4, 105.6)  # so that the black tile begins with a block of the JPEG
FRAMES = """() => new Promise((done) => {
  let left = 2;
  const next = () => (left-- ? requestAnimationFrame(next) : done());
  next();
})"""
DRAWN = "() => document.documentElement.dataset.open === 'yes'"


def slide_content(**changes: Any) -> SlideContent:
    """12 x 10 tiles of steps that are not whole; those of the left half are HP, one is undecided, one is black."""
    columns, rows = np.meshgrid(np.arange(COLUMNS), np.arange(ROWS))
    xy = np.rint(np.stack([columns.ravel(), rows.ravel()], 1) * FOOTPRINT + START).astype(np.int32)
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
        mpp=MPP,
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
    context = chromium.new_context(
        viewport={"width": 1000, "height": 700}, accept_downloads=True, reduced_motion="reduce"
    )
    complaints: list[str] = []
    context.on("request", lambda request: complaints.append(f"request: {request.url[:80]}"))
    context.on("console", lambda message: complaints.append(f"console: {message.text}"))
    context.on("weberror", lambda error: complaints.append(f"error: {error.error}"))

    context.add_init_script(STORE)

    def open_page(file: Path, init: str = "") -> Any:
        page = context.new_page()
        page.add_init_script(init)
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
def shared(tab: Callable[..., Any], file: Path) -> Any:
    return tab(file)


@pytest.fixture
def page(shared: Any, file: Path) -> Any:
    """The page as it opens for the first time, in a tab that is kept."""
    shared.emulate_media(color_scheme="light")
    shared.goto(file.as_uri())
    shared.wait_for_function(DRAWN)
    return shared


def colour_at(page: Any, column: float, row: float) -> list[int]:
    return colours_at(page, [(column, row)])[0]


def colours_at(page: Any, places: list[tuple[float, float]]) -> list[list[int]]:
    """The map's own pixels over places of the grid, RGBA: of the overlay's canvas, at their places in the window."""
    black = black_box(page)
    side = ((black[2] - black[0]) + (black[3] - black[1])) / 2
    left, top = black[0] - DARK[0] * side, black[1] - DARK[1] * side
    return page.evaluate(
        """(places) => {
          const canvas = document.getElementById("page-over");
          const ratio = canvas.width / canvas.clientWidth;
          const pen = canvas.getContext("2d");
          return places.map(([x, y]) => [...pen.getImageData(Math.round(x * ratio), Math.round(y * ratio), 1, 1).data]);
        }""",
        [[left + column * side, top + row * side] for column, row in places],
    )


def place_of(page: Any, column: float, row: float) -> list[float]:
    """Where a place of the grid is in the window: found by eye, the black tile's corners in the picture."""
    left, top, right, bottom = black_box(page)
    side = ((right - left) + (bottom - top)) / 2
    return [left + (column - DARK[0]) * side, top + (row - DARK[1]) * side]


def black_box(page: Any) -> list[float]:
    """Left, top, right and bottom of the black tile in the window, in the picture itself."""
    return page.evaluate(
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
    page.locator("#page-group").select_option("reviewed")  # none yet: no outlines
    left, right = colour_at(page, 4.5, 4.5), colour_at(page, 8.5, 4.5)
    assert left != right
    assert left[3] == pytest.approx(0.55 * 255, abs=2)
    slide_to(page, "opacity", 20)
    assert colour_at(page, 8.5, 4.5)[3] == pytest.approx(0.2 * 255, abs=2)
    slide_to(page, "threshold", 50)
    assert colour_at(page, 4.5, 4.5)[3] == 0
    assert colour_at(page, 8.5, 4.5)[3] > 0
    assert slide_to(page, "threshold", 0) < 1_000  # 100 on a machine with nothing else to do
    page.keyboard.press("h")
    assert colour_at(page, 8.5, 4.5)[3] == 0
    page.locator("#page-on").check()
    assert colour_at(page, 8.5, 4.5)[3] > 0


def test_undecided_tiles_have_no_class_and_a_class_can_be_shown_alone(page):
    page.locator("#page-layer").select_option("prediction")
    across = [(0.5 + part / 20, 0.5) for part in range(8)]
    (red, _, blue, _), *stripes = colours_at(page, [(4.5, 4.5), *across])
    assert blue > red  # HP is blue
    assert len({tuple(colour) for colour in stripes}) > 2
    page.locator("#page-undecided").uncheck()
    assert not np.any(colours_at(page, across))
    page.locator('#page-areas [data-only="1"]').click()
    assert [colour[3] > 0 for colour in colours_at(page, [(4.5, 4.5), (8.5, 4.5)])] == [False, True]
    page.locator('#page-areas [data-only="1"]').click()
    mm2 = (FOOTPRINT * MPP / 1000) ** 2
    rows = page.locator("#page-areas tr").all_inner_texts()
    assert rows[1].split("\t")[1:] == [f"{60 * mm2 + mm2:.2g} mm²", "51%"]  # the right half and the black tile
    assert rows[2].split() == ["undecided", f"{mm2:.2g}", "mm²", "1%"]
    page.locator("#page-undecided").check()
    page.locator("#page-layer").select_option("1")


def test_two_sure_tiles_that_contradict_each_other_leave_the_place_under_both_undecided(
    tab: Callable[..., Any], tmp_path: Path
) -> None:
    xy = np.rint(np.array([[0, 0], [FOOTPRINT / 2, 0]])).astype(np.int32)
    sure = np.array([[0.95, 0.05], [0.05, 0.95]], np.float32)
    content = slide_content(xy=xy, probabilities=sure, decided=np.ones(2, bool), coverage=np.full(2, 80))
    (tmp_path / "slide.html").write_text(page_of(content), encoding="utf-8")
    page = tab(tmp_path / "slide.html")
    page.locator("#page-layer").select_option("prediction")
    rows = page.locator("#page-areas tr").all_inner_texts()
    assert [row.split()[-1] for row in rows] == ["33%", "33%", "33%"]
    page.close()


def test_a_place_is_the_same_in_the_picture_the_map_and_the_pointer_to_a_pixel(page):  # T8, T9
    page.locator("#page-group").select_option("reviewed")  # none yet: no outlines
    page.evaluate("document.activeElement.blur()")
    box = page.locator("#page-view").bounding_box()
    for _ in range(7):  # closer and closer, with the corner in the middle
        x, y = place_of(page, *DARK)
        across, down = round((x / box["width"] - 0.5) / 0.2), round((y / box["height"] - 0.5) / 0.2)
        pans = [*abs(across) * [f"Arrow{'Right' if across > 0 else 'Left'}"],
                *abs(down) * [f"Arrow{'Down' if down > 0 else 'Up'}"]]  # fmt: skip
        press(page, *pans, "+")
    x, y = place_of(page, *DARK)
    map_corner = page.evaluate(
        """([x, y]) => {
          const pen = document.getElementById("page-over").getContext("2d");
          const change = (data) => {
            const differs = (at) => Math.abs(data[4 * at] - data[0]) + Math.abs(data[4 * at + 1] - data[1]) > 60;
            return Array.from({ length: 40 }, (_, at) => at).find(differs) - 20;
          };
          const [left, top] = [Math.round(x), Math.round(y)];
          const across = pen.getImageData(left - 20, top + 60, 40, 1).data;
          return [change(across), change(pen.getImageData(left + 60, top - 20, 1, 40).data)];
        }""",
        [x, y],
    )
    pixel = page.locator("#page-scale-bar").bounding_box()["width"] * MPP / 10  # of level 0, in the window
    assert pixel > 1.5
    assert np.abs(map_corner).max() <= pixel
    page.mouse.move(box["x"] + x, box["y"] + y)
    black = slide_content().xy[DARK[1] * COLUMNS + DARK[0]]
    assert places(page) == pytest.approx((black - (137, 91)).tolist(), abs=1)
    press(page, "Home")


def black_tile(page: Any) -> None:
    """Show the black tile in the middle, from so far away that it is gone to."""
    page.locator("#page-group").select_option("0")
    page.evaluate("document.activeElement.blur()")
    press(page, "Home", "-", "-", "-")
    page.locator(f'#page-strip [data-index="{DARK[1] * COLUMNS + DARK[0]}"]').click()
    press(page, "F2")  # no key of the page: only waits


def press(page: Any, *keys: str) -> None:
    """Press keys, and wait until what they do has been drawn, twice the same."""
    for key in keys:
        page.keyboard.press(key)
        page.evaluate(FRAMES)
    last: list[float] = []
    for _ in range(100):
        now = black_box(page)
        if now == last and now[2] > now[0]:
            return
        last = now
        page.evaluate(FRAMES)


def places(page: Any) -> list[int]:
    """x and y under the pointer."""
    said = re.search(r"x ([\d,]+), y ([\d,]+) px", page.locator("#page-readout").inner_text())
    assert said is not None
    return [int(part.replace(",", "")) for part in said.groups()]


def test_the_scale_bar_is_right_at_every_zoom(page):
    black_tile(page)
    for key in ("+", "+", "Home"):
        left, top, right, bottom = black_box(page)
        black = ((right - left) + (bottom - top)) / 2
        bar = page.locator("#page-scale-bar").bounding_box()["width"]
        number, unit = page.locator("#page-scale-text").inner_text().split()
        um = float(number) * {"µm": 1, "mm": 1000}[unit]
        assert um / bar == pytest.approx(FOOTPRINT * MPP / black, rel=0.03)
        press(page, key)


def test_keys_alone_choose_and_answer(page):
    xy = slide_content().xy.tolist()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Shift+ArrowRight")  # none is chosen: that in the middle
    middle = xy.index(chosen_place(page))
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowUp")
    assert chosen_place(page) == xy[middle + 1 - COLUMNS]
    page.keyboard.press("u")
    assert page.locator('#page-review [data-review="unsure"]').get_attribute("aria-pressed") == "true"
    page.keyboard.press("u")


def chosen_place(page: Any) -> list[int]:
    """x and y of the chosen tile, from the file's corner."""
    said = re.search(r"x ([\d,]+), y ([\d,]+) px", page.locator("#page-place").inner_text())
    assert said is not None
    return [int(part.replace(",", "")) + start for part, start in zip(said.groups(), (137, 91), strict=True)]


def test_the_pointer_shows_values_and_places_from_the_scanned_corner(page):
    box = page.locator("#page-view").bounding_box()
    x, y = place_of(page, 8.5, 4.5)
    page.mouse.move(box["x"] + x, box["y"] + y)
    said = page.locator("#page-readout").inner_text()
    assert "0.904" in said
    assert "0.096" in said
    assert places(page) == pytest.approx([8.5 * FOOTPRINT, 4.5 * FOOTPRINT], abs=40)
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
    (answer,) = read_answers(path)  # as labels
    assert (answer.id, answer.review, answer.note) == (f"{NAME}/{x}_{y}", "disagree", '=fold, "ink"')
    record = slide_content().record
    assert (answer.slide, answer.quickhash, answer.classes) == (NAME, record.quickhash, record.classes)
    assert answer.tile_um == pytest.approx(record.size_px * record.tile_mpp, rel=1e-5)
    page.locator("#page-reset").click()
    page.locator("#page-ask-answers button").first.click()
    page.wait_for_function("() => document.getElementById('page-note').value === ''")
    page.locator("#page-file").set_input_files(path)
    page.wait_for_function("() => document.getElementById('page-note').value !== ''")
    page = tab(file, as_kept(page))  # nothing is lost
    page.locator("#page-group").select_option("reviewed")
    page.locator("#page-strip .thumb").click()
    assert page.locator("#page-note").input_value() == '=fold, "ink"'
    assert page.locator('#page-review [data-review="disagree"]').get_attribute("aria-pressed") == "true"


def test_text_stands_out_and_controls_have_names(page):
    page.locator("#page-strip .thumb").first.click()
    assert page.locator("#page-chosen").is_visible()
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(CONTRAST) == []
    assert page.evaluate(UNNAMED) == []


def test_blind_review_hides_the_map_and_the_prediction_until_a_class_is_named(page, file):
    page.goto(f"{file.as_uri()}?#blind")  # another address than that without a blind review, so another document
    page.wait_for_function(DRAWN)
    assert page.locator("#page-blind").is_checked()
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
    found, reduced = in_squares(rgb, (4.0, 4.0), most_bytes=500_000)
    assert 100_000 < sum(map(len, found["squares"])) <= 500_000
    assert reduced == 2
    assert (found["width"], found["height"], found["factor"]) == (550, 600, (8.0, 8.0))


def test_the_heatmap_of_a_region_lies_in_its_place_with_its_own_scale(tab: Callable[..., Any], tmp_path: Path) -> None:
    """A cell of 12 x 10 a tile: one speaks for the class, one against it, one has no value, the others are 0."""
    values = np.zeros((ROWS * 10, COLUMNS * 10), np.float32)
    for (column, row), value in (((3, 2), 0.5), ((8, 2), -0.25), ((3, 7), np.nan), ((8, 7), 2.0)):
        values[row * 10 : row * 10 + 10, column * 10 : column * 10 + 10] = value
    cam = SlideCam.model_construct(
        x=138, y=94, factor=FOOTPRINT / 10, explained="logit <b>", label=CLASSES[1], against=("HP",),
        unit="logits per cell", method="Grad-CAM", lowest=-0.25, highest=2.0, scale_start=0.0, scale_end=1.0,
    )  # fmt: skip
    record = slide_content().record.model_copy(update={"cam": cam, "quickhash": "cd" * 16})
    (tmp_path / "slide.html").write_text(page_of(slide_content(record=record, cam=values)), encoding="utf-8")
    page = tab(tmp_path / "slide.html")
    page.select_option("#page-layer", "cam")
    page.locator("#page-opacity").fill("100")
    found = colours_at(page, [(3.5, 2.5), (8.5, 2.5), (3.5, 7.5), (8.5, 7.5), (5.5, 4.5)])
    assert [colour[3] / 255 for colour in found] == pytest.approx([0.5, 0.25, 0, 1, 0], abs=0.02)
    assert (found[3][:3], np.abs(np.subtract(found[1][:3], (0, 114, 178))).max() <= 4) == ([230, 159, 0], True)
    box = page.locator("#page-view").bounding_box()
    x, y = place_of(page, 8.5, 2.5)
    page.mouse.move(box["x"] + x, box["y"] + y)
    assert "−0.25 logits per cell" in page.inner_text("#page-readout")
    assert [page.inner_text(f"#page-cam-{name}") for name in ("low", "high", "against")] == ["−1", "1", "for HP"]
    assert page.inner_text("#page-cam-explained").startswith("logit <b>: ")
    assert not page.is_visible("#page-threshold")
    page.select_option("#page-layer", "prediction")
    assert page.is_visible("#page-threshold")
    assert not page.is_visible("#page-cam")
