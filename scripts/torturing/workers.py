"""Inputs of a part in forked workers, each with a limit of time and memory: what hangs or dies is found out too."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import selectors
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

WAITING = 60.0  # seconds that an input with a limit may take in all, on a machine that does other work too


class Part(Protocol):
    """A series of inputs that one number each determines, beside the seed."""

    name: str
    memory: int | None  # bytes beyond what the process has; None: no limit

    def limit(self, index: int) -> float | None:
        """Return how many seconds of the processor an input may take; None: the part sees to it itself."""

    def prepare(self) -> None:
        """Read what inputs are made from, once for all workers."""

    def row(self, index: int) -> str:
        """Return the row of the table that an input belongs to."""

    def try_one(self, index: int, seed: int, folder: Path) -> str | None:
        """Try an input; return what went wrong, None if nothing did."""


@dataclass
class _Worker:
    """A process and the inputs that it has left; `at` is the one it is at."""

    pid: int
    pipe: int
    left: list[int]
    trace: Path
    at: int | None = None
    rest: bytes = b""


def tried(
    part: Part, indices: Sequence[int], *, seed: int, folder: Path, workers: int, until: float
) -> Iterator[tuple[int, str | None]]:
    """Yield each input with what went wrong, as they end; stop at the time `until` (`time.monotonic`)."""
    waiting = [_start(part, share, seed, folder, until) for share in _shares(part, indices, workers)]
    with selectors.DefaultSelector() as selector:
        for worker in waiting:
            selector.register(worker.pipe, selectors.EVENT_READ, worker)
        while selector.get_map():
            for key, _ in selector.select():
                worker = key.data
                data = os.read(worker.pipe, 65536)
                worker.rest += data
                *lines, worker.rest = worker.rest.split(b"\n")
                for line in lines:
                    index, ended, wrong = json.loads(line)
                    worker.at = None if ended else index
                    if ended:
                        worker.left.remove(index)
                        yield index, wrong
                if data:
                    continue
                selector.unregister(worker.pipe)
                os.close(worker.pipe)
                _, status = os.waitpid(worker.pid, 0)
                if worker.at is not None:
                    yield worker.at, _death(part, worker, status)
                    worker.left.remove(worker.at)
                    if worker.left:
                        new = _start(part, worker.left, seed, folder, until)
                        selector.register(new.pipe, selectors.EVENT_READ, new)


def _shares(part: Part, indices: Sequence[int], workers: int) -> list[list[int]]:
    """Return the inputs of each worker; those of a row stay together, so that what they share is made once."""
    rows = {row: place for place, row in enumerate(dict.fromkeys(map(part.row, indices)))}
    of = [rows[part.row(index)] if len(rows) > workers else place for place, index in enumerate(indices)]
    shares = [[index for index, one in zip(indices, of, strict=True) if one % workers == i] for i in range(workers)]
    return [share for share in shares if share]


def _death(part: Part, worker: _Worker, status: int) -> str:
    """Return how a worker ended within an input."""
    trace = [line.strip() for line in worker.trace.read_text(errors="replace").splitlines()]
    place = next((line for line in trace if "/sscl/" in line and line.startswith("File")), "")
    place = place.rpartition("/sscl/")[2].replace('", line ', ":").partition(" in ")[0]
    code = os.waitstatus_to_exitcode(status)
    if any(line.startswith("Timeout") for line in trace):
        return f"waits for more than {WAITING:g} s ({place})"
    if -code == signal.SIGPROF:
        return f"takes more than {part.limit(worker.at or 0)} s ({place})"
    return f"the process dies: {signal.Signals(-code).name if code < 0 else f'exit code {code}'} ({place})"


def _start(part: Part, indices: list[int], seed: int, folder: Path, until: float) -> _Worker:
    """Fork a worker for these inputs."""
    reader, writer = os.pipe()
    there = Path(tempfile.mkdtemp(dir=folder))
    trace = there / "trace"
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            _work(part, indices, seed, there, until, writer, trace)
        except BaseException:
            traceback.print_exc()
        finally:
            shutil.rmtree(there, ignore_errors=True)
            os._exit(0)
    os.close(writer)
    return _Worker(pid, reader, list(indices), trace)


def _work(part: Part, indices: list[int], seed: int, there: Path, until: float, pipe: int, trace: Path) -> None:
    """Try the inputs one by one and write what came of each to the pipe."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and others write there themselves
    if part.memory is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + part.memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    with trace.open("w") as handle:
        faulthandler.enable(handle)
        faulthandler.register(signal.SIGPROF, handle, chain=True)  # which then ends the process
        for index in indices:
            if time.monotonic() > until:
                break
            os.write(pipe, json.dumps([index, False, None]).encode() + b"\n")
            handle.truncate(0)
            limit = part.limit(index)
            if limit is not None:  # a process that is forked meanwhile could set no such timer of its own
                faulthandler.dump_traceback_later(WAITING, exit=True, file=handle)
                signal.setitimer(signal.ITIMER_PROF, limit)
            try:
                wrong = part.try_one(index, seed, there)
            except Exception as error:  # of the script
                place = traceback.extract_tb(error.__traceback__)[-1]
                wrong = f"torture itself: {type(error).__name__}: {error}"[:300] + f" ({place.filename}:{place.lineno})"
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
            os.write(pipe, json.dumps([index, True, wrong]).encode() + b"\n")
    with contextlib.suppress(OSError):
        os.close(pipe)
