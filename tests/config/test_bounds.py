"""Every number of every configuration has a lower and an upper bound, and what is beyond them ends in one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic.fields import FieldInfo

from sscl import cli, config
from sscl.config import CompareConfig, FinetuneConfig, PretrainConfig, load_config
from sscl.config.sections import Section, section_below, section_type

LOWER, UPPER = ("gt", "ge"), ("lt", "le")


def bounds(marks: list[Any]) -> set[str]:
    return {name for mark in marks for name in (*LOWER, *UPPER) if getattr(mark, name, None) is not None}


def numbers(annotation: Any, marks: list[Any]) -> Iterator[tuple[Any, set[str]]]:
    """Yield every int and float in a type, with the names of its bounds."""
    if annotation in (int, float):
        yield annotation, bounds(marks)
    elif get_origin(annotation) is Annotated:
        inner, *own = get_args(annotation)
        yield from numbers(inner, [one for mark in own for one in getattr(mark, "metadata", [mark])])
    elif get_origin(annotation) in (tuple, dict):
        for inner in get_args(annotation):
            yield from numbers(inner, [])  # the bounds of a list are not those of its entries
    else:
        for inner in get_args(annotation):
            yield from numbers(inner, marks)


def settings(kind: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in kind.model_fields.items():
        below = section_below(field) if section_type(field) is None else section_type(field)
        if below is None:
            yield f"{prefix}{name}", field
        else:
            yield from settings(below, f"{prefix}{name}.")


def test_every_number_has_two_bounds():
    lacking, found = [], 0
    for command in cli.COMMANDS.values():
        for key, field in settings(getattr(config, command.config)):
            for kind, has in numbers(field.annotation, field.metadata):
                found += 1
                if not (has & set(LOWER) and has & set(UPPER)):
                    lacking.append(f"{command.config} {key}: {kind.__name__} with {sorted(has) or 'no bound'}")
    assert found > 200
    assert lacking == []


EXTREMES = ["1e300", "-1e300", "9" * 90, "-" + "9" * 90, ".inf", "-.inf", ".nan", "true", "18446744073709551616"]


def one_or_all(field: FieldInfo, value: str) -> str:
    """Return the value, or as many of it as the setting is a list of."""
    shape = next((one for one in (field.annotation, *get_args(field.annotation)) if "tuple" in str(one)), None)
    if shape is None:
        return value
    listed = shape if get_origin(shape) is tuple else get_args(shape)[0]
    return f"[{', '.join([value] * (2 if Ellipsis in get_args(listed) else len(get_args(listed))))}]"


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig])
def test_no_number_of_a_training_takes_an_extreme(kind):
    keys = {key: field for key, field in settings(kind) if any(True for _ in numbers(field.annotation, []))}
    assert len(keys) > 35
    for key, field in keys.items():
        for value in EXTREMES:
            with pytest.raises(ValueError) as caught:
                load_config(kind, overrides=["run=r", "data.root=d", f"{key}={one_or_all(field, value)}"])
            assert all(line.startswith((f"{key}:", f"{key}.")) for line in str(caught.value).splitlines())


def test_a_comparison_is_of_so_many_runs():
    seeds, fractions = list(range(101)), [i / 100 for i in range(1, 101)]
    words = ["out=o", "runs=[{name: a, command: pretrain, config: c}]", f"seeds={seeds}", f"fractions={fractions}"]
    with pytest.raises(ValueError, match=r"^runs: .*10,100 runs"):
        load_config(CompareConfig, overrides=words)
