"""Embeddings of a tile set, and what they are worth: kNN, linear probe, effective rank.

N tiles, M queries, C features, K classes.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from sscl import augment
from sscl.data.split import stratified_split
from sscl.data.tiles import TileStore, epoch_order
from sscl.device import autocast

if TYPE_CHECKING:  # takes a second to import, and training needs none of it
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

Rows = NDArray[np.int64]
_QUERIES_AT_ONCE = 1024


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
    symmetric: bool = False,
    progress: str | None = None,
) -> torch.Tensor:
    """Return model(tile) of the clean tiles at `rows`, in evaluation mode, float32 on the CPU, (N, ...).

    With an encoder these are its embeddings (N, C), with a classifier its logits (N, K). Every part of the
    model is left in the mode it was in.

    With `symmetric` it is the mean over the 8 flips and rotations of each tile, to the last bit the same whichever way
    the tile lies. Of a classifier it is the mean of logits, not of probabilities: what comes back is logits still, so
    that a temperature is applied once and in one place, and no view counts for less because its softmax saturates.

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
                found = mean_over_symmetries(model, x) if symmetric else model(x)
            parts.append(found.float().cpu())
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


def mean_over_symmetries(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the mean of the model's float32 outputs over the 8 flips and rotations of x (B, 3, H, H), (B, ...).

    The views are sorted before they are added, so that rounding does not depend on which of them comes first.
    """
    views = []
    for turns in range(4):
        turned = torch.rot90(x, turns, (2, 3))
        for view in (turned, turned.flip(3)):
            views.append(model(view.contiguous(memory_format=torch.channels_last)).float())
    return torch.stack(views).sort(0).values.mean(0)


def knn_probabilities(
    bank: torch.Tensor, bank_labels: torch.Tensor, queries: torch.Tensor, *, neighbours: int, num_classes: int
) -> torch.Tensor:
    """Return each class's share of the votes of a query's nearest neighbours by cosine similarity, (M, K).

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


@torch.no_grad()
def adapt_batch_norm(
    encoder: nn.Module,
    store: TileStore,
    rows: NDArray[np.int64],
    *,
    mean: torch.Tensor,
    std: torch.Tensor,
    batch_size: int = 128,
    precision: str = "fp32",
    progress: str | None = None,
) -> nn.Module:
    """Return a copy of the encoder whose batch-norm statistics are those of the clean tiles at `rows`.

    In evaluation mode; the encoder itself is not touched. One pass in a fixed random order (batches of one class would
    mislead the deeper layers), in batches of nearly equal size. A layer's statistics are of all its inputs together,
    not an average over batches, so at the first layer they are those of one big batch; deeper layers see inputs that
    were normalised batch by batch.

    Raises:
        ValueError: no batch norm with running statistics, or fewer than two tiles.

    Source: AdaBN, Li et al., arXiv:1603.04779.
    """
    encoder = copy.deepcopy(encoder).eval()
    layers = [m for m in encoder.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        raise ValueError("batch norm: the encoder has no batch-norm layer to adapt; leave its statistics as they are")
    if len(rows) < 2:
        raise ValueError(f"batch norm: got {len(rows)} tiles to adapt to, expected 2 or more")
    sums: dict[nn.Module, torch.Tensor] = {}

    def add(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].float().transpose(0, 1).flatten(1)  # (C, B * h * w)
        variance, centre = (value.double() for value in torch.var_mean(x, 1, correction=0))
        count = torch.full_like(centre, x.shape[1])
        sums[layer] = sums.get(layer, 0) + torch.stack([count, count * centre, count * (variance + centre**2)])

    hooks = [layer.train().register_forward_pre_hook(add) for layer in layers]
    shuffled = rows[epoch_order(len(rows), seed=0, epoch=0)]
    batch_size = math.ceil(len(rows) / math.ceil(len(rows) / batch_size))
    for part in batches(shuffled, batch_size=batch_size, progress=progress):
        x = augment.normalise(augment.to_unit(store.gather(part)), mean=mean, std=std)
        with autocast(store.device, precision):
            encoder(x)
    for layer, hook in zip(layers, hooks, strict=True):
        hook.remove()
        if layer in sums:  # else the forward pass does not use it
            count, total, squares = sums[layer]
            centre = total / count
            variance = (squares / count - centre**2).clamp(min=0) * count / (count - 1)
            layer.load_state_dict({"running_mean": centre, "running_var": variance}, strict=False)
    return encoder.eval()


def knn_accuracy(
    bank: torch.Tensor, bank_labels: torch.Tensor, queries: torch.Tensor, query_labels: torch.Tensor, *, neighbours: int
) -> float:
    """Return the balanced accuracy of the vote of the nearest neighbours (see `knn_probabilities`).

    Args:
        bank, queries: embeddings, (N, C) and (M, C).
        bank_labels, query_labels: int64, (N,) and (M,).
        neighbours: k; at most N are used.
    """
    classes = int(max(bank_labels.max(), query_labels.max())) + 1
    votes = knn_probabilities(bank, bank_labels, queries, neighbours=neighbours, num_classes=classes)
    return _balanced_accuracy(query_labels.numpy(), votes.argmax(1).numpy())


def _balanced_accuracy(labels: Rows, predictions: Rows) -> float:
    return float(np.mean([(predictions[labels == label] == label).mean() for label in np.unique(labels)]))


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Logistic regression on standardised features, and how its strength was chosen.

    Attributes:
        scaler: means and deviations of the features it was fitted on.
        regression: L2-penalised, multinomial, fitted by L-BFGS.
        c: inverse strength of the penalty.
        scores: balanced accuracy on validation, mean over the folds, for each C; empty when nothing could choose.
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
    labels: Rows,
    *,
    folds: Sequence[tuple[Rows, Rows]],
    grid: Sequence[float],
    rows: Rows | None = None,
    max_iterations: int = 1000,
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
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x = _double(features)
    rows = np.arange(len(labels)) if rows is None else rows
    strengths = sorted(grid)
    fits = unconverged = 0

    def fit(regression: LogisticRegression, standard: NDArray[np.float64], y: Rows) -> None:
        nonlocal fits, unconverged
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            regression.fit(standard, y)
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
            fit(regression.set_params(C=c), standard, labels[train])
            totals[index] += _balanced_accuracy(labels[validation], regression.predict(held))
    scores = {c: total / len(folds) for c, total in zip(strengths, totals.tolist(), strict=True)} if folds else {}
    if scores:
        best = max(scores.values())
        chosen = next(c for c in strengths if scores[c] >= best - 1e-9)  # sums over folds differ in the last bit
    else:
        chosen = min(strengths, key=lambda c: abs(np.log(c)))
    scaler = StandardScaler().fit(x[rows])
    regression = LogisticRegression(C=chosen, max_iter=max_iterations)
    fit(regression, scaler.transform(x[rows]), labels[rows])
    return LinearProbe(scaler, regression, c=chosen, scores=scores, fits=fits, unconverged=unconverged)


def _double(features: torch.Tensor) -> NDArray[np.float64]:
    """In float32 L-BFGS ends early on some features, with another result for another order of sums."""
    return features.double().numpy()


def validation_folds(
    labels: Rows, *, fraction: float, seed: int, groups: NDArray[np.str_] | None = None
) -> tuple[list[tuple[Rows, Rows]], str]:
    """Return (rows to fit, rows to validate) pairs within few or many labelled tiles, and how they were made.

    One pair with `fraction` of every class, whole groups where these can be divided; 5-fold (or as many as the
    rarest class has tiles) where that share of a class is no whole tile. A class with one tile is always fitted; no
    pair where every class has one.

    Args:
        labels: int64, (N,). fraction: share held out, between 0 and 1. groups: group of each tile, (N,).

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

    The mean is taken off first, or it would be the one direction that every ReLU feature shares.

    Source: Roy & Vetterli, The effective rank (EUSIPCO 2007); as a health sign, arXiv:2210.02885.
    """
    centred = embeddings.double() - embeddings.double().mean(0)
    values = torch.linalg.svdvals(centred)
    if values.sum() <= 1e-9:
        return 1.0
    share = values / values.sum()
    return float(torch.exp(-(share * (share + 1e-12).log()).sum()))
