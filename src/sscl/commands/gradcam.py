"""sscl gradcam: where the model looked, as heatmaps and boxes.

N tiles, K classes, S the side of a tile in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from sscl import augment, run, writing
from sscl.config import DataConfig, GradcamConfig
from sscl.data.folder import load_folder
from sscl.data.load import all_rows, describe_tiles, load_tiles, merge_data
from sscl.data.mhist import load_truth_masks
from sscl.data.tiles import Tiles, TileStore, place_store
from sscl.device import describe_device, pick_device, tune
from sscl.evaluate import calibration
from sscl.explain import box_checks, boxes, cam
from sscl.explain.checks import DRAWS, check_maps, checks_text, completeness_text, localisation_table
from sscl.explain.heatmaps import Heatmap, heatmaps
from sscl.explain.records import HitRates, Localisation, MapChecks
from sscl.explain.targets import Target, describe_layer, describe_target, resolve_target, target_classes
from sscl.models import features
from sscl.models.checkpoint import Checkpoint, run_of
from sscl.models.classifier import blank_classifier, check_classes, inference_precision, load_classifier
from sscl.models.heads import Classifier
from sscl.models.pixels import normalisation
from sscl.plots import cam as cam_plots
from sscl.plots.checks import write_checks
from sscl.records import write_record
from sscl.run import check_inputs_outside
from sscl.words import count

BOXES_HEADER = (
    *("picture", "id", "label", "prediction", "probability", "positive_evidence"),
    *boxes.BOX_COLUMNS,
    *("score_without_bias", "map_sum_misses"),
)


@dataclass(frozen=True, eq=False)
class Explainer:
    """Tiles, on the device, and how their maps are made.

    Attributes:
        mean, std: (3,), of the checkpoint. precision: of the logits, as in eval; maps are computed in float32.
    """

    tiles: Tiles
    store: TileStore
    target: Target
    mean: torch.Tensor
    std: torch.Tensor
    precision: str
    config: GradcamConfig

    def maps(
        self, model: Classifier, rows: NDArray[np.int64], name: str, *, logits: torch.Tensor | None = None
    ) -> Iterator[Heatmap]:
        """Yield the heatmap of each tile at `rows`.

        Args:
            name: of the progress bar. logits: of all tiles, (N, K), whose predictions are explained; None: the model's.
        """
        return heatmaps(
            model,
            self.store,
            rows,
            target=self.target if logits is None else target_classes(logits[torch.from_numpy(rows)], self.target),
            mean=self.mean,
            std=self.std,
            method=self.config.method,
            layers=self.config.layer,
            fuse=self.config.fuse,
            batch_size=self.config.batch_size,
            progress=self.bar(name),
        )

    def logits(self, model: Classifier) -> torch.Tensor:
        """Return the logits of all tiles, (N, K)."""
        return features.outputs(
            model,
            self.store,
            all_rows(self.tiles),
            mean=self.mean,
            std=self.std,
            batch_size=self.config.batch_size,
            precision=self.precision,
            progress=self.bar("predict"),
        )

    def pixels(self, rows: torch.Tensor) -> torch.Tensor:
        """Return tiles as the model sees them, (len(rows), 3, S, S)."""
        return augment.normalise(augment.to_unit(self.store.gather(rows)), mean=self.mean, std=self.std)

    def bar(self, name: str) -> str | None:
        return name if self.config.progress else None


def main(config: GradcamConfig, *, overwrite: bool = False) -> None:
    """Explain tiles with a finetune checkpoint; write panels, heatmaps, boxes and boxes.csv.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line.
    """
    device = pick_device(config.device)
    model, trained = load_classifier(config.checkpoint, device=device)
    precision = inference_precision(config.precision, device, fitted=trained.fitted.precision)
    classes = trained.classes
    target = resolve_target(config.target, classes)
    where = "images" if config.images is not None else config.split
    out = Path(config.out) if config.out is not None else run_of(config.checkpoint) / f"gradcam_{where}"
    run.check_run_folder(out, overwrite=overwrite)
    data = merge_data(trained.finetune_config.data, config.data)
    check_inputs_outside(out, {"data.root": data.root, "images": config.images})
    if config.layer:  # a wrong name is reported before the tiles are read
        empty = torch.zeros(1, 3, data.size_px, data.size_px, device=device)
        cam.class_maps(model, empty, target=0, method=config.method, layers=config.layer, fuse=config.fuse)
    tiles = load_explained_tiles(config, data, classes)
    print(f"device: {describe_device(device)}, precision {precision}")
    tune(device)
    store = place_store(tiles.images, device=device, budget_gb=data.device_budget_gb)
    explainer = Explainer(tiles, store, target, *normalisation(trained, device), precision, config)

    logits = explainer.logits(model)
    probabilities = calibration.softmax(logits, temperature=trained.fitted.temperature)  # (N, K)
    chosen = choose_tiles(tiles, probabilities, config)
    maps = list(explainer.maps(model, np.array(chosen, dtype=np.int64), "gradcam", logits=logits))
    n_random = DRAWS if config.checks else 1
    randoms = [random_classifier(trained, seed=config.random_seed + draw).to(device) for draw in range(n_random)]
    localised = localise(model, randoms[0], explainer, data)
    checked = check(model, randoms, explainer, logits) if config.checks else None

    run.start_folder(out, config, overwrite=overwrite)
    rows = [
        draw_tile(explainer, chosen[at], heatmap, probabilities[chosen[at]], classes, number=at, out=out)
        for at, heatmap in enumerate(maps)
    ]
    writing.write_csv(out / "boxes.csv", BOXES_HEADER, rows)
    files = ["*_panel.png", "*_heatmap.png", "*_box.png", "boxes.csv"]
    if localised is not None:
        write_record(out / "localisation.json", localised)
        files.append("localisation.json")
    if checked is not None:
        method = cam.METHODS[config.method]
        files += write_checks(checked, out=out, title=f"{method} of {describe_layer(config.layer, config.fuse)}")

    if config.images is None:
        print(describe_tiles(data, tiles, split=config.split))
    for line in summary(rows, maps, size_px=data.size_px, threshold=config.threshold):
        print(line)
    if localised is not None:
        print(localisation_table(localised))
    if checked is not None:
        print(checks_text(checked))
    print(f"wrote {out}/{', '.join(files)}")


def random_classifier(checkpoint: Checkpoint, *, seed: int) -> Classifier:
    """Return the checkpoint's classifier as it is before training, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return blank_classifier(checkpoint).eval()


def load_explained_tiles(config: GradcamConfig, data: DataConfig, classes: tuple[str, ...]) -> Tiles:
    """Return the tiles of the split, or of `images`, whose labels count only if their folders are the model's classes.

    Raises:
        ValueError, FileNotFoundError: tiles that cannot be used; ids that are not among them.
    """
    if config.images is None:
        tiles = load_tiles(data, split=config.split, progress=config.progress)
        check_classes(tiles, classes, checkpoint=config.checkpoint, root=data.root)
        missing = [name for name in config.ids if name not in tiles.ids]
        if missing:
            raise ValueError(f"ids: {missing[0]} is not among the {len(tiles)} tiles (for instance {tiles.ids[0]})")
        return tiles
    if config.ids:
        raise ValueError("ids: chooses tiles of the data set, and images are given; give either ids or images")
    tiles = load_folder(
        config.images, split="all", size_px=data.size_px, cache_dir=data.cache_dir, progress=config.progress
    )
    if tiles.classes == classes:
        return tiles
    unknown = np.full(len(tiles), -1, dtype=np.int64)
    return Tiles(images=tiles.images, labels=unknown, classes=(), ids=tiles.ids, groups=None, votes=None)


def choose_tiles(tiles: Tiles, probabilities: NDArray[np.float64], config: GradcamConfig) -> list[int]:
    """Return the rows to draw: the ids asked for, all of `images`, or each class's most confident hits and errors."""
    if config.images is not None:
        return list(range(len(tiles)))
    if config.ids:
        return [tiles.ids.index(name) for name in config.ids]
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    chosen: list[int] = []
    for label in range(len(tiles.classes)):
        for right in (True, False):
            rows = np.flatnonzero((tiles.labels == label) & ((predicted == label) == right))
            chosen += rows[np.argsort(-confidence[rows], kind="stable")][: config.per_class].tolist()
    return chosen


def localise(
    model: Classifier, random_model: Classifier, explainer: Explainer, data: DataConfig
) -> Localisation | None:
    """Return how often the maps of all tiles hit the truth masks, beside baselines; None without masks."""
    config, tiles = explainer.config, explainer.tiles
    if config.images is not None or data.source != "mhist":
        return None
    masks = load_truth_masks(data.root, tiles.ids, size_px=data.size_px)
    if masks is None or not masks.any():
        return None
    every = all_rows(tiles)

    def maps(of: Classifier, name: str) -> Iterator[NDArray[np.float32]]:
        return (heatmap.enlarged for heatmap in explainer.maps(of, every, name))

    def rates(of: Iterable[NDArray[np.float32]]) -> HitRates:
        return box_checks.localisation_rates(of, masks, threshold=config.threshold, all_thresholds=config.checks)

    return Localisation(
        this_model=rates(maps(model, "this model")),
        centre=rates(repeat(boxes.centre_map(data.size_px), len(tiles))),
        random_weights=rates(maps(random_model, "random weights")),
        whole_tile=box_checks.whole_tile_rates(masks, all_thresholds=config.checks),
    )


def check(
    model: Classifier, random_models: Sequence[Classifier], explainer: Explainer, logits: torch.Tensor
) -> MapChecks:
    """Return the checks of the maps, on tiles drawn by the seed. logits: of all tiles, (N, K)."""
    config = explainer.config

    def explain(of: torch.nn.Module, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        maps, _ = cam.class_maps(
            cast(Classifier, of),
            images,
            target=classes,
            method=config.method,
            layers=config.layer,
            fuse=config.fuse,
        )
        return maps

    drawn = np.random.default_rng(config.random_seed).permutation(len(logits))[: config.check_tiles]
    rows = torch.from_numpy(np.sort(drawn))
    images = explainer.pixels(rows)
    return check_maps(
        model,
        images,
        target_classes(logits[rows], explainer.target).to(images.device),
        explain=explain,
        random_models=random_models,
        threshold=config.threshold,
        seed=config.random_seed,
        batch_size=config.batch_size,
        progress=config.progress,
    )


def draw_tile(
    explainer: Explainer,
    row: int,
    heatmap: Heatmap,
    probabilities: NDArray[np.float64],
    classes: Sequence[str],
    *,
    number: int,
    out: Path,
) -> list[Any]:
    """Write the pictures of a tile and return its row of boxes.csv, in the columns of BOXES_HEADER."""
    tiles, config = explainer.tiles, explainer.config
    box = boxes.find_box(heatmap.enlarged, threshold=config.threshold)
    predicted = int(probabilities.argmax())
    truth = classes[tiles.labels[row]] if tiles.labels[row] >= 0 else "unknown"
    probability = float(probabilities[predicted])
    shown = describe_target(
        explainer.target, classes, predicted, method=config.method, layers=config.layer, fuse=config.fuse
    )
    title = (
        f"{tiles.ids[row]}\ntrue {truth}, predicted {classes[predicted]} ({probability:.2f}); map of {shown}"
        f"{'' if box is not None else '; no positive evidence, so no box'}"
    )
    name = f"{number:03d}_{cam_plots.short_name(Path(tiles.ids[row]).stem)}"
    cam_plots.draw_tile(tiles.images[row], heatmap.enlarged, box, title=title, out=out, name=name, method=config.method)
    return [
        *(name, tiles.ids[row], truth, classes[predicted], f"{probability:.6f}", "no" if box is None else "yes"),
        *boxes.box_cells(heatmap.enlarged, box, threshold=config.threshold),
        *(heatmap.score, heatmap.missed),
    ]


def summary(rows: Sequence[Sequence[Any]], maps: Sequence[Heatmap], *, size_px: int, threshold: float) -> Iterator[str]:
    """Yield what was drawn, in lines for the terminal. rows: of boxes.csv."""
    without = sum(row[BOXES_HEADER.index("positive_evidence")] == "no" for row in rows)
    yield f"{count(len(rows), 'tile')} explained, {without} without positive evidence"
    yield f"boxes: pixels of the {size_px} px tile, at least {threshold:g} of the map's maximum, 8-connected"
    misses = [heatmap.missed for heatmap in maps if heatmap.missed is not None]
    if misses:
        yield completeness_text(misses)
