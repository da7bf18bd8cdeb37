"""The configurations of `sscl eval` and `sscl gradcam`."""

from __future__ import annotations

from typing import Annotated, Literal

from sscl.config.data import DataConfig
from sscl.config.maps import PRECISION, MapConfig
from sscl.config.sections import LARGEST_BATCH, SEEDS, Changes, KeysOf, Listed, Precision, Section, setting


class EvalConfig(Section):
    """Evaluate a classifier: metrics with 95% intervals, confusion matrix, curves."""

    checkpoint: str = setting(
        ..., "finetune run folder (its best.pt) or checkpoint file; also RUN", path=True, min_length=1
    )
    split: Literal["test", "train", "all"] | None = setting(
        None, "split to evaluate; null = test, or all tiles of another set than the one trained on", common=True
    )
    out: str | None = setting(
        None, "folder to write; null = RUN/eval_SPLIT, for another set RUN/eval_NAME_SPLIT", path=True, common=True
    )
    positive: str | None = setting(
        None, "positive class of two; null = SSA if it is one of them, otherwise the second", common=True
    )
    calibrate: bool = setting(True, "divide the logits by the temperature fitted on the validation tiles")
    tta: bool = setting(
        False, "test-time augmentation: average the logits over the 8 flips and rotations of a tile", common=True
    )
    sensitivity: float | None = setting(
        None,
        "sensitivity that the threshold must reach on the validation tiles; null = maximise Youden's index there",
        gt=0,
        le=1,
        common=True,
    )
    abstain: float = setting(
        0.2, "largest fraction of the validation tiles to abstain on, the least confident ones", ge=0, lt=1, common=True
    )
    by: Literal["group", "site"] | None = setting(
        None, "also the metrics of each slide or patient (group), or of each site, and which is the worst", common=True
    )
    batch_size: int = setting(128, "tiles per batch", ge=1, le=LARGEST_BATCH)
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps", common=True)
    precision: Precision = setting("auto", PRECISION)
    data: Annotated[Changes, KeysOf(DataConfig)] = setting(
        {}, "data keys that replace those of the checkpoint, as in data.root=DIR", common=True
    )
    progress: bool = setting(True, "show progress bars")


class GradcamConfig(MapConfig):
    """Explain a classifier: heatmaps and boxes of where it looked."""

    checkpoint: str = setting(
        ..., "finetune run folder (its best.pt) or checkpoint file; also RUN", path=True, min_length=1
    )
    split: Literal["test", "train", "all"] | None = setting(
        None, "split to explain tiles of; null = test, or all tiles of another set than the one trained on", common=True
    )
    ids: Annotated[tuple[str, ...], Listed] = setting(
        (), "explain these tiles, [ID, ...]; empty = the most confident ones of each class"
    )
    images: str | None = setting(
        None, "explain the image files of this folder instead of the data set", path=True, common=True
    )
    per_class: int = setting(
        3,
        "most confident correct tiles of each class, and as many wrong ones; of more than 20 classes, of the 10 with "
        "the lowest recall",
        ge=1,
        le=10_000,
        common=True,
    )
    out: str | None = setting(
        None, "folder to write; null = RUN/gradcam_SPLIT, for another set RUN/gradcam_NAME_SPLIT", path=True
    )
    checks: bool = setting(
        False, "check the heatmaps: randomised weights, deletion and insertion, rotated tiles, thresholds", common=True
    )
    check_tiles: int = setting(32, "tiles of the checks, drawn by random_seed", ge=2, le=100_000)
    random_seed: int = setting(0, "seed of the randomised weights and of the draws of the checks", ge=0, lt=SEEDS)
    batch_size: int = setting(32, "tiles per batch", ge=1, le=LARGEST_BATCH)
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps", common=True)
    precision: Precision = setting("auto", f"of the predictions, {PRECISION}; maps are always computed in fp32")
    data: Annotated[Changes, KeysOf(DataConfig)] = setting(
        {}, "data keys that replace those of the checkpoint, as in data.root=DIR"
    )
    progress: bool = setting(True, "show progress bars")
