"""What a typed path stands for, and the words for a place where nothing is."""

from __future__ import annotations

import os
import re
import unicodedata

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))")


def expanded(text: str) -> str:
    """Return a typed path with `~`, `~NAME`, `$NAME` and `${NAME}` replaced; one that exists as typed stays.

    Raises:
        ValueError: no such variable or home folder; what to do.

    Examples:
        >>> expanded("runs/x"), expanded("price $5")
        ('runs/x', 'price $5')
    """
    at_home = text.startswith("~")
    if not (at_home or _VARIABLE.search(text)) or (text != "~" and os.path.exists(text)):
        return text
    found, shown = text, text if text.isprintable() else repr(text)
    if at_home:
        found = os.path.expanduser(text)
        if found == text:
            name = re.split(r"[/\\]", shown)[0]
            to_do = f"write the whole path, or ./{shown} for that name"
            raise ValueError(f"{shown}: {name} has no home folder here; {to_do}")

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise ValueError(f"{shown}: the variable {name} is not set; export {name}=... or write the path out")
        return os.environ[name]

    return _VARIABLE.sub(value, found)


def missing(path: str | os.PathLike[str], what: str) -> str:
    """Return that there is no such file or folder; of a relative path, from which folder it was looked for.

    Examples:
        >>> missing("/data/tiles", "folder")
        '/data/tiles: no such folder'
    """
    path = os.fspath(path)
    where = "" if os.path.isabs(path) else f" (a relative path, looked for in the working folder {os.getcwd()})"
    return f"{printable(path)}: no such {what}{where}"


def printable(name: str) -> str:
    """Return a file's name as text of one line: bytes that are not UTF-8 as \\xNN, and control characters too.

    Examples:
        >>> printable("a" + chr(10) + "b.png") == "a" + chr(92) + "nb.png"
        True
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        name = os.fsencode(name).decode("utf-8", "backslashreplace")
    if name.isprintable():
        return name
    control = ("Cc", "Zl", "Zp")  # a space of another kind is no control character
    return "".join(repr(letter)[1:-1] if unicodedata.category(letter) in control else letter for letter in name)


def one_form(name: str) -> str:
    """Return a name in one Unicode form: macOS writes é as two characters."""
    return unicodedata.normalize("NFC", name)
