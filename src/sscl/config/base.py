"""What every configuration is made of: frozen pydantic sections and the strict YAML loader with its messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sscl.config import shipped


class Section(BaseModel):
    """A group of keys; unknown keys and wrong types are errors, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# For lists in YAML: `Annotated[tuple[X, ...], Listed]`. Strict models take no list for a tuple otherwise.
Listed = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)

# Beside a validator that turns one mapping into a list of one, so that its keys are shown without a number.
OneOrMore = "one or more"


def setting(default: Any, doc: str, *, free: bool = False, path: bool = False, **bounds: Any) -> Any:
    """Return a field of a section.

    Args:
        default: its default; `...` makes it required.
        doc: its line of documentation.
        free: whether it changes nothing that is learned, so that a run may be resumed or reused with another value.
        path: whether it names a file or folder, so that two spellings of the same place are equal.
        bounds: its limits, in pydantic's names.
    """
    return Field(default, description=doc, json_schema_extra={"free": free, "path": path}, **bounds)


def marked(field: FieldInfo, mark: str) -> bool:
    """Return whether a setting is marked `free` or `path`."""
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra[mark])


Config = TypeVar("Config", bound=Section)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, reads 1e-4 as a number, which YAML 1.1 calls a string, and a date as
    the text it is: no key takes a date, and runs are named after them.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"line {key.start_mark.line + 1}: a key must be a plain word, not a list or mapping")
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
    """Return the configuration of a command from a YAML file and `key.path=value` overrides.

    Args:
        kind: the command's configuration.
        path: a YAML file, or the name of a shipped config (`demo/pretrain`).
        overrides: words that come on top.

    Raises:
        FileNotFoundError: neither a file nor a shipped config.
        ValueError: one line a fault, all faults at once, each naming the dotted key.
    """
    file = shipped.find(path) if path is not None else None
    content: dict[str, Any] = read_yaml(file) if file is not None else {}
    for text in overrides:
        _set_key(content, text)
    if file is None:
        return validate(kind, content, source="command line")
    return validate(kind, content, source=str(path), folder=file.parent)


def read_yaml(path: str | Path) -> dict[str, Any]:
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
        raise ValueError(f"{path}: expected keys and values (`key: value`), got a {type(content).__name__}")
    return content


def validate(kind: type[Config], content: dict[str, Any], *, source: str, folder: Path | None = None) -> Config:
    """Return the validated configuration; `folder` is where its file lies, for keys that name a file beside it.

    Raises:
        ValueError: one line a fault, all at once.
    """
    try:
        return kind.model_validate(content, context={"folder": folder})
    except ValidationError as error:
        lines = [_explain(kind, dict(fault), content) for fault in error.errors()]
        raise ValueError("\n".join(f"{line} ({source})" for line in dict.fromkeys(lines))) from None


def parse_value(text: str) -> Any:
    """Return what the value of `key.path=value` stands for: read as YAML, text where it is none, null where empty."""
    try:
        return yaml.load(text, Loader=_Loader) if text else None
    except (yaml.YAMLError, ValueError):
        return text


def _set_key(content: dict[str, Any], text: str) -> None:
    dotted, equals, raw = text.partition("=")
    if not equals or not all(dotted.split(".")):
        raise ValueError(f"argument {text!r}: expected key.path=value, for instance train.epochs=10")
    value = parse_value(raw)
    *parents, last = dotted.split(".")
    place: Any = content
    for depth, parent in enumerate(parents):
        if isinstance(place, dict) and place.get(parent) is None:
            place[parent] = {}
        place = place[_index(place, parent, dotted) if isinstance(place, list) else parent]
        if not isinstance(place, (dict, list)):
            raise ValueError(f"{dotted}: {parent} was given the value {shown(place)}, so it has no keys below it")
        if isinstance(place, list) and not [*parents, last][depth + 1].isdigit():
            name = ".".join(parents[: depth + 1])
            raise ValueError(
                f"{dotted}: {name} is a list of {len(place)}; name one: {dotted.replace(name, f'{name}.0', 1)}=..."
            )
    place[_index(place, last, dotted) if isinstance(place, list) else last] = value


def _index(place: list[Any], word: str, dotted: str) -> int:
    if not word.isdigit() or int(word) >= len(place):
        allowed = f"allowed are 0 to {len(place) - 1}" if place else "which has none"
        raise ValueError(f"{dotted}: got number {word} of a list of {len(place)}, {allowed}")
    return int(word)


def _explain(kind: type[Section], fault: dict[str, Any], content: Any) -> str:
    """Return one line for a pydantic fault: the dotted key, what was got, what is allowed, the nearest key."""
    parts: list[str] = []
    for part in fault["loc"]:
        if str(part).startswith(("function-", "tuple", "nullable")):
            continue
        if part == 0 and isinstance(content, dict) and 0 not in content and _element(kind, parts) is not None:
            continue  # one section given where a list may stand
        parts.append(str(part))
        if isinstance(content, dict):
            content = content.get(part)
        elif isinstance(content, (list, tuple)) and isinstance(part, int) and part < len(content):
            content = content[part]
    dotted, what, context = ".".join(parts), fault["type"], fault.get("ctx", {})
    got = f"got {shown(fault['input'])}"
    if what in ("extra_forbidden", "invalid_key"):
        section = _section(kind, parts[:-1])
        names = list(section.model_fields) if section is not None else []
        near = difflib.get_close_matches(parts[-1], names, n=1, cutoff=0.5)
        if near:
            hint = f"did you mean {'.'.join([*parts[:-1], near[0]])}?"
        else:
            owners = [name for name in keys(kind) if name.split(".")[-1] == parts[-1]]
            hint = f"did you mean {owners[0]}?" if owners else f"allowed are {', '.join(names)}"
        return f"{dotted}: unknown key; {hint}"
    if what in ("tuple_type", "too_long") or (what == "missing" and isinstance(fault["loc"][-1], int)):
        if what == "missing":  # of a list's numbers
            dotted = ".".join(parts[:-1])
        return f"{dotted}: {got}, allowed is a list{_length(kind, dotted.split('.'))}"
    if what == "missing":
        section = _section(kind, parts)
        if section is not None:
            required = [name for name, field in section.model_fields.items() if field.is_required()]
            dotted = f"{dotted}.{required[0]}" if required else dotted
        return f"{dotted}: missing; give it in the YAML file or as {dotted}=VALUE"
    if what == "literal_error":
        return (
            f"{dotted}: {got}, allowed are {str(context['expected']).replace(' or ', ', ')}{_nearest(fault, context)}"
        )
    if what == "value_error":
        message = str(context.get("error", fault["msg"]))
        key, colon, rest = message.partition(": ")
        if colon and re.fullmatch(r"[\w.]+", key):  # raised for one key of a section
            return f"{dotted}.{key}: {rest}" if dotted else message
        return f"{dotted}: {got}; {message}"
    if what.startswith(("greater", "less")):
        return f"{dotted}: {got}, allowed is {_limits(kind, parts)}"
    if what == "string_too_short":
        return f"{dotted}: {got}, allowed is a name that is not empty"
    if what == "string_type" and isinstance(fault["input"], (bool, int, float)):
        return f"{dotted}: {got}, allowed is text; if that is meant, quote it within the value: \"'...'\""
    if what == "model_type" or what == "model_attributes_type":
        return f"{dotted}: {got}, expected keys below it (`{parts[-1] if parts else 'key'}: {{...}}`)"
    allowed = str(fault["msg"]).replace("Input should be", "allowed is")
    return f"{dotted}: {got}, {allowed}"


def _length(kind: type[Section], parts: Sequence[str]) -> str:
    """Return how many numbers a list takes, in words; how it is written where it takes any number of entries."""
    section = _section(kind, parts[:-1])
    field = None if section is None else section.model_fields.get(parts[-1])
    if field is None or Ellipsis in get_args(field.annotation):
        return ", [a, b, ...]"
    return f" of {3 if field.default is None else len(field.default)} numbers"  # means and deviations are null or three


def _limits(kind: type[Section], parts: Sequence[str]) -> str:
    """Return all bounds of a key, not only the one that was overstepped."""
    section = _section(kind, parts[:-1])
    assert section is not None, parts
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    found = [
        f"{sign} {getattr(bound, name):.6g}" if abs(getattr(bound, name)) < 1e6 else f"{sign} {getattr(bound, name)}"
        for name, sign in signs.items()
        for bound in section.model_fields[parts[-1]].metadata
        if hasattr(bound, name)
    ]
    return " and ".join(found)


def _nearest(fault: dict[str, Any], context: dict[str, Any]) -> str:
    names = re.findall(r"'([^']+)'", str(context["expected"]))
    near = difflib.get_close_matches(str(fault["input"]), names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def shown(value: Any) -> str:
    """Return a value as it is written in YAML, text in quotes, at most 60 characters."""
    if isinstance(value, dict):
        return "a mapping"
    text = repr(value) if isinstance(value, str) else _yaml_value(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _section(kind: type[Section], parts: Sequence[str]) -> type[Section] | None:
    """Return the section class at a dotted place, None where there is a plain value."""
    current: type[Section] = kind
    for part in parts:
        if part.isdigit():  # one of a list of sections; the section was entered with the list's own name
            continue
        field = current.model_fields.get(part)
        found = None if field is None else _section_type(field.annotation)
        if found is None:
            return None
        current = found
    return current


def _section_type(annotation: Any) -> type[Section] | None:
    """Return the section class of a key: X itself, or that of a list of X; None where there are plain values."""
    inner = get_args(annotation)[0] if get_origin(annotation) is tuple else annotation
    return inner if isinstance(inner, type) and issubclass(inner, Section) else None


def _element(kind: type[Section], parts: Sequence[str]) -> type[Section] | None:
    """Return the section class of a list's entries, None where there is no list of sections at that place."""
    section = _section(kind, parts[:-1]) if parts else None
    field = section.model_fields.get(parts[-1]) if section is not None else None
    listed = field is not None and get_origin(field.annotation) is tuple
    return _section_type(field.annotation) if listed and field is not None else None


def keys(kind: type[Section], prefix: str = "") -> dict[str, tuple[Any, str]]:
    """Return every dotted key of a command with its default and its line of documentation."""
    found: dict[str, tuple[Any, str]] = {}
    for name, field in kind.model_fields.items():
        section = _section(kind, [name])
        if section is not None:
            # A list's own default is not shown: what an entry of it takes is.
            many = get_origin(field.annotation) is tuple and OneOrMore not in field.metadata
            found |= keys(section, f"{prefix}{name}.{'N.' if many else ''}")
        else:
            found[prefix + name] = (field.default, _described(field))
    return found


def _described(field: Any) -> str:
    choices = get_args(field.annotation) if "Literal" in str(field.annotation) else ()
    text = field.description or ""
    return f"{text} [{' | '.join(map(str, choices))}]" if choices else text


def help_text(kind: type[Section]) -> str:
    """Return the list of a command's keys: key, default, meaning with unit."""
    rows = keys(kind)
    width = max(map(len, rows))
    shown = {
        name: "(required)" if default is PydanticUndefined else _yaml_value(default)
        for name, (default, _) in rows.items()
    }
    wide = max(map(len, shown.values()))
    return "\n".join(f"  {name:<{width}}  {shown[name]:<{wide}}  {doc}" for name, (_, doc) in rows.items())


def _yaml_value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_yaml_value(v) for v in value)}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def plain(config: Section) -> dict[str, Any]:
    """Return the resolved configuration in plain containers, for YAML and checkpoints."""
    return config.model_dump(mode="json")
