"""The benchmark of slides at toy size: what it compares is equal, and a difference stops it."""

from __future__ import annotations

import numpy as np
import pytest

import slides

KEYS = {"what", "ours", "peer", "theirs", "unit", "ratio", "target", "note"}


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "large.svs"
    return slides.write_large(path, slides.drawn(1024)[:512, :512], times=2)


def test_rows_are_whole_with_peers_here_and_not(slide, monkeypatch, instead):
    instead(slides, PACKAGES={**slides.PACKAGES, "no_such_module": "gone"})
    monkeypatch.setitem(slides.PEERS, "pyvips", ("no_such_module", slides.by_pyvips))
    rows = slides.compared(
        "tiles",
        slides.Task((slide,), slides.MPP, slides.TILE_PX),
        lambda number: slides.band(slide, slides.TILE_PX, number),
        {"openslide": ">= 3.5", "no_such_module": ""},
        seconds=0,
    )
    there, missing = rows
    assert all(set(row) == KEYS for row in rows)
    assert there["ratio"] == pytest.approx(there["ours"] / there["theirs"])
    assert there["peer"].startswith("openslide-python ")
    assert (missing["ratio"], missing["theirs"]) == (None, None)
    assert "gone is not installed" in missing["note"]


def test_pixels_that_differ_stop_the_race(slide):
    task = slides.Task((slide,), slides.MPP, slides.TILE_PX)

    def wrong(places, out):
        slides.by_openslide(task)(places, out)
        out[0, 5, 5, 1] ^= 1

    with pytest.raises(RuntimeError, match="differ by up to 1"):
        slides.race({"ours": slides.ours(task), "wrong": wrong}, lambda n: slides.band(slide, 224, n), seconds=0)


def test_our_reader_puts_tiles_where_they_were_asked_for(tmp_path, slide):
    many = slides.linked(tmp_path / "many", slide, 3)
    task = slides.Task(many, slides.MPP, slides.TILE_PX)
    places = [(2, 0, 300), (0, 10, 10), (2, 500, 7), (1, 10, 10)]
    out = np.empty((2, 4, 224, 224, 3), np.uint8)
    slides.ours(task)(places, out[0])
    slides.by_openslide(task)(places, out[1])
    assert np.array_equal(out[0], out[1])
    assert np.array_equal(out[0, 1], out[0, 3])
    assert not np.array_equal(out[0, 0], out[0, 1])
