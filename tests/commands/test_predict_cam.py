"""sscl predict cam: the map of a region is the mean of tiles explained one by one; and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
import pytest
from PIL import Image

from damaged_levels import damaged
from sscl import api
from sscl.predict.regions import Frame, Region, classified_in, region_of, tiles_over
from sscl.report.slide_folder import content_of, slide_folders
from sscl.slides.open import open_slide
from sscl.slides.write import EncodedLevel, encode_level, write_levels

SIDE, MPP, SIZE, STEP = 512, 7.0, 32, 64  # of the slide and its µm per pixel; of a tile, and in pixels of level 0


@pytest.fixture(autouse=True)
def small_pictures(number: Any) -> None:
    number(slide_picture=SIDE, cam_picture=SIDE)


@pytest.fixture(scope="module")
def level() -> EncodedLevel:
    """A disc of tissue that leaves the slide at the right."""
    rng = np.random.default_rng(0)
    tissue = rng.integers(-40, 40, (SIDE // 4, SIDE // 4, 3)).repeat(4, 0).repeat(4, 1) + (190, 120, 170)
    disc = cv2.circle(np.zeros((SIDE, SIDE), np.uint8), (400, 260), 200, 1, -1)
    pixels = np.where(disc[..., None] > 0, tissue, (240, 239, 241)).astype(np.uint8)
    return encode_level(pixels, tile_px=64)


@pytest.fixture(scope="module")
def slide(level: EncodedLevel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cam") / "a.svs"
    write_levels(path, [level], mpp=MPP)
    return path


@pytest.fixture(scope="module")
def ask(cli: Any, finetuned: Path) -> Callable[..., Any]:
    def call(*words: object, run: Path = finetuned) -> Any:
        return cli("predict", run, *words, "progress=false", "device=cpu", "batch_size=16")

    return call


def test_the_map_is_the_mean_of_tiles_that_are_explained_one_by_one(
    ask: Any, finetuned: Path, slide: Path, read_rows: Any, tmp_path: Path
) -> None:
    """Each in logits as it is. The region reaches beyond the slide's border, and beyond the tissue."""
    x, y, wide, high = 331, 5, SIDE - 331, 150
    out = tmp_path / "out"
    result = ask(slide, f"out={out}", f"cam=[{x}, {y}, 900, {high}]", "gradcam.target=SSA")
    assert result.code == 0, result.err
    kept = json.loads((out / "a.svs" / "slide.json").read_text())["cam"]
    assert [kept[key] for key in ("x", "y", "width", "height", "given")] == [x, y, wide, high, True]
    assert (kept["explained"], kept["label"], kept["against"]) == ("logit SSA", "SSA", [])
    assert (kept["unit"], kept["method"], kept["overlap"]) == ("logits per cell", "Grad-CAM", 0.5)

    columns, rows = round(wide / 2), round(high / 2)  # a pixel of the map is two of level 0
    known = np.zeros((SIDE // 2 + 200, SIDE // 2 + 200), bool)  # under a tile that was classified; from -100 on
    for row in read_rows(out / "a.svs" / "tiles.csv"):
        left, top = (100 + round((int(row[key]) - at) / 2) for key, at in (("x", x), ("y", y)))
        known[top : top + SIZE, left : left + SIZE] = True
    lefts = sorted({min(at, (SIDE - x) // 2 - SIZE) for at in range(-16, columns, 16)})
    tops = sorted({max(at, math.ceil(-y / 2)) for at in range(-16, rows, 16)})
    places = [(left, top) for top in tops for left in lefts]
    places = [
        (left, top)
        for left, top in places
        if known[100 + top : 100 + top + SIZE, 100 + left : 100 + left + SIZE].mean() >= 0.5
    ]
    with openslide.OpenSlide(slide) as opened:
        cut = [opened.read_region((x + 2 * left, y + 2 * top), 0, (STEP, STEP)).convert("RGB") for left, top in places]
    small = np.stack([cv2.resize(np.asarray(tile), (SIZE, SIZE), interpolation=cv2.INTER_AREA) for tile in cut])
    maps = api.load(finetuned, device="cpu").explain(small, target="SSA").maps
    assert kept["tiles"] == len(places) > 20

    found = np.load(out / "a.svs" / "cam.npz")
    weight = [math.sin(math.pi * (at + 0.5) / SIZE) ** 2 for at in range(SIZE)]
    expected, counts = np.full((rows, columns), np.nan), np.zeros((rows, columns), int)
    for row in range(rows):
        for column in range(columns):
            total = over = 0.0
            for (left, top), values in zip(places, maps, strict=True):
                if 0 <= row - top < SIZE and 0 <= column - left < SIZE:
                    share = weight[row - top] * weight[column - left]
                    total, over = total + share * values[row - top, column - left], over + share
                    counts[row, column] += 1
            if over and known[100 + row, 100 + column]:
                expected[row, column] = total / over
    assert np.array_equal(found["tiles"], counts)
    assert np.isnan(expected).any()
    assert np.allclose(found["map"], expected, atol=1e-5 * np.abs(maps).max(), equal_nan=True)
    assert (found["corner"].tolist(), float(found["factor"])) == ([x, y], 2.0)
    assert (kept["lowest"], kept["highest"]) == pytest.approx((np.nanmin(expected), np.nanmax(expected)), abs=1e-5)
    Image.open(out / "a.svs" / "cam.png").verify()
    (again,) = slide_folders(out)  # as `sscl slides view` reads it
    shown = content_of(again).cam
    assert shown is not None
    assert np.array_equal(shown, found["map"], equal_nan=True)


def test_it_is_made_where_the_class_is_most_probable(ask: Any, level: EncodedLevel, tmp_path: Path) -> None:
    """Of a slide with a damaged place, in two goes: a picture that is gone is made again."""
    slide = tmp_path / "a.svs"
    write_levels(slide, [damaged(level, 5, 4)], mpp=MPP)
    out = tmp_path / "out"
    words = (slide, f"out={out}", "cam=true", "gradcam.target=difference")
    ask(*words)
    (out / "a.svs" / "cam.png").unlink()
    result = ask(*words)
    assert result.code == 3, result.err
    assert (out / "a.svs" / "cam.png").exists()
    whole = np.load(out / "a.svs" / "cam.npz")["map"]
    kept = json.loads((out / "a.svs" / "slide.json").read_text())
    assert (kept["cam"]["given"], kept["cam"]["explained"], kept["cam"]["against"]) == (False, "logit SSA - HP", ["HP"])
    assert kept["cam"]["damaged"] > 0
    assert np.isfinite(whole).any()
    assert any("not where the lesion is" in note for note in kept["notes"])
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(9) * 40 + 7] * 2), -1).reshape(-1, 2).astype(np.int32)
    grid, weights = grid[rng.permutation(81)[:60]], rng.random(60)
    found = region_of(grid, weights, step=40.0, side=130.0)
    inside = ((grid >= (found.x, found.y)) & (grid + 40 <= (found.x + found.width, found.y + found.height))).all(1)
    best = max(
        weights[((grid >= (x, y)) & (grid + 40 <= (x + 120, y + 120))).all(1)].sum()
        for x in range(7, 260, 40)
        for y in range(7, 260, 40)
    )
    assert weights[inside].sum() == pytest.approx(best)
    assert max(found.width, found.height) <= 120


def test_each_place_with_a_classified_tile_is_under_a_tile_of_the_scanned_area(slide: Path) -> None:
    rng = np.random.default_rng(0)
    facts = open_slide(slide, name="a.svs").model_copy(update={"width": 2600, "height": 2600})
    for _ in range(40):
        size, factor = int(rng.integers(16, 64)), float(rng.uniform(1, 6))
        step, bounds = size * factor, (*rng.integers(0, 300, 2).tolist(), *rng.integers(600, 2000, 2).tolist())
        whole = facts.model_copy(update={"bounds": bounds})
        axes = [
            start + np.rint(np.arange(side // step) * step) for start, side in zip(bounds, bounds[2:], strict=False)
        ]
        grid = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2).astype(np.int32)
        grid = grid[rng.random(len(grid)) < 0.7]
        region = Region(*rng.integers(0, 1800, 2).tolist(), *rng.integers(1, 800, 2).tolist())
        frame = Frame((region.x, region.y), factor, round(region.width / factor) + 1, round(region.height / factor) + 1)
        corners = tiles_over(frame, whole, size, grid)
        bare = classified_in(frame, size, grid)
        assert len(corners) > 0 or not bare.any()
        for x, y in corners.tolist():
            assert x + size > 0 < y + size
            bare[max(y, 0) : y + size, max(x, 0) : x + size] = False
        assert not bare.any()
        at = frame.level(corners) - bounds[:2]
        assert ((at >= -factor) & (at + step <= np.array(bounds[2:]) + factor)).all()


def test_what_cannot_be_is_one_line(ask: Any, slide: Path, tiles: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "two").mkdir()
    for name in ("a.svs", "b.svs"):
        (tmp_path / "two" / name).write_bytes(slide.read_bytes())
    for paths, words, told in (
        (slide, ["cam=[9000, 0, 10, 10]"], "cam: x=9000"),
        (slide, ["cam=[0, 0, 20, 20]"], "cam: no tile"),
        (slide, ["cam=[1, 2, 3]"], "cam: "),
        (slide, ["cam=[-1, 0, 5, 5]"], "cam: "),
        (slide, ["cam=[0, 0, 0, 5]"], "cam: "),
        (slide, ["cam=1"], "cam: "),
        (slide, ["gradcam.method=hirescam"], "gradcam: "),
        (slide, ["cam=true", "gradcam.method=eigencam"], "gradcam.method: "),
        (slide, ["cam=true", "gradcam.method=legrad"], "gradcam.method: "),
        (slide, ["cam=true", "gradcam.layer=encoder.nothing"], "gradcam.layer: "),
        (slide, ["cam=true", "gradcam.layer=[encoder.net.layer3, encoder.net.layer4]"], "gradcam.fuse: "),
        (slide, ["cam=true", "gradcam.target=TA"], "gradcam.target: "),
        (slide, ["cam=true", "gradcam.threshold=0.3"], "gradcam.threshold: "),
        (tmp_path / "two", ["cam=[300, 200, 99, 99]"], "cam: a region is of one slide"),
        (tiles / "images", ["cam=true"], "cam: "),
    ):
        result = ask(paths, f"out={out}", *words)
        assert (result.code, result.err.count("\n")) == (2, 1), (words, result.err)
        assert told in result.err
        assert not out.exists()
