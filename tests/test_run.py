from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from sscl import __version__, metrics_log, run, writing
from sscl.config import DemoConfig
from sscl.models import checkpoint


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def our_folder(path: Path, *, trained: bool = True) -> Path:
    run.start_folder(path, DemoConfig(run=str(path)), overwrite=True)
    if trained:
        (path / "checkpoints").mkdir()
        (path / "checkpoints" / "last.pt").write_bytes(b"weights")
    return path


# --- files are whole or absent ---


class Unwritable:
    """Fails in the middle of a file."""

    def __getstate__(self) -> Any:
        raise OSError(28, "No space left on device")


def unwritable_checkpoint(path):
    found = SimpleNamespace(epoch=1, weights={}, to_dict=lambda: {"a": torch.ones(9), "b": Unwritable()})
    checkpoint.save_checkpoint(path, found)


def failing_rows():
    yield ["1"]
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(
    ("name", "write", "error"),
    [
        ("c.pt", unwritable_checkpoint, OSError),
        ("t.csv", lambda p: writing.write_csv(p, ["a"], failing_rows()), OSError),
        ("m.json", lambda p: writing.write_json(p, {"a": float("nan")}), ValueError),
        ("t.txt", lambda p: writing.write_text(p, "a\udcff"), ValueError),
    ],
)
def test_a_failing_write_leaves_what_was_there(tmp_path, name, write, error, there):
    path = tmp_path / name
    if there:
        path.write_text("old")
    with pytest.raises(error):
        write(path)
    assert files_of(tmp_path) == ([name] if there else [])
    assert not there or path.read_text() == "old"


def test_a_file_is_synced_before_it_takes_its_place(tmp_path, wrap):
    steps = []
    wrap(
        sync=lambda sync, handle: (steps.append("fsync"), sync(handle)),
        replace=lambda replace, a, b: (steps.append("replace"), replace(a, b)),
    )
    writing.write_text(tmp_path / "a", "new")
    assert steps == ["fsync", "replace"]
    assert (tmp_path / "a").read_text() == "new"


def test_json_and_csv(tmp_path):
    writing.write_json(tmp_path / "m.json", {"a": None, "b": [1, 2.5]})
    assert json.loads((tmp_path / "m.json").read_text()) == {"a": None, "b": [1, 2.5]}
    rows = [["a, b", None, 1.5], ['"c"', "é", -1]]
    writing.write_csv(tmp_path / "t.csv", ["id", "x", "y"], rows)
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as handle:
        assert list(csv.reader(handle)) == [["id", "x", "y"], ["a, b", "", "1.5"], ['"c"', "é", "-1"]]


# --- run folders ---


def test_a_new_or_empty_folder_may_be_written(tmp_path):
    for name in ("new", "a/b"):
        assert run.check_run_folder(str(tmp_path / name), overwrite=False) == tmp_path / name
        assert run.check_run_folder(tmp_path / name, overwrite=True) == tmp_path / name
    assert list(tmp_path.iterdir()) == []
    assert run.check_run_folder(tmp_path, overwrite=False) == tmp_path


def test_an_existing_run_is_never_replaced_in_silence(tmp_path):
    folder = our_folder(tmp_path / "run")
    before = files_of(folder)
    with pytest.raises(ValueError, match=r"run: exists and is not empty; give --overwrite to replace it, or another"):
        run.check_run_folder(folder, overwrite=False, trains=True)
    assert run.check_run_folder(folder, overwrite=True, trains=True) == folder
    assert files_of(folder) == before  # checking touches nothing
    run.start_folder(folder, DemoConfig(run="again"), overwrite=True)
    assert files_of(folder) == ["config.yaml", "env.json"]
    assert yaml.safe_load((folder / "config.yaml").read_text()) == {"run": "again", "configs": "demo"}


@pytest.mark.parametrize("env", [None, "", "{", "[]", '{"API_KEY": "x"}'])
def test_overwrite_leaves_foreign_folders_alone(tmp_path, env):
    (tmp_path / "thesis.tex").write_text("years of work")
    if env is not None:
        (tmp_path / "env.json").write_text(env)  # other programs have files of that name
    with pytest.raises(
        ValueError, match=r"not written by sscl \(no env.json of sscl\), so --overwrite leaves it alone"
    ):
        run.check_run_folder(tmp_path, overwrite=True, trains=True)


def test_commands_that_do_not_train_do_not_replace_checkpoints(tmp_path):
    folder = our_folder(tmp_path / "run")
    with pytest.raises(ValueError, match="run: holds checkpoints, which this command does not replace"):
        run.check_run_folder(folder, overwrite=True)
    assert run.check_run_folder(our_folder(tmp_path / "eval", trained=False), overwrite=True).name == "eval"


def test_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none: nothing to resume \(no checkpoints/last.pt\)"):
        run.check_run_folder(tmp_path / "none", overwrite=False, resume=True)
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        run.check_run_folder(our_folder(tmp_path / "early", trained=False), overwrite=False, resume=True)
    folder = our_folder(tmp_path / "run")
    assert run.check_run_folder(folder, overwrite=False, resume=True) == folder
    with pytest.raises(ValueError, match="--resume and --overwrite exclude each other"):
        run.check_run_folder(folder, overwrite=True, resume=True)


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "a").write_text("")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="a: is a file; name a folder to write"):
            run.check_run_folder(tmp_path / "a", overwrite=overwrite)


def test_the_environment_is_recorded(tmp_path):
    environment = json.loads((our_folder(tmp_path / "run") / "env.json").read_text())
    assert environment["sscl"] == __version__
    assert environment["torch"] == torch.__version__
    assert environment["command"].startswith("sscl")


def test_yaml_reads_as_what_was_written():
    content = {"run": "1e-4", "rate": 1e-7, "name": "é: #", "none": None, "list": ["no", "2026-07-01", 1]}
    assert yaml.safe_load(writing.to_yaml(content)) == content
    assert "'1e-4'" in writing.to_yaml(content)  # plain YAML 1.1 would need no quotes; our loader does


# --- metrics ---


def row(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "loss": 1 / epoch, "speed": 5.0}


def test_each_row_is_on_disk_at_once(tmp_path):
    log = metrics_log.MetricsLog(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    for epoch in (1, 2):
        log.append(row(epoch))
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [row(e) for e in range(1, epoch + 1)] == log.rows
    log.close()


def test_a_row_that_is_not_a_number_is_refused_whole(tmp_path):
    log = metrics_log.MetricsLog(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.append({"epoch": 1, "loss": float("nan")})
    assert log.rows == []
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_resumed_log_keeps_the_epochs_of_the_checkpoint(tmp_path):
    log = metrics_log.MetricsLog(tmp_path)
    for epoch in (1, 2, 3):
        log.append(row(epoch))
    resumed = metrics_log.MetricsLog(tmp_path, keep_epochs=2)
    assert resumed.rows == [row(1), row(2)]
    resumed.append({**row(3), "speed": 6.0})
    assert metrics_log.read_metrics(tmp_path / "metrics.jsonl") == [row(1), row(2), {**row(3), "speed": 6.0}]
    assert metrics_log.MetricsLog(tmp_path).rows == []  # a run that starts anew


def test_a_line_that_a_killed_run_left_half_written_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(row(1)) + "\n" + json.dumps(row(2))[:7])
    assert metrics_log.MetricsLog(tmp_path, keep_epochs=2).rows == [row(1)]
    assert path.read_text() == json.dumps(row(1)) + "\n"
    path.write_text(json.dumps(row(1)))  # whole: an editor has left out the line's end
    assert metrics_log.read_metrics(path) == [row(1)]


def test_a_file_without_the_log_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        metrics_log.read_metrics(tmp_path / "metrics.jsonl")
    assert metrics_log.MetricsLog(tmp_path, keep_epochs=2).rows == []


FOREIGN = {
    "[1]": "JSON object",
    "{": "not JSON",
    '{"epoch": 2.5, "loss": 1}': "epoch",
    '{"epoch": true, "loss": 1}': "epoch",
    '{"epoch": 0, "loss": 1}': "epoch",
    '{"loss": 1}': "epoch",
    '{"epoch": 2, "loss": NaN}': "not JSON",
    '{"epoch": 2, "loss": 1e999}': "not JSON",
    '{"epoch": 2, "loss": "<b>"}': "loss",
    '{"epoch": 2, "loss": null}': "loss",
    '{"epoch": 2, "loss": ' + "9" * 400 + "}": "not JSON",
    '{"epoch": 2, "loss": 1e300}': "loss",
    '{"epoch": 2000000, "loss": 1}': "epoch",
    '{"epoch": ' + "9" * 20 + ', "loss": 1}': "not JSON",
    '{"epoch": 2, "speed": 1}': "has no 'loss'",
    '{"epoch": 2, "loss": ' + "9" * 5000 + "}": "not JSON",
    "[" * 100_000: "not JSON",
    "\x00\x01": "not JSON",
    "\udcff": "not JSON",
    '{"epoch": 1, "loss": 2}': "epoch 1 comes after epoch 1",
    "x" * 2**21: "",
}


@pytest.mark.parametrize("line", FOREIGN, ids=range(len(FOREIGN)))
def test_a_line_that_is_no_row_is_named_by_readers_and_dropped_by_a_resumption(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    text = f"{json.dumps(row(1))}\n\n{line}\n{json.dumps(row(3))}\n{json.dumps(row(4))}\n"
    path.write_text(text, errors="surrogateescape")
    (tmp_path / "config.yaml").write_text("train: {epochs: 9}\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line [34]: .*" + FOREIGN[line]):
        metrics_log.read_metrics(path, needs=["loss"])
    assert str(run.unfinished(tmp_path)).startswith("unfinished: epoch ")
    log = metrics_log.MetricsLog(tmp_path, keep_epochs=3, needs=["loss"])
    whole = [row(1), row(3)] if FOREIGN[line] else [row(1)]  # nothing is read after a line without an end
    assert log.rows == whole == metrics_log.read_metrics(path)
    assert log.dropped.startswith(f"{path}: drops ")
    assert "1 line, the first is " in log.dropped or "2 lines, the first is " in log.dropped
    assert f"no row for {3 - len(whole)} of 3 epochs" in log.dropped


def test_rows_of_two_writers_and_of_another_command(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f"{json.dumps(row(epoch))}\n" for epoch in (1, 55, 56, 2, 57)) + '{"epoch": 3, "x": 1}\n')
    log = metrics_log.MetricsLog(tmp_path, keep_epochs=3, needs=["loss"])
    assert log.rows == [row(1), row(2)]
    assert "3 rows after epoch 3" in log.dropped
    path.write_text("")
    assert metrics_log.MetricsLog(tmp_path, keep_epochs=3).dropped == f"{path}: has no row for 3 of 3 epochs"
    assert run.unfinished(tmp_path) is None  # no configuration: not a run


def scalars(folder: Path, key: str) -> list[tuple[int, float]]:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "speed"}
    return [(event.step, event.value) for event in events.Scalars(key)]


def test_tensorboard_events(tmp_path):
    pytest.importorskip("tensorboard")
    metrics_log.check_tensorboard()
    log = metrics_log.MetricsLog(tmp_path, tensorboard=True)
    for epoch in (1, 2, 4):
        log.append(row(epoch))
    log.close()
    assert scalars(tmp_path, "loss") == [(1, 1.0), (2, 0.5), (4, 0.25)]
    resumed = metrics_log.MetricsLog(tmp_path, keep_epochs=2, tensorboard=True)
    resumed.append(row(8))
    resumed.close()
    assert scalars(tmp_path, "loss") == [(1, 1.0), (2, 0.5), (8, 0.125)]


def test_tensorboard_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"log\.tensorboard: TensorBoard is not installed; pip install"):
        metrics_log.check_tensorboard()


def test_a_run_that_stopped_early_and_lost_its_last_checkpoint_has_not_ended(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train: {epochs: 3}\n")
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n')
    for reason, message in (
        ("train.stop_after_epoch", "last.pt, which --resume goes on from, is gone"),
        ("train.epochs", "has ended"),
    ):
        (tmp_path / run.ENDING).write_text(json.dumps({"epochs": 1, "planned": 3, "reason": reason}))
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            run.check_run_folder(tmp_path, overwrite=False, resume=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_device_or_a_pipe_is_never_replaced_by_a_folder(tmp_path: Path, overwrite: bool) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match="is a device, a named pipe or a socket; name a folder"):
        run.check_run_folder(pipe, overwrite=overwrite, trains=True)
    with pytest.raises(ValueError, match="is no folder"), writing.replacing_folder(pipe):
        pass
    assert pipe.is_fifo()
