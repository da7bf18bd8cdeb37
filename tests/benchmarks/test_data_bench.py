"""The data benchmark at toy size: its rows are whole, and its measures see what they should."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
import torch

import data as bench


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="some rows are measured on Linux alone")
def test_rows_are_whole():
    cores = os.sched_getaffinity(0)
    rows = bench.measure(quick=True, device=torch.device("cpu"))

    assert all(row["ours"] > 0 for row in rows if "growth" not in row["what"]), rows
    assert [row["target"] for row in rows if row["target"]] == [
        ">= 0.85", ">= 0.85", "< 5 s", "< 5 s", "< 0.3 s", "< 2 s", "< 64 MiB",
    ]  # fmt: skip
    begins, ends = (next(row["ours"] for row in rows if row["what"].endswith(how)) for how in ("begins", "has ended"))
    assert 0 < begins < ends
    assert os.sched_getaffinity(0) == cores


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_reading_through_the_mapping_shows_in_the_memory(tmp_path):
    bench.write_tiles(tmp_path / "x.npy", 15_000, size_px=56)  # 135 MiB, in blocks of which the last is not full
    images = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(images[12_345], images[2_345])

    read = json.loads(bench.child(bench.READ, str(tmp_path / "x.npy")))

    assert read["file"][1] < 15
    assert read["mapping"][1] > 60


def test_a_measured_process_that_fails_is_told():
    with pytest.raises(RuntimeError, match="a measured process failed: ValueError: no such thing"):
        bench.child("raise ValueError('no such thing')")
