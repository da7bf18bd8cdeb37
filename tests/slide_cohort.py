"""A cohort of small slides of noise, and the index of all their tiles as `sscl slides tile` would write it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import yaml

from sscl.slides.index import Labels, SlideEntry, digest, write_slide, write_table
from sscl.slides.open import open_slide
from sscl.slides.scaling import scaling
from sscl.slides.write import EncodedLevel, encode_level, write_levels

SIZE, MPP, SIDE = 32, 0.5, 8  # of a tile, µm per pixel, and tiles a row
TILES = SIDE * SIDE
LABELS = {
    "a/one.svs": Labels(patient="p1", label="HP"),
    "a/three.svs": Labels(patient="p2", label="HP"),
    "a/two.svs": Labels(patient="p1", label="HP"),
    "a/zero.svs": Labels(patient="p4", label="HP"),
    "b/one.svs": Labels(patient="p3", label="SSA"),
    "b/three.svs": Labels(label="SSA"),
    "b/two.svs": Labels(label="SSA"),
}
NAMES = tuple(LABELS)


def level_of(seed: int, *, tile_px: int = SIZE) -> EncodedLevel:
    """The pixels of a slide, encoded so that each tile of the index is one of the file; from 64 px on, read by us."""
    rng = np.random.default_rng(seed)
    side = SIDE * SIZE
    pixels = rng.integers(60, 230, (side // 4, side // 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    return encode_level(pixels, tile_px=tile_px)


def draw(path: Path, seed: int, *, level: EncodedLevel | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_levels(path, [level or level_of(seed)], mpp=MPP)


def draw_all(root: Path) -> Path:
    """Write the slides of LABELS."""
    for seed, name in enumerate(NAMES):
        draw(root / name, seed)
    return root


def truth(path: Path) -> np.ndarray:
    """Pixels of a slide's level 0, as openslide reads them."""
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def make_index(
    folder: Path, slides: Path, names: Sequence[str] = NAMES, labels: Mapping[str, Labels] = LABELS, *, mpp: float = MPP
) -> Path:
    """An index of all tiles of the slides; those that are no file have failed."""
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
    (folder / "env.json").write_text(json.dumps({"sscl": "0"}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"slides": [str(slides)], "mpp": mpp, "size_px": SIZE}))
    write_table(folder, entries, labels)
    return folder
