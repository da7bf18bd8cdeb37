"""The commands that look at a trained classifier: eval and gradcam."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from sscl.config.sections import Section, setting


class EvalConfig(Section):
    """sscl eval: metrics with intervals on a split."""

    checkpoint: str = setting(..., "a finetune run folder (its best.pt) or checkpoint file", min_length=1)
    split: Literal["test", "train", "all"] = setting("test", "which tiles")
    out: str | None = setting(None, "folder to write; null = RUN/eval_SPLIT")
    positive: str | None = setting(None, "positive class of two; null = SSA where there is one, else the second")
    calibrate: bool = setting(True, "divide logits by the temperature that finetune fitted on its validation tiles")
    tta: bool = setting(False, "test-time augmentation: the mean logits over the 8 flips and rotations of a tile")
    sensitivity: float | None = setting(
        None,
        "sensitivity that the operating point must reach on the validation tiles; null = Youden's index there",
        gt=0,
        le=1,
    )
    abstain: float = setting(
        0.2,
        "share of the validation tiles that the abstention threshold may leave out at most, the least sure ones",
        ge=0,
        lt=1,
    )
    bootstrap_samples: int = setting(2000, "resamples behind each interval", ge=10)
    bootstrap_seed: int = setting(0, "seed of the resamples", ge=0)
    batch_size: int = setting(128, "tiles at a time", ge=1)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    data: dict[str, Any] = setting({}, "data keys that differ from the checkpoint's, for instance data.root")
    progress: bool = setting(True, "show progress bars")


class GradcamConfig(Section):
    """sscl gradcam: heatmaps and boxes."""

    checkpoint: str = setting(..., "a finetune run folder (its best.pt) or checkpoint file", min_length=1)
    split: Literal["test", "train", "all"] = setting("test", "which tiles")
    ids: Annotated[tuple[str, ...], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)] = setting(
        (), "explain these tiles, [id, ...]; empty = the most confident ones"
    )
    images: str | None = setting(None, "explain the image files of this folder instead of the data set's")
    per_class: int = setting(3, "most confident right, and as many wrong, tiles of each class", ge=1)
    out: str | None = setting(None, "folder to write; null = RUN/gradcam_SPLIT")
    target: str = setting(
        "auto",
        "difference: predicted logit - the other's (two classes); predicted: its logit alone; or a class's name; "
        "auto: difference for two classes, else predicted",
    )
    method: Literal["gradcam", "gradcam++", "layercam", "hirescam", "eigencam"] = setting(
        "gradcam", "how maps are made"
    )
    layer: Annotated[
        tuple[str, ...],
        BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else (v,) if isinstance(v, str) else v),
    ] = setting(
        (), "explain a layer by its name, such as encoder.layer3.1, or [a, b, ...] fused; empty = the last features"
    )
    fuse: Literal["max", "mean"] = setting("max", "how the maps of several layers become one")
    checks: bool = setting(False, "check the maps: random weights, deletion and insertion, turned tiles, thresholds")
    check_tiles: int = setting(32, "tiles to check on, drawn by random_seed", ge=2)
    random_seed: int = setting(0, "seed of the nets with random weights, and of what the checks draw", ge=0)
    threshold: float = setting(0.2, "a box holds what is above this share of the map's maximum", gt=0, lt=1)
    batch_size: int = setting(32, "tiles at a time", ge=1)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    data: dict[str, Any] = setting({}, "data keys that differ from the checkpoint's, for instance data.root")
    progress: bool = setting(True, "show progress bars")
