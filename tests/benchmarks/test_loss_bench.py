"""The loss's benchmark at toy size: its rows are whole, and the losses it races are the same loss."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import forked
import loss
import main

CPU = torch.device("cpu")
KEYS = {"what", "ours", "peer", "theirs", "unit", "ratio", "target", "note"}


def test_rows_are_whole(instead):
    instead(loss, lightlys_loss=lambda: ("lightly", None), child=lambda *n: forked.run(Path(loss.__file__), *n).stdout)
    time, lightly, fp32, fp64, memory = loss.measure(quick=True, device=CPU)
    assert all(set(row) == KEYS for row in (time, lightly, fp32, fp64, memory))
    assert time["ratio"] == pytest.approx(time["ours"] / time["theirs"])
    assert time["target"] == "<= 1.3"
    assert (lightly["theirs"], lightly["ratio"]) == (None, None)
    assert "not installed" in lightly["note"]
    assert 0 < fp32["ours"] < 1e-5
    assert fp64["ours"] < 1e-12
    assert memory["target"] == "<= 1 GiB"


def test_the_dense_form_and_a_peer_are_the_same_loss(instead):
    a, b = loss.projections(64, 16, device=CPU)
    assert loss.dense(a, b).item() == pytest.approx(loss.ours(a, b).item(), rel=1e-6)
    instead(loss, lightlys_loss=lambda: ("lightly 0", loss.dense))
    _, row = loss.times(64, 16, device=CPU, seconds=0.1)
    assert row["ratio"] == pytest.approx(row["theirs"] / row["ours"])
    first, second = map(float, row["note"].removeprefix("values ").split(" and "))
    assert first == pytest.approx(second, rel=1e-6)  # the last of its digits is rounded as the CPU sums


def test_a_wrong_loss_shows_as_a_difference(instead):
    honest = loss.dense
    instead(loss, dense=lambda a, b: honest(a, 1.01 * a + b))
    rows = loss.differences(64, 16, device=CPU)
    assert all(row["ours"] > 1e-3 for row in rows)
    assert {main.verdict(row, quick=False) for row in rows} == {main.MISSED}
    assert {main.verdict({**row, "ours": 1e-13}, quick=False) for row in rows} == {main.REACHED}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_of_a_process_is_that_of_the_call():
    # Called twice, as the first call of a fork also counts torch's own pages.
    code = """
import loss, torch
held = lambda: torch.ones(2**24)
print(loss.peak_of_this_process(held), loss.peak_of_this_process(held))
"""
    done = forked.run(code, env={"PYTHONPATH": str(Path(loss.__file__).parent)})
    assert int(done.stdout.split()[1]) == pytest.approx(2**26, rel=0.05), done.stderr
