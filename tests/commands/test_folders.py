"""Folders that commands write: one command at a time, and the old result until the new one is whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sscl import writing


@pytest.fixture
def results(cli: Any, tiles: Path, finetuned: Path) -> dict[str, Callable[..., Any]]:
    """What writes a folder of results, by command: a function of the folder."""
    quiet = ["progress=false", "device=cpu"]
    data = [f"data.root={tiles}", "data.source=synthetic", "data.size_px=32"]
    return {
        "eval": lambda out, *words: cli.evaluate(finetuned, f"out={out}", *words),
        "gradcam": lambda out, *words: cli.gradcam(finetuned, f"out={out}", "per_class=1", *words),
        "predict": lambda out, *words: cli("predict", finetuned, tiles / "images", *quiet, f"out={out}", *words),
        "export": lambda out, *words: cli("export", finetuned, "what=classifier", "formats=[pt]", f"out={out}", *words),
        "embed": lambda out, *words: cli("embed", f"encoder.weights={finetuned}", *data, *quiet, f"out={out}", *words),
    }


@pytest.mark.parametrize("name", ["eval", "gradcam", "predict", "export", "embed"])
def test_a_result_stays_until_the_next_one_is_whole(
    results: Any, tmp_path: Path, snapshot: Any, hold: Any, wrap: Any, name: str
) -> None:
    command, out = results[name], tmp_path / "results" / "x"
    first = command(out)
    assert first.code == 0, first.err
    before = snapshot(tmp_path)
    last = max(out.iterdir(), key=lambda path: path.stat().st_mtime_ns).name

    def full(replace: Any, source: Any, target: Any) -> None:
        if Path(target).name == last:
            raise OSError(28, "No space left on device", str(target))
        replace(source, target)

    wrap(replace=full)  # at the last file
    failed = command(out, "--overwrite")
    if name != "export":  # whose tensors are written as they are
        assert failed.code == 2
        assert failed.err.startswith(f"sscl: {out}/{last}: ")
        assert snapshot(tmp_path) == before
    other = hold(out)
    refused = command(out, "--overwrite")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert str(other.pid) in refused.err


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "run=x", "data.root=none"],
        ["pretrain", "run=x", "data.root=none", "--overwrite"],
        ["finetune", "run=x", "data.root=none", "--folds=2"],
        ["demo", "run=x"],
        ["data", "synth", "root=x"],
        ["probe", "out=x", "encoders=[{name: a, model: resnet18}]", "sets=[{name: b, root: none}]"],
    ],
    ids=" ".join,
)
def test_the_second_command_is_told_who_is_there(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: Any, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    other = hold(tmp_path / "x")
    result = cli(*words)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert f"x: process {other.pid} on " in result.err
    assert not (tmp_path / "x").exists()


def test_who_opens_a_run_clears_away_what_a_killed_process_left(cli: Any, tmp_path: Path, hold: Any) -> None:
    run = tmp_path / "run"
    assert cli.finetune(run, "train.epochs=2", "train.stop_after_epoch=1").code == 0
    for name in ("checkpoints/.last.pt.0123456789ab.tmp", ".curves.png.0123456789ab.tmp", ".x.0123456789ab.tmp.lock"):
        (run / name).write_text("half")
    words = ["train.epochs=2", "train.stop_after_epoch=null", "--resume"]
    other = hold(run)
    assert f"{run}: process {other.pid} on " in cli.finetune(run, *words).err
    other.kill()
    other.wait()
    assert cli.finetune(run, *words).code == 0
    assert list(tmp_path.rglob(".*")) == []


def test_a_folder_with_nothing_but_what_a_killed_process_left_is_ours(cli: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".env.json.0123456789ab.tmp").write_text("half")
    assert writing.is_bare(run)
    assert cli.finetune(run).code == 0
    assert list(tmp_path.rglob(".*")) == []


def test_a_model_card_that_another_process_writes_is_left_to_it(
    cli: Any, finetuned: Path, tmp_path: Path, hold: Any
) -> None:
    run = shutil.copytree(finetuned, tmp_path / "run")
    card = run / "MODEL_CARD.md"
    before = card.read_text()
    other = hold(card)
    result = cli.evaluate(run, "--overwrite")
    assert result.code == 0
    assert (run / "eval_test" / "metrics.json").is_file()
    assert f"note: {card}: process {other.pid} on " in result.out
    assert card.read_text() == before
