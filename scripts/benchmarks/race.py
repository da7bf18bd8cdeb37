"""Time several ways of doing the same in one run: the ratios are more reliable than the seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def race(contenders: Mapping[str, Callable[[], object]], *, seconds: float = 10.0, least: int = 3) -> dict[str, float]:
    """Return the median seconds a call of each contender.

    They take turns, call by call, so that other load on the machine affects all of them equally. One call of each comes
    first, unmeasured.

    Args:
        contenders: name and function; work on a GPU is waited for.
        seconds: about how long the whole race lasts.
        least: the minimum number of rounds.
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
    """Wait until the GPU, if there is one, has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
