"""The folder of predicted slides: the same command goes on where an earlier one was stopped, and keeps what holds.

A slide's folder is whole or absent. slides.csv and slides.json go before the first of them changes, and come last.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import numpy as np

from sscl import run, writing
from sscl.config import PredictConfig, plain, read_yaml
from sscl.config.messages import in_yaml
from sscl.places import printable
from sscl.predict.cohort import Cohort, SlideToPredict
from sscl.predict.job import Job
from sscl.predict.outputs import CAM_FILES, FILES
from sscl.records import read_record, write_record
from sscl.report import predicted
from sscl.report.slide_folder import slide_files
from sscl.report.slide_record import ALL, FILE, MADE_BY, PredictedSlide
from sscl.slides.index import TABLE, digest
from sscl.words import count, some

RULES = 1  # another number where the same slide and settings give other files: then all are predicted anew
Start = Literal["new", "again", "anew"]  # again: with slides of the same command; anew: in the place of other results
NOT_DECIDING = {"out", "batch_size", "device", "progress", "slides_root"}  # keys that may differ from time to time


def start_of(out: Path, config: PredictConfig, *, overwrite: bool) -> Start:
    """Return how the folder of the results begins; what a killed command left unfinished in it goes.

    Raises:
        ValueError: it has something else, which stays.
    """
    if not out.is_dir() or writing.is_bare(out) or overwrite:
        run.check_run_folder(out, overwrite=overwrite)
        return "anew" if out.is_dir() and not writing.is_bare(out) else "new"
    now = plain(config)
    before = read_yaml(out / "config.yaml") if writing.is_ours(out) and (out / "config.yaml").is_file() else {}
    if before.keys() != now.keys() or (out / predicted.FILE).is_file():  # of another command, or of tiles
        run.check_run_folder(out, overwrite=False)
    other = next((key for key in now if key not in NOT_DECIDING and before[key] != now[key]), None)
    if other is not None:
        was, asked = (_shown(of[other]) for of in (before, now))
        raise ValueError(
            f"out: {out} was made with {other}={was}, and {other}={asked} is asked for; give --overwrite to predict "
            "all slides anew, or another out"
        )
    for where, _, _ in os.walk(out):
        writing.remove_dead(Path(where))
    return "again"


def _shown(value: object) -> str:
    return printable(" ".join(map(str, value)) if isinstance(value, list) else in_yaml(value))


def kept(folder: Path, cohort: Cohort, job: Job) -> dict[str, PredictedSlide]:
    """Return what a folder has already of the slides of a cohort and still holds, by name.

    That is where slide, tiles, classifier and notes are as they were, and all of a slide's files are there. Where the
    slide has moved, its slide.json says so from now on.

    Raises:
        ValueError: it has slides that another classifier predicted.
    """
    found, files = {}, FILES if job.plan is None else (*FILES, *CAM_FILES)
    for one in cohort.slides:
        file = folder / one.slide.name / FILE
        try:
            record = read_record(PredictedSlide, file, made_by=MADE_BY)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            continue
        if record.checkpoint_sha256 != job.sha256:
            raise ValueError(
                f"out: {folder} has slides that {record.checkpoint} predicted before it was trained again; give "
                "--overwrite to predict all slides anew, or another out"
            )
        whole = all((folder / one.slide.name / name).is_file() for name in files)
        if whole and record.parameters == parameters_of(job, one, cohort):
            if record.path != one.slide.path:
                record = record.model_copy(update={"path": one.slide.path})
                write_record(file, record)
            found[one.slide.name] = record
    return found


def parameters_of(job: Job, one: SlideToPredict, cohort: Cohort) -> str:
    """Return a digest of all that decides the files of a slide, but for the settings, which are those of the folder."""
    grid = digest(np.asarray(cohort.index.grid(one.number)))
    slide = one.slide.model_copy(update={"path": ""})  # wherever it lies
    decides = (RULES, job.sha256, job.model.precision, slide, one.indexed.scaling, grid, one.notes, job.notes)
    return hashlib.blake2b(repr(decides).encode(), digest_size=16).hexdigest()


def begin(folder: Path) -> None:
    """Remove what says that the folder is whole, before the first change."""
    for name in (ALL, TABLE):
        (folder / name).unlink(missing_ok=True)


def left_over(folder: Path, predicted: Collection[str]) -> list[str]:
    """Return a sentence on slides that a folder has from earlier times and that were not predicted now."""
    found = [path.parent.relative_to(folder).as_posix() for path in slide_files(folder)]
    others = sorted(name for name in found if name not in predicted)
    names = some([printable(name) for name in others], most=5, first=5)
    return (
        [
            f"{count(len(others), 'slide')} of an earlier time {'is' if len(others) == 1 else 'are'} still there, and "
            f"not predicted now: {names}"
        ]
        if others
        else []
    )
