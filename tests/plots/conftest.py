"""The figure that a function draws, to look into."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from sscl.plots import base


@pytest.fixture
def figure_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Figure]:
    """Return a function that gives the figure which a plot function is about to save, after really saving it."""
    save = base.save_figure

    def call(function: Callable[..., None], *args: object, **options: object) -> Figure:
        figures: list[Figure] = []

        def keep(figure: Figure, path: Path) -> None:
            figures.append(figure)
            save(figure, path)

        monkeypatch.setattr(base, "save_figure", keep)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as a glyph that is missing or a layout that failed
            function(*args, path=tmp_path / "figure.png", **options)
        with Image.open(tmp_path / "figure.png") as image:
            assert min(image.size) > 100
        (figure,) = figures
        return figure

    return call
