"""The command for new tiles: predict."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import field_validator

from sscl.config.data import COARSEST_MPP, FINEST_MPP
from sscl.config.maps import PRECISION, MapConfig, Precision
from sscl.config.messages import shown
from sscl.config.sections import LARGEST_BATCH, Listed, Section, setting


class PredictConfig(Section):
    """Classify new tiles, with calibrated probabilities and abstention.

    TILES are folders (all images below them), image files, and CSV files with a column `path`, relative to the CSV.
    The exit code is 3 if some files could not be read; all others are classified.
    """

    checkpoint: str = setting(
        ..., "finetune run folder (its best.pt) or checkpoint file; also RUN", path=True, min_length=1
    )
    paths: Annotated[tuple[str, ...], Listed] = setting(
        ..., "folders, image files and CSV lists, [TILES, a.png, list.csv]; also TILES", path=True, min_length=1
    )
    out: str | None = setting(None, "folder to write; null = RUN/predictions", path=True, common=True)
    calibrate: bool = setting(True, "divide the logits by the temperature fitted on the validation tiles")
    tta: bool = setting(False, "test-time augmentation: average the logits over the 8 flips and rotations of a tile")
    abstain: float = setting(
        0.2,
        "abstain below the confidence that this fraction of the validation tiles does not reach; 0 = never",
        ge=0,
        lt=1,
        common=True,
    )
    confidence: float | None = setting(None, "abstain below this confidence; takes precedence over abstain", ge=0, le=1)
    panels: bool | int = setting(
        False,
        "write heatmap, boxes and panel of every tile (true) or of this many, least confident first",
        ge=0,
        le=1_000_000,
        common=True,
    )
    gradcam: MapConfig = MapConfig()
    fit: Literal["refuse", "crop", "resize"] | None = setting(
        None, "images that are not square: refuse, crop or resize (see data.fit); null = as in training"
    )
    mpp: float | None = setting(
        None,
        "µm per pixel of the tiles at the side that the classifier takes; null = from the column mpp of a list and the "
        "sides of its files, else not known",
        ge=FINEST_MPP,
        le=COARSEST_MPP,
    )
    batch_size: int = setting(128, "tiles per batch", ge=1, le=LARGEST_BATCH)
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps", common=True)
    precision: Precision = setting("auto", PRECISION)
    progress: bool = setting(True, "show progress bars")

    @field_validator("panels", mode="before")
    @classmethod
    def _a_number(cls, value: Any) -> Any:
        if not isinstance(value, int):
            raise ValueError(f"must be true, false, or a number of tiles, got {shown(value)}")
        return value
