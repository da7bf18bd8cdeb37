"""The benchmark of the page at toy size: its rows are whole, with a browser and without."""

from __future__ import annotations

import shutil

import pytest
import torch

import page
import slide_page

CPU = torch.device("cpu")


def test_without_a_browser_the_size_is_measured_and_the_note_says_why(instead):
    instead(page.shutil, which=lambda name: None)
    size, answers = page.measure(quick=True, device=CPU)
    assert 0 < size["ours"] < 30
    assert "ours" not in answers
    assert "chromium is not installed" in answers["note"] or "playwright" in answers["note"]


def test_every_action_is_timed():
    if not (shutil.which("chromium") or shutil.which("chromium-browser")):
        pytest.skip("NO CHROMIUM: the page's benchmark is not tested; apt install chromium (Debian, Ubuntu)")
    pytest.importorskip("playwright.sync_api")
    _, *rows = page.measure(quick=True, device=CPU)
    assert [row["what"].split(": ")[1] for row in rows] == ["opening", *page.ACTIONS]
    assert all(row["ours"] > 0 for row in rows)


def test_the_boxes_are_those_of_the_maps():
    tiles = page.content(60, drawn=1)["gallery"]["tiles"]
    assert [index for index, tile in enumerate(tiles) if not tile["map"]] == [49]
    assert all((tile["box"] is None) == (tile["map"] == "") for tile in tiles)


def test_the_page_of_a_slide_without_a_browser(instead):
    instead(page.shutil, which=lambda name: None)
    size, writing, browser, _, first, again = slide_page.measure(quick=True, device=CPU)
    assert 0 < size["ours"] < 20
    assert writing["unit"] == "CPU s"
    assert ("ours" in browser, "chromium" in browser["note"]) == (False, True)
    assert min(first["ours"], again["ours"]) > 0
