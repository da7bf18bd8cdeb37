from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from sscl.plots import sheets

LONG = "the$odd$_stroma associated-with cancer and no end"
Capture = Callable[..., Figure]


def tiles(count: int, *, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_contact_sheet_shows_every_tile_in_reading_order(figure_of: Capture) -> None:
    images = tiles(10)
    captions = [*"abcdefghi", "folder/a_very_long_name_of_a_tile_00017.png\nSSA"]
    figure = figure_of(sheets.contact_sheet, images, captions=captions)
    assert len(figure.axes) == 10
    for axes, image in zip(figure.axes, images, strict=True):
        assert (axes.get_images()[0].get_array() == image).all()
    lefts = [round(axes.get_position().x0, 3) for axes in figure.axes]
    tops = [round(axes.get_position().y1, 3) for axes in figure.axes]
    assert lefts[:2] == lefts[8:]
    assert lefts[:8] == sorted(set(lefts))
    assert tops[0] == tops[7] > tops[8] == tops[9]
    name, label = figure.axes[9].get_title().split("\n")
    assert len(name) == 20
    assert name.startswith("folder/")
    assert name.endswith("_00017.png")
    assert label == "SSA"


def test_tiles_of_mhist_keep_their_pixels(tmp_path: Path) -> None:
    image = tiles(1, size=224)
    sheets.contact_sheet(image, captions=["x"], path=tmp_path / "x.png")
    drawn = np.asarray(Image.open(tmp_path / "x.png").convert("RGB")).astype(int)
    inside = image[0, 112].astype(int)  # one row of the tile is found again, to a pixel
    assert any(
        (row[start : start + 200] == inside[12:212]).all()
        for row in drawn
        for start in range(12, min(len(row) - 200, 40))
    )


def test_views_stand_beside_their_tile(figure_of: Capture) -> None:
    originals, first, second = tiles(2), tiles(2, size=16), tiles(2, size=24)
    figure = figure_of(sheets.plot_views, originals, first, second, ids=["one", LONG])
    expected = [originals[0], first[0], second[0], originals[1], first[1], second[1]]
    for axes, image in zip(figure.axes, expected, strict=True):
        assert (axes.get_images()[0].get_array() == image).all()
    assert [axes.get_title() for axes in figure.axes[:3]] == ["one", "first view", "second view"]


def test_cam_panel(figure_of: Capture) -> None:
    pictures = tiles(3)
    figure = figure_of(
        sheets.plot_cam_panel, *pictures, title="true SSA, predicted SSA (0.93)", method="Grad-CAM", scale=None
    )
    for axes, picture in zip(figure.axes, pictures, strict=True):
        assert (axes.get_images()[0].get_array() == picture).all()
    assert [axes.get_title() for axes in figure.axes] == ["Original", "Grad-CAM", "Box"]
    assert figure.get_suptitle() == "true SSA, predicted SSA (0.93)"


def test_write_image_keeps_every_pixel(tmp_path: Path) -> None:
    (image,) = tiles(1)
    sheets.write_image(image, path=tmp_path / "x.png")
    assert (np.asarray(Image.open(tmp_path / "x.png")) == image).all()
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.png"]


def test_title_stays_inside_the_picture_whatever_its_length(tmp_path: Path) -> None:
    sheets.plot_cam_panel(*tiles(3), title=f"{LONG} " * 6, path=tmp_path / "long.png", method="", scale=None)
    drawn = np.asarray(Image.open(tmp_path / "long.png").convert("L"))
    assert (drawn[:, :3] == 255).all()
    assert (drawn[:, -3:] == 255).all()
    assert (drawn[:3] == 255).all()
