"""Faults of a configuration in one line each: the key, what must be, what was given, and what to write instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from sscl.config.sections import Section, choices, field_at, keys, section_at, section_type
from sscl.words import MOST, closest, count, listed, short


@dataclass(frozen=True)
class Fault:
    """One thing that pydantic found."""

    kind: type[Section]  # of the whole configuration
    parts: tuple[str, ...]  # of the dotted key
    given: Any
    context: Mapping[str, Any]
    text: str  # pydantic's own sentence

    @property
    def key(self) -> str:
        """The dotted key."""
        return ".".join(self.parts)

    def must_be(self, what: str) -> str:
        """Return the line for a value that is not what it must be."""
        return f"{self.key}: must be {what}, got {shown(self.given)}"


def explain(kind: type[Section], error: ValidationError, content: Any) -> list[str]:
    """Return one line for each fault of a configuration.

    Args:
        kind: its class.
        error: what pydantic raised.
        content: what was given, as it was read.
    """
    lines = []
    for found in error.errors()[:MOST]:
        fault = _fault(kind, found, content)
        lines.append(MESSAGES.get(found["type"], _other)(fault))
    more = error.error_count() - MOST
    return [*dict.fromkeys(lines), *([f"and {count(more, 'fault')} more"] if more > 0 else [])]


def shown(value: Any, *, mappings: bool = False) -> str:
    """Return a value as it is written in YAML, text in quotes, at most 60 characters; mappings where that is asked."""
    if isinstance(value, dict) and not mappings:
        return "a mapping"
    return short(repr(value) if isinstance(value, str) else " ".join(in_yaml(value).split()))


def in_yaml(value: Any) -> str:
    """Return a value as it is written in YAML, numbers with up to 6 digits."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(in_yaml(v) for v in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {in_yaml(v)}' for key, v in value.items())}}}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _fault(kind: type[Section], found: ErrorDetails, content: Any) -> Fault:
    parts: list[str] = []
    for part in found["loc"]:
        field = field_at(kind, parts)
        one_for_many = part == 0 and isinstance(content, dict) and 0 not in content
        if part == "[key]" or (one_for_many and field is not None and section_type(field) is not None):
            continue  # one section given where a list may stand
        parts.append(short(str(part)))
        if isinstance(content, dict):
            content = content.get(part)
        elif isinstance(content, (list, tuple)) and isinstance(part, int) and part < len(content):
            content = content[part]
    return Fault(kind, tuple(parts), found["input"], found.get("ctx", {}), found["msg"])


# --- what each kind of fault is called ---


def _must_be(what: str) -> Callable[[Fault], str]:
    return lambda fault: fault.must_be(what)


def _other(fault: Fault) -> str:
    return f"{fault.key}: {fault.text}, got {shown(fault.given)}"


def _unknown_key(fault: Fault) -> str:
    *parents, name = fault.parts
    section = section_at(fault.kind, parents)
    names = [] if section is None else list(section.model_fields)
    by_name = {key.split(".")[-1]: key for key in reversed(keys(fault.kind))}
    near = closest(name, names)
    elsewhere = by_name.get(name) or by_name.get(closest(name, by_name, cutoff=0.8) or "")
    if name in by_name or near is None:
        hint = f"allowed are {', '.join(names)}" if elsewhere is None else f"did you mean {elsewhere}?"
    else:
        hint = f"did you mean {'.'.join([*parents, near])}?"
    return f"{fault.key}: unknown key; {hint}"


def _missing(fault: Fault) -> str:
    if fault.parts[-1].isdigit():  # of a list's numbers
        return _list(replace(fault, parts=fault.parts[:-1]))
    section = section_at(fault.kind, fault.parts)
    required = [name for name, field in section.model_fields.items() if field.is_required()] if section else []
    parts = [*fault.parts, *required[:1]]
    key, field = ".".join(parts), field_at(fault.kind, parts)
    # A key that a word of the command line sets says so at the end of its documentation: "...; also RUN".
    word = (field.description or "").rpartition("; also ")[2] if field else ""
    return f"{key}: missing; set it in the YAML file, or give {f'{word} or ' if word.isupper() else ''}{key}=VALUE"


def _one_of(fault: Fault) -> str:
    field = field_at(fault.kind, fault.parts)
    names = [str(choice) for choice in choices(field)] if field is not None else []
    near = closest(str(fault.given), names)
    return fault.must_be(listed(names, last="or")) + (f"; did you mean {near}?" if near else "")


def _bounds(fault: Fault) -> str:
    """Return all bounds of the key, or of its list's entries, not only the one that was overstepped."""
    field = field_at(fault.kind, fault.parts) or field_at(fault.kind, fault.parts[:-1])
    own = [] if field is None else [field.metadata, *_marks(field.annotation)]
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = {
        name: f"{sign} {limit:.6g}" if isinstance(limit, float) or abs(limit) < 1e6 else f"{sign} {limit}"
        for name, sign in signs.items()
        for marks in own
        for bound in marks
        if (limit := getattr(bound, name, None)) is not None
    }
    return fault.must_be(" and ".join(limits.values()))


def _marks(annotation: Any) -> Iterator[Sequence[Any]]:
    """Yield what stands beside each type within a type, such as the bounds of a list's entries."""
    if get_origin(annotation) is Annotated:
        yield [
            one
            for mark in get_args(annotation)[1:]
            for one in (mark.metadata if isinstance(mark, FieldInfo) else [mark])
        ]
    for inner in get_args(annotation):
        yield from _marks(inner)


def _text(fault: Fault) -> str:
    """Return the line for what YAML reads as something else than text."""
    must, name = fault.must_be("text"), fault.parts[-1] if fault.parts else "key"
    written = "" if name.isdigit() else f"{name}: "
    if isinstance(fault.given, dict):
        return f"{must}; ': ' makes a mapping: quote the text, as in {written}'A: B'"
    if fault.given is None or isinstance(fault.given, (bool, int, float)):
        return f"{must}; to have it read as text, quote it: {written}'{in_yaml(fault.given)}'"
    return must


def _list(fault: Fault) -> str:
    field = field_at(fault.kind, fault.parts)
    numbers = _numbers(None if field is None else field.annotation)
    return fault.must_be(f"a list of {numbers} numbers" if numbers else "a list, [a, b, ...]")


def _numbers(annotation: Any) -> int | None:
    """Return how many numbers a list has to have, None where it may have any number of entries."""
    if get_origin(annotation) is tuple:
        entries = get_args(annotation)
        return None if Ellipsis in entries else len(entries)
    # A list that may be null, or that is annotated with validators.
    return next((found for inner in get_args(annotation) if (found := _numbers(inner))), None)


def _too_few(fault: Fault) -> str:
    return f"{fault.key}: is empty; name at least {fault.context['min_length']}"


def _no_section(fault: Fault) -> str:
    return fault.must_be(f"a mapping (`{fault.parts[-1] if fault.parts else 'key'}: {{...}}`)")


def _own(fault: Fault) -> str:
    return f"{fault.key}: {fault.context['error']}"


def _own_of_a_key(fault: Fault) -> str:
    return f"{'.'.join([*fault.parts, fault.context['key']])}: {fault.context['message']}"


# By pydantic's name of the fault: https://docs.pydantic.dev/latest/errors/validation_errors/
MESSAGES: dict[str, Callable[[Fault], str]] = {
    "bool_type": _must_be("true or false"),
    "dict_type": _must_be("a mapping (`{key: value}`)"),
    "extra_forbidden": _unknown_key,
    "finite_number": _must_be("a finite number"),
    "float_type": _must_be("a number"),
    "greater_than": _bounds,
    "greater_than_equal": _bounds,
    "int_type": _must_be("an integer"),
    "invalid_key": _unknown_key,
    "less_than": _bounds,
    "less_than_equal": _bounds,
    "literal_error": _one_of,
    "missing": _missing,
    "model_type": _no_section,
    "setting": _own_of_a_key,
    "string_too_short": _must_be("text that is not empty"),
    "string_type": _text,
    "too_long": _list,
    "too_short": _too_few,
    "tuple_type": _list,
    "value_error": _own,
}
