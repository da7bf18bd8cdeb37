"""What is written and said of all slides together: slides.csv, slides.json, the lines of the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from sscl.places import printable
from sscl.predict.cohort import Cohort, Listed
from sscl.predict.job import Job, applied, threshold_origin
from sscl.report.slide_record import PredictedSlides, SlideLine
from sscl.words import MOST, count, some

SHOWN = 20  # slides, in the terminal; all are in slides.csv
_STATES = {"predicted": "predicted", "no tissue": "without tissue", "failed": "failed", "gone": "gone"}


def table_of(lines: Sequence[SlideLine], classes: tuple[str, ...]) -> tuple[list[str], Iterator[list[object]]]:
    """Return header and rows of slides.csv."""
    named = [f"tiles_{name}" for name in classes]
    header = ["slide", "status", "reason", "tiles", *named, "undecided", "damaged", "damaged_places", "path"]
    rows: Iterator[list[object]] = (
        [
            *(line.name, line.status, line.reason, line.tiles),
            *(line.class_counts.get(name, 0) for name in classes),
            *(line.undecided, line.damaged, line.damaged_places, line.path),
        ]
        for line in lines
    )
    return header, rows


def summary(job: Job, lines: Sequence[SlideLine], *, index: str, notes: Sequence[str]) -> PredictedSlides:
    """Return the content of slides.json."""
    return PredictedSlides(
        **dict(applied(job.model, job.config)),
        checkpoint_sha256=job.sha256,
        mpp=job.mpp,
        index=index,
        slides=tuple(lines),
        notes=tuple(notes),
    )


def described(
    job: Job, cohort: Cohort, listed: Listed, lines: Sequence[SlideLine], *, kept: int | None, notes: Sequence[str]
) -> Iterator[str]:
    """Yield the lines of the terminal.

    Args:
        kept: slides that were as they should be already; None: the folder is new.
    """
    model = job.model
    yield (
        f"{job.config.checkpoint}: {model.checkpoint.chosen}, {some(model.classes)}, tiles of {model.size_px} "
        f"px, {model.checkpoint.scale}; temperature {model.temperature:.3f}"
    )
    states = Counter(line.status for line in lines)
    found = ", ".join(f"{states[status]:,} {word}" for status, word in _STATES.items() if states[status])
    over = f"; passed over: {listed.passed_over}" if listed.passed_over else ""
    yield f"{count(len(lines), 'slide')}: {found}{over}"
    predicted = [line for line in lines if line.status == "predicted"]
    if kept is not None:
        yield f"kept as they were: {count(kept, 'slide')}; predicted now: {len(predicted) - kept:,}"
    totals = Counter[str]()
    for line in lines:
        totals.update(line.class_counts)
    tiles, undecided = sum(line.tiles for line in lines), sum(line.undecided for line in lines)
    below = "no abstention" if model.decide_from is None else f"{undecided:,} undecided below {model.decide_from:.3f}"
    origin = threshold_origin(model, job.config)
    yield f"{count(tiles, 'tile')}: {_counts(totals, model.classes)}; {below} ({origin})"
    for line in predicted[:SHOWN]:
        yield f"  {printable(line.name)}: {_counts(line.class_counts, model.classes)}; {line.undecided:,} undecided"
    if len(predicted) > SHOWN:
        yield f"  and {len(predicted) - SHOWN:,} more, see slides.csv"
    told = [f"{printable(one.slide.name)}: {'; '.join(one.notes)}" for one in cohort.slides if one.notes]
    more = [f"{count(len(told) - SHOWN, 'slide')} more have notes, see their slide.json"] if len(told) > SHOWN else []
    for note in (*told[:SHOWN], *more, *notes):
        yield f"note: {note}"


def _counts(counts: Mapping[str, int], classes: tuple[str, ...]) -> str:
    """Return how many tiles there are of each class; of many classes, of those with most."""
    names = classes if len(classes) <= MOST else sorted(classes, key=lambda name: -counts.get(name, 0))
    return some([f"{counts.get(name, 0):,} {name}" for name in names])


def trouble(lines: Sequence[SlideLine]) -> Iterator[str]:
    """Yield a line for each slide that failed or is damaged, or for the first of many."""
    found = [f"{printable(line.name)}: {'; '.join(_faults(line))}" for line in lines if _faults(line)]
    yield from found[:SHOWN]
    if len(found) > SHOWN:
        yield f"and {len(found) - SHOWN:,} more, see slides.csv"


def _faults(line: SlideLine) -> list[str]:
    if line.status == "failed":
        return [line.reason or line.status]
    places = f"{count(line.damaged_places, 'place')} could not be decoded when its tissue was looked for"
    return [
        *([f"{count(line.damaged, 'damaged tile')} left out, see its slide.json"] if line.damaged else []),
        *([f"{places}, so it has no tiles there"] if line.damaged_places else []),
    ]
