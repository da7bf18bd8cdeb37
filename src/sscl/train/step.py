"""One step: the views of the tiles, their projections, the loss, and its gradient on the parameters.

N tiles on this rank, M of them at once, D dimensions of the projection.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.profiler import record_function

from sscl import augment, ranks
from sscl.data.tiles import TileStore
from sscl.device import AUTOCAST_DTYPES, autocast, sum_dtype
from sscl.draws import Augmentation
from sscl.losses import nt_xent
from sscl.train.objectives import ContrastLoss

STEPS_AT_ONCE = 64  # whose views are drawn together; a GPU takes hardly longer than for one step

Drawn = tuple[torch.Tensor, ...]  # of `augment.prepare`


@dataclass(frozen=True)
class Views:
    """What makes the views of a tile."""

    augmentation: Augmentation
    seed: int
    mean: torch.Tensor  # (3,)
    std: torch.Tensor  # (3,)
    size_px: int
    precision: str = "fp32"  # of the step
    clean_second: bool = False  # compare a view with the tile as it is

    def draw(
        self, tiles: torch.Tensor, number: torch.Tensor, *, epoch: int | torch.Tensor, count: int | None = None
    ) -> Drawn:
        """Return the parameters of the views of many batches, (steps, k, N, ...) each.

        Args:
            tiles: int64 (steps, N), the tiles' indices in the data set.
            number: int64 (steps, N), number of the first view; the others follow it.
            epoch: a number, or int64 without dimensions.
            count: k, random views of a tile; None = 2, or 1 where the second is the tile as it is.
        """
        k = count or (1 if self.clean_second else 2)
        steps, batch = tiles.shape
        numbers = number[:, None] + torch.arange(k, device=tiles.device)[:, None]  # (steps, k, N)
        drawn = augment.prepare(
            tiles[:, None].expand(steps, k, batch).flatten(),
            augmentation=self.augmentation,
            seed=self.seed,
            epoch=epoch,
            view=numbers.flatten(),
            size_px=self.size_px,
        )
        return tuple(x.view(steps, k, batch, *x.shape[1:]) for x in drawn)

    def steps(
        self, tiles: torch.Tensor, number: torch.Tensor, *, epoch: int | torch.Tensor, count: int | None = None
    ) -> Iterator[Drawn]:
        """Yield the parameters of each step's views, (k, N, ...) each; arguments as of `draw`."""
        for start in range(0, len(tiles), STEPS_AT_ONCE):
            part = slice(start, start + STEPS_AT_ONCE)
            drawn = self.draw(tiles[part], number[part], epoch=epoch, count=count)
            yield from zip(*drawn, strict=True)

    def batch(self, tiles: torch.Tensor, number: torch.Tensor, *, epoch: int | torch.Tensor) -> Drawn:
        """Return the parameters of the views of one batch, (k, N, ...) each, from tiles and number int64 (N,)."""
        return next(self.steps(tiles[None], number[None], epoch=epoch))

    def render(self, images: torch.Tensor, drawn: Drawn) -> torch.Tensor:
        """Return the views of a batch, normalised, (k N, 3, H, W), from uint8 (N, H, W, 3).

        With `clean_second` the tiles as they are come after the random views.
        """
        views = augment.render(
            images,
            tuple(x.flatten(0, 1) for x in drawn),
            augmentation=self.augmentation,
            mean=self.mean,
            std=self.std,
            dtype=AUTOCAST_DTYPES.get(self.precision, torch.float32),
        )
        return torch.cat([views, self.clean(images).to(views.dtype)]) if self.clean_second else views

    def clean(self, images: torch.Tensor) -> torch.Tensor:
        """Return the tiles as they are, normalised."""
        return augment.normalise(augment.to_unit(images), mean=self.mean, std=self.std)


class StepResult(NamedTuple):
    """Losses and similarities of a step; all are still on the device."""

    losses: torch.Tensor  # (N,), of this rank's tiles
    positive: torch.Tensor  # mean cosine similarity of the pairs of all ranks
    negative: torch.Tensor  # and of all other views


class ViewProjections(nn.Module):
    """Tiles to the projections of their two views: augmentation, encoder and head as one module.

    So DistributedDataParallel and torch.compile see all of it, and a second call gives the same projections.
    """

    def __init__(self, model: nn.Module, *, views: Views) -> None:
        super().__init__()
        self.model = model
        self.views = views

    def forward(self, images: torch.Tensor, drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the projections of both views, (N, D) each.

        Args:
            images: uint8 (N, H, W, 3).
            drawn: parameters of the batch's views, (k, N, ...) each, see `Views.draw`.
        """
        with record_function("augment"):
            both = self.views.render(images, drawn)  # (2N, 3, H, W)
        # Entered anew in each call: autocast remembers weights that it cast without a graph, as in the pass below.
        with record_function("forward"), autocast(images.device, self.views.precision):
            a, b = self.model(both).chunk(2)
        return a, b


class ContrastiveStep:
    """The loss of a batch, and its gradient left on the parameters; under torchrun, that of all ranks' batches.

    With `microbatch` the batch goes through the model M tiles at a time, twice: first without a graph, to get the
    gradient of the loss at every projection, then with one, to take that back to the parameters (gradient caching,
    Gao et al., arXiv:2101.06983). Memory is then that of M tiles and the gradient that of the whole batch. Batch norm
    normalises each microbatch by itself; its running statistics move once a step, by the mean over the microbatches.

    Args:
        model: tiles' pixels (2N, 3, H, W) to projections (2N, D), on its device. No dropout with `microbatch`.
        loss: `nt_xent` or `cross_view_info_nce`.
        scaler: of fp16; None multiplies by nothing.
        microbatch: M, tiles of a rank forwarded at once; divides N. None is N.
        compile: torch.compile views, model and loss as one graph (with ranks or microbatches: views and model).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        views: Views,
        loss: ContrastLoss = nt_xent,
        temperature: float = 0.7,
        scaler: torch.amp.GradScaler | None = None,
        microbatch: int | None = None,
        compile: bool = False,
    ) -> None:
        self.loss, self.temperature, self.scaler, self.microbatch = loss, temperature, scaler, microbatch
        self._norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        project: Any = ViewProjections(model, views=views)
        whole: Any = self._result
        if compile and microbatch is None and ranks.world_size() == 1:
            whole = torch.compile(whole, fullgraph=True)
        elif compile:
            project = torch.compile(project, fullgraph=True)
        self._once, self._project, self._whole = project, ranks.parallel(project), whole

    def backward(self, images: torch.Tensor, drawn: Drawn) -> StepResult:
        """Add the batch's gradient to the parameters' `.grad`; arguments as of `ViewProjections.forward`."""
        if self.microbatch is not None and self.microbatch < len(images):
            return self._cached(images, drawn)
        losses, positive, negative = self._whole(images, drawn)
        with record_function("backward"):
            torch.autograd.backward(self._scaled(losses.mean()))
        return StepResult(losses.detach(), positive, negative)

    def _scaled(self, loss: torch.Tensor) -> torch.Tensor:
        return loss if self.scaler is None else self.scaler.scale(loss)

    def _result(self, images: torch.Tensor, drawn: Drawn) -> StepResult:
        a, b = self._project(images, drawn)
        with record_function("loss"):
            losses = self.loss(a, b, temperature=self.temperature, reduction="none")
            return StepResult(losses, *similarities(a, b))

    def _cached(self, images: torch.Tensor, drawn: Drawn) -> StepResult:
        assert self.microbatch is not None
        if len(images) % self.microbatch:
            raise ValueError(f"microbatch: got {self.microbatch}, which does not divide the {len(images)} tiles")
        split = zip(*(torch.split(x, self.microbatch, dim=1) for x in drawn), strict=True)
        parts = list(zip(torch.split(images, self.microbatch), split, strict=True))
        with statistics_once(self._norms, parts=len(parts)) as note:
            pairs = []
            for part in parts:
                with torch.no_grad():
                    pairs.append(torch.stack(self._once(*part)))  # (2, M, D)
                note()
            projections = torch.cat(pairs, 1).requires_grad_()  # (2, N, D)
            losses = self.loss(*projections, temperature=self.temperature, reduction="none")
            torch.autograd.backward(self._scaled(losses.mean()))
            assert projections.grad is not None
            gradients = torch.split(projections.grad, self.microbatch, dim=1)
            for i, (part, gradient) in enumerate(zip(parts, gradients, strict=True)):
                last = i + 1 == len(parts)  # the ranks' gradients are averaged once, at the end
                with contextlib.nullcontext() if last else ranks.no_average(self._project):
                    torch.autograd.backward(self._project(*part), tuple(gradient))
        return StepResult(losses.detach(), *similarities(*projections))


@contextlib.contextmanager
def statistics_once(norms: list[_BatchNorm], *, parts: int) -> Iterator[Callable[[], None]]:
    """Let running statistics of batch norm move once, by the mean over parts of a batch, however often they go through.

    Gives a function to call after the forward pass of each part. Norms in evaluation mode are left alone.
    """
    moving = [n for n in norms if n.training and n.track_running_stats and n.running_mean is not None]
    buffers = [buffer for n in moving for buffer in (n.running_mean, n.running_var) if buffer is not None]
    counts = [n.num_batches_tracked for n in moving if n.num_batches_tracked is not None]
    momenta = [n.momentum for n in moving]
    before, counted = [b.clone() for b in buffers], [c.clone() for c in counts]
    means = [torch.zeros_like(b) for b in buffers]

    def note() -> None:
        if buffers:
            torch._foreach_add_(means, buffers, alpha=1 / parts)

    for norm in moving:
        norm.momentum = 1.0  # a buffer then holds the statistics of the last part alone
    try:
        yield note
    finally:
        for norm, momentum in zip(moving, momenta, strict=True):
            norm.momentum = momentum
    with torch.no_grad():
        for i, norm in enumerate(moving):
            # None: torch takes the plain mean over all steps. Their count stays on the device.
            momentum = norm.momentum
            fraction = (counted[i] + 1).to(before[2 * i].dtype).reciprocal() if momentum is None else momentum
            for j in (2 * i, 2 * i + 1):
                buffers[j].copy_(before[j].lerp_(means[j], fraction))
        for count, earlier in zip(counts, counted, strict=True):
            count.copy_(earlier + 1)


@torch.no_grad()
def similarities(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean cosine similarity of the positive pairs and of all other views, over all ranks.

    Args:
        a, b: this rank's projections of both views, (N, D) each; no (2N, 2N) matrix is made.
    """
    a, b = (F.normalize(x.detach().to(sum_dtype(x.device)), dim=1) for x in (a, b))
    count = 2 * len(a) * ranks.world_size()
    # Mean over ranks of the sum of all views, (D,), and of the positive pairs' similarity, in one message.
    shared = ranks.mean(torch.cat([a.sum(0) + b.sum(0), (a * b).sum(1).mean()[None]]))
    positive = shared[-1]
    everything = (shared[:-1] * ranks.world_size()).square().sum()  # over all ordered pairs, self-pairs included
    return positive, (everything - count - count * positive) / (count * (count - 2))


def project_pairs(
    joint: nn.Module, store: TileStore, rows: torch.Tensor, *, views: Views, epoch: int, number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the projections of a random view of the tiles at `rows` (M,) and of the tiles as they are, (M, D) each."""
    views = replace(views, clean_second=True)
    tiles = rows.to(store.device, non_blocking=True)
    drawn = views.batch(tiles, torch.full_like(tiles, number), epoch=epoch)
    a, b = joint(views.render(store.gather(rows), drawn)).chunk(2)
    return a, b


def take_step(loss: torch.Tensor, *, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Take one optimizer step down a loss; parameters that the loss does not depend on stay as they are."""
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    scaler.step(optimizer)
    scaler.update()
