"""Content of a page that is made up, its names hostile, and a headless Chromium to open it in."""

from __future__ import annotations

import base64
import copy
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from sscl.plots.cam import heatmap_rgb
from sscl.report.page import render
from sscl.report.page.content import Content

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CLASSES = ["HP", "SSA<script>window.harmed = 1</script>", '"><img src=x onerror="window.harmed = 2">']
HOSTILE_NAMES = [
    "</script><script>window.harmed = 3</script>.png",
    '"><svg onload="window.harmed = 4">.png',
    "=HYPERLINK(1).png",
    "__proto__",
    "\u202egnp.exe",
    "{{ 7 * 7 }}<!--.png",
    "a,b;c\"d'.png",
    "\udcff.png",
]
SIZE_PX, MAP_SIDE = 32, 4
# In a tab that tests share: a store that goes with its document. What a page wrote last into the real one may reach
# Chromium's other processes after the next page has read it, or even after what that page writes.
STORE = """{
  class Store {
    getItem(key) { return this[key] ?? null; }
    setItem(key, value) { this[key] = value; }
    removeItem(key) { delete this[key]; }
  }
  Object.defineProperty(window, 'localStorage', { value: new Store() });
}
"""
# Counts the pictures drawn and the rows put into the document.
COUNTS = """
window.drawn = 0; window.added = 0;
const put = CanvasRenderingContext2D.prototype.putImageData;
CanvasRenderingContext2D.prototype.putImageData = function (...given) {
  window.drawn++;
  return put.apply(this, given);
};
new MutationObserver((records) => {
  for (const record of records) for (const node of record.addedNodes) if (node.matches?.('.row')) window.added++;
}).observe(document, {childList: true, subtree: true});
"""
# Texts that stand out too little from what is behind them, and controls without a name.
CONTRAST = """() => {
    const context = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d',
        {willReadFrequently: true});
    const pixel = (...colours) => {
        context.globalAlpha = 1;
        for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
        return Array.from(context.getImageData(0, 0, 1, 1).data).slice(0, 3);
    };
    const light = (colour) => colour.map((part) => part / 255)
        .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
    const found = [];
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!own || element.closest('script, svg, option, :disabled, .empty') || !element.checkVisibility()) continue;
        const grounds = [];
        for (let at = element; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor);
        const ground = pixel(...grounds);
        const ink = pixel(...grounds, getComputedStyle(element).color);
        const [low, high] = [light(ink), light(ground)].sort((a, b) => a - b);
        const ratio = (high + 0.05) / (low + 0.05);
        if (ratio < 4.5) found.push(`${element.className || element.tagName} ${ratio.toFixed(2)}`);
    }
    return found;
}"""
UNNAMED = """() => [...document.querySelectorAll('button, select, input, textarea, img, [role=grid]')]
    .filter((it) => !(it.textContent.trim() || it.ariaLabel || it.alt || it.labels?.length))
    .map((it) => it.outerHTML.slice(0, 80))"""


def as_kept(page: Any) -> str:
    """Return a script that gives a new document what this one has kept, as closing and opening it does."""
    kept = page.evaluate("() => { dispatchEvent(new Event('pagehide')); return { ...localStorage }; }")
    return f"for (const [key, value] of Object.entries({json.dumps(kept)})) localStorage.setItem(key, value);"


def picture(rng: np.random.Generator) -> str:
    """Squares in bright colours: noise at full size would be most of the page."""
    stream = io.BytesIO()
    noise = rng.integers(120, 255, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    Image.fromarray(noise[::8, ::8]).resize((SIZE_PX, SIZE_PX), Image.Resampling.NEAREST).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def tile(index: int, rng: np.random.Generator, *, pictures: list[str]) -> dict[str, Any]:
    """Tiles differ in all that is sorted and filtered by; every seventh has no evidence, every eleventh no label."""
    probabilities = rng.dirichlet((1, 1, 1))
    label = -1 if index % 11 == 10 else int(rng.integers(0, 3))
    cells = rng.integers(0, 256, MAP_SIDE**2, dtype=np.uint8)
    cells[rng.integers(0, MAP_SIDE**2)] = 255
    empty = index % 7 == 6
    return {
        "id": HOSTILE_NAMES[index] if index < len(HOSTILE_NAMES) else f"tile{index}.png",
        "label": label,
        "prediction": int(probabilities.argmax()),
        "probabilities": dict(enumerate(probabilities.tolist())),
        "loss": None if label < 0 else float(-np.log(probabilities[label])),
        "agreement": None if index % 5 == 4 else f"{int(rng.integers(4, 8))}/7",
        "votes": None,
        "group": f"slide {index // 10}" if index % 2 else None,
        "decided": bool(probabilities.max() > 0.5),
        "image": pictures[index % len(pictures)],
        "map": "" if empty else base64.b64encode(cells.tobytes()).decode(),
        "maximum": 0.0 if empty else float(rng.random()),
        "box": None if empty else [4, 8, 20, 28],
        "further": [[22, 2, 30, 6]] if index % 4 == 0 and not empty else [],
        "localises": not empty,
        "remark": "no positive evidence, so no box" if empty else "",
        "region": None if index % 3 == 2 else [0, 0, 64, 64],
    }


def make_content(count: int = 60) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    pictures = [picture(rng) for _ in range(5)]
    tiles = [tile(index, rng, pictures=pictures) for index in range(count)]
    matrix = np.zeros((3, 3), dtype=int)
    for one in tiles:
        if one["label"] >= 0:
            matrix[one["label"], one["prediction"]] += 1
    svg = '<svg viewBox="0 0 40 20" width="400" height="200"><path d="M0 0L40 20" stroke="currentColor"></path></svg>'
    blocks = [
        {"kind": "text", "text": "First <b>paragraph</b>.\n\nSecond."},
        {"kind": "facts", "rows": [["encoder", "resnet18"], ["<i>", "&amp;"]]},
        {"kind": "list", "items": ["one", "two </li>"]},
        {
            "kind": "table",
            "links": [],
            "pictures": [],
            "sortable": False,
            "caption": "Metrics",
            "header": ["metric", "value", "95% interval"],
            "rows": [["accuracy", "0.81", "0.75 to 0.86"], ["<u>", "1", "2"]],
            "numeric_from": 1,
        },
        {"kind": "figure", "svg": svg, "png": None, "alt": "A line", "caption": "Falls."},
        {"kind": "figure", "svg": None, "png": pictures[0], "alt": "Noise", "caption": ""},
        {"kind": "verdict", "outcome": "passed", "title": "Depends on the weights", "text": "It does."},
        {"kind": "verdict", "outcome": "failed", "title": "No leak", "text": ""},
        {"kind": "verdict", "outcome": "not assessed", "title": "Boxes", "text": "No masks."},
        {"kind": "confusion", "classes": list(CLASSES), "matrix": matrix.tolist(), "note": "Rows are truth."},
        {"kind": "code", "title": "Configuration", "text": "a:\n  b: </pre><script>window.harmed = 5</script>"},
    ]
    return {
        "title": "Report <script>window.harmed = 6</script>",
        "subtitle": "of made-up answers",
        "id": "0123456789abcdef",
        "made": "2026-11-21, sscl report",
        "sections": [
            {"id": "metrics", "title": "Metrics & more", "hint": "", "folded": False, "blocks": blocks},
            {"id": "more", "title": "More", "hint": "a <b>few</b>", "folded": True, "blocks": blocks[:1]},
        ],
        "gallery": {
            "classes": list(CLASSES),
            "size_px": SIZE_PX,
            "map_side": MAP_SIDE,
            "colours": base64.b64encode(heatmap_rgb(np.arange(256)[None] / 255).tobytes()).decode(),
            "alpha": 0.7,
            "target": "logit of the predicted class",
            "threshold": 0.3,
            "notes": ["All tiles.", "Two </li>."],
            "blind": False,
            "tiles": tiles,
        },
    }


@pytest.fixture(scope="session")
def whole() -> dict[str, Any]:
    return make_content()


@pytest.fixture
def content(whole: dict[str, Any]) -> dict[str, Any]:
    """Content of one's own, to be changed."""
    return copy.deepcopy(whole)


@pytest.fixture(scope="module")  # one Playwright at a time in a process; other modules start their own
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("NO CHROMIUM: the page is not tested in a browser; apt install chromium (Debian, Ubuntu)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="NO PLAYWRIGHT: the page is not tested in a browser")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Opened:
    """Opens content from disk; what a page complains of or asks for is kept.

    Where nothing else is asked for it is the tab that all tests share, emptied: a new one costs more than most tests.
    """

    browser: Any
    folder: Path
    complaints: list[str] = field(default_factory=list)
    contexts: list[Any] = field(default_factory=list)
    shared: Any = None
    devtools: Any = None  # of the shared tab: Playwright has no way of its own to take a script back
    shows: Any = None  # the content in the shared tab, where that is as it was opened

    def __call__(self, content: dict[str, Any], *, init: str = "", **settings: Any) -> Any:
        """Open a page; init: a script to run before it; settings: of a context of its own, a browser without a past."""
        file = self.folder / "report.html"
        file.write_text(render(cast(Content, content)), encoding="utf-8")
        return self.go(file.as_uri(), init=init, **settings)

    def again(self, page: Any, **settings: Any) -> Any:
        """Open the file of a page in a browser that has kept what the page's browser has."""
        return self.go(page.url, init=as_kept(page), **settings)

    def go(self, url: str, *, init: str, **settings: Any) -> Any:
        if settings:
            page = self.tab(init, **settings)
            page.goto(url)
            return page
        if self.shared is None:
            self.shared = self.tab(STORE + COUNTS)
            self.devtools = self.shared.context.new_cdp_session(self.shared)
            self.devtools.send("Page.enable")
        self.shows = None
        before = self.devtools.send("Page.addScriptToEvaluateOnNewDocument", {"source": init})
        self.shared.goto(url)
        self.devtools.send("Page.removeScriptToEvaluateOnNewDocument", before)
        return self.shared

    def tab(self, init: str, *, width: int = 960, **settings: Any) -> Any:
        context = self.browser.new_context(
            viewport={"width": width, "height": 560}, reduced_motion="reduce", **settings
        )
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: self.complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("request", lambda request: self.complaints.append(f"request: {request.url[:80]}"))
        if init:
            page.add_init_script(init)
        return page

    def check(self) -> None:
        """Close what is not shared; fail where a page complained, asked for anything, or let a script run."""
        pages = [page for context in self.contexts for page in context.pages]
        harmed = [page.evaluate("window.harmed ?? null") for page in pages]
        for page in pages:
            if page is not self.shared:
                page.context.close()
        self.contexts = [self.shared.context] if self.shared else []
        allowed = ("request: file://", "request: data:", "request: blob:")
        found = [complaint for complaint in self.complaints if not complaint.startswith(allowed)]
        self.complaints.clear()
        assert found == []
        assert set(harmed) <= {None}, "a script of the content ran"


@pytest.fixture(scope="module")
def tabs(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return Opened(chromium, tmp_path_factory.mktemp("page"))


@pytest.fixture
def opened(tabs: Opened) -> Iterator[Opened]:
    """Open content from disk; whatever the page complains of or asks for fails the test."""
    yield tabs
    tabs.check()
