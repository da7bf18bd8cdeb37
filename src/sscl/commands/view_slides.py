"""`sscl slides view`: slides at full resolution, with what was predicted of them, in a browser of this computer."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from sscl.config import ViewSlidesConfig
from sscl.places import missing, printable
from sscl.report.shown_slides import ShownSlide, shown_slides
from sscl.report.slide_server import ADDRESS, SlideServer
from sscl.run import SOME_FAILED
from sscl.words import count, some, wrapped


def main(config: ViewSlidesConfig) -> int:
    """Serve the pages of slides until Ctrl-C.

    Returns:
        0, or `run.SOME_FAILED` where files of slides are missing.
    """
    found = shown_slides(Path(config.folder), blind=config.blind)
    paths = paths_of(found, config.slides_root)
    here = [at for at, path in enumerate(paths) if path.exists()]
    gone = [found[at].name for at in range(len(found)) if at not in here]
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


def paths_of(found: Sequence[ShownSlide], root: str | None) -> list[Path]:
    if root is None:
        return [slide.path for slide in found]
    if not Path(root).is_dir():
        raise FileNotFoundError(f"slides_root: {missing(root, 'folder')}")
    return [Path(root, slide.name) for slide in found]


def opened(found: Sequence[ShownSlide], paths: Sequence[Path], *, port: int) -> SlideServer:
    """Return the server, bound to its port."""
    try:
        return SlideServer(found, paths, port=port)
    except OSError as error:
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise ValueError(f"port: {port} {why} on {ADDRESS}; give another, or port=0 for any that is free") from None
