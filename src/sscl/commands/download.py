"""sscl data download: fetch a published data set."""

from __future__ import annotations

from pathlib import Path

from sscl.config import DownloadConfig
from sscl.data.download import FILES, download
from sscl.words import next_command


def main(config: DownloadConfig) -> None:
    """Fetch a published data set; an interrupted download resumes where it stopped.

    Raises:
        ValueError: bad input, or the file cannot be fetched, in one line.
    """
    remote = FILES[config.name]
    path = Path(config.out) / f"{config.name}.npz"
    if download(config.url or remote.url, path, md5=remote.md5, progress=config.progress):
        print(f"wrote {path} (md5 {remote.md5}, as published)")
    else:
        print(f"{path} exists already (md5 {remote.md5}, as published)")
    print(next_command("data inspect", path, "data.source=pathmnist", f"out={path.with_suffix('')}-look"))
