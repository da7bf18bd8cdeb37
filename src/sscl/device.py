"""The device, the number format and the processor cores of a run."""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager, nullcontext

import torch

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str, *, local_rank: int | None = None) -> torch.device:
    """Return the device for `auto`, `cuda`, `cuda:N` or `cpu`.

    Args:
        local_rank: this process's number on its machine under torchrun; `auto` and `cuda` then are the GPU of that
            number.

    Raises:
        ValueError: CUDA was asked for and is not there, or the name is none of these; one GPU for several ranks.
    """
    if local_rank is not None:
        if name.startswith("cuda:"):
            raise ValueError(f"device: got {name} for every rank of torchrun; give cuda, each then takes its own GPU")
        if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
            name = f"cuda:{local_rank}"
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if not re.fullmatch(r"cuda(:[0-9]+)?", name):
        raise ValueError(f"device: got {name!r}, allowed are auto, cpu, cuda, cuda:N")
    if not torch.cuda.is_available():
        raise ValueError(f"device: {name} was asked for, but torch sees no CUDA device; use device=cpu or device=auto")
    index, count = int(name.partition(":")[2] or 0), torch.cuda.device_count()
    if index >= count:
        raise ValueError(
            f"device: got {name}, allowed are cuda:0 to cuda:{count - 1}, the CUDA devices that torch sees"
        )
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> str:
    """Return `fp32`, `bf16` or `fp16`; `auto` is bf16 where the GPU computes in it, else fp32.

    Raises:
        ValueError: fp16 on a CPU, where its gradient scaler has no use.
    """
    if name == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if name == "fp16" and device.type == "cpu":
        raise ValueError("precision: fp16 needs a CUDA device; on a CPU use fp32, bf16 or auto")
    return name


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context in which the forward pass runs at `precision`."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST_DTYPES[precision])


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
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(values.device))

    def tensor(self) -> torch.Tensor:
        """Return the values on the CPU."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.cpu()

    def value(self) -> float:
        """Return the value of a tensor of one."""
        return float(self.tensor())


def tune(device: torch.device) -> None:
    """Have cuDNN try its convolutions once for each shape and keep the fastest; training has few shapes."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True


def describe_device(device: torch.device) -> str:
    """Return one phrase naming the device, for logs."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{device} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)"
    return f"cpu ({torch.get_num_threads()} threads)"


def cpu_cores() -> int:
    """Return how many processor cores this process may use, which `taskset` or a container may have limited."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
