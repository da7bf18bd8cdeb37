"""The notebooks: every cell runs, at toy size; they hold their outputs; the first is what the quickstart says."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
QUICK = ["device=cpu", "progress=false"]
TINY = {
    "data synth": ["count=24", "size_px=32"],
    "data audit": ["data.size_px=32", "neighbours=1", "stretched=false"],
    "pretrain": [
        *("model.name=timm:test_resnet", "model.output_stride=32", "data.size_px=32", "health.tiles=8"),
        *("train.epochs=1", "train.warmup_epochs=0", "train.batch_size=8", *QUICK),
    ],
    "finetune": ["train.epochs=1", "train.batch_size=8", *QUICK],
    "eval": QUICK,
    "gradcam": ["checks=false", *QUICK],  # tests/commands/test_gradcam.py has the checks
    "report": QUICK,
    "predict": QUICK,
}
HEATMAP = {
    "finetune": [*TINY["finetune"], "model.name=timm:test_resnet", "model.output_stride=32", "data.size_px=64"],
}


@pytest.fixture(scope="module")
def notebooks() -> ModuleType:
    """The script that executes notebooks, as a module."""
    loader = SourceFileLoader("notebooks", str(ROOT / "scripts" / "notebooks"))
    spec = importlib.util.spec_from_loader("notebooks", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path, notebooks, blank_pictures, estimated_once, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSCL_CACHE", str(tmp_path / "cache"))
    small = TINY | HEATMAP if path.stem == "heatmap" else TINY
    with estimated_once():
        done = notebooks.execute(read(path), small=small)
    shown = [output for cell in done["cells"] for output in cell.get("outputs", ())]
    assert {output["output_type"] for output in shown} == {"stream", "display_data"}
    now = [[output["output_type"] for output in cell.get("outputs", ())] for cell in done["cells"]]
    assert now == [[output["output_type"] for output in cell.get("outputs", ())] for cell in read(path)["cells"]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_holds_its_outputs_and_is_small(path):
    notebook = read(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
    assert path.stat().st_size < 1_000_000
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_the_first_runs_what_the_quickstart_says(notebooks):
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    block = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    said = [shlex.split(line, comments=True)[1:] for line in "".join(block).splitlines()]
    run = notebooks.commands(read(ROOT / "notebooks" / "page.ipynb"))
    assert len(said) >= 5
    for words in said:
        assert any(set(words) <= set(given) for given in run), words
