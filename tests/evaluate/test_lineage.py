"""What training has seen of the tiles evaluated, and which slides are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sscl.config import DataConfig, FinetuneConfig, SourceConfig, plain
from sscl.data.load import merge_data
from sscl.data.tiles import Tiles
from sscl.evaluate.lineage import NO_SLIDE_IDS, Choice, caveats, choose, folder_of, seen_in_training
from sscl.models.checkpoint import Checkpoint, build_checkpoint


def test_another_way_of_splitting_than_training_s_is_warned_of() -> None:
    trained = DataConfig(root="/data/tiles", source="folder", split_seed=0)

    def note(split: str, **changed: Any) -> str | None:
        data = DataConfig.model_validate({**plain(trained), **changed})
        return seen_in_training(data, trained, split=split)

    assert note("test") is None
    assert note("test", root="/data/other", split_seed=1) is None
    assert note("all", root="/data/other") is None
    assert "training tiles" in str(note("all"))
    assert "data.split_seed differs" in str(note("test", split_seed=1))
    assert "data.protocol differs" in str(note("test", protocol="paper_balanced"))


@pytest.mark.parametrize(("labels", "warned"), [(False, True), (True, False)])
def test_pretraining_on_a_set_that_it_used_whole_is_warned_of(tmp_path: Path, labels: bool, warned: bool) -> None:
    (tmp_path / "A").mkdir()
    data = DataConfig(root=str(tmp_path))
    pretrained = SourceConfig(root=str(tmp_path), labels=labels)
    note = seen_in_training(data, pretrained, split="test")
    assert ("pretraining took all tiles" in str(note)) is warned
    (tmp_path / "Train").mkdir()
    assert seen_in_training(data, pretrained, split="test") is None


def test_nothing_but_the_file_decides_the_split_of_an_npz_file() -> None:
    """split_seed then draws a part of the training tiles for pretraining (data.tiles)."""
    data = DataConfig(root="/data/tiles.npz", source="pathmnist")
    assert seen_in_training(data, data.model_copy(update={"split_seed": 1}), split="test") is None


@pytest.mark.parametrize(
    ("trained", "warned"),
    [
        ("tiles", None),
        ("tiles/train", None),
        ("tiles/test", "overlaps"),
        ("tiles/images", "overlaps"),
        (".", "overlaps"),
    ],
)
def test_training_on_a_folder_that_overlaps_the_test_tiles_is_warned_of(
    tmp_path: Path, trained: str, warned: Any
) -> None:
    data = DataConfig(root=str(tmp_path / "tiles"), source="folder")
    section = data.model_copy(update={"root": str(tmp_path / trained)})
    note = seen_in_training(data, section, split="test")
    assert note is None if warned is None else warned in str(note)


def _trained(data: DataConfig, fingerprint: str = "") -> Checkpoint:
    return build_checkpoint(
        FinetuneConfig(run="r", data=data),
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        pooling="mean",
        classes=("A", "B"),
        lineage=(),
        fingerprint=fingerprint,
        precision="fp32",
    )


def test_caveats_name_shared_slides_changed_tiles_and_the_pretraining(wrap: Any) -> None:
    def tiles(groups: list[str] | None, shade: int = 0) -> Tiles:
        images = np.full((4, 16, 16, 3), shade, dtype=np.uint8)
        ids = tuple(f"{shade}_{i}" for i in range(4))
        array = None if groups is None else np.array(groups)
        return Tiles(images=images, labels=np.array([0, 1, 0, 1]), classes=("A", "B"), ids=ids, groups=array)

    data = DataConfig(root="/data/tiles", source="folder")
    train, test = tiles(["a", "a", "b", "b"]), tiles(["b", "c", "c", "d"], 1)
    trained = _trained(data, train.fingerprint)
    wrap(lineage_tiles=lambda *_, **__: train)

    def notes(shown: Tiles, **changed: Any) -> str:
        return " | ".join(caveats(Choice(data, "test", external=False), shown, replace(trained, **changed)))

    assert "1 of the slides or patients are in both train and test (such as b)" in notes(test)
    assert "in both train and test (" not in notes(tiles(["c", "c", "d", "d"], 1))
    assert NO_SLIDE_IDS in notes(tiles(None, 1))
    given, data = data, data.model_copy(update={"group_near_duplicates": True})  # the groups are clusters then
    assert NO_SLIDE_IDS in notes(test)
    assert "1 of the clusters of near-duplicates are in both train and test (such as b)" in notes(test)
    data = data.model_copy(update={"groups_csv": "groups.csv"})
    assert NO_SLIDE_IDS not in notes(test)
    assert "1 of the slides or patients, joined by near-duplicates are" in notes(test)
    data = given
    assert "training tiles have changed" in notes(test, fingerprint="of other files")
    assert "training tiles have changed" not in notes(test)
    pretrained = data.model_copy(update={"split_seed": 5})
    assert "data.split_seed differs" in notes(test, lineage=(pretrained,))
    reviewed = data.model_copy(update={"reviews": ("gone.csv",)})
    assert "an earlier training took reviewed tiles" in notes(test, lineage=(reviewed,))
    assert "an earlier training" not in notes(test, lineage=(data,))


def test_a_set_without_a_test_split_is_not_evaluated_on_one(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    data = DataConfig(root=str(tmp_path), source="folder")
    trained = _trained(data)
    for wanted in (None, "test"):
        with pytest.raises(ValueError, match="has no test split; give other tiles"):
            choose(trained, {}, split=wanted)
    assert choose(trained, {}, split="all").split == "all"


def test_training_tiles_that_are_gone_cannot_be_compared(tmp_path: Path) -> None:
    trained = _trained(DataConfig(root=str(tmp_path / "gone"), source="folder"))
    images = np.zeros((2, 16, 16, 3), dtype=np.uint8)
    tiles = Tiles(images=images, labels=np.array([0, 1]), classes=("A", "B"), ids=("a", "b"))
    choice = Choice(DataConfig(root=str(tmp_path / "here"), source="folder"), "all", external=True)
    assert "was not checked" in " ".join(caveats(choice, tiles, trained))


def test_reviews_take_the_place_of_annotations_and_have_a_folder_of_their_own(tmp_path: Path) -> None:
    trained = DataConfig(root=str(tmp_path), source="slides", annotations="areas")
    assert merge_data(trained, {"reviews": ["a.csv"]}).annotations is None
    reviewed = DataConfig(root=str(tmp_path), source="slides", reviews=("a.csv",))
    assert merge_data(reviewed, {"annotations": "areas"}).reviews == ()
    there = folder_of(tmp_path, "eval", {"reviews": ["a.csv"]}, None)
    assert there == Choice(reviewed, "test", external=False, reviewed=True).folder(tmp_path, "eval")
    assert there.name == "eval_reviewed_test"
