"""Rows of arrays that stay where they are, against the same rows of one array in memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import forked
from sscl.data import rows as rows_module
from sscl.data.rows import Rows
from sscl.data.tiles import TileStore


def pixels(n: int, *, seed: int = 0, size_px: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size_px, size_px, 3), dtype=np.uint8)


def mapped(path: Path, n: int, *, seed: int = 0) -> np.memmap:
    np.save(path, pixels(n, seed=seed))
    return np.load(path, mmap_mode="r")


@pytest.fixture
def parts(tmp_path: Path) -> list[np.ndarray]:
    """A memmap, a slice of another, and an array in memory."""
    return [mapped(tmp_path / "a.npy", 5), mapped(tmp_path / "b.npy", 9, seed=1)[2:7][1:], pixels(3, seed=2)]


def test_rows_act_as_the_joined_array(parts):
    joined, rows = np.concatenate(parts), Rows(parts)
    assert (rows.shape, rows.dtype, rows.ndim, rows.nbytes) == (joined.shape, joined.dtype, 4, joined.nbytes)
    assert len(rows) == 12
    keys = [
        0,
        4,
        5,
        11,
        -1,
        slice(None),
        slice(3, 11, 2),
        slice(0, 0),
        [7, 0, 7, -2],
        np.array([11, 4]),
        joined[:, 0, 0, 0] > 99,
    ]
    for key in keys:
        np.testing.assert_array_equal(rows[key], joined[key], err_msg=str(key))
    np.testing.assert_array_equal(np.asarray(rows), joined)
    assert np.asarray(rows, dtype=np.float32).dtype == np.float32
    rows[3][:] = 0  # what is had is the caller's own
    np.testing.assert_array_equal(rows[3], joined[3])
    for wrong in (12, -13, [0, 12]):
        with pytest.raises(IndexError):
            rows[wrong]


def test_rows_of_rows_and_chosen_ones(parts):
    joined = np.concatenate(parts)
    chosen = Rows(parts).select([9, 2, 6, 2])
    np.testing.assert_array_equal(chosen, joined[[9, 2, 6, 2]])
    np.testing.assert_array_equal(chosen.select([3, 0]), joined[[2, 9]])
    both = Rows([chosen, pixels(2, seed=3), Rows(parts)])
    np.testing.assert_array_equal(both, np.concatenate([joined[[9, 2, 6, 2]], pixels(2, seed=3), joined]))
    assert len(Rows(parts).select([])) == 0


def test_take_fills_the_given_memory(parts):
    out = np.zeros((4, 6, 6, 3), np.uint8)
    Rows(parts).take(np.array([11, 0, 6, 0]), out=out)
    np.testing.assert_array_equal(out, np.concatenate(parts)[[11, 0, 6, 0]])


@pytest.mark.parametrize("missing", ["preadv", "posix_fadvise"])
def test_systems_without_these_calls_get_the_same_pixels(parts, monkeypatch, missing):
    monkeypatch.delattr(rows_module.os, missing)
    np.testing.assert_array_equal(Rows(parts), np.concatenate(parts))


def test_arrays_whose_file_may_say_something_else_are_not_read_from_it(tmp_path):
    np.save(tmp_path / "x.npy", pixels(4))
    private = np.load(tmp_path / "x.npy", mmap_mode="c")
    private[2] = 7  # in memory alone
    turned = np.load(tmp_path / "x.npy", mmap_mode="r").transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(Rows([private, turned]), np.concatenate([private, turned]))


def test_a_file_that_was_deleted_since_it_was_mapped_is_read_all_the_same(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(5, 4, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "tiles.npy", pixels)
    mapped = np.load(tmp_path / "tiles.npy", mmap_mode="r")
    (tmp_path / "tiles.npy").unlink()
    rows = Rows([mapped])
    assert np.array_equal(rows[[3, 1]], pixels[[3, 1]])
    assert rows.digests().tolist() == Rows([pixels]).digests().tolist()


def test_rows_close_their_files(parts):
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = opened()
    rows = Rows(parts)
    chosen = rows.select([0])
    assert opened() == before + 2
    del rows
    assert chosen[0].shape == (6, 6, 3)
    del chosen
    assert opened() == before


def test_a_file_that_is_shortened_meanwhile_is_an_error_not_a_crash(tmp_path):
    rows = Rows([mapped(tmp_path / "x.npy", 40)])
    os.truncate(tmp_path / "x.npy", 1000)
    with pytest.raises(OSError, match=r"x\.npy: was truncated while in use"):
        rows[39]


def test_parts_that_do_not_fit_are_refused(parts):
    with pytest.raises(ValueError, match=r"tiles of one size, got .*\(6, 6\), \(8, 8\)"):
        Rows([*parts, pixels(1, size_px=8)])
    with pytest.raises(ValueError, match=r"expected uint8 \(N, H, W, 3\), got float64"):
        Rows([np.zeros((2, 6, 6, 3))])
    with pytest.raises(ValueError, match="without a copy"):
        np.array(Rows(parts), copy=False)


PROGRAM = """
import sys
import numpy as np
from sscl.data.rows import Rows
from sscl.data.tiles import Tiles, epoch_order, place_store
import torch

def resident():
    lines = dict(line.split(":") for line in open("/proc/self/status") if ":" in line)
    return sum(int(lines[key].split()[0]) for key in ("RssAnon", "RssFile", "RssShmem")) / 1024  # MiB

images = [np.load(path, mmap_mode="r") for path in sys.argv[1:]]
count = sum(map(len, images))
for how in ("file", "mapping"):
    if how == "mapping":  # as if it were no file
        images = [array.view(np.ndarray) for array in images]
    labels = np.full(count, -1)
    tiles = Tiles(Rows(images), labels, (), tuple(map(str, range(count)))).subset(np.arange(count)[::-1])
    if how == "file":
        tiles.fingerprint
    store = place_store(tiles.images, device="cpu", budget_gb=0)
    def epoch(number):
        for batch in store.batches(epoch_order(count, seed=0, epoch=number).reshape(-1, 20)):
            yield len(batch)
    epochs = epoch(0)
    for _ in range(5):
        next(epochs)
    before = resident()
    assert sum(epochs) == count - 100
    print(resident() - before)
"""


def growth(*paths: Path) -> list[float]:
    """MiB that a process grows by while it goes through all tiles of some files, from the files, then as if none."""
    done = forked.run(PROGRAM, *paths)
    assert done.returncode == 0, done.stderr
    return [float(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_an_epoch_from_files_takes_no_memory(tmp_path):
    for name in "ab":  # 2 x 57 MiB
        array = np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", np.uint8, (1600, 112, 112, 3))
        array[:] = pixels(1, size_px=112)
    files = (tmp_path / "a.npy", tmp_path / "b.npy")
    from_files, mapped = growth(*files)
    assert from_files < 15
    assert mapped > 30  # so that the measure can fail


# --- reading ahead ---


@pytest.fixture
def store(parts: list[np.ndarray]) -> TileStore:
    return TileStore(Rows(parts), device=torch.device("cpu"))


def threads() -> int:
    import threading

    return sum(thread.name.startswith("tiles") for thread in threading.enumerate())


@pytest.mark.parametrize("where", ["files", "memory", "device"])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 7])
def test_batches_are_what_gather_gives(parts, where, steps):
    joined = np.concatenate(parts)
    images = {"files": Rows(parts), "memory": joined, "device": torch.from_numpy(joined)}[where]
    store = TileStore(images, device=torch.device("cpu"))
    order = np.random.default_rng(0).integers(0, 12, (steps, 4))
    found = list(store.batches(order))
    assert len(found) == steps
    for rows, batch in zip(order, found, strict=True):
        assert batch.dtype == torch.uint8
        assert torch.equal(batch, store.gather(torch.from_numpy(rows)))
        np.testing.assert_array_equal(batch, joined[rows])
    assert threads() == 0


def test_batches_stay_the_readers_own(store, parts):
    """A buffer that is used again too early would change batches that are still in use."""
    order = np.arange(12).reshape(6, 2)
    kept = list(store.batches(order))
    np.testing.assert_array_equal(torch.cat(kept), np.concatenate(parts))


def test_batches_are_read_ahead_but_not_far(store, wrap):
    asked: list[int] = []
    wrap(store_read=lambda read, self, rows, batch: asked.append(rows[0]) or read(self, rows, batch))
    batches = store.batches(np.arange(12)[:, None])
    next(batches)
    batches.close()  # waits for the thread
    assert asked[:1] == [0]
    assert len(asked) <= 3


@pytest.mark.parametrize("how", ["break", "raise"])
def test_the_thread_ends_with_the_loop(store, how):
    def loop() -> None:
        for _ in store.batches(np.zeros((50, 2), dtype=np.int64)):
            assert threads() == 1
            if how == "break":
                break
            raise KeyError("of the loop")

    if how == "break":
        loop()
    else:
        with pytest.raises(KeyError, match="of the loop"):
            loop()
    assert threads() == 0


def test_errors_of_the_thread_are_raised_in_the_loop(store, tmp_path):
    order = np.zeros((5, 2), dtype=np.int64)
    order[3, 1] = 12
    batches = store.batches(order)
    for _ in range(3):
        next(batches)
    with pytest.raises(IndexError, match="the store has 12"):
        next(batches)
    os.truncate(tmp_path / "a.npy", 200)
    with pytest.raises(OSError, match="was truncated"):
        list(store.batches(np.full((1, 1), 4)))
    assert threads() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_arrive_whole_on_a_gpu_that_is_behind(parts):
    """The device is kept busy, so that a copy which is not waited for, or memory used again, would show."""
    store = TileStore(Rows(parts), device=torch.device("cuda"))
    order = np.random.default_rng(0).integers(0, 12, (40, 64))
    heavy = torch.randn(4096, 4096, device="cuda")
    found = []
    for batch in store.batches(order):
        for _ in range(5):
            heavy = torch.tanh(heavy @ heavy)
        found.append(batch)
    np.testing.assert_array_equal(torch.stack(found).cpu(), np.concatenate(parts)[order])


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="read through the mapping")
def test_a_file_that_cannot_be_read_any_more_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 2, 2, 3), np.uint8))
    rows = Rows([np.load(tmp_path / "a.npy", mmap_mode="r")])
    number = rows._arrays[0]._file
    assert number is not None
    unreadable = os.open(tmp_path / "b", os.O_WRONLY | os.O_CREAT)
    os.dup2(unreadable, number)
    os.close(unreadable)
    with pytest.raises(OSError, match=r"a\.npy"):
        rows[:]
