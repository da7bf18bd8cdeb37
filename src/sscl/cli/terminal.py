"""What is printed on a terminal: sentences end at its width, and a letter that it lacks ends nothing.

Files and pipes get whole lines, so that a log can be searched by line.
"""

from __future__ import annotations

import codecs
import contextlib
import io
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


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Print for a person: every letter or a ?, and on a terminal folded lines; at the end say which letters became ?.

    Hours of work must not end with an error because the name of a class has a letter that the encoding lacks.
    """
    replaced: set[str] = set()

    def replace_letters(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        replaced.update(error.object[error.start : error.end])
        return "?" * (error.end - error.start), error.end

    codecs.register_error("sscl", replace_letters)
    out = sys.stdout
    for stream in (out, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="sscl")
    if out.isatty():
        sys.stdout = cast(TextIO, Folding(out))
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout = out
        if replaced:
            letters = ascii("".join(sorted(replaced)))
            print(f"sscl: note: printed as ?, for {out.encoding} lacks them: {letters}", file=sys.stderr)
