"""The device of a run, its number format, its free memory, and the processor cores."""

from __future__ import annotations

import os
import re
import sys
from contextlib import AbstractContextManager, nullcontext

import torch

from sscl.memory import free_ram
from sscl.words import count

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# The last torch whose package from PyPI has kernels for Pascal and Volta (sm_60, sm_61, sm_70).
OLD_CARDS = 'pip install "torch==2.7.1" "torchvision==0.22.1"'


def pick_device(name: str, *, local_rank: int | None = None) -> torch.device:
    """Return the device for `auto`, `cuda`, `cuda:N`, `mps` or `cpu`.

    `auto` is the first GPU, or the CPU where torch sees none or has no kernels for it, which is said on standard error.

    Args:
        local_rank: this process's number on its machine under torchrun; `auto` and `cuda` then are the GPU of that
            number.

    Raises:
        ValueError: a device that is not there or that the installed torch has no kernels for, or the name is none of
            these; one GPU for several ranks.
    """
    if local_rank is not None:
        if name.startswith("cuda:") or name == "mps":
            raise ValueError(f"device: got {name} for every rank of torchrun; give cuda, each then takes its own GPU")
        if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
            name = f"cuda:{local_rank}"
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        missing = missing_kernels(torch.device("cuda"))
        if missing is None:
            return torch.device("cuda")
        print(f"note: device: auto takes the CPU; {missing}", file=sys.stderr)
        return torch.device("cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        return _mps()
    if not re.fullmatch(r"cuda(:[0-9]+)?", name):
        raise ValueError(f"device: got {name!r}, allowed are auto, cpu, cuda, cuda:N, mps")
    if not torch.cuda.is_available():
        raise ValueError(f"device: {name} was asked for, but torch sees no CUDA device; use device=cpu or device=auto")
    index, count = int(name.partition(":")[2] or 0), torch.cuda.device_count()
    if index >= count:
        raise ValueError(
            f"device: got {name}, allowed are cuda:0 to cuda:{count - 1}, the CUDA devices that torch sees"
        )
    device = torch.device(name)
    missing = missing_kernels(device)
    if missing is not None:
        raise ValueError(f"device: got {name}, but {missing}, or use device=cpu")
    return device


def missing_kernels(device: torch.device) -> str | None:
    """Return what a CUDA card needs, in words, if the installed torch has no kernels for it; None if it has.

    A package built for sm_80 runs on 8.0 and later cards of the 8 series; one with compute_80 on all later cards too,
    by compiling for them when it starts.
    """
    built = torch.cuda.get_arch_list()
    if torch.version.hip is not None or not built:  # ROCm's names are others
        return None
    have = torch.cuda.get_device_capability(device)
    for name in built:
        found = re.fullmatch(r"(sm|compute)_([0-9]+)([0-9])([af]?)", name)
        if found is None:
            return None  # a name that is not known proves nothing
        kind, needs = found[1], (int(found[2]), int(found[3]))
        if have == needs or (kind == "compute" and have >= needs and not found[4]):
            return None
        if have[0] == needs[0] and have[1] >= needs[1] and found[4] != "a":
            return None
    advice = OLD_CARDS if have < (7, 5) else "install a later torch (pytorch.org/get-started)"
    return (
        f"{torch.cuda.get_device_name(device)} has compute capability {have[0]}.{have[1]}, for which torch "
        f"{torch.__version__} has no kernels; {advice}"
    )


def _mps() -> torch.device:
    """Return Apple's GPU."""
    mps = torch.backends.mps
    if not mps.is_built():
        raise ValueError(f"device: got mps, but torch {torch.__version__} was built without it; use device=cpu")
    if not mps.is_available():
        raise ValueError("device: got mps, which needs an Apple GPU and macOS 14 or later; use device=cpu")
    return torch.device("mps")


def half_precision(device: torch.device) -> str | None:
    """Return the 16-bit format that a device computes fast: bf16, fp16, or None.

    Tensor cores came with capability 7.0 (Volta, for fp16) and 8.0 (Ampere, for bf16); earlier cards compute in fp16 at
    a small fraction of their rate.
    """
    if device.type != "cuda":
        return None
    have = torch.cuda.get_device_capability(device)
    return "bf16" if have >= (8, 0) else "fp16" if have >= (7, 0) else None


def pick_precision(name: str, device: torch.device) -> str:
    """Return `fp32`, `bf16` or `fp16`; `auto` is `half_precision`, or fp32 where there is none.

    Raises:
        ValueError: bf16 on a card that does not compute in it; fp16 on a CPU, where its gradient scaler has no use;
            either on MPS.
    """
    half = half_precision(device)
    if name == "auto":
        return half or "fp32"
    if name == "fp16" and device.type == "cpu":
        raise ValueError("precision: fp16 needs a CUDA device; on a CPU use fp32, bf16 or auto")
    if name != "fp32" and device.type == "mps":
        raise ValueError(f"precision: got {name}, but on mps sscl computes in fp32; use fp32 or auto")
    if name == "bf16" and device.type == "cuda" and half != "bf16":
        major, minor = torch.cuda.get_device_capability(device)
        others = "fp16, fp32 or auto" if half == "fp16" else "fp32 or auto"
        raise ValueError(
            f"precision: bf16 needs compute capability 8.0, but {torch.cuda.get_device_name(device)} has "
            f"{major}.{minor}; use {others}"
        )
    return name


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context in which the forward pass runs at `precision`."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST_DTYPES[precision])


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which autocast, if it is on, rounds nothing."""
    on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the format in which sums over many values are kept: float64, and float32 on MPS, which has no other."""
    return torch.float32 if device.type == "mps" else torch.float64


class Later:
    """A tensor's values on their way from the device to the host.

    `.item()` and `.cpu()` are copies in the order of the device's stream: they wait for all work given to the device by
    then. This waits only for what had been given to it when it was made.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._host = values.detach().clone() if values.device.type == "cpu" else values.detach()
        self._event: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values.detach(), non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(values.device))

    def tensor(self) -> torch.Tensor:
        """Return the values on the CPU."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.cpu()

    def value(self) -> float:
        """Return the value of a tensor of one."""
        return float(self.tensor())


def tune(device: torch.device, *, deterministic: bool | None = None) -> None:
    """Make a GPU this process's own, and have cuDNN try its convolutions once for each shape and keep the fastest.

    Training has few shapes. What asks torch for "the GPU" then means this one: Triton, peak memory, env.json.

    Args:
        deterministic: take the algorithms that give the same bits each time, of cuDNN without trying; torch warns of
            operations that have none. False = the fastest. None = torch's setting is left as it is.
    """
    if deterministic is not None and deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        # Nothing here reads memory that it has not written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    fixed = torch.are_deterministic_algorithms_enabled()
    if fixed:  # read when cuBLAS starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if device.type == "cuda":
        if device.index is not None:  # plain "cuda" is the current one, which set_device does not take
            torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = not fixed
        torch.backends.cudnn.deterministic = fixed


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that nobody uses now: of a CUDA device, this process's context not counted, or of the machine.

    None where nothing says so (MPS).
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_ram() if device.type == "cpu" else None


def describe_device(device: torch.device) -> str:
    """Return one phrase naming the device, for logs."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{device} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)"
    if device.type == "mps":
        return "mps (Apple GPU)"
    return f"cpu ({count(torch.get_num_threads(), 'thread')})"
