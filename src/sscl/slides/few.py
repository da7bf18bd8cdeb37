"""Files that are kept open, but few at a time, for any number of threads."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from sscl.places import printable
from sscl.slides.records import SlideError
from sscl.words import short

Thing = TypeVar("Thing")


class _Open(Generic[Thing]):
    """Something open, how many threads use it, and whether it goes once none does."""

    def __init__(self, thing: Thing) -> None:
        self.thing, self.users, self.dropped = thing, 0, False


class Few(Generic[Thing]):
    """What was opened last of many files, and is closed when others come; more than `most` only while all are in use.

    A process that was forked opens its files anew: it has neither the threads nor the places of its parent's.
    """

    def __init__(self, most: int, *, opened: Callable[[str], Thing], closed: Callable[[Thing], None]) -> None:
        self._most, self._opened, self._closed = most, opened, closed
        self._at_end: weakref.finalize[..., Few[Thing]] | None = None
        self.start()
        _ALL.add(self)

    def start(self) -> None:
        """Begin with nothing open, whatever was before; what is then is closed when nobody has this object any more."""
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _Open[Thing]] = OrderedDict()
        if self._at_end is not None:
            self._at_end.detach()
        self._at_end = weakref.finalize(self, _close_all, self._open, self._closed)
        self._at_end.atexit = False

    @contextmanager
    def of(self, path: str) -> Iterator[Thing]:
        """Give what is open of a path; after an exception it is opened anew.

        Raises:
            SlideError: it cannot be opened.
        """
        with self._lock:
            one = self._open.get(path)
            if one is not None:
                self._open.move_to_end(path)
                one.users += 1
        if one is None:
            one = self._new(path)
        try:
            yield one.thing
        except Exception:
            with self._lock:
                one.dropped = True
                if self._open.get(path) is one:
                    del self._open[path]
            raise
        finally:
            with self._lock:
                one.users -= 1
                if one.dropped and not one.users:
                    self._closed(one.thing)

    @contextmanager
    def alone(self, path: str) -> Iterator[Thing]:
        """Give what no other thread uses, and close it afterwards.

        Raises:
            SlideError: it cannot be opened.
        """
        thing = self._made(path)
        try:
            yield thing
        finally:
            self._closed(thing)

    def _new(self, path: str) -> _Open[Thing]:
        """Open a path, outside the lock; if another thread was quicker, take what that one opened."""
        thing = self._made(path)
        with self._lock:
            one = self._open.get(path)
            if one is None:
                one = self._open[path] = _Open(thing)
            else:
                self._closed(thing)
            one.users += 1
            self._close_idle(self._most)
        return one

    def _made(self, path: str) -> Thing:
        """Return what opening a path gives.

        Raises:
            SlideError: it cannot be opened, not even with all other files closed that nobody uses: a system without
                file numbers left says so, openslide then knows of no file.
        """
        try:
            return self._opened(path)
        except Exception:
            for few in list(_ALL):
                few.close()
        try:
            return self._opened(path)
        except Exception as error:
            raise SlideError(f"{printable(path)}: cannot be opened: {short(str(error), most=200)}") from None

    def close(self) -> None:
        """Close all that no thread uses."""
        with self._lock:
            self._close_idle(0)

    def _close_idle(self, most: int) -> None:
        idle = [path for path, one in self._open.items() if not one.users]
        for path in idle[: max(0, len(self._open) - most)]:
            self._closed(self._open.pop(path).thing)


def _close_all(opened: OrderedDict[str, _Open[Thing]], closed: Callable[[Thing], None]) -> None:
    for one in opened.values():
        closed(one.thing)


_ALL: weakref.WeakSet[Few[Any]] = weakref.WeakSet()
_PARENTS: list[Any] = []  # what a forked process must not close: openslide would wait for locks that nobody frees


def _after_fork() -> None:
    for few in list(_ALL):
        _PARENTS.append(few._open)
        few.start()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
