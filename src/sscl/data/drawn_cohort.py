"""A cohort of drawn slides on disk: slides, their table, and the truth of each beside them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from sscl.data.drawn_slide import HP, LABELS, SSA, DrawnSlide, Pen, draw_slide
from sscl.data.synthetic import drawing_into, in_processes, is_chosen
from sscl.progress import over
from sscl.slides.geojson import Region, write_regions
from sscl.slides.outlines import outlines
from sscl.slides.write import write_slide
from sscl.writing import write_csv

COLUMNS = ("slide", "patient", "label", "split", "mpp")
SLIDES_PER_PATIENT = 2
# Of the picture of the truth, by value: glass, stroma, HP and SSA lesion, crypt bases of HP and of SSA.
PALETTE = ((245, 245, 245), (222, 190, 200), (120, 180, 230), (245, 170, 90), (20, 80, 180), (200, 70, 0))


@dataclass(frozen=True)
class CohortEntry:
    """A slide of a cohort; label: HP, SSA, or "both" where its lesions are of both classes."""

    name: str
    patient: str
    label: Literal["HP", "SSA", "both"]
    split: str


def cohort(count: int, *, both: bool, test_fraction: float, ending: str = "svs") -> list[CohortEntry]:
    """Return the slides of a cohort: two a patient, HP and SSA patients in turn, whole patients in train or test."""
    entries = []
    for index in range(count):
        patient = index // SLIDES_PER_PATIENT
        trained = is_chosen(patient // 2, 1 - test_fraction)  # both classes in the same proportion
        entries.append(
            CohortEntry(
                name=f"syn_{index:05d}.{ending}",
                patient=f"patient_{patient:04d}",
                label="both" if both else ("HP", "SSA")[patient % 2],
                split="train" if trained else "test",
            )
        )
    return entries


def write_cohort(
    root: Path,
    *,
    count: int,
    size_px: int = 4000,
    mpp: float = 1.0,
    seed: int = 0,
    both: bool = False,
    pen: Pen | None = None,
    test_fraction: float = 0.3,
    ending: str = "svs",
    workers: int = 1,
    progress: bool = False,
) -> list[CohortEntry]:
    """Write `slides/`, `slides.csv`, `truth/` and `annotations/` under root; return the slides.

    The folder appears complete or not at all, and does not depend on the number of workers.

    Args:
        size_px, mpp, seed, pen: see `draw_slide`. both: HP and SSA on every slide, which then has no label.
        ending: "svs" or "tiff". workers: processes.

    Raises:
        ValueError: root is not empty or cannot be written, or a drawing process died.
    """
    entries = cohort(count, both=both, test_fraction=test_fraction, ending=ending)
    with drawing_into(root) as folder:
        for name in ("slides", "truth", "annotations"):
            (folder / name).mkdir()
        in_processes(
            partial(_write, folder=folder, entries=entries, size_px=size_px, mpp=mpp, seed=seed, pen=pen),
            count,
            workers=workers,
            chunk=1,
            bar=partial(over, total=count, desc="drawing slides" if progress else None, unit="slide"),
        )
        rows = ((e.name, e.patient, "" if both else e.label, e.split, mpp) for e in entries)
        write_csv(folder / "slides.csv", COLUMNS, rows)
    return entries


def _write(
    index: int, *, folder: Path, entries: list[CohortEntry], size_px: int, mpp: float, seed: int, pen: Pen | None
) -> None:
    """Draw and write a slide, its truth, and its lesions as annotations."""
    entry = entries[index]
    drawn = draw_slide(index, label=entry.label, seed=seed, size_px=size_px, mpp=mpp, pen=pen)
    factors = [factor for factor in (4, 16, 64) if size_px // factor >= 200]  # down to about 256 pixels
    write_slide(folder / "slides" / entry.name, drawn.pixels, mpp=mpp, factors=factors)
    annotations = folder / "annotations" / f"{Path(entry.name).stem}.geojson"
    _write_annotations(annotations, drawn, name=entry.name)
    stem = folder / "truth" / Path(entry.name).stem
    truth_picture(drawn).save(stem.with_suffix(".png"))
    write_csv(
        stem.with_suffix(".csv"),
        ("x", "y", "label", "severity"),
        ((base.x, base.y, base.label, base.severity) for base in drawn.crypts),
    )


def _write_annotations(path: Path, drawn: DrawnSlide, *, name: str) -> None:
    """Write the lesions of the slide of this name as a person would mark them in QuPath."""
    height, width = drawn.lesions.shape
    x_edges, y_edges = np.arange(width + 1) * drawn.factor, np.arange(height + 1) * drawn.factor
    regions = [
        Region(name, polygons)
        for label, name in ((HP, "HP"), (SSA, "SSA"))
        for polygons in outlines(drawn.lesions == label, x_edges, y_edges)
    ]
    write_regions(path, name, regions, colours={"HP": PALETTE[HP], "SSA": PALETTE[SSA]})


def truth_picture(drawn: DrawnSlide) -> Image.Image:
    """Return the truth as a picture: 0 glass, 1 stroma, 2 HP, 3 SSA, 4 a crypt base of HP, 5 one of SSA."""
    values = drawn.lesions.copy()
    for label in (HP, SSA):
        values[drawn.bases & (drawn.lesions == label)] = label + len(LABELS)
    picture = Image.fromarray(values)
    picture.putpalette(np.asarray(PALETTE, dtype=np.uint8).tobytes())
    return picture
