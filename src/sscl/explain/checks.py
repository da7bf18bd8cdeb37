"""The checks of `sscl gradcam checks=true`: all four in one call, and how the terminal reports them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sscl.evaluate.intervals import Groups, with_interval
from sscl.explain import box_checks, cam, map_checks
from sscl.explain.deletion_insertion import deletion_insertion
from sscl.explain.records import Localisation, MapChecks
from sscl.words import count, wrapped

DRAWS = 3  # models with random weights
HOW = {
    "randomisation": "weights randomised block by block, from the head down",
    "deletion_insertion": "pixels blurred, and restored, in the map's order",
    "equivariance": "7 rotations and reflections",
    "box_sensitivity": "a fifth lower, and a fifth higher",
}


def check_maps(
    model: nn.Module,
    images: torch.Tensor,
    classes: torch.Tensor,
    *,
    explain: map_checks.Explain,
    random_models: Sequence[nn.Module],
    groups: Groups | None = None,
    threshold: float,
    seed: int,
    batch_size: int,
    progress: bool,
) -> MapChecks:
    """Return what the four checks found.

    Args:
        model: the trained model, in eval mode. images: (N, 3, S, S), normalised.
        classes: what is explained, (N, 1 or 2).
        explain: makes maps. random_models: the model with random weights, several times. threshold: of the boxes.
        groups: slide or patient of each tile, (N,); None = independent tiles.
        seed: of the random order. batch_size: tiles at a time. progress: whether to show bars.
    """

    def bar(name: str) -> str | None:
        return name if progress else None

    maps = torch.cat(
        [
            explain(model, images[start : start + batch_size], classes[start : start + batch_size])
            for start in range(0, len(images), batch_size)
        ]
    )
    large = cam.upsample(maps, size_px=images.shape[-1]).float().cpu().numpy()
    return MapChecks(
        tiles=len(images),
        randomisation=map_checks.randomisation(
            model,
            random_models,
            images,
            classes,
            explain=explain,
            groups=groups,
            batch_size=batch_size,
            progress=bar("random weights"),
        ),
        deletion_insertion=deletion_insertion(
            model,
            images,
            classes,
            maps,
            groups=groups,
            seed=seed,
            batch_size=batch_size,
            progress=bar("deletion, insertion"),
        ),
        equivariance=map_checks.equivariance(
            model,
            images,
            classes,
            explain=explain,
            groups=groups,
            batch_size=batch_size,
            progress=bar("rotated tiles"),
        ),
        box_sensitivity=box_checks.box_sensitivity(list(large), threshold=threshold, groups=groups),
    )


def checks_text(found: MapChecks) -> str:
    """Return the checks as lines for the terminal: the question, the numbers, the verdict."""
    lines = [f"Checks of the maps, on {count(found.tiles, 'tile')}"]
    for name, check in found.each.items():
        lines.append(wrapped(f"{check.question} ({HOW[name]})", indent=2))
        if name == "deletion_insertion":
            areas = found.deletion_insertion
            for way, better, curves in (
                ("deletion", "lower", areas.deletion),
                ("insertion", "higher", areas.insertion),
            ):
                others = ", ".join(f"{order} {of.auc:.3f}" for order, of in curves.items() if order != "map")
                area = with_interval(curves["map"].auc, curves["map"].interval)
                lines.append(wrapped(f"{way} AUC ({better} is better): map {area}, {others}", indent=4))
        lines.append(wrapped(check.verdict, indent=4))
    return "\n".join(lines)


def completeness_text(missed: Sequence[float]) -> str:
    """Return a line on how much the sums of the maps differ from the scores, in logits."""
    largest = max(map(abs, missed))
    said = (
        "the maps account for the whole score"
        if largest < 1e-3
        else "the maps miss part of the score: the model does not end in mean pooling and a linear layer"
    )
    maps = count(len(missed), "map")
    return f"map sum against score without bias, largest difference of {maps}: {largest:.1e} logits; {said}"


def localisation_table(localised: Localisation) -> str:
    """Return the hit rates as lines for the terminal."""
    centre = localised.centre
    given = centre.peak_hit_interval is not None
    lines = [
        f"Truth masks of {count(centre.tiles, 'tile')}",
        wrapped(f"{'in brackets: ' if given else ''}{centre.interval_method}", indent=2),
        f"{'':<18}{'peak on mask':<24}{'boxes, mean IoU':<24}one box",
    ]
    for name, rates in localised.each.items():
        cells = (
            with_interval(rates.peak_hit, rates.peak_hit_interval),
            with_interval(rates.mean_boxes_iou, rates.mean_boxes_iou_interval),
        )
        lines.append(f"  {name:<16}" + "".join(f"{cell:<24}" for cell in cells) + f"{rates.mean_box_iou:.3f}")
    lines.append("  (whole tile: peak at a random point; boxes: all of a map, against those around")
    lines.append("  the parts of the mask; one box: that of the peak, against one around all parts)")
    for name, gain in localised.gains.items():
        lines.append(f"  boxes, gain over {name:<16}{with_interval(gain.mean, gain.interval, '+.3f')}")
    if centre.max_box_accuracy is not None:
        lines.append(f"  {'one box, accuracy at the best threshold':<40}IoU >= 0.3   IoU >= 0.5   IoU >= 0.7")
        for name, rates in localised.each.items():
            best = (rates.max_box_accuracy or {}).values()
            shown = (f"{of.accuracy:.3f}" + ("" if of.threshold is None else f" ({of.threshold:g})") for of in best)
            lines.append(f"    {name:<38}" + "".join(f"{cell:<13}" for cell in shown).rstrip())
    return "\n".join(lines)
