"""What splits are called: by sscl, and by others."""

from __future__ import annotations

import re

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
