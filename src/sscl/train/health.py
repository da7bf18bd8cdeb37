"""Health metrics of pretraining, taken now and then between epochs: effective rank, k-NN accuracy, collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sscl.config import PretrainConfig
from sscl.data.groups import Groups
from sscl.data.load import all_rows
from sscl.data.split import stratified_split
from sscl.data.tiles import Tiles, TileStore
from sscl.evaluate import probe, verdicts
from sscl.evaluate.influence import balanced_accuracy
from sscl.evaluate.intervals import Sample, metric_interval
from sscl.evaluate.verdicts import Outcome
from sscl.models import features
from sscl.words import count


@dataclass(frozen=True)
class HealthTiles:
    """Rows of the training tiles and of those that the health metrics are computed on.

    Attributes:
        train: trained on.
        queries: whose embeddings are examined; held out of training when labelled.
        bank: labelled training tiles, the neighbours of k-NN; empty without labels.
        groups: slide or patient of each query, where known.
    """

    train: NDArray[np.int64]
    queries: NDArray[np.int64]
    bank: NDArray[np.int64]
    groups: Groups | None = None


def carve_health(tiles: Tiles, config: PretrainConfig) -> HealthTiles:
    """Return which tiles are trained on and which ones the health metrics are computed on.

    With labels, a stratified (and grouped) part is held out of training, so that k-NN accuracy is that of unseen
    tiles. The labels serve no other purpose; where they do not allow that, pretraining continues without it.
    """
    rows = all_rows(tiles)
    rng = np.random.default_rng([config.seed, 1])
    labelled = rows[tiles.labels >= 0]
    classes = len(np.unique(tiles.labels[labelled]))
    fraction = min(0.2, config.health.tiles / max(1, len(labelled)))
    held = None
    if classes >= 2 and fraction * len(labelled) >= 2 * classes:
        groups = None if tiles.groups is None else tiles.groups[labelled]
        try:
            rest, held = stratified_split(
                tiles.labels[labelled], fraction=fraction, seed=config.seed, groups=groups, classes=tiles.classes
            )
        except ValueError as error:
            print(f"no k-NN accuracy: no tiles can be held out for it ({error})")
    if held is None:
        queries = np.sort(rng.permutation(rows)[: config.health.tiles])
        return HealthTiles(train=rows, queries=queries, bank=rows[:0])
    bank = np.sort(rng.permutation(labelled[rest])[: config.health.bank_tiles])
    queries = labelled[held]
    of = None if tiles.groups is None else tiles.groups[queries]
    return HealthTiles(train=np.setdiff1d(rows, queries), queries=queries, bank=bank, groups=of)


def health_metrics(
    encoder: nn.Module,
    store: TileStore,
    labels: NDArray[np.int64],
    chosen: HealthTiles,
    *,
    mean: torch.Tensor,
    std: torch.Tensor,
    batch_size: int,
    neighbours: int,
) -> dict[str, float]:
    """Return the effective rank of the embeddings and, with labels, the k-NN accuracy on held-out tiles.

    Always in fp32: bf16 rounds an embedding to 8 bits, and its noise looks like directions of its own. Embeddings that
    have collapsed to one direction (mean cosine similarity 0.999) then seem to have an effective rank of 14, not 1.

    Args:
        labels: of all tiles in the store. chosen: which of them.
        mean, std: of the channels, (3,), as in training.
        batch_size: tiles at a time. neighbours: k.
    """

    def embed(rows: NDArray[np.int64]) -> torch.Tensor:
        return features.outputs(encoder, store, rows, mean=mean, std=std, batch_size=batch_size, precision="fp32")

    queries = embed(chosen.queries)
    found = {"effective_rank": probe.effective_rank(queries)}
    if len(chosen.bank):
        truth, known = labels[chosen.queries], torch.from_numpy(labels[chosen.bank])
        predictions = probe.knn_predictions(embed(chosen.bank), known, queries, neighbours=neighbours)
        classes = int(max(truth.max(), predictions.max())) + 1
        accuracy = balanced_accuracy(predictions, Sample.of(truth, classes=classes, groups=chosen.groups))
        ends = metric_interval(accuracy)
        found |= {
            "knn_balanced_accuracy": accuracy.value,
            "knn_chance": 1 / len(np.unique(truth)),
            "knn_tiles": len(truth),
            **({} if ends is None else {"knn_low": ends[0], "knn_high": ends[1]}),
        }
    return found


def knn_verdict(row: Mapping[str, float]) -> tuple[Outcome, str] | None:
    """Return whether k-NN accuracy is above chance, and a line on it; None where the row has none.

    Args:
        row: of metrics.jsonl; without knn_low and knn_high where tiles or slides are too few for an interval.
    """
    if "knn_balanced_accuracy" not in row:
        return None
    value, chance, tiles = row["knn_balanced_accuracy"], row["knn_chance"], int(row["knn_tiles"])
    on = f"{count(tiles, 'held-out tile')}"
    if "knn_low" not in row:
        said = f"{value:.3f} on {on}, which are of too few slides, or too few of a class, for an interval"
        return Outcome.INCONCLUSIVE, f"inconclusive: k-NN balanced accuracy {said}; chance {chance:.3f}"
    ends = row["knn_low"], row["knn_high"]
    outcome = verdicts.better_than_chance(ends, chance, tiles=tiles)
    word = {Outcome.PASSED: "learned", Outcome.FAILED: "not above chance"}.get(outcome, "inconclusive")
    return outcome, (
        f"{word}: k-NN balanced accuracy {value:.3f} ({ends[0]:.3f} to {ends[1]:.3f} on {on}), chance {chance:.3f}"
        f"{verdicts.too_few(tiles) or f'; {verdicts.gain_shown(ends)}'}"
    )


def health_batch_size(config: PretrainConfig) -> int:
    """Return how many tiles to embed at a time: no more than fit where the training did.

    A training step keeps the activations of two views of each tile for its backward pass; embedding keeps none.
    """
    return min(config.train.batch_size, 2 * (config.train.microbatch or 64))


def collapse_warning(row: Mapping[str, float]) -> str | None:
    """Return a line when the embeddings have collapsed, else None.

    Args:
        row: negative_similarity, loss_relative and, where measured, effective_rank, as in metrics.jsonl.
    """
    remedy = "raise train.batch_size, lower train.learning_rate, or strengthen augment"
    if row["negative_similarity"] > 0.95:
        similarity = f"{row['negative_similarity']:.3f}"
        return f"collapse: all tiles have nearly the same embedding (mean cosine similarity {similarity}); {remedy}"
    if row.get("effective_rank", math.inf) < 3:
        return f"collapse: the effective rank of the embeddings is only {row['effective_rank']:.1f}; {remedy}"
    if row["loss_relative"] > 0.995:
        return f"the loss is {row['loss_relative']:.3f} times that of random guessing; {remedy}"
    return None
