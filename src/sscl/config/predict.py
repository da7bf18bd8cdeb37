"""The command for new tiles and slides: predict."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from sscl.config.data import COARSEST_MPP, FINEST_MPP
from sscl.config.maps import PRECISION, MapConfig
from sscl.config.messages import shown
from sscl.config.sections import LARGEST_BATCH, Listed, Precision, Section, setting

_MOST_PX = 10_000_000  # of a slide's side
_Place = Annotated[int, Field(ge=0, le=_MOST_PX)]
_Side = Annotated[int, Field(ge=1, le=_MOST_PX)]


class PredictConfig(Section):
    """Classify new tiles, or the tissue of whole slides, with calibrated probabilities and abstention.

    TILES are folders (all images below them), image files, and CSV files with a column `path`, relative to the CSV; or
    whole slides: slide files, DICOM folders, folders of slides, or an index of `sscl slides tile`. Of each slide a
    table, a heatmap and files for QuPath are written.
    The exit code is 3 if some files could not be read; all others are classified.
    """

    checkpoint: str = setting(
        ..., "finetune run folder (its best.pt) or checkpoint file; also RUN", path=True, min_length=1
    )
    paths: Annotated[tuple[str, ...], Listed] = setting(
        ...,
        "folders, image files and CSV lists, [TILES, a.png, list.csv], or slides, or an index of them; also RUN TILES",
        path=True,
        min_length=1,
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
        "sides of its files, else not known; of slides, null = that of the classifier's training tiles",
        ge=FINEST_MPP,
        le=COARSEST_MPP,
    )
    slides_csv: str | None = setting(
        None, "of slides: CSV file with the columns slide and mpp (µm per pixel at full resolution)", path=True
    )
    slide_mpp: float | None = setting(
        None, "of slides: µm per pixel at full resolution of those that do not say it", ge=FINEST_MPP, le=COARSEST_MPP
    )
    slides_root: str | None = setting(None, "of an index: the folder that its slides are in now", path=True)
    min_coverage: float = setting(0.25, "of slides: share of a tile that must be tissue; 0 = any at all", ge=0, le=1)
    overlap: float = setting(
        0.0, "of slides: share of its side that a tile shares with the next one; maps are the mean", ge=0, le=0.9
    )
    threshold: float = setting(
        0.5, "of slides: probability from which a place is part of a region of a class", ge=0.5, lt=1
    )
    cam: bool | tuple[_Place, _Place, _Side, _Side] = setting(
        False,
        "of slides: heatmap of a region, the mean of overlapping tiles, made as gradcam says; true = where the class "
        "it explains is most probable; or [x, y, width, height], pixels at full resolution",
    )
    blind: bool = setting(
        False, "of slides: their pages open in blind review: a tile's prediction shows once its class is named"
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

    @field_validator("cam", mode="before")
    @classmethod
    def _a_region(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return value
        least = (0, 0, 1, 1)
        four = isinstance(value, (list, tuple)) and len(value) == 4 and all(type(one) is int for one in value)
        if not four or not all(low <= one <= _MOST_PX for low, one in zip(least, value, strict=True)):
            raise ValueError(
                "must be true, false, or [x, y, width, height], four whole numbers of pixels at full resolution, x and "
                f"y 0 or more, width and height 1 or more, got {shown(value)}"
            )
        return tuple(value)
