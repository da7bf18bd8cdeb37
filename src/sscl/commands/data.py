"""sscl data synth and sscl data inspect."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sscl import augment, run
from sscl.augment import Augmentation
from sscl.config import DataConfig, InspectConfig, SynthConfig, plain
from sscl.data.load import load_splits
from sscl.data.pathmnist import own_size_px
from sscl.data.synthetic import write_synthetic
from sscl.data.tiles import Tiles
from sscl.plots import charts, sheets
from sscl.run import check_inputs_outside

VIEWED = 6  # tiles shown with their two views


def synth(config: SynthConfig) -> None:
    """Write procedural polyp tiles in the MHIST layout.

    Raises:
        ValueError: input that a user can mend, in one line.
    """
    write_synthetic(
        config.root,
        count=config.count,
        size_px=config.size_px,
        seed=config.seed,
        ssa_fraction=config.ssa_fraction,
        test_fraction=config.test_fraction,
        progress=config.progress,
    )
    print(f"wrote {config.count} synthetic tiles: {config.root}/images, annotations.csv, masks, slides.csv")


def inspect(config: InspectConfig, *, overwrite: bool = False) -> None:
    """Count the tiles of every split, and draw a contact sheet, the class distribution and two views.

    Raises:
        ValueError, FileNotFoundError: input that a user can mend, in one line.
    """
    out = run.check_run_folder(config.out, overwrite=overwrite)
    check_inputs_outside(out, {"data.root": config.data.root})
    splits = load_splits(config.data, progress=config.progress)
    for name, tiles in splits.items():
        print(describe(name, tiles))
    print(describe_files(config.data, splits))
    first = next(iter(splits.values()))
    rows = spread(first, count=config.tiles, seed=config.seed)
    shown = first.subset(rows)

    run.start_folder(out, config=plain(config), overwrite=overwrite)
    captions = [f"{name}\n{label(shown, i)}" for i, name in enumerate(shown.ids)]
    sheets.contact_sheet(np.asarray(shown.images), captions=captions, path=out / "contact_sheet.png")
    counts = {name: tiles.class_counts() for name, tiles in splits.items()}
    charts.plot_class_distribution(
        counts, path=out / "distribution.png", title=f"Class distribution of {Path(config.data.root).name}"
    )
    draw_views(first, rows[:VIEWED], config=config, path=out / "two_views.png")
    print(f"wrote {out}/contact_sheet.png, distribution.png, two_views.png")


def describe(name: str, tiles: Tiles) -> str:
    """Return the counts of a split: tiles, classes, size, groups, votes."""
    side = tiles.images.shape[1]
    lines = [f"{name}: {len(tiles)} tiles of {side}x{side} px"]
    width = max((len(c) for c in tiles.class_counts()), default=0)
    for class_name, count in tiles.class_counts().items():
        lines.append(f"  {class_name:<{width}}  {count:>7}  {100 * count / max(1, len(tiles)):5.1f}%")
    if tiles.groups is None:
        lines.append("  groups: no slide or patient ids, so a split may leak between tiles of one slide")
    else:
        sizes = Counter(tiles.groups.tolist()).values()
        lines.append(f"  groups: {len(sizes)}, of {min(sizes)} to {max(sizes)} tiles")
    if tiles.votes is not None:
        agreeing = Counter(np.maximum(tiles.votes, 7 - tiles.votes).tolist())
        lines.append("  annotators agreeing: " + ", ".join(f"{n}/7: {agreeing[n]}" for n in (7, 6, 5, 4)))
    return "\n".join(lines)


def describe_files(data: DataConfig, splits: dict[str, Tiles]) -> str:
    """Return the sizes of the image files, before they are brought to data.size_px, most frequent first."""
    if data.source == "pathmnist":
        side = own_size_px(data.root)
        return f"tiles in the file, in pixels: {side}x{side}"
    folder = Path(data.root) if data.source == "folder" else Path(data.root) / "images"
    sizes: Counter[tuple[int, int]] = Counter()
    for tiles in splits.values():
        for name in tiles.ids:
            with Image.open(folder / name) as image:  # reads the header only
                sizes[image.size] += 1
    shown = ", ".join(f"{count} of {width}x{height}" for (width, height), count in sizes.most_common(5))
    more = f" and {len(sizes) - 5} more sizes" if len(sizes) > 5 else ""
    return f"image files, in pixels: {shown}{more}"


def label(tiles: Tiles, row: int) -> str:
    """Return a tile's class, with its votes where there are any."""
    if tiles.labels[row] < 0:
        return "no label"
    votes = "" if tiles.votes is None else f", {tiles.votes[row]} of 7 SSA"
    return f"{tiles.classes[tiles.labels[row]]}{votes}"


def spread(tiles: Tiles, *, count: int, seed: int) -> NDArray[np.int64]:
    """Return up to `count` rows, the classes taking turns, drawn by the seed."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(tiles))
    turn = np.empty(len(tiles), dtype=np.int64)
    for value in np.unique(tiles.labels):
        of_class = order[tiles.labels[order] == value]
        turn[of_class] = np.arange(len(of_class))
    chosen = order[np.argsort(turn[order], kind="stable")][:count]
    return chosen.astype(np.int64)


def draw_views(tiles: Tiles, rows: NDArray[np.int64], *, config: InspectConfig, path: Path) -> None:
    """Draw tiles beside the two views that pretraining would make of them in its first epoch."""
    images = torch.from_numpy(np.array(tiles.images[rows]))
    augmentation = Augmentation(**config.augment.model_dump())
    zero, one = torch.zeros(3), torch.ones(3)
    pair = [
        augment.view(
            images,
            torch.from_numpy(rows),
            augmentation=augmentation,
            seed=config.seed,
            epoch=0,
            view=which,
            mean=zero,
            std=one,
        )
        for which in (0, 1)
    ]
    first, second = ((x.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy() for x in pair)
    sheets.plot_views(images.numpy(), first, second, ids=[tiles.ids[row] for row in rows], path=path)
