"""The text of `sscl COMMAND --help`: a command's keys, defaults and meanings."""

from __future__ import annotations

from pydantic_core import PydanticUndefined

from sscl.config.messages import in_yaml
from sscl.config.sections import Section, choices, keys


def help_text(kind: type[Section]) -> str:
    """Return the list of a command's keys: key, default, meaning with unit."""
    rows = []
    for key, field in keys(kind).items():
        default = "(required)" if field.default is PydanticUndefined else in_yaml(field.default)
        allowed = f" [{' | '.join(map(str, choices(field)))}]" if choices(field) else ""
        rows.append((key, default, f"{field.description}{allowed}"))
    width, wide = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    return "\n".join(f"  {key:<{width}}  {default:<{wide}}  {doc}" for key, default, doc in rows)
