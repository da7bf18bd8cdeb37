"""GeoJSON as QuPath writes and reads it: tiles and regions out, annotations of people in.

QuPath counts pixels of level 0 from the corner of the scanned area (`Slide.bounds`); all functions here take and give
those from the file's own origin. Its reader gives up a whole file for one object that is not as it expects: a class has
a name and a colour as a list, rings are closed, measurements are a plain map of finite numbers (by its source, 0.4 on:
QuPathTypeAdapters, ROITypeAdapters, GsonTools, PathIO).
n tiles, m corners of a ring.
"""

from __future__ import annotations

import gzip
import json
import math
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sscl import writing
from sscl.file_kinds import binary_kind, text_kind
from sscl.places import printable
from sscl.reading import parse_json, read_bytes
from sscl.slides.coverage import Numbers, Polygon
from sscl.slides.outlines import Rings
from sscl.slides.records import Slide, SlideError
from sscl.words import count, listed, readable, short

Colours = Mapping[str, tuple[int, int, int]]  # of each class, 0-255
LARGEST = 512 * 2**20  # bytes of a file, unpacked; 100,000 tiles are 35 MB
DIGITS = 4  # of a tile's measurement, behind the point; regions have few, and 6 digits wherever the point is
_IDS = uuid.UUID("b3f0a1d6-5f2e-4c58-9a39-6f6f0f7c2c11")
_MANY = 1000  # objects that are packed at once


# --- written ---


@dataclass(frozen=True)
class Region:
    """An annotation: connected cells of one class.

    Attributes:
        label: the class. polygons: see `outlines`. measurements: by name.
    """

    label: str
    polygons: tuple[Rings, ...]
    measurements: Mapping[str, float] = field(default_factory=dict)


def write_tiles(
    path: Path,
    slide: Slide,
    xy: NDArray[np.integer],
    *,
    side: float,
    labels: Sequence[str | None],
    measurements: Mapping[str, NDArray[np.floating]],
    colours: Colours,
) -> None:
    """Write tiles as QuPath's tile objects, packed where the name ends with .gz.

    Args:
        xy: top-left corners, (n, 2). side: of a tile, pixels of level 0; corners are rounded.
        labels: the class of each tile; None: none.
        measurements: (n,) numbers by name; one that is not finite is left out of its tile.
        colours: of all classes among the labels.
    """
    left, top = _origin(slide)
    ends = np.rint(xy + side).astype(np.int64) - (left, top)
    starts = np.asarray(xy, np.int64) - (left, top)
    classes = {label: _class_of(label, colours) for label in set(labels)}
    names = [json.dumps(name) for name in measurements]
    rows = np.stack([np.asarray(values, np.float64) for values in measurements.values()], axis=1) if names else None
    numbers = [[]] * len(xy) if rows is None else rows.round(DIGITS).tolist()

    def objects() -> Iterator[str]:
        ids = _ids(slide, (f"{x},{y}" for x, y in np.asarray(xy).tolist()))
        parts = zip(ids, starts.tolist(), ends.tolist(), labels, numbers, strict=True)
        for identity, (x, y), (right, bottom), label, values in parts:
            pairs = zip(names, values, strict=True)
            told = ",".join([f"{name}:{value}" for name, value in pairs if abs(value) < math.inf])
            yield (
                f'{{"type":"Feature","id":"{identity}","geometry":{{"type":"Polygon","coordinates":[[[{x},{y}],'
                f"[{right},{y}],[{right},{bottom}],[{x},{bottom}],[{x},{y}]]]}},"
                f'"properties":{{"objectType":"tile"{classes[label]},"measurements":{{{told}}}}}}}'
            )

    _write(path, objects())


def write_regions(path: Path, slide: Slide | str, regions: Iterable[Region], *, colours: Colours) -> None:
    """Write regions as QuPath's annotations, packed where the name ends with .gz.

    Args:
        slide: or the name of one that was not opened and says no scanned area.
    """

    def objects() -> Iterator[str]:
        for region in regions:
            first = region.polygons[0][0][0].tolist()
            (identity,) = _ids(slide, [f"{region.label} {first[0]},{first[1]}"])
            rings = [[(ring - _origin(slide)).tolist() for ring in polygon] for polygon in region.polygons]
            one = len(rings) == 1
            shape = {"type": "Polygon" if one else "MultiPolygon", "coordinates": rings[0] if one else rings}
            told = {name: float(f"{x:.6g}") for name, x in region.measurements.items() if abs(x) < math.inf}
            yield (
                f'{{"type":"Feature","id":"{identity}","geometry":{json.dumps(shape, separators=(",", ":"))},'
                f'"properties":{{"objectType":"annotation"{_class_of(region.label, colours)},'
                f'"measurements":{json.dumps(told)}}}}}'
            )

    _write(path, objects())


def _ids(slide: Slide | str, places: Iterable[str]) -> Iterator[uuid.UUID]:
    """Return the same id for the same place of a slide each time, by which QuPath knows objects that it has."""
    of_slide = uuid.uuid5(_IDS, slide if isinstance(slide, str) else slide.quickhash or slide.name)
    return (uuid.uuid5(of_slide, place) for place in places)


def _class_of(label: str | None, colours: Colours) -> str:
    """Return the entry of an object's class, with the comma before it."""
    if label is None:
        return ""
    return f',"classification":{{"name":{json.dumps(label)},"color":{list(colours[label])}}}'


def _origin(slide: Slide | str) -> tuple[int, int]:
    """Return where QuPath counts from."""
    return (0, 0) if isinstance(slide, str) or slide.bounds is None else slide.bounds[:2]


def _write(path: Path, objects: Iterable[str]) -> None:
    with writing.replacing(path) as temporary, temporary.open("wb") as raw:
        # No time and no name in it: the same objects give the same bytes.
        packed = gzip.GzipFile("", "wb", 6, raw, mtime=0) if path.suffix == ".gz" else raw
        with packed as file:
            file.write(b'{"type":"FeatureCollection","features":[')
            lead, block = "\n", list[str]()
            for one in objects:
                block.append(one)
                if len(block) == _MANY:
                    file.write((lead + ",\n".join(block)).encode())
                    lead, block = ",\n", []
            file.write(((lead if block else "") + ",\n".join(block) + "\n]}\n").encode())


# --- read ---

# What QuPath's reader makes no annotation of: its words now, and those of its version 0.2, which were an object's id.
_DETECTIONS = frozenset(
    ["tile", "cell", "detection", "root", "tmaCore", "tma_core"]
    + ["PathTileObject", "PathCellObject", "PathDetectionObject", "PathRootObject", "TMACoreObject"]
)
_LIMIT_FOR = "a GeoJSON file; export the annotations alone, without detections"
_FARTHEST = 1e9  # pixels from the corner that a slide can have


@dataclass(frozen=True)
class Annotations:
    """What people have drawn on a slide.

    Attributes:
        polygons: with their classes, in pixels of level 0 from the file's own origin.
        passed_over: how many objects were not used, by what they are; `account_of` says it.
    """

    polygons: tuple[Polygon, ...]
    passed_over: Mapping[str, int]


class NoAreas(SlideError):
    """A file in which no area has a class: nobody has drawn on that slide."""


def read_annotations(path: Path, slide: Slide) -> Annotations:
    """Return the annotations of a slide that QuPath has exported, packed by gzip or not.

    Raises:
        NoAreas: no area with a class.
        SlideError: no GeoJSON; an area that is none; or areas of another slide.
        OSError: the file cannot be read.
    """
    name = printable(str(path))
    polygons: list[Polygon] = []
    passed = Counter[str]()
    for number, feature in enumerate(_features(path), start=1):
        reason = _unused(feature)
        if reason is not None:
            passed[reason] += 1
            continue
        label = _label(feature)
        for rings in _areas(feature["geometry"]):
            what = f"{name}: annotation {number} ({short(label, most=30)})"
            if printable(label) != label:
                raise SlideError(f"{what}: its class has a control character; rename it in QuPath")
            if not isinstance(rings, list) or not rings:
                raise SlideError(f"{what}: has no rings; export it from QuPath again")
            polygons.append(Polygon(label, tuple(_ring(what, ring) + _origin(slide) for ring in rings)))
    if not polygons:
        kinds = account_of(passed) or "nothing in it"
        raise NoAreas(f"{name}: has no area with a class ({kinds}); give annotations a class in QuPath, export again")
    inside = [polygon for polygon in polygons if _meets(polygon, slide)]
    if not inside:
        corners = np.concatenate([polygon.rings[0] for polygon in polygons])
        low, high = (f"{x:.0f}, {y:.0f}" for x, y in (corners.min(0), corners.max(0)))
        raise SlideError(
            f"{name}: all areas lie outside of {slide.name} ({low} to {high}; it has {slide.width} x {slide.height} "
            "pixels); take the file of this slide"
        )
    if len(inside) < len(polygons):
        passed[_BEYOND] += len(polygons) - len(inside)
    return Annotations(tuple(inside), dict(passed))


def first_of_class(path: Path, label: str) -> int | None:
    """Return the number of the first area of a class, from 1; None where the file has none, or cannot be read."""
    try:
        numbered = enumerate(_features(path), start=1)
        return next((at for at, feature in numbered if _unused(feature) is None and _label(feature) == label), None)
    except (OSError, ValueError):
        return None


_OTHER, _CLASSLESS, _LINE = "tile, cell or other detection", "annotation without a class", "point or line"
_IGNORED = "annotation of a class that QuPath ignores (with *)"
_BEYOND = "area outside of its slide"
_SEVERAL = {
    _OTHER: "tiles, cells or other detections",
    _CLASSLESS: "annotations without a class",
    _LINE: "points or lines",
    _IGNORED: "annotations of a class that QuPath ignores (with *)",
    _BEYOND: "areas outside of their slide",
}


def account_of(passed: Mapping[str, int]) -> str:
    """Return what was passed over in words, as in "1 point or line"; empty: nothing."""
    return listed([count(number, kind, _SEVERAL[kind]) for kind, number in passed.items()])


def _features(path: Path) -> list[dict[str, Any]]:
    name = printable(str(path))
    data = read_bytes(path, at_most=LARGEST, expected=_LIMIT_FOR)
    if data[:2] == b"\x1f\x8b":
        data = _unpacked(name, data)
    if not data.strip():
        raise SlideError(f"{name}: is empty, so no GeoJSON; copy it or export it from QuPath again")
    kind = binary_kind(data[:8]) or text_kind(data[:100])
    if kind is not None and not kind[0].startswith("JSON"):
        raise SlideError(f"{name}: is {kind[0]}, not GeoJSON; {kind[1]}")
    try:
        content = parse_json(data.decode("utf-8-sig"), any_number=True)  # QuPath writes measurements that are NaN
    except UnicodeDecodeError:
        raise SlideError(f"{name}: is no text in UTF-8, so not GeoJSON; export it from QuPath again") from None
    except ValueError as error:
        raise SlideError(f"{name}: is no GeoJSON ({error}); export it from QuPath again") from None
    if isinstance(content, dict):
        content = content.get("features") if content.get("type") == "FeatureCollection" else [content]
    features = [one for one in content if isinstance(one, dict)] if isinstance(content, list) else []
    if not isinstance(content, list) or len(features) < len(content) or any("geometry" not in one for one in features):
        raise SlideError(f"{name}: is JSON, but no GeoJSON of features; export it from QuPath again")
    return list(_with_children(features))


def _with_children(features: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield objects, each before those that QuPath has written into it."""
    for feature in features:
        yield feature
        told = _properties(feature)
        below = told.get("childObjects", told.get("children"))
        if isinstance(below, list):
            yield from _with_children(one for one in below if isinstance(one, dict) and "geometry" in one)


def _unpacked(name: str, data: bytes) -> bytes:
    packer = zlib.decompressobj(wbits=31)
    try:
        found = packer.decompress(data, LARGEST)
    except zlib.error as error:
        raise SlideError(f"{name}: is a damaged gzip file ({error}); export it from QuPath again") from None
    if packer.unconsumed_tail:
        raise SlideError(f"{name}: unpacked, is larger than {readable(LARGEST)}, the limit for {_LIMIT_FOR}")
    if not packer.eof:
        raise SlideError(f"{name}: is a gzip file that ends too early; copy or export it again")
    return found


def _properties(feature: Mapping[str, Any]) -> Mapping[str, Any]:
    found = feature.get("properties")
    return found if isinstance(found, dict) else {}


def _unused(feature: Mapping[str, Any]) -> str | None:
    """Return why an object is no area of a class; None where it is one."""
    told = _properties(feature)
    kinds = (told.get(key) for key in ("objectType", "object_type", "type"))
    kind = next((kind for kind in kinds if kind is not None), feature.get("id"))
    if isinstance(kind, str) and kind in _DETECTIONS:
        return _OTHER
    if not isinstance(feature["geometry"], dict) or not _areas(feature["geometry"]):
        return _LINE
    label = _label(feature)
    if not label:
        return _CLASSLESS
    return _IGNORED if label.endswith("*") else None  # as QuPath's own Ignore* and Region*


def _label(feature: Mapping[str, Any]) -> str:
    """Return the name of an object's class, "" where it has none; "A: B" of a class with a sub-class, as QuPath."""
    return _class_name(_properties(feature).get("classification"))


def _class_name(told: Any) -> str:
    if isinstance(told, dict) and isinstance(told.get("parentClass"), dict):  # before 0.4
        told = [part for part in (_class_name(told["parentClass"]), told.get("name")) if part]
    if isinstance(told, dict):
        told = told.get("name", told.get("names"))
    if isinstance(told, list):
        told = ": ".join(str(part) for part in told)
    return told.strip() if isinstance(told, str) else ""


def _areas(shape: Mapping[str, Any]) -> list[Any]:
    """Return the rings of each polygon of a shape; none of points and lines."""
    if shape.get("type") == "Polygon":
        return [shape.get("coordinates")]
    if shape.get("type") == "MultiPolygon":
        parts = shape.get("coordinates")
        return parts if isinstance(parts, list) else [None]
    if shape.get("type") == "GeometryCollection":
        parts = shape.get("geometries")
        shapes = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
        return [area for part in shapes for area in _areas(part)]
    return []


def _meets(polygon: Polygon, slide: Slide) -> bool:
    corners = polygon.rings[0]
    return bool((corners.min(0) < (slide.width, slide.height)).all() and (corners.max(0) > 0).all())


def _ring(what: str, ring: Any) -> Numbers:
    """Return the corners of a ring.

    Raises:
        SlideError: not finite numbers, too few, or not closed.
    """
    points = ring if isinstance(ring, list) else []
    fine = all(isinstance(point, list) and len(point) >= 2 for point in points)
    fine = fine and all(type(number) in (int, float) for point in points for number in point[:2])
    if not fine or len(points) < 4:
        raise SlideError(f"{what}: has a ring that is not a list of four or more points x, y; export it again")
    corners = np.array([point[:2] for point in points], np.float64)
    if not (np.abs(corners) < _FARTHEST).all():
        x, y = corners[~(np.abs(corners) < _FARTHEST).all(1)][0]
        raise SlideError(f"{what}: has a corner at {x:g}, {y:g}, which is no place on a slide; export it again")
    if not np.array_equal(corners[0], corners[-1]):
        first, last = (f"{x:g}, {y:g}" for x, y in (corners[0], corners[-1]))
        raise SlideError(
            f"{what}: has an open ring, from {first} to {last}; repeat its first point at the end, or export it again"
        )
    return corners
