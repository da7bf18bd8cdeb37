"""Classifiers on frozen features: a linear probe and nearest neighbours; effective rank of embeddings.

N tiles, M queries, C features, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from sscl.data.split import stratified_split
from sscl.evaluate.metrics import IntArray

if TYPE_CHECKING:  # pretraining has its k-NN from here, and starts without scikit-learn
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

_QUERIES_AT_ONCE = 1024
MAX_ITERATIONS = 1000  # of L-BFGS, a fit


def knn_probabilities(
    bank: torch.Tensor, bank_labels: torch.Tensor, queries: torch.Tensor, *, neighbours: int, num_classes: int
) -> torch.Tensor:
    """Return each class's fraction of the votes of a query's nearest neighbours by cosine similarity, (M, K).

    Votes weigh exp(similarity / 0.07), as in Wu et al., arXiv:1805.01978.

    Args:
        bank, queries: embeddings, (N, C) and (M, C).
        bank_labels: int64, (N,), below `num_classes`.
        neighbours: k; at most N are used.
    """
    unit = F.normalize(bank.float(), dim=1)
    parts = []
    for part in torch.split(F.normalize(queries.float(), dim=1), _QUERIES_AT_ONCE):
        nearest, where = (part @ unit.T).topk(min(neighbours, len(bank)), dim=1)
        votes = torch.zeros(len(part), num_classes).scatter_add_(1, bank_labels[where], (nearest / 0.07).exp())
        parts.append(votes / votes.sum(1, keepdim=True))
    return torch.cat(parts)


def knn_predictions(
    bank: torch.Tensor, bank_labels: torch.Tensor, queries: torch.Tensor, *, neighbours: int
) -> IntArray:
    """Return the class with the most votes of the nearest neighbours, (M,), see `knn_probabilities`."""
    classes = int(bank_labels.max()) + 1
    votes = knn_probabilities(bank, bank_labels, queries, neighbours=neighbours, num_classes=classes)
    found: IntArray = votes.argmax(1).numpy()
    return found


def _balanced_accuracy(labels: IntArray, predictions: IntArray) -> float:
    return float(np.mean([(predictions[labels == label] == label).mean() for label in np.unique(labels)]))


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Logistic regression on standardised features, and how its strength was chosen.

    Attributes:
        scaler: means and standard deviations of the features it was fitted on.
        regression: L2-penalised, multinomial, fitted by L-BFGS.
        c: inverse strength of the penalty.
        scores: balanced accuracy on validation, mean over the folds, for each C; empty where there was no validation.
        fits, unconverged: fits in all, and how many of them stopped before they had converged.
    """

    scaler: StandardScaler
    regression: LogisticRegression
    c: float
    scores: dict[float, float]
    fits: int
    unconverged: int

    def probabilities(self, features: torch.Tensor, *, num_classes: int) -> NDArray[np.float64]:
        """Return the class probabilities of features (M, C), (M, K); 0 for a class that was not fitted."""
        found = np.zeros((len(features), num_classes))
        found[:, self.regression.classes_] = self.regression.predict_proba(self.scaler.transform(_double(features)))
        return found


def fit_linear_probe(
    features: torch.Tensor,
    labels: IntArray,
    *,
    folds: Sequence[tuple[IntArray, IntArray]],
    grid: Sequence[float],
    rows: IntArray | None = None,
    max_iterations: int = MAX_ITERATIONS,
    weights: NDArray[np.float64] | None = None,
    each: Callable[[float, StandardScaler, LogisticRegression], None] | None = None,
) -> LinearProbe:
    """Return a linear classifier on frozen features whose C was chosen by balanced accuracy on validation.

    Features are standardised by the tiles fitted on, in each fold and in the last fit. Of equal values of C the
    smallest is taken. Without folds C is the value of the grid that is nearest to 1.

    Args:
        features: (N, C). labels: int64, (N,), at least two classes among the rows.
        folds: (rows to fit, rows to validate) pairs, see `validation_folds`.
        grid: values of C.
        rows: tiles of the last fit, with the chosen C; None = all.
        max_iterations: of L-BFGS, a fit.
        weights: of the tiles in the loss, (N,); None = 1 each.
        each: called after the fit of each C on each of the folds.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x = _double(features)
    rows = np.arange(len(labels)) if rows is None else rows
    strengths = sorted(grid)
    fits = unconverged = 0

    def fit(regression: LogisticRegression, standard: NDArray[np.float64], chosen: IntArray) -> None:
        nonlocal fits, unconverged
        weight = None if weights is None else weights[chosen]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            regression.fit(standard, labels[chosen], sample_weight=weight)
        fits += 1
        unconverged += any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
        for warning in caught:
            if not issubclass(warning.category, ConvergenceWarning):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)

    totals = np.zeros(len(strengths))
    for train, validation in folds:
        scaler = StandardScaler().fit(x[train])
        standard, held = scaler.transform(x[train]), scaler.transform(x[validation])
        # From the strongest penalty to the weakest, each fit starting where the last one ended.
        regression = LogisticRegression(max_iter=max_iterations, warm_start=True)
        for index, c in enumerate(strengths):
            fit(regression.set_params(C=c), standard, train)
            if each is not None:
                each(c, scaler, regression)
            totals[index] += _balanced_accuracy(labels[validation], regression.predict(held))
    scores = {c: total / len(folds) for c, total in zip(strengths, totals.tolist(), strict=True)} if folds else {}
    if scores:
        best = max(scores.values())
        chosen = next(c for c in strengths if scores[c] >= best - 1e-9)  # sums over folds differ in the last bit
    else:
        chosen = min(strengths, key=lambda c: abs(np.log(c)))
    scaler = StandardScaler().fit(x[rows])
    regression = LogisticRegression(C=chosen, max_iter=max_iterations)
    fit(regression, scaler.transform(x[rows]), rows)
    return LinearProbe(scaler, regression, c=chosen, scores=scores, fits=fits, unconverged=unconverged)


def _double(features: torch.Tensor) -> NDArray[np.float64]:
    """In float32 L-BFGS ends early on some features, with another result for another order of sums."""
    return features.double().numpy()


def validation_folds(
    labels: IntArray, *, fraction: float, seed: int, groups: NDArray[np.str_] | None = None
) -> tuple[list[tuple[IntArray, IntArray]], str]:
    """Return (rows to fit, rows to validate) pairs within few or many labelled tiles, and how they were made.

    One pair with `fraction` of every class, whole groups where these can be divided. Where that fraction of a class is
    less than half a tile: 5-fold, or as many folds as the rarest class has tiles. A class with one tile is always
    fitted; there is no pair where every class has one.

    Args:
        labels: int64, (N,). fraction: fraction held out, between 0 and 1. groups: group of each tile, (N,).

    Raises:
        ValueError: the fraction is out of range, or there are no tiles.
    """
    from sklearn.model_selection import StratifiedKFold

    _, class_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(counts) and counts.min() >= 2 and counts.min() * fraction >= 0.5:
        if groups is not None:
            try:
                return [stratified_split(labels, fraction=fraction, seed=seed, groups=groups)], "carved by group"
            except ValueError:  # too few groups of some class
                pass
        return [stratified_split(labels, fraction=fraction, seed=seed)], "carved"
    repeated = np.flatnonzero(counts[class_of] >= 2)
    if len(repeated) == 0:
        return [], "none"
    folds = min(5, int(counts[counts >= 2].min()))
    pairs = []
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for _, held in splitter.split(repeated, labels[repeated]):
        validation = np.sort(repeated[held])
        pairs.append((np.setdiff1d(np.arange(len(labels)), validation), validation))
    return pairs, f"{folds}-fold"


def effective_rank(embeddings: torch.Tensor) -> float:
    """Return how many directions the embeddings (N, C) use: exp of the entropy of their singular values.

    The mean is subtracted first: all ReLU features share it, and it would dominate.

    Source: Roy & Vetterli, The effective rank (EUSIPCO 2007); as a health metric, arXiv:2210.02885.
    """
    centred = embeddings.double() - embeddings.double().mean(0)
    values = torch.linalg.svdvals(centred)
    if values.sum() <= 1e-9:
        return 1.0
    weights = values / values.sum()
    return float(torch.exp(-(weights * (weights + 1e-12).log()).sum()))
