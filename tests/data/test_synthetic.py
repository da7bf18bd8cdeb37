"""The synthetic polyps: layout, determinism, and that shape shows the class while colour does not."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import forked
from sscl.data import synthetic
from sscl.data.mhist import load_mhist, load_truth_masks
from sscl.data.synthetic import TILES_PER_SLIDE, SyntheticTile, draw_tile, write_synthetic

COUNT = 96


@pytest.fixture(scope="module")
def tiles() -> list[SyntheticTile]:
    return [draw_tile(index, seed=1, size_px=64) for index in range(COUNT)]


def columns(tiles: list[SyntheticTile]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.str_]]:
    """Return labels, votes and slides of tiles."""
    labels, votes, slides = zip(*((tile.label, tile.votes, tile.slide) for tile in tiles), strict=True)
    return np.array(labels), np.array(votes), np.array(slides)


def colour_histograms(images: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """Return 16 bins per channel, (N, 48)."""
    return np.array(
        [np.concatenate([np.histogram(im[..., c], 16, (0, 256))[0] for c in range(3)]) for im in images], float
    )


def predict_held_out_slides(
    features: NDArray[np.float64], labels: NDArray[np.int64], slides: NDArray[np.str_]
) -> NDArray[np.int64]:
    """Return the classes that a linear classifier gives to slides it was not fitted on."""
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return np.asarray(cross_val_predict(model, features, labels, groups=slides, cv=folds))


def widest_base(tile: SyntheticTile) -> float:
    """Return the area of the largest crypt base as a fraction of the tile."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(tile.mask.astype(np.uint8))
    return float(stats[1:, cv2.CC_STAT_AREA].max()) / tile.mask.size


def test_colour_histograms_do_not_tell_the_class(tiles: list[SyntheticTile]) -> None:
    labels, _, slides = columns(tiles)
    images = [tile.image for tile in tiles]
    predictions = predict_held_out_slides(colour_histograms(images), labels, slides)
    assert balanced_accuracy_score(labels, predictions) <= 0.60
    # The test can fail: a colour cast of 12 grey levels on one class is found.
    tinted = [np.clip(im.astype(int) + 12 * y, 0, 255).astype(np.uint8) for im, y in zip(images, labels, strict=True)]
    predictions = predict_held_out_slides(colour_histograms(tinted), labels, slides)
    assert balanced_accuracy_score(labels, predictions) > 0.75


def test_the_shape_of_the_bases_tells_the_class_and_less_so_on_split_votes(tiles: list[SyntheticTile]) -> None:
    labels, votes, _ = columns(tiles)
    width = np.array([widest_base(tile) for tile in tiles])
    unanimous, split = np.isin(votes, (0, 7)), np.isin(votes, (3, 4))
    clear = roc_auc_score(labels[unanimous], width[unanimous])
    hard = roc_auc_score(labels[split], width[split])
    assert clear > 0.95
    assert 0.5 < hard < clear - 0.1


def test_votes_agree_with_labels_and_follow_ambiguity(tiles: list[SyntheticTile]) -> None:
    labels, votes, _ = columns(tiles)
    np.testing.assert_array_equal(votes >= 4, labels == 1)
    assert votes.min() == 0
    assert votes.max() == 7
    assert 0.10 < np.isin(votes, (3, 4)).mean() < 0.24  # 16.7% in MHIST
    ambiguity = np.array([tile.ambiguity for tile in tiles])
    dissent = np.minimum(votes, 7 - votes)
    means = [ambiguity[dissent == k].mean() for k in range(4)]
    assert means == sorted(means)


def test_stain_belongs_to_the_slide_and_every_slide_has_both_classes(tiles: list[SyntheticTile]) -> None:
    labels, _, slides = columns(tiles)
    # Stain and light show in the ratio of colours, which the amounts of tissue change little.
    colour = np.array([tile.image.mean(axis=(0, 1)) for tile in tiles])
    red_to_blue = colour[:, 0] / colour[:, 2]
    names = np.unique(slides)
    assert len(names) == COUNT // TILES_PER_SLIDE
    within = np.mean([red_to_blue[slides == name].std() for name in names])
    between = np.std([red_to_blue[slides == name].mean() for name in names])
    assert between > 2 * within
    assert {int(labels[slides == name].sum()) for name in names} == {TILES_PER_SLIDE // 2}


def test_every_tile_shows_its_bases_and_looks_like_stained_tissue(tiles: list[SyntheticTile]) -> None:
    for tile in tiles:
        assert 0.04 < tile.mask.mean() < 0.30
        mean = tile.image.reshape(-1, 3).mean(axis=0)
        assert mean[0] > mean[1] < mean[2]  # H&E absorbs green most
        assert tile.image.min() < 110  # nuclei
        assert np.quantile(tile.image.min(axis=2), 0.97) > 170  # lumen


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_the_morphology_is_the_same_at_every_size(index: int) -> None:
    small, large = draw_tile(index, seed=3, size_px=48), draw_tile(index, seed=3, size_px=288)
    assert (small.label, small.votes, small.slide) == (large.label, large.votes, large.slide)
    reduced = cv2.resize(large.image, (48, 48), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(small.image.ravel(), reduced.ravel())[0, 1] > 0.97
    mask = cv2.resize(large.mask.astype(np.uint8) * 255, (48, 48), interpolation=cv2.INTER_AREA) > 127
    assert (mask & small.mask).sum() / (mask | small.mask).sum() > 0.93
    other = draw_tile(index + 1, seed=3, size_px=48)
    assert np.corrcoef(small.image.ravel(), other.image.ravel())[0, 1] < 0.8


@pytest.mark.parametrize("size_px", [32, 57, 1024])
def test_any_size(size_px: int) -> None:
    tile = draw_tile(5, size_px=size_px)
    assert tile.image.shape == (size_px, size_px, 3)
    assert tile.image.dtype == np.uint8
    assert tile.mask.shape == (size_px, size_px)
    assert tile.mask.dtype == bool


def test_a_tile_is_a_function_of_seed_and_index() -> None:
    first = draw_tile(9, seed=2, size_px=32)
    draw_tile(8, seed=2, size_px=32)
    np.random.default_rng(0).uniform()
    np.testing.assert_array_equal(first.image, draw_tile(9, seed=2, size_px=32).image)
    assert (first.image != draw_tile(9, seed=3, size_px=32).image).any()
    assert (first.image != draw_tile(10, seed=2, size_px=32).image).any()


def test_the_written_set_is_in_the_layout_of_mhist(tmp_path: Path, wrap: Any) -> None:
    root, drawn = tmp_path / "deeper" / "polyps", {}

    def kept(draw: Any, index: int, **arguments: Any) -> SyntheticTile:
        assert arguments == {"seed": 5, "size_px": 48, "ssa_fraction": 0.5}
        drawn[index] = draw(index, **arguments)
        return drawn[index]

    wrap(draw_tile=kept)
    write_synthetic(root, count=24, size_px=48, seed=5)
    assert sorted(path.name for path in root.iterdir()) == ["annotations.csv", "images", "masks", "slides.csv"]
    assert [path.name for path in root.parent.iterdir()] == ["polyps"]
    header = (root / "annotations.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == ("Image Name,Majority Vote Label,Number of Annotators who Selected SSA (Out of 7),Partition")
    with (root / "slides.csv").open(newline="", encoding="utf-8") as file:
        slides = {row["Image Name"]: row["Slide"] for row in csv.DictReader(file)}
    loaded = {
        split: load_mhist(
            root, protocol="official", split=split, size_px=48, published=False, cache_dir=tmp_path / "cache"
        )
        for split in ("train", "test", "all")
    }
    assert set(loaded["all"].ids) == {f"syn_{index:05d}.png" for index in range(24)} == set(slides)
    for position, name in enumerate(loaded["all"].ids):
        tile = drawn[int(name[4:9])]
        np.testing.assert_array_equal(loaded["all"].images[position], tile.image)
        assert loaded["all"].labels[position] == tile.label
        assert loaded["all"].votes is not None
        assert loaded["all"].votes[position] == tile.votes
        assert slides[name] == tile.slide
        with Image.open(root / "masks" / name) as mask:
            assert mask.mode == "L"
            np.testing.assert_array_equal(np.asarray(mask), tile.mask * np.uint8(255))
    assert load_truth_masks(root, loaded["all"].ids, size_px=48) is not None
    assert not {slides[name] for name in loaded["train"].ids} & {slides[name] for name in loaded["test"].ids}
    assert len(loaded["test"]) == 8  # 1 of 3 slides
    for split in ("train", "test"):
        assert set(loaded[split].labels.tolist()) == {0, 1}


def test_files_do_not_depend_on_count_or_workers(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "few", count=16, size_px=32, seed=1, workers=1)
    write_synthetic(tmp_path / "more", count=24, size_px=32, seed=1, workers=2)
    few, more = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "few", tmp_path / "more")
    )
    assert (len(few), len(more)) == (2 * 16 + 2, 2 * 24 + 2)
    for path, content in few.items():
        assert more[path].startswith(content), path  # of a table the first rows


@pytest.mark.parametrize(("fraction", "expected"), [(0.25, 100), (0.31, 124)])
def test_ssa_fraction_holds_overall_and_by_slide(fraction: float, expected: int) -> None:
    labels = np.array([synthetic._draw_label(i, seed=0, ssa_fraction=fraction) for i in range(400)])
    assert labels.sum() == expected
    per_slide = labels.reshape(-1, TILES_PER_SLIDE).sum(axis=1)
    assert per_slide.max() - per_slide.min() <= 1
    # No place within a slide has a class of its own.
    assert (labels.reshape(-1, TILES_PER_SLIDE).std(axis=0) > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 8}, "count: 8 tiles .* put no HP in test .* ask for more tiles"),
        ({"ssa_fraction": 0.01}, "count: 16 tiles .* put no SSA in"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(
    tmp_path: Path, arguments: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        write_synthetic(tmp_path / "set", **{"count": 16, "size_px": 32, **arguments})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_draw_tile_refuses_bad_arguments() -> None:
    for bad in ({"index": -1}, {"index": 1.5}, {"seed": -1}, {"size_px": 31}, {"size_px": 1025}, {"ssa_fraction": 1.5}):
        with pytest.raises(ValueError, match=f"^{next(iter(bad))}: got "):
            draw_tile(**{"index": 0, **bad})


def test_a_taken_root_is_left_alone_and_an_empty_one_is_used(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="taken: exists and is not an empty folder"):
        write_synthetic(taken, count=16, size_px=32)
    assert [path.name for path in taken.iterdir()] == ["note.txt"]
    with pytest.raises(ValueError, match=r"note\.txt: exists"):
        write_synthetic(taken / "note.txt", count=16, size_px=32)
    with pytest.raises(ValueError, match="set: cannot be written"):
        write_synthetic(taken / "note.txt" / "set", count=16, size_px=32)
    empty = tmp_path / "empty"
    empty.mkdir()
    write_synthetic(empty, count=16, size_px=32)
    assert len(list((empty / "images").iterdir())) == 16


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, wrap: Any) -> None:
    def interrupted(draw: Any, index: int, **arguments: float) -> SyntheticTile:
        if index == 5:
            raise KeyboardInterrupt
        return draw(index, **arguments)

    wrap(draw_tile=interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / "set", count=16, size_px=32)
    assert list(tmp_path.iterdir()) == []


def test_workers_that_cannot_start_are_explained(tmp_path: Path) -> None:
    # A program on standard input has no file that a spawned process could import.
    program = """
import os, sys
from sscl.data.synthetic import write_synthetic
sys.modules["__main__"].__file__ = "<stdin>"
os.chdir(sys.argv[1])
write_synthetic("set", count=16, size_px=32, workers=2)
"""
    ran = forked.run(program, tmp_path, timeout=60)
    assert ran.stderr.splitlines()[-1].startswith("ValueError: workers: a drawing process died")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "ids", "said"),
    [
        ("synthetic", ["a.png"], True),
        ("mhist", ["syn_00001.png", "syn_123456.png"], True),
        ("folder", ["HP/syn_00001.png", "SSA\\syn_00002.png"], True),
        ("slides", ["syn_00001.svs/0_448", "a/syn_00002.tiff/448_0"], True),
        ("slides", ["slide.svs/0_448"], False),
        ("slides", ["syn_00001.svs"], False),
        ("folder", ["syn_00001.png", "MHIST_aaa.png"], False),
        ("mhist", ["mysyn_00001.png"], False),
        ("folder", [], False),
    ],
)
def test_synthetic_tiles_are_known_by_source_or_name(source: str, ids: list[str], said: bool) -> None:
    assert synthetic.is_synthetic(source, ids) is said
