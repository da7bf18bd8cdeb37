"""The MHIST loader, on small sets in its layout that the tests write themselves."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sscl.data.mhist import COLUMNS, PUBLISHED_COUNTS, load_mhist, load_truth_masks

# (name, label, votes, partition): 12 HP and 8 SSA, a third of each in test, partitions interleaved.
ROWS = [
    [
        f"t_{i:02d}.png",
        "HP" if i < 12 else "SSA",
        str(i % 4 if i < 12 else 4 + i % 4),
        "test" if i % 3 == 0 else "train",
    ]
    for i in range(20)
]


def pixels(index: int, size_px: int = 16) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)


def write_annotations(root: Path, rows: list[list[str]], *, columns: tuple[str, ...] = COLUMNS) -> None:
    with open(root / "annotations.csv", "w", newline="") as file:
        csv.writer(file).writerows([list(columns), *rows])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    for index, row in enumerate(ROWS):
        Image.fromarray(pixels(index)).save(root / "images" / row[0])
    write_annotations(root, ROWS)
    return root


def load(root: Path, *, protocol: str = "official", split: str = "all", **options):
    options = {"published": False, "size_px": 16, "cache_dir": root.parent / "cache", **options}
    return load_mhist(root, protocol=protocol, split=split, **options)


def change(row: int, column: int, value: str) -> list[list[str]]:
    rows = [list(each) for each in ROWS]
    rows[row][column] = value
    return rows


# --- what it returns ---


def test_every_field_comes_from_the_row_of_its_own_image(root):
    tiles = load(root)
    assert tiles.classes == ("HP", "SSA")
    assert sorted(tiles.ids) == [row[0] for row in ROWS]
    for index, name in enumerate(tiles.ids):
        number = int(name[2:4])
        assert tiles.labels[index] == (ROWS[number][1] == "SSA")
        assert tiles.votes[index] == int(ROWS[number][2])
        np.testing.assert_array_equal(tiles.images[index], pixels(number))
    assert tiles.groups is None


def test_official_splits_are_the_column_and_map_the_cache(root):
    train, test = load(root, split="train"), load(root, split="test")
    assert set(train.ids) == {row[0] for row in ROWS if row[3] == "train"}
    assert set(test.ids) == {row[0] for row in ROWS if row[3] == "test"}
    assert isinstance(train.images, np.memmap)
    assert isinstance(test.images, np.memmap)
    assert load(root).ids == train.ids + test.ids


def test_paper_balanced_takes_all_ssa_and_splits_by_the_seed(root):
    everything = load(root, protocol="paper_balanced")
    assert everything.class_counts() == {"HP": 8, "SSA": 8}
    train, test = (load(root, protocol="paper_balanced", split=split) for split in ("train", "test"))
    assert test.class_counts() == {"HP": 1, "SSA": 1}
    assert set(train.ids) | set(test.ids) == set(everything.ids)
    assert not set(train.ids) & set(test.ids)
    assert load(root, protocol="paper_balanced", split="test").ids == test.ids
    drawn = {frozenset(load(root, protocol="paper_balanced", seed=seed).ids) for seed in range(4)}
    assert len(drawn) > 1


def test_the_seed_decides_which_of_the_drawn_tiles_are_test(root):
    """With as many HP as SSA nothing is left to draw, so that the split alone can differ."""
    write_annotations(root, ROWS[4:])
    ids = [
        load(root, protocol="paper_balanced", split=split, seed=s).ids for split in ("all", "test") for s in range(6)
    ]
    assert len(set(ids[:6])) == 1
    assert len(set(ids[6:])) > 2


def test_paper_balanced_on_the_published_counts_is_1782_and_198(root, wrap):
    """The real set cannot be had here: its counts, with one stand-in image."""
    rows = [
        [f"m_{part}_{label}_{i}.png", label, "7" if label == "SSA" else "0", part]
        for part, counts in PUBLISHED_COUNTS.items()
        for label, count in counts.items()
        for i in range(count)
    ]
    assert len(rows) == 3152
    write_annotations(root, rows)
    sizes = {}

    def no_decoding(real, paths, *, size_px, exact_size_px, **options):
        sizes["exact"] = exact_size_px
        return np.zeros((len(paths), 1, 1, 3), np.uint8)

    wrap(mhist_decode=no_decoding, mhist_images=lambda find, root, names: [root / name for name in names])
    found = {
        (protocol, split): load(root, protocol=protocol, split=split, published=True).class_counts()
        for protocol in ("paper_balanced", "official")
        for split in ("train", "test")
    }
    assert found == {
        ("paper_balanced", "train"): {"HP": 891, "SSA": 891},
        ("paper_balanced", "test"): {"HP": 99, "SSA": 99},
        ("official", "train"): {"HP": 1545, "SSA": 630},
        ("official", "test"): {"HP": 617, "SSA": 360},
    }
    assert sizes["exact"] == 224


def test_slides_fill_the_groups(root):
    lines = [f"{row[0]},slide{i // 5}" for i, row in enumerate(ROWS)]
    (root / "slides.csv").write_text("\n".join(["Image Name,Slide", *lines, "other.png,slide9"]))
    tiles = load(root)
    assert tiles.groups.tolist() == [f"slide{int(name[2:4]) // 5}" for name in tiles.ids]


def test_tiles_are_resized_to_the_working_size(root):
    assert load(root, size_px=8).images.shape == (20, 8, 8, 3)


def test_truth_masks_follow_the_ids_and_halve_by_cover(root):
    assert load_truth_masks(root, ("t_00.png",), size_px=16) is None
    (root / "masks").mkdir()
    mask = np.zeros((16, 16), np.uint8)
    mask[:9, :8] = mask[:8, 8:] = 255  # a row of half-covered pixels
    mask[8, 8:12] = 100  # and of less
    Image.fromarray(mask).save(root / "masks" / "t_00.png")
    Image.fromarray(255 - mask).save(root / "masks" / "t_01.png")
    masks = load_truth_masks(root, ("t_01.png", "t_00.png"), size_px=8)
    assert masks.dtype == bool
    expected = np.zeros((8, 8), bool)
    expected[:4] = expected[4, :4] = True
    inverse = ~expected
    inverse[4, :4] = True  # half covered is inside
    np.testing.assert_array_equal(masks, [inverse, expected])
    with pytest.raises(FileNotFoundError, match=r"t_02\.png: this tile's truth mask is missing"):
        load_truth_masks(root, ("t_02.png",), size_px=8)
    Image.fromarray(pixels(0)).save(root / "masks" / "t_02.png")
    with pytest.raises(ValueError, match="is RGB of 16×16 pixels, expected a square 8-bit grey mask"):
        load_truth_masks(root, ("t_02.png",), size_px=8)
    (root / "masks" / "t_02.png").write_text("no image")
    with pytest.raises(ValueError, match=r"t_02\.png: is not a readable image"):
        load_truth_masks(root, ("t_02.png",), size_px=8)


# --- what it refuses ---


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (change(0, 1, "hp"), r"line 2: label 'hp', allowed are HP, SSA"),
        (change(3, 2, "8"), r"line 5: '8' votes for SSA, allowed is a whole number 0 to 7"),
        (change(3, 2, "-1"), r"line 5: '-1' votes for SSA"),
        (change(3, 2, "2.0"), r"line 5: '2.0' votes for SSA"),
        (change(3, 2, ""), r"line 5: '' votes for SSA"),
        (change(3, 2, "²"), r"line 5: '²' votes for SSA"),
        (change(3, 2, "4"), r"line 5: label HP contradicts 4 of 7 votes"),
        (change(15, 2, "3"), r"line 17: label SSA contradicts 3 of 7 votes"),
        (change(2, 3, "val"), r"line 4: partition 'val', allowed are train, test"),
        (change(2, 0, "t_01.png"), r"line 4: image name 't_01.png' occurs twice"),
        (change(2, 0, "../t_02.png"), r"line 4: image name '../t_02.png'; expected a plain file name"),
        (change(2, 0, "/etc/t_02.png"), r"line 4: image name '/etc/t_02.png'; expected a plain file name"),
        (change(2, 0, "a\\t_02.png"), r"line 4: image name .*; expected a plain file name"),
        (change(2, 0, ".."), r"line 4: image name '..'; expected a plain file name"),
        (change(2, 0, ""), r"line 4: image name ''; expected a plain file name"),
        (ROWS[:12], r"no tile of class SSA; expected both HP and SSA"),
        ([], r"has a header but no rows"),
    ],
)
def test_annotation_fault_is_one_line_with_file_and_line(root, rows, message):
    write_annotations(root, rows)
    with pytest.raises(ValueError, match=message) as caught:
        load(root)
    assert str(caught.value).startswith(f"{root / 'annotations.csv'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            ("Image Name", "Majority Label", *COLUMNS[2:]),
            "'Majority Vote Label' is missing, found Image Name, Majority",
        ),
        ((*COLUMNS[:3], "xyz"), "'Partition' is missing, found Image Name, Majority"),
    ],
)
def test_a_missing_column_is_named_with_those_found(root, columns, message):
    write_annotations(root, ROWS, columns=columns)
    with pytest.raises(ValueError, match=f"line 1: column {message}"):
        load(root)


def test_missing_files_and_folders(root, tmp_path):
    (root / "images" / "t_04.png").unlink()
    (root / "images" / "t_09.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 20 images of annotations.csv are missing, the first is t_0[49]"):
        load(root)
    (root / "annotations.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r'has no annotations.csv \(see README, "Getting MHIST"\)'):
        load(root)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        load(tmp_path / "nowhere")
    write_annotations(tmp_path, ROWS)
    with pytest.raises(FileNotFoundError, match=r"has no folder images/"):
        load(tmp_path)


def test_unusable_image_is_named(root):
    Image.fromarray(pixels(1, 20)).save(root / "images" / "t_05.png")
    with pytest.raises(ValueError, match=r"t_05\.png: is 20×20 pixels, expected 16×16"):
        load(root)
    (root / "images" / "t_05.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"t_05\.png: is empty"):
        load(root)
    # Also when it is the very first, whose size sets the rule for the others.
    Image.fromarray(pixels(5)).save(root / "images" / "t_05.png")
    first = load(root).ids[0]
    (root / "images" / first).write_text("no image")
    with pytest.raises(ValueError, match=rf"{first}: is not a readable image"):
        load(root)


def test_published_counts_and_size_are_held(root, number):
    with pytest.raises(ValueError, match=r"8 HP tiles in partition train, MHIST has 1545; .*published=false"):
        load(root, published=True)
    number(mhist_counts={"train": {"HP": 8, "SSA": 5}, "test": {"HP": 4, "SSA": 3}})
    with pytest.raises(ValueError, match="is 16×16 pixels, expected 224×224"):
        load(root, published=True)


def test_a_partition_without_a_class_is_refused(root):
    rows = [[*row[:3], "train" if row[1] == "SSA" else row[3]] for row in ROWS]
    write_annotations(root, rows)
    assert load(root, split="train").class_counts() == {"HP": 8, "SSA": 8}
    with pytest.raises(ValueError, match="partition test has no SSA tile"):
        load(root, split="test")


def test_paper_balanced_needs_two_of_each(root):
    write_annotations(root, ROWS[:13])
    with pytest.raises(ValueError, match="the smaller class has 1 tile"):
        load(root, protocol="paper_balanced", split="train")


def test_slides_faults(root):
    slides = root / "slides.csv"
    slides.write_text("Image Name,Slide\nt_00.png,a\n")
    with pytest.raises(ValueError, match=r"slides.csv: no row for 19 of 20 tiles, the first is 't_01.png'"):
        load(root)
    slides.write_text("Image Name,Slide\nt_00.png,a\nt_00.png,b\n")
    with pytest.raises(ValueError, match=r"line 3: 't_00.png' occurs twice"):
        load(root)
    slides.write_text("Image Name,Slide\nt_00.png,\n")
    with pytest.raises(ValueError, match=r"line 2: 't_00.png' has an empty 'Slide'"):
        load(root)


def test_unknown_protocol_and_split_are_named(root):
    with pytest.raises(ValueError, match="protocol: got 'paper', allowed are official, paper_balanced"):
        load(root, protocol="paper")
    with pytest.raises(ValueError, match="split: got 'val', allowed are train, test, all"):
        load(root, split="val")


def test_the_account_tells_tiles_masks_and_strays_apart(root):
    for name in ("masks/t_00.png", "images/stray.png"):
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels(0)).save(root / name)
    (root / "images.zip").write_text("x")
    account = load(root, split="train").account
    rows = [row[3] for row in ROWS]
    assert dict(account.parts) == {name: rows.count(name) for name in ("train", "test")}
    assert account.passed_over.counts == {"image not in annotations.csv": 1, "mask of the tiles": 1, ".zip": 1}
    balanced = load(root, split="test", protocol="paper_balanced")
    assert balanced.account.parts["test"] == len(balanced)
    left = len(ROWS) - sum(balanced.account.parts.values())
    assert balanced.account.notes == (f"{left} tiles of the larger class left out by the protocol",)
