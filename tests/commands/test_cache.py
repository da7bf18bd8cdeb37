"""sscl cache: what it lists, and what it deletes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sscl import locks
from sscl.data.cache import cached_outputs, cached_tiles


@pytest.fixture
def cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Path]:
    """Two sets of tiles, features, what a dead and a live process write, and a file of somebody else."""
    for key, n in (("a", 3), ("b", 2)):
        cached_tiles(key, (n, 16, 16, 3), lambda images: images.fill(0), cache_dir=tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert [str(tmp_path) in line and "sscl cache" in line for line in said] == [True, True]
    cached_outputs(lambda: np.zeros((2, 2), np.float32), key=["c"], rows=2, cache_dir=tmp_path)
    (features,) = tmp_path.glob("features-*.npy")
    features.rename(tmp_path / "features-c.npy")
    for name in (".tiles-d.npy.0123456789ab.tmp", ".features-e.npy.0123456789ab.tmp", "notes.txt"):
        (tmp_path / name).write_text("x")
    then = time.time() - 86400 * 40
    os.utime(tmp_path / "tiles-a.npy", (then, then))
    with locks.held(tmp_path / ".features-e.npy.0123456789ab.tmp"):
        yield tmp_path


def names(folder: Path) -> set[str]:
    found = [path.name for path in folder.iterdir() if path.suffix != ".lock"]
    return {name.split(".")[0] or name.split(".")[1] for name in found}


def test_it_lists_what_is_there_and_deletes_nothing(cli: Any, cache: Path) -> None:
    result = cli("cache", cache)
    assert result.code == 0, result.err
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert lines[0].startswith(f"{cache}: 5 files, 0.0 MiB")
    assert "decoded tiles 2 0.0 MiB last used today to 40 days ago" in lines
    assert any(line.startswith("left by processes that died 1 ") for line in lines)
    assert any(line.startswith("being written 1 ") for line in lines)
    assert any(line.endswith("3 tiles of 16 px, last used 40 days ago") for line in lines)
    assert len(names(cache)) == 6


def test_it_deletes_its_own_files_but_for_what_is_being_written(cli: Any, cache: Path) -> None:
    old = cli("cache", "--empty", "older_than_days=30", cache)
    assert (old.code, names(cache)) == (0, {"tiles-b", "features-c", "tiles-d", "features-e", "notes"})
    assert f"{cache}: deleted 1 file" in old.out
    assert cli("cache", "--empty", cache).code == 0
    assert names(cache) == {"features-e", "notes"}


def test_a_set_that_is_read_counts_as_used_and_what_died_goes_with_the_next(cli: Any, cache: Path, capsys: Any) -> None:
    cached_tiles("a", (3, 16, 16, 3), lambda images: pytest.fail("decoded again"), cache_dir=cache)
    assert capsys.readouterr().out == ""  # known, and small
    assert time.time() - (cache / "tiles-a.npy").stat().st_mtime < 3600
    assert names(cache) == {"tiles-a", "tiles-b", "features-c", "features-e", "notes"}


def test_a_folder_that_is_not_there(cli: Any, tmp_path: Path) -> None:
    result = cli("cache", f"cache_dir={tmp_path / 'none'}")
    assert result.code == 2
    assert result.err.startswith(f"sscl: cache_dir: {tmp_path / 'none'}: ")
    assert result.err.count("\n") == 1


def damage(file: Path, *, at: int = -1) -> None:
    """Change a byte of an array: of its last row, or `at` bytes after the header."""
    array = np.load(file, mmap_mode="r+")
    flat = array.reshape(-1).view(np.uint8)
    flat[at] ^= 1
    array.flush()


def test_verify_reads_everything(cli: Any, cache: Path) -> None:
    whole = cli("cache", "--verify", cache)
    assert (whole.code, whole.out.splitlines()[-1]) == (0, "3 files as written, 0 damaged")
    damage(cache / "tiles-a.npy", at=800)
    damage(cache / "features-c.npy")
    (cache / "tiles-b.npy").write_bytes(b"")
    before = names(cache)
    found = cli("cache", "--verify", cache)
    assert found.code == 1
    assert f"{cache / 'tiles-a.npy'}: 1 of 3 tiles differ" in found.out
    assert f"{cache / 'features-c.npy'}: 1 of 2 rows differ" in found.out
    assert f"{cache / 'tiles-b.npy'}: is empty" in found.out
    assert "0 files as written, 3 damaged" in found.out
    assert names(cache) == before
    assert cli("cache", "--verify", "--empty", cache).code == 2
