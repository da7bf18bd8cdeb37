"""The curves that a training draws after every epoch."""

from __future__ import annotations

import re
from pathlib import Path

from sscl.metrics_log import MetricsRow


def draw_pretraining(rows: list[MetricsRow], path: Path) -> None:
    """Draw the loss, the similarities and the health metrics against the epoch."""
    from sscl.plots.charts import plot_history  # importing matplotlib would delay the first step

    series = [
        ("loss / loss at collapse", ["loss_relative"]),
        ("cosine similarity", ["positive_similarity", "negative_similarity"]),
        ("effective rank", ["effective_rank"]),
    ]
    by_source = list(dict.fromkeys(key for row in rows for key in row if re.match(r"loss_\d", key)))
    if by_source:
        series.append(("loss of each source", by_source))
    if any("knn_balanced_accuracy" in row for row in rows):
        series.append(("k-NN balanced accuracy", ["knn_balanced_accuracy"]))
    plot_history(rows, series=series, path=path, title="Pretraining")


def draw_finetuning(rows: list[MetricsRow], path: Path) -> None:
    from sscl.plots.charts import plot_history  # importing matplotlib would delay the first step

    series = [
        ("loss", ["train_loss", "validation_loss"]),
        ("accuracy", ["train_accuracy", "validation_accuracy", "validation_balanced_accuracy"]),
    ]
    if "contrast_loss" in rows[0]:
        series.append(("contrastive loss", ["contrast_loss"]))
    plot_history(rows, series=series, path=path, title="Fine-tuning", by_c="c" in rows[0])
