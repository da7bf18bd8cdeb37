"""From image files to pixels, on all cores."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import queue
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sscl.progress import Bar

_TILES_PER_JOB = 16
# Tiles per core: fewer are decoded by threads before worker processes would have started.
_PROCESSES_FROM = 2000
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
    progress: bool = False,
    processes: bool | None = None,
) -> None:
    """Decode `paths` with all cores into the rows of `images`, uint8 (N, size_px, size_px, 3).

    PIL releases the interpreter lock while it inflates and resizes, but holds it for a tenth of its time: threads keep
    a few cores busy, many cores need processes. Each worker writes its rows straight into the mapped file: one thread
    that writes for all would slow many cores down.

    Args:
        images: for processes, a memmap of an .npy file.
        paths: N files.
        exact_size_px: the only size of file allowed; None = any square size.
        progress: show a bar.
        processes: decode in processes, not threads; None = where there are enough tiles to be worth their start.

    Raises:
        ValueError: files that cannot be used (one line: the first, and how many more), or a process died.
    """
    size_px = images.shape[1]
    jobs = [range(start, min(start + _TILES_PER_JOB, len(paths))) for start in range(0, len(paths), _TILES_PER_JOB)]
    from sscl.device import cpu_cores  # imports torch, which the decoding processes do without

    cores = cpu_cores()
    if processes is None:
        processes = isinstance(images, np.memmap) and len(paths) >= _PROCESSES_FROM * cores and cores > 1
    faults: list[str] = []
    with contextlib.ExitStack() as stack:
        decode: Callable[[range], list[str]]
        if processes:
            assert isinstance(images, np.memmap)
            assert images.filename is not None
            idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
            for _ in range(cores):
                idle.put(stack.enter_context(_Worker(images.filename, size_px, exact_size_px)))

            def decode(rows: range) -> list[str]:
                worker = idle.get()
                try:
                    return worker.decode(rows, [str(paths[row]) for row in rows])
                finally:
                    idle.put(worker)
        else:

            def decode(rows: range) -> list[str]:
                return _decode_rows(images, rows, [paths[row] for row in rows], exact_size_px=exact_size_px)

        pool = ThreadPoolExecutor(cores)
        stack.callback(pool.shutdown, cancel_futures=True)
        bar = stack.enter_context(Bar(len(paths), desc="decode" if progress else None, unit="tile", leave=True))
        for job, found in zip(jobs, pool.map(decode, jobs), strict=True):
            faults += found
            bar.update(len(job))
    if faults:
        raise ValueError(faults[0] + (f" (and {len(faults) - 1} more such files)" if len(faults) > 1 else ""))


def _decode_rows(
    images: NDArray[np.uint8], rows: range, paths: Sequence[Path | str], *, exact_size_px: int | None
) -> list[str]:
    """Decode the files into these rows; return a line for each that cannot be used."""
    faults = []
    for row, path in zip(rows, paths, strict=True):
        try:
            images[row] = decode_file(path, size_px=images.shape[1], exact_size_px=exact_size_px)
        except ValueError as error:
            faults.append(str(error))
    return faults


class _Worker:
    """A process that decodes into an .npy file. It ends when its input ends, so also when this process is killed.

    It is a plain subprocess: `multiprocessing` would run the caller's script again (spawn), copy a process that has
    threads (fork), or outlive a killed parent.
    """

    def __init__(self, file: str, size_px: int, exact_size_px: int | None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from sscl.data.decode import _serve; _serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_WORKER_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is for this process; the worker then sees its input end
        )
        self._first: tuple[object, ...] | None = (str(file), exact_size_px)

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def decode(self, rows: range, paths: list[str]) -> list[str]:
        """Have the files decoded into these rows; return a line for each that cannot be used."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            if self._first:
                pickle.dump(self._first, self._process.stdin)
                self._first = None
            pickle.dump((rows, paths), self._process.stdin)
            self._process.stdin.flush()
            faults: list[str] = pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError) as error:
            raise ValueError(
                f"a process that decodes tiles ended with exit code {self._process.wait()} at {paths[0]} or one of "
                f"the next {len(paths) - 1} files; if the system ran out of memory, free some and start again"
            ) from error
        return faults


def _serve() -> None:
    """Decode what standard input asks for, until it ends: what a worker process does."""
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing that prints may get in between
    with contextlib.suppress(EOFError):
        file, exact_size_px = pickle.load(asked)
        images = np.load(file, mmap_mode="r+")
        while True:
            rows, paths = pickle.load(asked)
            pickle.dump(_decode_rows(images, rows, paths, exact_size_px=exact_size_px), answers)
            answers.flush()


def decode_file(path: Path | str, *, size_px: int, exact_size_px: int | None) -> NDArray[np.uint8]:
    """Return one file as uint8 (size_px, size_px, 3).

    Raises:
        ValueError: the file cannot be used; one line that names it.
    """
    with open_image(path) as image:
        return decode_image(image, name=path, size_px=size_px, exact_size_px=exact_size_px)


@contextlib.contextmanager
def open_image(path: Path | str) -> Iterator[Image.Image]:
    """Give an image file's opened image, not yet decoded.

    Raises:
        ValueError: the file cannot be read, is empty or is no image; one line that names it.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if not data:
        raise ValueError(f"{path}: is empty (0 bytes); copy it again or remove it from the data set")
    try:
        image = Image.open(io.BytesIO(data))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: is not a readable image; expected PNG, JPEG, TIFF, BMP or WebP") from error
    with image:
        yield image


def decode_image(image: Image.Image, *, name: Path | str, size_px: int, exact_size_px: int | None) -> NDArray[np.uint8]:
    """Return an opened image as uint8 (size_px, size_px, 3).

    Raises:
        ValueError: it cannot be used; one line that begins with `name`.
    """
    width, height = image.size
    if exact_size_px is not None and (width, height) != (exact_size_px, exact_size_px):
        raise ValueError(
            f"{name}: is {width}×{height} pixels, expected {exact_size_px}×{exact_size_px}; "
            "replace it with the original tile"
        )
    if width != height:
        raise ValueError(f"{name}: is {width}×{height} pixels; tiles must be square; crop it first")
    try:
        pages = getattr(image, "n_frames", 1)
        rgb = _as_rgb(image, name) if pages == 1 else None
    # PIL raises TypeError (TIFF) or SyntaxError (PNG) for some damaged headers.
    except (OSError, SyntaxError, TypeError, EOFError, struct.error) as error:
        raise ValueError(f"{name}: is truncated or damaged; copy it again or remove it from the data set") from error
    if rgb is None:
        raise ValueError(f"{name}: has {pages} pages; save the tile as an image file of one page")
    if width != size_px:
        rgb = resized(rgb, size_px)
    return np.asarray(rgb)


def resized(image: Image.Image, size_px: int) -> Image.Image:
    """Return the image at size_px × size_px. PIL's filters widen with the scale, so shrinking is antialiased."""
    return image.resize((size_px, size_px), Image.Resampling.BICUBIC)


def _as_rgb(image: Image.Image, path: Path | str) -> Image.Image:
    """Return the image as RGB if no pixel loses anything by it.

    Grey, palette and fully opaque RGBA keep every value; transparency, 16 bits, CMYK and the like do not.
    """
    # PIL opens 16-bit RGB files as 8-bit "RGB"; only the raw mode of the decoder tells.
    sixteen_bits = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    if image.mode not in ("RGB", "L", "1", "P", "RGBA", "LA", "PA") or sixteen_bits:
        mode = "16-bit RGB" if sixteen_bits and image.mode == "RGB" else image.mode
        raise ValueError(
            f"{path}: is in colour mode {mode}, which has no lossless 8-bit RGB form; save it as 8-bit RGB"
        )
    image.load()
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            raise ValueError(f"{path}: has transparent pixels; save it as 8-bit RGB without transparency")
    return image if image.mode == "RGB" else image.convert("RGB")
