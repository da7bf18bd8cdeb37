"""NT-Xent, the cross-view loss and the classification losses.

B pairs on this rank, N pairs over all ranks, D dimensions, K classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from sscl import dist


def nt_xent(a: torch.Tensor, b: torch.Tensor, *, temperature: float = 0.7, reduction: str = "mean") -> torch.Tensor:
    """Return the mean NT-Xent loss over both views of a batch, or the loss of each tile.

    Every row's positive is the other view of the same tile; its negatives are the 2N - 2 rows of the other tiles. With
    a process group the negatives come from all ranks and the value is the mean over this rank's rows (`dist.mean` of it
    is the global loss; under DistributedDataParallel its gradient is the global one).

    Computed in float32 (float64 stays float64) with autocast off: autocast would turn even a `.float()` matmul into
    bf16.

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
        candidates = torch.cat([dist.gather(a), dist.gather(b)])  # (2N, D)
        similarity = anchors @ candidates.T / temperature  # (2B, 2N)
        pairs, first = len(candidates) // 2, dist.rank() * len(a)
        own = torch.arange(first, first + len(a), device=a.device)
        own = torch.cat([own, own + pairs])  # each anchor's own column
        columns = torch.arange(2 * pairs, device=a.device)
        similarity = similarity.masked_fill(columns[None] == own[:, None], -math.inf)
        positive = (a * b).sum(1).repeat(2) / temperature  # (2B,)
        return _reduced(similarity.logsumexp(1) - positive, reduction)


def nt_xent_at_collapse(pairs: int) -> float:
    """Return ln(2N - 1), the NT-Xent loss when the embeddings of all N pairs are equal: nothing was learned."""
    return math.log(2 * pairs - 1)


def cross_view_info_nce(
    a: torch.Tensor, b: torch.Tensor, *, temperature: float = 0.5, reduction: str = "mean"
) -> torch.Tensor:
    """Return the mean symmetric cross-view InfoNCE loss of a batch, or the loss of each tile.

    As NT-Xent, but a row is compared with the other view alone: its positive is the same tile there, its negatives the
    other N - 1 tiles there. The mean of both directions, a to b and b to a. Ranks and number formats as in `nt_xent`.

    Args:
        a, b: projections of the two views, (B, D); row i of each is the same tile. Need not be normalised.
        temperature: softmax temperature, > 0.
        reduction: "mean", or "none" for each tile's mean over its two rows, (B,); the mean of those is the mean loss.

    Raises:
        ValueError: the shapes differ, temperature is not positive, or an unknown reduction.

    Source: CLIP, arXiv:2103.00020, Fig. 3; used on tiles in github.com/reshalfahsi/contrastive-ssl-pathology.
    """
    _check_views(a, b, temperature=temperature, reduction=reduction, loss="cross_view_info_nce")
    with torch.autocast(a.device.type, enabled=False):
        a, b = _unit_rows(a), _unit_rows(b)
        forth = a @ dist.gather(b).T / temperature  # (B, N)
        back = b @ dist.gather(a).T / temperature  # (B, N)
        positive = (a * b).sum(1).repeat(2) / temperature  # (2B,)
        return _reduced(torch.cat([forth.logsumexp(1), back.logsumexp(1)]) - positive, reduction)


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
    # 1e-8, not the default 1e-12: the gradient of a zero row is then large but far from float32's limit.
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=1, eps=1e-8)


def _reduced(rows: torch.Tensor, reduction: str) -> torch.Tensor:
    """Return the mean of the rows' losses (2B,), or each tile's, (B,)."""
    return rows.mean() if reduction == "mean" else rows.reshape(2, -1).mean(0)


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
