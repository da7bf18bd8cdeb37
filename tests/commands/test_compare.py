"""sscl compare: what runs, what is reused, and a table that agrees with a calculation by hand."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from sscl import run
from sscl.commands import compare
from sscl.config import CompareConfig, DataConfig, FinetuneConfig, PretrainConfig, load_config
from sscl.data.tiles import Tiles
from sscl.evaluate import comparison
from sscl.evaluate.calibration import fit_calibration
from sscl.evaluate.evaluation import evaluate
from sscl.evaluate.records import Evaluation
from sscl.models import checkpoint
from sscl.models.calibration import KeptCalibration
from sscl.records import write_record
from sscl.train import plan, reuse

COMMON: dict[str, Any] = {"data": {"source": "synthetic", "size_px": 32}, "model": {"name": "timm:test_resnet"}}
FINETUNE = {**COMMON, "train": {"epochs": 2, "batch_size": 12, "patience": 2}}
PRETRAIN = {**COMMON, "train": {"epochs": 1, "batch_size": 12, "warmup_epochs": 1}, "health": {"tiles": 8}}
ROWS: list[dict[str, Any]] = [
    {"name": "scratch", "command": "finetune", "config": "ft.yaml"},
    {"name": "ssl", "command": "pretrain", "config": "ssl.yaml"},
    {
        "name": "fine-tuned",
        "command": "finetune",
        "config": "ft.yaml",
        "start": "ssl",
        "published": {"accuracy": 0.9105, "loss": 0.3},
    },
]
TWO_ROWS: list[dict[str, Any]] = [
    {"name": "a", "command": "finetune", "config": "ft.yaml", "published": {"accuracy": 0.5}},
    {"name": "b", "command": "finetune", "config": "ft.yaml", "set": {"train": {"freeze_encoder": True}}},
]
Study = Callable[..., Path]


REUSED = reuse.Decision(reuse.Action.REUSED)


def write_study(folder: Path, tiles: Path, runs: list[dict[str, Any]], **keys: Any) -> Path:
    """Write the configurations and return the compare file."""
    folder.mkdir(exist_ok=True)
    (folder / "ft.yaml").write_text(yaml.safe_dump(FINETUNE))
    (folder / "ssl.yaml").write_text(yaml.safe_dump(PRETRAIN))
    path = folder / "compare.yaml"
    content = {"out": str(folder / "out"), "root": str(tiles), "device": "cpu", "progress": False, "runs": runs}
    path.write_text(yaml.safe_dump({**content, **keys}))
    return path


@pytest.fixture
def study(tmp_path: Path, tiles: Path) -> Study:
    return lambda runs=TWO_ROWS, **keys: write_study(tmp_path / "study", tiles, runs, **keys)


@pytest.fixture
def here(cli: Any, wrap: Any) -> list[list[str]]:
    """Run the steps in this process, which saves starts of Python; the list that is returned grows by each step."""
    ran, call = run_here(cli)
    wrap(compare_step=call)
    return ran


def run_here(cli: Any) -> tuple[list[list[str]], Callable[..., Any]]:
    ran: list[list[str]] = []

    def call(real: Any, words: list[str], *, line: int | None = None) -> int:
        ran.append(words)
        result = cli(*words)
        assert result.code == 0, result.err
        return int(result.code)

    return ran, call


def names(ran: list[list[str]]) -> list[str]:
    """What ran, as `command folder`."""
    found = []
    for words in ran:
        (folder,) = [word.partition("=")[2] for word in words if word.startswith(("run=", "checkpoint="))]
        flags = [word for word in words if word.startswith("--") and word != "--config"]
        found.append(" ".join([words[0], Path(folder).name, *flags]))
    return found


def plan_of(path: Path, *overrides: str) -> list[plan.Step]:
    return plan.plan(load_config(CompareConfig, path, overrides=overrides))


# --- runs of flesh and blood ---


@pytest.fixture(scope="module")
def compared(
    cli: Any, tiles: Path, wrapped: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, list[list[str]]]:
    """The compare file of a comparison that has run, what it printed, and its steps."""
    path = write_study(tmp_path_factory.mktemp("study"), tiles, ROWS, seeds=[0, 1])
    ran, call = run_here(cli)
    with wrapped(compare_step=call):
        result = cli("compare", "--config", path)
    assert result.code == 0, result.err
    return path, result.out, list(ran)


def test_steps_run_in_order_as_printed_and_start_from_the_run_of_their_seed(compared: Any) -> None:
    path, printed, ran = compared
    assert names(ran) == [
        "finetune scratch-0",
        "eval scratch-0",
        "finetune scratch-1",
        "eval scratch-1",
        "pretrain ssl-0",
        "pretrain ssl-1",
        "finetune fine-tuned-0",
        "eval fine-tuned-0",
        "finetune fine-tuned-1",
        "eval fine-tuned-1",
    ]
    assert [shlex.split(line)[2:] for line in printed.splitlines() if line.startswith("$ sscl ")] == ran
    for seed in (0, 1):
        made = yaml.safe_load((path.parent / f"out/runs/fine-tuned-{seed}/config.yaml").read_text())
        assert made["seed"] == seed
        assert made["model"]["weights"] == str(path.parent / f"out/runs/ssl-{seed}")


def test_table_is_that_of_the_evaluations(compared: Any) -> None:
    path, printed, _ = compared
    out = path.parent / "out"
    report = json.loads((out / "compare.json").read_text())
    by_hand: dict[str, list[dict[str, float]]] = {}
    for name in ("scratch", "fine-tuned"):
        evaluations = [json.loads((out / f"runs/{name}-{s}/eval_test/metrics.json").read_text()) for s in (0, 1)]
        by_hand[name] = [{"loss": one["loss"], **one["metrics"]} for one in evaluations]
    assert [row["name"] for row in report["rows"]] == ["scratch", "fine-tuned"]
    for row in report["rows"]:
        for metric in ("loss", "accuracy", "balanced_accuracy", "macro_f1"):
            values = [one[metric] for one in by_hand[row["name"]]]
            assert [one["metrics"][metric] for one in row["runs"]] == pytest.approx(values, abs=1e-5)
            assert row["mean"][metric] == pytest.approx(statistics.mean(values), abs=1e-5)
            assert row["sd"][metric] == pytest.approx(statistics.stdev(values), abs=1e-5)
    difference = report["differences"]["fine-tuned"]
    gains = [b["accuracy"] - a["accuracy"] for a, b in zip(by_hand["scratch"], by_hand["fine-tuned"], strict=True)]
    assert difference["against"] == "scratch"
    assert difference["by_seed"]["accuracy"] == pytest.approx(gains)

    mean, sd = report["rows"][1]["mean"]["accuracy"], report["rows"][1]["sd"]["accuracy"]
    (line,) = [line for line in printed.splitlines() if re.match(r"fine-tuned .*0\.9105", line)]
    assert f"{mean:.4f} ± {sd:.4f}" in line
    assert line.split()[-2:] == ["0.9105", f"{mean - 0.9105:+.4f}"]
    (line,) = [line for line in printed.splitlines() if re.match(r"scratch .*±", line)]
    assert "0.9105" not in line
    markdown = (out / "compare.md").read_text()
    assert f"| fine-tuned | {report['rows'][1]['mean']['loss']:.4f} ±" in markdown
    assert "published accuracy | ours - published" in markdown
    assert f"Note: {comparison.PUBLISHED}" in markdown
    assert "2 groups (slides" in markdown
    for picture in ("curves.png", "grid.png"):
        assert (out / picture).stat().st_size > 1000
    assert not (out / "labels.png").exists()


def test_second_time_nothing_runs_and_the_metrics_are_the_same(compared: Any, cli: Any, here: Any) -> None:
    path, _, _ = compared
    assert cli("compare", "--config", path).code == 0  # others change the file in between
    before = json.loads((path.parent / "out/compare.json").read_text())
    result = cli("compare", "--config", path)
    assert result.code == 0, result.err
    assert here == []
    assert "6 runs in" in result.out
    assert "6 complete, 0 to make" in result.out
    assert result.out.count("reused: ") == 6
    after = json.loads((path.parent / "out/compare.json").read_text())
    assert {**after, "environment": 0} == {**before, "environment": 0}
    again = load_config(CompareConfig, path.parent / "out/config.yaml")  # can be run again
    assert {step.folder for step in plan.plan(again)} == {step.folder for step in plan_of(path)}
    assert set(reuse.decide(plan.plan(again), overwrite=False).values()) == {REUSED}


def test_an_interrupted_run_is_made_again_and_another_seed_added(compared: Any, cli: Any, here: Any) -> None:
    path, _, _ = compared
    (path.parent / "out/runs/fine-tuned-1" / run.ENDING).unlink()
    result = cli("compare", "--config", path, "runs.2.published.macro_f1=0.5")
    assert result.code == 0, result.err
    assert names(here) == ["finetune fine-tuned-1 --overwrite", "eval fine-tuned-1"]
    assert "fine-tuned-1 again: it was interrupted" in result.out
    assert "published macro F1" in result.out


def test_real_pretraining_that_was_stopped_is_resumed(compared: Any) -> None:
    path, _, _ = compared
    steps = plan_of(path, "set_pretrain.train.stop_after_epoch=1")
    assert set(reuse.decide(steps, overwrite=False).values()) == {REUSED}
    folder = path.parent / "out/runs/ssl-0"
    (folder / "encoder.pt").rename(folder / "aside.pt")
    try:
        decisions = reuse.decide(steps, overwrite=False)
    finally:
        (folder / "aside.pt").rename(folder / "encoder.pt")
    by_name = {folder.name: decision for folder, decision in decisions.items()}
    assert by_name["ssl-0"] == reuse.Decision(reuse.Action.RESUME)
    assert by_name["fine-tuned-0"].action is reuse.Action.AGAIN
    assert "ssl-0" in by_name["fine-tuned-0"].reason
    assert by_name["fine-tuned-1"] == by_name["ssl-1"] == by_name["scratch-0"] == REUSED


def test_a_missing_data_set_is_told_before_anything_is_written(study: Study, cli: Any, tmp_path: Path) -> None:
    path = study(ROWS, root=str(tmp_path / "none"))
    result = cli("compare", "--config", path)
    assert result.code == 2
    missing = f"data.root: {tmp_path / 'none'}: no such file or folder"
    assert result.err.splitlines() == [f"sscl: {name}: {missing}" for name in ("scratch", "ssl", "fine-tuned")]
    assert not (path.parent / "out").exists()


# --- runs that are made up ---


def blank(config: FinetuneConfig | PretrainConfig, *, epoch: int) -> checkpoint.Checkpoint:
    """A checkpoint almost without weights."""
    made = checkpoint.build_checkpoint(
        config,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        pooling="mean",
        classes=("HP", "SSA"),
        lineage=(),
        fingerprint="f",
        precision="fp32",
    )
    none = (torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    kept = KeptCalibration(1.0, None, None, 1, "m", 0.0, 0.0, "fp32", *none)
    fitted = (
        {"head": {"weight": torch.zeros(2, 1)}, "validation": {}, "calibration": kept}
        if made.kind == "finetune"
        else {}
    )
    return replace(made, epoch=epoch, **fitted)


def fabricate(
    step: plan.Step,
    right: list[int] | None = None,
    *,
    epochs: int = 2,
    best: int = 1,
    reason: run.Reason | None = run.Reason.COMPLETED,
) -> None:
    """Write what a run leaves behind: its configuration, log and checkpoint, and predictions, of which `right` are."""
    run.start_folder(step.folder, step.config, overwrite=False)
    (step.folder.parents[1] / "env.json").write_text(json.dumps({"sscl": "0"}))
    rows = [{"epoch": i + 1, "validation_accuracy": 0.5, "validation_loss": 1.0} for i in range(epochs)]
    (step.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if reason is not None:
        write_record(step.folder / run.ENDING, run.Ending(epochs=epochs, planned=2, reason=reason))
    if step.entry.command == "pretrain":
        checkpoint.save_checkpoint(step.folder / "checkpoints/last.pt", blank(step.config, epoch=epochs))
        torch.save({}, step.folder / "encoder.pt")
        return
    checkpoint.save_checkpoint(step.folder / "checkpoints/best.pt", blank(step.config, epoch=best))
    if right is None:
        return
    folder = step.folder / "eval_test"
    folder.mkdir()
    (folder / "config.yaml").write_text("data: {}\n")
    write_record(folder / "metrics.json", some_evaluation().model_copy(update={"epoch": best}))
    lines = ["id,label,prediction,probability_HP,probability_SSA,loss"]
    for i, (name, label) in enumerate(TEST_TILES):
        said = label if i in right else {"HP": "SSA", "SSA": "HP"}[label]
        p = 0.8 if said == "SSA" else 0.2
        lines.append(f"{name},{label},{said},{1 - p:.6f},{p:.6f},{-np.log(0.8 if i in right else 0.2):.6g}")
    (folder / "predictions.csv").write_text("\n".join(lines) + "\n")


TEST_TILES: list[tuple[str, str]] = []


@functools.cache
def some_evaluation() -> Evaluation:
    """An evaluation of made-up logits; a comparison reads its epoch, split and caveats."""
    labels = np.arange(8) % 2
    tiles = Tiles(np.zeros((8, 2, 2, 3), np.uint8), labels, ("HP", "SSA"), tuple(map(str, range(8))))
    logits = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    kept = fit_calibration(logits, labels, classes=tiles.classes, positive=1)
    return Evaluation(
        checkpoint="run",
        epoch=1,
        data=DataConfig(root="tiles"),
        split="test",
        protocol="official",
        tiles=8,
        classes=tiles.classes,
        class_counts=tiles.class_counts(),
        positive="SSA",
        data_fingerprint="f",
        test_time_augmentation=False,
        precision="fp32",
        caveats=("tiles lie",),
        notes=(),
        **dict(evaluate(tiles, logits, positive=1, kept=kept)),
    )


@pytest.fixture(autouse=True, scope="module")
def test_tiles(tiles: Path) -> None:
    """Ids and labels of the test split."""
    from sscl.data.mhist import load_mhist

    loaded = load_mhist(tiles, protocol="official", split="test", size_px=32, published=False)
    TEST_TILES[:] = [(name, loaded.classes[label]) for name, label in zip(loaded.ids, loaded.labels, strict=True)]


@pytest.fixture
def nothing_runs(wrap: Any) -> None:
    def call(real: Any, words: list[str], *, line: int | None = None) -> None:
        raise AssertionError(f"ran {words}")

    wrap(compare_step=call)


def test_fractions_reference_and_published_by_hand(study: Study, cli: Any, nothing_runs: None) -> None:
    path = study(seeds=[3, 4], fractions=[0.25, 1], reference="b")
    steps = plan_of(path)
    assert [step.folder.name for step in steps] == [
        *("a-0.25-3", "a-0.25-4", "a-3", "a-4"),
        *("b-0.25-3", "b-0.25-4", "b-3", "b-4"),
    ]
    assert [step.config.train.label_fraction for step in steps[:4]] == [0.25, 0.25, 1, 1]
    counts = {"a-0.25-3": 8, "a-0.25-4": 10, "a-3": 12, "a-4": 16, "b-0.25-3": 4, "b-0.25-4": 8, "b-3": 12, "b-4": 14}
    for step in steps:
        fabricate(step, list(range(counts[step.folder.name])))
    result = cli("compare", "--config", path)
    assert result.code == 0, result.err
    out = path.parent / "out"
    report = json.loads((out / "compare.json").read_text())

    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == ["a, 25% labels", "a, 100% labels", "b, 25% labels", "b, 100% labels"]
    assert rows["a, 25% labels"]["mean"]["accuracy"] == pytest.approx(9 / 16)
    assert rows["a, 25% labels"]["sd"]["accuracy"] == pytest.approx(np.sqrt(2) / 16)
    losses = [(16 - n) / 16 * -np.log(0.2) + n / 16 * -np.log(0.8) for n in (8, 10)]
    assert rows["a, 25% labels"]["mean"]["loss"] == pytest.approx(np.mean(losses), abs=1e-4)
    assert [rows[name]["labelled_tiles"] for name in rows] == [8, 32, 8, 32]
    # Of all labels only: a published figure beside a quarter of them would mislead.
    assert [rows[name]["published"] for name in rows] == [{}, {"accuracy": 0.5}, {}, {}]
    assert rows["a, 100% labels"]["ours_minus_published"]["accuracy"] == pytest.approx(14 / 16 - 0.5)
    differences = report["differences"]
    assert {name: one["against"] for name, one in differences.items()} == {
        "a, 25% labels": "b, 25% labels",
        "a, 100% labels": "b, 100% labels",
    }
    few = differences["a, 25% labels"]
    assert few["by_seed"]["accuracy"] == pytest.approx([4 / 16, 2 / 16])
    assert few["mean"]["accuracy"] == pytest.approx(3 / 16)
    assert few["sd"]["accuracy"] == pytest.approx(np.sqrt(2) / 16)
    assert few["intervals"]["accuracy"][0] <= 3 / 16 <= few["intervals"]["accuracy"][1]
    assert report["caveats"][::3] == [comparison.PUBLISHED, "tiles lie"]
    assert "8 differences" in report["caveats"][2]
    assert "the 4 p values" in report["caveats"][2]
    assert [(test["only_row"], test["only_reference"]) for test in few["mcnemar"]] == [(4, 0), (2, 0)]
    assert [test["p"] for test in few["mcnemar"]] == pytest.approx([2 * 0.5**4, 2 * 0.5**2])
    assert (out / "labels.png").stat().st_size > 1000


def test_one_seed_has_intervals_in_the_table(study: Study, cli: Any, nothing_runs: None) -> None:
    path = study()
    for step in plan_of(path):
        fabricate(step, list(range(12)))
    (path.parent / "out/runs/b-0/metrics.jsonl").unlink()  # its curves alone are lost
    result = cli("compare", "--config", path, "grid=0")
    assert result.code == 0, result.err
    assert re.search(r"\na .* 0\.7500 \(0\.\d+ to 0\.\d+\) .*0\.5000 +\+0\.2500\n", result.out)
    assert "±" not in result.out
    assert "by seed" not in result.out
    assert not (path.parent / "out/grid.png").exists()


def test_what_is_evaluated_again(study: Study) -> None:
    step = plan_of(study())[0]
    fabricate(step, [])
    folder = step.folder / "eval_test"
    assert compare.evaluated(step.folder, "test")
    assert not compare.evaluated(step.folder, "train")
    text = (folder / "predictions.csv").read_text()
    (folder / "predictions.csv").write_text(text.replace("loss", "los"))  # as written before there was a loss
    assert not compare.evaluated(step.folder, "test")
    (folder / "predictions.csv").write_text(text)
    (folder / "config.yaml").write_text("data: {root: elsewhere}\n")
    assert not compare.evaluated(step.folder, "test")
    (folder / "config.yaml").write_text("data: {}\ntta: true\n")
    assert not compare.evaluated(step.folder, "test")
    (folder / "config.yaml").write_text("data: {}\ntta: false\ncalibrate: true\n")
    assert compare.evaluated(step.folder, "test")
    os.utime(folder / "metrics.json", (0, 0))  # the checkpoint is newer
    assert not compare.evaluated(step.folder, "test")


def test_another_configuration_is_refused_and_made_again_on_demand(
    study: Study, cli: Any, nothing_runs: None, snapshot: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = study()
    for step in plan_of(path):
        fabricate(step, [])
    before = snapshot(path.parent)
    result = cli(
        "compare",
        "--config",
        path,
        "set.train.epochs=5",
        f"set.data.cache_dir={tmp_path_factory.mktemp('cache')}",
        "device=auto",
    )
    assert result.code == 2
    lines = result.err.splitlines()
    assert len(lines) == 2  # both runs, at once
    assert lines[0] == (
        f"sscl: {path.parent}/out/runs/a-0: was made with train.epochs=2 (now 5); set it back, name another folder, "
        "or make it again with --overwrite"
    )
    assert snapshot(path.parent) == before
    steps = plan_of(path, "set.train.epochs=5")
    assert set(reuse.decide(steps, overwrite=True).values()) == {
        reuse.Decision(reuse.Action.AGAIN, "its configuration changed")
    }


def test_a_run_of_another_version_is_not_lost(study: Study, cli: Any, nothing_runs: None) -> None:
    path = study()
    for step in plan_of(path):
        fabricate(step, [])
    made = path.parent / "out/runs/b-0/config.yaml"
    made.write_text(made.read_text() + "colour: red\n")
    result = cli("compare", "--config", path)
    assert result.code == 2
    assert "b-0: was made with a config.yaml" in result.err
    assert "(colour: unknown key" in result.err


def test_early_stopping_counts_as_complete(study: Study) -> None:
    path = study(set={"train": {"epochs": 9, "patience": 3}})
    a, b = plan_of(path)
    fabricate(a, epochs=5, best=2, reason=run.Reason.PATIENCE)
    fabricate(b, epochs=5, best=2, reason=None)  # killed before it could say so
    assert [one.action for one in reuse.decide([a, b], overwrite=False).values()] == [
        reuse.Action.REUSED,
        reuse.Action.AGAIN,
    ]
    write_last(b, epoch=4)
    assert reuse.decide([a, b], overwrite=False)[b.folder].action is reuse.Action.RESUME
    (b.folder / "checkpoints/best.pt").unlink()  # nothing goes on without it
    assert reuse.decide([a, b], overwrite=False)[b.folder].action is reuse.Action.AGAIN


def write_last(step: plan.Step, *, epoch: int) -> None:
    """Write what a training goes on from."""
    parts = {"model": {"w": torch.zeros(1)}, "optimizer": {"state": {}}, "scaler": {}}
    made = replace(blank(step.config, epoch=epoch), validation=None, calibration=None, head={}, **parts)
    checkpoint.save_checkpoint(step.folder / "checkpoints/last.pt", made)


def other(step: plan.Step) -> FinetuneConfig | PretrainConfig:
    return step.config.model_copy(update={"seed": 99})


@pytest.mark.parametrize(
    ("spoil", "action"),
    [
        (lambda ssl, tuned: (tuned.folder / "checkpoints/best.pt").unlink(), {1: "again"}),
        (lambda ssl, tuned: (tuned.folder / "checkpoints/best.pt").write_bytes(b""), {1: "again"}),
        (
            lambda ssl, tuned: checkpoint.save_checkpoint(
                tuned.folder / "checkpoints/best.pt", blank(other(tuned), epoch=1)
            ),
            {1: "again"},
        ),
        (
            lambda ssl, tuned: checkpoint.save_checkpoint(
                tuned.folder / "checkpoints/best.pt", blank(tuned.config, epoch=3)
            ),
            {1: "again"},
        ),
        (lambda ssl, tuned: (tuned.folder / run.ENDING).unlink(), {1: "again"}),
        (lambda ssl, tuned: (ssl.folder / "encoder.pt").unlink(), {0: "resume", 1: "again"}),
        (
            lambda ssl, tuned: checkpoint.save_checkpoint(
                ssl.folder / "checkpoints/last.pt", blank(ssl.config, epoch=1)
            ),
            {0: "resume", 1: "again"},
        ),
        (lambda ssl, tuned: (ssl.folder / "checkpoints/last.pt").write_bytes(b"PK"), {0: "again", 1: "again"}),
    ],
)
def test_a_run_is_complete_with_the_checkpoint_that_its_ending_is_of(
    study: Study, spoil: Callable[..., object], action: dict[int, str]
) -> None:
    steps = plan_of(study(ROWS))[1:]
    for step in steps:
        fabricate(step)
    spoil(*steps)
    found = [one.action.value for one in reuse.decide(steps, overwrite=False).values()]
    assert found == [action.get(i, "reused") for i in (0, 1)]


def test_a_newer_start_makes_what_follows_from_it_again(study: Study) -> None:
    path = study(ROWS)
    steps = plan_of(path)
    for step in steps:
        fabricate(step)
    assert set(reuse.decide(steps, overwrite=False).values()) == {REUSED}
    later = (steps[2].folder / "config.yaml").stat().st_mtime + 5
    os.utime(steps[1].checkpoint, (later, later))
    last = list(reuse.decide(steps, overwrite=False).values())[2]
    assert last.action is reuse.Action.AGAIN
    assert last.reason.startswith("ssl-0, which it starts from")


def test_files_beside_the_compare_file_or_from_the_working_directory(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = study()
    beside = plan_of(path)[0]
    assert beside.entry.config == str(path.parent / "ft.yaml")
    monkeypatch.chdir(tmp_path)
    assert plan_of(path, "runs.0.config=study/ft.yaml")[0].entry.config == "study/ft.yaml"
    with pytest.raises(ValueError, match=r"a: config: no such file or shipped config: nowhere.yaml"):
        plan_of(path, "runs.0.config=nowhere.yaml")


def test_later_keys_win(study: Study) -> None:
    runs = [{**TWO_ROWS[0], "set": ["train.batch_size=4", "model.weights=1e3"]}, ROWS[1]]
    path = study(runs, set={"train": {"batch_size": 6, "epochs": 3}}, set_finetune={"train": {"epochs": 4}})
    finetune, pretrain = plan_of(path)
    assert (finetune.config.train.batch_size, finetune.config.train.epochs) == (4, 4)
    assert (pretrain.config.train.batch_size, pretrain.config.train.epochs) == (6, 3)
    assert finetune.config.model.weights == "1e3"
    assert finetune.config.data.root == load_config(CompareConfig, path).root


def test_the_start_wins_over_weights_for_all(study: Study) -> None:
    path = study(ROWS)
    scratch, pretrain, finetuned = plan_of(path, "set.model.weights=null")
    assert scratch.config.model.weights is pretrain.config.model.weights is None
    assert finetuned.config.model.weights == str(pretrain.folder)
    with pytest.raises(ValueError, match=r"runs\.2\.set: must not set model\.weights"):
        plan_of(path, "runs.2.set.model.weights=null")


def test_a_list_of_sources_keeps_its_roots(study: Study) -> None:
    path = study([*ROWS])
    (path.parent / "ssl.yaml").write_text(yaml.safe_dump({**PRETRAIN, "data": [{"root": "x"}, {"root": "y"}]}))
    pretrain = plan_of(path)[1]
    assert [source.root for source in pretrain.config.data] == ["x", "y"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("runs.1.name=a", "runs.1.name: 'a' is given twice"),
        ("runs.0.name=a/b", "runs.0.name: must be letters, digits, _ - + and ., got 'a/b'"),
        ("runs.0.start=b", "runs.0.start: 'b' does not come before a; move it up; no entry comes before it"),
        ("runs.1.start=c", "runs.1.start: no entry 'c'; allowed are a"),
        ("runs.1.start=b", "runs.1.start: 'b' does not come before b; move it up; allowed are a"),
        ("runs.0.published.acuracy=1", "runs.0.published: unknown metric 'acuracy'; did you mean accuracy?"),
        ("reference=c", "reference: no row 'c'; allowed are a, b"),
        ("seeds=[1,1]", "seeds: must be different values, at least one seed, got [1, 1]"),
        ("seeds=[]", "seeds: must be different values, at least one seed, got []"),
        ("seeds=[-1]", "seeds.0: must be >= 0 and < 9223372036854775808, got -1"),
        ("fractions=[0,1]", "fractions.0: must be > 0 and <= 1, got 0"),
        ("set.seed=3", "set: must not set seed: give seeds"),
        ("runs.1.set.run=x", "runs.1.set: must not set run: the folder comes from out and name"),
        ("set.train.epoch=3", "a: train.epoch: unknown key; did you mean train.epochs?"),
        ("runs.1.set.train.epochs=0", "b: train.epochs: must be >= 1 and <= 100000, got 0"),
        (
            "set_finetune.train.folds=3",
            "a: train.folds: runs of a comparison have no folds; cross-validate first, then sscl compare RUN RUN",
        ),
        ("runs.0.nmae=x", "runs.0.nmae: unknown key; did you mean runs.0.name?"),
        ("runs.0.command=probe", "runs.0.command: must be pretrain or finetune, got 'probe'"),
        ("runs=[]", "runs: no finetune entry with shown: true, so there is no row"),
        ("root=", "a: data.root: missing; set it in the YAML file, or give TILES or data.root=VALUE"),
    ],
)
def test_bad_input(study: Study, cli: Any, snapshot: Any, keys: str, message: str) -> None:
    path = study()
    before = snapshot(path.parent)
    result = cli("compare", "--config", path, keys)
    assert result.code == 2
    assert result.err.splitlines()[0].startswith(f"sscl: {message}")
    assert snapshot(path.parent) == before


def test_all_faults_at_once(study: Study, cli: Any) -> None:
    result = cli("compare", "--config", study(), "runs.0.set.train.epochs=0", "runs.1.set.data.size=3", "seeds=[0,1]")
    assert [line.split(" (")[0] for line in result.err.splitlines()] == [
        "sscl: a: train.epochs: must be >= 1 and <= 100000, got 0",
        "sscl: b: data.size: unknown key; did you mean data.size_px?",
    ]


def test_clashing_run_folders(study: Study, cli: Any) -> None:
    runs = [TWO_ROWS[0], {**TWO_ROWS[1], "name": "a-0.5"}]
    result = cli("compare", "--config", study(runs), "fractions=[0.5,1]")
    assert result.code == 2
    assert "runs: two of them would write " in result.err
    assert result.err.count("\n") == 1


def test_a_folder_that_is_not_ours_is_left_alone(study: Study, cli: Any, snapshot: Any, nothing_runs: None) -> None:
    path = study()
    for place in ("out/runs/a-0", "out"):
        (path.parent / place).mkdir(parents=True)
        (path.parent / place / "thesis.txt").write_text("")
        before = snapshot(path.parent)
        result = cli("compare", "--config", path)
        assert result.code == 2
        assert "not written by sscl" in result.err
        assert snapshot(path.parent) == before
        (path.parent / place / "thesis.txt").unlink()
        (path.parent / place).rmdir()
        if place != "out":
            (path.parent / "out/runs").rmdir()
            (path.parent / "out").rmdir()


def test_a_failing_step_is_named_and_the_complete_ones_stay(
    study: Study, cli: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], commands_forked: None
) -> None:
    """The step is a real process; what it prints comes past this one's streams."""
    (tmp_path / "nowhere").mkdir()
    empty = cli("compare", "--config", study(set_finetune={"data": {"root": str(tmp_path / "nowhere")}}))
    assert empty.code == 2
    assert empty.err.startswith("sscl: a: data.root: ")  # before a process is started
    diverges = {"learning_rate": 100, "weight_decay": 10, "optimizer": "sgd", "warmup_epochs": 0, "steps_per_epoch": 40}
    model = {"name": "resnet14_small"}
    path = study(set_finetune={"train": diverges, "model": model})
    result = cli("compare", "--config", path)
    assert result.code == 2
    assert "loss" in capfd.readouterr().err
    assert result.err.startswith("sscl: compare: a-0: ")
    assert result.err.count("\n") == 1
    assert "finetune" in result.err
    assert not (path.parent / "out/compare.json").exists()


# --- finished runs ---


@pytest.fixture
def finished(study: Study, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that makes runs up, right on the first so many tiles, and gives their folder."""

    def made(**right: int) -> Path:
        path = study([{"name": name, "command": "finetune", "config": "ft.yaml"} for name in right])
        for step in plan_of(path):
            fabricate(step, list(range(right[step.entry.name])))
            step.folder.rename(step.folder.with_name(step.entry.name))
        monkeypatch.chdir(path.parent / "out/runs")
        return path.parent / "out/runs"

    return made


def test_two_finished_runs_with_little_typing(finished: Any, cli: Any, nothing_runs: None) -> None:
    finished(old=6, new=16)
    result = cli("compare", "old", "new")
    assert result.code == 0, result.err
    report = json.loads(Path("compare_old_new/compare.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["old", "new"]
    assert [row["runs"][0]["metrics"]["accuracy"] for row in report["rows"]] == [6 / 16, 1]
    difference = report["differences"]["new"]
    assert difference["against"] == "old"
    assert difference["mean"]["accuracy"] == pytest.approx(10 / 16)
    assert set(difference["verdicts"].values()) == {"new is better"}
    (test,) = difference["mcnemar"]
    assert test == pytest.approx({"only_row": 10, "only_reference": 0, "p": 2 * 0.5**10, "p_holm": 2 * 0.5**10})
    assert (report["split"], report["seeds"], report["tiles"]) == ("test", [], 16)
    assert comparison.ONE_RUN in report["caveats"]
    assert re.search(r"\nnew - old +accuracy +\+0\.6250 +\+0\.\d+ to \+0\.\d+ +new is better\n", result.out)
    for text in (result.out, Path("compare_old_new/compare.md").read_text()):
        assert "0.0020" in text  # of McNemar
        assert "4 differences are shown" in text
    assert not list(Path("compare_old_new").glob("*.png"))
    # The folder's configuration says it all again; a comparison goes on in its own folder.
    again = cli("compare", "--config", "compare_old_new/config.yaml")
    assert again.code == 0, again.err
    assert again.out == result.out


def test_runs_that_are_alike_are_no_better_than_each_other(finished: Any, cli: Any, nothing_runs: None) -> None:
    finished(a=9, b=10, c=9)
    result = cli("compare", "a", "b", "c", "out=here", "reference=b")
    assert result.code == 0, result.err
    assert "is better" not in result.out
    report = json.loads(Path("here/compare.json").read_text())
    assert {name: one["against"] for name, one in report["differences"].items()} == {"a": "b", "c": "b"}
    for one in report["differences"].values():
        assert set(one["verdicts"].values()) == {"inconclusive"}  # of 16 tiles
    for text in (result.out, Path("here/compare.md").read_text()):
        assert text.count("inconclusive") == 8 + 1  # and what the word means


def test_slides_count_and_too_few_are_said(finished: Any, cli: Any, nothing_runs: None) -> None:
    finished(a=9, b=14)
    for name in ("a", "b"):
        table = Path(name, "eval_test/predictions.csv")
        lines = table.read_text().splitlines()
        table.write_text(
            "\n".join([f"{lines[0]},group", *(f"{line},s{i // 4}" for i, line in enumerate(lines[1:]))]) + "\n"
        )
    result = cli("compare", "a", "b")
    assert result.code == 0, result.err
    assert "4 groups (slides, patients or clusters of near-duplicates)" in result.out
    assert "note: too few slides for intervals: 4" in result.out


def test_folders_of_predictions_are_taken_as_they_are(finished: Any, cli: Any, nothing_runs: None) -> None:
    folder = finished(a=9, b=14)
    for name in ("a", "b"):
        (folder / name / "eval_test").rename(folder / name / "elsewhere")
        shutil.rmtree(folder / name / "checkpoints")
    result = cli("compare", "a/elsewhere", "b/elsewhere", "out=o")
    assert result.code == 0, result.err
    report = json.loads(Path("o/compare.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["a/elsewhere", "b/elsewhere"]


def test_runs_that_are_not_evaluated_are(
    cli: Any, finetuned: Path, here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        shutil.copytree(finetuned, name, ignore=shutil.ignore_patterns("eval_*"))
    words = ["compare", "a", "b", "device=cpu", "progress=false"]
    result = cli(*words)
    assert result.code == 0, result.err
    assert names(here) == ["eval a", "eval b"]
    report = json.loads(Path("compare_a_b/compare.json").read_text())
    evaluation = json.loads(Path("b/eval_test/metrics.json").read_text())
    assert report["rows"][1]["mean"]["accuracy"] == pytest.approx(evaluation["metrics"]["accuracy"])
    assert report["rows"][1]["runs"][0]["epoch"] == evaluation["epoch"]
    assert set(report["differences"]["b"]["verdicts"].values()) == {comparison.UNDETERMINED}  # of two slides
    assert report["differences"]["b"]["mcnemar"][0]["p"] == 1
    assert "2 groups (slides" in report["interval_method"]
    again = cli(*words)
    assert again.code == 0, again.err
    assert len(here) == 2


def spoil_tiles() -> None:
    table = Path("b/eval_test/predictions.csv")
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-4]))


def spoil_age() -> None:
    os.utime("b/eval_test/metrics.json", (0, 0))


def spoil_training() -> None:
    Path("b", run.ENDING).unlink()


def nothing_spoilt() -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "words", "message"),
    [
        (
            spoil_tiles,
            ["a", "b"],
            "b and a: evaluated on other tiles (12 and 16, 12 of them in both)",
        ),
        (
            spoil_age,
            ["a", "b"],
            "finished: b/eval_test: was made from an older checkpoint, or with other settings (data, tta, "
            "calibrate); give --overwrite to evaluate again, or name b/eval_test itself to compare it as it is",
        ),
        (spoil_training, ["a", "b"], "finished: b: the training is unfinished: epoch "),
        (
            nothing_spoilt,
            ["a", "none"],
            "finished: none: neither a finetune run (checkpoints/best.pt) nor a folder with predictions.csv",
        ),
        (nothing_spoilt, ["a"], "finished: must name two or more different runs, got [a] (command line)"),
        (
            nothing_spoilt,
            ["a", "b", "a"],
            "finished: must name two or more different runs, got [a, b, a] (command line)",
        ),
        (nothing_spoilt, ["a", "b", "reference=c"], "reference: no row 'c'; allowed are a, b"),
        (
            nothing_spoilt,
            ["a", "b", "out=a"],
            "a: holds checkpoints, which this command does not replace; name another folder",
        ),
        (nothing_spoilt, ["a", "b", "out=b/eval_test"], "b/eval_test: not written by sscl"),
        (
            nothing_spoilt,
            ["a", "b", "seeds=[1,2]"],
            "seeds: is for runs to be made, but finished runs are given; leave one of them out (command line)",
        ),
        (nothing_spoilt, [], "out: missing; set it in the YAML file, or name finished runs: sscl compare RUN RUN"),
        (nothing_spoilt, ["out=o"], "runs: missing; set it in the YAML file, or name finished runs: sscl compare RUN"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    finished: Any, cli: Any, nothing_runs: None, snapshot: Any, spoil: Any, words: list[str], message: str
) -> None:
    folder = finished(a=9, b=14)
    spoil()
    before = snapshot(folder)
    result = cli("compare", *words)
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert result.err.startswith(f"sscl: {message}")
    assert snapshot(folder) == before


def test_a_stale_evaluation_is_made_again_on_demand(finished: Any, cli: Any, wrap: Any) -> None:
    finished(a=9, b=14)
    spoil_age()
    ran: list[list[str]] = []

    def call(real: Any, words: list[str], *, line: int | None = None) -> int:
        ran.append(words)
        return 0

    wrap(compare_step=call)
    assert cli("compare", "a", "b", "--overwrite").code == 0
    assert names(ran) == ["eval b --overwrite"]


def test_grid_shows_every_class_before_one_comes_twice() -> None:
    labels = np.array([0] * 50 + [1] * 3 + [2] * 2)
    chosen = compare.pick(labels, count=7, seed=0)
    assert len(set(chosen)) == 7
    assert sorted(labels[chosen[:3]]) == sorted(labels[chosen[3:6]]) == [0, 1, 2]
    assert (compare.pick(labels, count=7, seed=0) == chosen).all()
    assert (compare.pick(labels, count=7, seed=1) != chosen).any()
    assert len(compare.pick(labels, count=100, seed=0)) == 55


def test_runs_of_several_entries_are_made_together_and_none_with_the_run_it_starts_from() -> None:
    first, second, third = (SimpleNamespace(seed=seed, start=None) for seed in range(3))
    after: Any = SimpleNamespace(seed=3, start=first)
    assert compare.batches([first, second, third], jobs=2) == [[first, second], [third]]  # type: ignore[list-item]
    assert compare.batches([first, after, third], jobs=2) == [[first], [after, third]]  # type: ignore[list-item]
    assert compare.batches([first, second, after], jobs=2) == [[first, second], [after]]  # type: ignore[list-item]
