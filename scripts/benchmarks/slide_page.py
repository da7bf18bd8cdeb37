"""The page of a slide of 500 mm² with 40,000 tiles: its size, how long it takes to write, to open and to answer; and
the squares that `sscl slides view` makes of a slide of 20,480 px, asked for by HTTP.

`python slide_page.py FILE.html` writes the page that is measured, to be looked at.
"""

from __future__ import annotations

import http.client
import math
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from page import opened
from slides import drawn, write_large
from sscl.data.drawn_slide import draw_slide
from sscl.plots.slide import class_colours
from sscl.report.shown_slides import shown_slides
from sscl.report.slide_page import BASE_MPP, SlideContent, page_of
from sscl.report.slide_record import NO_DIAGNOSIS, PredictedSlide
from sscl.report.slide_server import SlideServer
from sscl.slides.deep_zoom import sizes_of

CLASSES = ("HP", "SSA")
MPP, TILE_PX = 0.5, 224  # of the slide whose page is written; of its tiles
SQUARES, SQUARE = 300, 254  # how many are asked for; side of one
SLIDERS = ("opacity", "threshold")
MEASURE = """async ([name, rounds]) => {
    const slider = document.getElementById(`page-${name}`);
    const shown = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    const taken = [];
    for (let round = 0; round < rounds; round++) {
        await shown();
        const started = performance.now();
        slider.value = round % 2 ? 30 : 60;
        slider.dispatchEvent(new Event('input', {bubbles: true}));
        await shown();
        taken.push(performance.now() - started);
    }
    return taken;
}"""
Row = dict[str, Any]


def measure(*, quick: bool, device: torch.device) -> list[Row]:
    """Return the rows of this topic; the device does not matter."""
    return [*page_rows(quick=quick), *square_rows(quick=quick)]


# --- the page ---


def page_rows(*, quick: bool) -> list[Row]:
    """Return the rows of the page."""
    made = content(times=1 if quick else 4, side=200 if quick else 1400)
    began = time.process_time()
    html = page_of(made)
    seconds = time.process_time() - began
    area = made.record.width * made.record.height * MPP**2 / 1e6
    what = f"slide.html, {area:,.0f} mm² of drawn tissue, {len(made.xy):,} tiles"
    rows: list[Row] = [
        {"what": what, "ours": len(html.encode()) / 1e6, "unit": "MB", "target": "<= 20 MB"},
        {"what": f"{what}: writing it", "ours": seconds, "unit": "CPU s", "note": "from tiles and picture in memory"},
    ]
    try:
        version, taken = answers(html, rounds=2 if quick else 20)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        return [*rows, {"what": f"{what}: opening and sliders", "target": "< 100 ms", "note": str(error)}]
    for name, times in taken.items():
        note = f"median of {len(times)}, slowest {max(times):.0f} ms; Chromium {version} without a graphics card"
        row = {"what": f"{what}: {name}", "ours": statistics.median(times), "unit": "ms", "note": note}
        rows.append({**row, "target": "< 1500 ms" if name == "opening" else "< 100 ms"})
    return rows


def content(*, times: int, side: int) -> SlideContent:
    """Return what a page shows: made-up answers, over a drawn picture `times` in a row and in a column."""
    base = np.tile(draw_slide(0, size_px=side, mpp=BASE_MPP).pixels, (times, times, 1))
    factor = BASE_MPP / MPP
    across = int(base.shape[1] * factor) // TILE_PX
    xy = np.stack(np.meshgrid(np.arange(across), np.arange(across)), -1).reshape(-1, 2).astype(np.int32) * TILE_PX
    wave = np.sin(xy[:, 0] / 4000) * np.cos(xy[:, 1] / 3000)
    second = (0.5 + 0.45 * wave + np.random.default_rng(0).normal(0, 0.02, len(xy))).clip(0.01, 0.99)
    second = second.astype(np.float32)
    confidence = np.maximum(second, 1 - second)
    counts = {"HP": int((second < 0.5).sum()), "SSA": int((second >= 0.5).sum())}
    record = PredictedSlide(
        name="drawn.svs", path="drawn.svs", quickhash="drawn", width=int(base.shape[1] * factor),
        height=int(base.shape[0] * factor), mpp=MPP, mpp_from="drawn", bounds=None, vendor="", reader="", icc=False,
        size_px=TILE_PX, tile_mpp=MPP, footprint=TILE_PX, most_over=1, tissue=1.0, classes=CLASSES,
        colours=class_colours(2), positive="SSA", threshold=0.5, checkpoint="made up", temperature=1.0, calibrated=True,
        decide_from=0.6, decide_from_method="", tiles=len(xy), class_counts=counts, undecided={"HP": 0, "SSA": 0},
        regions={}, damaged=(), notes=(NO_DIAGNOSIS,),
    )  # fmt: skip
    return SlideContent(
        record=record,
        xy=xy,
        coverage=np.full(len(xy), 100),
        probabilities=np.stack([1 - second, second], 1),
        decided=confidence >= 0.6,
        base=base,
        base_factor=(factor, factor),
    )


def answers(html: str, *, rounds: int) -> tuple[str, dict[str, list[float]]]:
    """Return Chromium's version, and the milliseconds to the end of the frame that shows what was done, by its name.

    Raises: see `page.opened`.
    """
    with opened(html) as (page, address):
        opening = []
        for _ in range(min(rounds, 5)):
            page.goto(address, wait_until="commit")
            page.wait_for_function("() => document.documentElement.dataset.open === 'yes'", polling=5)
            opening.append(page.evaluate("performance.now()"))
        page.wait_for_timeout(1_000)
        found = {"opening": opening, **{f"slider: {name}": page.evaluate(MEASURE, [name, rounds]) for name in SLIDERS}}
        return page.context.browser.version, found


# --- the squares ---


def square_rows(*, quick: bool) -> list[Row]:
    """Return the rows of the server: CPU time of both sides of the connection, which are one process here."""
    with tempfile.TemporaryDirectory(prefix="sscl-") as name:
        slide = write_large(Path(name) / "large.svs", drawn(1024 if quick else 4096), times=2 if quick else 5)
        found = shown_slides(Path(name))
        with SlideServer(found, [one.path for one in found], port=0) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            opening = cpu_ms(server, ["/0/", "/0/0/0_0.jpg"])
            of = wanted(slide.width, slide.height, number=20 if quick else SQUARES)
            first, again = cpu_ms(server, of), cpu_ms(server, of)
            server.shutdown()
            thread.join()
    what = f"sscl slides view, JPEG SVS of {slide.width:,} px"
    squares = f"of {len(of)} at random places of all levels; both ends of the connection"
    return [
        {"what": f"{what}: its page and smallest square", "ours": sum(opening), "unit": "CPU ms", "note": "once"},
        *(
            {"what": f"{what}: a square, {when}", "ours": statistics.mean(times), "unit": "CPU ms",
             "target": "<= 5 CPU ms", "note": f"mean {squares}; highest {max(times):.0f}"}
            for when, times in (("first time", first), ("again", again))
        ),
    ]  # fmt: skip


def wanted(width: int, height: int, *, number: int) -> list[str]:
    """Return addresses of squares, as many of each level, or all that it has."""
    rng, sizes = np.random.default_rng(0), sizes_of(width, height, square=SQUARE)
    found = []
    for level, (wide, high) in enumerate(sizes):
        places = [(x, y) for y in range(math.ceil(high / SQUARE)) for x in range(math.ceil(wide / SQUARE))]
        chosen = rng.permutation(len(places))[: math.ceil(number / len(sizes))]
        found += ["/0/{}/{}_{}.jpg".format(level, *places[at]) for at in chosen]
    return found


def cpu_ms(server: SlideServer, addresses: list[str]) -> list[float]:
    """Return the CPU milliseconds that each answer takes."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    taken = []
    for address in addresses:
        began = time.process_time()
        connection.request("GET", address)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, address
        taken.append(1000 * (time.process_time() - began))
    connection.close()
    return taken


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page_of(content(times=4, side=1400)), encoding="utf-8")
