"""Embeddings of a tile set, and what they are worth: kNN accuracy and effective rank.

N tiles, C features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from sscl import augment
from sscl.data.tiles import TileStore
from sscl.device import autocast


def batches(rows: NDArray[np.int64], *, batch_size: int, progress: str | None = None) -> Iterator[torch.Tensor]:
    """Yield the rows in order, int64 (<= batch_size,) at a time; `progress` names a bar."""
    bar = tqdm(total=len(rows), desc=progress, unit="tile", disable=progress is None, leave=False)
    with bar:
        for start in range(0, len(rows), batch_size):
            part = torch.from_numpy(rows[start : start + batch_size])
            yield part
            bar.update(len(part))


@torch.no_grad()
def outputs(
    model: nn.Module,
    store: TileStore,
    rows: NDArray[np.int64],
    *,
    mean: torch.Tensor,
    std: torch.Tensor,
    batch_size: int = 128,
    precision: str = "fp32",
    progress: str | None = None,
) -> torch.Tensor:
    """Return model(tile) of the clean tiles at `rows`, in evaluation mode, float32 on the CPU, (N, ...).

    With an encoder these are its embeddings (N, C), with a classifier its logits (N, K). Every part of the
    model is left in the mode it was in.

    Raises:
        ValueError: some output is not a finite number: the weights have diverged.
    """
    modes = [(module, module.training) for module in model.modules()]  # a frozen part may be in another mode
    model.eval()
    parts = []
    try:
        for part in batches(rows, batch_size=batch_size, progress=progress):
            x = augment.normalise(augment.to_unit(store.gather(part)), mean=mean, std=std)
            with autocast(store.device, precision):
                parts.append(model(x).float().cpu())
    finally:
        for module, training in modes:
            module.training = training
    found = torch.cat(parts)
    broken = int((~found.isfinite()).reshape(len(found), -1).any(1).sum())
    if broken:
        raise ValueError(
            f"the model's outputs for {broken} of {len(found)} tiles are not finite numbers: its weights diverged; "
            "lower train.learning_rate, lengthen train.warmup_epochs, or set precision=fp32"
        )
    return found


def knn_accuracy(
    bank: torch.Tensor, bank_labels: torch.Tensor, queries: torch.Tensor, query_labels: torch.Tensor, *, neighbours: int
) -> float:
    """Return the balanced accuracy of a vote of the nearest neighbours by cosine similarity.

    Votes weigh exp(similarity / 0.07), as in Wu et al., arXiv:1805.01978.

    Args:
        bank, queries: embeddings, (N, C) and (M, C).
        bank_labels, query_labels: int64, (N,) and (M,).
        neighbours: k; at most N are used.
    """
    similarity = F.normalize(queries.float(), dim=1) @ F.normalize(bank.float(), dim=1).T  # (M, N)
    nearest, where = similarity.topk(min(neighbours, len(bank)), dim=1)
    classes = int(max(bank_labels.max(), query_labels.max())) + 1
    votes = torch.zeros(len(queries), classes).scatter_add_(1, bank_labels[where], (nearest / 0.07).exp())
    right = votes.argmax(1) == query_labels
    return float(
        np.mean([right[query_labels == c].float().mean().item() for c in range(classes) if (query_labels == c).any()])
    )


def effective_rank(embeddings: torch.Tensor) -> float:
    """Return how many directions the embeddings (N, C) use: exp of the entropy of their singular values.

    The mean is taken off first, or it would be the one direction that every ReLU feature shares.

    Source: Roy & Vetterli, The effective rank (EUSIPCO 2007); as a health sign, arXiv:2210.02885.
    """
    centred = embeddings.double() - embeddings.double().mean(0)
    values = torch.linalg.svdvals(centred)
    if values.sum() <= 1e-9:
        return 1.0
    share = values / values.sum()
    return float(torch.exp(-(share * (share + 1e-12).log()).sum()))
