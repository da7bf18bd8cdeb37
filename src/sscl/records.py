"""Records that are written as JSON and read again: frozen, every field named and typed."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from sscl.places import printable
from sscl.reading import parse_json, read_text
from sscl.words import short
from sscl.writing import write_text

LARGEST = 2**26  # bytes of a JSON file


class Record(BaseModel):
    """A frozen record; unknown or missing fields are errors, and NaN is refused (an undefined number is None)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Record)
Data = TypeVar("Data")


@functools.cache
def _fields(kind: Any) -> type[BaseModel]:
    """Return the model of a dataclass's fields."""
    hints = get_type_hints(kind, include_extras=True)
    rules = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    has_default = {field.name for field in dataclasses.fields(kind) if field.init and not _required(field)}
    fields: dict[str, Any] = {name: (hint, None if name in has_default else ...) for name, hint in hints.items()}
    return create_model(kind.__name__, __config__=rules, **fields)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def strictly(kind: type[Data], content: object, *, at: str = "") -> Data:
    """Return the dataclass that a mapping holds the fields of; none is converted.

    Args:
        kind: the dataclass.
        content: what was read.
        at: what stands before a field's name in an error.

    Raises:
        ValueError: a field is missing, unknown, or of another type or beyond its bounds.
    """
    try:
        found = _fields(kind).model_validate(content)  # type: ignore[arg-type]
        return kind(**{name: getattr(found, name) for name in found.model_fields_set})
    except ValidationError as error:
        raise ValueError(f"{at}{first_fault(error, whole='it')}") from None


def first_fault(error: ValidationError, *, whole: str) -> str:
    """Return the first of the faults that pydantic found, as in "loss: input should be a valid number".

    Args:
        whole: what is at fault where it is no field.
    """
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(short(str(part)) for part in fault["loc"]) or whole
    return f"{place}: {short(' '.join(fault['msg'].lower().split()), most=200)}"


def write_record(path: Path, record: Record) -> None:
    """Write a record as JSON in one step."""
    write_text(path, record.model_dump_json(indent=2, by_alias=True) + "\n")


def read_record(kind: type[Kind], path: Path, *, made_by: str) -> Kind:
    """Return the record in a JSON file.

    Args:
        kind: the class of the record.
        path: the file.
        made_by: the command that writes such a file, for the message.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or a field is missing, unknown or of another type; one line.
    """
    name = printable(str(path))
    try:
        content = read_text(path, at_most=LARGEST)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; write it with {made_by}") from None
    try:
        return kind.model_validate(parse_json(content))
    except ValidationError as error:
        said = first_fault(error, whole="the file")
        raise ValueError(f"{name}: {said}; write it again with {made_by}") from None
    except ValueError as error:
        raise ValueError(f"{name}: not JSON ({short(str(error), most=200)}); write it again with {made_by}") from None
