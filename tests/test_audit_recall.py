"""How much the audit finds, on a small bed of synthetic tiles; the script does the same with real ones."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sscl.data.duplicates import find_pairs
from sscl.data.synthetic import draw_tile

FILE = Path(__file__).resolve().parents[1] / "scripts" / "audit_recall"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = SourceFileLoader("audit_recall", str(FILE))
    spec = importlib.util.spec_from_loader("audit_recall", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["audit_recall"] = module  # dataclasses look their module up
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def originals() -> list[np.ndarray]:
    return [draw_tile(index, seed=0, size_px=224).image for index in range(11)]


def test_altered_copies_are_found_and_nothing_else(script: ModuleType, originals: list[np.ndarray]) -> None:
    bed = script.make_bed(originals, seed=0)
    pairs = find_pairs(bed.images, neighbours=8)
    assert script.false_pairs(bed, pairs) == []
    assert len(pairs) >= 10
    lines = script.table(bed, pairs)
    assert len(lines) == 3 + len(script.KINDS)
    assert f"| all | {len(pairs)} of 11 |" in lines[-1]


def test_quarters_of_a_tile_are_no_pair(script: ModuleType, originals: list[np.ndarray]) -> None:
    tiles = script.quarters(originals[:3])
    assert len(tiles) == 12
    assert find_pairs(tiles) == []


def test_halves_and_distinct_tiles(script: ModuleType, originals: list[np.ndarray]) -> None:
    tiles = [*originals, *(np.ascontiguousarray(tile[:, ::-1]) for tile in originals)]
    halves = [script.half_of(tiles, half) for half in ("choose", "report")]
    assert sum(map(len, halves)) == len(tiles)
    assert min(map(len, halves)) > 5
    again = [originals[0], originals[1], np.ascontiguousarray(originals[0][::-1])]
    assert len(script.distinct(again)) == 2
