"""Which slides are predicted: those of an index, or slides of which one is made first, and why others are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sscl import run
from sscl.config import PredictConfig, TileSlidesConfig
from sscl.cores import cpu_cores
from sscl.data.slide_files import list_slides
from sscl.data.slide_set import unchanged
from sscl.data.slides_csv import SlideTable, read_slides_csv
from sscl.places import missing, printable
from sscl.predict.job import Job
from sscl.report.slide_record import ALL, SlideLine
from sscl.slides.index import TABLE, Index, IndexedSlide, SlideEntry, is_index, notes_of, read_entries, read_index
from sscl.slides.indexing import Source, Wanted
from sscl.slides.records import Slide
from sscl.slides.update import carry_out, make_plan
from sscl.words import count

INDEX = "index"  # the folder of an index that is made here
_REASONS = 20


@dataclass(frozen=True)
class SlideToPredict:
    """A slide with tiles.

    Attributes:
        slide: with its path as it is now. indexed: what the index says of it. number: of it in the index.
        damaged_places: see `SlideEntry`. notes: what must be known of it, a phrase each.
    """

    slide: Slide
    indexed: IndexedSlide
    number: int
    damaged_places: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Cohort:
    """The slides of a command.

    Attributes:
        index: where their tiles are. slides: to predict. others: that are not.
    """

    index: Index
    slides: tuple[SlideToPredict, ...]
    others: tuple[SlideLine, ...]


@dataclass(frozen=True)
class Listed:
    """What became of the paths where an index was made of them.

    Attributes:
        passed_over: what else lies in the folders, in words. notes: what a reader must know, a sentence each.
        faults: folders that cannot be listed.
    """

    passed_over: str = ""
    notes: tuple[str, ...] = ()
    faults: tuple[SlideLine, ...] = ()


def read_cohort(folder: Path, *, slides_root: str | None = None) -> Cohort:
    """Return the slides of an index, each looked for.

    Raises:
        FileNotFoundError, ValueError: it is none; none of its slides is there.
    """
    index = read_index(folder)
    if slides_root is not None and not Path(slides_root).is_dir():
        raise FileNotFoundError(f"slides_root: {missing(slides_root, 'folder')}")
    where = "has it moved? slides_root=FOLDER says where the slides are"
    if slides_root is not None:
        where = f"slides_root={printable(slides_root)} is the folder below which the slides have the names of the index"
    entries = {entry.name: entry for entry in read_entries(folder)}
    found = []
    others = [_not_predicted(entry) for entry in index.others]
    for number, indexed in enumerate(index.slides):
        slide = indexed.slide
        path = Path(slide.path) if slides_root is None else Path(slides_root, slide.name)
        try:
            if not path.exists():
                raise ValueError(f"no such file; {where}")
            slide = unchanged(slide, path, root=folder)
        except ValueError as error:
            why = str(error).removeprefix(f"{printable(str(path))}: ")
            others.append(SlideLine(name=slide.name, path=str(path), status="failed", reason=why))
        else:
            entry = entries[slide.name]
            found.append(SlideToPredict(slide, indexed, number, entry.damaged_places, notes_of(entry)))
    if not found:
        first = next(line for line in others if line.status == "failed")
        raise FileNotFoundError(
            f"{folder}: none of its {count(len(index.slides), 'slide')} can be used, the first is "
            f"{printable(first.path)}: {first.reason}"
        )
    return Cohort(index, tuple(found), tuple(others))


def index_slides(config: PredictConfig, job: Job, *, folder: Path, out: Path) -> Listed:
    """Make an index of the slides among the paths in the folder of the results, or bring the one there up to date.

    Args:
        folder: that is filled. out: what it is called at the end.

    Raises:
        FileNotFoundError, ValueError: no slide, or none that can be used.
    """
    listing = list_slides(config.paths)
    names = [slide.name for slide in listing.slides]
    _check_names(names)
    table = SlideTable({}, {}) if config.slides_csv is None else read_slides_csv(config.slides_csv, names)
    sources = [
        Source(name=slide.name, path=slide.path, fault=slide.fault, mpp=table.mpp.get(slide.name))
        for slide in listing.slides
    ]
    wanted = Wanted(job.mpp, job.model.size_px, config.min_coverage, config.overlap, config.slide_mpp)
    there = folder / INDEX
    before = there if is_index(there) else None
    plan = make_plan(before, sources, wanted, threads=cpu_cores(), progress=config.progress)
    if not plan.work and not plan.kept:
        raise ValueError(_all_failed(plan.failed))
    if before is None:
        (there / "slides").mkdir(parents=True, exist_ok=True)
        settings = TileSlidesConfig(
            slides=config.paths,
            out=str(out / INDEX),
            mpp=job.mpp,
            size_px=job.model.size_px,
            slides_csv=config.slides_csv,
            slide_mpp=config.slide_mpp,
            min_coverage=config.min_coverage,
            overlap=config.overlap,
        )
        run.write_origin(there, settings)
    entries = carry_out(there, plan, wanted, table.labels, threads=cpu_cores(), progress=config.progress)
    if not any(entry.status == "tiles" for entry in entries):
        raise ValueError(_all_failed(entries))
    return Listed(
        passed_over=str(listing.passed_over) if listing.passed_over else "",
        notes=tuple(table.notes() if config.slides_csv else ()),
        faults=tuple(SlideLine(name=path, path=path, status="failed", reason=why) for path, why in listing.faults),
    )


def _check_names(names: Sequence[str]) -> None:
    """Raise ValueError where a slide's folder would have the name of another file of the results."""
    taken = (INDEX, TABLE, ALL, "config.yaml", "env.json")
    inside = next((name for name in names if name.split("/")[0] in taken), None)
    if inside is not None:
        raise ValueError(
            f"{printable(inside)}: results of slides go into folders of their names, where {INDEX} is taken; rename "
            "its folder, or index the slides with sscl slides tile and give the index"
        )


def _not_predicted(entry: SlideEntry) -> SlideLine:
    return SlideLine(
        name=entry.name,
        path=entry.path,
        status=entry.status,
        reason=_reason(entry),
        damaged_places=entry.damaged_places,
    )


def _reason(entry: SlideEntry) -> str:
    """Return why a slide has no tiles, without the advice to take another scale: that is the classifier's."""
    reason = entry.reason or entry.status
    return f"{reason.partition('; give ')[0]}; leave it out" if reason.endswith("leave the slide out") else reason


def _all_failed(entries: Sequence[SlideEntry]) -> str:
    lines = [f"{printable(entry.path)}: {_reason(entry)}" for entry in entries]
    more = [f"and {len(lines) - _REASONS:,} more"] if len(lines) > _REASONS else []
    return "\n".join([*lines[:_REASONS], *more])
