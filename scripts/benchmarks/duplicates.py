"""What `sscl data audit` finds: twins made from synthetic tiles, by kind. Prints a Markdown table.

`python scripts/benchmarks/duplicates.py --tiles 200` (200 originals of 224 px, each with one twin, searched at 128 px)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from sscl.data.duplicates import SIZE_PX, find_pairs
from sscl.data.synthetic import draw_tile
from sscl.metrics import wilson_interval

Tile = NDArray[np.uint8]
Twin = Callable[[Tile, np.random.Generator], Tile]


def turned(tile: Tile, rng: np.random.Generator) -> Tile:
    """One of the 7 turns and flips."""
    which = int(rng.integers(1, 8))
    return np.ascontiguousarray(np.rot90(tile[:, ::-1] if which & 4 else tile, which & 3))


def cropped(tile: Tile, rng: np.random.Generator) -> Tile:
    """90% of the side from anywhere, at the full size again."""
    side = round(0.9 * len(tile))
    x, y = rng.integers(0, len(tile) - side + 1, 2)
    return np.asarray(cv2.resize(tile[y : y + side, x : x + side], tile.shape[:2], interpolation=cv2.INTER_CUBIC))


def as_jpeg(tile: Tile, rng: np.random.Generator) -> Tile:
    """JPEG of quality 60 to 80."""
    coded = cv2.imencode(".jpg", tile, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 81))])[1]
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR))


def recoloured(tile: Tile, rng: np.random.Generator) -> Tile:
    """Each channel's optical density times 0.88 to 1.12, light times 0.95 to 1.05."""
    density = -np.log((tile + 1.0) / 256) * rng.uniform(0.88, 1.12, 3)
    light: Tile = (np.exp(-density) * 256 * rng.uniform(0.95, 1.05) - 1).clip(0, 255).astype(np.uint8)
    return light


def rotated(tile: Tile, rng: np.random.Generator) -> Tile:
    """Turned by 5 to 25 degrees, cut to what lies inside."""
    angle = rng.uniform(5, 25)
    zoom = np.cos(np.radians(angle)) + np.sin(np.radians(angle))
    middle = (len(tile) - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), angle, zoom)
    return np.asarray(cv2.warpAffine(tile, matrix, tile.shape[:2], flags=cv2.INTER_CUBIC))


def combined(tile: Tile, rng: np.random.Generator) -> Tile:
    """Turned, cropped, recoloured and saved as JPEG."""
    return as_jpeg(recoloured(cropped(turned(tile, rng), rng), rng), rng)


KINDS: tuple[Twin, ...] = (turned, cropped, as_jpeg, recoloured, rotated, combined)


def measure(tiles: int, *, seed: int = 0) -> list[dict[str, object]]:
    """Return, for each kind of twin, how many of the true pairs were found, the false ones, and the seconds."""
    originals = [draw_tile(index, seed=seed, size_px=224).image for index in range(tiles)]
    true = {(row, tiles + row) for row in range(tiles)}
    rows: list[dict[str, object]] = []
    for kind in KINDS:
        rng = np.random.default_rng(seed)
        pictures = [*originals, *(kind(tile, rng) for tile in originals)]
        images = np.stack([cv2.resize(p, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA) for p in pictures])
        start = time.perf_counter()
        pairs = {(pair.first, pair.second) for pair in find_pairs(images)}
        seconds = time.perf_counter() - start
        found = len(pairs & true)
        rows.append({"kind": kind, "found": found, "false": len(pairs - true), "seconds": seconds})
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print("| twin | found | recall (95%) | false pairs | seconds |\n|---|---|---|---|---|")
    for row in measure(given.tiles, seed=given.seed):
        found = int(str(row["found"]))
        low, high = wilson_interval(found, given.tiles)
        what = str(row["kind"].__doc__).rstrip(".")
        print(
            f"| {what} | {found} of {given.tiles} "
            f"| {100 * found / given.tiles:.1f}% ({100 * low:.1f}–{100 * high:.1f}) "
            f"| {row['false']} | {row['seconds']:.1f} |"
        )


if __name__ == "__main__":
    main()
