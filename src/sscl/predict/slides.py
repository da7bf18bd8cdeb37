"""A classifier applied to whole slides: sscl predict where slides, or an index of them, are among the paths."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from sscl import run, writing
from sscl.api import Model
from sscl.config import PredictConfig
from sscl.device import describe_device
from sscl.evaluate.lineage import slides_in_training
from sscl.models.checkpoint import run_of
from sscl.places import printable
from sscl.plots.slide import class_colours
from sscl.predict.account import SHOWN, described, summary, table_of, trouble
from sscl.predict.cam import check_region, region_map
from sscl.predict.cohort import INDEX, Cohort, Listed, SlideToPredict, index_slides, read_cohort
from sscl.predict.folder import begin, kept, left_over, parameters_of, start_of
from sscl.predict.job import Job, check_apart, check_index, check_keys, job_of, threshold_origin
from sscl.predict.outputs import SlideResult, base_of, pictures_of, write_slide
from sscl.predict.tiles import classify
from sscl.progress import Bar
from sscl.records import write_record
from sscl.report.slide_record import ALL, PredictedSlide, SlideLine
from sscl.slides.pixels import Readers
from sscl.slides.records import SlideError
from sscl.slides.stitch import cells_of
from sscl.slides.update import same_slides
from sscl.words import next_command, wrapped


def predict_slides(model: Model, config: PredictConfig, *, index: str | None, overwrite: bool) -> int:
    """Write the folder of each slide, and slides.csv and slides.json of all.

    Where the same command was stopped, or has ended, slides that are as they should be are kept.

    Args:
        index: the folder of an index among the paths; None: they are slides.

    Returns:
        0, or `run.SOME_FAILED` where a slide or a tile could not be read.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line; no slide can be used. Then nothing is written.
    """
    check_keys(config, index=index)
    job = job_of(model, config)
    out = Path(config.out) if config.out is not None else run_of(config.checkpoint) / "predictions"
    check_apart(out, config.paths)
    listed = Listed()
    if index is not None:
        cohort = read_cohort(Path(index), slides_root=config.slides_root)
        check_index(cohort.index, index, job)
        check_regions(job, cohort)
    with writing.holding(out), contextlib.ExitStack() as stack:
        start = start_of(out, config, overwrite=overwrite)
        folder = out if start == "again" else stack.enter_context(run.whole_folder(out, config, overwrite=overwrite))
        if index is None:
            listed = index_slides(config, job, folder=folder, out=out)
            check_regions(job, read_cohort(folder / INDEX))
        if start == "new":  # from here on each slide that is done stays, whatever happens
            stack.close()
            folder = out
        if index is None:
            cohort = read_cohort(folder / INDEX)
        before = kept(folder, cohort, job) if start == "again" else {}
        lines = [*cohort.others, *listed.faults, *predict_all(job, cohort, folder, before)]
        lines.sort(key=lambda line: line.name)
        predicted = {line.name for line in lines if line.status == "predicted"}
        if not predicted:
            if start == "new":
                shutil.rmtree(out)
            raise ValueError("\n".join(f"{printable(line.path)}: {line.reason}" for line in lines[:SHOWN]))
        notes = [*listed.notes, *job.notes, *known_slides(job, cohort), *left_over(folder, predicted)]
        writing.write_csv(folder / "slides.csv", *table_of(lines, model.classes))
        write_record(folder / ALL, summary(job, lines, index=index or str(out / INDEX), notes=notes))
    print(f"device: {describe_device(model.device)}, precision {model.precision}")
    for text in described(job, cohort, listed, lines, kept=len(before) if start == "again" else None, notes=notes):
        print(wrapped(text.strip(), indent=2 * text.startswith(" ")))
    print(f"wrote {out}/slides.csv, {ALL}{f', {INDEX}' if index is None else ''}, and a folder a slide")
    print(next_command("report", out, *(["blind=true"] if job.config.blind else [])))
    troubles = list(trouble(lines))
    sys.stdout.flush()
    for text in troubles:
        print(f"sscl: {text}", file=sys.stderr)
    return run.SOME_FAILED if troubles else 0


def check_regions(job: Job, cohort: Cohort) -> None:
    """Raise ValueError where the region of which a heatmap is wanted is not of the slides."""
    if job.plan is not None and job.plan.region is not None:
        tiles = [(one.slide, one.indexed.scaling, np.array(cohort.index.grid(one.number))) for one in cohort.slides]
        check_region(job.plan.region, tiles)


def known_slides(job: Job, cohort: Cohort) -> list[str]:
    """Return a sentence on slides that are there twice, and on those that training has seen."""
    slides = [one.slide for one in cohort.slides]
    here = {slide.quickhash: slide.name for slide in slides}
    trained = slides_in_training(
        here, job.model.checkpoint.trained_on, so="what is said of them holds for no new slide"
    )
    return [*same_slides(slides), *trained]


def predict_all(job: Job, cohort: Cohort, folder: Path, before: Mapping[str, PredictedSlide]) -> Iterator[SlideLine]:
    """Predict the slides of a cohort one by one and write their files; yield a line for each.

    Args:
        before: what the folder has already, by name.
    """
    waiting = [one for one in cohort.slides if one.slide.name not in before]
    total = sum(one.indexed.tiles for one in waiting)
    yield from (_line_of(record) for record in before.values())
    with (
        contextlib.closing(Readers()) as readers,
        Bar(total, desc="predict" if job.config.progress else None, unit="tile") as bar,
    ):
        for one in waiting:
            slide = one.slide
            try:
                result = predict_one(job, one, cohort, readers=readers, bar=bar)
            except SlideError as error:
                why = str(error).removeprefix(f"{printable(slide.path)}: ")
                yield SlideLine(name=slide.name, path=slide.path, status="failed", reason=why)
                continue
            begin(folder)
            (folder / slide.name).parent.mkdir(parents=True, exist_ok=True)
            with writing.replacing_folder(folder / slide.name) as unfinished:
                record = write_slide(unfinished, result, blind=job.config.blind)
            yield _line_of(record)


def _line_of(record: PredictedSlide) -> SlideLine:
    return SlideLine(
        name=record.name,
        path=record.path,
        status="predicted",
        tiles=record.tiles,
        class_counts=record.class_counts,
        undecided=sum(record.undecided.values()),
        damaged=len(record.damaged),
        damaged_places=record.damaged_places,
    )


def predict_one(job: Job, one: SlideToPredict, cohort: Cohort, *, readers: Readers, bar: Bar) -> SlideResult:
    """Return what the classifier says of a slide, and what else its files show.

    Raises:
        SlideError: it cannot be read.
    """
    model, config, slide, scaling = job.model, job.config, one.slide, one.indexed.scaling
    grid = np.array(cohort.index.grid(one.number))
    found = classify(model, slide, scaling, grid, readers=readers, batch_size=config.batch_size, bar=bar)
    answers = model.answers([""] * len(found.grid), found.probabilities)
    try:
        cells = cells_of(found.grid[:, :2], scaling.step)
    except ValueError as error:
        raise SlideError(f"{printable(slide.path)}: {error}") from None
    base = base_of(slide, readers)
    counts = Counter(answers.labels)
    unsure = Counter(label for label, decided in zip(answers.labels, answers.decided, strict=True) if not decided)
    assert slide.mpp is not None
    record = PredictedSlide(
        name=slide.name,
        path=slide.path,
        quickhash=slide.quickhash,
        width=slide.width,
        height=slide.height,
        mpp=slide.mpp,
        mpp_from=slide.mpp_from,
        bounds=slide.bounds,
        vendor=slide.vendor,
        reader=slide.reader,
        icc=slide.icc,
        size_px=scaling.size_px,
        tile_mpp=scaling.mpp,
        footprint=scaling.step,
        most_over=int(cells.counts.max()),
        tissue=one.indexed.tissue,
        classes=model.classes,
        colours=class_colours(len(model.classes)),
        positive=model.positive,
        threshold=config.threshold,
        checkpoint=config.checkpoint,
        checkpoint_sha256=job.sha256,
        parameters=parameters_of(job, one, cohort),
        temperature=model.temperature,
        calibrated=config.calibrate,
        decide_from=model.decide_from,
        decide_from_method=threshold_origin(model, config),
        tiles=len(found.grid),
        class_counts={name: counts[name] for name in model.classes},
        undecided={name: unsure[name] for name in model.classes},
        regions={},
        damaged=found.damaged,
        damaged_places=one.damaged_places,
        notes=(*(("it has a colour profile, which is not applied",) if slide.icc else ()), *one.notes, *job.notes),
    )
    pictures = pictures_of(slide, scaling, found.grid, found.probabilities, readers)
    cam = None
    if job.plan is not None:
        cam = region_map(job.plan, model, config, slide, scaling, found.grid, found.probabilities, readers)
        record = record.model_copy(update={"cam": cam.record})
    return SlideResult(slide, record, found.grid, answers, cells, base, pictures, cam)
