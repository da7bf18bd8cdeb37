"""The page of a `sscl predict` folder: tiles without truth, their classes, abstentions and heatmaps. No accuracy."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sscl.config import GradcamConfig, PredictConfig, ReportConfig, plain, validate
from sscl.data import files
from sscl.data.csv_files import read_rows
from sscl.data.images import Region
from sscl.data.stain import normalise_stain
from sscl.data.synthetic import is_synthetic
from sscl.data.tiles import UNLABELLED, place_store
from sscl.device import pick_device, tune
from sscl.evaluate.predictions import TilePredictions, class_probabilities
from sscl.explain.cells import map_cells
from sscl.explain.choice import changed, chosen_maps
from sscl.explain.targets import describe_targets
from sscl.metrics_log import name_of_row
from sscl.models.classifier import load_classifier
from sscl.models.pixels import normalisation
from sscl.records import read_record
from sscl.report import blocks, gallery, studies
from sscl.report.blocks import Block, Section
from sscl.report.folders import settings_of
from sscl.report.page.content import Content, Gallery
from sscl.report.slide_record import AppliedClassifier
from sscl.report.summary import without_truth
from sscl.report.tiles import map_notes
from sscl.words import count, some

FILE = "summary.json"


class Summary(AppliedClassifier):
    """summary.json of `sscl predict`.

    Attributes:
        c: of a logistic regression, without epochs.
        mpp: µm per pixel of the classifier. tiles_mpp: of the tiles; None: not known.
        tiles: how many were predicted. class_counts, undecided: these, and the abstentions among them, by class.
        unreadable: files that could not be used. repeated: mentions of files that were listed already.
        passed_over: other files, by suffix or kind. source_px: files by their side.
        fit: what became of images that are not square. changes: how many were changed, by `images.CHANGES`.
        notes: what a reader must know, a sentence each.
    """

    c: float | None = None
    mpp: float | None
    tiles_mpp: float | None
    tiles: int
    class_counts: dict[str, int]
    undecided: dict[str, int]
    unreadable: int
    repeated: int
    passed_over: dict[str, int]
    fit: str
    changes: dict[str, int]
    source_px: dict[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Predicted:
    """A folder of `sscl predict`. config: its settings. found: its predictions.csv; no tile has a label."""

    folder: Path
    config: PredictConfig
    summary: Summary
    found: TilePredictions

    @property
    def key(self) -> str:
        """Under which the browser keeps a review: that of these predictions."""
        return hashlib.sha256((self.folder / "predictions.csv").read_bytes()).hexdigest()[:16]


def read_predicted(folder: Path) -> Predicted:
    """Return what `sscl predict` wrote."""
    summary = read_record(Summary, folder / FILE, made_by="sscl predict")
    path = folder / "predictions.csv"
    names: list[str] = []
    rows: list[list[float]] = []
    table = read_rows(path, columns=("path",))
    at = {name: place for place, name in enumerate(next(table)[1])}
    for needed in ("path", *(f"probability_{name}" for name in summary.classes)):
        if needed not in at:
            raise ValueError(f"{path}: no column {needed!r}; write it again with sscl predict")
    for line, row in table:
        names.append(row[at["path"]])
        try:
            rows.append(class_probabilities(row, at, summary.classes))
        except ValueError as error:
            raise ValueError(f"{path}: line {line}: {error}; write it again with sscl predict") from None
    if len(names) != summary.tiles:
        raise ValueError(f"{path}: {count(len(names), 'tile')}, but {FILE} counts {summary.tiles:,}; write it again")
    probabilities = np.array(rows).reshape(len(rows), len(summary.classes))
    found = TilePredictions(
        ids=tuple(names),
        classes=summary.classes,
        labels=np.full(len(rows), UNLABELLED, dtype=np.int64),
        predictions=probabilities.argmax(1).astype(np.int64),
        probabilities=probabilities,
        losses=np.full(len(rows), np.nan),
    )
    return Predicted(folder, settings_of(PredictConfig, folder), summary, found)


def predicted_content(of: Predicted, config: ReportConfig, *, made: str) -> Content:
    """Return the page: counts, abstentions, notes, and the least confident tiles with their heatmaps.

    Raises:
        ValueError, FileNotFoundError: the checkpoint or a tile is not there any more; a wrong setting of the maps.
    """
    shown = build_gallery(of, config) if config.tiles and of.summary.tiles else None
    name = of.folder.resolve().name
    return {
        "title": f"{name}: {count(of.summary.tiles, 'tile')} without truth",
        "subtitle": f"predicted by {of.summary.checkpoint}: {some(of.summary.classes)}",
        "made": made,
        "id": of.key,
        "sections": [summary_section(of), predictions_section(of), studies.provenance([of.folder])],
        "gallery": shown,
    }


def summary_section(of: Predicted) -> Section:
    """Return what was predicted, without any measure of whether it is right."""
    summary = of.summary
    undecided = sum(summary.undecided.values())
    return without_truth(
        f"The classifier {summary.checkpoint} named the class of {count(summary.tiles, 'tile')}"
        f"{' drawn by a program' if is_synthetic('', of.found.ids) else ''}, and left {undecided:,} of them undecided.",
        "That is not known here: the true classes of these tiles are not known; how it did where they are is in the "
        "report of its run.",
    )


def predictions_section(of: Predicted) -> Section:
    """Return how many tiles of each class there are, abstentions, and notes."""
    summary = of.summary
    facts = {
        "classifier": f"{summary.checkpoint}, {name_of_row(summary.epoch, summary.c)}, tiles of {summary.size_px} px",
        "tiles": f"{summary.tiles:,}",
        "abstains": summary.abstains,
        "abstentions": f"{sum(summary.undecided.values()):,}",
        "files that could not be used": f"{summary.unreadable:,}",
    }
    largest = sorted(summary.class_counts, key=lambda name: -summary.class_counts[name])[:20]
    lines = [["predicted class", "tiles", "of these abstained"]]
    lines += [[name, f"{summary.class_counts[name]:,}", f"{summary.undecided[name]:,}"] for name in largest]
    left_out = len(summary.class_counts) - len(largest)
    found: list[Block] = [
        blocks.facts(facts),
        blocks.table("Predictions", lines),
        *([blocks.paragraph(f"{count(left_out, 'rarer class', 'rarer classes')} left out.")] if left_out else []),
        blocks.bullets([blocks.sentence(note) for note in summary.notes]),
    ]
    return blocks.section("predictions", "Predictions", found, hint="tiles of each class, abstentions, notes")


def build_gallery(of: Predicted, config: ReportConfig) -> Gallery:
    """Return the least confident tiles, with maps made by the checkpoint."""
    settings = validate(
        GradcamConfig,
        {"checkpoint": of.summary.checkpoint, **changed(plain(of.config.gradcam), config.gradcam)},
        source="sscl gradcam",
    )
    device = pick_device(config.device)
    model, trained = load_classifier(of.summary.checkpoint, device=device)
    listed = files.find_images(of.config.paths)
    where = dict(zip(listed.names, listed.files, strict=True))
    order = np.argsort(of.found.probabilities.max(1), kind="stable")[: min(config.tiles, gallery.MOST_TILES)]
    missing = [of.found.ids[row] for row in order if of.found.ids[row] not in where]
    if missing:
        raise FileNotFoundError(f"{missing[0]}: no longer there; set tiles=0 for a page without a gallery")
    items = [where[of.found.ids[row]] for row in order]
    pixels, regions = [], list[Region]()
    fit, stain = of.config.fit or trained.finetune_config.data.fit, of.summary.stain
    for batch in files.batches(items, size_px=of.summary.size_px, batch_size=config.batch_size, fit=fit):
        if batch.faults:
            raise ValueError(f"{batch.faults[0][1]}; set tiles=0 for a page without a gallery")
        pixels.append(batch.images.copy() if stain == "none" else normalise_stain(batch.images, method=stain))
        regions += batch.regions
    images = np.concatenate(pixels)
    target, kind = chosen_maps(settings, of.summary.classes, model)
    mean, std = normalisation(trained, device)
    tune(device)
    heats = gallery.heats(
        model,
        place_store(images, device=device, budget_gb=1.0),
        np.arange(len(images)),
        target=target,
        mean=mean,
        std=std,
        threshold=settings.threshold,
        kind=kind,
        batch_size=config.batch_size,
        progress="heatmaps" if config.progress else None,
    )
    pictures = (
        gallery.Picture(picture.image, region=region)
        for picture, region in zip(gallery.pictures_of_pixels(images), regions, strict=True)
    )
    cut = len(order) < of.summary.tiles
    chosen = f"{gallery.limit_in_words(config.tiles)}the {len(order):,} least confident of" if cut else "all"
    notes = [
        f"{chosen} {count(of.summary.tiles, 'tile')}, none with a known class",
        *map_notes(kind, None, cells=map_cells(model, size_px=of.summary.size_px, kind=kind)),
    ]
    return gallery.build(
        of.found,
        order,
        pictures=pictures,
        heats=heats,
        size_px=of.summary.size_px,
        target=describe_targets(target, of.summary.classes, kind=kind),
        threshold=settings.threshold,
        decided_from=of.summary.decide_from,
        notes=notes,
        blind=config.blind,
    )
