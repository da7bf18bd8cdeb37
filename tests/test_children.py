"""A command in a process of its own ends with its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sscl import children, words

WAITS = (
    "import time; from sscl.children import end_with_parent; end_with_parent(); print(1, flush=True); time.sleep(60)"
)
PARENT = f"""
import subprocess, sys
from sscl import children
real = subprocess.run
children.subprocess.run = lambda words, **how: real([sys.executable, "-c", {WAITS!r}], **how)
children.run_command([])
"""


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_child_ends_with_its_input() -> None:
    with children.lifeline() as line:
        env = {**os.environ, children._ASKED: "1"}
        child = subprocess.Popen([sys.executable, "-c", WAITS], stdin=line, stdout=subprocess.PIPE, env=env)
        assert child.stdout is not None
        assert child.stdout.readline() == b"1\n"
        assert child.poll() is None
    assert child.wait(10) == children.ENDED
    child.stdout.close()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
def test_a_child_ends_with_a_killed_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"1\n"
    child = int(Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(child)


def test_only_a_child_that_is_asked_to_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(children._ASKED, raising=False)
    children.end_with_parent()  # or this process would end with its input


def test_an_interrupted_child_interrupts_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], children.INTERRUPTED)
    monkeypatch.setattr(children.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(KeyboardInterrupt):
        children.run_command(["eval"])


def test_a_stage_does_not_say_what_to_type_next(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(children, "_stages", [])
    words.say_next("eval", "runs/a")
    monkeypatch.setenv(children._STAGE, "1")
    monkeypatch.delenv(children._ASKED, raising=False)
    children.end_with_parent()
    words.say_next("eval", "runs/b")
    assert capsys.readouterr().out == "next: sscl eval runs/a\n"
    assert children._STAGE not in os.environ  # its own children are none
