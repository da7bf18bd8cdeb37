"""The page as a file: what it holds, what it lets in, what it refuses."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from sscl.report.page import MARK, render

from .conftest import CLASSES


class Parsed(HTMLParser):
    """Elements with their attributes in order, the text of scripts and styles, all other text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.raw: list[tuple[str, dict[str, Any], str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.raw.append((tag, dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:
            tag, attributes, text = self.raw[-1]
            self.raw[-1] = (tag, attributes, text + data)
        else:
            self.text += data

    def of(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.elements if name == tag]


def digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_the_policy_lets_in_this_script_and_this_style_only(content):
    page = Parsed(render(content))
    (policy,) = (meta["content"] for meta in page.of("meta") if "http-equiv" in meta)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    (style,) = (text for tag, _, text in page.raw if tag == "style")
    data, script = ((given, text) for tag, given, text in page.raw if tag == "script")
    assert data[0]["type"] == "application/json"
    assert script[0] == {}
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["script-src"] == f"'{digest(script[1])}'"
    assert rules["style-src"] == f"'{digest(style)}'"
    assert rules["img-src"] == "data: blob:"
    assert "unsafe" not in policy
    first = [name for name, _ in page.elements if name in ("meta", "link", "style", "script", "img")]
    assert first[:2] == ["meta", "meta"]  # before anything that it rules over


def test_nothing_is_fetched_and_nothing_is_styled_or_scripted_in_markup(content):
    page = Parsed(render(content))
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name == "style" or name.startswith("on")], tag
        for name in ("src", "href", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)


def test_names_stay_text(content):
    html = render(content)
    page = Parsed(html)
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 2
    assert "Report <script>window.harmed = 6</script>" in page.text
    assert content["gallery"]["classes"][2] in page.text
    assert "{{ 7 * 7 }}" in html
    assert "<i>" not in html


def test_names_do_not_turn_the_text_after_them(content):
    content["title"] = "\u202eabc\u2066: 12 of 13"
    content["sections"][0]["blocks"].insert(0, {"kind": "text", "text": "\u202dde; \u05d0\u200f stays"})
    content["sections"][0]["blocks"][-1]["title"] = "\u2069\u202a"
    content["gallery"]["tiles"][0]["id"] = "\u202e"

    html = render(content)

    shown, _, data = html.partition('<script type="application/json"')
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", shown)
    assert "\\u202eabc\\u2066: 12 of 13" in shown
    assert "\\u202dde; \u05d0\u200f stays" in shown
    kept = json.loads(data.partition(">")[2].partition("</script>")[0])
    assert kept["gallery"]["tiles"][0]["id"] == "\u202e"  # the worksheet's name of it; there the browser isolates it


def test_a_page_is_known_by_its_mark(content):
    content["title"] = MARK
    assert render(content).count(MARK) == 1


def test_the_data_come_back_whole(content):
    html = render(content)
    (data,) = (text for tag, given, text in Parsed(html).raw if tag == "script" and given)
    assert "<" not in data
    shown = {"id": content["id"], "title": content["title"], "gallery": content["gallery"]}
    assert json.loads(data) == json.loads(json.dumps(shown))  # where keys are text
    html.encode("utf-8")  # although a file name is no UTF-8


def test_every_kind_of_block(content):
    page = Parsed(render(content))
    for text in ("Second.", "resnet18", "two </li>", "0.75 to 0.86", "Falls.", "passed", "failed", "not assessed"):
        assert text in page.text
    assert {"aria-label": "A line", "role": "img"} in page.of("div")
    assert page.of("caption")
    assert {cell.get("scope") for cell in page.of("th")} == {"col", "row", "colgroup"}
    numbers = [cell for tag, cell in page.elements if tag == "td" and cell.get("class") == "number"]
    assert len(numbers) == 4


def test_a_verdict_says_the_same_by_its_sign_word_and_colour(content):
    html = render(content)
    found = re.findall(r'<div class="verdict (\w+)">\s*<p.*?>(.)</span> <strong>(.*?)</strong> <span.*?>(.*?)<', html)
    assert found == [
        ("passed", "✓", "Depends on the weights", "passed"),
        ("failed", "✕", "No leak", "failed"),
        ("open", "–", "Boxes", "not assessed"),
    ]


@pytest.mark.parametrize("buttons", [True, False])
def test_the_confusion_matrix_has_truth_in_its_rows(content, buttons):
    (block,) = (block for block in content["sections"][0]["blocks"] if block["kind"] == "confusion")
    block["matrix"] = [[6, 3, 1], [0, 0, 0], [2, 5, 13]]
    if not buttons:
        content["gallery"] = None
    (table,) = re.findall(r'<table class="confusion">.*?</table>', render(content), re.DOTALL)
    axis, header, *rows = table.split("<tr>")[1:]
    assert Parsed(axis).text.split() == ["predicted"]
    assert " ".join(Parsed(header).text.split()) == " ".join(["true", *CLASSES])
    for row, name, expected in zip(
        rows, CLASSES, ("6 60.0% 3 30.0% 1 10.0%", "0 – 0 – 0 –", "2 10.0% 5 25.0% 13 65.0%"), strict=True
    ):
        assert Parsed(row).text.strip().startswith(name)
        cells = re.findall(r'class="count">(.*?)</span><span class="percent">(.*?)</span>', row)
        assert " ".join(part for cell in cells for part in cell) == expected
    labels = [given["aria-label"] for given in Parsed(table).of("button")]
    expected = [
        f"{number}, true HP, predicted {name}: show in the gallery"
        for number, name in (("3 tiles", CLASSES[1]), ("1 tile", CLASSES[2]))
    ]
    assert labels[1:3] == (expected if buttons else [])


def test_headings_are_in_order_and_ids_are_unique(content):
    page = Parsed(render(content))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [given["id"] for _, given in page.elements if "id" in given]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.of("a") if link["href"].startswith("#")} <= set(ids)
    for _, given in page.elements:
        for key in ("aria-labelledby", "aria-describedby"):
            assert given.get(key, ids[0]) in ids


def test_a_matrix_of_other_classes_or_without_a_gallery_has_no_buttons(content):
    def buttons() -> int:
        return sum(given.get("class") == "cell" for given in Parsed(render(content)).of("button"))

    assert buttons() == 9
    (block,) = (block for block in content["sections"][0]["blocks"] if block["kind"] == "confusion")
    block["classes"] = ["a", "b", "c"]
    assert buttons() == 0
    block["classes"] = content["gallery"]["classes"]
    content["gallery"] = None
    assert buttons() == 0
    assert 'id="gallery"' not in render(content)


def test_what_is_no_number_is_refused(content):
    content["gallery"]["tiles"][9]["loss"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        render(content)
