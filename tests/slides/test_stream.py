"""The pixels of a cohort: what a row is depends on the row alone."""

from __future__ import annotations

import gc
import os
import resource
import threading
from pathlib import Path

import numpy as np
import pytest

from slide_cohort import draw, level_of, truth
from sscl.data.rows import Rows
from sscl.slides.open import open_slide
from sscl.slides.pixels import DamagedTile, Readers
from sscl.slides.places import Places
from sscl.slides.records import Level, Scaling, Slide, SlideError
from sscl.slides.stream import SlidePixels

SIZE = 4
DRAWN = Scaling(mpp=0.5, size_px=32, level=0, side=32, step=32.0, resampled=False)
SCALING = Scaling(mpp=0.5, size_px=SIZE, level=0, side=SIZE, step=float(SIZE), resampled=False)


def slide_of(name: str, quickhash: str = "") -> Slide:
    level = Level(width=4000, height=4000, factor=1.0, exact=True)
    return Slide(
        path=f"/slides/{name}",
        name=name,
        width=4000,
        height=4000,
        mpp=0.5,
        mpp_from="aperio.MPP",
        bounds=None,
        levels=(level,),
        reader="openslide",
        vendor="aperio",
        quickhash=quickhash or f"hash of {name}",
        size=1,
        mtime_ns=1,
    )


class Pattern:
    """Tiles that say their slide and place; those of `bad` are damaged."""

    def __init__(self, bad: set[tuple[str, int, int]] = frozenset()) -> None:  # type: ignore[assignment]
        self.bad, self.read, self.threads = bad, [], set()

    def tiles(self, slide: Slide, scaling: Scaling, xy: np.ndarray, out: np.ndarray) -> None:
        self.threads.add(threading.get_ident())
        for (x, y), tile in zip(xy.tolist(), out, strict=True):
            self.read.append((slide.name, y, x))
            if (slide.name, x, y) in self.bad:
                raise DamagedTile(slide, x, y, "no JPEG")
            tile[:] = colour(slide.name, x, y)


def colour(name: str, x: int, y: int) -> list[int]:
    return [ord(name[0]), x % 251, y % 251]


def streamed(readers: Pattern, *, threads: int = 1, tiles: int = 300, names: str = "abc", replace: bool = True):
    """Tiles of slides of one row each, 10 px apart, last first."""
    corner = np.stack([np.arange(tiles)[::-1] * 10, np.arange(tiles) % 7], axis=1).astype(np.int32)
    places = Places.of(list(names), [tiles] * len(names), [corner] * len(names))
    slides = [(slide_of(name), SCALING) for name in names]
    return SlidePixels(slides, places, readers=readers, threads=threads, replace=replace)  # type: ignore[arg-type]


def pixels_at(pixels: SlidePixels, rows: np.ndarray) -> np.ndarray:
    out = np.zeros((len(rows), *pixels.shape[1:]), np.uint8)
    pixels.read(rows, out, places=np.arange(len(rows)))
    return out


def test_rows_are_read_by_slide_and_from_top_to_bottom() -> None:
    readers = Pattern()
    rows = np.random.default_rng(0).permutation(900)[:64]
    pixels = streamed(readers)
    found = pixels_at(pixels, rows)
    assert readers.read == sorted(readers.read)
    for row, tile in zip(rows, found, strict=True):
        name, (x, y) = "abc"[row // 300], pixels.places.xy[row]
        assert (tile == colour(name, int(x), int(y))).all()


def test_places_say_where_each_row_goes() -> None:
    rows, places = np.array([5, 700, 5, 310]), np.array([6, 0, 2, 3])
    out = np.zeros((8, SIZE, SIZE, 3), np.uint8)
    pixels = streamed(Pattern())
    pixels.read(rows, out, places=places)
    np.testing.assert_array_equal(out[places], pixels_at(pixels, rows))
    assert not out[[1, 4, 5, 7]].any()


def test_threads_and_batches_change_no_pixel_and_no_count() -> None:
    """T16, T26."""
    bad = {("a", 10 * k, (299 - k) % 7) for k in (3, 4)} | {("c", 0, 299 % 7)}
    order = np.random.default_rng(1).permutation(900)
    expected, counted = None, None
    for threads, size in ((1, 900), (8, 64), (3, 1)):
        readers = Pattern(bad)
        pixels = streamed(readers, threads=threads)
        found = np.empty((900, SIZE, SIZE, 3), np.uint8)
        for start in range(0, 900, size):
            found[order[start : start + size]] = pixels_at(pixels, order[start : start + size])
        expected = found if expected is None else expected
        counted = pixels.damaged if counted is None else counted
        np.testing.assert_array_equal(found, expected)
        assert pixels.damaged == counted
        assert len(readers.threads) <= threads
    assert expected is not None
    np.testing.assert_array_equal(expected[[295, 296]], expected[[297, 297]])
    np.testing.assert_array_equal(expected[899], expected[600])
    assert "3 damaged tiles of 2 slides" in pixels.notes()[0]


def test_more_than_one_in_a_hundred_damaged_tiles_of_a_slide_are_refused() -> None:
    """T16."""
    bad = {("b", 10 * k, (299 - k) % 7) for k in range(20, 24)}
    pixels = streamed(Pattern(bad), threads=4)
    with pytest.raises(SlideError, match="/slides/b: 4 of its 300 tiles are damaged"):
        pixels_at(pixels, np.arange(300, 600))
    with pytest.raises(DamagedTile, match="/slides/b"):
        pixels_at(streamed(Pattern(bad), replace=False), np.arange(900))


def test_damage_that_others_have_read_counts_too() -> None:
    """Two ranks read two damaged tiles of a slide each, and an earlier run one of another: rows of a set in an order of
    its own."""
    bad = {("b", 10 * k, (299 - k) % 7) for k in (20, 40, 60, 80)}
    order = np.random.default_rng(2).permutation(900)
    ranks = [Rows([streamed(Pattern(bad), threads=1)]).select(order) for _ in range(2)]
    whole = np.isin(order, [599 - k for k in (20, 40, 60, 80)])
    for part, rows in zip(np.array_split(np.flatnonzero(whole), 2), ranks, strict=True):
        rows[part]
        assert rows.damaged() == tuple(part)
    ranks[0].count_damaged(np.flatnonzero(order == 700).tolist())
    assert len(ranks[0].damaged()) == 3
    with pytest.raises(SlideError, match="/slides/b: 4 of its 300 tiles are damaged"):
        ranks[0].count_damaged(ranks[1].damaged())


@pytest.mark.parametrize(("reader", "many"), [("jpeg", 1000), ("openslide", 300)])
def test_more_slides_than_files_may_be_open(tmp_path: Path, reader: str, many: int) -> None:
    """T24."""
    draw(tmp_path / "whole.svs", 0, level=level_of(0, tile_px=64 if reader == "jpeg" else 32))
    slide = open_slide(tmp_path / "whole.svs", name="whole.svs")
    assert slide.reader == reader
    slides = []
    for i in range(many):
        (tmp_path / f"{i}.svs").hardlink_to(tmp_path / "whole.svs")
        slides.append((slide.model_copy(update={"path": str(tmp_path / f"{i}.svs"), "name": f"{i}.svs"}), DRAWN))
    names = [one.name for one, _ in slides]
    places = Places.of(names, [4] * many, [np.array([[0, 0], [64, 0], [0, 96], [224, 224]], np.int32)] * many)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        found = pixels_at(SlidePixels(slides, places, threads=8), np.random.default_rng(0).permutation(4 * many)[:many])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    whole = truth(tmp_path / "whole.svs")
    rows = np.random.default_rng(0).permutation(4 * many)[:many]
    expected = [whole[y : y + 32, x : x + 32] for x, y in places.xy[rows].tolist()]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("tile_px", [64, 32])
def test_files_are_closed_with_the_last_that_reads_them(tmp_path: Path, tile_px: int) -> None:
    """T24: a comparison loads a set for each of its runs."""
    draw(tmp_path / "x.svs", 0, level=level_of(0, tile_px=tile_px))
    slide = open_slide(tmp_path / "x.svs", name="x.svs")
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        Readers().tiles(slide, DRAWN, np.zeros((1, 2), np.int64), np.empty((1, 32, 32, 3), np.uint8))
    gc.collect()
    assert len(os.listdir("/dev/fd")) == before


def test_a_file_that_cannot_be_read_is_no_damage(tmp_path: Path) -> None:
    """T16: no other tile is taken for it."""
    draw(tmp_path / "x.svs", 0, level=level_of(0, tile_px=64))
    slide = open_slide(tmp_path / "x.svs", name="x.svs")
    pixels = SlidePixels([(slide, DRAWN)], Places.of(["x.svs"], [1], [np.zeros((1, 2), np.int32)]), replace=True)
    (tmp_path / "x.svs").unlink()
    with pytest.raises(SlideError, match=r"x\.svs: cannot be opened"):
        pixels_at(pixels, np.array([0]))
    (tmp_path / "x.svs").mkdir()  # can be opened, and the system refuses to read it
    with pytest.raises(SlideError, match=r"x\.svs: cannot be read"):
        pixels_at(pixels, np.array([0]))
    assert not pixels.damaged


def test_digests_say_which_place_of_which_slide_a_tile_is() -> None:
    pixels = streamed(Pattern())
    rows = np.arange(900)
    digests = pixels.digests(rows)
    assert len(set(digests.tolist())) == 900
    np.testing.assert_array_equal(pixels.digests(rows[::-7]), digests[::-7])
    copied = SlidePixels([(slide_of("z", "hash of b"), SCALING)], Places.of(["z"], [300], [pixels.places.xy[300:600]]))
    np.testing.assert_array_equal(copied.digests(np.arange(300)), digests[300:600])
    other = [(slide_of("z", "hash of b").model_copy(update={"reader": "jpeg"}), SCALING)]  # T23
    assert not set(SlidePixels(other, copied.places).digests(np.arange(300)).tolist()) & set(digests.tolist())


def test_two_tiles_at_one_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a: has two tiles at one place"):
        Places.of(["a"], [2], [np.zeros((2, 3), np.int32)])
