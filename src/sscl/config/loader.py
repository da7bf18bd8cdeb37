"""The strict YAML loader: a file, `KEY=VALUE` words on top, all faults at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from sscl.config import shipped
from sscl.config.messages import explain, shown
from sscl.config.sections import Section

Config = TypeVar("Config", bound=Section)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, reads 1e-4 as a number, which YAML 1.1 calls a string, and a date as
    the text it is: no setting is a date, and runs are named after dates.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"line {key.start_mark.line + 1}: a key must be a word, got a list or mapping")
            if key.value in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: key {key.value!r} is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def load_config(kind: type[Config], path: str | Path | None = None, *, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a command from a YAML file and `KEY=VALUE` overrides.

    Args:
        kind: the command's configuration.
        path: a YAML file, or the name of a shipped config (`demo/pretrain`).
        overrides: words that come on top.

    Raises:
        FileNotFoundError: neither a file nor a shipped config.
        ValueError: one line a fault, all faults at once, each naming the dotted key.
    """
    file = shipped.find(path) if path is not None else None
    content = read_yaml(file) if file is not None else {}
    for text in overrides:
        _set_key(content, text)
    if file is None:
        return validate(kind, content, source="command line")
    return validate(kind, content, source=str(path), folder=file.parent)


def read_yaml(path: str | Path) -> dict[str, object]:
    """Return a YAML file's mapping.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: not YAML, or not a mapping.
    """
    path = shipped.find(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold keys and values (`key: value`), got a {type(content).__name__}")
    return content


def validate(kind: type[Config], content: Mapping[str, object], *, source: str, folder: Path | None = None) -> Config:
    """Return the validated configuration; `folder` is where its file lies, for keys that name a file beside it.

    Raises:
        ValueError: one line a fault, all at once.
    """
    try:
        return kind.model_validate(content, context={"folder": folder})
    except ValidationError as error:
        raise ValueError("\n".join(f"{line} ({source})" for line in explain(kind, error, content))) from None


def parse_value(text: str) -> Any:
    """Return what the value of `KEY=VALUE` stands for: read as YAML, text where it is none, null where empty."""
    try:
        return yaml.load(text, Loader=_Loader) if text else None
    except (yaml.YAMLError, ValueError):
        return text


def _set_key(content: dict[str, object], text: str) -> None:
    dotted, equals, raw = text.partition("=")
    if not equals or not all(dotted.split(".")):
        raise ValueError(f"argument {text!r}: must be KEY=VALUE, as in train.epochs=10")
    value = parse_value(raw)
    *parents, last = dotted.split(".")
    place: Any = content
    for depth, parent in enumerate(parents):
        if isinstance(place, dict) and place.get(parent) is None:
            place[parent] = {}
        place = place[_index(place, parent, dotted) if isinstance(place, list) else parent]
        if not isinstance(place, (dict, list)):
            raise ValueError(f"{dotted}: {parent} is set to {shown(place)}, so it has no keys below it")
        if isinstance(place, list) and not [*parents, last][depth + 1].isdigit():
            name = ".".join(parents[: depth + 1])
            raise ValueError(
                f"{dotted}: {name} is a list of {len(place)}; name one: {dotted.replace(name, f'{name}.0', 1)}=..."
            )
    place[_index(place, last, dotted) if isinstance(place, list) else last] = value


def _index(place: list[Any], word: str, dotted: str) -> int:
    if not word.isdigit() or int(word) >= len(place):
        allowed = f"allowed are 0 to {len(place) - 1}" if place else "the list is empty"
        raise ValueError(f"{dotted}: no entry {word} in the list; {allowed}")
    return int(word)
