"""The tiles of an index of slides: where they are, what is known of each, and where its pixels come from.

N tiles of S slides. A tile has the class of the annotated area that it lies in, or without annotations the label of its
slide, which is a weak label: much of a slide with a lesion is none.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sscl.data.annotated import Drawn, drawn_labels
from sscl.data.cache import cached_tiles, tiles_file
from sscl.data.groups import Grouped
from sscl.data.ingest import classes_of, group_ids
from sscl.data.listing import Account
from sscl.data.mix import drawn_of_slides
from sscl.data.rows import Rows
from sscl.data.split import take_split
from sscl.data.split_names import SPLITS, check_split
from sscl.data.threads import blocks
from sscl.data.tiles import Tiles
from sscl.places import missing, printable
from sscl.slides.index import MADE_BY, Index, IndexedSlide, read_index
from sscl.slides.libraries import openslide
from sscl.slides.open import open_slide
from sscl.slides.places import Places, TileIds
from sscl.slides.records import Slide, SlideError
from sscl.slides.stream import SlidePixels
from sscl.words import count, readable, short

Keep = Literal["auto", "slides", "cache"]

# Part of the key of cached tiles: raise it when other pixels are read from the same index.
_VERSION = 1
MOST_KEPT = 8 * 2**30  # bytes that keep=auto decodes into the cache
_DECODED_AT_ONCE = 256
WEAK = "weak labels, those of the slides"


def load_slides(
    root: Path | str,
    *,
    split: str,
    whole: bool = False,
    size_px: int | None = None,
    slides_root: Path | str | None = None,
    annotations: Path | str | None = None,
    label_coverage: float = 0.5,
    keep: Keep = "auto",
    replace_damaged: bool = False,
    looked_for: bool = True,
    each: int | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    cache_dir: Path | str | None = None,
    progress: bool = False,
) -> Tiles:
    """Return the tiles of an index that `sscl slides tile` wrote; an id is NAME/x_y, a group a patient or slide.

    Without splits in its slides.csv sscl splits the labelled tiles by patient, or by slide where none is known; tiles
    of slides without a label are for training.

    Args:
        root: the folder of the index.
        split: "train", "validation", "test" or "all".
        whole: for pretraining: take no labels, and all slides where the index has no splits.
        size_px: side that is wanted; None: that of the index.
        slides_root: the folder below which the slides are now, by their names; None: where they were.
        annotations, label_coverage: take the tiles that lie in areas of a class, see `drawn_labels`, not the slides'
            labels; None: those of the slides. Not looked at for pretraining.
        keep: where pixels come from: the slides, or the cache, into which all are decoded first; the same pixels.
        replace_damaged: take a slide's next tile for a damaged one, else a damaged tile is an error when it is read.
        looked_for: False where no pixel will be read, so that the slides need not be there.
        each: tiles of each slide that are taken, drawn by `seed`; None: all.
        test_fraction, seed: of the split made here.
        cache_dir: see `cache.cache_folder`.

    Raises:
        FileNotFoundError: the index, a slide, or the wanted split is missing.
        ValueError: the index is none or of other tiles; a slide has changed; one line.
    """
    index = _index_of(root, size_px=size_px)
    order, part_of = _parts(index)
    slides = [index.slides[i] for i in order]
    groups = _groups(slides, root=root)
    areas = None if whole or annotations is None else Path(annotations)
    given = [None if whole or areas else indexed.label for indexed in slides]
    classes, labels = classes_of(given, where=f"{root}: column 'label'")
    parts = _tiles_of_parts([indexed.tiles for indexed in slides], part_of)
    if areas is None:
        _check(parts, split, labels, groups, classes=classes, root=root)
    found = _found(slides, slides_root, root=root) if looked_for else [indexed.slide for indexed in slides]
    scaled = [(slide, indexed.scaling) for slide, indexed in zip(found, slides, strict=True)]
    places = Places.of(
        [slide.name for slide in found],
        [indexed.tiles for indexed in slides],
        (index.grid(i) for i in order),
        quickhashes=[slide.quickhash for slide in found],
    )
    drawn = None if areas is None else drawn_labels(areas, scaled, places, label_coverage=label_coverage)
    if drawn is not None:
        classes, parts = drawn.classes, _tiles_of_parts(drawn.tiles, part_of)
        of_class, of_slide = drawn.pairs
        _check(parts, split, of_class, [groups[slide] for slide in of_slide], classes=classes, root=root)
    streamed = SlidePixels(scaled, places, replace=replace_damaged)
    images, kept = _placed(streamed, index, keep=keep, cache_dir=cache_dir, progress=progress)
    notes = _notes(index, slides, labelled=bool(classes), whole=whole, drawn=drawn)
    if whole and annotations is not None:
        notes.append("annotations are not used (data.labels=true would)")
    names, numbers = np.unique(groups, return_inverse=True)
    tiles = Tiles(
        images=images,
        labels=places.of_slides(np.array(labels)) if drawn is None else drawn.labels,
        classes=classes,
        ids=TileIds(places, np.arange(len(places))),
        groups=Grouped(names, places.of_slides(numbers.astype(np.int32))),
        account=Account(what="tile", parts=parts, notes=(*notes, kept)),
    )
    if drawn is not None:
        tiles = tiles.subset(drawn.rows)
    taken = take_split(tiles, parts, split, test_fraction=test_fraction, seed=seed)
    return taken if each is None else some_of_each(taken, each, seed=seed)


def _index_of(root: Path | str, *, size_px: int | None) -> Index:
    """Return the index, whose tiles have this side where one is given."""
    index = read_index(Path(root))
    if size_px is not None and size_px != index.size_px:
        raise ValueError(
            f"{root}: has tiles of {index.size_px} px, {size_px} are wanted here; index the slides again into another "
            f"folder ({MADE_BY} SLIDES out=FOLDER size_px={size_px})"
        )
    return index


def some_of_each(tiles: Tiles, each: int, *, seed: int) -> Tiles:
    """Return some tiles of each slide, and say so."""
    assert isinstance(tiles.ids, TileIds)
    assert tiles.account is not None
    rows = drawn_of_slides(tiles.ids.slides, each=each, seed=seed, epoch=0)
    note = f"{count(len(rows), 'tile')} of them taken, up to {each:,} of each slide (data.tiles_per_slide)"
    return replace(tiles, account=replace(tiles.account, notes=(*tiles.account.notes, note))).subset(rows)


def own_splits(root: Path | str) -> set[str]:
    """Return which splits an index has of its own; none where it has none, or cannot be read."""
    try:
        return {indexed.split for indexed in read_index(Path(root)).slides if indexed.split is not None}
    except (OSError, ValueError):
        return set()


def quickhashes(tiles: Tiles) -> dict[str, str]:
    """Return the slides that tiles are of, by quickhash; empty where they are of none."""
    if not isinstance(tiles.ids, TileIds):
        return {}
    places = tiles.ids.places
    return {places.quickhashes[i]: places.names[i] for i in np.unique(tiles.ids.slides).tolist()}


# --- what is known of the slides ---


def _parts(index: Index) -> tuple[list[int], list[str]]:
    """Return the slides by number, split by split, and the split of each, or "all" where none is given for any."""
    given = [indexed.split for indexed in index.slides]
    if not any(given):
        return list(range(len(given))), ["all"] * len(given)
    without = [indexed.slide.name for indexed in index.slides if indexed.split is None]
    if without:
        raise ValueError(
            f"{index.folder}: {count(len(without), 'slide')} of {len(given):,} have no split, the first is "
            f"{short(without[0])}; give each slide one in slides_csv (train, val or test), or none at all, and run "
            f"{MADE_BY} again"
        )
    order = [i for split in SPLITS for i, of in enumerate(given) if of == split]
    return order, [str(given[i]) for i in order]


def _tiles_of_parts(tiles: Sequence[int], part_of: Sequence[str]) -> dict[str, int]:
    """Return the tiles of each split by those of each slide."""
    found = {name: 0 for name in (*SPLITS, "all") if name in part_of}
    for number, part in zip(tiles, part_of, strict=True):
        found[part] += number
    return found


def _check(
    parts: Mapping[str, int],
    split: str,
    labels: Sequence[int],
    groups: Sequence[str],
    *,
    classes: Sequence[str],
    root: Path | str,
) -> None:
    """Raise an error where an index does not have a split, or one made here would leave one side without a class."""
    if parts.get(split) == 0:
        raise ValueError(
            f"annotations: no tile of the split {split} lies in an area; annotate slides of that split too"
        )
    check_split(split, parts, classes=classes, root=root, given_by="the column split of slides_csv")
    if split == "all" or split in parts:
        return
    for number, name in enumerate(classes):
        of = {group for label, group in zip(labels, groups, strict=True) if label == number}
        if len(of) == 1:
            raise ValueError(
                f"{root}: all slides of class {name} are of one patient or slide ({min(of)}), which stays on one side "
                "of a split: label slides of another, or give the splits in slides_csv"
            )


def _groups(slides: Sequence[IndexedSlide], *, root: Path | str) -> list[str]:
    """Return the patient of each slide, or its own name where none is given."""
    given = [indexed.patient for indexed in slides if indexed.patient is not None]
    patients = iter(group_ids(given, where=f"{root}: column 'patient'", what="patient").tolist())
    return [indexed.slide.name if indexed.patient is None else next(patients) for indexed in slides]


def _notes(
    index: Index, slides: Sequence[IndexedSlide], *, labelled: bool, whole: bool, drawn: Drawn | None
) -> list[str]:
    patients = {indexed.patient for indexed in slides if indexed.patient is not None}
    of = f" of {count(len(patients), 'patient')}" if patients else ""
    found = [f"{count(len(slides), 'slide')}{of}, {index.mpp:g} µm per pixel"]
    states: list[str] = [entry.status for entry in index.others]
    for status, words in (("no tissue", "without tissue"), ("failed", "failed"), ("gone", "gone")):
        if number := states.count(status):
            found.append(f"{count(number, 'slide')} {words}")
    without = sum(indexed.label is None for indexed in slides)
    if drawn is not None:
        found += drawn.notes
    elif labelled:
        found.append(WEAK)
        found += [f"{count(without, 'slide')} without a label"] if without else []
    elif whole and without < len(slides):
        found.append("labels are not used (data.labels=true would)")
    return found


# --- where they are now ---


def _found(slides: Sequence[IndexedSlide], slides_root: Path | str | None, *, root: Path | str) -> list[Slide]:
    """Return the slides with their paths as they are now, each unchanged since it was indexed."""
    paths = [
        Path(indexed.slide.path) if slides_root is None else Path(slides_root, indexed.slide.name) for indexed in slides
    ]
    absent = [path for path in paths if not path.exists()]
    if absent and slides_root is not None and not Path(slides_root).is_dir():
        raise FileNotFoundError(f"slides_root: {missing(slides_root, 'folder')}")
    if absent:
        where = "have they moved? data.slides_root=FOLDER says where they are" if slides_root is None else "look there"
        raise FileNotFoundError(
            f"{root}: {len(absent):,} of {count(len(slides), 'slide')} are missing, the first is "
            f"{printable(str(absent[0]))}; {where}"
        )
    if any(indexed.slide.levels[indexed.scaling.level].encoded is None for indexed in slides):
        openslide()  # says how to install it where it is missing
    return [unchanged(indexed.slide, path, root=root) for indexed, path in zip(slides, paths, strict=True)]


def unchanged(slide: Slide, path: Path, *, root: Path | str) -> Slide:
    """Return a slide at its path; its content is looked at where it may be another file than the one indexed."""
    facts, changed = path.stat(), slide.mtime_ns
    if path.is_dir() or (facts.st_size, facts.st_mtime_ns) != (slide.size, slide.mtime_ns):
        try:
            now = open_slide(path, name=slide.name, mpp=slide.mpp)
        except SlideError as error:
            raise ValueError(f"{error} (it was readable when {root} was made)") from error
        if (now.quickhash, now.size) != (slide.quickhash, slide.size):
            raise ValueError(
                f"{printable(str(path))}: has changed since {root} was made; run the same {MADE_BY} again, which "
                "indexes it anew"
            )
        changed = now.mtime_ns
    return slide.model_copy(update={"path": str(path.absolute()), "mtime_ns": changed})


# --- where their pixels are ---


class KeptPixels:
    """Tiles of slides that were decoded into the cache: the same rows, pixels and digests as `SlidePixels`.

    Args:
        tiles: as they were decoded. slides: where they are from.
        damaged: rows that hold the slide's next tile; where `slides` replaces none, these are read from the slides.
    """

    def __init__(self, tiles: NDArray[np.uint8], slides: SlidePixels, *, damaged: Sequence[int]) -> None:
        self._tiles, self._slides = Rows([tiles]), slides
        self._bad = np.array(damaged, dtype=np.int64)
        self.shape, self.damaged, self.notes = slides.shape, slides.damaged, slides.notes
        self.digests, self.count_damaged = slides.digests, slides.count_damaged
        self.count_damaged(damaged)

    def read(self, rows: NDArray[np.int64], out: NDArray[np.uint8], *, places: NDArray[np.int64]) -> None:
        """Write row `rows[i]` to `out[places[i]]`."""
        if len(places) == len(out):  # then they are 0, 1, ...
            self._tiles.take(rows, out=out)
        else:
            out[places] = self._tiles[rows]
        if len(self._bad) and not self._slides.replace and (bad := np.isin(rows, self._bad)).any():
            self._slides.read(rows[bad], out, places=places[bad])  # an error, or what could not be read before


def _placed(
    streamed: SlidePixels, index: Index, *, keep: Keep, cache_dir: Path | str | None, progress: bool
) -> tuple[Rows, str]:
    """Return where pixels are read from, and a phrase that says so."""
    size, places = int(np.prod(streamed.shape, dtype=np.int64)), streamed.places
    times = [slide.mtime_ns for slide, _ in streamed.slides]  # a quickhash need not tell a change of level 0
    key = hashlib.sha256(repr((_VERSION, index.fingerprint, places.names, times)).encode()).hexdigest()[:32]
    why = "data.keep=slides"
    if keep == "auto":
        keep, why = _chosen(size, tiles_file(key, cache_dir=cache_dir))
    if keep == "slides":
        return Rows([streamed]), f"read from the slides ({why})"
    filling = SlidePixels(streamed.slides, places, replace=True)
    images, notes = cached_tiles(key, streamed.shape, _filler(filling, progress=progress), cache_dir=cache_dir)
    return Rows([KeptPixels(images, streamed, damaged=[int(row) for row in notes])]), f"cached ({readable(size)})"


def _chosen(size: int, file: Path) -> tuple[Literal["slides", "cache"], str]:
    """Return what keep=auto stands for, and why.

    Args:
        size: bytes of the decoded tiles. file: of the cache, in which they are, or would be.
    """
    decoded, folder = f"{readable(size)} decoded", file.parent
    if file.exists():  # it takes the room already
        return "cache", decoded
    if size > MOST_KEPT:
        return "slides", f"{decoded}, over {readable(MOST_KEPT)}: data.keep=cache would keep them"
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if size > free // 2:
        return "slides", f"{decoded}, and {readable(free)} free for the cache"
    return "cache", decoded


def _filler(pixels: SlidePixels, *, progress: bool) -> Callable[[NDArray[np.uint8]], dict[str, int]]:
    """Return what decodes all tiles into an array, and returns the damaged rows."""

    def fill(images: NDArray[np.uint8]) -> dict[str, int]:
        for block in blocks(len(images), _DECODED_AT_ONCE, desc="decode" if progress else None):
            rows = np.arange(block.start, block.stop)
            pixels.read(rows, images[block], places=rows - block.start)
        return {str(row): 1 for row in sorted(pixels.damaged)}

    return fill
