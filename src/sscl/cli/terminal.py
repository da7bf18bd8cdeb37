"""What is printed on a terminal: sentences end at its width, and a letter that it lacks ends nothing.

Files and pipes get whole lines, so that a log can be searched by line.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import shutil
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

# Not a sentence: a table, whose columns stand two spaces apart or more, or a command to copy.
_NO_SENTENCE = re.compile(r"\S  |\t|\x1b|\r|(?:^|: |\$ )\s*(?:sscl|torchrun|python|pip) (?!:)")


def folded(line: str, *, width: int) -> str:
    """Return a line, broken between words where it is a sentence wider than `width`; what follows is indented by 2.

    Examples:
        >>> print(folded("note: a sentence of some words", width=20))
        note: a sentence of
          some words
    """
    if len(line) <= width or _NO_SENTENCE.search(line.rstrip()):
        return line
    from sscl.words import wrapped

    return wrapped(line.strip(), indent=len(line) - len(line.lstrip()), width=width)


class Lasting:
    """A stream whose reader may go, or whose disk may be full: the work goes on, and only what it prints is lost.

    Attributes:
        failure: why the stream ended; None = it did not.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write, or lose, a text."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._end(error)
            return len(text)

    def flush(self) -> None:
        """Bring to the reader what was written."""
        try:
            self._stream.flush()
        except OSError as error:
            self._end(error)

    def _end(self, error: OSError) -> None:
        """Write to nowhere from now on: at its end Python would flush, and fail, once more."""
        self.failure = self.failure or error
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, self._stream.fileno())
            finally:
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Folding:
    """A stream that folds whole lines on their way to a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._begun = stream, ""

    def write(self, text: str) -> int:
        """Write the lines that are complete; the rest waits for its end, or for `flush`."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._stream.write(folded(line, width=columns()) + "\n")
        return len(text)

    def flush(self) -> None:
        """Write what was begun."""
        self._stream.write(self._begun)
        self._begun = ""
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def columns() -> int:
    """Return the width of the terminal, 80 where it is unknown, at least 40."""
    return max(shutil.get_terminal_size().columns, 40)


def open_closed() -> None:
    """Open what the caller has closed (as >&- does) to nowhere: the next file opened would get its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


@contextlib.contextmanager
def printing() -> Iterator[Lasting]:
    """Print for a person: every letter or a ?, and on a terminal folded lines; at the end say which letters became ?.

    Hours of work must not end with an error because the name of a class has a letter that the encoding lacks, nobody
    reads what is printed any more, or the disk of a log is full. Yields what standard output has become.
    """
    replaced: set[str] = set()

    def replace_letters(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        replaced.update(error.object[error.start : error.end])
        return "?" * (error.end - error.start), error.end

    codecs.register_error("sscl", replace_letters)
    open_closed()
    out, errors = sys.stdout, sys.stderr
    for stream in (out, errors):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="sscl")
    lasting = Lasting(out)
    sys.stderr = cast(TextIO, Lasting(errors))
    sys.stdout = cast(TextIO, Folding(cast(TextIO, lasting)) if out.isatty() else lasting)
    try:
        yield lasting
    finally:
        sys.stdout.flush()
        if replaced:
            letters = ascii("".join(sorted(replaced)))
            print(f"sscl: note: printed as ?, for {out.encoding} lacks them: {letters}", file=sys.stderr)
        sys.stderr.flush()
        sys.stdout, sys.stderr = out, errors
