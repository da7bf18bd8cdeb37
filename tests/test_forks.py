"""Commands forked from one process that has imported what they need behave as those in a Python of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sscl import children, forks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")
# A package `sscl` that stands in front of the real one: its command does what its first word says.
COMMAND = """
import os, signal, sys, time
from sscl.children import end_with_parent, is_child, is_stage
end_with_parent()
what = sys.argv[1]
if what == "code":
    print(os.getcwd(), os.environ["WORD"], is_child(), is_stage())
    print("to the other", file=sys.stderr)
    sys.exit(int(sys.argv[2]))
if what == "bug":
    raise KeyError("a bug")
if what == "nested":
    from sscl import children
    sys.exit(children.run_command(["code", "5"]))
if what == "waits":
    print(os.getpid(), flush=True)
    time.sleep(60)
os.kill(os.getpid(), signal.SIGKILL)
"""
PROGRAM = """
import signal, sys
from sscl import children, forks
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a suite in the background may ignore
with forks.prepared():
    print(children.run_command(sys.argv[1:], stage=True), flush=True)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a small `sscl` of the modules that this is about."""
    package = tmp_path / "sscl"
    package.mkdir()
    (package / "__init__.py").touch()
    for module in (children, forks):
        (package / Path(str(module.__file__)).name).write_bytes(Path(str(module.__file__)).read_bytes())
    (package / "__main__.py").write_text(COMMAND)
    return tmp_path


def started(place: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(place), "WORD": "a\udcff"}
    whole = [sys.executable, "-c", PROGRAM, *words]
    return subprocess.Popen(
        whole, cwd=place, env=environment, text=True, stdout=-1, stderr=-1, start_new_session=True, errors="replace"
    )


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(process: int) -> bool:
    deadline = time.monotonic() + 10
    while alive(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(process)


def test_folder_environment_streams_and_code_are_those_of_a_command(place: Path) -> None:
    out, err = started(place, "code", "3").communicate(timeout=60)
    assert out.splitlines()[0].split()[0] == str(place)
    assert out.splitlines()[0].split()[2:] == ["True", "True"]
    assert out.splitlines()[1:] == ["3"]
    assert err == "to the other\n"


def test_a_command_of_a_command_is_forked_too_and_no_stage(place: Path) -> None:
    out, _ = started(place, "nested").communicate(timeout=60)
    assert out.splitlines()[0].split()[2:] == ["True", "False"]
    assert out.splitlines()[1:] == ["5"]


def test_a_bug_shows_its_traceback(place: Path) -> None:
    out, err = started(place, "bug").communicate(timeout=60)
    assert out == "1\n"
    assert "KeyError: 'a bug'" in err


def test_a_signal_that_ends_a_command_is_its_code(place: Path) -> None:
    assert started(place, "killed").communicate(timeout=60)[0] == f"{-signal.SIGKILL}\n"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_command_ends_with_who_started_it(place: Path, how: signal.Signals) -> None:
    """Killed, or interrupted by Ctrl-C, which all processes of the terminal get."""
    parent = started(place, "waits")
    assert parent.stdout is not None
    command = int(parent.stdout.readline())
    (os.kill if how == signal.SIGKILL else os.killpg)(parent.pid, how)
    _, err = parent.communicate(timeout=20)
    assert gone(command)
    assert err.count("Traceback") <= 2  # of the two of them, and none of the process that forks
    assert "forks.serve" not in err


def test_without_the_process_that_forks_nothing_is_taken_up() -> None:
    with forks.prepared():
        forks._line[0].close()
        assert forks.run(["--version"], stdin=0, stdout=1, environment={}) is None
    assert forks.run(["--version"], stdin=0, stdout=1, environment={}) is None
