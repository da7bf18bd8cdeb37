"""Python programs forked from one process that has imported what they need: they start in hundredths of a second.

One such process serves all workers of a run (tests/conftest.py starts it), and imports when it is first asked. What is
shown about imports, about memory or about the time of a start needs a Python of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import traceback
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

PLACE = "SSCL_TESTS_FORKED"  # the environment's variable for the socket of the process that forks
MODULES = (
    *("timm", "torch._dynamo", "torch._functorch.aot_autograd", "torch._inductor.pattern_matcher"),
    *("torch.distributed.launcher.api", "cv2", "matplotlib.backends.backend_agg", "scipy.optimize"),
    *("sscl.cli", "sscl.commands.finetune", "sscl.commands.pretrain", "sscl.models.encoders"),
    *("sscl.models.sync_batch_norm", "sscl.plots.charts", "sscl.train.step"),
)
_NUMBER = struct.Struct("i")
_LONGEST = 1 << 20  # bytes of a request; the system allows fewer


@contextlib.contextmanager
def served() -> Iterator[None]:
    """Have programs forked in this context, also those of processes that start in it."""
    if sys.platform != "linux" or PLACE in os.environ:
        yield
        return
    owner, folder = os.getpid(), tempfile.mkdtemp()  # a TemporaryDirectory goes when a fork of this process ends
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        os.environ[PLACE] = f"{folder}/socket"
        line.bind(os.environ[PLACE])
        line.listen(16)
        words = [sys.executable, __file__, str(line.fileno())]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        server = subprocess.Popen(words, pass_fds=[line.fileno()], stdin=subprocess.PIPE, env=environment)
        try:
            yield
        finally:
            if os.getpid() == owner:
                del os.environ[PLACE]
                server.communicate()  # ends it
                shutil.rmtree(folder)


class Process:
    """A forked program, with what tests use of subprocess.Popen; it leads a process group of its own."""

    def __init__(self, line: socket.socket, stdout: IO[str] | None) -> None:
        self._line, self.stdout = line, stdout
        self.pid = self._number()
        self.returncode: int | None = None

    def _number(self) -> int:
        return int(_NUMBER.unpack(self._line.recv(_NUMBER.size))[0])

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._line.settimeout(timeout)
            try:
                self.returncode = self._number()
            except TimeoutError:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0) from None
            self._line.close()
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(1e-6)
        return None

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def start(
    program: str | Path,
    *words: object,
    stdout: IO[str] | int,
    stderr: IO[str] | int,
    stdin: int | None = None,
    env: Mapping[str, str] | None = None,
) -> Process | subprocess.Popen[str]:
    """Start a program, of its text or of its file, with these files or descriptors; `stdout` may be PIPE."""
    environment = dict(os.environ if env is None else env)
    if PLACE not in os.environ:
        how = [program] if isinstance(program, Path) else ["-c", program]
        return subprocess.Popen(
            [sys.executable, *how, *map(str, words)],
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=stdout,
            stderr=stderr,
            env=environment,
            text=True,
            start_new_session=True,
        )
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    line.connect(os.environ[PLACE])
    source = program.read_text(encoding="utf-8") if isinstance(program, Path) else program
    request = {
        **{"source": source, "file": str(program) if isinstance(program, Path) else "-c"},
        **{"words": [str(word) for word in words], "environment": environment, "folder": os.getcwd()},
    }
    pipe = os.pipe() if stdout == subprocess.PIPE else None
    with open(os.devnull) as nothing:
        files = (nothing if stdin is None else stdin, pipe[1] if pipe else stdout, stderr)
        fds = [file if isinstance(file, int) else file.fileno() for file in files]
        socket.send_fds(line, [json.dumps(request).encode()], fds)
    if pipe:
        os.close(pipe[1])
    return Process(line, os.fdopen(pipe[0]) if pipe else None)


def run(
    program: str | Path, *words: object, env: Mapping[str, str] | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, and return what it printed; one that takes longer is killed with its children."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = start(program, *words, stdout=out, stderr=err, env=env)
        try:
            code = process.wait(timeout)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess([*map(str, words)], code, out.read(), err.read())


def serve(line: socket.socket) -> None:
    """Fork a program for each that asks, until the process that started this one has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest, which ends this
    missing = list(MODULES)
    while 0 not in select.select([line.fileno(), 0], [], [])[0]:
        asked, _ = line.accept()
        gc.disable()  # what is imported stays
        while missing:
            importlib.import_module(missing.pop(0))
        gc.freeze()
        if os.fork() == 0:
            line.close()
            _answer(asked)
        asked.close()
        _bury()
    _bury()


def _bury() -> None:
    """Wait for those that have ended, so that their time is counted."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _answer(asked: socket.socket) -> NoReturn:
    request, fds, _, _ = socket.recv_fds(asked, _LONGEST, 3)
    child = os.fork()
    if child == 0:
        asked.close()
        _become(json.loads(request), fds)
    for fd in fds:
        os.close(fd)
    with contextlib.suppress(OSError):  # gone
        asked.send(_NUMBER.pack(child))
        _, status = os.waitpid(child, 0)
        asked.send(_NUMBER.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _become(request: Mapping[str, Any], fds: list[int]) -> NoReturn:
    """Be the program from here on, as a Python that starts with it."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for own, fd in enumerate(fds):
        os.dup2(fd, own)
        os.close(fd)
    gc.enable()
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    file, given = request["file"], os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = [file, *request["words"]]
    sys.path[:0] = [str(Path(file).parent) if file != "-c" else "", *filter(None, given)]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__file__ = file
    code = 1
    try:
        exec(compile(request["source"], file, "exec"), vars(main))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    # As multiprocessing ends a fork. Python's own end, which frees each object, takes as long as the imports.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    del sys.path[0]  # this folder
    serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)  # see `_become`
