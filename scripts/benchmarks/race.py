"""Time several ways of doing the same, side by side in one run: their ratios mean something, their seconds less."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def race(contenders: Mapping[str, Callable[[], object]], *, seconds: float = 10.0, least: int = 3) -> dict[str, float]:
    """Return the median seconds a call of each contender.

    They take turns, call by call, so that whatever else the machine does meets all of them alike. One call of each goes
    before, unmeasured.

    Args:
        contenders: name and function; work on a GPU is waited for.
        seconds: how long the whole race lasts, about.
        least: rounds that are run in any case.
    """
    for run in contenders.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(taken.values()))) < least:
        for name, run in contenders.items():
            finish()
            started = time.perf_counter()
            run()
            finish()
            taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in taken.items()}


def finish() -> None:
    """Wait until the GPU, if there is one, has done all it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
