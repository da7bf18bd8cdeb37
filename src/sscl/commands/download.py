"""sscl data download."""

from __future__ import annotations

from pathlib import Path

from sscl.config import DownloadConfig
from sscl.data.download import FILES, download


def main(config: DownloadConfig) -> None:
    """Fetch a published data set; an interrupted download goes on where it ended.

    Raises:
        ValueError: input that a user can mend, in one line.
    """
    remote = FILES[config.name]
    path = Path(config.out) / f"{config.name}.npz"
    if download(config.url or remote.url, path, md5=remote.md5, progress=config.progress):
        print(f"wrote {path}, md5 {remote.md5} as published")
    else:
        print(f"{path} is there already, md5 {remote.md5} as published")
    print(f"to use it: data.source=pathmnist data.root={path}")
