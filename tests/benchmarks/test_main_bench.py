from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import forked
import main as bench

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")

FAKES = {
    "fake_fast": """
def measure(*, quick, device):
    return [
        {"what": "blur | one core", "ours": 4, "peer": "peer 1.0", "theirs": 12.0, "unit": "ms a view", "ratio": 3.0,
         "target": ">= 2.5"},
        {"what": "warp", "ours": 1234.5, "theirs": 1000, "unit": "views/s", "ratio": 1.2, "target": ">= 2.5"},
        {"what": f"on {device}, {quick}", "ours": None, "ratio": None, "target": "<= 0.05", "note": "no GPU"},
    ]
""",
    "fake_broken": "def measure(*, quick, device):\n    raise RuntimeError('out of\\nluck')\n",
    "fake_unfit": "def measure(*, quick, device):\n    return [{'what': 'x', 'ours': float('nan')}]\n",
    "fake_import": "import no_such_package\n",
}


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    folder = tmp_path / "fakes"
    folder.mkdir()
    for name, text in FAKES.items():
        (folder / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(folder)


def run(tmp_path: Path, *topics: str, words: tuple[str, ...] = ()) -> tuple[int, dict, str]:
    out = tmp_path / "bench.json"
    status = bench.main(["--device", "cpu", "--out", str(out), *words], topics=dict.fromkeys(topics, "a topic"))
    return status, json.loads(out.read_text()), out.with_suffix(".md").read_text()


def test_the_table_and_its_files(fakes, tmp_path, capsys):
    status, report, table = run(tmp_path, "fake_fast")
    assert status == 0
    assert [row["verdict"] for row in report["rows"]] == ["reached", "missed", "not measured"]
    assert {row["topic"] for row in report["rows"]} == {"fake_fast"}
    assert table.splitlines()[-3:] == [
        "| blur \\| one core | 4 | 12 (peer 1.0) | ms a view | 3 | >= 2.5 | reached |",
        "| warp | 1,234 | 1,000 | views/s | 1.2 | >= 2.5 | missed |",
        "| on cpu, False | – | – |  | – | <= 0.05 | not measured: no GPU |",
    ]
    assert capsys.readouterr().out == f"{table}\nwrote {tmp_path}/bench.json, {tmp_path}/bench.md\n"
    assert report["torch"] == torch.__version__
    assert report["device"].startswith("cpu (")
    assert set(report["peers"]) == set(bench.PEERS)
    assert report["cores"] >= 1
    assert len(report["load_average"]) == 3
    assert report["cpu"]
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert report["commit"] is None or head.startswith(report["commit"].removesuffix("-dirty"))
    assert report["command"] == f"python scripts/benchmarks/main.py --device cpu --out {tmp_path}/bench.json"


def test_a_topic_that_fails_says_so_and_the_rest_is_measured(fakes, tmp_path, capsys):
    topics = ("fake_broken", "fake_absent", "fake_unfit", "fake_import", "fake_fast")
    status, report, table = run(tmp_path, *topics)
    assert status == 1
    failed = {row["topic"]: row["note"] for row in report["rows"] if row["verdict"] == "failed"}
    assert failed == {
        "fake_broken": "RuntimeError: out of",
        "fake_absent": "no fake_absent.py beside main.py",
        "fake_unfit": "ValueError: x: ours is nan; None, with the reason in note, is not measured",
        "fake_import": "ModuleNotFoundError: No module named 'no_such_package'",
    }
    assert [row["topic"] for row in report["rows"]].count("fake_fast") == 3
    assert "| fake_broken | – | – |  | – |  | failed: RuntimeError: out of |" in table
    assert 'raise RuntimeError("out of' in capsys.readouterr().err.replace("'", '"')


def test_what_was_measured_before_the_end_is_on_disk(fakes, tmp_path, instead):
    def interrupted(topic: str, **_: object) -> list:
        if topic == "fake_second":
            raise KeyboardInterrupt
        return rows_of(topic, quick=False, device=CPU)

    rows_of = bench.rows_of
    instead(bench, rows_of=interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "fake_fast", "fake_second")
    report = json.loads((tmp_path / "bench.json").read_text())
    assert (len(report["rows"]), report["topics_left"]) == (3, ["fake_second"])
    assert "**Not reached yet: fake_second.**" in (tmp_path / "bench.md").read_text()


def test_toy_size_has_no_verdict(fakes, tmp_path):
    _, report, table = run(tmp_path, "fake_fast", words=("--quick",))
    assert [row["verdict"] for row in report["rows"]] == ["toy size", "toy size", "not measured"]
    assert report["rows"][2]["what"] == "on cpu, True"
    assert "Toy size" in table


def test_only_some_topics(fakes, tmp_path):
    status, report, _ = run(tmp_path, "fake_broken", "fake_fast", words=("--only", "fake_fast"))
    assert status == 0
    assert {row["topic"] for row in report["rows"]} == {"fake_fast"}


@pytest.mark.parametrize(
    ("target", "ours", "ratio", "expected"),
    [
        (">= 2.5", 99.0, 2.5, "reached"),
        (">= 2.5", 99.0, 2.4, "missed"),
        ("<= 1.3x dense", 99.0, 1.4, "missed"),
        ("> 1", 0.5, 1.0, "missed"),
        ("< 1", 0.5, None, "reached"),
        ("<= 1e-05", 2e-6, None, "reached"),
        ("<= 1e-12", 2e-6, None, "missed"),
        ("< 0.3 s", 0.2, 5.0, "reached"),
        ("< 0.3 s", 0.4, 0.1, "missed"),
        (">= 5,500 views/s", 5400.0, 9.0, "missed"),
        (">= 5,500 views/s", None, 9.0, "not measured"),
        ("<= 5%", 4.0, None, "reached"),
        (">= 3x", 9.0, None, "not measured"),
        ("", 1.0, None, ""),
        ("", None, 1.0, ""),
        ("", None, None, "not measured"),
    ],
)
def test_verdicts(target, ours, ratio, expected):
    row = bench.checked({"what": "x", "ours": ours, "ratio": ratio, "target": target, "note": "why"})
    assert bench.verdict(row, quick=False) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"ours": 1.0}, "a row has the keys \\['ours'\\]"),
        ({"what": "x", "ours": 1.0, "remark": ""}, "expected what and ours, peer"),
        ({"what": "x"}, "x: nothing was measured, and note does not say why"),
        ({"what": "x", "ours": 1.0, "ratio": float("inf")}, "x: ratio is inf"),
        ({"what": "x", "ours": 1.0, "target": "fast"}, "x: target 'fast' does not read as"),
    ],
)
def test_unfit_rows(row, message):
    with pytest.raises(ValueError, match=message):
        bench.verdict(bench.checked(row), quick=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "views,speed"], "--only: got 'views,speed', allowed are step, views, loss, gradcam, data, slides"),
        (["--out", "table.md"], "--out: got table.md, expected FILE.json in a folder that exists"),
        (["--out", "nowhere/x.json"], "--out: got nowhere/x.json"),
        (["--device", "gpu"], "--device: got 'gpu', allowed are auto, cpu, cuda, cuda:N"),
    ],
)
def test_wrong_words_are_one_line_before_anything_runs(words, message, capsys, instead):
    instead(bench, rows_of=None)
    with pytest.raises(SystemExit) as left:
        bench.main(words)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_the_table_of_topics_is_what_lies_there():
    there = {path.stem for path in (ROOT / "scripts" / "benchmarks").glob("*.py")} - {"main", "race", "table"}
    assert {name for name in there if not name.startswith("gpu_")} <= set(bench.TOPICS)  # those are scripts/gpu_check's


def test_it_runs_where_sscl_is_not_installed(tmp_path):
    """What finds sscl is taken away: its folder, and the finder of an editable installation."""
    program = """
import os, runpy, sys
for name in [name for name in sys.modules if name.split(".")[0] == "sscl"]:
    del sys.modules[name]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path[:] = [folder for folder in sys.path if not os.path.isdir(os.path.join(folder or ".", "sscl"))]
try:
    import sscl
except ModuleNotFoundError:
    sys.argv[:] = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
    script = ROOT / "scripts" / "benchmarks" / "main.py"
    done = forked.run(program, script, "--help", timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--only" in done.stdout
