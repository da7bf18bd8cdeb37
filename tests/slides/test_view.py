"""`sscl slides view`: squares at full resolution, made on demand, for browsers of this computer alone."""

from __future__ import annotations

import _thread
import http.client
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from sscl import writing
from sscl.cli import main
from sscl.records import write_record
from sscl.report.shown_slides import shown_slides
from sscl.report.slide_folder import content_of, slide_folders
from sscl.report.slide_record import FILE, PredictedSlide
from sscl.report.slide_server import SlideServer
from sscl.slides.deep_zoom import DeepZoom
from sscl.slides.index import read_index
from sscl.slides.open import open_slide
from sscl.slides.pixels import Readers
from sscl.slides.write import encode_level, reduced, write_levels

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
    index = tmp_path / "out" / "index"  # that has what it knows of a DICOM folder named slide
    (index / "slides").mkdir(parents=True)
    (index / "env.json").write_text('{"sscl": "0"}')
    (index / "slides" / "slide.json").write_text("{}")
    return tmp_path / "out"


@pytest.fixture
def server(predicted: Path) -> Iterator[SlideServer]:
    yield from serving(predicted)


def serving(folder: Path) -> Iterator[SlideServer]:
    found = shown_slides(folder)
    server = SlideServer(found, [slide.path for slide in found], port=0)
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


@pytest.fixture(scope="module")
def small(field, tmp_path_factory) -> tuple[np.ndarray, Path]:
    """A part of the field, 700 x 520 px, as a slide of levels 1 and 4."""
    pixels = np.ascontiguousarray(field.pixels[600:1120, 500:1200])
    path = tmp_path_factory.mktemp("small") / "small.svs"
    write_levels(path, [encode_level(pixels), encode_level(reduced(pixels, 4))], mpp=2.0)
    return pixels, path


def whole(zoom: DeepZoom, level: int) -> np.ndarray:
    """The squares of a level, put together."""
    width, height = zoom.sizes[level]
    found = np.zeros((height, width, 3))
    for row in range(-(-height // zoom.square)):
        for column in range(-(-width // zoom.square)):
            left, top = max(0, column * zoom.square - 1), max(0, row * zoom.square - 1)
            part = zoom.pixels(level, column, row)
            found[top : top + part.shape[0], left : left + part.shape[1]] = part
    return found


def test_squares_are_the_slide_s_pixels_at_every_size(small):
    pixels, path = small
    zoom = DeepZoom(open_slide(path, name="small.svs"), Readers(), square=100)
    assert zoom.sizes == ((88, 65), (175, 130), (350, 260), (700, 520))
    for level, size in enumerate(zoom.sizes):
        wanted = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        assert np.abs(whole(zoom, level) - wanted).mean() < 4, f"level {level}"
        assert zoom.pixels(level, -(-size[0] // 100), 0) is None


def test_a_slide_of_one_level_is_shown_by_its_small_picture(small, tmp_path):
    write_levels(tmp_path / "one.svs", [encode_level(small[0])], mpp=1.0)
    zoom = DeepZoom(open_slide(tmp_path / "one.svs", name="one.svs"), Readers(), square=50)
    wanted = cv2.resize(small[0], zoom.sizes[0], interpolation=cv2.INTER_AREA)
    assert np.abs(whole(zoom, 0) - wanted).mean() < 6


def test_what_cannot_be_decoded_is_crossed_out_and_said_and_no_more(small, tmp_path):
    pixels, _ = small
    path = tmp_path / "cut.svs"
    write_levels(path, [encode_level(pixels)], mpp=2.0)
    slide = open_slide(path, name="cut.svs")
    how = slide.levels[0].encoded
    with path.open("r+b") as file:  # the second encoded tile, x = 256 to 512, y = 0 to 256
        file.seek(how.offsets_at + how.offset_bytes)
        file.seek(int.from_bytes(file.read(how.offset_bytes), how.order) + 400)
        file.write(bytes(600))
    lines: list[str] = []
    zoom = DeepZoom(slide, Readers(), say=lines.append)
    shown = whole(zoom, len(zoom.sizes) - 1)
    fine = np.ones(shown.shape[:2], bool)
    fine[:256, 256:512] = False
    wrong = np.abs(shown - pixels).max(2) > 60
    assert wrong[~fine].mean() > 0.3
    assert wrong[fine].mean() < 0.25  # pieces of 64 px reach beyond it
    assert np.abs(shown[256 + 64 :] - pixels[256 + 64 :]).mean() < 4
    assert lines
    assert all("cut.svs" in line for line in lines)


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


def test_one_connection_gets_many_squares_without_a_wait_between(server):
    """Of 40 ms, where the headers go alone and the system waits to confirm them."""
    connection, took = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10), []
    for _ in range(10):
        began = time.perf_counter()
        connection.request("GET", "/0/0/0_0.jpg")
        connection.getresponse().read()
        took.append(time.perf_counter() - began)
    connection.close()
    assert min(took[1:]) < 0.035


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/0/../../slide.json", "/0/%2e%2e/slide.json", "/0/slide.json", "//etc/passwd", "/1/",
     "/0/%00", "/0/tiles/0.jpg/../../..", "/0/0/0_0.jpg%00",
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


def test_what_is_no_slide_is_not_served(tmp_path, capsys):
    (tmp_path / "slides.csv").write_text("slide,mpp\n")
    assert main(["slides", "view", str(tmp_path / "slides.csv"), "port=0"]) == 2
    assert "slides.csv: is text" in capsys.readouterr().err


def test_slides_that_have_moved(predicted, tmp_path, capsys):
    file = predicted / "a" / "field.svs" / FILE
    found = slide_folders(predicted)[0].record
    write_record(file, found.model_copy(update={"path": str(tmp_path / "gone.svs")}))
    assert "slides_root=" in said(capsys, str(predicted))
    assert "slides_root" in said(capsys, str(predicted), f"slides_root={tmp_path / 'none'}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.rsplit("\n", 2)[0] + "\n", "has 2 tiles, but 3 were predicted"),  # a copy that was cut
        (lambda text: text.replace("0.75", "nan"), "line 2: x, y, coverage or probability 'nan'"),
        (lambda text: text.replace("0.75", ""), "line 2: x, y, coverage or probability ''"),
    ],
)
def test_a_table_that_is_not_whole_is_refused(predicted, change, said):
    file = predicted / "a" / "field.svs" / "tiles.csv"
    file.write_text(change(file.read_text()))
    with pytest.raises(ValueError, match=said):
        content_of(slide_folders(predicted)[0])


def test_ctrl_c_ends_it(predicted, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def interrupt() -> None:
        for _ in range(500):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.01)
        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background may ignore Ctrl-C
    try:
        thread.start()
        assert main(["slides", "view", str(predicted), f"port={port}"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    told = capsys.readouterr()
    assert f"http://127.0.0.1:{port}/" in told.out
    assert told.err == ""
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_an_index_is_shown_with_its_tiles_and_slides_without(small, tmp_path):
    _, path = small
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "b.svs").symlink_to(path)
    write_levels(tmp_path / "slides" / "a.tiff", [encode_level(small[0])], mpp=None)
    words = ["slides", "tile", str(tmp_path / "slides" / "b.svs"), f"out={tmp_path / 'index'}", "mpp=4", "size_px=32"]
    assert main([*words, "progress=false"]) == 0
    (of_index,) = shown_slides(tmp_path / "index")
    content = of_index.content(of_index.path)
    assert not content.predicted
    assert np.array_equal(content.xy, read_index(tmp_path / "index").grid(0)[:, :2])
    assert np.allclose(content.probabilities[:, 0], content.coverage / 100)
    for server in serving(tmp_path / "slides"):
        assert [slide.name for slide in server.found] == ["a.tiff", "b.svs"]
        for number in (0, 1):  # the first has no µm per pixel
            assert ask(server, f"/{number}/")[0] == 200
            assert ask(server, f"/{number}/0/0_0.jpg")[0] == 200
            assert ask(server, f"/{number}/tiles/0.jpg")[0] == 404


def test_who_reviews_blind_is_not_told_what_was_predicted(predicted):
    (slide,) = shown_slides(predicted, blind=True)
    assert "HP" not in slide.said
    assert "HP" in shown_slides(predicted)[0].said
    assert slide.content(slide.path).blind
    with pytest.raises(ValueError, match=r"^blind: "):
        shown_slides(slide.path, blind=True)


def test_a_slide_that_was_replaced_is_refused(server, predicted, small):
    server.paths[0] = small[1]
    status, body = ask(server, "/0/")
    assert status == 503
    assert b"predict it again" in body


def test_many_squares_at_once(server):
    squares = [f"/0/3/{column}_{row}.jpg" for column in range(4) for row in range(4)]
    alone = [ask(server, square) for square in squares]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda square: ask(server, square), squares)) == alone


def test_a_folder_of_something_else(tmp_path, capsys):
    assert "has no slide" in said(capsys, str(tmp_path))
    assert "is not there" in said(capsys, str(tmp_path / "none"))
