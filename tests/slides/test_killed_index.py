"""T20: killed at 20 random points, an index is byte for byte the same once the command has run again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from sscl.slides.write import encode_level, write_levels


def test_the_rerun_of_a_killed_command_gives_the_same_index(tmp_path: Path) -> None:
    (tmp_path / "s" / "sub").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    for i, name in enumerate(("s/a.svs", "s/b.svs", "s/sub/a.svs", "other.svs")):
        pixels = np.full((128, 128, 3), (240, 239, 241), np.uint8)
        cv2.circle(pixels, (55 + 5 * i, 64), 40, (200, 130, 180), -1)
        write_levels(tmp_path / name, [encode_level(pixels, tile_px=64)], mpp=2.0)
    words = [tmp_path / "s", tmp_path / "other.svs", tmp_path / "here", "12", "8"]
    program = [sys.executable, Path(__file__).with_name("kill_index.py"), *words]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["12", "8"]
