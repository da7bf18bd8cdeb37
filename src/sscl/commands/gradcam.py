"""sscl gradcam: where the model looked, as heatmaps and boxes.

N tiles, K classes, S the side of a tile in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sscl import run, writing
from sscl.config import GradcamConfig
from sscl.data.folder import load_folder
from sscl.data.load import accounts, describe_tiles, load_tiles
from sscl.data.synthetic import is_synthetic
from sscl.data.tiles import Tiles, place_store
from sscl.device import describe_device, pick_device, tune
from sscl.evaluate import calibration, lineage
from sscl.evaluate.lineage import Choice
from sscl.evaluate.metrics import shown_classes, shown_of
from sscl.explain import boxes, cam
from sscl.explain.cells import map_cells
from sscl.explain.checks import DRAWS, checks_text, completeness_text, localisation_table
from sscl.explain.choice import chosen_maps
from sscl.explain.explainer import Explainer, check, localise, random_classifier
from sscl.explain.heatmaps import Heatmap
from sscl.explain.targets import describe_target, describe_targets
from sscl.models.checkpoint import run_of, unfinished_notes
from sscl.models.classifier import inference_precision, load_classifier, with_classes_of
from sscl.models.pixels import normalisation
from sscl.plots import cam as cam_plots
from sscl.plots.checks import write_checks
from sscl.records import write_record
from sscl.slides.index import is_index
from sscl.slides.places import TileIds
from sscl.words import as_typed, count, say_next, shortened, wrapped

BOXES_HEADER = (
    *("picture", "id", "label", "prediction", "probability", "positive_evidence"),
    *boxes.BOX_COLUMNS,
    *("score_without_bias", "map_sum_misses"),
)


def main(config: GradcamConfig, *, overwrite: bool = False) -> None:
    """Explain tiles with a finetune checkpoint; write panels, heatmaps, boxes and boxes.csv."""
    device = pick_device(config.device)
    model, trained = load_classifier(config.checkpoint, device=device)
    precision = inference_precision(config.precision, device, fitted=trained.fitted.precision)
    classes = trained.classes
    target, kind = chosen_maps(config, classes, model)
    own_layers = not config.layer and kind.layers
    config = config.model_copy(update={"layer": kind.layers, "fuse": kind.fuse})  # what is written says what it was
    choice = lineage.choose(trained, config.data, split=config.split)
    data = choice.data
    there = run_of(config.checkpoint)
    own = there / "gradcam_images" if config.images is not None else choice.folder(there, "gradcam")
    out = Path(config.out) if config.out is not None else own
    inputs = {**data.files("data"), "images": config.images}
    with run.whole_folder(out, config, overwrite=overwrite, inputs=inputs) as unfinished:
        # A wrong layer, or a method that the encoder does not have, is reported before the tiles are read.
        empty = torch.zeros(1, 3, data.size_px, data.size_px, device=device)
        cam.class_maps(model, empty, target=0, kind=kind)
        tiles = load_explained_tiles(config, choice, classes)
        scales = lineage.scale_caveats(data, tiles, trained) if config.images is None else []
        for note in [*unfinished_notes(config.checkpoint), *scales]:
            print(f"note: {note}")
        print(f"device: {describe_device(device)}, precision {precision}")
        tune(device)
        store = place_store(tiles.images, device=device, budget_gb=data.device_budget_gb)
        explainer = Explainer(tiles, store, target, kind, *normalisation(trained, device), precision, config)

        logits = explainer.logits(model)
        probabilities = calibration.softmax(logits, temperature=trained.fitted.temperature)  # (N, K)
        chosen = choose_tiles(tiles, probabilities, config)
        maps = list(explainer.maps(model, np.array(chosen, dtype=np.int64), "gradcam", logits=logits))
        n_random = DRAWS if config.checks else 1
        randoms = [random_classifier(trained, seed=config.random_seed + draw).to(device) for draw in range(n_random)]
        localised = localise(model, randoms[0], explainer, data)
        checked = check(model, randoms, explainer, logits) if config.checks else None

        found = [
            boxes.find_box(heatmap.enlarged, threshold=config.threshold, cells=max(heatmap.cells.shape))
            for heatmap in maps
        ]
        synthetic = is_synthetic(data.source, tiles.ids)
        digits = max(3, len(str(len(chosen) - 1)))
        rows = [
            draw_tile(
                *(explainer, row, heatmap, box),
                probabilities=probabilities[row],
                classes=classes,
                name=f"{number:0{digits}d}_{cam_plots.short_name(file_stem(tiles, row))}",
                out=unfinished,
                synthetic=synthetic,
            )
            for number, (row, heatmap, box) in enumerate(zip(chosen, maps, found, strict=True))
        ]
        writing.write_csv(unfinished / "boxes.csv", BOXES_HEADER, rows)
        files = ["*_panel.png", "*_heatmap.png", "*_box.png", "boxes.csv"]
        if localised is not None:
            write_record(unfinished / "localisation.json", localised)
            files.append("localisation.json")
        if checked is not None:
            files += write_checks(checked, out=unfinished, title=str(kind))

    if config.images is None:
        print(describe_tiles(data, tiles, split=choice.split))
    for line in accounts({"all": tiles}) if config.images is not None else ():
        print(line)
    left_out = shown_of(len(tiles.classes), others="name others with ids=[...]")
    if left_out and config.images is None and not config.ids:
        print(wrapped(f"tiles of {left_out}"))
    print(wrapped(str(map_cells(model, size_px=data.size_px, kind=kind))))
    print(wrapped(f"maps: {kind}; {describe_targets(target, classes, kind=kind)}"))
    if own_layers:
        print("these layers since no patch leads to the class token, which is in the feature, from later ones")
    for line in summary(found, maps, size_px=data.size_px, threshold=config.threshold, synthetic=synthetic):
        print(wrapped(line))
    for section in (
        None if localised is None else localisation_table(localised),
        None if checked is None else checks_text(checked),
        f"wrote {out}/{', '.join(files)}",
    ):
        if section is not None:
            print(f"\n{section}")
    elsewhere = [as_typed(f"data.{key}", value) for key, value in config.data.items()] if choice.external else []
    if config.images is not None:
        say_next("predict", run_of(config.checkpoint), config.images)
    else:
        say_next("report", there, *elsewhere)


def load_explained_tiles(config: GradcamConfig, choice: Choice, classes: tuple[str, ...]) -> Tiles:
    """Return the tiles of the split, or of `images`, whose labels count if their folders are the model's classes."""
    data = choice.data
    if config.images is None:
        tiles = load_tiles(data, split=choice.split, progress=config.progress)
        tiles = with_classes_of(tiles, classes, checkpoint=config.checkpoint, data=data)
        missing = [name for name in config.ids if name not in tiles.ids]
        if missing:
            raise ValueError(f"ids: {missing[0]} is not among the {len(tiles)} tiles (for instance {tiles.ids[0]})")
        return tiles
    if config.ids:
        raise ValueError("ids: chooses tiles of the data set, and images are given; give either ids or images")
    if is_index(Path(config.images)):
        raise ValueError(f"images: {config.images} is an index of slides; give it as data.root={config.images}")
    tiles = load_folder(
        config.images, split="all", size_px=data.size_px, cache_dir=data.cache_dir, progress=config.progress
    )
    if tiles.classes == classes:
        return tiles
    unknown = np.full(len(tiles), -1, dtype=np.int64)
    return Tiles(
        images=tiles.images, labels=unknown, classes=(), ids=tiles.ids, groups=None, votes=None, account=tiles.account
    )


def choose_tiles(tiles: Tiles, probabilities: NDArray[np.float64], config: GradcamConfig) -> list[int]:
    """Return the rows to draw: the ids asked for, all of `images`, or each class's most confident hits and errors.

    Of many classes, those of `metrics.shown_classes`.
    """
    if config.images is not None:
        return list(range(len(tiles)))
    if config.ids:
        return [tiles.ids.index(name) for name in config.ids]
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    chosen: list[int] = []
    known, many = tiles.labels >= 0, len(tiles.classes)
    tiles_of = np.bincount(tiles.labels[known], minlength=many)
    hits_of = np.bincount(tiles.labels[known & (predicted == tiles.labels)], minlength=many)
    recalls = np.where(tiles_of > 0, hits_of / np.maximum(tiles_of, 1), np.nan)
    for label in shown_classes(recalls):
        for right in (True, False):
            rows = np.flatnonzero((tiles.labels == label) & ((predicted == label) == right))
            chosen += rows[np.argsort(-confidence[rows], kind="stable")][: config.per_class].tolist()
    return chosen


def file_stem(tiles: Tiles, row: int) -> str:
    """Return what the pictures of a tile are called: the stem of its file, or its slide's and its place in it."""
    path = Path(tiles.ids[row])
    return f"{path.parent.stem}_{path.name}" if isinstance(tiles.ids, TileIds) else path.stem


def draw_tile(
    explainer: Explainer,
    row: int,
    heatmap: Heatmap,
    box: boxes.Box | None,
    *,
    probabilities: NDArray[np.float64],
    classes: Sequence[str],
    name: str,
    out: Path,
    synthetic: bool,
) -> list[Any]:
    """Write the pictures of a tile and return its row of boxes.csv, in the columns of BOXES_HEADER.

    Args:
        row: of the tile. box: of its map. probabilities: of the tile, (K,). name: of its pictures.
        synthetic: whether the tile was drawn by a program, which the caption then says.
    """
    tiles, config = explainer.tiles, explainer.config
    predicted = int(probabilities.argmax())
    truth = classes[tiles.labels[row]] if tiles.labels[row] >= 0 else "unknown"
    probability = float(probabilities[predicted])
    shown = describe_target(explainer.target, classes, probabilities, kind=explainer.kind)
    title = f"{tiles.ids[row]}{', a synthetic tile' if synthetic else ''}"
    seen, said = shortened(truth, 60), shortened(classes[predicted], 60)
    title += f"\ntrue {seen}, predicted {said} ({probability:.2f}); map of {shown}"
    title += f"; {boxes.remark(box)}" if boxes.remark(box) else ""
    cam_plots.draw_tile(
        *(tiles.images[row], heatmap.enlarged, box),
        title=title,
        out=out,
        name=name,
        kind=explainer.kind,
    )
    return [
        *(name, tiles.ids[row], truth, classes[predicted], f"{probability:.6f}", "no" if box is None else "yes"),
        *boxes.box_cells(heatmap.enlarged, box, threshold=config.threshold),
        *(heatmap.score, heatmap.missed),
    ]


def summary(
    found: Sequence[boxes.Box | None], maps: Sequence[Heatmap], *, size_px: int, threshold: float, synthetic: bool
) -> Iterator[str]:
    """Yield what was drawn, in lines for the terminal. found, maps: of the tiles."""
    yield f"{count(len(found), 'synthetic tile' if synthetic else 'tile')} explained, {boxes.remarks(found)}"
    yield f"boxes: pixels of the {size_px} px tile, at least {threshold:g} of the map's maximum, 8-connected"
    misses = [heatmap.missed for heatmap in maps if heatmap.missed is not None]
    if misses:
        yield completeness_text(misses)
