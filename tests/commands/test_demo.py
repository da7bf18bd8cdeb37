"""sscl demo: its commands are accepted, and a failing one ends it; tests/test_wheel.py runs the whole of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sscl.cli import parse
from sscl.commands import demo


@pytest.fixture
def demo_configs(tmp_path: Path) -> Path:
    folder = tmp_path / "my configs"
    folder.mkdir()
    for step in demo.steps("demo", tmp_path):
        (folder / f"{Path(step.config).name}.yaml").touch()
    return folder


def test_a_failing_step_ends_the_demo(
    cli: Any, demo_configs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The step is a real process; what it prints comes past this one's streams."""
    (demo_configs / "synth.yaml").write_text("{root: tiles, count: 32, sise_px: 32}")

    result = cli("demo", f"run={tmp_path / 'run'}", f"configs={demo_configs}")

    assert result.code == 2
    assert "sise_px: unknown key; did you mean size_px?" in capfd.readouterr().err
    assert result.err.startswith("sscl: demo: `sscl data synth ")
    assert result.err.count("\n") == 1
    assert result.out.count("$ sscl ") == 1
    assert not (tmp_path / "run/tiles").exists()


def test_configs_that_are_not_there_and_a_folder_that_exists(
    cli: Any, demo_configs: Path, tmp_path: Path, snapshot: Any
) -> None:
    before = snapshot(tmp_path)

    missing = cli("demo", f"run={tmp_path / 'run'}", f"configs={tmp_path / 'nowhere'}")
    taken = cli("demo", f"run={demo_configs}", f"configs={demo_configs}", "--overwrite")

    assert missing.code == taken.code == 2
    assert "configs: " in missing.err
    assert "not written by sscl" in taken.err
    assert snapshot(tmp_path) == before


def test_the_commands_start_from_the_shipped_configs(tmp_path: Path) -> None:
    for step in demo.steps("demo", tmp_path):
        name = " ".join(step.words[: step.words.index(step.config)])
        given = parse(name, step.words[len(name.split()) :])
        assert given.found.config == step.config
        assert step.config.startswith("demo/")
        assert isinstance(given.load(), given.kind)
