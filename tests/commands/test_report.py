"""sscl report: the page shows what the runs wrote, maps and boxes equal gradcam's, and pages are written whole."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sscl.explain.records import BoxSensitivity, DeletionInsertion
from sscl.models.checkpoint import load_checkpoint
from sscl.records import write_record
from sscl.report import contents, subject
from sscl.report.slide_record import PAGE, PredictedSlides, SlideLine

Read = Callable[[Path], list[dict[str, str]]]


@pytest.fixture(scope="module")
def evaluated(cli: Any, finetuned: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finetune run with its evaluation, beside the pretraining run that it started from."""
    folder = tmp_path_factory.mktemp("study")
    shutil.copytree(pretrained, folder / "pretrain", ignore=shutil.ignore_patterns("*.pt"))
    (folder / "pretrain/checkpoints/last.pt").touch()  # a report reads no weights of it
    shutil.copytree(finetuned, folder / "finetune")
    for name in ("eval_test", "gradcam_test"):
        shutil.rmtree(folder / "finetune" / name, ignore_errors=True)
    result = cli.evaluate(folder / "finetune")
    assert result.code == 0, result.err
    return folder / "finetune"


def link_weights(source: str, target: str) -> None:
    """Copy a file; link weights, which are large and not written to."""
    (os.link if source.endswith(".pt") else shutil.copy2)(source, target)


@pytest.fixture
def study(evaluated: Path, tmp_path: Path) -> Path:
    """A copy of it for a test to write into."""
    shutil.copytree(evaluated.parent, tmp_path / "study", copy_function=link_weights)
    return tmp_path / "study" / "finetune"


@pytest.fixture
def make(cli: Any, wrapped: Any) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Return a function that runs `sscl report`, and gives its result and the content of the page.

    Charts, which take most of the time, are drawn only with `charts=True`.
    """
    seen: dict[str, Any] = {}

    def render(real: Any, content: dict[str, Any]) -> str:
        seen.clear()
        seen.update(content)
        return real(content)

    def made(*words: object, charts: bool = False) -> tuple[Any, dict[str, Any]]:
        seen.clear()

        def chart(inline: Any, draw: Any, prefix: str) -> str:
            return inline(draw, prefix=prefix) if charts else f'<svg id="{prefix}"></svg>'

        with wrapped(report_page=render, svg=chart):
            result = cli("report", *words, "device=cpu", "progress=false")
        return result, dict(seen)

    return made


def section(content: dict[str, Any], name: str) -> dict[str, Any]:
    return next(section for section in content["sections"] if section["id"] == name)


def names(content: dict[str, Any]) -> list[str]:
    return [section["id"] for section in content["sections"]]


def test_the_page_of_a_run_holds_its_metrics_and_all_its_tiles(
    make: Any, study: Path, read_rows: Read, tiles: Path
) -> None:
    result, content = make(study, charts=True)

    assert result.code == 0, result.err
    html = (study / "report.html").read_text(encoding="utf-8")
    assert html.startswith("<!DOCTYPE html>")
    assert result.out.startswith(f"wrote {study}/report.html (")
    assert "16 tiles)" in result.out
    about = ["summary", "checks", "data", "training", "results", "errors", "probabilities", "decisions", "caveats"]
    assert names(content) == [*about, "pretrain", "provenance"]
    rows = read_rows(study / "eval_test/predictions.csv")
    shown = content["gallery"]["tiles"]
    classes = content["gallery"]["classes"]
    assert [tile["id"] for tile in shown] == [row["id"] for row in rows]
    for tile, row in zip(shown, rows, strict=True):
        assert classes[tile["label"]] == row["label"]
        assert classes[tile["prediction"]] == row["prediction"]
        assert tile["votes"] == int(row["votes"])
        assert tile["group"] == row["group"]
        assert tile["loss"] == pytest.approx(float(row["loss"]), abs=1e-4)
        assert tile["region"] == [0, 0, 32, 32]
    matrix = next(block for block in section(content, "errors")["blocks"] if block["kind"] == "confusion")["matrix"]
    assert matrix == json.loads((study / "eval_test/metrics.json").read_text())["confusion_matrix"]
    for tile in shown:
        picture = Image.open(io.BytesIO(base64.b64decode(tile["image"].partition(",")[2])))
        original = np.asarray(Image.open(tiles / "images" / tile["id"]), dtype=float)
        assert np.abs(np.asarray(picture, dtype=float) - original).mean() < 8
    counted = next(block for block in section(content, "data")["blocks"] if block["kind"] == "table")["rows"]
    assert counted == [["train", "16", "16", "32", "4"], ["test", "8", "8", "16", "2"]]
    learned = section(content, "summary")["blocks"][0]["rows"][0][1]
    held = load_checkpoint(study, kind="finetune", tensors=False).fitted.tiles
    assert f"from {32 - held} labelled image tiles" in learned
    assert f"with {held} tiles apart" in learned
    assert "drawn by a program" in learned
    assert [part["folded"] for part in content["sections"]] == [False, *[True] * (len(content["sections"]) - 1)]


def checked(outcomes: dict[str, str]) -> dict[str, Any]:
    """The content of a checks.json with these verdicts."""
    spread = {"mean": [0.1], "sd": [0.1]}
    area = {"map": {"curve": [1, 0], "auc": 0.5, "interval": [0.4, 0.6]}}
    more: dict[str, dict[str, Any]] = {
        "randomisation": {
            "draws": 1,
            "cells": 49,
            "stages": ["head"],
            "unrelated_below": 0.5,
            **dict.fromkeys(("ssim", "rank_correlation", "absolute_rank_correlation"), spread),
        },
        "deletion_insertion": {"fractions": [0, 1], "moves": 0.5, "deletion": area, "insertion": area},
        "equivariance": {},
        "box_sensitivity": {
            "threshold": 0.2,
            "thresholds": [0.1],
            **dict.fromkeys(("area_fraction", "iou", "centre_shift"), spread),
        },
    }
    return {
        "tiles": 4,
        **{name: {"tiles": 4, "outcome": outcomes[name], "verdict": name, **of} for name, of in more.items()},
    }


def test_maps_and_boxes_are_those_of_gradcam_with_its_settings_and_verdicts(
    make: Any, cli: Any, study: Path, read_rows: Read
) -> None:
    ids = [row["id"] for row in read_rows(study / "eval_test/predictions.csv")][:4]
    # The last features of a tile of 32 px are one cell, of which any box is the whole tile.
    made = cli.gradcam(study, f"ids={json.dumps(ids)}", "threshold=0.45", "method=layercam", "layer=encoder.net.layer2")
    assert made.code == 0, made.err
    verdicts = {
        "randomisation": "passed",
        "deletion_insertion": "FAILED",
        "equivariance": "not assessed",
        "box_sensitivity": "FAILED",
    }
    (study / "gradcam_test/checks.json").write_text(json.dumps(checked(verdicts)))

    result, content = make(study)

    assert result.code == 0, result.err
    found = content["gallery"]
    shown = {tile["id"]: tile for tile in found["tiles"]}
    rows = read_rows(study / "gradcam_test/boxes.csv")
    assert len(rows) == 4
    assert found["threshold"] == 0.45
    assert found["map_side"] == 4
    assert "maps: layercam of encoder.net.layer2" in " ".join(found["notes"]).lower()
    for row in rows:
        tile = shown[row["id"]]
        box = [int(row[key]) for key in ("x0", "y0", "x1", "y1")] if row["positive_evidence"] == "yes" else None
        assert tile["box"] == box
        assert tile["maximum"] == pytest.approx(float(row["raw_maximum"]), abs=1e-3)
        levels = base64.b64decode(tile["map"])
        assert (len(levels), max(levels, default=0)) == ((found["map_side"] ** 2, 255) if box else (0, 0))
    shown_verdicts = [block for block in section(content, "gradcam")["blocks"] if block["kind"] == "verdict"]
    assert [block["outcome"] for block in shown_verdicts] == [said.lower() for said in verdicts.values()]
    summary = [block for block in section(content, "checks")["blocks"] if block["kind"] == "verdict"]
    assert [block["outcome"] for block in summary][:2] == ["failed", "failed"]  # the failed ones first
    assert {block["title"] for block in shown_verdicts} <= {block["title"] for block in summary}
    failed = [kind.model_fields["question"].default.rstrip("?").lower() for kind in (DeletionInsertion, BoxSensitivity)]
    assert f"failed checks: {'; '.join(failed)}" in " ".join(found["notes"]).lower()

    _, other = make(study, "gradcam.threshold=0.9", "--overwrite")

    assert other["gallery"]["threshold"] == 0.9
    assert "these maps were not checked" in " ".join(other["gallery"]["notes"]).lower()
    assert other["id"] == content["id"]  # the same review


def made_up(folder: Path, weights: bytes = b"w", **keys: str) -> Any:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints/best.pt").write_bytes(weights)
    return SimpleNamespace(folder=folder, report=SimpleNamespace(**{"split": "test", "data_fingerprint": "f", **keys}))


def test_a_review_belongs_to_weights_and_tiles(tmp_path: Path) -> None:
    one = subject.worksheet_id(made_up(tmp_path / "a"))
    assert re.fullmatch("[0-9a-f]{16}", one)
    assert subject.worksheet_id(made_up(tmp_path / "copy")) == one
    others = [{"weights": b"v"}, {"split": "all"}, {"data_fingerprint": "g"}]
    assert len({one, *(subject.worksheet_id(made_up(tmp_path / "b", **keys)) for keys in others)}) == 4  # type: ignore[arg-type]


def test_heatmaps_of_another_run_are_not_of_this_one(tmp_path: Path) -> None:
    own, other = (made_up(tmp_path / name) for name in ("own", "other"))
    for name, checkpoint in {
        "of_own": tmp_path / "own",
        "of_its_file": tmp_path / "own/checkpoints/best.pt",
        "of_other": tmp_path / "other",
        "of_none": tmp_path / "gone",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"checkpoint: {checkpoint}\n")
    names = ("of_own", "of_its_file", "of_other", "of_none")
    assert [contents._explains(tmp_path / name, own) for name in names] == [True, True, False, False]
    assert contents._explains(tmp_path / "of_other", other)


def test_a_missing_evaluation_is_made_by_eval_itself(make: Any, cli: Any, study: Path, wrap: Any) -> None:
    """It runs in this process, which saves a start of Python."""
    shutil.rmtree(study / "eval_test")
    ran = []

    def here(real: Any, words: list[str]) -> int:
        ran.append(words)
        return int(cli(*words).code)

    wrap(report_step=here)

    result, content = make(study)
    again, _ = make(study, "--overwrite")

    assert result.code == again.code == 0, result.err
    assert ran == [["eval", f"checkpoint={study}", "split=test", "device=cpu", "progress=false"]]
    assert len(content["gallery"]["tiles"]) == 16


@pytest.mark.parametrize(("code", "lines"), [(2, 0), (-9, 1), (1, 1)])
def test_a_failing_evaluation_ends_it_and_what_it_said_is_not_said_again(
    make: Any, study: Path, wrap: Any, code: int, lines: int
) -> None:
    shutil.rmtree(study / "eval_test")
    wrap(report_step=lambda run, words: code)

    result, _ = make(study)

    assert result.code == 2
    assert len(result.err.splitlines()) == lines
    assert not (study / "report.html").exists()


def test_an_evaluation_of_another_checkpoint_is_not_shown(make: Any, study: Path) -> None:
    file = study / "eval_test/metrics.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "epoch": 99}))

    result, _ = make(study)

    assert result.code == 2
    assert f"{study}/eval_test" in result.err
    assert "--overwrite" in result.err


def test_fewer_tiles_and_none(make: Any, study: Path) -> None:
    result, some = make(study, "tiles=6")
    assert result.code == 0, result.err
    note = some["gallery"]["notes"][0]
    confusion = next(block for block in section(some, "errors")["blocks"] if block["kind"] == "confusion")

    _, none = make(study, "tiles=0", "--overwrite")

    assert len(some["gallery"]["tiles"]) == 6
    assert note.startswith("6 of 16 tiles: ")
    assert "6 of the 16 tiles" in confusion["note"]
    assert none["gallery"] is None
    assert none["id"] == some["id"]


def test_worksheets_that_came_back_are_on_a_page_of_their_own(make: Any, study: Path, read_rows: Read) -> None:
    _, content = make(study, "blind=true")
    assert content["gallery"]["blind"]
    rows = read_rows(study / "eval_test/predictions.csv")
    for name, word in {"a": "agree", "b": "disagree"}.items():
        lines = [f"{content['id']},{row['id']},{row['label']},{word}\n" for row in rows]
        (study / f"{name}.csv").write_text("report,id,blind,review\n" + "".join(lines))

    result, reviewed = make(study, f"reviews=[{study}/a.csv,{study}/b.csv]", "tiles=0")
    again, _ = make(study, f"reviews={study}/a.csv", f"out={study}/other.html", "tiles=0")

    assert (result.code, again.code) == (0, 0), result.err
    assert (study / "reviewed.html").is_file()
    assert names(reviewed)[:3] == ["summary", "reviews", "checks"]
    table = section(reviewed, "reviews")["blocks"][0]["rows"]
    assert ["a", "blind", "labels", "16", "16 (100%)"] in [row[:5] for row in table]
    assert "16 (100%)" in result.out
    (study / "a.csv").write_text("id,blind\nx.png,HP\n")
    bad, _ = make(study, f"reviews={study}/a.csv", f"out={study}/third.html")
    assert (bad.code, (study / "third.html").exists()) == (2, False)
    assert f"{study}/a.csv: line 2" in bad.err
    shutil.rmtree(study / "eval_test")
    missing, _ = make(study, f"reviews={study}/nobody.csv", f"out={study}/third.html")
    assert (missing.code, (study / "eval_test").exists()) == (2, False)  # said before anything is evaluated


def test_three_classes_of_a_folder_without_slides(
    make: Any, cli: Any, finetuned3: Path, folder3: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finetuned3, tmp_path / "three", ignore=shutil.ignore_patterns("eval_*")))
    assert cli.evaluate(folder).code == 0

    result, content = make(folder)

    assert result.code == 0, result.err
    assert len(content["gallery"]["tiles"]) == 15
    tile = content["gallery"]["tiles"][0]
    assert (tile["group"], tile["votes"], tile["agreement"]) == (None, None, None)
    assert tile["region"] == [0, 0, 32, 32]
    assert content["gallery"]["target"] == "logit of the predicted class minus that of the next likely class"
    assert content["title"] == "benign, cancer and stroma, learned on colours"
    assert content["subtitle"].startswith("three: ")


def test_other_folders_add_their_sections(
    make: Any, cli: Any, study: Path, tiles: Path, wrap: Any, tmp_path: Path
) -> None:
    wrap(find_pairs=lambda real, *_, **__: [])  # whatever an audit finds
    audit, compared = tmp_path / "audit", tmp_path / "compared"
    words = [
        f"data.root={tiles}",
        "data.published=false",
        "data.size_px=32",
        "progress=false",
        "stretched=false",
        "neighbours=1",
    ]
    assert cli("data", "audit", *words, f"out={audit}").code == 0
    shutil.copytree(study, study.parent / "second", copy_function=link_weights)
    made = cli("compare", study, study.parent / "second", f"out={compared}")
    assert made.code == 0, made.err

    result, content = make(study, audit, compared, study.parent / "second", f"out={tmp_path}/new/page.html")

    assert result.code == 0, result.err
    assert (tmp_path / "new/page.html").is_file()
    assert not (study / "report.html").exists()
    assert names(content)[-5:] == ["audit", "pretrain", "comparison", "others", "provenance"]
    verdict = json.loads((audit / "audit.json").read_text())["verdict"]
    assert verdict[1:] in json.dumps(section(content, "checks"))
    configs = [
        block["title"].partition(": ")[0]
        for block in section(content, "provenance")["blocks"]
        if block["kind"] == "code"
    ]
    folders = [study, study / "eval_test", audit, compared, study.parent / "second"]
    assert set(map(str, folders)) <= set(configs)


def test_an_audit_of_another_set_or_split_is_no_verdict_on_this_one(
    make: Any, cli: Any, study: Path, tiles: Path, broken: Path, wrap: Any, tmp_path: Path
) -> None:
    wrap(find_pairs=lambda real, *_, **__: [])  # whatever an audit finds
    words = ["data.published=false", "data.size_px=32", "progress=false", "stretched=false", "neighbours=1"]
    for name, more in {"other": [f"data.root={broken}"], "split": [f"data.root={tiles}", "data.split_seed=1"]}.items():
        assert cli("data", "audit", *words, *more, f"out={tmp_path / name}").code == 0

    _, content = make(study, tmp_path / "other", tmp_path / "split", "tiles=0")

    asked = "Are the evaluated tiles new to the model?"
    verdict = next(block for block in section(content, "checks")["blocks"] if block.get("title") == asked)
    assert verdict["outcome"] == "not assessed"
    assert {"audit", "audit-2"} <= set(names(content))


def test_a_page_without_a_classifier(make: Any, evaluated: Path, tmp_path: Path) -> None:
    pretrain = Path(shutil.copytree(evaluated.parent / "pretrain", tmp_path / "ssl"))

    result, content = make(pretrain)

    assert result.code == 0, result.err
    assert [(part["id"], part["folded"]) for part in content["sections"]] == [("pretrain", False), ("provenance", True)]
    assert content["gallery"] is None
    assert (pretrain / "report.html").is_file()


def test_training_tiles_that_are_gone_are_a_caveat(make: Any, study: Path, tiles: Path, tmp_path: Path) -> None:
    """The evaluated tiles moved, and with them the training tiles; then only these are gone."""
    moved = Path(shutil.copytree(tiles, tmp_path / "moved"))
    result, content = make(study, f"data.root={moved}")
    assert result.code == 0, result.err
    assert "not be counted" not in json.dumps(content)

    (moved / "annotations.csv").write_text("")
    result, content = make(study, f"data.root={moved}", "tiles=0", "--overwrite")

    assert result.code == 0, result.err
    assert "the training tiles could not be counted: " in json.dumps(section(content, "caveats"))


def test_an_interrupted_training_is_a_caveat(make: Any, study: Path) -> None:
    (study / "training.json").unlink()

    _, content = make(study, "tiles=0")

    assert "unfinished: epoch 3 of 3" in json.dumps(section(content, "caveats"))


def test_other_tiles_under_the_same_names_are_a_caveat(make: Any, study: Path, broken: Path) -> None:
    """Evaluated on some pixels, shown on others: what the classifier says of these is compared."""
    for path in (broken / "images").iterdir():
        Image.new("RGB", (32, 32), (255, 0, 255)).save(path)

    result, content = make(study, f"data.root={broken}")

    assert result.code == 0, result.err
    caveats = json.dumps(section(content, "caveats"))
    assert "differ from the evaluated ones" in caveats
    rows = (study / "eval_test/predictions.csv").read_text().splitlines()[1:]
    if len({row.split(",")[2] for row in rows}) > 1:  # equal tiles now all get the same prediction
        assert "predicted differently" in caveats


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{study}/nowhere"], "runs: {study}/nowhere: no such folder"),
        (["{study}/eval_test"], "runs: {study}/eval_test: is an evaluation; name its run, {study}"),
        (["{study}/.."], "it holds {study}/../finetune, {study}/../pretrain"),
        (["{study}/config.yaml"], "{study}/config.yaml: is a file of a run; name the folder of the run, {study}"),
        (["{study}/env.json"], "runs: {study}/env.json: is a file; name the folder of a run"),
        (["{study}", "{study}"], "{study} is given twice"),
        (
            ["{study}", "{study}/../finetune"],
            "{study}/../finetune: is the same folder as {study}",
        ),
        (["{study}", "out={study}/page.txt"], "out: must end in .html"),
        (["{study}", "gradcam.per_class=3"], "gradcam.per_class: unknown key"),
        (["{study}", "gradcam.target=HPP"], "gradcam.target: "),
        (["{study}", "gradcam.threshold=2"], "gradcam.threshold: must be > 0 and < 1, got 2"),
        (["{study}", "gradcam.layer=encoder.nothing"], "encoder.nothing"),
        (["{study}", "data.root=/nowhere"], "tiles=0"),
        ([], "runs: "),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    make: Any, study: Path, snapshot: Any, words: list[str], said: str
) -> None:
    before = snapshot(study.parent)

    result, _ = make(*(word.format(study=study) for word in words))

    assert result.code == 2
    assert result.err.count("\n") == 1
    assert said.format(study=study) in result.err
    assert snapshot(study.parent) == before


def test_a_page_is_replaced_only_when_asked_and_only_one_of_ours(make: Any, study: Path) -> None:
    assert make(study, "tiles=0")[0].code == 0

    refused, _ = make(study, "tiles=0")
    assert "--overwrite" in refused.err
    assert make(study, "tiles=0", "--overwrite")[0].code == 0

    (study / "report.html").write_text("<p>mine</p>")
    alone, _ = make(study, "tiles=0", "--overwrite")
    assert alone.code == 2
    assert "not written by sscl report" in alone.err
    assert (study / "report.html").read_text() == "<p>mine</p>"
    (study / "report.html").write_text("<p>My notes on what sscl report says. Made by sscl report 0.1.0</p>")
    assert "not written by sscl report" in make(study, "tiles=0", "--overwrite")[0].err


def test_a_failure_while_writing_leaves_the_page_that_was_there(make: Any, study: Path, disk_full: Any) -> None:
    assert make(study, "tiles=0")[0].code == 0
    before = (study / "report.html").read_bytes()

    disk_full()
    result, _ = make(study, "tiles=0", "--overwrite")

    assert result.code == 2
    assert (study / "report.html").read_bytes() == before
    assert not list(study.glob(".report*"))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("eval_test/metrics.json", "{"),
        ("eval_test/metrics.json", "[]"),
        ("eval_test/metrics.json", '{"epoch": "x"}'),
        ("eval_test/predictions.csv", "id,label\n"),
        ("config.yaml", "\udcff"),
        ("env.json", "[1]"),
        ("metrics.jsonl", '{"epoch": 1, "validation_loss": "<b>", "train_loss": 1}\n'),
        ("gradcam_test/checks.json", "{}"),
        ("gradcam_test/localisation.json", '{"this model": 3}'),
        ("gradcam_test/config.yaml", None),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(make: Any, study: Path, file: str, text: str | None) -> None:
    if file.startswith("gradcam_test"):
        (study / "gradcam_test").mkdir()
        (study / "gradcam_test/boxes.csv").write_text("id\n")
        (study / "gradcam_test/config.yaml").write_text(f"{{checkpoint: {study}, target: auto, threshold: 0.5}}")
    if text is None:
        (study / file).unlink()
    else:
        (study / file).write_text(text, errors="surrogateescape")

    result, _ = make(study, "tiles=2")

    assert result.code == 2
    assert result.err.count("\n") == 1
    assert str(study / file) in result.err or str((study / file).parent) in result.err
    assert not (study / "report.html").exists()


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("metrics", "accuracy"), "<b>"),
        (("intervals", "accuracy"), [0.1]),
        (("calibration", "temperature"), "hot"),
        (("coverage",), None),
        (("data",), None),
        (("split",), "train"),
        (("confusion_matrix",), [[1, 2], [3, 4]]),
    ],
)
def test_a_changed_evaluation_is_one_line(make: Any, study: Path, keys: tuple[str, ...], value: Any) -> None:
    file = study / "eval_test/metrics.json"
    content = json.loads(file.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    file.write_text(json.dumps(content))

    result, _ = make(study, "tiles=0")

    assert result.code == 2
    assert result.err.count("\n") == 1
    assert str(file.parent) in result.err


def test_tiles_with_another_label_are_not_shown(make: Any, study: Path, broken: Path) -> None:
    """A set whose annotations changed since the evaluation."""
    file = broken / "annotations.csv"
    lines = file.read_text().splitlines()
    swap = {"HP": ("SSA", "7"), "SSA": ("HP", "0")}
    changed = [lines[0]]
    for line in lines[1:]:
        name, label, _, part = line.split(",")
        changed.append(",".join([name, *swap[label], part]))
    file.write_text("\n".join(changed) + "\n")

    result, _ = make(study, f"data.root={broken}")

    assert result.code == 2
    assert "has another label for" in result.err


def test_hostile_names_are_text(make: Any, cli: Any, finetuned3: Path, folder3: Path, tmp_path: Path) -> None:
    """The run of the three classes under other names, which with that of a file end the element that holds the data."""
    classes = {"benign": "<", "cancer": "a'\"&amp;<b>", "stroma": "b"}
    file = "script><img src=x onerror=alert(1)>.png"
    root, folder = tmp_path / "tiles", tmp_path / "run"
    for part in ("train", "test"):
        for old, new in classes.items():
            shutil.copytree(folder3 / part / old, root / part / new)
    (root / "test/</benign_0.png").rename(root / "test/<" / file)
    shutil.copytree(finetuned3, folder, ignore=shutil.ignore_patterns("eval_*"))
    content = torch.load(folder / "checkpoints/best.pt", weights_only=True)
    content["classes"] = list(classes.values())
    content["config"]["data"]["root"] = str(root)
    torch.save(content, folder / "checkpoints/best.pt")
    made = cli.evaluate(folder)
    assert made.code == 0, made.err

    result, content = make(folder, charts=True)

    assert result.code == 0, result.err
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in html
    assert len(re.findall("</script", html, re.IGNORECASE)) == 2  # data and the page's own
    assert content["gallery"]["classes"] == list(classes.values())
    assert f"test/</{file}" in [tile["id"] for tile in content["gallery"]["tiles"]]


def test_the_shipped_example_is_accepted() -> None:
    text = (Path(__file__).parents[2] / "configs/demo/report.yaml").read_text()
    assert yaml.safe_load(text)["runs"] == ["demo-run/finetune", "demo-run/few", "demo-run/audit", "demo-run/predicted"]


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """What `sscl predict` writes of slides, as far as a report reads it."""
    folder = tmp_path / "answers"
    (folder / "a/one #1.svs").mkdir(parents=True)
    (folder / "a/one #1.svs" / PAGE).touch()
    lines = (
        SlideLine(name="a/one #1.svs", path="s/a/one #1.svs", status="predicted", tiles=40,
                  class_counts={"HP": 30, "SSA": 10}, undecided=3),
        SlideLine(name="two.svs", path="s/two.svs", status="failed", reason="is a folder"),
    )  # fmt: skip
    record = PredictedSlides(
        **{"checkpoint": "f", "epoch": 1, "classes": ("HP", "SSA"), "size_px": 32, "mpp": 2.0, "stain": "none"},
        **{"temperature": 1.0, "calibrated": True, "test_time_augmentation": False, "precision": "fp32"},
        **{"decide_from": 0.6, "decide_from_method": "m", "index": "i", "slides": lines, "notes": ("a note",)},
    )
    write_record(folder / "slides.json", record)
    (folder / "config.yaml").write_text("checkpoint: f\n")
    return folder


def tables_of(content: dict[str, Any], section: str) -> list[dict[str, Any]]:
    (found,) = [one for one in content["sections"] if one["id"] == section]
    return [block for block in found["blocks"] if block["kind"] == "table"]


def test_slides_that_were_predicted_are_a_page_or_a_section(make: Any, study: Path, slides: Path) -> None:
    alone, page = make(slides)
    beside, section = make(study, slides)

    assert alone.code == beside.code == 0, alone.err + beside.err
    assert (study / "report.html").is_file()
    predicted, others = tables_of(page, "slides")
    assert predicted["rows"] == [["a/one #1.svs", "40", "75.0", "25.0", "7.5"]]
    assert others["rows"] == [["two.svs", "failed", "is a folder"]]
    assert predicted["links"] == ["./a/one%20%231.svs/slide.html"]
    again, _ = tables_of(section, "slides")
    assert again["rows"] == predicted["rows"]
    assert again["links"] == ["./../../answers/a/one%20%231.svs/slide.html"]
    assert {"summary", "checks", "slides"} <= {one["id"] for one in section["sections"]}
    blind = tables_of(make(slides, "blind=true", f"out={slides / 'blind.html'}")[1], "slides")[0]
    assert blind["rows"] == [["a/one #1.svs", "40"]]  # nothing that was predicted
    assert blind["links"] == ["./a/one%20%231.svs/slide.html#blind"]


def test_a_folder_of_predictions_has_a_page_without_accuracy(
    make: Any, cli: Any, finetuned: Path, tiles: Path, tmp_path: Path, read_rows: Read
) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    for path in sorted((tiles / "images").iterdir())[:5]:
        (folder / f"new_{path.name}").write_bytes(path.read_bytes())
    wide = folder / "wide.png"
    Image.open(path).resize((64, 40)).save(wide)
    out = tmp_path / "predictions"
    words = ["fit=crop", "panels=true", "device=cpu", "progress=false"]
    assert cli("predict", "--checkpoint", finetuned, folder, f"out={out}", *words).code == 0

    result, content = make(out)

    assert result.code == 0, result.err
    assert (out / "report.html").is_file()
    assert names(content) == ["summary", "predictions", "provenance"]
    assert "accuracy" not in json.dumps(content["sections"][0]).lower()
    rows = {row["path"]: row for row in read_rows(out / "predictions.csv")}
    shown = content["gallery"]["tiles"]
    assert {tile["id"] for tile in shown} == set(rows)
    confidence = [max(tile["probabilities"]) for tile in shown]
    assert confidence == sorted(confidence)
    classes = content["gallery"]["classes"]
    for tile in shown:
        row = rows[tile["id"]]
        assert (tile["label"], tile["loss"]) == (-1, None)
        assert classes[tile["prediction"]] == row["prediction"]
        assert tile["decided"] is (row["decided"] == "yes")
        assert tile["image"].startswith("data:image/jpeg")
    counted = next(block for block in content["sections"][1]["blocks"] if block["kind"] == "table")["rows"]
    assert sum(int(row[1]) for row in counted) == 6
    boxes = {row["path"]: row for row in read_rows(out / "boxes.csv")}
    for tile in shown:
        row, (*_, width, height) = boxes[tile["id"]], tile["region"]
        assert tile["box"] == ([int(row[key]) for key in ("x0", "y0", "x1", "y1")] if row["x0"] else None)
        assert tile["localises"] is (row["localisation"] == "yes")
        assert width == height == int(row["source_px"])
    assert next(tile["region"] for tile in shown if tile["id"] == str(wide)) == [12, 0, 40, 40]

    shutil.rmtree(folder)
    result, _ = make(out, "--overwrite")
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
