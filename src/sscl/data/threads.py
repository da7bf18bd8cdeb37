"""Work on tiles from all cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sscl.cores import cpu_cores
from sscl.progress import Bar

_JOB = 16  # items

Item = TypeVar("Item")
Result = TypeVar("Result")


def blocks(count: int, size: int, *, desc: str | None) -> Iterator[slice]:
    """Yield 0 .. count - 1 in blocks of `size`, with the progress of what is done with them."""
    with Bar(count, desc=desc, unit="tile") as bar:
        for start in range(0, count, size):
            block = slice(start, min(start + size, count))
            yield block
            bar.update(block.stop - start)


def in_threads(work: Callable[[Item], Result], items: Sequence[Item], *, desc: str | None) -> Iterator[Result]:
    """Yield work(item) in order, computed on all cores; for work that releases the interpreter lock."""
    jobs = [items[start : start + _JOB] for start in range(0, len(items), _JOB)]
    pool = ThreadPoolExecutor(cpu_cores())
    try:
        with Bar(len(items), desc=desc, unit="tile") as bar:
            for found in pool.map(lambda job: [work(item) for item in job], jobs):
                yield from found
                bar.update(len(found))
    finally:
        pool.shutdown(cancel_futures=True)
