"""The tiles of a data section of the configuration."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sscl.config import DataConfig, SourceConfig, plain, validate
from sscl.config.data import NOT_OF_SLIDES, detect_source
from sscl.data import cache, duplicates, folder, pathmnist, slide_files, slide_set, table
from sscl.data.ingest import each_line_once, listed_file
from sscl.data.listing import SUFFIXES
from sscl.data.mhist import load_mhist
from sscl.data.review_labels import images_alone, load_reviewed, takes_reviews
from sscl.data.split_names import SPLITS
from sscl.data.stain import normalise_tiles
from sscl.data.tiles import Tiles, as_rows
from sscl.places import missing
from sscl.words import count, readable, some, wrapped

# Keys that decide which tiles are in the test split.
SPLIT_KEYS = ("source", "protocol", "split_seed", "test_fraction", "groups_csv", "group_near_duplicates")
MOST_EMBEDDED = 500_000  # tiles of slides whose features a command keeps: 4 GiB with 2,048 numbers each
_LISTED = ("folder", "table", "slides")  # sources whose splits, classes and groups are the user's own


def load_tiles(data: DataConfig, *, split: str, progress: bool, key: str = "data") -> Tiles:
    """Return the tiles of a split: "train", "test", "all", or "validation" if the set has its own validation split.

    With `data.group_near_duplicates` their groups are the given ones joined with the clusters of near-duplicates of
    the whole set. Stain normalisation still uses the given groups.

    Raises:
        ValueError, FileNotFoundError: as the loader, beginning with the section's `key` where that is not said.
    """
    with _named(key):
        try:
            return _load_normalised(data, split=split, progress=progress)
        except (ValueError, FileNotFoundError) as error:
            said = slide_files.instead_of_tiles(data.root, error) if data.source in ("auto", "folder") else None
            if said is None:
                raise
            raise ValueError(said) from error


@contextlib.contextmanager
def _named(section: str) -> Iterator[None]:
    """Put the key in front of a loader's errors: root, unless they begin with groups_csv or a key of the section."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if str(error).startswith(f"{section}."):
            raise
        named = str(error).startswith(("groups_csv: ", "slides_root: ", "annotations: ", "reviews: "))
        key = section if named else f"{section}.root:"
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{key}.{error}" if key == section else f"{key} {error}") from error


def _load_normalised(data: DataConfig, *, split: str, progress: bool) -> Tiles:
    joined, given_of = None, None
    if data.group_near_duplicates:
        joined, given_of = _near_duplicate_groups(data, split=split, progress=progress)
    tiles = _load(data, split=split, progress=progress, group_of=joined)
    if data.stain != "none":
        if data.source == "slides" and tiles.images.nbytes > slide_set.MOST_KEPT:
            raise ValueError(
                f"{data.root}: data.stain keeps all normalised tiles in the cache, and these take "
                f"{readable(tiles.images.nbytes)}, over {readable(slide_set.MOST_KEPT)}; leave it out, or index fewer"
            )
        given = tiles
        if joined is not None:
            groups = None if given_of is None else np.array([given_of[name] for name in tiles.ids])
            given = replace(tiles, groups=groups)
        normal = normalise_tiles(given, method=data.stain, cache_dir=data.cache_dir, progress=progress)
        tiles = replace(tiles, images=normal.images)
    return tiles


def _near_duplicate_groups(
    data: DataConfig, *, split: str, progress: bool
) -> tuple[dict[str, str], dict[str, str] | None]:
    """Return the groups of a set's tiles by id, joined with clusters of near-duplicates, and as given (None: not).

    The clusters are kept in the cache. They do not depend on tile size, stain normalisation or split: the whole set is
    searched, at one size. A set whose splits are parts of one file is searched part by part.
    """
    whole: dict[str, object] = {"size_px": duplicates.SIZE_PX, "stain": "none"}
    if data.source in ("mhist", "synthetic"):
        whole["protocol"] = "official"  # all tiles, not those that a seed has drawn
    part = split if data.source == "pathmnist" else "all"
    alone = takes_reviews(data) and images_alone(data)
    tiles = _load_given(data.model_copy(update=whole), split=part, progress=progress, whole=alone)
    digest = hashlib.sha256(as_rows(tiles.images).digests().tobytes())  # no pixel is read

    def search() -> NDArray[np.float32]:
        if len(tiles) > duplicates.STRETCHED_TILES:
            most = f"{data.root}: {len(tiles):,} tiles, more than {duplicates.STRETCHED_TILES:,}"
            print(f"{most}: near-duplicates stretched by about 2 are not searched")
        pairs = duplicates.find_pairs(tiles.images, progress=progress)
        found = duplicates.clusters_of(len(tiles), [(pair.first, pair.second) for pair in pairs])
        return found.astype(np.float32)[:, None]

    key = ("near-duplicates", duplicates.VERSION, digest.hexdigest())
    numbers = cache.cached_outputs(search, key=key, rows=len(tiles), cache_dir=data.cache_dir)
    joined = duplicates.join_groups(numbers[:, 0].astype(np.int64), tiles.groups, ids=tiles.ids)
    given = None if tiles.groups is None else dict(zip(tiles.ids, tiles.groups.tolist(), strict=True))
    return dict(zip(tiles.ids, joined.tolist(), strict=True)), given


def _load(
    data: DataConfig,
    *,
    split: str,
    progress: bool,
    group_of: dict[str, str] | None = None,
    looked_for: bool = True,
) -> Tiles:
    if not takes_reviews(data):
        tiles = _load_given(data, split=split, progress=progress, group_of=group_of, looked_for=looked_for)
        if data.reviews and tiles.account is not None:
            unused = "reviews are not used (data.labels=true would)"
            tiles = replace(tiles, account=replace(tiles.account, notes=(*tiles.account.notes, unused)))
        return tiles
    keep = "slides" if data.keep == "auto" else data.keep  # few tiles of many
    given = data.model_copy(update={"reviews": (), "tiles_per_slide": None, "keep": keep})
    alone = images_alone(data)
    load = partial(_load_given, given, progress=progress, group_of=group_of, whole=alone, looked_for=looked_for)
    return load_reviewed(data, lambda part: load(split=part), split=split, own=bool(own_splits(data)))


def _load_given(
    data: DataConfig,
    *,
    split: str,
    progress: bool,
    group_of: dict[str, str] | None = None,
    whole: bool = False,
    looked_for: bool = True,
) -> Tiles:
    if data.source == "pathmnist":
        tiles = pathmnist.load_pathmnist(
            data.root, split=split, size_px=data.size_px, cache_dir=data.cache_dir, progress=progress
        )
        return tiles if group_of is None else replace(tiles, groups=np.array([group_of[name] for name in tiles.ids]))
    if data.source in ("mhist", "synthetic"):
        return load_mhist(
            data.root,
            protocol=data.protocol,
            split=split,
            seed=data.split_seed,
            size_px=data.size_px,
            published=data.published and data.source == "mhist",
            fit=data.fit,
            group_of=group_of,
            cache_dir=data.cache_dir,
            progress=progress,
        )
    if data.source == "auto":
        raise _unknown(data.root)
    if data.source == "table":
        return table.load_table(
            data.root,
            split=split,
            whole=listed_whole(data),
            group_of=group_of,
            test_fraction=data.test_fraction,
            seed=data.split_seed,
            size_px=data.size_px,
            fit=data.fit,
            cache_dir=data.cache_dir,
            progress=progress,
        )
    if data.source == "slides":
        return slide_set.load_slides(
            data.root,
            split=split,
            whole=listed_whole(data),
            size_px=data.size_px if looked_for else None,
            slides_root=data.slides_root,
            annotations=data.annotations,
            label_coverage=data.label_coverage,
            keep=data.keep if data.stain == "none" and looked_for else "slides",  # the normalised ones are kept
            looked_for=looked_for,
            replace_damaged=isinstance(data, SourceConfig),
            each=None if isinstance(data, SourceConfig) else data.tiles_per_slide,
            test_fraction=data.test_fraction,
            seed=data.split_seed,
            cache_dir=data.cache_dir,
            progress=progress,
        )
    return folder.load_folder(
        data.root,
        split=split,
        whole=whole or listed_whole(data),
        groups_csv=data.groups_csv,
        group_of=group_of,
        test_fraction=data.test_fraction,
        seed=data.split_seed,
        size_px=data.size_px,
        fit=data.fit,
        cache_dir=data.cache_dir,
        progress=progress,
    )


def _unknown(root: str) -> Exception:
    if not Path(root).exists():
        return FileNotFoundError(missing(root, "folder or file"))
    if os.path.splitext(root)[1].lower() in SUFFIXES:
        return ValueError(f"{root}: is one image; give the folder that it is in")
    return ValueError(f"{root}: is no folder, no table (.csv, .tsv) and no .npz file; unpack it, or give data.source")


def training_slides(data: DataConfig) -> dict[str, str]:
    """Return the names of the slides that training took of an index, by their quickhash; no slide is opened.

    Raises:
        ValueError, FileNotFoundError: as `load_tiles`.
    """
    return slide_set.quickhashes(_load(data, split="train", progress=False, looked_for=False))


def check_embeddable(data: DataConfig, tiles: Tiles, *, key: str) -> None:
    """Raise ValueError where slides have more tiles than features are kept of."""
    if data.source == "slides" and len(tiles) > MOST_EMBEDDED:
        raise ValueError(
            f"{key}.root: {data.root}: {len(tiles):,} tiles, and the features of at most {MOST_EMBEDDED:,} are kept in "
            f"memory; take some of each slide ({key}.tiles_per_slide=200)"
        )


def load_splits(data: DataConfig, *, progress: bool) -> dict[str, Tiles]:
    """Return the splits by name: train, validation if the set has its own, and test.

    A folder without classes has one split, all; one that is split may lack train/ or test/.
    """
    with each_line_once():
        given = own_splits(data)
        if given:
            return {name: load_tiles(data, split=name, progress=progress) for name in given}
        train = load_tiles(data, split="train", progress=progress)
        if not train.classes:
            return {"all": train}
        names = ("validation", "test") if has_validation(data) else ("test",)
        return {"train": train} | {name: load_tiles(data, split=name, progress=progress) for name in names}


def own_splits(data: DataConfig) -> tuple[str, ...]:
    """Return the splits that a folder, table or index has of its own, in order; none for other sources."""
    of = {"folder": folder.own_splits, "table": table.own_splits, "slides": slide_set.own_splits}.get(data.source)
    return tuple(name for name in SPLITS if of is not None and name in of(data.root))


def tile_file(data: DataConfig, name: str) -> Path | None:
    """Return the file of a tile by its id; None where tiles are not files of their own."""
    if data.source in ("pathmnist", "slides"):
        return None
    root = Path(data.root)
    if data.source == "table":
        return Path(listed_file(str(root.parent), name))
    return root / (name if data.source == "folder" else f"images/{name}")


def listed_whole(data: DataConfig) -> bool:
    """Return whether all images are taken as they lie, without classes: in pretraining without data.labels."""
    return isinstance(data, SourceConfig) and data.source in _LISTED and not data.labels


def saw_all(data: DataConfig) -> bool:
    """Return whether a set was used whole for pretraining, as it has no test split of its own."""
    return listed_whole(data) and not own_splits(data)


def slides_known(data: DataConfig) -> bool:
    """Return whether the slide or patient of each tile is known."""
    if data.source == "folder":
        return data.groups_csv is not None or folder.knows_groups(data.root)
    if data.source == "table":
        return table.has_groups(data.root)
    if data.source == "pathmnist":
        return pathmnist.read_contents(data.root).groups is not None
    if data.source == "slides":
        return True
    return (Path(data.root) / "slides.csv").is_file()


def groups_are(data: DataConfig) -> str:
    """Return what the groups of the set's tiles are, in words."""
    if not data.group_near_duplicates:
        return "slides or patients"
    return "slides or patients, joined by near-duplicates" if slides_known(data) else "clusters of near-duplicates"


def has_validation(data: DataConfig) -> bool:
    """Return whether the set has its own validation split, so that none is taken from train."""
    if data.source == "pathmnist":
        return pathmnist.has_validation(data.root)
    return {"train", "validation"} <= set(own_splits(data))


def has_test(data: DataConfig) -> bool:
    """Return whether the set has a test split, its own or one that sscl makes."""
    own = own_splits(data)
    return not own or "test" in own


def split_is_made_here(data: DataConfig) -> bool:
    """Return whether sscl divides the set into train and test, not the data set itself."""
    if data.source in _LISTED:
        return not own_splits(data)
    return data.source in ("mhist", "synthetic") and data.protocol == "paper_balanced"


def describe_tiles(data: DataConfig, tiles: Tiles, *, split: str, account: bool = True, indent: int = 0) -> str:
    """Return lines: source, protocol, split, count, classes; near-duplicates; an account of all that the set has.

    Args:
        account: False where the account was printed for another split of the set.
        indent: by how much the caller indents them, for the account to end at 80 columns.
    """
    protocol = f", protocol {data.protocol}" if data.source == "mhist" else ""
    stain = "" if data.stain == "none" else f", {data.stain} stain normalisation"
    counts = some([f"{number:,} {name}" for name, number in tiles.class_counts().items()])
    of = f" ({counts})" if counts else ""
    together = ""
    if data.group_near_duplicates and tiles.groups is not None:
        _, sizes = np.unique(tiles.groups, return_counts=True)
        clusters = f"{count((sizes > 1).sum(), 'cluster')} (or given groups) of 2 to {sizes.max()} tiles, "
        singles = count((sizes == 1).sum(), "single tile")
        clusters = clusters if (sizes > 1).any() else ""
        kept = wrapped(f"near-duplicates stay together: {clusters}{singles}", indent=2, width=80 - indent)
        together = f"\n{kept}"
    line = f"{data.root} ({data.source}{protocol}{stain}), split {split}: {count(len(tiles), 'tile')}{of}{together}"
    return line if tiles.account is None or not account else f"{line}\n{tiles.account.line(split, width=80 - indent)}"


def accounts(parts: Mapping[str, Tiles]) -> list[str]:
    """Return the line that accounts for all that a set has, of some of its splits by name; none if it is not known."""
    account = next(iter(parts.values())).account
    return [] if account is None else [account.line(*parts)]


def merge_data(trained: DataConfig, changes: Mapping[str, object]) -> DataConfig:
    """Return the data section a checkpoint was trained with, with some keys changed.

    Another root is looked at again, unless its source is given too.
    """
    again = {"source": "auto"} if "root" in changes and "source" not in changes else {}
    theirs: dict[str, object] = {"mpp": None}  # an index of slides says its own
    if again:
        slides = detect_source(str(changes["root"])) == "slides"
        theirs |= dict.fromkeys(NOT_OF_SLIDES if slides else ("tiles_per_slide", "slides_root"))
        theirs |= {"group_near_duplicates": False} if slides else {}
    theirs |= {"annotations": None} if changes.get("reviews") else {}  # classes come from one of the two
    theirs |= {"reviews": []} if changes.get("annotations") else {}
    keys = {**plain(trained), **again, **theirs, **changes}
    try:
        merged = validate(DataConfig, keys, source="the checkpoint's data with your data.* keys")
    except ValueError as error:
        raise ValueError("\n".join(f"data.{line}" for line in str(error).splitlines())) from None
    if trained.mpp is not None and merged.mpp is None and "mpp" not in changes:  # at the side of before
        merged = merged.model_copy(update={"mpp": trained.mpp * trained.size_px / merged.size_px})
    # Nothing is there, or synthetic tiles that the run took for MHIST's.
    if again and (merged.source == "auto" or (merged.source, trained.source) == ("synthetic", "mhist")):
        return merged.model_copy(update={"source": trained.source})
    return merged


def split_changes(data: DataConfig, trained: DataConfig) -> list[str]:
    """Return the keys, as data.KEY, in which the test split differs from that of the data that was trained on."""
    deciding = ("source",) if data.source == "pathmnist" else SPLIT_KEYS  # an .npz file holds its splits

    def value(of: DataConfig, key: str) -> object:
        found = getattr(of, key)
        return "mhist" if key == "source" and found == "synthetic" else found  # one layout, with the same splits

    return [f"data.{key}" for key in deciding if value(data, key) != value(trained, key)]


def all_rows(tiles: Tiles) -> NDArray[np.int64]:
    """Return 0 .. N-1."""
    return np.arange(len(tiles), dtype=np.int64)
