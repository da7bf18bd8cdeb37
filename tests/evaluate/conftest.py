"""What tests of metrics share: tiles drawn at random, and what scikit-learn says of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))  # its simulations


def _drawn(*, tiles: int, classes: int, seed: int = 0, decimals: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and better-than-chance probabilities; few decimals make many tied scores."""
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(classes), rng.integers(0, classes, tiles - classes)]
    logits = rng.normal(size=(tiles, classes))
    logits[np.arange(tiles), labels] += 1
    scores = np.exp(logits)
    return labels, (scores / scores.sum(axis=1, keepdims=True)).round(decimals)


def _sklearn_metrics(labels: np.ndarray, probabilities: np.ndarray, *, positive: int | None) -> dict[str, Any]:
    """Return what scikit-learn says, for tiles where all of it is defined."""
    classes = probabilities.shape[1]
    predictions = probabilities.argmax(axis=1)
    if positive is not None:
        truth, scores = labels == positive, probabilities[:, positive]
    else:
        truth, scores = np.eye(classes)[labels], probabilities
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        labels, predictions, labels=range(classes), zero_division=np.nan
    )
    result = {
        "accuracy": sk.accuracy_score(labels, predictions),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predictions),
        "macro_f1": sk.f1_score(labels, predictions, average="macro"),
        "auroc": sk.roc_auc_score(truth, scores, average="macro"),
        "average_precision": sk.average_precision_score(truth, scores, average="macro"),
        "mcc": sk.matthews_corrcoef(labels, predictions),
        "per_class": [
            {"precision": precision[k], "recall": recall[k], "f1": f1[k], "support": support[k]} for k in range(classes)
        ],
    }
    if positive is not None:
        result["sensitivity"] = sk.recall_score(labels == positive, predictions == positive)
        result["specificity"] = sk.recall_score(labels != positive, predictions != positive)
    return result


@pytest.fixture(scope="session")
def drawn() -> Any:
    return _drawn


@pytest.fixture(scope="session")
def sklearn_metrics() -> Any:
    return _sklearn_metrics
