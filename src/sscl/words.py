"""Words that many messages share: the nearest name, counted nouns, lists."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def nearest(name: str, allowed: Iterable[str], *, cutoff: float = 0.5) -> str:
    """Return "did you mean X?", or, where no name is near, "allowed are A, B, C".

    Args:
        name: what was given.
        allowed: the names that exist.
        cutoff: similarity from which a name counts as near, in [0, 1] (see `difflib.get_close_matches`).
    """
    names = list(allowed)
    near = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return f"did you mean {near[0]}?" if near else f"allowed are {', '.join(names)}"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, as in "1 tile", "2,048 tiles".

    Examples:
        >>> count(1, "tile"), count(2048, "tile"), count(2, "class", "classes")
        ('1 tile', '2,048 tiles', '2 classes')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def listed(words: Sequence[str], *, last: str = "and") -> str:
    """Return words as one reads them aloud.

    Examples:
        >>> listed(["a"]), listed(["a", "b", "c"]), listed(["a", "b"], last="or")
        ('a', 'a, b and c', 'a or b')
    """
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"
