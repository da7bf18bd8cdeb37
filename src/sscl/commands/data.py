"""sscl data synth: write a synthetic set. sscl data inspect: show what a data set contains."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sscl import augment, run
from sscl.config import DataConfig, InspectConfig, SynthConfig
from sscl.data.images import size_of
from sscl.data.load import accounts, load_splits, tile_file
from sscl.data.mhist import ANNOTATORS, CLASSES, MAJORITY
from sscl.data.pathmnist import read_contents
from sscl.data.scale import scale_of
from sscl.data.synthetic import SAID, is_synthetic, write_synthetic
from sscl.data.tiles import Tiles
from sscl.draws import Augmentation
from sscl.evaluate.lineage import NO_SLIDE_IDS
from sscl.evaluate.metrics import largest_classes
from sscl.plots import charts, sheets
from sscl.words import count, left, next_command, short_names, width_of

VIEWED = 6  # tiles shown beside their two views


def synth(config: SynthConfig) -> None:
    """Write synthetic polyp tiles in the layout of MHIST."""
    write_synthetic(
        config.root,
        count=config.count,
        size_px=config.size_px,
        seed=config.seed,
        ssa_fraction=config.ssa_fraction,
        test_fraction=config.test_fraction,
        progress=config.progress,
    )
    print(f"wrote {count(config.count, 'synthetic tile')} to {config.root}: images, annotations.csv, masks, slides.csv")
    print(next_command("data inspect", config.root, f"out={config.root}-look"))


def inspect(config: InspectConfig, *, overwrite: bool = False) -> None:
    """Count the tiles of every split; draw a contact sheet, the class distribution, and two views of some tiles."""
    out = Path(config.out)
    with run.whole_folder(out, config, overwrite=overwrite, inputs=config.data.files("data")) as folder:
        splits = load_splits(config.data, progress=config.progress)
        for name, tiles in splits.items():
            print(describe(name, tiles))
        for line in accounts(splits):
            print(line)
        print(describe_files(config.data, splits))
        for name, tiles in splits.items():
            print(f"{name}: {scale_of(config.data, tiles)} at {config.data.size_px} px")
        first = next(iter(splits.values()))
        rows = spread(first, limit=config.tiles, seed=config.seed)
        shown = first.subset(rows)

        note = SAID if is_synthetic(config.data.source, first.ids) else ""
        captions = [f"{name}\n{label(shown, i)}" for i, name in enumerate(shown.ids)]
        sheets.contact_sheet(np.asarray(shown.images), captions=captions, path=folder / "contact_sheet.png", note=note)
        counts = {name: tiles.class_counts() for name, tiles in splits.items()}
        charts.plot_class_distribution(
            counts, path=folder / "distribution.png", title=f"Class distribution of {Path(config.data.root).name}"
        )
        draw_views(first, rows[:VIEWED], config=config, path=folder / "two_views.png", note=note)
    print(f"wrote {out}/contact_sheet.png, distribution.png, two_views.png")
    if len(splits) > 1 and config.data.source != "slides":
        print(next_command("data audit", config.data.root, f"out={out}-audit"))
    else:
        print(next_command("pretrain", config.data.root, "run=runs/pretrain"))


def describe(name: str, tiles: Tiles) -> str:
    """Return the counts of a split: tiles, classes, size, groups, votes."""
    side = tiles.images.shape[1]
    lines = [f"{name}: {count(len(tiles), 'tile')} of {side}x{side} px"]
    counts = largest_classes({name: tiles.class_counts()})[name]
    shown = short_names(list(counts), 40)
    width = max(map(width_of, shown), default=0)
    for class_name, number in zip(shown, counts.values(), strict=True):
        lines.append(f"  {left(class_name, width)}  {number:>7}  {100 * number / max(1, len(tiles)):5.1f}%")
    if tiles.groups is None:
        lines.append(f"  {NO_SLIDE_IDS}")
    else:
        sizes = Counter(tiles.groups.tolist()).values()
        low, high = min(sizes), max(sizes)
        lines.append(f"  groups: {len(sizes)}, each {count(low, 'tile') if low == high else f'{low} to {high} tiles'}")
    if tiles.votes is not None:
        agreeing = Counter(np.maximum(tiles.votes, ANNOTATORS - tiles.votes).tolist())
        votes = (f"{n}/{ANNOTATORS}: {agreeing[n]}" for n in range(ANNOTATORS, MAJORITY - 1, -1))
        lines.append(f"  annotators who agree: {', '.join(votes)}")
    return "\n".join(lines)


def describe_files(data: DataConfig, splits: dict[str, Tiles]) -> str:
    """Return the sizes of the image files, before they are resized to data.size_px, most frequent first."""
    if data.source == "pathmnist":
        side = read_contents(data.root).side
        return f"size of the tiles in the file: {side}x{side} px"
    if data.source == "slides":
        return f"tiles are read from slides, {data.size_px} px of {data.mpp:g} µm"
    sizes: Counter[tuple[int, int]] = Counter()
    for tiles in splits.values():
        for name in tiles.ids:
            file = tile_file(data, name)
            assert file is not None
            sizes[size_of(file)] += 1
    shown = ", ".join(f"{number} of {width}x{height} px" for (width, height), number in sizes.most_common(5))
    more = f" and {count(len(sizes) - 5, 'more size')}" if len(sizes) > 5 else ""
    return f"image files: {shown}{more}"


def label(tiles: Tiles, row: int) -> str:
    """Return a tile's class, with its votes if they are known."""
    if tiles.labels[row] < 0:
        return "no label"
    votes = "" if tiles.votes is None else f", {tiles.votes[row]} of {ANNOTATORS} {CLASSES[1]}"
    return f"{tiles.classes[tiles.labels[row]]}{votes}"


def spread(tiles: Tiles, *, limit: int, seed: int) -> NDArray[np.int64]:
    """Return up to `limit` rows in random order, the classes taking turns."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(tiles))
    turn = np.empty(len(tiles), dtype=np.int64)
    for value in np.unique(tiles.labels):
        of_class = order[tiles.labels[order] == value]
        turn[of_class] = np.arange(len(of_class))
    chosen = order[np.argsort(turn[order], kind="stable")][:limit]
    return chosen.astype(np.int64)


def draw_views(tiles: Tiles, rows: NDArray[np.int64], *, config: InspectConfig, path: Path, note: str) -> None:
    """Draw tiles beside the two views that pretraining makes of them in its first epoch."""
    images = torch.from_numpy(np.array(tiles.images[rows]))
    augmentation = Augmentation(**config.augment.model_dump())
    views = augment.view(
        images,
        torch.from_numpy(rows),
        augmentation=augmentation,
        seed=config.seed,
        epoch=0,
        view=0,
        mean=torch.zeros(3),
        std=torch.ones(3),
        count=2,
    )
    first, second = (views.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy().reshape(2, *images.shape)
    sheets.plot_views(images.numpy(), first, second, ids=[tiles.ids[row] for row in rows], path=path, note=note)
