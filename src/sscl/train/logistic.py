"""The head by logistic regression on frozen features: the classifier of `sscl probe`, kept as a linear layer.

k views of each of T training tiles, V validation tiles, C features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from sscl.config import FinetuneConfig
from sscl.data import split
from sscl.evaluate.probe import MAX_ITERATIONS, fit_linear_probe
from sscl.metrics_log import MetricsRow
from sscl.train.frozen import FrozenFeatures
from sscl.train.objectives import validation_metrics

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler


@dataclass(frozen=True, eq=False)
class LogisticFit:
    """Logistic regressions, one a value of C.

    Attributes:
        head: weight and bias of the chosen one, as a linear layer on features as they are. chosen: its row, from 0.
        rows: of metrics.jsonl, by rising C; instead of epochs.
        unconverged: fits that stopped before they had converged.
    """

    head: dict[str, torch.Tensor]
    chosen: int
    rows: list[MetricsRow]
    unconverged: int

    def notes(self) -> list[str]:
        """Return what is doubtful about the choice of C, a line each."""
        found = []
        if self.unconverged:
            found.append(
                f"warning: {self.unconverged} of {len(self.rows) + 1} fits did not converge within {MAX_ITERATIONS} "
                "iterations; leave the largest values out of train.c_grid"
            )
        if len(self.rows) > 1 and self.chosen in (0, len(self.rows) - 1):
            end, other = ("smallest", "smaller") if self.chosen == 0 else ("largest", "larger")
            c = self.rows[self.chosen]["c"]
            found.append(f"note: C={c:g} is the {end} of train.c_grid; a {other} one may be better")
        return found


def fit_logistic(
    config: FinetuneConfig,
    found: FrozenFeatures,
    labels: NDArray[np.int64],
    validation_labels: NDArray[np.int64],
    *,
    num_classes: int,
) -> LogisticFit:
    """Return the head fitted to the training tiles alone, with the C of most balanced accuracy on validation tiles.

    The validation tiles are not fitted afterwards: temperature and threshold are. Of k views each weighs 1 / k, so that
    C means the same.

    Args:
        labels: of the training tiles in the order of `found.rows`, (T,); each class has some. validation_labels: (V,).
    """
    views, tiles, width = found.views.shape
    x, held = found.views.cpu().reshape(views * tiles, width), found.validation
    y = np.tile(labels, views)
    weights = np.ones(len(y))
    if config.train.loss.startswith("weighted_") or config.train.balance == "draws":
        weights = split.class_weights(labels, num_classes=num_classes)[y]
    plain = views == 1 and bool((weights == 1).all())
    rows = np.arange(len(y))
    fitted: list[MetricsRow] = []

    def measured(c: float, linear: dict[str, torch.Tensor], number: int) -> MetricsRow:
        own, theirs = (F.linear(part, linear["weight"], linear["bias"]) for part in (x, held))
        return {
            "epoch": number + 1,
            "c": c,
            "train_loss": F.cross_entropy(own, torch.from_numpy(y)).item(),
            "train_accuracy": float((own.argmax(1).numpy() == y).mean()),
            **validation_metrics(theirs, validation_labels),
        }

    def note(c: float, scaler: StandardScaler, regression: LogisticRegression) -> None:
        fitted.append(measured(c, as_linear(scaler, regression), len(fitted)))

    probe = fit_linear_probe(
        torch.cat([x, held]),
        np.concatenate([y, validation_labels]),
        folds=[(rows, np.arange(len(y), len(y) + len(held)))],
        grid=config.train.c_grid,
        rows=rows,
        weights=None if plain else np.concatenate([weights / views, np.ones(len(held))]),
        each=note,
    )
    head = as_linear(probe.scaler, probe.regression)
    chosen = sorted(config.train.c_grid).index(probe.c)
    fitted[chosen] = measured(probe.c, head, chosen)  # the path came to it from a smaller C
    return LogisticFit(head, chosen, fitted, probe.unconverged)


def as_linear(scaler: StandardScaler, regression: LogisticRegression) -> dict[str, torch.Tensor]:
    """Return the linear layer that gives the same probabilities from features that are not standardised.

    Of two classes scikit-learn keeps one row of weights, for their difference; each gets half of it here, so that
    either has a score of its own to explain.
    """
    weight, bias = regression.coef_, regression.intercept_
    if len(weight) == 1:
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    weight = weight / scaler.scale_
    return {
        "weight": torch.from_numpy(weight).float(),
        "bias": torch.from_numpy(bias - weight @ scaler.mean_).float(),
    }
