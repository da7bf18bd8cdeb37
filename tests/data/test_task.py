"""What is no task for a classifier is refused, and what is doubtful is said, with the names of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sscl.config import DataConfig, FinetuneConfig
from sscl.data.rows import Rows
from sscl.data.task import check_task, check_two_classes, equal_tiles, outcome_warnings, settings_warnings, shared_tiles
from sscl.data.tiles import Tiles

DATA = DataConfig(root="/data/set", source="folder")


def tiles(labels: list[int], *, first: int = 0, classes: tuple[str, ...] = ("0", "1", "10")) -> Tiles:
    """Tiles of noise, no two alike; tile `n` of all sets has the same pixels."""
    numbers = range(first, first + len(labels))
    images = np.stack([np.random.default_rng(n).integers(0, 255, (16, 16, 3), dtype=np.uint8) for n in numbers])
    return Tiles(images=images, labels=np.array(labels), classes=classes, ids=tuple(f"t{n}" for n in numbers))


def test_fewer_than_two_classes_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^data\.root: /data/set has one class \(images\).*a folder for each class"):
        check_two_classes(tiles([0, 0], classes=("images",)), data=DATA)
    with pytest.raises(ValueError, match="all training tiles are of 1, none of 0 and 10"):
        check_task({"training": tiles([1, 1])}, data=DATA)
    with pytest.raises(ValueError, match="no labels"):
        check_two_classes(tiles([-1, -1]), data=DATA)


def test_a_part_without_a_class_is_told_by_its_name() -> None:
    found = check_task({"training": tiles([0, 1, 2]), "validation": tiles([0, 1], first=9)}, data=DATA)
    assert [text.split(":")[0] for text in found] == ["no validation tile of 10"]


def test_copies_in_two_splits_are_counted_and_half_of_a_split_is_refused() -> None:
    train = tiles([0, 1, 2, 0])
    (warning,) = check_task({"training": train, "test": tiles([0, 1, 2, 0, 1], first=2)}, data=DATA)
    assert "2 of 5 test tiles are training tiles too" in warning
    assert "such as t2, equal to t2" in warning
    with pytest.raises(ValueError, match=r"2 of 4 validation tiles.*group_near_duplicates=true"):
        check_task({"training": train, "validation": tiles([0, 1, 2, 0], first=2)}, data=DATA, made_here={"validation"})
    assert str(shared_tiles(train, tiles([0], first=3), name="evaluated")).startswith("1 of 1 evaluated tile ")
    assert shared_tiles(train, tiles([0], first=4), name="evaluated") is None


def test_a_picture_in_two_classes_is_told() -> None:
    train = tiles([0, 1, 2, 0, 1, 2])
    images = train.images.copy()
    images[4] = images[0]
    twice = Tiles(images=images, labels=train.labels, classes=train.classes, ids=train.ids)
    (warning,) = check_task({"training": twice}, data=DATA)
    assert warning.startswith("2 of 6 training tiles are in two classes")
    images[3] = images[1]
    with pytest.raises(ValueError, match="4 of 6 training tiles are in two classes"):
        check_task({"training": twice}, data=DATA)


def test_equal_tiles_are_those_of_a_comparison_of_all_pairs(tmp_path: Path) -> None:
    """Also where pixels are on disk, and not where a tile is of one colour."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (12, 8, 8, 3), dtype=np.uint8)
    images[3] = images[7] = images[1]
    images[5] = images[2]
    images[5, 0, 0] ^= 1
    images[9:11] = 200
    np.save(tmp_path / "tiles.npy", images)
    stored = np.load(tmp_path / "tiles.npy", mmap_mode="r")
    for sets in ([images[:6], images[6:]], [stored[:6], Rows([stored]).select(np.arange(6, 12))]):
        assert equal_tiles(sets) == [[(0, 1), (0, 3), (1, 1)]]


@pytest.mark.parametrize(
    ("train", "model", "keys"),
    [
        ({"freeze_encoder": True}, {}, ["train.freeze_encoder"]),
        ({"freeze_encoder": True}, {"weights": "imagenet"}, []),
        ({"loss": "weighted_focal", "balance": "draws"}, {}, ["train.loss=weighted_focal"]),
        ({"loss": "weighted_cross_entropy", "balance": "down"}, {}, ["train.loss=weighted_cross_entropy"]),
        ({"loss": "weighted_cross_entropy"}, {}, []),
        ({"balance": "draws"}, {}, []),
    ],
)
def test_settings_that_do_not_go_together_are_told(train: Any, model: Any, keys: list[str]) -> None:
    config = FinetuneConfig(run="r", data=DATA, train=train, model=model)
    assert [text.split()[0] for text in settings_warnings(config)] == keys


def test_a_constant_answer_and_a_split_of_one_class_are_told() -> None:
    truth, other = np.array([0, 1, 1]), np.array([1, 1, 1])
    assert outcome_warnings(truth, truth, ("A", "B")) == []
    assert "calls every tile B" in outcome_warnings(truth, other, ("A", "B"))[0]
    assert outcome_warnings(other, truth, ("A", "B"))[0].startswith("every tile is of B")


@pytest.mark.parametrize("key", ["annotations", "reviews"])
def test_labels_of_people_are_named_where_they_are_of_one_class(key: str) -> None:
    labels: dict[str, Any] = {"annotations": "areas"} if key == "annotations" else {"reviews": ("a.csv",)}
    data = DataConfig(root="cohort", source="slides", **labels)
    with pytest.raises(ValueError, match=f"^data.{key}: "):
        check_two_classes(tiles([0, 0], classes=("HP",)), data=data)
