"""slide.html: one slide with the answers to its tiles, in one file that opens from disk.

The viewer is OpenSeadragon; slide, map and worksheet are the page's own. n tiles, K classes.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from sscl.plots.cam import heatmap_rgb
from sscl.report.blocks import sentence
from sscl.report.page import MARK, parts
from sscl.report.slide_cam import cam_layer
from sscl.report.slide_picture import Squares, in_squares
from sscl.report.slide_record import PredictedSlide
from sscl.report.slide_strip import groups
from sscl.words import count

BASE_MPP = 4.0  # µm per pixel of the picture in the page; coarser where the page would be too large
PAGE_BYTES = 19_500_000  # of a page, at most
_OWN_BYTES = 600_000  # of its scripts, style and text
_ROUNDED = 1.01  # pixels that corners on a grid are off it: two were rounded
_MOST_CELLS = 1_000  # along an axis, of tiles that lie on no grid
_UNKNOWN = 255  # percent of tissue
VIEWER = "openseadragon/openseadragon.min.js"
LICENCE = "openseadragon/LICENSE.txt"
STYLES = ("base.css", "review.css", "slide.css")
# In this order: a rule or name of one may be used by later ones.
SCRIPTS = (
    "basics.js",
    "slide_state.js",
    "csv.js",
    "worksheet.js",
    "blind.js",
    "slide_map.js",
    "slide_cam.js",
    "slide_view.js",
    "slide_tile.js",
    "slide_strip.js",
    "slide_start.js",
)


@dataclass(frozen=True, eq=False)
class SlideContent:
    """What the page shows. Coordinates are pixels of level 0, of the file's origin.

    Attributes:
        record: slide.json. xy: top-left corners of the tiles, int32 (n, 2).
        coverage: tissue in each, percent, (n,); negative: not known. probabilities: calibrated, float32 (n, K).
        decided: whether the classifier answers, bool (n,).
        base: the slide in small, RGB, uint8 (h, w, 3), at BASE_MPP or coarser (as `Readers.overview` gives it); None
            where a server gives its pixels.
        base_factor: pixels of level 0 that one pixel of it spans, along x and y.
        pictures: JPEG of tiles, by row, for those of `strip_rows`; without one a tile has no picture in the strip.
        blind: whether the page opens in blind review.
        predicted: whether these are answers; else the only class is "tissue" (its probability is its share of a tile),
            or there are no tiles.
        cam: the heatmap of `record.cam`, float32 (rows, columns), NaN: no tile; None: there is none.
    """

    record: PredictedSlide
    xy: NDArray[np.int32]
    coverage: NDArray[np.integer]
    probabilities: NDArray[np.float32]
    decided: NDArray[np.bool_]
    base: NDArray[np.uint8] | None = None
    base_factor: tuple[float, float] = (1.0, 1.0)
    pictures: Mapping[int, bytes] = field(default_factory=dict)
    blind: bool = False
    predicted: bool = True
    cam: NDArray[np.float32] | None = None


def page_of(content: SlideContent, *, served: Squares | None = None) -> str:
    """Return the page as HTML; written as UTF-8, it needs nothing beside it.

    Args:
        served: squares that a server makes, instead of those of `content.base`.
    """
    record = content.record
    shown = _shown(content)
    notes = [sentence(note) for note in record.notes]
    if served is None:
        assert content.base is not None
        taken = _OWN_BYTES + len(parts.data(shown))
        squares, reduced = in_squares(content.base, content.base_factor, most_bytes=PAGE_BYTES - taken)
        shown["base"] = squares
        notes.append(
            f"The picture of the slide has {content.base_factor[0] * record.mpp * reduced:.3g} µm per pixel; "
            f"`sscl slides view FOLDER` shows all of its {record.mpp:.3g}, on a computer that has the slide."
        )
    else:
        shown["base"] = served
    style = parts.style(*STYLES)
    viewer, script = _viewer(), parts.script(*SCRIPTS)
    images = "data: blob:" if served is None else "'self' data: blob:"
    return parts.page(
        "slide.html.jinja",
        mark=Markup(MARK),
        policy=parts.policy(style, viewer, script, images=images, types="default"),
        style=Markup(style),
        viewer=Markup(viewer),
        script=Markup(script),
        licence=parts.read(LICENCE),
        data=parts.data(shown),
        record=record,
        notes=notes,
        predicted=content.predicted,
        facts=_facts(record, predicted=content.predicted),
        subtitle=subtitle(record, predicted=content.predicted),
        kept_where="" if served is None else ", at this address and port",
    )


def key_of(content: SlideContent) -> str:
    """Return what worksheets call this page: 16 hexadecimal digits, of the slide, its tiles and their answers."""
    digest = hashlib.sha256()
    for text in (content.record.quickhash, content.record.name, *content.record.classes):
        digest.update(text.encode("utf-8", "backslashreplace") + b"\0")
    digest.update(np.ascontiguousarray(content.xy, "<i4").tobytes())
    digest.update(_in_steps(content.probabilities).tobytes())
    return digest.hexdigest()[:16]


def _viewer() -> str:
    """Return OpenSeadragon without the comment that makes a browser's tools look for another file."""
    return "".join(line for line in parts.read(VIEWER).splitlines(True) if not line.startswith("//# sourceMapping"))


def _shown(content: SlideContent) -> dict[str, object]:
    """Return the data of the scripts, all but the picture of the slide."""
    record = content.record
    origin = (0, 0) if record.bounds is None else record.bounds[:2]
    return {
        "id": key_of(content),
        "name": record.name,
        "slide": {  # columns of its worksheet
            "slide": record.name,
            "quickhash": record.quickhash,
            "tile_um": f"{record.size_px * record.tile_mpp:g}",
        },
        "size": [record.width, record.height],
        "bounds": record.bounds or [0, 0, record.width, record.height],
        "origin": origin,
        "mpp": record.mpp,
        "footprint": record.footprint,
        "classes": record.classes,
        "colours": record.colours,
        "positive": None if record.positive is None else record.classes.index(record.positive),
        "threshold": record.threshold,
        "decideFrom": record.decide_from,
        "xy": _packed(np.ascontiguousarray(content.xy, "<i4")),
        "probabilities": _packed(_in_steps(content.probabilities)),
        "coverage": _packed(np.where(content.coverage < 0, _UNKNOWN, content.coverage).astype(np.uint8)),
        "decided": _packed(content.decided.astype(np.uint8)),
        "grid": _grid(content.xy, record.footprint),
        "ramp": _packed(heatmap_rgb(np.arange(256)[None] / 255)),
        "groups": [
            {"label": group.label, "rows": group.rows}
            for group in (groups(content.probabilities, content.xy, record.footprint) if content.predicted else ())
        ],
        "pictures": {row: base64.b64encode(jpeg).decode() for row, jpeg in content.pictures.items()},
        "damaged": [[damage.x, damage.y] for damage in record.damaged],
        "blind": content.blind,
        "predicted": content.predicted,
        "cam": _cam(content),
    }


def _cam(content: SlideContent) -> dict[str, object] | None:
    record = content.record
    if record.cam is None or content.cam is None:
        return None
    return cam_layer(record.cam, content.cam, dict(zip(record.classes, record.colours, strict=True)))


def _in_steps(probabilities: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return probabilities in steps of 1/65535."""
    return np.rint(np.clip(probabilities, 0, 1) * 65535).astype("<u2")


def _packed(values: NDArray[np.generic]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _grid(xy: NDArray[np.int32], footprint: float) -> dict[str, list[float]]:
    """Return the cells of the map: where they begin, their side, how many there are, and how many a tile spans.

    Tiles on a grid, overlapping or not, span whole cells; of others the cells are so small that it does not show.
    """
    axes = [_axis(xy[:, axis], footprint) for axis in (0, 1)]
    return {key: [axis[at] for axis in axes] for at, key in enumerate(("start", "side", "cells", "span"))}


def _axis(corners: NDArray[np.int32], footprint: float) -> tuple[float, float, int, int]:
    if not len(corners):
        return 0.0, footprint, 0, 1
    start, end = int(corners.min()), int(corners.max())
    from_start = np.unique(corners) - start
    for span in range(1, 11):
        side = footprint / span
        if np.abs(from_start - np.rint(from_start / side) * side).max() <= _ROUNDED:
            break
    else:
        side = max(footprint / span, (end - start + footprint) / _MOST_CELLS)
        span = max(1, round(footprint / side))
    return float(start), side, math.floor((end - start) / side + 0.5) + span, span


def subtitle(record: PredictedSlide, *, predicted: bool) -> str:
    """Return what was done with a slide, in a line."""
    if predicted:
        return f"{count(record.tiles, 'tile')}, classified one by one: no diagnosis of the slide"
    return f"{count(record.tiles, 'tile')}, nothing predicted" if record.tiles else "nothing predicted"


def _facts(record: PredictedSlide, *, predicted: bool) -> list[tuple[str, str]]:
    """Return what is known of the slide and its classifier, a name and a text each."""
    scale = f"{record.mpp:.4g} µm per pixel ({record.mpp_from})" if record.mpp else "µm per pixel not known"
    rows = [("slide", f"{record.width:,} × {record.height:,} px, {scale}")]
    if record.tiles:
        tile_um = record.size_px * record.tile_mpp
        of = f"{record.size_px} px at {record.tile_mpp:g} µm per pixel"
        rows.append(("tiles", f"{record.tiles:,} of {tile_um:.4g} µm ({of})"))
    if predicted:
        decided = "always" if record.decide_from is None else f"from a confidence of {record.decide_from:.3g}"
        rows += [
            ("classifier", record.checkpoint),
            ("answers", decided),
            ("calibrated", f"temperature {record.temperature:.3g}" if record.calibrated else "no"),
            ("regions", f"for QuPath: where a class has a probability of {record.threshold:g} or more"),
        ]
    if record.most_over > 1:
        mean = "; the map is their mean" if predicted else ""
        rows.append(("overlap", f"up to {record.most_over} tiles over a place{mean}"))
    if record.damaged:
        rows.append(("damaged", f"{count(len(record.damaged), 'tile')} could not be read and are crossed out"))
    return rows
