"""Files of others, opened so that nothing waits for ever, no file is too large, and no error lacks the file's name."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

from sscl.places import missing, printable
from sscl.words import readable

_KINDS = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket"))


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], *, expected: str = "a file") -> Iterator[BinaryIO]:
    """Give a regular file, open to read its bytes.

    Args:
        expected: what the file should be, for the message, as in "an image file; remove it from the data set".

    Raises:
        OSError: it cannot be opened or read; `filename` is the path, also of errors that come while it is read.
        ValueError: it is a folder, a named pipe, a device, ..., or no file can have such a name; one line.
    """
    check_name(path)
    try:
        refuse_irregular(path, os.stat(path).st_mode, expected=expected)
        # Should a pipe have taken its place by now, nobody waits for its writer.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        raw = _Named(number, os.fspath(path))
    except OSError as error:
        error.filename = error.filename or os.fspath(path)
        raise
    with io.BufferedReader(raw, buffer_size=2**17) as file:
        refuse_irregular(path, os.fstat(number).st_mode, expected=expected)
        yield file


class _Named(io.FileIO):
    """A file whose errors name it: not those of other files that come while it is open."""

    def __init__(self, number: int, path: str | bytes) -> None:
        super().__init__(number, "rb")
        self._path = path

    def readinto(self, buffer: Any) -> int | None:
        with self._naming():
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with self._naming():
            found: bytes = super().readall()
            return found

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = error.filename or self._path
            raise


def read_bytes(path: str | os.PathLike[str], *, at_most: int, expected: str = "a file") -> bytes:
    """Return what is in a regular file; no more than `at_most` bytes are ever asked for.

    Raises:
        OSError: as `opened`.
        ValueError: as `opened`; or it has more bytes.
    """
    with opened(path, expected=expected) as file:
        size = os.fstat(file.fileno()).st_size
        step = max(size, 2**16) + 1  # files in /proc say that they have 0 bytes
        data = b""
        while size <= at_most and len(data) <= at_most and (piece := file.read(step)):
            data = data + piece if data else piece
    if max(size, len(data)) > at_most:
        name = printable(os.fspath(path))
        raise ValueError(f"{name}: is larger than {readable(at_most)}, the limit for {expected}")
    return data


def read_text(path: str | os.PathLike[str], *, at_most: int) -> str:
    """Return the text of a file in UTF-8, without a byte-order mark, lines ended by a line feed alone.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder, a pipe or a device; more than `at_most` bytes; or not in UTF-8.
    """
    name = printable(os.fspath(path))
    try:
        content = read_bytes(path, at_most=at_most)
    except FileNotFoundError as error:
        raise FileNotFoundError(missing(path, "file")) from error
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from None


def parse_json(text: str | bytes, *, any_number: bool = False) -> Any:
    """Return what JSON says.

    Args:
        any_number: take NaN, infinity and numbers beyond 64 bits, as Java programs write them; all are floats then.

    Raises:
        ValueError: not JSON; NaN, infinity, a number beyond 64 bits; half a character; or endless lists.
    """
    try:
        if any_number:
            found = json.loads(text, parse_int=float)
        else:
            found = json.loads(text, parse_constant=_no_number, parse_float=_finite, parse_int=_whole)
        if _HALVES.search(text if isinstance(text, str) else text.decode("utf-8")):
            json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("a text in it holds half a character") from None
    except RecursionError:
        raise ValueError("lists within lists without end") from None
    return found


_HALVES = re.compile(r"\\u[dD][89a-fA-F]")


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number that can be read")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text[:20])


def _whole(text: str) -> int:
    return int(text) if len(text) < 20 else int(_no_number(text[:20]))  # what 64 bits hold


def check_name(path: str | os.PathLike[str]) -> None:
    """Raise ValueError where no file can have such a path: one with a NUL character, or half a character."""
    try:
        impossible = b"\0" in os.fsencode(path)
    except UnicodeEncodeError:
        impossible = True
    if impossible:
        raise ValueError(f"{os.fspath(path)!r}: no file can have such a name (a NUL or half a character); correct it")


def kind_of(mode: int) -> str | None:
    """Return what something that is no regular file is, by the mode that `os.stat` gives; None of a regular file."""
    if stat.S_ISREG(mode):
        return None
    return next((name for test, name in _KINDS if test(mode)), "device")


def refuse_irregular(path: str | os.PathLike[str], mode: int, *, expected: str = "a file") -> None:
    """Raise ValueError where a mode is that of no regular file: to open a named pipe would wait for its writer."""
    kind = kind_of(mode)
    if kind is not None:
        raise ValueError(f"{printable(os.fspath(path))}: is a {kind}, not {expected}")


def why_unreadable(path: str | os.PathLike[str], error: OSError) -> str:
    """Return why a file cannot be read, and what to do."""
    if error.errno == errno.ENOENT and os.path.islink(path):
        return f"is a link to {os.readlink(path)}, which does not exist; correct or remove the link"
    if error.errno == errno.ENOENT:
        return f"cannot be opened ({error.strerror})"
    to_do = {
        errno.EACCES: "check its permissions",
        errno.EPERM: "check its permissions",
        errno.ELOOP: "it is a link to itself; correct or remove the link",
        errno.ENAMETOOLONG: "write a shorter path",
    }
    what = to_do.get(error.errno or 0, "copy it again or remove it from the data set")
    return f"cannot be read ({error.strerror or error}); {what}"
