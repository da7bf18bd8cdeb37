"""Killed at every file operation: the old is whole or the new is, the next call succeeds, and nothing else stays."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sscl import run, writing
from sscl.config import DemoConfig

OPERATIONS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "fcntl.flock")
OLD, NEW = {"a": "old", "sub/b": "old"}, {"a": "new"}


def killed(action: Callable[[], Any], *, before: int) -> bool:
    """Do something in a process that dies, without a last word, before one of its file operations, counted from 0."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = before

    def count(event: str, given: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in OPERATIONS or event.startswith("ctypes.dlsym"):  # the latter: renameat2
            left -= 1
            if left < 0:
                os._exit(9)

    try:
        sys.addaudithook(count)
        action()
    finally:
        os._exit(0)


def fill(folder: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (folder / name).parent.mkdir(exist_ok=True)
        writing.write_text(folder / name, text)


def write(path: Path, content: dict[str, str]) -> None:
    with run.whole_folder(path, DemoConfig(run="x"), overwrite=True, trains=True) as folder:
        fill(folder, content)


def content_of(folder: Path) -> dict[str, str]:
    found = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert {"env.json", "config.yaml"} <= found.keys()  # a folder under the name of a run is always known as ours
    del found["env.json"], found["config.yaml"]
    return found


@pytest.mark.parametrize(("there", "exchange"), [(True, True), (True, False), (False, True)])
def test_a_folder(tmp_path, wrap, there, exchange):
    wrap(sync=lambda real, handle: None)  # the process is killed, not the machine
    if not exchange:
        wrap(exchange=lambda real, a, b: False)
    path = tmp_path / "runs" / "x"
    points = 0
    while True:
        if there:
            write(path, OLD)
        elif path.is_dir():
            shutil.rmtree(path)
        if not killed(lambda: write(path, NEW), before=points):
            break
        points += 1
        if exchange or not there:
            assert not path.exists() or content_of(path) in (OLD, NEW)
        with run.holding(path):  # as every command does before it looks
            assert content_of(path) in (OLD, NEW) if there else not path.exists() or content_of(path) == NEW
        write(path, NEW)
        assert content_of(path) == NEW
        assert list((tmp_path / "runs").iterdir()) == [path]
    assert points > 20
