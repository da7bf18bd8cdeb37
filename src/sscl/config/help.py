"""The text of `sscl COMMAND --help`: a command's keys with defaults and meanings, grouped by section."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sscl.config.messages import in_yaml
from sscl.config.sections import Section, choices, keys, section_at

WIDE = 30  # columns of a key and its default; its meaning begins below where they need more


def help_text(kind: type[Section], *, width: int = 80) -> str:
    """Return the keys of a command as `key=default` with their meanings: the required ones first, then by section."""
    required: dict[str, str] = {}
    groups: dict[str, dict[str, str]] = {"": {}}
    for key, field in keys(kind).items():
        section = ".".join(key.split(".")[:-1])
        if field.default is not PydanticUndefined:
            groups.setdefault(section, {})[f"{key}={in_yaml(field.default)}"] = meaning(field)
        elif ".N." in key:  # required of an entry of a list
            groups.setdefault(section, {})[key] = f"(required) {meaning(field)}"
        else:
            required[key] = meaning(field)
    parts = ["\n".join(["Required", *columns(required, width=width)])] if required else []
    listed: dict[type[Section], str] = {}
    for section, rows in groups.items():
        found = section_at(kind, [part for part in section.split(".") if part not in ("", "N")])
        assert found is not None, section
        if found in listed:
            parts.append(f"{section}: The same keys as {listed[found]}.")
        elif rows:
            listed[found] = section
            parts.append("\n".join([*title(found, section, width=width), *columns(rows, width=width)]))
    return "\n\n".join(parts)


def title(kind: type[Section], name: str, *, width: int) -> list[str]:
    """Return the heading of a section: its dotted name and what it is about; the whole configuration has none."""
    about = (kind.__doc__ or "").split("\n\n")[0].strip()
    return textwrap.wrap(f"{name}: {about}", width, subsequent_indent="  ") if name else ["Keys and their defaults"]


def meaning(field: FieldInfo) -> str:
    """Return a key's line of documentation with the values that it may have."""
    allowed = f" [{' | '.join(map(str, choices(field)))}]" if choices(field) else ""
    return f"{field.description}{allowed}"


def columns(rows: Mapping[str, str], *, width: int) -> list[str]:
    """Return lines of two columns: names, and texts that are wrapped beside them."""
    lines = []
    for name, text in rows.items():
        body = textwrap.wrap(text, width - WIDE - 4, break_long_words=False, break_on_hyphens=False)
        fits = len(name) <= WIDE
        lines.append(f"  {name:<{WIDE}}  {body[0]}" if fits else f"  {name}")
        lines += [f"{' ' * (WIDE + 4)}{line}" for line in (body[1:] if fits else body)]
    return lines


def wrapped(text: str, *, width: int, indent: str = "") -> str:
    """Return paragraphs of text, each wrapped; `indent` is put before all of a paragraph's lines but its first."""
    return "\n\n".join(
        textwrap.fill(part, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        for part in text.split("\n\n")
    )
