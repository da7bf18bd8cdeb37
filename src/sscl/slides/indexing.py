"""One slide into an index: what it is, which of its tiles are tissue, and whether what the index has still holds."""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sscl.places import printable
from sscl.slides.coordinates import Coordinates, read_coordinates
from sscl.slides.grid import tissue_tiles
from sscl.slides.index import Grid, SlideEntry, Status, digest, files_of, read_grid
from sscl.slides.open import open_slide
from sscl.slides.pixels import Readers
from sscl.slides.preview import LONGEST, preview
from sscl.slides.records import Scaling, Slide, SlideError
from sscl.slides.scaling import scaling
from sscl.slides.tissue import LEAST_PEN, NO_TISSUE, OVERVIEW_MPP, find_tissue
from sscl.words import count

RULES = 1  # another number where the same slide and settings give other tiles: then all are indexed anew
_SMALL = 2**22  # pixels of a slide that is read whole to see whether it can be
SLIDE_MPP = "slide_mpp"  # where the µm per pixel of slides is from that do not say it


@dataclass(frozen=True)
class Wanted:
    """What tiles are asked for, of every slide.

    Attributes:
        mpp: µm per pixel. size_px: side of a tile.
        min_coverage: share of a tile that must be tissue. overlap: share of its side, see `grid.tissue_tiles`.
        slide_mpp: µm per pixel at level 0 of slides that do not say it; None: these fail.
    """

    mpp: float
    size_px: int
    min_coverage: float
    overlap: float
    slide_mpp: float | None = None


@dataclass(frozen=True)
class Source:
    """A slide to index: its name, its file, and what is given for it alone.

    Attributes:
        mpp: µm per pixel at level 0, of slides_csv.
        by_coordinates: whether its tiles are given, and none are looked for. coordinates: the file that has them.
        fault: why it cannot be opened, as its name says.
    """

    name: str
    path: str
    fault: str | None = None
    mpp: float | None = None
    by_coordinates: bool = False
    coordinates: Path | None = None


@dataclass(frozen=True)
class Facts:
    """A slide that tiles can be made of: how they are read, and a digest of what decides which they are."""

    slide: Slide
    scaling: Scaling
    coordinates: Coordinates | None
    parameters: str


@dataclass(frozen=True)
class Indexed:
    """A slide as it goes into an index; preview: a JPEG file."""

    entry: SlideEntry
    grid: Grid | None = None
    preview: bytes | None = None


def facts_of(source: Source, wanted: Wanted) -> Facts | SlideEntry:
    """Return what is known of a slide, its file opened once; its entry if no tiles can be made of it."""
    slide = None
    try:
        if source.fault is not None:
            raise SlideError(source.fault)
        slide = open_slide(Path(source.path), name=source.name, mpp=source.mpp, mpp_from="slides_csv")
        if slide.mpp is None and wanted.slide_mpp is not None:
            slide = slide.model_copy(update={"mpp": wanted.slide_mpp, "mpp_from": SLIDE_MPP})
        return _facts(slide, source, wanted)
    except SlideError as error:
        return failed(source, wanted, error if slide is None else _worse(slide) or error, slide=slide)


def _worse(slide: Slide) -> SlideError | None:
    """Return why a slide of which no tiles can be made cannot be read either; of a large one that takes too long."""
    if slide.width * slide.height > _SMALL:
        return None
    try:
        with closing(Readers(most=1)) as readers:
            readers.overview(slide.model_copy(update={"mpp": OVERVIEW_MPP}), OVERVIEW_MPP)
    except SlideError as error:
        return error
    return None


def _facts(slide: Slide, source: Source, wanted: Wanted) -> Facts:
    coordinates, mpp = None, wanted.mpp
    if source.by_coordinates:
        if source.coordinates is None:
            raise SlideError(f"{printable(source.path)}: has no .h5 file in coordinates")
        coordinates = read_coordinates(source.coordinates, slide)
        mpp = coordinates.mpp_of(slide, mpp=wanted.mpp, size_px=wanted.size_px)
    how = scaling(slide, mpp=mpp, size_px=wanted.size_px)
    which = (wanted.min_coverage, wanted.overlap) if coordinates is None else (coordinates.digest,)
    decides = (RULES, wanted.mpp, wanted.size_px, which, slide.reader, how)
    return Facts(slide, how, coordinates, hashlib.blake2b(repr(decides).encode(), digest_size=16).hexdigest())


def kept(folder: Path, entry: SlideEntry, facts: Facts) -> SlideEntry | None:
    """Return the entry of a slide that an index has already, as it is now; None where it must be indexed anew.

    That is where the settings are others, or the file: its digest or size, or in the same place the time of its last
    change; or where the index's own files are not as they were written.
    """
    slide, before = facts.slide, entry.slide
    if before is None or entry.parameters != facts.parameters:
        return None
    if (before.quickhash, before.size) != (slide.quickhash, slide.size):
        return None
    if before.path == slide.path and before.mtime_ns != slide.mtime_ns:
        return None
    _, _, picture = files_of(folder, entry.name)
    try:
        whole = not entry.tiles or digest(read_grid(folder, entry.name, tiles=entry.tiles)) == entry.grid
    except ValueError:
        return None
    if not (whole and picture.is_file()):  # one that failed has a picture where it was read as a whole, and is not H&E
        return None
    status = "tiles" if entry.status == "gone" else entry.status
    return entry.model_copy(update={"name": slide.name, "path": slide.path, "slide": slide, "status": status})


def look_at(source: Source) -> SlideEntry:
    """Return what the file of a slide that is in no index says, or why it cannot be opened."""
    none = Wanted(mpp=0, size_px=0, min_coverage=0, overlap=0)
    try:
        if source.fault is not None:
            raise SlideError(source.fault)
        slide = open_slide(Path(source.path), name=source.name)
    except SlideError as error:
        return failed(source, none, error)
    damage = _worse(slide)
    if damage is not None:
        return failed(source, none, damage, slide=slide)
    return _entry(source, none, status="not indexed", reason=None, slide=slide)


def picture_of(slide: Slide) -> bytes | None:
    """Return a picture of a slide that is in no index, a JPEG; None: it cannot be read."""
    scaled = slide if slide.mpp is not None else slide.model_copy(update={"mpp": 1.0})  # its size in pixels decides
    try:
        with closing(Readers(most=1)) as readers:
            overview = readers.overview(scaled, (scaled.mpp or 1.0) * max(slide.width, slide.height) / LONGEST)
    except SlideError:
        return None
    return preview(slide, None, overview, None, np.empty((0, 3), dtype=np.int32))


def failed(
    source: Source, wanted: Wanted, error: SlideError, *, slide: Slide | None = None, facts: Facts | None = None
) -> SlideEntry:
    """Return the entry of a slide without tiles, for an error that names it."""
    reason = str(error).removeprefix(f"{printable(source.path)}: ")
    return _entry(source, wanted, status="failed", reason=reason, slide=slide, facts=facts)


def _entry(
    source: Source,
    wanted: Wanted,
    *,
    status: Status,
    reason: str | None,
    slide: Slide | None = None,
    facts: Facts | None = None,
    notes: tuple[str, ...] = (),
    damaged_places: int = 0,
    tissue: float | None = None,
    grid: Grid | None = None,
) -> SlideEntry:
    return SlideEntry(
        name=source.name,
        path=source.path,
        status=status,
        reason=reason,
        notes=notes,
        damaged_places=damaged_places,
        mpp=wanted.mpp,
        size_px=wanted.size_px,
        slide=slide if facts is None else facts.slide,
        scaling=None if facts is None else facts.scaling,
        tissue=tissue,
        tiles=0 if grid is None else len(grid),
        grid="" if grid is None else digest(grid),
        parameters="" if facts is None else facts.parameters,
    )


def index_slide(source: Source, facts: Facts, wanted: Wanted) -> Indexed:
    """Return a slide with its tiles; one that cannot be read with the reason."""
    try:
        with closing(Readers(most=1)) as readers:
            return _indexed(source, facts, wanted, readers)
    except SlideError as error:
        return Indexed(failed(source, wanted, error, facts=facts))


def _indexed(source: Source, facts: Facts, wanted: Wanted, readers: Readers) -> Indexed:
    slide, how, given = facts.slide, facts.scaling, facts.coordinates
    overview = readers.overview(slide, OVERVIEW_MPP)
    damaged = overview.damaged
    notes: tuple[str, ...] = (f"{count(damaged, 'place')} cannot be decoded",) if damaged else ()
    tissue, reason = None, None
    if given is not None:
        grid = given.grid
        notes += (f"places of {given.program}",)
        notes += (f"{given.twice:,} of its places come again, each is taken once",) if given.twice else ()
    else:
        tissue = find_tissue(overview)
        grid = tissue_tiles(slide, tissue, overview, how, min_coverage=wanted.min_coverage, overlap=wanted.overlap)
        reason = tissue.reason
        notes += (f"{tissue.pen_share:.1%} pen, left out",) if tissue.pen_share > LEAST_PEN else ()
    picture = preview(slide, how, overview, tissue, grid)
    status: Status = "tiles" if len(grid) else "no tissue" if reason in (None, NO_TISSUE) else "failed"
    if status == "no tissue" and reason is None:
        reason = f"no tile of which {wanted.min_coverage:.0%} is tissue; lower min_coverage or size_px"
        reason = reason if given is None else f"{given.path.name} has no place"
    share = None if tissue is None or status == "failed" else tissue.share
    found = grid if status == "tiles" else None
    entry = _entry(
        source,
        wanted,
        status=status,
        reason=reason,
        facts=facts,
        notes=notes,
        damaged_places=damaged if given is None else 0,
        tissue=share,
        grid=found,
    )
    return Indexed(entry, found, picture)
