"""The data benchmark at toy size: its rows are whole, and its measures see what they should."""

from __future__ import annotations

import os
import sys

import pytest
import torch

import data as bench
import forked


def child(program: str, *words: str) -> str:
    """In place of a start, which takes seconds to import what each of the programs needs."""
    done = forked.run(program, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="some rows are measured on Linux alone")
def test_rows_are_whole(instead):
    instead(bench, child=child)
    cores = os.sched_getaffinity(0)
    rows = bench.measure(quick=True, device=torch.device("cpu"))

    assert all(row["ours"] > 0 for row in rows if "growth" not in row["what"]), rows
    assert [row["target"] for row in rows if row["target"]] == [
        ">= 0.85", ">= 0.85", "< 5 s", "< 5 s", "< 0.3 s", "< 2 s", "< 64 MiB",
    ]  # fmt: skip
    begins, ends = (next(row["ours"] for row in rows if row["what"].endswith(how)) for how in ("begins", "has ended"))
    assert 0 < begins < ends
    assert os.sched_getaffinity(0) == cores


def test_a_measured_process_that_fails_is_told():
    with pytest.raises(RuntimeError, match="a measured process failed: ValueError: no such thing"):
        bench.child("raise ValueError('no such thing')")
