"""sscl finetune --folds: every training tile held out once, by a run that saw nothing of it; what is said of all."""

from __future__ import annotations

import json
import os
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
from PIL import Image
from sklearn import metrics as sk

from sscl import run as run_folder
from sscl.config import FinetuneConfig
from sscl.data import load
from sscl.data.tiles import Tiles
from sscl.evaluate.metric_intervals import metric_intervals
from sscl.evaluate.predictions import read_predictions
from sscl.models.classifier import load_classifier
from sscl.records import write_record
from sscl.train import fold_report, folds, labelled

Rows = Callable[[Path], list[dict[str, str]]]


def config(**train: Any) -> FinetuneConfig:
    return FinetuneConfig(run="run", data={"root": "nowhere"}, train=train)


def some_tiles(labels: list[int], groups: list[str] | None = None) -> Tiles:
    return Tiles(
        images=np.zeros((len(labels), 8, 8, 3), dtype=np.uint8),
        labels=np.array(labels, dtype=np.int64),
        classes=("a", "b"),
        ids=tuple(f"tile{i}" for i in range(len(labels))),
        groups=None if groups is None else np.array(groups),
    )


@pytest.fixture(scope="module")
def crossed(cli: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run folder of two folds, trained from scratch, and what was printed."""
    run = tmp_path_factory.mktemp("folds") / "run"
    result = cli.finetune(run, "--folds", "2", "train.learning_rate=1e-3", "train.validation_fraction=0.5")
    assert result.code == 0, result.err
    return run, result.out


# --- what is held out ---


def test_every_training_tile_is_held_out_once_and_no_slide_is_on_both_sides(
    crossed: Any, tiles: Path, read_rows: Rows
) -> None:
    run, printed = crossed
    wanted = [row["Image Name"] for row in read_rows(tiles / "annotations.csv") if row["Partition"] == "train"]
    parts = [read_rows(run / f"fold_{i}/predictions.csv") for i in (1, 2)]
    pooled = read_rows(run / "predictions.csv")
    assert [row["id"] for row in pooled] == wanted  # in the order of the set
    assert sorted(row["id"] for part in parts for row in part) == sorted(wanted)
    slides = [{row["group"] for row in part} for part in parts]
    assert slides[0].isdisjoint(slides[1])
    assert [len(one) for one in slides] == [2, 2]
    for i, part in enumerate(parts):
        assert [row for row in pooled if row["fold"] == str(i + 1)] == [{**row, "fold": str(i + 1)} for row in part]
        assert f"fold {i + 1} of 2: {len(part)} tiles of 2 slides or patients held out" in printed
    assert not list(run.rglob("*.tmp"))


def test_a_fold_is_a_complete_run_and_can_be_evaluated_on_test(crossed: Any, cli: Any, tmp_path: Path) -> None:
    run, _ = crossed
    assert {"config.yaml", "env.json", "metrics.jsonl", "curves.png"} <= {
        path.name for path in (run / "fold_2").iterdir()
    }
    result = cli.evaluate(run / "fold_2", f"out={tmp_path / 'eval'}")
    assert result.code == 0, result.err
    assert "training tiles are not those" not in result.out  # although it saw but a part of them


def test_a_folds_configuration_trains_that_fold_again(crossed: Any, cli: Any, tmp_path: Path) -> None:
    run, _ = crossed
    result = cli("finetune", "--config", run / "fold_2/config.yaml", f"run={tmp_path / 'again'}")
    assert result.code == 0, result.err
    written = (run / "fold_2/predictions.csv").read_text()
    assert (tmp_path / "again/predictions.csv").read_text() == written
    assert not (tmp_path / "again/folds.json").exists()
    assert "fold 1" not in result.out
    assert "fold 2 of 2: " in result.out


def test_held_out_tiles_and_test_tiles_select_nothing(
    crossed: Any, cli: Any, broken: Path, tmp_path: Path, read_rows: Rows, differing_tensors: Any
) -> None:
    """With other pixels in fold 1's held-out tiles, and no test tile at all, its classifier is the same to the bit."""
    run, _ = crossed
    for row in read_rows(run / "fold_1/predictions.csv"):
        Image.new("RGB", (32, 32), (255, 0, 0)).save(broken / "images" / row["id"])
    words = [*read_words(run), "train.folds=2", "train.fold=1", f"data.root={broken}"]
    result = cli.finetune(tmp_path / "other", *words)
    assert result.code == 0, result.err
    before, after = (
        torch.load(folder / "checkpoints/best.pt", weights_only=True) for folder in (run / "fold_1", tmp_path / "other")
    )
    for part in ("encoder", "head", "epoch", "validation", "calibration"):
        ours, theirs = before[part], after[part]
        if part == "validation":
            ours, theirs = (
                {k: v for k, v in row.items() if k not in ("tiles_per_second", "busy")} for row in (ours, theirs)
            )
        assert differing_tensors(ours, theirs) == [], part
    said = [row["probability_SSA"] for row in read_rows(tmp_path / "other/predictions.csv")]
    assert len(set(said)) == 1  # all are red


def read_words(run: Path) -> list[str]:
    train = yaml.safe_load((run / "config.yaml").read_text())["train"]
    return [f"train.{key}={train[key]}" for key in ("learning_rate", "validation_fraction")]


def test_folds_load_the_train_split_alone(cli: Any, tmp_path: Path, wrap: Any) -> None:
    """The run of a fold searches the test split for copies of training tiles as well, as every fine-tuning does."""
    asked = []

    def spy(real: Any, data: Any, *, split: str, progress: bool) -> Tiles:
        asked.append(split)
        return real(data, split=split, progress=progress)

    wrap(folds_tiles=spy)
    result = cli.finetune(tmp_path / "run", "--folds=2", "train.fold=1")
    assert result.code == 0, result.err
    assert set(asked) == {"train"}


def test_training_rows_leave_out_the_fold_and_unlabelled_tiles_of_its_slides() -> None:
    groups = [f"s{i // 4}" for i in range(32)]
    tiles = some_tiles([0, 1, 0, -1] * 8, groups)
    seen: list[int] = []
    for fold in (1, 2, 3, 4):
        one = config(folds=4, fold=fold)
        held, rows = labelled.held_out(tiles, one)[fold - 1], labelled.training_rows(tiles, one)
        assert set(tiles.groups[rows]).isdisjoint(tiles.groups[held])  # type: ignore[index]
        assert len(held) == 6
        assert len(rows) == 24  # two slides of four tiles are away, the unlabelled ones too
        seen += held.tolist()
    assert sorted(seen) == np.flatnonzero(tiles.labels >= 0).tolist()

    alone = some_tiles([0, 1, 0, -1] * 8)
    rows = labelled.training_rows(alone, config(folds=4, fold=1))
    assert (len(rows), (alone.labels[rows] == -1).sum()) == (26, 8)


def test_the_seed_decides_what_each_fold_holds_out() -> None:
    groups = [f"s{i // 2}" for i in range(32)]
    for tiles in (some_tiles([0, 1] * 16), some_tiles([0, 1] * 16, groups)):
        held = [
            labelled.held_out(tiles, config(folds=4).model_copy(update={"seed": seed}))[0].tolist()
            for seed in (0, 0, 1)
        ]
        assert held[0] == held[1] != held[2]


def test_predictions_are_the_calibrated_ones_of_the_folds_own_classifier(crossed: Any, read_rows: Rows) -> None:
    run, _ = crossed
    settings = FinetuneConfig.model_validate(yaml.safe_load((run / "config.yaml").read_text()), strict=False)
    tiles = load.load_tiles(settings.data, split="train", progress=False)
    for i in (1, 2):
        model, trained = load_classifier(run / f"fold_{i}", device=torch.device("cpu"))
        rows = read_rows(run / f"fold_{i}/predictions.csv")
        pixels = torch.from_numpy(np.stack([tiles.images[tiles.ids.index(row["id"])] for row in rows]))
        mean, std = (torch.tensor(values) for values in (trained.mean, trained.std))
        with torch.no_grad():
            logits = model(((pixels / 255 - mean) / std).permute(0, 3, 1, 2))
        temperature = trained.fitted.temperature
        assert abs(temperature - 1) > 0.01
        expected = (logits / temperature).softmax(1)[:, 1].tolist()
        assert [float(row["probability_SSA"]) for row in rows] == pytest.approx(expected, abs=1e-4)


# --- what is said ---


def test_report_is_that_of_the_predictions(crossed: Any, read_rows: Rows) -> None:
    run, printed = crossed
    report = json.loads((run / "folds.json").read_text())
    found = {"pooled": report["pooled"], **{f"fold_{one['fold']}": one for one in report["runs"]}}
    assert list(found) == ["pooled", "fold_1", "fold_2"]
    for name, one in found.items():
        rows = read_rows(run / ("" if name == "pooled" else name) / "predictions.csv")
        truth = np.array([row["label"] == "SSA" for row in rows], dtype=np.int64)
        p = np.array([[float(row["probability_HP"]), float(row["probability_SSA"])] for row in rows])
        assert one["tiles"] == len(rows)
        assert one["metrics"]["accuracy"] == pytest.approx(sk.accuracy_score(truth, p.argmax(1)))
        assert one["metrics"]["auroc"] == pytest.approx(sk.roc_auc_score(truth, p[:, 1]))
        assert one["metrics"]["macro_f1"] == pytest.approx(sk.f1_score(truth, p.argmax(1), average="macro"))
        assert one["loss"] == pytest.approx(sk.log_loss(truth, p), abs=1e-4)
        groups = [row["group"] for row in rows]
        assert one["groups"] == len(set(groups))
        expected = metric_intervals(truth, p, positive=1, groups=groups).model_dump()
        for key in fold_report.SHOWN:
            ends = expected[key]
            assert one["intervals"][key] == (None if ends is None else pytest.approx(list(ends), abs=1e-4))
        assert f"{one['metrics']['accuracy']:.4f}" in printed
    for key in fold_report.SHOWN:
        values = [one["metrics"][key] for one in report["runs"]]
        assert report["mean"][key] == pytest.approx(statistics.mean(values))
        assert report["sd"][key] == pytest.approx(statistics.stdev(values))
        assert f"{report['mean'][key]:.4f}" in printed
        assert f"{report['sd'][key]:.4f}" in printed
    assert (run / "folds.png").stat().st_size > 1000
    assert fold_report.MODELS in report["caveats"]
    assert fold_report.SHARED not in report["caveats"]  # two folds share no training tile
    for note in report["caveats"]:
        assert f"note: {note}\n" in printed


def test_more_than_two_folds_share_training_tiles(crossed: Any, tiles: Path) -> None:
    run, _ = crossed
    one = yaml.safe_load((run / "config.yaml").read_text())
    loaded = load.load_tiles(FinetuneConfig.model_validate(one, strict=False).data, split="train", progress=False)
    report = fold_report.build_report(
        config(folds=3), loaded, [run / f"fold_{i}" for i in (1, 2, 1)], numbers=[1, 2, 3], notes=["n"]
    )
    assert report.caveats[0] == fold_report.SHARED
    assert report.caveats[-1] == "n"
    assert any(note.startswith("single folds: too few slides for intervals: 2") for note in report.caveats)


def test_a_metric_that_no_fold_defines_is_undefined_over_folds(crossed: Any, tiles: Path, wrap: Any) -> None:
    """As AUROC where one of three classes is in the test split alone."""
    run, _ = crossed
    one = yaml.safe_load((run / "config.yaml").read_text())
    loaded = load.load_tiles(FinetuneConfig.model_validate(one, strict=False).data, split="train", progress=False)
    folders = [run / f"fold_{i}" for i in (1, 2)]
    three = ("HP", "SSA", "X")

    def with_a_third_class(real: Any, path: Path) -> Any:
        found = read_predictions(path)
        return replace(found, classes=three, probabilities=np.pad(found.probabilities, ((0, 0), (0, 1))))

    wrap(fold_predictions=with_a_third_class)

    report = fold_report.build_report(
        config(folds=2), replace(loaded, classes=three), folders, numbers=[1, 2], notes=[]
    )

    assert report.mean is not None
    assert report.sd is not None
    assert (report.mean["auroc"], report.sd["auroc"]) == (None, None)
    assert report.mean["accuracy"] is not None
    assert "undefined" in fold_report.table(report).splitlines()[-3]


def test_the_epoch_told_is_the_best_not_the_last(crossed: Any, tmp_path: Path) -> None:
    fold = Path(shutil.copytree(crossed[0] / "fold_2", tmp_path / "fold_2"))
    content = torch.load(fold / "checkpoints/best.pt", weights_only=True)
    torch.save({**content, "epoch": 4}, fold / "checkpoints/best.pt")
    ending = run_folder.Ending(epochs=9, planned=9, reason=run_folder.Reason.COMPLETED)
    write_record(fold / run_folder.ENDING, ending)
    settings = FinetuneConfig.model_validate(yaml.safe_load((crossed[0] / "config.yaml").read_text()), strict=False)
    loaded = load.load_tiles(settings.data, split="train", progress=False)
    report = fold_report.build_report(settings, loaded, [fold], numbers=[2], notes=[])
    assert [(one.fold, one.epoch, one.epochs) for one in report.runs] == [(2, 4, 9)]


@pytest.mark.parametrize(
    ("root", "kind", "words"),
    [
        ("tiles", "pretrain", "without their labels"),
        ("tiles/train", "finetune", "with their labels, so the numbers are optimistic"),
        ("elsewhere", "finetune", None),
    ],
)
def test_weights_that_saw_the_tiles_are_told(
    root: str, kind: str, words: str | None, tmp_path: Path, wrap: Any
) -> None:
    start = SimpleNamespace(lineage=[SimpleNamespace(root=str(tmp_path / root))], saw_labels=kind == "finetune")
    wrap(folds_start=lambda *_: start)
    one = FinetuneConfig(run="run", data={"root": str(tmp_path / "tiles")}, train={"folds": 2})
    found = folds.caveats(one, some_tiles([0, 1], ["s", "t"]))
    assert [note.partition(", perhaps on held-out ones, ")[2] for note in found] == ([] if words is None else [words])
    assert "no slide or patient ids" in folds.caveats(one, some_tiles([0, 1]))[-1]
    near = one.model_copy(update={"data": one.data.model_copy(update={"group_near_duplicates": True})})
    assert "no slide or patient ids" in folds.caveats(near, some_tiles([0, 1], ["s", "t"]))[-1]  # these are clusters


# --- going on ---


def test_an_interrupted_run_keeps_complete_folds_and_gives_the_same(
    crossed: Any, cli: Any, tmp_path: Path, wrapped: Any, snapshot: Any
) -> None:
    whole, _ = crossed
    run, words = tmp_path / "run", [*read_words(whole), "--folds", "2"]

    def die(real: Any, config: FinetuneConfig, tiles: Tiles, *, device: Any) -> None:
        if config.train.fold == 2:
            raise KeyboardInterrupt
        real(config, tiles, device=device)

    with wrapped(folds_predict=die):
        assert cli.finetune(run, *words).code == 130
    assert not (run / "folds.json").exists()
    before = snapshot(run / "fold_1")

    result = cli.finetune(run, *words, "device=auto")
    assert result.code == 0, result.err
    assert "2 folds in" in result.out
    assert "1 complete, 1 to train" in result.out
    assert "reused: fold_1" in result.out
    assert snapshot(run / "fold_1") == before
    assert (run / "predictions.csv").read_text() == (whole / "predictions.csv").read_text()
    ours, theirs = (json.loads((folder / "folds.json").read_text()) for folder in (run, whole))
    assert (ours["pooled"], ours["mean"]) == (theirs["pooled"], theirs["mean"])


def test_another_configuration_other_tiles_and_newer_weights_are_refused(
    crossed: Any, cli: Any, tmp_path: Path, snapshot: Any
) -> None:
    run, words = crossed[0], read_words(crossed[0])
    before = snapshot(run)
    result = cli.finetune(run, *words, "--folds", "2", "train.epochs=5", "seed=3")
    assert result.code == 2
    assert result.err.startswith(f"sscl: {run}: ")
    assert result.err.count("\n") == 1
    assert all(words in result.err for words in ("seed=0 (now 3)", "train.epochs=1 (now 5)", "--overwrite"))
    assert "train.folds=2 (now 3)" in cli.finetune(run, *words, "--folds", "3").err
    assert cli.finetune(run, *words).err.startswith(f"sscl: {run}: exists and is not empty")  # a plain run

    one = run / "fold_1/config.yaml"
    text = one.read_text()
    one.write_text(text.replace("epochs: 1\n", "epochs: 7\n"))
    assert "fold_1: was made with train.epochs=7 (now 1)" in cli.finetune(run, *words, "--folds", "2").err
    one.write_text(text)
    assert snapshot(run) == before

    complete = folds.fold_config(
        FinetuneConfig.model_validate(yaml.safe_load((run / "config.yaml").read_text()), strict=False), 1
    )
    tiles = load.load_tiles(complete.data, split="train", progress=False)
    rows = labelled.held_out(tiles, complete)[0]
    assert folds.is_complete(complete, tiles, rows)
    with pytest.raises(ValueError, match=r"fold_1: was trained on other tiles than .* holds now"):
        folds.is_complete(complete, tiles.subset(np.arange(30)), rows)
    newer = tmp_path / "encoder.pt"
    newer.write_bytes(b"")
    (run / "fold_1/config.yaml").write_text(text.replace("weights: null", f"weights: {newer}"))
    with_weights = complete.model_copy(update={"model": complete.model.model_copy(update={"weights": str(newer)})})
    os.utime(newer, (2e9, 2e9))
    with pytest.raises(ValueError, match=r"fold_1: model\.weights=.*encoder\.pt is newer than this fold"):
        folds.is_complete(with_weights, tiles, rows)
    one.write_text(text)


def test_folds_of_other_groups_and_broken_predictions_are_refused(crossed: Any, cli: Any, tmp_path: Path) -> None:
    """The file of the groups has the same name and the tiles are the same, but other tiles would be held out."""
    words = read_words(crossed[0])
    run = Path(shutil.copytree(crossed[0], tmp_path / "run"))
    complete = folds.fold_config(
        FinetuneConfig.model_validate(yaml.safe_load((run / "config.yaml").read_text()), strict=False), 1
    )
    complete = complete.model_copy(update={"run": str(run / "fold_1")})
    tiles = load.load_tiles(complete.data, split="train", progress=False)
    assert tiles.groups is not None
    rows = labelled.held_out(tiles, complete)[0]
    renamed = replace(tiles, groups=np.char.add(tiles.groups, "x"))
    for other, held, said in (
        (renamed, rows, "trained on other tiles"),  # the fingerprint has the groups
        (replace(tiles, groups=None), rows, "trained on other tiles"),
        (tiles, rows[:-1], "holds other tiles or groups"),
    ):
        with pytest.raises(ValueError, match=said):
            folds.is_complete(complete, other, held)

    table = run / "fold_2/predictions.csv"
    table.write_text("id,label\n")
    result = cli.finetune(run, *words, "--folds", "2")
    assert result.code == 2
    assert result.err.startswith(f"sscl: {table}: holds other tiles or groups")


def test_a_plain_run_is_replaced_only_on_demand(crossed: Any, cli: Any, tmp_path: Path, snapshot: Any) -> None:
    run = tmp_path / "run"
    shutil.copytree(crossed[0] / "fold_1", run)
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["train"] |= {"folds": None, "fold": None}
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    before = snapshot(run)
    result = cli.finetune(run, "--folds", "2")
    assert result.code == 2
    assert "exists and is not empty; give --overwrite to replace it" in result.err
    assert snapshot(run) == before


# --- what cannot be ---


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--folds", "1"], "train.folds: must be >= 2 and <= 1000, got 1"),
        (["--folds", "many"], "train.folds: must be an integer, got 'many'"),
        (["--folds"], "--folds: expected one argument"),
        (["train.fold=1"], "train.fold: got 1 without train.folds"),
        (["train.folds=2", "train.fold=3"], "train.fold: must be <= 2 (train.folds), got 3"),
        (["--folds", "5"], "train.folds: 5 folds need at least 5 groups per class, class 'HP' has 4"),
        (["--folds", "4", "model.weights=none"], "model.weights: none: no such run folder or checkpoint file"),
        (["--folds=2", "device=cuda:7"], "device: "),
    ],
)
def test_faults_are_one_line_and_nothing_is_written(cli: Any, tmp_path: Path, words: list[str], message: str) -> None:
    result = cli.finetune(tmp_path / "run", *words)
    assert result.code == 2
    assert result.err.startswith(f"sscl: {message}")
    assert result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_later_fold_that_cannot_be_is_told_before_the_first_is_trained(cli: Any, tmp_path: Path, wrap: Any) -> None:
    def parts(real: Any, tiles: Tiles, config: FinetuneConfig, **named: Any) -> Any:
        if config.train.fold == 2:
            raise ValueError("train.validation_fraction: too few")
        return real(tiles, config, **named)

    wrap(folds_parts=parts)
    result = cli.finetune(tmp_path / "run", "--folds", "2")
    assert (result.code, result.err.startswith("sscl: train.validation_fraction: ")) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_torchrun_is_refused(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = cli.finetune(tmp_path / "run", "--folds", "2")
    assert result.code == 2
    assert "train.folds: folds run in one process" in result.err
    assert list(tmp_path.iterdir()) == []


def test_tiles_without_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.root: nowhere has no labels"):
        labelled.held_out(some_tiles([-1, -1]), config(folds=2))


def test_help_says_how(cli: Any) -> None:
    text = cli("finetune", "--help").out
    assert "[--folds K]" in text.splitlines()[0]
    assert "\n  --folds K" in text
    assert "train.folds=K" in text
    assert "\n  train.fold=null" in cli("finetune", "--help-all").out
