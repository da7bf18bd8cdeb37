"""Grad-CAM's benchmark at toy size: its rows are whole, and its comparison of maps can tell."""

from __future__ import annotations

import cv2
import pytest
import torch

import gradcam

CPU = torch.device("cpu")
KEYS = {"what", "ours", "peer", "theirs", "unit", "ratio", "target", "note"}


def test_rows_are_whole_with_one_peer_here_and_one_not(monkeypatch):
    monkeypatch.setitem(gradcam.PEERS, "grad-cam", lambda model: None)
    time, values, their_time, their_values = gradcam.measure(quick=True, device=CPU)
    assert all(set(row) == KEYS for row in (time, values, their_time, their_values))
    for row in (time, values):
        assert (row["theirs"], row["ratio"]) == (None, None)
        assert "grad-cam is not installed" in row["note"]
    assert time["target"] == ">= 3"
    assert values["ours"] is None
    assert their_time["ratio"] == pytest.approx(their_time["theirs"] / their_time["ours"])
    assert their_time["peer"].startswith("torchcam ")
    assert their_values["ours"] < 1e-5


def test_the_difference_of_maps():
    maps = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    same = maps.clamp(min=0) / maps.clamp(min=0).amax((1, 2), keepdim=True)
    assert gradcam.difference(maps, same) < 1e-6
    assert gradcam.difference(3 * maps, same.numpy()) < 1e-6
    assert gradcam.difference(maps.flip(0), same) > 0.1


def test_maps_are_compared_at_the_peers_size():
    maps = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0))
    low, high = maps.min(), maps.max()
    large = cv2.resize(((maps - low) / (high - low))[0].numpy(), (16, 16))
    large = (large - large.min()) / (large.max() - large.min())
    assert gradcam.difference(maps, large[None]) < 1e-6
    assert gradcam.difference(maps, large[None].transpose(0, 2, 1)) > 0.1
