"""Which keys differ between a run that exists and what would run now.

The one answer to "may this run be resumed, reused or completed?": a key may differ where its setting is marked
`free=True`, because it changes nothing that is learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic.fields import FieldInfo

from sscl.config.encoders import NO_FILES, RANDOM
from sscl.config.messages import shown
from sscl.config.sections import Section, marked

Config = TypeVar("Config", bound=Section)


@dataclass(frozen=True)
class Change:
    """A key whose value differs between two configurations; `path`: it names a file or folder."""

    key: str
    before: Any
    now: Any
    path: bool = False

    def __str__(self) -> str:
        """Return the change in words, as in `train.epochs=2 (now 5)`."""
        return f"{self.key}={shown(self.before)} (now {shown(self.now)})"


def changed_keys(before: Config, now: Config) -> list[Change]:
    """Return the keys that decide what is learned and that differ, in the order of the settings.

    Paths are equal where they name the same place from the working directory. Of a list of sections each entry is
    compared with the one at its place; where their numbers differ, the list itself is the change.
    """
    return list(_changes(before, now, ""))


def _changes(before: Section, now: Section, prefix: str) -> Iterator[Change]:
    for name, field in type(now).model_fields.items():
        key, was, value = prefix + name, getattr(before, name), getattr(now, name)
        if isinstance(value, Section):
            yield from _changes(was, value, f"{key}.")
        elif isinstance(value, tuple) and value and isinstance(value[0], Section):
            if len(was) != len(value):
                yield Change(key, f"a list of {len(was)}", f"a list of {len(value)}")
                continue
            for i, (one, other) in enumerate(zip(was, value, strict=True)):
                yield from _changes(one, other, f"{key}." if len(value) == 1 else f"{key}.{i}.")
        elif not marked(field, "free") and not _same(field, was, value):
            yield Change(key, was, value, path=marked(field, "path"))


def _same(field: FieldInfo, before: Any, now: Any) -> bool:
    if marked(field, "path") and isinstance(before, str) and isinstance(now, str):
        words = before in NO_FILES or now in NO_FILES
        return before == now or (not words and Path(before).resolve() == Path(now).resolve())
    if marked(field, "path") and before in RANDOM and now in RANDOM:
        return True
    return bool(before == now)
