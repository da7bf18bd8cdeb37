"""How many processor cores there are to use."""

from __future__ import annotations

import os


def cpu_cores() -> int:
    """Return how many processor cores this process may use, which `taskset` or a container may have limited."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
