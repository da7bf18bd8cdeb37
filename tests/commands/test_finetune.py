"""sscl finetune: what it starts from, what it trains on, how its best epoch is chosen, and that test stays unseen."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sscl.commands import finetune
from sscl.commands.inputs import start_encoder
from sscl.config import FinetuneConfig, ModelConfig
from sscl.data.split import label_fraction
from sscl.data.tiles import Tiles

KEYS = {
    "epoch",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "validation_balanced_accuracy",
    "learning_rate",
    "tiles_per_second",
}


def config(**train: Any) -> FinetuneConfig:
    seed = train.pop("seed", 0)
    return FinetuneConfig(run="run", seed=seed, data={"root": "nowhere"}, train=train)


def some_tiles(counts: list[int], *, groups: list[str] | None = None) -> Tiles:
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    return Tiles(
        images=np.zeros((len(labels), 8, 8, 3), dtype=np.uint8),
        labels=labels,
        classes=tuple(f"class{c}" for c in range(len(counts))),
        ids=tuple(f"tile{i}" for i in range(len(labels))),
        groups=None if groups is None else np.array(groups),
    )


def best(run: Path) -> dict[str, Any]:
    return dict(torch.load(run / "checkpoints/best.pt", weights_only=True))


# --- what a run leaves ---


def test_run_folder_and_metrics(finetuned: Path, read_metrics: Any) -> None:
    found = {str(path.relative_to(finetuned)) for path in finetuned.rglob("*") if path.is_file()}
    rows = read_metrics(finetuned)

    assert {"config.yaml", "env.json", "metrics.jsonl", "curves.png", "checkpoints/best.pt"} <= found
    assert not [name for name in found if name.endswith((".tmp", "last.pt"))]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all(set(row) == KEYS for row in rows)


def test_best_checkpoint_is_the_epoch_with_the_highest_logged_metric(finetuned: Path, read_metrics: Any) -> None:
    rows = read_metrics(finetuned)
    content = best(finetuned)
    wanted = max(rows, key=lambda row: (row["validation_balanced_accuracy"], -row["validation_loss"]))

    assert content["epoch"] == wanted["epoch"]
    assert content["validation"] == wanted
    assert content["classes"] == ["HP", "SSA"]


# --- what it starts from ---


def test_weights_of_a_pretrain_run_come_with_their_mean_and_deviation(
    cli: Any, pretrained: Path, tmp_path: Path, differing_tensors: Any
) -> None:
    start = start_encoder(ModelConfig(name="resnet18", weights=str(pretrained)))
    assert differing_tensors(dict(start.encoder.state_dict()), dict(torch.load(pretrained / "encoder.pt"))) == []
    assert (start.mean, start.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    content = torch.load(pretrained / "checkpoints/last.pt", weights_only=True)
    content["preprocessing"] |= {"mean": [0.7, 0.5, 0.6], "std": [0.1, 0.2, 0.3]}
    torch.save(content, tmp_path / "other.pt")

    start = start_encoder(ModelConfig(name="resnet18", weights=str(tmp_path / "other.pt")))
    assert (start.mean, start.std) == ((0.7, 0.5, 0.6), (0.1, 0.2, 0.3))
    start = start_encoder(
        ModelConfig(name="resnet18", weights=str(tmp_path / "other.pt"), mean=[0.1, 0.1, 0.1], std=[0.9, 0.9, 0.9])
    )
    assert (start.mean, start.std) == ((0.1, 0.1, 0.1), (0.9, 0.9, 0.9))


def test_frozen_encoder_stays_bit_identical_while_the_head_learns(
    cli: Any, pretrained: Path, tmp_path: Path, differing_tensors: Any
) -> None:
    words = [f"model.weights={pretrained}", "train.epochs=2", "train.head_learning_rate=0.1"]
    for name, more in (("a", "train.freeze_encoder=true"), ("b", "train.freeze_encoder=false")):
        result = cli.finetune(tmp_path / name, *words, more, "train.select=loss")
        assert result.code == 0, result.err
    before = dict(torch.load(pretrained / "encoder.pt", weights_only=True))

    assert differing_tensors(dict(best(tmp_path / "a")["encoder"]), before) == []  # batch-norm statistics too
    changed = differing_tensors(dict(best(tmp_path / "b")["encoder"]), before)
    assert {"/conv1.weight", "/bn1.running_mean", "/layer4.1.conv2.weight"} <= set(changed)
    torch.manual_seed(0)
    start_encoder(ModelConfig(name="resnet18", weights=str(pretrained)))
    untrained = torch.nn.Linear(512, 2)  # what the seed gives the head
    assert not torch.equal(best(tmp_path / "a")["head"]["weight"], untrained.weight)


def test_weights_of_another_encoder_are_refused_with_the_keys_to_set(
    cli: Any, pretrained: Path, tmp_path: Path
) -> None:
    for wrong in ("model.name=resnet34", "model.stem=small"):
        result = cli.finetune(tmp_path / "run", f"model.weights={pretrained}", wrong)
        assert result.code == 2
        assert result.err.count("\n") == 1
        assert "model.name=resnet18 model.stem=standard" in result.err
    bare = cli.finetune(tmp_path / "run", f"model.weights={pretrained / 'encoder.pt'}", "model.name=resnet34")
    assert bare.code == 2
    assert "does not fit resnet34" in bare.err
    assert not (tmp_path / "run").exists()


# --- that it never looks at test, and is a function of its input ---


def test_test_tiles_change_nothing_and_the_seed_decides(
    cli: Any, folder3: Path, tmp_path: Path, differing_tensors: Any, read_metrics: Any
) -> None:
    """Two runs from scratch, with other test tiles (and other test labels) in between, are bit-identical."""
    root = Path(shutil.copytree(folder3, tmp_path / "data"))
    words = [f"data.root={root}", "data.source=folder", "train.epochs=2", "train.learning_rate=1e-3"]
    runs = [tmp_path / "one", tmp_path / "two", tmp_path / "three"]
    assert cli.finetune(runs[0], *words).code == 0
    for index, path in enumerate(sorted((root / "test").rglob("*.png"))):
        pixels = np.random.default_rng(index).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    shutil.move(root / "test/benign/benign_0.png", root / "test/cancer/moved.png")
    assert cli.finetune(runs[1], *words).code == 0
    shutil.rmtree(root / "test")
    assert cli.finetune(runs[2], *words, "seed=1").code == 0

    one, two, three = map(best, runs)
    assert differing_tensors(one, two) == ["/config/run", "/validation/tiles_per_second"]
    assert "/encoder/conv1.weight" in differing_tensors(one, three)
    rows = [[{k: v for k, v in row.items() if k != "tiles_per_second"} for row in read_metrics(run)] for run in runs]
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]


def test_only_the_train_split_is_loaded(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = finetune.load_tiles

    def spy(data: Any, *, split: str, progress: bool) -> Tiles:
        asked.append(split)
        return real(data, split=split, progress=progress)

    monkeypatch.setattr(finetune, "load_tiles", spy)

    assert cli.finetune(tmp_path / "run").code == 0
    assert asked == ["train"]


@pytest.mark.parametrize("frozen", [False, True])
def test_views_are_new_at_every_epoch_and_trunk_and_head_have_their_own_rates(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_metrics: Any, frozen: bool
) -> None:
    asked, rates = [], []
    real_view, real_optimizer = finetune.augment.view, finetune.optim.build_optimizer

    def view(images: torch.Tensor, rows: torch.Tensor, **named: Any) -> torch.Tensor:
        asked.append((named["epoch"], named["view"].tolist(), named["seed"]))
        return real_view(images, rows, **named)

    def optimizer(name: str, groups: list[dict[str, Any]], **named: Any) -> torch.optim.Optimizer:
        rates.extend((group["lr"], sum(p.numel() for p in group["params"])) for group in groups)
        return real_optimizer(name, groups, **named)

    monkeypatch.setattr(finetune.augment, "view", view)
    monkeypatch.setattr(finetune.optim, "build_optimizer", optimizer)
    words = ["train.epochs=2", "train.learning_rate=1e-5", "train.head_learning_rate=1e-2", "train.warmup_epochs=0"]

    assert cli.finetune(tmp_path / "run", *words, "seed=7", f"train.freeze_encoder={str(frozen).lower()}").code == 0

    assert asked == [(epoch, [0] * 8, 7) for epoch in (0, 1) for _ in range(3)]
    sizes = {rate: sum(size for r, size in rates if r == rate) for rate, _ in rates}
    trunk = {} if frozen else {1e-5: 11_176_512}  # torchvision's ResNet18 without its last layer
    assert sizes == {**trunk, 1e-2: 512 * 2 + 2}
    assert 0 < read_metrics(tmp_path / "run")[-1]["learning_rate"] < 1e-2


# --- which labels are used ---


@pytest.mark.parametrize("groups", [None, [f"slide{i % 20}" for i in range(200)]])
def test_parts_are_disjoint_and_within_the_label_fraction(groups: list[str] | None) -> None:
    tiles = some_tiles([120, 80], groups=groups)

    train, validation = finetune.labelled_parts(tiles, config(label_fraction=0.5, validation_fraction=0.2))

    used = set(label_fraction(tiles.labels, fraction=0.5, seed=0).tolist())
    assert set(train.tolist()) | set(validation.tolist()) == used
    assert len(train) + len(validation) == len(used) == 100
    assert 10 <= len(validation) <= 30
    if groups is not None:
        slides = np.array(groups)
        assert not set(slides[train]) & set(slides[validation])
    other_train, _ = finetune.labelled_parts(tiles, config(label_fraction=0.5, validation_fraction=0.2, seed=1))
    assert set(other_train) != set(train)


def test_balancing_down_cuts_training_and_leaves_validation() -> None:
    tiles = some_tiles([100, 20])

    train, validation = finetune.labelled_parts(tiles, config(balance="down", validation_fraction=0.2))

    assert np.bincount(tiles.labels[train]).tolist() == [16, 16]
    assert np.bincount(tiles.labels[validation]).tolist() == [20, 4]


def test_balanced_draws_show_classes_equally_often_and_only_training_tiles() -> None:
    tiles = some_tiles([100, 20])
    drawn_evenly, plain = config(balance="draws"), config()
    train, _ = finetune.labelled_parts(tiles, drawn_evenly)

    rows = finetune.epoch_rows(train, tiles, drawn_evenly, epoch=0)

    assert set(rows) <= set(train)
    assert np.ptp(np.bincount(tiles.labels[rows])) <= 1
    assert sorted(finetune.epoch_rows(train, tiles, plain, epoch=0)) == sorted(train)
    orders = [finetune.epoch_rows(train, tiles, plain, epoch=epoch).tolist() for epoch in (0, 1)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("name", ["cross_entropy", "weighted_cross_entropy", "focal", "weighted_focal"])
def test_losses_equal_their_formula(name: str) -> None:
    labels = np.array([0] * 30 + [1] * 10)
    loss = finetune.build_loss(config(loss=name, focal_gamma=1.5), labels, num_classes=2, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(6, 2, generator=generator), torch.tensor([0, 0, 1, 0, 1, 1])

    total = weights = 0.0
    for row, label in zip(logits.double(), target.tolist(), strict=True):
        p = math.exp(row[label]) / sum(math.exp(value) for value in row)
        weight = {0: 40 / (2 * 30), 1: 40 / (2 * 10)}[label] if name.startswith("weighted") else 1.0
        total += weight * -math.log(p) * ((1 - p) ** 1.5 if name.endswith("focal") else 1)
        weights += weight

    assert loss(logits, target).item() == pytest.approx(total / weights, rel=1e-5)


def test_options_work_together_and_say_what_was_used(cli: Any, tmp_path: Path) -> None:
    """Half of the labels, balanced draws, weighted focal loss, LARS, and a batch cut to the tiles there are."""
    words = ["train.label_fraction=0.5", "train.balance=draws", "train.loss=weighted_focal", "train.optimizer=lars"]

    result = cli.finetune(tmp_path / "run", *words, "train.batch_size=64")

    assert result.code == 0, result.err
    train, validation = (int(result.out.split(word)[0].split()[-1]) for word in (" tiles to train", " for validation"))
    assert train + validation == 16  # of 32
    assert f"for {train} training tiles it becomes {train}" in result.out


# --- how it ends ---


def test_early_stopping_and_ties(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_metrics: Any) -> None:
    """Balanced accuracy and loss of each epoch, as if validation had given them: epoch 3 wins a tie by its loss."""
    given = iter([(0.5, 1.0), (0.9, 0.8), (0.9, 0.7), (0.9, 0.7), (0.8, 0.1), (1.0, 0.0)])

    def validate(logits: torch.Tensor, labels: Any) -> dict[str, float]:
        accuracy, loss = next(given)
        return {
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "validation_balanced_accuracy": accuracy,
        }

    monkeypatch.setattr(finetune, "validate", validate)

    result = cli.finetune(tmp_path / "run", "train.epochs=9", "train.patience=2", "train.freeze_encoder=true")

    assert result.code == 0, result.err
    assert [row["epoch"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5]
    assert best(tmp_path / "run")["epoch"] == 3
    assert "best epoch 3" in result.out
    assert "no better epoch than 3 in 2" in result.out + result.err


def test_score_follows_the_chosen_metric() -> None:
    low_loss = {"validation_loss": 0.1, "validation_accuracy": 0.6, "validation_balanced_accuracy": 0.5}
    accurate = {"validation_loss": 0.9, "validation_accuracy": 0.8, "validation_balanced_accuracy": 0.4}

    better = {
        select: finetune.score(accurate, config(select=select)) > finetune.score(low_loss, config(select=select))
        for select in ("loss", "accuracy", "balanced_accuracy")
    }

    assert better == {"loss": False, "accuracy": True, "balanced_accuracy": False}


def test_validation_figures_are_those_of_sklearn() -> None:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score

    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(40, 3, generator=generator), np.repeat([0, 0, 1, 2], 10)

    found = finetune.validate(logits, labels)

    predicted = logits.argmax(1).numpy()
    assert found["validation_accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert found["validation_balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert found["validation_loss"] == pytest.approx(F.cross_entropy(logits, torch.from_numpy(labels)).item())


@pytest.mark.parametrize(
    ("batch_size", "message"), [(8, "the loss became nan in epoch 1"), (24, "outputs for 8 of 8 tiles are not finite")]
)
def test_divergence_stops_and_leaves_no_broken_checkpoint(
    cli: Any, tmp_path: Path, batch_size: int, message: str
) -> None:
    words = ["train.learning_rate=1e30", "train.optimizer=sgd", "train.warmup_epochs=0"]

    result = cli.finetune(tmp_path / "run", *words, f"train.batch_size={batch_size}")

    assert result.code == 2
    assert message in result.err
    assert "lower train.learning_rate" in result.err
    assert result.err.count("\n") == 1
    assert not list((tmp_path / "run").rglob("*.pt"))


def test_existing_run_is_refused_untouched_and_replaced_only_on_demand(
    cli: Any, finetuned3: Path, folder3_words: list[str], tmp_path: Path, snapshot: Any, read_metrics: Any
) -> None:
    run = Path(shutil.copytree(finetuned3, tmp_path / "run"))
    before = snapshot(run)

    refused = cli.finetune(run, *folder3_words)
    itself = cli.finetune(run, *folder3_words, f"model.weights={run}", "--overwrite")

    assert refused.code == itself.code == 2
    assert "--overwrite" in refused.err
    assert "model.weights=" in itself.err
    assert snapshot(run) == before
    assert cli.finetune(run, *folder3_words, "--overwrite").code == 0
    assert [row["epoch"] for row in read_metrics(run)] == [1]


def test_tiles_without_labels_are_refused(cli: Any, tiles: Path, tmp_path: Path) -> None:
    result = cli.finetune(tmp_path / "run", f"data.root={tiles / 'images'}", "data.source=folder")

    assert result.code == 2
    assert "data.root" in result.err
    assert "no labels" in result.err
    assert not (tmp_path / "run").exists()


def test_repeats_of_a_tile_are_other_views_of_it() -> None:
    order = np.array([5, 3, 5, 5, 8, 3])
    assert finetune.occurrences(order).tolist() == [0, 0, 1, 2, 0, 1]
    images = torch.randint(0, 255, (1, 16, 16, 3), dtype=torch.uint8).repeat(3, 1, 1, 1)
    views = finetune.augment.view(
        images,
        torch.tensor([4, 4, 4]),
        augmentation=finetune.Augmentation(),
        seed=0,
        epoch=0,
        view=torch.tensor([0, 1, 0]),
        mean=torch.zeros(3),
        std=torch.ones(3),
    )
    assert torch.equal(views[0], views[2])
    assert not torch.equal(views[0], views[1])


def test_a_finetune_run_is_no_start(cli: Any, finetuned: Path, tmp_path: Path) -> None:
    result = cli.finetune(tmp_path / "run", f"model.weights={finetuned}")
    assert result.code == 2
    assert "was written by sscl finetune; start from a run of sscl pretrain" in result.err
    assert not (tmp_path / "run").exists()
