from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from damaged_levels import damaged
from slide_cohort import LABELS, NAMES, SIZE, TILES, draw, draw_all, level_of, make_index, truth
from sscl.config import DataConfig, SourceConfig, validate
from sscl.data.load import check_embeddable, load_tiles, merge_data, training_slides
from sscl.data.slide_set import load_slides, quickhashes
from sscl.data.tiles import Tiles
from sscl.evaluate.lineage import shared_slides
from sscl.slides.index import Labels


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven slides of 64 tiles of 32 px, two pairs of them of one name; not to be changed."""
    return draw_all(tmp_path_factory.mktemp("cohort") / "slides")


@pytest.fixture(scope="module")
def index(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of them, and of one that failed; not to be changed."""
    return make_index(tmp_path_factory.mktemp("cohort") / "index", slides, [*NAMES, "b/lost.svs"])


def load(root: Path, **keys: Any) -> Tiles:
    return load_slides(root, **{"split": "all", "keep": "slides", **keys})


@pytest.mark.parametrize("keep", ["slides", "cache"])
def test_tiles_are_those_of_the_slides(index: Path, slides: Path, tmp_path: Path, keep: Any) -> None:
    tiles = load(index, keep=keep, cache_dir=tmp_path / "cache")
    assert tiles.images.shape == (len(NAMES) * TILES, SIZE, SIZE, 3)
    assert tiles.class_counts() == {"HP": 4 * TILES, "SSA": 3 * TILES}
    pixels = np.asarray(tiles.images)
    for name in NAMES:
        whole = truth(slides / name)
        for row in [i for i, tile in enumerate(tiles.ids) if tile.startswith(f"{name}/")][::7]:
            x, y = map(int, tiles.ids[row].rsplit("/", 1)[1].split("_"))
            np.testing.assert_array_equal(pixels[row], whole[y : y + SIZE, x : x + SIZE])
    assert tiles.groups is not None
    assert set(tiles.groups.tolist()) == {"p1", "p2", "p3", "p4", "b/three.svs", "b/two.svs"}


def test_streamed_or_cached_the_set_is_the_same(index: Path, tmp_path: Path) -> None:
    """T26."""
    found = [load(index, keep=keep, cache_dir=tmp_path) for keep in ("slides", "cache", "cache")]
    assert len({tiles.fingerprint for tiles in found}) == 1
    rows = np.random.default_rng(0).permutation(len(found[0]))
    for tiles in found[1:]:
        assert tiles.ids[:9] == found[0].ids[:9]
        np.testing.assert_array_equal(tiles.images[rows], found[0].images[rows])
    assert len(list(tmp_path.glob("tiles-*.npy"))) == 1


@pytest.mark.parametrize("seed", range(3))
def test_slides_of_a_patient_stay_on_one_side(index: Path, seed: int) -> None:
    """T28."""
    train, test = (load(index, split=split, seed=seed, test_fraction=0.3) for split in ("train", "test"))
    assert train.groups is not None
    assert test.groups is not None
    assert not set(train.groups.tolist()) & set(test.groups.tolist())
    assert not quickhashes(train).keys() & quickhashes(test).keys()
    assert len(train) + len(test) == len(NAMES) * TILES
    assert set(train.labels) == set(test.labels) == {0, 1}
    assert test.account is not None
    line = test.account.line("test")
    assert all(words in line for words in ("7 slides", "4 patients", "1 slide failed", "weak label"))


def test_splits_of_the_index_are_kept(slides: Path, tmp_path: Path) -> None:
    split = dict(zip(NAMES, ["train", "validation", "test", "train", "train", "test", "validation"], strict=True))
    labels = {name: Labels(label=LABELS[name].label, split=part) for name, part in split.items()}  # type: ignore[arg-type]
    index = make_index(tmp_path / "index", slides, labels=labels)
    for part in ("train", "validation", "test"):
        tiles = load(index, split=part)
        assert set(quickhashes(tiles).values()) == {name for name, of in split.items() if of == part}
        assert len(tiles) == TILES * sum(of == part for of in split.values())
    whole = load_tiles(SourceConfig(root=str(index), keep="slides"), split="train", progress=False)
    assert len(whole) == 3 * TILES
    assert whole.classes == ()

    labels["a/two.svs"] = Labels(label="HP")
    with pytest.raises(ValueError, match=r"a/two\.svs"):
        load(make_index(tmp_path / "other", slides, labels=labels))


def test_slides_without_a_label_are_for_training(slides: Path, tmp_path: Path) -> None:
    labels = {**LABELS, "a/two.svs": Labels(), "b/two.svs": Labels(label="SSA", patient="p9")}
    index = make_index(tmp_path / "index", slides, labels=labels)
    train, test = (load(index, split=split, test_fraction=0.4) for split in ("train", "test"))
    assert (train.labels == -1).sum() == TILES
    assert (test.labels >= 0).all()
    with pytest.raises(ValueError, match="no test split"):
        load(make_index(tmp_path / "none", slides, labels={}), split="test")
    one = {name: Labels(label=of.label, patient="p" if of.label == "HP" else None) for name, of in LABELS.items()}
    with pytest.raises(ValueError, match="one patient or slide"):
        load(make_index(tmp_path / "one", slides, labels=one), split="train")


def test_an_index_is_detected_and_gives_the_scale(index: Path, tmp_path: Path) -> None:
    data = DataConfig(root=str(index))
    assert (data.source, data.size_px, data.mpp) == ("slides", SIZE, 0.5)
    for key, value in (("size_px", 64), ("mpp", 1.0), ("groups_csv", "a.csv"), ("group_near_duplicates", True)):
        with pytest.raises(ValueError, match=key):
            validate(DataConfig, {"root": str(index), key: value}, source="here")
    with pytest.raises(ValueError, match="tiles_per_slide"):
        validate(SourceConfig, {"root": str(tmp_path), "tiles_per_slide": 3}, source="here")
    with pytest.raises(ValueError, match="64 are wanted"):
        load(index, size_px=64)


def test_some_tiles_of_each_slide_are_taken(index: Path, tmp_path: Path) -> None:
    data = DataConfig(root=str(index), keep="slides", tiles_per_slide=5)
    parts = {part: load_tiles(data, split=part, progress=False) for part in ("train", "test")}
    whole = {part: load(index, split=part) for part in parts}
    for part, tiles in parts.items():
        slides, often = np.unique([tile.rsplit("/", 1)[0] for tile in tiles.ids], return_counts=True)
        assert set(slides) == set(quickhashes(whole[part]).values())
        assert set(often) == {5}
        assert set(tiles.ids) < set(whole[part].ids)
    assert list(load_tiles(data, split="test", progress=False).ids) == list(parts["test"].ids)
    # Keys of one set do not hold for another.
    assert merge_data(data, {"root": str(tmp_path)}).tiles_per_slide is None
    folder = DataConfig(root=str(tmp_path), groups_csv="a.csv", group_near_duplicates=True, mpp=2.0)
    merged = merge_data(folder.model_copy(update={"size_px": SIZE}), {"root": str(index)})
    assert (merged.source, merged.groups_csv, merged.mpp) == ("slides", None, 0.5)


def test_what_reads_all_tiles_has_its_limits(index: Path, number: Any, tmp_path: Path) -> None:
    data = DataConfig(root=str(index), cache_dir=str(tmp_path))
    tiles = load_tiles(data, split="all", progress=False)
    number(embedded_tiles=len(tiles) - 1, kept_bytes=tiles.images.nbytes - 1)
    with pytest.raises(ValueError, match=r"data\.root: .*448 tiles.*data\.tiles_per_slide=200"):
        check_embeddable(data, tiles, key="data")
    with pytest.raises(ValueError, match=r"data\.stain"):
        load_tiles(data.model_copy(update={"stain": "reinhard"}), split="all", progress=False)
    for folder, said in ((tmp_path, "cached ("), (tmp_path / "other", "read from the slides")):  # there already
        again = load_tiles(data.model_copy(update={"cache_dir": str(folder)}), split="all", progress=False)
        assert again.account is not None
        assert said in " ".join(again.account.line("all").split())
        assert again.fingerprint == tiles.fingerprint


def test_slides_that_moved_changed_or_are_gone_are_named(tmp_path: Path) -> None:
    """T19."""
    names = NAMES[:3]
    slides, there = tmp_path / "slides", tmp_path / "there"
    for seed, name in enumerate(names):
        draw(slides / name, seed)
    index = make_index(tmp_path / "index", slides, names)
    before = load(index)
    pixels = before.images[:5]
    shutil.move(slides, there)
    with pytest.raises(FileNotFoundError, match=r"3 of 3 slides are missing.*data\.slides_root"):
        load(index)
    with pytest.raises(FileNotFoundError, match=r"slides_root: .*nowhere"):
        load(index, slides_root=tmp_path / "nowhere")
    os.utime(there / names[0])  # copied, perhaps; its content is the same
    moved = load(index, slides_root=there)
    assert moved.fingerprint == before.fingerprint
    np.testing.assert_array_equal(moved.images[:5], pixels)
    draw(there / names[1], 99)
    with pytest.raises(ValueError, match=r"a/three\.svs: has changed"):
        load(index, slides_root=there)
    (there / names[1]).write_bytes(b"no slide")
    with pytest.raises(ValueError, match=r"a/three\.svs: "):
        load(index, slides_root=there)
    (there / names[1]).unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 slides are missing.*a/three\.svs"):
        load(index, slides_root=there)
    with pytest.raises(FileNotFoundError, match="no index"):
        load(there)


@pytest.mark.parametrize("keep", ["slides", "cache"])
def test_a_damaged_tile_of_pretraining_is_the_next_one(tmp_path: Path, keep: Any) -> None:
    """T16."""
    bad = 9  # the second tile of the second row
    draw(tmp_path / "slides" / "x.svs", 0, level=damaged(level_of(0), 1, 1))
    draw(tmp_path / "slides" / "y.svs", 1)
    index = make_index(tmp_path / "index", tmp_path / "slides", ["x.svs", "y.svs"], {})
    found = {"keep": keep, "cache_dir": tmp_path / "cache", "replace_damaged": True}
    tiles = load(index, **found)
    pixels = np.asarray(tiles.images)
    np.testing.assert_array_equal(pixels[bad], pixels[bad + 1])
    np.testing.assert_array_equal(pixels[[0, 8, 10, 63]], [truth_of(tmp_path, row) for row in (0, 8, 10, 63)])
    assert [note for note in tiles.images.notes() if "1 damaged tile of 1 slide" in note and "x.svs/32_32" in note]  # type: ignore[union-attr]
    assert load(index, keep=keep, cache_dir=tmp_path / "cache").fingerprint == tiles.fingerprint

    strict = load(index, keep=keep, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(strict.images[:bad], pixels[:bad])
    with pytest.raises(ValueError, match=r"x\.svs: .* at x=32, y=32"):
        strict.images[[bad]]
    np.testing.assert_array_equal(strict.images[bad + 1 :], pixels[bad + 1 :])
    draw(tmp_path / "slides" / "x.svs", 0)  # it was the disk: the cache still has the tile's neighbour
    np.testing.assert_array_equal(strict.images[bad], truth_of(tmp_path, bad))


def test_the_cache_is_of_the_file_at_its_time(tmp_path: Path) -> None:
    """T19: OpenSlide's quickhash need not tell a change of level 0."""
    draw(tmp_path / "slides" / "x.svs", 0)
    index, cache = make_index(tmp_path / "index", tmp_path / "slides", ["x.svs"], {}), tmp_path / "cache"
    files = []
    for time in (7, 5, 7):
        os.utime(tmp_path / "slides" / "x.svs", ns=(time, time))
        load(index, keep="cache", cache_dir=cache)
        files.append(len(list(cache.glob("*.npy"))))
    assert files == [1, 2, 2]


def truth_of(folder: Path, row: int) -> np.ndarray:
    y, x = divmod(row, 8)
    level = level_of(0)
    draw(folder / "whole.svs", 0, level=level)
    return truth(folder / "whole.svs")[y * SIZE : (y + 1) * SIZE, x * SIZE : (x + 1) * SIZE]


def test_a_slide_of_damaged_tiles_stops_pretraining(tmp_path: Path) -> None:
    """T16."""
    draw(tmp_path / "x.svs", 0, level=damaged(damaged(level_of(0), 1, 1), 5, 6))
    tiles = load(make_index(tmp_path / "index", tmp_path, ["x.svs"], {}), replace_damaged=True)
    tiles.images[[9]]
    with pytest.raises(ValueError, match=r"x\.svs: 2 of its 64 tiles are damaged"):
        tiles.images[40:]


def test_a_slide_of_training_is_known_by_its_content(index: Path, slides: Path, tmp_path: Path) -> None:
    """T28."""
    shutil.copytree(slides / "a", tmp_path / "copies")
    (tmp_path / "copies" / "one.svs").rename(tmp_path / "copies" / "patient 12.svs")
    other = make_index(tmp_path / "other", tmp_path / "copies", ["patient 12.svs", "two.svs"], {})
    evaluated = load(other)
    section = SourceConfig(root=str(index))
    assert len(training_slides(section)) == len(NAMES)
    (warning,) = shared_slides(evaluated, [section, DataConfig(root=str(tmp_path))])
    assert "2 of 2 slides" in warning
    assert "patient 12.svs (a/one.svs there)" in warning
    assert shared_slides(evaluated, []) == []
    (unknown,) = shared_slides(evaluated, [SourceConfig(root=str(tmp_path / "gone"), source="slides")])
    assert "was not checked" in unknown
