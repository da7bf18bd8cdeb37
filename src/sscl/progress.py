"""Progress of long work, on stderr: a bar on a terminal or in a notebook; elsewhere, as in a log file or a pipe, a
plain line about once a minute, and none for work that takes less.

The only place that draws bars. There are no colours, so NO_COLOR changes nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from tqdm import tqdm

LINE_SECONDS = 60.0

Item = TypeVar("Item")


class Bar:
    """The progress of one piece of work; a context manager.

    Args:
        total: how much there is to do, None where that is unknown.
        desc: what is done, as in "decode"; None = show nothing.
        unit: what is counted, in the singular; "B" = bytes.
        done: how much was done before.
        leave: whether the bar stays on the terminal when the work is done.
        clock: seconds that pass; for tests.
    """

    def __init__(
        self,
        total: int | None,
        *,
        desc: str | None,
        unit: str,
        done: int = 0,
        leave: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._desc, self._unit, self._total = desc, unit, total
        self._first = self._done = done
        self._note, self._clock = "", clock
        self._start = clock()
        self._due = self._start + LINE_SECONDS
        self._drawn: tqdm[Any] | None = None
        if desc is not None and _can_draw():
            size: dict[str, Any] = {"unit_scale": True, "unit_divisor": 1024} if unit == "B" else {}
            shown = " tiles" if unit == "tile" else unit
            self._drawn = tqdm(
                total=total, initial=done, desc=desc, unit=shown, leave=leave, dynamic_ncols=True, **size
            )

    def update(self, more: int = 1) -> None:
        """Count more work as done."""
        self._done += more
        if self._drawn is not None:
            self._drawn.update(more)
        elif self._desc is not None and (now := self._clock()) >= self._due:
            self._due = now + LINE_SECONDS
            print(self._line(now - self._start), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Show a text behind the numbers, as in "loss 4.278"."""
        self._note = text
        if self._drawn is not None:
            self._drawn.set_postfix_str(text, refresh=False)

    def write(self, text: str) -> None:
        """Print a line to stdout without breaking the bar."""
        if self._drawn is not None:
            self._drawn.write(text)
        else:
            print(text)

    def close(self) -> None:
        if self._drawn is not None:
            self._drawn.close()

    def _line(self, seconds: float) -> str:
        of = "" if self._total is None else f" of {self._amount(self._total)}"
        parts = [f"{self._desc}: {self._amount(self._done)}{of}{'' if self._unit == 'B' else f' {self._unit}s'}"]
        if self._total:
            parts[0] += f" ({self._done / self._total:.0%})"
        parts.append(f"{tqdm.format_interval(seconds)} so far")
        if self._total is not None and self._done > self._first:
            left = seconds * (self._total - self._done) / (self._done - self._first)
            parts.append(f"about {tqdm.format_interval(max(left, 0))} left")
        return ", ".join([*parts, *([self._note] if self._note else [])])

    def _amount(self, number: int) -> str:
        return f"{number / 2**20:.1f} MiB" if self._unit == "B" else f"{number:,}"

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def over(items: Iterable[Item], *, total: int, desc: str | None, unit: str) -> Iterator[Item]:
    """Yield the items, with their progress; `desc`: see `Bar`."""
    with Bar(total, desc=desc, unit=unit) as bar:
        for item in items:
            yield item
            bar.update()


def _can_draw() -> bool:
    """Return whether stderr understands the control characters of a bar."""
    if sys.stderr is None:
        return False
    kernel = sys.modules.get("ipykernel")  # a notebook: its stderr is no terminal, but redraws a line
    return kernel is not None or (sys.stderr.isatty() and os.environ.get("TERM") != "dumb")
