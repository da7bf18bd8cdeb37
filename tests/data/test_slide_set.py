from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import yaml

from sscl.data.slide_set import load_slides
from sscl.slides.index import Labels, SlideEntry, digest, write_slide, write_table
from sscl.slides.open import open_slide
from sscl.slides.scaling import scaling
from sscl.slides.write import write_slide as write_svs

SIZE, MPP, SIDE = 32, 0.5, 8  # of a tile, and tiles a row


def draw(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(60, 230, (SIDE * SIZE // 4, SIDE * SIZE // 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_svs(path, pixels, mpp=MPP, factors=(4,), tile_px=64)


def make_index(folder: Path, slides: Path, names: list[str], labels: dict[str, Labels], *, mpp: float = MPP) -> Path:
    """An index of all tiles of the slides, as `sscl slides tile` writes it; those that are no file have failed."""
    corner = np.stack(np.meshgrid(np.arange(SIDE) * SIZE, np.arange(SIDE) * SIZE), axis=-1).reshape(-1, 2)
    grid = np.concatenate([corner, np.full((len(corner), 1), 100)], axis=1).astype(np.int32)
    entries = []
    for name in names:
        found: dict[str, Any] = {"status": "failed", "reason": "is gone", "slide": None, "scaling": None, "tiles": 0}
        if (slides / name).is_file():
            slide = open_slide(slides / name, name=name)
            how = scaling(slide, mpp=mpp, size_px=SIZE)
            found = {"status": "tiles", "reason": None, "slide": slide, "scaling": how, "tiles": len(grid)}
        asked: dict[str, Any] = {"mpp": mpp, "size_px": SIZE, "tissue": 0.9, "parameters": "as asked"}
        entry = SlideEntry(name=name, path=str(slides / name), grid=digest(grid), **asked, **found)
        write_slide(folder, entry, grid=grid if found["tiles"] else None, preview=None)
        entries.append(entry)
    (folder / "grids").mkdir(exist_ok=True)
    (folder / "env.json").write_text('{"sscl": "0"}')
    (folder / "config.yaml").write_text(yaml.safe_dump({"slides": [str(slides)], "mpp": mpp, "size_px": SIZE}))
    write_table(folder, entries, labels)
    return folder


NAMES = ["a/one.svs", "a/three.svs", "a/two.svs", "a/zero.svs", "b/one.svs", "b/three.svs", "b/two.svs"]
LABELS = {
    "a/one.svs": Labels(patient="p1", label="HP"),
    "a/three.svs": Labels(patient="p2", label="HP"),
    "a/two.svs": Labels(patient="p1", label="HP"),
    "a/zero.svs": Labels(patient="p4", label="HP"),
    "b/one.svs": Labels(patient="p3", label="SSA"),
    "b/three.svs": Labels(label="SSA"),
    "b/two.svs": Labels(label="SSA"),
    "b/lost.svs": Labels(label="SSA"),
}


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven slides of 64 tiles of 32 px, two of them of one name; not to be changed."""
    root = tmp_path_factory.mktemp("cohort") / "slides"
    for seed, name in enumerate(NAMES):
        draw(root / name, seed)
    return root


@pytest.fixture
def index(slides: Path, tmp_path: Path) -> Path:
    return make_index(tmp_path / "index", slides, [*NAMES, "b/lost.svs"], LABELS)


def truth(slides: Path, name: str) -> np.ndarray:
    """Pixels of a slide's level 0, as openslide reads them."""
    with openslide.OpenSlide(slides / name) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


@pytest.mark.parametrize("keep", ["slides", "cache"])
def test_tiles_are_those_of_the_slides(index: Path, slides: Path, tmp_path: Path, keep: Any) -> None:
    tiles = load_slides(index, split="all", keep=keep, cache_dir=tmp_path / "cache")
    assert tiles.images.shape == (448, SIZE, SIZE, 3)
    assert tiles.class_counts() == {"HP": 256, "SSA": 192}
    pixels = np.asarray(tiles.images)
    for name in NAMES:
        whole = truth(slides, name)
        for row in [i for i, tile in enumerate(tiles.ids) if tile.startswith(f"{name}/")][::7]:
            x, y = map(int, tiles.ids[row].rsplit("/", 1)[1].split("_"))
            np.testing.assert_array_equal(pixels[row], whole[y : y + SIZE, x : x + SIZE])
    assert tiles.groups is not None
    assert set(tiles.groups.tolist()) == {"p1", "p2", "p3", "p4", "b/three.svs", "b/two.svs"}


def test_streamed_or_cached_the_set_is_the_same(index: Path, tmp_path: Path) -> None:
    """T26."""
    found = [load_slides(index, split="all", keep=keep, cache_dir=tmp_path) for keep in ("slides", "cache", "cache")]
    assert len({tiles.fingerprint for tiles in found}) == 1
    rows = np.random.default_rng(0).permutation(len(found[0]))
    for tiles in found[1:]:
        assert tiles.ids[:9] == found[0].ids[:9]
        np.testing.assert_array_equal(tiles.images[rows], found[0].images[rows])
    assert len(list(tmp_path.glob("tiles-*.npy"))) == 1
