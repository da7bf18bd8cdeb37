"""Stain normalisation against a naive transcription, on tiles of known stains, and where it must hold back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from sscl.data import stain
from sscl.data.stain import (
    MACENKO_AMOUNTS,
    MACENKO_STAINS,
    REINHARD_MEAN,
    REINHARD_STD,
    normalise_stain,
    normalise_tiles,
)
from sscl.data.tiles import Tiles

METHODS = ("reinhard", "macenko")
# Two laboratories: haematoxylin and eosin as optical density in R, G, B (unit vectors, nearly).
REDDISH = np.array([[0.50, 0.76, 0.42], [0.12, 0.85, 0.51]])
BLUISH = np.array([[0.65, 0.68, 0.34], [0.30, 0.80, 0.52]])


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def amounts_of(count: int, *, size_px: int = 32, seed: int = 0, least: float = 0.0) -> np.ndarray:
    """Amounts of haematoxylin and eosin: pure pixels of both, and mixtures, (N, H, W, 2)."""
    rng = np.random.default_rng(seed)
    total = rng.uniform(0.9, 1.8, (count, size_px, size_px))
    share = rng.uniform(-0.3, 1.3, total.shape).clip(least, 1 - least)
    return np.stack([total * share, 0.8 * total * (1 - share)], -1)


def paint(amounts: np.ndarray, stains: np.ndarray) -> np.ndarray:
    light = 240 * np.exp(-amounts @ unit(stains)) - 1
    return np.rint(light).clip(0, 255).astype(np.uint8)


def white_margin(images: np.ndarray, rows: int = 8) -> np.ndarray:
    images = images.copy()
    images[:, :rows] = 244
    return images


def naive_macenko(image: np.ndarray) -> np.ndarray:
    """One tile by the paper's steps, in loops and float64."""
    pixels = [[float(v) for v in pixel] for pixel in image.reshape(-1, 3)]
    density = [[-math.log((v + 1) / 240) for v in pixel] for pixel in pixels]
    tissue = np.array([d for d in density if min(d) >= 0.15])
    _, _, right = np.linalg.svd(tissue, full_matrices=False)
    plane = right[:2]
    if plane[0].sum() < 0:
        plane = -plane
    angles = sorted(math.atan2(plane[1] @ d, plane[0] @ d) for d in tissue)

    def percentile(values: list[float], percent: float) -> float:
        place = (len(values) - 1) * percent / 100
        low = math.floor(place)
        return values[low] + (place - low) * (values[min(low + 1, len(values) - 1)] - values[low])

    ends = []
    for percent in (1, 99):
        angle = percentile(angles, percent)
        ends.append(math.cos(angle) * plane[0] + math.sin(angle) * plane[1])
    stains = np.array(sorted(ends, key=lambda vector: -vector[0])).T  # (3, 2), more red density first
    amounts = [np.linalg.lstsq(stains, np.array(d), rcond=None)[0] for d in density]
    of_tissue = [a for a, d in zip(amounts, density, strict=True) if min(d) >= 0.15]
    largest = [percentile(sorted(a[s] for a in of_tissue), 99) for s in range(2)]
    result = []
    for amount in amounts:
        painted = [0.0, 0.0, 0.0]
        for s in range(2):
            for channel in range(3):
                painted[channel] += amount[s] / largest[s] * MACENKO_AMOUNTS[s] * MACENKO_STAINS[s][channel]
        result.append([min(255.0, max(0.0, 240 * math.exp(-d) - 1)) for d in painted])
    return np.array(result).reshape(image.shape)


def to_lab(image: np.ndarray) -> np.ndarray:
    """RGB to l-alpha-beta by the formulas of Reinhard et al., natural logarithms, (P, 3)."""
    result = []
    for red, green, blue in np.maximum(image.reshape(-1, 3).astype(float), 1):
        long = math.log(0.3811 * red + 0.5783 * green + 0.0402 * blue)
        medium = math.log(0.1967 * red + 0.7244 * green + 0.0782 * blue)
        short = math.log(0.0241 * red + 0.1288 * green + 0.8444 * blue)
        result.append(
            [
                (long + medium + short) / math.sqrt(3),
                (long + medium - 2 * short) / math.sqrt(6),
                (long - medium) / math.sqrt(2),
            ]
        )
    return np.array(result)


def naive_reinhard(image: np.ndarray) -> np.ndarray:
    """One tile by the paper's steps, in float64; the change fades out between a density of 0.15 and 0.05."""
    lab = to_lab(image)
    density = np.array([sum(-math.log((float(v) + 1) / 240) for v in pixel) / 3 for pixel in image.reshape(-1, 3)])
    tissue = lab[density >= 0.15]
    result = []
    for pixel, d in zip(lab, density, strict=True):
        matched = (pixel - tissue.mean(0)) / tissue.std(0) * REINHARD_STD + REINHARD_MEAN
        lightness, alpha, beta = pixel + min(1.0, max(0.0, (d - 0.05) / 0.1)) * (matched - pixel)
        a, b, c = lightness / math.sqrt(3), alpha / math.sqrt(6), beta / math.sqrt(2)
        cones = np.exp([a + b + c, a + b - c, a - 2 * b])
        matrix = [[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]]
        result.append(np.linalg.solve(matrix, cones).clip(0, 255))
    return np.array(result).reshape(image.shape)


@pytest.mark.parametrize("method", METHODS)
def test_equals_a_naive_transcription(method):
    naive = {"macenko": naive_macenko, "reinhard": naive_reinhard}[method]
    images = white_margin(np.concatenate([paint(amounts_of(2), REDDISH), paint(amounts_of(1, seed=1), BLUISH)]))
    noise = np.random.default_rng(2).integers(-6, 7, images.shape)
    images = (images + noise).clip(0, 255).astype(np.uint8)
    ours = normalise_stain(images, method=method)
    for before, after in zip(images, ours, strict=True):
        np.testing.assert_allclose(after, naive(before), atol=0.51)  # rounding, and float32
        assert np.abs(after.astype(int) - before).mean() > 5  # else nothing would have been compared


@pytest.mark.parametrize("stains", [REDDISH, BLUISH])
def test_macenko_brings_known_stains_to_the_reference(stains):
    amounts = amounts_of(2)
    after = normalise_stain(paint(amounts, stains), method="macenko")
    scaled = amounts / np.percentile(amounts.reshape(2, -1, 2), 99, axis=1)[:, None, None] * MACENKO_AMOUNTS
    expected = 240 * np.exp(-scaled @ np.array(MACENKO_STAINS)) - 1
    # Dark pixels of 8 bits say little about density, and the 1st percentile lies a little inside: a few values.
    assert np.abs(after - expected.clip(0, 255)).mean() < 2
    fitted = stain._fit_macenko(after[0].reshape(-1, 3))
    directions = fitted[:6].reshape(2, 3)
    assert ((directions * unit(np.array(MACENKO_STAINS))).sum(1) > math.cos(math.radians(1.5))).all()
    np.testing.assert_allclose(fitted[6:], MACENKO_AMOUNTS, rtol=0.05)


def test_macenko_knows_haematoxylin_from_eosin_whichever_there_is_more_of():
    for seed, weight in enumerate(([1.2, 0.8], [0.7, 1.3])):
        amounts = amounts_of(1, seed=seed) * weight
        found = stain._fit_macenko(paint(amounts, BLUISH).reshape(-1, 3))[:6].reshape(2, 3)
        assert ((found * unit(BLUISH)).sum(1) > math.cos(math.radians(2))).all()


def test_two_laboratories_look_the_same_afterwards():
    amounts = amounts_of(2, least=0.05)
    before = paint(amounts, REDDISH).astype(int), paint(amounts, BLUISH).astype(int)
    distance = np.abs(before[0] - before[1]).mean()
    for method, share in (("macenko", 0.1), ("reinhard", 0.5)):
        a, b = (normalise_stain(x.astype(np.uint8), method=method).astype(int) for x in before)
        assert np.abs(a - b).mean() < share * distance


def test_reinhard_reaches_mean_and_std_of_the_target():
    image = normalise_stain(paint(amounts_of(1, least=0.35), REDDISH), method="reinhard")[0]
    assert image.min() > 0  # clipping would change the figures
    assert image.max() < 255
    lab = to_lab(image)
    np.testing.assert_allclose(lab.mean(0), REINHARD_MEAN, atol=0.005)
    np.testing.assert_allclose(lab.std(0), REINHARD_STD, atol=0.002)


def test_reinhard_leaves_background_alone_and_out_of_the_statistics():
    plain = paint(amounts_of(1), REDDISH)
    margin = white_margin(plain)
    after = normalise_stain(margin, method="reinhard")
    np.testing.assert_array_equal(after[:, :8], margin[:, :8])
    inside = margin.copy()
    inside[:, :8] = 250
    np.testing.assert_array_equal(normalise_stain(inside, method="reinhard")[:, 8:], after[:, 8:])


@pytest.mark.parametrize("method", METHODS)
def test_again_changes_little(method):
    once = normalise_stain(white_margin(paint(amounts_of(2), BLUISH)), method=method)
    twice = normalise_stain(once, method=method)
    assert np.abs(twice.astype(int) - once).mean() < 2


def awkward() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    nearly_white = np.full((32, 32, 3), 243, np.uint8)
    nearly_white[:2, :10] = paint(amounts_of(1), REDDISH)[0, :2, :10]
    eosin = paint(np.stack([np.zeros((32, 32)), rng.uniform(0.5, 1.5, (32, 32))], -1), REDDISH)
    return {
        "white": np.full((32, 32, 3), 255, np.uint8),
        "black": np.zeros((32, 32, 3), np.uint8),
        "one colour": np.full((32, 32, 3), (180, 90, 150), np.uint8),
        "nearly white": nearly_white,
        "eosin only": eosin,
        "grey": rng.integers(60, 200, (32, 32, 1), dtype=np.uint8).repeat(3, 2),
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", list(awkward()))
def test_a_tile_that_says_too_little_is_returned_as_it_is(method, name):
    image = awkward()[name]
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(normalise_stain(image[None], method=method)[0], image)


@pytest.mark.parametrize("method", METHODS)
def test_a_tile_depends_on_itself_alone(method):
    images = np.concatenate([paint(amounts_of(20, size_px=16), REDDISH), paint(amounts_of(20, size_px=16), BLUISH)])
    together = normalise_stain(images, method=method)
    for row in (0, 17, 39):
        np.testing.assert_array_equal(normalise_stain(images[row : row + 1], method=method)[0], together[row])


@pytest.mark.parametrize("method", METHODS)
def test_a_group_shares_the_median_of_its_tiles(method):
    amounts = amounts_of(3) * np.array([1.0, 1.1, 1.3])[:, None, None, None]
    white = np.full((1, 32, 32, 3), 255, np.uint8)
    images = np.concatenate(
        [paint(amounts, REDDISH), paint(amounts_of(1), BLUISH), awkward()["eosin only"][None], white]
    )
    groups = np.array(["a", "a", "a", "b", "a", "c"])
    after = normalise_stain(images, method=method, groups=groups)
    fit, apply = stain._METHODS[method]
    shared = np.median([fit(image.reshape(-1, 3)) for image in images[:3]], axis=0)
    for row in (0, 1, 2, 4):  # the tile of one stain too
        np.testing.assert_array_equal(after[row], apply(images[row].reshape(-1, 3), shared).reshape(32, 32, 3))
    np.testing.assert_array_equal(after[3], normalise_stain(images[3:4], method=method)[0])
    np.testing.assert_array_equal(after[5], images[5])
    # Each on its own loses which tile was the darkest; the group keeps it.
    own = normalise_stain(images[:3], method=method)
    assert np.ptp(own.mean((1, 2, 3))) < 3 < after[0].mean() - after[2].mean()


def test_directions_that_a_median_made_short_count_as_directions():
    pixels = paint(amounts_of(1), REDDISH).reshape(-1, 3)
    found = stain._fit_macenko(pixels)
    shorter = found * np.repeat([0.9, 0.8, 1], [3, 3, 2])  # of both stains; the amounts as they were
    np.testing.assert_array_equal(stain._apply_macenko(pixels, shorter), stain._apply_macenko(pixels, found))


# --- in the cache ---


def make_tiles(count: int = 70, *, groups: list[str] | None = None) -> Tiles:
    return Tiles(
        images=paint(amounts_of(count, size_px=8), REDDISH),
        labels=np.zeros(count, np.int64),
        classes=("a",),
        ids=tuple(f"{i}.png" for i in range(count)),
        groups=None if groups is None else np.array(groups),
    )


@pytest.mark.parametrize("method", METHODS)
def test_tiles_are_normalised_once(method, tmp_path: Path):
    tiles = make_tiles()
    first = normalise_tiles(tiles, method=method, cache_dir=tmp_path)
    np.testing.assert_array_equal(first.images, normalise_stain(tiles.images, method=method))
    assert (first.ids, first.classes, len(first)) == (tiles.ids, tiles.classes, len(tiles))
    assert isinstance(first.images, np.memmap)
    assert not first.images.flags.writeable
    (written,) = (entry.stat().st_ino for entry in tmp_path.iterdir())
    again = normalise_tiles(tiles, method=method, cache_dir=tmp_path)
    assert [entry.stat().st_ino for entry in tmp_path.iterdir()] == [written]  # no second pass
    np.testing.assert_array_equal(again.images, first.images)


def test_what_changes_the_result_changes_the_key(tmp_path: Path):
    tiles = make_tiles(300)
    variants = [tiles, make_tiles(groups=["a"] * 70), make_tiles(groups=["a"] * 69 + ["b"])]
    for row in (150, 298):
        changed = make_tiles(300)
        changed.images[row] = changed.images[row - 1]
        assert changed.fingerprint != tiles.fingerprint
        variants.append(changed)
    for variant in variants:
        for method in METHODS:
            found = normalise_tiles(variant, method=method, cache_dir=tmp_path).images
            np.testing.assert_array_equal(found, normalise_stain(variant.images, method=method, groups=variant.groups))
    assert len(list(tmp_path.iterdir())) == 10


def test_a_broken_pass_leaves_nothing(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(stain._METHODS, "macenko", (lambda pixels: 1 / 0, stain._apply_macenko))
    with pytest.raises(ZeroDivisionError):
        normalise_tiles(make_tiles(), method="macenko", cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file: .*cache of decoded tiles"):
        normalise_tiles(make_tiles(), method="reinhard", cache_dir=tmp_path / "file")
