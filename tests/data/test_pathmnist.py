"""The MedMNIST loader: what is read, what is refused, and how much memory it takes."""

from __future__ import annotations

import os
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import forked
from npz_files import write_npz
from sscl.cli import main
from sscl.config import DataConfig
from sscl.data import load
from sscl.data.pathmnist import PATHMNIST_CLASSES, load_pathmnist, read_contents

COUNTS = {"train": 9, "val": 4, "test": 5}
SIDE = 8


def arrays(*, side: int = SIDE, classes: int = 3) -> dict[str, np.ndarray]:
    """A file's content as MedMNIST writes it: random pixels, labels 0, 1, ... in turn, uint8."""
    rng = np.random.default_rng(0)
    content: dict[str, np.ndarray] = {}
    for part, count in COUNTS.items():
        content[f"{part}_images"] = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        content[f"{part}_labels"] = (np.arange(count, dtype=np.uint8) % classes)[:, None]
    return content


def save(path: Path, content: dict[str, Any], *, allow_pickle: bool = False) -> Path:
    np.savez_compressed(path, allow_pickle=allow_pickle, **content)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SSCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save(tmp_path / "set.npz", arrays())


# --- what is read ---


@pytest.mark.parametrize(
    ("split", "parts"),
    [
        ("train", ["train"]),
        ("validation", ["val"]),
        ("val", ["val"]),
        ("test", ["test"]),
        ("all", ["train", "val", "test"]),
    ],
)
def test_a_split_is_what_numpy_reads(file, split, parts):
    tiles = load_pathmnist(file, split=split)
    with np.load(file) as archive:
        np.testing.assert_array_equal(tiles.images, np.concatenate([archive[f"{part}_images"] for part in parts]))
        labels = np.concatenate([archive[f"{part}_labels"][:, 0] for part in parts])
    np.testing.assert_array_equal(tiles.labels, labels)
    assert tiles.labels.dtype == np.int64
    assert tiles.ids == tuple(f"{part}/{row:06d}" for part in parts for row in range(COUNTS[part]))
    assert tiles.classes == ("0", "1", "2")
    assert tiles.groups is None


def test_many_pieces_make_the_same_array(file, number):
    number(npz_bytes=2 * SIDE * SIDE * 3)  # two tiles, and one left over
    tiles = load_pathmnist(file, split="all")
    with np.load(file) as archive:
        np.testing.assert_array_equal(tiles.images, np.concatenate([archive[f"{part}_images"] for part in COUNTS]))


def test_the_cache_is_mapped_until_the_file_changes(file, cache):
    first = load_pathmnist(file, split="test")
    assert isinstance(first.images, np.memmap)
    (written,) = (entry.stat().st_ino for entry in cache.iterdir())
    again = load_pathmnist(file, split="test")
    same_size = load_pathmnist(file, split="test", size_px=SIDE)
    assert [entry.stat().st_ino for entry in cache.iterdir()] == [written]  # the pixels were not read again
    np.testing.assert_array_equal(again.images, first.images)
    assert len(list(cache.iterdir())) == 1
    assert same_size.fingerprint == again.fingerprint == first.fingerprint

    changed = arrays()
    changed["test_images"] = 255 - changed["test_images"]
    save(file, changed)
    os.utime(file, ns=(1, 1))
    np.testing.assert_array_equal(load_pathmnist(file, split="test").images, changed["test_images"])


def test_files_of_equal_length_do_not_share_their_cache(tmp_path):
    """Another folder with the same name and time, as two archives can unpack; then another time alone."""
    one, other = arrays(), arrays()
    other["test_images"] = 255 - other["test_images"]
    for folder, content in (("a", one), ("b", other)):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "set.npz", **content)
        os.utime(tmp_path / folder / "set.npz", (1e9, 1e9))
        found = load_pathmnist(tmp_path / folder / "set.npz", split="test")
        np.testing.assert_array_equal(found.images, content["test_images"])
    np.savez(tmp_path / "a/set.npz", **other)
    assert (tmp_path / "a/set.npz").stat().st_size == (tmp_path / "b/set.npz").stat().st_size
    os.utime(tmp_path / "a/set.npz", (2e9, 2e9))
    np.testing.assert_array_equal(load_pathmnist(tmp_path / "a/set.npz", split="test").images, other["test_images"])


def test_splits_of_one_size_do_not_share_their_cache(tmp_path):
    content = arrays()
    content["val_images"], content["val_labels"] = 255 - content["test_images"], content["test_labels"]
    path = save(tmp_path / "set.npz", content)
    for part in ("test", "val"):
        np.testing.assert_array_equal(load_pathmnist(path, split=part).images, content[f"{part}_images"])


@pytest.mark.parametrize("size_px", [5, 13])
def test_another_size_is_antialiased_like_files_are(file, size_px):
    tiles = load_pathmnist(file, split="val", size_px=size_px)
    content = arrays()["val_images"]
    expected = [
        np.asarray(Image.fromarray(tile).resize((size_px, size_px), Image.Resampling.BICUBIC)) for tile in content
    ]
    np.testing.assert_array_equal(tiles.images, np.stack(expected))


def test_shrinking_averages(tmp_path):
    content = arrays(side=64)
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    content["val_images"][:] = stripes
    tiles = load_pathmnist(save(tmp_path / "stripes.npz", content), split="val", size_px=16)
    assert np.abs(tiles.images[:, :, 2:-2].astype(int) - 100).max() <= 2  # nearest or bilinear would alias


def test_only_the_pixels_asked_for_are_read(tmp_path):
    content = arrays(side=64)  # zipfile reads ahead some KiB
    path = tmp_path / "half.npz"
    np.savez(path, **content)  # stored, so that a byte of the pixels can be changed
    data = bytearray(path.read_bytes())
    place = data.find(content["train_images"].tobytes()) + content["train_images"].nbytes
    data[place - 1] ^= 1
    path.write_bytes(data)
    np.testing.assert_array_equal(load_pathmnist(path, split="test").images, content["test_images"])
    for split in ("train", "all"):
        with pytest.raises(ValueError, match=r"half\.npz: train_images is damaged \(Bad CRC-32"):
            load_pathmnist(path, split=split)


@pytest.mark.parametrize("side", [8, 64])
def test_the_checksum_of_packed_pixels_is_compared(tmp_path, side):
    path = save(tmp_path / "set.npz", arrays(side=side))
    with zipfile.ZipFile(path) as archive:
        wrong = archive.getinfo("train_images.npy").CRC
    path.write_bytes(path.read_bytes().replace(wrong.to_bytes(4, "little"), b"\1\2\3\4"))
    # Of small files the header already shows it: zipfile reads ahead some KiB.
    with pytest.raises(ValueError, match=r"train_images is damaged \(Bad CRC-32"):
        load_pathmnist(path, split="train")


# --- classes, labels, groups ---


@pytest.mark.parametrize("name", ["pathmnist.npz", "pathmnist_64.npz"])
def test_pathmnist_by_its_name(tmp_path, name):
    tiles = load_pathmnist(save(tmp_path / name, arrays()), split="train")
    assert tiles.classes == PATHMNIST_CLASSES
    assert len(PATHMNIST_CLASSES) == 9
    assert list(tiles.class_counts().values()) == [3, 3, 3, 0, 0, 0, 0, 0, 0]


def test_pathmnist_by_its_counts(tmp_path, number):
    number(pathmnist_counts={"train": 9, "val": 4, "test": 5})
    assert load_pathmnist(save(tmp_path / "a.npz", arrays(classes=9)), split="val").classes == PATHMNIST_CLASSES
    assert load_pathmnist(save(tmp_path / "b.npz", arrays(classes=8)), split="val").classes == tuple("01234567")
    number(pathmnist_counts={"train": 9, "val": 4, "test": 6})
    assert load_pathmnist(save(tmp_path / "c.npz", arrays(classes=9)), split="val").classes == tuple("012345678")


def test_names_in_the_file_come_first(tmp_path):
    content = {**arrays(), "classes": np.array(["a", "b", "c", "d"])}
    assert load_pathmnist(save(tmp_path / "pathmnist.npz", content), split="test").classes == ("a", "b", "c", "d")


def test_classes_are_the_same_in_every_split(tmp_path):
    content = arrays()
    content["test_labels"][:] = 0
    path = save(tmp_path / "set.npz", content)
    assert load_pathmnist(path, split="test").classes == load_pathmnist(path, split="train").classes == ("0", "1", "2")


def test_unlabelled_tiles_and_groups(tmp_path):
    content: dict[str, Any] = arrays()
    content["train_labels"] = content["train_labels"].astype(np.int16)
    content["train_labels"][4:6] = -1
    for part, count in COUNTS.items():
        content[f"{part}_groups"] = np.array([f"{part}{row // 2}" for row in range(count)])
    path = save(tmp_path / "set.npz", content)
    train, everything = (load_pathmnist(path, split=split) for split in ("train", "all"))
    assert train.class_counts() == {"0": 3, "1": 2, "2": 2, "unlabelled": 2}
    assert train.groups is not None
    assert everything.groups is not None
    assert train.groups.tolist() == content["train_groups"].tolist()
    assert everything.groups.tolist() == [name for part in COUNTS for name in content[f"{part}_groups"].tolist()]
    assert read_contents(path).groups is not None
    assert read_contents(save(tmp_path / "without.npz", arrays())).groups is None


# --- what is refused ---


def changed(**replacements: Any) -> dict[str, Any]:
    return {key: value for key, value in {**arrays(), **replacements}.items() if value is not None}


IMAGES, LABELS = arrays()["val_images"], arrays()["val_labels"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            changed(val_images=None, val_image=IMAGES),
            "key 'val_images' is missing, found train_images, train_labels, val_labels, test_images, test_labels, "
            "val_image; expected images and labels of train, val and test (MedMNIST layout)",
        ),
        ({"x": IMAGES}, "key 'train_images' is missing, found x; expected"),
        (changed(val_images=IMAGES.astype(np.float32)), "val_images: expected uint8 (n, s, s, 3), got float32 (4,"),
        (changed(val_images=IMAGES.transpose(0, 3, 1, 2).copy()), "val_images: expected uint8 (n, s, s, 3), got uint8"),
        (changed(val_images=np.repeat(IMAGES, 2, 3)[..., :4].copy()), "got uint8 (4, 8, 8, 4)"),
        (changed(val_images=IMAGES[..., 0].copy()), "val_images: 1 channel, sscl needs RGB (3 channels)"),
        (changed(val_images=IMAGES[..., :1].copy()), "val_images: 1 channel, sscl needs RGB (3 channels)"),
        (changed(val_images=IMAGES[:, :6].copy()), "val_images: tiles of 8×6 pixels; tiles must be square"),
        (
            changed(val_images=IMAGES[:, :6, :6].copy()),
            "the splits' tiles differ in size (train 8 px, val 6 px, test 8",
        ),
        (changed(val_images=np.asfortranarray(IMAGES)), "val_images: is in Fortran order"),
        (
            changed(val_images=IMAGES[:0], val_labels=LABELS[:0]),
            "val_images: shape (0, 8, 8, 3), so this split is empty",
        ),
        (changed(val_images=IMAGES[:3]), "val_labels: 4 labels for 3 images"),
        (changed(val_labels=np.eye(4, dtype=np.uint8)), "val_labels: 4 labels per tile (multi-label); sscl needs one"),
        (changed(val_labels=LABELS[:, :, None]), "val_labels: expected whole numbers (n, 1), got uint8 (4, 1, 1)"),
        (changed(val_labels=LABELS + 0.5), "val_labels: has labels that are no whole numbers, float64 (4, 1)"),
        (changed(val_labels=LABELS * np.nan), "val_labels: has labels that are no whole numbers, float64 (4, 1)"),
        (changed(val_labels=LABELS + np.inf), "val_labels: has labels that are no whole numbers, float64 (4, 1)"),
        (changed(val_labels=LABELS.astype("M8[s]")), "val_labels: expected whole numbers (n, 1), got datetime64[s] "),
        (changed(val_labels=None), "key 'val_labels' is missing"),
        (changed(test_images=None, test_labels=None), "key 'test_images' is missing"),
        (changed(val_images=np.zeros(4, "i4,f8")), "val_images: expected uint8 (n, s, s, 3), got [('f0', "),
        (
            changed(val_labels=LABELS.astype(np.int64) - 1),
            "val_labels: 2 tiles without a label (-1); only train may have",
        ),
        (changed(val_labels=LABELS.astype(np.int64) - 2), "val_labels: labels -2 to 0; allowed are 0, 1, ... and -1"),
        (changed(val_labels=LABELS.astype(np.uint64) + 2**63), "val_labels: labels 9223372036854775808 to"),
        (changed(val_labels=LABELS + 1), "val_labels: class '3' (label 3) has no tile in train"),
        (changed(test_labels=np.full((5, 1), 2), train_labels=np.arange(9)[:, None] % 2, val_labels=LABELS * 0), "'2'"),
        (changed(val_labels=np.full((4, 1), 250)), "4 different labels, the highest is 250; without `classes`"),
        (changed(classes=np.array(["a", "b"])), "train_labels: label 2, allowed are 0 to 1 for the 2 classes a, b"),
        (changed(classes=np.array(["a", "b", "a"])), "classes: names repeat in a, b, a"),
        (changed(classes=np.arange(3)), "classes: expected names, str (K,), got int64 (3,)"),
        (changed(val_groups=np.array(list("abcd"))), "has val_groups but no train_groups; give the groups of all"),
        (
            changed(**{f"{part}_groups": np.array(list("abcd")) for part in COUNTS}),
            "train_groups: expected str (9,), one group per tile, got <U1 (4,)",
        ),
        (
            changed(**{f"{part}_groups": np.arange(count) for part, count in COUNTS.items()}),
            "train_groups: expected str (9,), one group per tile, got int64 (9,)",
        ),
    ],
)
def test_what_is_not_in_the_layout_is_refused_in_one_line(tmp_path, cache, content, message):
    path = save(tmp_path / "set.npz", content)
    for split in ("train", "test"):  # whichever split is asked for
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            load_pathmnist(path, split=split)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
    assert not cache.exists()


def test_a_label_too_many_for_pathmnist(tmp_path):
    content = arrays()
    content["train_labels"][0] = 9
    with pytest.raises(ValueError, match=r"train_labels: label 9, allowed are 0 to 8 for the 9 classes adipose, "):
        load_pathmnist(save(tmp_path / "pathmnist.npz", content), split="train")


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("key", ["train_images", "train_labels", "classes"])
def test_pickled_objects_are_never_loaded(tmp_path, key):
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    path = save(tmp_path / "set.npz", changed(**{key: trap}), allow_pickle=True)
    with pytest.raises(ValueError, match=f"{key}: has pickled Python objects, which are never loaded"):
        load_pathmnist(path, split="train")
    assert not (tmp_path / "sprung").exists()
    with np.load(path, allow_pickle=True) as archive:  # the trap does spring
        archive[key]
    assert (tmp_path / "sprung").exists()


def test_files_that_are_none(tmp_path, file):
    whole = file.read_bytes()
    np.save(tmp_path / "alone.npy", IMAGES)
    for name, data in (
        ("cut.npz", whole[: len(whole) // 2]),
        ("empty.npz", b""),
        ("text.npz", b"<html>not found</html>"),
        ("alone.npz", (tmp_path / "alone.npy").read_bytes()),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}: is not an .npz file, or is truncated") as caught:
            load_pathmnist(tmp_path / name, split="train")
        assert ("one array alone" in str(caught.value)) == (name == "alone.npz")
    with pytest.raises(FileNotFoundError, match=r"none\.npz: no such file \(`sscl data download pathmnist` fetches"):
        load_pathmnist(tmp_path / "none.npz", split="train")
    with pytest.raises(FileNotFoundError, match=r"is a folder; give the \.npz file in it"):
        load_pathmnist(tmp_path, split="train")


def repacked(path: Path, member: str, change: Callable[[bytes], bytes]) -> Path:
    """Write a file of which one member is changed."""
    np.savez(path, **arrays())
    with zipfile.ZipFile(path) as source:
        content = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, data in content.items():
            target.writestr(name, change(data) if name == f"{member}.npy" else data)
    return path


def headed(header: str, *, version: bytes = b"\1\0") -> Callable[[bytes], bytes]:
    """Return what puts another header before an array's data."""
    length = struct.pack("<H" if version == b"\1\0" else "<I", len(header))
    return lambda data: b"\x93NUMPY" + version + length + header.encode() + data[128:]


HEADERS: dict[str, Callable[[bytes], bytes]] = {
    "another shape": lambda data: data.replace(b"(9, 8", b"(99, 8").replace(b" \n", b"\n", 1),
    "no magic": lambda data: data[9:],
    "version 9": headed("{}", version=b"\x09\0"),
    "1.6 TiB": headed("{'descr': '|u1', 'fortran_order': False, 'shape': (9163, 8000, 8000, 3)}"),
    "negative": headed("{'descr': '|u1', 'fortran_order': False, 'shape': (-9, 8, 8, 3)}"),
    "huge": headed(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**70}, 8, 8, 3)}}"),
    "fractions": headed("{'descr': '|u1', 'fortran_order': False, 'shape': (9.5, 8, 8, 3)}"),
    "truth": headed("{'descr': '|u1', 'fortran_order': False, 'shape': (True, 24, 24, 3)}"),
    "a word": headed("{'descr': '|u1', 'fortran_order': False, 'shape': __import__('os').getcwd()}"),
    "deep": headed("(" * 3000),
    "endless": headed("9" * 9000),
    "longer than its file": lambda data: b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1) + data,
    "no array": lambda _: b"",
}


@pytest.mark.parametrize("header", HEADERS)
def test_headers_that_lie(tmp_path, header):
    path = repacked(tmp_path / "lie.npz", "train_images", HEADERS[header])
    with pytest.raises(ValueError, match=r"lie\.npz: train_images is damaged") as caught:
        load_pathmnist(path, split="train")
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_members_that_are_no_arrays_or_no_text(tmp_path):
    path = tmp_path / "set.npz"
    for name, data in (("classes", b"a,b"), ("train_groups.npy", b"s1"), ("classes.npy", b"\x93NUMPY\1\0")):
        np.savez(path, **arrays())
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, data)
        with pytest.raises(ValueError, match=rf"^{path}: .*{name.removesuffix('.npy')}"):
            load_pathmnist(path, split="train")
    for codes in ([97, 98, 0x110000], [97, 98, 0xD800], [97, 98, 27]):
        np.savez(path, **arrays(), classes=np.array(codes, "<u4").view("<U1"))
        with pytest.raises(ValueError, match=rf"^{path}: classes") as caught:
            load_pathmnist(path, split="train")
        assert str(caught.value).isprintable()


def test_archives_that_lie(tmp_path):
    """In the directory (APPNOTE 4.3.12): version needed, flags, method, and sizes that the file cannot have."""
    path = tmp_path / "lie.npz"
    for offset, data, message in (
        (6, b"\xff\0", "version"),
        (8, b"\1\0", "is encrypted"),
        (10, b"\x63\0", "is packed by method 99"),
        (10, b"\x0c\0", "is packed by method 12"),
        (20, struct.pack("<II", 2**31, 2**31), "is damaged"),
        (24, struct.pack("<I", 2**31), "is damaged"),
    ):
        np.savez(path, **arrays())
        whole = bytearray(path.read_bytes())
        at = whole.rindex(b"train_labels.npy") - 46 + offset
        whole[at : at + len(data)] = data
        path.write_bytes(whole)
        with pytest.raises(ValueError, match=rf"^{path}: .*{message}"):
            load_pathmnist(path, split="train")
    np.savez(path, **arrays())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("train_labels.npy", b"")
    with pytest.raises(ValueError, match=r"two arrays 'train_labels\.npy'"):
        load_pathmnist(path, split="train")


def test_a_bomb_is_not_unpacked(tmp_path, number):
    number(npz_bomb_bytes=10_000)
    content = arrays(side=64)
    content["test_images"] = np.zeros((5, 64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match=r"test_images: would unpack 0\.0 MiB to 0\.1 MiB, as no tiles do"):
        load_pathmnist(save(tmp_path / "bomb.npz", content), split="train")


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    for path in (tmp_path / "pipe.npz", Path("/dev/zero")):
        with pytest.raises(ValueError, match=rf"{path}: is a .*, not an \.npz file"):
            load_pathmnist(path, split="train")


# --- what medmnist reads, and sscl with a line ---


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (lambda labels: labels[:, 0], True),
        (lambda labels: labels.astype(np.float32), True),
        (lambda labels: labels.astype(bool), True),
        (lambda labels: labels.astype(">i4"), False),
        (np.asfortranarray, False),
    ],
)
def test_labels_in_other_forms_are_taken_with_a_line(tmp_path, form, said):
    content = arrays(classes=2)
    others = {f"{part}_labels": form(content[f"{part}_labels"]) for part in COUNTS}
    tiles = load_pathmnist(save(tmp_path / "set.npz", {**content, **others}), split="all")
    assert tiles.labels.tolist() == [label for part in COUNTS for label in content[f"{part}_labels"][:, 0].tolist()]
    assert tiles.labels.dtype == np.int64
    assert len(tiles.account.notes) == said


def test_a_file_without_a_validation_part(tmp_path):
    path = save(tmp_path / "set.npz", changed(val_images=None, val_labels=None))
    tiles = load_pathmnist(path, split="all")
    assert len(tiles) == COUNTS["train"] + COUNTS["test"]
    assert tiles.account.parts == {"train": COUNTS["train"], "test": COUNTS["test"]}
    assert "no validation part" in " ".join(tiles.account.line("train").split())
    with pytest.raises(ValueError, match="no validation part"):
        load_pathmnist(path, split="validation")
    data = DataConfig(source="pathmnist", root=str(path))
    assert not load.has_validation(data)
    assert set(load.load_splits(data, progress=False)) == {"train", "test"}


@pytest.mark.parametrize("name", ["bloodmnist.npz", "dermamnist_64.npz", "RetinaMNIST.npz"])
def test_the_classes_of_other_sets_of_medmnist(tmp_path, name):
    classes = {"b": "basophil", "d": "actinic keratoses and intraepithelial carcinoma", "R": "0"}
    counts = {"b": 8, "d": 7, "R": 5}
    found = load_pathmnist(save(tmp_path / name, arrays()), split="test").classes
    assert (found[0], len(found)) == (classes[name[0]], counts[name[0]])


def test_a_wrong_split_or_size(file):
    with pytest.raises(ValueError, match="size_px: got 0"):
        load_pathmnist(file, split="val", size_px=0)
    with pytest.raises(ValueError, match="split: got 'vali', allowed are train, validation, test, all"):
        load_pathmnist(file, split="vali")


def test_through_the_command_line(tmp_path, capsys):
    path = save(tmp_path / "grey.npz", changed(train_images=arrays()["train_images"][..., 0].copy()))
    out = tmp_path / "look"
    words = ["data", "inspect", "data.source=pathmnist", f"data.root={path}", f"out={out}", "progress=false"]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"sscl: data.root: {path}: train_images: 1 channel")
    assert err.count("\n") == 1
    assert not out.exists()


# --- memory ---

MEASURE = """
import re, sys
from pathlib import Path
import numpy as np
from sscl.data.pathmnist import load_pathmnist
# Not resource's ru_maxrss, which begins at that of the parent.
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
for split in ("test", "train"):
    before = peak()
    tiles = load_pathmnist(sys.argv[1], split=split, cache_dir=sys.argv[2])
    int(np.asarray(tiles.images).max())
    print("measured", peak() - before, tiles.images.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_stays_near_that_of_the_split(tmp_path):
    content = arrays(side=64)
    content["train_images"] = np.ones((6000, 64, 64, 3), dtype=np.uint8)  # 74 MB, soon packed
    content["train_labels"] = (np.arange(6000) % 3)[:, None]
    path = tmp_path / "large.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for key, array in content.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array)

    done = forked.run(MEASURE, path, tmp_path / "large-cache")
    measured = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("measured")]
    (small, _), (grown, size) = ([int(word) for word in words] for words in measured)
    assert small < 30e6  # nothing of train
    assert size == content["train_images"].nbytes > 70e6
    assert 0.5 * size < grown < 1.3 * size  # and it is measured


# --- what sscl adds to the layout ---


def written_parts() -> dict[str, Any]:
    content = arrays()
    labels = {part: content[f"{part}_labels"][:, 0].astype(np.int64) for part in COUNTS}
    labels["train"][0] = -1
    return {part: (content[f"{part}_images"], labels[part], np.array(["p"] * n)) for part, n in COUNTS.items()}


def test_what_is_written_loads_as_the_same(tmp_path):
    parts = written_parts()
    write_npz(tmp_path / "w.npz", parts, classes=["x", "y", "z"])
    for part, (images, labels, groups) in parts.items():
        tiles = load_pathmnist(tmp_path / "w.npz", split=part)
        np.testing.assert_array_equal(tiles.images, images)
        np.testing.assert_array_equal(tiles.labels, labels)
        assert tiles.groups is not None
        assert tiles.groups.tolist() == groups.tolist()
        assert tiles.classes == ("x", "y", "z")


def test_groups_that_may_be_one_slide_are_refused(tmp_path):
    parts = written_parts()
    for part, slide in (("train", "S1"), ("val", "a"), ("test", "s1 ")):
        images, labels, _ = parts[part]
        parts[part] = (images, labels, np.array([slide] * len(labels)))
    write_npz(tmp_path / "w.npz", parts, classes=["x", "y", "z"])
    with pytest.raises(ValueError, match=r"w.npz: groups: 'S1' and 's1' differ only by case, blanks or '.0'"):
        load_pathmnist(tmp_path / "w.npz", split="train")


def test_the_account_counts_all_splits(file, cache):
    tiles = load_pathmnist(file, split="validation", cache_dir=cache)
    train, test = (len(load_pathmnist(file, split=split, cache_dir=cache)) for split in ("train", "test"))
    assert tiles.account.parts == {"train": train, "validation": len(tiles), "test": test}
