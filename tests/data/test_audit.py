"""Pairs across splits and groups on both sides."""

from __future__ import annotations

import numpy as np

from sscl.data import audit
from sscl.data.duplicates import Pair
from sscl.data.synthetic import draw_tile
from sscl.data.tiles import Tiles

PARTS = np.array(["train"] * 4 + ["validation"] * 2 + ["test"] * 3 + ["against.0"] * 2)


def pair(first: int, second: int, kind: str = "hash") -> Pair:
    return Pair(first, second, kind, 0.95, "as it is")


def tiles_of(groups: list[str] | None, *, first: int = 0, count: int = 3) -> Tiles:
    return Tiles(
        images=np.zeros((count, 4, 4, 3), np.uint8),
        labels=np.zeros(count, np.int64),
        classes=("a",),
        ids=tuple(str(first + i) for i in range(count)),
        groups=None if groups is None else np.array(groups),
    )


def test_pairs_across_need_a_held_out_tile_and_more_than_likeness():
    across = [pair(0, 6), pair(0, 4), pair(5, 8), pair(7, 10), pair(4, 9)]
    within = [pair(0, 1), pair(6, 7), pair(2, 9), pair(9, 10), pair(1, 7, "embedding")]
    found = audit.crossing([*across, *within], PARTS)
    assert found == across


def test_tiles_with_near_duplicates_are_counted_through_chains():
    clusters = np.array([0, 1, 2, 3, 4, 5, 0, 0, 6, 5, 7])
    found = audit.tiles_with_near_duplicates(clusters, PARTS)
    assert found == {
        "validation": {"train": 0, "test": 0, "against.0": 1},
        "test": {"train": 2, "validation": 0, "against.0": 0},
    }


def test_straddling_groups_are_those_of_several_parts():
    parts = {"train": tiles_of(["a", "a", "b"]), "test": tiles_of(["b", "c", "c"], first=3)}
    assert audit.straddling_groups(parts) == {"b": {"train": 1, "test": 1}}
    assert audit.straddling_groups({"train": tiles_of(None), "test": tiles_of(None)}) == {}


def parts_of(images: dict[str, np.ndarray], *, own: int, labels: dict[str, list[int]] | None = None) -> audit.Parts:
    tiles = {
        name: Tiles(
            images=pixels,
            labels=np.array(labels[name] if labels else [0] * len(pixels), np.int64),
            classes=("a", "b"),
            ids=tuple(f"{name}{row}" for row in range(len(pixels))),
        )
        for name, pixels in images.items()
    }
    return audit.Parts(tiles, dict.fromkeys(tiles, "root"), own=own)


def test_outliers_of_further_sets_are_found_within_their_own_set():
    images = np.stack([draw_tile(index, seed=5, size_px=96).image[:64, :64] for index in range(24)])
    images[5] = 243
    further = images[12:, ..., [1, 2, 0]].copy()  # all of another stain, so that none stands out
    further[3] = 243
    parts = parts_of({"train": images[:8], "test": images[8:12], "against.0": further}, own=2)
    found = audit.outliers_of(parts, progress=False)
    assert [(outlier.kind, parts.place(outlier.row).model_dump()) for outlier in found] == [
        ("blank", {"part": "train", "id": "train5"}),
        ("blank", {"part": "against.0", "id": "against.03"}),
    ]


def test_labels_differ_only_between_two_labelled_tiles():
    parts = parts_of({"all": np.zeros((4, 4, 4, 3), np.uint8)}, own=1, labels={"all": [0, 1, 0, -1]})
    assert [parts.labels_differ(pair(0, other)) for other in (1, 2, 3)] == [True, False, False]
