"""The study scripts: the commands they would run are accepted, and the tables come from what those commands write."""

from __future__ import annotations

import importlib.util
import json
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from sscl import config
from sscl.cli import parse

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def script(name: str) -> ModuleType:
    loader = SourceFileLoader(name, str(SCRIPTS / name))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def accepted(words: tuple[str, ...]) -> config.Section:
    return parse(words[0], words[1:]).load()


def test_the_colon_study_runs_accepted_commands_and_keeps_finished_runs(tmp_path, monkeypatch):
    study, ran = script("colon_study"), []
    monkeypatch.setattr(study, "sscl", lambda *words: ran.append(words))
    (tmp_path / "ssl-2000-1").mkdir()
    (tmp_path / "ssl-2000-1" / "encoder.pt").touch()
    study.main("TILES", "MORE", "N.npz", str(tmp_path), "train.epochs=1")

    assert [words[0] for words in sorted(ran[:11])] == ["pretrain"] * 11  # 12 less the finished one
    assert [words[0] for words in ran[11:]] == ["compare", "compare", "probe", "probe"]
    found = [accepted(words) for words in ran]
    assert len({read.run for read in found[:11]}) == 11
    assert all(read.train.epochs == 1 for read in found[:11])
    assert found[13].encoders[1].weights.startswith(str(tmp_path))


def test_the_colon5_study_runs_accepted_commands_and_tabulates_their_metrics(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for base, name in ((20, "dark"), (160, "light")):
            (tmp_path / "tiles" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = (rng.integers(0, 60, (64, 64, 3)) + base).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "tiles" / split / name / f"{i}.png")
    study, out = script("colon5_study"), tmp_path / "out"

    def sscl(*words: str) -> None:
        read = accepted(words)
        if words[0] == "eval":
            folder = Path(read.checkpoint) / "eval_test"
            folder.mkdir(parents=True)
            value = {"ft": 0.75, "scratch": 0.5}[Path(read.checkpoint).name.split("-")[0]]
            content = {"metrics": dict.fromkeys(study.METRICS, value)}
            content["intervals"] = {key: [0.4, 0.8] for key in study.METRICS}
            (folder / "metrics.json").write_text(json.dumps(content))

    monkeypatch.setattr(study, "sscl", sscl)
    study.main(str(tmp_path / "tiles"), "MORE", str(out))

    printed = capsys.readouterr().out
    assert printed.count("| 0.750 (0.400 to 0.800) |") >= 6
    assert printed.count("+0.250 ± 0.000") == 2 * len(study.METRICS)
    assert "accuracy 1.000" in printed  # dark and light tiles differ in colour
