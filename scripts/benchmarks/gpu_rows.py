"""The GPU rows, the most important first; scripts/gpu_check starts this file as a process that measures some of them.

    python gpu_rows.py NAMES FILE.jsonl --work DIR --out DIR [--device cuda] [--seconds 300] [--quick]

A line says when a row begins and one what it found, so that whatever ends the process leaves what was there. After an
error that CUDA does not recover from, the process ends; scripts/gpu_check starts another for the rows that are left.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(Path(__file__).parent)]
import gpu_inference  # noqa: E402
import gpu_slides  # noqa: E402
import gpu_training as training  # noqa: E402
import gpu_transformers  # noqa: E402
from gpu_measure import Bench, Found, ceilings, facts  # noqa: E402
from gpu_plan import BEGUN, EXPECTED_S, FAILED, LOST, MEASURED, NOT_REACHED  # noqa: E402
from gpu_training import P28, R18, R50, against_bare_step  # noqa: E402
from main import checked, verdict  # noqa: E402
from sscl.device import pick_device, tune  # noqa: E402
from table import Row  # noqa: E402

STICKY = (
    "cuda error",
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "cudnn_status_execution",
)


ALL: dict[str, Callable[[Bench], Found]] = {
    "facts": facts,
    "ceilings": ceilings,
    "resnet50 bf16": partial(
        against_bare_step,
        case=R50,
        precision="bf16",
        target=">= 0.95",
        closely=True,
        views_target=training.VIEWS_TARGET,
    ),
    "resnet18 bf16": partial(against_bare_step, case=R18, precision="bf16", target=">= 0.95"),
    "28 px bf16": partial(against_bare_step, case=P28, precision="bf16", target=">= 0.90"),
    "resnet50 fp16": partial(against_bare_step, case=R50, precision="fp16", target=">= 0.95"),
    "nt-xent 65,536": training.loss_memory,
    "4,096 pairs bf16": partial(training.large_batch, precision="bf16", microbatch=32),
    "4,096 pairs fp32": partial(training.large_batch, precision="fp32", microbatch=16),
    "gradient caching": training.cached,
    "mhist's size": training.between_epochs,
    "ways to train": training.ways,
    "eval rate": gpu_inference.evaluation,
    "predict rate": gpu_inference.prediction,
    "from slides": gpu_slides.from_slides,
    "grad-cam": gpu_inference.heatmaps,
    "lightly resnet18": partial(training.lightly, case=R18),
    "lightly 28 px": partial(training.lightly, case=P28, per_core=True),
    "vit-l memory": gpu_transformers.vit_l,
    "compiled resnet50": partial(training.compiled, case=R50, precision="bf16", target=">= 7500"),
    "compiled 28 px": partial(training.compiled, case=P28, precision="bf16", target=""),
    "compiled ways": partial(training.ways, compile=True),
}


def main(words: list[str] | None = None) -> int:
    """Measure the rows that were named; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", help="rows, separated by semicolons: " + "; ".join(ALL))
    parser.add_argument("file", type=Path, help="lines of JSON are added to this file")
    parser.add_argument("--work", type=Path, required=True, help="folder for tiles and runs")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is kept")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, cpu or auto")
    parser.add_argument("--seconds", type=float, default=300.0, help="for all rows together")
    parser.add_argument("--quick", action="store_true", help="toy size")
    given = parser.parse_args(words)
    device = pick_device(given.device)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)  # some of torch's functions take no GPU without its number
        torch.cuda.set_device(device)
    tune(device)
    bench = Bench(device, given.quick, given.work, given.out)
    end = time.monotonic() + given.seconds
    for name in given.names.split(";"):
        if end - time.monotonic() < (0 if given.quick else EXPECTED_S[name]):
            left = max(0.0, end - time.monotonic())
            note = f"needs about {EXPECTED_S[name]:.0f} s, {left:.0f} were left"
            add(given.file, {"name": name, "state": NOT_REACHED, "note": note})
            continue
        add(given.file, {"name": name, "state": BEGUN})
        line = measured(name, bench)
        add(given.file, line)
        if line["state"] == FAILED and any(word in line["note"].lower() for word in STICKY):
            return LOST
    return 0


def measured(name: str, bench: Bench) -> dict[str, Any]:
    """Return what a row found, or why it failed."""
    gc.collect()
    if bench.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)
    started = time.monotonic()
    line: dict[str, Any] = {"name": name, "state": MEASURED, "note": ""}
    try:
        found = ALL[name](bench)
        bench.finish()
        line |= {"rows": judged(found.rows, quick=bench.quick), "details": found.details}
        if bench.on_gpu:
            line["peak_gib"] = torch.cuda.max_memory_allocated(bench.device) / 2**30
    except Exception as error:  # the other rows are measured
        first = (str(error) or "no message").splitlines()[0][:400]
        line |= {"state": FAILED, "note": f"{type(error).__name__}: {first}", "trace": traceback.format_exc()[-3000:]}
    return {**line, "seconds": round(time.monotonic() - started, 1)}


def judged(rows: list[Row], *, quick: bool) -> list[Row]:
    """Return the rows of the table with their verdicts."""
    return [{**row, "verdict": verdict(row, quick=quick)} for row in map(checked, rows)]


def add(file: Path, line: dict[str, Any]) -> None:
    """Add a line; it is on its way to the disk when this returns."""
    with file.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    sys.exit(main())
