"""An index brought up to date: what it has and still holds is kept, what is missing or has changed is indexed.

Files are written slide by slide as they are done, each whole; slides.csv goes before the first change and comes back
last, so that nobody reads an index of which one half is new.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from sscl import writing
from sscl.places import printable
from sscl.progress import Bar
from sscl.slides.index import TABLE, Labels, SlideEntry, files_of, read_entries, write_entry, write_slide, write_table
from sscl.slides.indexing import Facts, Source, Wanted, facts_of, index_slide, kept
from sscl.slides.records import Slide
from sscl.words import count, some

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Plan:
    """What there is to do.

    Attributes:
        kept: entries that hold, as they are now. moved: of these, by name, the name in the index until now.
        work: slides to index. failed: entries of those that cannot be.
        gone: entries of slides with tiles that are not there any more; their files stay, unused.
        before: the entries that the index has, by name.
    """

    kept: list[SlideEntry] = field(default_factory=list)
    moved: dict[str, str] = field(default_factory=dict)
    work: list[tuple[Source, Facts]] = field(default_factory=list)
    failed: list[SlideEntry] = field(default_factory=list)
    gone: list[SlideEntry] = field(default_factory=list)
    before: dict[str, SlideEntry] = field(default_factory=dict)

    @property
    def slides(self) -> list[Slide]:
        """Those that tiles can be made of."""
        return [*(entry.slide for entry in self.kept if entry.slide), *(facts.slide for _, facts in self.work)]


def make_plan(
    folder: Path | None, sources: Sequence[Source], wanted: Wanted, *, threads: int, progress: bool = False
) -> Plan:
    """Return what there is to do for an index to have these slides; every file is opened, nothing is written.

    Args:
        folder: the index; None where there is none yet.
    """
    entries = [] if folder is None else read_entries(folder, whole_only=True)  # a damaged one is written again
    plan = Plan(before={entry.name: entry for entry in entries})
    found = dict(
        in_threads(lambda one: facts_of(one, wanted), sources, threads=threads, desc="open" if progress else None)
    )
    names = {source.name for source in sources}
    elsewhere = {
        _identity(entry.slide): entry
        for name, entry in plan.before.items()
        if name not in names and entry.slide is not None
    }
    for source in sources:
        facts = found[source]
        if isinstance(facts, SlideEntry):
            plan.failed.append(facts)
            continue
        was = plan.before.get(source.name)
        entry = None if was is None or folder is None else kept(folder, was, facts)
        if entry is None and was is None and folder is not None:
            was = elsewhere.get(_identity(facts.slide))
            entry = None if was is None else kept(folder, was, facts)
            if entry is not None and was is not None:
                plan.moved[source.name] = was.name
                del elsewhere[_identity(facts.slide)]
        if entry is None:
            plan.work.append((source, facts))
        else:
            plan.kept.append(entry)
    here = {_identity(facts.slide) for facts in found.values() if isinstance(facts, Facts)}
    plan.gone = [
        entry.model_copy(update={"status": "gone"})
        for name, entry in plan.before.items()
        if name not in names and entry.tiles and entry.slide is not None and _identity(entry.slide) not in here
    ]
    return plan


def carry_out(
    folder: Path,
    plan: Plan,
    wanted: Wanted,
    labels: Mapping[str, Labels],
    *,
    threads: int,
    progress: bool = False,
) -> list[SlideEntry]:
    """Do what a plan says, and return all entries of the index, by name.

    Raises:
        OSError: a file cannot be written; what was written stays, and the same plan made anew goes on from there.
    """
    for where, _, _ in os.walk(folder):
        writing.remove_dead(Path(where))
    settled = [*plan.kept, *plan.failed, *plan.gone]
    changed = [entry for entry in settled if plan.before.get(entry.name) != entry]
    if plan.work or changed:
        (folder / TABLE).unlink(missing_ok=True)
    for name, was in plan.moved.items():
        _copy(folder, was, name)
    none = {entry.name for entry in plan.failed}  # a grid or preview of before goes
    for entry in changed:
        if entry.name in none:
            write_slide(folder, entry, grid=None, preview=None)
        else:
            write_entry(folder, entry)
    entries = {entry.name: entry for entry in settled}
    desc = "index" if progress else None
    for _, done in in_threads(lambda one: index_slide(*one, wanted), plan.work, threads=threads, desc=desc):
        write_slide(folder, done.entry, grid=done.grid, preview=done.preview)
        entries[done.entry.name] = done.entry
    _remove_others(folder, entries)
    found = [entries[name] for name in sorted(entries)]
    write_table(folder, found, labels)
    return found


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], *, threads: int, desc: str | None
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with what a function makes of it, as they are done; the first error ends all."""
    with Bar(len(items), desc=desc, unit="slide") as bar, ThreadPoolExecutor(max(1, min(threads, len(items)))) as pool:
        running = {pool.submit(function, item): item for item in items}
        try:
            for done in as_completed(running):
                yield running.pop(done), done.result()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)


def same_slides(slides: Iterable[Slide]) -> list[str]:
    """Return a sentence on files that hold the same slide under several names."""
    names: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    for slide in slides:
        names[_identity(slide)].append(slide.name)
    same = sorted(sorted(of) for of in names.values() if len(of) > 1)
    if not same:
        return []
    shown = "; ".join(some([printable(name) for name in of], most=3, first=2) for of in same[:5])
    more = f"; {len(same) - 5:,} more" if len(same) > 5 else ""
    return [f"{count(len(same), 'slide')} {'is' if len(same) == 1 else 'are'} there more than once ({shown}{more})"]


def _identity(slide: Slide) -> tuple[str, int]:
    """Return what is the same of a slide wherever it lies and whatever its name."""
    return slide.quickhash, slide.size


def _copy(folder: Path, was: str, name: str) -> None:
    """Copy a slide's grid and preview to another name; its entry is written next, and the old files go last."""
    _, *before = files_of(folder, was)
    _, *after = files_of(folder, name)
    for old, new in zip(before, after, strict=True):
        if old.exists():
            new.parent.mkdir(parents=True, exist_ok=True)
            with writing.replacing(new) as temporary:
                shutil.copyfile(old, temporary)


def _remove_others(folder: Path, names: Iterable[str]) -> None:
    """Remove an index's files of no slide: what a killed command left, or a slide had under another name; empty
    folders too."""
    used = {path for name in names for path in files_of(folder, name)}
    for top, ending in (("slides", ".json"), ("grids", ".npy"), ("previews", ".jpg")):
        for where, _, files in os.walk(folder / top, topdown=False):
            for file in files:
                if file.endswith(ending) and Path(where, file) not in used:
                    Path(where, file).unlink()
            if where != str(folder / top) and not os.listdir(where):
                os.rmdir(where)
