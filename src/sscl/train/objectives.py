"""What training minimises, and what chooses the best epoch of a classifier.

N tiles, K classes, V validation tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from sscl import ranks
from sscl.config import FinetuneConfig
from sscl.data import split
from sscl.evaluate import metrics
from sscl.losses import cross_view_at_collapse, cross_view_info_nce, focal_loss, nt_xent, nt_xent_at_collapse
from sscl.metrics_log import MetricsRow

LabelLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of logits (N, K) and labels (N,)
ContrastLoss = Callable[..., torch.Tensor]  # nt_xent or cross_view_info_nce


class Objective(NamedTuple):
    """A contrastive loss, and what it is when all projections are equal."""

    loss: ContrastLoss
    at_collapse: Callable[[int], float]  # of the batch size N
    formula: str  # of `at_collapse`


OBJECTIVES = {
    "nt_xent": Objective(nt_xent, nt_xent_at_collapse, "ln(2N-1)"),
    "cross_view": Objective(cross_view_info_nce, cross_view_at_collapse, "ln N"),
}


def build_loss(
    config: FinetuneConfig, labels: NDArray[np.int64], *, num_classes: int, device: torch.device
) -> LabelLoss:
    """Return the loss on (logits (N, K), labels (N,)); class weights come from the training labels.

    Its mean over ranks is the loss of all their tiles, although the weights of a rank's tiles may differ in sum.
    """
    weight: torch.Tensor | None = None
    if config.train.loss.startswith("weighted_") and config.train.balance != "draws":  # drawn equally often: 1 each
        weight = torch.from_numpy(split.class_weights(labels, num_classes=num_classes)).float().to(device)

    def loss_of(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if config.train.loss.endswith("focal"):
            loss = focal_loss(logits, target, gamma=config.train.focal_gamma, weight=weight)
        else:
            loss = F.cross_entropy(logits, target, weight=weight)
        if weight is None or ranks.world_size() == 1:
            return loss
        total = weight[target].sum()
        return loss * total / ranks.mean(total)

    return loss_of


def validation_metrics(logits: torch.Tensor, labels: NDArray[np.int64]) -> dict[str, float]:
    """Return the unweighted loss, accuracy and balanced accuracy of logits (V, K)."""
    values = metrics.classification_metrics(labels, logits.softmax(1).double().numpy(), positive=None)
    return {
        "validation_loss": F.cross_entropy(logits, torch.from_numpy(labels)).item(),
        "validation_accuracy": values.accuracy,
        "validation_balanced_accuracy": values.balanced_accuracy,
    }


def score(row: MetricsRow, config: FinetuneConfig) -> tuple[float, float]:
    """Return what a better epoch has more of; ties go to the lower loss."""
    loss = row["validation_loss"]
    return (-loss, 0.0) if config.train.select == "loss" else (row[f"validation_{config.train.select}"], -loss)
