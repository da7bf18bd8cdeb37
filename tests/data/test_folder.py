"""The image-folder loader in all its layouts."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sscl.config import DataConfig
from sscl.data.folder import load_folder, own_splits
from sscl.data.load import load_tiles


def save(path: Path, *, seed: int = 0, size_px: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def load(root: Path, *, split: str = "all", **options):
    return load_folder(root, split=split, **{"size_px": 8, "cache_dir": root.parent / "cache", **options})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "set"


def write_classes(root: Path, counts: dict[str, int]) -> list[str]:
    names = [f"{name}/{i:02d}.png" for name, count in counts.items() for i in range(count)]
    for seed, name in enumerate(names):
        save(root / name, seed=seed)
    return names


def write_given_split(root: Path) -> None:
    write_classes(root / "train", {"B": 4, "A": 3})
    write_classes(root / "test", {"B": 2, "A": 1})


# --- layouts ---


def test_given_split_is_kept_and_each_part_maps_the_cache(root):
    write_given_split(root)
    train, test, everything = (load(root, split=split) for split in ("train", "test", "all"))
    assert train.classes == test.classes == ("A", "B")
    assert train.class_counts() == {"A": 3, "B": 4}
    assert test.ids == ("test/A/00.png", "test/B/00.png", "test/B/01.png")
    assert test.labels.tolist() == [0, 1, 1]
    assert everything.ids == train.ids + test.ids
    assert isinstance(train.images, np.memmap)
    assert isinstance(test.images, np.memmap)
    for index, name in enumerate(test.ids):
        np.testing.assert_array_equal(test.images[index], np.asarray(Image.open(root / name)))


def test_one_folder_is_split_by_class_and_seed(root):
    names = write_classes(root, {"A": 10, "B": 20})
    train, test = load(root, split="train", seed=1), load(root, split="test", seed=1)
    assert test.class_counts() == {"A": 2, "B": 4}
    assert sorted(train.ids + test.ids) == names
    assert load(root).ids == tuple(names)
    assert load(root, split="test", seed=1).ids == test.ids
    assert load(root, split="test", seed=2).ids != test.ids
    assert load(root, split="test", test_fraction=0.5).class_counts() == {"A": 5, "B": 10}
    for index, name in enumerate(test.ids):
        np.testing.assert_array_equal(test.images[index], np.asarray(Image.open(root / name)))


def test_groups_stay_on_one_side(root):
    names = write_classes(root, {"A": 12, "B": 12})
    csv = root / "groups.csv"
    csv.write_text("path,group\n" + "".join(f"{name},slide{int(name[2:4]) // 3}\n" for name in names))
    train, test = (load(root, split=split, groups_csv=csv, test_fraction=0.25) for split in ("train", "test"))
    assert not set(train.groups) & set(test.groups)
    assert len(train) + len(test) == 24
    assert test.groups.tolist() == [f"slide{int(name[2:4]) // 3}" for name in test.ids]


def test_flat_folder_is_unlabelled(root):
    for i in range(3):
        save(root / f"{i}.png", seed=i)
    for split in ("train", "all"):
        tiles = load(root, split=split)
        assert tiles.classes == ()
        assert tiles.labels.tolist() == [-1, -1, -1]
        assert tiles.ids == ("0.png", "1.png", "2.png")
    with pytest.raises(ValueError, match="has no classes, so no test split"):
        load(root, split="test")


def test_extensions_in_any_case_count_and_strays_do_not(root):
    names = ["a.PNG", "b.jpg", "c.JPEG", "d.Tif", "e.tiff", "f.bmp", "g.WebP"]
    for seed, name in enumerate(names):
        save(root / "A" / name, seed=seed)
    for stray in (".DS_Store", "._a.png", "notes.txt", "Thumbs.db", "noextension"):
        (root / "A" / stray).write_text("x")
        (root / stray).write_text("x")
    (root / ".hidden").mkdir()
    assert load(root).ids == tuple(f"A/{name}" for name in names)


def test_mixed_sizes_come_to_the_working_size(root):
    save(root / "A" / "a.png", size_px=32)
    save(root / "A" / "b.png", size_px=8)
    assert load(root, size_px=16).images.shape == (2, 16, 16, 3)


def counted(root: Path, split: str = "train", **options) -> str:
    account = load(root, split=split, **options).account
    assert account is not None
    return " ".join(account.line(split).split())


@pytest.mark.parametrize(
    "names", [("Train", "val", "Test"), ("training", "VALID", "testing"), ("train_set", "dev", "test")]
)
def test_split_folders_in_any_spelling(root, names):
    for seed, (name, number) in enumerate(zip(names, (4, 2, 3), strict=True)):
        write_classes(root / name, {"A": number, "B": number})
        save(root / "masks" / f"{seed}.png")
    parts = {split: load(root, split=split) for split in ("train", "validation", "test", "all")}
    assert [len(part) for part in parts.values()] == [8, 4, 6, 18]
    assert {name.split("/")[0] for name in parts["validation"].ids} == {names[1]}
    assert parts["all"].ids == sum((parts[split].ids for split in ("train", "validation", "test")), ())
    line = counted(root)
    assert f"8 used here ({names[0]}/), 4 kept for validation ({names[1]}/), 6 kept for test ({names[2]}/)" in line
    assert "passed over: 3 images outside these folders (masks/0.png)" in line


def test_two_folders_for_one_split_are_refused(root):
    for name in ("Train", "training"):
        write_classes(root / name, {"A": 1})
    with pytest.raises(ValueError, match="both Train/ and training/ mean the train split; keep one of them"):
        load(root)


def test_a_name_of_a_split_is_a_class_where_there_is_no_split(root):
    write_classes(root, {"valid": 5, "invalid": 5})
    assert load(root).classes == ("invalid", "valid")
    assert "8 used here, 2 kept for test" in counted(root)


def test_only_a_test_folder_can_be_evaluated_not_trained_on(root):
    write_classes(root / "Test", {"A": 2, "B": 3})
    assert len(load(root, split="test")) == len(load(root, split="all")) == 5
    for whole in (False, True):
        with pytest.raises(FileNotFoundError, match="has test but no train"):
            load(root, split="train", whole=whole)


def test_a_lone_validation_folder_is_no_class(root):
    write_classes(root / "val", {"A": 2, "B": 3})
    (root / "@eaDir").mkdir()  # of a NAS
    assert load(root, split="all").classes == ("A", "B")
    assert own_splits(root) == {"validation": "val"}
    with pytest.raises(FileNotFoundError, match="has validation but no train"):
        load(root, split="train")


def test_the_folder_below_the_class_is_the_group(root):
    write_classes(root, {"A/s1": 3, "A/s2": 3, "B/s3/level0": 3, "B/s4": 3})
    tiles = load(root)
    assert tiles.classes == ("A", "B")
    assert tiles.groups.tolist() == ["s1"] * 3 + ["s2"] * 3 + ["s3"] * 3 + ["s4"] * 3
    train, test = (load(root, split=split, test_fraction=0.5) for split in ("train", "test"))
    assert not set(train.groups) & set(test.groups)
    assert "groups: the 4 folders below the classes, not those deeper down" in counted(root)


def test_one_folder_of_pictures_in_each_class_is_no_group(root):
    write_classes(root, {"A/images": 3, "B/images": 3})
    assert load(root).groups is None


@pytest.mark.parametrize("pair", [("s1", "S1"), ("1", "1.0"), ("s 1", "s1"), ("se\u0301 1", "s\u00e9  1")])
def test_groups_that_may_be_one_slide_are_refused(root, pair):
    write_classes(root, {f"A/{pair[0]}": 2, f"B/{pair[1]}": 2})
    with pytest.raises(ValueError, match="differ only by case, blanks or"):
        load(root)


def test_blanks_around_group_ids_do_not_count(root, tmp_path):
    """Case 8: a spreadsheet with stray blanks."""
    names = write_classes(root, {"A": 30, "B": 30})
    rows = [f"{name},s{i // 3}{' ' * (i % 2)}" for i, name in enumerate(names)]
    (tmp_path / "g.csv").write_text("\n".join(["path,group", *rows]))
    train, test = (load(root, split=split, groups_csv=tmp_path / "g.csv") for split in ("train", "test"))
    assert not set(train.groups) & set(test.groups)
    assert len(set(train.groups) | set(test.groups)) == 20


def test_both_unicode_forms_of_a_name_are_one_class(root):
    """Case 24: macOS writes é as two characters."""
    for part, form in (("train", "NFC"), ("test", "NFD")):
        write_classes(root / part, {unicodedata.normalize(form, "séré"): 2, "B": 2})
    tiles = load(root)
    assert tiles.classes == ("B", unicodedata.normalize("NFC", "séré"))
    assert tiles.labels.tolist() == [0, 0, 1, 1] * 2


# --- listed whole, for pretraining ---


def test_pretraining_takes_all_images_at_any_depth_and_no_class(root):
    write_classes(root, {"images": 3, "images/more/deep": 2})
    save(root / "x.png")
    tiles = load(root, split="train", whole=True)
    assert (len(tiles), tiles.classes, tiles.groups) == (6, (), None)
    assert "found 6 images: all used here; folders are not taken for classes" in counted(root, whole=True)


def test_pretraining_leaves_the_set_s_own_validation_and_test_out(root):
    write_classes(root / "Train", {"A": 3, "B/s1": 2})
    write_classes(root / "val", {"A": 2})
    write_classes(root / "test", {"A": 1})
    tiles = load(root, split="train", whole=True)
    assert {name.split("/")[0] for name in tiles.ids} == {"Train"}
    assert "5 used here (Train/), 2 kept for validation (val/), 1 kept for test (test/)" in counted(root, whole=True)


def test_an_image_that_links_lead_to_again_is_pretrained_on_once(root):
    write_classes(root, {"A": 2})
    (root / "again.png").symlink_to("A/00.png")
    (root / "B").symlink_to("A")
    assert len(load(root, split="train", whole=True)) == 2
    assert "3 links to an image listed already" in counted(root, whole=True)


# --- faults ---


def test_missing_test_part_says_what_to_do(root):
    write_classes(root / "train", {"A": 2, "B": 2})
    assert len(load(root, split="train")) == 4
    with pytest.raises(FileNotFoundError, match=r"has train but no test .*; add it, or leave out all splits"):
        load(root, split="test")


def _oblong(root: Path) -> None:
    (root / "A").mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(root / "A" / "x.png")


LAYOUT_FAULTS = {
    "no train": (
        lambda r: (write_classes(r / "test", {"A": 1}), write_classes(r, {"B": 1})),
        "has test/ but no train/, and B/ beside it",
    ),
    "classes differ": (
        lambda r: (write_classes(r / "train", {"A": 1, "B": 1}), write_classes(r / "test", {"A": 1, "C": 1})),
        "must have the same class folders, but only train/ has B and only test/ has C",
    ),
    "classes by case": (
        lambda r: write_classes(r, {"HP": 1, "hp": 1}),
        "class folders: 'HP' and 'hp' differ only by case, .* one class would count as two",
    ),
    "train without classes": (lambda r: save(r / "train" / "x.png"), "train: has no class folders"),
    "mixed": (lambda r: (write_classes(r, {"A": 1}), save(r / "x.png")), r"both folders \(A, …\) and images \(x.png"),
    "MHIST": (
        lambda r: (write_classes(r, {"images": 2, "masks": 2}), (r / "annotations.csv").write_text("x")),
        "the layout of MHIST; give data.source=mhist",
    ),
    "masks": (
        lambda r: write_classes(r, {"Images": 2, "Masks": 2}),
        r"has Images/ and Masks/: masks are no tiles .*give data.root=.*Images",
    ),
    "masks below": (lambda r: write_classes(r, {"A/tiles": 2, "A/masks": 2}), "A has tiles/ and masks/"),
    "one folder too many": (
        lambda r: write_classes(r, {"set/train/A": 2, "set/test/A": 2}),
        "set has train/ and test/, but the splits must be the first level below data.root; give data.root=",
    ),
    "splits below classes": (lambda r: write_classes(r, {"A/train": 2, "A/Test": 2}), "A has train/ and Test/, but"),
    "some slides": (
        lambda r: write_classes(r, {"A/s1": 1, "B": 1}),
        "B/00.png lies in its class folder, A/s1/00.png in a folder below it",
    ),
    "train with images": (lambda r: (save(r / "Train" / "x.png"), save(r / "Test" / "x.png")), "Train: has no class"),
    "nothing": (lambda r: r.mkdir(), "has no images .looked for .png"),
    "empty class": (
        lambda r: (write_classes(r, {"A": 1}), (r / "B").mkdir()),
        "B: class folder without images; add images or remove the folder",
    ),
    "nested": (
        lambda r: write_classes(r, {"A": 1, "A/sub": 1}),
        "A/00.png lies in its class folder, A/sub/00.png in a folder below it",
    ),
    "oblong": (_oblong, r"x.png: is 8×6 pixels; tiles must be square"),
}


@pytest.mark.parametrize("name", LAYOUT_FAULTS)
def test_layout_fault_is_one_line(root, name):
    write, message = LAYOUT_FAULTS[name]
    write(root)
    with pytest.raises(ValueError, match=message) as caught:
        load(root)
    assert str(caught.value).startswith(str(root))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["A\nB", "A\x1b[31m", "A\udcff", "A/b\n.png", "A/\udcff.png"])
def test_names_that_cannot_be_shown_are_refused(tmp_path, name):
    place = tmp_path / name
    place = place if place.suffix else place / "0.png"
    place.parent.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(place)
    with pytest.raises(ValueError, match="rename it") as caught:
        load_folder(tmp_path, split="all", size_px=32)
    assert str(caught.value).isprintable()


def test_a_class_of_one_cannot_be_split(root):
    write_classes(root, {"A": 4, "B": 1})
    assert len(load(root)) == 5
    with pytest.raises(ValueError, match="class 'B' has 1 tile, but a split needs at least 2"):
        load(root, split="train")


def test_missing_root_and_file_as_root(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="set: no such folder"):
        load(root)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="file: is a file; expected a folder of tiles"):
        load(tmp_path / "file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,group\nA/00.png,s\n", r"no row for 3 of 4 tiles, the first is 'A/01.png'"),
        ("path,group\nA/00.png,s\nA/00.png,t\n", "line 3: 'A/00.png' occurs twice"),
        ("path,group\nA/00.png,\n", "line 2: 'A/00.png' has an empty 'group'"),
        ("paths,group\nA/00.png,s\n", "line 1: column 'path' is missing, found paths, group"),
    ],
)
def test_groups_csv_faults(root, tmp_path, content, message):
    write_classes(root, {"A": 4})
    (tmp_path / "g.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        load(root, groups_csv=tmp_path / "g.csv")
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such file"):
        load(root, groups_csv=tmp_path / "none.csv")
    data = DataConfig(root=str(root), source="folder", groups_csv=str(tmp_path / "none.csv"))
    with pytest.raises(FileNotFoundError, match=r"^data\.groups_csv: .*none\.csv: no such file"):
        load_tiles(data, split="train", progress=False)


def test_unknown_split_is_named(root):
    write_classes(root, {"A": 2, "B": 2})
    with pytest.raises(ValueError, match="split: got 'tests', allowed are train, validation, test, all"):
        load(root, split="tests")
