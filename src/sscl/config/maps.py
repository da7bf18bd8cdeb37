"""The settings of heatmaps, shared by gradcam, predict and report, and in which precision a classifier is applied."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from sscl.config.sections import Section, setting

Precision = Literal["auto", "fp32", "bf16", "fp16"]
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
    method: Literal["gradcam", "gradcam++", "layercam", "hirescam", "eigencam"] = setting(
        "gradcam", "method of the heatmaps", common=True
    )
    layer: Annotated[
        tuple[str, ...],
        BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else (v,) if isinstance(v, str) else v),
    ] = setting(
        (),
        "layer to explain, as in encoder.layer3.1, or [a, b, ...] to fuse several; empty = the last features",
        common=True,
    )
    fuse: Literal["max", "mean"] = setting("max", "how the heatmaps of several layers are fused")
    threshold: float = setting(
        BOX_THRESHOLD, "boxes enclose values above this fraction of the heatmap's maximum", gt=0, lt=1, common=True
    )
