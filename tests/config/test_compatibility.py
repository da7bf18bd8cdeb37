from __future__ import annotations

from pathlib import Path

import pytest

from sscl.config import FinetuneConfig, PretrainConfig, changed_keys, load_config

# Settings that change nothing that is learned, each with another value.
FREE = [
    "run=other",
    "device=cuda:1",
    "data.cache_dir=elsewhere",
    "data.device_budget_gb=0",
    "data.published=false",
    "data.mpp=0.5",
    "train.timeout_minutes=1",
    "log.tensorboard=true",
    "log.wandb=true",
    "log.wandb_project=other",
    "log.wandb_name=other",
    "log.wandb_mode=offline",
    "progress=false",
]
FREE_OF_PRETRAIN = ["train.stop_after_epoch=1", "train.profile=true"]


def pretraining(*overrides: str) -> PretrainConfig:
    return load_config(PretrainConfig, overrides=["run=r", "data.root=d", *overrides])


def two_sources(*overrides: str) -> PretrainConfig:
    return load_config(PretrainConfig, overrides=["run=r", "data=[{root: a}, {root: b}]", *overrides])


def finetuning(*overrides: str) -> FinetuneConfig:
    return load_config(FinetuneConfig, overrides=["run=r", "data.root=d", *overrides])


def test_free_settings_are_no_change():
    for override in [*FREE, *FREE_OF_PRETRAIN]:
        assert pretraining(override) != pretraining()
        assert changed_keys(pretraining(), pretraining(override)) == []
    for override in FREE:
        assert finetuning(override) != finetuning()
        assert changed_keys(finetuning(), finetuning(override)) == []
    assert changed_keys(two_sources(), two_sources("data.0.cache_dir=elsewhere")) == []


@pytest.mark.parametrize(
    ("override", "change"),
    [
        ("train.epochs=7", "train.epochs=100 (now 7)"),
        ("augment.crop_scale=[0.5,1]", "augment.crop_scale=[0.2, 1] (now [0.5, 1])"),
        ("model.weights=imagenet", "model.weights=null (now 'imagenet')"),
        ("data.tiles=5", "data.tiles=null (now 5)"),
        ("seed=1", "seed=0 (now 1)"),
    ],
)
def test_a_setting_that_decides_is_named_with_both_values(override, change):
    assert [str(found) for found in changed_keys(pretraining(), pretraining(override))] == [change]


def test_sources_are_compared_place_by_place():
    keys = [
        change.key for change in changed_keys(two_sources(), two_sources("data.1.root=c", "data.0.protocol=official"))
    ]
    assert keys == ["data.1.root"]
    (change,) = changed_keys(two_sources(), pretraining())
    assert (change.key, "2" in change.before, "1" in change.now) == ("data", True, True)


def test_paths_are_equal_where_they_name_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("d")
    same = [f"data.root={tmp_path}/d", "data.root=./x/../d", "data.root=link"]
    assert [changed_keys(pretraining(), pretraining(word)) for word in same] == [[], [], []]
    weights = finetuning("model.weights=runs/a", "data.groups_csv=g.csv")
    absolute = finetuning(f"model.weights={tmp_path}/runs/a/", f"data.groups_csv={tmp_path}/g.csv")
    assert changed_keys(weights, absolute) == []
    # The word is no file, although there may be one of that name.
    (change,) = changed_keys(finetuning("model.weights=imagenet"), finetuning("model.weights=./imagenet"))
    assert change.key == "model.weights"
