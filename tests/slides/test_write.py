"""Slides that are written read back through openslide and tifffile."""

from __future__ import annotations

import cv2
import numpy as np
import openslide
import pytest
import tifffile

from damaged_levels import damaged, with_tile
from sscl.slides.write import encode_level, reduced, write_levels, write_slide


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(1)
    return cv2.resize(rng.integers(40, 250, (8, 10, 3), dtype=np.uint8), (745, 603), interpolation=cv2.INTER_LINEAR)


@pytest.mark.parametrize("colour", ["ycbcr", "rgb"])
@pytest.mark.parametrize("tables", [False, True])
@pytest.mark.parametrize(("name", "vendor"), [("a.svs", "aperio"), ("a.tiff", "generic-tiff")])
def test_openslide_reads_what_is_written(tmp_path, pixels, name, vendor, tables, colour):
    path = tmp_path / name
    write_slide(path, pixels, mpp=0.25, factors=(4,), tile_px=128, tables=tables, colour=colour, quality=95)
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.vendor"] == vendor
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)
        assert slide.level_dimensions == ((745, 603), (186, 150))
        read = np.asarray(slide.read_region((0, 0), 0, (745, 603)))
        assert (read[..., 3] == 255).all()
        assert np.abs(read[..., :3].astype(int) - pixels).mean() < (1.5 if colour == "rgb" else 4)
        # A level's pixels are the means of whole squares, though its factors are not quite whole (T6).
        assert slide.level_downsamples[1] != 4
        below = np.asarray(slide.read_region((0, 0), 1, (186, 150)))[..., :3]
        assert np.abs(below.astype(int) - reduced(pixels, 4)).mean() < 4
    with tifffile.TiffFile(path) as file:
        assert [page.is_tiled for page in file.pages] == [True, True]
        assert (file.pages[0].jpegtables is not None) == tables


def test_a_slide_without_scale_with_a_label_and_with_pages_below_the_first(tmp_path, pixels):
    write_slide(tmp_path / "a.svs", pixels, mpp=None, factors=(4,), label=pixels[:90, :120])
    with openslide.OpenSlide(tmp_path / "a.svs") as slide:
        assert "openslide.mpp-x" not in slide.properties
        assert np.array_equal(np.asarray(slide.associated_images["label"])[..., :3], pixels[:90, :120])
    write_slide(tmp_path / "b.tif", pixels, factors=(4,), subifds=True)
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert [page.shape for page in file.pages] == [(603, 745, 3)]
        assert [page.shape for page in file.pages[0].pages] == [(150, 186, 3)]
    levels = [encode_level(pixels)]
    write_levels(tmp_path / "c.tif", levels, mpp=(0.5, 0.6))
    with openslide.OpenSlide(tmp_path / "c.tif") as slide:
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.6)


def test_tiles_that_are_missing_or_damaged(tmp_path, pixels):
    level = encode_level(pixels, tile_px=128)
    write_levels(tmp_path / "a.svs", [damaged(with_tile(level, 1, 2, b""), 3, 0)])
    with openslide.OpenSlide(tmp_path / "a.svs") as slide:
        alpha = np.asarray(slide.read_region((0, 256), 0, (384, 128)))[..., 3]
        assert (alpha[:, 128:256] == 0).all()
        assert (alpha[:, :128] == 255).all()
        with pytest.raises(openslide.OpenSlideError):
            slide.read_region((384, 0), 0, (128, 128))


def test_jpeg_2000(tmp_path, pixels):
    write_slide(tmp_path / "a.svs", pixels, factors=(4,), codec="jpeg2000")
    with tifffile.TiffFile(tmp_path / "a.svs") as file:
        assert {int(page.compression) for page in file.pages} == {33005}
    with openslide.OpenSlide(tmp_path / "a.svs") as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        read = np.asarray(slide.read_region((0, 0), 0, (745, 603)))[..., :3]
    assert np.abs(read.astype(int) - pixels).mean() < 2
