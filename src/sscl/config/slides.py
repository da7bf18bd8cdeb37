"""The configurations of `sscl slides`."""

from __future__ import annotations

from typing import Annotated, Literal

from sscl.config.data import COARSEST_MPP, FINEST_MPP
from sscl.config.sections import SEEDS, Listed, Section, setting


class TileSlidesConfig(Section):
    """Find the tissue tiles of slides and write them as an index; no pixel is copied. Run again, the command does
    what is missing or has changed.
    """

    slides: Annotated[tuple[str, ...], Listed] = setting(
        ..., "folders of slides, slide files, DICOM folders; also SLIDES", path=True, min_length=1
    )
    out: str = setting(..., "the folder of the index", path=True, min_length=1)
    mpp: float = setting(
        ..., "µm per pixel of the tiles, as 0.5 (about 20x) or 0.25 (about 40x)", ge=FINEST_MPP, le=COARSEST_MPP
    )
    size_px: int = setting(224, "side of a tile, pixels", ge=16, le=1024, common=True)
    slides_csv: str | None = setting(
        None, "CSV file with the column slide and, where known, mpp, patient, label, split", path=True, common=True
    )
    slide_mpp: float | None = setting(
        None,
        "µm per pixel at full resolution of slides that do not say it",
        ge=FINEST_MPP,
        le=COARSEST_MPP,
        common=True,
    )
    min_coverage: float = setting(0.25, "share of a tile that must be tissue; 0 = any at all", ge=0, le=1, common=True)
    overlap: float = setting(0.0, "share of its side that a tile shares with the next one", ge=0, le=0.9, common=True)
    coordinates: str | None = setting(
        None, "folder of .h5 files of TRIDENT or CLAM, one a slide: their tiles, as they are", path=True, common=True
    )
    threads: int | None = setting(None, "slides at once; null = as many as there are cores", ge=1, le=256)
    progress: bool = setting(True, "show progress bars")


class InspectSlidesConfig(Section):
    """Say of every slide what it is: vendor, size, levels, µm per pixel, tiles, tissue, or why it failed."""

    slides: Annotated[tuple[str, ...], Listed] = setting(
        ..., "an index, or folders of slides, slide files, DICOM folders; also SLIDES", path=True, min_length=1
    )
    out: str | None = setting(
        None, "folder to write, with slides.csv and the sheet of previews; null = print only", path=True
    )
    shown: int = setting(60, "most slides on the sheet of previews", ge=1, le=1000)
    threads: int | None = setting(None, "slides at once; null = as many as there are cores", ge=1, le=256)
    progress: bool = setting(True, "show progress bars")


class ViewSlidesConfig(Section):
    """Show slides at full resolution, with what was predicted of them, in a browser of this computer."""

    folder: str = setting(
        ..., "folder that `sscl predict` wrote of slides, an index, or slides; also FOLDER", path=True, min_length=1
    )
    port: int = setting(8620, "port on 127.0.0.1; 0 = any that is free", ge=0, le=65535, common=True)
    slides_root: str | None = setting(None, "the folder that the slides are in now", path=True)
    blind: bool = setting(False, "pages open in blind review: a tile's prediction shows once its class is named")


class SynthSlidesConfig(Section):
    """Write drawn slides, with the truth per pixel and per crypt, to try the commands on."""

    root: str = setting(..., "folder to write; also DIR", path=True, min_length=1)
    count: int = setting(12, "number of slides, two a patient", ge=1, le=10_000)
    size_px: int = setting(4000, "side of a slide, pixels", ge=256, le=10_000)
    mpp: float = setting(1.0, "µm per pixel; a crypt is about 300 µm high", ge=0.25, le=4)
    seed: int = setting(0, "seed of the slides", ge=0, lt=SEEDS)
    both: bool = setting(False, "lesions of both classes on every slide, which then has no label of its own")
    pen: Literal["black", "blue", "green", "red"] | None = setting(None, "colour of a pen's line; null = none")
    format: Literal["svs", "tiff"] = setting("svs", "Aperio's SVS, or generic pyramidal TIFF")
    test_fraction: float = setting(0.3, "fraction of the patients in the test split", ge=0, lt=1)
    progress: bool = setting(True, "show progress bars")
