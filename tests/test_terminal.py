"""Sentences end at the terminal's width; tables, commands and paths stay whole."""

from __future__ import annotations

import io
import os

import pytest

from sscl.cli.terminal import Folding, Lasting, folded

PATH = "/data/" + "x" * 90 + "/tiles.csv"


@pytest.mark.parametrize(
    "line",
    [
        "  accuracy                       0.8519     0.8102 to 0.8889  0.7983 to 0.8931  184 of 216 tiles of the split",
        f"next: sscl predict runs/a {PATH}",
        f"$ sscl eval {PATH} and more",
        PATH,
        "short",
    ],
)
def test_these_stay_as_they_are(line: str) -> None:
    assert folded(line, width=80) == line


def test_sentences_are_folded_and_nothing_is_lost() -> None:
    line = f"  note: {'these are some words of a sentence, '.join([''] * 6)}of which one is {PATH}, whole"
    lines = folded(line, width=60).split("\n")
    assert " ".join(part.strip() for part in lines) == line.strip()
    assert all(len(part) <= 60 or PATH in part for part in lines)
    assert {part[: len(part) - len(part.lstrip())] for part in lines[1:]} == {"    "}
    assert folded("sscl: " + "a fault " * 20, width=40).count("\n") > 2


def test_a_stream_folds_lines_that_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    there = io.StringIO()
    stream = Folding(there)
    print("a sentence", "of several words", "that is wider than the terminal", file=stream)
    print("begun", end="", file=stream)
    assert [len(line) <= 40 for line in there.getvalue().splitlines()] == [True, True]
    stream.flush()
    assert there.getvalue().endswith("begun")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_a_stream_that_ends_leaves_no_file_open() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as pipe:
        stream = Lasting(pipe)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            stream.write("text\n")
            stream.flush()
        assert stream.failure is not None
        assert len(os.listdir("/proc/self/fd")) == before
