from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import pytest
import torch
from torch.cuda import _get_device_index

from sscl.cores import cpu_cores
from sscl.device import (
    Later,
    autocast,
    describe_device,
    missing_kernels,
    pick_device,
    pick_precision,
    tune,
)
from sscl.memory import check_room, free_ram

CPU = torch.device("cpu")


BUILT = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]  # torch 2.15 from PyPI
P100, V100, T4, A100, RTX4090, H100 = (6, 0), (7, 0), (7, 5), (8, 0), (8, 9), (9, 0)


def test_auto_takes_cuda_where_it_is(with_cards):
    with_cards()
    assert pick_device("auto") == CPU
    with_cards(A100)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cpu") == CPU
    assert pick_device("cuda:0") == torch.device("cuda:0")


@pytest.mark.parametrize("name", ["gpu", "MPS", "", "CUDA", "cuda:", "cuda:x", "cuda:-1", "cuda:²", "cuda 0"])
@pytest.mark.parametrize("cards", [(), (A100,)])
def test_unknown_names(name, cards, with_cards):
    with_cards(*cards)
    with pytest.raises(ValueError, match=re.escape(f"device: got {name!r}, allowed are auto, cpu, cuda, cuda:N, mps")):
        pick_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_cuda_asked_for_where_there_is_none(name, with_cards):
    with_cards()
    message = f"device: {name} was asked for, but torch sees no CUDA device; use device=cpu or device=auto"
    with pytest.raises(ValueError, match=message):
        pick_device(name)


def test_a_cuda_device_beyond_the_last(with_cards):
    with_cards(A100, A100)
    assert pick_device("cuda:1").index == 1
    with pytest.raises(ValueError, match="device: got cuda:2, allowed are cuda:0 to cuda:1"):
        pick_device("cuda:2")


def test_a_card_that_torch_has_no_kernels_for(with_cards, capsys):
    """One line with what the card has, what torch is, and what to install; torch itself fails at the first kernel."""
    with_cards(P100, A100, built=BUILT)
    for name, rank in (("cuda", None), ("cuda:0", None), ("cuda", 0), ("auto", 0)):
        with pytest.raises(ValueError, match="device: got cuda") as caught:
            pick_device(name, local_rank=rank)
        line = str(caught.value)
        assert "card 0" in line
        assert "6.0" in line
        assert torch.__version__ in line
        assert 'pip install "torch==2.7.1" "torchvision==0.22.1"' in line
        assert "\n" not in line
    assert pick_device("cuda:1") == torch.device("cuda:1")
    assert capsys.readouterr().err == ""
    assert pick_device("auto") == CPU
    assert capsys.readouterr().err.startswith("note: device: auto takes the CPU; card 0 has compute capability 6.0")


@pytest.mark.parametrize(
    ("card", "built", "runs"),
    [
        (T4, BUILT, True),
        (RTX4090, BUILT, True),  # sm_86 is of its series
        (V100, BUILT, False),
        (P100, ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"], True),  # torch 2.7.1
        ((6, 1), ["sm_50", "sm_60", "sm_70"], True),  # a GTX 1070
        ((11, 0), BUILT, False),
        ((11, 0), [*BUILT, "compute_90"], True),  # compiled when it starts
        ((12, 1), BUILT, True),
        ((9, 1), ["sm_90a"], False),
        (H100, ["sm_90a"], True),
        ((10, 3), ["sm_100f"], True),
        (A100, ["sm_90"], False),
        (A100, [], True),  # nothing known
        (A100, ["gfx942"], True),
    ],
)
def test_which_kernels_run_on_a_card(card, built, runs, with_cards):
    with_cards(card, built=built)
    assert (missing_kernels(torch.device("cuda")) is None) == runs


def test_a_card_too_new_needs_a_later_torch(with_cards):
    with_cards((13, 0), built=BUILT)
    with pytest.raises(ValueError, match=r"13\.0.*install a later torch"):
        pick_device("cuda")


def test_mps(with_cards, with_mps):
    with_cards()
    with_mps()
    mps = pick_device("mps")
    assert mps == torch.device("mps")
    assert pick_device("auto") == CPU
    assert pick_precision("auto", mps) == pick_precision("fp32", mps) == "fp32"
    for name in ("bf16", "fp16"):
        with pytest.raises(ValueError, match=f"precision: got {name}, .*mps.*fp32"):
            pick_precision(name, mps)
    with autocast(mps, "fp32"):
        assert "mps" in describe_device(mps)
    with pytest.raises(ValueError, match="device: got mps for every rank"):
        pick_device("mps", local_rank=0)


@pytest.mark.parametrize(("built", "lacks"), [(False, "built without"), (True, "macOS")])
def test_mps_asked_for_where_there_is_none(built, lacks, with_mps):
    with_mps(built=built, available=False)
    with pytest.raises(ValueError, match=f"device: got mps, .*{lacks}.*device=cpu"):
        pick_device("mps")


@pytest.mark.parametrize(
    ("card", "auto", "refused"),
    [
        (P100, "fp32", ["bf16"]),
        (V100, "fp16", ["bf16"]),
        (T4, "fp16", ["bf16"]),
        (A100, "bf16", []),
        (H100, "bf16", []),
    ],
)
def test_precision_by_card(card, auto, refused, with_cards):
    with_cards(A100, card)  # not the current device's precision, but that of the one chosen
    device = torch.device("cuda:1")
    assert pick_precision("auto", device) == auto
    for name in ("fp32", "bf16", "fp16"):
        if name not in refused:
            assert pick_precision(name, device) == name
            continue
        with pytest.raises(ValueError, match=f"precision: {name} needs .* card 1 has {card[0]}.{card[1]}; use .*fp32"):
            pick_precision(name, device)


def test_precision_on_a_cpu():
    assert pick_precision("auto", CPU) == "fp32"
    assert pick_precision("bf16", CPU) == "bf16"
    with pytest.raises(ValueError, match="precision: fp16 needs a CUDA device; on a CPU use fp32, bf16 or auto"):
        pick_precision("fp16", CPU)


@pytest.fixture
def current(monkeypatch):
    """The numbers of the cards that become current, and cuDNN's settings as they were afterwards."""
    chosen = []
    # Its reading of the device is torch's own, which refuses one without a number.
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(_get_device_index(device)))
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    yield chosen
    cudnn.benchmark, cudnn.deterministic = before


def test_the_chosen_card_becomes_the_current_one(current):
    torch.backends.cudnn.benchmark = False
    tune(CPU)
    assert not torch.backends.cudnn.benchmark
    tune(torch.device("cuda:1"))
    tune(torch.device("cuda"))
    assert current == [1]
    assert torch.backends.cudnn.benchmark


def test_deterministic_is_an_option_that_the_next_run_can_leave(current, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    cudnn, cuda = torch.backends.cudnn, torch.device("cuda:0")
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        tune(cuda, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert (cudnn.deterministic, cudnn.benchmark) == (True, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        tune(cuda)  # evaluation after it leaves it
        assert torch.are_deterministic_algorithms_enabled()
        assert (cudnn.deterministic, cudnn.benchmark) == (True, False)
        tune(cuda, deterministic=False)
        assert not torch.are_deterministic_algorithms_enabled()
        assert (cudnn.deterministic, cudnn.benchmark) == (False, True)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_sets_the_format_of_the_forward_pass(precision, dtype):
    with autocast(CPU, precision):
        assert torch.nn.Linear(3, 2)(torch.ones(1, 3)).dtype == dtype


def test_describe_device():
    threads = torch.get_num_threads()
    assert describe_device(CPU) == ("cpu (1 thread)" if threads == 1 else f"cpu ({threads} threads)")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_real_gpu():
    device = pick_device("auto")
    assert device.type == "cuda"
    assert torch.cuda.get_device_name() in describe_device(device)
    with autocast(device, pick_precision("auto", device)):
        out = torch.nn.Linear(3, 2, device=device)(torch.ones(1, 3, device=device))
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    assert out.dtype == dtypes[pick_precision("auto", device)]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be taken away here")
def test_only_the_cores_that_this_process_may_use_are_counted():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cpu_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert cpu_cores() == len(before)


def test_values_read_later_are_those_of_the_moment_at_any_shape():
    values = torch.arange(6.0).reshape(2, 3).requires_grad_()
    total, kept = Later(values.sum()), Later(values)
    expected = values.detach().clone()
    values.detach().zero_()
    assert total.value() == 15
    assert torch.equal(kept.tensor(), expected)
    assert not kept.tensor().requires_grad


def system(root: Path, files: dict[str, str]) -> Path:
    """Write files of a system below a folder."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MACHINE = {"proc/meminfo": "MemTotal: 900 kB\nMemFree: 1 kB\nMemAvailable: 800 kB\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),  # not Linux
        (MACHINE, 800 * 1024),
        (  # a container: the limit of its group, whose path is the host's
            {
                **MACHINE,
                "proc/self/cgroup": "0::/docker/1a\n",
                "sys/fs/cgroup/memory.max": "500000\n",
                "sys/fs/cgroup/memory.current": "300000\n",
                "sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 50000\n",
            },
            250000,
        ),
        (  # no limit of its own, and one of the group above, which is used up
            {
                **MACHINE,
                "proc/self/cgroup": "0::/slurm/job\n",
                "sys/fs/cgroup/slurm/job/memory.max": "max\n",
                "sys/fs/cgroup/slurm/job/memory.current": "7\n",
                "sys/fs/cgroup/slurm/memory.max": "100\n",
                "sys/fs/cgroup/slurm/memory.current": "200\n",
            },
            0,
        ),
        (  # version 1
            {
                **MACHINE,
                "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/x\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "1000\n",
                "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "900\n",
                "sys/fs/cgroup/memory/x/memory.stat": "total_inactive_file 5\n",
            },
            105,
        ),
        (  # of the process: address space and data
            {
                **MACHINE,
                "proc/self/limits": "Limit  Soft Limit  Hard Limit  Units\n"
                "Max data size             900000               unlimited            bytes\n"
                "Max address space         2000000              2000000              bytes\n",
                "proc/self/status": "Name:\tpython\nVmSize:\t    1900 kB\nVmData:\t     800 kB\n",
            },
            2000000 - 1900 * 1024,
        ),
    ],
)
def test_free_memory_is_what_the_machine_and_the_limits_leave(
    files: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    assert free_ram(system(tmp_path, files)) == expected


def test_a_limit_that_leaves_no_room_for_any_work_is_said_at_once(tmp_path: Path) -> None:
    limits = "Max address space  4000000000  4000000000  bytes\n"
    for number, used in enumerate((3000, 3500)):
        root = tmp_path / str(number)
        root.mkdir()
        system(root, {"proc/self/limits": limits, "proc/self/status": f"VmSize:\t {used * 1000} kB\n"})
        with pytest.raises(MemoryError, match="takes 720") if used > 3200 else contextlib.nullcontext():
            check_room(root)
