"""The configuration of `sscl data audit`."""

from __future__ import annotations

from typing import Annotated, Literal

from sscl.config.data import DataConfig
from sscl.config.sections import Listed, Section, setting
from sscl.config.training import EncoderConfig


class AuditConfig(Section):
    """sscl data audit: near-duplicates within and across splits, and outliers."""

    out: str = setting(..., "folder to write", min_length=1)
    data: DataConfig
    against: Annotated[tuple[DataConfig, ...], Listed] = setting(
        (),
        "sets used in pretraining, [{source: folder, root: A}, ...]: their training tiles must not be near-duplicates "
        "of test tiles",
    )
    run: str | None = setting(None, "a run folder or checkpoint; the sets it was trained on are added to against")
    encoder: EncoderConfig = EncoderConfig()
    min_cosine: float = setting(
        0.95, "with encoder.model or encoder.weights: list pairs with at least this cosine as similar", gt=0, le=1
    )
    neighbours: int = setting(20, "how many nearest tiles each tile is aligned with", ge=1)
    shown: int = setting(60, "at most so many pairs in pairs.png and tiles in flagged.png", ge=1, le=300)
    batch_size: int = setting(128, "tiles at a time, with an encoder", ge=1)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("auto", "auto: bf16 on a GPU that has it, else fp32")
    progress: bool = setting(True, "show progress bars")
