"""Image files given as folders, CSV lists and file names: which ones they are, and their pixels batch by batch.

Only names are kept: whatever the number of files, only a few batches of pixels are in memory. S: side of a tile.
"""

from __future__ import annotations

import contextlib
import math
import os
from array import array
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sscl.cores import cpu_cores
from sscl.data.csv_files import read_mpp, read_table
from sscl.data.decode import Outcome, decode_each, in_processes, read_image, threads, worth_processes
from sscl.data.images import Decoded, Fit, Region, decode_image
from sscl.data.ingest import listed_file
from sscl.data.listing import LOOKED_FOR, PassedOver, walk
from sscl.data.table import SUFFIXES as LISTS
from sscl.data.tiles import host_memory
from sscl.places import missing, printable
from sscl.reading import refuse_irregular
from sscl.slides.index import is_index
from sscl.words import short

Item = str | Path | Image.Image | NDArray[np.uint8]
Images = Item | Sequence[Item]

_TILES_PER_JOB = 8
_AHEAD = 2  # batches that are decoded while one is used


@dataclass
class Found:
    """The image files that were found.

    Attributes:
        names: of each file: as in the CSV that lists it, else its path. files: path of each one.
        repeated: how often a file came up again that was found already.
        passed_over: the other files in the folders, by kind.
        faults: (name, reason) of what cannot be used, known without opening it.
        mpp: µm per pixel of each file, NaN where no list says it.
    """

    names: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    repeated: int = 0
    passed_over: PassedOver = field(default_factory=PassedOver)
    faults: list[tuple[str, str]] = field(default_factory=list)
    mpp: array[float] = field(default_factory=lambda: array("d"))


def find_images(words: Sequence[str | Path]) -> Found:
    """Return the images in files, folders and CSV lists, each once, in the order given.

    A folder gives all images below it (see `listing`), sorted by name; links are followed. A file that ends in .csv or
    .tsv is a list: its column `path`, relative to the folder of the CSV. Any other file counts as an image. A file that
    is found twice, by whatever path or link, counts once.

    Raises:
        FileNotFoundError: a path does not exist, or no file of a list exists.
        ValueError: a path is that of a pipe or a device; a list without the column, with an empty field, or two files
            of one name; no image at all.
    """
    absent = [str(word) for word in words if not os.path.lexists(word)]
    if absent:
        more = f" (and {len(absent) - 1} more such paths)" if len(absent) > 1 else ""
        hint = "; the shell found no file that matches" if set("*?[") & set(absent[0]) else ""
        raise FileNotFoundError(f"{missing(absent[0], 'file or folder')}{hint}{more}")
    found = Found()
    seen: set[str] = set()
    for word in map(str, words):
        if os.path.isdir(word):
            if is_index(Path(word)):
                raise ValueError(
                    f"{printable(word)}: is an index of slides, whose tiles are no files; sscl predict RUN INDEX "
                    "classifies them, sscl eval RUN INDEX measures a classifier on labelled slides"
                )
            _add_folder(word, found, seen)
        elif word.lower().endswith(LISTS):
            _add_list(word, found, seen)
        else:
            with contextlib.suppress(OSError):  # a dead link, or not ours to read: reading it says so
                refuse_irregular(word, os.stat(word).st_mode, expected="an image file, a folder or a CSV list")
            _add(word, word, os.path.realpath(word), found, seen)
    if not found.files and not found.faults:
        where = printable(str(words[0])) if len(words) == 1 else f"{len(words)} paths"
        others = f"; passed over: {found.passed_over}" if found.passed_over else ""
        raise ValueError(f"{where}: no images below it{others} (looked for {LOOKED_FOR})")
    twice = [name for name, times in Counter(found.names).items() if times > 1]
    if twice:
        raise ValueError(
            f"{printable(twice[0])}: two lists give different files this name; write absolute paths, or run the lists "
            "one by one"
        )
    return found


def _add(name: str, file: str, real: str, found: Found, seen: set[str], *, mpp: float = math.nan) -> None:
    """List a file; real: where it is after all links. mpp: its µm per pixel, NaN = not known."""
    if real in seen:
        found.repeated += 1
        return
    seen.add(real)
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        found.faults.append((printable(name), "its name is not UTF-8; rename it"))
        return
    found.names.append(name)
    found.files.append(file)
    found.mpp.append(mpp)


def _add_folder(folder: str, found: Found, seen: set[str]) -> None:
    for inner in walk(folder, found.passed_over, found.faults):
        for path, real in map(inner.file, inner.images):
            whole = os.path.join(folder, path)
            _add(whole, whole, real, found, seen)


def _add_list(word: str, found: Found, seen: set[str]) -> None:
    folder = os.path.dirname(word)
    listed = []
    rows = read_table(Path(word), columns=("path",), optional=("mpp",))
    for line, (name, _) in rows:
        if not name:
            raise ValueError(f"{word}: line {line}: column 'path' is empty; fill it in or remove the row")
        listed.append((name, listed_file(folder, name)))
    scale = read_mpp(word, [line for line, _ in rows], [mpp for _, (_, mpp) in rows])
    known = np.full(len(rows), np.nan) if scale is None else scale
    if not any(os.path.lexists(file) for _, file in listed):
        raise FileNotFoundError(
            f"{word}: none of its {len(listed)} files exists, the first would be {short(listed[0][1])}; "
            "paths are relative to the folder of the CSV"
        )
    for (name, file), mpp in zip(listed, known.tolist(), strict=True):
        _add(name, file, os.path.realpath(file), found, seen, mpp=mpp)


def listed(images: Images, names: Sequence[str] | None = None) -> tuple[list[str], list[Item]]:
    """Return the names of the images, and the images one by one; see `api.Model` for what they may be.

    Raises:
        ValueError, FileNotFoundError: no image; a path that does not exist; another number of names than of images.
    """
    given: list[Item]
    if (isinstance(images, np.ndarray) and images.ndim == 4) or isinstance(images, (list, tuple)):
        given = list(images)
    else:
        given = [images]  # type: ignore[list-item]  # whatever it is, reading it says so
    if not given:
        raise ValueError("images: must be one or more, got none")
    called: list[str] = []
    items: list[Item] = []
    for item in given:
        if isinstance(item, (str, Path)) and (os.path.isdir(item) or str(item).lower().endswith(LISTS)):
            found = find_images([item])
            if found.faults:
                raise ValueError("{}: {}".format(*found.faults[0]))
            called += found.names
            items += found.files
            continue
        if isinstance(item, (str, Path)) and not os.path.lexists(item):
            raise FileNotFoundError(missing(item, "file or folder"))
        called.append(str(item) if isinstance(item, (str, Path)) else f"image {len(items)}")
        items.append(item)
    if names is not None and len(names) != len(items):
        raise ValueError(f"names: must be one for each of {len(items)} images, got {len(names)}")
    return list(called if names is None else names), items


@dataclass(frozen=True, eq=False)
class Batch:
    """Some consecutive images as tiles.

    Attributes:
        rows: positions of the usable images, (B,). pixels: uint8 (B, S, S, 3), on the host. regions: what each shows
            of its upright image, B. faults: (position, reason) of the others. changes: how many were changed, by
            `images.CHANGES`.
    """

    rows: NDArray[np.int64]
    pixels: torch.Tensor
    regions: tuple[Region, ...]
    faults: tuple[tuple[int, str], ...]
    changes: Counter[str] = field(default_factory=Counter)

    @property
    def images(self) -> NDArray[np.uint8]:
        """The pixels as an array."""
        return self.pixels.numpy()

    @property
    def sides_px(self) -> tuple[int, ...]:
        """Original side of each, see `images.Decoded`, B."""
        return tuple(width for _, _, width, _ in self.regions)


def batches(
    items: Sequence[Item], *, size_px: int, batch_size: int, fit: Fit = "refuse", device: torch.device | None = None
) -> Generator[Batch, None, None]:
    """Yield the images as tiles, `batch_size` positions at a time, in order; the next ones are decoded meanwhile.

    Args:
        items: files, PIL images or uint8 arrays (H, W, 3); see `images` for what is refused.
        size_px: S; other sizes are resized to it.
        batch_size: positions per batch; a batch has fewer tiles where some images cannot be used.
        fit: of images that are not square, see `images.decode_image`.
        device: where the tiles are to go; for CUDA they are decoded into pinned memory. None: nowhere.
    """
    waiting: deque[tuple[range, torch.Tensor, list[Future[list[Outcome]]]]] = deque()
    cores = cpu_cores()
    with contextlib.ExitStack() as stack:
        decode: Callable[[Sequence[Any], NDArray[np.uint8]], list[Outcome]] = partial(
            decode_each, decode=partial(pixels_of, size_px=size_px, fit=fit)
        )
        workers = threads(cores)
        if worth_processes(len(items), cores=cores) and all(isinstance(item, (str, Path)) for item in items):
            with contextlib.suppress(OSError):  # no room for the tiles on their way: threads need none
                decode = stack.enter_context(
                    in_processes(size_px=size_px, at_once=_TILES_PER_JOB, count=cores, fit=fit)
                )
                workers = cores
        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        stack.callback(pool.shutdown, cancel_futures=True)
        for start in range(0, len(items), batch_size):
            places = range(start, min(start + batch_size, len(items)))
            pixels = host_memory((len(places), size_px, size_px, 3), device=device or torch.device("cpu"))
            out = pixels.numpy()
            parts = [places[at : at + _TILES_PER_JOB] for at in range(0, len(places), _TILES_PER_JOB)]
            jobs = [
                pool.submit(decode, items[part.start : part.stop], out[part.start - start : part.stop - start])
                for part in parts
            ]
            waiting.append((places, pixels, jobs))
            if len(waiting) > _AHEAD:
                yield _batch(*waiting.popleft())
        while waiting:
            yield _batch(*waiting.popleft())


def _batch(places: range, pixels: torch.Tensor, jobs: Sequence[Future[list[Outcome]]]) -> Batch:
    found = [outcome for job in jobs for outcome in job.result()]
    good = [row for row, outcome in enumerate(found) if not outcome.why]
    return Batch(
        rows=np.array([places[row] for row in good], dtype=np.int64),
        pixels=pixels if len(good) == len(found) else pixels[good],
        regions=tuple(found[row].region for row in good),
        faults=tuple((place, outcome.why) for place, outcome in zip(places, found, strict=True) if outcome.why),
        changes=Counter(change for row in good for change in found[row].changes),
    )


def pixels_of(item: Item, *, size_px: int, fit: Fit = "refuse") -> Decoded:
    """Return an image as a tile.

    Args:
        item, fit: see `batches`. size_px: S.

    Raises:
        ValueError: what was found and what is expected, in one line that names the file, if it is one.
    """
    if isinstance(item, (str, Path)):
        return read_image(item, size_px=size_px, fit=fit)
    if isinstance(item, Image.Image):
        return _decode_opened(item, size_px=size_px, fit=fit)
    if not isinstance(item, np.ndarray):
        raise ValueError(f"is a {type(item).__name__}; expected a path, a PIL image or a uint8 array (H, W, 3)")
    if item.ndim != 3 or item.shape[2] != 3 or item.dtype != np.uint8:
        hint = "; put channels last" if item.ndim == 3 and item.shape[0] == 3 else ""
        hint += "; scale it to 0-255 and convert it to uint8" if item.dtype.kind == "f" else ""
        raise ValueError(f"is {item.dtype} of shape {item.shape}, expected uint8 (H, W, 3){hint}")
    return _decode_opened(Image.fromarray(np.ascontiguousarray(item)), size_px=size_px, fit=fit)


def _decode_opened(image: Image.Image, *, size_px: int, fit: Fit) -> Decoded:
    try:
        return decode_image(image, name="image", size_px=size_px, fit=fit)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("image: ")) from error
