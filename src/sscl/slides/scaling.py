"""Which level of a slide is read for a µm per pixel, and how large a square of it makes a tile."""

from __future__ import annotations

from sscl.config.data import COARSEST_MPP, FINEST_MPP
from sscl.places import printable
from sscl.slides.records import Scaling, Slide, SlideError

TOLERANCE = 0.02  # within it a level is as good as the µm/px that is asked for


def scaling(slide: Slide, *, mpp: float, size_px: int) -> Scaling:
    """Return how tiles of `size_px` pixels of `mpp` µm are read.

    The level is the coarsest that is not coarser than asked for, by more than 2%. Where its pixels are within 2% of it,
    they are the tile's own; else a square of whole pixels is reduced (area). Nothing is ever enlarged.

    Raises:
        SlideError: the slide's µm per pixel is not known, or it is more than 2% coarser than asked for, or a tile would
            be larger than the slide.
        ValueError: `mpp` is not within 0.05 to 40.
    """
    if not FINEST_MPP <= mpp <= COARSEST_MPP:
        raise ValueError(f"mpp: got {mpp:g}, allowed is {FINEST_MPP:g} to {COARSEST_MPP:g} (µm per pixel)")
    name = printable(slide.path)
    if slide.mpp is None:
        said = f" ({slide.mpp_from}, which does not count)" if slide.mpp_from else ""
        raise SlideError(
            f"{name}: its µm per pixel is not known{said}; give it in slides_csv (column mpp), or with slide_mpp=0.25 "
            "for all slides that have none"
        )
    factor = mpp / slide.mpp  # pixels of level 0 that one of the tile's spans
    fitting = [i for i, level in enumerate(slide.levels) if level.exact and level.factor <= factor * (1 + TOLERANCE)]
    if not fitting:
        raise SlideError(
            f"{name}: has {slide.mpp:g} µm per pixel, coarser than the {mpp:g} asked for; give mpp={slide.mpp:g} or "
            "more, or leave the slide out"
        )
    level = max(fitting, key=lambda i: slide.levels[i].factor)
    own = slide.levels[level].factor
    if abs(factor / own - 1) <= TOLERANCE:
        side, step = size_px, size_px * own
    else:
        step = size_px * factor
        side = round(step / own)
    if step - 0.5 > min(slide.width, slide.height):
        raise SlideError(
            f"{name}: is {slide.width:,} x {slide.height:,} pixels of {slide.mpp:g} µm, smaller than a tile of "
            f"{size_px} pixels of {mpp:g} µm; give a smaller mpp or size_px, or leave the slide out"
        )
    return Scaling(
        mpp=side * own * slide.mpp / size_px,
        size_px=size_px,
        level=level,
        side=side,
        step=step,
        resampled=side != size_px,
    )
