"""Data: decoding on all cores, listing, the time to the first step, and a set that is larger than memory."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from race import race
from sscl.data import decode
from sscl.data.folder import load_folder
from sscl.data.mhist import COLUMNS, load_mhist
from sscl.data.synthetic import draw_tile

SECONDS, QUICK_SECONDS = 40.0, 0.1
TRAINING_SECONDS = 60.0
Row = dict[str, Any]


def measure(*, quick: bool, device: torch.device) -> list[Row]:
    """Return the rows of this topic."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return [
            *ingest(folder, quick=quick),
            *listing(folder, quick=quick),
            *start(folder, quick=quick),
            *larger_than_memory(folder, quick=quick, device=device),
        ]


def row(what: str, **values: Any) -> Row:
    """Return a row; what is not given was not measured."""
    empty = {"ours": None, "peer": "", "theirs": None, "unit": "", "ratio": None, "target": "", "note": ""}
    return {"what": what, **empty, **values}


# --- decoding ---


def ingest(folder: Path, *, quick: bool) -> list[Row]:
    """Race all cores with one core; the tiles are synthetic polyps, some files again and again."""
    if not hasattr(os, "sched_setaffinity"):
        return [row("decoding on all cores", target=">= 0.85", note="this system pins no process to a core")]
    cores = sorted(os.sched_getaffinity(0))
    size_px = 32 if quick else 224
    found = []
    for source_px in (size_px, 2 * size_px):
        files = [folder / f"{source_px}_{index}.png" for index in range(2 if quick else 32)]
        for index, file in enumerate(files):
            Image.fromarray(draw_tile(index, size_px=source_px).image).save(file)
        counts = {"all": 8 if quick else max(decode._PROCESSES_FROM, 2000 * len(cores)), "one": 8 if quick else 500}
        images = {
            which: np.lib.format.open_memmap(folder / f"{which}.npy", "w+", np.uint8, (count, size_px, size_px, 3))
            for which, count in counts.items()
        }
        paths = {which: [files[i % len(files)] for i in range(count)] for which, count in counts.items()}

        def on_one_core(images: Any = images["one"], paths: Any = paths["one"]) -> None:
            with pinned({cores[0]}):
                decode.decode_into(images, paths)

        def on_all(images: Any = images["all"], paths: Any = paths["all"]) -> None:
            decode.decode_into(images, paths)

        taken = race({"one": on_one_core, "all": on_all}, seconds=QUICK_SECONDS if quick else SECONDS)
        rates = {which: counts[which] / taken[which] for which in counts}
        cpu = {which: cpu_seconds(run) / counts[which] * 1e3 for which, run in (("one", on_one_core), ("all", on_all))}
        found.append(
            row(
                f"decoding PNG, {source_px} to {size_px} px, {len(cores)} cores over cores x one core",
                ours=rates["all"],
                peer="one core",
                theirs=rates["one"],
                unit="tiles/s",
                ratio=rates["all"] / rates["one"] / len(cores),
                target=">= 0.85",
                note=f"needs a quiet machine, and its load is {os.getloadavg()[0]:.1f} with this run; CPU time, which "
                f"other load hardly changes: {cpu['all']:.2f} ms a tile on all cores, {cpu['one']:.2f} ms on one",
            )
        )
    return found


def cpu_seconds(run: Callable[[], object]) -> float:
    """Return the CPU time that a call takes, with that of the processes it starts and ends."""
    before = os.times()
    run()
    return sum(os.times()[:4]) - sum(before[:4])


@contextmanager
def pinned(cores: set[int]) -> Iterator[None]:
    """Keep this thread, and the threads and processes it starts, on some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# --- listing ---


def listing(folder: Path, *, quick: bool) -> list[Row]:
    """Time what a start does with the files of a set whose pixels lie in the cache."""
    count = 100 if quick else 100_000
    classes, mhist, cache = folder / "classes", folder / "mhist", folder / "cache"
    write_small(classes, count)
    write_mhist(mhist, count, size_px=8)

    def as_folder() -> None:
        load_folder(classes, split="train", size_px=8, cache_dir=cache)

    def as_mhist() -> None:
        load_mhist(mhist, protocol="official", split="train", size_px=8, published=False, cache_dir=cache)

    taken = race({"folder": as_folder, "mhist": as_mhist}, seconds=QUICK_SECONDS if quick else SECONDS / 2)
    return [
        row(f"listing {count:,} files of an image folder", ours=taken["folder"], unit="s", target="< 5 s"),
        row(f"listing {count:,} files of a set like MHIST", ours=taken["mhist"], unit="s", target="< 5 s"),
    ]


def png(size_px: int) -> bytes:
    """Return a small PNG file."""
    file = io.BytesIO()
    Image.new("RGB", (size_px, size_px), (200, 120, 160)).save(file, "png")
    return file.getvalue()


def write_small(root: Path, count: int) -> None:
    """Write an image folder of two classes."""
    content = png(8)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
    for i in tqdm(range(count), desc="files to list", leave=False, disable=None):
        (root / "ab"[i % 2] / f"{i:07d}.png").write_bytes(content)


def write_mhist(root: Path, count: int, *, size_px: int) -> None:
    """Write a set in MHIST's layout, two thirds of it for training."""
    content = png(size_px)
    (root / "images").mkdir(parents=True)
    with open(root / "annotations.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for i in tqdm(range(count), desc="files to list", leave=False, disable=None):
            (root / "images" / f"{i:07d}.png").write_bytes(content)
            ssa = i % 2 == 1
            table.writerow([f"{i:07d}.png", "SSA" if ssa else "HP", 6 if ssa else 1, "test" if i % 6 >= 4 else "train"])


# --- start ---

# Runs the command line; says when each of the first two steps begins, the second of which ends the first, and ends.
FIRST_STEP = """
import importlib, os, sys, time
load, begun = importlib.import_module, []
def watched(name, *rest, **named):
    module = load(name, *rest, **named)
    if name == "sscl.commands.pretrain":
        from sscl.train.step import ContrastiveStep
        backward = ContrastiveStep.backward
        def timed(*given, **named):
            begun.append(time.time())
            if len(begun) == 2:
                print("steps", *begun, flush=True)
                os._exit(0)
            return backward(*given, **named)
        ContrastiveStep.backward = timed
    return module
importlib.import_module = watched
from sscl.cli import main
sys.exit(main(sys.argv[1:]))
"""
IMPORTS = "import torch, torchvision, torch._dynamo"


def start(folder: Path, *, quick: bool) -> list[Row]:
    """Time processes from their start: to the text of --help, and to the first step of pretraining."""
    rounds = 1 if quick else 7
    count, size_px = (24, 32) if quick else (3152, 224)
    model, net = ("resnet14_small", "a small ResNet") if quick else ("resnet18", "ResNet18")
    root = folder / "start"
    write_mhist(root, count, size_px=size_px)
    words = [
        f"run={folder / 'run'}", f"data.root={root}", "data.published=false", "data.protocol=official",
        f"data.size_px={size_px}", f"data.cache_dir={folder / 'cache'}", f"model.name={model}", "train.batch_size=8",
        "health.tiles=8", "progress=false", "device=cpu",
    ]  # fmt: skip
    load_mhist(root, protocol="official", split="train", size_px=size_px, published=False, cache_dir=folder / "cache")
    helped, begins, ends, imports = [], [], [], []
    for _ in tqdm(range(rounds), desc="starts", leave=False, disable=None):
        started = time.time()
        child("from sscl.cli import main; main(['--help'])")
        helped.append(time.time() - started)
        started = time.time()
        said = child(FIRST_STEP, "pretrain", *words, "--overwrite").splitlines()[-1].split()
        assert said[0] == "steps", said
        begins.append(float(said[1]) - started)
        ends.append(float(said[2]) - started)
        if not quick:
            started = time.time()
            child(IMPORTS)
            imports.append(time.time() - started)
    what = f"process start to the first step, {count:,} cached tiles of {size_px} px, {net}, CPU"
    note = "" if quick else f"importing torch, torchvision and torch._dynamo, as SGD does, {np.median(imports):.2f} s"
    return [
        row("sscl --help", ours=float(np.median(helped)), unit="s", target="< 0.3 s"),
        row(f"{what}, begins", ours=float(np.median(begins)), unit="s", target="< 2 s", note=note),
        row(f"{what}, has ended", ours=float(np.median(ends)), unit="s", note="batch of 8"),
    ]


def child(program: str, *words: str) -> str:
    """Return what a Python program of its own process prints."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"a measured process failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return done.stdout


# --- larger than memory ---

RESIDENT = """
def resident():
    lines = dict(line.split(":") for line in open("/proc/self/status") if ":" in line)
    return {key: int(lines[key].split()[0]) / 1024 for key in ("RssAnon", "RssFile")}  # MiB
"""
# Reads every tile once, in a random order: from the file, then through the mapping.
READ = f"""
import json, sys, time
import numpy as np, torch
from sscl.data.rows import Rows
from sscl.data.tiles import TileStore, epoch_order
{RESIDENT}
mapped = np.load(sys.argv[1], mmap_mode="r")
order = epoch_order(len(mapped), seed=0, epoch=0)
order = order[: len(order) // 100 * 100].reshape(-1, 100)
with open(sys.argv[1], "rb") as file:  # so that both find it in the system's cache
    while file.read(2**24):
        pass
found = dict()
for how, images in (("file", mapped), ("mapping", mapped.view(np.ndarray))):
    store = TileStore(images, device=torch.device("cpu"))
    if how == "file":
        for batch in store.batches(order[:10]):  # what is allocated once
            pass
    before, started = sum(resident().values()), time.perf_counter()
    for batch in store.batches(order):
        pass
    found[how] = [time.perf_counter() - started, sum(resident().values()) - before]
print(json.dumps(found))
"""
# Runs `sscl pretrain` on the tiles of a file for a while, or an epoch.
TRAIN = f"""
import json, os, sys, time
import numpy as np
from sscl import cli
from sscl.data import sources
from sscl.data.tiles import Tiles
from sscl.train import step
{RESIDENT}
file, seconds, batch_size = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
def load(data, **_):
    images = np.load(file, mmap_mode="r")
    ids = tuple(f"train/{{row:07d}}" for row in range(len(images)))
    return Tiles(images, np.full(len(images), -1), (), ids)
sources.load_tiles = load
backward, seen = step.ContrastiveStep.backward, []
def end():
    print(json.dumps(seen), flush=True)
    os._exit(0)
def watched(*given, **named):
    if len(seen) > 5 and time.perf_counter() - seen[5]["time"] > seconds:
        end()
    seen.append({{"time": time.perf_counter(), **resident()}})
    return backward(*given, **named)
step.ContrastiveStep.backward = watched
code = cli.main(sys.argv[4:])
if seen:
    end()
sys.exit(code)
"""


def larger_than_memory(folder: Path, *, quick: bool, device: torch.device) -> list[Row]:
    """Pretrain on 1,000,000 tiles in a file, and watch the process's memory; read them without training."""
    count, batch_size, size_px = (2_000, 16, 28) if quick else (1_000_000, 256, 28)
    seconds, model = (0.1, "resnet14_small") if quick else (TRAINING_SECONDS, "resnet18")
    if not sys.platform.startswith("linux"):
        return [row(f"pretraining on {count:,} tiles in a file", note="memory is read from /proc, which is not here")]
    files = {"large": folder / "large.npy", "small": folder / "small.npy"}
    write_tiles(files["large"], count, size_px=size_px)
    write_tiles(files["small"], 10 * batch_size, size_px=size_px)
    read = json.loads(child(READ, str(files["large"])))
    words = [
        "pretrain", f"run={folder / 'large'}", f"data.root={folder}", "data.source=folder", f"data.size_px={size_px}",
        "data.device_budget_gb=0", f"model.name={model}", f"train.batch_size={batch_size}", "train.epochs=1",
        "train.warmup_epochs=0", f"device={device.type}", "progress=false", "health.tiles=16", "--overwrite",
    ]  # fmt: skip
    runs = {
        which: json.loads(child(TRAIN, str(file), str(seconds), str(batch_size), *words).splitlines()[-1])
        for which, file in files.items()
        if which == "large" or not quick
    }
    totals = {which: [step["RssAnon"] + step["RssFile"] for step in run] for which, run in runs.items()}
    # The first steps fill the allocator's pools, which then rise and fall by 100 MiB whatever the set.
    large, settled = totals["large"], min(5, len(totals["large"]) - 2)
    middle = (settled + len(large)) // 2
    set_mib = count * size_px**2 * 3 / 2**20
    file_mib = runs["large"][-1]["RssFile"] - runs["large"][settled]["RssFile"]
    # What 1,000,000 tiles cost before any is trained on: their ids, labels and the order of an epoch.
    more = [] if quick else [max(totals["large"]) - max(totals["small"])]
    return [
        row(
            f"pretraining on {count:,} tiles of {size_px} px in a file of {set_mib:,.0f} MiB: growth of its memory",
            ours=max(large[middle:]) - max(large[settled:middle]),
            unit="MiB",
            target="< 64 MiB",
            note=f"highest of steps {middle} to {len(large)} less highest of {settled} to {middle}, {batch_size} tiles "
            f"each; mapped pages {file_mib:+.1f} MiB; peak {max(large):,.0f} MiB",
        ),
        *(
            row(
                f"memory of {count:,} tiles' ids, labels and order beyond those of {10 * batch_size:,}",
                ours=value,
                unit="MiB",
                note="the whole run's peak against the other's",
            )
            for value in more
        ),
        row(
            f"reading {count:,} tiles of {size_px} px in a random order",
            ours=1e6 * read["file"][0] / count,
            peer="numpy's mapping",
            theirs=1e6 * read["mapping"][0] / count,
            unit="µs a tile",
            ratio=read["mapping"][0] / read["file"][0],
            note=f"the file in the system's cache; memory grows by {read['file'][1]:.0f} MiB, through the mapping by "
            f"{read['mapping'][1]:.0f} MiB",
        ),
    ]


def write_tiles(file: Path, count: int, *, size_px: int) -> None:
    """Write an .npy file of noise tiles, uint8 (count, size_px, size_px, 3)."""
    images = np.lib.format.open_memmap(file, "w+", np.uint8, (count, size_px, size_px, 3))
    shape = min(count, 10_000), size_px, size_px, 3
    block: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for start in tqdm(range(0, count, len(block)), desc="tiles", leave=False, disable=None):
        images[start : start + len(block)] = block[: count - start]
    images.flush()
