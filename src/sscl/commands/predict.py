"""sscl predict: a fine-tuned classifier applied to new tiles, however many, or to whole slides."""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sscl import api, run, writing
from sscl.answers import Explanations
from sscl.config import PredictConfig
from sscl.data import files
from sscl.data.files import Found
from sscl.data.images import describe_changes
from sscl.data.listing import Account
from sscl.data.scale import Scale, differ, scale_of_files, scale_warnings
from sscl.data.slide_files import meant
from sscl.device import describe_device
from sscl.explain import boxes
from sscl.models.checkpoint import run_of
from sscl.places import missing, printable
from sscl.plots import cam as cam_plots
from sscl.predict.job import (
    RESEARCH_USE,
    application_notes,
    applied,
    check_apart,
    check_no_slides,
    threshold_origin,
)
from sscl.predict.slides import predict_slides
from sscl.progress import Bar
from sscl.records import write_record
from sscl.report.predicted import FILE, Summary
from sscl.words import MOST, count, next_command, some, wrapped

SHOWN = 20  # of these, in the terminal; all are in unreadable.csv
PANELS_AT_ONCE = 32


@dataclass
class Tally:
    """What has been predicted so far.

    Attributes:
        classes: tiles by their most probable class. undecided: of these, the ones below the abstention threshold.
        sides_px: number of files of each side. mpp: µm per pixel of the tiles, where that of their files is known.
        changes: how many were changed, by `images.CHANGES`.
        faults: (name, reason) of what could not be used.
        places, confidences: of the predicted ones, in order.
    """

    classes: Counter[str] = field(default_factory=Counter)
    undecided: Counter[str] = field(default_factory=Counter)
    sides_px: Counter[int] = field(default_factory=Counter)
    mpp: array[float] = field(default_factory=lambda: array("d"))
    changes: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[str, str]] = field(default_factory=list)
    places: array[int] = field(default_factory=lambda: array("q"))
    confidences: array[float] = field(default_factory=lambda: array("d"))


def main(config: PredictConfig, *, overwrite: bool = False) -> int:
    """Write predictions.csv and summary.json, unreadable.csv if some files could not be used, and panels on request.

    Of whole slides: see `predict.slides`.

    Returns:
        0, or 3 where some files could not be used.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", api.Unfinished)  # is among the notes
        model = api.load(
            config.checkpoint,
            device=config.device,
            calibrate=config.calibrate,
            abstain=config.abstain,
            confidence=config.confidence,
            tta=config.tta,
            precision=config.precision,
        )
    indexes, slides, tiles = meant(config.paths)
    if indexes or slides:
        check_alone(indexes, slides, tiles)
        return predict_slides(model, config, index=indexes[0] if indexes else None, overwrite=overwrite)
    check_no_slides(config)
    out = Path(config.out) if config.out is not None else run_of(config.checkpoint) / "predictions"
    pictures = 0
    with run.whole_folder(out, config, overwrite=overwrite) as folder:
        check_apart(out, config.paths)
        if config.panels:  # a wrong target or layer is reported before all tiles are read
            check_maps(model, config)
        found = files.find_images(config.paths)
        tally = Tally(faults=list(found.faults))
        header = [
            *("path", "prediction"),
            *(f"probability_{name}" for name in model.classes),
            *("confidence", "decided", "reason"),
        ]
        writing.write_csv(folder / "predictions.csv", header, predicted_rows(model, found, tally, config))
        if config.panels:
            pictures = draw_panels(model, found, tally, config, folder=folder)
        if tally.faults:
            writing.write_csv(folder / "unreadable.csv", ["path", "reason"], tally.faults)
        write_record(folder / FILE, summary(model, found, tally, config))
    print(f"device: {describe_device(model.device)}, precision {model.precision}")
    for line in described(model, found, tally, config):
        print(wrapped(line.strip(), indent=2 * line.startswith(" ")))
    written = ["predictions.csv", "summary.json", *(["unreadable.csv"] if tally.faults else [])]
    written += ["*_panel.png", "*_heatmap.png", "*_box.png", "boxes.csv"] if pictures else []
    print(f"wrote {out}/{', '.join(written)}")
    print(next_command("report", out))
    if not tally.faults:
        return 0
    sys.stdout.flush()
    for line in unreadable(tally.faults):
        print(f"sscl: {line}", file=sys.stderr)
    return run.SOME_FAILED


def check_alone(indexes: Sequence[str], slides: Sequence[str], tiles: Sequence[str]) -> None:
    """Raise ValueError where slides stand among tiles, or an index among anything else."""
    if indexes and len(indexes) + len(slides) + len(tiles) > 1:
        raise ValueError(f"paths: {indexes[0]} is an index of slides; give it alone")
    absent = next((word for word in tiles if not Path(word).exists()), None)
    if slides and absent is not None:
        raise FileNotFoundError(missing(absent, "slide or folder of slides"))
    if tiles and slides:
        raise ValueError(
            f"paths: {printable(slides[0])} is a whole slide or holds some, and {printable(tiles[0])} holds none, so "
            "tiles at most; predict them one by one"
        )


def explainer(model: api.Model, config: PredictConfig) -> Callable[..., Explanations]:
    """Return `Model.explain` with the settings of the panels."""
    maps = config.gradcam
    return partial(
        model.explain,
        target=maps.target,
        method=maps.method,
        layers=maps.layer,
        fuse=maps.fuse,
        gamma=maps.gamma,
        references=maps.references,
        threshold=maps.threshold,
        fit=config.fit,
    )


def check_maps(model: api.Model, config: PredictConfig) -> None:
    """Raise ValueError if the model has no such target or layer."""
    try:
        explainer(model, config)(np.zeros((model.size_px, model.size_px, 3), np.uint8))
    except ValueError as error:
        raise ValueError(
            f"gradcam.{error}"
            if str(error).startswith(("target:", "layer:", "method:", "gamma:", "references:"))
            else str(error)
        ) from error


def predicted_rows(model: api.Model, found: Found, tally: Tally, config: PredictConfig) -> Iterator[list[Any]]:
    """Yield the rows of predictions.csv while the tiles are predicted, and count them in the tally."""
    stream = model.stream(found.files, names=found.names, fit=config.fit, batch_size=config.batch_size)
    bar = Bar(len(found.files), desc="predict" if config.progress else None, unit="tile")
    with bar, contextlib.closing(stream):
        for batch, predictions in stream:
            tally.places.extend(batch.rows.tolist())
            tally.confidences.extend(predictions.confidence.tolist())
            tally.sides_px.update(batch.sides_px)
            tally.mpp.extend(known_mpp(batch, found, size_px=model.size_px, given=config.mpp))
            tally.changes.update(batch.changes)
            tally.faults += [
                (found.names[place], why.removeprefix(f"{found.files[place]}: ")) for place, why in batch.faults
            ]
            for row in predictions.rows():
                tally.classes[str(row["prediction"])] += 1
                tally.undecided[str(row["prediction"])] += not row["decided"]
                row["decided"] = "yes" if row["decided"] else "no"
                yield [f"{value:.6f}" if isinstance(value, float) else value for value in row.values()]
            bar.update(len(batch.rows) + len(batch.faults))


def known_mpp(batch: files.Batch, found: Found, *, size_px: int, given: float | None) -> list[float]:
    """Return µm per pixel of the tiles of a batch, where a list says that of their files.

    Args:
        size_px: side of the tiles. given: µm per pixel that the command says; None: it says nothing.
    """
    values = []
    for row, side in zip(batch.rows.tolist(), batch.sides_px, strict=True):
        if math.isnan(found.mpp[row]):
            continue
        values.append(found.mpp[row] * side / size_px)
        if given is not None and differ(given, values[-1]):
            raise ValueError(
                f"mpp: got {given:g}, but {found.names[row]} has {values[-1]:.3g} µm per pixel at {size_px} px, by its "
                "list and its side; correct one of them, or leave mpp out"
            )
    return values


def scale_of(tally: Tally, config: PredictConfig) -> Scale:
    """Return the scale of the tiles: what the command says, else that of the lists of files."""
    return scale_of_files(np.array(tally.mpp)) if config.mpp is None else Scale(mpp=config.mpp)


def draw_panels(model: api.Model, found: Found, tally: Tally, config: PredictConfig, *, folder: Path) -> int:
    """Write pictures and boxes.csv of all tiles in order, or of the least confident ones; return how many."""
    places = np.array(tally.places, dtype=np.int64)
    if config.panels is not True:
        places = places[np.argsort(tally.confidences, kind="stable")][: int(config.panels)]
    bar = Bar(len(places), desc="panels" if config.progress else None, unit="tile")
    digits = max(3, len(str(len(places) - 1)))
    explain = explainer(model, config)
    rows: list[list[Any]] = []
    with bar:
        for start in range(0, len(places), PANELS_AT_ONCE):
            part = places[start : start + PANELS_AT_ONCE].tolist()
            names = [found.names[place] for place in part]
            explained = explain([found.files[place] for place in part], names=names)
            for index, of in enumerate(explained.predictions.rows()):
                raw, box = explained.maps[index], explained.boxes[index]
                picture = f"{len(rows):0{digits}d}_{cam_plots.short_name(Path(str(of['path'])).stem)}"
                title = (
                    f"{of['path']}\npredicted {of['prediction']} ({of['confidence']:.2f})"
                    f"{'' if of['decided'] else ', abstained'}; map of {explained.targets[index]}"
                    f"{f'; {boxes.remark(box)}' if boxes.remark(box) else ''}"
                )
                cam_plots.draw_tile(
                    explained.images[index],
                    raw,
                    box,
                    title=title,
                    out=folder,
                    name=picture,
                    kind=explained.kind,
                )
                rows.append(
                    [
                        picture,
                        *(of[key] for key in ("path", "prediction")),
                        f"{of['confidence']:.6f}",
                        explained.targets[index],
                        "yes" if box is not None else "no",
                        *boxes.box_cells(raw, box, threshold=config.gradcam.threshold),
                        explained.source_px[index],
                    ]
                )
                bar.update()
    header = ["picture", "path", "prediction", "confidence", "map_of", "positive_evidence", *boxes.BOX_COLUMNS]
    writing.write_csv(folder / "boxes.csv", [*header, "source_px"], rows)
    return len(rows)


def summary(model: api.Model, found: Found, tally: Tally, config: PredictConfig) -> Summary:
    return Summary(
        **dict(applied(model, config)),
        c=model.checkpoint.c,
        mpp=model.mpp,
        tiles_mpp=scale_of(tally, config).mpp,
        tiles=len(tally.places),
        class_counts={name: tally.classes[name] for name in model.classes},
        undecided={name: tally.undecided[name] for name in model.classes},
        unreadable=len(tally.faults),
        repeated=found.repeated,
        passed_over=found.passed_over.counts,
        fit=config.fit or model.fit,
        changes=dict(tally.changes),
        source_px={str(side): number for side, number in sorted(tally.sides_px.items())},
        notes=tuple(notes(model, tally, config)),
    )


def notes(model: api.Model, tally: Tally, config: PredictConfig) -> list[str]:
    """Return what a reader must know, a sentence each."""
    lines = application_notes(model, config)
    lines += describe_changes(tally.changes, of=len(tally.places))
    here, trained = scale_of(tally, config), model.checkpoint.scale
    others = [*here.mixed(), *scale_warnings(tally.sides_px, here, trained=trained, size_px=model.size_px)]
    lines += others
    if len(tally.sides_px) > 1 and not others and not (here.span and trained.span):
        low, high = min(tally.sides_px), max(tally.sides_px)
        lines.append(
            f"the files are {low} to {high} px wide, all resized to {model.size_px}: the predictions mean nothing if "
            "the tissue is shown at another scale than in the training tiles"
        )
    return [*lines, RESEARCH_USE]


def described(model: api.Model, found: Found, tally: Tally, config: PredictConfig) -> Iterator[str]:
    """Yield the lines of the terminal."""
    yield (
        f"{config.checkpoint}: {model.checkpoint.chosen}, {some(model.classes)}, tiles of {model.size_px} "
        f"px, {model.checkpoint.scale}; temperature {model.temperature:.3f}"
    )
    # Of many classes those that are predicted most.
    names = model.classes if len(model.classes) <= MOST else [name for name, _ in tally.classes.most_common()]
    counts = some([f"{tally.classes[name]:,} {name}" for name in names])
    yield f"{count(len(tally.places), 'tile')}: {counts}"
    if model.decide_from is None:
        yield f"  no abstention ({threshold_origin(model, config)})"
    else:
        of_these = some([f"{tally.undecided[name]:,} {name}" for name in names])
        yield f"  abstained below confidence {model.decide_from:.3f} ({threshold_origin(model, config)}): {of_these}"
    if found.repeated:
        yield f"{count(found.repeated, 'repeated mention')} of listed files: each file is predicted once"
    used = len(tally.places)
    account = Account("image file", {"all": used}, passed_over=found.passed_over, unusable=len(tally.faults))
    yield account.line("all").strip()
    for note in notes(model, tally, config):
        yield f"note: {note}"


def unreadable(faults: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield a line for each file that could not be used, or for the first of many."""
    yield f"{count(len(faults), 'file')} could not be used:"
    for name, why in faults[:SHOWN]:
        shown = name if name.isprintable() else repr(name)  # a name may hold what steers a terminal
        yield f"  {shown}: {why}"
    if len(faults) > SHOWN:
        yield f"  and {len(faults) - SHOWN:,} more, see unreadable.csv"
