"""sscl data audit on planted duplicates, and splits that keep near-duplicates together."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sscl.commands import audit as command
from sscl.config import AuditConfig, DataConfig, load_config
from sscl.data import duplicates, load
from sscl.data.audit import Audit, Findings, Parts, load_parts
from sscl.data.duplicates import Pair
from sscl.data.load import load_tiles
from sscl.data.synthetic import draw_tile
from sscl.data.tiles import Tiles
from sscl.models import start
from sscl.records import read_record

SIZE_PX = 96
pytestmark = pytest.mark.usefixtures("detected_once")


@functools.cache
def picture(index: int) -> np.ndarray:
    return draw_tile(index, seed=5, size_px=SIZE_PX).image


def save(tile: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(tile).save(path, quality=80) if path.suffix == ".jpg" else Image.fromarray(tile).save(path)


@pytest.fixture(scope="module", autouse=True)
def searched_once(wrapped: Callable[..., AbstractContextManager[None]]) -> Iterator[None]:
    """Search tiles for pairs once for all tests: several audit the same ones."""
    known: dict[str, list[Pair]] = {}

    def search(real: Any, images: Any, *, embeddings: Any = None, progress: bool = False, **given: Any) -> list[Pair]:
        pixels = [
            sha256(np.ascontiguousarray(array)).hexdigest() for array in (images, embeddings) if array is not None
        ]
        key = f"{images.shape} {pixels} {given}"
        if key not in known:
            known[key] = real(images, embeddings=embeddings, progress=progress, **given)
        return list(known[key])

    with wrapped(find_pairs=search):
        yield


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and test/ of two classes, without any duplicate."""
    root = tmp_path_factory.mktemp("audit") / "clean"
    for index in range(12):
        save(picture(index), root / ("train" if index < 8 else "test") / "ab"[index % 2] / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def leaky(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with train's 0 in test again, turned and as JPEG, train's 1 as it is, and a copy within train."""
    root = tmp_path_factory.mktemp("audit") / "leaky"
    for file in clean.rglob("*.png"):
        save(np.asarray(Image.open(file)), root / file.relative_to(clean))
    save(np.ascontiguousarray(np.rot90(picture(0))), root / "test" / "a" / "turned.jpg")
    save(picture(1), root / "test" / "b" / "again.png")
    save(np.ascontiguousarray(np.fliplr(picture(2))), root / "train" / "a" / "flipped.png")
    return root


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders, to be split here: 6 originals, each with two turned copies."""
    root = tmp_path_factory.mktemp("audit") / "copies"
    for index in range(6):
        for turn in range(3):
            tile = np.ascontiguousarray(np.rot90(picture(100 + index), turn))
            save(tile, root / "ab"[index % 2] / f"{index}_{turn}.png")
    return root


def audit(cli: Any, root: Path, out: Path, *words: object) -> tuple[Any, dict[str, Any]]:
    result = cli(
        "data",
        "audit",
        f"data.root={root}",
        "data.source=folder",
        f"out={out}",
        "progress=false",
        "shown=4",
        "stretched=false",
        *words,
    )
    return result, json.loads((out / "audit.json").read_text()) if (out / "audit.json").is_file() else {}


def refused(result: Any, out: Path, *parts: str) -> None:
    assert result.code == 2, result.out
    assert len(result.err.splitlines()) == 1, result.err
    for part in parts:
        assert part in result.err
    assert not out.exists()


def names(pair: dict[str, Any]) -> set[str]:
    return {f"{pair[side]['part']}:{pair[side]['id']}" for side in ("first", "second")}


@pytest.mark.parametrize(("flags", "code"), [((), 0), (("--strict",), 1)])
def test_planted_duplicates_are_found_and_strict_sets_the_exit_code(flags, code, cli, leaky, tmp_path):
    result, report = audit(cli, leaky, tmp_path / "out", *flags)
    assert result.code == code, result.err
    assert report["leakage"] is True
    assert [names(pair) for pair in report["pairs"]] == [
        {"train:train/b/1.png", "test:test/b/again.png"},  # across splits first, then by kind
        {"train:train/a/0.png", "test:test/a/turned.jpg"},
        {"train:train/a/2.png", "train:train/a/flipped.png"},
    ]
    assert [pair["across"] for pair in report["pairs"]] == [True, True, False]
    assert [pair["kind"] for pair in report["pairs"]] == ["exact", "hash", "hash"]
    assert report["pairs"][1]["movement"] == "turned 90° counter-clockwise"
    assert report["tiles_with_near_duplicates"] == {"test": {"train": 2}}
    assert report["counts"]["clusters"] == 3
    assert "THE SPLIT LEAKS: 2 of 6 test tiles" in result.out
    assert "3 pairs (1 with identical pixels, 2 by hash, 0 by keypoints), 2 across" in result.out
    assert Image.open(tmp_path / "out" / "pairs.png").width > 500
    assert read_record(Audit, tmp_path / "out" / "audit.json", made_by="sscl data audit").verdict in result.out


def test_a_clean_set_passes_strict(cli, clean, tmp_path):
    result, report = audit(cli, clean, tmp_path / "out", "--strict")
    assert result.code == 0, result.err
    assert report["pairs"] == report["clusters"] == []
    assert not report["leakage"]
    assert "no leakage found: no test tile has a near-duplicate in train" in result.out
    assert not (tmp_path / "out" / "pairs.png").exists()
    assert "no slide or patient ids" in result.out


class ChannelMeans(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def test_embeddings_are_in_the_order_of_the_tiles_and_normalised_as_the_encoder_expects(clean, wrap, tmp_path):
    opened = start.Start(ChannelMeans(), (0.5, 0.25, 0.125), (0.5, 0.2, 0.1), [], size_px=32)
    wrap(audit_encoder=lambda *_, **__: opened)
    flat = tmp_path / "flat"
    for index in range(3):
        save(picture(50 + index), flat / f"{index}.png")
    words = [f"data.root={clean}", "data.source=folder", f"out={tmp_path}/out", "device=cpu", "progress=false"]
    config = load_config(AuditConfig, overrides=[*words, f"against=[{{source: folder, root: {flat}}}]"])
    further = command.further_sets(config)
    found = command.embed(config, further)
    parts = load_parts(config.data, further, progress=False)
    assert list(parts.tiles) == ["train", "test", "against.0"]
    shades = np.stack([parts.images[row].mean((0, 1)) / 255 for row in range(len(parts.ids))])
    expected = (shades - opened.mean) / opened.std
    assert found == pytest.approx(expected, abs=0.02)
    assert np.ptp(expected, axis=0).min() > 0.2  # else any order would do


def test_the_verdict_counts_tiles_not_pairs():
    tiles = {
        name: Tiles(np.full((count, 4, 4, 3), count, np.uint8), np.zeros(count, np.int64), ("a",), ids)
        for name, count, ids in (("train", 3, ("a", "b", "c")), ("test", 2, ("d", "e")))
    }
    across = [Pair(row, 3, "hash", 0.95, "as it is") for row in range(3)]  # one test tile, three times
    found = Findings(across, across, np.array([0, 0, 0, 0, 1]), {"test": {"train": 1}}, {}, [])
    said = command.verdict(Parts(tiles, dict.fromkeys(tiles, "root"), own=2), found)
    assert said.startswith("THE SPLIT LEAKS: 1 of 2 test tiles ")


def test_pairs_with_different_labels_are_counted(cli, clean, tmp_path):
    root = Path(shutil.copytree(clean, tmp_path / "set"))
    first = min((root / "train" / "a").iterdir())
    shutil.copy(first, root / "train" / "b" / first.with_stem("again").name)
    result, report = audit(cli, root, tmp_path / "out", "--strict")
    assert result.code == 0, result.err  # no leak: both are training tiles
    assert report["counts"]["pairs_labelled_otherwise"] == 1
    assert [pair["labelled_otherwise"] for pair in report["pairs"]] == [True]
    assert "different labels within a pair: 1 pair;" in result.out
    result, report = audit(cli, clean, tmp_path / "clean")
    assert report["counts"]["pairs_labelled_otherwise"] == 0
    assert "different labels" not in result.out


def test_blank_tiles_on_both_sides_are_no_leak(cli, clean, tmp_path):
    root = Path(shutil.copytree(clean, tmp_path / "set"))
    for part in ("train", "test"):
        save(np.full((SIZE_PX, SIZE_PX, 3), 250, np.uint8), root / part / "a" / "white.png")
    result, report = audit(cli, root, tmp_path / "out", "--strict")
    assert result.code == 0, result.out
    assert report["counts"]["flagged"]["blank"] == 2


def test_pretraining_tiles_are_compared_with_test_and_not_with_train(cli, clean, tmp_path):
    flat = tmp_path / "flat"
    save(np.ascontiguousarray(np.flipud(picture(10))), flat / "of_test.jpg")
    save(picture(3), flat / "of_train.png")
    save(picture(50), flat / "other.png")
    result, report = audit(cli, clean, tmp_path / "out", f"against=[{{source: folder, root: {flat}}}]", "--strict")
    assert result.code == 1, result.err
    assert report["tiles_with_near_duplicates"] == {"test": {"train": 0, "against.0": 1}}
    assert [(pair["across"], pair["kind"]) for pair in report["pairs"]] == [(True, "hash"), (False, "exact")]
    (flat / "of_test.jpg").unlink()
    result, _ = audit(cli, clean, tmp_path / "other", f"against=[{{source: folder, root: {flat}}}]", "--strict")
    assert result.code == 0, result.out


def test_the_sets_of_a_run_are_compared_with_test(cli, clean, tiles, pretrained, tmp_path, wrap):
    searched = []
    wrap(find_pairs=lambda real, images, **_: searched.append(len(images)) or [])  # as of any other set
    result, report = audit(cli, clean, tmp_path / "out", f"run={pretrained}")
    assert result.code == 0, result.err
    assert report["parts"]["run.0"]["root"] == str(tiles)
    assert report["parts"]["run.0"]["tiles"] == 32
    assert searched == [12 + 32]


def test_an_encoder_lists_tiles_that_are_only_similar(cli, clean, pretrained, tmp_path):
    words = [f"encoder.weights={pretrained}", "min_cosine=0.5", "device=cpu", "--strict"]
    result, report = audit(cli, clean, tmp_path / "out", *words)
    assert result.code == 0, result.err  # similar is not the same
    assert report["counts"]["pairs"]["embedding"] > 0
    assert report["counts"]["clusters"] == 0
    assert "by embedding only, not counted" in result.out


def test_groups_on_both_sides_are_a_leak(cli, clean, tmp_path):
    ids = [str(file.relative_to(clean)) for file in clean.rglob("*.png")]
    rows = [f"{name},{'both' if name.endswith(('/1.png', '/11.png')) else name}" for name in ids]
    (tmp_path / "groups.csv").write_text("path,group\n" + "\n".join(rows) + "\n")
    result, report = audit(cli, clean, tmp_path / "out", f"data.groups_csv={tmp_path}/groups.csv", "--strict")
    assert result.code == 1
    assert report["straddling_groups"] == {"both": {"train": 1, "test": 1}}
    assert "THE SPLIT LEAKS: 1 group " in result.out


def test_one_tile_and_no_label(cli, tmp_path):
    save(picture(0), tmp_path / "one" / "tile.png")
    result, report = audit(cli, tmp_path / "one", tmp_path / "out", "--strict")
    assert result.code == 0, result.err
    assert report["counts"]["tiles"] == 1
    assert "no validation or test part" in result.out
    save(np.full((SIZE_PX, SIZE_PX, 3), 250, np.uint8), tmp_path / "one" / "white.png")
    save(np.full((SIZE_PX, SIZE_PX, 3), 250, np.uint8), tmp_path / "one" / "white2.png")
    result, report = audit(cli, tmp_path / "one", tmp_path / "again")
    assert report["counts"]["flagged"] == {"blank": 2}
    assert report["counts"]["pairs"]["exact"] == 0
    assert "blank: 2 tiles (2 in" in result.out
    assert (tmp_path / "again" / "flagged.png").is_file()
    assert "outliers: 2 blank" in result.out


def test_bad_input_is_refused_and_nothing_written(cli, clean, tmp_path):
    out = tmp_path / "out"
    refused(audit(cli, tmp_path / "none", out)[0], out, "no such folder")
    result, _ = audit(cli, clean, out, f"against=[{{source: folder, root: {tmp_path}/none}}]")
    refused(result, out, "against.0.root", "no such folder")
    refused(audit(cli, clean, out, f"run={tmp_path}/none")[0], out, "no such run folder")
    refused(audit(cli, clean, out, "neighbours=0")[0], out, "neighbours: ", "got 0")
    (out / "mine").mkdir(parents=True)
    result, _ = audit(cli, clean, out, "--overwrite")
    assert (result.code, (out / "mine").is_dir()) == (2, True)


# --- data.group_near_duplicates ---


def of_folder(root: Path, **keys: Any) -> DataConfig:
    return DataConfig(source="folder", root=str(root), size_px=32, group_near_duplicates=True, **keys)


def original(name: str) -> str:
    return name.split("/")[-1].split("_")[0]


@pytest.mark.parametrize("seed", range(3))
def test_no_cluster_is_split(seed, copies):
    data = of_folder(copies, split_seed=seed, test_fraction=0.3)
    train, test = (load_tiles(data, split=split, progress=False) for split in ("train", "test"))
    assert len(train) + len(test) == 18
    assert {original(name) for name in train.ids} & {original(name) for name in test.ids} == set()
    assert train.groups is not None
    for name, group in zip(train.ids, train.groups, strict=True):
        assert original(name) == original(str(group))
    plain = data.model_copy(update={"group_near_duplicates": False})
    mixed = [load_tiles(plain, split=split, progress=False) for split in ("train", "test")]
    assert {original(name) for name in mixed[0].ids} & {original(name) for name in mixed[1].ids}
    everything = load_tiles(data, split="all", progress=False)
    assert "6 clusters" in load.describe_tiles(data, everything, split="all")
    apart = everything.subset(np.unique(everything.groups, return_index=True)[1])
    alone = load.describe_tiles(data, apart, split="all", account=False).splitlines()[-1]
    assert alone.endswith(f"stay together: {len(apart)} single tiles")


def test_given_groups_and_clusters_are_joined(copies, tmp_path):
    ids = sorted(str(file.relative_to(copies)) for file in copies.rglob("*.png"))
    slide = {name: "slide" if original(name) in "02" and "_0" in name else name for name in ids}
    (tmp_path / "groups.csv").write_text("path,group\n" + "\n".join(f"{k},{v}" for k, v in slide.items()) + "\n")
    tiles = load_tiles(of_folder(copies, groups_csv=str(tmp_path / "groups.csv")), split="all", progress=False)
    assert tiles.groups is not None
    joined = {original(name) for name, group in zip(tiles.ids, tiles.groups, strict=True) if group == tiles.groups[0]}
    assert joined == {"0", "2"}  # one slide holds a tile of each, and their copies follow
    assert len(np.unique(tiles.groups)) == 5


def test_the_search_is_done_once_whatever_the_size_seed_and_stain(copies, tmp_path, wrap):
    calls = []
    wrap(find_pairs=lambda search, *a, **k: calls.append(1) or search(*a, **k))
    cache = str(tmp_path / "cache")
    first = load_tiles(of_folder(copies, cache_dir=cache), split="train", progress=False)
    for keys in ({"split_seed": 4}, {"stain": "reinhard"}, {}):
        data = of_folder(copies, cache_dir=cache, **keys).model_copy(update={"size_px": 48})
        again = load_tiles(data, split="train", progress=False)
    assert len(calls) == 1
    assert again.ids == first.ids


def test_mhist_splits_made_here_keep_clusters_and_given_ones_stay(tiles, tmp_path, wrap):
    def planted(real: Any, images: Any, **_: Any) -> list[duplicates.Pair]:
        return [duplicates.Pair(i, i + 1, "exact", 1.0, "as it is") for i in range(0, len(images), 2)]

    wrap(find_pairs=planted)
    cache = str(tmp_path / "cache")  # of its own: what was found there is kept
    data = DataConfig(source="synthetic", root=str(tiles), size_px=32, group_near_duplicates=True, cache_dir=cache)
    whole = load_tiles(data, split="all", progress=False)
    balanced = data.model_copy(update={"protocol": "paper_balanced"})
    train, test = (load_tiles(balanced, split=split, progress=False) for split in ("train", "test"))
    assert train.groups is not None
    assert test.groups is not None
    assert set(train.groups) & set(test.groups) == set()
    position = {name: row for row, name in enumerate(whole.ids)}
    assert {position[name] // 2 for name in train.ids} & {position[name] // 2 for name in test.ids} == set()
    plain = data.model_copy(update={"group_near_duplicates": False})
    assert load_tiles(data, split="test", progress=False).ids == load_tiles(plain, split="test", progress=False).ids


def test_the_audit_of_a_grouped_split_finds_no_leak(cli, copies, tmp_path):
    result, report = audit(cli, copies, tmp_path / "before", "--strict")
    assert result.code == 1
    assert "data.group_near_duplicates=true keeps near-duplicates on one side" in result.out
    result, report = audit(cli, copies, tmp_path / "after", "data.group_near_duplicates=true", "--strict")
    assert result.code == 0, result.out
    assert report["counts"]["clusters"] == 6
    assert "no slide or patient ids" in result.out  # clusters are none
