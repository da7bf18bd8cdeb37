"""µm per pixel from the data section, or a table, to the checkpoint and whatever tells of it; another scale is said."""

from __future__ import annotations

import csv
import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

import sscl
from sscl.config import EncoderConfig, read_yaml
from sscl.data.scale import Trained
from sscl.models.checkpoint import load_checkpoint, save_checkpoint
from sscl.models.start import frozen_encoder

FIVE = "over 5% apart"


def write_list(path: Path, tiles: Sequence[Path], mpp: str) -> Path:
    """Write a table of tiles in CLASS folders, all of them of one scale."""
    with path.open("w", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(["path", "label", "split", "mpp"])
        rows.writerows([[tile, tile.parent.name, tile.parents[1].name, mpp] for tile in tiles])
    return path


@pytest.fixture(scope="module")
def tables(folder3: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiles as tables, by their µm per pixel; "other" is of the test tiles alone."""
    folder = tmp_path_factory.mktemp("tables")
    files = sorted(folder3.rglob("*.png"))
    tests = sorted((folder3 / "test").rglob("*.png"))
    return {
        "0.5": write_list(folder / "half.csv", files, "0.5"),
        "other": write_list(folder / "other.csv", tests, "0.25"),
        "same": write_list(folder / "same.csv", tests, "0.51"),
    }


@pytest.fixture(scope="module")
def run(cli: Any, tables: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finetune run of a table with 0.5 µm per pixel, to copy."""
    folder = tmp_path_factory.mktemp("scales") / "run"
    result = cli.finetune(folder, f"data.root={tables['0.5']}", "data.source=table")
    assert result.code == 0, result.err
    assert "0.5 µm per pixel at 32 px" in result.out
    return folder


def told(run: Path, mpp: float | None, folder: Path) -> Path:
    """Copy a run whose checkpoint says another scale."""
    shutil.copytree(run, folder)
    best = folder / "checkpoints" / "best.pt"
    save_checkpoint(best, replace(load_checkpoint(best), mpp=mpp))
    return folder


def test_checkpoint_card_and_api_tell_the_scale_of_a_table(run: Path) -> None:
    assert load_checkpoint(run).mpp == 0.5
    assert sscl.load(run, device="cpu").mpp == 0.5
    card = (run / "MODEL_CARD.md").read_text()
    assert "32 px a side, 0.5 µm per pixel." in card
    assert "| scale | 0.5 µm per pixel at 32 px a side (by the table's column `mpp` and" in card


def test_exports_tell_the_scale(cli: Any, run: Path, tables: dict[str, Path], tmp_path: Path) -> None:
    words = ["formats=[safetensors,torchscript,timm]", f"out={tmp_path / 'out'}"]
    result = cli("export", run, "what=classifier", *words)
    assert result.code == 0, result.err
    facts = json.loads((tmp_path / "out" / "classifier.json").read_text())
    with safetensors.safe_open(tmp_path / "out" / "classifier.safetensors", framework="pt") as file:
        inside = json.loads(file.metadata()["sscl"])
    extra = {"sscl.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.load(tmp_path / "out" / "classifier.torchscript.pt", _extra_files=extra)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["sscl"]
    for found in (facts, inside, json.loads(extra["sscl.json"]), config):
        assert found["mpp"] == 0.5
    assert "32 px a side, 0.5 µm per pixel" in (tmp_path / "out" / "README.md").read_text()
    for weights in ("out/classifier.safetensors", "out"):  # and what starts from them knows it
        trained = frozen_encoder(EncoderConfig(weights=str(tmp_path / weights))).mpp
        assert trained == Trained(0.5, 0.5)


def test_a_card_says_that_a_scale_is_not_known(finetuned3: Path) -> None:
    assert load_checkpoint(finetuned3).mpp is None
    assert sscl.load(finetuned3, device="cpu").mpp is None
    card = (finetuned3 / "MODEL_CARD.md").read_text()
    assert "µm per pixel not known" in card
    assert "| scale | not known" in card


def test_a_given_scale_reaches_pretraining_and_what_starts_from_it(cli: Any, folder3: Path, tmp_path: Path) -> None:
    given = [f"data.root={folder3}", "data.source=folder"]
    first = cli.pretrain(tmp_path / "p", *given, "data.mpp=0.5")
    assert first.code == 0, first.err
    assert load_checkpoint(tmp_path / "p").mpp == 0.5
    assert read_yaml(tmp_path / "p" / "config.yaml")["data"][0]["mpp"] == 0.5

    words = [*given, f"model.weights={tmp_path / 'p'}"]
    other = cli.finetune(tmp_path / "f", *words, "data.mpp=1.0")
    assert other.code == 0, other.err
    (line,) = [line for line in other.out.splitlines() if line.startswith("warning: the tiles have")]
    assert all(part in line for part in ("1 µm per pixel", "0.5", FIVE))
    card = (tmp_path / "f" / "MODEL_CARD.md").read_text()
    assert FIVE in card.partition("## Limits")[2]
    assert "as given, `data.mpp`" in card

    unknown = cli("embed", f"encoder.weights={tmp_path / 'p'}", *given, f"out={tmp_path / 'e'}", "methods=[pca]")
    assert (unknown.code, FIVE in unknown.out) == (0, False), unknown.err


def test_sources_of_two_scales_are_said(cli: Any, folder3: Path, tmp_path: Path) -> None:
    sources = f"[{{root: {folder3 / 'train'}, size_px: 32, mpp: 0.5}}, {{root: {folder3 / 'test'}, mpp: 0.25}}]"
    result = cli.pretrain(tmp_path / "p", f"data={sources}")
    assert result.code == 0, result.err
    assert "data.0: 0.5 µm per pixel at 32 px\ndata.1: 0.25 µm per pixel at 32 px\n" in result.out
    assert "warning: the tiles have 0.25 to 0.5 µm per pixel" in result.out
    made = load_checkpoint(tmp_path / "p")
    assert (made.mpp, made.mpp_range) == (0.5, (0.25, 0.5))  # 24 tiles at 0.5, 15 at 0.25


def test_a_section_and_a_table_that_differ_are_refused(cli: Any, tables: dict[str, Path], tmp_path: Path) -> None:
    words = [f"data.root={tables['0.5']}", "data.source=table", "data.mpp=0.25"]
    for command in (cli.finetune, cli.pretrain):
        result = command(tmp_path / "r", *words)
        assert result.code == 2
        assert result.err.startswith("sscl: data.mpp: got 0.25")
        assert result.err.count("\n") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("mpp", ["0", "50", "-1", "fine"])
def test_a_scale_that_no_tile_has_is_refused(cli: Any, tmp_path: Path, mpp: str) -> None:
    result = cli.pretrain(tmp_path / "r", f"data.mpp={mpp}")
    assert result.code == 2
    assert "data.mpp: " in result.err
    assert result.err.count("\n") == 1


def test_eval_says_another_scale_and_nothing_where_it_is_the_same_or_unknown(
    cli: Any, run: Path, tables: dict[str, Path], folder3: Path, tmp_path: Path
) -> None:
    here = shutil.copytree(run, tmp_path / "run")

    def caveats(*words: object) -> list[str]:
        result = cli.evaluate(here, *words, f"out={tmp_path / 'out'}", "--overwrite")
        assert result.code == 0, result.err
        found = json.loads((tmp_path / "out" / "metrics.json").read_text())["caveats"]
        return [text for text in found if "µm" in text]

    (said,) = caveats(f"data.root={tables['other']}")
    assert all(part in said for part in ("0.25 µm", "trained on 0.5", FIVE))
    assert caveats(f"data.root={tables['same']}") == caveats(f"data.root={folder3 / 'test'}") == caveats() == []
    (given,) = caveats(f"data.root={folder3 / 'test'}", "data.mpp=2")
    assert "2 µm" in given
    (smaller,) = caveats("data.size_px=16")  # the same files at half the side
    assert "1 µm" in smaller
    maps = cli.gradcam(here, f"data.root={tables['other']}", "per_class=1")
    assert (maps.code, FIVE in maps.out) == (0, True), maps.err


def test_predict_says_another_scale(cli: Any, run: Path, tables: dict[str, Path], folder3: Path, tmp_path: Path):
    here = shutil.copytree(run, tmp_path / "run")

    def predict(*words: object) -> dict[str, Any]:
        out = f"out={tmp_path / 'out'}"
        result = cli("predict", here, *words, out, "--overwrite", "device=cpu", "progress=false")
        assert result.code == 0, result.err
        found: dict[str, Any] = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert (FIVE in " ".join(result.out.split())) == any(FIVE in note for note in found["notes"])
        return found

    other = predict(tables["other"])
    assert (other["mpp"], other["tiles_mpp"]) == (0.5, 0.25)
    (said,) = [note for note in other["notes"] if FIVE in note]
    assert "0.25 µm" in said
    assert "trained on 0.5" in said
    assert any(FIVE in note for note in predict(folder3 / "test", "mpp=1")["notes"])
    for words in ([tables["same"]], [folder3 / "test"], [folder3 / "test", "mpp=0.5"]):
        assert not any(FIVE in note for note in predict(*words)["notes"])

    refused = cli("predict", here, tables["other"], "mpp=0.5", f"out={tmp_path / 'no'}", "progress=false")
    assert (refused.code, refused.err.startswith("sscl: mpp: got 0.5")) == (2, True)
    assert not (tmp_path / "no").exists()


def test_compare_says_runs_of_another_scale(cli: Any, run: Path, tmp_path: Path) -> None:
    first = shutil.copytree(run, tmp_path / "first")
    second, third = told(run, 0.25, tmp_path / "second"), told(run, None, tmp_path / "third")
    for folder in (first, second, third):
        assert cli.evaluate(folder).code == 0
    result = cli("compare", first, second, third, f"out={tmp_path / 'c'}", "device=cpu", "progress=false")
    assert result.code == 0, result.err
    caveats = json.loads((tmp_path / "c" / "compare.json").read_text())["caveats"]
    said = [text for text in caveats if "was trained on tiles of" in text]
    assert len(said) == 1
    assert said[0].startswith("second was trained on tiles of 0.25 µm per pixel, first on 0.5 µm per pixel")


def test_probe_says_another_scale(cli: Any, run: Path, tables: dict[str, Path], folder3: Path, tmp_path: Path) -> None:
    sets = f"sets=[{{name: a, root: {folder3}, mpp: 0.5}}, {{name: b, root: {folder3}, mpp: 0.25}}]"
    encoders = f"encoders=[{{name: ours, weights: {run}}}]"
    tiny = ["c_grid=[1]", "shots=[]", "device=cpu", "progress=false"]
    result = cli("probe", sets, encoders, f"out={tmp_path / 'p'}", *tiny)
    assert result.code == 0, result.err
    notes = [note for note in json.loads((tmp_path / "p" / "probe.json").read_text())["notes"] if FIVE in note]
    assert len(notes) == 1
    assert "0.25 µm" in notes[0]


def test_a_run_goes_on_with_a_scale_that_it_did_not_know(cli: Any, folder3_words: list[str], tmp_path: Path) -> None:
    words = [*folder3_words, "train.epochs=2"]
    assert cli.finetune(tmp_path / "r", *words, "train.stop_after_epoch=1").code == 0
    result = cli.finetune(tmp_path / "r", *words, "data.mpp=0.5", "--resume")
    assert result.code == 0, result.err
    assert "data.mpp: 0.5 µm per pixel from here on, the run had: µm per pixel not known" in result.out
    best = load_checkpoint(tmp_path / "r")
    assert best.mpp == best.finetune_config.data.mpp == 0.5
    assert read_yaml(tmp_path / "r" / "config.yaml")["data"]["mpp"] == 0.5
    assert "32 px a side, 0.5 µm per pixel" in (tmp_path / "r" / "MODEL_CARD.md").read_text()
