"""The table of twins at toy size."""

from __future__ import annotations

import duplicates


def test_rows_are_whole():
    rows = duplicates.measure(3)
    assert [row["kind"] for row in rows] == list(duplicates.KINDS)
    assert all(0 <= row["found"] <= 3 and row["false"] == 0 for row in rows)
    assert rows[0]["found"] == 3
