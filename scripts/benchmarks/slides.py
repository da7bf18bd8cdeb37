"""Tiles of whole slides: in order, reduced, at random, of other formats, against hs2p, openslide-python and pyvips;
indexing; pretraining from slides against from the cache; memory over an epoch of many slides.

Readers are compared by CPU time, in turn, each round on other tiles; the least of the rounds counts, as other load on a
machine only ever adds to it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from data import RESIDENT, child
from sscl.data.drawn_slide import draw_slide
from sscl.slides.open import open_slide
from sscl.slides.pixels import Readers
from sscl.slides.records import Slide
from sscl.slides.scaling import scaling
from sscl.slides.write import EncodedLevel, encode_level, reduced, write_levels

SECONDS, QUICK_SECONDS = 20.0, 0.1
TILE_PX = 224
MPP = 0.5
OPEN = 64  # slides that are open at once
Row = dict[str, Any]
Tiles = NDArray[np.uint8]  # (B, S, S, 3)
Places = Sequence[tuple[int, int, int]]  # slide, x, y
Read = Callable[[Places, Tiles], None]


@dataclass(frozen=True)
class Task:
    """Tiles to read: of which slides, at which µm per pixel; side: of the square of level 0 that is read."""

    slides: Sequence[Slide]
    mpp: float
    side: int


def measure(*, quick: bool, device: torch.device) -> list[Row]:
    """Return the rows of this topic."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide = write_large(folder / "large.svs", drawn(1024 if quick else 4096), times=2 if quick else 5)
        return [
            *in_order(slide, quick=quick),
            *at_random(folder, slide, quick=quick),
            *other_formats(folder, quick=quick),
            *indexing(folder, slide, quick=quick),
            *pretraining(folder, quick=quick, device=device),
            *memory(folder, quick=quick),
        ]


def row(what: str, **values: Any) -> Row:
    """Return a row; what is not given was not measured."""
    empty = {"ours": None, "peer": "", "theirs": None, "unit": "", "ratio": None, "target": "", "note": ""}
    return {"what": what, **empty, **values}


# --- slides ---


def drawn(size_px: int) -> NDArray[np.uint8]:
    """Return the pixels of a drawn slide."""
    return draw_slide(0, size_px=size_px, mpp=MPP).pixels


def write_large(path: Path, pixels: NDArray[np.uint8], *, times: int) -> Slide:
    """Write a slide whose tiles are those of a drawn one, `times` in a row and in a column."""
    levels = [
        repeated(encode_level(pixels if factor == 1 else reduced(pixels, factor)), times)
        for factor in (1, 4, 16)
        if len(pixels) % (256 * factor) == 0  # whole tiles
    ]
    write_levels(path, levels, mpp=MPP, tables=True)
    return open_slide(path, name=path.name)


def repeated(level: EncodedLevel, times: int) -> EncodedLevel:
    """Return a level that repeats another."""
    side = -(-level.width // level.tile_px)
    tiles = [level.tiles[y % side * side + x % side] for y in range(side * times) for x in range(side * times)]
    return replace(level, width=level.width * times, height=level.height * times, tiles=tiles)


# --- readers: each reads places of a task into `out` ---


def ours(task: Task) -> Read:
    """Ours: batches in the order of (slide, y, x)."""
    readers = Readers(OPEN)
    how = [scaling(slide, mpp=task.mpp, size_px=TILE_PX) for slide in task.slides]

    def read(places: Places, out: Tiles) -> None:
        order = sorted(range(len(places)), key=lambda i: (places[i][0], places[i][2], places[i][1]))
        start = 0
        while start < len(order):
            which = places[order[start]][0]
            end = start
            while end < len(order) and places[order[end]][0] == which:
                end += 1
            rows = order[start:end]
            xy = np.array([places[i][1:] for i in rows], dtype=np.int64)
            if rows == list(range(rows[0], rows[0] + len(rows))):
                readers.tiles(task.slides[which], how[which], xy, out[rows[0] : rows[0] + len(rows)])
            else:
                some = np.empty((len(rows), *out.shape[1:]), np.uint8)
                readers.tiles(task.slides[which], how[which], xy, some)
                out[rows] = some
            start = end

    return read


def by_openslide(task: Task) -> Read:
    """openslide-python and convert("RGB"); all slides stay open and share one cache."""
    import openslide

    more_files()
    cache = openslide.OpenSlideCache(64 * 2**20)
    handles: dict[int, openslide.OpenSlide] = {}

    def read(places: Places, out: Tiles) -> None:
        for (which, x, y), tile in zip(places, out, strict=True):
            handle = handles.get(which)
            if handle is None:
                handle = handles[which] = openslide.OpenSlide(task.slides[which].path)
                handle.set_cache(cache)
            put(np.asarray(handle.read_region((x, y), 0, (task.side, task.side)).convert("RGB")), tile)

    return read


def by_hs2p(task: Task) -> Read:
    """hs2p's reader as `auto` picks it for a slide, tile by tile."""
    from hs2p.wsi.wsi import WSI

    (slide,) = task.slides
    wsi = WSI(path=Path(slide.path), backend="openslide")

    def read(places: Places, out: Tiles) -> None:
        for (_, x, y), tile in zip(places, out, strict=True):
            put(wsi.get_tile(x=x, y=y, width=task.side, height=task.side, level=0), tile)

    return read


def by_hs2p_regions(task: Task) -> Read:
    """hs2p's reader, 8 x 8 tiles a read where the places allow it: its fastest way through a grid."""
    from hs2p.wsi.wsi import WSI

    (slide,) = task.slides
    wsi = WSI(path=Path(slide.path), backend="openslide")

    def read(places: Places, out: Tiles) -> None:
        at = {(x, y): i for i, (_, x, y) in enumerate(places)}
        done: set[tuple[int, int]] = set()
        for _, left, top in places:
            if (left, top) in done:
                continue
            region = wsi.get_tile(x=left, y=top, width=8 * task.side, height=8 * task.side, level=0)
            for j in range(8):
                for i in range(8):
                    place = (left + i * task.side, top + j * task.side)
                    if place in at and place not in done:
                        part = region[j * task.side : (j + 1) * task.side, i * task.side : (i + 1) * task.side]
                        put(part, out[at[place]])
                        done.add(place)

    return read


def by_pyvips(task: Task) -> Read:
    """pyvips, a region of each open file; its wheel has no openslide, so it reads the TIFF itself."""
    import pyvips

    more_files()
    pyvips.cache_set_max(0)
    regions: dict[int, Any] = {}

    def read(places: Places, out: Tiles) -> None:
        for (which, x, y), tile in zip(places, out, strict=True):
            region = regions.get(which)
            if region is None:
                region = regions[which] = pyvips.Region.new(pyvips.Image.new_from_file(task.slides[which].path))
            pixels = np.frombuffer(region.fetch(x, y, task.side, task.side), np.uint8)
            put(pixels.reshape(task.side, task.side, -1)[:, :, :3], tile)

    return read


def more_files() -> None:
    """Let this process have as many open files as the system allows it: the peers keep every slide open."""
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def put(pixels: NDArray[np.uint8], tile: NDArray[np.uint8]) -> None:
    """Write pixels into a tile, reduced where they are more."""
    if pixels.shape == tile.shape:
        tile[:] = pixels
    else:
        cv2.resize(pixels, tile.shape[1::-1], dst=tile, interpolation=cv2.INTER_AREA)


PACKAGES = {"hs2p": "hs2p", "openslide": "openslide-python", "pyvips": "pyvips"}
PEERS: dict[str, tuple[str, Callable[[Task], Read]]] = {
    "hs2p, tile by tile": ("hs2p", by_hs2p),
    "hs2p, 8 x 8 tiles a read": ("hs2p", by_hs2p_regions),
    "openslide-python": ("openslide", by_openslide),
    "pyvips": ("pyvips", by_pyvips),
}


def opened(read: Read, task: Task) -> None:
    """Read a tile of every slide, so that what stays open is open."""
    out = np.empty((1, TILE_PX, TILE_PX, 3), np.uint8)
    for which in range(len(task.slides)):
        read([(which, 0, 0)], out)


def race(readers: Mapping[str, Read], rounds: Callable[[int], Places], *, seconds: float) -> dict[str, float]:
    """Return the tiles per CPU-second of each reader: the best of its rounds, which take turns.

    Raises:
        RuntimeError: pixels differ in the first round.
    """
    first = rounds(0)
    out = np.empty((len(first), TILE_PX, TILE_PX, 3), np.uint8)
    values: dict[str, Tiles] = {}
    for name, read in readers.items():
        out[:] = 0
        read(first, out)
        values[name] = out.copy()
    ours = next(iter(values))
    for name, theirs in values.items():
        if not np.array_equal(values[ours], theirs):
            differs = int(np.abs(values[ours].astype(int) - theirs).max())
            raise RuntimeError(f"pixels of {ours} and {name} differ by up to {differs}")
    best = dict.fromkeys(readers, 0.0)
    end, number = time.perf_counter() + seconds, 1
    while time.perf_counter() < end or number < 4:
        places = rounds(number)
        for name, read in readers.items():
            started = time.process_time()
            read(places, out[: len(places)])
            best[name] = max(best[name], len(places) / (time.process_time() - started))
        number += 1
    return best


def compared(
    what: str, task: Task, rounds: Callable[[int], Places], targets: Mapping[str, str], *, seconds: float
) -> list[Row]:
    """Return a row for each peer that has a target (empty: none is set); "hs2p" is the faster of its two ways."""
    readers: dict[str, Read] = {"ours": ours(task)}
    why: dict[str, str] = {}
    for name, (module, build) in PEERS.items():
        if module not in targets:
            continue
        if importlib.util.find_spec(module) is None:
            why[module] = f"{PACKAGES[module]} is not installed; scripts/bench installs it"
        else:
            readers[name] = build(task)
            opened(readers[name], task)
    best = race(readers, rounds, seconds=seconds)
    found = []
    for module, target in targets.items():
        values: Row = {"ours": best["ours"], "unit": "tiles/CPU-s", "target": target, "peer": PACKAGES[module]}
        rates = {name: best[name] for name, (its, _) in PEERS.items() if its == module and name in best}
        if rates:
            fastest = max(rates, key=lambda name: rates[name])
            values["peer"] = f"{PACKAGES[module]} {version(PACKAGES[module])}{fastest.removeprefix(module)}"
            if module != "hs2p":
                values["peer"] = f"{PACKAGES[module]} {version(PACKAGES[module])}"
            values |= {"theirs": rates[fastest], "ratio": best["ours"] / rates[fastest], "note": "equal pixels"}
        else:
            values["note"] = why[module]
        found.append(row(what, **values))
    return found


# --- the rows ---


def in_order(slide: Slide, *, quick: bool) -> list[Row]:
    """Return rows of reading a grid row by row, at the slide's own µm per pixel and at twice it."""
    seconds = QUICK_SECONDS if quick else SECONDS
    found = []
    for mpp, targets in (
        (MPP, {"hs2p": ">= 4", "openslide": ">= 3.5", "pyvips": ""}),
        (2 * MPP, {"hs2p": ">= 4", "openslide": "", "pyvips": ""}),
    ):
        side = round(TILE_PX * mpp / MPP)
        what = "at the slide's µm/px" if mpp == MPP else "reduced 2:1"
        found += compared(
            f"tiles of {TILE_PX} px in order, JPEG SVS of {slide.width:,} px, {what}",
            Task((slide,), mpp, side),
            partial(band, slide, side),
            targets,
            seconds=seconds,
        )
    return found


def band(slide: Slide, side: int, number: int) -> Places:
    """Return eight rows of a grid, others each time, so that none of their pixels is in a cache."""
    columns, rows = slide.width // side, slide.height // side
    top = number * 8 % max(rows - 7, 1)
    return [(0, x * side, y * side) for y in range(top, min(top + 8, rows)) for x in range(columns)]


def at_random(folder: Path, slide: Slide, *, quick: bool) -> list[Row]:
    """Return the row of random tiles of many slides: one file by many names."""
    count, batch = (6, 12) if quick else (1000, 512)
    slides = linked(folder / "many", slide, count)
    draw = np.random.default_rng(0)

    def rounds(number: int) -> Places:
        which = draw.integers(0, count, batch)
        xy = draw.integers(0, slide.width - TILE_PX, (batch, 2))
        return [(int(i), int(x), int(y)) for i, (x, y) in zip(which, xy, strict=True)]

    return compared(
        f"random tiles of {TILE_PX} px of {count:,} slides; ours has {OPEN} open, theirs all",
        Task(slides, MPP, TILE_PX),
        rounds,
        {"openslide": ">= 1.6", "pyvips": ""},
        seconds=QUICK_SECONDS if quick else SECONDS,
    )


def linked(folder: Path, slide: Slide, count: int) -> list[Slide]:
    """Return slides that are one file by many names."""
    folder.mkdir()
    slides = []
    for i in range(count):
        path = folder / f"slide_{i:04d}.svs"
        os.link(slide.path, path)
        slides.append(slide.model_copy(update={"path": str(path), "name": path.name}))
    return slides


def other_formats(folder: Path, *, quick: bool) -> list[Row]:
    """Return the rows of formats whose tiles openslide decodes."""
    path = folder / "wavelets.svs"
    times = 1 if quick else 4
    write_levels(path, [repeated(encode_level(drawn(1024 if quick else 2048), codec="jpeg2000"), times)], mpp=MPP)
    slide = open_slide(path, name=path.name)
    rows = compared(
        f"tiles of {TILE_PX} px in order, JPEG 2000 SVS",
        Task((slide,), MPP, TILE_PX),
        partial(band, slide, TILE_PX),
        {"openslide": ">= 1"},
        seconds=QUICK_SECONDS if quick else SECONDS / 2,
    )
    why = "no such slide can be written here, and the project ships none"
    return [*rows, row(f"tiles of {TILE_PX} px in order, NDPI and DICOM", target=">= 1", note=why)]


def indexing(folder: Path, slide: Slide, *, quick: bool) -> list[Row]:
    """Return the row of indexing a slide: CPU seconds of `sscl slides tile`, without its imports."""
    taken = []
    for number in range(1 if quick else 5):
        said = child(INDEX, slide.path, str(folder / f"index_{number}"))
        taken.append(float(said.splitlines()[-1]))
    return [
        row(
            f"indexing a slide of {slide.width:,} px, {MPP} µm/px, tiles of {TILE_PX} px",
            ours=min(taken),
            unit="CPU s",
            target="<= 0.5 s",
            note=f"least of {len(taken)} processes, without imports",
        )
    ]


# Indexes a slide after another, so that what is imported or set up once is not counted.
INDEX = """
import sys, time
from pathlib import Path
from sscl.cli import main
words = ["mpp=0.5", "size_px=224", "progress=false"]
slide = Path(sys.argv[1])
from sscl.data.drawn_cohort import write_cohort
write_cohort(Path(sys.argv[2] + "_small"), count=1, size_px=1024, mpp=0.5)
assert main(["slides", "tile", sys.argv[2] + "_small/slides", f"out={sys.argv[2]}_first", *words]) == 0
started = time.process_time()
assert main(["slides", "tile", str(slide), f"out={sys.argv[2]}", *words]) == 0
print(time.process_time() - started)
"""


# Runs `sscl pretrain`, and prints memory and time at every step.
TRAIN = f"""
import json, sys, time
from sscl import cli
from sscl.train import step
{RESIDENT}
backward, seen = step.ContrastiveStep.backward, []
def watched(*given, **named):
    seen.append(dict(mib=sum(resident().values()), cpu=time.process_time(), wall=time.perf_counter()))
    return backward(*given, **named)
step.ContrastiveStep.backward = watched
code = cli.main(sys.argv[1:])
assert code == 0, code
print(json.dumps(seen))
"""


def pretraining(folder: Path, *, quick: bool, device: torch.device) -> list[Row]:
    """Return the row of pretraining from slides against from the cache, by CPU time: the best of runs in turn."""
    count, size_px, batch, rounds = (2, 32, 8, 1) if quick else (3, 224, 16, 2)
    cohort, index = folder / "cohort", folder / "cohort_index"
    child(COHORT, str(cohort), str(count), str(600 if quick else 2048))
    child(MAIN, "slides", "tile", str(cohort / "slides"), f"out={index}", f"mpp={MPP}", f"size_px={size_px}")
    rates: dict[str, list[float]] = {"slides": [], "cache": []}
    for number in range(rounds):
        for keep in rates:
            words = [
                "pretrain", f"run={folder}/run_{keep}_{number}", f"data.root={index}", f"data.keep={keep}",
                f"data.cache_dir={folder / 'cache'}", "model.name=resnet18", f"train.batch_size={batch}",
                "train.epochs=1", "train.warmup_epochs=0", f"device={device.type}", "progress=false",
                "health.tiles=16",
            ]  # fmt: skip
            seen = json.loads(child(TRAIN, *words).splitlines()[-1])[min(2, rounds - 1) :]
            wall = device.type != "cpu"
            first, last = (step["wall" if wall else "cpu"] for step in (seen[0], seen[-1]))
            rates[keep].append(batch * (len(seen) - 1) / (last - first))
    best = {keep: max(values) for keep, values in rates.items()}
    return [
        row(
            f"pretraining from slides, ResNet18, {size_px} px, batches of {batch}",
            ours=best["slides"],
            peer="from the cache",
            theirs=best["cache"],
            unit="tiles/s" if wall else "tiles/CPU-s",
            ratio=best["slides"] / best["cache"],
            target=">= 0.95" if wall else ">= 0.97",
            note=f"{rounds} runs each in turn, {len(seen)} steps",
        )
    ]


MAIN = "import sys; from sscl.cli import main; code = main(sys.argv[1:]); assert code == 0, code"
COHORT = """
import sys
from pathlib import Path
from sscl.data.drawn_cohort import write_cohort
write_cohort(Path(sys.argv[1]), count=int(sys.argv[2]), size_px=int(sys.argv[3]), mpp=0.5)
"""


def memory(folder: Path, *, quick: bool) -> list[Row]:
    """Return the row of memory over an epoch of pretraining on the tiles of many slides."""
    count, size_px, each, batch = (4, 32, 8, 8) if quick else (1000, 32, 16, 256)
    if not sys.platform.startswith("linux"):
        return [row(f"pretraining on {count:,} slides: growth of its memory", note="memory is read from /proc")]
    slides = folder / "thousand"
    slides.mkdir()
    level = encode_level(drawn(512 if quick else 1024))
    order = np.random.default_rng(0)
    for i in range(count):  # each of the same tiles in another order: all are different slides
        tiles = [level.tiles[k] for k in order.permutation(len(level.tiles))]
        write_levels(slides / f"slide_{i:04d}.svs", [replace(level, tiles=tiles)], mpp=MPP)
    index = folder / "thousand_index"
    child(MAIN, "slides", "tile", str(slides), f"out={index}", f"mpp={MPP}", f"size_px={size_px}", "progress=false")
    words = [
        "pretrain", f"run={folder / 'thousand_run'}", f"data.root={index}", "data.keep=slides",
        f"data.tiles_per_slide={each}", "model.name=resnet18", f"train.batch_size={batch}", "train.epochs=1",
        "train.warmup_epochs=0", "device=cpu", "progress=false", "health.tiles=16",
    ]  # fmt: skip
    seen = [step["mib"] for step in json.loads(child(TRAIN, *words).splitlines()[-1])]
    settled = min(5, len(seen) - 2)  # the first steps fill the allocator's pools
    middle = (settled + len(seen)) // 2
    return [
        row(
            f"pretraining on {count:,} slides, {each} tiles of {size_px} px of each: growth of its memory",
            ours=max(seen[middle:]) - max(seen[settled:middle]),
            unit="MiB",
            target="< 64 MiB",
            note=f"highest of steps {middle} to {len(seen)} less highest of {settled} to {middle}; peak "
            f"{max(seen):,.0f} MiB",
        )
    ]
