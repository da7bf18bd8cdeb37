"""sscl demo: the commands it prints are those it runs, and what it names at the end is there."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sscl.commands import demo

YAML = {
    "synth": "{root: tiles, count: 32, size_px: 32, progress: false}",
    "inspect": "{data: {root: tiles, published: false, size_px: 32}, out: inspect, tiles: 4, progress: false}",
    "audit": "{data: {root: tiles, published: false, size_px: 32}, out: audit, progress: false}",
    "pretrain": "{run: p, device: cpu, data: {root: tiles, published: false, size_px: 32}, model: {name: resnet18}, "
    "train: {epochs: 1, batch_size: 8}, health: {tiles: 8}, log: {progress: false}}",
    "finetune": "{run: f, device: cpu, data: {root: tiles, published: false, size_px: 32}, model: {name: resnet18}, "
    "train: {epochs: 1, batch_size: 8}, log: {progress: false}}",
    "eval": "{checkpoint: f, device: cpu, bootstrap_samples: 20, progress: false}",
    "gradcam": "{checkpoint: f, device: cpu, per_class: 1, progress: false}",
    "report": "{runs: [f, audit], device: cpu, progress: false}",
}


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    folder = tmp_path / "my configs"
    folder.mkdir()
    for name, text in YAML.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_demo_prints_each_command_and_names_files_that_exist(
    cli: Any, configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps run in this process, which saves eight starts of Python; the next test starts one."""
    ran = []

    def here(words: list[str], *, check: bool) -> subprocess.CompletedProcess[bytes]:
        assert words[:3] == [sys.executable, "-m", "sscl"]
        ran.append(words[3:])
        return subprocess.CompletedProcess(words, cli(*words[3:]).code)

    monkeypatch.setattr(demo.subprocess, "run", here)

    result = cli("demo", f"run={tmp_path / 'demo run'}", f"configs={configs}")

    assert result.code == 0, result.err
    printed = [shlex.split(line[2:])[1:] for line in result.out.splitlines() if line.startswith("$ sscl ")]
    assert printed == ran
    names = [" ".join(words[: words.index("--config")]) for words in ran]
    assert names == ["data synth", "data inspect", "data audit", "pretrain", "finetune", "eval", "gradcam", "report"]
    _, _, ending = result.out.partition("Open:\n")
    named = [Path(line[26:]) for line in ending.splitlines()]
    assert len(named) == 7
    assert named[0].name == "report.html"
    assert all(path.is_file() for path in named), named
    assert {path.suffix for path in named[1:]} == {".png"}
    assert "minutes" in result.out


def test_a_failing_step_ends_the_demo(
    cli: Any, configs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The step is a real process; what it prints comes past this one's streams."""
    (configs / "synth.yaml").write_text("{root: tiles, count: 32, sise_px: 32}")

    result = cli("demo", f"run={tmp_path / 'run'}", f"configs={configs}")

    assert result.code == 2
    assert "sise_px: unknown key; did you mean size_px?" in capfd.readouterr().err
    assert result.err.startswith("sscl: demo: `sscl data synth ")
    assert result.err.endswith("failed, see above\n")
    assert result.err.count("\n") == 1
    assert result.out.count("$ sscl ") == 1
    assert not (tmp_path / "run/tiles").exists()


def test_configs_that_are_not_there_and_a_folder_that_exists(
    cli: Any, configs: Path, tmp_path: Path, snapshot: Any
) -> None:
    before = snapshot(tmp_path)

    missing = cli("demo", f"run={tmp_path / 'run'}", f"configs={tmp_path / 'nowhere'}")
    taken = cli("demo", f"run={configs}", f"configs={configs}", "--overwrite")

    assert missing.code == taken.code == 2
    assert "configs: " in missing.err
    assert "not written by sscl" in taken.err
    assert snapshot(tmp_path) == before


def test_shipped_configs_are_found() -> None:
    assert {path.stem for path in demo.SHIPPED.glob("*.yaml")} >= set(YAML)
