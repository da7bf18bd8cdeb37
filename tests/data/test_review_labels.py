"""Reviews come back as labels: of tiles that are files, and of tiles of slides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from slide_cohort import LABELS, MPP, NAMES, SIZE, draw_all, make_index
from sscl.config import DataConfig, SourceConfig
from sscl.config import validate as checked
from sscl.data.load import load_tiles, training_slides
from sscl.data.review_labels import answers_by_sight
from sscl.data.tiles import Tiles
from sscl.data.worksheets import CANNOT_TELL, blind_name
from sscl.evaluate.lineage import review_caveats, split_by_reviews
from sscl.slides.index import Labels, read_index

KEY = "0123456789abcdef"
COLUMNS = "report,reviewer,id,true,predicted,confidence,outcome,blind,blind_at,seen_before,review,note,changed,classes"
OF_SLIDE = ",slide,quickhash,tile_um"
Row = dict[str, str]


def worksheet(path: Path, *rows: Row, classes: tuple[str, ...] = ("HP", "SSA"), columns: str = COLUMNS) -> str:
    """A worksheet as the page writes it."""
    lines = [columns]
    for row in rows:
        cells = {"report": KEY, "classes": json.dumps(list(classes))} | row
        lines.append(",".join('"' + cells.get(name, "").replace('"', '""') + '"' for name in columns.split(",")))
    path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8", newline="")
    return str(path)


def said(name: str, review: str, predicted: str = "HP", **more: str) -> Row:
    return {"id": name, "review": review, "predicted": predicted, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 tiles without classes."""
    (tmp_path / "new").mkdir()
    for i in range(24):
        Image.fromarray(np.full((16, 16, 3), 10 * i, np.uint8)).save(tmp_path / "new" / f"t{i:02d}.png")
    return tmp_path / "new"


def loaded(root: Path, *files: str, split: str = "all", **keys: Any) -> Tiles:
    section = {
        "root": str(root),
        "size_px": 16,
        "cache_dir": str(root.parent / "cache"),
        "reviews": list(files),
        **keys,
    }
    return load_tiles(checked(DataConfig, section, source="data"), split=split, progress=False)


def by_id(tiles: Tiles) -> dict[str, str]:
    return {name: tiles.classes[label] for name, label in zip(tiles.ids, tiles.labels, strict=True)}


def notes(tiles: Tiles) -> str:
    assert tiles.account is not None
    return "; ".join(tiles.account.notes)


def test_each_answer_is_the_class_that_it_means(folder: Path, tmp_path: Path) -> None:
    file = worksheet(
        tmp_path / "a.csv",
        said("t00.png", "agree"),
        said("t01.png", "disagree"),
        said("t02.png", "unsure"),
        said("t03.png", "", blind="SSA", seen_before="no"),
        said("t04.png", "agree", blind="HP", seen_before="no"),
        said("t05.png", "agree", blind="SSA", seen_before="no"),  # gave way to the prediction
        said("t06.png", "disagree", blind="SSA", seen_before="yes"),
        said("t07.png", "", blind=CANNOT_TELL),
        said("t08.png", "", note="only a note"),
        said("t99.png", "agree"),
        {"id": blind_name(KEY, "t09.png"), "blind": "HP", "seen_before": "no"},
        said("t10.png", ""),
    )
    tiles = loaded(folder, file)
    assert by_id(tiles) == {
        "t00.png": "HP",
        "t01.png": "SSA",
        "t03.png": "SSA",
        "t04.png": "HP",
        "t06.png": "SSA",
        "t09.png": "HP",
    }
    assert tiles.account is not None
    assert dict(tiles.account.parts) == {"all": 6}
    assert split_by_reviews(DataConfig(root=str(folder), source="folder", reviews=(file,)))
    for part in ("3 blind, 3 with", "2 tiles on which they are unsure", "1 tile whose class", "(t99.png)"):
        assert part in notes(tiles)
    assert answers_by_sight([file]) == (8, 4)
    caveats = review_caveats(DataConfig(root=str(folder), reviews=(file,)))
    assert "4 of 8" in caveats[1]
    blind = worksheet(tmp_path / "b.csv", said("t03.png", "", blind="SSA", seen_before="no"))
    assert len(review_caveats(DataConfig(root=str(folder), reviews=(blind,)))) == 1


def test_of_many_classes_a_note_names_the_class(folder: Path, tmp_path: Path) -> None:
    rows = [
        said("t00.png", "disagree", "A"),
        said("t01.png", "disagree", "A", note=" c "),
        said("t02.png", "agree", "B"),
    ]
    tiles = loaded(folder, worksheet(tmp_path / "a.csv", *rows, classes=("A", "B", "C")))
    assert by_id(tiles) == {"t01.png": "C", "t02.png": "B"}
    assert "1 tile of another class than predicted" in notes(tiles)
    # Without the column `classes` nobody knows whether there are two.
    tiles = loaded(folder, worksheet(tmp_path / "b.csv", *rows, columns="id,predicted,review,note"))
    assert by_id(tiles) == {"t02.png": "B"}


def test_reviewers_who_differ_leave_a_tile_out(folder: Path, tmp_path: Path) -> None:
    first, second = (
        worksheet(tmp_path / f"{name}.csv", *(said(f"t0{i}.png", word) for i, word in enumerate(words)))
        for name, words in (("a", ("agree", "agree", "unsure")), ("b", ("disagree", "agree", "agree")))
    )
    tiles = loaded(folder, first, second)
    assert by_id(tiles) == {"t01.png": "HP", "t02.png": "HP"}
    assert "left out: 1 tile on which they differ" in notes(tiles)
    Path(first).rename(tmp_path / "cache" / "a.CSV")
    assert by_id(loaded(folder, str(tmp_path / "cache"), second)) == by_id(tiles)
    with pytest.raises(FileNotFoundError, match=r"^data.reviews: .*no worksheet"):
        loaded(folder, str(folder))
    assert "unsure" not in notes(tiles)


def test_tiles_are_known_by_the_path_that_predict_was_given(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("new/t00.png", str(folder / "t01.png"), "/elsewhere/new/t02.png", blind_name(KEY, "new/t03.png"))
    rows = [{"id": name, "blind": "HP", "seen_before": "no"} for name in (*names, "/elsewhere/t04.png")]
    assert list(by_id(loaded(Path("new"), worksheet(tmp_path / "a.csv", *rows)))) == [f"t0{i}.png" for i in range(4)]


def test_test_tiles_stay_test_tiles(tmp_path: Path) -> None:
    """Of a labelled folder that sscl splits, and of one with splits; reviewed labels replace the folders'."""
    root = tmp_path / "set"
    for i in range(40):
        path = root / ("HP" if i % 2 else "SSA") / f"t{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 5 * i, np.uint8)).save(path)
    test = set(loaded(root, split="test").ids)
    rows = [said(f"HP/t{i:02d}.png", "disagree" if i < 4 else "agree") for i in range(1, 40, 2)]
    file = worksheet(tmp_path / "a.csv", *rows)
    found = {split: loaded(root, file, split=split) for split in ("train", "test", "all")}
    assert set(found["test"].ids) == {row["id"] for row in rows} & test
    assert set(found["train"].ids) == {row["id"] for row in rows} - test
    assert by_id(found["all"])["HP/t01.png"] == "SSA"
    account = found["train"].account
    assert account is not None
    assert dict(account.parts) == {"train": len(found["train"]), "test": len(found["test"])}
    assert found["train"].classes == found["test"].classes == ("HP", "SSA")
    assert not split_by_reviews(DataConfig(root=str(root), source="folder", reviews=(file,)))

    for split, folders in (("train", ("HP", "SSA")), ("test", ("HP", "SSA"))):
        for name in folders:
            (root / split / name).mkdir(parents=True)
            for path in sorted((root / name).iterdir())[:10]:
                path.rename(root / split / name / path.name)
    (root / "HP").rmdir()
    (root / "SSA").rmdir()
    file = worksheet(tmp_path / "b.csv", said("train/HP/t01.png", "agree"), said("train/HP/t03.png", "disagree"))
    assert len(loaded(root, file, split="train")) == 2
    with pytest.raises(ValueError, match=r"^data.reviews: no tile of the split test .*2 of train"):
        loaded(root, file, split="test")


def test_folders_that_are_no_classes_are_groups(folder: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    for i, name in enumerate(names[:20]):
        (folder / f"slide{i // 4}").mkdir(exist_ok=True)
        (folder / name).rename(folder / f"slide{i // 4}" / name)
    rows = [said(f"slide{i // 4}/{name}", "agree" if i % 2 else "disagree") for i, name in enumerate(names[:20])]
    file = worksheet(tmp_path / "a.csv", *rows, said(names[20], "agree"))  # beside the folders
    parts = {split: loaded(folder, file, split=split) for split in ("train", "test")}
    groups = {split: set(tiles.groups.tolist()) for split, tiles in parts.items() if tiles.groups is not None}
    assert groups["train"] | groups["test"] == {"", *(f"slide{i}" for i in range(5))}
    assert not groups["train"] & groups["test"]


def test_reviewed_tiles_without_a_split_are_split(folder: Path, tmp_path: Path) -> None:
    file = worksheet(tmp_path / "a.csv", *(said(f"t{i:02d}.png", "agree" if i % 2 else "disagree") for i in range(20)))
    parts = {split: loaded(folder, file, split=split) for split in ("train", "test")}
    assert {split: len(tiles) for split, tiles in parts.items()} == {"train": 16, "test": 4}
    assert not set(parts["train"].ids) & set(parts["test"].ids)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([], COLUMNS, "holds no answer"),
        ([said("x.png", "agree")], COLUMNS, "none of its 1 reviewed tile is in"),
        ([said("t00.png", "agree", "")], COLUMNS, "line 2: review is agree, but predicted is empty"),
        ([said("t00.png", "agree", "adenoma")], COLUMNS, "line 2: .*no class of the classifier"),
        ([said("t00.png", "", blind="HPP")], COLUMNS, "line 2: blind is 'HPP'; did you mean HP"),
        ([said("t00.png", "maybe")], COLUMNS, "line 2: review is 'maybe'"),
        ([said("t00.png", "agree")] * 2, COLUMNS, "line 3: 't00.png' comes twice"),
        ([said("t00.png", "unsure")], COLUMNS, "no tile was given a class: left out: 1 tile on which they are unsure"),
        ([said("t00.png", "agree")], "path,label", "a worksheet has id"),
    ],
)
def test_a_worksheet_that_cannot_be_used_is_one_line(
    folder: Path, tmp_path: Path, rows: list[Row], columns: str, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"^data.reviews: .*{message}") as error:
        loaded(folder, worksheet(tmp_path / "a.csv", *rows, columns=columns))
    assert "\n" not in str(error.value)


def test_a_missing_worksheet_and_keys_that_do_not_go_together(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^data.reviews: "):
        loaded(folder, str(tmp_path / "none.csv"))
    for keys in ({"annotations": "areas"}, {"reviews": ["a.csv", "a.csv"]}):
        with pytest.raises(ValueError, match="reviews: "):
            checked(DataConfig, {"root": str(folder), "source": "slides", "reviews": ["a.csv"], **keys}, source="data")


# --- slides ---


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_all(tmp_path_factory.mktemp("reviewed") / "slides")


@pytest.fixture(scope="module")
def index(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("reviewed") / "index", slides, NAMES, {name: Labels() for name in NAMES})


def hashes(index: Path) -> dict[str, str]:
    return {indexed.slide.name: indexed.slide.quickhash for indexed in read_index(index).slides}


def of_slide(index: Path, name: str, *rows: Row, **more: str) -> list[Row]:
    facts = {"slide": name, "quickhash": hashes(index).get(name, ""), "tile_um": f"{SIZE * MPP:g}", **more}
    return [{**facts, **row} for row in rows]


def test_tiles_of_slides_have_the_reviewed_classes(index: Path, tmp_path: Path) -> None:
    rows = of_slide(index, "a/one.svs", said("a/one.svs/0_0", "agree"), said("a/one.svs/32_64", "disagree"))
    name = blind_name(KEY, "b/two.svs/64_32")
    blind = of_slide(index, "b/two.svs", {"id": name, "blind": "SSA", "seen_before": "no"})
    files = [
        worksheet(tmp_path / "a.csv", *rows, columns=COLUMNS + OF_SLIDE),
        worksheet(tmp_path / "b.csv", *blind, columns=COLUMNS + OF_SLIDE),
    ]
    tiles = loaded(index, *files, size_px=SIZE)
    assert by_id(tiles) == {"a/one.svs/0_0": "HP", "a/one.svs/32_64": "SSA", "b/two.svs/64_32": "SSA"}
    assert "1 blind, 2 with" in notes(tiles)
    whole = loaded(index, size_px=SIZE)
    at = list(whole.ids).index("b/two.svs/64_32")
    np.testing.assert_array_equal(np.asarray(tiles.images[2]), np.asarray(whole.images[at]))
    assert len(loaded(index, *files, size_px=SIZE, tiles_per_slide=1)) == 2
    # A report of the index has no column that names the slide.
    anywhere = [{"id": blind_name(KEY, f"{name}/64_32"), "blind": "SSA"} for name in ("a/two.svs", "b/two.svs")]
    tiles = loaded(index, worksheet(tmp_path / "d.csv", *anywhere), size_px=SIZE)
    assert by_id(tiles) == {"a/two.svs/64_32": "SSA", "b/two.svs/64_32": "SSA"}
    # By its quickhash under another name.
    rows = of_slide(index, "a/one.svs", said("moved.svs/0_0", "agree"), slide="moved.svs")
    file = worksheet(tmp_path / "c.csv", *rows, columns=COLUMNS + OF_SLIDE)
    assert list(by_id(loaded(index, file, size_px=SIZE))) == ["a/one.svs/0_0"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tile_um": "32"}, "tiles of 32 µm were reviewed, .* have 16 µm"),
        ({"quickhash": "f" * 64}, "is another slide than the one that was reviewed"),
        ({"tile_um": "wide"}, "tile_um 'wide' is no finite number"),
    ],
)
def test_tiles_of_another_scale_or_slide_are_refused(
    index: Path, tmp_path: Path, more: dict[str, str], message: str
) -> None:
    rows = of_slide(index, "a/one.svs", said("a/one.svs/0_0", "agree"), **more)
    with pytest.raises(ValueError, match=rf"^data.reviews: .*line 2: .*{message}"):
        loaded(index, worksheet(tmp_path / "a.csv", *rows, columns=COLUMNS + OF_SLIDE), size_px=SIZE)


def test_weak_labels_give_way_and_pretraining_takes_all(slides: Path, tmp_path: Path) -> None:
    side = {"a": "train", "b": "test"}
    labels = {name: of.model_copy(update={"split": side[name[0]]}) for name, of in LABELS.items()}
    index = make_index(tmp_path / "index", slides, NAMES, labels)
    rows = [said(f"{name}/0_0", "agree", "SSA") for name in ("a/one.svs", "a/two.svs", "b/one.svs")]
    file = worksheet(tmp_path / "a.csv", *rows)
    tiles = loaded(index, file, split="train", size_px=SIZE)
    assert by_id(tiles) == {"a/one.svs/0_0": "SSA", "a/two.svs/0_0": "SSA"}
    assert "weak" not in notes(tiles)
    assert tiles.account is not None
    assert dict(tiles.account.parts) == {"train": 2, "test": 1}
    data = DataConfig(root=str(index), source="slides", reviews=(file,))
    assert set(training_slides(data).values()) == {"a/one.svs", "a/two.svs"}
    assert not data.weak_labels
    source = SourceConfig(root=str(index), source="slides", reviews=(file,), cache_dir=str(tmp_path / "cache"))
    assert len(load_tiles(source, split="train", progress=False)) == 4 * 64
