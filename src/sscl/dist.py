"""Process group and gather with gradient, for `torchrun`. Everything here also works in a single process.

B rows on this rank, W ranks.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as td


def start() -> None:
    """Join the process group that torchrun describes in the environment; does nothing without torchrun."""
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1 and not td.is_initialized():
        td.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def stop() -> None:
    """Leave the process group, if there is one."""
    if td.is_available() and td.is_initialized():
        td.destroy_process_group()


def world_size() -> int:
    """Return the number of ranks, 1 without a process group."""
    return td.get_world_size() if td.is_available() and td.is_initialized() else 1


def rank() -> int:
    """Return this process's rank, 0 without a process group."""
    return td.get_rank() if td.is_available() and td.is_initialized() else 0


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
