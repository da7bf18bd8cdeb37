"""The shell scripts: their syntax, the Slurm job's choice between starting and resuming, the folder of a venv."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from sscl import config, device

ROOT = Path(__file__).resolve().parents[1]
SHELL = [
    path
    for path in sorted((ROOT / "scripts").iterdir())
    if path.is_file() and "bash" in path.read_text().split("\n")[0]
]


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_syntax(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "set -euo pipefail" in path.read_text()


def test_all_are_seen():
    assert {path.name for path in SHELL} >= {"bench", "demo", "install", "pretrain.slurm", "test"}


def program(folder: Path, name: str, text: str) -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/usr/bin/env bash\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def job(tmp_path: Path, *words: str, **settings: str) -> tuple[list[str], subprocess.CompletedProcess[str]]:
    """Run the job with an srun that prints what it was asked to start; returns that and all else."""
    program(tmp_path / "bin", "srun", 'printf "%s\\n" "$@" "OMP=$OMP_NUM_THREADS" "CACHE=$SSCL_CACHE"')
    program(tmp_path / "bin", "scontrol", 'test "$*" = "show hostnames n[7-8]" && echo n7 && sleep 0.1 && echo n8')
    given = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "USER": "me",
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "n[7-8]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_CPUS_PER_TASK": "30",
        **settings,
    }
    script = str(ROOT / "scripts" / "pretrain.slurm")
    done = subprocess.run(["bash", script, *words], cwd=tmp_path, env=given, capture_output=True, text=True)
    return done.stdout.splitlines(), done


def test_a_slurm_job_starts_torchrun_on_every_node(tmp_path):
    asked, done = job(tmp_path, "my config.yaml", "runs/x", "seed=1", SLURM_TMPDIR="/local")
    assert (done.returncode, done.stderr) == (0, "")
    start = asked.index("-m")
    assert asked[:2] == ["--kill-on-bad-exit=1", ".venv/bin/torchrun"]
    options = dict(zip(asked[2:start:2], asked[3:start:2], strict=True))
    assert options == {
        "--nnodes": "2",
        "--nproc-per-node": "4",
        "--rdzv-backend": "c10d",
        "--rdzv-id": "123456",
        "--rdzv-endpoint": "n7:23456",
    }
    command = ["-m", "sscl", "pretrain", "--config", "my config.yaml", "run=runs/x", "progress=false", "seed=1"]
    assert asked[start:] == [*command, "OMP=8", "CACHE=/local/sscl-me"]


def test_the_cache_and_the_threads_may_be_given(tmp_path):
    asked, _ = job(tmp_path, "c.yaml", "runs/x", SSCL_CACHE="/shared/cache", OMP_NUM_THREADS="2", SLURM_TMPDIR="/local")
    assert asked[-2:] == ["OMP=2", "CACHE=/shared/cache"]


@pytest.mark.parametrize(
    ("there", "restarts", "flag"),
    [
        ((), "0", None),
        ((), "1", None),
        (("env.json",), "0", None),  # something of another job: sscl says that it is there
        (("env.json",), "1", "--overwrite"),  # this job's own start, stopped before its first checkpoint
        (("env.json", "checkpoints/last.pt"), "0", "--resume"),
        (("env.json", "checkpoints/last.pt"), "2", "--resume"),
    ],
)
def test_a_slurm_job_resumes_or_starts(there, restarts, flag, tmp_path):
    for name in there:
        (tmp_path / "runs" / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / "x" / name).touch()
    asked, _ = job(tmp_path, "c.yaml", "runs/x", SLURM_RESTART_COUNT=restarts)
    flags = [word for word in asked if word in ("--resume", "--overwrite")]
    assert flags == ([] if flag is None else [flag])


@pytest.mark.parametrize(("words", "settings"), [(("c.yaml",), {}), (("c.yaml", "runs/x"), {"SLURM_JOB_ID": ""})])
def test_outside_slurm_it_says_how_it_is_used(words, settings, tmp_path):
    asked, done = job(tmp_path, *words, **settings)
    assert (asked, done.returncode) == ([], 2)
    assert done.stderr == "usage: sbatch scripts/pretrain.slurm CONFIG.yaml RUN [KEY=VALUE ...]\n"


def test_the_words_of_the_job_are_accepted(tmp_path):
    asked, _ = job(tmp_path, "c.yaml", "runs/x", "data.root=tiles")
    keys = [word for word in asked[asked.index("c.yaml") + 1 :] if "=" in word and word.islower()]
    file = ROOT / "configs" / "demo" / "pretrain.yaml"
    assert config.load_config(config.PretrainConfig, str(file), overrides=keys).run == "runs/x"


def checkout(tmp_path: Path) -> Path:
    """A checkout with scripts/install, whose Python only says what it was asked."""
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/install", "pyproject.toml", "constraints.txt", "constraints-pascal.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    fake = 'echo "$@" >> "$LOG"\nif [ "$2" = venv ]; then mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; fi'
    program(tmp_path, "python", fake)
    return tmp_path


def install(root: Path, *words: str, **settings: str) -> str:
    log = root / "log"
    log.unlink(missing_ok=True)
    given = {"PATH": os.environ["PATH"], "PYTHON": str(root / "python"), "LOG": str(log), **settings}
    subprocess.run(["bash", str(root / "scripts" / "install"), *words], env=given, check=True, capture_output=True)
    return log.read_text() if log.exists() else ""


def test_install_takes_another_folder(tmp_path):
    root, venv = checkout(tmp_path), tmp_path / "elsewhere" / "a venv"
    asked = install(root, "bench", SSCL_VENV=str(venv))
    assert f"-m venv --clear {venv}\n" in asked
    assert (
        "-m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .[bench]" in asked
    )
    assert (venv / "installed").is_file()
    assert not (root / ".venv").exists()
    assert "-m venv --clear .venv\n" in install(root)


@pytest.mark.parametrize(
    ("before", "after", "again"), [("dev", "", False), ("dev", "dev", False), ("dev", "bench", True), ("", "dev", True)]
)
def test_install_does_nothing_when_all_is_there(before, after, again, tmp_path):
    root = checkout(tmp_path)
    install(root, before)
    program(root, ".venv/bin/sscl", "exit 0")
    assert ("pip install" in install(root, after)) == again


def test_install_takes_other_versions(tmp_path):
    root = checkout(tmp_path)
    install(root)
    program(root, ".venv/bin/sscl", "exit 0")
    asked = install(root, SSCL_CONSTRAINTS="constraints-pascal.txt")
    assert "--constraint constraints-pascal.txt --editable ." in asked
    assert "pip install" not in install(root, SSCL_CONSTRAINTS="constraints-pascal.txt")


def test_the_versions_for_old_cards_are_those_that_the_error_names():
    pins = re.findall(r"^(torch(?:vision)?==.*)$", (ROOT / "constraints-pascal.txt").read_text(), re.MULTILINE)
    assert "pip install " + " ".join(f'"{pin}"' for pin in pins) == device.OLD_CARDS


def test_ruff_and_mypy_look_at_every_python_script():
    """Scripts without a suffix are seen only where pyproject.toml names them."""
    text = (ROOT / "pyproject.toml").read_text()
    ruff, mypy = (
        re.search(rf"^{key} = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)[1] for key in ("extend-include", "files")
    )
    for path in sorted((ROOT / "scripts").iterdir()):
        if path.is_file() and "python" in path.read_text().split("\n")[0]:
            assert f'"scripts/{path.name}"' in ruff
            assert f'"scripts/{path.name}"' in mypy
    for path in sorted((ROOT / "tests").rglob("*.py")):
        assert path.name.startswith("test_") or path.name == "conftest.py" or f'"{path.relative_to(ROOT)}"' in mypy
    assert '"tests/**/conftest.py"' in mypy


@pytest.mark.parametrize("lint", [0, 1])
def test_test_lints_checks_types_and_hands_its_arguments_to_pytest(lint, tmp_path):
    root = checkout(tmp_path)
    (root / "scripts" / "test").write_bytes((ROOT / "scripts" / "test").read_bytes())
    (root / "scripts" / "install").chmod(0o755)
    install(root, "dev")
    program(root, ".venv/bin/sscl", "exit 0")
    program(root, "bin/chromium", "exit 0")
    for name in ("ruff", "mypy", "pytest"):
        program(root, f".venv/bin/{name}", f'echo {name} "$@" >> "$LOG"\nexit {lint if name == "ruff" else 0}')
    (root / "log").unlink()
    given = {"PATH": f"{root / 'bin'}:{os.environ['PATH']}", "LOG": str(root / "log"), "TEST_WORKERS": "3"}
    done = subprocess.run(
        ["bash", str(root / "scripts" / "test"), "-k", "a b"], env=given, capture_output=True, cwd="/"
    )
    asked = (root / "log").read_text().splitlines()
    assert done.returncode == lint
    if lint:
        assert asked == ["ruff check ."]
    else:
        assert asked[:3] == ["ruff check .", "ruff format --check .", "-m compileall -q src"]
        collected, checked = sorted(asked[3:5])  # side by side
        assert (checked, collected[:11], collected[-7:]) == ("mypy", "-c import s", " -k a b")
        assert asked[5:] == ["pytest -n 3 --maxprocesses 8 --dist loadfile --no-loadscope-reorder -k a b"]
