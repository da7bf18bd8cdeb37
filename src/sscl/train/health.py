"""Signs that pretraining learns something, taken after each epoch: effective rank, kNN accuracy, collapse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sscl.config import PretrainConfig
from sscl.data.load import all_rows
from sscl.data.split import stratified_split
from sscl.data.tiles import Tiles, TileStore
from sscl.evaluate import probe
from sscl.models import features
from sscl.train.step import Views


@dataclass(frozen=True)
class HealthTiles:
    """Rows of the tiles to train on and of those to look at."""

    train: NDArray[np.int64]
    queries: NDArray[np.int64]  # their embeddings are looked at; held out of training when labelled
    bank: NDArray[np.int64]  # labelled training tiles; empty without labels


def carve_health(tiles: Tiles, config: PretrainConfig) -> HealthTiles:
    """Return which tiles are trained on and which are looked at after each epoch.

    With labels, a stratified (and grouped) part is held out of training, so that kNN accuracy says something about
    unseen tiles; the labels serve no other purpose, so where they do not allow that, pretraining goes on without.
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
            rest, held = stratified_split(tiles.labels[labelled], fraction=fraction, seed=config.seed, groups=groups)
        except ValueError as error:
            print(f"no kNN accuracy, because no tiles can be held out for it: {error}")
    if held is None:
        queries = np.sort(rng.permutation(rows)[: config.health.tiles])
        return HealthTiles(train=rows, queries=queries, bank=rows[:0])
    bank = np.sort(rng.permutation(labelled[rest])[: config.health.bank_tiles])
    return HealthTiles(train=np.setdiff1d(rows, labelled[held]), queries=labelled[held], bank=bank)


def health(
    encoder: nn.Module,
    store: TileStore,
    tiles: Tiles,
    watch: HealthTiles,
    *,
    views: Views,
    config: PretrainConfig,
    precision: str,
) -> dict[str, float]:
    """Return the effective rank of the embeddings and, with labels, the kNN accuracy on held-out tiles."""

    def embed(rows: NDArray[np.int64]) -> torch.Tensor:
        return features.outputs(
            encoder,
            store,
            rows,
            mean=views.mean,
            std=views.std,
            batch_size=config.train.batch_size,
            precision=precision,
        )

    queries = embed(watch.queries)
    signs = {"effective_rank": probe.effective_rank(queries)}
    if len(watch.bank):
        signs["knn_balanced_accuracy"] = probe.knn_accuracy(
            embed(watch.bank),
            torch.from_numpy(tiles.labels[watch.bank]),
            queries,
            torch.from_numpy(tiles.labels[watch.queries]),
            neighbours=config.health.neighbours,
        )
    return signs


def collapse_warning(row: dict[str, Any]) -> str | None:
    """Return a plain sentence when the embeddings have collapsed, else None."""
    remedy = "raise train.batch_size, lower train.learning_rate, or strengthen augment"
    if row["negative_similarity"] > 0.95:
        return f"different tiles look alike (mean similarity {row['negative_similarity']:.3f}): collapse; {remedy}"
    if row["effective_rank"] < 3:
        return f"the embeddings use {row['effective_rank']:.1f} directions only: collapse; {remedy}"
    if row["loss_relative"] > 0.995:
        return f"the loss is {row['loss_relative']:.3f} of what random guessing gives; {remedy}"
    return None
