"""GeoJSON for QuPath and from it: its rules (T30), the corner it counts from (T9), outlines, shares of the tiles."""

from __future__ import annotations

import gzip
import itertools
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from sscl.slides.coverage import Polygon, coverage_of
from sscl.slides.geojson import Region, account_of, read_annotations, write_regions, write_tiles
from sscl.slides.outlines import outlines
from sscl.slides.records import Slide, SlideError

COLOURS = {"HP": (38, 115, 140), 'a "b": <c>': (217, 95, 2)}
SLIDE = Slide(
    path="/s/a.svs", name="a.svs", width=4000, height=3000, mpp=0.5, mpp_from="aperio.MPP",
    bounds=(137, 91, 3800, 2900), levels=(), reader="jpeg", vendor="aperio", quickhash="1f", size=1, mtime_ns=1,
)  # fmt: skip


def inside(ring: Any, points: Any) -> Any:
    """Whether points (n, 2) lie in a closed ring, by the textbook's ray to the right."""
    found = np.zeros(len(points), bool)
    for (x0, y0), (x1, y1) in itertools.pairwise(ring):
        if y0 != y1:
            crosses = (y0 <= points[:, 1]) != (y1 <= points[:, 1])
            found ^= crosses & (points[:, 0] < x0 + (points[:, 1] - y0) / (y1 - y0) * (x1 - x0))
    return found


def of_qupath(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, once each keeps the rules of QuPath's reader."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    content = json.loads(text)
    assert content["type"] == "FeatureCollection"
    for one in content["features"]:
        told = one["properties"]
        assert one["type"] == "Feature"
        assert str(uuid.UUID(one["id"])) == one["id"]
        assert told["objectType"] in ("tile", "annotation")
        if "classification" in told:
            assert set(told["classification"]) == {"name", "color"}
            assert [type(part) for part in told["classification"]["color"]] == [int] * 3
        assert all(type(value) is float and np.isfinite(value) for value in told["measurements"].values())
        shape = one["geometry"]
        polygons = {"Polygon": [shape["coordinates"]], "MultiPolygon": shape["coordinates"]}[shape["type"]]
        assert all(ring[0] == ring[-1] and len(ring) >= 4 for rings in polygons for ring in rings)
    return list(content["features"])


# --- out ---


def test_tiles_keep_the_rules_of_qupath_and_count_from_the_scanned_area(tmp_path: Path) -> None:
    xy = np.array([[137, 91], [580, 534], [1023, 91]], np.int32)
    probability = np.array([0.123456, np.nan, 1.0])
    words: Any = {"side": 443.2, "labels": ["HP", None, 'a "b": <c>'], "colours": COLOURS}
    for name in ("t.geojson", "t.geojson.gz", "again.geojson.gz"):
        write_tiles(tmp_path / name, SLIDE, xy, **words, measurements={"p: SSA": probability, "n": probability * 0 + 1})
    first, second, third = of_qupath(tmp_path / "t.geojson")
    assert of_qupath(tmp_path / "t.geojson.gz") == [first, second, third]
    assert (tmp_path / "t.geojson.gz").read_bytes() == (tmp_path / "again.geojson.gz").read_bytes()
    # T8, T9: x is not y, and the corner of the scanned area is 0, 0.
    assert first["geometry"]["coordinates"] == [[[0, 0], [443, 0], [443, 443], [0, 443], [0, 0]]]
    assert third["geometry"]["coordinates"][0][2] == [886 + 443, 443]
    assert first["properties"]["measurements"] == {"p: SSA": 0.1235, "n": 1.0}
    assert first["properties"]["classification"] == {"name": "HP", "color": [38, 115, 140]}
    assert second["properties"] == {"objectType": "tile", "measurements": {}}  # not finite: left out
    assert third["properties"]["classification"]["name"] == 'a "b": <c>'


def test_ids_are_those_of_slide_and_place(tmp_path: Path) -> None:
    def ids(slide: Slide, xy: list[list[int]]) -> list[str]:
        words: Any = {"side": 100, "labels": [None] * len(xy), "measurements": {}, "colours": {}}
        write_tiles(tmp_path / "t.geojson", slide, np.array(xy), **words)
        return [one["id"] for one in of_qupath(tmp_path / "t.geojson")]

    one = ids(SLIDE, [[1, 2], [2, 1], [200, 1]])
    assert len(set(one)) == 3
    assert ids(SLIDE.model_copy(update={"path": "/elsewhere/a.svs"}), [[200, 1], [1, 2]]) == [one[2], one[0]]
    assert not set(one) & set(ids(SLIDE.model_copy(update={"quickhash": "2e"}), [[1, 2], [2, 1]]))


def test_many_tiles_are_one_file(tmp_path: Path) -> None:
    xy = np.stack(np.meshgrid(np.arange(50) * 60, np.arange(41) * 60), -1).reshape(-1, 2)  # more than a block, not two
    share = np.random.default_rng(0).random(len(xy))
    words: Any = {"side": 60, "labels": ["HP"] * len(xy), "measurements": {"p": share}, "colours": COLOURS}
    write_tiles(tmp_path / "t.geojson.gz", SLIDE, xy, **words)
    found = of_qupath(tmp_path / "t.geojson.gz")
    assert [one["properties"]["measurements"]["p"] for one in found] == pytest.approx(share, abs=5e-5)
    assert [one["geometry"]["coordinates"][0][0] for one in found] == (xy - (137, 91)).tolist()
    write_tiles(tmp_path / "none.geojson", SLIDE, xy[:0], side=60, labels=[], measurements={}, colours={})
    assert of_qupath(tmp_path / "none.geojson") == []


@pytest.mark.parametrize("seed", range(6))
def test_outlines_are_those_of_the_cells(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = rng.random((9, 12)) < (0.3, 0.5, 0.6, 0.75, 0.9, 1.0)[seed]
    x_edges, y_edges = np.cumsum(rng.integers(3, 9, 13)), np.cumsum(rng.integers(3, 9, 10))
    regions = outlines(cells, x_edges, y_edges)
    assert len(regions) == ndimage.label(cells, np.ones((3, 3)))[1]
    polygons = [rings for region in regions for rings in region]
    assert len(polygons) == ndimage.label(cells)[1]
    centres = np.stack(np.meshgrid(x_edges[:-1] + np.diff(x_edges) / 2, y_edges[:-1] + np.diff(y_edges) / 2), -1)
    depth = sum(
        sum(inside(ring, centres.reshape(-1, 2)) * (1 if place == 0 else -1) for place, ring in enumerate(rings))
        for rings in polygons
    )
    assert np.array_equal(depth, cells.ravel())
    area = np.outer(np.diff(y_edges), np.diff(x_edges))[cells].sum()
    signed = [[(r[:-1, 0] * r[1:, 1] - r[1:, 0] * r[:-1, 1]).sum() / 2 for r in rings] for rings in polygons]
    assert sum(map(sum, signed)) == area
    for (outline, *holes), rings in zip(signed, polygons, strict=True):
        assert outline > 0
        assert all(hole < 0 for hole in holes)
        for ring in rings:
            assert np.array_equal(ring[0], ring[-1])
            assert len(np.unique(ring[:-1], axis=0)) == len(ring) - 1  # it does not touch itself
            steps = np.diff(np.vstack([ring, ring[1:2]]), axis=0)
            assert ((steps[:, 0] == 0) != (steps[:, 1] == 0)).all()
            assert ((steps[1:, 0] == 0) != (steps[:-1, 0] == 0)).all()  # no corner on a straight line


def test_regions_come_back_where_they_were(tmp_path: Path) -> None:
    """Cells, outlines, GeoJSON, annotations, shares of the tiles: the same cells, and holes are none."""
    cells = ndimage.gaussian_filter(np.random.default_rng(1).random((12, 15)), 0.8) > 0.5
    cells[:3, :3], cells[3:8, 3:8], cells[5, 5] = np.eye(3), True, False  # corners that meet, and a hole
    x_edges, y_edges = np.rint(137 + np.arange(16) * 223.7).astype(int), np.rint(91 + np.arange(13) * 223.7).astype(int)
    regions = [Region("HP", polygons, {"cells": 1.0}) for polygons in outlines(cells, x_edges, y_edges)]
    write_regions(tmp_path / "r.geojson", SLIDE, regions, colours=COLOURS)
    written = of_qupath(tmp_path / "r.geojson")
    assert len({one["id"] for one in written}) == len(regions)
    assert {one["geometry"]["type"] for one in written} == {"Polygon", "MultiPolygon"}
    found = read_annotations(tmp_path / "r.geojson", SLIDE)
    assert found.passed_over == {}
    expected = [ring for region in regions for rings in region.polygons for ring in rings]
    assert any(len(polygon.rings) > 1 for polygon in found.polygons)
    got = [ring for polygon in found.polygons for ring in polygon.rings]
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
    xy = np.stack(np.meshgrid(x_edges[:-1], y_edges[:-1]), -1).reshape(-1, 2)
    shares = coverage_of(found.polygons, xy, side=223.7, classes=["HP", "SSA"])
    assert np.abs(shares - np.stack([cells.ravel(), np.zeros(cells.size)], 1)).max() < 0.01


# --- shares ---


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def polygon(label: str, *rings: Any) -> Polygon:
    return Polygon(label, tuple(np.array(ring, float) for ring in rings))


@pytest.mark.parametrize(
    ("shapes", "share"),
    [
        ([polygon("a", square(0, 0, 200))], 1),
        ([polygon("a", square(300, 0, 50))], 0),
        ([polygon("a", square(25, 0, 100))], 0.75),
        ([polygon("a", square(0, 37, 100))], 0.63),
        ([polygon("a", [[0, 0], [100, 0], [0, 100], [0, 0]])], 0.5),
        ([polygon("a", square(-50, -50, 300), square(20, 20, 50))], 0.75),
        ([polygon("a", square(-50, -50, 300), square(20, 20, 50)[::-1])], 0.75),
        ([polygon("a", square(0, 0, 60)), polygon("a", square(40, 0, 60))], 0.6),  # what lies in both counts once
        ([polygon("a", square(0, 0, 60)), polygon("b", square(40, 0, 60))], 0.36),
        ([polygon("a", square(0, 0, 100), square(20, 20, 50)), polygon("a", square(20, 20, 50))], 1),
        ([polygon("a", [[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]])], 0.5),  # crosses itself
        ([], 0),
    ],
)
def test_shares_of_simple_shapes(shapes: list[Polygon], share: float) -> None:
    xy = np.array([[700, 900], [0, 0], [0, 200]])
    found = coverage_of(shapes, xy, side=100, classes=["a"])
    assert found.shape == (3, 1)
    assert found[1, 0] == pytest.approx(share, abs=0.005)


def test_shares_are_those_of_many_points() -> None:
    rng = np.random.default_rng(3)
    ring = rng.random((24, 2)) * 1000
    ring = np.vstack([ring, ring[:1]])  # crosses itself again and again
    hole = np.array(square(400, 420, 130))
    xy = rng.integers(-100, 950, (25, 2))
    offsets = np.stack(np.meshgrid(np.arange(120) + 0.5, np.arange(120) + 0.5), -1).reshape(-1, 2)
    found = coverage_of([polygon("b", ring, hole)], xy, side=120, classes=["a", "b"])
    for place, share in zip(xy, found, strict=True):
        points = place + offsets
        assert share == pytest.approx([0, (inside(ring, points) ^ inside(hole, points)).mean()], abs=0.01)


# --- in ---


def feature(shape: Any, label: Any = "HP", **told: Any) -> dict[str, Any]:
    told = {"objectType": "annotation", "classification": label, **told}
    return {"type": "Feature", "geometry": shape, "properties": told}


def area(*rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def test_annotations_as_versions_of_qupath_and_other_programs_write_them(tmp_path: Path) -> None:
    ring = square(10, 20, 500)
    objects = [
        feature(area(ring), {"name": "HP", "color": [1, 2, 3]}),
        feature(area(ring), {"name": "HP", "colorRGB": -377282}),  # before 0.4
        feature(area(ring), {"names": ["Tumor", "Positive"], "color": [1, 2, 3]}),
        feature(area(ring), {"parentClass": {"name": "Tumor", "colorRGB": -1}, "name": "Positive", "colorRGB": -1}),
        feature({"type": "MultiPolygon", "coordinates": [[ring], [ring]]}, "SSA", isLocked=True),
        feature({"type": "GeometryCollection", "geometries": [area(ring), {"type": "Point", "coordinates": [1, 1]}]}),
        feature(area(ring), None),
        feature(area(ring), {"name": "Ignore*", "color": [180, 180, 180]}),
        feature({"type": "Point", "coordinates": [1, 2]}),
        feature({"type": "LineString", "coordinates": [[1, 2], [3, 4]]}),
        feature(area(ring), {"name": "HP", "color": [1, 2, 3]}, objectType="tile"),
        {
            "type": "Feature",
            "id": "PathAnnotationObject",
            "geometry": area(ring),
            "properties": {"classification": "x"},
        },
        {"type": "Feature", "id": "PathTileObject", "geometry": area(ring), "properties": {"classification": "x"}},
        feature(area(ring), "parent", measurements={"a": float("nan")}, childObjects=[feature(area(ring), "child")]),
        feature(area(square(5000, 0, 9))),
    ]
    path = tmp_path / "a.geojson"
    for content in ({"type": "FeatureCollection", "features": objects}, objects):
        for pack in (bytes, gzip.compress):
            path.write_bytes(pack(b"\xef\xbb\xbf" + json.dumps(content).encode()))
            found = read_annotations(path, SLIDE)
            labels = [polygon.label for polygon in found.polygons]
            assert labels == [
                "HP",
                "HP",
                "Tumor: Positive",
                "Tumor: Positive",
                "SSA",
                "SSA",
                "HP",
                "x",
                "parent",
                "child",
            ]
            assert sorted(found.passed_over.values()) == [1, 1, 1, 2, 2]
            assert "2 points or lines" in account_of(found.passed_over)
            assert found.polygons[0].rings[0].tolist() == [[x + 137, y + 91] for x, y in ring]
    path.write_text(json.dumps(objects[0]))
    whole = SLIDE.model_copy(update={"bounds": None})
    assert read_annotations(path, whole).polygons[0].rings[0].tolist() == ring


FAULTS: dict[str, tuple[Any, str]] = {
    "empty": (b"", "no GeoJSON"),
    "text": (b"no json", "is text"),
    "page": (b"<!DOCTYPE html><html>", "web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS"),
    "zip": (b"PK\3\4" + bytes(40), "ZIP archive"),
    "half a gzip": (gzip.compress(b"{}" * 999)[:-9], "too early"),
    "broken gzip": (b"\x1f\x8b\x08\0" + b"\xff" * 40, "damaged gzip"),
    "half": (b'{"type": "FeatureColl', "no GeoJSON"),
    "number": (b"3", "is text"),
    "numbers": (b"[1, 2]", "no GeoJSON of features"),
    "other": ({"type": "Topology"}, "no GeoJSON of features"),
    "NaN": ([feature(area([[0, 0], [1, 0], [1, float("nan")], [0, 0]]))], "annotation 1 (HP): has a corner at 1, nan"),
    "far": ([feature(area([[0, 0], [1e300, 0], [1, 1], [0, 0]]))], "annotation 1 (HP): has a corner at 1e+300"),
    "line break": ([feature(area(square(0, 0, 9)), "a\nb")], "annotation 1 (a\\nb): its class"),
    "nothing packed": (gzip.compress(b""), "is empty"),
    "words": ([feature(area([["0", "0"], [1, 0], [1, 1], [0, 0]]))], "annotation 1 (HP): has a ring"),
    "open": ([feature(area(square(0, 0, 9))), feature(area(square(1, 2, 9)[:-1]))], "annotation 2 (HP): has an open"),
    "open hole": ([feature(area(square(0, 0, 9), square(1, 2, 3)[1:]))], "annotation 1 (HP): has an open ring"),
    "two points": ([feature(area([[0, 0], [1, 0], [0, 0]]))], "four or more"),
    "no rings": ([feature(area())], "has no rings"),
    "no coordinates": ([feature({"type": "Polygon"})], "has no rings"),
    "no class": ([feature(area(square(0, 0, 9)), None)] * 2, "2 annotations without a class"),
    "nothing": ({"type": "FeatureCollection", "features": []}, "nothing in it"),
    "another slide": ([feature(area(square(5000, 0, 9)))], "lie outside of a.svs"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_line_with_the_file(tmp_path: Path, name: str) -> None:
    content, said = FAULTS[name]
    path = tmp_path / "a\n.geojson"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(SlideError) as caught:
        read_annotations(path, SLIDE)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{tmp_path}/a")
    assert said in line
    assert "; " in line  # what to do
