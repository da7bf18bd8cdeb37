from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sscl.data import files, listing
from sscl.data.decode import read_image
from sscl.data.images import Decoded


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def names_below(folder: Path, found: files.Found) -> list[str]:
    return [os.path.relpath(name, folder) for name in found.names]


def test_a_folder_stands_for_all_images_below_it_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.PNG", "a.jpeg", "sub/deep/c.tif", "sub/ä ö.webp", ".hidden.png", ".git/x.png", "slide.svs")
    touch(tmp_path, "sub/notes.txt", "sub/more.txt", "README", "x.png/inner.bmp")
    found = files.find_images([tmp_path])
    assert names_below(tmp_path, found) == ["a.jpeg", "b.PNG", "sub/ä ö.webp", "sub/deep/c.tif", "x.png/inner.bmp"]
    assert found.files == found.names
    assert found.passed_over.counts == {".svs": 1, ".txt": 2, "file without suffix": 1, listing.HIDDEN: 2}
    assert str(found.passed_over).startswith("2 hidden or system files (.git/x.png), 2 .txt files (sub/more.txt), ")
    assert (found.repeated, found.faults) == (0, [])


def test_every_file_once_whatever_way_leads_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "t/a.png", "t/sub/b.png", "c.png")
    (tmp_path / "t" / "link.png").symlink_to("a.png")
    (tmp_path / "t" / "sub" / "up").symlink_to("..")  # never ends, if followed
    (tmp_path / "other").symlink_to("t/sub")
    (tmp_path / "list.csv").write_text("path\nt/a.png\nc.png\n")
    monkeypatch.chdir(tmp_path)
    found = files.find_images(["t", "t/a.png", "./t/../t/a.png", "other", str(tmp_path / "t" / "sub"), "list.csv"])
    assert found.names == ["t/a.png", "t/sub/b.png", "c.png"]
    assert found.repeated == 6  # link.png, a.png twice, b.png twice, a.png in the list
    assert files.find_images(["other"]).names == ["other/b.png"]


def test_a_list_keeps_its_names_and_means_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "set/x/a.png", "b.png")
    text = f"slide,path\r\n1,x/a.png\r\n2,{tmp_path / 'b.png'}\r\n3,x/none.png\r\n"
    (tmp_path / "set" / "list.CSV").write_bytes(b"\xef\xbb\xbf" + text.encode())
    monkeypatch.chdir(tmp_path)
    found = files.find_images(["set/list.CSV"])
    assert found.names == ["x/a.png", str(tmp_path / "b.png"), "x/none.png"]
    assert found.files == ["set/x/a.png", str(tmp_path / "b.png"), "set/x/none.png"]


def test_a_list_may_say_the_size_of_its_pixels(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "l.csv").write_text("path,mpp\na.png,0.5\nb.png,\nc.png,NA\n")
    np.testing.assert_array_equal(files.find_images([tmp_path / "l.csv"]).mpp, [0.5, np.nan, np.nan])
    assert all(np.isnan(files.find_images([tmp_path]).mpp))
    (tmp_path / "l.csv").write_text("path,mpp\na.png,40x\n")
    with pytest.raises(ValueError, match="line 2: mpp '40x'"):
        files.find_images([tmp_path / "l.csv"])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "file,slide\na.png,1\n",
            "list.csv: line 1: column 'path' is missing, found file, slide; rename or add it",
        ),
        ("path\n", "list.csv: has a header but no rows"),
        ("", "list.csv: is empty; expected the header path"),
        ("path,n\na.png,1\n,2\n", "list.csv: line 3: column 'path' is empty"),
        (
            "path\nx/a.png\nx/b.png\n",
            "list.csv: none of its 2 files exists, the first would be x/a.png",
        ),
    ],
)
def test_lists_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: str) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "list.csv").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=f"^{re.escape(line)}"):
        files.find_images(["list.csv"])


def test_a_path_that_is_no_file_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    os.mkfifo(tmp_path / "list.csv")
    (tmp_path / "null.png").symlink_to("/dev/null")
    for path, kind in {
        "/dev/zero": "device",
        tmp_path / "null.png": "device",
        tmp_path / "x.png": "named pipe",
        tmp_path / "list.csv": "named pipe",
    }.items():
        with pytest.raises(ValueError, match=f"^{path}: is a {kind}"):
            files.find_images([path])


def test_what_is_not_there_or_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "other/a.svs", "a/x.png", "b/x.png")
    (tmp_path / "empty").mkdir()
    for folder in ("a", "b"):
        (tmp_path / folder / "list.csv").write_text("path\nx.png\n")
    monkeypatch.chdir(tmp_path)
    where = f" (a relative path, looked for in the working folder {tmp_path})"
    for words, line in (
        (
            ["a", "none", "til*.png"],
            f"none: no such file or folder{where} (and 1 more such paths)",
        ),
        (
            ["til*.png"],
            f"til*.png: no such file or folder{where}; the shell",
        ),
        (["empty"], "empty: no images below it (looked for "),
        (["other", "empty"], "2 paths: no images below it; passed over: 1 .svs file (a.svs) (looked for "),
        (["a/list.csv", "b/list.csv"], "x.png: two lists"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=f"^{re.escape(line)}"):
            files.find_images(words)


def test_names_that_are_no_text_are_told(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as file:
        file.write(b"x")
    found = files.find_images([tmp_path])
    assert names_below(tmp_path, found) == ["a.png"]
    assert found.faults == [(f"{tmp_path}/caf\\xe9.png", "its name is not UTF-8; rename it")]


def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path, wrap: Any) -> None:
    touch(tmp_path, "a.png", "shut/b.png")

    def scandir(listed: Any, path: Any) -> Any:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    wrap(list_folder=scandir)
    found = files.find_images([tmp_path])
    assert names_below(tmp_path, found) == ["a.png"]
    assert found.faults == [(f"{tmp_path}/shut", "cannot be listed (Permission denied)")]


@pytest.mark.parametrize("processes", [False, True])
def test_batches_hold_what_the_files_hold_in_order(tmp_path: Path, wrap: Any, number: Any, processes: bool) -> None:
    if processes:
        wrap(decode_cores=lambda real, _: {0, 1})
        number(decode_processes_from=1)
    rng = np.random.default_rng(0)
    paths = []
    for i in range(50):
        side = 16 if i % 3 else 24
        paths.append(tmp_path / f"{i:02d}.png")
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(paths[-1])
    paths[7].write_bytes(b"no image")
    paths[20].write_bytes(paths[21].read_bytes()[:200])
    for i in range(32, 40):  # a whole batch
        paths[i].write_bytes(b"")
    found = list(files.batches(paths, size_px=16, batch_size=8))
    assert [len(batch.rows) + len(batch.faults) for batch in found] == [8] * 6 + [2]
    rows = np.concatenate([batch.rows for batch in found])
    np.testing.assert_array_equal(rows, [i for i in range(50) if i not in (7, 20, *range(32, 40))])
    expected = np.stack([read_image(paths[row], size_px=16).pixels for row in rows])
    np.testing.assert_array_equal(np.concatenate([batch.images for batch in found]), expected)
    sides = [side for batch in found for side in batch.sides_px]
    assert sides == [16 if row % 3 else 24 for row in rows]
    faults = dict(fault for batch in found for fault in batch.faults)
    assert list(faults) == [7, 20, *range(32, 40)]
    assert faults[7].startswith(f"{paths[7]}: is not a readable image")
    assert "truncated" in faults[20]
    assert (found[4].images.shape, found[4].sides_px) == ((0, 16, 16, 3), ())


def test_no_more_is_decoded_than_a_few_batches_ahead(wrap: Any) -> None:
    """Memory does not grow with the number of files; and a reader that leaves ends the decoding."""
    started = []

    def pixels_of(real: Any, item: Any, *, size_px: int, fit: str) -> Any:
        started.append(item)
        return Decoded(np.zeros((size_px, size_px, 3), np.uint8), (0, 0, size_px, size_px), ())

    wrap(decode_file=pixels_of)
    stream = files.batches([f"{i}" for i in range(1000)], size_px=16, batch_size=10)
    for number in range(1, 5):
        next(stream)
        assert len(started) <= 10 * (number + files._AHEAD)
    stream.close()
    assert len(started) <= 10 * (4 + files._AHEAD)
