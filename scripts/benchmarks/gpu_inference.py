"""GPU rows of inference: eval from the store, predict from JPEG files, heatmaps; tiles a second and the GPU's share."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gpu_measure import Bench, Found, Observed, command, observe, per_call
from gpu_training import R50, small
from sscl.cores import cpu_cores
from sscl.explain.cam import class_maps
from sscl.explain.targets import DIFFERENCE
from sscl.models.encoders import build_encoder
from sscl.models.heads import Classifier
from step import Case, row, some_tiles

BUSY = ">= 0.8 of the time"


def case_of(bench: Bench) -> tuple[Case, int]:
    """Return the encoder with its tile size, and how many tiles are classified."""
    return small(bench, R50, "")[0], 16 if bench.quick else 4096


def classifier(bench: Bench) -> Path:
    """Return the run folder of a classifier that was trained for a step; made once."""
    case, count = case_of(bench)
    run = bench.work / "classifier"
    if (run / "checkpoints" / "best.pt").exists():
        return run
    some = some_tiles(Case(case.encoder, case.stem, case.size_px, 16))
    parts: dict[str, Any] = {"classes": np.array(["a", "b"])}
    for number, (split, tiles) in enumerate({"train": 64, "val": 64, "test": count}.items()):
        parts |= {f"{split}_images": np.resize(some, (tiles, *some.shape[1:])) ^ number}  # no tile is in two splits
        parts |= {f"{split}_labels": np.arange(tiles)[:, None] % 2}
    file = bench.work / "inference.npz"
    np.savez(file, **parts)
    command(
        "finetune",
        "--overwrite",
        f"run={run}",
        f"data={{source: pathmnist, root: {file}, size_px: {case.size_px}, cache_dir: {bench.work / 'cache'}}}",
        f"model={{name: {case.encoder}, stem: {case.stem}}}",
        "train.epochs=1",
        "train.warmup_epochs=0",
        "train.batch_size=32",
        f"device={bench.device}",
        "progress=false",
    )
    return run


def jpeg_tiles(bench: Bench) -> Path:
    """Return a folder of JPEG tiles; made once."""
    case, count = case_of(bench)
    folder = bench.work / "jpeg"
    if not folder.exists():
        folder.mkdir()
        some = some_tiles(Case(case.encoder, case.stem, case.size_px, 16))
        noise = np.random.default_rng(0).integers(-12, 12, some.shape)  # so that files are as large as tissue's
        some = (some + noise).clip(0, 255).astype(np.uint8)
        with ThreadPoolExecutor(cpu_cores()) as pool:
            list(
                pool.map(
                    lambda i: Image.fromarray(some[i % len(some)]).save(folder / f"{i}.jpg", quality=90), range(count)
                )
            )
    return folder


def inference_rows(what: str, seen: Observed, *, tiles: int, wall_s: float) -> list[dict[str, Any]]:
    """Return tiles a second and how busy the GPU was."""
    if seen.busy is None or seen.span is None:
        note = "of the whole command: no kernels were seen"
        return [row(f"{what}, tiles a second", ours=tiles / wall_s, unit="tiles/s", note=note)]
    note = f"from the first kernel to the last; the command alone takes {wall_s:.1f} s"
    return [
        row(f"{what}, tiles a second", ours=tiles / seen.span, unit="tiles/s", note=note),
        row(f"{what}, the GPU is busy", ours=seen.busy, unit="of the time", target=BUSY),
    ]


def observed_command(bench: Bench, what: str, *words: str) -> Found:
    """Run a command twice, the first time for cuDNN's trials, and observe the second."""
    _, count = case_of(bench)
    started = time.perf_counter()
    command(*words)
    wall_s = time.perf_counter() - started
    with observe(bench) as seen:
        command(*words)
    return Found(inference_rows(what, seen, tiles=count, wall_s=wall_s), {"observed": seen.details()})


def evaluation(bench: Bench) -> Found:
    """Measure `sscl eval`, from tiles in the store."""
    run = classifier(bench)
    words = (f"checkpoint={run}", f"device={bench.device}", "progress=false")
    case, _ = case_of(bench)
    return observed_command(bench, f"eval, {case.encoder} at {case.size_px} px", "eval", "--overwrite", *words)


def prediction(bench: Bench) -> Found:
    """Measure `sscl predict`, from JPEG files."""
    run, folder = classifier(bench), jpeg_tiles(bench)
    words = (f"checkpoint={run}", f"paths=[{folder}]", f"out={bench.work / 'predictions'}")
    case, _ = case_of(bench)
    what = f"predict, {case.encoder}, JPEG of {case.size_px} px, {cpu_cores()} cores"
    return observed_command(bench, what, "predict", "--overwrite", *words, f"device={bench.device}", "progress=false")


def heatmaps(bench: Bench) -> Found:
    """Measure Grad-CAM's maps in batches of 32."""
    case, _ = case_of(bench)
    batch = 2 if bench.quick else 32
    model = Classifier(build_encoder(case.encoder), num_classes=2).to(bench.device).eval()
    x = torch.randn(batch, 3, case.size_px, case.size_px, device=bench.device)

    def run() -> object:
        return class_maps(model, x, target=DIFFERENCE)

    taken = per_call(run, bench)
    with observe(bench) as seen:
        for _ in range(1 if bench.quick else 20):
            run()
        bench.finish()
    what = f"Grad-CAM, {case.encoder} at {case.size_px} px, batches of {batch}, fp32"
    rows = [row(f"{what}, tiles a second", ours=batch / taken, unit="tiles/s")]
    if seen.busy is not None:
        rows.append(row(f"{what}, the GPU is busy", ours=seen.busy, unit="of the time", target=BUSY))
    return Found(rows, {"observed": seen.details()})


__all__ = ["evaluation", "heatmaps", "prediction"]
