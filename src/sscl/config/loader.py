"""The strict YAML loader: a file, `KEY=VALUE` words on top, all faults at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from sscl.config import shipped, strict_yaml
from sscl.config.messages import explain, shown
from sscl.config.sections import Section, field_at, marked, section_below, typed_as
from sscl.config.strict_yaml import StrictLoader, TextLoader
from sscl.places import expanded, printable
from sscl.reading import read_text
from sscl.words import count, short

LARGEST = 2**20  # bytes of a YAML file; those that come with sscl have some 2,000

# Other names of a key, where a command has that key.
SYNONYMS = {"from": "model.weights", "log.progress": "progress", "run": "checkpoint"}

Config = TypeVar("Config", bound=Section)


def load_config(
    kind: type[Config],
    path: str | Path | None = None,
    *,
    overrides: Sequence[str | tuple[str, object]] = (),
    resume: bool = False,
) -> Config:
    """Return the configuration of a command from a YAML file and `KEY=VALUE` overrides.

    Values of keys that are text are taken as typed; all others are read as YAML. In paths `~` and `$NAME` are expanded.

    Args:
        kind: the command's configuration.
        path: a YAML file, or the name of a shipped config (`demo/pretrain`).
        overrides: what comes on top: `KEY=VALUE` words, or keys with what they are set to.
        resume: whether a run goes on, so that without a file its own configuration holds.

    Raises:
        FileNotFoundError: neither a file nor a shipped config.
        ValueError: one line a fault, all faults at once, each naming the dotted key.
    """
    file = shipped.find(path) if path is not None else None
    source = "command line" if file is None else str(path)
    text = "" if file is None else read_text(file, at_most=LARGEST)
    content = _mapping(file, text) if file is not None else _of_run(kind, overrides) if resume else {}
    faults = list(_cut_paths(kind, text))
    _use_main_names(kind, content)
    given: dict[str, tuple[str, object]] = {}  # by their main name: the key as typed, and its value
    for word in overrides:
        typed, value = _typed(kind, word) if isinstance(word, str) else word
        dotted = main_name(kind, typed)
        before, first = given.setdefault(dotted, (typed, value))
        if before != typed and first != value:
            raise ValueError(_two_names(typed, value, before, first))
        _set_key(content, dotted, value)
    faults += _expand(kind, content)
    if faults:
        raise ValueError("\n".join(f"{line} ({source})" for line in faults))
    return validate(kind, content, source=source, folder=None if file is None else file.parent)


def _of_run(kind: type[Section], overrides: Sequence[str | tuple[str, object]]) -> dict[str, object]:
    """Return the configuration of the run that the words name, which is to go on.

    Raises:
        ValueError: they name none, or one of another command.
        FileNotFoundError: there is no such run.
    """
    pairs = [(word.partition("=")[0], word.partition("=")[2]) if isinstance(word, str) else word for word in overrides]
    given = dict(pairs)
    run = str(given.get("run") or "")
    if not run:
        raise ValueError("run: missing; name the run folder that --resume continues, as in run=runs/a")
    file = Path(expanded(run)) / "config.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent}: nothing to resume (no config.yaml); start without --resume")
    content = read_yaml(file)
    others = sorted(content.keys() - kind.model_fields.keys())
    if others:
        raise ValueError(f"{file}: is of another command (it has {', '.join(others)}); resume with that one")
    data, train = content.get("data"), content.get("train")
    if isinstance(data, list) and len(data) == 1:  # so that data.root names its root
        content["data"] = data = data[0]
    if isinstance(data, dict) and "data.root" in given and data.get("groups_csv"):
        groups, root = Path(str(data["groups_csv"])), str(data.get("root"))
        if groups.is_relative_to(root):  # it has moved with the tiles
            data["groups_csv"] = str(Path(str(given["data.root"])) / groups.relative_to(root))
    if isinstance(train, dict):
        train.pop("stop_after_epoch", None)  # has been reached
    return content


def read_yaml(path: str | Path) -> dict[str, object]:
    """Return a YAML file's mapping.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: not YAML, not a mapping, or more than a config needs (see `strict_yaml`).
    """
    path = shipped.find(path)
    return _mapping(path, read_text(path, at_most=LARGEST))


def _mapping(path: Path, text: str) -> dict[str, object]:
    try:
        content = strict_yaml.read(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
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


def read_word(kind: type[Section], dotted: str, text: str) -> Any:
    """Return what the value of `KEY=VALUE` stands for.

    Text is taken as typed; where a key may be null, `null` or nothing is null. A list of texts is `[a, b]` or one text.
    All else is YAML.
    """
    typed = typed_as(kind, dotted.split("."))
    if typed == "text":
        return text
    if typed == "text or null":
        return None if text in ("", "null") else text
    if typed == "words":
        listed = _from_yaml(dotted, text, TextLoader) if text.startswith(("[", "{")) else text
        return listed if isinstance(listed, (list, dict)) else [text] if text else []
    return _from_yaml(dotted, text, StrictLoader) if text else None


def _from_yaml(dotted: str, text: str, loader: type[StrictLoader]) -> Any:
    try:
        return strict_yaml.read(text, loader=loader)
    except ValueError as error:
        if loader is StrictLoader and text.startswith(("[", "{")):  # meant as YAML
            raise ValueError(f"{dotted}: {error}, got {shown(text)}") from None
        return text


# --- other names of a key ---


def main_name(kind: type[Section], dotted: str) -> str:
    """Return the key that a typed one stands for: itself, or what it is a synonym of."""
    meant = SYNONYMS.get(dotted)
    known = meant is not None and field_at(kind, meant.split(".")) and not field_at(kind, dotted.split("."))
    return meant if meant is not None and known else dotted


def _use_main_names(kind: type[Section], content: dict[str, object]) -> None:
    """Move what a file gives under another name of a key to that key."""
    for other in SYNONYMS:
        meant = main_name(kind, other)
        *parents, last = other.split(".")
        place: Any = content
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if meant == other or not isinstance(place, dict) or last not in place:
            continue
        value = place.pop(last)
        *parents, last = meant.split(".")
        place = content
        for parent in parents:
            place = place.setdefault(parent, {}) if isinstance(place, dict) else place
        if not isinstance(place, dict):
            continue  # a fault that validation names
        if last in place and place[last] != value:
            raise ValueError(_two_names(other, value, meant, place[last]))
        place[last] = value


def _two_names(one: str, value: object, other: str, second: object) -> str:
    return f"{one}: got {shown(value)}, but {other} is {shown(second)}; they are one key, give one of them"


# --- words over the file ---


def _typed(kind: type[Section], word: str) -> tuple[str, object]:
    """Return the key and the value of a `KEY=VALUE` word."""
    typed, equals, text = word.partition("=")
    if not equals or not all(typed.split(".")) or not typed.isprintable():
        raise ValueError(f"argument {short(repr(word))}: must be KEY=VALUE, as in train.epochs=10")
    value = read_word(kind, main_name(kind, typed), text)
    if isinstance(value, str) and len(value) > strict_yaml.LONGEST_TEXT:
        raise ValueError(f"{typed}: a text of more than {count(strict_yaml.LONGEST_TEXT, 'character')}")
    return typed, value


def _set_key(content: dict[str, object], dotted: str, value: object) -> None:
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


# --- paths ---


def _cut_paths(kind: type[Section], text: str) -> Iterator[str]:
    """Yield a line for each path in a file that YAML ends at a #, as `root: Case #2`, which is the folder Case."""
    if re.search(r"[ \t]#\S", text):  # seldom: a comment has a space behind its #
        yield from _cut_below(kind, strict_yaml.nodes(text), text, ())


def _cut_below(kind: type[Section], node: yaml.Node | None, text: str, parts: tuple[str, ...]) -> Iterator[str]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _cut_below(kind, value, text, (*parts, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _cut_below(kind, value, text, (*parts, str(i)))
    elif isinstance(node, yaml.ScalarNode) and node.style is None:
        dotted = main_name(kind, ".".join(parts))
        field = field_at(kind, [part for part in dotted.split(".") if not part.isdigit()])
        end = text.find("\n", node.end_mark.index)
        rest = text[node.end_mark.index : end if end >= 0 else None]
        if field is not None and marked(field, "path") and re.match(r"[ \t]+#\S", rest):
            whole = node.value + rest.rstrip()
            yield (
                f"{dotted}: YAML takes {rest.strip()} for a comment; write {whole!r} in quotes if it is a part of the "
                "path, or a space behind the # if it is not"
            )


def _expand(kind: type[Section], content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Expand ~ and $NAME in every path, in place; yield a line for each that cannot be."""
    for name, value in content.items():
        field = kind.model_fields.get(name)
        if field is None:
            continue
        below = section_below(field)
        if below is not None:
            for i, section in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(section, dict):
                    yield from _expand(below, section, f"{prefix}{name}.{f'{i}.' if isinstance(value, list) else ''}")
        elif marked(field, "path"):
            try:
                if isinstance(value, str):
                    content[name] = _place(value)
                elif isinstance(value, list):
                    content[name] = [_place(one) if isinstance(one, str) else one for one in value]
            except ValueError as error:
                yield f"{prefix}{name}: {short(str(error), most=500)}"


def _place(path: str) -> str:
    """Return a path, expanded; config.yaml and env.json are UTF-8, so a name that is not cannot stand in them."""
    if any("\udc80" <= letter <= "\udcff" for letter in path):
        raise ValueError(f"{printable(path)}: is not UTF-8; rename it")
    return expanded(path)
