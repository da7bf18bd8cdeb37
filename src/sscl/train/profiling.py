"""Where the time of a training step goes: a Chrome trace and its largest costs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from sscl.writing import replacing

SKIPPED, RECORDED = 3, 8  # steps
COSTS = 3
WAITING = "data"  # the label whose time is waiting for data


class Profile:
    """A recorder of some steps of a training loop, around torch.profiler.

        with Profile(folder, enabled=True, steps=steps, device=device) as profile:
            for batch in batches:
                with torch.profiler.record_function("data"):
                    ...
                profile.step()

    The first steps, which compile and warm up, are skipped; the next ones are recorded, and what the loop does after
    them costs nothing. `trace.json` in the folder is for chrome://tracing or ui.perfetto.dev, with the loop's
    `record_function` labels. A loop that ends early leaves what was recorded until then, one that fails nothing.

    Attributes:
        costs: name, ms a step and fraction of the step's wall time of the largest costs, largest first; empty until the
            recording is done. On a GPU these are operations by the time of their kernels, on a CPU by their own time.
        data_wait: percentage of the recorded steps' wall time that the loop spends under the label "data"; None until
            then. On a CPU that time is lost. On a GPU the host runs ahead of the device, which goes on with what it was
            given: there it is an upper bound of what the device waits for data, reached when its queue is empty.
        trace: the file, None until it is written.
    """

    def __init__(self, folder: Path, *, enabled: bool, steps: int, device: torch.device) -> None:
        """Prepare; nothing is recorded before the context is entered.

        Args:
            folder: where trace.json goes.
            enabled: otherwise nothing happens at all.
            steps: steps that the loop takes until its first pause (an epoch), at least 1.
            device: of the training.
        """
        self.costs: list[tuple[str, float, float]] = []
        self.data_wait: float | None = None
        self.trace: Path | None = None
        self._folder = folder
        self._device = device
        self._skipped = min(SKIPPED, steps - 1)
        self._last = min(self._skipped + RECORDED, steps)
        self._seen = self._recorded = 0
        self._started = self._step_ms = 0.0
        self._profiler: torch.profiler.profile | None = None
        if enabled:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it reports as an error that a CPU is no GPU
            activities = [torch.profiler.ProfilerActivity.CPU]
            if device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities)

    def __enter__(self) -> Profile:
        if self._skipped == 0:
            self._start()
        return self

    def step(self) -> None:
        """Tell that a step of the loop is over."""
        if self._profiler is None:
            return
        self._seen += 1
        if self._seen == self._skipped:
            self._start()
        elif self._seen == self._last:
            self._finish()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._profiler is None or self._seen < self._skipped:
            return
        if kind is not None or self._seen == self._skipped:
            self._profiler.stop()
            self._profiler = None
        else:
            self._finish()

    def lines(self) -> list[str]:
        """Return what was found, for printing; nothing when nothing was recorded."""
        if self.trace is None:
            return []
        steps = f"{self._recorded} steps after {self._skipped} skipped" if self._recorded > 1 else "one step"
        width = max((len(name) for name, _, _ in self.costs), default=0)
        return [
            f"profile of {steps}: {self._step_ms:.1f} ms a step, data_wait {self.data_wait:.1f}%; largest costs:",
            *(f"  {name:<{width}}  {ms:8.2f} ms a step  {fraction:5.1%}" for name, ms, fraction in self.costs),
            f"wrote {self.trace} (for chrome://tracing or ui.perfetto.dev)",
        ]

    def _start(self) -> None:
        if self._profiler is not None:
            self._profiler.start()
            self._wait_for_device()  # what was given before is not part of the recorded steps
            self._started = time.perf_counter()

    def _finish(self) -> None:
        """Stop, sum the costs up and write the trace."""
        assert self._profiler is not None
        profiler, self._profiler = self._profiler, None
        self._wait_for_device()
        wall_ms = (time.perf_counter() - self._started) * 1000
        profiler.stop()
        self._recorded = self._seen - self._skipped
        self._step_ms = wall_ms / self._recorded
        # Operations and labels; on a GPU kernels have rows too, which would count them twice.
        events = [event for event in profiler.key_averages() if event.device_type == DeviceType.CPU]
        self.data_wait = sum(event.cpu_time_total for event in events if event.key == WAITING) / 10 / wall_ms
        attribute = "self_device_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        spent_ms = [(event.key, getattr(event, attribute) / 1000) for event in events]
        largest = sorted((item for item in spent_ms if item[1] > 0), key=lambda item: -item[1])[:COSTS]
        self.costs = [(name, ms / self._recorded, ms / wall_ms) for name, ms in largest]
        with replacing(self._folder / "trace.json") as temporary:
            profiler.export_chrome_trace(str(temporary))
        self.trace = self._folder / "trace.json"

    def _wait_for_device(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
