"""What lies below a folder: the image files, everything else that is passed over, and the line that accounts for both.

Training and `sscl predict` list folders here, so that both take the same files.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sscl.places import missing, printable
from sscl.reading import kind_of
from sscl.words import count, listed, wrapped
from sscl.writing import is_ours, is_passing

# What Pillow decodes without a further program and without guessing the format from the name.
SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".dib", ".webp"}
    | {".jp2", ".j2k", ".jpx", ".jpf", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"}
)
LOOKED_FOR = ".png, .jpg, .tif, .bmp, .webp and the like"
# Folders and files that systems and disks write beside a user's own, in lower case. Hidden ones begin with ".".
_SYSTEM_FOLDERS = frozenset(
    {"@eadir", "@recycle", "#recycle", "@tmp", "#snapshot", "__macosx", "__pycache__", "$recycle.bin", "lost+found"}
    | {"system volume information"}
)
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "icon\r"})
HIDDEN = "hidden or system file"
RESULTS = "file of an sscl run"
LINKS = "link to an image listed already"
_SHOWN = 5  # kinds of files in the line


@dataclass
class PassedOver:
    """How many files of each kind are passed over, and the first of each.

    Attributes:
        counts: by kind: a suffix, or words as `HIDDEN`.
        examples: the first file of each kind, relative to the folder that was listed.
    """

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def add(self, kind: str, example: str, number: int = 1) -> None:
        """Count some files of a kind."""
        if number:
            self.counts[kind] = self.counts.get(kind, 0) + number
            self.examples.setdefault(kind, printable(example))

    def __str__(self) -> str:
        """Return the kinds, most frequent first, as in "12 .txt files (notes.txt), 1 hidden or system file (.x)"."""
        if not self.counts:
            return "nothing"
        kinds = sorted(self.counts, key=lambda kind: -self.counts[kind])
        parts = [f"{_counted(self.counts[kind], kind)} ({self.examples[kind]})" for kind in kinds[:_SHOWN]]
        rest = sum(self.counts[kind] for kind in kinds[_SHOWN:])
        return ", ".join([*parts, *([f"{count(rest, 'file')} of other kinds"] if rest else [])])


@dataclass(frozen=True)
class Account:
    """Where everything below data.root went.

    Attributes:
        what: what is counted, as in "image".
        parts: number of these in each split of the set; "all" where it has none.
        places: where a split lies, as in {"train": "Train/"}; empty where sscl makes the split.
        passed_over: what is no image, or not wanted.
        unusable: number of those that could not be read; in no part.
        notes: what else a reader must know, as in "groups are the folders below the class".
    """

    what: str
    parts: Mapping[str, int]
    places: Mapping[str, str] = field(default_factory=dict)
    passed_over: PassedOver = field(default_factory=PassedOver)
    notes: tuple[str, ...] = ()
    unusable: int = 0

    def line(self, *splits: str, width: int = 80) -> str:
        """Return the line for a load of some splits, or of "all", wrapped and indented."""
        used = set(splits) & self.parts.keys() or set(self.parts)
        here = sum(self.parts[name] for name in used)
        parts = [
            f"{number:,} {'used here' if name in used else f'kept for {name}'}{self._place(name)}"
            for name, number in self.parts.items()
        ]
        parts += [f"{self.unusable:,} not usable"] if self.unusable else []
        total = sum(self.parts.values()) + self.unusable
        found = f"found {count(total, self.what)}: " + ("all used here" if total == here else ", ".join(parts))
        if total == here and self.places:
            found += f" ({listed(list(self.places.values()))})"
        over = [f"passed over: {self.passed_over}"] if self.passed_over else []
        return wrapped("; ".join([found, *self.notes, *over]), indent=2, width=width)

    def _place(self, name: str) -> str:
        return f" ({self.places[name]})" if name in self.places else ""


@dataclass
class Listing:
    """What lies below a folder.

    Attributes:
        images: paths relative to it, with "/", sorted folder by folder.
        folders: all folders below it but hidden ones and those of the system, likewise.
        passed_over: all other files.
    """

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    passed_over: PassedOver = field(default_factory=PassedOver)


@dataclass(frozen=True)
class Walked:
    """One folder of a walk: its path from the start ("" is the start), its real path, its images, and which of them
    are links; and the folders in it, which are walked next, but for those that the caller takes from the list."""

    path: str
    real: str
    images: list[str]
    links: frozenset[str]
    folders: list[str]

    def file(self, name: str) -> tuple[str, str]:
        """Return the path of an image from the start, and where it really is, links followed."""
        real = os.path.join(self.real, name)
        path = f"{self.path}/{name}" if self.path else name
        return path, os.path.realpath(real) if name in self.links else real


def walk(
    root: str,
    passed_over: PassedOver,
    faults: list[tuple[str, str]],
    *,
    known: Collection[str] = (),
    suffixes: Collection[str] = SUFFIXES,
) -> Iterator[Walked]:
    """Yield the folders below `root`, itself first, each sorted by name, links followed unless they lead upwards.

    Args:
        passed_over: gets all files that are no images, hidden, of the system, or in a folder that sscl wrote; and
            named pipes, sockets and devices, whatever their names.
        faults: gets (path, reason) of the folders that cannot be listed.
        known: paths below the root of other files that are used, and so not counted.
        suffixes: of images, in lower case.
    """
    waiting = [""]
    while waiting:
        path = waiting.pop()
        whole = os.path.join(root, path) if path else root
        real = os.path.realpath(whole)
        try:
            with os.scandir(whole) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            faults.append((printable(whole), f"cannot be listed ({error.strerror})"))
            continue
        images, links, folders = [], set(), []
        for entry in found:
            inner = f"{path}/{entry.name}" if path else entry.name
            suffix = os.path.splitext(entry.name)[1].lower()
            hidden = entry.name.startswith(".")
            if hidden and is_passing(Path(entry.path)):
                continue
            if is_folder(entry):
                if passed := passed_whole(entry):
                    _count_below(entry.path, inner, passed_over, kind=passed)
                elif not (entry.is_symlink() and _leads_up(entry.path, real)):
                    folders.append(inner)
            elif inner in known:
                continue
            elif hidden or entry.name.lower() in _SYSTEM_FILES:
                passed_over.add(HIDDEN, inner)
            elif suffix not in suffixes:
                passed_over.add(printable(suffix) or "file without suffix", inner)
            elif kind := _irregular(entry):
                passed_over.add(kind, inner)
            else:
                images.append(entry.name)
                if entry.is_symlink():
                    links.add(entry.name)
        yield Walked(path, real, images, frozenset(links), folders)
        waiting += reversed(folders)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder; a link that leads to itself, or where nothing can be seen, is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def passed_whole(folder: os.DirEntry[str]) -> str | None:
    """Return why a folder is passed over with all that is in it, a kind of `PassedOver`; None where it is not."""
    if folder.name.startswith(".") or folder.name.lower() in _SYSTEM_FOLDERS:
        return HIDDEN
    return RESULTS if is_ours(Path(folder.path)) else None  # its charts and panels are no tiles


def list_images(root: str | os.PathLike[str], *, once: bool = False, known: Collection[str] = ()) -> Listing:
    """Return what lies below a folder.

    Args:
        once: list an image to which several links lead once, not each time.
        known: other files that are used, see `walk`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a folder cannot be listed, or a name cannot be printed or is not UTF-8.
    """
    root = os.fspath(root)
    if not os.path.lexists(root):
        raise FileNotFoundError(missing(root, "folder"))
    listing = Listing()
    faults: list[tuple[str, str]] = []
    seen: set[str] = set()
    for folder in walk(root, listing.passed_over, faults, known=known):
        if folder.path:
            listing.folders.append(folder.path)
        _check_name(os.path.join(root, os.path.dirname(folder.path)), os.path.basename(folder.path))
        for name in folder.images:
            if not name.isprintable():
                _check_name(os.path.join(root, folder.path), name)
        if not once:  # where links lead is not asked then: a million of them on a server take minutes
            above = f"{folder.path}/" if folder.path else ""
            listing.images += [above + name for name in folder.images]
            continue
        for path, real in map(folder.file, folder.images):
            if real in seen:
                listing.passed_over.add(LINKS, path)
            else:
                seen.add(real)
                listing.images.append(path)
    if faults:
        raise ValueError(f"{faults[0][0]}: {faults[0][1]}; expected a folder of tiles")
    return listing


def _counted(number: int, kind: str) -> str:
    if kind.startswith("."):
        return count(number, f"{kind} file")
    noun, *rest = kind.split(" ", 1)
    return count(number, kind) if kind == HIDDEN else " ".join([count(number, noun), *rest])


def _irregular(entry: os.DirEntry[str]) -> str | None:
    """Return what is no regular file, as a named pipe; None of a dead link, which is a fault."""
    try:
        return None if entry.is_file() else kind_of(os.stat(entry.path).st_mode)
    except OSError:
        return None


def _check_name(folder: str, name: str) -> None:
    # Both would break the lines and files that name tiles and classes; the second is a name that is not UTF-8.
    if not name.isprintable() and any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise ValueError(f"{folder}: {name!r} has a line break or another character that cannot be printed; rename it")


def _count_below(folder: str, path: str, passed_over: PassedOver, *, kind: str) -> None:
    """Count every file below a folder that is passed over whole; links are not followed."""
    for where, _, files in os.walk(folder):
        inner = os.path.relpath(os.path.join(where, min(files)), folder) if files else ""
        passed_over.add(kind, f"{path}/{inner}", len(files))


def _leads_up(link: str, real: str) -> bool:
    """Return whether a link leads to the folder it lies in (its real path), or above that, and so would never end."""
    target = os.path.realpath(link)
    return real == target or real.startswith(target.rstrip(os.sep) + os.sep)
