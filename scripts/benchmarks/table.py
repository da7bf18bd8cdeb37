"""The table of measured rows in Markdown, and the commit that was measured; nothing of sscl is imported here."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Row = dict[str, Any]


def commit() -> str | None:
    """Return the commit of this checkout, -dirty when files differ from it; None where git does not say."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def table(rows: list[Row]) -> list[str]:
    """Return the lines of the table of rows with their verdicts."""
    head = ["what", "ours", "theirs", "unit", "ratio", "target", "result"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        theirs = f"{number(row['theirs'])} ({row['peer']})" if row["peer"] else number(row["theirs"])
        result = ": ".join(part for part in (row["verdict"], row["note"]) if part)
        cells = [row["what"], number(row["ours"]), theirs, row["unit"], number(row["ratio"]), row["target"], result]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def number(value: float | None) -> str:
    """Return three digits of a number, an en dash for none."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
