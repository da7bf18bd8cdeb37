"""What counts as a tile below a folder, and the line that accounts for everything else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sscl.data import decode, listing
from sscl.data.folder import own_splits
from sscl.data.listing import HIDDEN, RESULTS, SUFFIXES, Account, PassedOver, list_images


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_every_file_is_an_image_or_counted(tmp_path: Path) -> None:
    images = ["a.PNG", "b.Jpeg", "sub/c.tif", "sub/deep/d.JFIF", "x.png/e.jp2"]
    system = ["Thumbs.db", "sub/.DS_Store", "sub/._c.tif", "@eaDir/a.PNG/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/sub/._c.tif"]
    others = ["labels.csv", "sub/slide.svs", "sub/two.csv", "README"]
    touch(tmp_path, *images, *system, ".git/objects/1", ".git/objects/2", *others)
    (tmp_path / "empty").mkdir()
    found = list_images(tmp_path)
    assert found.images == images
    assert found.folders == ["empty", "sub", "sub/deep", "x.png"]
    assert found.passed_over.counts == {HIDDEN: 7, ".csv": 2, ".svs": 1, "file without suffix": 1}
    assert found.passed_over.examples[HIDDEN] == ".git/objects/1"
    files = sum(len(names) for _, _, names in os.walk(tmp_path))
    assert len(found.images) + sum(found.passed_over.counts.values()) == files


def test_pictures_in_a_folder_that_sscl_wrote_are_no_tiles(tmp_path: Path) -> None:
    touch(tmp_path, "A/a.png", "A/run/curves.png", "A/run/gradcam_test/a_panel.png", "A/other/b.png")
    (tmp_path / "A" / "run" / "env.json").write_text('{"sscl": "0.1"}')
    (tmp_path / "A" / "other" / "env.json").write_text('{"python": "3.12"}')
    found = list_images(tmp_path)
    assert found.images == ["A/a.png", "A/other/b.png"]
    assert found.passed_over.counts == {RESULTS: 3, ".json": 1}
    assert "3 files of an sscl run" in str(found.passed_over)


def test_what_is_no_file_is_passed_over_and_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "dead.png").symlink_to("nowhere")  # meant to be an image: reading it says what is wrong
    os.mkfifo(tmp_path / "env.json")
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "sub" / "env.json")
    found = list_images(tmp_path)
    assert found.images == ["a.png", "dead.png"]
    assert found.passed_over.counts == {"named pipe": 1, "device": 1, ".json": 2}
    assert "1 named pipe (pipe.png)" in str(found.passed_over)


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_suffix_can_be_decoded(tmp_path: Path, suffix: str) -> None:
    kind = Image.registered_extensions()[suffix]
    grey = suffix in (".pgm", ".pbm")
    Image.new("L" if grey else "RGB", (16, 16), 200 if grey else (200, 100, 50)).save(tmp_path / f"a{suffix}", kind)
    pixels = decode.read_image(tmp_path / f"a{suffix}", size_px=16).pixels
    assert pixels.shape == (16, 16, 3)


def test_links_that_lead_to_themselves_are_no_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.png", "test/b.png")
    for name in ("loop", "train/loop", "train/loop.png"):
        (tmp_path / name).symlink_to(Path(name).name)
    found = list_images(tmp_path)
    assert found.images == ["test/b.png", "train/a.png", "train/loop.png"]  # reading that says why it is none
    assert found.passed_over.counts == {"file without suffix": 2}
    assert own_splits(tmp_path) == {"train": "train", "test": "test"}


def test_links_that_lead_up_do_not_go_on_for_ever(tmp_path: Path) -> None:
    touch(tmp_path, "set/a.png", "elsewhere/b.png")
    (tmp_path / "set" / "up").symlink_to("..")
    (tmp_path / "set" / "more").symlink_to("../elsewhere")
    assert list_images(tmp_path / "set").images == ["a.png", "more/b.png"]


def test_a_relative_folder_that_is_missing_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"^set: no such folder .*working folder {tmp_path}"):
        list_images("set")
    with pytest.raises(FileNotFoundError, match=r"no such folder$"):
        list_images(tmp_path / "set")


def test_the_account_adds_up_and_fits_the_terminal() -> None:
    over = PassedOver()
    for name in ("a.txt", "b.txt", "c.csv"):
        over.add(name[1:], name)
    account = Account(
        "image",
        {"train": 1200, "validation": 7, "test": 9},
        places={"train": "Train/", "validation": "valid/", "test": "Test/"},
        passed_over=over,
    )
    line = account.line("train")
    assert "found 1,216 images: 1,200 used here (Train/), 7 kept for validation (valid/), 9 kept" in " ".join(
        line.split()
    )
    assert "2 .txt files (a.txt), 1 .csv file (c.csv)" in " ".join(line.split())
    assert all(len(part) <= 80 for part in line.splitlines())
    assert "all used here (Train/, valid/ and Test/)" in " ".join(account.line("all").split())
    assert "found 5 images: 3 used here, 2 not usable" in listing.Account("image", {"all": 3}, unusable=2).line("all")
    assert listing.Account("image", {"all": 3}).line("all") == "  found 3 images: all used here"


def test_where_links_lead_is_asked_only_where_each_file_counts_once(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "real.png").touch()
    for number in range(9):
        (tmp_path / f"a/{number}.png").symlink_to(tmp_path / "real.png")
    asked: list[Any] = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path, **named: (asked.append(path), real(path, **named))[1])
    assert (len(list_images(tmp_path).images), len(asked) < 9) == (10, True)
    assert (len(list_images(tmp_path, once=True).images), len(asked) > 9) == (1, True)
