"""sscl slides tile and inspect: what is indexed, kept, indexed anew, and said."""

from __future__ import annotations

import csv
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from PIL import Image

from sscl.slides.index import read_entries, read_index
from sscl.slides.write import EncodedLevel, encode_level, write_levels

SIDE, MPP = 384, 2.0  # pixels, µm
ASKED = ("mpp=2", "size_px=32", "threads=2", "progress=false")


def drawn(seed: int) -> list[EncodedLevel]:
    """A disc of tissue on glass; -1: glass alone."""
    rng = np.random.default_rng(abs(seed))
    pixels = np.full((SIDE, SIDE, 3), (240, 239, 241), np.uint8)
    if seed >= 0:
        colour = rng.integers(-25, 25, (SIDE // 4, SIDE // 4, 1)).repeat(4, 0).repeat(4, 1) + (200, 130, 180)
        disc = cv2.circle(np.zeros((SIDE, SIDE), np.uint8), (180 + 3 * seed, 190), 120, 1, -1)
        pixels = np.where(disc[..., None] > 0, colour, pixels).astype(np.uint8)
    return [encode_level(pixels, tile_px=128)]


@pytest.fixture(scope="module")
def levels() -> Callable[[int], list[EncodedLevel]]:
    made: dict[int, list[EncodedLevel]] = {}
    return lambda seed: made.setdefault(seed, drawn(seed))


@pytest.fixture
def put(levels: Callable[[int], list[EncodedLevel]]) -> Callable[..., Path]:
    """Return a function that writes a slide."""

    def write(path: Path, seed: int = 0, **options: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_levels(path, levels(seed), **{"mpp": MPP, **options})
        return path

    return write


@pytest.fixture
def slides(tmp_path: Path, put: Callable[..., Path]) -> Path:
    """Two slides of one name in two folders, a third, and glass alone."""
    for seed, name in enumerate(("a.svs", "sub/a.svs", "b.svs")):
        put(tmp_path / "s" / name, seed)
    put(tmp_path / "s" / "glass.svs", -1)
    return tmp_path / "s"


@pytest.fixture
def index(cli: Any, slides: Path, tmp_path: Path) -> Path:
    result = cli("slides", "tile", slides, f"out={tmp_path / 'i'}", *ASKED)
    assert (result.code, result.err) == (0, "")
    return tmp_path / "i"


def content(index: Path) -> dict[str, bytes]:
    """Every file but env.json, which says when and where."""
    files = (path for path in index.rglob("*") if path.is_file() and path.name != "env.json")
    return {path.relative_to(index).as_posix(): path.read_bytes() for path in files}


def inodes(index: Path) -> dict[str, int]:
    """A number of each grid and preview, another one where it was written again."""
    return {path.name: path.stat().st_ino for kind in ("grids", "previews") for path in (index / kind).rglob("*.*")}


def rows(index: Path) -> dict[str, dict[str, str]]:
    with (index / "slides.csv").open(newline="", encoding="utf-8") as file:
        return {row["slide"]: row for row in csv.DictReader(file)}


def statuses(index: Path) -> dict[str, str]:
    return {entry.name: entry.status for entry in read_entries(index)}


def test_slides_of_one_name_are_two_and_a_link_to_one_is_none(cli: Any, slides: Path, tmp_path: Path) -> None:
    """T18; and glass is no failure (T11)."""
    (slides / "0_link.svs").symlink_to("b.svs")
    (slides / "linked").symlink_to("sub")
    (slides / "notes.txt").touch()
    result = cli("slides", "tile", slides, f"out={tmp_path / 'i'}", *ASKED)
    assert (result.code, result.err) == (0, "")
    assert "1 .txt file (notes.txt)" in " ".join(result.out.split())
    assert "2 links to a slide listed already" in " ".join(result.out.split())
    found = read_index(tmp_path / "i")
    assert [one.slide.name for one in found.slides] == ["a.svs", "b.svs", "sub/a.svs"]
    assert [one.name for one in found.others] == ["glass.svs"]
    assert {row["status"] for row in rows(tmp_path / "i").values()} == {"tiles", "no tissue"}
    grid = found.grid(0)
    assert len(grid) > 20
    assert (grid[:, 2] >= 25).all()
    assert (grid[:, :2] % 32 == 0).all()
    assert ((grid[:, :2] + 32) <= SIDE).all()
    assert (tmp_path / "i" / "previews" / "sub" / "a.svs.jpg").read_bytes()[:2] == b"\xff\xd8"


def test_the_same_command_again_writes_nothing(cli: Any, slides: Path, index: Path) -> None:
    before, numbers = content(index), inodes(index)
    result = cli("slides", "tile", slides, f"out={index}", *ASKED)
    assert result.code == 0
    assert "kept as they were: 4 slides; indexed now: 0" in result.out
    assert (content(index), inodes(index)) == (before, numbers)


def test_files_of_the_index_that_are_damaged_are_written_again(cli: Any, slides: Path, index: Path) -> None:
    (index / "previews" / "remarks.txt").write_text("of a person, who keeps them")
    before = content(index)
    (index / "slides" / "a.svs.json").write_text("{")
    (index / "previews" / "b.svs.jpg").unlink()
    grid = np.load(index / "grids" / "sub" / "a.svs.npy")
    np.save(index / "grids" / "sub" / "a.svs.npy", grid[::-1])
    (index / "grids" / "of_nobody.npy").touch()
    result = cli("slides", "tile", slides, f"out={index}", *ASKED)
    assert (result.code, result.err) == (0, "")
    assert "indexed now: 3" in result.out
    assert content(index) == before


def test_slides_that_moved_are_found_again(cli: Any, slides: Path, index: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(slides, moved, copy_function=shutil.copy)  # with other times
    shutil.rmtree(slides)
    (moved / "b.svs").rename(moved / "sub" / "renamed.svs")
    before, numbers = np.array(read_index(index).grid(1)), inodes(index)
    result = cli("slides", "tile", moved, f"out={index}", *ASKED)
    assert result.code == 0
    assert "indexed now: 0" in result.out
    found = read_index(index)
    assert [one.slide.name for one in found.slides] == ["a.svs", "sub/a.svs", "sub/renamed.svs"]
    assert all(one.slide.file.is_file() for one in found.slides)
    np.testing.assert_array_equal(found.grid(2), before)
    assert inodes(index)["a.svs.npy"] == numbers["a.svs.npy"]
    assert not (index / "slides" / "b.svs.json").exists()


def test_a_file_that_was_replaced_is_indexed_anew(cli: Any, slides: Path, index: Path, put: Any) -> None:
    """T19: also where its size and its time are those of the one before."""
    time = (slides / "a.svs").stat().st_mtime_ns
    size = (slides / "a.svs").stat().st_size
    put(slides / "a.svs", 3)
    with (slides / "a.svs").open("ab") as file:
        file.truncate(max(size, file.tell()))
    os.utime(slides / "a.svs", ns=(time, time))
    before, grid = read_index(index).fingerprint, read_index(index).grid(0).tolist()
    result = cli("slides", "tile", slides, f"out={index}", *ASKED)
    assert "kept as they were: 3 slides; indexed now: 1" in result.out
    found = read_index(index)
    assert found.fingerprint != before
    assert found.grid(0).tolist() != grid
    os.utime(slides / "b.svs", ns=(5, 5))
    assert "indexed now: 1" in cli("slides", "tile", slides, f"out={index}", *ASKED).out


def test_a_slide_that_is_gone_is_said_and_comes_back(cli: Any, slides: Path, index: Path) -> None:
    before = content(index)
    (slides / "b.svs").rename(slides.parent / "b.svs")
    result = cli("slides", "tile", slides, f"out={index}", *ASKED)
    assert result.code == 0
    assert "b.svs" in result.out.partition("note: 1 slide of the index")[2]
    assert statuses(index)["b.svs"] == "gone"
    assert [one.slide.name for one in read_index(index).slides] == ["a.svs", "sub/a.svs"]
    (slides.parent / "b.svs").rename(slides / "b.svs")
    assert "indexed now: 0" in cli("slides", "tile", slides, f"out={index}", *ASKED).out
    assert content(index) == before


def test_settings_that_changed_index_anew_and_another_scale_is_refused(cli: Any, slides: Path, index: Path) -> None:
    before = content(index)
    for other in (("mpp=4", "size_px=32"), ("mpp=2", "size_px=64")):
        result = cli("slides", "tile", slides, f"out={index}", *other)
        assert result.code == 2
        assert all(word in result.err for word in ("mpp=2.0 size_px=32", "--overwrite", other[1]))
    assert content(index) == before
    assert "indexed now: 4" in cli("slides", "tile", slides, f"out={index}", *ASKED, "min_coverage=0.9").out
    assert read_index(index).grid(0)[:, 2].min() >= 90
    result = cli("slides", "tile", slides, f"out={index}", "mpp=4", "size_px=32", "--overwrite", "progress=false")
    assert result.code == 0
    assert read_index(index).mpp == 4


def test_what_fails_is_said_and_the_others_go_on(cli: Any, slides: Path, index: Path, tmp_path: Path) -> None:
    """T17: truncated, empty, a folder, text, zip, HTML; T1: no µm per pixel."""
    whole = (slides / "a.svs").read_bytes()
    bad = {
        "text.svs": b"hello\n",
        "page.svs": b"<!DOCTYPE html><html>",
        "zip.svs": b"PK\x03\x04" + b"0" * 50,
        "empty.svs": b"",
    }
    for name, data in (bad | {"cut.svs": whole[: len(whole) // 2]}).items():
        (slides / name).write_bytes(data)
    (slides / "folder.svs").mkdir()
    bad |= {"two\nlines.svs": b"x", f"{'n' * 240}.svs": b"x"}
    for name in bad:
        (slides / name).touch()
    result = cli("slides", "tile", slides, f"out={index}", *ASKED)
    assert (result.code, result.err) == (3, "")
    failed = {name for name, status in statuses(index).items() if status == "failed"}
    assert {*list(bad)[:4], "cut.svs", "folder.svs", "two\\nlines.svs"} < failed
    assert len(failed) == len(bad) + 2
    assert all(sum(line.strip().startswith(f"{name}: ") for line in result.out.splitlines()) == 1 for name in failed)
    assert all(row["reason"] for row in rows(index).values() if row["status"] == "failed")
    assert len(read_index(index).slides) == 3
    for name in bad:
        (slides / name).unlink()
    (slides / "folder.svs").rmdir()
    shutil.copy(slides / "b.svs", slides / "cut.svs")
    again = cli("slides", "tile", slides, f"out={index}", *ASKED)
    assert again.code == 0
    assert "(b.svs, cut.svs)" in again.out  # a copy of another one
    assert set(statuses(index)) == {"a.svs", "b.svs", "cut.svs", "glass.svs", "sub/a.svs"}


def test_a_scale_that_is_not_known_is_asked_for_by_both_ways_to_give_it(cli: Any, put: Any, tmp_path: Path) -> None:
    """T1, and that slides_csv comes before the file."""
    put(tmp_path / "s" / "none.svs", mpp=None)
    put(tmp_path / "s" / "wrong.svs", 1, mpp=0.5)
    out = tmp_path / "i"
    result = cli("slides", "tile", tmp_path / "s" / "none.svs", f"out={out}", *ASKED)
    assert (result.code, out.exists()) == (2, False)
    assert all(word in result.err for word in ("none.svs", "slides_csv", "slide_mpp"))
    (tmp_path / "mpp.csv").write_text("slide;mpp\nwrong;2,0\n")
    words = (f"out={out}", f"slides_csv={tmp_path / 'mpp.csv'}", "slide_mpp=2.0", *ASKED)
    result = cli("slides", "tile", tmp_path / "s", *words)
    assert result.code == 0, result.err
    found = {name: (row["slide_mpp"], row["mpp_from"]) for name, row in rows(out).items()}
    assert found == {"none.svs": ("2.0", "slide_mpp"), "wrong.svs": ("2.0", "slides_csv")}
    for without in ("slide_mpp", "slides_csv"):  # which would take tiles or labels away
        fewer = [word for word in words if not word.startswith(without)]
        refused = cli("slides", "tile", tmp_path / "s", *fewer)
        assert refused.code == 2
        assert refused.err.startswith(f"sscl: {without}: missing")


def test_labels_come_from_the_table(cli: Any, slides: Path, index: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("slide,patient,label,split\nb,p1,HP,train\nsub/a.svs,p2,SSA,test\nelsewhere.svs,p3,HP,train\n")
    result = cli("slides", "tile", slides, f"out={index}", *ASKED, f"slides_csv={path}")
    assert result.code == 0
    assert "kept as they were: 4 slides" in result.out
    assert "elsewhere.svs" in result.out
    assert "a.svs, glass.svs" in " ".join(result.out.split())
    assert "1 slide has no split" in " ".join(result.out.split())
    assert "slides_csv: 1 HP, 1 SSA, 1 without; 1 test, 1 train, 1 without; 2 patients" in result.out
    inside = cli("slides", "tile", slides, f"out={index}", *ASKED, f"slides_csv={index / 'slides.csv'}")
    assert inside.code == 2
    assert "lies in the index" in inside.err
    found = {one.slide.name: (one.patient, one.label, one.split) for one in read_index(index).slides}
    assert found == {"a.svs": (None,) * 3, "b.svs": ("p1", "HP", "train"), "sub/a.svs": ("p2", "SSA", "test")}


def test_tiles_of_other_programs_are_an_index(cli: Any, slides: Path, tmp_path: Path) -> None:
    for name, places in (("b", [[64, 0], [0, 0], [300, 370]]), ("glass", np.zeros((0, 2)))):
        (tmp_path / "job" / "patches").mkdir(parents=True, exist_ok=True)
        with h5py.File(tmp_path / "job" / "patches" / f"{name}_patches.h5", "w") as file:
            data = file.create_dataset("coords", data=np.asarray(places, dtype=np.int64))
            data.attrs.update({"patch_size": 32, "patch_size_level0": 32, "target_magnification": 5})
    (slides / "sub" / "a.svs").unlink()
    words = ("slides", "tile", slides, f"out={tmp_path / 'i'}", f"coordinates={tmp_path / 'job'}", *ASKED)
    result = cli(*words)
    assert result.code == 3
    assert statuses(tmp_path / "i") == {"a.svs": "failed", "b.svs": "tiles", "glass.svs": "no tissue"}
    assert read_index(tmp_path / "i").grid(0).tolist() == [[0, 0, -1], [64, 0, -1], [300, 370, -1]]
    assert "indexed now: 0" in cli(*words).out
    wider = cli(
        "slides", "tile", slides, f"out={tmp_path / 'j'}", f"coordinates={tmp_path / 'job'}", "mpp=2", "size_px=64"
    )
    assert wider.code == 2
    assert "64.0 µm; size_px=64 at mpp=2 is 128.0 µm" in wider.err


def test_inspect_says_what_slides_are(cli: Any, slides: Path, index: Path, tmp_path: Path) -> None:
    (slides / "text.svs").write_text("hello")
    files = cli("slides", "inspect", slides, f"out={tmp_path / 'o'}", "progress=false")
    assert (files.code, files.err) == (3, "")
    assert "a.svs: aperio, 384 x 384 px, 1 level, 2 µm/px (aperio.MPP)" in files.out
    assert rows(tmp_path / "o")["text.svs"]["status"] == "failed"
    with Image.open(tmp_path / "o" / "previews.jpg") as sheet:  # the one that failed first
        cells = np.asarray(sheet.convert("RGB"))[100:260]
    assert [len(np.unique(cells[:, left : left + 300])) > 30 for left in (30, 390)] == [False, True]
    found = cli("slides", "inspect", index, f"out={tmp_path / 'p'}")
    assert found.code == 0
    tiles = len(read_index(index).grid(0))
    assert f"{tiles} tiles" in found.out
    assert rows(tmp_path / "p") == rows(index)
    assert (tmp_path / "p" / "previews.jpg").stat().st_size > 1000
    assert cli("slides", "inspect", slides / "text.svs").code == 3
    (index / "slides.csv").unlink()
    assert "unfinished" in cli("slides", "inspect", index).out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["empty", "out=i", "mpp=2"], "empty: has no slide"),
        (["images", "out=i", "mpp=2"], "data.source=folder"),
        (["nowhere", "out=i", "mpp=2"], "nowhere: no such slide or folder"),
        (["s", "out=i", "mpp=0"], "mpp: must be >= 0.05"),
        (["s", "out=i", "mpp=50"], "mpp: must be >= 0.05 and <= 40"),
        (["s", "out=i", "mpp=0.5"], "coarser than the 0.5"),
        (["s", "out=i", "mpp=2", "size_px=500"], "smaller than a tile"),
        (["s", "out=s", "mpp=2"], "is no index"),
        (["s/b.svs", "out=s/sub", "mpp=2", "--overwrite"], "is no index"),
        (["s", "out=s/a.svs", "mpp=2"], "is a file"),
        (["s", "out=i", "mpp=2", "slides_csv=nowhere.csv"], "nowhere.csv: no such file"),
        (["s", "out=i", "mpp=2", "coordinates=empty"], "no .h5 files"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    cli: Any, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    before = sorted(tmp_path.rglob("*"))
    result = cli("slides", "tile", *words, "progress=false")
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_leaves_what_the_same_command_goes_on_with(
    cli: Any, slides: Path, tmp_path: Path, wrapped: Any
) -> None:
    left = iter(range(9))

    def full(real: Any, handle: Any) -> None:
        if next(left, None) is None:
            raise OSError(28, "No space left on device")

    with wrapped(sync=full):
        result = cli("slides", "tile", slides, f"out={tmp_path / 'i'}", *ASKED)
    assert result.code == 2
    assert "free some space" in result.err
    assert cli("pretrain", tmp_path / "i", "run=x").code == 2  # unfinished
    result = cli("slides", "tile", slides, f"out={tmp_path / 'i'}", *ASKED)
    assert result.code == 0
    whole = cli("slides", "tile", slides, f"out={tmp_path / 'j'}", *ASKED)
    assert whole.code == 0
    assert grids(tmp_path / "i") == grids(tmp_path / "j")


def grids(index: Path) -> dict[str, bytes]:
    return {name: data for name, data in content(index).items() if name != "config.yaml"}


def test_a_folder_that_cannot_be_listed_is_said_and_the_others_go_on(
    cli: Any, slides: Path, tmp_path: Path, wrapped: Any
) -> None:
    def refuse(real: Any, path: Any) -> Any:
        if str(path).endswith(("sub", "closed")):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    (tmp_path / "closed").mkdir()
    with wrapped(list_folder=refuse):
        result = cli("slides", "tile", slides, f"out={tmp_path / 'i'}", *ASKED)
        whole = cli("slides", "tile", tmp_path / "closed", f"out={tmp_path / 'j'}", *ASKED)
    assert result.code == 3
    assert "sub: cannot be listed (Permission denied)" in " ".join(result.out.split())
    assert [one.slide.name for one in read_index(tmp_path / "i").slides] == ["a.svs", "b.svs"]
    assert whole.code == 2
    assert "closed: cannot be listed (Permission denied)" in whole.err


def test_more_slides_than_files_that_may_be_open(cli: Any, slides: Path, tmp_path: Path) -> None:
    """T24, in small: 12 more slides, and 12 more files than now."""
    for number in range(12):
        shutil.copy(slides / "a.svs", slides / f"c{number}.svs")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 12, hard))
    try:
        result = cli("slides", "tile", slides, f"out={tmp_path / 'i'}", *ASKED)
        assert (result.code, result.err) == (0, "")
        assert len(read_index(tmp_path / "i").slides) == 15
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_one_command_at_a_time_writes_an_index(cli: Any, slides: Path, index: Path, hold: Any) -> None:
    """T21."""
    before = content(index)
    hold(index)
    result = cli("slides", "tile", slides, f"out={index}", *ASKED)
    assert result.code == 2
    assert "writes there" in result.err
    assert content(index) == before
