"""Pages of slides at full resolution, on this computer alone: squares are made when a browser asks for them.

An address names a slide by its number: no path of a file is ever made of what a browser sends.
"""

from __future__ import annotations

import functools
import re
import sys
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from sscl.places import printable
from sscl.report.page import parts
from sscl.report.shown_slides import ShownSlide
from sscl.report.slide_page import page_of
from sscl.report.slide_picture import Squares
from sscl.slides.deep_zoom import OVERLAP, DeepZoom
from sscl.slides.open import open_slide
from sscl.slides.pixels import Readers
from sscl.slides.records import SlideError
from sscl.slides.scaling import scaling

ADDRESS = "127.0.0.1"  # nobody else's browser can reach it
QUALITY = 85
_KEPT = 16  # slides whose pages stay in memory
_NO_MPP = 1.0  # µm per pixel to read a slide by that does not say its own
_SQUARE = re.compile(r"/(\d{1,6})/(\d{1,2})/(\d{1,6})_(\d{1,6})\.jpg")
_PICTURE = re.compile(r"/(\d{1,6})/tiles/(\d{1,9})\.jpg")
_PAGE = re.compile(r"/(\d{1,6})/")
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",  # no other page may show a slide
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


class ServedSlide:
    """A slide that is served: its page, squares and tiles.

    Args:
        number: in addresses. path: of its file, as it is now. say: takes a line on what cannot be read.

    Raises:
        ValueError: the file cannot be read, or is another slide than it was.
    """

    def __init__(
        self, found: ShownSlide, number: int, path: Path, readers: Readers, *, say: Callable[[str], None]
    ) -> None:
        self.content = found.content(path)
        record = self.content.record
        slide = open_slide(path, name=record.name, mpp=record.mpp or _NO_MPP)
        if slide.quickhash != record.quickhash:
            again = "predict it again" if self.content.predicted else "index it again"
            raise SlideError(f"{printable(str(path))}: is not the slide that it was; {again}")
        self._zoom, self._readers, self._number = DeepZoom(slide, readers, say=say), readers, number
        self._scaling = scaling(slide, mpp=record.tile_mpp, size_px=record.size_px) if record.tiles else None

    @functools.cached_property
    def page(self) -> bytes:
        """The page."""
        zoom = self._zoom
        base: Squares = {
            "width": zoom.slide.width,
            "height": zoom.slide.height,
            "factor": (1.0, 1.0),
            "square": zoom.square,
            "overlap": OVERLAP,
            "levels": len(zoom.sizes),
            "squares": [],
            "address": f"/{self._number}/",
            "pictures": f"/{self._number}/tiles/",
        }
        return page_of(self.content, served=base).encode()

    def square(self, level: int, column: int, row: int) -> bytes | None:
        """Return a square as JPEG; None: there is none."""
        pixels = self._zoom.pixels(level, column, row)
        return None if pixels is None else _jpeg(pixels)

    def tile(self, row: int) -> bytes | None:
        """Return a tile as the classifier saw it, as JPEG; None: there is none."""
        if self._scaling is None or row >= len(self.content.xy):
            return None
        out = np.empty((1, self._scaling.size_px, self._scaling.size_px, 3), np.uint8)
        self._readers.tiles(self._zoom.slide, self._scaling, self.content.xy[row : row + 1].astype(np.int64), out)
        return _jpeg(out[0])


class SlideServer(ThreadingHTTPServer):
    """Serves the pages of slides to browsers of this computer, until `shutdown`.

    Args:
        found: the slides. paths: of their files, as they are now. port: 0 = any that is free.

    Raises:
        OSError: the port is in use, or not allowed.
    """

    daemon_threads = True

    def __init__(self, found: Sequence[ShownSlide], paths: Sequence[Path], *, port: int) -> None:
        self.found, self.paths, self.readers = list(found), list(paths), Readers()
        self._locks = [threading.Lock() for _ in self.found]
        self._open = functools.lru_cache(_KEPT)(self._opened)
        self._said: set[str] = set()
        super().__init__((ADDRESS, port), _Handler)
        self.hosts = {f"{name}:{self.server_port}" for name in (ADDRESS, "localhost")}

    @property
    def url(self) -> str:
        """Where the pages are."""
        return f"http://{ADDRESS}:{self.server_port}/"

    def slide(self, number: int) -> ServedSlide | None:
        """Return a slide by its number, opened when it is first asked for; None: there is none.

        Raises:
            ValueError, OSError: it cannot be opened.
        """
        if number >= len(self.found):
            return None
        with self._locks[number]:
            return self._open(number)

    def _opened(self, number: int) -> ServedSlide:
        return ServedSlide(self.found[number], number, self.paths[number], self.readers, say=self.say)

    def listing(self) -> bytes:
        """Return the page that links to all slides."""
        style = parts.style("base.css", "slide.css")
        rows = [(number, slide.name, slide.said) for number, slide in enumerate(self.found)]
        policy = parts.policy(style, images="'self' data:")
        predicted = any(slide.predicted for slide in self.found)
        page = parts.page("slides.html.jinja", style=Markup(style), policy=policy, rows=rows, predicted=predicted)
        return page.encode()

    def say(self, line: str) -> None:
        """Print what went wrong, each once."""
        if line not in self._said:
            self._said.add(line)
            print(line, file=sys.stderr, flush=True)

    def handle_error(self, request: object, client_address: object) -> None:
        """Pass over a browser that has gone away; anything else is a fault of ours and shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: SlideServer
    protocol_version = "HTTP/1.1"  # one connection for many squares
    server_version, sys_version = "sscl", ""
    timeout = 60
    disable_nagle_algorithm = True  # or each square waits 40 ms for the browser to confirm its headers

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        if self.headers.get("Host", "") not in self.server.hosts:  # another name for this address: DNS rebinding
            self._send(HTTPStatus.FORBIDDEN, "text/plain", f"open {self.server.url}\n".encode(), body=body)
            return
        try:
            kind, content = self._found(self.path.partition("?")[0])
        except (ValueError, OSError) as error:
            self.server.say(str(error))
            text = f"{error}\n".encode("utf-8", "backslashreplace")
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", text, body=body)
            return
        if content is None:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"not here\n", body=body)
        else:
            self._send(HTTPStatus.OK, kind, content, body=body)

    def _found(self, path: str) -> tuple[str, bytes | None]:
        """Return the kind of what an address stands for, and its content; None: there is none."""
        ways: tuple[tuple[re.Pattern[str], Callable[..., bytes | None]], ...] = (
            (_SQUARE, ServedSlide.square),
            (_PICTURE, ServedSlide.tile),
            (_PAGE, lambda slide: slide.page),
        )
        for pattern, made in ways:
            match = pattern.fullmatch(path)
            if match is not None:
                number, *others = map(int, match.groups())
                slide = self.server.slide(number)
                kind = "text/html; charset=utf-8" if pattern is _PAGE else "image/jpeg"
                return kind, None if slide is None else made(slide, *others)
        return "text/html; charset=utf-8", self.server.listing() if path == "/" else None

    def _send(self, status: HTTPStatus, kind: str, content: bytes, *, body: bool) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of single requests."""


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    fine, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, QUALITY))
    assert fine
    return encoded.tobytes()
