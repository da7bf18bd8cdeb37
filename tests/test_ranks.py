"""Ranks that talk over gloo equal one process. What a rank does is in tests/rank_tasks.py."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sscl import ranks

SCRIPT = Path(__file__).with_name("rank_tasks.py")
SECONDS = 240  # a rank that waits for another for ever is killed; they need a few


def load_script():
    spec = importlib.util.spec_from_file_location("rank_tasks", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rank_tasks = load_script()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def together(
    world_size: int, tasks: list[str], folder: Path, *, script: Path = SCRIPT, seconds: float = SECONDS
) -> dict[str, rank_tasks.Results]:
    """Run tasks on ranks of their own and return rank 0's results by task."""
    environment = {
        **os.environ,
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "RESULTS": str(folder),
        "CUDA_VISIBLE_DEVICES": "",  # gloo, also where there is a GPU
        "OMP_NUM_THREADS": "1",
    }
    if Path("/sys/class/net/lo").exists():
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # else gloo looks up the host's name, which need not resolve
    log = folder / "ranks.log"
    with log.open("w") as handle:
        command = [sys.executable, str(script), *tasks]
        process = subprocess.Popen(command, env=environment, stdout=handle, stderr=handle, start_new_session=True)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)
    code = process.poll()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert code == 0, f"exit code {code}\n{log.read_text()}"
    return {task: torch.load(folder / f"{task}.pt", weights_only=True) for task in tasks}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return together(2, list(rank_tasks.TASKS), tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    tasks = ["contrast", "contrast_cross_view", "contrast_of_tiles", "contrast_with_cut_gather", "gather_order"]
    return together(4, tasks, tmp_path_factory.mktemp("four"))


def largest_difference(found: rank_tasks.Results, expected: rank_tasks.Results) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[key] - expected[key]).abs().max()) for key in expected)


@pytest.mark.parametrize("world", ["two", "four"])
@pytest.mark.parametrize("task", ["contrast", "contrast_cross_view"])
def test_a_loss_over_ranks_equals_one_process(world, task, request):
    found, expected = request.getfixturevalue(world)[task], rank_tasks.TASKS[task]()
    assert largest_difference(found, expected) < 1e-12
    assert expected["weight"].abs().max() > 1e-3


@pytest.mark.parametrize("world", ["two", "four"])
def test_losses_of_tiles_over_ranks_equal_one_process(world, request):
    assert (
        largest_difference(request.getfixturevalue(world)["contrast_of_tiles"], rank_tasks.contrast_of_tiles()) < 1e-12
    )


@pytest.mark.parametrize("world", ["two", "four"])
def test_the_comparison_notices_a_gather_without_gradient(world, request):
    found, expected = request.getfixturevalue(world)["contrast_with_cut_gather"], rank_tasks.contrast()
    assert found["loss"] == pytest.approx(expected["loss"].item(), abs=1e-12)  # the loss alone would not tell
    assert largest_difference(found, expected) > 1e-4


@pytest.mark.parametrize(("world", "size"), [("two", 2), ("four", 4)])
def test_rows_come_in_rank_order(world, size, request):
    rows = request.getfixturevalue(world)["gather_order"]["rows"]
    assert rows[:, 0].tolist() == [10.0 * rank + row for rank in range(size) for row in range(2)]


@pytest.mark.parametrize(
    ("task", "dtype", "tolerance"),
    [("train32", torch.float32, 1e-6), ("train64", torch.float64, 1e-12), ("train_cached", torch.float64, 1e-12)],
)
def test_training_steps_on_two_ranks_equal_one_process(two, task, dtype, tolerance):
    expected = rank_tasks.train(dtype)
    assert two[task]["projection.weight"].dtype == dtype
    assert largest_difference(two[task], expected) < tolerance
    for name, moved in expected.items():
        # A shift that all projections share hardly changes NT-Xent, so the last bias may move little.
        if name.startswith("moved.") and name.endswith("weight"):
            assert moved.abs().max() > 1e-3, name


@pytest.mark.parametrize("task", ["train_normed", "train_compiled"])
def test_training_with_batch_norm_on_two_ranks_equals_one_process(two, task):
    """Compiled as one graph: `fullgraph` raises at the first break."""
    assert largest_difference(two[task], rank_tasks.train(torch.float64, normed=True)) < 1e-10


@pytest.mark.parametrize("task", ["norms", "norms_kernels"])
def test_batch_norm_over_two_ranks_equals_one_process(two, task):
    """Outputs, gradients and running statistics; on GPUs by way of torch's kernels, here written in plain torch."""
    expected = rank_tasks.norms()
    assert largest_difference(two[task], expected) < 1e-10
    assert (expected["maps.4.running_mean"].abs() > 1e-3).all()
    assert expected["frozen.running_mean"].abs().max() == 0


def test_a_norm_with_an_activation_within_keeps_it_over_ranks(two):
    expected = rank_tasks.norms_of_timm()
    assert largest_difference(two["norms_of_timm"], expected) < 1e-10
    assert expected["outputs"].abs().max() > 1e-3


def test_one_process_needs_no_group():
    rows = torch.arange(6.0).reshape(3, 2).requires_grad_()
    assert ranks.world_size() == 1
    assert ranks.rank() == 0
    assert ranks.gather(rows) is rows
    mean = ranks.mean(rows.sum())
    assert mean.item() == 15
    assert not mean.requires_grad
    ranks.stop()  # nothing to leave


def test_start_without_torchrun_does_nothing(monkeypatch):
    for value in (None, "1"):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if value is not None:
            monkeypatch.setenv("WORLD_SIZE", value)
        ranks.start()
        assert not torch.distributed.is_initialized()


def test_a_rank_that_waits_for_ever_is_ended(tmp_path):
    (tmp_path / "hangs.py").write_text("import time\ntime.sleep(600)\n")
    with pytest.raises(AssertionError, match="exit code None"):
        together(2, [], tmp_path, script=tmp_path / "hangs.py", seconds=0.5)


def test_a_rank_that_fails_is_reported(tmp_path):
    with pytest.raises(AssertionError, match=r"KeyError: 'no such task'"):
        together(1, ["no such task"], tmp_path)
