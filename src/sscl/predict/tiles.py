"""The tiles of a slide through a classifier: their probabilities, and which of them cannot be read.

n tiles, K classes, B tiles at a time, S: their side.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sscl.api import Model
from sscl.data.files import Batch
from sscl.data.images import Region
from sscl.data.tiles import host_memory
from sscl.progress import Bar
from sscl.report.slide_record import Damage
from sscl.slides.index import Grid
from sscl.slides.pixels import DamagedTile, Readers
from sscl.slides.places import Places
from sscl.slides.records import Scaling, Slide, SlideError
from sscl.slides.stream import SlidePixels
from sscl.words import count


@dataclass(frozen=True, eq=False)
class SlideAnswers:
    """What a classifier says of a slide's tiles.

    Attributes:
        grid: those that could be read, int32 (n, 3): x, y, coverage in percent. probabilities: (n, K).
        damaged: the others.
    """

    grid: Grid
    probabilities: NDArray[np.float64]
    damaged: tuple[Damage, ...]


def classify(
    model: Model, slide: Slide, scaling: Scaling, grid: Grid, *, readers: Readers, batch_size: int, bar: Bar
) -> SlideAnswers:
    """Return what a classifier says of the tiles of a slide; those that cannot be decoded are left out, and named.

    Raises:
        SlideError: the slide cannot be read, or none of its tiles.
    """
    places = Places.of([slide.name], [len(grid)], [grid])
    pixels = SlidePixels([(slide, scaling)], places, readers=readers)
    kept: list[NDArray[np.int64]] = []
    found: list[NDArray[np.float64]] = []
    faults: list[tuple[int, str]] = []
    batches = batches_of(pixels, batch_size=batch_size, device=model.device)
    pad_to = batch_size if len(grid) > batch_size else 0
    for batch, probabilities in model.stream_tiles(batches, pad_to=pad_to):
        kept.append(batch.rows)
        found.append(probabilities)
        faults += batch.faults
        bar.update(len(batch.rows) + len(batch.faults))
    damaged = tuple(Damage(x=int(grid[row, 0]), y=int(grid[row, 1]), why=why) for row, why in faults)
    rows = np.concatenate(kept)
    if not len(rows):
        raise SlideError(f"{slide.path}: none of its {count(len(grid), 'tile')} can be decoded: {damaged[0].why}")
    return SlideAnswers(np.array(grid[rows]), np.concatenate(found), damaged)


def batches_of(pixels: SlidePixels, *, batch_size: int, device: torch.device) -> Generator[Batch, None, None]:
    """Yield the tiles of a slide in order; the next ones are read while the caller has one."""
    total = len(pixels.places)
    with ThreadPoolExecutor(1, thread_name_prefix="predict") as pool:
        coming = None
        for start in range(0, total, batch_size):
            rows = np.arange(start, min(start + batch_size, total))
            following = pool.submit(_batch, pixels, rows, device)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()


def _batch(pixels: SlidePixels, rows: NDArray[np.int64], device: torch.device) -> Batch:
    side = pixels.size_px
    tiles = host_memory((len(rows), side, side, 3), device=device)
    out, good, faults = tiles.numpy(), list(range(len(rows))), []
    try:
        pixels.read(rows, out, places=np.arange(len(rows)))
    except DamagedTile:
        good = []
        for place, row in enumerate(rows.tolist()):
            try:
                pixels.read(rows[place : place + 1], out, places=np.array([place]))
                good.append(place)
            except DamagedTile as error:
                faults.append((row, error.why))
    region: Region = (0, 0, side, side)
    return Batch(
        rows=rows[good],
        pixels=tiles if len(good) == len(rows) else tiles[good],
        regions=(region,) * len(good),
        faults=tuple(faults),
    )
