"""sscl doctor: what it finds, also where something is missing or broken; it never ends in a traceback."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from sscl import locks
from sscl.cli import main
from sscl.doctor import machine, packages
from sscl.doctor.findings import Finding, State

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def quick(wrap: Any) -> dict[str, str]:
    """Import nothing; what a test puts here cannot be imported."""
    broken: dict[str, str] = {}
    wrap(doctor_imports=lambda real, modules: {name: why for name, why in broken.items() if name in modules})
    return broken


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {one.name: one for one in findings}


def test_every_extra_for_users_is_known() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    extras = set(re.findall(r"^(\w+) = \[", text.partition("\n[project.scripts]")[0], re.MULTILINE))
    assert extras - {"bench", "dev", "docs", "notebooks"} - packages.EXTRAS.keys() == set()
    for name, extra in packages.EXTRAS.items():
        assert all(package in text for package in extra.modules), name


def test_a_package_that_raises_or_ends_python_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raises_it.py").write_text("raise RuntimeError('two\\nlines é')")
    (tmp_path / "leaves_it.py").write_text("import sys; print('x'); sys.exit('gone')")
    (tmp_path / "kills_it.py").write_text("import os; os._exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = packages.import_all(["json", "raises_it", "kills_it", "leaves_it", "csv"])
    assert found.keys() == {"raises_it", "kills_it", "leaves_it"}
    assert found["raises_it"].startswith("RuntimeError: two lines")
    assert "code 3" in found["kills_it"]


def test_what_works_is_said_in_80_columns(
    quick: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").mkdir()
    assert main(["doctor", "cache_dir=cache"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if len(line) > 80 and "/" not in line] == []
    assert torch.__version__.partition("+")[0] in out
    assert "Training works here" in out
    assert [path.name for path in tmp_path.rglob("*")] == ["cache"]  # nothing is left behind


def test_a_broken_extra_is_a_note_and_a_broken_torch_a_fault(
    quick: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    quick["timm"] = "ImportError: libx.so"
    assert main(["doctor", "--json"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert (found["timm"]["state"], "libx.so" in found["timm"]["text"]) == ("note", True)
    quick["torch"] = "OSError: libtorch.so"
    assert main(["doctor", "--json"]) == 1
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert found["torch"]["state"] == "fault"
    assert "GPU" not in found
    assert main(["doctor"]) == 1
    assert "Training would fail:\n  - torch: " in capsys.readouterr().out


def test_a_torchvision_of_another_torch_is_a_note(quick: dict[str, str]) -> None:
    """Only ImageNet weights need it."""
    quick["torchvision"] = "RuntimeError: operator torchvision::nms does not exist"
    found = by_name(packages.software()["Software"])
    assert (found["torchvision"].state, found["torch"].state) == (State.NOTE, State.FINE)


def test_a_missing_package_is_a_fault(quick: dict[str, str], wrap: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "requirements", lambda: ["torch", "torchvision", "no-such-package"])
    found = by_name(packages.software()["Software"])
    assert (found["no-such-package"].state, found["torch"].state) == (State.FAULT, State.FINE)


def test_a_cache_that_cannot_be_written_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    found = by_name(machine.files(tmp_path / "file" / "cache"))
    assert (found["cache"].state, found["working folder"].state) == (State.FAULT, State.FINE)
    monkeypatch.setenv("SSCL_CACHE", "$NO_SUCH_VARIABLE/cache")
    assert by_name(machine.files())["cache"].state is State.FAULT


def test_files_that_are_being_written_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dead.lock").touch()
    with locks.held(tmp_path / "tiles.npy"):
        text = by_name(machine.files(tmp_path))["cache, its files"].text
    assert "1 file being written" in text
    assert "1 lock of" in text


def test_cards_are_named_with_kernels_and_free_memory(
    with_cards: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quick: dict[str, str]
) -> None:
    def memory(device: torch.device) -> tuple[int, int]:
        if device.index == 2:
            raise RuntimeError("CUDA error: device lost\nmore")
        return 7 * 2**30, 8 * 2**30

    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    with_cards((8, 0), (6, 1), (8, 0), built=["sm_80"])
    found = by_name(machine.computer(torch_works=True))
    assert [found[f"GPU {n}"].state for n in range(3)] == [State.FINE, State.NOTE, State.FAULT]
    assert "7.0 GiB of 8.0 GiB free, precision bf16" in found["GPU 0"].text
    assert "6.1" in found["GPU 1"].text
    assert "torch==2.7.1" in found["GPU 1"].to_do
    assert "device lost" in found["GPU 2"].text
    assert main(["doctor"]) == 1

    with_cards((8, 0))
    assert main(["doctor"]) == 0
    assert "works here, on the GPU" in capsys.readouterr().out


def test_without_a_card_or_without_torch() -> None:
    assert "GPU" not in by_name(machine.computer(torch_works=False))


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a card")
def test_why_torch_sees_no_card_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = by_name(machine.computer(torch_works=True))["GPU"]
    monkeypatch.setattr(machine, "DRIVER", tmp_path)
    assert found.gpu is False
    assert by_name(machine.computer(torch_works=True))["GPU"].state is State.NOTE
