"""sscl configs: the YAML files that come with sscl."""

from __future__ import annotations

import itertools
import textwrap

from sscl.config import ConfigsConfig, shipped
from sscl.words import next_command

WIDTH = 80  # columns


def main(config: ConfigsConfig) -> None:
    """Print the list of shipped configs, or one of them as it is.

    Raises:
        FileNotFoundError: no shipped config has that name.
    """
    if config.name is not None:
        print(shipped.by_name(config.name, key="name").read_text(encoding="utf-8"), end="")
        return
    print(listing())
    print(f"\n{next_command('init', 'TILES')}")


def listing() -> str:
    """Return every shipped config with its title, grouped by folder, at most WIDTH columns wide."""
    lines = [
        "Start from one with `sscl COMMAND NAME KEY=VALUE`;",
        "`sscl configs NAME > my.yaml` copies it.",
    ]
    for _, group in itertools.groupby(shipped.names(), key=lambda name: name.rpartition("/")[0]):
        rows = [(name, shipped.title(name)) for name in group]
        width = max(len(name) for name, _ in rows)
        lines.append("")
        for name, title in rows:
            lines += textwrap.wrap(
                title, WIDTH, initial_indent=f"  {name:<{width}}  ", subsequent_indent=" " * (width + 4)
            )
    return "\n".join(lines)
