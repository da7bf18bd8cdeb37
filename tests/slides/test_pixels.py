"""Pixels of slides against tifffile's pages, openslide, and a mean taken one by one."""

from __future__ import annotations

import io
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from damaged_levels import with_tile
from sscl.slides.open import open_slide
from sscl.slides.pixels import Readers
from sscl.slides.records import Slide
from sscl.slides.scaling import scaling
from sscl.slides.write import encode_level, reduced, write_slide


@pytest.fixture
def readers():
    found = Readers()
    yield found
    found.close()


def through_openslide(slide: Slide) -> Slide:
    """Return the slide as if its tiles could not be decoded here."""
    levels = tuple(level.model_copy(update={"encoded": None}) for level in slide.levels)
    return slide.model_copy(update={"reader": "openslide", "levels": levels})


def whole(readers: Readers, slide: Slide, level: int) -> np.ndarray:
    out = np.zeros((slide.levels[level].height, slide.levels[level].width, 3), np.uint8)
    readers.read(slide, level=level, x=0, y=0, out=out)
    return out


def pages_of(path: Path) -> list[np.ndarray]:
    """The tiled pages, each tile decoded by Pillow, placed as tifffile says."""
    found = []
    with tifffile.TiffFile(path) as file:
        for page in [page for page in file.pages if page.is_tiled]:
            pixels = np.zeros(page.shape, np.uint8)
            across = -(-page.imagewidth // page.tilewidth)
            for i, (at, size) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
                file.filehandle.seek(at)
                tile = np.asarray(Image.open(io.BytesIO(file.filehandle.read(size))).convert("RGB"))
                y, x = i // across * page.tilelength, i % across * page.tilewidth
                part = pixels[y : y + page.tilelength, x : x + page.tilewidth]
                part[:] = tile[: part.shape[0], : part.shape[1]]
            found.append(pixels)
    return found


@pytest.fixture(scope="module")
def odd_svs(field, tmp_path_factory):
    """Levels whose sizes were rounded: openslide takes factors of 2.003 and 4.01."""
    path = tmp_path_factory.mktemp("odd") / "odd.svs"
    write_slide(path, np.ascontiguousarray(field.pixels[400:1103, 500:1303]), mpp=0.25, factors=(2, 4))
    assert all(factor % 1 for factor in openslide.OpenSlide(path).level_downsamples[1:])
    return path


def test_the_pixels_of_a_level_are_those_of_its_page(odd_svs, readers):
    """T6: also where openslide would read between pixels."""
    slide = open_slide(odd_svs, name="a")
    assert [level.factor for level in slide.levels] == [1, 2, 4]
    for level, page in enumerate(pages_of(odd_svs)):
        assert np.array_equal(whole(readers, slide, level), page)


def test_tiles_of_a_level_are_cut_out_of_its_page(odd_svs, readers):
    """T6: a corner at level 0 lies on the nearest pixel of the level."""
    slide = open_slide(odd_svs, name="a")
    for level, page in enumerate(pages_of(odd_svs)):
        how = scaling(slide, mpp=0.25 * 2**level, size_px=50)
        assert (how.level, how.resampled) == (level, False)
        xy = np.array([[402, 306], [0, 0], [200, 104], [2, 300]])
        out = np.zeros((4, 50, 50, 3), np.uint8)
        readers.tiles(slide, how, xy, out)
        for (x, y), tile in zip(np.floor(xy / 2**level + 0.5).astype(int), out, strict=True):
            assert np.array_equal(tile, page[y : y + 50, x : x + 50])


def test_the_last_tile_of_a_level_whose_size_was_rounded_down_has_no_white_line(odd_svs, readers):
    """T6, T10: level 1 has 401 pixels for 803 of level 0."""
    slide, page = open_slide(odd_svs, name="a"), pages_of(odd_svs)[1]
    how, out = scaling(slide, mpp=0.5, size_px=50), np.zeros((2, 50, 50, 3), np.uint8)
    readers.tiles(slide, how, np.array([[703, 603], [750, 603]]), out)
    assert np.array_equal(out[0], page[-50:, -50:])
    assert out[1, :, 26:].min() == 255  # one that does reach beyond the border


@pytest.mark.parametrize("colour", ["ycbcr", "rgb"])
@pytest.mark.parametrize("tables", [False, True])
def test_both_readers_give_the_pixels_of_openslide(field, field_slide, readers, colour, tables):
    pixels = np.ascontiguousarray(field.pixels[700:1050, 600:1050])
    path = field_slide("a.svs", levels=[encode_level(pixels, tile_px=128, colour=colour)], tables=tables)
    slide = open_slide(path, name="a")
    assert slide.reader == "jpeg"
    reference = np.asarray(openslide.OpenSlide(path).read_region((0, 0), 0, (450, 350)).convert("RGB"))
    assert np.array_equal(whole(readers, slide, 0), reference)
    assert np.array_equal(whole(readers, through_openslide(slide), 0), reference)
    assert np.abs(reference.astype(int) - pixels).mean() < 8  # the colours are not taken for others


@pytest.mark.parametrize(("order", "big"), [("<", False), ("<", True), (">", True)])  # openslide takes no (">", False)
def test_tiffs_of_both_byte_orders_and_of_64_bits_are_read(field, tmp_path, readers, order, big):
    path, pixels = tmp_path / "a.tif", np.ascontiguousarray(field.pixels[700:1050, 600:1050])
    level = encode_level(pixels, tile_px=128)
    with tifffile.TiffWriter(path, byteorder=order, bigtiff=big) as file:  # which writes no JPEG, but takes its bytes
        how = {"compression": "zlib", "photometric": "rgb", "shape": pixels.shape, "dtype": "u1"}
        file.write(iter(level.tiles), tile=(128, 128), **how)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["Compression"].overwrite(7)
        file.pages[0].tags["PhotometricInterpretation"].overwrite(6)
    slide = open_slide(path, name="a")
    assert slide.reader == "jpeg"
    reference = np.asarray(openslide.OpenSlide(path).read_region((0, 0), 0, (450, 350)).convert("RGB"))
    assert np.array_equal(whole(readers, slide, 0), reference)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_chroma_of_any_resolution_is_that_of_openslide(field, field_slide, readers, subsampling, progressive):
    """T22: tiles that are not of one scan go through openslide, and it is said."""
    level = encode_level(np.ascontiguousarray(field.pixels[700:1000, 600:1000]), tile_px=128)
    tiles = []
    for tile in level.tiles:
        stream = io.BytesIO()
        picture = Image.open(io.BytesIO(tile))
        picture.save(stream, "jpeg", subsampling=subsampling, progressive=progressive)
        tiles.append(stream.getvalue())
    path = field_slide(levels=[replace(level, tiles=tiles)])
    slide = open_slide(path, name="a")
    assert slide.reader == ("openslide" if progressive else "jpeg")
    assert [note for note in slide.notes if "progressive" in note] == list(slide.notes)
    assert len(slide.notes) == progressive
    reference = np.asarray(openslide.OpenSlide(path).read_region((0, 0), 0, (400, 300)).convert("RGB"))
    assert np.array_equal(whole(readers, slide, 0), reference)


def test_a_tile_is_reduced_by_area_from_whole_pixels(field_svs, readers):
    slide = open_slide(field_svs, name="a")
    how = scaling(slide, mpp=0.75, size_px=64)
    assert (how.level, how.side) == (0, 96)
    out = np.zeros((2, 64, 64, 3), np.uint8)
    readers.tiles(slide, how, np.array([[900, 900], [1000, 1000]]), out)
    page = whole(readers, slide, 0).astype(float)[900:996, 900:996]
    fine = page.repeat(2, 0).repeat(2, 1)  # 3 half pixels a side make one of the tile's
    means = fine.reshape(64, 3, 64, 3, 3).mean((1, 3))
    assert np.abs(out[0] - means).max() <= 0.51


@pytest.mark.parametrize("reader", ["jpeg", "openslide"])
def test_beyond_the_border_it_is_white(field, field_slide, readers, reader):
    """T10."""
    black = encode_level(np.zeros((150, 200, 3), np.uint8), tile_px=128)
    slide = open_slide(field_slide(levels=[black]), name="a")
    slide = slide if reader == "jpeg" else through_openslide(slide)
    out = np.full((400, 450, 3), 7, np.uint8)
    readers.read(slide, level=0, x=-100, y=-50, out=out)
    expected = np.full_like(out, 255)
    expected[50:200, 100:300] = 0
    assert np.array_equal(out, expected)
    for x, y in ((500, 0), (0, 500), (-600, -600)):
        readers.read(slide, level=0, x=x, y=y, out=out)
        assert out.min() == 255


@pytest.mark.parametrize("name", ["a.svs", "a.tif"])
def test_a_tile_that_was_not_scanned_is_white_and_not_known(field, field_slide, readers, name):
    """T10: one of no bytes goes through openslide."""
    level = encode_level(np.ascontiguousarray(field.pixels[600:1000, 600:1000]), tile_px=64)
    slide = open_slide(field_slide(name, levels=[with_tile(level, 3, 2, b"")]), name="a")
    assert (slide.reader, len(slide.notes)) == ("openslide", 1)
    page = whole(readers, slide, 0)
    assert page[128:192, 192:256].min() == 255
    assert page[64:128, 192:256].max() < 255
    overview = readers.overview(slide, 8.0)
    assert not overview.known[8:12, 12:16].any()
    assert overview.known.sum() == 25 * 25 - 4 * 4


@pytest.mark.parametrize(("bgra", "rgb"), [((10, 20, 30, 100), [185, 175, 165]), ((130, 0, 101, 100), [255, 155, 255])])
def test_what_is_half_transparent_is_laid_over_white(tmp_path, readers, wrap, bgra, rgb):
    """T10: openslide's colours are premultiplied; those of a fourth channel that is no alpha do not run over."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((256, 256, 3), np.uint8), tile=(256, 256), photometric="rgb", compression="zlib")
    slide = open_slide(path, name="a", mpp=0.5)
    wrap(openslide_tile=lambda real, handle, out, **place: out.__setitem__(..., bgra))
    assert whole(readers, slide, 0)[0, 0].tolist() == rgb


@pytest.mark.parametrize("factor", [1, 4, 16])
def test_an_overview_is_the_mean_of_what_each_of_its_pixels_spans(field, field_slide, readers, factor):
    """T13: its grid is that of level 0, from whichever level it is made."""
    level = field.levels[{1: 0, 4: 1, 16: 2}[factor]]
    slide = open_slide(field_slide(levels=[level]), name="a", mpp=0.5 * factor)
    found = readers.overview(slide, 9.0)
    page, ratio = whole(readers, slide, 0).astype(float), 18 / factor
    assert (found.factor_x, found.factor_y, found.mpp) == pytest.approx((ratio, ratio, 9.0))
    size = int(np.ceil(level.width / ratio))
    assert found.rgb.shape == (size, size, 3)
    i, column = np.arange(size)[:, None], np.arange(level.width)
    weights = np.maximum(0, np.minimum((i + 1) * ratio, column + 1) - np.maximum(i * ratio, column))
    means = np.einsum("ay,yxc,bx->abc", weights, page, weights, optimize=True)
    means /= np.outer(weights.sum(1), weights.sum(1))[:, :, None]
    assert np.abs(found.rgb - means).max() <= 0.51
    assert np.array_equal(found.known, np.outer(weights.sum(1), weights.sum(1)) >= ratio**2 / 2)


def test_an_overview_does_not_depend_on_how_much_is_read_at_once(field_svs, readers, number):
    """T13, T14."""
    slide = open_slide(field_svs, name="a")
    slide = slide.model_copy(update={"levels": slide.levels[:1]})
    found = readers.overview(slide, 7.0)
    number(overview_strip=2**15)
    assert np.array_equal(readers.overview(slide, 7.0).rgb, found.rgb)


def test_an_overview_of_a_coarse_slide_is_the_slide(field, field_slide, readers):
    slide = open_slide(field_slide(levels=field.levels[2:]), name="a", mpp=28.97)
    found = readers.overview(slide, 8.0)
    assert (found.factor_x, found.mpp) == (1.0, 28.97)
    assert np.array_equal(found.rgb, whole(readers, slide, 0))


def test_threads_read_what_one_reads(field_svs, readers):
    """T26, for the readers."""
    slide = open_slide(field_svs, name="a")
    how = scaling(slide, mpp=0.5, size_px=100)
    xy = np.random.default_rng(0).integers(0, 1900, (60, 2))
    one, out = np.zeros((2, 60, 100, 100, 3), np.uint8)
    readers.tiles(slide, how, xy, one)
    for each in (slide, through_openslide(slide)):
        out[:] = 0
        with ThreadPoolExecutor(4) as pool:
            for part in [
                pool.submit(readers.tiles, each, how, xy[i : i + 10], out[i : i + 10]) for i in range(0, 60, 10)
            ]:
                part.result()
        assert np.array_equal(out, one)


@pytest.mark.parametrize("ycbcr", [False, True])
def test_jpeg_2000_is_read_from_the_file_where_openslide_reads_between_pixels(field, field_slide, readers, ycbcr):
    """T6; Aperio's two kinds: of RGB, and of YCbCr, which the page's compression tells apart."""
    pixels = np.ascontiguousarray(field.pixels[700:1103, 600:1003])
    encoded = cv2.cvtColor(pixels, cv2.COLOR_RGB2YCrCb)[:, :, [0, 2, 1]] if ycbcr else pixels
    levels = [encode_level(np.ascontiguousarray(encoded), codec="jpeg2000")]
    levels.append(encode_level(reduced(np.ascontiguousarray(encoded), 2), codec="jpeg2000"))
    path = field_slide(levels=levels)
    if ycbcr:
        tags = [struct.pack("<HHII", 259, 3, 1, compression) for compression in (33005, 33003)]
        path.write_bytes(path.read_bytes().replace(*tags))
    slide, reference = open_slide(path, name="a"), openslide.OpenSlide(path)
    assert slide.reader == "jpeg2000"
    assert [level.encoded is not None for level in slide.levels] == [False, True]
    whole_slide = np.asarray(reference.read_region((0, 0), 0, (403, 403)).convert("RGB"))
    assert np.array_equal(whole(readers, slide, 0), whole_slide)
    small = whole(readers, slide, 1).astype(int)
    at_corner = np.asarray(reference.read_region((0, 0), 1, (201, 201)).convert("RGB"))  # where it meets the pixels
    assert np.abs(small - at_corner).max() <= 1
    assert np.abs(small - reduced(pixels, 2)).mean() < 8


def test_the_level_below_is_read_where_openslide_reads_between_pixels(tmp_path, field, readers):
    """T6: a pyramid that is not JPEG, with rounded sizes."""
    path, pixels = tmp_path / "a.tif", np.ascontiguousarray(field.pixels[400:1103, 500:1303])
    with tifffile.TiffWriter(path) as file:
        for factor in (1, 2):
            level = reduced(pixels, factor)
            file.write(level, tile=(256, 256), compression="zlib", photometric="rgb", subfiletype=int(factor > 1))
    slide = open_slide(path, name="a", mpp=0.25)
    how = scaling(slide, mpp=0.5, size_px=100)
    assert [level.exact for level in slide.levels] == [True, False]
    assert (how.level, how.side) == (0, 200)
    out = np.zeros((1, 100, 100, 3), np.uint8)
    readers.tiles(slide, how, np.array([[301, 203]]), out)
    assert np.array_equal(out[0], cv2.resize(pixels[203:403, 301:501], (100, 100), interpolation=cv2.INTER_AREA))
