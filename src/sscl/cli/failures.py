"""What the errors of torch, cuDNN, cuBLAS and Triton mean for a user, in one line."""

from __future__ import annotations

import os
import re

import torch

from sscl.device import half_precision, missing_kernels
from sscl.memory import advice
from sscl.writing import TORCH_WRITE_FAILED

MEMORY_OF_GPU = "out of memory|cudnn_status_alloc_failed|cublas_status_alloc_failed"
# cuDNN and cuBLAS say so, and cuDNN finds no algorithm, where another program has taken the memory they start with.
NOT_STARTED = "cudnn_status_not_initialized|cublas_status_not_initialized|unable to find an engine"
LOST_RANK = "gloo|nccl|timed out|connection"


def in_one_line(error: BaseException, command: str) -> str | None:
    """Return what went wrong and what to do in a command; None where the error looks like a bug in sscl."""
    text = str(error).lower()
    if loop := re.fullmatch("Symlink loop from '(.*)'", str(error), re.DOTALL):  # of Path.resolve, before Python 3.13
        return f"{loop[1]}: is a link that leads to itself; correct or remove it"
    if re.search(MEMORY_OF_GPU, text):
        return f"out of GPU memory: {_less_memory(command)}"
    if re.search(NOT_STARTED, text):
        return (
            f"the GPU's libraries did not start ({_first_line(error)}), mostly because too little of its memory is "
            f"free (nvidia-smi lists who has it): {_less_memory(command)}"
        )
    if TORCH_WRITE_FAILED.search(str(error)):
        return f"a file could not be written ({_first_line(error)}); the disk may be full: free some space"
    if "no kernel image" in text:
        missing = missing_kernels(torch.device("cuda")) if torch.cuda.is_available() else None
        what = missing or f"torch {torch.__version__} has no kernels for this GPU; install another torch"
        return f"device: {what}, or use device=cpu"
    if "too old to be supported by the triton" in text:
        return "train.compile: torch.compile needs a GPU of compute capability 7.0 or later; use train.compile=false"
    if "failed to find c compiler" in text:
        return "Triton needs a C compiler: install gcc (Debian, Ubuntu: apt install gcc) or name one, as in CC=clang"
    if "no working c++ compiler" in text:
        return "train.compile: torch.compile needs a C++ compiler; install g++ or use train.compile=false"
    if os.environ.get("WORLD_SIZE", "1") != "1" and re.search(LOST_RANK, text):
        return f"another rank ended, or did not answer within train.timeout_minutes ({_first_line(error)})"
    return None


def _less_memory(command: str) -> str:
    # On a CPU bf16 takes less memory too.
    half = half_precision(torch.device("cuda")) if torch.cuda.is_available() else "bf16"
    return advice(command, half=half)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200]
