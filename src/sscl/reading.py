"""Text files read whole, after a look at what they are: a folder, a pipe or a gigabyte ends in one line."""

from __future__ import annotations

from pathlib import Path

from sscl.places import missing, printable
from sscl.words import readable


def read_text(path: Path, *, at_most: int) -> str:
    """Return the text of a file.

    Args:
        path: the file.
        at_most: the largest size, in bytes; no more is read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder, a pipe or a device; too large; or not in UTF-8.
    """
    name = printable(str(path))
    if not path.is_file():
        if not path.exists():
            raise FileNotFoundError(missing(path, "file"))
        raise ValueError(f"{name}: is {'a folder' if path.is_dir() else 'a pipe or a device'}, not a file")
    with path.open("rb") as handle:
        content = handle.read(at_most + 1)
    if len(content) > at_most:
        raise ValueError(f"{name}: is larger than {readable(at_most)}, the limit for such a file")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from None
