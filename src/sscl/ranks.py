"""Process group and gather with gradient, for `torchrun`. Everything here also works in a single process.

B rows on this rank, W ranks.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as td
from torch import nn

T = TypeVar("T")


def expected_ranks() -> int:
    """Return how many ranks torchrun has started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int | None:
    """Return this process's number on its machine, None without torchrun."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0"))) if expected_ranks() > 1 else None


def on_this_machine() -> int:
    """Return how many ranks torchrun has started on this machine, 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if expected_ranks() > 1 else 1


def start(device: torch.device | None = None, *, timeout_minutes: float = 30.0) -> None:
    """Join the process group that torchrun describes in the environment; does nothing without torchrun.

    Args:
        device: of this rank; gloo on a CPU, NCCL on a GPU. None = a GPU if there is one.
        timeout_minutes: a rank that hears nothing from the others for so long fails.
    """
    if expected_ranks() == 1 or td.is_initialized():
        return
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    td.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=60 * timeout_minutes))


def stop() -> None:
    """Leave the process group, if there is one."""
    if td.is_available() and td.is_initialized():
        td.destroy_process_group()


@contextlib.contextmanager
def group(device: torch.device, *, timeout_minutes: float = 30.0) -> Iterator[None]:
    """Be one of torchrun's ranks for a while; only rank 0 prints.

    A rank that fails does not say goodbye: the others may be waiting for it, and torchrun ends them.
    """
    start(device, timeout_minutes=timeout_minutes)
    with contextlib.ExitStack() as stack:
        if rank() > 0:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield
    stop()


def world_size() -> int:
    """Return the number of ranks, 1 without a process group."""
    return td.get_world_size() if td.is_available() and td.is_initialized() else 1


def rank() -> int:
    """Return this process's rank, 0 without a process group."""
    return td.get_rank() if td.is_available() and td.is_initialized() else 0


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        td.barrier()


@contextlib.contextmanager
def first_on_each_machine() -> Iterator[None]:
    """Let one rank of each machine through before its others: it fills the cache that they then find."""
    if local_rank():
        barrier()
    yield
    if not local_rank():
        barrier()


def from_first(value: T) -> T:
    """Return rank 0's value on every rank; anything that pickles."""
    if world_size() == 1:
        return value
    values: list[Any] = [value]
    td.broadcast_object_list(values, src=0)
    return values[0]  # type: ignore[no-any-return]


def from_all(value: T) -> list[T]:
    """Return the values of all ranks, in rank order, on every rank; anything that pickles."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    td.all_gather_object(values, value)
    return values


def parallel(module: nn.Module) -> nn.Module:
    """Return the module with its gradients averaged over ranks in backward; as it is in a single process."""
    if world_size() == 1:
        return module
    # Buffers are those of batch norm, the same on all ranks: nothing to send at each forward pass.
    parallelise: Any = nn.parallel.DistributedDataParallel
    known = inspect.signature(parallelise).parameters
    key = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # of older torch
    return cast(nn.Module, parallelise(module, **{key: False}))


def no_average(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return the context in which `parallel`'s backward only adds up gradients, for the next backward to average."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return module.no_sync()
    return contextlib.nullcontext()


class _Gather(torch.autograd.Function):
    """all_gather whose backward adds up what every rank wants of this rank's rows.

    torch's own `all_gather` cuts the graph, which silently drops the gradient through the other ranks' losses.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(td.get_world_size())]
        td.all_gather(parts, rows.contiguous())
        ctx.count = rows.shape[0]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        total = grads[0].contiguous().clone()
        td.all_reduce(total, op=td.ReduceOp.SUM)
        start_row = td.get_rank() * ctx.count
        return total[start_row : start_row + ctx.count]


def gather(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows of all ranks in rank order, (W * B, ...); gradients flow back to every rank.

    All ranks must hold the same number of rows. Backward sums over ranks, so that with each rank's objective the
    mean over its own rows, DistributedDataParallel's averaging gives exactly the gradient of the global mean.
    """
    return _Gather.apply(rows) if world_size() > 1 else rows


def mean(value: torch.Tensor) -> torch.Tensor:
    """Return the mean of a detached tensor over ranks."""
    if world_size() == 1:
        return value.detach()
    total = value.detach().clone()
    td.all_reduce(total, op=td.ReduceOp.SUM)
    return total / world_size()


def gather_values(values: torch.Tensor) -> torch.Tensor:
    """Return the values of all ranks in rank order, (W, ...), without a gradient; all ranks' have the same shape."""
    shared = values.new_empty(world_size() * values.shape[0], *values.shape[1:])
    td.all_gather_into_tensor(shared, values.contiguous())
    return shared.view(world_size(), *values.shape)


def total(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over ranks, without a gradient."""
    summed = values.clone()
    td.all_reduce(summed, op=td.ReduceOp.SUM)
    return summed
