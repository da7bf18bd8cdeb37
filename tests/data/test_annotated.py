"""Labels of people: areas drawn on slides give tiles their classes, the others are left out and counted."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slide_cohort import NAMES, SIZE, TILES, draw_all, make_index
from sscl.config import DataConfig, SourceConfig
from sscl.config import validate as checked
from sscl.data.load import load_tiles, training_slides
from sscl.data.slide_set import load_slides
from sscl.data.tiles import Tiles
from sscl.models.classifier import with_classes_of
from sscl.slides.index import Labels

SIDE = 8 * SIZE  # of a slide


def validate(kind: Any, words: dict[str, Any]) -> Any:
    return checked(kind, words, source="data")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_all(tmp_path_factory.mktemp("annotated") / "slides")


@pytest.fixture(scope="module")
def index(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("annotated") / "index", slides, NAMES)


def box(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def draw_areas(path: Path, *areas: tuple[str, list[list[float]]], pack: bool = False) -> Path:
    """Write what people have drawn, as QuPath exports it."""
    objects = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"objectType": "annotation", "classification": {"name": label, "color": [1, 2, 3]}},
        }
        for label, ring in areas
    ]
    data = json.dumps({"type": "FeatureCollection", "features": objects}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if pack else data)
    return path


def upper(label: str, rows: float = 4) -> tuple[str, list[list[float]]]:
    """The uppermost rows of tiles of a slide."""
    return label, box(0, 0, SIDE, rows * SIZE)


def labels_of(tiles: Tiles) -> dict[str, str]:
    return {tile: tiles.classes[label] for tile, label in zip(tiles.ids, tiles.labels.tolist(), strict=True)}


def load(index: Path, folder: Path, split: str = "all", **words: Any) -> Tiles:
    return load_slides(index, split=split, keep="slides", annotations=folder, **words)


def test_tiles_have_the_class_of_the_areas_that_cover_them(index: Path, tmp_path: Path) -> None:
    """By names of four forms; two classes, too little, and slides without a file are left out and counted."""
    draw_areas(tmp_path / "a/one.svs.geojson", upper("SSA", 2), ("HP", box(0, 1 * SIZE, SIDE, 3 * SIZE)))
    draw_areas(tmp_path / "a/two.geojson.gz", ("HP", box(0, 0, 1.4 * SIZE, 1.6 * SIZE)), pack=True)
    draw_areas(
        tmp_path / "by me" / "zero.geojson", ("HP", box(0, 0, SIZE, SIZE)), ("HP", box(SIZE / 2, 0, 2.6 * SIZE, SIZE))
    )
    draw_areas(tmp_path / "b" / "Three.geojson", upper("SSA"))
    (tmp_path / "notes.txt").write_text("not looked at")
    tiles = load(index, tmp_path)
    found = labels_of(tiles)
    rows = {y: {f"a/one.svs/{x * SIZE}_{y * SIZE}" for x in range(8)} for y in range(3)}
    assert {tile for tile in found if tile.startswith("a/one.svs/")} == rows[0] | rows[2]
    assert {found[tile] for tile in rows[0]} == {"SSA"}
    assert {found[tile] for tile in rows[2]} == {"HP"}
    assert {tile for tile in found if tile.startswith("a/two.svs/")} == {f"a/two.svs/0_{y * SIZE}" for y in (0, 1)}
    assert {tile for tile in found if tile.startswith("a/zero.svs/")} == {f"a/zero.svs/{x * SIZE}_0" for x in range(3)}
    assert tiles.class_counts() == {"HP": 13, "SSA": 8}
    assert len(tiles) == len(found) == 21
    assert tiles.account is not None
    assert tiles.account.parts == {"all": 21}
    line = " ".join(tiles.account.line("all").split())
    for words in (
        "cover 50% of it",
        "163 tiles outside",
        "4 slides without",
        "8 tiles in areas of two",
        "b/Three.geojson",
    ):
        assert words in line, line
    assert "weak" not in line
    # The same pixels as without labels.
    whole = load_slides(index, split="all", keep="slides")
    place = {tile: row for row, tile in enumerate(whole.ids)}
    rows_of = [place[tile] for tile in tiles.ids]
    np.testing.assert_array_equal(tiles.images[:], whole.images[rows_of])


def test_slides_on_which_nobody_drew_are_counted_and_unknown_classes_are_found(index: Path, tmp_path: Path) -> None:
    draw_areas(tmp_path / "a/one.geojson", upper("SSA", 2), ("Stroma", box(0, 2 * SIZE, SIDE, 3 * SIZE)))
    draw_areas(tmp_path / "a/two.geojson")
    tiles = load(index, tmp_path)
    assert tiles.account is not None
    assert "1 file without an area of a class" in tiles.account.notes
    data = DataConfig(root=str(index), source="slides", annotations=str(tmp_path))
    (tmp_path / "a/b.geojson").mkdir()  # a folder, and a hidden file, are no file of annotations
    shutil.copy(tmp_path / "a/one.geojson", tmp_path / "a/._one.geojson")
    with pytest.raises(ValueError, match=r"^data.annotations: .*a/one.geojson: annotation 2: Stroma") as error:
        with_classes_of(tiles, ("HP", "SSA"), checkpoint="runs/x", data=data)
    assert "\n" not in str(error.value)
    (tmp_path / "a/one.geojson").unlink()
    with pytest.raises(ValueError, match=r"^annotations: .*a/two.geojson: has no area with a class"):
        load(index, tmp_path)


@pytest.mark.parametrize(("coverage", "rows"), [(0.01, 5), (0.4, 5), (0.41, 4), (1.0, 4)])
def test_label_coverage_is_the_least_share(index: Path, tmp_path: Path, coverage: float, rows: int) -> None:
    draw_areas(tmp_path / "zero.geojson", upper("HP", 4.4))
    assert len(load(index, tmp_path, label_coverage=coverage)) == 8 * rows


def test_splits_are_by_slide_or_those_of_the_index(index: Path, slides: Path, tmp_path: Path) -> None:
    for name in NAMES:
        draw_areas(tmp_path / f"{name}.geojson", upper(name[0]), ("b", box(0, 6 * SIZE, SIZE, SIDE)))
    data = validate(
        DataConfig, {"root": str(index), "annotations": str(tmp_path), "keep": "slides", "test_fraction": 0.3}
    )
    train, test = (load_tiles(data, split=split, progress=False) for split in ("train", "test"))
    assert train.classes == test.classes == ("a", "b")
    assert len(train) + len(test) == len(NAMES) * (4 * 8 + 2)
    assert not set(train.groups.tolist()) & set(test.groups.tolist())  # type: ignore[union-attr]
    assert set(training_slides(data).values()) == {tile.rsplit("/", 1)[0] for tile in train.ids}

    split = {name: Labels(split="test" if "one" in name else "train") for name in NAMES}
    own = make_index(tmp_path / "own", slides, NAMES, split)
    assert set(labels_of(load(own, tmp_path, "test"))) == {
        tile for tile in labels_of(load(own, tmp_path)) if "/one." in tile
    }
    for path in (tmp_path / "a/one.svs.geojson", tmp_path / "b/one.svs.geojson"):
        path.unlink()
    with pytest.raises(ValueError, match="annotations: no tile of the split test"):
        load(own, tmp_path, "test")


def test_pretraining_takes_all_tiles_unless_it_asks_for_labels(index: Path, tmp_path: Path) -> None:
    draw_areas(tmp_path / "zero.geojson", upper("HP"))
    draw_areas(tmp_path / "b/one.geojson", upper("SSA"))
    given = {"root": str(index), "annotations": str(tmp_path), "keep": "slides"}
    whole = load_tiles(validate(SourceConfig, given), split="train", progress=False)
    assert len(whole) == len(NAMES) * TILES
    assert "annotations are not used" in " ".join(whole.account.line("train").split())
    with pytest.raises(ValueError, match="all slides of class HP are of one"):
        load_tiles(validate(SourceConfig, given | {"labels": True}), split="train", progress=False)


FAULTS: dict[str, tuple[dict[str, list[tuple[str, Any]]], str]] = {
    "none": ({}, "has no annotations of a slide"),
    "others": ({"elsewhere.geojson": [upper("HP")]}, "its files are of other slides (elsewhere.geojson)"),
    "two slides": ({"one.geojson": [upper("HP")]}, "is the name of 2 slides"),
    "two files": ({"zero.geojson": [upper("HP")], "zero.svs.geojson": [upper("HP")]}, "is of a/zero.svs, and so is"),
    "no tile": ({"zero.geojson": [("HP", box(0, 0, SIZE / 3, SIZE))]}, "cover 50% of no tile"),
    "open": ({"zero.geojson": [("HP", box(0, 0, 9, 9)[:-1])]}, "zero.geojson: annotation 1 (HP): has an open ring"),
    "spelling": ({"zero.geojson": [upper("HP"), upper("hp")]}, "differ only by case"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_line(index: Path, tmp_path: Path, name: str) -> None:
    files, said = FAULTS[name]
    for file, areas in files.items():
        draw_areas(tmp_path / file, *areas)
    data = validate(DataConfig, {"root": str(index), "annotations": str(tmp_path), "keep": "slides"})
    with pytest.raises(ValueError, match="annotations") as caught:
        load_tiles(data, split="all", progress=False)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("data.annotations: ")
    assert said in line
    assert len(line) < 400


def test_they_are_for_slides_alone(tmp_path: Path) -> None:
    (tmp_path / "A").mkdir()
    with pytest.raises(ValueError, match="is for an index of slides"):
        validate(DataConfig, {"root": str(tmp_path), "annotations": str(tmp_path)})
    with pytest.raises(ValueError, match="label_coverage"):
        validate(DataConfig, {"root": str(tmp_path), "label_coverage": 0})
