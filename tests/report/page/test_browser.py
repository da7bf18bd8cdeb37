"""The page in a headless Chromium, opened from disk. What it logs, asks for, or lets run fails every test here."""

from __future__ import annotations

import base64
import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sscl.data.worksheets import blind_name
from sscl.evaluate.predictions import TilePredictions
from sscl.explain.boxes import BOX_COLUMNS, box_cells, find_box, remark, remarks
from sscl.explain.cam import upsample
from sscl.plots.cam import overlay
from sscl.report import blocks, gallery
from sscl.report.page import render

from .conftest import CLASSES, CONTRAST, HOSTILE_NAMES, SIZE_PX, UNNAMED, make_content

NAMES = ".tile .id bdi"
# Puts a page back that was looked at: nothing open, filtered or sorted.
PUT_BACK = """() => {
    for (const dialog of document.querySelectorAll('dialog[open]')) dialog.close();
    document.getElementById('page-clear').click();
    const sort = document.getElementById('page-sort');
    sort.value = sort.options[0].value;
    sort.dispatchEvent(new Event('change'));
}"""


def names(page: Any, count: int) -> list[str]:
    """The first tiles shown, by name."""
    return page.locator(NAMES).all_text_contents()[:count]


def ids(content: dict[str, Any], key: Any, *, where: Any = lambda tile: True) -> list[str]:
    """The ids of matching tiles in the order of a key, surrogates as the page shows them."""
    tiles = sorted((tile for tile in content["gallery"]["tiles"] if where(tile)), key=key)
    return [shown(tile["id"]) for tile in tiles]


def shown(name: str) -> str:
    return name.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def confidence(tile: dict[str, Any]) -> float:
    return tile["probabilities"][tile["prediction"]]


def focus_first(page: Any) -> None:
    page.locator('.tile[tabindex="0"]').focus()


def focused(page: Any) -> str:
    return page.evaluate("document.activeElement.querySelector('.id bdi')?.textContent ?? document.activeElement.id")


def settle(page: Any) -> None:
    """Wait for the events on their way, and for a frame, in which rows come and go."""
    page.evaluate("() => new Promise((done) => setTimeout(() => requestAnimationFrame(() => setTimeout(done))))")


def drawn(page: Any) -> None:
    """Wait until every heatmap in the document is on its canvas."""
    page.locator(f".heat:not([width='{SIZE_PX}'])").first.wait_for(state="detached")


def at_the_tiles(page: Any) -> Any:
    """Scroll to them: what is far below is not in the document."""
    page.evaluate("document.getElementById('page-toolbar').scrollIntoView({behavior: 'instant'})")
    page.locator(".tile").nth(17).wait_for()
    drawn(page)
    return page


@pytest.fixture
def page(opened, whole):
    """The page of all tiles; one that a test before only looked at is put back, not opened anew."""
    if opened.shows is whole and opened.shared.evaluate("Object.keys(localStorage).length") == 0:
        opened.shared.evaluate(PUT_BACK)
    else:
        opened(whole)
        opened.shows = whole
    return at_the_tiles(opened.shared)


def test_it_opens_and_shows_what_the_report_says(page, content):
    assert page.title() == content["title"]
    assert page.locator("h1").text_content() == content["title"]
    assert page.locator("#page-count").text_content().startswith("60 tiles: ")
    assert names(page, 6) == ids(content, confidence)[:6]
    # All of a tile is in its label too.
    label = page.locator('.tile[tabindex="0"]').get_attribute("aria-label")
    assert "not reviewed" in label
    assert "true class" in label


def test_statistics_are_folded_and_open_by_key_link_button_and_for_print(page, content):
    order = page.evaluate("[...document.querySelectorAll('main h2')].map((title) => title.textContent)")
    assert order == ["Metrics & more", "Tiles", "More"]
    section = page.locator("details.section")
    is_open = "(it) => it.open"
    assert not section.evaluate(is_open)
    assert page.locator(".hint").text_content() == "a <b>few</b>"
    section.locator("summary").press("Enter")
    assert section.evaluate(is_open)
    section.locator("summary").press("Enter")
    page.click("nav a[href='#more']")
    page.locator("details.section[open]").wait_for()
    page.click("text=Close all sections")
    assert not section.evaluate(is_open)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert section.evaluate(is_open)
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not section.evaluate(is_open)
    page.click("text=Open all sections")
    assert section.evaluate(is_open)


def outcome(tile: dict[str, Any]) -> str:
    word = "true class unknown" if tile["label"] < 0 else "correct" if tile["label"] == tile["prediction"] else "wrong"
    return word if tile["decided"] else f"{word}, abstained"


def class_name(label: int) -> str:
    return "unknown" if label < 0 else CLASSES[label]


def percent(share: float) -> str:
    return f"{round(100 * share)}%"


def test_a_tile_says_what_it_is_and_what_it_is_taken_for(page, content):
    by_name = {shown(tile["id"]): tile for tile in content["gallery"]["tiles"]}
    looked = """() => [...document.querySelectorAll('.tile')].map((tile) => {
        const text = (place) => tile.querySelector(place)?.textContent ?? '';
        const places = ['.id bdi', '.sign', '.said .name', '.confidence', '.truth bdi', '.abstained'];
        return [...places, '[title^=annotators]'].map(text);
    })"""
    seen = page.evaluate(looked)
    for order in ("most-confident", "loss", "name"):  # not all are in the document at once
        page.select_option("#page-sort", order)
        seen += page.evaluate(looked)
    assert len({outcome(by_name[name]) for name, *_ in seen}) == 6
    for name, sign, said, sure, truth, abstained, agreement in seen:
        tile = by_name[name]
        expected = {"correct": "✓", "wrong": "✕", "true class unknown": "·"}[outcome(tile).split(",")[0]]
        assert (sign, said, truth) == (expected, class_name(tile["prediction"]), class_name(tile["label"])), name
        assert sure == percent(confidence(tile))
        assert abstained == ("" if tile["decided"] else "abstained")
        assert agreement == (tile["agreement"] or "" if tile["decided"] else "")
    wrong, abstained = (sum(word in outcome(tile) for tile in by_name.values()) for word in ("wrong", "abstained"))
    assert page.locator("#page-count").text_content() == f"60 tiles: {wrong} wrong, {abstained} abstained"
    assert "at least 30% of" in page.locator("#page-legend").text_content()


def test_no_probability_is_shown_as_certain(opened, content):
    first, second, third, fourth, *_ = content["gallery"]["tiles"]
    for tile, probabilities in (
        (first, [0.9996, 0.0004, 0]),
        (second, [1.0, 0.0, 0.0]),
        (third, [0.9949, 0.0051, 0.0]),
        (fourth, [0.995, 0.005, 0.0]),
    ):
        tile.update(probabilities=dict(enumerate(probabilities)), prediction=0)
    page = opened(content)
    page.select_option("#page-sort", "most-confident")
    assert page.locator(".tile .confidence").all_text_contents()[:4] == ["100%", ">99%", ">99%", "99%"]


def test_a_heatmap_is_the_overlay_of_the_pictures(page, content):
    """What the browser blends, at full and at a third of the opacity, against `plots.cam.overlay`."""
    (tile,) = (tile for tile in content["gallery"]["tiles"] if tile["id"] == "tile12.png")
    page.fill("#page-find", tile["id"])
    drawn(page)
    seen = np.array(
        page.evaluate("""() => {
            const canvas = document.querySelector('.tile .heat');
            return Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data);
        }""")
    ).reshape(SIZE_PX, SIZE_PX, 4)
    cells = np.frombuffer(base64.b64decode(tile["map"]), dtype=np.uint8).reshape(1, 4, 4) / 255
    map01 = upsample(torch.from_numpy(cells.copy()), size_px=SIZE_PX)[0].numpy()
    image = np.random.default_rng(1).integers(0, 255, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    alpha = seen[..., 3:] / 255
    for share in (1.0, 1 / 3):
        blended = (1 - share * alpha) * image + share * alpha * seen[..., :3]
        assert np.abs(blended - overlay(image, map01, alpha=0.7 * share)).max() <= 2


def test_the_slider_and_the_keys_change_the_opacity_and_draw_nothing(opened, content):
    page = at_the_tiles(opened(content))
    focus_first(page)
    before = page.evaluate("[drawn, added]")
    assert before[0] > 10
    opacity = "getComputedStyle(document.querySelector('.heat')).opacity"
    assert page.evaluate(opacity) == "1"
    slider = page.get_by_label("Opacity of the heatmap").first
    slider.fill("40")
    assert page.evaluate(opacity) == "0.4"
    page.keyboard.press("+")
    assert page.evaluate(opacity) == "0.5"
    page.keyboard.press("-")
    page.keyboard.press("-")
    assert (page.evaluate(opacity), slider.input_value()) == ("0.3", "30")
    page.keyboard.press("h")
    assert page.evaluate(opacity) == "0"
    page.keyboard.press("h")
    assert page.evaluate(opacity) == "0.3"
    box = page.locator(".tile .box").first
    assert box.is_visible()
    page.keyboard.press("b")
    assert not box.is_visible()
    assert not page.get_by_label("boxes").is_checked()
    page.get_by_label("boxes").check()
    assert box.is_visible()
    assert page.evaluate("[drawn, added]") == before


def test_boxes_lie_where_they_should(page):
    place = page.evaluate("""() => {
        const box = document.querySelector('.tile .box:not(.further)').getBoundingClientRect();
        const frame = document.querySelector('.tile .box').parentElement.getBoundingClientRect();
        return [box.left - frame.left, box.top - frame.top, box.right - frame.left, box.bottom - frame.top]
            .map((value) => 32 * value / frame.width);
    }""")
    assert place == pytest.approx([4, 8, 20, 28], abs=0.1)
    lines = page.evaluate("""() => ['.box:not(.further)', '.box.further'].map((one) =>
        parseFloat(getComputedStyle(document.querySelector(`.tile ${one}`)).borderTopWidth))""")
    assert lines == [2, 1]
    assert "further regions" in page.locator("#page-legend").text_content()


def test_sorting(page, content):
    def last(value: float | None) -> float:
        return float("inf") if value is None else value

    def agreement(tile: dict[str, Any]) -> float | None:
        return None if tile["agreement"] is None else int(tile["agreement"][0]) / 7

    orders = {
        "most-confident": lambda tile: -confidence(tile),
        "loss": lambda tile: last(None if tile["loss"] is None else -tile["loss"]),
    }
    for order, key in orders.items():
        page.select_option("#page-sort", order)
        assert names(page, 12) == ids(content, key)[:12], order
    by_name = {shown(tile["id"]): tile for tile in content["gallery"]["tiles"]}
    for order, sign in (("least-agreement", 1), ("most-agreement", -1)):
        page.select_option("#page-sort", order)
        seen = [agreement(by_name[name]) for name in names(page, 20)]
        assert seen == sorted(seen, key=lambda value: last(None if value is None else sign * value))
    page.select_option("#page-sort", "name")
    page.fill("#page-find", "tile")
    assert names(page, 4) == ["tile8.png", "tile9.png", "tile10.png", "tile11.png"]  # by number, not by letter


FILTERS = {
    ("true", "1"): lambda tile: tile["label"] == 1,
    ("true", "-1"): lambda tile: tile["label"] == -1,
    ("predicted", "2"): lambda tile: tile["prediction"] == 2,
    ("outcome", "right"): lambda tile: tile["label"] == tile["prediction"],
    ("outcome", "wrong"): lambda tile: tile["label"] not in (-1, tile["prediction"]),
    ("outcome", "decided"): lambda tile: tile["label"] not in (-1, tile["prediction"]) and tile["decided"],
    ("outcome", "abstained"): lambda tile: not tile["decided"],
    ("outcome", "unknown"): lambda tile: tile["label"] == -1,
}


def test_filters(page, content):
    for (name, value), where in FILTERS.items():
        page.select_option(f"#page-{name}", value)
        expected = ids(content, confidence, where=where)
        assert 0 < len(expected) < 60, (name, value)
        assert page.locator("#page-count").text_content().startswith(f"{len(expected)} of 60 tiles"), (name, value)
        assert names(page, 6) == expected[:6], (name, value)
        page.select_option(f"#page-{name}", "")
        assert page.locator("#page-count").text_content().startswith("60 tiles")
    page.select_option("#page-true", "1")
    page.click("#page-clear")
    assert page.locator("#page-count").text_content().startswith("60 tiles")


def test_finding_by_text_also_in_notes_and_groups(page, content):
    page.fill("#page-find", "SLIDE 3")
    assert names(page, 9) == ids(content, confidence, where=lambda tile: tile["group"] == "slide 3")
    page.fill("#page-find", "<script>")
    assert names(page, 9) == [HOSTILE_NAMES[0]]
    focus_first(page)
    page.keyboard.press("n")
    page.keyboard.type("Crypt base")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.fill("#page-find", "crypt")
    assert names(page, 9) == [HOSTILE_NAMES[0]]
    page.fill("#page-find", "no such tile")
    assert names(page, 9) == []
    assert page.get_by_text("No tile matches these filters").is_visible()
    page.click("#page-clear")
    assert len(names(page, 9)) == 9


def test_cells_of_the_confusion_matrix_filter(page, content):
    tiles = content["gallery"]["tiles"]
    wanted = [tile for tile in tiles if tile["label"] == 1 and tile["prediction"] == 2]
    cell = page.locator('.confusion button[data-true="1"][data-predicted="2"]')
    assert cell.locator(".count").text_content() == str(len(wanted))
    page.select_option("#page-outcome", "right")  # goes, or nothing would be left
    cell.click()
    assert page.locator("#page-count").text_content().startswith(f"{len(wanted)} of 60 tiles")
    assert (page.input_value("#page-true"), page.input_value("#page-predicted")) == ("1", "2")
    assert cell.get_attribute("aria-pressed") == "true"
    assert page.locator(".tile").first.is_visible()
    cell.click()
    assert page.locator("#page-count").text_content().startswith("60 tiles")
    assert cell.get_attribute("aria-pressed") == "false"


def test_arrows_move_one_tab_stop_about(page, content):
    order = ids(content, confidence)
    columns = int(page.locator("#page-grid").get_attribute("aria-colcount"))
    focus_first(page)
    steps = {"ArrowRight": 1, "ArrowDown": 1 + columns, "ArrowLeft": columns, "ArrowUp": 0, "End": 59, "Home": 0}
    for key, place in steps.items():
        page.keyboard.press(key)
        assert focused(page) == order[place], key
        assert page.locator('.tile[tabindex="0"]').count() == 1
        assert page.evaluate("document.activeElement.getBoundingClientRect().top >= 0")
        assert page.evaluate("document.activeElement.getBoundingClientRect().bottom <= innerHeight")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    assert focused(page) == order[0]
    page.keyboard.press("PageDown")
    assert order.index(focused(page)) % columns == 0
    assert order.index(focused(page)) >= columns
    # The focus stays where it was when its row is scrolled far away.
    page.keyboard.press("End")
    page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    settle(page)
    assert page.locator(".tile").count() < 60
    assert focused(page) == order[59]
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "3px"


def test_the_large_view(page, content):
    order = ids(content, confidence)
    by_name = {shown(tile["id"]): tile for tile in content["gallery"]["tiles"]}
    page.locator(".tile .frame").nth(1).click()
    large = page.locator("#page-large")
    title = page.locator("#page-large-title")
    assert title.text_content() == order[1]
    page.keyboard.press("ArrowRight")
    assert title.text_content() == order[2]
    page.click("#page-previous")
    page.keyboard.press("ArrowLeft")
    assert title.text_content() == order[0]
    assert page.locator("#page-previous").is_disabled()
    sure = confidence(by_name[order[0]])
    assert large.locator(".probabilities .number").first.text_content() == f"{sure:.3f}"
    page.keyboard.press("d")
    assert large.get_by_role("button", name="disagree").get_attribute("aria-pressed") == "true"
    page.keyboard.press("n")
    page.keyboard.type("b a - ?")  # in a note keys are letters
    page.keyboard.press("Escape")
    assert large.is_visible()  # the first leaves the note
    page.keyboard.press("Escape")
    settle(page)
    assert not large.is_visible()
    assert focused(page) == order[0]
    assert page.locator('.tile[data-review="disagree"].noted .id').all_text_contents() == [order[0]]
    assert page.locator("#page-progress").text_content() == (
        "1 of 60 tiles reviewed: 0 agree, 1 disagree, 0 unsure, 1 note"
    )
    page.keyboard.press("Enter")
    assert large.is_visible()
    page.keyboard.press("?")
    assert page.locator("#page-help").is_visible()
    page.keyboard.press("a")  # not under the list of keys
    page.keyboard.press("Escape")
    assert large.get_by_role("button", name="disagree").get_attribute("aria-pressed") == "true"


def test_the_large_view_has_the_facts_of_its_tile(opened, content):
    tile = next(tile for tile in content["gallery"]["tiles"] if tile["id"] == "tile9.png")
    tile |= {"votes": 5, "agreement": "5/7", "label": (tile["prediction"] + 1) % 3, "loss": 1.25, "maximum": 0.125}
    page = opened(content)
    page.fill("#page-find", tile["id"])
    page.locator(".tile .frame").click()
    facts = dict(
        page.evaluate("""() => [...document.querySelectorAll('#page-large-facts div')]
            .map((row) => [row.querySelector('dt').textContent, row.querySelector('dd').textContent])""")
    )
    assert facts == {
        "true class": class_name(tile["label"]),
        "outcome": outcome(tile),
        "annotators": f"5/7 agree; 5 votes for {CLASSES[-1]}",
        "group": tile["group"],
        "loss": "1.250",
        "heatmap maximum": "0.125 (before scaling)",
        "box": "16 × 20 px at (4, 8), 31% of the 32 px tile",
        "image file": "64 × 64 px",
    }
    rows = page.evaluate("""() => [...document.querySelectorAll('#page-large-probabilities tr')].map((row) =>
        [row.querySelector('bdi').textContent, row.querySelector('.number').textContent,
         parseFloat(row.querySelector('.bar').style.width)])""")
    order = sorted(range(3), key=lambda label: -tile["probabilities"][label])
    assert [row[:2] for row in rows] == [[CLASSES[i], f"{tile['probabilities'][i]:.3f}"] for i in order]
    assert [row[2] for row in rows] == pytest.approx([100 * tile["probabilities"][i] for i in order], abs=0.01)
    assert page.locator("#page-large-target").text_content() == "evidence: logit of the predicted class"
    assert page.locator("#page-large-heat .heat, #page-large-heat .box").count() == 2
    assert page.locator("#page-large-plain .heat, #page-large-plain .box").count() == 0


def test_the_large_view_draws_the_map_of_its_own_tile(page, content):
    pixels = "canvas => canvas.toDataURL()"
    own = [page.locator(f".tile .heat >> nth={place}").evaluate(pixels) for place in (0, 1)]
    assert own[0] != own[1]
    page.locator(".tile:has(.heat) .frame").first.click()
    assert page.locator("#page-large-heat .heat").evaluate(pixels) == own[0]
    page.keyboard.press("Escape")
    settle(page)
    page.locator(".tile:has(.heat) .frame").nth(1).click()
    assert page.locator("#page-large-heat .heat").evaluate(pixels) == own[1]


def test_no_evidence_is_said(page, content):
    (empty,) = (tile for tile in content["gallery"]["tiles"] if tile["id"] == "tile13.png")
    assert empty["map"] == ""
    page.fill("#page-find", empty["id"])
    assert page.locator(".tile .heat, .tile .box").count() == 0
    assert page.locator(".tile .remark").text_content() == "no evidence"
    page.locator(".tile .frame").click()
    assert "no positive evidence" in page.locator("#page-large-target").text_content()
    assert page.locator("#page-large-box").is_disabled()


def test_reviews_by_key_and_by_button_and_taken_back(page, content):
    order = ids(content, confidence)
    focus_first(page)
    for key in "adu":
        page.keyboard.press(key)
        page.keyboard.press("ArrowRight")
    page.locator(".tile").nth(3).get_by_role("button", name="disagree").click()
    assert focused(page) == order[3]
    states = [page.locator(".tile").nth(place).get_attribute("data-review") for place in range(5)]
    assert states == ["agree", "disagree", "unsure", "disagree", ""]
    assert "; agree" in page.locator(".tile").first.get_attribute("aria-label")
    page.keyboard.press("d")
    assert page.locator(".tile").nth(3).get_attribute("data-review") == ""
    page.select_option("#page-review", "any")
    assert names(page, 9) == order[:3]
    page.locator(".tile").first.get_by_role("button", name="agree", exact=True).click()
    assert names(page, 9) == order[:3]  # what is under the reader's hand does not jump away
    page.click("#page-again")
    assert names(page, 9) == order[1:3]
    page.click("#page-clear")
    page.check("#page-advance")
    focus_first(page)
    page.keyboard.press("u")
    assert focused(page) == order[1]


def test_the_worksheet_is_kept_and_deleted_only_when_asked(opened, page, content):
    focus_first(page)
    page.keyboard.press("a")
    page = opened.again(page, width=1280)  # one with Chromium's own store
    assert page.locator(".tile").first.get_attribute("data-review") == "agree"
    page.click("#page-reset")
    page.keyboard.press("Escape")
    settle(page)
    assert page.locator(".tile").first.get_attribute("data-review") == "agree"
    page.click("#page-reset")
    page.click("#page-ask-answers >> text=Delete")
    page.get_by_text("were deleted").wait_for()
    assert page.locator(".tile").first.get_attribute("data-review") == ""
    content["gallery"]["blind"] = True  # the same tiles, made for a blind review
    Path(page.url.removeprefix("file://")).write_text(render(content), encoding="utf-8")
    page = opened.again(page)
    assert page.locator("#page-progress").text_content() == "0 of 60 tiles reviewed"
    assert page.locator("#page-blind").is_checked()


def test_another_report_has_another_worksheet(opened, page, content):
    focus_first(page)
    page.keyboard.press("a")
    other = {**content, "id": "f" * 16}
    file = Path(page.url.removeprefix("file://"))
    file.write_text(render(other), encoding="utf-8")
    page = opened.again(page)
    assert len(stored(page)) == 1  # the first report's
    assert page.locator("#page-progress").text_content() == "0 of 60 tiles reviewed"


REFUSE = "localStorage.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); };"


def test_a_browser_that_keeps_nothing_says_so(opened, content):
    page = opened(content, init=REFUSE)
    assert "QuotaExceededError" in page.locator("#page-kept").text_content()
    focus_first(page)
    page.keyboard.press("a")
    assert page.locator(".tile").first.get_attribute("data-review") == "agree"


def test_what_was_kept_and_cannot_be_read_is_said(opened, content):
    page = opened(content, init=f"localStorage.setItem('sscl.report.{content['id']}.seen', 'no list')")
    assert "SyntaxError" in page.locator("#page-kept").text_content()


def download(page: Any, selector: str) -> tuple[str, bytes]:
    with page.expect_download() as event:
        page.click(selector)
    return event.value.suggested_filename, Path(event.value.path()).read_bytes()


NOTES = [
    "=1+1",
    "'=1+1",
    "''@x",
    "'quoted' as usual",
    '"a","b";c\td',
    "two\nlines",
    "- a dash\r",
    "<img src=x onerror='window.harmed = 7'>",
    "Kryptenbasis: µ 日本",
]


def write_notes(page: Any) -> list[str]:
    """Review and note the first tiles by name, one after the other in the large view; return which."""
    page.select_option("#page-sort", "name")
    focus_first(page)
    page.keyboard.press("Enter")
    order = []
    for number, note in enumerate(NOTES):
        order.append(page.locator("#page-large-title").text_content())
        page.keyboard.press("adu"[number % 3])
        page.keyboard.press("n")
        page.fill("#page-large-note", note)
        page.keyboard.press("Escape")
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    settle(page)
    return order


def test_the_worksheet_s_round_trip(opened, content, tmp_path):
    page = opened(content)
    order = write_notes(page)
    filled = page.locator(".tile.noted").count()
    assert filled == len(NOTES)
    name, data = download(page, "#page-download")
    assert name == f"review_{content['id']}.csv"
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    assert len(rows) == 60
    for row in rows:  # no cell that a spreadsheet would compute
        assert not [cell for cell in row.values() if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]
    by_id = {row["id"].removeprefix("'"): row for row in rows}
    assert by_id[order[0]]["note"] == "'=1+1"
    assert by_id[order[1]]["note"] == "''=1+1"
    assert [by_id[name]["review"] for name in order[:4]] == ["agree", "disagree", "unsure", "agree"]
    columns = ["report", "reviewer", "id", "true", "predicted", "confidence", "outcome"]
    columns += ["blind", "blind_at", "seen_before", "review", "note", "changed", "classes"]
    assert list(rows[0]) == columns
    assert len({outcome(tile) for tile in content["gallery"]["tiles"]}) == 6
    for row, tile in zip(rows, content["gallery"]["tiles"], strict=True):
        assert row["report"] == content["id"]
        assert row["true"].removeprefix("'") == ("" if tile["label"] < 0 else CLASSES[tile["label"]])
        assert row["predicted"].removeprefix("'") == CLASSES[tile["prediction"]]
        assert float(row["confidence"]) == pytest.approx(confidence(tile), abs=6e-5)
        assert row["outcome"] == outcome(tile)

    before = stored(page)
    page = opened(content)  # another browser
    assert page.locator("#page-progress").text_content() == "0 of 60 tiles reviewed"
    page.set_input_files("#page-file", {"name": name, "mimeType": "text/csv", "buffer": data})
    page.get_by_text("9 tiles imported from").wait_for()
    assert stored(page) == before
    assert before[order[6]]["note"] == "- a dash\n"  # as a text field has it


def delete_all(page: Any) -> None:
    page.click("#page-reset")
    page.click("#page-ask-answers >> text=Delete")
    page.locator("#page-reset[disabled]").wait_for()


def stored(page: Any) -> dict[str, dict[str, str]]:
    text = page.evaluate("localStorage.getItem('sscl.report.0123456789abcdef')")
    return {} if text is None else dict(json.loads(text)["reviews"])


def read(page: Any, text: str | bytes, *, name: str = "mine.csv", wait: bool = True) -> str:
    data = text.encode() if isinstance(text, str) else text
    page.evaluate("document.getElementById('page-message').textContent = ''")
    page.set_input_files("#page-file", {"name": name, "mimeType": "text/csv", "buffer": data})
    if wait:
        page.locator("#page-message:not(:empty)").wait_for()
    return page.locator("#page-message").text_content()


SPREADSHEETS = {
    "semicolons": ("id;review;note\ntile9.png;agree;so, so\n", "so, so"),
    "tabs": ("note\treview\tid\nso\tA\ttile9.png\n", "so"),
    "a separator line": ("sep=;\r\nid;review;note\r\ntile9.png;Agree;so\r\n", "so"),
    "old line ends": ('ID,Review,Note\rtile9.png, agree ,"a\rb"', "a\nb"),
    "empty lines and short rows": ("id,review,note\n\n\ntile9.png,agree\n", ""),
    "an open quote": ('id,review,note\ntile9.png,agree,"so', "so"),
    "a quote within": ('id,review,note\ntile9.png,agree,5" wide\n', '5" wide'),
    "a byte-order mark": ("\ufeffid,review,note\ntile9.png,agree,µ für\n", "µ für"),
}


def test_worksheets_as_spreadsheets_save_them(page):
    for number, (name, (text, note)) in enumerate(SPREADSHEETS.items(), start=1):
        tile = f"tile{8 + number}.png"
        assert read(page, text.replace("tile9.png", tile)) == "1 tile imported from mine.csv.", name
        found = stored(page)
        assert len(found) == number
        assert (found[tile]["review"], found[tile]["note"]) == ("agree", note), name


def test_what_is_wrong_with_a_worksheet_is_said(page):
    for text in ("", "\0\0", "review,note\nagree,x\n", "id\ntile9.png\n"):
        said = read(page, text)
        assert "column id" in said
        assert "nothing was imported" in said
    for encoding in ("cp1252", "utf-16"):
        said = read(page, "id,review,note\ntile9.png,agree,µ für\n".encode(encoding))
        assert "mine.csv: not UTF-8" in said, encoding
    said = read(page, "report,id,review,note\nf,tile9.png,agree,\n,nobody,agree,\n,tile8.png,maybe,\n,tile10.png,,\n")
    imported, absent, unclear, foreign = said.split("; ")
    assert imported == "1 tile imported from mine.csv"
    assert (absent[:5], unclear[:5], foreign[:5]) == ("1 row", "1 row", "1 row")
    assert "not on this page" in absent
    assert "agree, disagree or unsure" in unclear
    assert "another report" in foreign


def test_a_worksheet_replaces_other_answers_only_when_told(page):
    read(page, "id,review\ntile9.png,agree\n")
    for answer, expected in (("Cancel", "agree"), ("Keep mine", "agree"), ("Replace mine", "disagree")):
        page.evaluate("document.getElementById('page-message').textContent = ''")
        page.set_input_files(
            "#page-file", {"name": "b.csv", "mimeType": "text/csv", "buffer": b"id,review\ntile9.png,disagree\n"}
        )
        page.click(f"#page-ask-answers >> text={answer}")
        page.locator("#page-message:not(:empty)").wait_for()
        assert [row["review"] for row in stored(page).values()] == [expected]


def visible_text(page: Any) -> str:
    """All that a reader of the tiles, or of their labels, could see."""
    return page.evaluate("""() => [...document.querySelectorAll('#page-grid, #page-count')].flatMap((part) => [
        part.innerText,
        ...[...part.querySelectorAll('*')].flatMap((it) => [it.ariaLabel ?? '', it.title, it.alt ?? '']),
    ]).join(' ')""")


def test_blind_review_hides_what_is_predicted_and_true_until_the_class_is_named(opened, content):
    for tile in content["gallery"]["tiles"]:
        tile["id"] = f"{class_name(tile['label'])}/{tile['id']}"  # as of a folder of classes
    content["gallery"]["classes"] = ["benign", "cancer", "stroma"]
    content["gallery"]["blind"] = True
    page = at_the_tiles_of(opened(content))

    text = visible_text(page)
    for word in ("HP", "SSA", ".png", "wrong", "%", "abstained", "true"):
        assert word not in text, word
    assert page.locator(".tile .heat, .tile .box, .tile .remark").count() == 0
    for selector in ("#page-true", "#page-predicted", "#page-outcome", "#page-sort", "#page-find", "#page-boxes-file"):
        assert not page.locator(selector).is_visible(), selector
    assert page.locator(".confusion button:enabled").count() == 0

    focus_first(page)
    page.keyboard.press("a")  # not before the class is named
    assert stored(page) == {}
    page.keyboard.press("2")
    first = page.locator(".tile").first
    assert "you said cancer" in first.inner_text()
    assert "%" in first.inner_text()
    assert "true" not in first.inner_text()
    page.keyboard.press("1")  # the answer stays
    page.keyboard.press("d")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.locator("#page-large .plain, #page-large-probabilities, #page-large-facts").first.is_hidden()
    assert page.locator("#page-large-heat .heat").count() == 0
    page.locator(".large-review >> text=cannot tell").click()
    assert page.locator("#page-large-probabilities").is_visible()
    facts = page.locator("#page-large-facts").inner_text()
    assert "true class" not in facts
    assert "loss" not in facts
    page.click("#page-large-back")
    page.locator(".large-review >> text=stroma").click()
    page.keyboard.press("Escape")

    kept = sorted(stored(page).values(), key=lambda row: row["blind_at"])
    assert [(row["blind"], row["seen_before"], row["review"]) for row in kept] == [
        ("cancer", "no", "disagree"),
        ("stroma", "yes", ""),  # its prediction had been on screen
    ]
    assert "2 answered blind" in page.locator("#page-progress").text_content()
    page.select_option("#page-review", "unanswered")
    assert page.locator("#page-count").text_content() == "58 of 60 tiles"
    page.fill("#page-reviewer", "A. B.")
    name, data = download(page, "#page-download")
    assert name == f"review_A._B._{content['id']}.csv"
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    assert {row["true"] for row in rows} == {row["outcome"] for row in rows} == {""}
    assert sum(row["predicted"] != "" for row in rows) == 2
    assert {row["reviewer"] for row in rows} == {"A. B."}
    names = {blind_name(content["id"], tile["id"]): shown(tile["id"]) for tile in content["gallery"]["tiles"]}
    assert {row["id"] for row in rows} == names.keys()
    answered = {names[row["id"]]: row["blind"] for row in rows if row["blind"]}
    assert answered == {shown(name): row["blind"] for name, row in stored(page).items() if row["blind"]}
    assert sorted(row["blind"] for row in rows)[-2:] == ["cancer", "stroma"]

    page = opened.again(page)
    assert page.locator("#page-blind").is_checked()
    page.click("#page-blind")
    page.click("#page-ask-answers >> text=Cancel")
    assert page.locator("#page-blind").is_checked()
    page.click("#page-blind")
    page.click("#page-ask-answers >> text=Leave")
    page.locator("#page-blind-note").wait_for(state="hidden")
    assert "true" in page.locator(".tile").first.inner_text()
    assert page.locator("#page-true").is_visible()

    content["id"] = "f" * 16  # another run asks anew, in the same order only for the same run
    assert opened(content).locator("#page-progress").text_content() == "0 of 60 tiles reviewed"


def at_the_tiles_of(page: Any) -> Any:
    """As `at_the_tiles`, where no heatmap is drawn."""
    page.evaluate("document.getElementById('page-toolbar').scrollIntoView({behavior: 'instant'})")
    page.locator(".tile").nth(11).wait_for()
    return page


def test_a_tile_that_was_on_screen_is_no_longer_blind(opened, content):
    del content["gallery"]["tiles"][22:]
    page = at_the_tiles(opened(content))
    noted = [name for name in ids(content, confidence)[12:] if name.startswith("tile")]
    read(page, "\n".join(["id,review,note", *(f"{name},,later" for name in noted)]))
    delete_all(page)  # a note alone does not show the prediction
    page.click("#page-blind")
    focus_first(page)
    for _ in range(22):
        page.keyboard.press("1")
        page.keyboard.press("ArrowRight")
    told = {name: row["seen_before"] for name, row in stored(page).items()}
    assert len(told) == 22
    on_screen = set(ids(content, confidence)[:8])
    assert {told[name] for name in told if shown(name) in on_screen} == {"yes"}
    assert "no" in {told[name] for name in noted}

    delete_all(page)  # what was answered has been seen
    focus_first(page)
    page.keyboard.press("Home")
    for _ in range(8):
        page.keyboard.press("1")
        page.keyboard.press("ArrowRight")
    assert [row["seen_before"] for row in stored(page).values()] == ["yes"] * 8


def test_blind_answers_of_many_classes_are_chosen_from_a_list_and_come_back(opened, content):
    content["gallery"]["classes"] = [f"class {label}" for label in range(12)]
    content["gallery"]["blind"] = True
    page = opened(content)
    page.locator(".tile select.answer").first.select_option("class 11")
    before = stored(page)
    (row,) = before.values()
    assert row["blind"] == "class 11"
    name, data = download(page, "#page-download")
    other = opened(content)
    assert stored(other) == {}
    other.set_input_files("#page-file", {"name": name, "mimeType": "text/csv", "buffer": data})
    other.get_by_text("1 tile imported from").wait_for()
    assert stored(other) == before
    (tile,) = before
    read(other, f"id,review\n{tile},agree\n", wait=False)
    other.click("#page-ask-answers >> text=Replace mine")
    other.get_by_text("1 tile imported from mine").wait_for()
    assert {key: stored(other)[tile][key] for key in ("blind", "review")} == {"blind": "class 11", "review": "agree"}


def unpacked(data: bytes) -> dict[str, dict[str, Any]]:
    """The one feature of each file of an archive, by the file's name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None  # checks the CRC-32 of each
        files = {name: json.loads(archive.read(name)) for name in archive.namelist()}
    assert len(files) == len(archive.infolist())
    assert {file["type"] for file in files.values()} == {"FeatureCollection"}
    return {name: feature for name, file in files.items() for (feature,) in [file["features"]]}


def test_boxes_for_qupath(page, content):
    tiles = {shown(tile["id"]): tile for tile in content["gallery"]["tiles"]}
    name, data = download(page, "#page-boxes-file")
    assert name == f"boxes_{content['id']}.zip"
    whole = list(unpacked(data).values())
    images = {shown(feature["properties"]["image"]) for feature in whole}
    assert images == {name for name, tile in tiles.items() if tile["box"]}
    empty = sum(tile["box"] is None for tile in tiles.values())
    assert f"{empty} tiles without positive evidence" in page.locator("#page-message").text_content()
    page.select_option("#page-sort", "name")
    page.fill("#page-find", "tile9.png")
    focus_first(page)
    page.keyboard.press("u")
    page.keyboard.press("Enter")
    name, data = download(page, "#page-large-box")
    assert name == "tile9.png.geojson"
    (feature,) = json.loads(data)["features"]
    tile = tiles["tile9.png"]
    assert tile["region"] == [0, 0, 64, 64]  # twice the tile that the classifier saw
    assert feature["geometry"] == {
        "type": "Polygon",
        "coordinates": [[[8, 16], [40, 16], [40, 56], [8, 56], [8, 16]]],
    }
    properties = feature["properties"]
    assert (properties["objectType"], properties["name"]) == ("annotation", "tile9.png")
    assert properties["classification"]["name"] == CLASSES[tile["prediction"]]
    assert [0 <= part <= 255 for part in properties["classification"]["color"]] == [True] * 3
    assert properties["measurements"]["Heatmap maximum"] == tile["maximum"]
    assert properties["measurements"]["Box fraction of tile"] == pytest.approx(16 * 20 / 32**2)
    assert all(isinstance(value, (int, float)) for value in properties["measurements"].values())
    assert properties["metadata"] == {
        "Image": "tile9.png",
        "Explains": "logit of the predicted class",
        "True class": class_name(tile["label"]),
        "Pixels": "of the file",
        "Review": "unsure",
    }
    for one in whole:
        label = tiles[shown(one["properties"]["image"])]["label"]
        assert one["properties"]["metadata"]["True class"] == class_name(label)
    assert properties["measurements"]["Box threshold"] == 0.3
    for label, name in enumerate(CLASSES):
        assert properties["measurements"][f"Probability: {name}"] == tile["probabilities"][label]
    unknown = next(tile for tile in content["gallery"]["tiles"] if tile["box"] and tile["region"] is None)
    (feature,) = (one for one in whole if one["properties"]["image"] == unknown["id"])
    assert feature["properties"]["metadata"]["Pixels"] == "of the 32 px tile"
    assert feature["geometry"]["coordinates"][0][2] == [20, 28]
    assert all(isinstance(value, str) for value in properties["metadata"].values())


def test_files_of_boxes_are_called_as_their_images(opened, content):
    names = {
        "/data/a/x.png": "_data_a_x.png",
        "/data/b/X.png": "_data_b_X.png",
        "C:\\tiles\\y.tif": "y.tif",
        "/data/con.png": "_con.png",
        "/data/../..": "_",
        "Größe 日本 (1).png": "Größe 日本 (1).png",
        '<q>:"?*|.png': "_q______.png",
        "_q______.png": "_q______.png_2",
        "\u202egnp.exe": "_gnp.exe",
        "\udcff.png": "_.png",
        "é" * 150 + ".png": "é" * 98 + ".png",
    }
    tiles = [tile for tile in content["gallery"]["tiles"] if tile["box"]][: len(names)]
    for tile, name in zip(tiles, names, strict=True):
        tile["id"] = name
    content["gallery"]["tiles"] = tiles
    _, data = download(opened(content), "#page-boxes-file")
    found = {shown(one["properties"]["image"]): name for name, one in unpacked(data).items()}
    # Both of a pair that differs only in what is replaced would be the same file: they are numbered.
    assert found == {shown(image): f"{name}.geojson" for image, name in names.items()}


def test_boxes_are_those_of_boxes_csv_and_what_is_wrong_with_one_is_said(opened, content):
    """Maps whose box says a place, is of one of two regions, covers the tile, and without evidence."""
    maps = np.zeros((4, SIZE_PX, SIZE_PX), dtype=np.float32)
    maps[0, 4:20, 8:12] = 1
    maps[1, 2:22, 2:22], maps[1, 28, 28] = 0.9, 1
    maps[2] = 1
    boxes = [find_box(raw, threshold=0.3) for raw in maps]
    table = [
        dict(zip(BOX_COLUMNS, box_cells(*pair, threshold=0.3), strict=True)) for pair in zip(maps, boxes, strict=True)
    ]
    regions = [(0, 0, 64, 64), (16, 0, 48, 48), None, None]  # two files: square, and cut to the square in the middle
    found = TilePredictions(
        ids=("a.png", "b.png", "c.png", "d.png"),
        classes=tuple(CLASSES),
        labels=np.zeros(4, dtype=np.int64),
        predictions=np.zeros(4, dtype=np.int64),
        probabilities=np.array([[0.6, 0.3, 0.1], [0.7, 0.2, 0.1], [0.8, 0.1, 0.1], [0.9, 0.1, 0.0]]),
        losses=np.ones(4),
    )
    content["gallery"] = gallery.build(
        found,
        np.arange(4),
        pictures=[gallery.Picture(Image.new("RGB", (SIZE_PX, SIZE_PX)), region=region) for region in regions],
        heats=[gallery.Heat(raw, float(raw.max()), box, 0) for raw, box in zip(maps, boxes, strict=True)],
        size_px=SIZE_PX,
        target="x",
        threshold=0.3,
        decided_from=None,
        notes=["all tiles"],
    )
    page = opened(content)
    assert page.locator("#page-chosen").text_content() == "All tiles."
    assert page.locator("#page-notes li").all_text_contents() == [f"Boxes: {remarks(boxes)}."]
    said = page.evaluate("""() => [...document.querySelectorAll('.tile')].map((tile) =>
        [tile.querySelector('.remark')?.textContent ?? '', tile.querySelector('.remark')?.title ?? ''])""")
    assert [text for text, _ in said] == ["", "", "no localisation", "no evidence"]
    assert [whole for _, whole in said] == [remark(box) for box in boxes]
    for place, box in enumerate(boxes):
        cell = page.locator(".tile").nth(place)
        assert remark(box) in cell.get_attribute("aria-label")
        cell.locator(".frame").click()
        assert remark(box) in page.locator("#page-large-target").text_content()
        assert page.locator("#page-large-box").is_disabled() == (table[place]["localisation"] != "yes")
        page.keyboard.press("Escape")
        settle(page)

    _, data = download(page, "#page-boxes-file")
    files = unpacked(data)
    assert [row["localisation"] for row in table] == ["yes", "yes", "not assessed", "no evidence"]
    assert list(files) == ["a.png.geojson", "b.png.geojson"]
    for feature, row, (left, top, width, height) in zip(files.values(), table[:2], regions[:2], strict=True):
        (ring,) = feature["geometry"]["coordinates"]
        corners = (np.array(ring) - (left, top)) * SIZE_PX / (width, height)
        assert [*corners.min(0), *corners.max(0)] == pytest.approx([row[key] for key in ("x0", "y0", "x1", "y1")])
    told = [feature["properties"]["metadata"].get("Remark", "") for feature in files.values()]
    assert told == [remark(box) for box in boxes[:2]]
    left_out = page.locator("#page-message").text_content()
    assert "1 box over" in left_out
    assert "1 tile without" in left_out


def test_work_does_not_grow_with_the_number_of_tiles(opened):
    """What makes many tiles answer at once: only those in sight are in the document, drawn, and drawn again."""
    work = {}
    for count in (100, 500):
        page = at_the_tiles(opened(make_content(count)))
        cells = page.locator(".tile").count()
        page.evaluate("window.drawn = window.added = 0")
        page.select_option("#page-sort", "most-confident")
        page.select_option("#page-outcome", "wrong")
        drawn(page)
        work[count] = (cells, page.evaluate("added"), page.evaluate("drawn"))
        assert cells < 90
        focus_first(page)
        page.evaluate("window.drawn = window.added = 0")
        for key in "a", "b", "+", "ArrowRight":
            page.keyboard.press(key)
        assert page.evaluate("[drawn, added]") == [0, 0], count
        page.keyboard.press("End")
        drawn(page)
        assert page.locator(".tile").count() < 90
    assert work[500][0] == work[100][0]
    assert work[500][1] <= work[100][1] + 2  # 100 tiles have fewer errors than fit into the window
    assert work[500][2] <= 2 * work[500][0]


def test_it_fits_a_phone(opened, content):
    page = opened(content, width=360, has_touch=True)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for selector in ("h1", ".confusion", "#page-toolbar", "#page-grid"):
            page.locator(selector).scroll_into_view_if_needed()
            assert page.evaluate("document.documentElement.scrollWidth") == 360, (scheme, selector)
    assert not page.locator("#page-worksheet").evaluate("(it) => it.open")
    assert int(page.locator("#page-grid").get_attribute("aria-colcount")) == 2
    page.locator(".tile .frame").first.tap()
    assert page.locator("#page-large").evaluate("(it) => it.scrollWidth <= it.clientWidth")


def test_text_stands_out_in_both_themes(page):
    focus_first(page)
    for key in "adu":
        page.keyboard.press(key)
        page.keyboard.press("ArrowRight")
    for large in (False, True):
        if large:
            page.keyboard.press("Enter")
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate(CONTRAST) == [], (scheme, large)
            ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
            assert (sum(map(int, ground[4:-1].split(","))) < 384) == (scheme == "dark")


def test_everything_that_can_be_pressed_has_a_name(page):
    page.locator(".tile .frame").first.click()
    unnamed = page.evaluate(UNNAMED)
    assert unnamed == []


def test_a_table_is_sorted_by_its_columns_and_searched(opened, content):
    tiles = [9, 1200, 30, *range(100, 114)]
    table = blocks.table(
        "Slides",
        [["slide", "tiles"], *([f"<b>s{at}</b>.svs", f"{number:,}"] for at, number in enumerate(tiles))],
        links=["./a%22b/slide.html#blind", *["" for _ in tiles[1:]]],
        pictures=[content["gallery"]["tiles"][0]["image"], *["" for _ in tiles[1:]]],
        sortable=True,
    )
    content["sections"] = [blocks.section("slides", "Slides", [table], folded=False)]
    page = opened({**content, "gallery": None})
    rows = page.locator("table.sortable tbody tr")
    assert page.locator("table.sortable img").evaluate("image => image.naturalWidth") == SIZE_PX
    head = page.get_by_role("button", name="tiles")
    for wanted, order in ((sorted(tiles, reverse=True), "descending"), (sorted(tiles), "ascending")):
        head.click()
        assert [int(text.split()[-1].replace(",", "")) for text in rows.all_inner_texts()] == wanted
        assert page.locator("th[aria-sort]").get_attribute("aria-sort") == order
    page.get_by_label("Find").fill("S1")
    assert [text.split()[0] for text in rows.filter(visible=True).all_inner_texts()] == [
        f"<b>s{at}</b>.svs" for at in (10, 11, 12, 13, 14, 15, 16, 1)
    ]


def test_a_page_without_tiles(opened, content):
    content["gallery"]["tiles"] = []
    page = opened(content)
    assert page.get_by_text("This report has no tiles.").is_visible()
    assert page.locator(".confusion button").count() == 0
    content["gallery"] = None
    page = opened(content)
    assert page.locator("#gallery").count() == 0
    page.click("text=Open all sections")
    assert page.locator("details.section").evaluate("(it) => it.open")


def test_the_policy_stops_what_a_hole_would_let_in(opened, content):
    page = opened(content)
    stopped = page.evaluate("""async () => {
        const found = [];
        const violation = () => new Promise((done) => document.addEventListener(
            'securitypolicyviolation', (event) => done(found.push(event.effectiveDirective)), {once: true}));
        let heard = violation();
        document.body.append(Object.assign(new Image(), {src: 'https://example.org/x.png'}));
        await heard;
        heard = violation();
        fetch('https://example.org/').catch(() => null);
        await heard;
        try { document.body.innerHTML = '<img>'; } catch (error) { found.push(error.name); }
        try { document.body.setAttribute('onclick', 'window.harmed = 8'); } catch (error) { found.push(error.name); }
        return found;
    }""")
    assert stopped == ["img-src", "connect-src", "TypeError", "TypeError"]
    assert opened.complaints
    opened.complaints.clear()
