"""What all pictures share: writing a figure, colours, grids, legends, and names that fit and are not read as formulas.

Each function of this package draws one figure and writes it, completely or not at all: as a PNG, or a chart as an SVG
if the `path` ends in .svg, in a folder that must be there. `title` stands above all. Only matplotlib's object
interface is used (no pyplot, no global state), so it works without a display and in threads.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text

from sscl.fonts import lettering
from sscl.words import shortened
from sscl.writing import replacing

ByteArray = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.floating[Any]]

DPI = 140
_MOST_PIXELS = 40_000_000  # of a picture, 160 MB while it is drawn
_LONGEST_SIDE = 16_000
# Okabe & Ito's colours without yellow, which is lost on white; after seven lines the dash pattern changes.
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")


def save_figure(figure: Figure, path: Path) -> None:
    form = "svg" if path.suffix == ".svg" else "png"
    for text in cast("list[Text]", figure.findobj(Text)) if form == "png" else ():
        if (file := lettering(text.get_text())[1]) is not None:
            text.set_fontproperties(FontProperties(fname=file, size=text.get_fontsize()))
    with writing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph ")  # a letter of an SVG, for which the browser has a font
        # "tight" keeps what stands outside the axes, such as a long legend, inside the picture.
        figure.savefig(temporary, format=form, bbox_inches="tight", pad_inches=0.08, dpi=_dpi(figure))


def _dpi(figure: Figure) -> float:
    """Return the figure's pixels per inch, fewer where it would have too many in all."""
    width, height = figure.get_size_inches()
    return float(min(figure.dpi, math.sqrt(_MOST_PIXELS / (width * height)), _LONGEST_SIDE / max(width, height)))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write; the picture appears completely or not at all.

    Raises:
        FileNotFoundError: the folder of path does not exist.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; create it first")
    with replacing(path) as temporary:
        yield temporary


def line_style(index: int) -> dict[str, Any]:
    return {
        "color": LINE_COLOURS[index % len(LINE_COLOURS)],
        "linewidth": 1.5,
        "linestyle": DASHES[index // len(LINE_COLOURS) % len(DASHES)],
    }


def grid(axes: Axes, **options: Any) -> None:
    """Draw a light grid behind the data. options: as `Axes.grid` has them."""
    axes.grid(**{"color": "0.9", **options})
    axes.set_axisbelow(True)


def band(axes: Axes, x: npt.ArrayLike, low: npt.ArrayLike, high: npt.ArrayLike, *, colour: str) -> None:
    """Shade an interval around a line."""
    axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)


def legend_beside(axes: Axes, **options: Any) -> None:
    """Draw the legend to the right of the axes, where it hides nothing."""
    axes.legend(**{"fontsize": 8, "loc": "upper left", "bbox_to_anchor": (1.01, 1), "frameon": False, **options})


def legend_below(axes: Axes, **options: Any) -> None:
    """Draw the legend below the axes and their label."""
    placed = {"fontsize": 8, "loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "frameon": False}
    axes.legend(**{**placed, "title_fontsize": 8, **options})


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def plain(text: str, length: int | None = None) -> str:
    """Return text that matplotlib draws as it is: a folder named a$b$c is not a formula, a letter no font has no box.

    A chart of a page keeps all letters: the reader's browser has more fonts.

    Args:
        length: characters at most, see `shortened`; None = all.
    """
    shown = _in_letters(text)
    return (shown if length is None else shortened(shown, length)).replace("$", r"\$")


def _in_letters(text: str) -> str:
    return text if matplotlib.rcParams["svg.fonttype"] == "none" else lettering(text)[0]


def wrapped(name: str) -> str:
    """Return a class name for a tick label: at most two lines of about 16 characters."""
    short = shortened(_in_letters(name), 30)
    if len(short) <= 16:
        return plain(short)
    # Class names are folder names: they break at _ and - as well as at spaces.
    breaks = [at + 1 for at, letter in enumerate(short[:17]) if letter in " _-/."]
    at = breaks[-1] if breaks and len(short) - breaks[-1] <= 18 else (len(short) + 1) // 2
    return plain(f"{short[:at]}\n{short[at:]}")


def caption(text: str, length: int) -> str:
    return "\n".join(plain(line, length) for line in text.split("\n"))
