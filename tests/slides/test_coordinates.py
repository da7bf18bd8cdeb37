"""Tiles that TRIDENT and CLAM chose, in files written as those programs write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sscl.slides.coordinates import coordinate_files, read_coordinates
from sscl.slides.records import Level, Slide, SlideError

# Not sorted, and one twice, as where two of CLAM's contours meet. The last reaches beyond the slide's border.
PLACES = [(512, 0), (0, 0), (0, 512), (512, 0), (3600, 2900)]
SORTED = [[0, 0], [512, 0], [0, 512], [3600, 2900]]


def save(path: Path, coords: Any, attributes: dict[str, Any]) -> Path:
    """As save_h5 of TRIDENT and save_hdf5 of CLAM, which are one function."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        chunk, most = (1, *coords.shape[1:]), (None, *coords.shape[1:])
        data = file.create_dataset("coords", shape=coords.shape, maxshape=most, chunks=chunk, dtype=coords.dtype)
        data[:] = coords
        for name, value in attributes.items():
            data.attrs[name] = value
    return path


def trident(path: Path, places: Any = PLACES, **changed: Any) -> Path:
    attributes = {
        "patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20,
        "overlap": 0, "name": "a", "savetodir": "x", "level0_width": 4000, "level0_height": 3000, **changed,
    }  # fmt: skip
    coords = np.asarray(places, dtype=np.int64).reshape(-1, 2)
    return save(path, coords, {key: value for key, value in attributes.items() if value is not None})


def clam(path: Path, places: Any = PLACES, **changed: Any) -> Path:
    attributes = {
        "patch_size": 256, "patch_level": 1, "downsample": (4.0, 4.0), "downsampled_level_dim": (1000, 750),
        "level_dim": (1000, 750), "name": "a", "save_path": "x", **changed,
    }  # fmt: skip
    return save(path, np.asarray(places, dtype=np.int32), attributes)


@pytest.fixture
def slide() -> Slide:
    return Slide(
        path="/s/a.svs", name="a.svs", width=4000, height=3000, mpp=0.25, mpp_from="aperio.MPP", bounds=None,
        levels=(
            Level(width=4000, height=3000, factor=1.0, exact=True),
            Level(width=1000, height=750, factor=4.0, exact=True),
        ),
        reader="openslide", vendor="aperio", quickhash="q", size=1, mtime_ns=1,
    )  # fmt: skip


def test_places_are_taken_as_they_are(tmp_path, slide):
    of_trident = read_coordinates(trident(tmp_path / "t.h5"), slide)
    assert (of_trident.program, of_trident.footprint, of_trident.twice) == ("TRIDENT", 512, 1)
    assert of_trident.xy.tolist() == SORTED
    assert of_trident.grid.tolist() == [[x, y, -1] for x, y in SORTED]
    of_clam = read_coordinates(clam(tmp_path / "c.h5"), slide)
    assert (of_clam.program, of_clam.footprint) == ("CLAM", 1024)
    assert of_clam.xy.tolist() == SORTED
    assert of_clam.digest != of_trident.digest


def test_the_older_form_of_trident_has_no_size_at_level_0(tmp_path, slide):
    sizes: dict[str, Any] = {"patch_size_level0": None, "level0_width": None, "level0_height": None}
    assert read_coordinates(trident(tmp_path / "t.h5", **sizes), slide).footprint == 512
    without = trident(tmp_path / "u.h5", patch_size=None, level0_width=np.inf)  # neither is needed
    assert read_coordinates(without, slide).footprint == 512


def test_a_tile_covers_exactly_what_the_program_chose_and_within_two_percent_what_is_asked_for(tmp_path, slide):
    found = read_coordinates(trident(tmp_path / "t.h5"), slide)
    assert found.mpp_of(slide, mpp=0.5, size_px=256) == 0.5
    assert found.mpp_of(slide, mpp=0.495, size_px=256) == 0.5
    with pytest.raises(SlideError, match=r"128\.0 µm; size_px=224 at mpp=0\.5 is 112\.0 µm; give mpp=0\.5714"):
        found.mpp_of(slide, mpp=0.5, size_px=224)
    assert found.mpp_of(slide, mpp=0.5714, size_px=224) == pytest.approx(128 / 224)
    with pytest.raises(SlideError, match="not known"):
        found.mpp_of(slide.model_copy(update={"mpp": None}), mpp=0.5, size_px=256)


def test_no_place_is_no_tissue(tmp_path, slide):
    assert len(read_coordinates(trident(tmp_path / "t.h5", []), slide).grid) == 0
    empty = save(tmp_path / "old.h5", np.array([]), {"patch_size": 256, "patch_size_level0": 512})
    assert read_coordinates(empty, slide).grid.shape == (0, 3)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: trident(path, [(4000, 0), (0, 0)]), r"1 place of 2 outside .* x=4000, y=0"),
        (lambda path: trident(path, [(-1, 5)]), "outside"),
        (lambda path: trident(path, level0_width=5000), "5,000 x 3,000"),
        (lambda path: trident(path, patch_size_level0=0), "patch_size_level0"),
        (lambda path: trident(path, patch_size="None", patch_size_level0=None), "patch_size"),
        (lambda path: clam(path, patch_size=np.inf), "patch_size"),
        (lambda path: clam(path, patch_level=2), "level 2"),
        (lambda path: clam(path, level_dim=(999, 700)), "999 x 700"),
        (lambda path: clam(path, custom_downsample=2), "custom_downsample"),
        (lambda path: save(path, np.zeros((3, 2)), {"patch_size": 256}), "how large"),
        (lambda path: save(path, np.full((1, 2), 0.5), {"patch_size": 256, "patch_level": 0}), "no whole numbers"),
        (lambda path: save(path, np.zeros((3, 4)), {"patch_size": 256, "patch_level": 0}), r"\(n, 2\)"),
        (lambda path: path.write_text("x") and path, "HDF5"),
        (lambda path: h5py.File(path, "w").close() or path, "dataset coords"),
    ],
)
def test_a_file_that_cannot_be_of_the_slide_is_refused_by_name(tmp_path, slide, write, said):
    with pytest.raises(SlideError, match=rf"t\.h5: .*{said}"):
        read_coordinates(write(tmp_path / "t.h5"), slide)


def test_files_are_found_by_the_slides_names(tmp_path):
    for name in ("a_patches.h5", "b.c.h5", "d.ome_patches.h5", "other_patches.h5", "notes.txt"):
        path = tmp_path / "job" / "patches" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    slides = {"x/a.svs": "/s/x/a.svs", "b.c.ome.tiff": "/s/b.c.ome.tiff", "none.svs": "/s/none.svs"}
    slides["d.ome.tiff"] = "/s/d.ome.tiff"
    found, others = coordinate_files(tmp_path / "job", slides)
    assert {name: path.name for name, path in found.items()} == {
        "x/a.svs": "a_patches.h5",
        "b.c.ome.tiff": "b.c.h5",
        "d.ome.tiff": "d.ome_patches.h5",
    }
    assert others == ["other_patches.h5"]
    with pytest.raises(ValueError, match=r"2 slides \(a\.svs, y/a\.svs\)"):
        coordinate_files(tmp_path / "job", {"a.svs": "/s/a.svs", "y/a.svs": "/s/y/a.svs"})
    (tmp_path / "job" / "patches" / "a.h5").touch()
    with pytest.raises(ValueError, match=r"a_patches\.h5: is of x/a\.svs, and so is .*a\.h5"):
        coordinate_files(tmp_path / "job", slides)
    with pytest.raises(FileNotFoundError, match=r"coordinates: .*no \.h5"):
        coordinate_files(tmp_path, slides)
    with pytest.raises(FileNotFoundError, match=r"coordinates: .*no such"):
        coordinate_files(tmp_path / "nowhere", slides)
