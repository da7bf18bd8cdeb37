from __future__ import annotations

from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic_core import PydanticUndefined

from sscl import cli, config
from sscl.config import PretrainConfig


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


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_lists_every_key_with_its_default(name, capsys):
    assert cli.main([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    for flag in cli.COMMANDS[name].flags:
        assert f"\n  --{flag}" in text
    for key, default in own_keys(getattr(config, cli.COMMANDS[name].config)).items():
        line = next(line for line in text.splitlines() if line.split()[:1] == [key])
        rest = line.removeprefix(f"  {key}").strip()
        if default is PydanticUndefined:
            assert rest.startswith("(required)  ")
            continue
        shown, _, meaning = rest.partition("  ")
        value = yaml.safe_load(shown)
        expected = list(default) if isinstance(default, tuple) else default
        numbers = isinstance(expected, float) or (
            isinstance(expected, list) and all(isinstance(entry, (int, float)) for entry in expected)
        )
        assert value == (pytest.approx(expected, rel=1e-5) if numbers else expected), key
        assert meaning.strip(), f"{key} has no line of documentation"


def test_help_shows_the_keys_of_lists_of_sections():
    text = config.help_text(PretrainConfig)
    assert "\n  data.root " in text
    assert "\n  data.weight " in text
    assert "data.N" not in text
    listed = config.help_text(config.ProbeConfig)
    assert "\n  encoders.N.name " in listed
    assert "\n  sets.N.root " in listed


def test_help_lists_the_allowed_words():
    assert "[sgd | lars | adamw]" in config.help_text(PretrainConfig)
