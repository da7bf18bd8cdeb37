"""NT-Xent: time, memory and values against the whole matrix of similarities at once, and against lightly's.

`python loss.py ROWS DIMENSIONS` prints the bytes that the loss takes beyond its inputs, forward and backward.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from race import finish, race
from sscl.losses import nt_xent

TEMPERATURE = 0.5
Loss = Callable[[Tensor, Tensor], Tensor]


def measure(*, quick: bool, device: torch.device) -> list[dict[str, Any]]:
    """Return the rows of this topic."""
    rows, large, dim = (64, 256, 16) if quick else (4096, 65536, 128)
    return [
        *times(rows, dim, device=device, seconds=0.2 if quick else 20.0),
        *differences(rows, dim, device=device),
        memory(large, dim, device=device),
    ]


def times(rows: int, dim: int, *, device: torch.device, seconds: float) -> list[dict[str, Any]]:
    """Race forward and backward with the whole matrix and with lightly."""
    a, b = projections(rows, dim, device=device)
    contenders: dict[str, Loss] = {"ours": ours, "dense": dense}
    lightly, theirs = lightlys_loss()
    if theirs is not None:
        contenders["lightly"] = theirs
    taken = race({name: backward(loss, a, b) for name, loss in contenders.items()}, seconds=seconds)
    row: dict[str, Any] = {
        "what": f"NT-Xent, forward and backward, 2N = {rows:,} x {dim}",
        "ours": 1e3 * taken["ours"],
        "unit": "ms",
    }
    against_lightly: dict[str, Any] = {
        "theirs": None,
        "ratio": None,
        "note": "lightly is not installed; scripts/bench installs it",
    }
    if theirs is not None:
        values = [loss(a, b).item() for loss in (ours, theirs)]
        note = f"values {values[0]:.6f} and {values[1]:.6f}"
        against_lightly = {
            "theirs": 1e3 * taken["lightly"],
            "ratio": taken["lightly"] / taken["ours"],
            "note": note,
        }
    return [
        {
            **row,
            "peer": "the whole matrix at once",
            "theirs": 1e3 * taken["dense"],
            "ratio": taken["ours"] / taken["dense"],
            "target": "<= 1.3",
            "note": "the ratio is ours to theirs",
        },
        {**row, "peer": lightly, "target": "", **against_lightly},
    ]


def differences(rows: int, dim: int, *, device: torch.device) -> list[dict[str, Any]]:
    """Compare value and gradients with those of the whole matrix, by the largest relative difference."""
    found = []
    for dtype, target in ((torch.float32, "<= 1e-05"), (torch.float64, "<= 1e-12")):
        a, b = (x.detach().to(dtype).requires_grad_() for x in projections(rows, dim, device=device))
        results = [(loss, *torch.autograd.grad(loss, (a, b))) for loss in (ours(a, b), dense(a, b))]
        pairs = [[x.detach() for x in pair] for pair in zip(*results, strict=True)]
        found.append(
            {
                "what": f"NT-Xent, largest relative difference of value and gradients, {dtype}".replace("torch.", ""),
                "ours": max(((x - y).abs().max() / y.abs().max()).item() for x, y in pairs),
                "peer": "the whole matrix at once",
                "theirs": None,
                "unit": "",
                "ratio": None,
                "target": target,
                "note": f"2N = {rows:,} x {dim}",
            }
        )
    return found


def memory(rows: int, dim: int, *, device: torch.device) -> dict[str, Any]:
    """Measure what the loss holds beyond its inputs: on a GPU torch's own count, else a process's peak."""
    taken, note = None, f"the matrix alone would be {rows**2 * 4 / 2**30:.3g} GiB"
    if device.type == "cuda":
        a, b = projections(rows, dim, device=device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        backward(ours, a, b)()
        finish()
        taken = torch.cuda.max_memory_allocated() - before
    elif Path("/proc/self/clear_refs").exists():
        taken = int(child(rows, dim))
    else:
        note = "a process's peak is read from /proc, which only Linux has"
    return {
        "what": f"NT-Xent, memory beyond its inputs, forward and backward, 2N = {rows:,} x {dim}",
        "ours": None if taken is None else taken / 2**30,
        "peer": "",
        "theirs": None,
        "unit": "GiB",
        "ratio": None,
        "target": "<= 1 GiB",
        "note": note,
    }


def child(rows: int, dim: int) -> str:
    """Return what this file prints, run by a process of its own."""
    command = [sys.executable, __file__, str(rows), str(dim)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def projections(rows: int, dim: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return both views' projections, (rows / 2, dim) each."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows // 2, dim, generator=generator).to(device).requires_grad_() for _ in range(2))
    return a, b


def backward(loss: Loss, a: Tensor, b: Tensor) -> Callable[[], None]:
    """Return what is timed: the loss and its gradients."""

    def run() -> None:
        a.grad = b.grad = None
        loss(a, b).backward()  # type: ignore[no-untyped-call]

    return run


def ours(a: Tensor, b: Tensor) -> Tensor:
    return nt_xent(a, b, temperature=TEMPERATURE)


def dense(a: Tensor, b: Tensor) -> Tensor:
    """NT-Xent as it is usually written: the whole matrix, its diagonal masked, cross-entropy."""
    rows = torch.cat([normalize(a, dim=1), normalize(b, dim=1)])
    similarity = rows @ rows.T / TEMPERATURE
    similarity = similarity.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=a.device), -math.inf)
    return torch.nn.functional.cross_entropy(similarity, torch.arange(len(rows), device=a.device).roll(len(a)))


def lightlys_loss() -> tuple[str, Loss | None]:
    """Return lightly's name and loss, None where it is not installed."""
    try:
        import lightly
        from lightly.loss import NTXentLoss
    except ImportError:
        return "lightly", None
    return f"lightly {lightly.__version__}", NTXentLoss(temperature=TEMPERATURE)


def peak_of_this_process(run: Callable[[], None]) -> int:
    """Return the most bytes that this process held during a call beyond those before it; Linux."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
    before = peak_bytes()
    run()
    return peak_bytes() - before


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    backward(ours, *projections(8, 4, device=torch.device("cpu")))()  # what torch loads at its first use is no cost
    inputs = projections(int(sys.argv[1]), int(sys.argv[2]), device=torch.device("cpu"))
    print(peak_of_this_process(backward(ours, *inputs)))
