"""What every configuration is made of: frozen pydantic sections, and the settings in them."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

SEEDS = 2**63  # a seed is below it: what torch and NumPy take
LARGEST_BATCH = 2**20


class Section(BaseModel):
    """A group of keys; unknown keys and wrong types are errors, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())

    # Keys whose value the command chooses where none is given, and by what, whatever the default; for its help.
    CHOSEN: ClassVar[Mapping[str, str]] = {}


# For lists in YAML: `Annotated[tuple[X, ...], Listed]`. Strict models accept no list for a tuple otherwise.
Listed = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)

Precision = Literal["auto", "fp32", "bf16", "fp16"]

# An entry of a list.
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
Fraction = Annotated[float, Field(gt=0, le=1)]

# Beside a validator that turns one mapping into a list of one, so that its keys are shown without a number.
OneOrMore = "one or more"


# Some keys of another section that a command changes. Which keys are valid is known once they lie over that section.
Changes = dict[str, object]


@dataclass(frozen=True)
class KeysOf:
    """Beside `Changes`: the section whose keys they are."""

    kind: type[Section]


def setting(
    default: Any, doc: str, *, free: bool = False, path: bool = False, common: bool = False, **bounds: Any
) -> Any:
    """Return a field of a section.

    Args:
        default: its default; `...` makes it required.
        doc: its line of documentation.
        free: whether it changes nothing that is learned, so that a run may be resumed or reused with another value.
        path: whether it names files or folders: ~ and $NAME are expanded, and two spellings of a place are equal.
        common: whether it is one of the few that `sscl COMMAND --help` lists; --help-all lists every key.
        bounds: its limits, in pydantic's names.
    """
    return Field(default, description=doc, json_schema_extra={"free": free, "path": path, "common": common}, **bounds)


# Settings of several commands are functions: pydantic writes into what a field is made of.


def precision_setting(**marks: bool) -> Any:
    """Return the field of the precision where no checkpoint says one; marks: as of `setting`."""
    return setting("auto", "auto: bf16 or fp16, what the GPU computes fast, otherwise fp32", **marks)


def marked(field: FieldInfo, mark: Literal["free", "path", "common"]) -> bool:
    """Return whether a setting is marked so, see `setting`."""
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra[mark])


def fault(key: str, message: str) -> PydanticCustomError:
    """Return the error of one key, for a validator of its whole section to raise.

    Args:
        key: the key within the section, as in `fold` or `1.root`.
        message: what is wrong, as in "must be <= 5 (train.folds), got 7".
    """
    return PydanticCustomError("setting", "{message}", {"key": key, "message": message})


def plain(config: Section) -> dict[str, object]:
    """Return the resolved configuration in plain containers, for YAML and checkpoints."""
    return config.model_dump(mode="json")


# --- what there is ---


def keys(kind: type[Section], prefix: str = "") -> dict[str, FieldInfo]:
    """Return every dotted key of a configuration with its field; N stands for the number in a list of sections."""
    found: dict[str, FieldInfo] = {}
    for name, field in kind.model_fields.items():
        section = section_type(field)
        if section is None:
            found[prefix + name] = field
        else:
            many = get_origin(field.annotation) is tuple and OneOrMore not in field.metadata
            found |= keys(section, f"{prefix}{name}.{'N.' if many else ''}")
    return found


def section_at(kind: type[Section], parts: Sequence[str]) -> type[Section] | None:
    """Return the section class at a dotted place, None where there is a plain value."""
    current: type[Section] = kind
    for part in parts:
        if part.isdigit():  # one of a list of sections; the list's name has led to their class
            continue
        field = current.model_fields.get(part)
        found = None if field is None else section_below(field)
        if found is None:
            return None
        current = found
    return current


def field_at(kind: type[Section], parts: Sequence[str]) -> FieldInfo | None:
    """Return the field at a dotted place, None where there is no such key."""
    section = section_at(kind, parts[:-1]) if parts else None
    return None if section is None else section.model_fields.get(parts[-1])


def section_type(field: FieldInfo) -> type[Section] | None:
    """Return the section class of a field: X itself, or that of a list of X; None where there are plain values."""
    annotation = field.annotation
    inner = get_args(annotation)[0] if get_origin(annotation) is tuple else annotation
    # tuple[int, int] is a type to Python 3.10, and no class to issubclass.
    return inner if get_origin(inner) is None and isinstance(inner, type) and issubclass(inner, Section) else None


def section_below(field: FieldInfo) -> type[Section] | None:
    """Return the section whose keys may follow that of a field: its own section, or the one that it changes."""
    changed = next((mark.kind for mark in field.metadata if isinstance(mark, KeysOf)), None)
    return section_type(field) or changed


def choices(field: FieldInfo) -> tuple[Any, ...]:
    """Return the values that a field is limited to, null aside; none where it is free text or a number."""
    kinds = [field.annotation, *get_args(field.annotation)]
    return next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())


def typed_as(kind: type[Section], parts: Sequence[str]) -> Typed:
    """Return how the value of a dotted key is read where it is typed, on the command line."""
    current: type[Section] | None = kind
    for depth, part in enumerate(parts):
        if part.isdigit():
            continue
        field = None if current is None else current.model_fields.get(part)
        if field is None:
            return "yaml"
        current = section_below(field)
        if current is None:
            plain_keys_below = any(not below.isdigit() for below in parts[depth + 1 :])
            return _typed(field.annotation, below=plain_keys_below)
    return "yaml"


Typed = Literal["text", "text or null", "words", "yaml"]


def _typed(annotation: Any, *, below: bool = False) -> Typed:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _typed(inner[0], below=below)
    if origin is tuple and inner[1:] == (Ellipsis,) and _typed(inner[0]) == "text":
        return "text" if below else "words"  # below: KEY=VALUE for another command, which reads it
    if below:
        return "yaml"
    if annotation is str or (origin is Literal and all(isinstance(choice, str) for choice in inner)):
        return "text"
    if origin in (Union, types.UnionType):
        of = {_typed(one) for one in inner if one is not type(None)}
        if of == {"text"}:
            return "text or null"
    return "yaml"
