"""The gallery of `sscl report`: the tiles of an evaluation, with maps made by the checkpoint."""

from __future__ import annotations

import numpy as np

from sscl.config import DataConfig, GradcamConfig, ReportConfig
from sscl.data.load import load_tiles, tile_file
from sscl.data.synthetic import SAID
from sscl.data.tiles import UNLABELLED, Tiles, place_store
from sscl.device import pick_device, tune
from sscl.evaluate.metrics import IntArray
from sscl.evaluate.verdicts import Outcome
from sscl.explain.cells import MapCells, map_cells
from sscl.explain.choice import chosen_maps
from sscl.explain.kinds import MapKind
from sscl.explain.records import MapChecks
from sscl.explain.targets import describe_targets
from sscl.models.classifier import load_classifier, with_classes_of
from sscl.models.pixels import normalisation
from sscl.report import gallery
from sscl.report.page.content import Gallery
from sscl.report.subject import Subject


def build_gallery(
    subject: Subject,
    data: DataConfig,
    settings: GradcamConfig,
    config: ReportConfig,
    *,
    checks: MapChecks | None,
    caveats: list[str],
) -> Gallery:
    """Return the gallery, with maps made by the checkpoint; what does not fit the evaluation goes to `caveats`.

    Raises:
        ValueError, FileNotFoundError: the tiles are not there, or are others than those evaluated.
    """
    device = pick_device(config.device)
    model, trained = load_classifier(str(subject.folder), device=device)
    try:
        tiles = load_tiles(data, split=subject.report.split, progress=config.progress)
    except (ValueError, FileNotFoundError) as error:
        hint = "give data.root=..., or set tiles=0 for a page without a gallery"
        raise type(error)(f"{str(error).splitlines()[0]}; {hint}") from error
    tiles = with_classes_of(tiles, trained.classes, checkpoint=str(subject.folder), data=data)
    chosen, how = gallery.choose(subject.found, count=config.tiles)
    rows = rows_of(tiles, subject, chosen, root=data.root)
    evaluated = tiles.subset(np.flatnonzero(tiles.labels != UNLABELLED))
    if evaluated.fingerprint != subject.report.data_fingerprint:
        caveats.append(f"the tiles in {data.root} differ from the evaluated ones (another fingerprint)")
    target, kind = chosen_maps(settings, subject.found.classes, model)
    mean, std = normalisation(trained, device)
    files = [tile_file(data, tiles.ids[row]) for row in rows]
    paths = [path for path in files if path is not None]
    whole = len(paths) == len(files)
    tune(device)
    heats = list(
        gallery.heats(
            model,
            place_store(tiles.images, device=device, budget_gb=data.device_budget_gb),
            rows,
            target=target,
            mean=mean,
            std=std,
            threshold=settings.threshold,
            kind=kind,
            batch_size=config.batch_size,
            progress="heatmaps" if config.progress else None,
        )
    )
    others = sum(heat.prediction != subject.found.predictions[row] for heat, row in zip(heats, chosen, strict=True))
    if others:
        caveats.append(
            f"{others} of {len(chosen)} gallery tiles are predicted differently than in the evaluation, and their maps "
            "explain that prediction: the evaluation used test-time augmentation, other tiles or another device"
        )
    pixels = (tiles.images[row] for row in rows)
    notes = [
        how,
        *([SAID] if subject.report.synthetic else []),
        *picture_notes(data, from_files=whole),
        *map_notes(kind, checks, cells=map_cells(model, size_px=data.size_px, kind=kind)),
    ]
    return gallery.build(
        subject.found,
        chosen,
        pictures=gallery.pictures_of_files(paths, fit=data.fit) if whole else gallery.pictures_of_pixels(pixels),
        heats=heats,
        size_px=data.size_px,
        target=describe_targets(target, subject.found.classes, kind=kind),
        threshold=settings.threshold,
        decided_from=subject.decided_from,
        notes=notes,
        blind=config.blind,
    )


def rows_of(tiles: Tiles, subject: Subject, chosen: IntArray, *, root: str) -> IntArray:
    """Return where the chosen tiles of the evaluation lie among the tiles loaded now.

    Raises:
        ValueError: one is missing, or has another label.
    """
    row_of = {name: row for row, name in enumerate(tiles.ids)}
    rows = []
    for at in chosen.tolist():
        name = subject.found.ids[at]
        row = row_of.get(name)
        if row is None or tiles.labels[row] != subject.found.labels[at]:
            what = "has no tile" if row is None else "has another label for"
            raise ValueError(
                f"data.root: {root} {what} {name}, which {subject.evaluated} evaluated; give data.root=..., run sscl "
                "eval again, or set tiles=0 for a page without a gallery"
            )
        rows.append(row)
    return np.array(rows, dtype=np.int64)


def picture_notes(data: DataConfig, *, from_files: bool) -> list[str]:
    """Return what a reader must know about the images."""
    if not from_files:
        return []
    stain = "" if data.stain == "none" else f", after {data.stain} stain normalisation"
    return [f"images are the original files, up to {gallery.SIDE_PX} px; the classifier sees {data.size_px} px{stain}"]


def map_notes(kind: MapKind, checks: MapChecks | None, *, cells: MapCells) -> list[str]:
    """Return what a reader must know about the maps."""
    said = [f"maps: {kind}"]
    said += [str(cells)] if cells.coarse else []
    if checks is None:
        return [*said, "these maps were not checked (run sscl gradcam with checks=true)"]
    failed = [check.question.rstrip("?").lower() for check in checks.each.values() if check.outcome is Outcome.FAILED]
    if failed:
        return [*said, f"failed checks: {'; '.join(failed)} (see Heatmaps)"]
    open_ones = sum(check.outcome is not Outcome.PASSED for check in checks.each.values())
    undecided = f", {open_ones} of {len(checks.each)} are undecided" if open_ones else ""
    return [*said, f"no check failed{undecided} (see Heatmaps)"]
