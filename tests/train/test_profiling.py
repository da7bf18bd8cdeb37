from __future__ import annotations

import json
import re
import time

import pytest
import torch
from torch.profiler import record_function

from sscl.train.profiling import Profile

CPU = torch.device("cpu")


def loop(profile: Profile, *, steps: int, waits: float = 0.02, works: float = 0.02) -> None:
    """A training loop that sleeps for its data and works for some time."""
    weight = torch.ones(8, 8, requires_grad=True)
    for _ in range(steps):
        with record_function("data"):
            time.sleep(waits)
        with record_function("forward"):
            loss = (torch.ones(8, 8) @ weight).sum()
        with record_function("backward"):
            loss.backward()
        with record_function("optimizer"):
            time.sleep(works)
        profile.step()


def names(folder) -> list[str]:
    return [event.get("name") for event in json.loads((folder / "trace.json").read_text())["traceEvents"]]


def test_the_costs_the_wait_and_the_trace(tmp_path):
    with Profile(tmp_path, enabled=True, steps=20, device=CPU) as profile:
        loop(profile, steps=20, waits=0.06, works=0.01)
    trace = names(tmp_path)
    assert [trace.count(label) for label in ("data", "forward", "backward", "optimizer")] == [8] * 4
    assert 50 < profile.data_wait < 90  # 60 of 70 ms, and what waking late and the rest take
    (first, ms, share), (second, other, _), third = profile.costs
    assert (first, second) == ("data", "optimizer")
    assert 60 <= ms < 180
    assert 10 <= other < ms
    assert share == pytest.approx(profile.data_wait / 100, abs=0.01)
    assert third[1] < other
    lines = profile.lines()
    assert re.fullmatch(
        r"profile of 8 steps after 3 skipped: \d+\.\d ms a step, data_wait \d\d\.\d%; largest costs:", lines[0]
    )
    assert re.fullmatch(r"  data +\d\d\.\d\d ms a step  \d\d\.\d%", lines[1])
    assert len(lines) == 5
    assert lines[-1] == f"wrote {tmp_path}/trace.json (for chrome://tracing or ui.perfetto.dev)"
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]


@pytest.mark.parametrize(
    ("steps", "skipped", "recorded"), [(1, 0, 1), (2, 1, 1), (4, 3, 1), (6, 3, 3), (11, 3, 8), (15, 3, 8)]
)
def test_which_steps_are_recorded(steps, skipped, recorded, tmp_path):
    with Profile(tmp_path, enabled=True, steps=steps, device=CPU) as profile:
        for number in range(steps):
            with record_function(f"step {number}"):
                loop(profile, steps=1, waits=0, works=0)
    seen = [name for name in names(tmp_path) if name.startswith("step ")]
    assert seen == [f"step {number}" for number in range(skipped, skipped + recorded)]
    assert names(tmp_path).count("data") == recorded
    what = "one step" if recorded == 1 else f"{recorded} steps after {skipped} skipped"
    assert profile.lines()[0].startswith(f"profile of {what}: ")


def test_a_loop_that_ends_early_leaves_what_was_recorded(tmp_path):
    with Profile(tmp_path, enabled=True, steps=20, device=CPU) as profile:
        loop(profile, steps=5)
    assert names(tmp_path).count("data") == 2
    assert profile.lines()[0].startswith("profile of 2 steps after 3 skipped")


@pytest.mark.parametrize("steps", [0, 2, 3])
def test_nothing_without_a_recorded_step(steps, tmp_path):
    with Profile(tmp_path, enabled=True, steps=20, device=CPU) as profile:
        loop(profile, steps=steps, waits=0, works=0)
    assert (profile.lines(), profile.costs, profile.data_wait) == ([], [], None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("steps", [2, 5])
def test_a_loop_that_fails_leaves_nothing_and_its_own_error(steps, tmp_path):
    def failing() -> None:
        with Profile(tmp_path, enabled=True, steps=20, device=CPU) as profile:
            loop(profile, steps=steps, waits=0, works=0)
            raise ValueError("the loss became nan")

    with pytest.raises(ValueError, match="the loss became nan"):
        failing()
    assert list(tmp_path.iterdir()) == []
    with Profile(tmp_path, enabled=True, steps=2, device=CPU) as profile:  # the recorder was given back
        loop(profile, steps=2, waits=0, works=0)
    assert profile.lines()


def test_a_trace_that_cannot_be_written_replaces_nothing(tmp_path, monkeypatch):
    (tmp_path / "trace.json").write_text("the earlier one")

    def fails(self: object, path: str) -> None:
        with open(path, "w") as handle:
            handle.write("half")
        raise OSError("disk full")

    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", fails)
    with (
        pytest.raises(OSError, match="disk full"),
        Profile(tmp_path, enabled=True, steps=2, device=CPU) as profile,
    ):
        loop(profile, steps=2, waits=0, works=0)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the earlier one"]


def test_disabled_it_makes_no_profiler(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.profiler, "profile", None)
    with Profile(tmp_path, enabled=False, steps=20, device=CPU) as profile:
        loop(profile, steps=12, waits=0, works=0)
    assert (profile.lines(), profile.data_wait, profile.trace) == ([], None, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_costs_are_kernels(tmp_path):
    device = torch.device("cuda")
    weight = torch.ones(4096, 4096, device=device)
    with Profile(tmp_path, enabled=True, steps=6, device=device) as profile:
        for _ in range(6):
            with record_function("data"):
                time.sleep(0.02)
            with record_function("forward"):
                for _ in range(20):
                    weight @ weight
            torch.cuda.synchronize()
            profile.step()
    name, ms, share = profile.costs[0]
    assert name == "aten::mm"
    assert 0 < share < 1
    assert ms > 1
    assert 0 < profile.data_wait < 100
