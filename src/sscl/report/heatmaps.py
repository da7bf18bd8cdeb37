"""The section on heatmaps: how they were made, what their checks found, how well they hit truth masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sscl.plots import cam as cam_plots
from sscl.report import blocks
from sscl.report.blocks import Block, Section, interval, number

Json = Mapping[str, Any]
QUESTIONS = {
    "randomisation": "Do the maps depend on the trained weights?",
    "deletion_insertion": "Does the model rely on what the maps highlight?",
    "equivariance": "Do the maps rotate and flip with the tile?",
    "box_sensitivity": "Does the box stay the same when its threshold changes?",
}
TARGETS = {
    "auto": "logit of the predicted class; with two classes, minus that of the other",
    "difference": "logit of the predicted class minus that of the other",
    "predicted": "logit of the predicted class",
}


def heatmaps(name: str, *, config: Json, checks: Json | None, localised: Json | None) -> Section:
    """Return what the checks of heatmaps found, and how well they hit truth masks.

    Args:
        config: of `sscl gradcam`. checks: its checks.json; localised: its localisation.json; None = there is none.
    """
    layers = config.get("layer") or []
    layers = [layers] if isinstance(layers, str) else layers
    where = ", ".join(layers) + (f" ({config['fuse']})" if len(layers) > 1 else "") if layers else "the last features"
    facts = {
        "method": f"{config.get('method', 'gradcam')} of {where}",
        "target": TARGETS.get(config["target"]) or str(config["target"]),
        "box": f"largest region above {config['threshold']:.0%} of the maximum of the map",
    }
    found: list[Block] = [blocks.facts(facts)]
    if checks is not None:
        found.append(blocks.paragraph(f"Checked on {checks['tiles']} tiles."))
        for check in QUESTIONS:
            found += _check(name, check, checks[check])
    if localised:
        lines = [["", "peak on mask", "box IoU ≥ 0.5", "mean box IoU"]]
        for row, rates in localised.items():
            shares = (f"{number(rates[key])}{_brackets(rates.get(f'{key}_wilson'))}" for key in ("peak_hit", "box_hit"))
            lines.append([row, *shares, number(rates["mean_box_iou"])])
        tiles = next(iter(localised.values()))["tiles"]
        found.append(blocks.table(f"On the truth masks of {tiles:,} tiles", lines))
        found.append(
            blocks.paragraph(
                "A map that finds the evidence beats the baselines: a model with random weights, the centre of the "
                "tile, and the whole tile (a random point as the peak, the largest box). The Wilson 95% intervals in "
                "brackets assume independent tiles."
            )
        )
    return blocks.section(name, "Heatmaps", found)


def _brackets(pair: Sequence[float] | None) -> str:
    return "" if pair is None else f" ({interval(pair)})"


def _check(name: str, check: str, found: Json) -> list[Block]:
    """Return the verdict of one check and its chart, where there is something to draw."""
    said: list[Block] = [blocks.verdict(found["passed"], QUESTIONS[check], blocks.sentence(found["verdict"]))]
    title = f"{found['tiles']} tiles"
    if check == "randomisation" and found["tiles"]:
        said.append(
            blocks.figure(
                f"{name}-{check}",
                lambda path: cam_plots.plot_randomisation(found, path=path, title=title),
                alt="Agreement of the maps with those of models randomised from the head down: rank correlation "
                + ", ".join(
                    f"{stage} {value:.2f}"
                    for stage, value in zip(found["stages"], found["rank_correlation"]["mean"], strict=True)
                ),
                caption="The classifier is randomised from its head down, block by block. Maps that stay similar show "
                "edges of the tile, not what was learned.",
            )
        )
    elif check == "deletion_insertion" and found["passed"] is not None:
        areas = [
            f"{way} {order} {of['auc']:.3f} ({interval(of['interval'])})"
            for way in ("deletion", "insertion")
            for order, of in found[way].items()
        ]
        said.append(
            blocks.figure(
                f"{name}-{check}",
                lambda path: cam_plots.plot_deletion_insertion(found, path=path, title=title),
                alt=f"Areas under the curves: {', '.join(areas)}",
                caption="Probability while the pixels the map highlights are blurred first (deletion) or restored "
                "first (insertion), compared with random patches and with patches from the centre outwards.",
            )
        )
    elif check == "box_sensitivity" and found["passed"] is not None:
        areas = [
            f"{threshold:.0%}: {area:.2f}"
            for threshold, area in zip(found["thresholds"], found["area_fraction"]["mean"], strict=True)
        ]
        said.append(
            blocks.figure(
                f"{name}-{check}",
                lambda path: cam_plots.plot_box_sensitivity(found, path=path, title=title),
                alt=f"Fraction of the tile in the box, by threshold: {', '.join(areas)}",
                caption="Size, position and overlap of the box as its threshold changes.",
            )
        )
    return said
