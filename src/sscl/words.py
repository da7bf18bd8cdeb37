"""Words that many messages share: the nearest name, counted nouns, lists."""

from __future__ import annotations

import difflib
import shlex
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from sscl.children import is_stage

MOST = 20  # words of a list; a line of 1,000 class names says nothing


def closest(name: str, allowed: Iterable[str], *, cutoff: float = 0.5) -> str | None:
    """Return the allowed name that is most like the one given, None where none is near.

    Args:
        name: what was given.
        allowed: the names that exist.
        cutoff: similarity from which a name counts as near, in [0, 1] (see `difflib.get_close_matches`).
    """
    return next(iter(difflib.get_close_matches(name, list(allowed), n=1, cutoff=cutoff)), None)


def nearest(name: str, allowed: Iterable[str], *, cutoff: float = 0.5) -> str:
    """Return "did you mean X?", or, where no name is near (see `closest`), "allowed are A, B, C"."""
    names = list(allowed)
    near = closest(name, names, cutoff=cutoff)
    return f"allowed are {some(names, most=100)}" if near is None else f"did you mean {near}?"


def first_twice(words: Sequence[str]) -> str | None:
    """Return the first word that is given a second time, None where all differ.

    Examples:
        >>> first_twice(["a", "b", "a"]), first_twice(["a", "b"])
        ('a', None)
    """
    seen: set[str] = set()
    return next((word for word in words if word in seen or seen.add(word)), None)  # type: ignore[func-returns-value]


def short(text: str, *, most: int = 60) -> str:
    """Return a text in one line of at most so many characters, without control characters.

    Examples:
        >>> short("a\\nb"), short("abcdefgh", most=6)
        ('a\\\\nb', 'abc...')
    """
    shown = text[:most]
    if not shown.isprintable():
        shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in shown)
    return shown if len(shown) <= most and len(text) <= most else f"{shown[: most - 3]}..."


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, as in "1 tile", "2,048 tiles".

    Examples:
        >>> count(1, "tile"), count(2048, "tile"), count(2, "class", "classes")
        ('1 tile', '2,048 tiles', '2 classes')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def readable(size: int) -> str:
    """Return a size in bytes with a unit, in MiB below 1 GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def listed(words: Sequence[str], *, last: str = "and") -> str:
    """Return words as one reads them aloud; of more than MOST the first ten and how many more.

    Examples:
        >>> listed(["a"]), listed(["a", "b", "c"]), listed(["a", "b"], last="or")
        ('a', 'a, b and c', 'a or b')
    """
    if len(words) > MOST:
        words = [*words[:10], f"{len(words) - 10:,} more"]
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def some(words: Sequence[str], *, most: int = MOST, first: int = 10) -> str:
    """Return words with commas between; of more than `most` the first few and how many more.

    Examples:
        >>> some(["a", "b"]), some(["c"] * 1000)[-11:]
        ('a, b', 'c, 990 more')
    """
    return ", ".join(words if len(words) <= most else [*words[:first], f"{len(words) - first:,} more"])


def shortened(text: str, length: int) -> str:
    """Return text of at most `length` characters, shortened in the middle: file names differ at both ends."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def short_names(names: Sequence[str], length: int) -> list[str]:
    """Return different names of about `length` characters at most; those that are the same so short get their number.

    Examples:
        >>> short_names(["a" * 9, "b", "a" * 5 + "b" + "a" * 9], 5)
        ['aa…aa (1)', 'b', 'aa…aa (3)']
    """
    short = [shortened(name, length) for name in names]
    times = Counter(short)
    return [name if times[name] == 1 else f"{name} ({i})" for i, name in enumerate(short, 1)]


def width_of(text: str) -> int:
    """Return how many columns of a terminal a text takes: two of a Chinese character, none of an accent."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def left(text: str, width: int) -> str:
    """Return text flush left in `width` columns of a terminal."""
    return text + " " * (width - width_of(text))


def right(text: str, width: int) -> str:
    """Return text flush right in `width` columns of a terminal."""
    return " " * (width - width_of(text)) + text


def wrapped(text: str, *, indent: int = 0, width: int = 80) -> str:
    """Return a sentence as lines of at most `width` characters; paths and long words stay whole."""
    spaces = " " * indent
    return textwrap.fill(
        text,
        width,
        initial_indent=spaces,
        subsequent_indent=f"{spaces}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def next_command(*words: object) -> str:
    """Return the line that ends a command's output: what to type next.

    Examples:
        >>> next_command("eval", "runs/a")
        'next: sscl eval runs/a'
    """
    command, *rest = words
    return f"next: sscl {command} {shlex.join(map(str, rest))}".rstrip()


def as_typed(key: str, value: object) -> str:
    """Return a setting as it is typed.

    Examples:
        >>> as_typed("data.reviews", ["a.csv", "b.csv"]), as_typed("data.root", "tiles")
        ('data.reviews=[a.csv,b.csv]', 'data.root=tiles')
    """
    return f"{key}=[{','.join(map(str, value))}]" if isinstance(value, (list, tuple)) else f"{key}={value}"


def say_next(*words: object) -> None:
    """Print what to type next (see `next_command`), but not in a stage of `sscl train`, which goes on by itself."""
    if not is_stage():
        print(next_command(*words))
