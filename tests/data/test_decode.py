"""Decoding in threads and in processes: the same pixels and faults, and nothing left when something is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import forked
from sscl.data import decode
from sscl.data.ingest import decode_tiles

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes through /proc")


def save_tiles(folder: Path, n: int) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{i:03d}.png" for i in range(n)]
    for i, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)
    return paths


def decoded(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).resize((16, 16), Image.Resampling.BICUBIC))


def empty_file(path: Path, n: int) -> np.memmap:
    return np.lib.format.open_memmap(path, "w+", np.uint8, (n, 16, 16, 3))


def workers_of(parent: int) -> list[int]:
    """The processes that decode for `parent`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent and "_serve" in (folder / "cmdline").read_text():
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.fixture
def two_cores(wrap: Any) -> None:
    wrap(decode_cores=lambda real, _: {0, 1})


def test_processes_write_what_the_files_hold_in_order(tmp_path, two_cores):
    paths = save_tiles(tmp_path / "in", 70)  # several jobs for each
    for processes in (True, False):
        images = empty_file(tmp_path / "out.npy", 70)
        decode.decode_into(images, paths, processes=processes)
        np.testing.assert_array_equal(images, np.stack([decoded(path) for path in paths]))
    assert workers_of(os.getpid()) == []


def test_only_many_tiles_in_a_file_are_worth_processes(tmp_path, two_cores, wrap, number):
    def refuse(*_: object) -> None:
        raise AssertionError("a process")

    paths = save_tiles(tmp_path / "in", 4)
    wrap(decode_worker=refuse)
    number(decode_processes_from=4)
    decode.decode_into(empty_file(tmp_path / "out.npy", 3), paths[:3])
    decode.decode_into(np.zeros((4, 16, 16, 3), np.uint8), paths)
    with pytest.raises(AssertionError, match="a process"):
        decode.decode_into(empty_file(tmp_path / "out.npy", 4), paths)


@pytest.mark.parametrize("processes", [True, False])
def test_faults_are_counted_and_the_first_in_order_is_named(tmp_path, two_cores, processes):
    paths = save_tiles(tmp_path / "in", 60)
    paths[41].write_bytes(b"no image")
    Image.new("RGB", (24, 20)).save(paths[20])
    with pytest.raises(ValueError, match=r"020\.png: is 24×20 pixels.*and 1 more file that cannot") as caught:
        decode.decode_into(empty_file(tmp_path / "out.npy", 60), paths, processes=processes)
    assert "\n" not in str(caught.value)
    assert workers_of(os.getpid()) == []


def test_a_killed_worker_is_one_line_and_leaves_no_cache(tmp_path, two_cores, wrap, number):
    paths = save_tiles(tmp_path / "in", 40)

    def start_and_kill(start: Any, self: decode._Worker, *rest: object) -> None:
        start(self, *rest)
        self._process.kill()

    wrap(decode_start=start_and_kill)
    number(decode_processes_from=1)
    with pytest.raises(ValueError, match=r"a process that decodes tiles ended with exit code -9 at .*png") as caught:
        decode_tiles(paths, size_px=16, root=tmp_path, cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


INGEST = """
import os, sys, time
from pathlib import Path
from sscl.data import decode, ingest
decode._PROCESSES_FROM = 1
decode.os.sched_getaffinity = lambda _: {0, 1}
root, wait = Path(sys.argv[1]), sys.argv[2]
if wait == "killed":
    paths = sorted((root / "in").iterdir())
    work = decode._Worker.decode
    def slow(self, rows, names):
        found = work(self, rows, names)
        if rows.start >= 32:
            print("half way", flush=True)
            time.sleep(60)
        return found
    decode._Worker.decode = slow
else:
    child = os.fork()  # two processes, of which the second is spared its imports
    (root / f"{os.getpid()}.ready").touch()
    while not Path(wait).exists():
        time.sleep(0.001)
images = ingest.decode_tiles(sorted((root / "in").iterdir()), size_px=16, root=root, cache_dir=root / "cache")
(root / f"{os.getpid()}.sum").write_text(str(images.astype("int64").sum()))  # lines of two processes may mix
if wait != "killed" and child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_killed_ingest_takes_its_workers_along_and_is_done_again(tmp_path):
    paths = save_tiles(tmp_path / "in", 80)
    child = forked.start(INGEST, tmp_path, "killed", stdout=subprocess.PIPE, stderr=sys.__stderr__)
    assert child.stdout is not None
    assert child.stdout.readline() == "half way\n"
    workers = workers_of(child.pid)
    assert len(workers) == 2
    child.kill()
    child.wait()
    child.stdout.close()
    (part,) = (tmp_path / "cache").glob("*.tmp")
    assert np.load(part, mmap_mode="r").shape == (80, 16, 16, 3)  # looks whole, and is not
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]
    images = decode_tiles(paths, size_px=16, root=tmp_path, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(images, np.stack([decoded(path) for path in paths]))


def test_two_processes_that_ingest_one_folder_at_once_both_get_the_tiles(tmp_path):
    paths = save_tiles(tmp_path / "in", 60)
    go = tmp_path / "go"
    both = forked.start(INGEST, tmp_path, go, stdout=sys.__stderr__, stderr=sys.__stderr__)
    while len(list(tmp_path.glob("*.ready"))) < 2:
        assert both.poll() is None
        time.sleep(0.01)
    go.touch()
    expected = sum(int(decoded(path).sum()) for path in paths)
    assert both.wait() == 0
    assert [int(path.read_text()) for path in tmp_path.glob("*.sum")] == [expected, expected]
    (cached,) = (tmp_path / "cache").iterdir()
    assert cached.suffix == ".npy"
