"""The configuration of `sscl data audit`."""

from __future__ import annotations

from typing import Annotated

from sscl.config.data import DataConfig
from sscl.config.encoders import EncoderConfig
from sscl.config.sections import LARGEST_BATCH, Listed, Precision, Section, precision_setting, setting


class AuditConfig(Section):
    """Find near-duplicates within and across splits, and outliers."""

    out: str = setting(..., "folder to write", path=True, min_length=1)
    data: DataConfig
    against: Annotated[tuple[DataConfig, ...], Listed] = setting(
        (),
        "sets used in pretraining, [{source: folder, root: A}, ...]: their training tiles must not be near-duplicates "
        "of test tiles",
    )
    run: str | None = setting(
        None, "a run folder or checkpoint; the sets it was trained on are added to against", path=True, common=True
    )
    encoder: EncoderConfig = EncoderConfig()
    min_cosine: float = setting(
        0.95,
        "with encoder.model or encoder.weights: list pairs as similar from this cosine similarity",
        gt=0,
        le=1,
        common=True,
    )
    neighbours: int = setting(20, "largest number of likely tiles that each is compared with in detail", ge=1, le=1000)
    stretched: bool | None = setting(
        None,
        "also search copies stretched by about 2, in twice the time and memory; default: up to 30,000 tiles",
        common=True,
    )
    shown: int = setting(60, "largest number of pairs in pairs.png and tiles in flagged.png", ge=1, le=300, common=True)
    batch_size: int = setting(128, "tiles per batch, with an encoder", ge=1, le=LARGEST_BATCH)
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps", common=True)
    precision: Precision = precision_setting()
    progress: bool = setting(True, "show progress bars")
