"""The command for new tiles: predict."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, field_validator

from sscl.config.messages import shown
from sscl.config.sections import Listed, Section, setting


class MapConfig(Section):
    """How the heatmaps of panels are made: the keys of sscl gradcam of the same names."""

    target: str = setting(
        "auto", "difference (of two logits), predicted, a class's name; auto: difference for two classes"
    )
    method: Literal["gradcam", "gradcam++", "layercam", "hirescam", "eigencam"] = setting(
        "gradcam", "how maps are made"
    )
    layer: Annotated[
        tuple[str, ...],
        BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else (v,) if isinstance(v, str) else v),
    ] = setting((), "explain this layer, or [a, b, ...] fused; empty = the last features")
    fuse: Literal["max", "mean"] = setting("max", "how the maps of several layers become one")
    threshold: float = setting(0.2, "a box holds what is above this share of the map's maximum", gt=0, lt=1)


class PredictConfig(Section):
    """sscl predict: the classes of new tiles, with calibrated probabilities and abstention.

    PATHS are folders (all images below), image files, and CSV files with a column `path` (relative to the CSV).
    The exit code is 3 where files could not be read; the others are predicted.
    """

    checkpoint: str = setting(..., "a finetune run folder (its best.pt) or checkpoint file; --checkpoint", min_length=1)
    paths: Annotated[tuple[str, ...], Listed] = setting(
        ..., "folders, image files, CSV lists: [TILES, a.png, list.csv], or the words of the command", min_length=1
    )
    out: str | None = setting(None, "folder to write; null = RUN/predictions")
    calibrate: bool = setting(True, "divide logits by the temperature that finetune fitted on its validation tiles")
    tta: bool = setting(False, "test-time augmentation: the mean logits over the 8 flips and rotations of a tile")
    abstain: float = setting(
        0.2, "leave undecided what is less sure than this share of the validation tiles; 0 = decide all", ge=0, lt=1
    )
    confidence: float | None = setting(None, "decide from this confidence on, whatever abstain says", ge=0, le=1)
    panels: bool | int = setting(
        False, "heatmap, box and panel of every tile (true), or of so many, the least confident first"
    )
    gradcam: MapConfig = MapConfig()
    batch_size: int = setting(128, "tiles at a time", ge=1)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    progress: bool = setting(True, "show progress bars")

    @field_validator("panels", mode="before")
    @classmethod
    def _a_number(cls, value: Any) -> Any:
        if not isinstance(value, int) or value < 0:
            raise ValueError(f"must be true, false, or a number of tiles >= 0, got {shown(value)}")
        return value
