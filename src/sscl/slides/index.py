"""The index folder: where the tissue tiles of many slides are, at which µm per pixel, and how they are read.

    config.yaml, env.json   how it was made
    slides.csv              a row a slide, for people and for labels; written last: an index without it is unfinished
    slides/NAME.json        a slide's facts (`SlideEntry`); written after its other files
    grids/NAME.npy          its tiles, int32 (n, 3): x, y of the top-left corner at level 0, coverage in percent (-1:
                            not known), sorted by y, then x
    previews/NAME.jpg       its thumbnail with the tissue's outline and the grid

NAME is the slide's path below the folder that was given, with its ending; its folders are folders here too.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sscl import writing
from sscl.config import strict_yaml
from sscl.places import missing
from sscl.reading import read_text
from sscl.records import Record, read_record, write_record
from sscl.slides.records import Scaling, Slide

TABLE = "slides.csv"
MADE_BY = "sscl slides tile"
Status = Literal["tiles", "no tissue", "failed", "gone", "not indexed"]
Grid = NDArray[np.int32]  # (n, 3): x, y, coverage in percent


class SlideEntry(Record):
    """What the index says of a slide.

    Attributes:
        name: of the slide in the index.
        path: of its file; absolute.
        status: "tiles": it has some; "no tissue": it has none; "failed"; "gone": not there when the index was last
            brought up to date, so not used. "not indexed": in no index.
        reason: why it has no tiles; None where it has.
        notes: what else must be known of its tiles, each a phrase.
        damaged_places: squares of the slide that could not be decoded when its tissue was looked for: it has no tiles
            there.
        mpp, size_px: that were asked for.
        slide: None: it could not be opened.
        scaling: how its tiles are read; None: they cannot be.
        tissue: share of the scanned area that is tissue; None: not known.
        tiles: how many. grid: a digest of their places and coverages; empty where there are none.
        parameters: a digest of what decided which tiles it has (mpp, size_px, coverage, ...).
    """

    name: str
    path: str
    status: Status
    reason: str | None
    notes: tuple[str, ...] = ()
    damaged_places: int = 0
    mpp: float
    size_px: int
    slide: Slide | None
    scaling: Scaling | None
    tissue: float | None
    tiles: int
    grid: str
    parameters: str


class Labels(Record):
    """What slides_csv says of a slide; None: nothing. split: train, validation or test."""

    patient: str | None = None
    label: str | None = None
    split: Literal["train", "validation", "test"] | None = None


@dataclass(frozen=True)
class IndexedSlide:
    """A slide that has tiles."""

    slide: Slide
    scaling: Scaling
    tiles: int
    tissue: float | None
    patient: str | None = None
    label: str | None = None
    split: Literal["train", "validation", "test"] | None = None


@dataclass(frozen=True)
class Index:
    """An index as it was read.

    Attributes:
        folder: where it is.
        mpp, size_px: of all its tiles, as asked for; what each slide gives is within 2% (`Scaling.mpp`).
        slides: those with tiles, by name.
        others: those without, by name: no tissue, failed, gone.
        fingerprint: of the pixels that are read: it changes with any slide, place, scale or reader, not with a path.
    """

    folder: Path
    mpp: float
    size_px: int
    slides: tuple[IndexedSlide, ...]
    others: tuple[SlideEntry, ...]
    fingerprint: str

    def grid(self, i: int) -> Grid:
        """Return the tiles of slide `i`, int32 (n, 3): x, y, coverage in percent; mapped, so a file stays open while
        it lives."""
        indexed = self.slides[i]
        return read_grid(self.folder, indexed.slide.name, tiles=indexed.tiles)

    def __len__(self) -> int:
        """Return the number of tiles."""
        return sum(indexed.tiles for indexed in self.slides)


# --- reading ---


def is_index(folder: Path) -> bool:
    """Return whether a folder is an index, finished or not."""
    return (folder / "slides").is_dir() and writing.is_ours(folder) and not _says_checkpoint(folder / "config.yaml")


def _says_checkpoint(file: Path) -> bool:
    """Return whether settings are those of `sscl predict`, whose results may be in a folder named slides, too."""
    try:
        return re.search(r"^checkpoint:", read_text(file, at_most=2**20), re.MULTILINE) is not None
    except (OSError, ValueError):
        return False


def read_index(folder: str | Path) -> Index:
    """Return an index.

    Raises:
        FileNotFoundError: no such folder, or it is no index, or an unfinished one.
        ValueError: a file in it is not as `sscl slides tile` writes it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(missing(folder, "folder"))
    if not is_index(folder):
        raise FileNotFoundError(f"{folder}: is no index of slides; make one with {MADE_BY} SLIDES out=INDEX mpp=0.5")
    if not (folder / TABLE).is_file():
        raise FileNotFoundError(f"{folder}: is unfinished: {MADE_BY} did not end; the same command goes on with it")
    rows = read_rows(folder)
    entries = {entry.name: entry for entry in read_entries(folder)}
    if rows.keys() != entries.keys():
        name = min(rows.keys() ^ entries.keys())
        raise ValueError(f"{folder / TABLE}: differs from slides/ in {name}; write it again with {MADE_BY}")
    slides = []
    for name, labels in rows.items():
        entry = entries[name]
        if entry.status == "tiles" and entry.slide is not None and entry.scaling is not None:
            of = labels.model_dump()
            slides.append(IndexedSlide(entry.slide, entry.scaling, entry.tiles, entry.tissue, **of))
    used = {indexed.slide.name for indexed in slides}
    scales = {(entries[name].mpp, entries[name].size_px) for name in used}
    if len(scales) != 1:
        what = "has no slide with tiles" if not scales else "has tiles of more than one µm per pixel"
        raise ValueError(f"{folder}: {what}; look at it with sscl slides inspect {folder}")
    ((mpp, size_px),) = scales
    _check_scale(folder, mpp=mpp, size_px=size_px)
    return Index(
        folder=folder,
        mpp=mpp,
        size_px=size_px,
        slides=tuple(slides),
        others=tuple(entry for name, entry in entries.items() if name not in used),
        fingerprint=_fingerprint([entries[name] for name in rows if name in used]),
    )


def _check_scale(folder: Path, *, mpp: float, size_px: int) -> None:
    """Raise ValueError where config.yaml, from which `data.mpp` is taken, says another scale than the tiles have."""
    path = folder / "config.yaml"
    try:
        content = strict_yaml.read(path.read_text(encoding="utf-8"))
        said = float(content["mpp"]), int(content["size_px"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: is not as {MADE_BY} writes it; make the index anew with --overwrite") from None
    if said != (mpp, size_px):
        raise ValueError(
            f"{path}: says mpp={said[0]:g} size_px={said[1]}, but the tiles have mpp={mpp:g} size_px={size_px}; "
            "correct it, or make the index anew with --overwrite"
        )


def read_entries(folder: Path, *, whole_only: bool = False) -> list[SlideEntry]:
    """Return all entries of an index, by name, whether it is finished or not.

    Args:
        whole_only: leave out those that cannot be read.

    Raises:
        ValueError: one cannot be read.
    """
    top = folder / "slides"
    found = []
    for where, _, files in os.walk(top):
        found += [Path(where, name) for name in files if name.endswith(".json") and not name.startswith(".")]
    entries = []
    for path in found:
        with contextlib.suppress(*([ValueError] if whole_only else [])):
            entries.append(read_record(SlideEntry, path, made_by=MADE_BY))
    return sorted(entries, key=lambda entry: entry.name)


def read_rows(folder: Path) -> dict[str, Labels]:
    """Return what slides.csv says of each slide, by name, in its order."""
    path = folder / TABLE
    with path.open(newline="", encoding="utf-8") as handle:
        rows = csv.DictReader(handle)
        try:
            return {
                row["slide"]: Labels.model_validate({key: row[key] or None for key in Labels.model_fields})
                for row in rows
            }
        except (KeyError, ValueError, csv.Error) as error:
            raise ValueError(f"{path}: is not as {MADE_BY} writes it; write it again with it") from error


def read_grid(folder: Path, name: str, *, tiles: int) -> Grid:
    """Return a slide's tiles as the index has them, mapped.

    Raises:
        ValueError: the file is missing or another one.
    """
    path = folder / "grids" / f"{name}.npy"
    try:
        grid: Grid = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error}); write it again with {MADE_BY}") from error
    except (ValueError, EOFError) as error:  # numpy speaks of pickled data
        raise ValueError(f"{path}: cannot be read (is no array of NumPy); write it again with {MADE_BY}") from error
    if grid.dtype != np.int32 or grid.shape != (tiles, 3):
        raise ValueError(f"{path}: has other tiles than slides/{name}.json says; write it again with {MADE_BY}")
    return grid


# --- writing ---


def write_slide(folder: Path, entry: SlideEntry, *, grid: Grid | None, preview: bytes | None) -> None:
    """Write a slide's files, its entry last; what an earlier one had and this one has not goes."""
    _, grid_file, preview_file = files_of(folder, entry.name)
    for path in (grid_file, preview_file):
        path.parent.mkdir(parents=True, exist_ok=True)
    if grid is None:
        grid_file.unlink(missing_ok=True)
    else:
        with writing.replacing(grid_file) as temporary, temporary.open("wb") as handle:
            np.save(handle, np.ascontiguousarray(grid, dtype=np.int32), allow_pickle=False)
    if preview is None:
        preview_file.unlink(missing_ok=True)
    else:
        with writing.replacing(preview_file) as temporary:
            temporary.write_bytes(preview)
    write_entry(folder, entry)


def write_entry(folder: Path, entry: SlideEntry) -> None:
    """Write what the index says of a slide; its other files stay as they are."""
    path, _, _ = files_of(folder, entry.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, entry)


def files_of(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """Return a slide's files in an index: its entry, its grid, its preview."""
    return (
        folder / "slides" / f"{name}.json",
        folder / "grids" / f"{name}.npy",
        folder / "previews" / f"{name}.jpg",
    )


def _row(entry: SlideEntry, of: Labels) -> dict[str, object]:
    slide, scaling = entry.slide, entry.scaling
    return {
        "slide": entry.name,
        "status": entry.status,
        "reason": entry.reason,
        "tiles": entry.tiles,
        "tissue_percent": None if entry.tissue is None else f"{100 * entry.tissue:.1f}",
        "patient": of.patient,
        "label": of.label,
        "split": of.split,
        "slide_mpp": slide and slide.mpp,
        "mpp_from": slide and slide.mpp_from,
        "level": scaling and scaling.level,
        "resampled": scaling and _yes(scaling.resampled),
        "width": slide and slide.width,
        "height": slide and slide.height,
        "level_factors": slide and " ".join(f"{level.factor:.6g}" for level in slide.levels),
        "vendor": slide and slide.vendor,
        "reader": slide and slide.reader,
        "icc": slide and _yes(slide.icc),
        "notes": "; ".join(notes_of(entry)),
        "path": entry.path,
    }


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def notes_of(entry: SlideEntry) -> tuple[str, ...]:
    """Return what must be known of a slide: of its file, then of its tiles."""
    return (*(() if entry.slide is None else entry.slide.notes), *entry.notes)


def write_table(folder: Path, entries: Sequence[SlideEntry], labels: Mapping[str, Labels]) -> None:
    """Write slides.csv, which makes the index whole."""
    rows = [_row(entry, labels.get(entry.name, Labels())) for entry in entries]
    header = list(rows[0]) if rows else ["slide"]  # of an index whose making was broken off at once
    writing.write_csv(folder / TABLE, header, (list(row.values()) for row in rows))


def digest(grid: Grid) -> str:
    """Return a digest of a slide's tiles."""
    return hashlib.blake2b(np.ascontiguousarray(grid, dtype=np.int32).tobytes(), digest_size=16).hexdigest()


def _fingerprint(entries: Sequence[SlideEntry]) -> str:
    found = hashlib.sha256()
    for entry in entries:
        assert entry.slide is not None
        slide = entry.slide
        parts = (entry.name, slide.quickhash, str(slide.size), slide.reader, repr(entry.scaling), entry.grid)
        found.update("\0".join(parts).encode())
        found.update(b"\n")
    return found.hexdigest()
