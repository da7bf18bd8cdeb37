"""One rank of tests/test_dist.py: `python rank_tasks.py TASK [TASK ...]`, in the environment that torchrun gives.

Each task returns named tensors, computed by all ranks together; rank 0 writes them to $RESULTS/TASK.pt. Run in one
process, without that environment, the same functions give what the ranks must equal.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as td
from torch import nn

from sscl import ranks
from sscl.losses import cross_view_info_nce, nt_xent

PAIRS, INPUTS, DIM = 8, 6, 5
Results = dict[str, torch.Tensor]


def share(rows: torch.Tensor) -> torch.Tensor:
    """This rank's rows of a batch."""
    return rows.chunk(ranks.world_size())[ranks.rank()]


def contrast(
    gather: Callable[[torch.Tensor], torch.Tensor] | None = None,
    *,
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = nt_xent,
) -> Results:
    """A contrastive loss on one linear layer in float64: the loss, and the gradient after the ranks' average."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, PAIRS, INPUTS, generator=generator, dtype=torch.float64)
    layer = nn.Linear(INPUTS, DIM, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(DIM, INPUTS, generator=generator, dtype=torch.float64))
        layer.bias.fill_(0.1)
    a, b = layer(torch.cat([share(first), share(second)])).chunk(2)
    honest = ranks.gather
    ranks.gather = gather or honest  # type: ignore[assignment]
    try:
        loss = loss_of(a, b)
    finally:
        ranks.gather = honest
    loss.backward()  # type: ignore[no-untyped-call]
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    # What DistributedDataParallel does, without the seconds it takes to import; `train` has the real one.
    return {"loss": ranks.mean(loss), "weight": ranks.mean(layer.weight.grad), "bias": ranks.mean(layer.bias.grad)}


def contrast_with_cut_gather() -> Results:
    """The common mistake, which the comparison must notice: torch's all_gather, with this rank's rows put back."""

    def gather(rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(ranks.world_size())]
        td.all_gather(parts, rows.detach().contiguous())
        parts[ranks.rank()] = rows
        return torch.cat(parts)

    return contrast(gather if ranks.world_size() > 1 else None)


def gather_order() -> Results:
    rows = torch.arange(2.0)[:, None] + 10 * ranks.rank()
    return {"rows": ranks.gather(rows)}


class Net(nn.Module):
    """Small, without batch norm (whose statistics would differ by rank), in the wanted number format."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.projection = nn.Linear(8, DIM)
        self.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.projection(self.layers(x.to(self.projection.weight.dtype)))
        return rows


def train(dtype: torch.dtype, *, microbatch: int | None = None) -> Results:
    """Two steps of pretraining on half a batch a rank: views, NT-Xent, SGD with momentum."""
    from sscl.draws import Augmentation
    from sscl.train.step import ContrastiveStep, Views

    images = np.random.default_rng(0).integers(0, 256, (2 * PAIRS, 16, 16, 3), dtype=np.uint8)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.2, 0.3])
    views = Views(augmentation=Augmentation(), seed=3, mean=mean, std=std, size_px=16)
    net = Net(dtype)
    start = {name: value.clone() for name, value in net.state_dict().items()}
    contrast = ContrastiveStep(net, views=views, temperature=0.5, microbatch=microbatch)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    losses = []
    for step in range(2):
        rows = share(torch.arange(step * PAIRS, (step + 1) * PAIRS))
        optimizer.zero_grad()
        result = contrast.backward(
            torch.from_numpy(images)[rows], views.batch(rows, torch.zeros_like(rows), epoch=step)
        )
        optimizer.step()
        losses.append(torch.stack([ranks.mean(result.losses.mean()), result.positive, result.negative]))
    moved = {f"moved.{name}": value - start[name] for name, value in net.state_dict().items()}
    return {"losses": torch.stack(losses), **net.state_dict(), **moved}


def contrast_of_tiles() -> Results:
    """Both losses of each tile: those of the ranks, put together, are those of one process."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, PAIRS, DIM, generator=generator, dtype=torch.float64)
    losses = (nt_xent, cross_view_info_nce)
    return {f.__name__: ranks.gather(f(share(a), share(b), reduction="none")) for f in losses}


TASKS: dict[str, Callable[[], Results]] = {
    "contrast": contrast,
    "contrast_cross_view": lambda: contrast(loss_of=cross_view_info_nce),
    "contrast_of_tiles": contrast_of_tiles,
    "contrast_with_cut_gather": contrast_with_cut_gather,
    "gather_order": gather_order,
    "train32": lambda: train(torch.float32),
    "train64": lambda: train(torch.float64),
    "train_cached": lambda: train(torch.float64, microbatch=2),
}


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    ranks.start()
    assert ranks.world_size() == int(os.environ["WORLD_SIZE"]), "no process group"
    assert ranks.rank() == int(os.environ["RANK"])
    for name in names:
        found: dict[str, Any] = TASKS[name]()
        if ranks.rank() == 0:
            torch.save(found, Path(os.environ["RESULTS"]) / f"{name}.pt")
    ranks.stop()
    assert ranks.world_size() == 1


if __name__ == "__main__":
    main(sys.argv[1:])
