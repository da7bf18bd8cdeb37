"""Kills a child before each of its file operations and looks at what it left; `test_killed` runs this.

A program of its own: it imports nothing heavy, so that a child is a matter of a millisecond.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sscl import writing

OPERATIONS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "fcntl.flock")
OLD, NEW = {"env.json": "{}", "a": "old", "sub/b": "old"}, {"env.json": "{}", "a": "new"}


def killed(action: Callable[[], Any], *, before: int) -> bool:
    """Do something in a child that dies without a last word before one of its file operations, counted from 0."""
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        return code == 9
    left = before

    def count(event: str, given: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in OPERATIONS or event.startswith("ctypes.dlsym"):  # the last is renameat2
            left -= 1
            if left < 0:
                os._exit(9)

    code = 1
    try:
        sys.addaudithook(count)
        action()
        code = 0
    finally:
        os._exit(code)


def write(path: Path, content: dict[str, str]) -> None:
    with writing.replacing_folder(path) as folder:
        for name, text in content.items():
            (folder / name).parent.mkdir(exist_ok=True)
            writing.write_text(folder / name, text)


def content_of(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def folders(path: Path, *, there: bool, exchange: bool) -> int:
    """Kill the writing of a folder, over an old one or not; return at how many points."""
    if not exchange:
        writing._exchange = lambda a, b: False
    points = 0
    while True:
        if there:
            write(path, OLD)
        elif path.is_dir():
            shutil.rmtree(path)
        if not killed(lambda: write(path, NEW), before=points):
            return points
        points += 1
        if exchange or not there:
            assert not path.exists() or content_of(path) in (OLD, NEW)
        with writing.holding(path):  # as every command does before it looks
            assert content_of(path) in (OLD, NEW) if there else not path.exists() or content_of(path) == NEW
        write(path, NEW)
        assert content_of(path) == NEW
        assert list(path.parent.iterdir()) == [path]


def files(path: Path) -> int:
    """Kill the writing of a file over an old one; return at how many points."""
    points = 0
    while True:
        writing.write_text(path, "old")
        if not killed(lambda: writing.write_text(path, "new"), before=points):
            return points
        points += 1
        assert path.read_text() in ("old", "new")
        with writing.holding(path):
            pass
        assert list(path.parent.iterdir()) == [path]


if __name__ == "__main__":
    os.fsync = lambda fd: None  # the process is killed, not the machine
    here = Path(sys.argv[1])
    print(folders(here / "runs" / "a", there=True, exchange=True))
    print(folders(here / "runs" / "in" / "b", there=False, exchange=True))
    shutil.rmtree(here / "runs")
    print(folders(here / "runs" / "c", there=True, exchange=False))
    (here / "files").mkdir()
    print(files(here / "files" / "d"))
