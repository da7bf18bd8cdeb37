"""Compare sscl with its peers on this machine; scripts/bench runs this with the peers installed.

    scripts/bench [--only views,loss] [--quick] [--device auto] [--out FILE.json]

Prints a table; with --out it also writes FILE.json and the table as FILE.md after each topic. Without a peer or a GPU,
the row says what could not be measured. The exit status is 1 when a topic failed; a missed target is a result, not a
failure.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import math
import os
import platform
import re
import shlex
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from table import Row, commit, table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))  # this checkout is measured, installed or not
from sscl.device import describe_device, pick_device  # noqa: E402
from sscl.run import environment  # noqa: E402
from sscl.writing import write_json, write_text  # noqa: E402

# Topic: a module here with `measure(*, quick, device) -> rows`; the most important first, in case the run is stopped.
TOPICS = {
    "step": "pretraining as a whole",
    "views": "two views of a tile",
    "loss": "NT-Xent in blocks",
    "gradcam": "Grad-CAM",
    "data": "listing, decoding, start, sets larger than memory",
    "slides": "whole slides: readers, index, pretraining",
    "page": "the page of a report",
    "slide_page": "the page of a slide, and its squares at full resolution",
    "frozen": "the head on a frozen encoder",
}
PEERS = ("lightly", "kornia", "grad-cam", "torchcam", "hs2p", "openslide-python", "pyvips")
EMPTY: Row = {"ours": None, "peer": "", "theirs": None, "unit": "", "ratio": None, "target": "", "note": ""}
COMPARE = {
    ">=": lambda value, bound: value >= bound,
    "<=": lambda value, bound: value <= bound,
    ">": lambda value, bound: value > bound,
    "<": lambda value, bound: value < bound,
}
FAILED, NOT_MEASURED, TOY, REACHED, MISSED = "failed", "not measured", "toy size", "reached", "missed"


def main(words: list[str] | None = None, *, topics: dict[str, str] = TOPICS) -> int:
    """Measure, print, write; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(topics), help="topics, separated by commas: " + ", ".join(topics))
    parser.add_argument(
        "--quick", action="store_true", help="toy size, takes seconds: shows that it runs, measures nothing"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write this file and FILE.md")
    words = sys.argv[1:] if words is None else words
    given = parser.parse_args(words)
    wanted = [name for name in given.only.split(",") if name]
    unknown = [name for name in wanted if name not in topics]
    if unknown or not wanted:
        parser.error(f"--only: got {given.only!r}, allowed are {', '.join(topics)}")
    if given.out is not None and (given.out.suffix != ".json" or not given.out.absolute().parent.is_dir()):
        parser.error(f"--out: got {given.out}, expected FILE.json in a folder that exists")
    try:
        device = pick_device(given.device)
    except ValueError as error:
        parser.error(f"--{error}")

    report = {**facts(device, words), "quick": given.quick, "seconds": 0.0, "topics_left": wanted, "rows": []}
    started = time.perf_counter()
    bar = tqdm(wanted, unit="topic", dynamic_ncols=True)
    for topic in bar:
        bar.set_description(topics[topic])
        report["rows"] += rows_of(topic, quick=given.quick, device=device)
        report["seconds"] = round(time.perf_counter() - started, 1)
        report["topics_left"] = wanted[wanted.index(topic) + 1 :]
        if given.out is not None:
            write_json(given.out, report)
            write_text(given.out.with_suffix(".md"), markdown(report))
    print(markdown(report), end="")
    if given.out is not None:
        print(f"\nwrote {given.out}, {given.out.with_suffix('.md')}")
    return int(any(row["verdict"] == FAILED for row in report["rows"]))


def rows_of(topic: str, *, quick: bool, device: torch.device) -> list[Row]:
    """Return a topic's rows, each with its topic and verdict; one row that says why, when it cannot be measured."""
    try:
        rows = importlib.import_module(topic).measure(quick=quick, device=device)
        return [{"topic": topic, **row, "verdict": verdict(row, quick=quick)} for row in map(checked, rows)]
    except Exception as error:  # whatever it is, the other topics are measured
        if isinstance(error, ModuleNotFoundError) and error.name == topic:
            why = f"no {topic}.py beside main.py"
        else:
            traceback.print_exc()
            why = f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
        return [{"topic": topic, "what": topic, **EMPTY, "note": why, "verdict": FAILED}]


def checked(row: Row) -> Row:
    """Return the row with all keys, its numbers plain.

    Raises:
        ValueError: a key is missing or unknown, a number is none, or nothing is there and the note does not say why.
    """
    if "what" not in row or set(row) - {"what", *EMPTY}:
        raise ValueError(f"a row has the keys {sorted(row)}, expected what and {', '.join(EMPTY)}")
    row = {"what": row["what"], **EMPTY, **row}
    for key in ("ours", "theirs", "ratio"):
        if row[key] is not None:
            row[key] = float(row[key])
            if not math.isfinite(row[key]):
                raise ValueError(f"{row['what']}: {key} is {row[key]}; None, with the reason in note, is not measured")
    if row["ours"] is None and row["ratio"] is None and not row["note"]:
        raise ValueError(f"{row['what']}: nothing was measured, and note does not say why")
    return row


def verdict(row: Row, *, quick: bool) -> str:
    """Return reached, missed, not measured or toy size; "" without a target.

    A target is a comparison with a number: `>= 2.5` or `<= 1.3x dense` is about the ratio (about ours, where there is
    no ratio), `< 0.3 s` or `>= 5,500 views/s`, with a unit, about ours.

    Raises:
        ValueError: the target has another form.
    """
    if not row["target"]:
        return NOT_MEASURED if row["ours"] is None and row["ratio"] is None else ""
    found = re.fullmatch(r"(>=|<=|>|<)\s*([\d,]*\.?\d+(?:e-?\d+)?)\s*(.*)", row["target"])
    if found is None:
        raise ValueError(f"{row['what']}: target {row['target']!r} does not read as >= NUMBER, or < NUMBER UNIT")
    sign, bound, unit = found.groups()
    value = row["ratio"] if unit == "" or re.match(r"x\b", unit) else row["ours"]
    if value is None and unit == "":
        value = row["ours"]
    if value is None:
        return NOT_MEASURED
    if quick:
        return TOY
    return REACHED if COMPARE[sign](value, float(bound.replace(",", ""))) else MISSED


def facts(device: torch.device, words: list[str]) -> dict[str, Any]:
    """Return what a reader needs to interpret the numbers."""
    return {
        **dict(environment()),
        "command": shlex.join(["python", "scripts/benchmarks/main.py", *words]),
        "device": describe_device(device),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],  # before the start, by other processes
        "commit": commit(),
        "peers": {name: installed(name) for name in PEERS},
    }


def cpu_name() -> str:
    """Return the processor's name as Linux has it, else its kind."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def installed(name: str) -> str | None:
    """Return the version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def markdown(report: dict[str, Any]) -> str:
    """Return the table with its circumstances, as docs/performance.md has it."""
    peers = ", ".join(f"{name} {version or 'not installed'}" for name, version in report["peers"].items())
    lines = [
        f"`{report['command']}`, {report['date'][:10]}, {report['device']}; {report['cpu']}, {report['cores']} cores, "
        f"load before {report['load_average'][0]}; torch {report['torch']}; {peers}; commit {report['commit']}.",
        "",
        *(["**Toy size: shows that it runs; the numbers mean nothing.**", ""] if report["quick"] else []),
        *([f"**Not reached yet: {', '.join(report['topics_left'])}.**", ""] if report["topics_left"] else []),
        *table(report["rows"]),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
