"""sscl pretrain: the run folder, exact resumption, refusals that leave everything as it was, and the health metrics."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from sscl.config import PretrainConfig
from sscl.data.tiles import Tiles, place_store
from sscl.draws import Augmentation
from sscl.evaluate import probe
from sscl.losses import cross_view_info_nce
from sscl.models.encoders import build_encoder
from sscl.train import pretrain
from sscl.train.health import HealthTiles, carve_health, collapse_warning, health_metrics
from sscl.train.setup import open_run

KEYS = {
    "epoch",
    "loss",
    "loss_relative",
    "learning_rate",
    "positive_similarity",
    "negative_similarity",
    "effective_rank",
    *("knn_balanced_accuracy", "knn_chance", "knn_tiles"),  # without an interval: of too few slides
    "tiles_per_second",
    "seconds",
    "busy",
}
TIMES = ("tiles_per_second", "seconds", "busy")
ENCODER = "timm:test_resnet"  # of the runs here


def config(root: Path | str = "nowhere", **sections: Any) -> PretrainConfig:
    data = {"root": str(root), "published": False, "size_px": 32, **sections.pop("data", {})}
    return PretrainConfig(run="run", data=data, **sections)


def some_tiles(labels: list[int], *, groups: list[str] | None = None) -> Tiles:
    return Tiles(
        images=np.zeros((len(labels), 8, 8, 3), dtype=np.uint8),
        labels=np.array(labels, dtype=np.int64),
        classes=tuple(f"class{c}" for c in range(max(labels) + 1)),
        ids=tuple(f"tile{i}" for i in range(len(labels))),
        groups=None if groups is None else np.array(groups),
    )


# --- what a run leaves ---


def test_run_folder_holds_what_the_end_of_the_run_names(pretrained: Path) -> None:
    found = {str(path.relative_to(pretrained)) for path in pretrained.rglob("*") if path.is_file()}

    written = {"config.yaml", "env.json", "metrics.jsonl", "curves.png", "encoder.pt", "checkpoints/last.pt"}
    assert found == {*written, "training.json"}
    with Image.open(pretrained / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 300
    written = yaml.safe_load((pretrained / "config.yaml").read_text())
    assert PretrainConfig.model_validate(written).train.epochs == 4  # the resolved configuration can be given again


def test_exported_encoder_fits_torchvision_and_is_that_of_the_checkpoint(
    cli: Any, tmp_path: Path, differing_tensors: Any
) -> None:
    words = ["model.name=resnet18", "model.output_stride=16", "model.mean=[0.1, 0.2, 0.3]", "model.std=[0.4, 0.5, 0.6]"]
    result = cli.pretrain(tmp_path / "run", *words, "train.batch_size=24")
    assert result.code == 0, result.err
    exported = torch.load(tmp_path / "run/encoder.pt", weights_only=True)
    content = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)

    with torch.device("meta"):
        published = torchvision.models.resnet18()
    outcome = published.load_state_dict(exported, strict=False, assign=True)

    assert outcome.missing_keys == ["fc.weight", "fc.bias"]
    assert outcome.unexpected_keys == []
    assert differing_tensors(exported, dict(content["encoder"])) == []
    assert content["output_stride"] == 16
    assert (content["size_px"], content["mean"], content["std"]) == (32, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


def test_metrics_have_a_row_an_epoch_with_loss_and_health(pretrained: Path, read_metrics: Any) -> None:
    rows = read_metrics(pretrained)

    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert set(row) == KEYS
        assert row["loss_relative"] == pytest.approx(row["loss"] / math.log(2 * 12 - 1))
        assert -1 <= row["negative_similarity"] <= 1
        assert 1 <= row["effective_rank"] <= 8
        assert 0 <= row["knn_balanced_accuracy"] <= 1
    # Warm-up of one epoch, then the cosine falls: the peak is 0.06 * 12 / 256.
    rates = [row["learning_rate"] for row in rows]
    assert rates[0] == pytest.approx(0.06 * 12 / 256)
    assert rates == sorted(rates, reverse=True)


def test_health_is_measured_now_and_then_and_after_the_last_epoch(
    cli: Any, pretrained: Path, tmp_path: Path, differing_tensors: Any, read_metrics: Any
) -> None:
    """Other epochs have a row without it, and the training is the same."""
    result = cli.pretrain(tmp_path / "run", "train.epochs=4", "log.every_seconds=1000")

    assert result.code == 0, result.err
    rows, each_epoch = read_metrics(tmp_path / "run"), read_metrics(pretrained)
    measured = {"effective_rank", *(key for key in KEYS if key.startswith("knn_"))}
    assert [KEYS - set(row) for row in rows] == [measured, measured, measured, set()]
    for row, other in zip(rows, each_epoch, strict=True):
        assert 0 < row["busy"] <= 1
        assert all(value == other[key] for key, value in row.items() if key not in TIMES)
    assert (tmp_path / "run/curves.png").is_file()
    assert re.search(r"\n[0-9]+% of [0-9.]+ s were training steps", result.out)
    ours, theirs = (
        torch.load(run / "checkpoints/last.pt", weights_only=True) for run in (tmp_path / "run", pretrained)
    )
    assert differing_tensors(ours["model"], theirs["model"]) == []


def test_a_checkpoint_that_cannot_be_written_ends_the_run_in_one_line(cli: Any, tmp_path: Path, wrap: Any) -> None:
    """It is written in another thread."""

    def full(real: Any, path: Path, checkpoint: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    wrap(pretrain_save=full)

    result = cli.pretrain(tmp_path / "run")

    assert result.code == 2
    assert "No space left" in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "run/encoder.pt").exists()


def test_other_settings_train_as_well(cli: Any, tmp_path: Path, read_metrics: Any) -> None:
    words = ["train.optimizer=lars", "projection.kind=mlp", "projection.hidden=32", "augment.stain_probability=1"]

    result = cli.pretrain(tmp_path / "run", *words, "train.learning_rate_scaling=sqrt", "precision=bf16")

    assert result.code == 0, result.err
    assert "precision bf16" in result.out
    assert math.isfinite(read_metrics(tmp_path / "run")[0]["loss"])
    content = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    assert "projection.3.weight" in content["model"]  # the mlp


def test_every_epoch_shows_each_tile_once_in_two_new_views(cli: Any, tmp_path: Path, wrap: Any) -> None:
    asked: list[tuple[int, int, list[int]]] = []

    def spy(real: Any, tiles: torch.Tensor, **named: Any) -> Any:
        of_steps = zip(tiles.view(-1, 2, 12), named["view"].view(-1, 2, 12), strict=True)  # (steps, view, tile)
        for rows, view in of_steps:
            assert torch.equal(rows[0], rows[1])
            assert torch.equal(view, torch.tensor([[0], [1]]).expand(2, 12))  # no tile comes twice
            asked.append((int(named["epoch"]), named["seed"], rows[0].tolist()))
        return real(tiles, **named)

    wrap(pretrain_views=spy)

    assert cli.pretrain(tmp_path / "run", "train.epochs=2", "seed=7").code == 0

    assert [epoch for epoch, _, _ in asked] == [0] * 2 + [1] * 2
    assert {seed for _, seed, _ in asked} == {7}
    orders = [[row for epoch, _, rows in asked if epoch == e for row in rows] for e in (0, 1)]
    assert len(set(orders[0])) == 24
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


def test_every_key_of_training_arrives_where_it_works(tiles: Path, tmp_path: Path) -> None:
    """No value is a default, so that a key which is lost on the way shows."""
    train = {
        "batch_size": 8,
        "epochs": 3,
        "warmup_epochs": 0.5,
        "optimizer": "lars",
        "momentum": 0.5,
        "weight_decay": 0.02,
        "learning_rate": 0.1,
        "learning_rate_scaling": "sqrt",
        "schedule": "multistep",
        "milestones": (1, 2),
        "gamma": 0.3,
        "temperature": 0.2,
        "loss": "cross_view",
        "second_view": "clean",
        "microbatch": 4,
        "compile": True,
    }
    settings = config(
        tiles,
        seed=7,
        device="cpu",
        precision="bf16",
        model={"name": ENCODER, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)},
        train=train,
        projection={"kind": "mlp", "hidden": 24, "dim": 12},
        augment={"hue": 0.01, "crop_scale": (0.5, 0.9)},
        health={"tiles": 8},
        progress=False,
    ).model_copy(update={"run": str(tmp_path / "run")})

    opened = open_run(settings, device=torch.device("cpu"), overwrite=False)
    job = pretrain.prepare(settings, opened, resume=False)

    groups = job.optimizer.param_groups
    assert type(job.optimizer).__name__ == "LARS"
    assert [group["weight_decay"] for group in groups] == [0.02, 0.0] * 2
    assert [group["peak_lr"] for group in groups] == pytest.approx([0.1 * math.sqrt(8)] * 4)
    assert {group["momentum"] for group in groups} == {0.5}
    assert (job.schedule.settings, job.schedule.steps_per_epoch) == (settings.train, 3)
    assert not job.scaler.is_enabled()
    assert (job.step.loss, job.step.temperature, job.step.microbatch) == (cross_view_info_nce, 0.2, 4)
    assert opened.precision == "bf16"
    views = job.views
    assert (views.seed, views.clean_second) == (7, True)
    assert views.augmentation == Augmentation(hue=0.01, crop_scale=(0.5, 0.9))
    torch.testing.assert_close((views.mean, views.std), (torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])))
    projection = job.model.projection
    assert (projection[0].out_features, projection[-1].out_features) == (24, 12)
    torch.manual_seed(7)
    assert torch.equal(job.model.encoder.net.conv1[0].weight, build_encoder(ENCODER).net.conv1[0].weight)


# --- resumption ---


@pytest.fixture(scope="module")
def stopped(cli: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `pretrained`, left after 2 of 4 epochs."""
    run: Path = tmp_path_factory.mktemp("runs") / "stopped"
    result = cli.pretrain(run, "train.epochs=4", "train.stop_after_epoch=2")
    assert result.code == 0, result.err
    assert "--resume" in result.out
    return run


def test_two_epochs_and_two_resumed_equal_four(
    cli: Any, stopped: Path, pretrained: Path, tmp_path: Path, differing_tensors: Any, read_metrics: Any
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    # A kill between the log and the checkpoint leaves a row too many; it must not stay.
    with (run / "metrics.jsonl").open("a") as handle:
        handle.write('{"epoch": 3, "loss": 0}\n')

    result = cli.pretrain(run, "train.epochs=4", "--resume")

    assert result.code == 0, result.err
    assert "after epoch 2" in result.out
    ours, theirs = (torch.load(folder / "checkpoints/last.pt", weights_only=True) for folder in (run, pretrained))
    assert ours["epoch"] == 4
    assert ours["optimizer"]["state"]  # momentum is compared, not two empty dicts
    for key in ("model", "encoder", "optimizer", "scaler", "epoch", "fingerprint"):
        assert differing_tensors(ours[key], theirs[key], key) == []
    resumed, straight = (
        [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(f)] for f in (run, pretrained)
    )
    assert resumed == straight
    assert (run / "encoder.pt").is_file()


def test_a_run_goes_on_with_the_settings_it_began_with_alone(cli: Any, stopped: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))

    refused = cli.pretrain(run, "train.epochs=4", "train.loss=cross_view", "seed=5", "--resume")
    result = cli.pretrain(run, "train.epochs=4", "train.stop_after_epoch=3", "train.timeout_minutes=9", "--resume")

    assert refused.code == 2
    changed = {line.split(": ")[1]: line for line in refused.err.splitlines()}
    assert list(changed) == ["seed", "train.loss"]
    assert "'cross_view'" in changed["train.loss"]
    assert "'nt_xent'" in changed["train.loss"]
    assert result.code == 0, result.err
    assert "after epoch 2" in result.out


def test_frozen_batch_statistics_are_those_of_the_start(cli: Any, pretrained: Path, tmp_path: Path) -> None:
    words = [f"model.weights={pretrained}", "train.freeze_batch_norm=true"]
    before = torch.load(pretrained / "encoder.pt", weights_only=True)

    result = cli.pretrain(tmp_path / "run", *words)
    random = cli.pretrain(tmp_path / "random", "train.freeze_batch_norm=true")

    assert result.code == 0, result.err
    after = torch.load(tmp_path / "run/encoder.pt", weights_only=True)
    statistics = [key for key in before if "running" in key or "num_batches" in key]
    assert len(statistics) == 45
    assert all(torch.equal(before[key], after[key]) for key in statistics)
    assert not torch.equal(before["net.conv1.0.weight"], after["net.conv1.0.weight"])
    started, trained = (
        torch.load(f / "checkpoints/last.pt", weights_only=True) for f in (pretrained, tmp_path / "run")
    )
    assert trained["lineage"] == [*started["lineage"], *started["config"]["data"]]  # what the weights have seen
    assert "warning: train.freeze_batch_norm" not in result.out
    assert "warning: train.freeze_batch_norm keeps" in random.out


def test_another_seed_gives_another_encoder(cli: Any, stopped: Path, tmp_path: Path, differing_tensors: Any) -> None:
    """The bit-identity above would mean nothing if every run gave the same."""
    result = cli.pretrain(tmp_path / "run", "train.epochs=4", "train.stop_after_epoch=1", "seed=1")

    assert result.code == 0, result.err
    ours, theirs = (torch.load(f / "checkpoints/last.pt", weights_only=True) for f in (tmp_path / "run", stopped))
    assert "model/encoder.net.conv1.0.weight" in differing_tensors(ours["model"], theirs["model"], "model")


@pytest.mark.parametrize(
    "word",
    [
        "augment.hue=0.3",
        "train.learning_rate=0.1",
        "train.epochs=5",
        "train.batch_size=4",
        "seed=3",
        "model.name=resnet18",
        "data.size_px=48",
        "health.neighbours=5",
    ],
)
def test_resume_with_a_changed_key_is_refused(cli: Any, stopped: Path, snapshot: Any, word: str) -> None:
    before = snapshot(stopped)

    result = cli.pretrain(stopped, "train.epochs=4", word, "--resume")

    assert result.code == 2
    assert result.err.startswith(f"sscl: {word.split('=')[0]}: got ")
    assert result.err.count("\n") == 1
    assert snapshot(stopped) == before


def test_resume_with_other_tiles_is_refused(cli: Any, broken: Path, tmp_path: Path, snapshot: Any) -> None:
    words = [f"data.root={broken}", "train.epochs=2", "train.stop_after_epoch=1"]
    assert cli.pretrain(tmp_path / "run", *words).code == 0
    before = snapshot(tmp_path / "run")
    name = next(line.split(",")[0] for line in (broken / "annotations.csv").read_text().splitlines() if "train" in line)
    Image.new("RGB", (32, 32), "white").save(broken / "images" / name)

    result = cli.pretrain(tmp_path / "run", *words, "--resume")

    assert result.code == 2
    assert result.err.startswith("sscl: data.root: the tiles of ")
    assert snapshot(tmp_path / "run") == before


def test_resume_in_another_precision_is_refused(cli: Any, stopped: Path, tmp_path: Path) -> None:
    """As on a machine where precision=auto means another one."""
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    content = torch.load(run / "checkpoints/last.pt", weights_only=True)
    torch.save({**content, "precision": "bf16"}, run / "checkpoints/last.pt")

    result = cli.pretrain(run, "train.epochs=4", "--resume")

    assert result.code == 2
    assert result.err.startswith("sscl: precision: ")
    assert result.err.count("\n") == 1
    assert result.err.index("fp32") < result.err.index("bf16")  # here, and in the run to resume


def test_resume_of_nothing_and_resume_with_overwrite_are_refused(cli: Any, stopped: Path, tmp_path: Path) -> None:
    nothing = cli.pretrain(tmp_path / "run", "--resume")
    both = cli.pretrain(stopped, "--resume", "--overwrite")

    assert nothing.code == both.code == 2
    assert "nothing to resume" in nothing.err
    assert "exclude each other" in both.err
    assert not (tmp_path / "run").exists()
    assert (stopped / "checkpoints/last.pt").is_file()


# --- folders that exist ---


def test_existing_run_is_refused_and_untouched(cli: Any, pretrained: Path, snapshot: Any) -> None:
    before = snapshot(pretrained)

    result = cli.pretrain(pretrained)

    assert result.code == 2
    assert f"{pretrained}: exists" in result.err
    assert "--overwrite" in result.err
    assert snapshot(pretrained) == before


def test_overwrite_replaces_a_run_as_a_whole(cli: Any, stopped: Path, tmp_path: Path, read_metrics: Any) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    (run / "old.txt").write_text("from the run before")

    result = cli.pretrain(run, "--overwrite")

    assert result.code == 0, result.err
    assert not (run / "old.txt").exists()
    assert [row["epoch"] for row in read_metrics(run)] == [1]


def test_overwrite_leaves_a_folder_of_others_alone(cli: Any, tmp_path: Path, snapshot: Any) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.tex").write_text("important")
    before = snapshot(tmp_path)

    result = cli.pretrain(tmp_path / "thesis", "--overwrite")

    assert result.code == 2
    assert "not written by sscl" in result.err
    assert snapshot(tmp_path) == before


def test_overwrite_that_fails_on_its_input_loses_nothing(
    cli: Any, stopped: Path, tmp_path: Path, snapshot: Any
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    before = snapshot(run)

    result = cli.pretrain(run, "--overwrite", "train.batch_size=1000")

    assert result.code == 2
    assert "train.batch_size" in result.err
    assert snapshot(run) == before


@pytest.mark.parametrize("inside", ["", "checkpoints/last.pt", "encoder.pt"])
def test_weights_inside_the_run_to_replace_are_refused(
    cli: Any, stopped: Path, tmp_path: Path, snapshot: Any, inside: str
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    before = snapshot(run)

    result = cli.pretrain(run, f"model.weights={run / inside}", "--overwrite")

    assert result.code == 2
    assert "model.weights=" in result.err
    assert snapshot(run) == before


def test_tiles_inside_the_folder_to_replace_are_refused(cli: Any, broken: Path, tmp_path: Path, snapshot: Any) -> None:
    """A demo folder has sscl's env.json and the tiles below it: --overwrite of the whole would delete them."""
    (tmp_path / "env.json").write_text('{"sscl": "0.1.0"}')
    before = snapshot(tmp_path)

    result = cli.pretrain(tmp_path, f"data.root={broken}", "--overwrite")

    assert result.code == 2
    assert f"data.root={broken}" in result.err
    assert snapshot(tmp_path) == before


# --- a loss that is no number ---


def test_non_finite_loss_stops_and_leaves_the_last_good_checkpoint(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_metrics: Any
) -> None:
    calls = 0
    objective = pretrain.OBJECTIVES["nt_xent"]

    def breaks_in_epoch_2(a: torch.Tensor, b: torch.Tensor, **named: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return objective.loss(a, b, **named) * (math.nan if calls == 4 else 1)  # 2 steps an epoch

    monkeypatch.setitem(pretrain.OBJECTIVES, "nt_xent", objective._replace(loss=breaks_in_epoch_2))

    result = cli.pretrain(tmp_path / "run", "train.epochs=3")

    assert result.code == 2
    assert "the loss became nan in epoch 2, step 2" in result.err
    assert "lower train.learning_rate" in result.err
    assert "last.pt holds epoch 1" in result.err
    assert result.err.count("\n") == 1
    content = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    assert content["epoch"] == 1
    assert all(value.isfinite().all() for value in content["model"].values())
    assert [row["epoch"] for row in read_metrics(tmp_path / "run")] == [1]


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [(8, "the loss became nan in epoch 1, step 2"), (24, "outputs for 8 of 8 tiles are not finite")],
    ids=["in the epoch", "after its last step"],
)
def test_huge_learning_rate_leaves_no_broken_checkpoint(
    cli: Any, tmp_path: Path, wrap: Any, batch_size: int, message: str
) -> None:
    """With one step an epoch the loss is fine and the weights are not: the embeddings tell."""
    wrap(optimizer=lambda real, name, groups, **named: real(name, [{**g, "peak_lr": 1e30} for g in groups], **named))
    words = ["train.warmup_epochs=0", "train.epochs=3", f"train.batch_size={batch_size}"]
    words += ["log.every_seconds=1000"]  # a few tiles are embedded after epochs whose health is not measured, too

    result = cli.pretrain(tmp_path / "run", *words)

    assert result.code == 2
    assert message in result.err
    assert "lower train.learning_rate" in result.err
    assert result.err.count("\n") == 1
    assert not list((tmp_path / "run").rglob("*.pt"))


# --- health metrics ---


def healthy(**changed: float) -> dict[str, float]:
    return {"negative_similarity": 0.1, "effective_rank": 20.0, "loss_relative": 0.8, **changed}


def test_collapse_warning_is_silent_on_healthy_metrics_and_names_each_sick_one() -> None:
    assert collapse_warning(healthy()) is None
    for sick, words in (
        ({"negative_similarity": 0.96}, "0.960"),
        ({"effective_rank": 2.5}, "only 2.5"),
        ({"loss_relative": 0.999}, "0.999 times"),
    ):
        warning = collapse_warning(healthy(**sick))
        assert warning is not None
        assert words in warning
        assert "train.batch_size" in warning  # says what to try


def test_collapse_is_warned_of_once_the_warm_up_is_over(cli: Any, tmp_path: Path) -> None:
    """At so high a temperature the loss is that of random guessing, whatever the network does."""
    words = ["train.epochs=2", "train.temperature=100", "train.warmup_epochs=1"]

    result = cli.pretrain(tmp_path / "run", *words)

    assert result.code == 0, result.err
    printed = result.out + result.err
    said = re.search(r"warning: epoch 2: the loss is (\S+) times", printed)
    assert said is not None
    assert float(said[1]) > 0.99
    assert "warning: epoch 1" not in printed


def test_health_tiles_are_held_out_of_training() -> None:
    tiles = some_tiles([0] * 60 + [1] * 40 + [-1] * 30)

    chosen = carve_health(tiles, config(health={"tiles": 20, "bank_tiles": 50}))

    assert set(chosen.train) | set(chosen.queries) == set(range(130))
    assert not set(chosen.train) & set(chosen.queries)
    assert np.bincount(tiles.labels[chosen.queries]).tolist() == [12, 8]  # stratified, labelled only
    assert len(chosen.bank) == 50
    assert set(chosen.bank) <= set(chosen.train)
    assert tiles.labels[chosen.bank].min() >= 0


def test_health_tiles_are_drawn_by_the_seed() -> None:
    labelled, bare = some_tiles([0, 1] * 40), some_tiles([0] + [-1] * 79)
    for tiles in (labelled, bare):
        drawn = [carve_health(tiles, config(health={"tiles": 16}, seed=seed)) for seed in (0, 0, 1)]
        assert drawn[0].queries.tolist() == drawn[1].queries.tolist() != drawn[2].queries.tolist()
    few = [carve_health(labelled, config(health={"tiles": 16, "bank_tiles": 20}, seed=s)) for s in (0, 1)]
    assert few[0].bank.tolist() != few[1].bank.tolist()


def test_health_metrics_are_of_the_held_out_tiles_against_the_bank() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 4, 4, 3), dtype=np.uint8)
    labels = rng.integers(0, 2, 60)
    chosen = HealthTiles(train=np.arange(12, 60), queries=np.arange(12), bank=np.arange(20, 60))
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])

    def measured(of: HealthTiles) -> dict[str, float]:
        store = place_store(images, device="cpu", budget_gb=1)
        return health_metrics(torch.nn.Flatten(), store, labels, of, mean=mean, std=std, batch_size=8, neighbours=1)

    found = measured(chosen)
    pixels = (images.transpose(0, 3, 1, 2) / 255 - mean.numpy()[:, None, None]) / std.numpy()[:, None, None]
    x = torch.from_numpy(pixels.reshape(60, -1)).float()
    assert found["effective_rank"] == pytest.approx(probe.effective_rank(x[:12]), rel=1e-4)
    nearest = [
        balanced_accuracy_score(
            labels[:12], probe.knn_predictions(x[20:], torch.from_numpy(labels[20:]), x[:12], neighbours=k)
        )
        for k in (1, 20)
    ]
    assert found["knn_balanced_accuracy"] == pytest.approx(nearest[0])
    slides = measured(replace(chosen, groups=np.array(list("aabbccddeeff"))))
    assert slides["knn_low"] < found["knn_low"] < found["knn_balanced_accuracy"] == slides["knn_balanced_accuracy"]
    assert "knn_low" not in measured(replace(chosen, groups=np.array(list("aaabbbcccddd"))))
    assert nearest[0] != nearest[1]  # so that the number of neighbours shows


def test_health_tiles_share_no_slide_with_training() -> None:
    tiles = some_tiles([0, 1] * 40, groups=[f"slide{i // 8}" for i in range(80)])

    chosen = carve_health(tiles, config(health={"tiles": 16}))

    assert tiles.groups is not None
    assert len(chosen.queries) == 16
    assert not set(tiles.groups[chosen.queries]) & set(tiles.groups[chosen.train])


def test_without_labels_all_tiles_are_trained_on() -> None:
    chosen = carve_health(some_tiles([-1] * 30), config(health={"tiles": 8}))

    assert chosen.train.tolist() == list(range(30))
    assert len(chosen.queries) == 8
    assert len(chosen.bank) == 0


def test_labels_that_cannot_be_held_out_do_not_stop_pretraining(capsys: pytest.CaptureFixture[str]) -> None:
    tiles = some_tiles([0] * 40 + [1] * 40, groups=["one"] * 40 + ["two"] * 40)

    chosen = carve_health(tiles, config(health={"tiles": 16}))

    assert len(chosen.train) == 80
    assert len(chosen.bank) == 0
    assert "no k-NN accuracy" in capsys.readouterr().out


# --- the rest ---


def test_tensorboard_has_the_scalars_of_the_log(cli: Any, tmp_path: Path, read_metrics: Any) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    result = cli.pretrain(tmp_path / "run", "log.tensorboard=true")

    assert result.code == 0, result.err
    events = accumulator.EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    (row,) = read_metrics(tmp_path / "run")
    assert set(events.Tags()["scalars"]) == KEYS - {"epoch"}
    (scalar,) = events.Scalars("loss")
    assert (scalar.step, scalar.value) == (1, pytest.approx(row["loss"]))


def test_missing_tensorboard_is_said_before_anything_is_written(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)

    result = cli.pretrain(tmp_path / "run", "log.tensorboard=true")

    assert result.code == 2
    assert "log.tensorboard" in result.err
    assert "pip install" in result.err
    assert not (tmp_path / "run").exists()


def test_deterministic_is_said_and_changes_nothing_on_a_cpu(cli: Any, tmp_path: Path) -> None:
    fixed = cli.pretrain(tmp_path / "fixed", "deterministic=true")
    assert fixed.code == 0
    assert "precision fp32, deterministic" in fixed.out
    free = cli.pretrain(tmp_path / "free")
    assert ", deterministic" not in free.out
    assert not torch.are_deterministic_algorithms_enabled()
    rows = [json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in ("fixed", "free")]
    assert rows[0]["loss"] == rows[1]["loss"]
