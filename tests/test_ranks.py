"""Ranks that talk over gloo equal one process. What a rank does is in tests/rank_tasks.py."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch

import forked
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


def finished(folder: Path, *, script: Path = SCRIPT, seconds: float = SECONDS) -> None:
    """Run the script, which forks its ranks, to its end."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # gloo, also where there is a GPU
    if Path("/sys/class/net/lo").exists():
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # else gloo looks up the host's name, which need not resolve
    done = forked.run(script, folder, env=environment, timeout=seconds)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[int, dict[str, rank_tasks.Results]]:
    """Rank 0's results by number of ranks and task."""
    folder = tmp_path_factory.mktemp("ranks")
    finished(folder)
    return {
        size: {task: torch.load(folder / str(size) / f"{task}.pt", weights_only=True) for task in tasks}
        for size, tasks in rank_tasks.GROUPS.items()
    }


@pytest.fixture(scope="module")
def two(results):
    return results[2]


def largest_difference(found: rank_tasks.Results, expected: rank_tasks.Results) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[key] - expected[key]).abs().max()) for key in expected)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("task", ["contrast", "contrast_cross_view"])
def test_a_loss_over_ranks_equals_one_process(size, task, results):
    found, expected = results[size][task], rank_tasks.TASKS[task]()
    assert largest_difference(found, expected) < 1e-12
    assert expected["weight"].abs().max() > 1e-3


@pytest.mark.parametrize("size", [2, 4])
def test_losses_of_tiles_over_ranks_equal_one_process(size, results):
    assert largest_difference(results[size]["contrast_of_tiles"], rank_tasks.contrast_of_tiles()) < 1e-12


@pytest.mark.parametrize("size", [2, 4])
def test_the_comparison_notices_a_gather_without_gradient(size, results):
    found, expected = results[size]["contrast_with_cut_gather"], rank_tasks.contrast()
    assert found["loss"] == pytest.approx(expected["loss"].item(), abs=1e-12)  # the loss alone would not tell
    assert largest_difference(found, expected) > 1e-4


@pytest.mark.parametrize("size", [2, 4])
def test_rows_come_in_rank_order(size, results):
    rows = results[size]["gather_order"]["rows"]
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


@pytest.mark.parametrize(("task", "quick"), [("train_normed", False), ("train_compiled", True)])
def test_training_with_batch_norm_on_two_ranks_equals_one_process(two, task, quick):
    """Compiled as one graph, `fullgraph` raises at the first break; `quick` is traced sooner."""
    assert largest_difference(two[task], rank_tasks.train(torch.float64, normed=True, quick=quick)) < 1e-10


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
    with pytest.raises(subprocess.TimeoutExpired):
        finished(tmp_path, script=tmp_path / "hangs.py", seconds=0.5)


def test_a_rank_that_fails_is_reported(tmp_path, capfd):
    assert rank_tasks.fork(1, partial(rank_tasks.compute, ["no such task"], tmp_path)) == 1
    assert "KeyError: 'no such task'" in capfd.readouterr().err
