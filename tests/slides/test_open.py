"""What a slide's file says, and in one line why something is no slide."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile

from sscl.slides.open import is_slide, open_slide
from sscl.slides.records import SlideError
from sscl.slides.write import reduced, write_levels


def opened(path: Path, **given):
    return open_slide(path, name=path.name, **given)


def refused(path: Path, **given) -> str:
    """Return the line, which begins with the path."""
    with pytest.raises(SlideError) as error:
        opened(path, **given)
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith(str(path))
    return line.removeprefix(str(path))


def test_the_facts_are_those_of_openslide(field_svs):
    slide, reference = opened(field_svs), openslide.OpenSlide(field_svs)
    assert (slide.width, slide.height) == reference.dimensions
    assert tuple((level.width, level.height) for level in slide.levels) == reference.level_dimensions
    assert [level.factor for level in slide.levels] == [1, 4, 16]
    assert (slide.mpp, slide.mpp_from) == (0.5, "aperio.MPP")
    assert slide.quickhash == reference.properties["openslide.quickhash-1"]
    assert (slide.reader, slide.vendor, slide.icc, slide.notes) == ("jpeg", "aperio", False, ())
    assert (slide.size, slide.mtime_ns) == (field_svs.stat().st_size, field_svs.stat().st_mtime_ns)


def test_a_slide_survives_json(field_svs):
    slide = opened(field_svs)
    assert type(slide).model_validate_json(slide.model_dump_json()) == slide


def test_nothing_of_the_file_is_kept_but_its_scale(field_slide):
    """T29: the label is not read, and no property is kept."""
    label = np.full((60, 90, 3), 200, np.uint8)
    slide = opened(field_slide(label=label))
    kept = slide.model_dump_json(exclude={"path", "name"})
    assert "DRAWN" not in kept  # the scanner's number, in aperio.ScanScope ID
    assert "aperio." not in kept.replace("aperio.MPP", "")
    assert slide.levels == opened(field_slide("plain.svs")).levels[:3] or len(slide.levels) == 3


@pytest.mark.parametrize(
    ("name", "mpp", "found"),
    [
        ("a.svs", None, None),  # T1
        ("a.tif", None, None),
        ("a.svs", 0.25, 0.25),
        ("a.tif", 0.25, 0.25),
        ("a.tif", (0.25, 0.254), 0.252),
        ("a.tif", 352.8, None),  # T2: 72 dpi
        ("a.tif", 11.0, None),
        ("a.svs", 11.0, 11.0),  # a vendor's own field
        ("a.svs", 352.8, None),
        ("a.svs", 0.01, None),
    ],
)
def test_the_scale_is_the_files_within_bounds(field, field_slide, name, mpp, found):
    slide = opened(field_slide(name, levels=field.levels[2:], mpp=mpp))
    assert slide.mpp == (found if found is None else pytest.approx(found, rel=1e-4))
    assert bool(slide.mpp_from) == (mpp is not None)


def test_the_scale_given_wins_over_the_files(field_svs):
    """T1."""
    slide = opened(field_svs, mpp=0.3, mpp_from="slides_csv")
    assert (slide.mpp, slide.mpp_from) == (0.3, "slides_csv")


def test_pixels_that_are_not_square_are_refused_with_both(field, field_slide):
    """T3."""
    path = field_slide("a.tif", levels=field.levels[2:], mpp=(0.25, 0.5))
    line = refused(path)
    assert "0.25" in line
    assert "0.5" in line
    assert opened(path, mpp=0.25).mpp == 0.25


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>login</body></html>", "HTML"),
        (b"hello\n", "text"),
        (b"PK\x03\x04" + bytes(60), "ZIP"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS"),
        (bytes(500), "zeros"),
        (bytes(range(256)) * 4, "openslide"),
        (b"II*\x00" + bytes(100), "TIFF"),
    ],
)
def test_what_is_no_slide_is_told_so_in_a_line(tmp_path, content, word):
    """T17, T38."""
    path = tmp_path / "a.svs"
    path.write_bytes(content)
    assert word in refused(path)


def test_what_is_no_file_is_told_so_in_a_line(tmp_path):
    """T17."""
    (tmp_path / "folder.svs").mkdir()
    os.mkfifo(tmp_path / "pipe.svs")
    (tmp_path / "loop.svs").symlink_to("loop.svs")
    (tmp_path / "dead.svs").symlink_to("nowhere")
    words = {"folder": "folder", "pipe": "named pipe", "loop": "link", "dead": "nowhere", "none": "no such"}
    assert [name for name, word in words.items() if word not in refused(tmp_path / f"{name}.svs")] == []
    for name in ("nul\0.svs", os.fsdecode(b"\xff.svs")):
        with pytest.raises(SlideError):
            opened(tmp_path / name)


@pytest.mark.parametrize("missing", [150, 300, 2_000, 100_000])
def test_a_truncated_slide_is_told_so(field_svs, tmp_path, missing):
    """T17: also where only a smaller level is lost, which openslide does not notice."""
    path = tmp_path / "a.svs"
    path.write_bytes(field_svs.read_bytes()[:-missing])
    assert "truncated" in refused(path)


def test_tiles_beyond_the_end_are_truncation(field_slide):
    """T17: a directory before the data, as BigTIFF writers and downloads that stopped have it."""
    path = field_slide("a.tif")
    data = bytearray(path.read_bytes())
    (table,) = struct.unpack_from("<I", data, place_of(data, 324))
    struct.pack_into("<I", data, table, len(data) + 1000)
    path.write_bytes(data)
    assert "truncated" in refused(path)


def place_of(data: bytes, tag: int) -> int:
    """Return where the value of a tag of the first page stands."""
    (page,) = struct.unpack_from("<I", data, 4)
    (number,) = struct.unpack_from("<H", data, page)
    return next(
        page + 2 + 12 * i + 8 for i in range(number) if struct.unpack_from("<H", data, page + 2 + 12 * i) == (tag,)
    )


@pytest.mark.parametrize("width", [0, 3_000, 100_000, 3_000_000, 2**31])
def test_a_size_that_cannot_be_is_refused(field_slide, width):
    path = field_slide("a.tif")
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, place_of(data, 256), width)
    path.write_bytes(data)
    refused(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_a_plain_image_is_told_so(tmp_path, kind):
    """T34."""
    path = tmp_path / "a.svs"
    pixels = np.zeros((300, 200, 3), np.uint8)
    if kind == "TIFF":
        tifffile.imwrite(path, pixels, photometric="rgb")
    else:
        path.write_bytes(cv2.imencode(f".{kind.lower()}", pixels)[1].tobytes())
    line = refused(path)
    assert kind in line
    assert "data.source=folder" in line


def test_smaller_levels_in_subifds_are_found(field, field_slide):
    """T35: openslide sees level 0 alone."""
    path = field_slide("a.tif", subifds=True)
    assert openslide.OpenSlide(path).level_count == 1
    slide = opened(path)
    assert [(level.width, level.factor) for level in slide.levels] == [(2000, 1), (500, 4), (125, 16)]
    assert all(level.exact for level in slide.levels)


def test_smaller_levels_in_subifds_that_cannot_be_read_are_told(field, tmp_path):
    """T35; the scale of an OME-TIFF is that of its description."""
    path, pixels = tmp_path / "a.ome.tif", field.pixels[:600, :600]
    with tifffile.TiffWriter(path, ome=True) as file:
        how = {"tile": (256, 256), "compression": "zlib", "photometric": "rgb"}
        size = {"axes": "YXS", "PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.25}
        file.write(pixels, subifds=1, metadata=size, **how)
        file.write(reduced(pixels, 2), subfiletype=1, **how)
    slide = opened(path)
    assert (slide.reader, len(slide.levels)) == ("openslide", 1)
    assert ["openslide" in slide.notes[0], "1 smaller level" in slide.notes[1]] == [True, True]
    assert (slide.mpp, slide.mpp_from) == (0.25, "ome.PhysicalSizeX")


def test_a_colour_profile_is_recorded_and_not_applied(field, tmp_path):
    """T33."""
    from PIL import ImageCms

    path, pixels = tmp_path / "a.tif", np.ascontiguousarray(field.pixels[:512, :512])
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", iccprofile=profile)
    assert opened(path).icc
    read = np.asarray(openslide.OpenSlide(path).read_region((0, 0), 0, (512, 512)).convert("RGB"))
    assert np.array_equal(read, pixels)


def test_a_file_that_openslide_opens_and_cannot_read_keeps_its_message_in_a_line(field_slide):
    """T38: an unknown compression."""
    path = field_slide("a.tif")
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, place_of(data, 259), 52479)
    path.write_bytes(data)
    assert "52479" in refused(path)


def test_slides_are_known_by_their_names(tmp_path):
    names = {"a.svs": True, "b.TIFF": True, "c.ndpi": True, "d.czi": True, "e.png": False, "f.jpg": False, "g": False}
    for name in names:
        (tmp_path / name).touch()
    assert {name: is_slide(tmp_path / name) for name in names} == names
    assert not is_slide(tmp_path)
    assert "czi" in refused_format(tmp_path / "d.czi")


def refused_format(path: Path) -> str:
    path.write_bytes(b"ZISRAWFILE" + bytes(range(200)))
    return refused(path)


def test_without_the_extra_one_line_says_what_to_install(field_svs, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openslide.lowlevel", None)
    with pytest.raises(ValueError, match=r"openslide; .*sscl\[slides\]"):
        opened(field_svs)


def test_a_slide_of_one_small_tile_is_a_slide(field, tmp_path):
    path = tmp_path / "a.svs"
    write_levels(path, field.levels[2:], mpp=0.5)
    assert opened(path).width == 125
