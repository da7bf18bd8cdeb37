from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from sscl.plots import sheets

LONG = "the$odd$_stroma associated-with cancer and no end"
Capture = Callable[..., Figure]


def tiles(count: int, *, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_contact_sheet_shows_every_tile_in_reading_order(figure_of: Capture) -> None:
    images = tiles(5)
    captions = ["a", "b", "c", "d", "folder/a_very_long_name_of_a_tile_00017.png\nSSA"]
    figure = figure_of(sheets.contact_sheet, images, captions=captions, columns=3)
    assert len(figure.axes) == 5
    for axes, image in zip(figure.axes, images, strict=True):
        assert (axes.get_images()[0].get_array() == image).all()
    lefts = [round(axes.get_position().x0, 3) for axes in figure.axes]
    tops = [round(axes.get_position().y1, 3) for axes in figure.axes]
    assert lefts[:2] == lefts[3:]
    assert lefts[0] < lefts[1] < lefts[2]
    assert tops[0] == tops[2] > tops[3] == tops[4]
    name, label = figure.axes[4].get_title().split("\n")
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
    figure = figure_of(sheets.plot_cam_panel, *pictures, title="true SSA, predicted SSA (0.93)")
    for axes, picture in zip(figure.axes, pictures, strict=True):
        assert (axes.get_images()[0].get_array() == picture).all()
    assert [axes.get_title() for axes in figure.axes] == ["Original", "Grad-CAM", "Box"]
    assert figure.get_suptitle() == "true SSA, predicted SSA (0.93)"


def test_write_image_keeps_every_pixel(tmp_path: Path) -> None:
    (image,) = tiles(1)
    sheets.write_image(image, path=tmp_path / "x.png")
    assert (np.asarray(Image.open(tmp_path / "x.png")) == image).all()
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.png"]
    with pytest.raises(ValueError, match="image: got uint8 of shape"):
        sheets.write_image(image[:, :, 0], path=tmp_path / "y.png")


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    with pytest.raises(ValueError, match="captions: got 1 for 2 tiles"):
        sheets.contact_sheet(tiles(2), captions=["a"], path=path)
    with pytest.raises(ValueError, match="columns: got 0"):
        sheets.contact_sheet(tiles(1), captions=["a"], path=path, columns=0)
    with pytest.raises(ValueError, match="at least one tile"):
        sheets.contact_sheet(tiles(0), captions=[], path=path)
    with pytest.raises(ValueError, match="got 2, 1, 2, 2"):
        sheets.plot_views(tiles(2), tiles(1), tiles(2), ids=["a", "b"], path=path)
    with pytest.raises(ValueError, match="Grad-CAM: got float32"):
        sheets.plot_cam_panel(tiles(1)[0], tiles(1)[0].astype(np.float32), tiles(1)[0], title="", path=path)
    assert list(tmp_path.iterdir()) == []


def test_title_stays_inside_the_picture_whatever_its_length(tmp_path: Path) -> None:
    sheets.plot_cam_panel(*tiles(3), title=f"{LONG} " * 6, path=tmp_path / "long.png")
    drawn = np.asarray(Image.open(tmp_path / "long.png").convert("L"))
    assert (drawn[:, :3] == 255).all()
    assert (drawn[:, -3:] == 255).all()
    assert (drawn[:3] == 255).all()
