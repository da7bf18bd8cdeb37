"""DICOM slides: a folder of files, of one series, is one slide."""

from __future__ import annotations

import os
from pathlib import Path

from sscl.places import printable
from sscl.slides.records import SlideError

SUFFIX = ".dcm"
_HEAD = 2**18  # bytes at a file's beginning, among which its series is named


def files_of(folder: Path) -> list[Path]:
    """Return the DICOM files in a folder, but for hidden ones, in the order of their names.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.lower().endswith(SUFFIX) and entry.is_file())
    return [folder / name for name in names if not name.startswith(".")]


def is_dicom_slide(folder: Path) -> bool:
    """Return whether a folder is a slide: there are DICOM files in it, and nothing else but hidden files."""
    try:
        with os.scandir(folder) as entries:
            others = [entry.name for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return False
    return bool(others) and all(name.lower().endswith(SUFFIX) for name in others)


def for_openslide(path: str) -> str:
    """Return the file that openslide is to open for a slide: itself, or the first of its folder.

    Raises:
        SlideError: the folder has no DICOM files.
        OSError: the folder cannot be read.
    """
    if not os.path.isdir(path):
        return path
    files = files_of(Path(path))
    if not files:
        raise SlideError(f"{printable(path)}: is a folder without {SUFFIX} files, not a slide")
    return str(files[0])


def check_one_series(folder: Path, series: str) -> None:
    """Raise SlideError where a folder has files that do not name this series, which belong to other slides."""
    others = []
    for path in files_of(folder):
        with path.open("rb") as file:
            if series.encode() not in file.read(_HEAD):
                others.append(path.name)
    if others:
        raise SlideError(
            f"{printable(str(folder))}: holds more than one DICOM slide ({printable(others[0])} is of another series "
            "than the first file); give each a folder of its own"
        )
