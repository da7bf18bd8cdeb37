"""DICOM slides: a folder is one. They are written here with the least that openslide takes."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import openslide
import pytest

from sscl.slides.open import is_slide, open_slide
from sscl.slides.pixels import Readers
from sscl.slides.records import SlideError
from sscl.slides.scaling import scaling
from sscl.slides.write import EncodedLevel, encode_level, reduced

_WHOLE_SLIDE, _JPEG = "1.2.840.10008.5.1.4.1.1.77.1.6", "1.2.840.10008.1.2.4.50"
_LONG = ("OB", "SQ", "UT")


def _element(group: int, number: int, kind: str, value: bytes) -> bytes:
    value += (b"\0" if kind in ("UI", "OB") else b" ") * (len(value) % 2)
    size = struct.pack("<HI", 0, len(value)) if kind in _LONG else struct.pack("<H", len(value))
    return struct.pack("<HH", group, number) + kind.encode() + size + value


def _item(content: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def write_dicom(path: Path, level: EncodedLevel, *, mpp: float, series: str, number: int) -> None:
    """Write a level as a file of a series; the same series in one folder is one slide."""
    instance = f"{series}.{number}"
    meta = b"".join(
        [
            _element(2, 1, "OB", b"\0\1"),
            _element(2, 2, "UI", _WHOLE_SLIDE.encode()),
            _element(2, 3, "UI", instance.encode()),
            _element(2, 0x10, "UI", _JPEG.encode()),
            _element(2, 0x12, "UI", b"1.2.3"),
        ]
    )
    spacing = _element(0x28, 0x30, "DS", f"{mpp / 1000:.9g}\\{mpp / 1000:.9g}".encode())
    measures = _element(0x28, 0x9110, "SQ", _item(spacing))
    kind = b"ORIGINAL\\PRIMARY\\VOLUME\\NONE" if not number else b"DERIVED\\PRIMARY\\VOLUME\\RESAMPLED"
    frames = b"".join(_item(tile + b"\0" * (len(tile) % 2)) for tile in level.tiles)
    data = b"".join(
        [
            _element(8, 8, "CS", kind),
            _element(8, 0x16, "UI", _WHOLE_SLIDE.encode()),
            _element(8, 0x18, "UI", instance.encode()),
            _element(8, 0x60, "CS", b"SM"),
            _element(0x10, 0x10, "PN", b"Doe^Jane"),
            _element(0x20, 0x0D, "UI", b"1.2.3.4"),
            _element(0x20, 0x0E, "UI", series.encode()),
            _element(0x20, 0x9311, "CS", b"TILED_FULL"),
            _element(0x28, 2, "US", struct.pack("<H", 3)),
            _element(0x28, 4, "CS", b"YBR_FULL_422"),
            _element(0x28, 6, "US", struct.pack("<H", 0)),
            _element(0x28, 8, "IS", str(len(level.tiles)).encode()),
            _element(0x28, 0x10, "US", struct.pack("<H", level.tile_px)),
            _element(0x28, 0x11, "US", struct.pack("<H", level.tile_px)),
            _element(0x28, 0x100, "US", struct.pack("<H", 8)),
            _element(0x28, 0x101, "US", struct.pack("<H", 8)),
            _element(0x28, 0x102, "US", struct.pack("<H", 7)),
            _element(0x28, 0x103, "US", struct.pack("<H", 0)),
            _element(0x48, 6, "UL", struct.pack("<I", level.width)),
            _element(0x48, 7, "UL", struct.pack("<I", level.height)),
            _element(0x5200, 0x9229, "SQ", _item(measures)),
            struct.pack("<HH", 0x7FE0, 0x10) + b"OB" + struct.pack("<HI", 0, 0xFFFFFFFF),
            _item(b""),
            frames,
            struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
        ]
    )
    length = _element(2, 0, "UL", struct.pack("<I", len(meta)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(128) + b"DICM" + length + meta + data)


@pytest.fixture
def folder(field, tmp_path) -> Path:
    """Level 0 and one of factor 2, whose sizes divide."""
    pixels = np.ascontiguousarray(field.pixels[600:1112, 600:1000])
    for number, factor in enumerate((1, 2)):
        level = encode_level(reduced(pixels, factor), tile_px=128)
        write_dicom(tmp_path / "a" / f"{number}.dcm", level, mpp=0.25 * factor, series="1.2.826.1", number=number)
    return tmp_path / "a"


def test_a_folder_is_one_slide(folder):
    """T36."""
    assert is_slide(folder)
    assert not is_slide(folder.parent)
    slide, reference = open_slide(folder, name="a"), openslide.OpenSlide(folder / "0.dcm")
    assert [(level.width, level.height, level.factor) for level in slide.levels] == [(400, 512, 1), (200, 256, 2)]
    assert (slide.mpp, slide.mpp_from, slide.reader) == (0.25, "dicom", "openslide")
    assert slide.path == str(folder)
    assert slide.quickhash == reference.properties["openslide.quickhash-1"]
    assert slide.size == sum(file.stat().st_size for file in folder.iterdir())
    assert "Doe" in reference.properties["dicom.PatientName"]
    assert "Doe" not in slide.model_dump_json()  # T29


def test_its_tiles_and_overview_are_those_of_openslide(folder):
    """T36: of the folder, and of any of its files."""
    reference = openslide.OpenSlide(folder / "0.dcm")
    for path in (folder, folder / "1.dcm"):
        slide, readers = open_slide(path, name="a"), Readers()
        how, out = scaling(slide, mpp=0.5, size_px=64), np.zeros((1, 64, 64, 3), np.uint8)
        assert how.level == 1
        readers.tiles(slide, how, np.array([[100, 200]]), out)
        assert np.array_equal(out[0], np.asarray(reference.read_region((100, 200), 1, (64, 64)).convert("RGB")))
        assert readers.overview(slide, 8.0).rgb.shape == (16, 13, 3)
        readers.close()


def test_a_folder_of_two_slides_is_refused_in_a_line(folder):
    """T36."""
    level = encode_level(np.zeros((128, 128, 3), np.uint8), tile_px=128)
    write_dicom(folder / "2.dcm", level, mpp=0.25, series="1.2.826.2", number=0)
    with pytest.raises(SlideError, match=r"2\.dcm.*folder of its own") as error:
        open_slide(folder, name="a")
    assert "\n" not in str(error.value)


def test_a_folder_with_other_files_is_no_slide(folder):
    """T36: its DICOM files are slides then."""
    (folder / "b.svs").touch()
    assert not is_slide(folder)
    assert is_slide(folder / "0.dcm")


def test_a_folder_without_dicom_files_is_told_so(tmp_path):
    with pytest.raises(SlideError, match="folder"):
        open_slide(tmp_path, name="a")
