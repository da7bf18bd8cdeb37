"""Damage, files that are open at once, forked processes, and the choice between the two readers."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from damaged_levels import damaged, with_tile
from sscl.slides.open import open_slide
from sscl.slides.pixels import DamagedTile, Readers
from sscl.slides.records import SlideError
from sscl.slides.scaling import scaling
from sscl.slides.write import EncodedLevel, encode_level


@pytest.fixture
def readers():
    found = Readers()
    yield found
    found.close()


@pytest.fixture(scope="module")
def level(field) -> EncodedLevel:
    """64 encoded tiles of tissue."""
    return encode_level(np.ascontiguousarray(field.pixels[500:1012, 600:1112]), tile_px=64, quality=90)


def in_the_middle(tile: bytes, what: bytes) -> bytes:
    return tile[: len(tile) // 2] + what + tile[len(tile) // 2 + len(what) :]


def of_all_kinds(tile: bytes, other: bytes) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    size = len(tile) // 4
    return {
        "zeros": in_the_middle(tile, bytes(size)),
        "ones": in_the_middle(tile, b"\xff" * size),
        "random": in_the_middle(tile, rng.bytes(size)),
        "no markers": in_the_middle(tile, rng.bytes(size).replace(b"\xff", b"\xfe")),
        "text": in_the_middle(tile, (b"the quick brown fox " * 200)[:size]),
        "another tile": in_the_middle(tile, other[len(other) // 3 :][:size]),
        "cut": tile[: len(tile) // 2],
        "cut and ended": tile[: len(tile) // 2] + b"\xff\xd9",
        "no head": bytes(200) + tile[200:],
        "not a JPEG": rng.bytes(len(tile)),
        "one byte": b"\xff",
        "another size": encode_level(np.zeros((32, 32, 3), np.uint8), tile_px=32).tiles[0],
    }


def test_every_kind_of_damage_is_noticed_and_named_and_the_neighbours_read_on(level, field_slide, readers):
    """T16: libjpeg makes a picture of most of these and warns; openslide takes one for whole."""
    intact = open_slide(field_slide("intact.svs", levels=[level]), name="a")
    how = scaling(intact, mpp=0.5, size_px=64)
    xy = np.array([[128, 192], [192, 192]])
    expected, out = np.zeros((2, 2, 64, 64, 3), np.uint8)
    readers.tiles(intact, how, xy, expected)
    kinds = of_all_kinds(level.tiles[3 * 8 + 2], level.tiles[3 * 8 + 5])
    noticed = []
    for kind, tile in kinds.items():
        slide = open_slide(field_slide(f"{kind}.svs", levels=[with_tile(level, 2, 3, tile)]), name="a")
        assert slide.reader == "jpeg"
        with pytest.raises(DamagedTile) as error:
            readers.tiles(slide, how, xy[:1], out[:1])
        noticed.append(kind)
        assert (error.value.slide, error.value.x, error.value.y) == (slide.path, 128, 192)
        assert str(error.value).startswith(slide.path)
        assert "\n" not in str(error.value)
        readers.tiles(slide, how, xy[1:], out[1:])
        assert np.array_equal(out[1], expected[1])
    assert noticed == list(kinds)


def test_through_openslide_damage_is_named_and_the_neighbours_read_on(tmp_path, field, readers):
    """T16: an error stays in openslide's handle for good."""
    path, pixels = tmp_path / "a.tif", np.ascontiguousarray(field.pixels[500:1012, 600:1112])
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].dataoffsets[3 * 8 + 2]
    data = bytearray(path.read_bytes())
    data[at : at + 100] = bytes(100)
    path.write_bytes(data)
    slide = open_slide(path, name="a", mpp=0.5)
    how, out = scaling(slide, mpp=0.5, size_px=64), np.zeros((1, 64, 64, 3), np.uint8)

    def read(i: int) -> bool:
        """Whether it is as it should be; in four threads, of which some always fail."""
        own, damaged = np.zeros((1, 64, 64, 3), np.uint8), i % 3 == 0
        try:
            readers.tiles(slide, how, np.array([[128, 192] if damaged else [192 + i, 192]]), own)
        except DamagedTile:
            return damaged
        return not damaged and np.array_equal(own[0], pixels[192:256, 192 + i : 256 + i])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(90)))
    for _ in range(2):
        readers.tiles(slide, how, np.array([[192, 192]]), out)
        assert np.array_equal(out[0], pixels[192:256, 192:256])
        with pytest.raises(DamagedTile) as error:
            readers.tiles(slide, how, np.array([[128, 192]]), out)
        assert (error.value.x, error.value.y) == (128, 192)


def test_damage_behind_restart_markers_is_noticed(level, field, field_slide, readers):
    """T16: a decoder goes on at the next marker with the right block, so that nothing is left over."""
    pixels, tiles = field.pixels[500:1012, 600:1112], []
    for i in range(64):
        stream = io.BytesIO()
        tile = Image.fromarray(pixels[i // 8 * 64 :, i % 8 * 64 :][:64, :64])
        tile.save(stream, "jpeg", quality=90, restart_marker_blocks=2)
        tiles.append(stream.getvalue())
    at = len(tiles[26]) * 2 // 3
    tiles[26] = tiles[26][:at] + bytes(20) + tiles[26][at + 20 :]
    slide = open_slide(field_slide(levels=[replace(level, tiles=tiles)]), name="a")
    out = np.zeros((1, 64, 64, 3), np.uint8)
    how = scaling(slide, mpp=0.5, size_px=64)
    readers.tiles(slide, how, np.array([[192, 192]]), out)
    with pytest.raises(DamagedTile):
        readers.tiles(slide, how, np.array([[128, 192]]), out)


def test_an_overview_says_what_could_not_be_decoded(level, field_slide, readers, number):
    """T13, T16: a bad row of tiles does not lose the slide, in whatever strips; where most is bad, it is refused."""
    slide = open_slide(field_slide(levels=[damaged(level, 2, 3)]), name="a")
    whole = readers.overview(open_slide(field_slide("b.svs", levels=[level]), name="b"), 8.0)
    found = readers.overview(slide, 8.0)
    assert (found.damaged, whole.damaged) == (1, 0)
    away = (found.rgb != whole.rgb).any(axis=2)
    assert np.array_equal(~found.known, away)
    assert away[12:16, 8:12].all()
    assert away.sum() == 16
    row = level
    for column in range(8):
        row = damaged(row, column, 3)
    slide = open_slide(field_slide("row.svs", levels=[row]), name="row")
    for strip in (2**22, 2**14):
        number(overview_strip=strip)
        assert readers.overview(slide, 8.0).damaged == 8
    bad = level
    for i in range(40):
        bad = damaged(bad, i % 8, i // 8)
    with pytest.raises(SlideError, match=r"bad\.svs") as error:
        readers.overview(open_slide(field_slide("bad.svs", levels=[bad]), name="c"), 8.0)
    assert "\n" not in str(error.value)


def test_a_decoder_that_is_off_by_one_is_not_used_and_it_is_said(level, field_slide, wrap, readers):
    """T22, T23: the choice is a fact of the slide."""
    path = field_slide(levels=[level])
    own = open_slide(path, name="a")
    wrap(pyramid_tile=lambda real, *given: real(*given) + np.uint8(1))
    slide = open_slide(path, name="a")
    assert (own.reader, slide.reader) == ("jpeg", "openslide")
    assert "1" in slide.notes[0]
    assert own != slide
    out = np.zeros((512, 512, 3), np.uint8)
    readers.read(slide, level=0, x=0, y=0, out=out)
    assert np.array_equal(out, np.asarray(openslide.OpenSlide(path).read_region((0, 0), 0, (512, 512)).convert("RGB")))


def test_one_damaged_tile_does_not_change_the_reader(level, field_slide):
    """T22: the tile of the most bytes is tried first, and is the damaged one here."""
    largest = max(range(64), key=lambda i: len(level.tiles[i]))
    assert open_slide(field_slide(levels=[damaged(level, largest % 8, largest // 8)]), name="a").reader == "jpeg"


MANY = """
import resource, sys
from pathlib import Path
import numpy as np
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from sscl.slides.open import open_slide
from sscl.slides.pixels import Readers
from sscl.slides.scaling import scaling
from concurrent.futures import ThreadPoolExecutor
first = open_slide(Path(sys.argv[1]) / "0.svs", name="0")
slides = [first.model_copy(update={"path": str(Path(sys.argv[1]) / f"{i}.svs")}) for i in range(1000)]
levels = tuple(level.model_copy(update={"encoded": None}) for level in first.levels)
slow = [slide.model_copy(update={"levels": levels}) for slide in slides]
how = scaling(first, mpp=0.5, size_px=32)
for most in (64, 500):
    readers = Readers(most)
    def read(slide):
        out = np.zeros((1, 32, 32, 3), np.uint8)
        readers.tiles(slide, how, np.array([[8, 8]]), out)
        return out
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, slides[:500] + slow[::4] + slides[500:]))
    assert all((one == found[0]).all() for one in found)
    print(len(found))
"""


def test_a_thousand_slides_are_read_with_256_files(field, field_slide, tmp_path):
    """T24: the cap holds; where it is set too high, files are closed when the system has no more."""
    pixels = np.ascontiguousarray(field.pixels[700:764, 700:764])
    path = field_slide("0.svs", levels=[encode_level(pixels, tile_px=64)])
    for i in range(1, 1000):
        os.link(path, tmp_path / f"{i}.svs")
    found = subprocess.run([sys.executable, "-c", MANY, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (found.stdout, found.returncode) == ("1250\n1250\n", 0), found.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_reads_on(field_svs, readers):
    slide = open_slide(field_svs, name="a")
    levels = tuple(level.model_copy(update={"encoded": None}) for level in slide.levels)
    both = (slide, slide.model_copy(update={"levels": levels}))
    how, xy = scaling(slide, mpp=0.5, size_px=100), np.array([[800, 800], [900, 1000]])
    expected, out = np.zeros((2, 2, 100, 100, 3), np.uint8)
    for each in both:
        readers.tiles(each, how, xy, expected)
    child = os.fork()
    if not child:
        try:
            for each in both:
                readers.tiles(each, how, xy, out)
                assert np.array_equal(out, expected)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    readers.tiles(both[1], how, xy, out)
    assert np.array_equal(out, expected)


def test_a_slide_that_goes_while_it_is_read_is_named(level, field_slide, readers):
    path = field_slide(levels=[level])
    slide = open_slide(path, name="a")
    path.unlink()
    how, out = scaling(slide, mpp=0.5, size_px=64), np.zeros((1, 64, 64, 3), np.uint8)
    levels = tuple(level.model_copy(update={"encoded": None}) for level in slide.levels)
    for each in (slide, slide.model_copy(update={"levels": levels})):
        with pytest.raises(SlideError, match=r"field\.svs") as error:
            readers.tiles(each, how, np.array([[0, 0]]), out)
        assert not isinstance(error.value, DamagedTile)


def test_files_are_closed(field_svs):
    def number() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = number()
    readers = Readers()
    readers.overview(open_slide(field_svs, name="a"), 8.0)
    assert number() > before
    readers.close()
    assert number() == before
