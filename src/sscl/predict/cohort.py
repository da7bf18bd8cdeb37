"""Which slides are predicted: those of an index, or slides of which one is made first, and why others are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sscl import run
from sscl.config import PredictConfig, TileSlidesConfig
from sscl.data.slide_files import list_slides
from sscl.data.slide_set import unchanged
from sscl.data.slides_csv import SlideTable, read_slides_csv
from sscl.device import cpu_cores
from sscl.places import missing, printable
from sscl.slides.index import Index, SlideEntry, notes_of, read_entries, read_index
from sscl.slides.indexing import Source, Wanted
from sscl.slides.records import Slide
from sscl.slides.scaling import TOLERANCE
from sscl.slides.update import carry_out, make_plan
from sscl.words import count

INDEX = "index"  # the folder of an index that is made here
_REASONS = 20


@dataclass(frozen=True)
class Other:
    """A slide that is not predicted. status: failed, gone or no tissue."""

    name: str
    path: str
    status: str
    reason: str


@dataclass
class Cohort:
    """The slides to predict.

    Attributes:
        index: where their tiles are. slides: (number in the index, slide with its path as it is now).
        others: that are not predicted. passed_over: what else lies in the folders, in words.
        notes: what a reader must know, a sentence each. of_slides: of a slide, by its name, a phrase each.
    """

    index: Index
    slides: list[tuple[int, Slide]] = field(default_factory=list)
    others: list[Other] = field(default_factory=list)
    passed_over: str = ""
    notes: list[str] = field(default_factory=list)
    of_slides: dict[str, tuple[str, ...]] = field(default_factory=dict)


def of_index(folder: str, *, slides_root: str | None) -> Cohort:
    """Return the slides of an index, each looked for.

    Raises:
        FileNotFoundError, ValueError: it is none; none of its slides is there.
    """
    index = read_index(folder)
    if slides_root is not None and not Path(slides_root).is_dir():
        raise FileNotFoundError(f"slides_root: {missing(slides_root, 'folder')}")
    cohort = Cohort(index, others=_others(index.others), of_slides=_notes(read_entries(index.folder)))
    for number, indexed in enumerate(index.slides):
        slide = indexed.slide
        path = Path(slide.path) if slides_root is None else Path(slides_root, slide.name)
        if not path.exists():
            reason = "no such file; has it moved? slides_root=FOLDER says where the slides are"
            cohort.others.append(Other(slide.name, str(path), "failed", reason))
            continue
        try:
            cohort.slides.append((number, unchanged(slide, path, root=folder)))
        except ValueError as error:
            cohort.others.append(Other(slide.name, str(path), "failed", _without(str(error), str(path))))
    if not cohort.slides:
        first = next(other for other in cohort.others if other.status == "failed")
        raise FileNotFoundError(
            f"{folder}: none of its {count(len(index.slides), 'slide')} can be used, the first is "
            f"{printable(first.path)}: {first.reason}"
        )
    return cohort


def of_slides(
    words: Sequence[str], config: PredictConfig, *, mpp: float, size_px: int, folder: Path, out: Path
) -> Cohort:
    """Return slides, with an index of their tissue that is written below the folder of the results.

    Args:
        mpp, size_px: of the tiles. folder: that is filled. out: what it is called at the end.

    Raises:
        FileNotFoundError, ValueError: no slide, or none that can be used.
    """
    listing = list_slides(words)
    names = [slide.name for slide in listing.slides]
    inside = next((name for name in names if name.split("/")[0] in (INDEX, "slides.csv", "slides.json")), None)
    if inside is not None:
        raise ValueError(
            f"{printable(inside)}: results of slides go into folders of their names, where {INDEX} is taken; rename "
            "its folder, or index the slides with sscl slides tile and give the index"
        )
    table = SlideTable({}, {}) if config.slides_csv is None else read_slides_csv(config.slides_csv, names)
    sources = [
        Source(name=slide.name, path=slide.path, fault=slide.fault, mpp=table.mpp.get(slide.name))
        for slide in listing.slides
    ]
    wanted = Wanted(mpp, size_px, config.min_coverage, config.overlap, config.slide_mpp)
    plan = make_plan(None, sources, wanted, threads=cpu_cores(), progress=config.progress)
    if not plan.work:
        raise ValueError(_all_failed(plan.failed))
    there = folder / INDEX
    (there / "slides").mkdir(parents=True)
    settings = TileSlidesConfig(
        slides=tuple(words),
        out=str(out / INDEX),
        mpp=mpp,
        size_px=size_px,
        slides_csv=config.slides_csv,
        slide_mpp=config.slide_mpp,
        min_coverage=config.min_coverage,
        overlap=config.overlap,
    )
    run.write_origin(there, settings)
    entries = carry_out(there, plan, wanted, table.labels, threads=cpu_cores(), progress=config.progress)
    if not any(entry.status == "tiles" for entry in entries):
        raise ValueError(_all_failed(entries))
    index = read_index(there)
    cohort = Cohort(
        index,
        [(number, indexed.slide) for number, indexed in enumerate(index.slides)],
        _others(index.others),
        str(listing.passed_over) if listing.passed_over else "",
        [*(table.notes() if config.slides_csv else [])],
    )
    cohort.of_slides = _notes(entries)
    cohort.others += [Other(path, path, "failed", why) for path, why in listing.faults]
    return cohort


def _others(entries: Sequence[SlideEntry]) -> list[Other]:
    return [Other(entry.name, entry.path, entry.status, _reason(entry)) for entry in entries]


def _reason(entry: SlideEntry) -> str:
    """Return why a slide has no tiles; of one that is too coarse, without the advice to take a coarser scale."""
    slide = entry.slide
    if slide is not None and slide.mpp is not None and slide.mpp > entry.mpp * (1 + TOLERANCE):
        return f"has {slide.mpp:g} µm per pixel, coarser than the {entry.mpp:.4g} of the classifier; leave it out"
    return entry.reason or entry.status


def _notes(entries: Sequence[SlideEntry]) -> dict[str, tuple[str, ...]]:
    return {entry.name: notes_of(entry) for entry in entries if entry.status == "tiles" and notes_of(entry)}


def _all_failed(entries: Sequence[SlideEntry]) -> str:
    lines = [f"{printable(entry.path)}: {_reason(entry)}" for entry in entries]
    more = [f"and {len(lines) - _REASONS:,} more"] if len(lines) > _REASONS else []
    return "\n".join([*lines[:_REASONS], *more])


def _without(text: str, path: str) -> str:
    """Return an error without the path that it begins with."""
    return text.removeprefix(f"{printable(path)}: ")
