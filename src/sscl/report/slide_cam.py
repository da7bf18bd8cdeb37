"""The heatmap of a region in the page of its slide: its values in steps, small enough for a page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sscl.data.npz import small_array
from sscl.places import printable
from sscl.plots.slide_cam import end_colours
from sscl.report.slide_record import CAM_FILE, MADE_BY, SlideCam

LONGEST = 400  # values along a side; a map has fewer cells
STEPS = 254  # from the lowest value to the highest, as 1 to 255; 0 is no value


def cam_layer(
    said: SlideCam, values: NDArray[np.float32], colours: Mapping[str, tuple[int, int, int]]
) -> dict[str, object]:
    """Return what the scripts need to draw a region's heatmap over the slide.

    Args:
        values: (h, w), NaN where there is none. colours: of the classes.
    """
    small = smaller(values)
    share = (np.nan_to_num(small) - said.lowest) / max(said.highest - said.lowest, 1e-30)
    steps = np.where(np.isfinite(small), 1 + np.rint(STEPS * np.clip(share, 0, 1)), 0)
    height, width = values.shape
    return {
        "box": [said.x, said.y, width * said.factor, height * said.factor],
        "cells": small.shape[::-1],
        "steps": base64.b64encode(steps.astype(np.uint8).tobytes()).decode(),
        "lowest": said.lowest,
        "highest": said.highest,
        "start": said.scale_start,
        "end": said.scale_end,
        "signed": said.lowest < 0,
        "colours": end_colours(ends_of(said), colours),
        "ends": ends_of(said),
        "method": said.method,
        "explained": f"{said.explained}: {meaning(said.label)}",
        "unit": said.unit,
    }


def meaning(label: str | None) -> str:
    """Return what a heatmap says. label: the class of its score; None: it is the same for every class."""
    if label is None:
        return "it says what the encoder looks at, whatever the class"
    return "it says where the score comes from, not where the lesion is"


def ends_of(said: SlideCam) -> tuple[str | None, str | None]:
    """Return the classes at the ends of the colour scale: the one explained, and the one that it is compared with."""
    return said.label, said.against[0] if len(said.against) == 1 else None


def smaller(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return means of a map over squares, with at most LONGEST along a side; NaN where most of one has no value."""
    height, width = values.shape
    times = max(1.0, max(height, width) / LONGEST)
    size = (max(1, round(width / times)), max(1, round(height / times)))
    known = cv2.resize(np.isfinite(values).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    sums = cv2.resize(np.nan_to_num(values), size, interpolation=cv2.INTER_AREA)
    return np.where(known >= 0.5, sums / np.maximum(known, 0.5), np.nan).astype(np.float32)


def read_cam(folder: Path) -> NDArray[np.float32]:
    """Return the map that `sscl predict` wrote into a slide's folder.

    Raises:
        ValueError, FileNotFoundError: it is not there, or not what it writes, in one line.
    """
    values = small_array(folder / CAM_FILE, "map")
    if values.ndim != 2 or values.dtype != np.float32 or not values.size:
        raise ValueError(f"{printable(str(folder / CAM_FILE))}: map: is no picture of numbers; write it with {MADE_BY}")
    return np.asarray(values, np.float32)
