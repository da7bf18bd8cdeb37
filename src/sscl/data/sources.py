"""The sets that pretraining draws from: loaded, checked for overlap, mixed into batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sscl.config import PretrainConfig
from sscl.data.load import describe_tiles, load_tiles
from sscl.data.mix import draws_per_source, epoch_batches
from sscl.data.rows import Rows
from sscl.data.tiles import UNLABELLED, Tiles
from sscl.words import count


def load_sources(config: PretrainConfig) -> tuple[Tiles, NDArray[np.int64]]:
    """Return the training tiles of all sources, source by source, and the source of each tile, (tiles,).

    Only the labels of the first source that has labels are kept, for the kNN accuracy. In all others each tile is a
    group of its own, so that they do not affect how labelled tiles are held out.
    """
    check_apart(config)
    loaded = [load_source(config, i) for i in range(len(config.data))]
    source_of = np.repeat(np.arange(len(loaded)), [len(tiles) for tiles in loaded])
    if len(loaded) == 1:
        return loaded[0], source_of
    labelled = next((i for i, tiles in enumerate(loaded) if (tiles.labels >= 0).any()), 0)
    ids = [[f"{i}/{name}" for name in tiles.ids] for i, tiles in enumerate(loaded)]
    labels = [
        tiles.labels if i == labelled else np.full_like(tiles.labels, UNLABELLED) for i, tiles in enumerate(loaded)
    ]
    known = loaded[labelled].groups
    groups = None if known is None else [known if i == labelled else np.array(ids[i]) for i in range(len(loaded))]
    joined = Tiles(
        images=Rows([tiles.images for tiles in loaded]),
        labels=np.concatenate(labels),
        classes=loaded[labelled].classes,
        ids=tuple(name for part in ids for name in part),
        groups=None if groups is None else np.concatenate(groups),
    )
    return joined, source_of


def load_source(config: PretrainConfig, i: int) -> Tiles:
    """Return the training tiles of a source, or the number of them that is asked for, and print what they are."""
    data = config.data[i]
    key = source_key(config, i, "root").removesuffix(".root")
    tiles = load_tiles(data, split="train", progress=config.progress, key=key)
    print(describe_tiles(data, tiles, split="train"))
    if data.tiles is None:
        return tiles
    if data.tiles > len(tiles):
        raise ValueError(
            f"{source_key(config, i, 'tiles')}: got {data.tiles}, but {data.root} has only {len(tiles)}; "
            "lower it, or remove it to use all"
        )
    order = np.random.default_rng([data.split_seed, 2]).permutation(len(tiles))  # fewer are part of more
    print(f"  {count(data.tiles, 'tile')} of them used")
    return tiles.subset(np.sort(order[: data.tiles]))


def source_key(config: PretrainConfig, i: int, key: str) -> str:
    """Return the name of a source's key: data.root, or data.1.root if there are several sources."""
    return f"data.{key}" if len(config.data) == 1 else f"data.{i}.{key}"


def check_apart(config: PretrainConfig) -> None:
    """Raise ValueError if the folder of a source is the folder of another, or inside it."""
    roots = [Path(source.root).resolve() for source in config.data]
    for i, inner in enumerate(roots):
        for j, outer in enumerate(roots):
            if i != j and inner.is_relative_to(outer):
                if inner == outer:
                    raise ValueError(f"data.{max(i, j)}.root: {inner} is data.{min(i, j)}.root too; give each set once")
                raise ValueError(
                    f"data.{i}.root: {inner} is inside data.{j}.root ({outer}), so pretraining may see test tiles of "
                    "one through the other; give folders that do not overlap"
                )


def epoch_rows(
    train: NDArray[np.int64], source_of: NDArray[np.int64], config: PretrainConfig, *, epoch: int
) -> NDArray[np.int64]:
    """Return the rows of an epoch's batches, (steps, N).

    Raises:
        ValueError: a source has no tiles or draws, or, with one source per batch, does not fill a batch.
    """
    sizes = np.bincount(source_of[train], minlength=len(config.data)).tolist()
    weights = [source.weight for source in config.data if source.weight is not None] or None
    draws = draws_per_source(sizes, weights=weights)
    for i, (size, draw) in enumerate(zip(sizes, draws, strict=True)):
        if weights is not None and weights[i] == 0:
            continue
        if size == 0:
            raise ValueError(f"{source_key(config, i, 'root')}: no training tiles left in {config.data[i].root}")
        # A batch with more draws than the source has tiles would have some twice, as their own negatives.
        if config.train.mix == "source" and min(size, draw) < config.train.batch_size:
            raise ValueError(
                f"train.mix: source needs at least one batch per source, but source {i} ({config.data[i].root}) has "
                f"{count(size, 'tile')} and {draw} draws per epoch, and train.batch_size is {config.train.batch_size}; "
                "lower it, or set train.mix=batch"
            )
        if draw == 0:
            raise ValueError(
                f"{source_key(config, i, 'weight')}: got {config.data[i].weight}, which gives 0 of the {sum(sizes)} "
                "draws per epoch; raise it, or remove the source"
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
