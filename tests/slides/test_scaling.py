"""Which level is read for a µm per pixel, and how much of it makes a tile."""

from __future__ import annotations

import pytest

from sscl.slides.records import Level, Slide, SlideError
from sscl.slides.scaling import scaling


def slide(
    *factors: float, mpp: float | None = 0.25, side: int = 40_000, inexact: tuple[float, ...] = (), said: str = ""
):
    levels = tuple(
        Level(width=int(side / factor), height=int(side / factor), factor=factor, exact=factor not in inexact)
        for factor in factors
    )
    return Slide(
        path="/slides/a.svs",
        name="a.svs",
        width=side,
        height=side,
        mpp=mpp,
        mpp_from=said,
        bounds=None,
        levels=levels,
        reader="openslide",
        vendor="aperio",
        quickhash="",
        size=1,
        mtime_ns=1,
    )


@pytest.mark.parametrize(
    ("mpp", "level", "side", "step"),
    [
        (0.25, 0, 224, 224),
        (0.5, 0, 448, 448),
        (0.254, 0, 224, 224),  # within 2%: the level's own pixels
        (0.256, 0, 229, 229.376),
        (1.0, 1, 224, 896),
        (0.985, 1, 224, 896),  # the level is 1.5% coarser than asked for
        (0.97, 0, 869, 869.12),
        (2.0, 1, 448, 1792),
        (4.0, 2, 224, 3584),
        (8.0, 2, 448, 7168),
    ],
)
def test_the_level_is_the_coarsest_that_is_fine_enough(mpp, level, side, step):
    found = scaling(slide(1, 4, 16), mpp=mpp, size_px=224)
    assert (found.level, found.side) == (level, side)
    assert found.step == pytest.approx(step)
    assert found.resampled == (side != 224)
    assert found.mpp == pytest.approx(side * (1, 4, 16)[level] * 0.25 / 224)
    assert abs(found.mpp / mpp - 1) <= 0.02


def test_a_level_between_whose_pixels_openslide_reads_is_not_taken():
    """T6."""
    found = scaling(slide(1, 4, 16, inexact=(4,)), mpp=1.0, size_px=224)
    assert (found.level, found.side) == (0, 896)


@pytest.mark.parametrize(("own", "asked"), [(0.5, 0.25), (0.5, 0.489), (28.97, 0.5)])
def test_a_target_finer_than_the_slide_is_refused_with_both(own, asked):
    """T5."""
    with pytest.raises(SlideError, match=f"{own:g}.*{asked:g}"):
        scaling(slide(1, 4, mpp=own), mpp=asked, size_px=224)


def test_a_target_within_two_percent_of_the_slide_is_taken():
    assert not scaling(slide(1, 4, mpp=0.504), mpp=0.5, size_px=224).resampled


def test_a_slide_without_a_scale_is_refused_by_name():
    """T1: what to do stands in the line; T2: so does what the file says that does not count."""
    with pytest.raises(SlideError, match=r"/slides/a\.svs.*slides_csv.*slide_mpp") as none:
        scaling(slide(1, 4, mpp=None), mpp=0.5, size_px=224)
    with pytest.raises(SlideError, match=r"352\.8"):
        scaling(slide(1, 4, mpp=None, said="tiff.XResolution says 352.8"), mpp=0.5, size_px=224)
    assert "\n" not in str(none.value)


@pytest.mark.parametrize("mpp", [0, -1, 0.04, 41, float("nan"), float("inf")])
def test_a_target_that_no_microscope_has_is_refused(mpp):
    with pytest.raises(ValueError, match="mpp"):
        scaling(slide(1), mpp=mpp, size_px=224)


def test_a_slide_smaller_than_a_tile_is_refused():
    with pytest.raises(SlideError, match="smaller than a tile"):
        scaling(slide(1, mpp=0.5, side=400), mpp=1.0, size_px=224)
    assert scaling(slide(1, mpp=0.5, side=448), mpp=1.0, size_px=224).side == 448
