"""The sheet of pairs: each tile stands over its own name, and pairs across splits in the thick frame."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure

from sscl.data.audit import Findings, Parts
from sscl.data.duplicates import Pair
from sscl.data.outliers import Outlier
from sscl.data.tiles import Tiles
from sscl.plots import audit as audit_plots


def tile(shade: int) -> np.ndarray:
    return np.full((8, 8, 3), shade, dtype=np.uint8)


def test_pairs_have_their_tiles_captions_and_frames(figure_of: Callable[..., Figure]) -> None:
    pairs = [(tile(20 * i), tile(20 * i + 10)) for i in range(6)]  # the last in a row of its own
    captions = [(f"train: {i}", f"test: {i}", f"r 0.9{i}") for i in range(6)]
    across = [number == 1 for number in range(6)]
    figure = figure_of(audit_plots.pair_sheet, pairs, captions=captions, across=across, title="t")
    (axes,) = figure.axes
    pictures = axes.get_images()
    assert [int(picture.get_array()[0, 0, 0]) for picture in pictures] == [*range(0, 120, 10)]
    for picture, text in zip(pictures, [text for text in axes.texts if ": " in text.get_text()], strict=True):
        left, _, bottom, _ = picture.get_extent()
        assert text.get_position()[0] == pytest.approx(left)
        assert 0 < bottom - text.get_position()[1] < 0.1
    assert [text.get_text() for text in axes.texts] == [text for caption in captions for text in caption]
    widths = [frame.get_linewidth() for frame in axes.patches]
    assert widths[0] == widths[2] == widths[5] < widths[1]
    colours = [frame.get_edgecolor() for frame in axes.patches]
    assert colours[0] == colours[2] != colours[1]
    orange, grey = colours[1], colours[0]
    assert orange[0] > 2 * orange[2]
    assert grey[0] == grey[1] == grey[2]


@pytest.fixture
def parts() -> Parts:
    """Tile i has the shade 10 i."""
    tiles = {
        name: Tiles(np.stack([tile(10 * row) for row in rows]), np.zeros(len(rows), np.int64), ("c",), ids)
        for name, rows, ids in (("train", range(3), ("a/0.png", "a/1.png", "a/2.png")), ("test", (3, 4), ("3", "4")))
    }
    return Parts(tiles, dict.fromkeys(tiles, "root"), own=2)


def test_pairs_are_drawn_with_the_tiles_and_names_of_their_rows(parts: Parts, figure_of: Callable[..., Figure]) -> None:
    across = Pair(1, 3, "hash", 0.97, "turned 180°", distance=3)
    pairs = [across, Pair(0, 2, "exact", 1.0, "as it is"), Pair(0, 4, "embedding", 0.99, "not aligned")]
    found = Findings(pairs, [across], np.arange(5), {}, {}, [])
    figure = figure_of(audit_plots.draw_pairs, parts, found, limit=2)
    (axes,) = figure.axes
    assert [int(picture.get_array()[0, 0, 0]) for picture in axes.get_images()] == [10, 30, 0, 20]
    texts = [text.get_text() for text in axes.texts]
    assert texts[:2] == ["train: 1.png", "test: 3"]
    assert texts[3:] == ["train: 0.png", "train: 2.png", "identical pixels"]
    assert "0.97" in texts[2]
    assert "3 bits" in texts[2]
    first, second = (frame.get_linewidth() for frame in axes.patches)
    assert first > second


def test_outliers_of_all_kinds_are_drawn_the_most_extreme_first(parts: Parts, figure_of: Callable[..., Figure]) -> None:
    outliers = [
        Outlier(0, "stain", "amount", -7.0),
        Outlier(1, "stain", "amount", 9.0),
        Outlier(2, "blank", "1.0% tissue", 0.01),
        Outlier(3, "stain", "amount", 8.0),
    ]
    figure = figure_of(audit_plots.draw_outliers, parts, outliers, limit=3)
    shades = [int(axes.get_images()[0].get_array()[0, 0, 0]) for axes in figure.axes]
    assert shades == [20, 10, 30]
    said = [axes.get_title() for axes in figure.axes]
    assert "blank: 1.0% tissue" in said[0]
    assert "stain: 9.0 SD" in said[1]
