"""A command of sscl in a forked process: what it writes is counted, and it can be disturbed at any of its steps."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SECONDS = 60.0  # more is a hang
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
NEW = ("open", "os.mkdir", "os.rename", "os.link", "os.symlink", "os.fsync", "os.posix_fallocate")  # fail when full
GONE = ("os.remove", "os.rmdir", "os.truncate", "ctypes.dlsym")
Action = Literal["kill", "stop", "full"]


@dataclass(frozen=True)
class Done:
    """How a command ended: its exit code, minus the signal if one ended it; None: not within SECONDS."""

    code: int | None
    out: str
    err: str
    steps: tuple[str, ...] = ()  # what it did to files, in order
    orphans: bool = False  # whether processes of it were still there

    @property
    def last(self) -> str:
        """The end of what it said."""
        lines = self.err.strip().splitlines()
        return lines[-1] if lines else ""


class Running:
    """A command that runs in a process group of its own.

    Args:
        words: after `sscl`. folder: where it runs; its cache is `cache` in it.
        at, action: which of its steps, counted from 0, is disturbed, and how: killed before it, stopped before it, or
            the disk is full from it on.
        file_bytes: largest size of a file that it may write.
    """

    def __init__(
        self,
        words: Sequence[str],
        folder: Path,
        *,
        at: int | None = None,
        action: Action = "kill",
        file_bytes: int | None = None,
    ) -> None:
        self._logs = [folder.parent / f"{folder.name}.{name}" for name in ("out", "err", "steps")]
        # The limit holds for what the command says too, if that goes to a file.
        self._pipes = [os.pipe() for _ in range(2)] if file_bytes is not None else []
        self.began = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            said = [write for _, write in self._pipes]
            _be_the_command(list(words), folder, self._logs, at=at, action=action, said=said, file_bytes=file_bytes)
        for _, write in self._pipes:
            os.close(write)
        with contextlib.suppress(OSError):
            os.setpgid(self.pid, self.pid)

    def signal(self, number: int) -> None:
        """Send a signal to the command alone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def stopped(self) -> bool:
        """Wait until the command has stopped; return False if it has ended instead."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            self._status = status
        return os.WIFSTOPPED(status)

    _status: int | None = None

    def end(self) -> Done:
        """Wait for the end, and end what it leaves."""
        code = None
        while code is None and time.monotonic() - self.began < SECONDS:
            pid = 0
            if self._status is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            else:
                pid, status = self.pid, self._status
            if pid:
                code = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.005)
        orphans = self._orphans() if code is not None else False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if code is None:
            os.waitpid(self.pid, 0)
        out, err, steps = (log.read_text(errors="replace") if log.exists() else "" for log in self._logs)
        if self._pipes:
            out, err = (_rest(read) for read, _ in self._pipes)
        return Done(code, out, err, tuple(steps.splitlines()), orphans)

    def _orphans(self) -> bool:
        """Return whether processes of the command outlive it by seconds."""
        for _ in range(60):
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return False
            time.sleep(0.05)
        return True


def run(words: Sequence[str], folder: Path, **disturbed: Any) -> Done:
    """Run a command to its end; the arguments are those of `Running`."""
    return Running(words, folder, **disturbed).end()


def _rest(pipe: int) -> str:
    """Return what is in a pipe whose writers have ended, and close it."""
    with open(pipe, "rb") as file:
        return file.read().decode(errors="replace")


def _be_the_command(
    words: list[str],
    folder: Path,
    logs: Sequence[Path],
    *,
    at: int | None,
    action: Action,
    said: Sequence[int],
    file_bytes: int | None,
) -> None:
    """Be the command, and end this process as it ends. said: where output goes; empty: to the first two logs."""
    code = 1
    try:
        os.setpgid(0, 0)
        said = said or [os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for log in logs[:2]]
        for number, place in zip((1, 2), said, strict=True):
            os.dup2(place, number)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        faulthandler.dump_traceback_later(SECONDS - 2, exit=True, file=sys.stderr)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.chdir(folder)
        os.environ["SSCL_CACHE"] = "cache"
        sys.argv = ["sscl", *words]
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        else:  # steps go to a file
            Steps(folder, logs[2], at=at, action=action).watch()
        from sscl.cli import main

        code = main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class Steps:
    """Counts what a process does to files below a folder, and disturbs it there.

    Steps are what Python reports (`sys.audit`) and fsync; torch's writer, in C++, shows none between two of these.
    """

    def __init__(self, folder: Path, log: Path, *, at: int | None, action: Action) -> None:
        self.folder, self.at, self.action = f"{folder}{os.sep}", at, action
        self.count = 0
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._lock = threading.Lock()

    def watch(self) -> None:
        """Begin."""
        for name in ("fsync", "posix_fallocate"):
            setattr(os, name, self._counted(f"os.{name}", getattr(os, name)))
        sys.addaudithook(self._heard)

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            self._step(name, "")
            return real(*given)

        return call

    def _heard(self, event: str, given: tuple[Any, ...]) -> None:
        if event not in NEW and event not in GONE:
            return
        if event == "open" and not (isinstance(given[2], int) and given[2] & WRITES):
            return
        if event == "ctypes.dlsym":
            if given[1] == "renameat2":
                self._step(event, "renameat2")
            return
        if isinstance(given[0], (str, bytes, os.PathLike)):
            path = os.path.abspath(os.fsdecode(given[0]))
            if path.startswith(self.folder):
                self._step(event, path.removeprefix(self.folder))

    def _step(self, event: str, path: str) -> None:
        with self._lock:
            number, self.count = self.count, self.count + 1
            os.write(self._log, f"{event} {path}\n".encode(errors="replace"))
        if self.at is None or number < self.at:
            return
        if self.action == "full" and event in NEW:
            raise OSError(28, "No space left on device", path or None)
        if number == self.at and self.action in ("kill", "stop"):
            os.kill(os.getpid(), signal.SIGKILL if self.action == "kill" else signal.SIGSTOP)
