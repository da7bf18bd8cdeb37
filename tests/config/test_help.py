from __future__ import annotations

from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic_core import PydanticUndefined

from sscl import cli, config
from sscl.config import PretrainConfig, help_text
from sscl.config.help import MOST_COMMON


def own_keys(kind: Any, prefix: str = "") -> dict[str, Any]:
    """Every dotted key with its default, by the classes alone; N stands for the number of a list's section."""
    found: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        element = get_args(field.annotation)[0] if get_origin(field.annotation) is tuple else None
        if hasattr(element, "model_fields"):
            # Pretraining's data may be one section, and mostly is: its keys go without a number.
            found |= own_keys(
                element, f"{prefix}{name}." if (kind, name) == (PretrainConfig, "data") else f"{prefix}{name}.N."
            )
        elif isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
            found |= own_keys(field.annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = field.default
    return found


def entries(text: str) -> dict[str, tuple[str | None, str]]:
    """Every key of a help text with its default, None where it is required, and its meaning."""
    found: dict[str, tuple[str | None, str]] = {}
    key = ""
    for line in text.splitlines():
        if line.startswith("  ") and line[2:3].strip() and not line.startswith("  --"):
            head, _, rest = line[2:].partition("  ")
            key, equals, default = head.partition("=")
            found[key] = (default if equals else None, rest.strip())
        elif line.startswith("   ") and key:
            found[key] = (found[key][0], f"{found[key][1]} {line.strip()}".strip())
        else:
            key = ""
    return found


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_lists_every_key_with_its_default(name, capsys):
    assert cli.main([*name.split(), "--help-all"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for flag in cli.COMMANDS[name].flags:
        assert f"\n  --{flag}" in text
    shown = entries(text)
    wanted = own_keys(getattr(config, cli.COMMANDS[name].config))
    again = tuple(line.partition(":")[0] for line in text.splitlines() if ": The same keys as " in line)
    for key, default in wanted.items():
        if key.rpartition(".")[0] in again:  # a list of what has a section of its own
            continue
        given, meaning = shown[key]
        assert len(meaning) > 5, key
        if default is PydanticUndefined or key in getattr(config, cli.COMMANDS[name].config).CHOSEN:
            assert given is None
            continue
        expected = list(default) if isinstance(default, tuple) else default
        numbers = isinstance(expected, float) or (
            isinstance(expected, list) and all(isinstance(entry, (int, float)) for entry in expected)
        )
        assert yaml.safe_load(given) == (pytest.approx(expected, rel=1e-5) if numbers else expected), key


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_short_help_has_the_keys_that_matter(name, capsys):
    assert cli.main([*name.split(), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    for flag in cli.COMMANDS[name].flags:
        assert any(line.startswith(f"  --{flag}") for line in lines)
    kind = getattr(config, cli.COMMANDS[name].config)
    start = next((i for i, line in enumerate(lines) if line.startswith(("Keys", "The "))), len(lines))
    shown = entries("\n".join(lines[start + 1 :]))
    every = config.keys(kind)
    assert shown.keys() <= every.keys()
    assert len(shown) <= MOST_COMMON
    required = {key for key, field in every.items() if field.is_required() and ".N." not in key}
    assert required <= shown.keys()
    assert len(shown) == len(every) or any("--help-all" in line for line in lines)


def test_required_keys_come_first_and_the_others_by_section():
    heads = [line.partition(":")[0] for line in help_text(PretrainConfig).splitlines() if line[:1].strip()]
    assert heads[:2] == ["Required", "Keys and their defaults"]
    assert heads[2:] == ["data", "augment", "model", "projection", "train", "train.lora", "health", "log"]
    required = help_text(PretrainConfig).split("\n\n")[0]
    assert list(entries(required)) == ["run", "data.root"]


def test_keys_of_lists_of_sections_have_a_number():
    assert "data.weight" in entries(help_text(PretrainConfig))
    listed = entries(help_text(config.ProbeConfig))
    assert listed["encoders.N.name"][0] is None
    assert "(required)" in listed["encoders.N.name"][1]
    assert "sets.N.root" in listed


@pytest.mark.parametrize("width", [60, 100])
def test_lines_are_as_wide_as_the_terminal(width):
    lines = help_text(PretrainConfig, width=width).splitlines()
    assert width - 12 < max(map(len, lines)) <= width


def test_keys_that_were_listed_before_are_not_listed_again():
    text = help_text(config.AuditConfig)
    assert text.count("group_near_duplicates") == 1
    assert "\nagainst.N: The same keys as data." in text


def test_help_lists_the_allowed_words():
    assert "[sgd | lars | adamw]" in " ".join(help_text(PretrainConfig).split())
