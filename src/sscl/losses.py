"""NT-Xent, the cross-view loss and the classification losses.

B pairs on this rank, N pairs over all ranks, D dimensions, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from sscl import ranks

# The contrastive losses hold this much of their matrix of similarities at a time. Small enough for a GPU's cache, large
# enough that each of its kernels has work; on a CPU anything below is as fast.
BLOCK_BYTES = 32 * 2**20
_NO_LENGTH = 1e-8  # of a row, below which it counts as zeros


def nt_xent(a: torch.Tensor, b: torch.Tensor, *, temperature: float = 0.7, reduction: str = "mean") -> torch.Tensor:
    """Return the mean NT-Xent loss over both views of a batch, or the loss of each tile.

    Every row's positive is the other view of the same tile; its negatives are the 2N - 2 rows of the other tiles. With
    a process group the negatives come from all ranks and the value is the mean over this rank's rows (`ranks.mean` of
    it is the global loss; under DistributedDataParallel its gradient is the global one).

    Computed in float32 (float64 stays float64) with autocast off: autocast would turn even a `.float()` matmul into
    bf16. The matrix of similarities, (2B, 2N), is made in blocks of `BLOCK_BYTES`, and again in backward instead of
    being kept, so memory grows with the batch and not with its square.

    Args:
        a, b: projections of the two views, (B, D); row i of each is the same tile. Need not be normalised.
        temperature: softmax temperature, > 0.
        reduction: "mean", or "none" for each tile's mean over its two rows, (B,); the mean of those is the mean loss.

    Raises:
        ValueError: the shapes differ, temperature is not positive, or an unknown reduction.

    Source: SimCLR, arXiv:2002.05709, Eq. 1.
    """
    _check_views(a, b, temperature=temperature, reduction=reduction, loss="nt_xent")
    with torch.autocast(a.device.type, enabled=False):
        a, b = _unit_rows(a), _unit_rows(b)
        anchors = torch.cat([a, b])  # (2B, D)
        candidates = torch.cat([ranks.gather(a), ranks.gather(b)])  # (2N, D)
        pairs, first = len(candidates) // 2, ranks.rank() * len(a)
        of_a = torch.arange(first, first + len(a), device=a.device)
        # The columns of each anchor that are no negatives: its own and its positive's.
        left_out = torch.stack([of_a, of_a + pairs], 1).repeat(2, 1)  # (2B, 2)
        negatives = _logsumexp_of_products(anchors / temperature, candidates, left_out)  # (2B,)
        positive = (a * b).sum(1).repeat(2) / temperature  # (2B,)
        return _reduced(_of_margin(negatives - positive), reduction)


def nt_xent_at_collapse(pairs: int) -> float:
    """Return ln(2N - 1), the NT-Xent loss when the embeddings of all N pairs are equal: nothing was learned."""
    return math.log(2 * pairs - 1)


def cross_view_info_nce(
    a: torch.Tensor, b: torch.Tensor, *, temperature: float = 0.5, reduction: str = "mean"
) -> torch.Tensor:
    """Return the mean symmetric cross-view InfoNCE loss of a batch, or the loss of each tile.

    As NT-Xent, but a row is compared with the other view alone: its positive is the same tile there, its negatives the
    other N - 1 tiles there. The mean of both directions, a to b and b to a. Arguments, errors, ranks, number formats
    and memory are those of `nt_xent`.

    Source: CLIP, arXiv:2103.00020, Fig. 3; used on tiles in github.com/reshalfahsi/contrastive-ssl-pathology.
    """
    _check_views(a, b, temperature=temperature, reduction=reduction, loss="cross_view_info_nce")
    with torch.autocast(a.device.type, enabled=False):
        a, b = _unit_rows(a), _unit_rows(b)
        first = ranks.rank() * len(a)
        positives = torch.arange(first, first + len(a), device=a.device)[:, None]
        forth = _logsumexp_of_products(a / temperature, ranks.gather(b), positives)  # (B,)
        back = _logsumexp_of_products(b / temperature, ranks.gather(a), positives)  # (B,)
        positive = (a * b).sum(1).repeat(2) / temperature  # (2B,)
        return _reduced(_of_margin(torch.cat([forth, back]) - positive), reduction)


def cross_view_at_collapse(pairs: int) -> float:
    """Return ln N, the cross-view loss when the embeddings of all N pairs are equal: nothing was learned."""
    return math.log(pairs)


def _check_views(a: torch.Tensor, b: torch.Tensor, *, temperature: float, reduction: str, loss: str) -> None:
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"{loss}: a and b must both be (B, D), got {tuple(a.shape)} and {tuple(b.shape)}")
    if not temperature > 0:
        raise ValueError(f"{loss}: temperature must be > 0, got {temperature}")
    if reduction not in ("mean", "none"):
        raise ValueError(f"{loss}: reduction must be mean or none, got {reduction!r}")


def _unit_rows(x: torch.Tensor) -> torch.Tensor:
    """Return rows of length 1. A row of zeros has no direction: it stays, and gets no gradient, which would be 1/0."""
    x = x if x.dtype == torch.float64 else x.float()
    length: torch.Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return torch.where(length > _NO_LENGTH, x, x.detach()) / length.clamp(min=_NO_LENGTH)


def _of_margin(margin: torch.Tensor) -> torch.Tensor:
    """Return ln(1 + e^margin): -ln of the positive's softmax, where margin is log-sum-exp of the negatives - positive.

    Never below 0, and precise near it, where the difference of two log-sum-exps would keep no digit.
    """
    return F.softplus(margin, threshold=40)


def _reduced(rows: torch.Tensor, reduction: str) -> torch.Tensor:
    """Return the mean of the rows' losses (2B,), or each tile's, (B,)."""
    return rows.mean() if reduction == "mean" else rows.reshape(2, -1).mean(0)


# A custom operator, not an autograd.Function: torch.compile looks into a Function and lays out every block beside the
# others, which needs the whole matrix again, and compiling takes longer with every block. All matmuls
# here are of the kinds that autocast leaves alone, out= and in place: backward may be called under it.
@torch.library.custom_op(
    "sscl::logsumexp_of_products",
    mutates_args=(),
    schema="(Tensor anchors, Tensor candidates, Tensor left_out) -> Tensor",
)
def _logsumexp_of_products(anchors: torch.Tensor, candidates: torch.Tensor, left_out: torch.Tensor) -> torch.Tensor:
    """Return the log-sum-exp of each row of anchors @ candidates.T, (A,), in blocks of rows.

    Args:
        anchors, candidates: (A, D) and (C, D) of one dtype.
        left_out: columns of each anchor that do not count, int64 (A, L). Where none is left the result is -inf.
    """
    result = anchors.new_empty(anchors.shape[0])
    for rows, products in _blocks(anchors, candidates, left_out):
        largest = products.amax(1).clamp_(min=torch.finfo(products.dtype).min)
        torch.add(products.sub_(largest[:, None]).exp_().sum(1).log_(), largest, out=result[rows])
    return result


@torch.library.custom_op(
    "sscl::logsumexp_of_products_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor anchors, Tensor candidates, Tensor left_out, Tensor result) -> (Tensor, Tensor)",
)
def _logsumexp_of_products_backward(
    grad: torch.Tensor,
    anchors: torch.Tensor,
    candidates: torch.Tensor,
    left_out: torch.Tensor,
    result: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of anchors, (A, D), and of candidates, (C, D), from that of the result, (A,)."""
    to_anchors, to_candidates = torch.empty_like(anchors), torch.zeros_like(candidates)
    for rows, products in _blocks(anchors, candidates, left_out):
        softmax = products.sub_(result[rows, None].clamp(min=torch.finfo(result.dtype).min)).exp_()
        torch.mm(softmax, candidates, out=to_anchors[rows])
        to_candidates.addmm_(softmax.T, anchors[rows] * grad[rows, None])
    return to_anchors.mul_(grad[:, None]), to_candidates


def _blocks(
    anchors: torch.Tensor, candidates: torch.Tensor, left_out: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield slices of anchors and their rows of anchors @ candidates.T, which lie in the same memory each time."""
    count = max(1, min(len(anchors), BLOCK_BYTES // (len(candidates) * candidates.element_size())))
    space = anchors.new_empty(count, len(candidates))
    for start in range(0, len(anchors), count):
        rows = slice(start, min(start + count, len(anchors)))
        products = torch.mm(anchors[rows], candidates.T, out=space[: rows.stop - start])
        products.scatter_(1, left_out[rows], -math.inf)
        yield rows, products


@_logsumexp_of_products.register_fake
def _(anchors: torch.Tensor, candidates: torch.Tensor, left_out: torch.Tensor) -> torch.Tensor:
    return anchors.new_empty(anchors.shape[0])


@_logsumexp_of_products_backward.register_fake
def _(
    grad: torch.Tensor,
    anchors: torch.Tensor,
    candidates: torch.Tensor,
    left_out: torch.Tensor,
    result: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(anchors), torch.empty_like(candidates)


def _keep(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


def _gradients(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
    to_anchors, to_candidates = _logsumexp_of_products_backward(grad, *ctx.saved_tensors)
    return to_anchors, to_candidates, None


_logsumexp_of_products.register_autograd(_gradients, setup_context=_keep)


def focal_loss(
    logits: torch.Tensor, labels: torch.Tensor, *, gamma: float = 2.0, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean multi-class focal loss; gamma = 0 is cross-entropy.

    Args:
        logits: (B, K).
        labels: int64 (B,).
        gamma: focusing exponent, >= 0: how strongly well-classified tiles are discounted.
        weight: factor per class, (K,); the mean is then weighted, as in `torch.nn.functional.cross_entropy`.

    Raises:
        ValueError: gamma is negative.

    Source: Lin et al., arXiv:1708.02002, Eq. 4 and 5.
    """
    if gamma < 0:
        raise ValueError(f"focal_loss: gamma must be >= 0, got {gamma}")
    log_probability = F.log_softmax(logits.float(), dim=1).gather(1, labels[:, None])[:, 0]  # (B,)
    loss = -((1 - log_probability.exp()).clamp(min=0) ** gamma) * log_probability
    if weight is None:
        return loss.mean()
    tile_weight = weight[labels]
    return (tile_weight * loss).sum() / tile_weight.sum()
