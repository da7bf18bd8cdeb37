"""The sheet of pairs: each tile stands over its own name, and pairs across splits in the thick frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from sscl.plots import audit as audit_plots


def tile(shade: int) -> np.ndarray:
    return np.full((8, 8, 3), shade, dtype=np.uint8)


def test_pairs_have_their_tiles_captions_and_frames(figure_of: Callable[..., Figure]) -> None:
    pairs = [(tile(10), tile(20)), (tile(30), tile(40)), (tile(50), tile(60))]
    captions = [(f"train: {i}", f"test: {i}", f"r 0.9{i}") for i in range(3)]
    figure = figure_of(
        audit_plots.pair_sheet, pairs, captions=captions, serious=[False, True, False], title="t", columns=2
    )
    (axes,) = figure.axes
    pictures = axes.get_images()
    assert [int(picture.get_array()[0, 0, 0]) for picture in pictures] == [10, 20, 30, 40, 50, 60]
    for picture, text in zip(pictures, [text for text in axes.texts if ": " in text.get_text()], strict=True):
        left, _, bottom, _ = picture.get_extent()
        assert text.get_position()[0] == pytest.approx(left)
        assert 0 < bottom - text.get_position()[1] < 0.1
    assert [text.get_text() for text in axes.texts] == [text for caption in captions for text in caption]
    widths = [frame.get_linewidth() for frame in axes.patches]
    assert widths[0] == widths[2] < widths[1]
    colours = [frame.get_edgecolor() for frame in axes.patches]
    assert colours[0] == colours[2] != colours[1]
    orange, grey = colours[1], colours[0]
    assert orange[0] > 2 * orange[2]
    assert grey[0] == grey[1] == grey[2]


def test_pairs_without_a_flag_each_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pairs, captions, serious: 1, 1, 2, must be equally many"):
        audit_plots.pair_sheet(
            [(tile(0), tile(1))], captions=[("", "", "")], serious=[True, False], path=tmp_path / "x.png", title=""
        )
