"""The folders that `sscl report` is given: what each one is, and reading its files, damaged ones named in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from sscl.config import load_config
from sscl.config.loader import Config
from sscl.places import missing
from sscl.records import Kind, read_record
from sscl.report.slide_folder import slide_files

# The kind of a folder, by a file that only this kind has; the first that fits.
KINDS = {
    "folds.json": "cross-validation",
    "compare.json": "comparison",
    "audit.json": "audit",
    "slides.json": "slides",
    "summary.json": "predict",
    "boxes.csv": "gradcam",
    "checkpoints/best.pt": "finetune",
    "checkpoints/last.pt": "pretrain",
}
Sources = dict[str, list[Path]]  # kind: folders


def sort_folders(names: Sequence[str]) -> Sources:
    """Return the folders by kind.

    Raises:
        ValueError, FileNotFoundError: one line for each that sscl did not write.
    """
    found: Sources = {}
    faults = []
    seen: dict[Path, str] = {}
    for name in names:
        folder = Path(name)
        kind = kind_of(folder)
        other = seen.setdefault(folder.resolve(), name)
        if other != name:
            faults.append(f"runs: {name}: is the same folder as {other}; name each folder once")
        elif kind is not None:
            found.setdefault(kind, []).append(folder)
        elif not folder.exists():
            faults.append(f"runs: {missing(name, 'folder')}")
        else:
            faults.append(f"runs: {name}: {_not_written_by_sscl(folder)}")
    if faults:
        raise ValueError("\n".join(faults))
    return found


def kind_of(folder: Path) -> str | None:
    """Return the kind of a folder; None for any other."""
    return next((kind for file, kind in KINDS.items() if (folder / file).is_file()), None)


def _not_written_by_sscl(folder: Path) -> str:
    """Return why a folder cannot be used, and what to name instead."""
    if folder.is_file():
        return "is a file; name the folder of a run"
    if not folder.is_dir():
        return "is no folder; name the folder of a run"
    if (folder / "predictions.csv").is_file() and kind_of(folder.parent) == "finetune":
        return f"is an evaluation; name its run, {folder.parent}"
    if slide_files(folder):
        return "is unfinished: sscl predict did not end; the same command goes on with it"
    below = sorted(str(path) for path in folder.iterdir() if path.is_dir() and kind_of(path) is not None)
    hint = f"; it holds {', '.join(below[:5])}" + (", ..." if len(below) > 5 else "") if below else ""
    return f"not a run, audit, comparison, cross-validation, gradcam or predict folder{hint}"


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the errors that a damaged file leads to into one line.

    Raises:
        Damaged: the file is not as sscl writes it.
    """
    try:
        yield
    except Damaged:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise Damaged(
            f"{path}: damaged, or written by another version of sscl ({type(error).__name__}: {error}); write it again"
        ) from error


class Damaged(ValueError):
    """A file that is not as sscl writes it; the message names it."""


def settings_of(kind: type[Config], folder: Path) -> Config:
    """Return the settings in a folder's config.yaml.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is not of this command.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, so how {folder} was made is unknown; run its command again")
    return load_config(kind, path)


def record_of(kind: type[Kind], path: Path, *, made_by: str) -> Kind | None:
    """Return the record in a JSON file; None if there is no such file.

    Raises:
        Damaged: the file is not as this version of sscl writes it.
    """
    if not path.is_file():
        return None
    try:
        return read_record(kind, path, made_by=made_by)
    except ValueError as error:
        raise Damaged(str(error)) from error
