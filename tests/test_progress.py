"""Bars on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from sscl.progress import Bar, over

PROGRAM = """
from sscl.progress import Bar
with Bar(20, desc="decode", unit="tile", leave=True) as bar:
    bar.note("loss 0.5")
    bar.write("a line")
    bar.update(20)
"""


def on_a_terminal(program: str, **environment: str) -> str:
    """What a program that writes to a terminal writes."""
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=other, stderr=other, env={**os.environ, **environment}
    ) as done:
        os.close(other)
        parts = []
        try:
            while part := os.read(main, 4096):
                parts.append(part)
        except OSError:  # Linux: the other end is closed
            pass
        assert done.wait(60) == 0
    os.close(main)
    return b"".join(parts).decode()


def test_a_terminal_gets_a_bar_and_lines_between() -> None:
    written = on_a_terminal(PROGRAM, TERM="xterm", NO_COLOR="1")
    assert "decode: 100%" in written
    assert "\r" in written
    assert "a line\r\n" in written
    assert "\x1b[3" not in written  # no colour


def test_a_terminal_that_cannot_redraw_and_a_pipe_get_no_control_characters() -> None:
    assert on_a_terminal(PROGRAM, TERM="dumb") == "a line\r\n"
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("a line\n", "")


def test_elsewhere_a_line_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = itertools.count(0.0, 10.0)  # the clock is asked once at the start, and at each update
    bar = Bar(120, desc="predict", unit="tile", done=20, clock=lambda: next(seconds))
    bar.note("loss 0.5")
    for _ in range(13):
        bar.update(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "predict: 32 of 120 tiles (27%), 01:00 so far, about 07:20 left, loss 0.5",
        "predict: 44 of 120 tiles (37%), 02:00 so far, about 06:20 left, loss 0.5",
    ]


def test_bytes_of_an_unknown_number(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = iter([0.0, 61.0])
    Bar(None, desc="pathmnist", unit="B", clock=lambda: next(seconds)).update(3 * 2**20)
    assert capsys.readouterr().err == "pathmnist: 3.0 MiB, 01:01 so far\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_name_nothing_is_shown() -> None:
    terminal = Terminal()
    with contextlib.redirect_stderr(terminal):
        assert list(over("abc", total=3, desc=None, unit="tile")) == ["a", "b", "c"]
    assert terminal.getvalue() == ""


def test_nothing_else_draws_bars() -> None:
    from pathlib import Path

    import sscl

    for path in Path(sscl.__file__).parent.rglob("*.py"):
        assert path.name == "progress.py" or "tqdm" not in path.read_text(encoding="utf-8"), path
