"""Killed at every file operation: the old is whole or the new is, the next call succeeds, and nothing else stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_folder_and_a_file(tmp_path):
    words = [sys.executable, Path(__file__).with_name("kill_points.py"), tmp_path]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    points = [int(line) for line in done.stdout.split()]
    assert len(points) == 4
    assert all(number > 5 for number in points)
