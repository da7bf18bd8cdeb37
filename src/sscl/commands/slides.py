"""sscl slides tile: find the tissue tiles of slides, as an index. sscl slides inspect: say what the slides are."""

from __future__ import annotations

import contextlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sscl import run, writing
from sscl.config import InspectSlidesConfig, TileSlidesConfig, plain, read_yaml
from sscl.cores import cpu_cores
from sscl.data.slide_files import SlideListing, list_slides
from sscl.data.slides_csv import SlideTable, read_slides_csv
from sscl.places import printable
from sscl.slides.coordinates import coordinate_files
from sscl.slides.index import (
    TABLE,
    Labels,
    SlideEntry,
    files_of,
    is_index,
    notes_of,
    read_entries,
    read_rows,
    write_table,
)
from sscl.slides.indexing import Source, Wanted, look_at, picture_of
from sscl.slides.preview import contact_sheet
from sscl.slides.records import Slide
from sscl.slides.update import Plan, carry_out, in_threads, make_plan, same_slides
from sscl.words import count, next_command, short, some, wrapped

LISTED = 20  # reasons
NOTED = 10  # of slides


def tile(config: TileSlidesConfig, *, overwrite: bool = False) -> int:
    """Make an index of slides, or bring it up to date.

    Returns:
        0, or `run.SOME_FAILED` where a slide or a folder could not be read.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line; no slide can be used. Then nothing is written.
    """
    out = Path(config.out)
    with writing.holding(out):
        check_out(out, config, overwrite=overwrite)
        listing = list_slides(config.slides)
        check_outside(out, listing)
        names = [slide.name for slide in listing.slides]
        table = SlideTable({}, {}) if config.slides_csv is None else read_slides_csv(config.slides_csv, names)
        sources, notes = sources_of(config, listing, table)
        wanted = Wanted(config.mpp, config.size_px, config.min_coverage, config.overlap, config.slide_mpp)
        threads = config.threads or cpu_cores()
        index = out if is_index(out) and not overwrite else None
        plan = make_plan(index, sources, wanted, threads=threads, progress=config.progress)
        if not plan.kept and not plan.work:
            raise ValueError("\n".join(reasons(plan.failed, paths=True)))
        notes += [*(table.notes() if config.slides_csv else []), *same_slides(plan.slides)]
        with opened(out, config, overwrite=overwrite) as folder:
            entries = carry_out(folder, plan, wanted, table.labels, threads=threads, progress=config.progress)
    print_account(config, listing, plan, entries, notes)
    if config.slides_csv is not None:
        print(wrapped(labels_of(entries, table.labels)))
        for note in without_split(entries, table.labels):
            print(wrapped(f"note: {note}"))
    some_failed = listing.faults or any(entry.status == "failed" for entry in entries)
    print(f"wrote {out}/slides.csv, grids, previews")
    print(next_command("slides inspect", out, f"out={out}-look"))
    return run.SOME_FAILED if some_failed else 0


def check_out(out: Path, config: TileSlidesConfig, *, overwrite: bool) -> None:
    """Raise ValueError where the folder to write is something else, or an index of tiles of another scale."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {out} is a file; name a folder to write")
    if not out.is_dir() or writing.is_bare(out):
        return
    if not is_index(out):
        raise ValueError(f"out: {out} exists and is no index of slides; name another folder")
    for key, value in (("slides_csv", config.slides_csv), ("coordinates", config.coordinates)):
        if value is not None and Path(os.path.realpath(value)).is_relative_to(os.path.realpath(out)):
            raise ValueError(f"{key}: {value} lies in the index, which this command writes; copy it elsewhere first")
    if overwrite:
        return
    before, now = read_yaml(out / "config.yaml"), plain(config)
    if any(before.get(key) != now[key] for key in ("mpp", "size_px")):
        was, asked = (f"mpp={of.get('mpp')} size_px={of.get('size_px')}" for of in (before, now))
        raise ValueError(
            f"out: {out} was made with {was}, and {asked} is asked for; give --overwrite to make it anew, or another "
            "out"
        )
    for key in ("slides_csv", "coordinates", "slide_mpp"):  # without it slides would lose their labels or tiles
        if before.get(key) is not None and now[key] is None:
            raise ValueError(
                f"{key}: missing, and {out} was made with {key}={before[key]}; give it again, or --overwrite to make "
                "the index anew without"
            )


def check_outside(out: Path, listing: SlideListing) -> None:
    """Raise ValueError where slides lie in the folder to write."""
    real = os.path.realpath(out)
    for slide in listing.slides:
        if Path(os.path.realpath(slide.path)).is_relative_to(real):
            raise ValueError(f"out: {out} holds the slide {slide.name}; name a folder without slides")


def sources_of(config: TileSlidesConfig, listing: SlideListing, table: SlideTable) -> tuple[list[Source], list[str]]:
    """Return the slides with what is given for each, and what a reader must know."""
    files: dict[str, Path] = {}
    notes = []
    if config.coordinates is not None:
        files, others = coordinate_files(config.coordinates, {slide.name: slide.path for slide in listing.slides})
        if others:
            notes.append(
                f"{count(len(others), 'file')} of coordinates {'is' if len(others) == 1 else 'are'} of no slide "
                f"that is here ({some([short(printable(name)) for name in others], most=5, first=5)})"
            )
    sources = [
        Source(
            name=slide.name,
            path=slide.path,
            fault=slide.fault,
            mpp=table.mpp.get(slide.name),
            by_coordinates=config.coordinates is not None,
            coordinates=files.get(slide.name),
        )
        for slide in listing.slides
    ]
    return sources, notes


@contextlib.contextmanager
def opened(out: Path, config: TileSlidesConfig, *, overwrite: bool) -> Iterator[Path]:
    """Give the folder of the index to write in: itself, or where it is replaced a new one that takes its place."""
    if is_index(out) and overwrite:
        with run.whole_folder(out, config, overwrite=True) as folder:
            (folder / "slides").mkdir()
            yield folder
        return
    if not is_index(out):
        with run.whole_folder(out, config, overwrite=False) as folder:
            (folder / "slides").mkdir()
    elif read_yaml(out / "config.yaml") != plain(config):
        run.write_origin(out, config)
    yield out


def print_account(
    config: TileSlidesConfig, listing: SlideListing, plan: Plan, entries: Sequence[SlideEntry], notes: Sequence[str]
) -> None:
    """Print where all slides went: tiles, kept, failed and why, what was passed over."""
    here = [entry for entry in entries if entry.status != "gone"]
    by_status = {
        status: [entry for entry in here if entry.status == status] for status in ("tiles", "no tissue", "failed")
    }
    parts = {"with tiles": len(by_status["tiles"]), "without tissue": len(by_status["no tissue"])}
    found = [f"{number:,} {what}" for what, number in parts.items() if number]
    found += [f"{len(by_status['failed']):,} failed"] if by_status["failed"] else []
    over = [f"passed over: {listing.passed_over}"] if listing.passed_over else []
    print(wrapped("; ".join([f"{count(len(here), 'slide')}: {', '.join(found)}", *over])))
    tiles = sum(entry.tiles for entry in by_status["tiles"])
    shares = [entry.tissue for entry in here if entry.tissue is not None]
    tissue = f"; on average {100 * sum(shares) / len(shares):.0f}% of a slide is tissue" if shares else ""
    print(f"{count(tiles, 'tile')} of {config.size_px} px at {config.mpp:g} µm per pixel{tissue}")
    if plan.before:
        moved = f", {len(plan.moved):,} of them under a new name" if plan.moved else ""
        print(f"kept as they were: {count(len(plan.kept), 'slide')}{moved}; indexed now: {len(plan.work):,}")
    for line in reasons(by_status["failed"]):
        print(wrapped(line, indent=2))
    for path, why in listing.faults:
        print(wrapped(f"{path}: {why}", indent=2))
    if plan.gone:
        gone = some([entry.name for entry in plan.gone], most=5, first=5)
        print(
            wrapped(
                f"note: {count(len(plan.gone), 'slide')} of the index {'is' if len(plan.gone) == 1 else 'are'} not in "
                f"{' '.join(config.slides)} any more "
                f"({gone}): not used; --overwrite makes the index anew without"
            )
        )
    slides: defaultdict[str, list[str]] = defaultdict(list)
    for entry in here:
        for note in notes_of(entry):
            slides[note].append(entry.name)
    told = [f"{note}: {some([printable(name) for name in of], most=5, first=5)}" for note, of in slides.items()]
    more = [f"and {len(told) - NOTED:,} more, see {TABLE}"] if len(told) > NOTED else []
    for note in (*notes, *told[:NOTED], *more):
        print(wrapped(f"note: {note}"))


def labels_of(entries: Sequence[SlideEntry], labels: Mapping[str, Labels]) -> str:
    """Return how many of the slides with tiles have each label and split, and how many patients they are of."""
    of = [labels.get(entry.name, Labels()) for entry in entries if entry.status == "tiles"]
    parts = []
    for values in ([one.label for one in of], [one.split for one in of]):
        counts = Counter(value for value in values if value is not None)
        named = [f"{number:,} {short(value)}" for value, number in sorted(counts.items())]
        missing = [f"{len(of) - counts.total():,} without"] if 0 < counts.total() < len(of) else []
        parts += [some([*named, *missing])] if named else []
    patients = len({one.patient for one in of} - {None})
    parts += [count(patients, "patient")] if patients else []
    return f"slides_csv: {'; '.join(parts) or 'no labels, splits or patients'}"


def without_split(entries: Sequence[SlideEntry], labels: Mapping[str, Labels]) -> list[str]:
    """Return a sentence on slides without a split where others have one: nothing trains on such an index."""
    used = [entry.name for entry in entries if entry.status == "tiles"]
    without = [name for name in used if labels.get(name, Labels()).split is None]
    if not without or len(without) == len(used):
        return []
    has = "has" if len(without) == 1 else "have"
    return [
        f"{count(len(without), 'slide')} {has} no split and others have one ({some(without, most=5, first=5)}): "
        "training refuses such an index; give each slide train, val or test in slides_csv, or none at all"
    ]


def reasons(failed: Sequence[SlideEntry], *, paths: bool = False) -> list[str]:
    """Return a line for each reason why slides failed, with their names or paths."""
    slides: defaultdict[str, list[str]] = defaultdict(list)
    for entry in failed:
        slides[entry.reason or ""].append(printable(entry.path if paths else entry.name))
    lines = []
    for reason, names in slides.items():
        if len(names) == 1:
            lines.append(f"{names[0]}: {reason}")
        else:
            lines.append(f"{len(names):,} slides ({some(names, most=5, first=5)}): {reason}")
    return lines if len(lines) <= LISTED else [*lines[:LISTED], f"and {len(lines) - LISTED:,} more, see {TABLE}"]


# --- inspect ---


def inspect(config: InspectSlidesConfig, *, overwrite: bool = False) -> int:
    """Say what slides are: of an index with their tiles, of files what these say.

    Returns:
        0, or `run.SOME_FAILED` where a slide or a folder could not be read.
    """
    indices = [Path(word) for word in config.slides if is_index(Path(word))]
    if indices and len(config.slides) > 1:
        raise ValueError(f"{indices[0]}: is an index; inspect it alone")
    index = indices[0] if indices else None
    listing = SlideListing()
    labels: dict[str, Labels] = {}
    if index is not None:
        entries = read_entries(index)
        if (index / TABLE).is_file():
            labels = read_rows(index)
        else:
            print(f"note: {index} is unfinished; the command that made it goes on with it")
    else:
        listing = list_slides(config.slides)
        threads = config.threads or cpu_cores()
        entries = look(listing, threads=threads, progress=config.progress)
    if config.out is not None:
        inputs = {f"slides.{i}": path for i, path in enumerate(config.slides)}
        with run.whole_folder(Path(config.out), config, overwrite=overwrite, inputs=inputs) as folder:
            write_table(folder, entries, labels)
            shown = sorted(entries, key=lambda entry: entry.status != "failed")[: config.shown]
            draw_sheet(shown, pictures_of(shown, index, config), folder / "previews.jpg")
    for entry in entries:
        print(describe(entry, labels.get(entry.name, Labels())))
    print_total(entries, listing)
    if config.out is not None:
        print(f"wrote {config.out}/{TABLE}, previews.jpg")
    if index is None:
        print(next_command("slides tile", *config.slides, "out=INDEX", "mpp=0.5"))
    elif (index / TABLE).is_file() and any(entry.status == "tiles" for entry in entries):
        print(next_command("init", index))
    return run.SOME_FAILED if listing.faults or any(entry.status == "failed" for entry in entries) else 0


def look(listing: SlideListing, *, threads: int, progress: bool) -> list[SlideEntry]:
    """Return what the files of slides say, by name; nothing is known of their tiles."""
    desc = "open" if progress else None
    sources = [Source(name=slide.name, path=slide.path, fault=slide.fault) for slide in listing.slides]
    found = in_threads(look_at, sources, threads=threads, desc=desc)
    return sorted((entry for _, entry in found), key=lambda entry: entry.name)


def describe(entry: SlideEntry, labels: Labels) -> str:
    """Return what is known of a slide: its file, its tiles, its labels, or why there are none."""
    parts = [] if entry.slide is None else [facts(entry.slide)]
    if entry.status in ("tiles", "gone"):
        parts.append(count(entry.tiles, "tile"))
    if entry.tissue is not None:
        parts.append(f"{100 * entry.tissue:.0f}% tissue")
    if entry.reason and entry.reason != entry.status:
        parts.append(f"{entry.status}: {entry.reason}")
    elif entry.status in ("gone", "no tissue"):
        parts.append(entry.status)
    parts += notes_of(entry)
    parts += [f"{key} {value}" for key, value in labels.model_dump().items() if value is not None]
    return wrapped(f"{printable(entry.name)}: {', '.join(parts)}")


def facts(slide: Slide) -> str:
    factors = ", ".join(f"{level.factor:.4g}" for level in slide.levels)
    levels = "1 level" if len(slide.levels) == 1 else f"{len(slide.levels)} levels ({factors})"
    scale = "µm/px not known" if slide.mpp is None else f"{slide.mpp:.4g} µm/px"
    where = f" ({slide.mpp_from})" if slide.mpp_from else ""
    return f"{slide.vendor}, {slide.width:,} x {slide.height:,} px, {levels}, {scale}{where}"


def print_total(entries: Sequence[SlideEntry], listing: SlideListing) -> None:
    """Print how many slides of each kind there are, what cannot be listed, and what was passed over."""
    by_status: defaultdict[str, int] = defaultdict(int)
    for entry in entries:
        by_status[entry.status] += 1
    words = {"tiles": "with tiles", "no tissue": "without tissue"}
    found = ", ".join(f"{number:,} {words.get(status, status)}" for status, number in sorted(by_status.items()))
    over = f"; passed over: {listing.passed_over}" if listing.passed_over else ""
    tiles = f"; {count(sum(entry.tiles for entry in entries), 'tile')}" if by_status["tiles"] else ""
    print(wrapped(f"{count(len(entries), 'slide')}: {found}{tiles}{over}"))
    for path, why in listing.faults:
        print(wrapped(f"{path}: {why}", indent=2))


def pictures_of(
    entries: Sequence[SlideEntry], index: Path | None, config: InspectSlidesConfig
) -> dict[str, bytes | None]:
    """Return the picture of each slide, by name: that of the index, or one made here; None where there is none."""
    if index is not None:
        files = {entry.name: files_of(index, entry.name)[2] for entry in entries}
        return {name: file.read_bytes() if file.is_file() else None for name, file in files.items()}
    slides = {entry.name: entry.slide for entry in entries if entry.slide is not None}
    names, desc = list(slides), "draw" if config.progress else None
    threads = config.threads or cpu_cores()
    return dict(in_threads(lambda name: picture_of(slides[name]), names, threads=threads, desc=desc))


def draw_sheet(entries: Sequence[SlideEntry], pictures: Mapping[str, bytes | None], path: Path) -> None:
    """Draw slides on one sheet, in that order."""
    previews = []
    for entry in entries:
        what = count(entry.tiles, "tile") if entry.status == "tiles" else entry.status
        share = "" if entry.tissue is None else f" · {100 * entry.tissue:.0f}% tissue"
        caption = [entry.name, what + share, *([entry.reason] if entry.reason not in (None, entry.status) else [])]
        previews.append(("\n".join(map(printable, caption)), pictures.get(entry.name)))
    contact_sheet(previews, path)
