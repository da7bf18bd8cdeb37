"""The commands that look at a trained classifier: eval and gradcam."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from sscl.config.base import Section, knob


class EvalConfig(Section):
    """sscl eval: metrics with intervals on a split."""

    checkpoint: str = knob(..., "a finetune run folder (its best.pt) or checkpoint file", min_length=1)
    split: Literal["test", "train", "all"] = knob("test", "which tiles")
    out: str | None = knob(None, "folder to write; null = RUN/eval_SPLIT")
    positive: str | None = knob(None, "positive class of two; null = SSA where there is one, else the second")
    calibrate: bool = knob(True, "divide logits by the temperature that finetune fitted on its validation tiles")
    tta: bool = knob(False, "test-time augmentation: the mean logits over the 8 flips and rotations of a tile")
    sensitivity: float | None = knob(
        None,
        "sensitivity that the operating point must reach on the validation tiles; null = Youden's index there",
        gt=0,
        le=1,
    )
    abstain: float = knob(
        0.2,
        "share of the validation tiles that the abstention threshold may leave out at most, the least sure ones",
        ge=0,
        lt=1,
    )
    bootstrap_samples: int = knob(2000, "resamples behind each interval", ge=10)
    bootstrap_seed: int = knob(0, "seed of the resamples", ge=0)
    batch_size: int = knob(128, "tiles at a time", ge=1)
    device: str = knob("auto", "auto, cpu, cuda or cuda:N")
    data: dict[str, Any] = knob({}, "data keys that differ from the checkpoint's, for instance data.root")
    progress: bool = knob(True, "show progress bars")


class GradcamConfig(Section):
    """sscl gradcam: heatmaps and boxes."""

    checkpoint: str = knob(..., "a finetune run folder (its best.pt) or checkpoint file", min_length=1)
    split: Literal["test", "train", "all"] = knob("test", "which tiles")
    ids: Annotated[tuple[str, ...], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)] = knob(
        (), "explain these tiles, [id, ...]; empty = the most confident ones"
    )
    images: str | None = knob(None, "explain the image files of this folder instead of the data set's")
    per_class: int = knob(3, "most confident right, and as many wrong, tiles of each class", ge=1)
    out: str | None = knob(None, "folder to write; null = RUN/gradcam_SPLIT")
    target: str = knob(
        "auto",
        "difference: predicted logit - the other's (two classes); predicted: its logit alone; or a class's name; "
        "auto: difference for two classes, else predicted",
    )
    method: Literal["gradcam", "gradcam++", "layercam", "hirescam", "eigencam"] = knob("gradcam", "how maps are made")
    layer: Annotated[
        tuple[str, ...],
        BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else (v,) if isinstance(v, str) else v),
    ] = knob(
        (), "explain a layer by its name, such as encoder.layer3.1, or [a, b, ...] fused; empty = the last features"
    )
    fuse: Literal["max", "mean"] = knob("max", "how the maps of several layers become one")
    checks: bool = knob(False, "check the maps: random weights, deletion and insertion, turned tiles, thresholds")
    check_tiles: int = knob(32, "tiles to check on, drawn by random_seed", ge=2)
    random_seed: int = knob(0, "seed of the nets with random weights, and of what the checks draw", ge=0)
    threshold: float = knob(0.2, "a box holds what is above this share of the map's maximum", gt=0, lt=1)
    batch_size: int = knob(32, "tiles at a time", ge=1)
    device: str = knob("auto", "auto, cpu, cuda or cuda:N")
    data: dict[str, Any] = knob({}, "data keys that differ from the checkpoint's, for instance data.root")
    progress: bool = knob(True, "show progress bars")
