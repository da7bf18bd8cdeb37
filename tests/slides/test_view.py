"""`sscl slides view`: squares at full resolution, made on demand, for browsers of this computer alone."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from sscl import writing
from sscl.cli import main
from sscl.records import write_record
from sscl.report.slide_folder import content_of, slide_folders
from sscl.report.slide_record import FILE, PredictedSlide
from sscl.report.slide_server import SlideServer
from sscl.slides.deep_zoom import DeepZoom
from sscl.slides.open import open_slide
from sscl.slides.pixels import Readers

XY = [(0, 0), (224, 0), (448, 672)]


@pytest.fixture
def predicted(field_svs: Path, tmp_path: Path) -> Path:
    """What predict writes of the field: three tiles."""
    slide = open_slide(field_svs, name="a/field.svs")
    folder = tmp_path / "out" / "a" / "field.svs"
    folder.mkdir(parents=True)
    facts = {key: getattr(slide, key) for key in ("name", "path", "quickhash", "width", "height", "mpp", "mpp_from")}
    record = PredictedSlide(
        **facts,
        bounds=None,
        vendor=slide.vendor,
        reader=slide.reader,
        icc=False,
        size_px=224,
        tile_mpp=slide.mpp,
        footprint=224.0,
        most_over=1,
        tissue=None,
        classes=("HP", "SSA"),
        colours=((0, 114, 178), (230, 159, 0)),
        positive="SSA",
        threshold=0.5,
        checkpoint="runs/x",
        temperature=1.0,
        calibrated=True,
        decide_from=None,
        decide_from_method="",
        tiles=3,
        class_counts={"HP": 2, "SSA": 1},
        undecided={"HP": 0, "SSA": 0},
        regions={"HP": 1, "SSA": 1},
        damaged=(),
        notes=("no diagnosis",),
    )
    write_record(folder / FILE, record)
    header = [
        "x",
        "y",
        "coverage",
        "prediction",
        "probability_HP",
        "probability_SSA",
        "confidence",
        "decided",
        "reason",
    ]
    rows = [[x, y, 90, "HP", "0.75", "0.25", "0.75", "no" if x else "yes", ""] for x, y in XY]
    writing.write_csv(folder / "tiles.csv", header, rows)
    return tmp_path / "out"


@pytest.fixture
def server(predicted: Path) -> Iterator[SlideServer]:
    found = slide_folders(predicted)
    server = SlideServer(found, [Path(slide.record.path) for slide in found], port=0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(server: SlideServer, path: str, *, method: str = "GET", host: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", f"127.0.0.1:{server.server_port}" if host is None else host)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_squares_are_the_slide_s_pixels_at_every_size(field, field_svs):
    zoom = DeepZoom(open_slide(field_svs, name="field.svs"), Readers())
    assert zoom.sizes[-1] == (2000, 2000)
    assert max(zoom.sizes[0]) <= 254
    truth = field.pixels.astype(np.float64)
    for level, (width, height) in enumerate(zoom.sizes):
        columns = -(-width // 254)
        whole = np.zeros((height, width, 3))
        for row in range(-(-height // 254)):
            for column in range(columns):
                left, top = max(0, column * 254 - 1), max(0, row * 254 - 1)
                part = zoom.pixels(level, column, row)
                whole[top : top + part.shape[0], left : left + part.shape[1]] = part
        assert zoom.pixels(level, columns, 0) is None
        times = 2 ** (len(zoom.sizes) - 1 - level)
        wanted = cv2.resize(truth, (width, height), interpolation=cv2.INTER_AREA)
        assert np.abs(whole - wanted).mean() < 4, f"level {level}, {times} times smaller"


def test_a_slide_of_one_level_is_shown_by_its_small_picture(field, field_slide):
    zoom = DeepZoom(open_slide(field_slide(levels=field.levels[:1]), name="one.svs"), Readers())
    small = zoom.pixels(0, 0, 0)
    wanted = cv2.resize(field.pixels.astype(np.float64), zoom.sizes[0], interpolation=cv2.INTER_AREA)
    assert np.abs(small - wanted[: small.shape[0], : small.shape[1]]).mean() < 6


def test_a_browser_gets_the_page_the_squares_and_the_tiles(server, field):
    status, page = ask(server, "/0/")
    assert status == 200
    assert b'"address":"/0/"' in page
    assert b"img-src &#39;self&#39; data: blob:" in page
    assert b"a/field.svs" in ask(server, "/")[1]
    status, square = ask(server, "/0/0/0_0.jpg")
    assert (status, square[:2]) == (200, b"\xff\xd8")
    tile = cv2.imdecode(np.frombuffer(ask(server, "/0/tiles/2.jpg")[1], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    x, y = XY[2]
    assert np.abs(tile.astype(float) - field.pixels[y : y + 224, x : x + 224]).mean() < 4
    assert ask(server, "/0/0/0_0.jpg", method="HEAD") == (200, b"")


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/0/../../slide.json", "/0/%2e%2e/slide.json", "/0/slide.json", "//etc/passwd", "/1/",
     "/0/99/0_0.jpg", "/0/0/9_0.jpg", "/0/tiles/3.jpg", "/0/0/-1_0.jpg", "/0"],
)  # fmt: skip
def test_nothing_else_is_served(server, path):  # T32
    assert ask(server, path)[0] == 404


def test_other_names_of_this_address_and_other_methods_are_refused(server):  # T32, DNS rebinding
    for host in ("evil.example", f"evil.example:{server.server_port}", "", "127.0.0.1:1"):
        status, body = ask(server, "/0/", host=host)
        assert status == 403
        assert b"field" not in body
    assert ask(server, "/", host=f"localhost:{server.server_port}")[0] == 200
    assert ask(server, "/", method="POST")[0] == 501
    assert server.server_address[0] == "127.0.0.1"


def test_the_tiles_come_back(predicted):
    content = content_of(slide_folders(predicted)[0])
    assert content.xy.tolist() == [list(place) for place in XY]
    assert content.decided.tolist() == [True, False, False]
    assert content.probabilities[0].tolist() == [0.75, 0.25]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["slides", "view", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_a_port_in_use(server, predicted, capsys):
    line = said(capsys, str(predicted), f"port={server.server_port}")
    assert "port" in line
    assert "port=0" in line


def test_slides_that_have_moved(predicted, tmp_path, capsys):
    file = predicted / "a" / "field.svs" / FILE
    found = slide_folders(predicted)[0].record
    write_record(file, found.model_copy(update={"path": str(tmp_path / "gone.svs")}))
    assert "slides_root=" in said(capsys, str(predicted))
    assert "slides_root" in said(capsys, str(predicted), f"slides_root={tmp_path / 'none'}")


def test_a_folder_of_something_else(tmp_path, capsys):
    assert FILE in said(capsys, str(tmp_path))
    assert "no folder" in said(capsys, str(tmp_path / "none"))
