"""The page of a report with 1,000 tiles: its size, and how long it takes to answer, in a headless Chromium.

`python page.py FILE.html [TILES]` writes the page that is measured, to be looked at.
"""

from __future__ import annotations

import base64
import contextlib
import io
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sscl.data.synthetic import draw_tile
from sscl.explain.boxes import find_box, remark
from sscl.explain.cam import upsample
from sscl.plots.cam import heatmap_rgb
from sscl.report.page import render
from sscl.report.page.content import Block, Content, Gallery, GalleryTile

CLASSES = ("HP", "SSA")
MAP_SIDE = 7
BROWSER_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Each is done by the page's own script, then the frame that shows it is waited for.
ACTIONS = {
    "filter": "set('page-outcome', round % 2 ? 'wrong' : '')",
    "sort": "set('page-sort', round % 2 ? 'loss' : 'name')",
    "find": "set('page-find', round % 2 ? '1' : '', 'input')",
    "slider": "set(document.querySelector('.heat-range'), round % 2 ? 35 : 100, 'input')",
    "boxes": "press('b')",
    "arrow key": "press(round % 2 ? 'ArrowDown' : 'ArrowUp')",
    "review key": "press('a')",
    "large view": "press(round % 2 ? 'Enter' : 'Escape')",
}
MEASURE = """async ([name, rounds]) => {
    const own = (what) => typeof what === 'string' ? document.getElementById(what) : what;
    const set = (what, value, event = 'change') => {
        own(what).value = value;
        own(what).dispatchEvent(new Event(event, {bubbles: true}));
    };
    const press = (key) => {
        const large = document.getElementById('page-large');
        if (key === 'Escape' && large.open) return large.close();
        document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
    };
    const shown = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    const actions = {ACTIONS};
    const taken = [];
    if (!document.getElementById('page-large').open) document.querySelector('.tile[tabindex="0"]').focus();
    for (let round = 1; round <= rounds; round++) {
        await shown();
        const started = performance.now();
        actions[name](round);
        await shown();
        taken.push(performance.now() - started);
    }
    return taken;
}""".replace("{ACTIONS}", "{" + ", ".join(f"'{name}': (round) => {code}" for name, code in ACTIONS.items()) + "}")


def measure(*, quick: bool, device: torch.device) -> list[dict[str, Any]]:
    """Return the rows of this topic; the device does not matter."""
    count, rounds = (40, 2) if quick else (1000, 20)
    html = render(content(count, drawn=4 if quick else 60))
    size = {"what": f"page of {count:,} tiles of 224 px", "ours": len(html.encode()) / 1e6, "unit": "MB"}
    rows: list[dict[str, Any]] = [{**size, "target": "< 30 MB"}]
    try:
        taken = answers(html, rounds=rounds)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        return [*rows, {"what": "answers of the page", "target": "< 100 ms", "note": str(error)}]
    for name, times in taken.items():
        note = f"slowest of {len(times)}: {max(times):.0f} ms"
        row = {"what": f"page of {count:,} tiles: {name}", "ours": statistics.median(times), "unit": "ms"}
        rows.append({**row, "target": "< 1500 ms" if name == "opening" else "< 100 ms", "note": note})
    return rows


def answers(html: str, *, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds from each action to the end of the frame that shows it, by its name; see `opened`."""
    with opened(html) as (page, address):
        opening = []
        for _ in range(min(rounds, 5)):
            page.goto(address)
            opening.append(page.evaluate("performance.timing.domContentLoadedEventEnd - performance.timing.fetchStart"))
        page.locator("#page-toolbar").scroll_into_view_if_needed()
        return {"opening": opening, **{name: page.evaluate(MEASURE, [name, rounds]) for name in ACTIONS}}


@contextlib.contextmanager
def opened(html: str) -> Iterator[tuple[Any, str]]:
    """Give a tab of a headless Chromium, and the address of a page on disk; an error of its scripts is raised.

    Raises:
        ModuleNotFoundError: playwright is not installed. FileNotFoundError: there is no Chromium.
    """
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise FileNotFoundError("chromium is not installed (Debian, Ubuntu: apt install chromium)")
    with tempfile.TemporaryDirectory(prefix="sscl-") as folder, sync_playwright() as playwright:
        file = Path(folder) / "page.html"
        file.write_text(html, encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=chromium, args=list(BROWSER_FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        errors: list[Exception] = []
        page.on("pageerror", lambda error: errors.append(error))
        yield page, file.as_uri()
        browser.close()
    if errors:
        raise errors[0]


def content(count: int, *, drawn: int = 60) -> Content:
    """Return what `report.page.render` takes: made-up answers on `drawn` synthetic tiles that come again and again."""
    rng = np.random.default_rng(0)
    pictures = [jpeg(draw_tile(index, size_px=224).image) for index in range(drawn)]
    matrix = np.zeros((2, 2), dtype=int)
    tiles: list[GalleryTile] = []
    for index in range(count):
        votes = int(rng.integers(0, 8))
        label = int(votes >= 4)
        sure = float(rng.beta(5, 1.6)) * 0.5 + 0.5
        prediction = label if rng.random() < sure else 1 - label
        probability = [1 - sure, sure] if prediction else [sure, 1 - sure]
        matrix[label, prediction] += 1
        empty = index % 50 == 49
        raw = rng.random((1, MAP_SIDE, MAP_SIDE)) ** 6 * (not empty)
        box = find_box(upsample(torch.from_numpy(raw), size_px=224)[0].numpy(), threshold=0.5)
        tiles.append(
            {
                "id": f"MHIST_{index:04d}.png",
                "label": label,
                "prediction": prediction,
                "probabilities": dict(enumerate(probability)),
                "loss": -float(np.log(probability[label])),
                "agreement": f"{max(votes, 7 - votes)}/7",
                "votes": votes,
                "group": f"slide {index // 20}",
                "decided": sure >= 0.6,
                "image": pictures[index % drawn],
                "map": base64.b64encode(np.round(255 * raw / raw.max()).astype(np.uint8)).decode() if box else "",
                "maximum": float(raw.max()),
                "box": list(box.corners) if box else None,
                "further": [],
                "localises": box is not None and box.localises,
                "remark": remark(box),
                "region": [0, 0, 224, 224],
            }
        )
    gallery: Gallery = {
        "classes": list(CLASSES),
        "size_px": 224,
        "map_side": MAP_SIDE,
        "colours": base64.b64encode(heatmap_rgb(np.arange(256)[None] / 255).tobytes()).decode(),
        "alpha": 0.7,
        "target": "logit of the predicted class less that of the other",
        "threshold": 0.5,
        "notes": ["The answers are made up and the tiles are drawn: this page shows how it works, not what is true."],
        "blind": False,
        "tiles": tiles,
    }
    block: Block = {"kind": "confusion", "classes": list(CLASSES), "matrix": matrix.tolist(), "note": ""}
    return {
        "title": "Report of a made-up classifier",
        "subtitle": f"{count:,} synthetic tiles",
        "id": "0123456789abcdef",
        "made": "scripts/benchmarks/page.py",
        "sections": [{"id": "metrics", "title": "Metrics", "hint": "", "folded": False, "blocks": [block]}],
        "gallery": gallery,
    }


def jpeg(pixels: np.ndarray) -> str:
    """Return a tile, uint8 (S, S, 3), as a data URI."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(content(int(sys.argv[2]) if len(sys.argv) > 2 else 1000)), encoding="utf-8")
