"""What splits are called: by sscl, and by others."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from sscl.words import listed

SPLITS = ("train", "validation", "test")
_REST = r"(?:[ _-]?(?:set|data|split|images?|tiles?|patches))?"
_SPLIT_NAMES = {
    "train": re.compile(rf"(?:train|training){_REST}"),
    "validation": re.compile(rf"(?:val|valid|validation|dev){_REST}"),
    "test": re.compile(rf"(?:test|testing){_REST}"),
}


def split_named(name: str) -> str | None:
    """Return which split a word means, whatever its case, else None.

    Examples:
        >>> split_named("Training"), split_named("val"), split_named("test_set"), split_named("tumor")
        ('train', 'validation', 'test', None)
    """
    word = name.strip().casefold()
    return next((split for split, pattern in _SPLIT_NAMES.items() if pattern.fullmatch(word)), None)


def check_split(
    split: str, parts: Collection[str], *, classes: Collection[str], root: Path | str, given_by: str
) -> None:
    """Raise an error where a set does not have a split, and cannot be split to have it.

    Args:
        parts: the splits that it has; "all" where it has none of its own. classes: that it has.
        given_by: what says its splits, as in "the column split".

    Raises:
        FileNotFoundError: it has other splits.
        ValueError: no split has this name; a set without splits has no validation part, or no classes to split it by.
    """
    if split not in (*SPLITS, "all"):
        raise ValueError(f"split: got {split!r}, allowed are {', '.join(SPLITS)}, all")
    if split == "all" or split in parts:
        return
    if "all" not in parts:
        raise FileNotFoundError(
            f"{root}: has {listed(list(parts))} but no {split} ({given_by}); add it, or leave out all splits to have "
            "sscl make train and test"
        )
    if split == "test" and not classes:
        raise ValueError(f"{root}: has no classes, so no test split; use split train or all")
    if split == "validation":
        raise ValueError(f"{root}: has no validation split of its own ({given_by})")
