"""The section on heatmaps: how they were made, what their checks found, how well they hit truth masks."""

from __future__ import annotations

from collections.abc import Sequence

from sscl.config import GradcamConfig
from sscl.evaluate.verdicts import Outcome
from sscl.explain.kinds import WHATEVER_CLASS, MapKind
from sscl.explain.records import BoxSensitivity, DeletionInsertion, Localisation, MapChecks, Randomisation
from sscl.explain.targets import difference_in_words
from sscl.plots import checks as check_plots
from sscl.report import blocks
from sscl.report.blocks import Block, Section, interval, number
from sscl.words import count


def heatmaps(name: str, *, config: GradcamConfig, checks: MapChecks | None, localised: Localisation | None) -> Section:
    """Return what the checks of heatmaps found, and how well they hit truth masks.

    Args:
        config: of `sscl gradcam`. checks, localised: what it wrote; None = it did not.
    """
    kind = MapKind(config.method, tuple(config.layer), config.fuse, config.gamma)
    facts = {
        "method": str(kind),
        "target": WHATEVER_CLASS.get(kind.method) or _target(config),
        "box": f"region around the maximum, above {config.threshold:.0%} of it",
    }
    found: list[Block] = [blocks.facts(facts)]
    if checks is not None:
        found.append(blocks.paragraph(f"Checked on {count(checks.tiles, 'tile')}."))
        found += _checked(name, checks)
    if localised is not None:
        lines = [["", "peak on mask", "boxes, mean IoU", "gain of this model", "one box ≥ 0.5", "one box, mean IoU"]]
        for row, rates in localised.each.items():
            gain = localised.gains.get(row)
            cells = (
                f"{number(rates.peak_hit)}{_brackets(rates.peak_hit_interval)}",
                f"{number(rates.mean_boxes_iou)}{_brackets(rates.mean_boxes_iou_interval)}",
                "" if gain is None else f"{gain.mean:+.3f}{_brackets(gain.interval)}",
                f"{number(rates.box_hit)}{_brackets(rates.box_hit_interval)}",
            )
            lines.append([row, *cells, number(rates.mean_box_iou)])
        caption = f"On the truth masks of {count(localised.centre.tiles, 'tile')}"
        found.append(blocks.table(caption, lines))
        found.append(
            blocks.paragraph(
                "A map that finds the evidence beats the baselines: a model with random weights, the centre of the "
                "tile, and the whole tile (a random point as the peak, the largest box). Boxes: the area in all boxes "
                "of a map against that around the parts of the mask. One box: that of the peak, against one around all "
                f"parts. In brackets: {localised.centre.interval_method}."
            )
        )
    return blocks.section(name, "Heatmaps", found, hint="how they are made, and what their checks found")


def _target(config: GradcamConfig) -> str:
    if config.target in ("auto", "difference"):
        return difference_in_words(references=config.references, gamma=config.gamma)
    return "logit of the predicted class" if config.target == "predicted" else config.target


def _brackets(pair: Sequence[float] | None) -> str:
    return "" if pair is None else f" ({interval(pair)})"


def _checked(name: str, checks: MapChecks) -> list[Block]:
    """Return the verdict of each check, and its chart where there is something to draw."""
    charts = {
        "randomisation": _randomisation(name, checks.randomisation),
        "deletion_insertion": _deletion_insertion(name, checks.deletion_insertion),
        "box_sensitivity": _box_sensitivity(name, checks.box_sensitivity),
    }
    found: list[Block] = []
    for key, check in checks.each.items():
        found.append(blocks.verdict(check.outcome, check.question, blocks.sentence(check.reason)))
        found += charts.get(key, [])
    return found


def _randomisation(name: str, found: Randomisation) -> list[Block]:
    if not found.tiles:
        return []
    values = zip(found.stages, found.rank_correlation.mean, strict=True)
    return [
        blocks.figure(
            f"{name}-randomisation",
            lambda path: check_plots.plot_randomisation(found, path=path, title=count(found.tiles, "tile")),
            alt="Similarity of the maps to those of models randomised from the head down: rank correlation "
            + ", ".join(f"{stage} {value:.2f}" for stage, value in values),
            caption="The classifier is randomised block by block, from the head down. Maps that remain similar show "
            "the tile's edges, not what the model learned.",
        )
    ]


def _deletion_insertion(name: str, found: DeletionInsertion) -> list[Block]:
    if found.outcome is Outcome.NOT_ASSESSED:
        return []
    areas = [
        f"{way} {order} {of.auc:.3f}{_brackets(of.interval)}"
        for way, curves in (("deletion", found.deletion), ("insertion", found.insertion))
        for order, of in curves.items()
    ]
    return [
        blocks.figure(
            f"{name}-deletion_insertion",
            lambda path: check_plots.plot_deletion_insertion(found, path=path, title=count(found.tiles, "tile")),
            alt=f"Areas under the curves: {', '.join(areas)}",
            caption="Probability while the highlighted pixels are blurred first (deletion) or restored first "
            "(insertion), compared with a random order and an order from the centre outwards.",
        )
    ]


def _box_sensitivity(name: str, found: BoxSensitivity) -> list[Block]:
    if not found.tiles:
        return []
    areas = zip(found.thresholds, found.area_fraction.mean, strict=True)
    return [
        blocks.figure(
            f"{name}-box_sensitivity",
            lambda path: check_plots.plot_box_sensitivity(found, path=path, title=count(found.tiles, "tile")),
            alt="Fraction of the tile in the box, by threshold: "
            + ", ".join(f"{threshold:g}: {area:.2f}" for threshold, area in areas),
            caption="Size, position and overlap of the box as its threshold changes.",
        )
    ]
