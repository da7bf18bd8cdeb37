"""Kills `sscl slides tile` at random points and runs it again; `test_killed_index` runs this.

A program of its own: it forks, which a process with the threads of other tests should not.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from sscl.cli import main

EVENTS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.flock")


def run(words: list[str], *, kill_at: int | None = None) -> tuple[int, int]:
    """Run a command in a child, which is killed before one of its file operations, counted from 0.

    Return how it ended, and of one that was not killed how many there were.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        with os.fdopen(reader) as pipe:
            said = pipe.read()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(said or 0)
    done = 0

    def count(event: str, given: tuple[Any, ...]) -> None:
        nonlocal done
        writes = event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in EVENTS:
            if done == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1

    code = 99
    try:
        sys.addaudithook(count)
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            code = main(words)
    finally:
        os.write(writer, str(done).encode())
        os._exit(code)


def content(index: Path) -> dict[str, bytes]:
    files = (path for path in index.rglob("*") if path.name != "env.json")
    return {path.relative_to(index).as_posix(): path.read_bytes() if path.is_file() else b"" for path in files}


def kill(words: list[str], index: Path, before: Path | None, *, points: int) -> list[int]:
    """Make an index of `before`, killed at random points, and make it again; return the points."""

    def start() -> None:
        shutil.rmtree(index, ignore_errors=True)
        if before is not None:
            shutil.copytree(before, index)

    start()
    code, operations = run(words)
    assert code == 0
    expected = content(index)
    chosen = sorted(random.Random(0).sample(range(operations), min(points, operations)))
    for point in chosen:
        start()
        assert run(words, kill_at=point)[0] == -signal.SIGKILL
        assert run(words)[0] == 0
        assert content(index) == expected
        assert [path.name for path in index.parent.glob(".*")] == []
    return chosen


if __name__ == "__main__":
    os.fsync = lambda fd: None  # the process is killed, not the machine
    slides, other, here = (Path(word) for word in sys.argv[1:4])
    index, before = here / "i", here / "before"
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):  # imports what the children need
        warm = ["slides", "tile", str(slides), f"out={here / 'warm'}", "mpp=2", "size_px=32", "threads=2"]
        main([*warm, "progress=false"])
    shutil.rmtree(here / "warm")
    words = ["slides", "tile", str(slides), f"out={index}", "mpp=2", "size_px=32", "threads=2", "progress=false"]
    anew = kill(words, index, None, points=int(sys.argv[4]))
    shutil.copytree(index, before)
    shutil.copy(other, slides / "a.svs")
    (slides / "b.svs").rename(slides / "sub" / "renamed.svs")
    print(len(anew), len(kill(words, index, before, points=int(sys.argv[5]))))
