"""How a GPU is measured: its facts and ceilings, loops that run free, kernels, and lines that wait for the device."""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import subprocess
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sscl import cli
from sscl.cores import cpu_cores

LARGEST = 15  # kernels in a table
_CLOCKS = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"


@dataclass(frozen=True)
class Bench:
    """Where and how large the rows are measured.

    Attributes:
        quick: toy size, for any machine.
        work: a folder for tiles and runs. out: one for files to keep.
    """

    device: torch.device
    quick: bool
    work: Path
    out: Path

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def seconds(self) -> float:
        """How long a loop is timed."""
        return 0.1 if self.quick else 4.0

    def finish(self) -> None:
        """Wait until the device has done everything."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


@dataclass
class Found:
    """What a row of the check found: rows of the table, and what does not fit into a table."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


def per_call(
    run: Callable[[], object], bench: Bench, *, seconds: float | None = None, block: int = 5, warm: int = 4
) -> float:
    """Return the seconds of a call in a loop that runs free: the median over blocks between two waits."""
    for _ in range(1 if bench.quick else warm):
        run()
    taken: list[float] = []
    end = time.perf_counter() + (bench.seconds if seconds is None or bench.quick else seconds)
    while time.perf_counter() < end or len(taken) < (1 if bench.quick else 3):
        bench.finish()
        started = time.perf_counter()
        for _ in range(1 if bench.quick else block):
            run()
        bench.finish()
        taken.append((time.perf_counter() - started) / (1 if bench.quick else block))
    return statistics.median(taken)


def facts(bench: Bench) -> Found:
    """Return what the card and its software are."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cores": cpu_cores(),
        "arch_list": torch.cuda.get_arch_list(),
    }
    try:
        found["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    except RuntimeError as error:  # as on a card that this cuDNN is too new for
        found["cudnn"] = str(error)
    if bench.on_gpu:
        card = torch.cuda.get_device_properties(bench.device)
        free, total = torch.cuda.mem_get_info(bench.device)
        found |= {
            "name": card.name,
            "capability": f"{card.major}.{card.minor}",
            "processors": card.multi_processor_count,
        }
        found |= {"memory_gib": total / 2**30, "free_gib": free / 2**30}
        words = ["nvidia-smi", f"--query-gpu={_CLOCKS}", "--format=csv,noheader"]
        try:
            found["nvidia_smi"] = subprocess.run(words, capture_output=True, text=True, timeout=20).stdout.strip()
        except (OSError, subprocess.TimeoutExpired) as error:
            found["nvidia_smi"] = str(error)
    return Found(details=found)


def ceilings(bench: Bench) -> Found:
    """Return what the device reaches at most: copies, matrix products, launches, uploads."""
    device, rows = bench.device, []
    size, side = (2**20, 64) if bench.quick else (2**30, 8192)

    def note(what: str, value: float, unit: str) -> None:
        rows.append({"what": what, "ours": value, "unit": unit, "note": "a ceiling"})

    a, b = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    note(
        "copy on the device, read and written", 2 * size / per_call(lambda: b.copy_(a), bench, seconds=1) / 1e9, "GB/s"
    )
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        x = torch.randn(side, side, device=device).to(dtype)
        rate = 2 * side**3 / per_call(partial(torch.matmul, x, x), bench, seconds=1) / 1e12
        note(f"matrix product {side} x {side}, {str(dtype)[6:]}", rate, "TFLOP/s")
    tiny = torch.zeros(8, device=device)

    def many() -> None:
        for _ in range(1000):
            tiny.add_(1)

    note("a tiny kernel", 1e3 * per_call(many, bench, seconds=1, block=1), "µs")
    if bench.on_gpu:
        pinned = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
        taken = per_call(lambda: a[: 2**28].copy_(pinned, non_blocking=True), bench, seconds=1)
        note("pinned host memory to the device", 2**28 / taken / 1e9, "GB/s")
    return Found(rows=rows)


# --- the commands, in this process ---


def command(*words: str) -> str:
    """Run an sscl command in this process, which spares its start, and return what it printed.

    Raises:
        RuntimeError: its exit code is not 0; the message ends with its last lines.
    """
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = cli.main(list(words))
    if code not in (None, 0):
        last = " | ".join(line for line in out.getvalue().splitlines()[-3:] if line)
        raise RuntimeError(f"sscl {words[0]} ended with {code}: {last}")
    return out.getvalue()


# --- what the device does meanwhile ---


@dataclass
class Observed:
    """What happened within `observe`.

    Attributes:
        wall: seconds. span: seconds from the first to the last kernel. busy: fraction of `span` in which some kernel or
            copy on the device ran. kernels: how many.
        largest: name, how often and ms of the kernels that took longest.
        waits: for each line of sscl at which the host waited for the device, how often.
    """

    wall: float = 0.0
    span: float | None = None
    busy: float | None = None
    kernels: int | None = None
    largest: list[tuple[str, int, float]] = field(default_factory=list)
    waits: dict[str, int] = field(default_factory=dict)

    def details(self) -> dict[str, Any]:
        """Return all of it, as plain values."""
        return vars(self)


@contextlib.contextmanager
def observe(bench: Bench) -> Iterator[Observed]:
    """Record kernels and waits; only the GPU's side is traced, so that the host is hardly slower than without."""
    seen = Observed()
    if not bench.on_gpu:
        started = time.perf_counter()
        yield seen
        seen.wall = time.perf_counter() - started
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            torch.cuda.set_sync_debug_mode("warn")
            started = time.perf_counter()
            try:
                yield seen
            finally:
                torch.cuda.set_sync_debug_mode("default")
            bench.finish()
            seen.wall = time.perf_counter() - started
    seen.waits = wait_lines([(w.filename, w.lineno) for w in caught if "synchroniz" in str(w.message)])
    events = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]  # type: ignore[attr-defined]
    spans = [
        (e.name, e.time_range.start, e.time_range.end) for e in events if not getattr(e, "is_user_annotation", False)
    ]
    summarise(seen, spans)


def wait_lines(places: Sequence[tuple[str, int]]) -> dict[str, int]:
    """Return how often each line, as file:line, is among the places; most often first."""
    lines = Counter(f"{Path(name).parent.name}/{Path(name).name}:{number}" for name, number in places)
    return dict(lines.most_common())


def summarise(seen: Observed, spans: Sequence[tuple[str, float, float]]) -> None:
    """Put kernels (name, start and end in µs) into `seen`; those of several streams may overlap."""
    ran = sorted((start, end) for name, start, end in spans if "HtoD" not in name and "DtoH" not in name)
    if not ran:
        return
    covered, until = 0.0, ran[0][0]
    for start, end in ran:
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    length = until - ran[0][0]
    seen.span, seen.busy, seen.kernels = length / 1e6, covered / max(length, 1e-9), len(ran)
    times: defaultdict[str, list[float]] = defaultdict(list)
    for name, start, end in spans:
        times[name[:90]].append(end - start)
    table = [(name, len(each), sum(each) / 1e3) for name, each in times.items()]
    seen.largest = sorted(table, key=lambda row: -row[2])[:LARGEST]


def trace(run: Callable[[], object], bench: Bench, *, steps: int = 3) -> None:
    """Write trace.json.gz of some steps, with operations and kernels, for chrome://tracing or ui.perfetto.dev."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    run()
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(1 if bench.quick else steps):
            run()
        bench.finish()
    profile.export_chrome_trace(str(bench.out / "trace.json.gz"))
