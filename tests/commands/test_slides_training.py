"""Training and evaluation on the tiles of slides: streamed or cached, stopped or not, on one rank or two."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from damaged_levels import damaged
from slide_cohort import NAMES, TILES, draw, draw_all, level_of, make_index
from sscl.cli.arguments import is_run
from sscl.models.checkpoint import load_checkpoint

TIMES = {"seconds", "tiles_per_second", "busy"}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("slides")
    draw_all(root / "slides")
    draw(root / "slides" / NAMES[0], 0, level=damaged(level_of(0), 1, 1))
    return make_index(root / "index", root / "slides")


def words(index: Path, *more: str) -> list[str]:
    """Keys that lie over those of the usual tiny run."""
    return ["data.source=slides", f"data.root={index}", "data.published=true", *more]


@pytest.fixture(scope="module")
def streamed(cli: Any, index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs from the slides."""
    run = tmp_path_factory.mktemp("runs") / "streamed"
    result = cli.pretrain(run, *words(index, "data.keep=slides", "data.tiles_per_slide=6", "train.epochs=2"))
    assert result.code == 0, result.err
    assert "448 training tiles, 36 of them an epoch; 3 steps per epoch" in result.out
    return run


def rows_of(run: Path) -> list[dict[str, float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(run / "checkpoints" / "last.pt", weights_only=True)["model"])


def test_from_the_cache_and_resumed_it_is_the_same_run(cli: Any, index: Path, streamed: Path, tmp_path: Path) -> None:
    """T26: one epoch from the cache, the second from the slides by eight threads."""
    run = tmp_path / "resumed"
    keys = words(index, "data.tiles_per_slide=6", "train.epochs=2", f"data.cache_dir={tmp_path / 'cache'}")
    first = cli.pretrain(run, *keys, "data.keep=cache", "train.stop_after_epoch=1")
    assert first.code == 0, first.err
    assert rows_of(run) == rows_of(streamed)[:1]
    again = cli.pretrain(run, *keys, "data.keep=slides", "--resume")
    assert again.code == 0, again.err
    assert rows_of(run) == rows_of(streamed)
    expected = weights_of(streamed)
    found = weights_of(run)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_damaged_tile_is_said_at_the_end(cli: Any, index: Path, tmp_path: Path) -> None:
    """T16."""
    one = make_index(tmp_path / "index", index.parent / "slides", NAMES[:1])
    result = cli.pretrain(tmp_path / "run", *words(one, "data.keep=slides"))
    assert result.code == 0, result.err
    assert "warning: 1 damaged tile of 1 slide (a/one.svs: 1), the first is a/one.svs/32_32" in result.out
    assert load_checkpoint(tmp_path / "run", tensors=False).damaged == (9,)


def test_a_classifier_learns_from_slides_and_is_told_which_pretraining_has_seen(
    cli: Any, index: Path, streamed: Path, tmp_path: Path
) -> None:
    """T28."""
    slides = Path(shutil.copytree(index.parent / "slides", tmp_path / "slides"))
    draw(slides / NAMES[0], 0)  # whole again: another slide, which the index does not know
    refused = cli.finetune(tmp_path / "run", *words(index, f"data.slides_root={slides}"), f"model.weights={streamed}")
    assert refused.code == 2
    assert "a/one.svs: has changed" in refused.err
    assert not (tmp_path / "run").exists()
    whole = make_index(tmp_path / "whole", slides)
    run = tmp_path / "run"
    result = cli.finetune(run, *words(whole, "data.keep=slides"), f"model.weights={streamed}")
    assert result.code == 0, result.err
    assert "weak label" in result.out
    tested = cli.evaluate(run, "split=test")
    assert tested.code == 0, tested.err
    with (run / "eval_test" / "predictions.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) % TILES == 0
    name, corner = rows[0]["id"].rsplit("/", 1)
    assert name in NAMES
    assert corner == "0_0"
    notes = json.loads((run / "eval_test" / "metrics.json").read_text())["caveats"]
    assert any("weak label" in note for note in notes)
    assert any(f"were in training too ({index})" in note for note in notes)
    one = make_index(tmp_path / "one", slides, NAMES[:1])
    predicted = cli("predict", run, one, f"out={tmp_path / 'out'}", "progress=false", "device=cpu")
    assert predicted.code == 0, predicted.err
    notes = json.loads((tmp_path / "out" / "slides.json").read_text())["notes"]
    assert any(f"1 of 1 slide was in training too ({whole})" in note for note in notes)


def test_what_slides_cannot_be_used_for_is_one_line(cli: Any, index: Path, streamed: Path, tmp_path: Path) -> None:
    for command in (
        ["data", "audit", str(index), f"out={tmp_path / 'audit'}"],
        ["predict", str(streamed), str(index), f"out={tmp_path / 'predictions'}"],
        ["pretrain", str(index), "data.size_px=64", f"run={tmp_path / 'run'}"],
        ["pretrain", str(index), "data.mpp=1.0", f"run={tmp_path / 'run'}"],
        ["pretrain", str(index), "data.tiles_per_slide=2", "train.batch_size=15", f"run={tmp_path / 'run'}"],
        ["pretrain", str(index), "data.slides_root=nowhere", f"run={tmp_path / 'run'}"],
    ):
        result = cli(*command)
        assert result.code == 2, command
        assert len(result.err.splitlines()) == 1, result.err
    assert not any(tmp_path.iterdir())
    assert is_run(str(streamed))
    assert not is_run(str(index))  # `sscl pretrain INDEX run=RUN --resume`
