"""data.source=table: a CSV with a row for each image; and what data.source=auto takes a folder or file for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sscl.config import DataConfig, SourceConfig, plain
from sscl.data import load
from sscl.data.folder import load_folder
from sscl.data.table import load_table


def save(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shade = np.random.default_rng(len(name)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(shade).save(root / name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save(tmp_path / "set", *(f"a/{i}.png" for i in range(6)), *(f"b/{i}.tif" for i in range(6)), "c, d/x.png")
    return tmp_path / "set"


def table(root: Path, text: str, *, split: str = "all", **options: Any) -> Any:
    (root / "t.csv").write_text(text, encoding="utf-8")
    return load_table(root / "t.csv", split=split, size_px=8, cache_dir=root.parent / "cache", **options)


def test_labels_groups_splits_and_mpp_of_a_spreadsheet(root: Path) -> None:
    text = (
        "Label;mpp;Path;group;split\r\n"
        "10;0,25;.\\a\\0.png;s1;Train\r\n"
        '9;0,5;"a\\1.png"; s2;training\r\n'
        ";;a/2.png;s2 ;train\r\n"
        "nan;0,25;c, d/x.png;s3;test\r\n"
        "9;0,25;b\\0.tif;s4;VAL\r\n"
        "10;0,25;b/1.tif;s5;validation\r\n"
    )
    tiles = table(root, text)
    assert tiles.ids == ("a/0.png", "a/1.png", "a/2.png", "b/0.tif", "b/1.tif", "c, d/x.png")
    assert tiles.classes == ("9", "10")
    assert tiles.labels.tolist() == [1, 0, -1, 0, 1, -1]
    assert tiles.groups.tolist() == ["s1", "s2", "s2", "s4", "s5", "s3"]
    np.testing.assert_array_equal(tiles.mpp, [0.25, 0.5, np.nan, 0.25, 0.25, 0.25])
    np.testing.assert_array_equal(tiles.images[0], np.asarray(Image.open(root / "a" / "0.png")))
    parts = {split: table(root, text, split=split) for split in ("train", "validation", "test")}
    assert [part.ids for part in parts.values()] == [tiles.ids[:3], tiles.ids[3:5], tiles.ids[5:]]
    line = " ".join(parts["train"].account.line("train").split())
    assert line.startswith(
        "found 6 rows: 3 used here, 2 kept for validation, 1 kept for test; 0.25 to 0.5 µm per pixel"
    )
    assert "1 unknown" in line


def test_sites_of_a_table_and_of_a_csv_of_groups(root: Path) -> None:
    text = "path,label,site\na/0.png,x, north\nb/0.tif,y,south\na/1.png,x,north\n"
    tiles = table(root, text)
    assert tiles.sites.tolist() == ["north", "south", "north"]
    assert tiles.groups is None
    assert tiles.subset([1]).sites.tolist() == ["south"]
    with pytest.raises(ValueError, match="line 3: column 'site' is empty, in 1 row"):
        table(root, text.replace("south", ""))
    ids = [f"{name}/{i}.{kind}" for name, kind in (("a", "png"), ("b", "tif")) for i in range(6)]
    csv = root.parent / "groups.csv"
    csv.write_text("path,group,site\n" + "".join(f"{name},s{name[2]},h{name[2]}\n" for name in ids))
    (root / "c, d" / "x.png").unlink()
    (root / "c, d").rmdir()
    given = load_folder(root, split="all", groups_csv=csv, size_px=8, cache_dir=root.parent / "cache")
    assert given.sites.tolist() == [f"h{name[2]}" for name in given.ids]
    csv.write_text(csv.read_text().replace("h3\n", "\n"))
    with pytest.raises(ValueError, match=r"groups_csv: .*a/3.png' has an empty 'site'"):
        load_folder(root, split="all", groups_csv=csv, size_px=8, cache_dir=root.parent / "cache")


def test_without_splits_whole_groups_are_held_out_and_unlabelled_tiles_train(root: Path) -> None:
    rows = [
        f"{name}/{i}.{kind},{name},s{i // 2}{name}" for name, kind in (("a", "png"), ("b", "tif")) for i in range(6)
    ]
    text = "\n".join(["path,label,group", *rows, '"c, d/x.png",,s9'])
    train, test = (table(root, text, split=split, test_fraction=0.34) for split in ("train", "test"))
    assert test.class_counts() == {"a": 2, "b": 2}
    assert not set(train.groups) & set(test.groups)
    assert "c, d/x.png" in train.ids
    assert train.account.parts == {"train": 9, "test": 4}
    whole = table(root, text, split="train", whole=True)
    assert (len(whole), whole.classes, whole.groups) == (13, (), None)
    assert "labels are not used (data.labels=true would)" in whole.account.notes


def test_a_list_of_paths_alone_is_unlabelled(root: Path) -> None:
    tiles = table(root, "path\n" + "".join(f"{root / 'a' / f'{i}.png'}\n" for i in range(6)), split="train")
    assert tiles.class_counts() == {"unlabelled": 6}
    with pytest.raises(ValueError, match="has no classes, so no test split"):
        table(root, "path\na/0.png\n", split="test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,label\na/0.png,x\nnone.png,x\nno.png,y\n",
            r"2 of 3 images are missing, the first is .*none.png \(line 3",
        ),
        ("path,label\na/0.png,x\n.\\a\\0.png,y\n", "line 3: '.*' is in line 2 too"),
        ("path,label\na/0.png,x\nb/../a/0.png,y\n", "line 3: '.*' is in line 2 too"),
        ("path,label\na/0.png,HP\na/1.png,hp\n", "column 'label': 'HP' and 'hp' differ only by case"),
        ("path,group\na/0.png,1\na/1.png,1.0\n", "column 'group': '1' and '1.0' differ only by case, blanks or '.0'"),
        ("path,group\na/0.png,1\na/1.png,\n", "line 3: column 'group' is empty, in 1 row"),
        ("path,split\na/0.png,train\na/1.png,\n", "line 3: split is empty; allowed are train, val and test"),
        ("path,split\na/0.png,fold1\n", "line 2: split got 'fold1'; allowed are"),
        ("path,mpp\na/0.png,40x\n", "line 2: mpp '40x'; expected µm per pixel"),
        ("file,label\na/0.png,x\n", "column 'path' is missing, found file, label"),
    ],
)
def test_faults_are_one_line_that_names_the_row(root: Path, text: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        table(root, text)
    assert str(caught.value).startswith(str(root / "t.csv"))
    assert "\n" not in str(caught.value)


def test_a_table_as_excel_saves_it(root: Path) -> None:
    """Rows filled up to the widest, and a header with a line break in a cell."""
    text = 'path;"label\n(majority)";label;;\r\na/0.png;7;x;;\r\na/1.png;7;y;;;;\r\n;;;;;;\r\n'
    tiles = table(root, text)
    assert (tiles.classes, tiles.labels.tolist()) == (("x", "y"), [0, 1])
    with pytest.raises(ValueError, match="line 4: 4 values, expected 2"):
        table(root, '"path","la\nbel"\na/0.png,x\na/1.png,y,,z\n')
    assert table(root, '"path","\nlabel"\na/0.png,x\na/1.png,y\n').classes == ("x", "y")


def test_what_pandas_reads_as_missing_is_no_class_no_slide_and_no_size(root: Path) -> None:
    text = "path,label,group,mpp\na/0.png,x,s1,0.5\na/1.png,NA,s2,NA\na/2.png,y,s3,n/a\nb/0.tif,None,s4,NULL\n"
    tiles = table(root, text)
    assert (tiles.classes, tiles.labels.tolist()) == (("x", "y"), [0, -1, 1, -1])
    np.testing.assert_array_equal(tiles.mpp, [0.5, np.nan, np.nan, np.nan])
    assert "2 labels NA and None: missing" in " ".join(tiles.account.line("all").split())
    with pytest.raises(ValueError, match="line 3: column 'group' is empty, in 1 row"):
        table(root, "path,group\na/0.png,s1\na/1.png,NA\n")


# --- auto ---


@pytest.fixture
def places(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "mhist" / "images", "x.png")
    save(tmp_path / "synth" / "images", "syn_00000.png")
    for name in ("mhist/annotations.csv", "synth/annotations.csv", "list.TSV", "file.zip"):
        (tmp_path / name).write_text("x")
    np.savez(tmp_path / "small.npz")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("set", "folder"),
        ("mhist", "mhist"),
        ("synth", "synthetic"),
        ("mhist/images", "folder"),
        ("list.TSV", "table"),
        ("small.npz", "pathmnist"),
        ("file.zip", "auto"),
        ("none", "auto"),
    ],
)
@pytest.mark.parametrize("kind", [DataConfig, SourceConfig])
def test_a_source_that_is_left_out_is_what_the_root_is(places: Path, name: str, source: str, kind: Any) -> None:
    data = kind(root=name)
    assert data.source == plain(data)["source"] == source
    assert kind(root=name, source="synthetic").source == "synthetic"


def test_another_root_is_looked_at_again(places: Path) -> None:
    trained = DataConfig(root="set", split_seed=3)
    assert load.merge_data(trained, {"root": "mhist"}).source == "mhist"
    assert load.merge_data(trained, {"root": "none"}).source == "folder"
    assert load.merge_data(trained, {"root": "mhist", "source": "folder"}).source == "folder"
    assert load.merge_data(DataConfig(root="set", source="synthetic"), {"root": "mhist"}).source == "mhist"
    assert load.merge_data(DataConfig(root="mhist", source="mhist"), {"root": "synth"}).source == "mhist"
    assert load.merge_data(trained, {"root": "list.TSV"}).split_seed == 3


def test_a_root_that_is_nothing_says_so(places: Path) -> None:
    for name, message in (
        ("none", rf"^data.root: none: no such folder or file .*working folder {os.getcwd()}"),
        ("file.zip", "^data.root: file.zip: is no folder, no table"),
        ("mhist/annotations.csv", "^data.root: mhist/annotations.csv: .* MHIST; .* mhist$"),
        ("synth/annotations.csv", "^data.root: synth/annotations.csv: .* MHIST; .* synth$"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load.load_tiles(DataConfig(root=name), split="train", progress=False)


def test_pretraining_takes_all_there_is_unless_it_asks_for_classes(root: Path, tmp_path: Path) -> None:
    """Case 5: root/images/*.png is not cut to 80%."""
    words = {"size_px": 16, "cache_dir": str(tmp_path / "cache")}
    (root / "c, d" / "x.png").unlink()
    (root / "c, d").rmdir()
    rows = [f"a/{i}.png,a\nb/{i}.tif,b" for i in range(6)]
    (root / "t.csv").write_text("\n".join(["path,label", *rows]))
    for place in (root, root / "t.csv"):
        for labels, tiles, classes in ((False, 12, ()), (True, 10, ("a", "b"))):
            data = SourceConfig(root=str(place), labels=labels, **words)
            found = load.load_tiles(data, split="train", progress=False)
            assert (len(found), found.classes) == (tiles, classes)
            assert load.saw_all(data) is not labels
        assert list(load.load_splits(DataConfig(root=str(place), **words), progress=False)) == ["train", "test"]
        one = load.load_tiles(DataConfig(root=str(place), **words), split="all", progress=False)
        file = load.tile_file(DataConfig(root=str(place), **words), one.ids[0])
        assert file == root / "a" / "0.png"
