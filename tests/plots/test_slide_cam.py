"""The picture of a slide's heatmap, to the colour of a pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sscl.plots.slide_cam import draw_cam

RED, BLUE = (200, 0, 0), (0, 0, 200)


@pytest.mark.parametrize(("least", "middle"), [(0.0, 0.5), (1.0, 0.0)])
def test_colours_say_how_far_a_value_is_on_the_scale(tmp_path: Path, number: Any, least: float, middle: float) -> None:
    """Beside the region as it is; a negative value has a colour where 0 has none."""
    number(cam_picture=40)
    values = np.repeat(np.array([2.0 + least, 1.0, -1.0, np.nan], np.float32), 10)[None].repeat(40, 0)
    draw_cam(
        tmp_path / "cam.png",
        np.full((40, 40, 3), 200, np.uint8),
        values,
        **{"name": "a.svs", "title": "t", "ends": ("A", "B"), "colours": {"A": RED, "B": BLUE}},
        **{"scale": (least, 2.0 + least), "unit": "", "mpp": 1.0, "notes": ()},
    )
    drawn = np.asarray(Image.open(tmp_path / "cam.png")).astype(float)
    assert (drawn[:40, :40] == 200).all()
    grey = 255 - 0.75 * 55
    shares = ((1.0, RED), (middle, RED), (0.5 if least == 0 else 0.0, BLUE), (0.0, RED))
    for place, (share, colour) in enumerate(shares):
        expected = grey * (1 - 0.9 * share) + 0.9 * share * np.array(colour)
        assert np.abs(drawn[:40, 48 + 10 * place :][:, :10] - expected).max() <= 0.5
