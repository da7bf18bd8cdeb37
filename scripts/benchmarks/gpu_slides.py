"""GPU row of pretraining from slides: the rate against that from the cache, with no more than six cores."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gpu_measure import Bench, Found, command
from gpu_training import R18, R50, small
from slides import MPP, repeated
from sscl.data.drawn_slide import draw_slide
from sscl.metrics_log import read_metrics
from sscl.slides.write import encode_level, write_levels
from step import Case, row

CORES = 6


def from_slides(bench: Bench) -> Found:
    """Measure `sscl pretrain` on the tiles of two slides, read as they are needed, against the same from the cache."""
    found = Found()
    folder = bench.work / "slides"
    folder.mkdir(exist_ok=True)
    # A drawn piece with the glass around it, again and again.
    times, size_px, coarser = (1, 512, 4) if bench.quick else (12, 1536, 1)
    level = repeated(encode_level(draw_slide(0, size_px=size_px, mpp=MPP * coarser).pixels), times)
    for number in range(2):  # neither is a copy of the other
        write_levels(folder / f"{number}.svs", [replace(level, tiles=[*level.tiles[number:], *level.tiles[:number]])])
    with few_cores():
        for case in (R50, R18)[: 1 if bench.quick else 2]:
            case, precision = small(bench, case, "bf16")
            index = bench.work / f"index-{case.size_px}"
            if not index.exists():
                size = f"size_px={case.size_px}"
                command("slides", "tile", str(folder), f"out={index}", f"mpp={MPP}", size, "progress=false")
            rates = {keep: rate(bench, case, index, precision=precision, keep=keep) for keep in ("slides", "cache")}
            found.details[str(case)] = rates
            ours, theirs = (max(rates[keep]) for keep in ("slides", "cache"))
            found.rows.append(
                row(
                    f"sscl pretrain from slides against from the cache, {case}, {precision}",
                    ours=ours,
                    peer="from the cache",
                    theirs=theirs,
                    unit="tiles/s",
                    ratio=ours / theirs,
                    target=">= 0.95",
                    note=f"{CORES} cores at most; JPEG tiles of 256 px; the best epoch after the first",
                )
            )
    return found


def rate(bench: Bench, case: Case, index: Path, *, precision: str, keep: str) -> list[float]:
    """Return the tiles a second of the epochs of a run after its first, which has cuDNN's trials."""
    run = bench.work / f"from-{keep}"
    held = 2 * case.batch_size
    command(
        "pretrain",
        "--overwrite",
        f"run={run}",
        f"data={{source: slides, root: {index}, keep: {keep}, cache_dir: {bench.work / 'cache'}}}",
        f"model={{name: {case.encoder}, stem: {case.stem}}}",
        "projection={kind: mlp, hidden: 2048, dim: 128}",
        f"train.batch_size={case.batch_size}",
        f"train.epochs={2 if bench.quick else 4}",
        "train.warmup_epochs=0",
        "train.learning_rate=0.01",
        f"health.tiles={held}",
        f"device={bench.device}",
        f"precision={precision}",
        "progress=false",
        *(["data.tiles_per_slide=16"] if bench.quick else []),
    )
    return [line["tiles_per_second"] for line in read_metrics(run / "metrics.jsonl")[1:]]


@contextlib.contextmanager
def few_cores() -> Iterator[None]:
    """Let this process and its threads run on so many cores only, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:CORES])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
