"""sscl gradcam: where the model looked, as heatmaps and boxes.

N tiles, K classes, S the side of a tile in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from sscl import augment, run, writing
from sscl.config import DataConfig, GradcamConfig, plain
from sscl.data.folder import load_folder
from sscl.data.load import all_rows, describe_tiles, load_tiles, merge_data
from sscl.data.mhist import load_truth_masks
from sscl.data.tiles import Tiles, TileStore, place_store
from sscl.device import describe_device, pick_device
from sscl.evaluate import calibration
from sscl.explain import box_checks, cam
from sscl.explain.checks import DRAWS, check_maps, checks_text, completeness_text
from sscl.explain.targets import describe_layer, describe_target, resolve_target, target_of
from sscl.models import features
from sscl.models.checkpoint import Checkpoint, run_of
from sscl.models.classifier import blank_classifier, check_classes, load_classifier
from sscl.models.heads import Classifier
from sscl.models.pixels import normalisation
from sscl.plots import cam as cam_plots
from sscl.plots.cam import BOX_FIELDS, METHOD_NAMES
from sscl.plots.checks import write_checks
from sscl.run import check_inputs_outside


class Heatmap(NamedTuple):
    """A tile's raw map, (S, S) before ReLU and scaling, enlarged to tile size.

    `score` is what it explains, without the bias, and `missed` by how much its sum before enlarging misses that, both
    in logits; None where maps do not sum to the score.
    """

    raw: NDArray[np.float32]
    score: float | None
    missed: float | None


def main(config: GradcamConfig, *, overwrite: bool = False) -> None:
    """Explain tiles with a finetune checkpoint; write panels, heatmaps, boxes and boxes.csv.

    Raises:
        ValueError, FileNotFoundError: input that a user can mend, in one line.
    """
    device = pick_device(config.device)
    model, trained = load_classifier(config.checkpoint, device=device)
    classes = trained.classes
    wanted = target_of(resolve_target(config.target, classes))
    where = "images" if config.images is not None else config.split
    out = Path(config.out) if config.out is not None else run_of(config.checkpoint) / f"gradcam_{where}"
    run.check_run_folder(out, overwrite=overwrite)
    data = merge_data(trained.finetune_config.data, config.data)
    check_inputs_outside(out, {"data.root": data.root, "images": config.images})
    explain = partial(cam.class_maps, method=config.method, layers=config.layer, fuse=config.fuse)
    if config.layer:  # a wrong name is told before the tiles are read
        explain(model, torch.zeros(1, 3, data.size_px, data.size_px, device=device), target=0)
    tiles = load_explained_tiles(config, data, trained.classes)
    store = place_store(tiles.images, device=device, budget_gb=data.device_budget_gb)
    mean, std = normalisation(trained, device)
    print(f"device: {describe_device(device)}")

    def maps_of(net: Classifier, rows: NDArray[np.int64], name: str) -> Iterator[Heatmap]:
        bar = name if config.progress else None
        return explain_rows(net, store, rows, target=wanted, mean=mean, std=std, config=config, progress=bar)

    everything = all_rows(tiles)
    logits = features.outputs(
        model,
        store,
        everything,
        mean=mean,
        std=std,
        batch_size=config.batch_size,
        progress="predict" if config.progress else None,
    )
    probabilities = calibration.softmax(logits, temperature=trained.fitted.temperature)  # (N, K)
    chosen = choose_tiles(tiles, probabilities, config)
    maps = list(maps_of(model, np.array(chosen, dtype=np.int64), "gradcam"))
    localised = None
    masks = None
    if config.images is None and data.source == "mhist":
        masks = load_truth_masks(data.root, tiles.ids, size_px=data.size_px)
    if masks is not None and masks.any():
        blank = random_net(trained, seed=config.random_seed).to(device)
        named = {
            "this model": (heatmap.raw for heatmap in maps_of(model, everything, "this model")),
            "centre": repeat(cam.centre_map(data.size_px), len(tiles)),
            "random weights": (heatmap.raw for heatmap in maps_of(blank, everything, "random weights")),
        }
        localised = {
            name: box_checks.localisation_rates(of, masks, threshold=config.threshold, all_thresholds=config.checks)
            for name, of in named.items()
        } | {"whole tile": box_checks.whole_tile_rates(masks, all_thresholds=config.checks)}
    checked = None
    if config.checks:
        picked = np.random.default_rng(config.random_seed).permutation(len(tiles))[: config.check_tiles]
        rows_checked = torch.from_numpy(np.sort(picked))
        checked = check_maps(
            model,
            augment.normalise(augment.to_unit(store.gather(rows_checked)), mean=mean, std=std),
            cam.target_classes(logits[rows_checked], wanted).to(device),
            explain=lambda net, images, classes: explain(cast(Classifier, net), images, target=classes)[0],
            blanks=[random_net(trained, seed=config.random_seed + draw).to(device) for draw in range(DRAWS)],
            threshold=config.threshold,
            seed=config.random_seed,
            batch_size=config.batch_size,
            progress=config.progress,
        )

    run.start_folder(out, config=plain(config), overwrite=overwrite)
    rows = []
    shown: dict[str, Any] = {"method": config.method, "layers": config.layer, "fuse": config.fuse}
    for number, (row, (raw, score, missed)) in enumerate(zip(chosen, maps, strict=True)):
        box = cam.find_box(raw, threshold=config.threshold)
        predicted = int(probabilities[row].argmax())
        truth = classes[tiles.labels[row]] if tiles.labels[row] >= 0 else "unknown"
        probability = float(probabilities[row, predicted])
        evidence = "yes" if box is not None else "no"
        title = (
            f"{tiles.ids[row]}\ntrue {truth}, predicted {classes[predicted]} ({probability:.2f}); "
            f"map of {describe_target(config.target, classes, predicted, **shown)}"
            + ("" if box is not None else "; no positive evidence, so no box")
        )
        name = f"{number:03d}_{cam_plots.short_name(Path(tiles.ids[row]).stem)}"
        cam_plots.draw_tile(tiles.images[row], raw, box, title=title, out=out, name=name, method=config.method)
        values = cam_plots.box_values(raw, box, threshold=config.threshold)
        rows.append(
            [name, tiles.ids[row], truth, classes[predicted], f"{probability:.6f}", evidence, *values, score, missed]
        )
    header = ["picture", "id", "label", "prediction", "probability", "positive_evidence", *BOX_FIELDS]
    header += ["score_without_bias", "map_sum_misses"]
    writing.write_csv(out / "boxes.csv", header, rows)
    writing.write_json(out / "localisation.json", localised)
    if config.images is None:
        print(describe_tiles(data, tiles, split=config.split))
    blank_maps = sum(row[5] == "no" for row in rows)
    print(
        f"{len(rows)} tiles explained ({blank_maps} without positive evidence); boxes in pixels of the "
        f"{data.size_px} px tile, threshold {config.threshold:g} of the maximum, 8-connected"
    )
    misses = [heatmap.missed for heatmap in maps if heatmap.missed is not None]
    if misses:
        print(completeness_text(misses))
    if localised is not None:
        print(localisation_table(localised))
    files = ["*_panel.png", "*_heatmap.png", "*_box.png", "boxes.csv", "localisation.json"]
    if checked is not None:
        files += write_checks(
            checked, out=out, title=f"{METHOD_NAMES[config.method]} of {describe_layer(config.layer, config.fuse)}"
        )
        print(checks_text(checked))
    print(f"wrote {out}/{', '.join(files)}")


def random_net(checkpoint: Checkpoint, *, seed: int) -> Classifier:
    """Return the checkpoint's classifier as it is before training, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return blank_classifier(checkpoint).eval()


def load_explained_tiles(config: GradcamConfig, data: DataConfig, classes: tuple[str, ...]) -> Tiles:
    """Return the tiles of the split, or of `images`; there labels count only if the folders are the model's classes."""
    if config.images is None:
        tiles = load_tiles(data, split=config.split, progress=config.progress)
        check_classes(tiles, classes, checkpoint=config.checkpoint, root=data.root)
        missing = [name for name in config.ids if name not in tiles.ids]
        if missing:
            raise ValueError(f"ids: {missing[0]} is not among the {len(tiles)} tiles (for instance {tiles.ids[0]})")
        return tiles
    if config.ids:
        raise ValueError("ids: choose tiles of the data set; give either ids or images")
    tiles = load_folder(
        config.images, split="all", size_px=data.size_px, cache_dir=data.cache_dir, progress=config.progress
    )
    if tiles.classes == classes:
        return tiles
    unknown = np.full(len(tiles), -1, dtype=np.int64)
    return Tiles(images=tiles.images, labels=unknown, classes=(), ids=tiles.ids, groups=None, votes=None)


def explain_rows(
    model: Classifier,
    store: TileStore,
    rows: NDArray[np.int64],
    *,
    target: cam.Target,
    mean: torch.Tensor,
    std: torch.Tensor,
    config: GradcamConfig,
    progress: str | None,
) -> Iterator[Heatmap]:
    """Yield the heatmap of each tile at `rows`."""
    for part in features.batches(rows, batch_size=config.batch_size, progress=progress):
        x = augment.normalise(augment.to_unit(store.gather(part)), mean=mean, std=std)
        raw, logits = cam.class_maps(
            model, x, target=target, method=config.method, layers=config.layer, fuse=config.fuse
        )
        large = cam.upsample(raw, size_px=x.shape[-1]).float().cpu().numpy()
        if config.method not in cam.COMPLETE or config.layer:
            yield from (Heatmap(one, None, None) for one in large)
            continue
        score, missed = cam.unexplained(raw, logits, bias=model.head.bias, target=target)
        yield from map(Heatmap, large, score.tolist(), missed.tolist())


def choose_tiles(tiles: Tiles, probabilities: NDArray[np.float64], config: GradcamConfig) -> list[int]:
    """Return the rows to draw: the wanted ids, all of `images`, or the most confident right and wrong of each class."""
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


def interval_text(pair: Sequence[float] | None) -> str:
    return "" if pair is None else f" ({pair[0]:.3f} to {pair[1]:.3f})"


def localisation_table(localised: dict[str, dict[str, Any]]) -> str:
    """Return the rates as lines for the terminal."""
    first = next(iter(localised.values()))
    heading = f"on the truth masks of {first['tiles']} tiles:"
    lines = [f"{heading:<38}{'peak on mask':<26}{'box IoU >= 0.5':<26}mean box IoU"]
    for name, rates in localised.items():
        cells = [f"{rates[key]:.3f}{interval_text(rates.get(f'{key}_wilson'))}" for key in ("peak_hit", "box_hit")]
        lines.append(f"  {name:<36}" + "".join(f"{cell:<26}" for cell in cells) + f"{rates['mean_box_iou']:.3f}")
    lines.append("  in brackets 95% by Wilson, for independent tiles; whole tile: a point at random, the largest box")
    if "max_box_accuracy" in first:
        lines.append(
            "box accuracy at the best threshold for these tiles:" + " " * 5 + "IoU >= 0.3   IoU >= 0.5   IoU >= 0.7"
        )
        for name, rates in localised.items():
            best = rates["max_box_accuracy"].values()
            cells = [
                f"{of['accuracy']:.3f}" + ("" if of["threshold"] is None else f" ({of['threshold']:.0%})")
                for of in best
            ]
            lines.append(f"  {name:<51}" + "".join(f"{cell:>13}" for cell in cells))
    return "\n".join(lines)
