"""Commands of sscl in processes of their own, which end when this one does, however it ends.

A child's standard input is a pipe that this process alone can write to. The system closes it with the process, after
SIGKILL too; a thread of the child waits for that. While a library is loaded no thread runs: Linux ends the child then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import IO

from sscl import forks

_ASKED = "SSCL_ENDS_WITH_STDIN"
_STAGE = "SSCL_STAGE"
ENDED = 143  # exit code of such a child, as after SIGTERM
INTERRUPTED = 130  # exit code of a command after Ctrl-C
_children: list[bool] = []  # whether this process is such a child, once that is known
_stages: list[bool] = []  # likewise, whether it is a stage


@contextlib.contextmanager
def lifeline() -> Iterator[int]:
    """Give what `run_command` connects children to: they end, where they have not yet, when the context is left."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(writing)
        os.close(reading)


def run_command(
    words: Sequence[str], *, line: int | None = None, stage: bool = False, output: IO[str] | None = None
) -> int:
    """Run `sscl WORDS` to its end and return its exit code.

    Args:
        line: of `lifeline`, for commands that run at the same time; None = one of its own.
        stage: of several commands, of which this process starts the next one: it does not say what to type next.
        output: an open file for what it prints; errors and bars are not among that. None = where this process prints.

    Raises:
        KeyboardInterrupt: it was interrupted; what is said about that, this process says.
    """
    if line is None:
        with lifeline() as own:
            return run_command(words, line=own, stage=stage, output=output)
    environment = {**os.environ, _ASKED: "1", **({_STAGE: "1"} if stage else {})}
    code = forks.run(words, stdin=line, stdout=1 if output is None else output.fileno(), environment=environment)
    if code is None:
        whole = [sys.executable, "-m", "sscl", *words]
        code = subprocess.run(whole, stdin=line, stdout=output, env=environment, check=False).returncode
    if code in (INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    return code


def end_with_parent() -> None:
    """In a child of `run_command`, end this process when its parent ends; elsewhere do nothing."""
    if os.environ.pop(_STAGE, None):
        _stages.append(True)
    if os.environ.pop(_ASKED, None):
        _children.append(True)
        threading.Thread(target=_watch, name="lifeline", daemon=True).start()
        if sys.platform == "linux":
            import ctypes

            set_parent_death_signal = 1  # of linux/prctl.h
            ctypes.CDLL(None).prctl(set_parent_death_signal, ctypes.c_ulong(signal.SIGKILL))


def is_child() -> bool:
    """Return whether this process is a child of `run_command`."""
    return bool(_children)


def is_stage() -> bool:
    """Return whether this process is a stage of several commands (see `run_command`)."""
    return bool(_stages)


def _watch() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os._exit(ENDED)  # at once: files are whole or absent, whenever that is
