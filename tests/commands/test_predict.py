"""sscl predict: the same figures as eval, whole or nothing, and what cannot be read is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sscl import api, cli
from sscl.config import PredictConfig
from sscl.data.decode import read_image
from sscl.explain.boxes import find_box
from sscl.plots import cam as cam_plots

COLUMNS = ["path", "prediction", "probability_HP", "probability_SSA", "confidence", "decided", "reason"]


@pytest.fixture(scope="module")
def ask(cli: Any) -> Any:
    """Return `sscl predict --checkpoint RUN WORDS` with a quiet, small batch."""

    def call(checkpoint: Path, *words: object) -> Any:
        return cli("predict", "--checkpoint", checkpoint, *words, "progress=false", "device=cpu", "batch_size=5")

    return call


@pytest.fixture(scope="module")
def evaluated(cli: Any, finetuned: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What eval wrote of the test split, as it is and with tta."""
    folder = tmp_path_factory.mktemp("eval")
    for name, word in (("plain", "tta=false"), ("tta", "tta=true")):
        assert cli.evaluate(finetuned, f"out={folder / name}", word).code == 0
    return folder / "plain", folder / "tta"


@pytest.fixture
def some(tiles: Path, tmp_path: Path) -> Path:
    """A folder with five tiles."""
    folder = tmp_path / "some"
    folder.mkdir()
    for path in sorted((tiles / "images").iterdir())[:5]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("tta", [False, True])
def test_the_metrics_are_those_of_eval(
    ask: Any, tiles: Path, finetuned: Path, evaluated: Any, read_rows: Any, tmp_path: Path, tta: bool
) -> None:
    theirs = {row["id"]: row for row in read_rows(evaluated[tta] / "predictions.csv")}
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{tiles}/images/{name}\n" for name in theirs))
    result = ask(finetuned, tmp_path / "list.csv", f"out={tmp_path / 'out'}", f"tta={str(tta).lower()}")
    assert result.code == 0, result.err
    ours = read_rows(tmp_path / "out" / "predictions.csv")
    assert list(ours[0]) == COLUMNS
    assert [Path(row["path"]).name for row in ours] == list(theirs)
    metrics = json.loads((evaluated[tta] / "metrics.json").read_text())
    threshold = metrics["coverage"]["abstention"]["threshold"]
    for row in ours:
        other = theirs[Path(row["path"]).name]
        assert row["prediction"] == other["prediction"]
        values = [float(row[key]) for key in ("probability_HP", "probability_SSA")]
        assert values == pytest.approx([float(other[key]) for key in ("probability_HP", "probability_SSA")], abs=3e-6)
        assert float(row["confidence"]) == max(values)
        assert row["decided"] == ("yes" if max(values) >= threshold else "no")
        assert (row["reason"] == "") == (row["decided"] == "yes")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["decide_from"] == pytest.approx(threshold)
    assert summary["temperature"] == pytest.approx(metrics["calibration"]["temperature"])
    decided = metrics["coverage"]["abstention"]["here"]["decided"]["count"]
    assert sum(summary["undecided"].values()) == len(theirs) - decided
    for name in ("HP", "SSA"):
        own = [row for row in ours if row["prediction"] == name]
        assert summary["class_counts"][name] == len(own)
        assert summary["undecided"][name] == sum(row["decided"] == "no" for row in own)
    assert summary["class_counts"]["HP"] != summary["class_counts"]["SSA"]
    assert ("fitted without test-time augmentation" in result.out) == tta


def test_folders_files_and_lists_each_tile_once(
    ask: Any, some: Path, finetuned: Path, read_rows: Any, tmp_path: Path
) -> None:
    names = sorted(path.name for path in some.iterdir())
    (some / "notes.txt").write_text("x")
    (some / "list.csv").write_text(f"path\n{names[1]}\n")
    result = ask(finetuned, some / names[3], some, some / "list.csv", f"out={tmp_path / 'out'}")
    assert result.code == 0, result.err
    rows = read_rows(tmp_path / "out" / "predictions.csv")
    assert [Path(row["path"]).name for row in rows] == [names[3], *names[:3], names[4]]
    assert "2 repeated mentions" in result.out
    assert "passed over: 1 .csv file" in " ".join(result.out.split()).replace("1 .txt file (notes.txt), ", "")
    kept = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (kept["tiles"], kept["repeated"], kept["passed_over"]) == (5, 2, {".txt": 1, ".csv": 1})


def test_what_cannot_be_read_is_told_and_the_rest_is_predicted(
    ask: Any, some: Path, finetuned: Path, read_rows: Any, tmp_path: Path
) -> None:
    first, second, *_ = sorted(some.iterdir())
    whole = ask(finetuned, some, f"out={tmp_path / 'whole'}")
    first.write_bytes(first.read_bytes()[:400])
    Image.new("RGB", (32, 40)).save(second)
    (some / "x\x1b[31m.png").write_bytes(b"")
    result = ask(finetuned, some, f"out={tmp_path / 'out'}")
    assert (whole.code, result.code) == (0, 3)
    listed = read_rows(tmp_path / "out" / "unreadable.csv")
    assert [(row["path"], row["reason"].split(";")[0]) for row in listed] == [
        (str(first), "is truncated or damaged"),
        (str(second), "is 32×40 pixels"),
        (str(some / "x\x1b[31m.png"), "is empty (0 bytes)"),
    ]
    lines = result.err.splitlines()
    assert lines[0] == "sscl: 3 files could not be used:"
    assert lines[1].startswith(f"sscl:   {first}: is truncated or damaged")
    assert "\x1b" not in result.err  # a name must not steer the terminal
    ours, before = (read_rows(tmp_path / name / "predictions.csv") for name in ("out", "whole"))
    assert [row["path"] for row in ours] == [row["path"] for row in before][2:]
    for row, other in zip(ours, before[2:], strict=True):
        assert float(row["confidence"]) == pytest.approx(float(other["confidence"]), abs=3e-6)
    assert not (tmp_path / "whole" / "unreadable.csv").exists()


def test_many_that_cannot_be_read_are_not_all_printed(
    ask: Any, finetuned: Path, read_rows: Any, tmp_path: Path
) -> None:
    (tmp_path / "bad").mkdir()
    for i in range(23):
        (tmp_path / "bad" / f"{i:02d}.png").write_bytes(b"x")
    result = ask(finetuned, tmp_path / "bad", f"out={tmp_path / 'out'}", "panels=true")
    assert result.code == 3
    assert len(result.err.splitlines()) == 22
    assert "and 3 more, see unreadable.csv" in result.err
    assert len(read_rows(tmp_path / "out" / "unreadable.csv")) == 23
    assert read_rows(tmp_path / "out" / "predictions.csv") == []


def test_panels_of_the_least_confident(ask: Any, some: Path, finetuned: Path, read_rows: Any, tmp_path: Path) -> None:
    long = some / f"{'é' * 120}.png"
    sorted(some.iterdir())[0].rename(long)
    # The last features of a tile of 32 px are one cell, of which any box is the whole tile.
    maps = {"target": "SSA", "method": "layercam", "layer": "encoder.net.layer1", "threshold": 0.9}
    words = [f"gradcam.{key}={value}" for key, value in maps.items()]
    result = ask(finetuned, some, f"out={tmp_path / 'out'}", "panels=3", *words)
    assert result.code == 0, result.err
    rows = read_rows(tmp_path / "out" / "predictions.csv")
    table = read_rows(tmp_path / "out" / "boxes.csv")
    least = sorted(rows, key=lambda row: float(row["confidence"]))[:3]
    assert [row["path"] for row in table] == [row["path"] for row in least]
    for row, other in zip(table, least, strict=True):
        assert float(row["confidence"]) == pytest.approx(float(other["confidence"]), abs=3e-6)
    model = api.load(finetuned, device="cpu")
    for row in table:
        seen = model.explain(row["path"], target="SSA", method="layercam", layers=["encoder.net.layer1"], threshold=0.9)
        box = seen.boxes[0]
        assert box == find_box(seen.maps[0], threshold=0.9)
        assert row["map_of"] == seen.targets[0] == "logit SSA at encoder.net.layer1"
        assert box is not None
        assert 0 < box.area_fraction < 1
        corners = "" if box is None else ",".join(map(str, box.corners))
        assert ",".join(row[key] for key in ("x0", "y0", "x1", "y1")).strip(",") == corners
        assert row["source_px"] == "32"
        heatmap = read_image(tmp_path / "out" / f"{row['picture']}_heatmap.png", size_px=32, exact_size_px=32).pixels
        np.testing.assert_allclose(heatmap.astype(int), seen.heatmap(0), atol=1)  # rounding: other batches
        for kind in ("panel", "box"):
            assert (tmp_path / "out" / f"{row['picture']}_{kind}.png").is_file()
    assert len(list((tmp_path / "out").glob("*.png"))) == 9


def test_panels_of_all(ask: Any, some: Path, finetuned: Path, read_rows: Any, tmp_path: Path) -> None:
    result = ask(finetuned, some, f"out={tmp_path / 'out'}", "panels=true")
    assert result.code == 0, result.err
    boxes = read_rows(tmp_path / "out" / "boxes.csv")
    assert [row["path"] for row in boxes] == [str(path) for path in sorted(some.iterdir())]


def test_a_threshold_given_outright(ask: Any, some: Path, finetuned: Path, read_rows: Any, tmp_path: Path) -> None:
    result = ask(finetuned, some, f"out={tmp_path / 'out'}", "confidence=1", "abstain=0.9")
    assert {row["decided"] for row in read_rows(tmp_path / "out" / "predictions.csv")} == {"no"}
    assert "abstained below confidence 1.000 (confidence=1)" in result.out
    result = ask(finetuned, some, f"out={tmp_path / 'all'}", "abstain=0")
    assert {row["decided"] for row in read_rows(tmp_path / "all" / "predictions.csv")} == {"yes"}
    assert "abstain=0" in result.out


def test_nothing_is_replaced_unasked(ask: Any, some: Path, finetuned: Path, snapshot: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert ask(finetuned, some, f"out={out}", "panels=1").code == 0
    before = snapshot(tmp_path)
    refused = ask(finetuned, some, f"out={out}")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "exists and is not empty; give --overwrite" in refused.err
    assert snapshot(tmp_path) == before
    assert ask(finetuned, some, f"out={out}", "--overwrite").code == 0
    assert not list(out.glob("*.png"))  # nothing of the former stays


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["SOME/none.png"], "SOME/none.png: no such file or folder"),
        (["SOME", "out=SOME/new"], "out: SOME/new lies in SOME, "),
        (["SOME", "out=SOME"], "SOME: exists and is not empty"),
        (["SOME", "panels=-1"], "panels: must be >= 0 and <= 1000000, got -1"),
        (["SOME", "panels=yess"], "panels: must be true, false, or a number of tiles, got 'yess'"),
        (["SOME", "panels=1", "gradcam.target=TA"], "gradcam.target: got 'TA'"),
        (["SOME", "panels=1", "gradcam.layer=x"], "gradcam.layer: got 'x'"),
        (["SOME", "abstain=1"], "abstain: must be >= 0 and < 1, got 1"),
        ([], "paths: missing"),
    ],
)
def test_what_it_refuses_and_then_nothing_is_written(
    ask: Any, some: Path, finetuned: Path, snapshot: Any, tmp_path: Path, words: list[str], line: str
) -> None:
    before, beside = snapshot(tmp_path), snapshot(finetuned)
    result = ask(finetuned, *(word.replace("SOME", str(some)) for word in words))
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert result.err.startswith(f"sscl: {line.replace('SOME', str(some))}")
    assert (snapshot(tmp_path), snapshot(finetuned)) == (before, beside)


def test_only_a_finetune_run_predicts(ask: Any, some: Path, pretrained: Path) -> None:
    result = ask(pretrained, some)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "written by sscl pretrain; a checkpoint of sscl finetune is needed here" in result.err


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 2)])
def test_a_run_that_breaks_off_leaves_what_was_there(
    ask: Any,
    some: Path,
    finetuned: Path,
    snapshot: Any,
    tmp_path: Path,
    wrap: Any,
    error: BaseException,
    code: int,
) -> None:
    out = tmp_path / "out"
    assert ask(finetuned, some, f"out={out}").code == 0
    before = snapshot(tmp_path)

    def break_off(whole: Any, *words: Any, **named: Any) -> Any:
        yield next(whole(*words, **named))
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out.")]  # it is being written
        raise error

    wrap(predict_batches=break_off)
    assert ask(finetuned, some, some.parent / "some", f"out={out}", "--overwrite").code == code
    assert snapshot(tmp_path) == before


def test_sides_that_differ_are_told(ask: Any, some: Path, finetuned: Path, tmp_path: Path) -> None:
    Image.new("RGB", (48, 48)).save(some / "z.png")
    result = ask(finetuned, some, f"out={tmp_path / 'out'}")
    said = " ".join(result.out.split())
    assert "note: some files are 48 px wide, those trained on 32 px; all are resized to 32 px" in said


def test_images_that_are_not_square_are_cropped_on_request_and_counted(
    ask: Any, some: Path, finetuned: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (48, 32)).save(some / "z.png")
    assert ask(finetuned, some, f"out={tmp_path / 'out'}").code == 3
    result = ask(finetuned, some, f"out={tmp_path / 'out'}", "fit=crop", "--overwrite")
    assert result.code == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["fit"], summary["changes"], list(summary["source_px"])) == ("crop", {"cropped": 1}, ["32"])
    assert "note: 1 of " in result.out


def test_a_path_with_an_equals_sign_is_a_path(some: Path) -> None:
    config = cli.parse("predict", ["runs/x", "./a=b.png", "tta=true", "x/stain=he/1.png"]).load()
    assert isinstance(config, PredictConfig)
    assert (config.paths, config.tta) == (("./a=b.png", "x/stain=he/1.png"), True)


def test_names_of_pictures_fit_into_a_file_system() -> None:
    assert cam_plots.short_name("a" * 300) == "a" * 120
    assert len(cam_plots.short_name("é" * 119 + "中" * 100).encode()) <= 120
    assert cam_plots.short_name("tile 1") == "tile 1"
