"""The settings of sscl report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import field_validator

from sscl.config.data import DataConfig
from sscl.config.maps import MapConfig
from sscl.config.messages import shown
from sscl.config.sections import LARGEST_BATCH, Changes, KeysOf, Listed, Section, fault, setting
from sscl.words import first_twice, nearest


class ReportConfig(Section):
    """Write one offline HTML page: the results of runs, and a gallery of tiles to review.

    The page is about the first finetune run named. A missing evaluation is run first; heatmaps and their checks are
    taken from RUN/gradcam_SPLIT. A folder of sscl predict, named alone, has a page too, without accuracy: of its tiles,
    or a table of its slides. Every other pretraining run, cross-validation, comparison, audit or gradcam folder adds a
    section, and so do slides that were predicted.
    """

    runs: Annotated[tuple[str, ...], Listed] = setting(
        ..., "folders written by sscl, [RUN, AUDIT, ...]; also RUN ...", path=True, min_length=1
    )
    out: str | None = setting(
        None, "file to write, .html; null = report.html in the run the page is about", path=True, common=True
    )
    split: Literal["test", "train", "all"] | None = setting(
        None, "split to report on; null = test, or all tiles of data.root where RUN has evaluated that set", common=True
    )
    tiles: int = setting(
        1000,
        "maximum number of tiles in the gallery, of which a page takes 5,000; 0 = no gallery",
        ge=0,
        le=100_000,
        common=True,
    )
    blind: bool = setting(
        False,
        "open the page in blind review, for reviewers: a tile's prediction shows once they named its class",
        common=True,
    )
    reviews: Annotated[tuple[str, ...], Listed] = setting(
        (),
        "worksheets downloaded from the page, [a.csv, b.csv]: agreement of the reviewers with labels, model and each "
        "other; the page is then reviewed.html",
        path=True,
        max_length=20,
        common=True,
    )
    gradcam: Annotated[Changes, KeysOf(MapConfig)] = setting(
        {},
        "settings of sscl gradcam (target, method, layer, fuse, threshold) for the gallery; default: those of "
        "RUN/gradcam_SPLIT. Example: gradcam.threshold=0.3",
    )
    data: Annotated[Changes, KeysOf(DataConfig)] = setting(
        {}, "data settings that differ from the evaluation, such as data.root"
    )
    batch_size: int = setting(32, "tiles per batch", ge=1, le=LARGEST_BATCH)
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps", common=True)
    progress: bool = setting(True, "show progress bars")

    @field_validator("runs", "reviews")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if twice := first_twice(value):
            raise ValueError(f"{twice} is given twice; name each once")
        return value

    @field_validator("out")
    @classmethod
    def _a_page(cls, value: str | None) -> str | None:
        if value is not None and not value.endswith((".html", ".htm")):
            raise ValueError(f"must end in .html, got {shown(value)}")
        return value

    @field_validator("gradcam")
    @classmethod
    def _of_maps(cls, value: Changes) -> Changes:
        allowed = list(MapConfig.model_fields)
        unknown = [key for key in value if key not in allowed]
        if unknown:
            raise fault(unknown[0], f"unknown key; {nearest(unknown[0], allowed)}")
        return value
