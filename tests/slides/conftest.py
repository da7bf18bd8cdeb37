"""A drawn field of 2,000 px that all slide tests share, and the slide it makes; both are made once a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from sscl.data.polyp import draw_polyp, draw_slide_look
from sscl.slides.write import EncodedLevel, Pixels, encode_level, reduced, write_levels

FIELD_MPP = 0.5
FIELD_PX = 2000


@dataclass(frozen=True)
class Field:
    """A piece of tissue on glass.

    pixels: uint8 (FIELD_PX, FIELD_PX, 3), read-only. tissue: bool (FIELD_PX, FIELD_PX), an ellipse. mpp: µm per pixel.
    levels: encoded, factors 1, 4, 16, tiles of 256 px.
    """

    pixels: Pixels
    tissue: np.ndarray[Any, np.dtype[np.bool_]]
    mpp: float
    levels: list[EncodedLevel]


@pytest.fixture(scope="session")
def field() -> Field:
    rng = np.random.default_rng(0)
    polyp, _ = draw_polyp(1.0, draw_slide_look(rng), rng, size_px=1000)
    mask = np.zeros((FIELD_PX, FIELD_PX), np.uint8)
    cv2.ellipse(mask, (1000, 900), (800, 600), 20, 0, 360, 255, -1)
    pixels = np.full((FIELD_PX, FIELD_PX, 3), (241, 240, 243), np.uint8)
    pixels += rng.integers(0, 4, (FIELD_PX // 4, FIELD_PX // 4, 1), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    pixels = np.where(mask[..., None] > 0, np.tile(polyp, (2, 2, 1)), pixels)
    pixels.flags.writeable = False
    levels = [encode_level(pixels if factor == 1 else reduced(pixels, factor)) for factor in (1, 4, 16)]
    return Field(pixels, mask > 0, FIELD_MPP, levels)


@pytest.fixture(scope="session")
def field_svs(field: Field, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The field as an Aperio slide of three levels; not to be changed."""
    path = tmp_path_factory.mktemp("slides") / "field.svs"
    write_levels(path, field.levels, mpp=field.mpp)
    return path


@pytest.fixture
def field_slide(field: Field, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes the field below tmp_path, with the options of `write_levels`."""

    def write(name: str = "field.svs", levels: list[EncodedLevel] | None = None, **options: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_levels(path, field.levels if levels is None else levels, **{"mpp": field.mpp, **options})
        return path

    return write
