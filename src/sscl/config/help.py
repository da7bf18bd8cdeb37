"""A command's keys with defaults and meanings: the few of `sscl COMMAND --help`, all in groups of `--help-all`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sscl.config.messages import in_yaml
from sscl.config.sections import Section, choices, keys, marked, section_at

WIDE = 30  # columns of a key and its default; its meaning begins below where they need more
MOST_COMMON = 10  # keys of the short help; a command that has no more shows all
MEANING_LINES = 2  # of a key in the short help, where there are more keys


def help_text(kind: type[Section], *, width: int = 80) -> str:
    """Return the keys of a command as `key=default` with their meanings: the required ones first, then by section."""
    required: dict[str, str] = {}
    groups: dict[str, dict[str, str]] = {"": {}}
    for key, field in keys(kind).items():
        section = ".".join(key.split(".")[:-1])
        if field.default is not PydanticUndefined:
            name, text = _row(kind, key, field)
            groups.setdefault(section, {})[name] = text
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


def _row(kind: type[Section], key: str, field: FieldInfo) -> tuple[str, str]:
    """Return a key with its default, and its meaning."""
    if key in kind.CHOSEN:
        return key, f"{meaning(field)}; chosen from {kind.CHOSEN[key]}"
    return key if field.default is PydanticUndefined else f"{key}={in_yaml(field.default)}", meaning(field)


def common_keys(kind: type[Section]) -> dict[str, FieldInfo]:
    """Return the keys that matter most: the required ones and those marked `common`; all of a command with few."""
    found = keys(kind)
    if len(found) <= MOST_COMMON:
        return found
    sections = [(section_at(kind, _section_of(key)), key) for key in found]
    repeated = {key for i, (section, key) in enumerate(sections) if _is_repeated(section, key, sections[:i])}
    wanted = {key: field for key, field in found.items() if key not in repeated}
    # An entry of a list that may be left out is not required.
    needed = {key for key in wanted if kind.model_fields[key.split(".")[0]].is_required()}
    required = {key for key in needed if found[key].is_required()}
    return {key: field for key, field in wanted.items() if key in required or marked(field, "common")}


def _section_of(key: str) -> list[str]:
    return [part for part in key.split(".")[:-1] if part != "N"]


def _is_repeated(section: type[Section] | None, key: str, before: list[tuple[type[Section] | None, str]]) -> bool:
    """Return whether a key is of a section that was listed before under another name, as against is of data."""
    return any(section is other and _section_of(name) != _section_of(key) for other, name in before)


def short_help(kind: type[Section], *, width: int = 80) -> str:
    """Return the keys that matter most, the required ones first, each in a few lines."""
    found = common_keys(kind)
    first = sorted(found, key=lambda key: found[key].default is not PydanticUndefined)
    rows = dict(_row(kind, key, found[key]) for key in first)
    every, some = len(keys(kind)), len(found)
    head = "Keys" if every == some else f"The {some} keys that matter most, of {every}"
    lines = columns(rows, width=width, most=None if every == some else MEANING_LINES)
    return "\n".join([head, *lines])


def title(kind: type[Section], name: str, *, width: int) -> list[str]:
    """Return the heading of a section: its dotted name and what it is about; the whole configuration has none."""
    about = (kind.__doc__ or "").split("\n\n")[0].strip()
    return textwrap.wrap(f"{name}: {about}", width, subsequent_indent="  ") if name else ["Keys and their defaults"]


def meaning(field: FieldInfo) -> str:
    """Return a key's line of documentation with the values that it may have."""
    allowed = f" [{' | '.join(map(str, choices(field)))}]" if choices(field) else ""
    return f"{field.description}{allowed}"


def columns(rows: Mapping[str, str], *, width: int, most: int | None = None) -> list[str]:
    """Return lines of two columns: names, and texts that are wrapped beside them, cut after `most` lines."""
    lines = []
    for name, text in rows.items():
        body = textwrap.wrap(text, width - WIDE - 4, break_long_words=False, break_on_hyphens=False)
        if most is not None and len(body) > most:
            body = [*body[: most - 1], _cut(body[most - 1], width - WIDE - 4)]
        fits = len(name) <= WIDE
        lines.append(f"  {name:<{WIDE}}  {body[0]}" if fits else f"  {name}")
        lines += [f"{' ' * (WIDE + 4)}{line}" for line in (body[1:] if fits else body)]
    return lines


def _cut(line: str, width: int) -> str:
    """Return a line that ends with dots, as more would follow."""
    while len(line) + 4 > width:
        line = line.rpartition(" ")[0]
    return f"{line.rstrip(',;:')} ..."


def wrapped(text: str, *, width: int, indent: str = "") -> str:
    """Return paragraphs of text, each wrapped; `indent` is put before all of a paragraph's lines but its first."""
    return "\n\n".join(
        textwrap.fill(part, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        for part in text.split("\n\n")
    )
