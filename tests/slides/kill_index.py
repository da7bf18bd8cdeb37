"""Kills the making of an index at random points and makes it again; `test_killed_index` runs this.

A program of its own: it forks, and imports no torch, so that a child is a matter of milliseconds.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sscl import writing
from sscl.slides.indexing import Source, Wanted
from sscl.slides.update import carry_out, make_plan

EVENTS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.flock")


def run(action: Callable[[], Any], *, kill_at: int | None = None) -> tuple[int, int]:
    """Do something in a child, which is killed before one of its file operations, counted from 0.

    Return how it ended, and of one that was not killed how many there were.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        with os.fdopen(reader) as pipe:
            said = pipe.read()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(said or 0)
    done, code = 0, 1

    def count(event: str, given: tuple[Any, ...]) -> None:
        nonlocal done
        writes = event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in EVENTS:
            if done == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1

    try:
        sys.addaudithook(count)
        action()
        code = 0
    finally:
        os.write(writer, str(done).encode())
        os._exit(code)


def make(index: Path, slides: Path) -> None:
    """As the command does once its folder is there, which takes one step (`tests/test_killed`)."""
    wanted = Wanted(mpp=2.0, size_px=32, min_coverage=0.5, overlap=0)
    sources = [Source(path.relative_to(slides).as_posix(), str(path)) for path in sorted(slides.rglob("*.svs"))]
    with writing.holding(index):
        carry_out(index, make_plan(index, sources, wanted, threads=2), wanted, {}, threads=2)


def content(index: Path) -> dict[str, bytes]:
    return {str(path.relative_to(index)): path.read_bytes() if path.is_file() else b"" for path in index.rglob("*")}


def kill(index: Path, slides: Path, before: Path, *, points: int) -> list[int]:
    """Make an index of `before`, killed at random points, and make it again; return the points."""

    def start() -> None:
        shutil.rmtree(index, ignore_errors=True)
        shutil.copytree(before, index)

    start()
    code, operations = run(lambda: make(index, slides))
    assert code == 0
    expected = content(index)
    chosen = sorted(random.Random(0).sample(range(operations), points))
    for point in chosen:
        start()
        assert run(lambda: make(index, slides), kill_at=point)[0] == -signal.SIGKILL
        assert run(lambda: make(index, slides))[0] == 0
        assert content(index) == expected, point
        assert [path.name for path in index.parent.glob(".*")] == []
    return chosen


if __name__ == "__main__":
    os.fsync = lambda fd: None  # the process is killed, not the machine
    slides, other, here = (Path(word) for word in sys.argv[1:4])
    (here / "empty" / "slides").mkdir(parents=True)
    make(here / "empty", slides)  # imports what the children need
    shutil.rmtree(here / "empty")
    (here / "empty" / "slides").mkdir(parents=True)
    anew = kill(here / "i", slides, here / "empty", points=int(sys.argv[4]))
    shutil.copytree(here / "i", here / "before")
    shutil.copy(other, slides / "a.svs")
    (slides / "b.svs").rename(slides / "sub" / "renamed.svs")
    changed = kill(here / "i", slides, here / "before", points=int(sys.argv[5]))
    assert {"b.svs.json", "renamed.svs.json"} & {path.name for path in here.rglob("i/slides/**/*")} == {
        "renamed.svs.json"
    }
    print(len(anew), len(changed))
