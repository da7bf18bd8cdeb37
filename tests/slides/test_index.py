"""The index folder: what is written is what is read, and a file of another form is named."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from sscl.slides.index import Labels, SlideEntry, digest, is_index, read_index, write_slide, write_table
from sscl.slides.records import Level, Scaling, Slide


def entry(name: str, *, tiles: int = 2, status: str = "tiles", reader: str = "jpeg", path: str = "/s") -> SlideEntry:
    slide = Slide(
        path=f"{path}/{name}", name=name, width=900, height=700, mpp=0.25, mpp_from="aperio.MPP", bounds=(1, 2, 3, 4),
        levels=(Level(width=900, height=700, factor=1.0, exact=True),), reader=reader, vendor="aperio",
        quickhash=f"hash of {name}", size=5, mtime_ns=2**62,
    )  # fmt: skip
    return SlideEntry.model_validate(
        {
            "name": name, "path": slide.path, "status": status, "reason": None, "notes": (), "mpp": 0.5, "size_px": 64,
            "slide": slide, "scaling": Scaling(0.5, 64, 0, 128, 128.0, True), "tissue": 0.25, "tiles": tiles,
            "grid": digest(grid(tiles)) if tiles else "", "parameters": "p",
        }
    )  # fmt: skip


def grid(tiles: int) -> np.ndarray:
    return np.arange(3 * tiles, dtype=np.int32).reshape(-1, 3)


def index(folder: Path, *entries: SlideEntry, labels: dict[str, Labels] | None = None) -> Path:
    (folder / "slides").mkdir(parents=True)
    (folder / "env.json").write_text('{"sscl": "0"}')
    (folder / "config.yaml").write_text("mpp: 0.5\nsize_px: 64\n")
    for one in entries:
        write_slide(folder, one, grid=grid(one.tiles) if one.tiles else None, preview=b"jpeg")
    write_table(folder, sorted(entries, key=lambda one: one.name), labels or {})
    return folder


def test_what_is_written_is_read(tmp_path):
    labels = {"sub/a.svs": Labels(patient="p1", label="SSA", split="test")}
    others = [entry("c.svs", tiles=0, status="no tissue"), entry("d.svs", status="gone")]
    folder = index(tmp_path / "i", entry("sub/a.svs", tiles=3), entry("b.svs"), *others, labels=labels)
    found = read_index(folder)
    assert [one.slide.name for one in found.slides] == ["b.svs", "sub/a.svs"]
    assert found.slides[1].slide == entry("sub/a.svs").slide
    assert found.slides[1].scaling == Scaling(0.5, 64, 0, 128, 128.0, True)
    assert (found.slides[1].patient, found.slides[1].label, found.slides[1].split) == ("p1", "SSA", "test")
    assert (found.slides[0].patient, found.mpp, found.size_px, len(found)) == (None, 0.5, 64, 5)
    assert [one.status for one in found.others] == ["no tissue", "gone"]
    np.testing.assert_array_equal(found.grid(1), grid(3))
    assert found.grid(1).dtype == np.int32


def test_the_table_has_a_value_for_each_column(tmp_path):
    noted = entry("a.svs").model_copy(update={"notes": ("2% pen", "x")})
    failed = noted.model_copy(update={"name": "b.svs", "slide": None, "scaling": None, "status": "failed", "notes": ()})
    folder = index(tmp_path / "i", noted, failed)
    with (folder / "slides.csv").open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file, strict=True)
    assert None not in first
    assert None not in {*first.values(), *second.values()}
    shown = ("reader", "icc", "notes", "path", "level_factors", "level", "resampled", "slide_mpp", "tissue_percent")
    assert [first[name] for name in shown] == ["jpeg", "no", "2% pen; x", "/s/a.svs", "1", "0", "yes", "0.25", "25.0"]
    assert (second["path"], second["notes"], second["reader"]) == ("/s/a.svs", "", "")


def test_the_fingerprint_is_of_the_pixels_that_are_read(tmp_path):
    """T19, T23: another file, two readers, two fingerprints; another folder, or label, is none."""
    other = entry("a.svs")
    assert other.slide is not None
    other = other.model_copy(update={"slide": other.slide.model_copy(update={"size": 6})})  # its level 0 alone
    prints = {
        name: read_index(index(tmp_path / name, *entries, labels=labels)).fingerprint
        for name, entries, labels in (
            ("one", [entry("a.svs"), entry("b.svs")], {}),
            ("moved", [entry("a.svs", path="/t"), entry("b.svs", path="/t")], {"a.svs": Labels(label="x")}),
            ("reader", [entry("a.svs", reader="openslide"), entry("b.svs")], {}),
            ("tiles", [entry("a.svs", tiles=1), entry("b.svs")], {}),
            ("fewer", [entry("a.svs")], {}),
            ("size", [other, entry("b.svs")], {}),
        )
    }
    assert prints.pop("moved") == prints["one"]
    assert len(set(prints.values())) == 5


def test_a_folder_that_is_no_whole_index_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        read_index(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    assert not is_index(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="other: is no index"):
        read_index(tmp_path / "other")
    folder = index(tmp_path / "i", entry("a.svs"))
    table = (folder / "slides.csv").read_text()
    (folder / "slides.csv").write_text(table.replace("a.svs,", "b.svs,", 1))
    with pytest.raises(ValueError, match=r"slides\.csv: differs"):
        read_index(folder)
    (folder / "slides.csv").unlink()
    assert is_index(folder)
    with pytest.raises(FileNotFoundError, match="unfinished"):
        read_index(folder)


def test_a_damaged_file_is_named(tmp_path):
    folder = index(tmp_path / "i", entry("a.svs"))
    np.save(folder / "grids" / "a.svs.npy", grid(5))
    with pytest.raises(ValueError, match=r"a\.svs\.npy: has other tiles"):
        read_index(folder).grid(0)
    (folder / "grids" / "a.svs.npy").write_bytes(b"x" * 200)
    with pytest.raises(ValueError, match=r"a\.svs\.npy: cannot be read"):
        read_index(folder).grid(0)
    path = folder / "slides" / "a.svs.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tiles": "many"}))
    with pytest.raises(ValueError, match=r"a\.svs\.json: tiles"):
        read_index(folder)


@pytest.mark.parametrize("text", ["mpp: 0.25\nsize_px: 64", "mpp: 0.5\nsize_px: 32", "mpp: [", "size_px: 64", "- 1"])
def test_a_scale_other_than_that_of_the_tiles_is_refused(tmp_path, text):
    """data.mpp is taken from config.yaml: one that was edited would give a checkpoint a wrong scale."""
    folder = index(tmp_path / "i", entry("a.svs"))
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        read_index(folder)


def test_an_index_without_tiles_is_refused(tmp_path):
    folder = index(tmp_path / "i", entry("a.svs", tiles=0, status="no tissue"))
    with pytest.raises(ValueError, match="no slide with tiles"):
        read_index(folder)
