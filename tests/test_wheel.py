"""The wheel alone: built, installed into a venv that has not seen the checkout, and used there."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import venv
from itertools import takewhile
from pathlib import Path
from types import ModuleType

import pytest
import torch

import forked
from sscl import __version__
from sscl.config import shipped

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "synth": "{root: tiles, count: 24, size_px: 32, progress: false}",
    "inspect": "{data: {root: tiles, published: false, size_px: 32}, out: inspect, tiles: 4, progress: false}",
    "audit": "{data: {root: tiles, published: false, size_px: 32}, out: audit, neighbours: 1, stretched: false, "
    "progress: false}",
    "pretrain": "{run: p, device: cpu, data: {root: tiles, published: false, size_px: 32}, "
    "model: {name: timm:test_resnet}, train: {epochs: 1, batch_size: 8}, health: {tiles: 8}, progress: false}",
    "finetune": "{run: f, device: cpu, data: {root: tiles, published: false, size_px: 32}, "
    "model: {name: timm:test_resnet}, train: {epochs: 1, batch_size: 8}, progress: false}",
    "tenth": "{out: t, root: tiles, device: cpu, progress: false, runs: ["
    "{name: a, command: finetune, config: few.yaml, set: {model: {weights: null}}}, "
    "{name: b, command: finetune, config: few.yaml}]}",
    "few": "{run: few, device: cpu, data: {root: tiles, published: false, size_px: 32}, "
    "model: {name: timm:test_resnet}, train: {epochs: 1, batch_size: 4}, progress: false}",
    "eval": "{checkpoint: f, device: cpu, progress: false}",
    "gradcam": "{checkpoint: f, device: cpu, per_class: 1, progress: false}",
    "slide": "{root: s, count: 1, size_px: 400, mpp: 2, progress: false}",
    "predict": "{checkpoint: f, paths: [s], device: cpu, progress: false}",
    "report": "{runs: [f, audit], device: cpu, progress: false}",
}
# The demo, with one of its commands in a process of the venv's, the one that needs no torch; the others, in this one,
# spare the other starts. This one is forked, which spares the imports, and its sscl is then that of the wheel. Charts
# are blank; tests/plots renders them. What training takes of the memory is estimated once a net.
DEMO = """
import os, sys
from PIL import Image
sys.executable, packages = sys.argv.pop(1), sys.argv.pop(1)
for module in [name for name in sys.modules if name.split(".")[0] == "sscl"]:
    del sys.modules[module]
sys.path[:] = [packages, *(place for place in sys.path if not os.path.isdir(os.path.join(place, "sscl")))]
from sscl import cli, forks
from sscl.commands import demo
from sscl.plots import base, calibration, charts
from sscl.train import memory
start, estimate, known = forks.run, memory.activation_bytes, {}
def estimated(model, **how):
    key = str(model)
    if key not in known:
        known[key] = estimate(model, **how)
    return known[key]
memory.activation_bytes = estimated
def blank(*_, path, **__):
    with base.writing(path) as temporary:
        if path.suffix == ".svg":
            svg = '<svg xmlns="http://www.w3.org/2000/svg" width="9pt" height="9pt" viewBox="0 0 9 9"></svg>'
            temporary.write_text(svg)
        else:
            Image.new("L", (9, 9)).save(temporary, format="png")
base.save_figure = lambda figure, path: blank(path=path)
for module in (charts, calibration):
    for name in [name for name in vars(module) if name.startswith("plot_")]:
        setattr(module, name, blank)
def run(words, **how):
    return start(words, **how) if words[:2] == ["slides", "synth"] else cli.main(words) or 0
forks.run, demo.IMPORTED = run, ("sscl.cli",)
assert cli.__file__.startswith(packages) and base.__file__.startswith(packages)
sys.exit(cli.main(["demo", *sys.argv[1:]]))
"""
BUILD = """
import os, sys
os.chdir(sys.argv[1])
from setuptools import build_meta
build_meta.build_wheel(sys.argv[2])
"""
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "src")


class Installed:
    """A venv with sscl from the wheel; what sscl depends on is taken from this Python's packages."""

    def __init__(self, folder: Path) -> None:
        source, self.folder = folder / "source", folder / "venv"
        source.mkdir(parents=True)
        for name in BUILT_FROM:  # a copy, so that no build/ is left in the checkout
            subprocess.run(["cp", "-r", ROOT / name, source], check=True)
        # By what pip calls, which starts three Pythons for that.
        done = forked.run(BUILD, source, folder, env=self.environment)
        assert done.returncode == 0, done.stderr
        venv.create(self.folder, with_pip=False)
        (self.wheel,) = folder.glob("sscl-*.whl")
        pip = ["-m", "pip", "--quiet", "--disable-pip-version-check", f"--python={self.python}"]
        self.run(*pip, "install", "--no-deps", self.wheel, program=Path(sys.executable))
        (self.packages,) = (self.folder / "lib").glob("python*/site-packages")
        # This folder goes onto the path; the .pth files in it (an editable install) are not read.
        (self.packages / "dependencies.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def environment(self) -> dict[str, str]:
        known = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return {**known, "SSCL_CACHE": str(self.folder / "cache"), "OMP_NUM_THREADS": "1"}

    def run(self, *words: object, program: Path | None = None) -> str:
        """Return the output of a program in the venv's folder, without what points to the checkout."""
        words = (program or self.python, *words)
        done = subprocess.run([*map(str, words)], cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def sscl(self, *words: object) -> str:
        return self.run(*words, program=self.folder / "bin" / "sscl")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("wheel"))


def test_it_is_the_wheel_that_is_imported(installed: Installed) -> None:
    place = Path(installed.run("-c", "import sscl; print(sscl.__file__)").strip())
    assert place.is_relative_to(installed.folder)


def test_the_configs_come_with_it(installed: Installed) -> None:
    listed = installed.sscl("configs").split()
    assert set(shipped.names()) <= set(listed)
    assert installed.sscl("configs", "mhist/official/finetune") == shipped.find("mhist/official/finetune").read_text()


def test_no_file_of_the_package_is_left_out(installed: Installed, release: ModuleType) -> None:
    source = ROOT / "src"
    files = [path for path in source.rglob("*") if path.is_file() and path.suffix not in (".pyc", ".nbc", ".nbi")]
    tracked = [path.relative_to(ROOT).as_posix() for path in files if ".egg-info" not in path.as_posix()]
    assert {"src/sscl/configs/demo/pretrain.yaml", "src/sscl/py.typed"} <= set(tracked)
    assert release.missing(installed.wheel, [*tracked, "docs/index.md"]) == []
    assert release.missing(installed.wheel, ["src/sscl/not_there.jinja"]) == ["src/sscl/not_there.jinja"]
    assert release.version_of(installed.wheel) == __version__


def test_the_demo_runs_and_what_it_names_exists(
    installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in TINY.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.chdir(installed.folder)
    words = (installed.python, installed.packages, "run=demo run", f"configs={tmp_path}")
    done = forked.run(DEMO, *words, env=installed.environment)
    assert done.returncode == 0, done.stderr + done.stdout
    commands = [shlex.split(line[2:])[1:] for line in done.stdout.splitlines() if line.startswith("$ sscl ")]
    names = [" ".join(takewhile(lambda word: not word.endswith(".yaml"), words)) for words in commands]
    assert names[:4] == ["data synth", "data inspect", "data audit", "pretrain"]
    assert [name.split()[0] for name in names[4:]] == [
        *(
            "compare",
            "finetune",
            "eval",
            "finetune",
            "eval",
            "finetune",
            "eval",
            "gradcam",
            "slides",
            "predict",
            "report",
        ),
    ]
    _, _, ending = done.stdout.partition("Open:\n")
    named = [installed.folder / line[32:] for line in ending.splitlines()]
    assert len(named) == 9
    assert [path.name for path in named[:2]] == ["report.html", "slide.html"]
    assert "syn_00000.svs/slide.html" in named[0].read_text()
    assert all(path.is_file() for path in named), named
    assert {path.suffix for path in named[2:]} == {".png", ".md", ".txt"}
