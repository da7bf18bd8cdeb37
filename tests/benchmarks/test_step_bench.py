"""The step's benchmark at toy size: its rows are whole, and what it races does the same work."""

from __future__ import annotations

import torch

import step


def test_rows_are_whole():
    rows = step.measure(quick=True, device=torch.device("cpu"))

    measured = [row for row in rows if row["ratio"] is not None]
    assert all(row["ours"] > 0 and row["ratio"] > 0 for row in measured)
    assert sum("synthetic" in row["what"] for row in measured) == 1
    assert sum("caching, time" in row["what"] for row in measured) == 1
    for row in rows:
        assert row["ratio"] is not None or row["note"], row


def test_the_step_that_is_timed_trains():
    case = step.Case("resnet18", "standard", 16, 4)  # timm's begin with weights that have no gradient yet
    own, run = step.our_step(case, step.some_tiles(case), device=torch.device("cpu"))
    before = [p.detach().clone() for p in own.model.parameters()]

    run()

    assert all(not torch.equal(a, b) for a, b in zip(before, own.model.parameters(), strict=True))
