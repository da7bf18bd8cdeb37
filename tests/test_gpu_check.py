"""scripts/gpu_check: how it shares out the time, what it writes when parts fail, and its study at toy size."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from sscl import cli, config

ROOT = Path(__file__).resolve().parents[1]


def loaded() -> ModuleType:
    """The script as a module; it has no ending by which Python would know it."""
    loader = SourceFileLoader("gpu_check", str(ROOT / "scripts" / "gpu_check"))
    spec = importlib.util.spec_from_loader("gpu_check", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # dataclasses look there
    loader.exec_module(module)
    return module


gpu_check = loaded()
Part = gpu_check.Part


@pytest.fixture(scope="module")
def tiles(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tiles")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for base, name in ((20, "dark"), (120, "light")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = (rng.integers(0, 80, (32, 32, 3)) + base).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def python(text: str) -> list[str]:
    return [sys.executable, "-S", "-c", text]


def checked(
    monkeypatch: pytest.MonkeyPatch, tiles: Path, out: Path, parts: list, *words: str, minutes: float = 1.0
) -> tuple[int, dict, str]:
    """Run the script with other parts."""
    monkeypatch.setattr(gpu_check, "parts", lambda work, **_: parts(work) if callable(parts) else parts)
    monkeypatch.setattr(
        sys, "argv", ["gpu_check", str(tiles), str(out), "--device", "cpu", "--minutes", str(minutes), *words]
    )
    status = gpu_check.main()
    return status, json.loads((out / "gpu_check.json").read_text()), (out / "gpu_check.md").read_text()


def test_all_is_well(tiles, tmp_path, monkeypatch, capsys):
    def parts(work: Path) -> list:
        left = f"open({str(work / 'made')!r}, 'w')"
        return [Part("tests", python(left), 1), Part("eval", python("print('hello')"), 1, needs=work / "made")]

    status, report, text = checked(monkeypatch, tiles, tmp_path / "new" / "out", parts)
    assert status == 0
    assert [(part["name"], part["status"]) for part in report["parts"]] == [("tests", "passed"), ("eval", "passed")]
    assert report["parts"][1]["tail"] == ["hello"]
    assert report["torch"] == torch.__version__
    assert report["device"].startswith("cpu")
    assert "| tests | passed | " in text
    assert "End of the output" not in text
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == ["gpu_check.json", "gpu_check.md"]
    assert text in capsys.readouterr().out


def test_a_part_that_fails_and_one_that_runs_over_are_told_and_the_rest_runs(tiles, tmp_path, monkeypatch):
    child = tmp_path / "child"
    script = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-S', '-c', \"import time; time.sleep(2); open({str(child)!r}, 'w')\"])\n"
        "print('begun', flush=True)\n"
        "time.sleep(60)\n"
    )
    parts = [
        Part("tests", python("print('broken'); raise SystemExit(3)"), 0.1),
        Part("benchmark", python(script), 0.3),
        Part("pretrain", python("print('pretrained')"), 1),
        Part("finetune", python(""), 1, needs=tmp_path / "absent.pt"),
    ]
    monkeypatch.setattr(gpu_check, "RESERVE", 0.0)
    monkeypatch.setattr(Path, "relative_to", lambda self, other: Path(self.name))  # absent.pt is not in its folder
    started = time.monotonic()
    status, report, text = checked(monkeypatch, tiles, tmp_path / "out", parts, minutes=1 / 6)
    assert time.monotonic() - started < 8
    assert status == 1
    said = [(part["status"], part["note"]) for part in report["parts"]]
    assert said[0] == ("failed", "exit status 3")
    assert said[1][0] == "cut"
    assert said[1][1].startswith("stopped after its 1 s")  # 0.3 of 2.3 parts of what is left of 10 s
    assert said[2:] == [("passed", ""), ("skipped", "no absent.pt")]
    assert report["parts"][1]["tail"] == ["begun"]
    for line in (
        "| benchmark | cut: stopped after its 1 s | ",
        "## End of the output of tests",
        "broken",
        "pretrained",
    ):
        assert line in text
    time.sleep(max(0.0, 3.5 - (time.monotonic() - started)))
    assert not child.exists(), "what a part had started went on after it was stopped"


def test_the_two_files_are_there_after_each_part(tiles, tmp_path, monkeypatch):
    """Whoever ends the whole thing keeps what was found until then."""
    run = gpu_check.run

    def interrupted(part, **given):
        if part.name == "second":
            raise KeyboardInterrupt
        return run(part, **given)

    monkeypatch.setattr(gpu_check, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checked(monkeypatch, tiles, tmp_path, [Part("first", python(""), 1), Part("second", python(""), 1)])
    assert [part["name"] for part in json.loads((tmp_path / "gpu_check.json").read_text())["parts"]] == ["first"]
    assert "| second | not reached yet | | |" in (tmp_path / "gpu_check.md").read_text()


def test_time_that_is_left_over_goes_to_the_parts_that_follow(tiles, tmp_path, monkeypatch):
    parts = [Part("first", python(""), 3), Part("second", python(""), 1)]
    _, report, _ = checked(monkeypatch, tiles, tmp_path / "out", parts, minutes=70 / 60)
    first, second = (part["limit_s"] for part in report["parts"])
    assert first == pytest.approx(45, abs=1)  # three quarters of 60 s
    assert second > 50


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "gpu"], "--device: got 'gpu', allowed are auto, cpu, cuda, cuda:N"),
        (["--minutes", "0.1"], "--minutes: got 0.1, expected more than 0.17"),
    ],
)
def test_wrong_words(words, message, tiles, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as left:
        checked(monkeypatch, tiles, tmp_path / "out", [], *words)
    assert left.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wrong_folders(tiles, tmp_path, monkeypatch, capsys):
    (tmp_path / "gpu_check.json").write_text("{}")
    for where, out, message in (
        (tmp_path, tmp_path / "out", f"TILES: {tmp_path} has no train/ and test/ with a folder for each class"),
        (tiles, tmp_path, f"OUT: {tmp_path} has a gpu_check.json already; name another folder"),
    ):
        with pytest.raises(SystemExit):
            checked(monkeypatch, where, out, [])
        assert message in capsys.readouterr().err
    assert (tmp_path / "gpu_check.json").read_text() == "{}"


def junit(cases: str) -> str:
    return f"<testsuites><testsuite>{cases}</testsuite></testsuites>"


def test_tests_are_counted(tmp_path):
    file = tmp_path / "tests.xml"
    case = '<testcase classname="tests.test_x" name="{}">{}</testcase>'
    cases = ("a", ""), ("b", "<skipped/>"), ("c", "<failure/>"), ("d", "<error/>"), ("e", "")
    file.write_text(junit("".join(case.format(*pair) for pair in cases)))
    counts = {"passed": 2, "failed": 2, "skipped": 1, "failures": ["tests.test_x::c", "tests.test_x::d"]}
    assert gpu_check.counted(file) == counts
    file.write_text(file.read_text()[:60])
    assert gpu_check.counted(file) is None


def test_gpu_tests_that_were_all_skipped_are_no_success(tiles, tmp_path, monkeypatch):
    def parts(work: Path) -> list:
        text = junit('<testcase name="a"><skipped/></testcase>')
        return [Part("tests", python(f"open({str(work / 'tests.xml')!r}, 'w').write({text!r})"), 1)]

    monkeypatch.setattr(gpu_check, "pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(gpu_check, "describe_device", lambda device: "a GPU")
    status, report, text = checked(monkeypatch, tiles, tmp_path / "out", parts)
    assert (status, report["parts"][0]["note"]) == (1, "no test ran on the GPU")
    assert "0 passed, 0 failed, 1 skipped" in text


@pytest.mark.parametrize("quick", [False, True])
def test_the_commands_are_accepted(quick, tiles, tmp_path):
    parts = {p.name: p for p in gpu_check.parts(tmp_path, tiles=tiles, device="cuda", keys=["seed=1"], quick=quick)}
    assert list(parts) == ["tests", "benchmark", "pretrain", "finetune", "eval", "gradcam"]
    kinds = {
        "pretrain": config.PretrainConfig,
        "finetune": config.FinetuneConfig,
        "eval": config.EvalConfig,
        "gradcam": config.GradcamConfig,
    }
    for name, kind in kinds.items():
        words = list(parts[name].words)
        assert words[:4] == [sys.executable, "-m", "sscl", name]
        file = words[4].removeprefix("--config=") if words[4].startswith("--config=") else None
        read = config.load_config(kind, file, overrides=[word for word in words[4:] if "--" not in word])
        assert read.device == "cuda"
        if name in ("pretrain", "finetune"):
            assert read.model.name == ("resnet18" if quick else "resnet50")
        if name == "pretrain":
            assert (read.data[0].size_px, read.seed, read.train.profile) == (32 if quick else 224, 1, True)
    script = (ROOT / parts["benchmark"].words[1]).read_text()
    for word in parts["benchmark"].words[2:]:
        assert not word.startswith("--") or f'"{word}"' in script


def test_the_study_at_toy_size(tiles, tmp_path, monkeypatch):
    """Its four commands, in this process, which spares four starts; then what is read from their files."""
    monkeypatch.setenv("SSCL_CACHE", str(tmp_path / "cache"))
    for part in gpu_check.parts(tmp_path, tiles=tiles, device="cpu", keys=[], quick=True)[2:]:
        assert part.needs is None or part.needs.is_file()
        monkeypatch.setattr(sys, "argv", ["sscl", *part.words[3:]])
        assert cli.main() in (None, 0)
    study = gpu_check.findings(tmp_path)["study"]
    assert study["pretrain"]["epochs"] == study["finetune"]["epochs"] == 1
    lines = gpu_check.study_lines(study)
    assert [line.split(",")[0].split(":")[0] for line in lines] == [
        "- pretrain",
        "- finetune",
        "- eval on test",
        "- gradcam",
    ]
    assert "loss" in lines[0]
    assert "accuracy" in lines[2]
    assert study["gradcam"]["panels"] > 0
