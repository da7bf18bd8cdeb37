"""The sets that pretraining draws from: loaded, kept apart from test tiles, made into batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sscl.config import PretrainConfig
from sscl.data.load import describe_tiles, load_tiles
from sscl.data.mix import draws_per_source, epoch_batches
from sscl.data.rows import Rows
from sscl.data.tiles import UNLABELLED, Tiles


def load_sources(config: PretrainConfig) -> tuple[Tiles, NDArray[np.int64]]:
    """Return the training tiles of all sources, one source after the other, and the source of each tile, (tiles,).

    The labels of the first source that has some are kept, for the kNN accuracy alone. All others are dropped, and each
    of their tiles is a group of its own, so that they change nothing about how labelled tiles are held out.
    """
    check_apart(config)
    loaded = [load_source(config, i) for i in range(len(config.data))]
    source_of = np.repeat(np.arange(len(loaded)), [len(tiles) for tiles in loaded])
    if len(loaded) == 1:
        return loaded[0], source_of
    watched = next((i for i, tiles in enumerate(loaded) if (tiles.labels >= 0).any()), 0)
    ids = [[f"{i}/{name}" for name in tiles.ids] for i, tiles in enumerate(loaded)]
    labels = [
        tiles.labels if i == watched else np.full_like(tiles.labels, UNLABELLED) for i, tiles in enumerate(loaded)
    ]
    known = loaded[watched].groups
    groups = None if known is None else [known if i == watched else np.array(ids[i]) for i in range(len(loaded))]
    joined = Tiles(
        images=Rows([tiles.images for tiles in loaded]),
        labels=np.concatenate(labels),
        classes=loaded[watched].classes,
        ids=tuple(name for part in ids for name in part),
        groups=None if groups is None else np.concatenate(groups),
    )
    return joined, source_of


def load_source(config: PretrainConfig, i: int) -> Tiles:
    """Return the training tiles of a source, or as many of them as are asked for, and print what they are."""
    data = config.data[i]
    try:
        tiles = load_tiles(data, split="train", progress=config.log.progress)
    except (FileNotFoundError, ValueError) as error:
        if len(config.data) == 1:
            raise
        raise ValueError(f"{source_key(config, i, 'root')}: {error}") from error
    print(describe_tiles(data, tiles, split="train"))
    if data.tiles is None:
        return tiles
    if data.tiles > len(tiles):
        raise ValueError(
            f"{source_key(config, i, 'tiles')}: got {data.tiles}, but {data.root} has only {len(tiles)}; "
            "lower it, or leave it out to use all"
        )
    order = np.random.default_rng([data.split_seed, 2]).permutation(len(tiles))  # fewer are part of more
    print(f"  of which {data.tiles} are used")
    return tiles.subset(np.sort(order[: data.tiles]))


def source_key(config: PretrainConfig, i: int, key: str) -> str:
    """Return what a key of a source is called: data.root, or data.1.root where there are several."""
    return f"data.{key}" if len(config.data) == 1 else f"data.{i}.{key}"


def check_apart(config: PretrainConfig) -> None:
    """Raise ValueError if a source may hold tiles of another, its test tiles perhaps."""
    roots = [Path(source.root).resolve() for source in config.data]
    for i, inner in enumerate(roots):
        for j, outer in enumerate(roots):
            if i != j and inner.is_relative_to(outer):
                if inner == outer:
                    raise ValueError(f"data.{max(i, j)}.root: {inner} is data.{min(i, j)}.root too; name each set once")
                raise ValueError(
                    f"data.{i}.root: {inner} lies in data.{j}.root ({outer}), so the one holds tiles of the other, "
                    "maybe its test tiles, which pretraining may not see; name folders that are apart"
                )


def epoch_rows(
    train: NDArray[np.int64], source_of: NDArray[np.int64], config: PretrainConfig, *, epoch: int
) -> NDArray[np.int64]:
    """Return the rows of an epoch's batches, (steps, N).

    Raises:
        ValueError: a source that is left without tiles or draws, or, with one source a batch, that fills no batch.
    """
    sizes = np.bincount(source_of[train], minlength=len(config.data)).tolist()
    weights = [source.weight for source in config.data if source.weight is not None] or None
    draws = draws_per_source(sizes, weights=weights)
    for i, (size, draw) in enumerate(zip(sizes, draws, strict=True)):
        if weights is not None and weights[i] == 0:
            continue
        if size == 0:
            raise ValueError(f"{source_key(config, i, 'root')}: no tiles to train on are left of {config.data[i].root}")
        # A batch with more draws than the source has tiles would hold some twice, as their own negatives.
        if config.train.mix == "source" and min(size, draw) < config.train.batch_size:
            raise ValueError(
                f"train.mix: one source a batch needs batches of it, but source {i} ({config.data[i].root}) has {size} "
                f"tiles, {draw} draws an epoch and train.batch_size is {config.train.batch_size}; lower that, or "
                "mix=batch"
            )
        if draw == 0:
            raise ValueError(
                f"{source_key(config, i, 'weight')}: got {config.data[i].weight}, which is none of the {sum(sizes)} "
                "draws of an epoch; raise it, or leave the source out"
            )
    rows = epoch_batches(
        sizes,
        weights=weights,
        mix=config.train.mix,
        batch_size=config.train.batch_size,
        seed=config.seed,
        epoch=epoch,
    )
    return train[rows]
