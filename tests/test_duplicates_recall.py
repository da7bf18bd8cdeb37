"""The table of near-duplicates at toy size."""

from __future__ import annotations

import importlib.util
from importlib.machinery import SourceFileLoader
from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "scripts" / "duplicates_recall"


def test_rows_are_whole() -> None:
    loader = SourceFileLoader("duplicates_recall", str(FILE))
    spec = importlib.util.spec_from_loader("duplicates_recall", loader)
    assert spec is not None
    script = importlib.util.module_from_spec(spec)
    loader.exec_module(script)

    rows = script.measure(3)

    assert [row["kind"] for row in rows] == list(script.KINDS)
    assert all(0 <= row["found"] <= 3 and row["false"] == 0 for row in rows)
    assert rows[0]["found"] == 3
