"""sscl finetune train.freeze_encoder=true: features computed once, and the head of `sscl probe`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sscl.data.folder import load_folder
from sscl.data.tiles import place_store
from sscl.models import features
from sscl.models.checkpoint import load_checkpoint
from sscl.models.classifier import load_classifier
from sscl.models.pixels import normalisation

FROZEN = ["train.freeze_encoder=true", "train.select=loss"]
LOGISTIC = ["train.freeze_encoder=true", "train.head=logistic", "train.c_grid=[0.01, 1]"]


@pytest.fixture
def forwards(wrap: Any) -> list[int]:
    """The numbers of tiles that went through an encoder, one entry a pass."""
    calls: list[int] = []

    def counted(real: Any, model: Any, store: Any, rows: Any, **options: Any) -> torch.Tensor:
        calls.append(len(rows))
        found: torch.Tensor = real(model, store, rows, **options)
        return found

    wrap(outputs=counted)
    return calls


@pytest.fixture(scope="module")
def three_parts(folder3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of three colours with a validation split of its own."""
    root = tmp_path_factory.mktemp("parts") / "colours"
    shutil.copytree(folder3, root)
    for file in sorted((root / "train").glob("*/*_[567].png")):
        target = root / "val" / file.parent.name
        target.mkdir(parents=True, exist_ok=True)
        file.rename(target / file.name)
    return root


def head_of(run: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(run / "checkpoints/best.pt", weights_only=True)["head"])


def test_one_pass_serves_every_seed_head_and_a_probe(
    cli: Any, pretrained: Path, tmp_path: Path, forwards: list[int], wrap: Any
) -> None:
    common = [f"model.weights={pretrained}", f"data.cache_dir={tmp_path / 'cache'}"]

    def passes(name: str, *words: str) -> list[int]:
        forwards.clear()
        result = cli.finetune(tmp_path / name, *common, *words)
        assert result.code == 0, result.err
        return list(forwards)

    assert passes("a", *FROZEN, "train.epochs=3") == [32]  # the training split, validation included
    assert passes("c", *LOGISTIC, "seed=5") == []
    assert passes("d", *FROZEN, "train.frozen_views=symmetries") == [32] * 7
    few = [*FROZEN, "train.frozen_views=random", "train.view_count=2", "train.label_fraction=0.5"]
    assert passes("e", *few) == [12, 12, 16]  # training tiles in two views; those and the validation tiles as they are
    forwards.clear()
    wrap(probe_charts=lambda *_, **named: [])
    data = f"{{name: s, source: mhist, published: false, root: {cli.tiles}, size_px: 32}}"
    words = [f"encoders=[{{name: mine, weights: {pretrained}}}]", f"sets=[{data}]", "progress=false", "device=cpu"]
    result = cli("probe", f"out={tmp_path / 'out'}", *words, f"cache_dir={tmp_path / 'cache'}", "c_grid=[1]")
    assert result.code == 0, result.err
    assert forwards == [16]  # the test split alone


def test_as_many_random_views_as_epochs_are_those_of_each_epoch(cli: Any, pretrained: Path, tmp_path: Path) -> None:
    common = [f"model.weights={pretrained}", *FROZEN, "train.epochs=2", "train.head_learning_rate=0.1"]
    for name, *words in (
        ("each", "train.frozen_views=each_epoch"),
        ("once", "train.frozen_views=random", "train.view_count=2"),
    ):
        assert cli.finetune(tmp_path / name, *common, "train.balance=draws", *words).code == 0
    each, once = (head_of(tmp_path / name) for name in ("each", "once"))
    assert torch.allclose(each["weight"], once["weight"], atol=1e-5)
    assert (each["bias"] - once["bias"]).abs().max() < 1e-5 < each["bias"].abs().max()


def test_the_logistic_head_is_the_probes_classifier(
    cli: Any, three_parts: Path, pretrained: Path, tmp_path: Path, wrap: Any
) -> None:
    """On the same tiles, with the same C chosen on the same validation tiles."""
    probes = []

    def keep(real: Any, *given: Any, **named: Any) -> Any:
        probes.append(real(*given, **named))
        return probes[-1]

    wrap(linear_probe=keep, probe_charts=lambda *_, **named: [])
    cached = f"cache_dir={tmp_path / 'cache'}"
    data = f"{{name: s, source: folder, root: {three_parts}, size_px: 32}}"
    words = [f"encoders=[{{name: mine, weights: {pretrained}}}]", f"sets=[{data}]", "progress=false", "device=cpu"]
    probed = cli("probe", f"out={tmp_path / 'out'}", *words, cached, "c_grid=[0.001, 0.01, 1]")
    assert probed.code == 0, probed.err

    where = [f"data.root={three_parts}", "data.source=folder", f"model.weights={pretrained}", f"data.{cached}"]
    result = cli.finetune(tmp_path / "run", *where, *LOGISTIC, "train.c_grid=[0.001, 0.01, 1]")

    assert result.code == 0, result.err
    model, trained = load_classifier(tmp_path / "run", device=torch.device("cpu"))
    assert trained.validation is not None
    assert trained.validation["c"] == probes[0].c
    tiles = load_folder(three_parts, split="test", size_px=32)
    mean, std = normalisation(trained, torch.device("cpu"))
    store, rows = place_store(tiles.images, device="cpu", budget_gb=None), np.arange(len(tiles))
    ours = features.outputs(model, store, rows, mean=mean, std=std).softmax(1).numpy()
    theirs = probes[0].probabilities(
        features.outputs(model.encoder, store, rows, mean=mean, std=std), num_classes=len(trained.classes)
    )
    assert np.abs(ours - theirs).max() < 1e-5
    assert 0.4 < ours.max(1).mean() < 1


def test_a_logistic_run_is_an_ordinary_run(
    cli: Any, pretrained: Path, tmp_path: Path, read_metrics: Any, read_rows: Any
) -> None:
    run = tmp_path / "run"
    result = cli.finetune(run, f"model.weights={pretrained}", *LOGISTIC, "train.loss=weighted_cross_entropy")
    assert result.code == 0, result.err
    rows = read_metrics(run)
    assert [(row["epoch"], row["c"]) for row in rows] == [(1, 0.01), (2, 1.0)]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert rows[1]["train_loss"] < rows[0]["train_loss"]
    assert (run / "curves.png").is_file()
    card = (run / "MODEL_CARD.md").read_text()
    assert "logistic regression" in card
    assert card.count("hose C, the temperature and the threshold") == 2
    assert "the epoch" not in card
    assert "Unfinished" not in (run / "MODEL_CARD.md").read_text()

    evaluated = cli.evaluate(run)
    assert evaluated.code == 0
    chosen = f"C={load_checkpoint(run, kind='finetune', tensors=False).c:g}"
    predict = cli(
        "predict", f"checkpoint={run}", f"paths=[{cli.tiles / 'images'}]", f"out={tmp_path / 'out'}", "device=cpu"
    )
    assert predict.code == 0, predict.err
    told = [result.out, evaluated.out, predict.out]
    assert [chosen in text for text in told] == [True] * 3
    (notes,) = (json.loads(file.read_text())["notes"] for file in run.glob("eval_*/metrics.json"))
    said = "\n".join([*told[1:], *notes])
    assert not re.search(r"epoch \d|the epoch|epoch of", said)
    assert "epoch of" not in (run / "MODEL_CARD.md").read_text()
    assert "training steps" not in told[0]
    predicted = read_rows(run / "eval_test/predictions.csv")
    assert len(predicted) == 16
    resumed = cli("finetune", f"run={run}", "--resume")
    assert (resumed.code, resumed.err.count("\n")) == (2, 1)  # it has ended


def test_folds_share_the_features(cli: Any, pretrained: Path, tmp_path: Path, forwards: list[int]) -> None:
    words = [f"model.weights={pretrained}", f"data.cache_dir={tmp_path / 'cache'}", "train.validation_fraction=0.5"]
    result = cli.finetune(tmp_path / "run", *words, *LOGISTIC, "--folds", "2")
    assert result.code == 0, result.err
    assert forwards[0] == 32
    assert sum(forwards[1:]) == 32  # each held-out tile is predicted once


def test_a_class_without_a_training_tile_is_refused(cli: Any, three_parts: Path, tmp_path: Path) -> None:
    root = tmp_path / "colours"
    shutil.copytree(three_parts, root)
    for file in (root / "train/stroma").iterdir():
        file.unlink()
    result = cli.finetune(tmp_path / "run", f"data.root={root}", "data.source=folder", *LOGISTIC)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert not (tmp_path / "run").exists()


def test_features_that_do_not_fit_on_the_disk_are_refused_before(
    cli: Any, pretrained: Path, tmp_path: Path, wrap: Any
) -> None:
    usage = shutil.disk_usage(tmp_path)
    wrap(disk_usage=lambda real, *given: usage._replace(free=1000))
    words = [f"model.weights={pretrained}", f"data.cache_dir={tmp_path / 'empty'}"]
    result = cli.finetune(tmp_path / "run", *words, *FROZEN)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert result.err.startswith("sscl finetune: data.cache_dir: ") or "data.cache_dir: " in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["train.head=logistic"], "train.head"),
        (["train.frozen_views=random"], "train.frozen_views"),
        ([*FROZEN, "train.view_count=3"], "train.view_count"),
        ([*FROZEN, "train.frozen_views=random", "train.view_count=101"], "train.view_count"),
        ([*FROZEN, "train.c_grid=[1]"], "train.c_grid"),
        ([*LOGISTIC, "train.frozen_views=each_epoch"], "train.head"),
        ([*LOGISTIC, "train.loss=focal"], "train.loss"),
        ([*LOGISTIC, "train.select=accuracy"], "train.select"),
        ([*LOGISTIC, "train.stop_after_epoch=1"], "train.stop_after_epoch"),
        ([*LOGISTIC, "train.c_grid=[]"], "train.c_grid"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(cli: Any, tmp_path: Path, words: list[str], key: str) -> None:
    result = cli.finetune(tmp_path / "run", *words)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert f"{key}: " in result.err
    assert not (tmp_path / "run").exists()
