"""The sets that pretraining draws from: loaded, checked for overlap, mixed into batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sscl.config import PretrainConfig
from sscl.data.groups import Grouped, Groups, numbered
from sscl.data.load import describe_tiles, load_tiles
from sscl.data.mix import drawn_of_slides, draws_per_source, epoch_batches
from sscl.data.rows import Rows
from sscl.data.scale import Scale, scale_of, scale_of_all
from sscl.data.tiles import UNLABELLED, JoinedIds, Tiles
from sscl.slides.places import TileIds
from sscl.words import count


def load_sources(config: PretrainConfig) -> tuple[Tiles, NDArray[np.int64], Scale]:
    """Return the training tiles of all sources, source by source, the source of each tile, (tiles,), and their scale.

    Only the labels of the first source that has labels are kept, for the kNN accuracy, and its groups.
    """
    check_apart(config)
    loaded = [load_source(config, i) for i in range(len(config.data))]
    sizes = [len(tiles) for tiles in loaded]
    source_of = np.repeat(np.arange(len(loaded)), sizes)
    keys = [_section(config, i) for i in range(len(loaded))]
    scales = [scale_of(data, tiles, key=key) for data, tiles, key in zip(config.data, loaded, keys, strict=True)]
    scale = scale_of_all(scales, sizes)
    if any(one.span for one in scales):
        for key, one in zip(keys, scales, strict=True):
            print(f"{key}: {one} at {config.data[0].size_px} px")
    if len(loaded) == 1:
        return loaded[0], source_of, scale
    labelled = next((i for i, tiles in enumerate(loaded) if (tiles.labels >= 0).any()), 0)
    labels = [
        tiles.labels if i == labelled else np.full_like(tiles.labels, UNLABELLED) for i, tiles in enumerate(loaded)
    ]
    joined = Tiles(
        images=Rows([tiles.images for tiles in loaded]),
        labels=np.concatenate(labels),
        classes=loaded[labelled].classes,
        ids=JoinedIds([tiles.ids for tiles in loaded]),
        groups=_groups(loaded, labelled=labelled),
    )
    return joined, source_of, scale


def _groups(loaded: Sequence[Tiles], *, labelled: int) -> Groups | None:
    """Return the groups of the labelled source; the tiles of all others, whose labels are not used, have none."""
    known = loaded[labelled].groups
    if known is None:
        return None
    names, numbers = numbered(known)
    of = [np.full(len(tiles), len(names)) for tiles in loaded]
    of[labelled] = numbers
    return Grouped(np.array([*names.tolist(), ""]), np.concatenate(of).astype(np.int32))


def slide_numbers(tiles: Tiles) -> NDArray[np.int64]:
    """Return the slide of each tile of the sources, (tiles,), a number in its source; -1 where it is of none."""
    parts = tiles.ids.parts if isinstance(tiles.ids, JoinedIds) else (tiles.ids,)
    return np.concatenate(
        [part.slides if isinstance(part, TileIds) else np.full(len(part), -1, dtype=np.int64) for part in parts]
    )


def load_source(config: PretrainConfig, i: int) -> Tiles:
    """Return the training tiles of a source, or the number of them that is asked for, and print what they are."""
    data = config.data[i]
    tiles = load_tiles(data, split="train", progress=config.progress, key=_section(config, i))
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
    return f"{_section(config, i)}.{key}"


def _section(config: PretrainConfig, i: int) -> str:
    return "data" if len(config.data) == 1 else f"data.{i}"


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
    train: NDArray[np.int64],
    source_of: NDArray[np.int64],
    config: PretrainConfig,
    *,
    epoch: int,
    slide_of: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Return the rows of an epoch's batches, (steps, N).

    Args:
        slide_of: the slide of each tile, see `slide_numbers`; needed where data.tiles_per_slide draws some of each.

    Raises:
        ValueError: a source has no tiles or draws, or, with one source per batch, does not fill a batch.
    """
    if slide_of is not None:
        train = _drawn(train, source_of, slide_of, config, epoch=epoch)
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


def steps_of(
    train: NDArray[np.int64],
    source_of: NDArray[np.int64],
    config: PretrainConfig,
    *,
    slide_of: NDArray[np.int64] | None,
) -> int:
    """Return how many steps an epoch has; every one has as many.

    Raises:
        ValueError: the tiles do not fill a batch; and as `epoch_rows`.
    """
    steps = len(epoch_rows(train, source_of, config, epoch=0, slide_of=slide_of))
    if steps == 0 and slide_of is not None:
        drawn = _drawn(train, source_of, slide_of, config, epoch=0)
        raise ValueError(
            f"train.batch_size: got {config.train.batch_size}, but an epoch draws only {len(drawn):,} tiles "
            "(data.tiles_per_slide); lower train.batch_size, or draw more of each slide"
        )
    if steps == 0:
        raise ValueError(
            f"train.batch_size: got {config.train.batch_size}, but there are only {len(train)} training tiles; lower "
            "train.batch_size or add tiles"
        )
    return steps


def _drawn(
    train: NDArray[np.int64],
    source_of: NDArray[np.int64],
    slide_of: NDArray[np.int64],
    config: PretrainConfig,
    *,
    epoch: int,
) -> NDArray[np.int64]:
    """Return the training rows of an epoch, source by source: some of each slide where that is asked for."""
    found = []
    for i, source in enumerate(config.data):
        rows = train[source_of[train] == i]
        if source.tiles_per_slide is not None:
            each = source.tiles_per_slide
            rows = rows[drawn_of_slides(slide_of[rows], each=each, seed=config.seed, epoch=epoch)]
        found.append(rows)
    return np.concatenate(found)
