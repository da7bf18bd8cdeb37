"""The configuration of `sscl data download`."""

from __future__ import annotations

from typing import Literal

from sscl.config.sections import Section, setting


class DownloadConfig(Section):
    """Download PathMNIST (CC BY 4.0) from Zenodo and verify its checksum."""

    name: Literal["pathmnist", "pathmnist_64", "pathmnist_128", "pathmnist_224"] = setting(
        ..., "pathmnist has tiles of 28 px, the others of 64, 128 or 224 px; also NAME"
    )
    out: str = setting("data", "folder to write NAME.npz to", path=True, min_length=1)
    url: str | None = setting(None, "another address of the same file; null = Zenodo record 10519652", min_length=1)
    progress: bool = setting(True, "show a progress bar")
