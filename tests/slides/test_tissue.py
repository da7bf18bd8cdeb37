"""The tissue mask on drawn tissue laid on glass, where the truth is known: at 8 µm per pixel, and from slides."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest
from scipy.spatial import cKDTree

from sscl.data.polyp import draw_polyp, draw_slide_look
from sscl.slides.open import open_slide
from sscl.slides.pixels import Readers
from sscl.slides.records import Overview
from sscl.slides.tissue import DARK, NO_TISSUE, OVERVIEW_MPP, find_tissue
from sscl.slides.write import write_levels

N = 384  # of an overview: 3 mm
GLASS = (240.0, 239.0, 241.0)
PENS = {"green": (30, 140, 80), "black": (35, 35, 38), "red": (205, 35, 45), "blue": (40, 60, 160)}
MORE_PENS = {"teal": (0, 128, 128), "pure red": (255, 0, 0), "crimson": (220, 20, 60), "dark blue": (20, 30, 120)}


@dataclass
class Scene:
    """A slide in small: absorption of tissue (N, N, 3), where it is, and a source of noise."""

    stain: np.ndarray
    tissue: np.ndarray
    rng: np.random.Generator

    def picture(self, *, strength=1.0, glass=GLASS, noise=1.0) -> np.ndarray:
        light = np.asarray(glass) * np.exp(-strength * self.stain * self.tissue[..., None])
        return light + self.rng.normal(0, noise, (N, N, 1)) + self.rng.normal(0, 0.4 * noise, (N, N, 3))

    def stroke(self, width=24) -> np.ndarray:
        """Return a pen's stroke, 0 to 1 (N, N, 1), with soft edges."""
        line = np.zeros((N, N), np.uint8)
        corners = self.rng.integers(20, N - 20, (3, 1, 2)).astype(np.int32)
        cv2.polylines(line, [corners], False, 255, width, cv2.LINE_AA)
        return line[..., None] / 255


@pytest.fixture(scope="module")
def stains() -> list[np.ndarray]:
    """Absorption of the tissue of two slides."""
    found = []
    for seed in (0, 3):
        rng = np.random.default_rng(seed)
        look = draw_slide_look(rng)
        tile = cv2.resize(draw_polyp(0.5, look, rng, size_px=512)[0], (64, 64), interpolation=cv2.INTER_AREA)
        turned = [[np.rot90(tile, int(rng.integers(4))) for _ in range(N // 64)] for _ in range(N // 64)]
        picture = np.concatenate([np.concatenate(row, axis=1) for row in turned], axis=0).astype(float)
        found.append(-np.log((picture + 0.5) / (look.background * 255 + 0.5)))
    return found


@pytest.fixture(params=range(2))
def scene(stains, request) -> Scene:
    rng = np.random.default_rng(request.param)
    tissue = np.zeros((N, N), np.uint8)
    for _ in range(3):
        centre, axes = rng.integers(N // 4, 3 * N // 4, 2), rng.integers(N // 12, N // 5, 2)
        cv2.ellipse(tissue, centre.tolist(), axes.tolist(), float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return Scene(stains[request.param], tissue > 0, rng)


def overview(picture, *, known=None) -> Overview:
    rgb = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return Overview(rgb, np.ones(rgb.shape[:2], bool) if known is None else known, 16.0, 16.0, OVERVIEW_MPP)


def rates(found, truth):
    """Return recall and precision."""
    both = (found.mask & truth).sum()
    return both / truth.sum(), both / found.mask.sum()


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"strength": 1 / 4},
        {"strength": 1 / 8},
        {"strength": 2},
        {"noise": 3},
        {"noise": 0},
        {"glass": (238, 228, 196)},
        {"glass": (238, 228, 196), "strength": 1 / 4},
        {"glass": (144, 143, 145)},
        {"glass": (72, 72, 72), "noise": 0.5},
        {"glass": (262, 260, 261)},  # a lamp too bright: the glass is pure white
    ],
    ids=str,
)
def test_stain_glass_and_lamp_do_not_matter(scene, how):
    """T11."""
    recall, precision = rates(find_tissue(overview(scene.picture(**how))), scene.tissue)
    assert recall >= 0.95
    assert precision >= 0.95


@pytest.mark.parametrize("quality", [40, 75])
def test_a_level_that_was_compressed(scene, quality):
    rgb = np.clip(scene.picture(strength=1 / 4, noise=2), 0, 255).astype(np.uint8)
    recall, precision = rates(
        find_tissue(overview(cv2.imdecode(cv2.imencode(".jpg", rgb, [1, quality])[1], 1))), scene.tissue
    )
    assert recall >= 0.95
    assert precision >= 0.95


@pytest.mark.parametrize("pen", PENS | MORE_PENS)
@pytest.mark.parametrize("width", [6, 24])  # 48 and 190 µm
def test_pen_is_no_tissue(scene, pen, width):
    """T11."""
    stroke = scene.stroke(width)
    found = find_tissue(overview(scene.picture() * (1 - stroke) + np.array((PENS | MORE_PENS)[pen]) * stroke))
    inked = stroke[..., 0] > 0.5
    assert (found.mask & inked).sum() <= 0.05 * inked.sum()
    assert rates(found, scene.tissue & ~inked)[0] >= 0.95
    assert found.pen_share == pytest.approx(inked.mean(), abs=0.03)


@pytest.mark.parametrize("pen", ["green", "red", "blue", "black"])
def test_ink_that_lets_light_through_is_mostly_left_out_on_glass(scene, pen):
    """Over tissue it has the tissue's colour too, so that about half of red and blue ink stays."""
    stroke = 0.75 * scene.stroke()
    clear = scene.picture()
    found = find_tissue(overview(clear * (1 - stroke) + clear * np.array(PENS[pen]) / 255 * stroke))
    inked = (stroke[..., 0] > 0.4) & ~scene.tissue
    assert (found.mask & inked).sum() <= 0.05 * inked.sum()
    assert found.pen_share > 0


def test_padding_and_filling_are_neither_tissue_nor_glass(scene):
    """T11, T12."""
    black, white, clear = (scene.picture(glass=(225, 226, 224)) for _ in range(3))
    outside = np.zeros((N, N), bool)
    outside[:120] = True
    outside[:, 300:] = True
    black[outside] = 0
    white[outside] = 255
    clear[outside] = 255
    for picture, known in ((black, None), (white, None), (clear, ~outside)):
        found = find_tissue(overview(picture, known=known))
        recall, precision = rates(found, scene.tissue & ~outside)
        assert recall >= 0.95
        assert precision >= 0.95
        assert np.abs(np.array(found.glass) - (225, 226, 224)).max() <= 1
        assert found.share == pytest.approx((scene.tissue & ~outside).sum() / (~outside).sum(), abs=0.03)


def test_most_of_a_slide_is_filling(scene):
    """T12: white is not taken for glass because there is more of it."""
    picture = scene.picture(glass=(225, 226, 224))
    rows = np.flatnonzero(scene.tissue.any(axis=1))
    picture[: rows[0] + 30] = 255
    picture[rows[0] + 90 :] = 255
    found = find_tissue(overview(picture))
    assert np.abs(np.array(found.glass) - (225, 226, 224)).max() <= 1
    assert rates(found, scene.tissue & (picture.min(axis=2) < 250))[1] >= 0.9


def shade(rng):
    """Return dust out of focus, as a factor (N, N, 1)."""
    dust = np.zeros((N, N))
    for _ in range(30):
        cv2.circle(dust, rng.integers(0, N, 2).tolist(), int(rng.integers(2, 9)), float(rng.uniform(0.1, 0.5)), -1)
    return np.exp(-cv2.GaussianBlur(dust, (0, 0), 3))[..., None]


def uneven():
    """Return light that falls off to the corners by an eighth, as a factor (N, N, 1)."""
    y, x = np.mgrid[:N, :N] / N - 0.5
    return (1 - 0.25 * (x**2 + y**2))[..., None]


def bubble(picture):
    cv2.circle(picture, (80, 300), 50, (150, 150, 152), 4, cv2.LINE_AA)
    cv2.circle(picture, (80, 300), 52, (252, 252, 252), 2)
    return picture


def cover_slip(picture):
    picture[:, :70] *= 0.94
    cv2.line(picture, (70, 0), (70, N), (90, 92, 95), 2)
    return picture


def tint(picture, factor):
    """Return a picture of which the middle has another tint: a cover slip whose medium has yellowed, uneven light."""
    picture[:, 60:330] *= factor
    return picture


DIRT = {
    "yellowed medium": lambda picture, rng: tint(picture, (0.98, 0.96, 0.85)),
    "reddish light": lambda picture, rng: tint(picture, (1, 0.985, 0.975)),
    "bluish light": lambda picture, rng: tint(picture, (0.97, 0.98, 1)),
    "dust": lambda picture, rng: picture * shade(rng),
    "uneven light": lambda picture, rng: picture * uneven(),
    "bubble": lambda picture, rng: bubble(np.ascontiguousarray(picture)),
    "cover slip": lambda picture, rng: cover_slip(np.ascontiguousarray(picture)),
}


@pytest.mark.parametrize("dirt", DIRT)
def test_what_darkens_all_colours_alike_is_no_tissue(scene, dirt):
    recall, precision = rates(find_tissue(overview(DIRT[dirt](scene.picture(), scene.rng))), scene.tissue)
    assert recall >= 0.95
    assert precision >= 0.95
    bare = replace(scene, tissue=np.zeros((N, N), bool))
    assert find_tissue(overview(DIRT[dirt](bare.picture(), scene.rng))).reason == NO_TISSUE


@pytest.mark.parametrize("strength", [1, 1 / 4])
def test_a_slide_that_is_tissue_everywhere(scene, strength):
    """T15: with no glass in sight, its own gaps and lumens are the glass."""
    scene = replace(scene, tissue=np.ones((N, N), bool))
    found = find_tissue(overview(scene.picture(strength=strength)))
    assert found.reason is None
    assert found.mask.mean() >= 0.85


@pytest.mark.parametrize("colour", [(110, 70, 45), (200, 170, 140), (190, 195, 215), (140, 145, 190)], ids=str)
def test_other_stains_are_tissue(scene, colour):
    """Immunohistochemistry: DAB, strong and weak, and bluish haematoxylin, which is not taken for pen."""
    waves = 1 + 0.2 * cv2.GaussianBlur(scene.rng.normal(0, 4, (N, N)), (0, 0), 2)[..., None]
    stain = -np.log(np.array(colour) / GLASS) * np.clip(waves, 0.5, 2)
    recall, precision = rates(find_tissue(overview(replace(scene, stain=stain).picture())), scene.tissue)
    assert recall >= 0.95
    assert precision >= 0.95


@pytest.mark.parametrize("white", [254, 255])
def test_filling_beside_yellow_glass(scene, white):
    """T12: also where a JPEG has made it a little less than white."""
    picture = scene.picture(glass=(238, 228, 196))
    picture[:120] = white
    recall, precision = rates(find_tissue(overview(picture)), scene.tissue & (np.arange(N) >= 120)[:, None])
    assert recall >= 0.95
    assert precision >= 0.95


def test_fat_is_tissue(scene):
    """Cells of 80 µm, mostly clear, with walls of 10 µm."""
    seeds = scene.rng.uniform(0, N, (N * N // 110, 2))
    distances, _ = cKDTree(seeds).query(np.stack(np.mgrid[:N, :N], axis=-1).reshape(-1, 2), k=2)
    walls = (distances[:, 1] - distances[:, 0] < 1).reshape(N, N, 1) * np.array([0.09, 0.22, 0.14])
    fat = np.zeros((N, N), np.uint8)
    cv2.circle(fat, (110, 110), 100, 1, -1)
    stain = np.where(scene.tissue[..., None], scene.stain, cv2.GaussianBlur(walls, (0, 0), 0.6))
    truth = scene.tissue | (fat > 0)
    recall, precision = rates(find_tissue(overview(replace(scene, stain=stain, tissue=truth).picture())), truth)
    assert recall >= 0.95
    assert precision >= 0.95


def test_mucin_is_tissue(scene):
    """It takes 3 to 5% of the light."""
    pool = np.zeros((N, N), np.uint8)
    cv2.circle(pool, (110, 110), 100, 1, -1)
    waves = 1 + 0.5 * cv2.GaussianBlur(scene.rng.normal(0, 6, (N, N)), (0, 0), 6)[..., None]
    stain = np.where(scene.tissue[..., None], scene.stain, np.clip(np.array([0.05, 0.045, 0.02]) * waves, 0, None))
    truth = scene.tissue | (pool > 0)
    assert rates(find_tissue(overview(replace(scene, stain=stain, tissue=truth).picture())), truth)[0] >= 0.9


@pytest.mark.parametrize("noise", [0, 1, 3])
def test_blank_glass_has_no_tissue(scene, noise):
    """T11."""
    scene = replace(scene, tissue=np.zeros((N, N), bool))
    picture = scene.picture(noise=noise)
    for with_filling in (False, True):
        if with_filling:
            picture[:, 300:] = 255
        found = find_tissue(overview(picture))
        assert (found.reason, found.share, found.mask.any()) == (NO_TISSUE, 0, False)


@pytest.mark.parametrize("value", [255, 240, 128])
def test_a_slide_of_one_colour_has_no_tissue(value):
    assert find_tissue(overview(np.full((50, 60, 3), value))).reason == NO_TISSUE


def test_nothing_scanned_is_no_tissue():
    assert find_tissue(overview(np.full((50, 60, 3), 255), known=np.zeros((50, 60), bool))).reason == NO_TISSUE


def test_pen_alone_is_no_tissue(scene):
    stroke = scene.stroke()
    glass = replace(scene, tissue=np.zeros((N, N), bool)).picture()
    found = find_tissue(overview(glass * (1 - stroke) + np.array(PENS["green"]) * stroke))
    assert found.reason == NO_TISSUE
    assert found.pen_share > 0.02


@pytest.mark.parametrize("channels", [(2,), (0, 1), (0, 1, 2)], ids=["DAPI", "two dyes", "dark field"])
@pytest.mark.parametrize("background", [0, 3, 20])
def test_fluorescence_and_dark_field_are_refused(scene, channels, background):
    """T15."""
    light = 255 * (1 - np.exp(-0.7 * scene.stain.sum(axis=2))) * scene.tissue
    picture = np.zeros((N, N, 3))
    for channel in channels:
        picture[..., channel] = background + light
    found = find_tissue(overview(picture + scene.rng.normal(0, 1, (N, N, 1))))
    assert found.reason == DARK
    assert not found.mask.any()


def test_a_dark_slide_with_a_border_that_was_not_scanned_is_refused():
    """T15: the border's white is not taken for what is brightest."""
    picture, known = np.full((60, 60, 3), 10), np.ones((60, 60), bool)
    picture[:, -1], known[:, -1] = 255, False
    assert find_tissue(overview(picture, known=known)).reason == DARK


def test_a_black_slide_is_refused():
    assert find_tissue(overview(np.zeros((50, 60, 3)))).reason == DARK


@pytest.mark.parametrize("mpp", [16.0, 29.0])
def test_a_coarser_slide_has_the_same_tissue(scene, mpp):
    size = round(N * OVERVIEW_MPP / mpp)
    small = cv2.resize(np.clip(scene.picture(), 0, 255), (size, size), interpolation=cv2.INTER_AREA)
    truth = cv2.resize(scene.tissue.astype(float), (size, size), interpolation=cv2.INTER_AREA) > 0.5
    recall, precision = rates(find_tissue(replace(overview(small), mpp=mpp)), truth)
    assert recall >= 0.95
    assert precision >= 0.93


def test_specks_are_no_tissue_and_a_small_biopsy_is(scene):
    tissue = np.zeros((N, N), bool)
    tissue[50:62, 50:62] = True  # 0.1 mm a side
    tissue[200:240, 200:240] = True  # 0.3 mm
    found = find_tissue(overview(replace(scene, tissue=tissue).picture()))
    assert not found.mask[:100, :100].any()
    assert found.mask[200:240, 200:240].mean() > 0.95


def mask_of(path):
    readers = Readers()
    try:
        slide = open_slide(path, name=path.name)
        return find_tissue(readers.overview(slide, OVERVIEW_MPP)).mask
    finally:
        readers.close()


def agreement(a, b):
    """Return the intersection over the union."""
    assert a.shape == b.shape
    return (a & b).sum() / (a | b).sum()


def test_the_mask_is_the_same_of_one_level_and_of_three_and_in_strips(field, field_slide, number):
    """T13: from level 0 alone, from a pyramid, and with next to no memory."""
    pyramid = mask_of(field_slide("three.svs"))
    single = mask_of(field_slide("one.svs", levels=field.levels[:1]))
    assert agreement(pyramid, single) >= 0.99
    number(overview_strip=2**17)
    assert np.array_equal(mask_of(field_slide("strips.svs", levels=field.levels[:1])), single)
    truth = cv2.resize(field.tissue.astype(float), single.shape[::-1], interpolation=cv2.INTER_AREA) > 0.5
    assert agreement(single, truth) >= 0.95


def test_a_wide_slide_of_one_level_takes_the_memory_of_a_strip(field, tmp_path, number):
    """T14: 20,480 x 2,048 px are 120 MiB."""
    first = field.levels[0]
    columns, rows, own = 80, 8, -(-first.width // first.tile_px)
    tiles = [first.tiles[y % 7 * own + x % 7] for y in range(rows) for x in range(columns)]
    write_levels(tmp_path / "wide.svs", [replace(first, width=columns * 256, height=rows * 256, tiles=tiles)], mpp=0.5)
    number(overview_strip=2**20)
    tracemalloc.start()
    try:
        assert mask_of(tmp_path / "wide.svs").any()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 90 * 2**20  # of which 64 MiB are the tiles decoded last
