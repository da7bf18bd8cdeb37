"""The configurations of `sscl init` and `sscl train`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from sscl.config.data import DataConfig
from sscl.config.sections import Section, setting

FOLDER = "sscl-run"


class InitConfig(Section):
    """Look at tiles, and write the YAML files of `sscl train` with settings that fit them and this machine.

    Keys of data that are given go into the files. What is written can be changed there.
    """

    CHOSEN: ClassVar[Mapping[str, str]] = {"data.size_px": "the tiles and the machine"}

    data: DataConfig
    out: str = setting(FOLDER, "folder to write the YAML files to", path=True, min_length=1, common=True)
    labels: bool = setting(
        True, "take the classes that are there; false = pretraining alone, on all tiles", common=True
    )
    minutes: float = setting(30.0, "of pretraining to aim at on this machine", gt=0, le=100_000, common=True)
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps", common=True)
    progress: bool = setting(True, "show progress bars")


class TrainConfig(Section):
    """Run what the YAML files of `sscl init` say: pretrain, finetune, eval, gradcam, report.

    Run again, it continues: finished stages are skipped, an interrupted training goes on.
    """

    folder: str | None = setting(
        None,
        f"folder of the YAML files; null = {FOLDER}, or the working folder where they are there; also FOLDER",
        path=True,
        min_length=1,
    )
    progress: bool = setting(True, "show progress bars")
