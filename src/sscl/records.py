"""Records that are written as JSON and read again: frozen, every field named and typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from sscl.places import missing
from sscl.writing import write_text


class Record(BaseModel):
    """A frozen record; unknown or missing fields are errors, and NaN is refused (an undefined number is None)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Record)


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
    if not path.is_file():
        raise FileNotFoundError(f"{missing(path, 'file')}; write it with {made_by}")
    try:
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"])) or "the file"
        raise ValueError(f"{path}: {place}: {fault['msg'].lower()}; write it again with {made_by}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); write it again with {made_by}") from None
