"""The settings of heatmaps, shared by gradcam, predict and report, and in which precision a classifier is applied."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from sscl.config.sections import Section, setting

BOX_THRESHOLD = 0.5
PRECISION = "auto: as temperature and thresholds were fitted; fp32 on a CPU"


class MapConfig(Section):
    """The heatmaps, as in sscl gradcam."""

    target: str = setting(
        "auto",
        "logit to explain: difference = that of the predicted class - that of the next likely one; predicted; or a "
        "class; auto = difference",
        common=True,
    )
    gamma: float = setting(
        1.0,
        "weight of the next likely class in target=difference: 1 = the margin between the two; below it what they "
        "share counts in part (Finer-CAM: 0.6)",
        ge=0,
        le=2,
    )
    references: int = setting(
        1, "how many next likely classes target=difference compares with, by the mean of their logits", ge=1, le=1000
    )
    method: Literal["gradcam", "gradcam++", "layercam", "hirescam", "eigencam", "legrad", "rollout", "gradrollout"] = (
        setting(
            "gradcam",
            "method of the heatmaps; legrad, rollout (the same for every class) and gradrollout need a transformer",
            common=True,
        )
    )
    layer: Annotated[
        tuple[str, ...],
        BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else (v,) if isinstance(v, str) else v),
    ] = setting(
        (),
        "layer to explain, as in encoder.layer3.1, or [a, b, ...] to fuse several; empty = the last features, with a "
        "class token what enters the last block, of legrad all blocks",
        common=True,
    )
    fuse: Literal["max", "mean", "sum"] = setting(
        "max", "how the heatmaps of several layers are fused; sum adds them as they are; legrad always takes their mean"
    )
    threshold: float = setting(
        BOX_THRESHOLD, "boxes enclose values above this fraction of the heatmap's maximum", gt=0, lt=1, common=True
    )
