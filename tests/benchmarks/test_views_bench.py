from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest
import torch

import views

CPU = torch.device("cpu")
KEYS = {"what", "ours", "peer", "theirs", "unit", "ratio", "target", "note"}


def test_rows_at_toy_size():
    rows = views.measure(quick=True, device=CPU)
    assert all(set(row) == KEYS for row in rows)
    timed = [row for row in rows if row["unit"] == "ms a view"]
    assert [row["what"] for row in timed] == ["two views at 24 px, one core"] * 2
    assert all(row["ours"] > 0 for row in timed)
    for row, peer in zip(timed, ("lightly", "kornia"), strict=True):
        assert row["peer"].startswith(peer)
        if find_spec(peer) is None:
            assert row["ratio"] is None
            assert "scripts/bench installs it" in row["note"]
        else:
            assert row["ratio"] == pytest.approx(row["theirs"] / row["ours"])


def test_times_are_of_a_view_and_the_ratio_says_how_often_faster(instead):
    seen = {}

    def race(contenders, *, seconds):
        seen.update(contenders, seconds=seconds, threads=torch.get_num_threads())
        return {"ours": 0.004, "kornia": 0.012}

    instead(views, race=race)
    instead(views, version=lambda name: "9.9")
    before = torch.get_num_threads()
    with views.one_core():
        (row,) = views.times(views.tiles(2, 24), {"kornia": lambda images: lambda: images}, seconds=3.0)
    assert torch.get_num_threads() == before
    assert seen["threads"] == 1
    assert row["ours"] == pytest.approx(1.0)  # 4 ms for two views of two tiles
    assert row["theirs"] == pytest.approx(3.0)
    assert row["ratio"] == pytest.approx(3.0)
    assert row["peer"] == "kornia 9.9"


def test_targets_are_of_the_size_they_were_set_for(instead):
    instead(views, race=lambda contenders, *, seconds: {"ours": 1.0})
    missing = {"lightly": lambda images: None, "kornia": lambda images: None}
    assert [row["target"] for row in views.times(views.tiles(1, 224), missing, seconds=1)] == [">= 2.5", "> 1"]
    assert [row["target"] for row in views.times(views.tiles(1, 64), missing, seconds=1)] == ["", ""]


def test_without_kornia_the_values_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    (row,) = views.values(views.tiles(4, 24))
    assert row["ours"] is None
    assert "kornia is not installed" in row["note"]


def test_operations_give_the_values_of_kornia():
    pytest.importorskip("kornia", reason="a peer; see scripts/bench")
    rows = views.values(views.tiles(4, 40))
    assert len(rows) == 6
    # Kornia's luma is 0.299, 0.587, 0.114, torchvision's and ours begins with 0.2989.
    assert all(row["ours"] < 5e-5 for row in rows), rows
