"""What `sscl gradcam checks=true` asks of the heatmaps, and how it says the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sscl.explain import box_checks, cam, map_checks

DRAWS = 3  # nets with random weights


def check_maps(
    model: nn.Module,
    images: torch.Tensor,
    classes: torch.Tensor,
    *,
    explain: map_checks.Explain,
    blanks: Sequence[nn.Module],
    threshold: float,
    seed: int,
    batch_size: int,
    progress: bool,
) -> dict[str, Any]:
    """Return what the checks found, each with its `question`, its `verdict` and whether it `passed`.

    Args:
        model: the trained net, in eval mode. images: (N, 3, S, S), normalised.
        classes: what is explained, (N, 1 or 2).
        explain: makes maps. blanks: nets with random weights. threshold: of the boxes.
        seed: of the random order and the bootstrap. batch_size: tiles at a time. progress: whether to show bars.
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
    common: dict[str, Any] = {"explain": explain, "batch_size": batch_size}
    return {
        "tiles": len(images),
        "randomisation": {
            "question": "Does the map depend on what was learned? (the net made random from its head down)",
            **map_checks.randomisation(model, blanks, images, classes, progress=bar("random weights"), **common),
        },
        "deletion_insertion": {
            "question": "Does what the map marks matter to the net? (blurred, and brought back, in the map's order)",
            **map_checks.deletion_insertion(
                model, images, classes, maps, seed=seed, batch_size=batch_size, progress=bar("deletion, insertion")
            ),
        },
        "equivariance": {
            "question": "Does the map turn with the tile? (7 quarter turns and mirrorings)",
            **map_checks.equivariance(model, images, classes, progress=bar("turned tiles"), **common),
        },
        "box_sensitivity": {
            "question": "Is the box more than its threshold? (10 to 60% of the maximum)",
            **box_checks.box_sensitivity(list(large), threshold=threshold),
        },
    }


def checks_text(found: dict[str, Any]) -> str:
    """Return the checks as lines for the terminal: what was asked, the numbers, the verdict."""
    lines = [f"checks of the maps, on {found['tiles']} tiles:"]
    for name in ("randomisation", "deletion_insertion", "equivariance", "box_sensitivity"):
        lines.append(f"  {found[name]['question']}")
        if name == "deletion_insertion":
            for way, good in (("deletion", "low"), ("insertion", "high")):
                of = found[name][way]
                low, high = of["map"]["interval"]
                others = ", ".join(f"{order} {of[order]['auc']:.3f}" for order in of if order != "map")
                lines.append(
                    f"    {way} area ({good} is good): {of['map']['auc']:.3f} ({low:.3f} to {high:.3f}); {others}"
                )
        lines.append(f"    {found[name]['verdict']}")
    return "\n".join(lines)


def completeness_text(missed: Sequence[float]) -> str:
    """Return a line on how far the sums of the maps miss the scores, in logits."""
    largest = max(map(abs, missed))
    said = (
        "each map shows all there is" if largest < 1e-3 else "this net does not end in mean pooling and a linear layer"
    )
    return f"map sum against score without bias, largest difference of {len(missed)} maps: {largest:.1e} logits; {said}"
