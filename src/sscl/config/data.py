"""The data section, and the commands of `sscl data`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import model_validator

from sscl.config import strict_yaml
from sscl.config.sections import SEEDS, Listed, Section, fault, marked, setting
from sscl.words import first_twice

FINEST_MPP, COARSEST_MPP = 0.05, 40.0  # µm per pixel that a slide, or a tile, can have; what is outside is a mistake

Source = Literal["auto", "mhist", "folder", "table", "pathmnist", "synthetic", "slides"]
Data = TypeVar("Data", bound="DataConfig")


class DataConfig(Section):
    """The tiles and their split."""

    source: Source = setting(
        "auto",
        "auto: what root is; mhist: annotations.csv and images/; folder: train/CLASS/*, val/CLASS/*, test/CLASS/*, or "
        "CLASS/*, each also as CLASS/SLIDE/*, or images without classes; table: a CSV with path and, where known, "
        "label, group, site, split, mpp; pathmnist: an .npz file in MedMNIST's layout; synthetic: tiles of `sscl data "
        "synth`; slides: an index of `sscl slides tile`, whose tiles are read from the slides",
    )
    root: str = setting(
        ...,
        "folder of the data set; the CSV of a table, the .npz file, the index of slides; also TILES",
        path=True,
        min_length=1,
    )
    slides_root: str | None = setting(
        None, "slides: the folder where they are now, if they have moved since they were indexed", free=True, path=True
    )
    annotations: str | None = setting(
        None,
        "slides: folder of GeoJSON files that QuPath exports, named after their slides; tiles in areas of a class have "
        "that class, all others are left out",
        path=True,
    )
    label_coverage: float = setting(
        0.5,
        "annotations: share of a tile that areas of its class cover at least; two such classes: left out",
        gt=0,
        le=1,
    )
    reviews: Annotated[tuple[str, ...], Listed] = setting(
        (),
        "worksheets downloaded from a report or a slide's page, [a.csv, b.csv], or folders of them: tiles to which "
        "reviewers gave a class have that class, all others are left out",
        path=True,
    )
    keep: Literal["auto", "slides", "cache"] = setting(
        "auto",
        "slides: read tiles from the slides, or decode them once into the cache; auto: the cache up to 8 GiB and half "
        "of the free disk; the tiles are the same",
        free=True,
    )
    tiles_per_slide: int | None = setting(
        None,
        "slides: take this many tiles of each: pretraining draws others each epoch, none twice until all were seen; "
        "all else keeps to those that split_seed draws; null = all",
        ge=1,
        le=10**9,
    )
    protocol: Literal["paper_balanced", "official"] = setting(
        "official",
        "mhist: official = the Partition column; paper_balanced = all SSA and as many HP tiles, split 90:10",
    )
    published: bool = setting(
        True, "mhist: check the published counts and tile size; set false for other tiles in that layout", free=True
    )
    split_seed: int = setting(
        0, "seed of the splits that sscl makes (paper_balanced; a folder or table without test)", ge=0, lt=SEEDS
    )
    test_fraction: float = setting(
        0.2, "folder or table without test: fraction of each class held out for it", gt=0, lt=1
    )
    groups_csv: str | None = setting(
        None,
        "folder: CSV file with columns path,group and, where known, site; tiles of one group stay on one side of each "
        "split",
        path=True,
    )
    group_near_duplicates: bool = setting(
        False, "find near-duplicates first, and keep each cluster on one side of each split that sscl makes"
    )
    size_px: int = setting(224, "tiles are resized to this side, pixels", ge=16, le=1024, common=True)
    mpp: float | None = setting(
        None,
        "µm per pixel of the tiles at size_px; null = from a table's column mpp and the sides of its files, else not "
        "known",
        free=True,
        ge=FINEST_MPP,
        le=COARSEST_MPP,
    )
    fit: Literal["refuse", "crop", "resize"] = setting(
        "refuse", "images that are not square: refuse them, crop the square in their middle, or resize (squash) them"
    )
    stain: Literal["none", "reinhard", "macenko"] = setting(
        "none", "stain normalisation of every tile, to fixed reference stains"
    )
    cache_dir: str | None = setting(
        None, "cache of decoded tiles; null = $SSCL_CACHE or ~/.cache/sscl", free=True, path=True
    )
    device_budget_gb: float | None = setting(
        None,
        "keep all tiles on the GPU if they need at most this much memory, GiB; null = 4, or a quarter of what is free "
        "if that is less",
        free=True,
        ge=0,
        le=100_000,
    )

    def at(self: Data, size_px: int) -> Data:
        """Return the section with tiles of another side; µm per pixel that were given for the former go with it."""
        if self.mpp is None or "size_px" not in self.model_fields_set:
            return self.model_copy(update={"size_px": size_px})
        return self.model_copy(update={"size_px": size_px, "mpp": self.mpp * self.size_px / size_px})

    def files(self, key: str) -> dict[str, str]:
        """Return the files and folders that the tiles come from, by their keys below `key`."""
        found: dict[str, str] = {}
        for name, field in type(self).model_fields.items():
            if marked(field, "path") and name != "cache_dir":
                value = getattr(self, name)
                if isinstance(value, tuple):
                    found |= {f"{key}.{name}.{i}": path for i, path in enumerate(value)}
                elif value is not None:
                    found[f"{key}.{name}"] = value
        return found

    @property
    def weak_labels(self) -> bool:
        """Whether each tile has the label of its slide."""
        return self.source == "slides" and self.annotations is None and not self.reviews

    @model_validator(mode="after")
    def _source_is_what_root_is(self) -> DataConfig:
        if self.reviews and self.annotations is not None:
            raise fault(
                "reviews", "are given, and annotations too: both say the classes of tiles; leave one of the two out"
            )
        if twice := first_twice(self.reviews):
            raise fault("reviews", f"{twice} is given twice; name each once")
        if self.source == "auto":
            object.__setattr__(self, "source", detect_source(self.root))  # the section is not yet in use
        if self.source == "slides":
            self._scale_is_that_of_the_index()
        elif self.source != "auto":  # auto: nothing is there
            for key in ("tiles_per_slide", "annotations"):
                if getattr(self, key) is not None:
                    raise fault(
                        key, f"is for an index of slides, {self.root} is data.source={self.source}; leave it out"
                    )
        return self

    def _scale_is_that_of_the_index(self) -> None:
        for key, value in index_scale(self.root).items():
            given = getattr(self, key)
            if key in self.model_fields_set and given is not None and abs(given - value) > 1e-6:
                raise fault(
                    key,
                    f"got {given:g}, but {self.root} was indexed at {value:g}; leave it out, or index the slides again "
                    "into another folder (sscl slides tile)",
                )
            object.__setattr__(self, key, value)
            self.__pydantic_fields_set__.add(key)
        for key, why in NOT_OF_SLIDES.items():
            if getattr(self, key):
                raise fault(key, f"is not for slides: {why}")


SYNTHETIC_TILE = "syn_00000.png"  # the first tile of `sscl data synth`, in MHIST's layout


NOT_OF_SLIDES = {
    "groups_csv": "give their patients in the column patient of slides_csv when they are indexed (sscl slides tile)",
    "group_near_duplicates": "all tiles of a slide, or of a patient, stay on one side already",
}


def index_scale(root: str) -> dict[str, float]:
    """Return size_px and mpp of the tiles of an index of slides; empty where it does not say, which loading tells."""
    try:
        content = strict_yaml.read((Path(root) / "config.yaml").read_text(encoding="utf-8"))
        return {"size_px": int(content["size_px"]), "mpp": float(content["mpp"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def detect_source(root: str) -> Source:
    """Return what a folder or file is, as a value of data.source; auto where there is none, or it is none of these."""
    path = Path(root)
    if os.path.isdir(root):  # where a name is too long to be one, that says no, and Path raises
        if (path / "slides").is_dir() and (path / "grids").is_dir():
            return "slides"
        if not (path / "annotations.csv").is_file() or not (path / "images").is_dir():
            return "folder"
        return "synthetic" if (path / "images" / SYNTHETIC_TILE).is_file() else "mhist"
    kinds: dict[str, Literal["table", "pathmnist"]] = {".npz": "pathmnist", ".csv": "table", ".tsv": "table"}
    return kinds.get(path.suffix.lower(), "auto") if os.path.isfile(root) else "auto"


class SourceConfig(DataConfig):
    """The tiles: one data set, or a list of them. Pretraining does not use their labels."""

    weight: float | None = setting(
        None, "relative weight of this source in an epoch; null for all sources = each tile once", ge=0, le=1e6
    )
    labels: bool = setting(
        False,
        "folder, table, slides: take its classes, for the k-NN accuracy of the health metrics, and leave out its test "
        "split; false = all images of its own training split, or all there are",
    )
    tiles: int | None = setting(
        None, "use only this many of its training tiles, drawn by split_seed; null = all", ge=2, le=10**9
    )


SHARED_KEYS = ("size_px", "cache_dir", "device_budget_gb")


def listed_sources(value: Any) -> Any:
    """Return a list of sources as a tuple; one section is a list of one.

    Raises:
        ValueError: neither.
    """
    if isinstance(value, list):
        value = tuple(value)
    found = value if isinstance(value, tuple) else (value,)
    if isinstance(value, dict) and any(str(key).isdigit() for key in value):
        raise ValueError("is no list yet, so it has no numbers; give the list first: data='[{root: A}, {root: B}]'")
    if not found or not all(isinstance(source, (dict, SourceConfig)) for source in found):
        raise ValueError("must be a mapping ({root: A}) or a list of mappings ([{root: A}, {root: B}])")
    return found


def one_size(sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
    """Return the sources with what all share taken from the first.

    Raises:
        ValueError: a source says otherwise than the first.
    """
    shared = {key: getattr(sources[0], key) for key in SHARED_KEYS}
    for i, source in enumerate(sources[1:], 1):
        for key, value in shared.items():
            if key in source.model_fields_set and getattr(source, key) != value:
                raise fault(
                    f"{i}.{key}",
                    f"must be {value}, as for data.0, got {getattr(source, key)}; set it for data.0 only, it holds for "
                    "all sources",
                )
    given = {key: value for key, value in shared.items() if key in sources[0].model_fields_set}  # what is not stays so
    return tuple(source.model_copy(update=given) for source in sources)


class SynthConfig(Section):
    """Write synthetic polyp tiles in MHIST's layout."""

    root: str = setting(..., "folder to write; also DIR", path=True, min_length=1)
    count: int = setting(1000, "number of tiles", ge=4, le=1_000_000)
    size_px: int = setting(224, "side of a tile, pixels", ge=32, le=1024)
    seed: int = setting(0, "seed of the tiles", ge=0, lt=SEEDS)
    ssa_fraction: float = setting(0.5, "fraction of SSA tiles", gt=0, lt=1)
    test_fraction: float = setting(0.3, "fraction of the slides in the test partition", gt=0, lt=1)
    progress: bool = setting(True, "show progress bars")
