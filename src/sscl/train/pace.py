"""What a training loop does besides training: how often, how long it takes, and what is written meanwhile."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import torch

from sscl.models.checkpoint import Checkpoint

T = TypeVar("T")


class Pace:
    """Wall time of a loop over epochs: when to measure again, and how much of it was training.

    Args:
        every_seconds: between two measurements; 0 = after every epoch.
    """

    def __init__(self, every_seconds: float) -> None:
        self._every = every_seconds
        self._started = self._measured = self._logged = time.perf_counter()
        self._trained = 0.0

    def due(self, *, last: bool) -> bool:
        """Return whether to measure after this epoch; always after the last one."""
        return last or time.perf_counter() - self._measured >= self._every

    def measured(self) -> None:
        """Tell that a measurement is over."""
        self._measured = time.perf_counter()

    def busy(self, seconds: float) -> float:
        """Return which fraction of the wall time since the call before (the start) the `seconds` of training are."""
        now = time.perf_counter()
        since, self._logged = now - self._logged, now
        self._trained += seconds
        return seconds / since

    def line(self, what: str = "training steps") -> str:
        """Return how much of the loop so far was training, in words; what: it was."""
        wall = time.perf_counter() - self._started
        return f"{self._trained / wall:.0%} of {wall:.1f} s were {what}; the rest measured, drew and wrote"


@dataclass(frozen=True)
class _Task:
    """What the thread has to do, and whether it writes all files of its epoch."""

    future: Future[None]
    whole: bool


class Writer:
    """A thread that writes while the loop trains on; of what waits to be written, only the newest is.

        with Writer() as writer:
            for epoch in ...:
                writer.put(copied, written)

    At the end of the context everything is written. An error of the thread is raised by the next `put`, or there.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._tasks: list[_Task] = []

    def put(self, take: Callable[[], T], write: Callable[[T], None], *, whole: bool = True) -> None:
        """Call `take` at once, and `write` in the thread with what it returned.

        What is still waiting goes first, so that there are never more than two copies in memory.

        Args:
            whole: whether it writes every file that an earlier one may write; what waits and writes more than this
                one stays then, a third copy.
        """
        # The newest first: what was put after a task relies on it.
        waiting = [task for task in reversed(self._tasks) if (whole or not task.whole) and task.future.cancel()]
        self._tasks = [task for task in self._tasks if task not in waiting]
        for task in self._tasks:
            if task.future.done():
                task.future.result()
        self._tasks = [task for task in self._tasks if not task.future.done()]
        self._tasks.append(_Task(self._pool.submit(write, take()), whole))

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown()  # also after an error of the loop: its message may name what is being written
        if kind is None:
            for task in self._tasks:
                task.future.result()


def on_host(checkpoint: Checkpoint) -> Checkpoint:
    """Return a copy on the CPU that training leaves as it is, to be written while it goes on.

    Tensors that share their values, as the encoder and the whole model do, share them in the copy too.
    """
    copies: dict[tuple[object, ...], torch.Tensor] = {}
    devices: set[torch.device] = set()

    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            found = copy.copy(value)  # with what torch notes on a module's state
            found.update({key: copied(part) for key, part in value.items()})
            return found
        if isinstance(value, list):
            return [copied(part) for part in value]
        if not isinstance(value, torch.Tensor):
            return value
        # Of the value as given, whose memory is its own while this runs: that of a temporary could be another's next.
        key = (value.untyped_storage()._cdata, value.storage_offset(), value.shape, value.stride())
        if key not in copies:
            value = value.detach()
            cuda = value.device.type == "cuda"  # pinned memory, so that all copies are under way at once
            copies[key] = torch.empty_like(value, device="cpu", pin_memory=cuda).copy_(value, non_blocking=cuda)
            if cuda:
                devices.add(value.device)
        return copies[key]

    kept = dataclasses.replace(
        checkpoint,
        encoder=copied(checkpoint.encoder),
        head=copied(checkpoint.head),
        model=copied(checkpoint.model),
        optimizer=copied(checkpoint.optimizer),
        scaler=copied(checkpoint.scaler),
    )
    for device in devices:
        torch.cuda.synchronize(device)
    return kept
