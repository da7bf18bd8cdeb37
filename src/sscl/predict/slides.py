"""A classifier applied to whole slides: sscl predict where slides, or an index of them, are among the paths."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from sscl import run, writing
from sscl.api import Model
from sscl.config import PredictConfig, plain
from sscl.data.scale import differ
from sscl.device import describe_device
from sscl.models.checkpoint import run_of, unfinished_notes
from sscl.models.classifier import precision_notes
from sscl.places import printable
from sscl.plots.slide import class_colours
from sscl.predict.cohort import INDEX, Cohort, of_index, of_slides
from sscl.predict.outputs import base_of, pictures_of, write_slide
from sscl.predict.tiles import classify
from sscl.progress import Bar
from sscl.records import write_record
from sscl.report.slide_record import ALL, NO_DIAGNOSIS, STANDING, PredictedSlide, PredictedSlides, SlideLine
from sscl.slides.index import Index, IndexedSlide
from sscl.slides.pixels import Readers
from sscl.slides.records import Slide, SlideError
from sscl.slides.stitch import cells_of
from sscl.words import MOST, count, next_command, some, wrapped

SHOWN = 20  # slides, in the terminal; all are in slides.csv
OF_TILES = ("panels", "fit", "gradcam")
OF_SLIDES = ("slides_csv", "slide_mpp", "min_coverage", "overlap")
OF_INDEX = "slides_root"
OF_BOTH = "threshold"


def predict_slides(model: Model, config: PredictConfig, *, index: str | None, overwrite: bool) -> int:
    """Write the folder of each slide, and slides.csv and slides.json of all.

    Args:
        index: the folder of an index among the paths; None: they are slides.

    Returns:
        0, or `run.SOME_FAILED` where a slide or a tile could not be read.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line; no slide can be used. Then nothing is written.
    """
    check_keys(config, index=index)
    mpp = wanted_mpp(model, config)
    out = Path(config.out) if config.out is not None else run_of(config.checkpoint) / "predictions"
    for path in config.paths:
        run.check_inputs_outside(out, {"paths": path})
    with run.whole_folder(out, config, overwrite=overwrite) as folder:
        if index is not None:
            cohort = of_index(index, slides_root=config.slides_root)
            check_index(cohort.index, index, model, mpp=mpp)
        else:
            cohort = of_slides(config.paths, config, mpp=mpp, size_px=model.size_px, folder=folder, out=out)
        notes = [*cohort.notes, *notes_of(model, config, mpp=mpp)]
        lines = [
            SlideLine(name=other.name, path=other.path, status=other.status, reason=other.reason)
            for other in cohort.others
        ]
        lines += predict_all(model, config, cohort, folder, notes=notes)
        lines.sort(key=lambda line: line.name)
        if not any(line.status == "predicted" for line in lines):
            raise ValueError("\n".join(f"{printable(line.path)}: {line.reason}" for line in lines[:SHOWN]))
        writing.write_csv(folder / "slides.csv", *table_of(lines, model.classes))
        at = str(index if index is not None else out / INDEX)
        write_record(folder / ALL, summary(model, config, lines, mpp=mpp, index=at, notes=notes))
    print(f"device: {describe_device(model.device)}, precision {model.precision}")
    for text in described(model, config, cohort, lines, notes):
        print(wrapped(text.strip(), indent=2 * text.startswith(" ")))
    print(f"wrote {out}/slides.csv, {ALL}{f', {INDEX}' if index is None else ''}, and a folder a slide")
    print(next_command("report", out))
    troubles = list(trouble(lines))
    sys.stdout.flush()
    for text in troubles:
        print(f"sscl: {text}", file=sys.stderr)
    return run.SOME_FAILED if troubles else 0


# --- checks ---


def check_keys(config: PredictConfig, *, index: str | None) -> None:
    """Raise ValueError where a key is given that has no meaning for these paths."""
    given, defaults = plain(config), {key: field.default for key, field in PredictConfig.model_fields.items()}
    defaults["gradcam"] = plain(PredictConfig(checkpoint="x", paths=("x",)))["gradcam"]
    of_these = OF_TILES if index is None else (*OF_TILES, *OF_SLIDES)
    for key in of_these:
        if given[key] != defaults[key]:
            why = "is of tiles" if key in OF_TILES else "was decided when the index was made"
            raise ValueError(f"{key}: {why}, and {config.paths[0]} is {'slides' if index is None else 'an index'}; "
                             f"leave {key} out")  # fmt: skip
    if index is None and config.slides_root is not None:
        raise ValueError(f"{OF_INDEX}: says where the slides of an index are; leave it out, or give the index")


def check_no_slides(config: PredictConfig) -> None:
    """Raise ValueError where a key of slides is given for tiles."""
    given = plain(config)
    for key in (*OF_SLIDES, OF_INDEX, OF_BOTH):
        if given[key] != PredictConfig.model_fields[key].default:
            raise ValueError(f"{key}: is of whole slides, and {config.paths[0]} is none; leave {key} out")


def wanted_mpp(model: Model, config: PredictConfig) -> float:
    """Return µm per pixel of the tiles: what the command says, else those of the classifier's training tiles.

    Raises:
        ValueError: neither is known.
    """
    mpp = config.mpp if config.mpp is not None else model.mpp
    if mpp is None:
        raise ValueError(
            f"mpp: {config.checkpoint} does not say at how many µm per pixel it was trained, and at another scale its "
            f"predictions mean nothing; give that of its training tiles at {model.size_px} px, as in mpp=0.5"
        )
    return mpp


def check_index(index: Index, folder: str, model: Model, *, mpp: float) -> None:
    """Raise ValueError where the tiles of an index are not what is wanted."""
    again = f"index the slides again: sscl slides tile SLIDES out=FOLDER mpp={mpp:.4g} size_px={model.size_px}"
    if index.size_px != model.size_px:
        raise ValueError(f"{folder}: has tiles of {index.size_px} px, the classifier takes {model.size_px}; {again}")
    if differ(index.mpp, mpp):
        told = f", or mpp={index.mpp:g} takes them all the same" if model.mpp is None or mpp == model.mpp else ""
        raise ValueError(
            f"{folder}: has tiles of {index.mpp:g} µm per pixel, the classifier needs {mpp:.4g}: at another scale its "
            f"predictions mean nothing; {again}{told}"
        )


# --- prediction ---


def predict_all(
    model: Model, config: PredictConfig, cohort: Cohort, folder: Path, *, notes: list[str]
) -> Iterator[SlideLine]:
    """Predict the slides of a cohort one by one and write their files; yield a line for each."""
    index, readers = cohort.index, Readers()
    total = sum(index.slides[number].tiles for number, _ in cohort.slides)
    with Bar(total, desc="predict" if config.progress else None, unit="tile") as bar:
        for number, slide in cohort.slides:
            indexed = index.slides[number]
            try:
                record = predict_one(
                    model,
                    config,
                    slide,
                    indexed,
                    np.array(index.grid(number)),
                    folder,
                    readers,
                    bar,
                    [*cohort.of_slides.get(slide.name, ()), *notes],
                )
            except SlideError as error:
                why = str(error).removeprefix(f"{printable(slide.path)}: ")
                yield SlideLine(name=slide.name, path=slide.path, status="failed", reason=why)
                continue
            yield SlideLine(
                name=slide.name,
                path=slide.path,
                status="predicted",
                tiles=record.tiles,
                class_counts=record.class_counts,
                undecided=sum(record.undecided.values()),
                damaged=len(record.damaged),
            )
    readers.close()


def predict_one(
    model: Model,
    config: PredictConfig,
    slide: Slide,
    indexed: IndexedSlide,
    grid: np.ndarray[tuple[int, int], np.dtype[np.int32]],
    folder: Path,
    readers: Readers,
    bar: Bar,
    notes: list[str],
) -> PredictedSlide:
    """Predict a slide and write its files.

    Raises:
        SlideError: it cannot be read.
    """
    scaling = indexed.scaling
    found = classify(model, slide, scaling, grid, readers=readers, batch_size=config.batch_size, bar=bar)
    answers = model.answers([""] * len(found.grid), found.probabilities)
    cells = cells_of(found.grid[:, :2], scaling.step)
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
        tissue=indexed.tissue,
        classes=model.classes,
        colours=class_colours(len(model.classes)),
        positive=model.positive,
        threshold=config.threshold,
        checkpoint=config.checkpoint,
        temperature=model.temperature,
        calibrated=config.calibrate,
        decide_from=model.decide_from,
        decide_from_method=threshold_origin(model, config),
        tiles=len(found.grid),
        class_counts={name: counts[name] for name in model.classes},
        undecided={name: unsure[name] for name in model.classes},
        regions={},
        damaged=found.damaged,
        notes=(*(("it has a colour profile, which is not applied",) if slide.icc else ()), *notes),
    )
    pictures = pictures_of(slide, scaling, found.grid, found.probabilities, readers)
    return write_slide(folder / slide.name, slide, record, answers, found.grid, cells, base, pictures)


def threshold_origin(model: Model, config: PredictConfig) -> str:
    """Return where the abstention threshold comes from, in words."""
    if model.decide_from is None:
        return "abstain=0"
    if config.confidence is not None:
        return f"confidence={config.confidence:g}"
    tiles = model.checkpoint.fitted.tiles
    return f"limit {100 * config.abstain:g}% of {tiles} validation tiles"


def notes_of(model: Model, config: PredictConfig, *, mpp: float) -> list[str]:
    """Return what a reader must know of all slides, a sentence each."""
    lines = [STANDING, NO_DIAGNOSIS]
    if config.mpp is not None:
        known = f"it was trained on {model.checkpoint.scale}" if model.mpp is not None else "it does not say its own"
        lines.append(f"mpp={mpp:g} is that of the command; {known}")
        if model.mpp is not None and differ(mpp, model.mpp):
            lines[-1] += ": over 5% apart, so the predictions may mean nothing"
    lines += model.checkpoint.scale.mixed()
    if config.tta:
        lines.append("temperature and thresholds were fitted without test-time augmentation")
    lines += unfinished_notes(config.checkpoint)
    lines += precision_notes(model.precision, fitted=model.checkpoint.fitted.precision)
    if model.stain != "none":
        lines.append(f"{model.stain} stain normalisation as in training, applied to each tile separately")
    lines.append(
        "for research use; the probabilities hold for tiles like the training tiles, not for other tissue or stains"
    )
    return lines


# --- what is written and said of all ---


def table_of(lines: list[SlideLine], classes: tuple[str, ...]) -> tuple[list[str], Iterator[list[object]]]:
    """Return header and rows of slides.csv."""
    header = ["slide", "status", "reason", "tiles", *(f"tiles_{name}" for name in classes), "undecided", "damaged"]
    rows: Iterator[list[object]] = (
        [
            line.name,
            line.status,
            line.reason,
            line.tiles,
            *(line.class_counts.get(name, 0) for name in classes),
            line.undecided,
            line.damaged,
            line.path,
        ]
        for line in lines
    )
    return [*header, "path"], rows


def summary(
    model: Model, config: PredictConfig, lines: list[SlideLine], *, mpp: float, index: str, notes: list[str]
) -> PredictedSlides:
    """Return the content of slides.json."""
    return PredictedSlides(
        checkpoint=config.checkpoint,
        epoch=model.checkpoint.epoch,
        classes=model.classes,
        size_px=model.size_px,
        mpp=mpp,
        stain=model.stain,
        temperature=model.temperature,
        calibrated=config.calibrate,
        test_time_augmentation=config.tta,
        precision=model.precision,
        decide_from=model.decide_from,
        decide_from_method=threshold_origin(model, config),
        index=index,
        slides=tuple(lines),
        notes=tuple(notes),
    )


def described(
    model: Model, config: PredictConfig, cohort: Cohort, lines: list[SlideLine], notes: list[str]
) -> Iterator[str]:
    """Yield the lines of the terminal."""
    yield (
        f"{config.checkpoint}: {model.checkpoint.chosen}, {some(model.classes)}, tiles of {model.size_px} "
        f"px, {model.checkpoint.scale}; temperature {model.temperature:.3f}"
    )
    states = Counter(line.status for line in lines)
    words = {"predicted": "predicted", "no tissue": "without tissue", "failed": "failed", "gone": "gone"}
    found = ", ".join(f"{states[status]:,} {word}" for status, word in words.items() if states[status])
    over = f"; passed over: {cohort.passed_over}" if cohort.passed_over else ""
    yield f"{count(len(lines), 'slide')}: {found}{over}"
    totals = Counter[str]()
    for line in lines:
        totals.update(line.class_counts)
    tiles, undecided = sum(line.tiles for line in lines), sum(line.undecided for line in lines)
    below = "no abstention" if model.decide_from is None else f"{undecided:,} undecided below {model.decide_from:.3f}"
    yield f"{count(tiles, 'tile')}: {_counts(totals, model.classes)}; {below} ({threshold_origin(model, config)})"
    predicted = [line for line in lines if line.status == "predicted"]
    for line in predicted[:SHOWN]:
        yield f"  {printable(line.name)}: {_counts(line.class_counts, model.classes)}; {line.undecided:,} undecided"
    if len(predicted) > SHOWN:
        yield f"  and {len(predicted) - SHOWN:,} more, see slides.csv"
    told = [f"{printable(name)}: {'; '.join(of)}" for name, of in cohort.of_slides.items()]
    more = [f"{count(len(told) - SHOWN, 'slide')} more have notes, see their slide.json"] if len(told) > SHOWN else []
    for note in (*told[:SHOWN], *more, *notes):
        yield f"note: {note}"


def _counts(counts: Mapping[str, int], classes: tuple[str, ...]) -> str:
    """Return how many tiles there are of each class; of many classes, of those with most."""
    names = classes if len(classes) <= MOST else sorted(classes, key=lambda name: -counts.get(name, 0))
    return some([f"{counts.get(name, 0):,} {name}" for name in names])


def trouble(lines: list[SlideLine]) -> Iterator[str]:
    """Yield a line for each slide that failed or has damaged tiles, or for the first of many."""
    found = [
        f"{printable(line.name)}: {line.reason}"
        if line.status == "failed"
        else f"{printable(line.name)}: {count(line.damaged, 'damaged tile')} left out, see its slide.json"
        for line in lines
        if line.status == "failed" or line.damaged
    ]
    yield from found[:SHOWN]
    if len(found) > SHOWN:
        yield f"and {len(found) - SHOWN:,} more, see slides.csv"
