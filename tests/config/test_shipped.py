"""Shipped configs by name: from any folder, beside files, in a list that fits the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from sscl.cli import main
from sscl.commands.configs import WIDTH, listing
from sscl.config import CompareConfig, PretrainConfig, load_config, shipped
from sscl.train.plan import plan


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_names_are_the_files_of_the_folder() -> None:
    there = {path.relative_to(shipped.FOLDER).as_posix() for path in shipped.FOLDER.rglob("*") if path.is_file()}
    assert {f"{name}.yaml" for name in shipped.names()} == there


def test_a_name_is_a_config_and_a_file_that_exists_wins(tmp_path: Path) -> None:
    assert load_config(PretrainConfig, "demo/pretrain").run == "demo-run/pretrain"
    assert load_config(PretrainConfig, "demo/pretrain.yaml") == load_config(PretrainConfig, "demo/pretrain")
    (tmp_path / "demo").mkdir()
    assert load_config(PretrainConfig, "demo/pretrain").run == "demo-run/pretrain"
    (tmp_path / "demo/pretrain").write_text("{run: mine, data: {root: d}}")
    assert load_config(PretrainConfig, "demo/pretrain").run == "mine"


def test_a_name_that_does_not_exist_brings_the_nearest() -> None:
    with pytest.raises(
        FileNotFoundError, match=r"^--config: .*mhist/oficial/eval; did you mean mhist/official/eval\?$"
    ):
        shipped.find("mhist/oficial/eval")
    with pytest.raises(FileNotFoundError, match=r"^--config: .*nowhere; `sscl configs` lists"):
        shipped.find("nowhere")


@pytest.mark.parametrize(
    "name", [name for name in shipped.names() if name.endswith(("labels", "labels_nuclei", "compare"))]
)
def test_the_entries_of_a_comparison_are_found_from_anywhere_and_in_a_copy(name: str, tmp_path: Path) -> None:
    (tmp_path / "copy.yaml").write_text(shipped.find(name).read_text())
    config = load_config(CompareConfig, name)
    steps = plan(config)
    assert {step.entry.name for step in steps} == {entry.name for entry in config.runs}
    assert plan(load_config(CompareConfig, "copy.yaml")) == steps


def test_the_list_names_all_each_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    rows = dict(line.split(maxsplit=1) for line in lines if line.startswith("  "))
    assert rows == {name: shipped.title(name) for name in shipped.names()}
    assert "\n".join(lines[:-2]) == listing()
    assert lines[-1].startswith("next: sscl ")


def test_one_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "mhist/official/finetune"]) == 0
    assert capsys.readouterr().out == shipped.find("mhist/official/finetune").read_text()
    assert main(["configs", "mhist/finetune"]) == 2
    assert "name: " in capsys.readouterr().err
