"""From image files to pixels, on all cores."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sscl.cores import cpu_cores
from sscl.data.images import Decoded, Fit, Region, decode_image, open_image
from sscl.data.rows import new_array
from sscl.progress import Bar
from sscl.words import count

Item = TypeVar("Item")

_TILES_PER_JOB = 16
# Fewer files are decoded by threads before processes would have started, in 1.1 s on a machine of 16 cores.
_PROCESSES_FROM = 4000
# More threads take the interpreter lock from each other: JPEG files of 224 px, tiles a second by 1, 2, 4, 8 and 16
# threads on as many cores: 1,013, 2,389, 2,207, 1,451, 1,266 (2026-11-26).
_MOST_THREADS = 3
# Without these, glibc returns the memory of each image to the system and asks for it again: a fifth of the time.
_WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
    "OPENBLAS_NUM_THREADS": "1",
}


def decode_into(
    images: NDArray[np.uint8],
    paths: Sequence[Path | str],
    *,
    exact_size_px: int | None = None,
    fit: Fit = "refuse",
    progress: bool = False,
    processes: bool | None = None,
) -> Counter[str]:
    """Decode `paths` with all cores into the rows of `images`, uint8 (N, size_px, size_px, 3); return the changes.

    PIL releases the interpreter lock while it inflates and resizes, but threads keep only a few cores busy: many cores
    need processes. Each worker writes its rows straight into the mapped file: one thread
    that writes for all would slow many cores down.

    Args:
        images: for processes, a memmap of an .npy file.
        exact_size_px: the only size of file allowed; None = any square size.
        fit: see `images.decode_image`.
        processes: decode in processes, not threads; None = where there are enough tiles to be worth their start.

    Returns:
        how often the pixels of a file were changed, by the keys of `images.CHANGES`.

    Raises:
        ValueError: files that cannot be used (one line: the first, and how many more), or a process died.
    """
    jobs = [range(start, min(start + _TILES_PER_JOB, len(paths))) for start in range(0, len(paths), _TILES_PER_JOB)]
    cores = cpu_cores()
    if processes is None:
        processes = isinstance(images, np.memmap) and worth_processes(len(paths), cores=cores)
    faults: list[str] = []
    changes: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        decode: Callable[[range], list[Outcome]]
        read = partial(read_image, size_px=images.shape[1], exact_size_px=exact_size_px, fit=fit)
        if processes:
            assert isinstance(images, np.memmap)
            assert images.filename is not None
            idle = _workers(stack, images.filename, exact_size_px, fit, count=cores)

            def decode(rows: range) -> list[Outcome]:
                worker = idle.get()
                try:
                    return worker.decode(rows, [str(paths[row]) for row in rows])
                finally:
                    idle.put(worker)
        else:

            def decode(rows: range) -> list[Outcome]:
                return decode_each(paths[rows.start : rows.stop], images[rows.start : rows.stop], read)

        pool = ThreadPoolExecutor(cores if processes else threads(cores))
        stack.callback(pool.shutdown, cancel_futures=True)
        bar = stack.enter_context(Bar(len(paths), desc="decode" if progress else None, unit="tile", leave=True))
        for job, found in zip(jobs, pool.map(decode, jobs), strict=True):
            faults += [outcome.why for outcome in found if outcome.why]
            changes.update(change for outcome in found for change in outcome.changes)
            bar.update(len(job))
    if faults:
        more = f" (and {count(len(faults) - 1, 'more file')} that cannot be used)" if len(faults) > 1 else ""
        raise ValueError(f"{faults[0]}{more}")
    return changes


def worth_processes(files: int, *, cores: int) -> bool:
    """Return whether so many files are decoded sooner by processes, their start included, than by threads."""
    return cores > 1 and files >= _PROCESSES_FROM


def threads(cores: int) -> int:
    """Return how many threads decode fastest."""
    return min(cores, _MOST_THREADS)


@dataclass(frozen=True)
class Outcome:
    """What became of a file: what of its upright image its row shows, how it was changed; or why it is not there."""

    region: Region = (0, 0, 0, 0)
    changes: tuple[str, ...] = ()
    why: str = ""


@contextlib.contextmanager
def in_processes(
    *, size_px: int, at_once: int, count: int, fit: Fit
) -> Iterator[Callable[[Sequence[Path | str], NDArray[np.uint8]], list[Outcome]]]:
    """Give a function for threads that has a process decode up to `at_once` files into an array (n, S, S, 3).

    Raises:
        OSError: the temporary folder has no room for `count` x `at_once` tiles.
    """
    with contextlib.ExitStack() as stack:
        file = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sscl-"))) / "tiles.npy"
        shared = new_array(file, (count * at_once, size_px, size_px, 3))
        idle = _workers(stack, file, None, fit, count=count)
        own: queue.SimpleQueue[range] = queue.SimpleQueue()
        for start in range(0, count * at_once, at_once):
            own.put(range(start, start + at_once))

        def decode(paths: Sequence[Path | str], out: NDArray[np.uint8]) -> list[Outcome]:
            worker, rows = idle.get(), own.get()
            try:
                found = worker.decode(rows[: len(paths)], [str(path) for path in paths])
                out[:] = shared[rows.start : rows.start + len(paths)]
                return found
            finally:
                idle.put(worker)
                own.put(rows)

        yield decode


def decode_each(items: Sequence[Item], out: NDArray[np.uint8], decode: Callable[[Item], Decoded]) -> list[Outcome]:
    """Return what became of each item, which `decode` makes a tile of; tiles go into `out`, (n, S, S, 3)."""
    found = []
    for row, item in enumerate(items):
        try:
            decoded = decode(item)
        except ValueError as error:
            found.append(Outcome(why=str(error)))
        else:
            out[row] = decoded.pixels
            found.append(Outcome(decoded.region, decoded.changes))
    return found


class _Worker:
    """A process that decodes into an .npy file. It ends when its input ends, so also when this process is killed.

    It is a plain subprocess: `multiprocessing` would run the caller's script again (spawn), copy a process that has
    threads (fork), or outlive a killed parent.
    """

    def __init__(self, file: str, exact_size_px: int | None, fit: Fit) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from sscl.data.decode import _serve; _serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_WORKER_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is for this process; the worker then sees its input end
        )
        self._first: tuple[object, ...] | None = (str(file), exact_size_px, fit)

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def decode(self, rows: range, paths: list[str]) -> list[Outcome]:
        """Have the files decoded into these rows."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            if self._first:
                pickle.dump(self._first, self._process.stdin)
                self._first = None
            pickle.dump((rows, paths), self._process.stdin)
            self._process.stdin.flush()
            found: list[Outcome] = pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError) as error:
            raise ValueError(
                f"a process that decodes tiles ended with exit code {self._process.wait()} at {paths[0]} or one of "
                f"the next {len(paths) - 1} files; if the system ran out of memory, free some and start again"
            ) from error
        return found


def _workers(
    stack: contextlib.ExitStack, file: Path | str, exact_size_px: int | None, fit: Fit, *, count: int
) -> queue.SimpleQueue[_Worker]:
    """Return processes that decode into an .npy file and end with the stack."""
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for _ in range(count):
        idle.put(stack.enter_context(_Worker(str(file), exact_size_px, fit)))
    return idle


def _serve() -> None:
    """Decode what standard input asks for, until it ends: what a worker process does."""
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing that prints may get in between
    warnings.filterwarnings("ignore", module=r"PIL\.")  # as in `sscl.cli`
    with contextlib.suppress(EOFError):
        file, exact_size_px, fit = pickle.load(asked)
        images = np.load(file, mmap_mode="r+")
        read = partial(read_image, size_px=images.shape[1], exact_size_px=exact_size_px, fit=fit)
        while True:
            rows, paths = pickle.load(asked)
            pickle.dump(decode_each(paths, images[rows.start : rows.stop], read), answers)
            answers.flush()


def read_image(path: Path | str, *, size_px: int, exact_size_px: int | None = None, fit: Fit = "refuse") -> Decoded:
    """Return one file as a tile; see `images.decode_image`.

    Raises:
        ValueError: the file cannot be used; one line that names it.
    """
    with open_image(path) as image:
        return decode_image(image, name=path, size_px=size_px, exact_size_px=exact_size_px, fit=fit)
