"""Ranks that talk over gloo, forked from one process, which imports what all need.

`python rank_tasks.py FOLDER` is for tests/test_ranks.py: two ranks compute the tasks below, then four. Each task
returns named tensors, computed by all ranks together; rank 0 writes them to FOLDER/RANKS/TASK.pt. Run in one process,
without a group, the same functions give what the ranks must equal.

`python rank_tasks.py FOLDER COMMANDS.json` is for tests/commands/test_distributed.py: two ranks run each of a list of
sscl's commands, which are lists of words. What the ranks print of the first goes to FOLDER/0.out, and so on.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
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
    """Small, in the wanted number format, with batch norm or without."""

    def __init__(self, dtype: torch.dtype, *, normed: bool = False, short: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        norms = (nn.BatchNorm2d(6), nn.BatchNorm2d(8, momentum=None)) if normed else (nn.Identity(), nn.Identity())
        first = [nn.Conv2d(3, 6, 3, stride=2), norms[0], nn.ReLU()]
        second = [] if short else [nn.Conv2d(6, 8, 3), norms[1]]
        self.layers = nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.projection = nn.Linear(6 if short else 8, DIM)
        self.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.projection(self.layers(x.to(self.projection.weight.dtype)))
        return rows


def train(
    dtype: torch.dtype,
    *,
    microbatch: int | None = None,
    normed: bool = False,
    quick: bool = False,
    compiled: bool = False,
) -> Results:
    """Two steps of pretraining on half a batch a rank: views, NT-Xent, SGD with momentum.

    `quick`: of flips and one layer alone, which are traced sooner.
    """
    from sscl.draws import Augmentation
    from sscl.models.sync_batch_norm import synchronise_batch_norm
    from sscl.train.step import ContrastiveStep, Views

    images = np.random.default_rng(0).integers(0, 256, (2 * PAIRS, 16, 16, 3), dtype=np.uint8)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.2, 0.3])
    off = ["affine_probability", "blur_probability", "jitter_probability", "grayscale_probability"]
    augmentation = Augmentation(**dict.fromkeys(off, 0.0)) if quick else Augmentation()  # type: ignore
    views = Views(augmentation=augmentation, seed=3, mean=mean, std=std, size_px=16)
    net = Net(dtype, normed=normed, short=quick)
    start = {name: value.clone() for name, value in net.state_dict().items()}
    synchronise_batch_norm(net)
    with traced_alone() if compiled else contextlib.nullcontext():
        contrast = ContrastiveStep(net, views=views, temperature=0.5, microbatch=microbatch, compile=compiled)
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


@contextlib.contextmanager
def traced_alone() -> Iterator[None]:
    """torch.compile traces its graphs, forward and backward, and runs them as they are, in place of making C++."""
    whole = torch.compile
    torch.compile = lambda f, *, fullgraph: whole(f, fullgraph=fullgraph, backend="aot_eager")  # type: ignore
    try:
        yield
    finally:
        torch.compile = whole


class Norms(nn.Module):
    """Batch norms of all kinds: of maps and of rows, with and without weights, frozen, by the mean of all batches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.maps = nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3),
            nn.BatchNorm2d(6, momentum=None, affine=False),
            nn.Conv2d(6, 5, 1),
            nn.BatchNorm2d(5, track_running_stats=False),
        )
        self.frozen = nn.BatchNorm2d(5)
        self.rows = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7, momentum=0.3))
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.rows(self.frozen(self.maps(x)).mean((2, 3)))
        return rows


def norms(*, kernels: bool = False) -> Results:
    """Two steps with batch norms: outputs, gradients, parameters and running statistics."""
    from sscl.models import sync_batch_norm
    from sscl.models.batch_norm import keep_batch_statistics

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, PAIRS, 3, 9, 9, generator=generator, dtype=torch.float64) + 3
    wanted = torch.randn(PAIRS, 7, generator=generator, dtype=torch.float64)
    net = Norms()
    keys = list(net.state_dict())
    sync_batch_norm.synchronise_batch_norm(net)
    assert list(net.state_dict()) == keys
    parallel = ranks.parallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    found: Results = {}
    with cuda_kernels_on_cpu() if kernels else contextlib.nullcontext():
        for step in range(2):
            net.train()
            keep_batch_statistics(net.frozen)
            optimizer.zero_grad()
            y = parallel(share(x[step].to(memory_format=torch.channels_last)))
            ((y - share(wanted)).square().sum(1).pow(1.5)).mean().backward()
            found[f"outputs.{step}"] = ranks.gather(y.detach())
            found |= {f"gradient.{step}.{name}": p.grad.clone() for name, p in net.named_parameters()}  # type: ignore
            optimizer.step()
    found["evaluated"] = net.eval()(x[0]).detach()
    return {**found, **net.state_dict()}


@contextlib.contextmanager
def cuda_kernels_on_cpu() -> Iterator[None]:
    """torch's kernels for synchronised batch norm, which are for GPUs alone, by what its sources say they compute."""
    from sscl.models import sync_batch_norm

    def others(x: torch.Tensor) -> list[int]:
        return [i for i in range(x.dim()) if i != 1]

    def along(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return values.reshape(1, -1, *[1] * (x.dim() - 2))

    def stats(x: Any, eps: float) -> Any:
        return x.mean(others(x)), (x.var(others(x), correction=0) + eps).rsqrt()

    def gather(x: Any, means: Any, invstds: Any, running_mean: Any, running_var: Any, m: Any, eps: Any, n: Any) -> Any:
        variances = invstds**-2 - eps
        mean = (means * n[:, None]).sum(0) / n.sum()
        var = ((variances + (means - mean) ** 2) * n[:, None]).sum(0) / n.sum()
        running_mean.mul_(1 - m).add_(mean * m)
        running_var.mul_(1 - m).add_(var * m * n.sum() / (n.sum() - 1))
        return mean, (var + eps).rsqrt()

    def elemt(x: Any, weight: Any, bias: Any, mean: Any, invstd: Any, eps: float) -> Any:
        y = (x - along(mean, x)) * along(invstd, x)
        return y if weight is None else y * along(weight, x) + along(bias, x)

    def backward_reduce(grad: Any, x: Any, mean: Any, invstd: Any, weight: Any, *wanted: bool) -> Any:
        sums = grad.sum(others(x)), (grad * (x - along(mean, x))).sum(others(x))
        at_weight, at_bias = sums[1] * invstd, sums[0].clone()
        return (
            *(s if wanted[0] else None for s in sums),
            at_weight if wanted[1] else None,
            at_bias if wanted[2] else None,
        )

    def backward_elemt(
        grad: Any, x: Any, mean: Any, invstd: Any, weight: Any, sums: Any, sums_x: Any, counts: Any
    ) -> Any:
        assert counts.dtype == torch.int32
        n = counts.sum()
        centred = (x - along(mean, x)) * along(invstd**2 * sums_x / n, x)
        scale = invstd if weight is None else invstd * weight
        return (grad - along(sums / n, x) - centred) * along(scale, x)

    ours = {
        "batch_norm_stats": stats,
        "batch_norm_gather_stats_with_counts": gather,
        "batch_norm_elemt": elemt,
        "batch_norm_backward_reduce": backward_reduce,
        "batch_norm_backward_elemt": backward_elemt,
    }
    honest = {name: getattr(torch, name) for name in ours}, sync_batch_norm._has_kernels
    for name, kernel in ours.items():
        setattr(torch, name, kernel)
    sync_batch_norm._has_kernels = lambda x: True
    try:
        yield
    finally:
        for name, kernel in honest[0].items():
            setattr(torch, name, kernel)
        sync_batch_norm._has_kernels = honest[1]


def norms_of_timm() -> Results:
    """A small EfficientNet, its norms with their activation within: outputs while it trains, and some gradients."""
    from sscl.models.encoders import build_encoder
    from sscl.models.sync_batch_norm import synchronise_batch_norm

    torch.manual_seed(0)
    net = build_encoder("timm:test_efficientnet").double().train()
    synchronise_batch_norm(net)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = net(share(x))
    y.square().mean().backward()
    last = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    name = next(iter(last))
    return {"outputs": ranks.gather(y.detach()), name: ranks.mean(last[name]), **net.state_dict()}


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
    "train_normed": lambda: train(torch.float64, normed=True),
    "train_compiled": lambda: train(torch.float64, normed=True, quick=True, compiled=True),
    "norms": norms,
    "norms_kernels": lambda: norms(kernels=True),
    "norms_of_timm": norms_of_timm,
}


# What the ranks say to one another does not depend on the model: four of them have only the losses to compute.
LOSSES = ["contrast", "contrast_cross_view", "contrast_of_tiles", "contrast_with_cut_gather", "gather_order"]
GROUPS = {2: list(TASKS), 4: LOSSES}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def compute(tasks: list[str], folder: Path) -> None:
    """Compute the tasks as one rank of a group."""
    torch.set_num_threads(1)
    ranks.start()
    assert ranks.world_size() == int(os.environ["WORLD_SIZE"]), "no process group"
    assert ranks.rank() == int(os.environ["RANK"])
    for name in tasks:
        found: dict[str, Any] = TASKS[name]()
        if ranks.rank() == 0:
            torch.save(found, folder / f"{name}.pt")
    ranks.stop()
    assert ranks.world_size() == 1


def command(words: list[str], out: Path) -> None:
    """Run one of sscl's commands as one rank of a group, without the curves, which take as long as the training."""
    from sscl.cli import main
    from sscl.plots import charts

    charts.plot_history = lambda *_, **__: None
    torch.set_num_threads(1)
    with out.open("a") as handle, contextlib.redirect_stdout(handle):
        assert main(words) == 0


def fork(world_size: int, work: Callable[[], None]) -> int:
    """Do the work on ranks forked from this process, which has computed nothing yet; return their exit code.

    The first rank that fails ends them all.
    """
    group = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    left = set()
    for rank in range(world_size):
        child = os.fork()
        if child == 0:
            os.environ.update(group, RANK=str(rank), LOCAL_RANK=str(rank))
            code = 1
            try:
                work()
                code = 0
            except BaseException:
                print(f"--- rank {rank}", traceback.format_exc(), sep="\n", file=sys.stderr)
            sys.stderr.flush()
            os._exit(code)
        left.add(child)
    while left:
        child, status = os.wait()
        left.discard(child)
        if status != 0:
            for other in left:
                os.kill(other, signal.SIGKILL)
            return 1
    return 0


def main(folder: Path, commands: Path | None = None) -> int:
    if commands is not None:
        listed = json.loads(commands.read_text())
        return max(fork(2, partial(command, words, folder / f"{i}.out")) for i, words in enumerate(listed))

    for world_size in GROUPS:
        (folder / str(world_size)).mkdir()
    return max(fork(size, partial(compute, tasks, folder / str(size))) for size, tasks in GROUPS.items())


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
