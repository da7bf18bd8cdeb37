"""sscl completion: what the script of bash offers, and that all scripts have every command, key and config."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sscl import cli, config
from sscl.cli.completion import SCRIPTS, completed
from sscl.config import shipped

ASK = r"""
source "$1"; cd "$2"
COMP_WORDBREAKS=$' \t\n"\'><=;|&(:'
while IFS= read -r COMP_LINE; do
  COMP_POINT=${#COMP_LINE} COMPREPLY=()
  _sscl
  (IFS='|'; echo "${COMPREPLY[*]}")
done
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_what_bash_offers(tmp_path: Path) -> None:
    (tmp_path / "files/my tiles").mkdir(parents=True)
    (tmp_path / "files/a.yaml").touch()
    (tmp_path / "sscl.bash").write_text(SCRIPTS["bash"](), encoding="utf-8")
    wanted = {
        "sscl pretr": ["pretrain "],
        "sscl --v": ["--version "],
        "sscl data ins": ["inspect "],
        "sscl pretrain train.ep": ["train.epochs="],
        "sscl finetune fro": ["from="],
        "sscl eval data.ro": ["data.root="],
        "sscl pretrain train.optimizer=": ["sgd ", "lars ", "adamw "],
        "sscl data audit data.source=fo": ["folder "],
        "sscl pretrain demo/": ["demo/pretrain "],
        "sscl configs mhist/official/f": ["mhist/official/finetune "],
        "sscl finetune --res": ["--resume "],
        "sscl pretrain fil": ["files/"],
        "sscl pretrain run=fil": ["files/"],
        "sscl pretrain files/": ["files/my\\ tiles/", "files/a.yaml "],
        "sscl gradcam checks=": ["true ", "false "],
        "sscl completion z": [],
        "sscl nonsense zz": [],
    }
    done = subprocess.run(
        ["bash", "--norc", "-c", ASK, "bash", tmp_path / "sscl.bash", tmp_path],
        input="".join(f"{line}\n" for line in wanted),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    found = [line.split("|") if line else [] for line in done.stdout.splitlines()]
    assert [sorted(line) for line in found] == [sorted(line) for line in wanted.values()]


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_script_has_all_there_is(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    text = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert name.split()[-1] in text
    assert all(key in text for key in ("train.epochs=", "data.size_px=", "gradcam.threshold="))
    assert [name for name in shipped.names() if name not in text] == []


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_key_that_can_be_typed_is_offered(name: str) -> None:
    kind = getattr(config, cli.COMMANDS[name].config)
    found = completed(name)
    typed = {key for key in config.keys(kind) if ".N." not in key}
    below = {one.rpartition(".")[0] for one in found.keys}  # of data, the keys of its section
    assert typed - found.keys.keys() - below == set()
    assert all(found.values.values())


def test_an_unknown_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "tcsh"]) == 2
    assert "bash" in capsys.readouterr().err
