"""Numbers kept in the cache: computed once a key, and again when their file is damaged."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sscl.data.cache import cached_outputs, cached_tiles
from sscl.data.digests import all_digests
from sscl.data.rows import Rows


def test_computes_once_for_a_key(tmp_path):
    calls = []

    def compute(value: float) -> np.ndarray:
        calls.append(value)
        return np.full((3, 2), value, np.float32)

    for key, value, expected in ((("a", 1), 1.0, 1.0), (("a", 1), 2.0, 1.0), (("a", 2), 3.0, 3.0)):
        found = cached_outputs(lambda v=value: compute(v), key=key, rows=3, cache_dir=tmp_path / "new")
        assert np.array_equal(found, np.full((3, 2), expected))
    assert calls == [1.0, 3.0]
    assert len(list((tmp_path / "new").iterdir())) == 2  # no temporary file stays


def shorten(file: Path, to: int) -> None:
    file.write_bytes(file.read_bytes()[:to])


def write_npz(file: Path) -> None:
    with file.open("wb") as handle:
        np.savez(handle, a=np.zeros(3))


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


# What may be there instead of 40 tiles of 4 px, or of 40 rows of two numbers.
DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: shorten(file, 0),
    "cut in its header": lambda file: shorten(file, 60),
    "cut in its array": lambda file: shorten(file, 140),
    "cut behind its array": lambda file: shorten(file, file.stat().st_size - 1),
    "without digests": lambda file: np.save(file, np.load(file)),
    "other rows": lambda file: np.save(file, np.load(file)[:3]),
    "other numbers": lambda file: np.save(file, np.load(file).astype(np.int64)),
    "objects": lambda file: np.save(file, np.array([{}]), allow_pickle=True),
    "an archive": write_npz,
    "text": lambda file: file.write_text("x" * 999),
    "its first row": lambda file: flip(file, 128),
    "its digests": lambda file: flip(file, file.stat().st_size - 60),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_computed_again_and_said(tmp_path, capsys, damage):
    cached_outputs(lambda: np.zeros((40, 2), np.float32), key=["k"], rows=40, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    DAMAGE[damage](file)
    capsys.readouterr()
    for _ in range(2):
        found = cached_outputs(lambda: np.ones((40, 2), np.float32), key=["k"], rows=40, cache_dir=tmp_path)
        assert np.array_equal(found, np.ones((40, 2)))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{file}: ")
    assert np.load(file).shape == (40, 2)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_of_tiles_is_decoded_again_and_said(tmp_path, capsys, damage):
    calls = []

    def fill(images: np.ndarray) -> None:
        calls.append(1)
        images[:] = np.arange(40, dtype=np.uint8)[:, None, None, None]

    found = cached_tiles("k", (40, 4, 4, 3), fill, cache_dir=tmp_path)[0]
    (file,) = tmp_path.iterdir()
    DAMAGE[damage](file)
    capsys.readouterr()
    for _ in range(2):
        found = cached_tiles("k", (40, 4, 4, 3), fill, cache_dir=tmp_path)[0]
        assert (found[:, 0, 0, 0] == np.arange(40)).all()
    assert len(calls) == 2
    assert capsys.readouterr().out.startswith(f"{file}: ")
    assert list(tmp_path.iterdir()) == [file]


def test_digests_are_those_of_the_pixels_wherever_they_are(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(40, 4, 4, 3), dtype=np.uint8)
    cached = cached_tiles("k", pixels.shape, lambda images: np.copyto(images, pixels), cache_dir=tmp_path)[0]
    np.save(tmp_path / "own.npy", pixels)
    own = np.load(tmp_path / "own.npy", mmap_mode="r")
    expected = [int.from_bytes(hashlib.sha256(tile.tobytes()).digest()[:8], "little") for tile in pixels]
    chosen = [39, 3, 3, 17]
    for images in (pixels, cached, own, cached[:20]):
        assert Rows([images]).digests().tolist() == expected[: len(images)]
    assert Rows([cached[10:]]).digests().tolist() == expected[10:]
    both = Rows([pixels[:20], cached[20:]])
    assert both.digests().tolist() == expected
    assert both.select(chosen).digests().tolist() == [expected[row] for row in chosen]
    assert all_digests(pixels.__getitem__, rows=40, row_bytes=2**22).tolist() == expected  # in blocks
    assert Rows([pixels[:0]]).digests().tolist() == []
    # They are of the time when the tiles were written: whether the file is still so, `cached_tiles` looks.
    flip(tmp_path / "tiles-k.npy", 128 + 48 * 7)
    assert Rows([np.load(tmp_path / "tiles-k.npy", mmap_mode="r")]).digests().tolist() == expected


def test_a_file_that_is_deleted_when_it_is_looked_at_is_decoded_again(tmp_path, monkeypatch):
    read, fills = np.fromfile, []
    for _ in range(2):
        cached_tiles("k", (2, 4, 4, 3), lambda images: fills.append(images.fill(7)), cache_dir=tmp_path)

    def deleted(file: str, *arguments: Any, **named: Any) -> Any:
        Path(file).unlink()
        return read(file, *arguments, **named)

    monkeypatch.setattr(np, "fromfile", deleted)
    found, _ = cached_tiles("k", (2, 4, 4, 3), lambda images: fills.append(images.fill(7)), cache_dir=tmp_path)
    assert (len(fills), int(found.min())) == (2, 7)


def test_what_is_noted_of_many_tiles_is_read_again(tmp_path):
    noted = {str(row): 1 for row in range(100_000)}  # a percent of 10⁷ tiles of slides
    found = [cached_tiles("k", (2, 4, 4, 3), lambda images: noted, cache_dir=tmp_path)[1] for _ in range(2)]
    assert found == [noted, noted]


def test_many_damaged_tiles_are_found_and_what_was_noted_stays(tmp_path):
    shape = (8000, 2, 2, 3)
    fills = [cached_tiles("k", shape, lambda images: {"turned": 3}, cache_dir=tmp_path)[1]]
    for _ in range(3):
        images = np.load(tmp_path / "tiles-k.npy", mmap_mode="r+")
        images[1000:6000] ^= 1
        images.flush()
        fills.append(cached_tiles("k", shape, lambda images: {"turned": 4}, cache_dir=tmp_path)[1])
    assert fills == [{"turned": n} for n in (3, 4, 4, 4)]
    assert not np.load(tmp_path / "tiles-k.npy").any()


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SSCL_CACHE", str(tmp_path / "here"))
    cached_outputs(lambda: np.zeros((1, 1), np.float32), key=["k"], rows=1)
    assert len(list((tmp_path / "here").glob("features-*.npy"))) == 1


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file: .*features.*cache_dir"):
        cached_outputs(lambda: np.zeros((1, 1), np.float32), key=["k"], rows=1, cache_dir=tmp_path / "file")


def test_a_failed_computation_leaves_nothing(tmp_path):
    def fail() -> np.ndarray:
        raise ValueError("diverged")

    with pytest.raises(ValueError, match="diverged"):
        cached_outputs(fail, key=["k"], rows=1, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
