"""The page that one opens: report."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import field_validator

from sscl.config.messages import shown
from sscl.config.sections import Listed, Section, fault, setting
from sscl.words import nearest


class ReportConfig(Section):
    """sscl report: what runs have found, with a gallery of tiles to review, on one page that needs no network.

    The page is about the first finetune run named; its evaluation is made where it is missing, its heatmaps and their
    checks are those of RUN/gradcam_SPLIT. Pretraining runs, cross-validations, comparisons, audits and gradcam folders
    each add a section.
    """

    runs: Annotated[tuple[str, ...], Listed] = setting(
        ..., "folders that sscl wrote, [RUN, AUDIT, ...]: the words of `sscl report RUN AUDIT ...`", min_length=1
    )
    out: str | None = setting(None, "file to write, .html; null = report.html in the run that the page is about")
    split: Literal["test", "train", "all"] = setting("test", "which tiles")
    tiles: int = setting(1000, "tiles in the gallery, at most; 0 = no gallery", ge=0)
    gradcam: dict[str, Any] = setting(
        {},
        "keys of sscl gradcam (target, method, layer, fuse, threshold) for the gallery, where they differ from those "
        "of RUN/gradcam_SPLIT: gradcam.threshold=0.5",
    )
    data: dict[str, Any] = setting({}, "data keys that differ from the evaluation's, for instance data.root")
    batch_size: int = setting(32, "tiles at a time", ge=1)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    progress: bool = setting(True, "show progress bars")

    @field_validator("runs")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        twice = [run for i, run in enumerate(value) if run in value[:i]]
        if twice:
            raise ValueError(f"{twice[0]} is given twice; name each folder once")
        return value

    @field_validator("out")
    @classmethod
    def _a_page(cls, value: str | None) -> str | None:
        if value is not None and not value.endswith((".html", ".htm")):
            raise ValueError(f"must end in .html, got {shown(value)}")
        return value

    @field_validator("gradcam")
    @classmethod
    def _of_maps(cls, value: dict[str, Any]) -> dict[str, Any]:
        allowed = ("target", "method", "layer", "fuse", "threshold")
        unknown = [key for key in value if key not in allowed]
        if unknown:
            raise fault(unknown[0], f"unknown key; {nearest(unknown[0], allowed)}")
        return value
