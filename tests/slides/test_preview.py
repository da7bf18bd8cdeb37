"""Pictures of slides: what is pale, outlined and ruled, and that no name breaks them."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from sscl.slides.preview import contact_sheet, preview, round_length
from sscl.slides.records import Level, Overview, Scaling, Slide
from sscl.slides.tissue import Tissue

W, H, FACTOR = 512, 384, 16.0  # an overview at 8 µm of a slide at 0.5
TISSUE_COLOUR = (200, 120, 160)


def slide(name="s.svs", mpp=0.5) -> Slide:
    width, height = int(W * FACTOR), int(H * FACTOR)
    return Slide(
        path=f"/{name}", name=name, width=width, height=height, mpp=mpp, mpp_from="aperio.MPP", bounds=None,
        levels=(Level(width=width, height=height, factor=1.0, exact=True),), reader="openslide", vendor="aperio",
        quickhash="", size=1, mtime_ns=1,
    )  # fmt: skip


@pytest.fixture
def drawn():
    """A slide with a square of tissue, and four of its tiles."""
    mask = np.zeros((H, W), bool)
    mask[100:200, 100:200] = True
    rgb = np.where(mask[..., None], TISSUE_COLOUR, (240, 240, 240)).astype(np.uint8)
    tissue = Tissue(mask, float(mask.mean()), 0.0, (240, 240, 240), None)
    side = 50 * FACTOR
    grid = np.array([(100 + 50 * x, 100 + 50 * y, 100) for y in range(2) for x in range(2)], np.int32)
    grid[:, :2] *= int(FACTOR)
    return Overview(rgb, np.ones_like(mask), FACTOR, FACTOR, 8.0), tissue, grid, Scaling(0.5, 800, 0, 800, side, False)


def picture(drawn, *, grid=None, **facts):
    overview, tissue, all_tiles, scaling = drawn
    data = preview(slide(**facts), scaling, overview, tissue, all_tiles if grid is None else grid)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def near(pixel, colour):
    return np.abs(pixel - colour).max() <= 12


def test_tiles_are_as_they_are_and_the_rest_is_pale(drawn):
    found = picture(drawn, grid=drawn[2][:1])
    assert found.shape[1] == 1024  # twice the overview
    assert near(found[250, 250], TISSUE_COLOUR)  # in the tile
    assert near(found[350, 350], 255 - (255 - np.array(TISSUE_COLOUR)) / 2)  # tissue without a tile
    green = (found[:, :, 1] - found[:, :, 0] > 60) & (found[:, :, 1] > 90)
    ys, xs = np.nonzero(green[: 2 * H])
    assert 2 * 100 - 3 <= xs.min() < xs.max() <= 2 * 200 + 3  # the outline of the tissue
    assert 2 * 100 - 3 <= ys.min() < ys.max() <= 2 * 200 + 3


def test_borders_of_tiles_are_ruled(drawn):
    found = picture(drawn)
    assert found[250, 299:302].min() < 110  # between the first and the second of a row
    assert found[299:302, 250].min() < 110  # and between the rows
    assert near(found[250, 350], TISSUE_COLOUR)


def test_a_hundred_thousand_tiles_are_marked_but_not_ruled(drawn):
    overview, tissue, _, _ = drawn
    y, x = np.mgrid[:300, :400]
    grid = np.stack([x.ravel() * 16, y.ravel() * 16, np.full(x.size, 100)], axis=1).astype(np.int32)
    data = preview(slide(), Scaling(0.5, 16, 0, 16, 16.0, False), overview, tissue, grid)
    found = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    assert near(found[250, 250], TISSUE_COLOUR)
    assert near(found[10, 10], (240, 240, 240))
    assert near(found[700, 900], (247, 247, 247))  # beyond the last of them


def test_a_slide_without_tiles_is_not_pale(drawn):
    assert near(picture(drawn, grid=np.empty((0, 3), np.int32))[250, 250], TISSUE_COLOUR)


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (2000, 2), (5000, 4000)])
def test_pictures_of_any_shape(size):
    height, width = size
    rgb = np.full((height, width, 3), 240, np.uint8)
    nothing = Tissue(np.zeros((height, width), bool), 0.0, 0.0, (240, 240, 240), "no tissue")
    data = preview(
        slide(),
        Scaling(0.5, 8, 0, 8, 8.0, False),
        Overview(rgb, rgb[..., 0] > 0, 1.0, 1.0, 8.0),
        nothing,
        np.empty((0, 3), np.int32),
    )
    assert max(Image.open(io.BytesIO(data)).size) <= 1024 + 84


@pytest.mark.parametrize("most", [0.03, 1.0, 2.4, 733.0, 999.9, 5e4])
def test_the_scale_bar_is_a_round_length(most):
    found = round_length(most)
    assert most / 2.5 < found <= most
    assert re.fullmatch("[125]", f"{found:e}".split(".")[0])


HOSTILE = ["a\nb.svs", "\x1b[31mred.svs", "x" * 4000, "$\\frac{a$.svs", "<script>.svs", "‮gpj.svs", "病理/Слайд.svs", ""]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_change_no_size(drawn, name, tmp_path):
    """T31."""
    assert picture(drawn, name=name).shape == picture(drawn).shape
    sizes = []
    for caption in ("a.svs\n3 tiles", f"{name}\n3 tiles\n{'why not ' * 80}"):
        contact_sheet([(caption, None), (caption, b"no picture")], tmp_path / "sheet.jpg")
        sizes.append(Image.open(tmp_path / "sheet.jpg").size)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("many", [0, 1, 20])
def test_a_sheet_of_any_number_of_slides(drawn, many, number, tmp_path):
    number(sheet_pixels=4_000_000)
    overview, tissue, grid, scaling = drawn
    data = preview(slide(), scaling, overview, tissue, grid)
    contact_sheet([(f"{i}.svs\n4 tiles", data if i % 9 == 0 else None) for i in range(many)], tmp_path / "s.jpg")
    sheet = Image.open(tmp_path / "s.jpg")
    assert sheet.width * sheet.height < 12_000_000
    pixels = np.asarray(sheet).astype(int)
    pink = (np.abs(pixels - TISSUE_COLOUR).max(axis=2) < 20).sum()
    assert (pink > 100) == (many > 0)
