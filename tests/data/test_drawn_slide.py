"""Drawn slides: their truth is that of their pixels, lesions are wide, and a cohort on disk reads back."""

from __future__ import annotations

import csv
import hashlib

import cv2
import numpy as np
import openslide
import pytest
from PIL import Image

from sscl.cli import main
from sscl.commands.draw_slides import few_for_testing
from sscl.config import SynthSlidesConfig
from sscl.data.drawn_cohort import cohort, write_cohort
from sscl.data.drawn_slide import GLASS, HP, SSA, STROMA, DrawnSlide, draw_slide
from sscl.data.polyp import TILE_UM
from sscl.data.synthetic import draw_tile
from sscl.slides.coverage import coverage_of
from sscl.slides.geojson import read_annotations
from sscl.slides.open import open_slide

SIZE_PX, MPP = 1000, 4.0  # 4 mm: as wide as the slide of 4,000 px at 1 µm/px


@pytest.fixture(scope="module")
def drawn() -> DrawnSlide:
    return draw_slide(0, seed=3, size_px=SIZE_PX, mpp=MPP)


def base_areas(mask):
    """The areas of crypt bases, each apart from the others, in tiles."""
    count, _, facts, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    return facts[1:count, cv2.CC_STAT_AREA]


def test_lesions_of_both_classes_are_wider_than_three_tiles(drawn):
    for label in (HP, SSA):
        count, _, facts, _ = cv2.connectedComponentsWithStats((drawn.lesions == label).astype(np.uint8))
        largest = facts[1 + facts[1:count, cv2.CC_STAT_AREA].argmax()]
        um = drawn.factor * drawn.mpp
        assert min(largest[cv2.CC_STAT_WIDTH], largest[cv2.CC_STAT_HEIGHT]) * um > 3 * TILE_UM
        assert largest[cv2.CC_STAT_AREA] * um**2 > 8 * TILE_UM**2


def test_the_truth_is_that_of_the_pixels(drawn):
    assert set(np.unique(drawn.lesions)) == {GLASS, STROMA, HP, SSA}
    assert not (drawn.bases & (drawn.lesions < HP)).any()
    f = drawn.factor
    light = cv2.resize(drawn.pixels, drawn.lesions.shape[::-1], interpolation=cv2.INTER_AREA).min(axis=2)
    # Clefts and lumina are as bright as glass: what is dark is tissue, what is glass is bright.
    assert (drawn.lesions[light < 200] != GLASS).mean() > 0.99
    assert np.median(light[drawn.lesions == GLASS]) > 215
    assert (light[drawn.lesions == GLASS] > 200).mean() > 0.97
    assert len(drawn.crypts) > 80
    near = cv2.dilate(drawn.bases.astype(np.uint8), np.ones((3, 3), np.uint8))
    at = np.array([(base.y // f, base.x // f) for base in drawn.crypts]).clip(0, len(near) - 1)
    assert near[at[:, 0], at[:, 1]].mean() > 0.97
    labels = np.array([{"HP": HP, "SSA": SSA}[base.label] for base in drawn.crypts])
    assert (drawn.lesions[at[:, 0], at[:, 1]] == labels).mean() > 0.97
    for base in drawn.crypts:
        assert (base.severity > 0.5) == (base.label == "SSA")


def test_bases_are_those_of_synthetic_tiles_at_the_same_scale(drawn):
    """Bases of neighbours that touch count as one, in both: the medians agree all the same, and the classes differ."""
    per_pixel = (drawn.factor * drawn.mpp / TILE_UM) ** 2
    tiles = [draw_tile(i, size_px=56) for i in range(24)]
    medians = {}
    for label, name in ((0, HP), (1, SSA)):
        inner = [tile.mask for tile in tiles if tile.label == label and tile.ambiguity < 0.4]
        in_tiles = np.median(np.concatenate([base_areas(mask) for mask in inner])) / 56**2
        medians[name] = np.median(base_areas(drawn.bases & (drawn.lesions == name))) * per_pixel
        assert medians[name] == pytest.approx(in_tiles, rel=0.5)
    assert medians[SSA] > 1.5 * medians[HP]


def test_a_slide_is_a_function_of_its_seed_and_index():
    small = {"size_px": 160, "mpp": 4.0}
    first = draw_slide(1, seed=2, **small)
    assert np.array_equal(first.pixels, draw_slide(1, seed=2, **small).pixels)
    assert not np.array_equal(first.pixels, draw_slide(2, seed=2, **small).pixels)
    assert not np.array_equal(first.pixels, draw_slide(1, seed=3, **small).pixels)


def test_the_pen_lies_over_the_same_slide():
    small = {"size_px": 400, "mpp": 4.0}
    plain, inked = draw_slide(0, **small), draw_slide(0, pen="green", **small)
    changed = (plain.pixels != inked.pixels).any(axis=2)
    assert 0.01 < changed.mean() < 0.2
    assert np.array_equal(plain.lesions, inked.lesions)


def test_a_cohort_has_both_classes_in_both_splits_by_patients():
    slides = cohort(40, both=False, test_fraction=0.3)
    assert {(slide.label, slide.split) for slide in slides} == {
        (a, b) for a in ("HP", "SSA") for b in ("train", "test")
    }
    for patient in {slide.patient for slide in slides}:
        assert len({(slide.label, slide.split) for slide in slides if slide.patient == patient}) == 1
    assert sum(slide.split == "test" for slide in slides) == 12
    few = cohort(12, both=False, test_fraction=0.3)  # the default: two patients of each class to train on
    assert [slide.split for slide in few] == ["train"] * 4 + ["test"] * 4 + ["train"] * 4
    assert {slide.split for slide in cohort(4, both=False, test_fraction=0.5)} == {"train"}


def test_the_command_writes_slides_that_openslide_reads(tmp_path, capsys):
    out = tmp_path / "drawn"
    assert main(["slides", "synth", str(out), "count=1", "size_px=300", "mpp=4", "pen=blue", "progress=false"]) == 0
    following = capsys.readouterr().out.splitlines()[-1]
    assert following.startswith("next: sscl slides tile ")
    assert "mpp=4" in following.split()  # as the slide, which is coarser than the usual 2
    with openslide.OpenSlide(out / "slides" / "syn_00000.svs") as slide:
        assert slide.dimensions == (300, 300)
        assert float(slide.properties["openslide.mpp-x"]) == 4
    with (out / "slides.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"slide": "syn_00000.svs", "patient": "patient_0000", "label": "HP", "split": "train", "mpp": "4.0"}
        ]
    truth = np.asarray(Image.open(out / "truth" / "syn_00000.png"))
    assert truth.shape == (150, 150)
    assert set(np.unique(truth)) == {GLASS, STROMA, HP, HP + 2}
    areas = read_annotations(
        out / "annotations" / "syn_00000.geojson", open_slide(out / "slides" / "syn_00000.svs", name="x")
    )
    corner = np.stack(np.meshgrid(np.arange(150) * 2, np.arange(150) * 2), -1).reshape(-1, 2)
    shares = coverage_of(areas.polygons, corner, side=2, classes=["HP"])[:, 0].reshape(150, 150)
    assert np.array_equal(shares > 0.5, (truth == HP) | (truth == HP + 2))
    assert main(["slides", "synth", str(out)]) == 2
    assert "not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["mpp=0.1", "size_px=20", "count=0", "pen=pink", "size_px=400"])
def test_bad_settings_are_refused(tmp_path, setting):
    assert main(["slides", "synth", str(tmp_path / "drawn"), "count=1", setting]) == 2
    assert not (tmp_path / "drawn").exists()


def test_files_do_not_depend_on_the_workers(tmp_path):
    digests = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        write_cohort(folder, count=2, size_px=200, mpp=4.0, both=True, ending="tiff", workers=workers)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
    assert digests[0] == digests[1]


def test_too_few_patients_for_testing_are_said_with_the_count_that_has_enough() -> None:
    config = SynthSlidesConfig(root="r")
    (said,) = few_for_testing(cohort(12, both=False, test_fraction=0.3), config)
    assert "count=36" in said
    assert few_for_testing(cohort(32, both=False, test_fraction=0.3), config)
    assert few_for_testing(cohort(36, both=False, test_fraction=0.3), config) == []
    none = cohort(8, both=True, test_fraction=0.1)
    assert {entry.split for entry in none} == {"train"}
    assert few_for_testing(none, config)
    assert few_for_testing(none, SynthSlidesConfig(root="r", test_fraction=0)) == []
