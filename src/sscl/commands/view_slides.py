"""`sscl slides view`: slides and what was predicted of them, at full resolution, in a browser of this computer."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from sscl.config import ViewSlidesConfig
from sscl.places import missing, printable
from sscl.report.slide_folder import SlideFolder, slide_folders
from sscl.report.slide_server import ADDRESS, SlideServer
from sscl.run import SOME_FAILED
from sscl.words import count, some, wrapped


def main(config: ViewSlidesConfig) -> int:
    """Serve the pages of slides until Ctrl-C.

    Returns:
        0, or `run.SOME_FAILED` where files of slides are missing.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line.
    """
    found = slide_folders(Path(config.folder))
    paths = paths_of(found, config.slides_root)
    here = [at for at, path in enumerate(paths) if path.exists()]
    gone = [found[at].record.name for at in range(len(found)) if at not in here]
    if gone:
        where = (
            "slides_root=FOLDER says where they are" if config.slides_root is None else f"not in {config.slides_root}"
        )
        names = some([printable(name) for name in gone], most=5, first=5)
        said = f"{count(len(gone), 'slide')} missing ({names}); {where}"
        if not here:
            raise FileNotFoundError(f"folder: {config.folder}: {said}")
        print(wrapped(f"note: {said}"))
    with opened([found[at] for at in here], [paths[at] for at in here], port=config.port) as server:
        print(f"{count(len(here), 'slide')} at {server.url}; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            print("stopped")
    return SOME_FAILED if gone else 0


def paths_of(found: Sequence[SlideFolder], root: str | None) -> list[Path]:
    """Return where the files of slides are."""
    if root is None:
        return [Path(slide.record.path) for slide in found]
    if not Path(root).is_dir():
        raise FileNotFoundError(f"slides_root: {missing(root, 'folder')}")
    return [Path(root, slide.record.name) for slide in found]


def opened(found: Sequence[SlideFolder], paths: Sequence[Path], *, port: int) -> SlideServer:
    """Return the server, bound to its port.

    Raises:
        ValueError: it cannot be, in one line.
    """
    try:
        return SlideServer(found, paths, port=port)
    except OSError as error:
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise ValueError(f"port: {port} {why} on {ADDRESS}; give another, or port=0 for any that is free") from None
