"""sscl finetune: what it starts from, what it trains on, how its best epoch is chosen, and that test stays unseen."""

from __future__ import annotations

import math
import re
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from sscl import augment
from sscl.config import FinetuneConfig, ModelConfig
from sscl.data.split import label_fraction, occurrences
from sscl.data.tiles import Tiles
from sscl.draws import Augmentation
from sscl.evaluate.calibration import fit_calibration
from sscl.models.start import inherit, start_encoder
from sscl.train import finetune, labelled, preparation
from sscl.train.objectives import OBJECTIVES, build_loss, score, validation_metrics
from sscl.train.setup import open_run
from sscl.train.step import Views

KEYS = {
    "epoch",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "validation_balanced_accuracy",
    "learning_rate",
    "tiles_per_second",
    "busy",
}
TIMES = ("tiles_per_second", "busy")
ENCODER = "timm:test_resnet"  # of the runs here


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


def test_best_checkpoint_keeps_the_calibration_of_its_own_validation_logits(finetuned: Path) -> None:
    content = best(finetuned)
    kept = content["calibration"]
    logits, labels = kept["logits"], kept["labels"]

    assert kept["tiles"] == len(labels) == 8
    assert F.cross_entropy(logits, labels).item() == pytest.approx(content["validation"]["validation_loss"], abs=1e-5)
    again = fit_calibration(logits, labels, classes=("HP", "SSA"), positive=1)
    for key in ("temperature", "threshold", "positive", "tiles", "method", "ece_before", "ece_after"):
        assert kept[key] == getattr(again, key), key


def test_three_classes_are_calibrated_without_a_threshold(finetuned3: Path) -> None:
    kept = best(finetuned3)["calibration"]
    assert kept["threshold"] is kept["positive"] is None
    assert kept["temperature"] > 0


# --- what it starts from ---


def test_weights_of_a_pretrain_run_come_with_their_mean_and_standard_deviation(
    cli: Any, pretrained: Path, tmp_path: Path, differing_tensors: Any
) -> None:
    start = start_encoder(ModelConfig(name=ENCODER, weights=str(pretrained)))
    assert differing_tensors(dict(start.encoder.state_dict()), dict(torch.load(pretrained / "encoder.pt"))) == []
    assert (start.mean, start.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # timm's of the encoder

    content = torch.load(pretrained / "checkpoints/last.pt", weights_only=True)
    content |= {"mean": [0.7, 0.5, 0.6], "std": [0.1, 0.2, 0.3]}
    torch.save(content, tmp_path / "other.pt")

    start = start_encoder(ModelConfig(name=ENCODER, weights=str(tmp_path / "other.pt")))
    assert (start.mean, start.std) == ((0.7, 0.5, 0.6), (0.1, 0.2, 0.3))
    start = start_encoder(
        ModelConfig(name=ENCODER, weights=str(tmp_path / "other.pt"), mean=[0.1, 0.1, 0.1], std=[0.9, 0.9, 0.9])
    )
    assert (start.mean, start.std) == ((0.1, 0.1, 0.1), (0.9, 0.9, 0.9))


def test_another_encoder_than_that_of_the_weights_is_refused(cli: Any, pretrained: Path, tmp_path: Path) -> None:
    for command in ("pretrain", "finetune"):
        result = getattr(cli, command)(tmp_path / "run", "model.name=resnet50", f"model.weights={pretrained}")
        assert result.code == 2
        assert f"holds {ENCODER} with the standard stem, got resnet50, standard; set model.name={ENCODER}" in result.err
    with pytest.raises(ValueError, match=r"^model\.kwargs: .*; leave model\.kwargs out$"):
        start_encoder(ModelConfig(name=ENCODER, weights=str(pretrained), kwargs={"drop_rate": 0.1}))


def test_what_the_configuration_does_not_give_is_inherited_from_the_weights(
    cli: Any, pretrained: Path, tmp_path: Path
) -> None:
    """Encoder, stem, stride and tile size; what is given otherwise is said, or refused where it is another encoder."""

    def inherited(**given: Any) -> tuple[FinetuneConfig, str]:
        model = {"weights": str(pretrained), **given.get("model", {})}
        data = {"root": "d", "source": "folder", **given.get("data", {})}
        config, lines = inherit(FinetuneConfig(run="r", data=data, model=model))
        return config, " ".join(" ".join(lines).split())

    config, said = inherited()
    assert (config.model.name, config.model.stem, config.data.size_px) == (ENCODER, "standard", 32)
    assert all(part in said for part in (f"model.name={ENCODER}", "data.size_px=32", "model.mean=its own"))
    config, said = inherited(data={"size_px": 64}, model={"output_stride": 16, "mean": [0.5] * 3})
    assert (config.model.name, config.model.output_stride, config.data.size_px) == (ENCODER, 16, 64)
    assert "data.size_px=64 (its tiles had 32 px), model.output_stride=16 (it had 32), model.mean" in said
    with pytest.raises(ValueError, match=f"holds {ENCODER} with the standard stem"):
        inherited(model={"stem": "small"})
    assert inherit(config.model_copy(update={"model": ModelConfig()}))[1] == []

    words = [f"from={pretrained}", f"data.root={cli.tiles}", "data.published=false", "log.progress=false"]
    result = cli("finetune", f"run={tmp_path / 'run'}", *words, "device=cpu", "train.batch_size=8", "train.epochs=1")
    assert result.code == 0, result.err
    assert result.out.endswith(f"\nnext: sscl eval {tmp_path / 'run'}\n")
    said = next(line for line in result.out.splitlines() if line.startswith("encoder: "))
    assert said.startswith(f"encoder: {ENCODER}; feature: mean, 96 numbers; weights:")
    written = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (written["model"]["name"], written["data"]["size_px"]) == (ENCODER, 32)


@pytest.mark.parametrize(
    ("command", "name", "weights", "said"),
    [
        ("pretrain", "gigapath", "published", "https://huggingface.co/prov-gigapath/prov-gigapath"),
        ("finetune", "gigapath", "published", "https://huggingface.co/prov-gigapath/prov-gigapath"),
        ("pretrain", "timm:test_vit", "imagenet", "pretrained weights of test_vit"),
        ("finetune", "resnet18", "imagenet", "ImageNet weights of resnet18"),
    ],
)
def test_weights_of_others_are_looked_for_before_tiles_are_read(
    cli: Any,
    tmp_path: Path,
    wrap: Any,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    name: str,
    weights: str,
    said: str,
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("[Errno 111] Connection refused")

    def create_model(create: Any, name: str, *, pretrained: bool = False, **options: Any) -> Any:
        return unreachable() if pretrained else create(name, **options)

    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # then nobody looks first whether the hub answers
    wrap(hub_file=unreachable, timm_model=create_model, torchvision_file=unreachable)
    (tmp_path / "tiles").mkdir()  # which holds none
    words = [f"model.name={name}", f"model.weights={weights}", f"data.root={tmp_path / 'tiles'}"]
    result = getattr(cli, command)(tmp_path / "run", *words)
    assert result.code == 2
    assert result.err.startswith("sscl: model.weights: ")
    assert said in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_frozen_encoder_stays_bit_identical_while_the_head_learns(
    cli: Any, pretrained: Path, tmp_path: Path, differing_tensors: Any
) -> None:
    words = [f"model.weights={pretrained}", "train.epochs=2", "train.head_learning_rate=0.1"]
    for name, more in (("a", "train.freeze_encoder=true"), ("b", "train.epochs=1")):
        result = cli.finetune(tmp_path / name, *words, more, "train.select=loss")
        assert result.code == 0, result.err
    before = dict(torch.load(pretrained / "encoder.pt", weights_only=True))

    assert differing_tensors(dict(best(tmp_path / "a")["encoder"]), before) == []  # batch-norm statistics too
    changed = differing_tensors(dict(best(tmp_path / "b")["encoder"]), before)
    assert {"/net.conv1.0.weight", "/net.bn1.running_mean", "/net.layer4.0.conv2.weight"} <= set(changed)
    torch.manual_seed(0)
    start_encoder(ModelConfig(name=ENCODER, weights=str(pretrained)))
    untrained = torch.nn.Linear(96, 2)  # what the seed gives the head
    assert not torch.equal(best(tmp_path / "a")["head"]["weight"], untrained.weight)


@pytest.mark.parametrize("joint", [False, True])
def test_frozen_batch_statistics_stay_while_all_else_learns(
    cli: Any, pretrained: Path, tmp_path: Path, wrap: Any, joint: bool
) -> None:
    """In every step, after validation too, and in the steps of both kinds."""
    words = [f"model.weights={pretrained}", "train.freeze_batch_norm=true", "train.epochs=2", "train.select=loss"]
    if joint:
        words += ["contrast.kind=cross_view", "contrast.projection.kind=mlp", "contrast.projection.hidden=16"]
    modes: list[tuple[bool, bool, bool]] = []
    projection_modes: list[bool] = []

    def forward(real: Any, model: Any, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and type(x) is torch.Tensor:  # not the shapes alone, of which memory is told
            modes.append((model.training, model.encoder.net.bn1.training, model.encoder.net.layer4[0].bn2.training))
        return real(model, x)

    def pairs(real: Any, model: Any, *rest: Any, **named: Any) -> Any:
        projection_modes.append(model.projection[1].training)
        return real(model, *rest, **named)

    wrap(finetune_forward=forward, finetune_pairs=pairs)

    result = cli.finetune(tmp_path / "run", *words)

    assert result.code == 0, result.err
    assert modes == [(True, False, False)] * 4
    assert projection_modes == ([True] * 4 if joint else [])  # the projection is new: it has no statistics to keep
    before = dict(torch.load(pretrained / "encoder.pt", weights_only=True))
    after = dict(best(tmp_path / "run")["encoder"])
    statistics = {key for key in before if "running" in key or "num_batches" in key}
    assert len(statistics) == 45
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert same == statistics  # the scales and shifts of the batch norms learn


def test_frozen_batch_statistics_of_random_weights_are_warned_of(cli: Any, tmp_path: Path) -> None:
    result = cli.finetune(tmp_path / "run", "train.freeze_batch_norm=true")

    assert result.code == 0, result.err
    assert "warning: train.freeze_batch_norm keeps" in result.out


def test_weights_of_another_encoder_are_refused_with_the_keys_to_set(
    cli: Any, pretrained: Path, tmp_path: Path
) -> None:
    for wrong in ("model.name=resnet34", "model.name=timm:test_byobnet"):
        result = cli.finetune(tmp_path / "run", f"model.weights={pretrained}", wrong)
        assert result.code == 2
        assert result.err.count("\n") == 1
        assert f"model.name={ENCODER} model.stem=standard" in result.err
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
    assert differing_tensors(one, two) == ["/config/run", "/validation/tiles_per_second", "/validation/busy"]
    assert "/encoder/net.conv1.0.weight" in differing_tensors(one, three)
    rows = [[{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(run)] for run in runs]
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]


def test_the_test_split_is_loaded_to_be_searched_for_copies_alone(cli: Any, tmp_path: Path, wrap: Any) -> None:
    asked = []

    def spy(real: Any, data: Any, *, split: str, progress: bool) -> Tiles:
        asked.append(split)
        return real(data, split=split, progress=progress)

    wrap(finetune_tiles=spy)

    assert cli.finetune(tmp_path / "run").code == 0
    assert asked == ["train", "test"]


@pytest.mark.parametrize("frozen", [False, True])
def test_views_are_new_at_every_epoch_and_trunk_and_head_have_their_own_rates(
    cli: Any, tmp_path: Path, wrap: Any, read_metrics: Any, frozen: bool
) -> None:
    asked, rates = [], []

    def draw(real: Any, views: Views, rows: torch.Tensor, number: torch.Tensor, **named: Any) -> Any:
        asked.append((named["epoch"], number.tolist(), views.seed))
        return real(views, rows, number, **named)

    def optimizer(real: Any, name: str, groups: list[dict[str, Any]], **named: Any) -> torch.optim.Optimizer:
        rates.extend((group["lr"], sum(p.numel() for p in group["params"])) for group in groups)
        return real(name, groups, **named)

    wrap(views=draw, optimizer=optimizer)
    words = ["train.epochs=2", "train.learning_rate=1e-5", "train.head_learning_rate=1e-2", "train.warmup_epochs=0"]

    words += ["train.freeze_encoder=true", "train.frozen_views=each_epoch"] if frozen else []
    assert cli.finetune(tmp_path / "run", *words, "seed=7").code == 0

    assert asked == [(epoch, [[0] * 12] * 2, 7) for epoch in (0, 1)]
    sizes = {rate: sum(size for r, size in rates if r == rate) for rate, _ in rates}
    trunk = {} if frozen else {1e-5: 372_688}  # timm's test_resnet without its last layer
    assert sizes == {**trunk, 1e-2: 96 * 2 + 2}
    assert 0 < read_metrics(tmp_path / "run")[-1]["learning_rate"] < 1e-2


def test_every_key_of_training_arrives_where_it_works(tiles: Path, tmp_path: Path) -> None:
    """No value is a default, so that a key which is lost on the way shows."""
    train = {
        "batch_size": 8,
        "epochs": 3,
        "warmup_epochs": 0.5,
        "optimizer": "lars",
        "momentum": 0.5,
        "weight_decay": 0.02,
        "learning_rate": 0.003,
        "head_learning_rate": 0.04,
        "schedule": "multistep",
        "milestones": (1, 2),
        "gamma": 0.3,
    }
    settings = FinetuneConfig(
        run=str(tmp_path / "run"),
        seed=7,
        data={"root": str(tiles), "published": False, "size_px": 32},
        model={"name": ENCODER, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)},
        contrast={"kind": "nt_xent", "projection": {"kind": "mlp", "hidden": 24, "dim": 12}},
        augment={"hue": 0.01, "crop_scale": (0.5, 0.9)},
        train=train,
        progress=False,
    )

    opened = open_run(settings, device=torch.device("cpu"), overwrite=False)
    job = finetune.prepare(settings, opened)

    groups = job.optimizer.param_groups
    trunk, head = [(0.003, 0.02), (0.003, 0.0)], [(0.04, 0.02), (0.04, 0.0)]
    assert [(group["peak_lr"], group["weight_decay"]) for group in groups] == [*trunk, *head, *head]
    assert type(job.optimizer).__name__ == "LARS"
    assert {group["momentum"] for group in groups} == {0.5}
    assert job.joint is not None
    assert [layer.weight.shape for layer in job.joint.projection if hasattr(layer, "weight")] == [
        (24, 96),
        (24,),
        (12, 24),
    ]
    assert (job.schedule.settings, job.schedule.steps_per_epoch) == (settings.train, 3)
    # What fine-tuning's views have of their own: FinetuneAugmentConfig.
    assert job.views.augmentation == Augmentation(hue=0.01, crop_scale=(0.5, 0.9), blur_probability=0.0)
    assert job.views.seed == 7
    torch.testing.assert_close(
        (job.views.mean, job.views.std), (torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6]))
    )
    torch.manual_seed(7)
    begun = start_encoder(ModelConfig(name=ENCODER)).encoder
    assert torch.equal(job.model.encoder.net.conv1[0].weight, begun.net.conv1[0].weight)


def test_training_metrics_are_means_over_all_steps_and_validation_sees_normalised_tiles(
    cli: Any, tmp_path: Path, wrap: Any, read_metrics: Any
) -> None:
    steps: list[tuple[float, float]] = []
    validated: list[tuple[list[float], list[float], str]] = []
    precisions: set[str] = set()

    def build_loss(build: Any, settings: FinetuneConfig, labels: Any, **named: Any) -> Any:
        assert len(labels) == 24  # class weights come from the training tiles alone
        real = build(settings, labels, **named)

        def loss_of(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            loss = real(logits, target)
            steps.append((loss.item(), (logits.argmax(1) == target).double().mean().item()))
            return loss

        return loss_of

    def spy_outputs(outputs: Any, *words: Any, **named: Any) -> torch.Tensor:
        validated.append((named["mean"].tolist(), named["std"].tolist(), named["precision"]))
        return outputs(*words, **named)

    def spy_autocast(autocast: Any, device: torch.device, precision: str) -> Any:
        precisions.add(precision)
        return autocast(device, precision)

    wrap(finetune_loss=build_loss, outputs=spy_outputs, finetune_precision=spy_autocast)
    words = ["model.mean=[0.25, 0.5, 0.75]", "model.std=[0.5, 1.0, 0.125]", "precision=bf16", "train.select=loss"]

    assert cli.finetune(tmp_path / "run", *words).code == 0

    (row,) = read_metrics(tmp_path / "run")
    assert len(steps) == 2
    assert [row["train_loss"], row["train_accuracy"]] == pytest.approx(np.mean(steps, axis=0).tolist())
    # Calibrated in the precision in which eval and predict apply it, whatever the training's.
    assert validated == [([0.25, 0.5, 0.75], [0.5, 1.0, 0.125], "fp32")]
    assert precisions == {"bf16"}
    kept = best(tmp_path / "run")
    assert (kept["size_px"], kept["mean"], kept["std"]) == (32, [0.25, 0.5, 0.75], [0.5, 1.0, 0.125])


def test_the_stride_is_kept(cli: Any, tmp_path: Path) -> None:
    words = ["model.name=resnet18", "model.output_stride=16", "train.freeze_encoder=true"]

    assert cli.finetune(tmp_path / "run", *words).code == 0

    assert best(tmp_path / "run")["output_stride"] == 16


# --- which labels are used ---


@pytest.mark.parametrize("groups", [None, [f"slide{i % 20}" for i in range(200)]])
def test_parts_are_disjoint_and_within_the_label_fraction(groups: list[str] | None) -> None:
    tiles = some_tiles([120, 80], groups=groups)

    train, validation = labelled.labelled_parts(tiles, config(label_fraction=0.5, validation_fraction=0.2))

    used = set(label_fraction(tiles.labels, fraction=0.5, seed=0).tolist())
    assert set(train.tolist()) | set(validation.tolist()) == used
    assert len(train) + len(validation) == len(used) == 100
    assert 10 <= len(validation) <= 30
    if groups is not None:
        slides = np.array(groups)
        assert not set(slides[train]) & set(slides[validation])
    other_train, _ = labelled.labelled_parts(tiles, config(label_fraction=0.5, validation_fraction=0.2, seed=1))
    assert set(other_train) != set(train)


def test_every_draw_follows_the_seed_and_every_order_its_epoch() -> None:
    tiles = some_tiles([100, 40])
    train = np.arange(0, 140, 2)

    def differ(draw: Any) -> bool:
        first, again, other = (draw(seed).tolist() for seed in (0, 0, 1))
        assert first == again
        return bool(first != other)

    assert differ(lambda seed: labelled.used_labels(tiles, config(label_fraction=0.5, seed=seed)))
    assert differ(lambda seed: labelled.labelled_parts(tiles, config(seed=seed))[1])
    # With validation tiles of its own nothing is carved, and all that is drawn is what balancing leaves.
    assert differ(lambda seed: labelled.labelled_parts(tiles, config(balance="down", seed=seed), own=tiles)[0])
    for balance in ("none", "draws"):
        assert differ(lambda seed, b=balance: labelled.epoch_rows(train, tiles, config(balance=b, seed=seed), epoch=0))
        assert differ(lambda epoch, b=balance: labelled.epoch_rows(train, tiles, config(balance=b), epoch=epoch))


def test_balancing_down_cuts_training_and_leaves_validation() -> None:
    tiles = some_tiles([100, 20])

    train, validation = labelled.labelled_parts(tiles, config(balance="down", validation_fraction=0.2))

    assert np.bincount(tiles.labels[train]).tolist() == [16, 16]
    assert np.bincount(tiles.labels[validation]).tolist() == [20, 4]


def test_balanced_draws_show_classes_equally_often_and_only_training_tiles() -> None:
    tiles = some_tiles([100, 20])
    drawn_evenly, plain = config(balance="draws"), config()
    train, _ = labelled.labelled_parts(tiles, drawn_evenly)

    rows = labelled.epoch_rows(train, tiles, drawn_evenly, epoch=0)

    assert set(rows) <= set(train)
    assert np.ptp(np.bincount(tiles.labels[rows])) <= 1
    assert sorted(labelled.epoch_rows(train, tiles, plain, epoch=0)) == sorted(train)
    orders = [labelled.epoch_rows(train, tiles, plain, epoch=epoch).tolist() for epoch in (0, 1)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize(("steps", "passes"), [(1, 1), (6, 1), (7, 2), (25, 5)])
def test_steps_an_epoch_are_whole_shuffled_passes_and_a_part_of_one(steps: int, passes: int) -> None:
    tiles, settings = some_tiles([40, 16]), config(steps_per_epoch=steps, batch_size=8)
    train, _ = labelled.labelled_parts(tiles, settings)
    assert len(train) == 48

    epochs = [labelled.epoch_rows(train, tiles, settings, epoch=epoch) for epoch in range(3)]

    parts = [tuple(rows[start : start + 48].tolist()) for rows in epochs for start in range(0, len(rows), 48)]
    assert [len(rows) for rows in epochs] == [8 * steps] * 3
    assert len(parts) == len(set(parts)) == 3 * passes  # no pass in the order of another
    for part in parts:
        assert set(part) <= set(train.tolist())
        assert len(set(part)) == len(part)
    again = labelled.epoch_rows(train, tiles, settings, epoch=1)
    assert again.tolist() == epochs[1].tolist()


def test_steps_an_epoch_for_fewer_tiles_than_a_batch() -> None:
    tiles, settings = some_tiles([4, 4]), config(steps_per_epoch=10, batch_size=64, validation_fraction=0.25)
    train, _ = labelled.labelled_parts(tiles, settings)

    rows = labelled.epoch_rows(train, tiles, settings, epoch=0)

    assert np.bincount(rows)[train].tolist() == [10] * 6  # batches of 6, the whole set each


@pytest.mark.parametrize("steps", [3, 6, 17])
def test_steps_an_epoch_with_balanced_draws(steps: int) -> None:
    tiles, settings = some_tiles([50, 6]), config(steps_per_epoch=steps, batch_size=8, balance="draws")
    train, _ = labelled.labelled_parts(tiles, settings)

    rows = labelled.epoch_rows(train, tiles, settings, epoch=2)

    assert len(rows) == 8 * steps
    whole = rows[: len(rows) // len(train) * len(train)]  # of the last pass only a part is drawn
    assert len(whole) == 0 or np.ptp(np.bincount(tiles.labels[whole])) <= 2
    assert 0.25 < tiles.labels[rows].mean() < 0.75


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (1.0, []),
        (0.5, ["train.balance=draws"]),
        (0.3, ["contrast.kind=cross_view", "contrast.projection.dim=8", "train.batch_size=6"]),
    ],
)
def test_steps_an_epoch_do_not_depend_on_the_fraction_of_the_labels(
    cli: Any, tmp_path: Path, wrap: Any, share: float, words: list[str]
) -> None:
    """3 an epoch, where one pass is 2 or less; the schedule ends with the last, and no view of a tile comes twice."""
    joint = 2 if "contrast.kind=cross_view" in words else 1
    rates: list[float] = []
    views: list[tuple[int, int, int]] = []

    def step(real: Any, loss: torch.Tensor, *, optimizer: Any, scaler: Any) -> None:
        rates.append(optimizer.param_groups[0]["lr"])
        real(loss, optimizer=optimizer, scaler=scaler)

    def draw(real: Any, settings: Views, rows: torch.Tensor, number: torch.Tensor, **named: Any) -> Any:
        if named["count"] == 1:  # of steps on labels
            pairs = zip(rows.flatten().tolist(), number.flatten().tolist(), strict=True)
            views.extend((named["epoch"], *pair) for pair in pairs)
        return real(settings, rows, number, **named)

    wrap(finetune_step=step, views=draw)
    settings = [f"train.label_fraction={share}", "train.steps_per_epoch=3", "train.epochs=2", "train.warmup_epochs=0"]

    result = cli.finetune(tmp_path / "run", *settings, *words)

    assert result.code == 0, result.err
    assert "; 3 steps per epoch" in result.out
    expected = [1e-4 * (1 + math.cos(math.pi * number / 6)) / 2 for number in range(6) for _ in range(joint)]
    assert rates == pytest.approx(expected)
    assert len(views) == len(set(views)) >= 6 * 6


def test_as_many_steps_as_one_pass_has_change_nothing(cli: Any, tmp_path: Path, differing_tensors: Any) -> None:
    plain = cli.finetune(tmp_path / "plain", "train.epochs=2")
    counted = cli.finetune(tmp_path / "counted", "train.epochs=2", "train.steps_per_epoch=2")

    assert "; 2 steps per epoch, batch size 12" in plain.out
    assert counted.code == 0, counted.err
    a, b = (dict(best(tmp_path / name)["encoder"]) for name in ("plain", "counted"))
    assert differing_tensors(a, b) == []


@pytest.mark.parametrize("name", ["cross_entropy", "weighted_cross_entropy", "focal", "weighted_focal"])
def test_losses_equal_their_formula(name: str) -> None:
    labels = np.array([0] * 30 + [1] * 10)
    loss = build_loss(config(loss=name, focal_gamma=1.5), labels, num_classes=2, device=torch.device("cpu"))
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
    train, validation = (int(result.out.split(f" {part} tiles")[0].split()[-1]) for part in ("training", "validation"))
    assert train + validation == 16  # of 32
    assert f"lowered to {train}" in result.out


# --- how it ends ---


def test_early_stopping_and_ties(cli: Any, tmp_path: Path, wrap: Any, read_metrics: Any) -> None:
    """Balanced accuracy and loss of each epoch, as if validation had given them: epoch 3 wins a tie by its loss."""
    given = iter([(0.5, 1.0), (0.9, 0.8), (0.9, 0.7), (0.9, 0.7), (0.8, 0.1), (1.0, 0.0)])

    def validate(real: Any, logits: torch.Tensor, labels: Any) -> dict[str, float]:
        accuracy, loss = next(given)
        return {
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "validation_balanced_accuracy": accuracy,
        }

    wrap(finetune_metrics=validate)

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
        select: score(accurate, config(select=select)) > score(low_loss, config(select=select))
        for select in ("loss", "accuracy", "balanced_accuracy")
    }

    assert better == {"loss": False, "accuracy": True, "balanced_accuracy": False}


def test_validation_metrics_are_those_of_sklearn() -> None:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score

    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(40, 3, generator=generator), np.repeat([0, 0, 1, 2], 10)

    found = validation_metrics(logits, labels)

    predicted = logits.argmax(1).numpy()
    assert found["validation_accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert found["validation_balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert found["validation_loss"] == pytest.approx(F.cross_entropy(logits, torch.from_numpy(labels)).item())


@pytest.mark.parametrize(
    ("batch_size", "message"), [(8, "the loss became nan in epoch 1"), (24, "outputs for 8 of 8 tiles are not finite")]
)
def test_divergence_stops_and_leaves_no_broken_checkpoint(
    cli: Any, tmp_path: Path, wrap: Any, batch_size: int, message: str
) -> None:
    wrap(optimizer=lambda real, name, groups, **named: real(name, [{**g, "peak_lr": 1e30} for g in groups], **named))
    words = ["train.optimizer=sgd", "train.warmup_epochs=0"]

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
    assert occurrences(order).tolist() == [0, 0, 1, 2, 0, 1]
    images = torch.randint(0, 255, (1, 16, 16, 3), dtype=torch.uint8).repeat(3, 1, 1, 1)
    views = augment.view(
        images,
        torch.tensor([4, 4, 4]),
        augmentation=Augmentation(),
        seed=0,
        epoch=0,
        view=torch.tensor([0, 1, 0]),
        mean=torch.zeros(3),
        std=torch.ones(3),
    )
    assert torch.equal(views[0], views[2])
    assert not torch.equal(views[0], views[1])


def test_a_finetune_run_as_a_start_is_said_and_kept_in_the_history(
    cli: Any, finetuned: Path, tmp_path: Path, differing_tensors: Any
) -> None:
    result = cli.finetune(tmp_path / "run", f"model.weights={finetuned}", "train.freeze_encoder=true")

    assert result.code == 0, result.err
    assert "was trained with labels (HP, SSA)" in result.out
    assert differing_tensors(dict(best(tmp_path / "run")["encoder"]), dict(best(finetuned)["encoder"])) == []
    assert best(tmp_path / "run")["lineage"] == [*best(finetuned)["lineage"], best(finetuned)["config"]["data"]]


# --- the schedule ---


def test_multistep_drops_by_whole_epochs(cli: Any, tmp_path: Path, read_metrics: Any) -> None:
    words = ["train.schedule=multistep", "train.milestones=[1, 3]", "train.gamma=0.5", "train.warmup_epochs=9"]
    words.append("train.freeze_encoder=true")

    result = cli.finetune(tmp_path / "run", *words, "train.epochs=4", "train.head_learning_rate=0.008")

    assert result.code == 0, result.err
    assert "warmup" not in result.out
    rates = [row["learning_rate"] for row in read_metrics(tmp_path / "run")]
    assert rates == pytest.approx([0.008, 0.004, 0.004, 0.002])


# --- a set with a validation split of its own, and unlabelled tiles ---


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of MedMNIST's layout, two classes told apart by colour: 24 labelled tiles, 20 unlabelled; 12 and 4."""
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {}
    for part, classes in (("train", [0, 1] * 12 + [-1] * 20), ("val", [0, 1] * 6), ("test", [0, 1] * 2)):
        images = rng.integers(0, 150, (len(classes), 28, 28, 3), dtype=np.uint8)
        images[np.array(classes) == 1, ..., 0] += 100
        content |= {f"{part}_images": images, f"{part}_labels": np.array(classes)[:, None]}
    path = tmp_path_factory.mktemp("npz") / "tiles.npz"
    np.savez(path, **content)
    return path


@pytest.fixture(scope="module")
def npz_words(npz: Path) -> list[str]:
    return [f"data.root={npz}", "data.source=pathmnist", "data.size_px=28"]


@pytest.fixture
def gathered(wrap: Any) -> dict[str, list[list[int]]]:
    """The rows of every batch a run takes from the training store and from that of its validation tiles."""
    asked: dict[str, list[list[int]]] = {"train": [], "validation": []}

    def place(real: Any, images: Any, **named: Any) -> Any:
        store, part = real(images, **named), "validation" if len(images) == 12 else "train"
        take, each = store.gather, store.batches

        def gather(rows: torch.Tensor) -> torch.Tensor:
            asked[part].append(rows.tolist())
            return take(rows)

        def batches(order: Any) -> Any:
            for rows, images in zip(order, each(order), strict=True):
                asked[part].append(rows.tolist())
                yield images

        store.gather, store.batches = gather, batches
        return store

    wrap(finetune_store=place)
    return asked


def test_the_sets_own_validation_split_selects(
    cli: Any, npz_words: list[str], tmp_path: Path, gathered: dict[str, list[list[int]]]
) -> None:
    result = cli.finetune(tmp_path / "run", *npz_words)

    assert result.code == 0, result.err
    assert "split validation: 12 tiles (6 0, 6 1)" in " ".join(result.out.split())
    assert "train.validation_fraction" in " ".join(result.out.split())
    assert sorted(chain(*gathered["validation"])) == list(range(12))
    assert sorted(chain(*gathered["train"])) == list(range(24))  # every label serves training
    assert re.search(r"^20 tiles .*train\.label_fraction.*not used", result.out, re.MULTILINE)


def test_a_class_that_validation_lacks_is_told(cli: Any, npz: Path, tmp_path: Path) -> None:
    content = dict(np.load(npz))
    content["val_labels"] = np.zeros_like(content["val_labels"])
    np.savez(tmp_path / "lacking.npz", **content)
    words = [f"data.root={tmp_path / 'lacking.npz'}", "data.source=pathmnist", "data.size_px=28"]
    result = cli.finetune(tmp_path / "run", *words)
    assert result.code == 0, result.err
    assert "warning: no validation tile of 1: " in " ".join(result.out.split())
    assert "warning: every validation tile is of 0" in " ".join(result.out.split())
    card = (tmp_path / "run/MODEL_CARD.md").read_text(encoding="utf-8")
    assert any(line.startswith("- No validation tile of 1: ") for line in card.splitlines())


def test_the_label_fraction_cuts_training_and_validation_alike(npz: Path) -> None:
    halved = FinetuneConfig(
        run="run", data={"root": str(npz), "source": "pathmnist", "size_px": 28}, train={"label_fraction": 0.5}
    )
    tiles, own = (labelled.load_tiles(halved.data, split=part, progress=False) for part in ("train", "validation"))

    train, validation = labelled.labelled_parts(tiles, halved, own=own)

    assert np.bincount(tiles.labels[train]).tolist() == [6, 6]
    assert np.bincount(own.labels[validation]).tolist() == [3, 3]


def test_unlabelled_tiles_join_the_contrastive_steps_alone(
    cli: Any,
    npz_words: list[str],
    tmp_path: Path,
    gathered: dict[str, list[list[int]]],
) -> None:
    result = cli.finetune(tmp_path / "run", *npz_words, "contrast.kind=nt_xent", "train.batch_size=8", "train.epochs=2")

    assert result.code == 0, result.err
    assert re.search(r"^20 tiles .*train\.label_fraction.*contrastive", result.out, re.MULTILINE)
    labelled, contrastive = gathered["train"][0::2], gathered["train"][1::2]
    assert len(labelled) == len(contrastive) == 6
    assert set(chain(*labelled)) == set(range(24))
    for batch, joined in zip(labelled, contrastive, strict=True):
        assert set(joined) >= set(batch)
        assert len(set(joined)) == len(joined) == 16
        assert set(joined) - set(batch) <= set(range(24, 44))
    first_pass = set(chain(*contrastive[:2])) - set(range(24))
    assert len(first_pass) == 16  # 8 a step, none twice


# --- joint training ---

JOINT = ["contrast.kind=cross_view", "contrast.projection.hidden=16", "contrast.projection.dim=8"]


def test_joint_training_learns_both(cli: Any, tmp_path: Path, read_metrics: Any) -> None:
    words = ["train.epochs=6", "train.learning_rate=3e-3", "train.warmup_epochs=0", "train.patience=9"]

    result = cli.finetune(tmp_path / "run", *JOINT, *words)

    assert result.code == 0, result.err
    rows = read_metrics(tmp_path / "run")
    assert all(set(row) == KEYS | {"contrast_loss"} for row in rows)
    assert rows[0]["contrast_loss"] == pytest.approx(math.log(12), abs=0.6)  # of guessing among 12
    assert rows[-1]["contrast_loss"] < rows[0]["contrast_loss"]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    content = best(tmp_path / "run")
    assert set(content["encoder"]) == set(start_encoder(ModelConfig(name=ENCODER)).encoder.state_dict())
    assert not any("projection" in key for key in content)


@pytest.mark.parametrize("kind", ["cross_view", "nt_xent"])
def test_each_step_is_one_on_labels_then_one_on_contrast_from_the_weights_as_they_are(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrap: Any, kind: str
) -> None:
    """The published code went back through a graph made before the first of the two steps."""
    events: list[str] = []
    weights: list[torch.Tensor] = []
    projected: list[bool] = []
    objective = OBJECTIVES[kind]

    def build(real: Any, *words: Any, **named: Any) -> Any:
        loss = real(*words, **named)
        return lambda logits, target: events.append("labels") or loss(logits, target)

    def pairs(real: Any, joint: Any, *words: Any, **named: Any) -> Any:
        weights.append(joint.encoder.net.conv1[0].weight.detach().clone())
        first, again = real(joint, *words, **named), real(joint, *words, **named)
        projected.append(all(torch.equal(a, b) for a, b in zip(first, again, strict=True)))
        return first

    def contrast(a: torch.Tensor, b: torch.Tensor, *, temperature: float) -> torch.Tensor:
        events.append(f"contrast at {temperature}")
        return objective.loss(a, b, temperature=temperature)

    def step(real: Any, loss: torch.Tensor, *, optimizer: Any, scaler: Any) -> None:
        before = {key: p.detach().clone() for key, p in enumerate(optimizer.param_groups[0]["params"])}
        assert len(weights) == 0 or events[-1] == "labels" or torch.equal(weights[-1], before[0])
        real(loss, optimizer=optimizer, scaler=scaler)
        moved = [key for key, p in enumerate(optimizer.param_groups[0]["params"]) if not torch.equal(before[key], p)]
        assert len(moved) == len(before)  # both steps train the whole trunk
        events.append("step")

    wrap(finetune_loss=build, finetune_pairs=pairs, finetune_step=step)
    monkeypatch.setitem(OBJECTIVES, kind, objective._replace(loss=contrast))

    result = cli.finetune(tmp_path / "run", *JOINT, f"contrast.kind={kind}", "contrast.temperature=0.3")

    assert result.code == 0, result.err
    assert events == ["labels", "step", "contrast at 0.3", "step"] * 2
    assert projected == [True] * 2
    assert len({tuple(w.flatten().tolist()) for w in weights}) == 2


def test_without_its_contrastive_half_joint_training_is_the_plain_run(
    cli: Any, tmp_path: Path, wrap: Any, differing_tensors: Any
) -> None:
    """Same head to begin with, same order, same views: the contrastive steps are all that differs."""
    words = ["train.epochs=2", "train.learning_rate=1e-3"]
    assert cli.finetune(tmp_path / "plain", *words).code == 0
    assert cli.finetune(tmp_path / "joint", *JOINT, *words).code == 0

    def step(real: Any, loss: torch.Tensor, **named: Any) -> None:
        if loss.requires_grad:
            real(loss, **named)

    wrap(finetune_step=step, finetune_pairs=lambda *_, **__: (torch.eye(8), torch.eye(8)))
    assert cli.finetune(tmp_path / "half", *JOINT, *words).code == 0

    plain, joint, half = (
        {key: dict(best(tmp_path / name)[key]) for key in ("encoder", "head")} for name in ("plain", "joint", "half")
    )
    assert differing_tensors(plain, half) == []
    assert {"/encoder/net.conv1.0.weight", "/head/weight"} <= set(differing_tensors(plain, joint))


def test_contrast_never_meets_validation_and_goes_on_through_the_unlabelled_tiles(
    cli: Any, tmp_path: Path, wrap: Any
) -> None:
    """Half of the 32 tiles without their labels."""
    joined: list[tuple[int, int]] = []
    numbers: list[tuple[int, int]] = []
    met: set[int] = set()
    held: set[int] = set()

    def with_unlabelled(real: Any, labelled: Any, unlabelled: Any, *, seed: int, step: int) -> Any:
        assert len(unlabelled) == 16
        joined.append((seed, step))
        return real(labelled, unlabelled, seed=seed, step=step)

    def pairs(real: Any, joint: Any, store: Any, rows: torch.Tensor, **named: Any) -> Any:
        met.update(rows.tolist())
        numbers.append((named["epoch"], named["number"]))
        return real(joint, store, rows, **named)

    def outputs(real: Any, model: Any, store: Any, rows: Any, **named: Any) -> torch.Tensor:
        held.update(rows.tolist())
        return real(model, store, rows, **named)

    wrap(finetune_unlabelled=with_unlabelled, finetune_pairs=pairs, outputs=outputs)
    words = ["train.label_fraction=0.5", "train.batch_size=4", "train.epochs=2", "seed=3"]

    result = cli.finetune(tmp_path / "run", *JOINT, *words)

    assert result.code == 0, result.err
    assert len(held) > 0
    assert not met & held
    assert joined == [(3, number) for number in range(6)]  # the second epoch goes on where the first ended
    assert numbers == [(epoch, number) for epoch in (0, 1) for number in range(3)]


def test_contrast_compares_a_new_view_with_the_tile_as_it_is() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    store, rows = preparation.place_store(images, device="cpu", budget_gb=1), torch.tensor([3, 1])
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.2, 0.3])

    class Pixels(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    views = Views(Augmentation(), seed=3, mean=mean, std=std, size_px=images.shape[1])
    a, b = finetune.project_pairs(Pixels(), store, rows, views=views, epoch=2, number=1)

    raw = torch.from_numpy(images)[rows].permute(0, 3, 1, 2)
    view = augment.view(
        torch.from_numpy(images)[rows], rows, augmentation=Augmentation(), seed=3, epoch=2, view=1, mean=mean, std=std
    )
    assert torch.equal(a, view.flatten(1))
    clean = (raw.double() / 255 - mean[:, None, None]) / std[:, None, None]
    assert torch.allclose(b.double(), clean.flatten(1), atol=1e-5)


def test_contrast_on_a_frozen_encoder_is_refused(cli: Any, tmp_path: Path) -> None:
    result = cli.finetune(tmp_path / "run", *JOINT, "train.freeze_encoder=true")

    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "contrast.kind: " in result.err
    assert "train.freeze_encoder=true" in result.err
    assert not (tmp_path / "run").exists()


def test_divergence_of_the_contrastive_half_is_said(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = OBJECTIVES["cross_view"]._replace(loss=lambda a, b, *, temperature: a.sum() * math.nan)
    monkeypatch.setitem(OBJECTIVES, "cross_view", broken)

    result = cli.finetune(tmp_path / "run", *JOINT, "train.batch_size=24")

    assert result.code == 2
    assert "the loss became nan in epoch 1" in result.err
    assert not list((tmp_path / "run").rglob("*.pt"))
