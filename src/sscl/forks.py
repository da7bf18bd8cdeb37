"""One process that has imported what commands need, and forks them: they start in a few hundredths of a second.

On Linux alone. Elsewhere, and where that process is missing, `children` starts a Python for each command.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

_line: list[socket.socket] = []  # to the process that forks, where there is one
_LONGEST = 1 << 20  # bytes of a request; the system allows fewer
_CODE = struct.Struct("i")
_PATIENCE_S = 0.25  # for a command that was interrupted, as subprocess.run has it


@contextlib.contextmanager
def prepared(*modules: str) -> Iterator[None]:
    """Have commands that start in this context forked from one process, which imports these modules meanwhile."""
    if _line or sys.platform != "linux":
        yield
        return
    own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    program = f"from sscl import forks; forks.serve({other.fileno()}, {modules!r})"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is for the commands
    try:
        server = subprocess.Popen([sys.executable, "-c", program], pass_fds=[other.fileno()], stdin=subprocess.DEVNULL)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        other.close()
    _line.append(own)
    try:
        yield
    finally:
        _line.clear()
        own.close()
        server.kill()
        server.wait()


def run(words: Sequence[str], *, stdin: int, stdout: int, environment: Mapping[str, str]) -> int | None:
    """Run `sscl WORDS` in a fork to its end and return its exit code, minus the number of a signal that ended it.

    None: there is no process that forks, or it could not take this up.
    """
    if not _line:
        return None
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as codes:
        try:
            request = {"words": list(words), "environment": dict(environment), "folder": os.getcwd()}
            fds = [stdin, stdout, 2, writing, _line[0].fileno()]
            socket.send_fds(_line[0], [json.dumps(request).encode()], fds)
        except OSError:
            return None
        finally:
            os.close(writing)
        if not codes.read(1):
            return None
        try:
            code = codes.read(_CODE.size)
        except KeyboardInterrupt:
            select.select([codes], [], [], _PATIENCE_S)
            raise
    return int(_CODE.unpack(code)[0]) if code else -signal.SIGKILL


def serve(line: int, modules: Sequence[str]) -> None:
    """Import modules, and fork a command for each request until nobody is left who could send one.

    A command that is asked for meanwhile does not wait for all of the modules.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries them
    missing = list(reversed(modules))
    with socket.socket(fileno=line) as requests:
        while True:
            if missing and not select.select([requests], [], [], 0)[0]:
                _import(missing.pop())
                continue
            request, fds, _, _ = socket.recv_fds(requests, _LONGEST, 5)
            if not request:
                return
            if os.fork() == 0:
                requests.close()
                break
            for fd in fds:
                os.close(fd)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code = fds.pop(3)
    command = os.fork()
    if command:
        _wait(command, code)
    os.write(code, b"+")
    os.close(code)
    _become(json.loads(request), fds)


def _import(module: str) -> None:
    gc.disable()  # see `cli`; what is imported stays
    with contextlib.suppress(ImportError):  # the command that needs it says so
        importlib.import_module(module)
    gc.freeze()
    gc.enable()


def _wait(command: int, code: int) -> NoReturn:
    """Send a command's exit code to who asked for it."""
    _, status = os.waitpid(command, 0)
    with contextlib.suppress(OSError):  # gone
        os.write(code, _CODE.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _become(request: Mapping[str, Mapping[str, str]], fds: Sequence[int]) -> NoReturn:
    """Be the command from here on, as a Python that starts with `-m sscl`."""
    for own, fd in enumerate(fds[:3]):
        os.dup2(fd, own)
        os.close(fd)
    _line.append(socket.socket(fileno=fds[3]))
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(str(request["folder"]))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    sys.argv = ["sscl", *request["words"]]
    code = 1
    try:
        runpy.run_module("sscl", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # a bug: its traceback
        sys.excepthook(*sys.exc_info())
    # As multiprocessing ends a fork. Python's own end, which frees each object, takes as long as the imports.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
