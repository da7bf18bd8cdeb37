"""Places of tiles that other programs chose: the .h5 files of TRIDENT and CLAM, one a slide.

Both hold a dataset `coords`, (n, 2), top-left corners in pixels of level 0. Its attributes say how large a tile is:
TRIDENT's `patch_size_level0` in pixels of level 0, CLAM's `patch_size` in pixels of its `patch_level`. In both a tile
may reach beyond the right and the lower border; it is white there.

Source: mahmoodlab/TRIDENT, trident/IO.py (coords_to_h5, read_coords); mahmoodlab/CLAM, wsi_core/WholeSlideImage.py
(process_contour) and wsi_utils.py (save_hdf5).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sscl.places import missing, printable
from sscl.slides.index import Grid
from sscl.slides.libraries import library
from sscl.slides.names import SlideNames, file_of_each
from sscl.slides.records import Slide, SlideError
from sscl.slides.scaling import TOLERANCE
from sscl.words import count, short

UNKNOWN = -1  # the coverage of a tile that others chose
_MOST = 10**7  # tiles of a slide; at 20x a slide of 40 x 25 mm has some 10,000
_ENDING = "_patches"  # of TRIDENT's files


@dataclass(frozen=True)
class Coordinates:
    """The places of a slide's tiles.

    Attributes:
        path: of the file. program: that wrote it.
        xy: int64 (n, 2), top-left corners, pixels of level 0; sorted by y, then x, each once.
        footprint: side of a tile, pixels of level 0.
        twice: how many places came more than once.
        digest: of places and footprint.
    """

    path: Path
    program: str
    xy: NDArray[np.int64]
    footprint: float
    twice: int
    digest: str

    @property
    def grid(self) -> Grid:
        """The tiles as an index has them; their coverage is not known."""
        coverage = np.full((len(self.xy), 1), UNKNOWN)
        return np.concatenate([self.xy, coverage], axis=1).astype(np.int32)

    def mpp_of(self, slide: Slide, *, mpp: float, size_px: int) -> float:
        """Return the µm per pixel at which tiles of `size_px` pixels cover exactly what the program chose.

        Raises:
            SlideError: that is more than 2% from the `mpp` that is asked for, or the slide's is not known.
        """
        if slide.mpp is None:
            raise SlideError(
                f"{printable(slide.path)}: its µm per pixel is not known; give it in slides_csv or slide_mpp"
            )
        found = self.footprint * slide.mpp / size_px
        if abs(found / mpp - 1) > TOLERANCE:
            raise SlideError(
                f"{printable(str(self.path))}: its tiles are {self.footprint:g} pixels of level 0 wide, "
                f"{self.footprint * slide.mpp:.1f} µm; size_px={size_px} at mpp={mpp:g} is {size_px * mpp:.1f} µm; "
                f"give mpp={found:.4g}"
            )
        return found


def coordinate_files(folder: str | Path, slides: Mapping[str, str]) -> tuple[dict[str, Path], list[str]]:
    """Return the file of each slide, by name of the slide, and the names of files that are of none.

    A file is a slide's if it has its name but for the ending, with or without TRIDENT's _patches.

    Args:
        folder: with the .h5 files, or the one above their folder `patches`; or one such file.
        slides: names and paths.

    Raises:
        FileNotFoundError: there is no such folder, or no .h5 file in it.
        ValueError: it cannot be listed; two slides, or two files, have one name.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"coordinates: {missing(folder, 'folder')}")
    below = folder / "patches" if (folder / "patches").is_dir() else folder
    files = [folder] if folder.is_file() else sorted(path for path in below.iterdir() if not path.name.startswith("."))
    files = [path for path in files if path.suffix.lower() in (".h5", ".hdf5")]
    if not files:
        raise FileNotFoundError(f"coordinates: {below} has no .h5 files, as TRIDENT and CLAM write one for each slide")
    known = SlideNames(list(slides))
    meant = ((path, known.meant(path.stem) or known.meant(path.stem.removesuffix(_ENDING))) for path in files)
    found, others = file_of_each(meant, key="coordinates", to_do="index the folders of the slides one by one")
    return found, [path.name for path in others]


def read_coordinates(path: Path, slide: Slide) -> Coordinates:
    """Return the places of a slide's tiles as a file gives them.

    Raises:
        SlideError: it is no such file, or one of another slide; a place lies outside the slide.
        ValueError: h5py is not installed.
    """
    h5py = library("h5py")
    shown = printable(str(path))
    try:
        with h5py.File(path, "r") as file:
            data = file.get("coords")
            if not isinstance(data, h5py.Dataset):
                raise SlideError(f"{shown}: has no dataset coords, so it is not of TRIDENT or CLAM")
            if data.size > 2 * _MOST:
                raise SlideError(f"{shown}: has more than {count(_MOST, 'place')}")
            values, of = np.asarray(data[()]), dict(data.attrs)
    except SlideError:
        raise
    except Exception as error:  # of HDF5 and the filters in it
        raise SlideError(f"{shown}: is no HDF5 file that can be read ({short(str(error), most=100)})") from None
    program, footprint = _footprint(of, slide, shown)
    xy, twice = _places(values, slide, shown)
    parts = b"%r %r " % (footprint, program) + xy.tobytes()
    return Coordinates(
        path=path,
        program=program,
        xy=xy,
        footprint=footprint,
        twice=twice,
        digest=hashlib.blake2b(parts, digest_size=16).hexdigest(),
    )


def _footprint(of: Mapping[str, Any], slide: Slide, shown: str) -> tuple[str, float]:
    """Return which program wrote a file, and the side of its tiles in pixels of level 0."""
    if "target_magnification" in of or "patch_size_level0" in of:
        if "patch_size_level0" in of:
            side = _number(of, "patch_size_level0", shown)
        else:
            least, most = (_number(of, f"{which}_magnification", shown) for which in ("target", "level0"))
            side = _number(of, "patch_size", shown) * most / least
        if "level0_width" in of and "level0_height" in of:
            given = (of["level0_width"], of["level0_height"])
            _check_size(given, (slide.width, slide.height), shown, slide)
        return "TRIDENT", side
    if "patch_level" not in of:
        raise SlideError(
            f"{shown}: does not say how large its tiles are (patch_size_level0 of TRIDENT, patch_level of CLAM); write "
            "it again with one of them"
        )
    if _number(of, "custom_downsample", shown, default=1) != 1:
        raise SlideError(f"{shown}: has a custom_downsample, which sscl does not know; write it again without")
    level = int(_number(of, "patch_level", shown, least=0))
    if level >= len(slide.levels):
        raise SlideError(f"{shown}: is of level {level}, and the slide has {count(len(slide.levels), 'level')}")
    if "level_dim" in of and np.size(of["level_dim"]) == 2:
        found = slide.levels[level]
        _check_size(tuple(np.ravel(of["level_dim"])), (found.width, found.height), shown, slide)
    return "CLAM", _number(of, "patch_size", shown) * slide.levels[level].factor


def _number(
    of: Mapping[str, Any], name: str, shown: str, *, default: float | None = None, least: float = 1e-3
) -> float:
    value = of.get(name, default)
    try:
        found = float(np.ravel(np.asarray(value, dtype=np.float64))[0])
    except (TypeError, ValueError, IndexError):
        found = -1.0
    if not least <= found < 10**7:
        raise SlideError(f"{shown}: its {name} is {short(str(value))}, which cannot be; write it again")
    return found


def _check_size(given: tuple[Any, ...], here: tuple[int, int], shown: str, slide: Slide) -> None:
    """Raise SlideError where a file is of a slide of another size; by a pixel levels may differ."""
    try:
        width, height = (int(value) for value in given)
    except (TypeError, ValueError, OverflowError):
        return
    if abs(width - here[0]) > 1 or abs(height - here[1]) > 1:
        raise SlideError(
            f"{shown}: is of a slide of {width:,} x {height:,} pixels, and {printable(slide.name)} has {here[0]:,} x "
            f"{here[1]:,}; is it another slide?"
        )


def _places(values: NDArray[Any], slide: Slide, shown: str) -> tuple[NDArray[np.int64], int]:
    """Return the places, sorted, each once, and how many came again."""
    if not values.size:
        return np.empty((0, 2), dtype=np.int64), 0
    if values.ndim != 2 or values.shape[1] != 2 or values.dtype.kind not in "iuf":
        raise SlideError(f"{shown}: its coords are {values.dtype} {values.shape}; expected whole numbers (n, 2)")
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.rint(values)).all()):
        raise SlideError(f"{shown}: its coords are no whole numbers; expected pixels of level 0")
    outside = ((values < 0) | (values >= (slide.width, slide.height))).any(axis=1)
    if outside.any():
        x, y = values[outside][0].tolist()
        raise SlideError(
            f"{shown}: {count(int(outside.sum()), 'place')} of {len(values):,} outside the slide ({slide.width:,} x "
            f"{slide.height:,} pixels), the first is x={x:g}, y={y:g}; is it another slide, or of another level?"
        )
    xy = values.astype(np.int64)
    found = np.unique(xy[:, ::-1], axis=0)[:, ::-1]  # by y, then x
    return np.ascontiguousarray(found), len(xy) - len(found)
