"""Sets of synthetic H&E polyp tiles in the layout of MHIST, with truth masks and slide ids.

The class shows in the shape of the crypt bases (polyp.py draws them); stain and brightness belong to the slide,
and every slide has tiles of both classes. Each tile draws an ambiguity, from which both its shape and its votes
follow, so that 4-to-3 tiles are harder. A tile is a function of (seed, index) and a slide of (seed, slide) alone:
the result does not depend on counts, workers or order.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import numbers
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from sscl.cores import cpu_cores
from sscl.data.polyp import draw_polyp, draw_slide_look
from sscl.progress import over
from sscl.writing import holding, is_bare, naming, replacing_folder, write_csv

T = TypeVar("T")

SAID = "synthetic tiles, drawn by a program: they say nothing about tissue"
TILES_PER_SLIDE = 8

# Of the tiles that `write_synthetic` writes, and of those on slides of `drawn_cohort`.
_NAMES = re.compile(r"(?:.*[/\\])?syn_\d{5,}(?:\.png|\.(?:svs|tiff)/\d+_\d+)")
_ANNOTATORS = 7  # mhist.ANNOTATORS, which would import torch in every drawing process
_MAX_SEED = 2**63 - 1
_TILE_STREAM, _ORDER_STREAM, _LOOK_STREAM = 0, 1, 2
_PARALLEL_FROM = 192  # fewer tiles are drawn faster than worker processes start


def is_synthetic(source: str, ids: Sequence[str]) -> bool:
    """Return whether tiles were drawn by this program: by `data.source`, or by their names, wherever they lie now."""
    return source == "synthetic" or (len(ids) > 0 and all(map(_NAMES.fullmatch, ids)))


@dataclass(frozen=True)
class SyntheticTile:
    """One drawn tile and what is known about it.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        mask: bool (H, W), the crypt bases: the region that determines the class.
        label: 0 is HP, 1 is SSA.
        votes: how many of 7 annotators chose SSA; at least 4 if and only if the label is SSA.
        slide: id of the slide.
        ambiguity: 0 (textbook) to 1 (halfway between the classes).
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    label: int
    votes: int
    slide: str
    ambiguity: float


def draw_tile(index: int, *, seed: int = 0, size_px: int = 224, ssa_fraction: float = 0.5) -> SyntheticTile:
    """Return tile `index` of the infinite series that `seed` and `ssa_fraction` define.

    Args:
        index: number of the tile, >= 0; tiles 8 s to 8 s + 7 are from slide s.
        seed: 0 to 2**63 - 1.
        size_px: width and height, 32 to 1024; the morphology is the same at every size.
        ssa_fraction: fraction of SSA tiles, 0 to 1.

    Raises:
        ValueError: an argument is out of range.
    """
    for name, value, low, high in (
        ("index", index, 0, _MAX_SEED),
        ("seed", seed, 0, _MAX_SEED),
        ("size_px", size_px, 32, 1024),
    ):
        if not (isinstance(value, numbers.Integral) and low <= value <= high):
            raise ValueError(f"{name}: got {value}, allowed are whole numbers from {low} to {high}")
    if not 0 <= ssa_fraction <= 1:
        raise ValueError(f"ssa_fraction: got {ssa_fraction}, allowed are numbers from 0 to 1")
    slide = index // TILES_PER_SLIDE
    label = _draw_label(index, seed=seed, ssa_fraction=ssa_fraction)
    rng = _generator(seed, index, _TILE_STREAM)
    ambiguity = float(rng.uniform())
    votes = _draw_votes(label, ambiguity, rng)
    # 0 is a textbook HP, 1 a textbook SSA; full ambiguity is halfway for either label.
    severity = 1 - ambiguity / 2 if label else ambiguity / 2
    look = draw_slide_look(_generator(seed, slide, _LOOK_STREAM))
    image, mask = draw_polyp(severity, look, rng, size_px=size_px)
    return SyntheticTile(image, mask, label, votes, f"slide_{slide:04d}", ambiguity)


def write_synthetic(
    root: str | Path,
    *,
    count: int,
    size_px: int = 224,
    seed: int = 0,
    ssa_fraction: float = 0.5,
    test_fraction: float = 0.3,
    workers: int | None = None,
    progress: bool = False,
) -> None:
    """Write a set of tiles under `root` in the layout of MHIST, plus `masks/` and `slides.csv`.

    The folder appears complete or not at all. Whole slides go to train or to test. The files do not depend on the
    number of workers.

    Args:
        root: folder to create; may exist only if it is empty.
        count: number of tiles. Each class must occur in train and in test: 16 suffice at the default fractions.
        size_px, seed, ssa_fraction: as for `draw_tile`; ssa_fraction strictly between 0 and 1.
        test_fraction: fraction of the slides in test, strictly between 0 and 1.
        workers: processes; None uses one core for a small set and all cores for a large one. The processes are
            spawned, so a script that calls this needs the usual `if __name__ == "__main__":`.

    Raises:
        ValueError: there are too few tiles, root is not empty or cannot be written, or a worker died.
    """
    if workers is None:
        workers = 1 if count < _PARALLEL_FROM else cpu_cores()
    partitions = _partitions(count, seed=seed, ssa_fraction=ssa_fraction, test_fraction=test_fraction)
    draw = partial(draw_tile, seed=seed, size_px=size_px, ssa_fraction=ssa_fraction)

    with drawing_into(Path(root)) as folder:
        _write_files(folder, partitions, draw, workers=workers, progress=progress)


@contextlib.contextmanager
def drawing_into(root: Path) -> Iterator[Path]:
    """Give a folder to draw into, which takes the place of `root` when it is complete.

    Raises:
        ValueError: root is not empty or cannot be written, or a drawing process died.
    """
    root = root.absolute()
    try:
        with holding(root):
            if root.is_symlink() or (root.exists() and not (root.is_dir() and is_bare(root))):
                raise ValueError(f"{root}: exists and is not an empty folder; remove it or choose another folder")
            with replacing_folder(root) as unfinished:
                yield unfinished
    except OSError as error:
        raise ValueError(f"{root}: cannot be written ({error.strerror or error}); choose another folder") from error
    except BrokenProcessPool as error:
        raise ValueError(
            'workers: a drawing process died; a script needs `if __name__ == "__main__":` around this call, '
            "or set workers=1"
        ) from error


def _generator(seed: int, index: int, stream: int) -> np.random.Generator:
    """Return a counter-based random generator: its numbers do not depend on other draws."""
    key = np.array([seed, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, stream]))


def is_chosen(rank: int, fraction: float) -> bool:
    """Return whether item `rank` of an infinite series is in the `fraction` that is chosen at even intervals."""
    return int((rank + 1) * fraction + 0.5) > int(rank * fraction + 0.5)


def _draw_label(index: int, *, seed: int, ssa_fraction: float) -> int:
    """Return the class of a tile: every slide has its fraction of SSA to within one tile, in random order."""
    slide, place = divmod(index, TILES_PER_SLIDE)
    order = _generator(seed, slide, _ORDER_STREAM).permutation(TILES_PER_SLIDE)
    return int(is_chosen(slide * TILES_PER_SLIDE + int(order[place]), ssa_fraction))


def _draw_votes(label: int, ambiguity: float, rng: np.random.Generator) -> int:
    """Return how many of 7 annotators chose SSA.

    Each disagrees with the label with a probability that grows with ambiguity, given that most agree. The exponent
    makes about 1 tile in 6 a 4-to-3 one, as in MHIST.
    """
    probability = 0.5 * ambiguity**1.3
    minority = range((_ANNOTATORS + 1) // 2)
    ways = [math.comb(_ANNOTATORS, k) for k in minority]
    weights = np.array([ways[k] * probability**k * (1 - probability) ** (_ANNOTATORS - k) for k in minority])
    dissenters = int(rng.choice(len(minority), p=weights / weights.sum()))
    return _ANNOTATORS - dissenters if label else dissenters


def _partitions(count: int, *, seed: int, ssa_fraction: float, test_fraction: float) -> list[str]:
    """Return train or test for every tile, by whole slides; ValueError if a class is missing in one of them."""
    from sscl.data.mhist import CLASSES

    partitions = ["test" if is_chosen(i // TILES_PER_SLIDE, test_fraction) else "train" for i in range(count)]
    found = {(part, CLASSES[_draw_label(i, seed=seed, ssa_fraction=ssa_fraction)]) for i, part in enumerate(partitions)}
    for part in ("train", "test"):
        for name in CLASSES:
            if (part, name) not in found:
                raise ValueError(
                    f"count: {count} tiles ({TILES_PER_SLIDE} per slide) put no {name} in {part} at ssa_fraction "
                    f"{ssa_fraction} and test_fraction {test_fraction}; ask for more tiles"
                )
    return partitions


def _write_files(
    root: Path,
    partitions: list[str],
    draw: Callable[[int], SyntheticTile],
    *,
    workers: int,
    progress: bool,
) -> None:
    from sscl.data.mhist import CLASSES, COLUMNS, SLIDE_COLUMNS

    for folder in ("images", "masks"):
        (root / folder).mkdir()
    count = len(partitions)
    tiles = in_processes(
        partial(_write_tile, root=root, draw=draw),
        count,
        workers=workers,
        chunk=16,
        bar=partial(over, total=count, desc="drawing tiles" if progress else None, unit="tile"),
    )
    write_csv(
        root / "annotations.csv",
        COLUMNS,
        ((name, CLASSES[label], votes, part) for (name, label, votes, _), part in zip(tiles, partitions, strict=True)),
    )
    write_csv(root / "slides.csv", SLIDE_COLUMNS, ((name, slide) for name, _, _, slide in tiles))


def in_processes(
    write: Callable[[int], T], count: int, *, workers: int, chunk: int, bar: Callable[[Iterable[T]], Iterable[T]]
) -> list[T]:
    """Return what `write` does for 0 to count - 1, in order, in processes where there are several workers."""
    if workers == 1:
        return list(bar(map(write, range(count))))
    # Spawned, not forked: torch or OpenCV may already run threads in this process. Each keeps to one of OpenCV's.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        return list(bar(pool.map(write, range(count), chunksize=chunk)))


def _write_tile(index: int, *, root: Path, draw: Callable[[int], SyntheticTile]) -> tuple[str, int, int, str]:
    """Write one image and its mask; return its name, label, votes and slide."""
    tile = draw(index)
    name = f"syn_{index:05d}.png"
    bgr = cv2.cvtColor(tile.image, cv2.COLOR_RGB2BGR)
    for folder, pixels in (("images", bgr), ("masks", tile.mask.astype(np.uint8) * 255)):
        with naming(root / folder / name):
            (root / folder / name).write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return name, tile.label, tile.votes, tile.slide
