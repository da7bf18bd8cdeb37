"""Pixels as other viewers show them, and the reason where there are none."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from sscl.data.decode import read_image
from sscl.data.files import pixels_of
from sscl.data.images import describe_changes, size_of
from sscl.data.jpeg import damage_in

SIDE = 32


def noise(side: int = SIDE, *, seed: int = 0) -> np.ndarray:
    draws = np.random.default_rng(seed).normal((210, 150, 190), 25, (side, side, 3))
    return np.clip(draws, 0, 255).astype(np.uint8)


def smooth(side: int = SIDE) -> np.ndarray:
    """A picture of no symmetry that JPEG hardly changes."""
    x, y = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    return (60 + 150 * np.stack([x, y, x * y], -1)).astype(np.uint8)


def read(path: Path, **options: Any) -> np.ndarray:
    return read_image(path, size_px=options.pop("size_px", SIDE), **options).pixels


def tiff(path: Path, samples: np.ndarray, **tags: Any) -> Path:
    """Write an uncompressed TIFF with the tags given by number, as in t284=2; what Pillow itself does not write."""
    order = ">" if samples.dtype.byteorder == ">" else "<"
    side, channels = samples.shape[0], 1 if samples.ndim == 2 else samples.shape[2]
    planes = np.moveaxis(samples, 2, 0) if tags.get("t284") == 2 else samples
    strips = channels if tags.get("t284") == 2 else 1
    data, bits = planes.tobytes(), samples.dtype.itemsize * 8
    entries = {256: side, 257: side, 258: [bits] * channels, 259: 1, 262: 2 if channels == 3 else 1, 277: channels}
    entries |= {278: side, 279: [len(data) // strips] * strips, 284: 1}
    entries |= {int(key[1:]): value for key, value in tags.items()}
    start = 1000
    entries[273] = [start + i * (len(data) // strips) for i in range(strips)]
    head = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(entries))
    extra, after = b"", 8 + 2 + 12 * len(entries) + 4
    for tag, value in sorted(entries.items()):
        values = value if isinstance(value, list) else [value]
        packed = struct.pack(f"{order}{len(values)}I", *values)
        head += struct.pack(f"{order}HHI", tag, 4, len(values))
        head += packed if len(values) == 1 else struct.pack(f"{order}I", after + len(extra))
        extra += packed if len(values) > 1 else b""
    path.write_bytes((head + bytes(4) + extra).ljust(start, b"\0") + data)
    return path


# --- depth ---


def test_the_samples_of_a_tiff_are_read_by_its_own_tags(tmp_path: Path) -> None:
    pixels = noise()
    np.testing.assert_array_equal(read(tiff(tmp_path / "a.tif", pixels)), pixels)
    np.testing.assert_array_equal(read(tiff(tmp_path / "b.tif", pixels, t284=2)), pixels)  # planes
    grey = np.repeat(pixels[..., :1], 3, axis=2)
    np.testing.assert_array_equal(read(tiff(tmp_path / "c.tif", pixels[..., 0])), grey)
    np.testing.assert_array_equal(read(tiff(tmp_path / "d.tif", pixels[..., 0], t262=0)), 255 - grey)  # 0 is white


@pytest.mark.parametrize(
    ("dtype", "channels", "tags", "what"),
    [
        ("<u2", 3, {}, "16-bit RGB"),
        (">u2", 3, {}, "16-bit RGB"),
        ("<u2", 3, {"t284": 2}, "16-bit RGB"),
        (">u2", 3, {"t284": 2}, "16-bit RGB"),
        ("<u2", 1, {}, "16-bit grey"),
        (">u2", 1, {}, "16-bit grey"),
        ("<u4", 1, {}, "32-bit grey"),
        ("<f4", 1, {"t339": 3}, "32-bit float grey"),
        ("<f4", 3, {"t339": [3, 3, 3]}, "32-bit float TIFF"),
        ("<f8", 1, {"t339": 3}, "64-bit float TIFF"),
        ("<i1", 1, {"t339": 2}, "8-bit signed"),
    ],
)
def test_more_than_8_bits_are_refused_by_name(
    tmp_path: Path, dtype: str, channels: int, tags: dict[str, Any], what: str
) -> None:
    samples = np.full((SIDE, SIDE, channels) if channels > 1 else (SIDE, SIDE), 100, dtype)
    with pytest.raises(ValueError, match=rf"x\.tif: .*{what}.*save it as .*8-bit RGB"):
        read(tiff(tmp_path / "x.tif", samples, **tags))


def test_deep_samples_of_other_formats_are_refused(tmp_path: Path) -> None:
    deep = noise().astype(np.uint16) * 257
    (tmp_path / "a.ppm").write_bytes(b"P6 32 32 65535\n" + deep.astype(">u2").tobytes())
    cv2.imwrite(str(tmp_path / "b.png"), deep)
    cv2.imwrite(str(tmp_path / "c.jp2"), deep)
    for name in ("a.ppm", "b.png", "c.jp2"):
        with pytest.raises(ValueError, match="is 16-bit RGB"):
            read(tmp_path / name)


# --- orientation ---


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_the_orientation_tag_means_the_same_in_every_format(tmp_path: Path, suffix: str) -> None:
    pixels = smooth()
    turned = [pixels, pixels[:, ::-1], pixels[::-1, ::-1], pixels[::-1]]  # 1 to 4 of EXIF 2.3, table 6
    turned += [picture.transpose(1, 0, 2) for picture in (pixels, pixels[::-1], pixels[::-1, ::-1], pixels[:, ::-1])]
    for tag, expected in enumerate(turned, 1):
        exif = Image.Exif()
        exif[274] = tag
        more = {"tiffinfo": {274: tag}} if suffix == "tif" else {"exif": exif, "quality": 100, "lossless": True}
        Image.fromarray(pixels).save(tmp_path / f"x.{suffix}", **more)
        found = read_image(tmp_path / f"x.{suffix}", size_px=SIDE)
        assert np.abs(found.pixels.astype(int) - expected).max() <= 6, tag
        assert found.changes == (() if tag == 1 else ("turned",))
        with Image.open(tmp_path / f"x.{suffix}") as opened:  # leaves the caller's picture as it is
            np.testing.assert_array_equal(pixels_of(opened, size_px=SIDE).pixels, found.pixels)


def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "x.png", exif=b"Exif\0\0II*\0" + b"\xff" * 30)
    np.testing.assert_array_equal(read(tmp_path / "x.png"), noise())


# --- colour ---

ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))


def profile(primaries: tuple[tuple[float, ...], ...], gamma: float) -> bytes:
    """An ICC profile (ICC.1:2001-04) of three primaries, XYZ under D50, and one gamma; without primaries, of grey."""

    def fixed(values: tuple[float, ...]) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    white = (0.9642, 1.0, 0.8249)
    tags = {b"wtpt": b"XYZ " + bytes(4) + fixed(white)}
    for name, values in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=False):
        tags[name] = b"XYZ " + bytes(4) + fixed(values)
    for name in (b"rTRC", b"gTRC", b"bTRC") if primaries else (b"kTRC",):
        tags[name] = b"curv" + bytes(4) + struct.pack(">IHxx", 1, round(gamma * 256))
    table, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name, at + len(body), len(content))
        body += content
    header = struct.pack(
        ">I4sI4s4s4s", at + len(body), bytes(4), 0x02400000, b"mntr", b"RGB " if primaries else b"GRAY", b"XYZ "
    )
    header += bytes(12) + b"acsp" + bytes(28) + fixed(white)
    return header.ljust(128, b"\0") + table + body


def test_a_colour_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    pixels = smooth()
    linear = (pixels / 255.0) ** (round(2.2 * 256) / 256) @ np.array(ADOBE) @ np.linalg.inv(np.array(SRGB))
    linear = linear.clip(0, 1)
    expected = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    for name in ("x.png", "x.tif"):
        Image.fromarray(pixels).save(tmp_path / name, icc_profile=profile(ADOBE, 2.2))
        found = read_image(tmp_path / name, size_px=SIDE)
        assert np.abs(found.pixels - expected).max() < 2
        assert np.abs(expected - pixels).max() > 20
        assert found.changes == ("converted",)


def test_srgb_by_whatever_name_and_damaged_profiles_change_no_bit(tmp_path: Path) -> None:
    from PIL import ImageCms

    named = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for content in (named, b"nonsense" * 20, profile(ADOBE, 2.2).replace(b"RGB ", b"CMYK")):
        Image.fromarray(noise()).save(tmp_path / "x.png", icc_profile=content)
        found = read_image(tmp_path / "x.png", size_px=SIDE)
        np.testing.assert_array_equal(found.pixels, noise())
        assert found.changes == ()


def test_a_profile_of_grey_leaves_colours_alone(tmp_path: Path) -> None:
    for pixels, changes in ((noise(), ()), (noise()[..., 0], ("converted",))):
        Image.fromarray(pixels).save(tmp_path / "x.png", icc_profile=profile((), 1.0))
        found = read_image(tmp_path / "x.png", size_px=SIDE)
        assert found.changes == changes
        assert np.array_equal(found.pixels, pixels) == (not changes)


# --- damage ---


def jpeg(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "coarse": {"quality": 10},
    "fine": {"quality": 100, "subsampling": 0},
    "optimised": {"optimize": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_intact_jpeg_counts_as_damaged(tmp_path: Path, kind: str, number: Any) -> None:
    number(pillow_block=2**20)  # a progressive file must fit
    white = np.full((SIDE, SIDE, 3), 255, np.uint8)
    for pixels in (noise(), smooth(), white, white * 0, noise(17), noise()[..., 0], noise(128), white[:1, :1]):
        for trailing in (b"", b"\0" * 100, jpeg(noise(8))):  # as cameras append a preview
            path = tmp_path / "x.jpg"
            path.write_bytes(jpeg(pixels, **KINDS[kind]) + trailing)
            with Image.open(path) as plain:
                np.testing.assert_array_equal(read(path, size_px=len(pixels)), np.asarray(plain.convert("RGB")))


@pytest.mark.parametrize("kind", ["plain", "fine", "optimised", "restarts"])
def test_padding_before_the_end_of_a_jpeg_is_no_damage(tmp_path: Path, kind: str) -> None:
    white = np.full((SIDE, SIDE, 3), 255, np.uint8)
    for pixels in (noise(), smooth(), white):
        whole = jpeg(pixels, **KINDS[kind])
        for padding in (b"\xff", b"\xff" * 60, bytes(30), bytes(100)):  # as cameras write whole blocks
            (tmp_path / "x.jpg").write_bytes(whole[:-2] + padding + whole[-2:])
            np.testing.assert_array_equal(
                read(tmp_path / "x.jpg", size_px=SIDE), np.asarray(Image.open(io.BytesIO(whole)))
            )


def test_what_follows_a_progressive_jpeg_is_not_looked_at(tmp_path: Path) -> None:
    # Taken for a segment of FFD8 bytes, the start of the picture that follows leads to a scan with a hole.
    whole = jpeg(noise(), progressive=True)
    scan = b"\xff\xda\0\x08\x01\x01\0\x01\x3f\0" + bytes(100) + b"\xff\xd9"
    (tmp_path / "x.jpg").write_bytes(whole + b"\xff\xd8" + bytes(0xFFD8 - 2) + scan)
    assert read(tmp_path / "x.jpg", size_px=SIDE).shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hole_in_a_jpeg_is_refused(tmp_path: Path, kind: str, number: Any) -> None:
    number(pillow_block=2**20)
    whole = jpeg(noise(128), **KINDS[kind])
    for part in (0.5, 0.6):
        at, length = int(part * len(whole)), len(whole) // 5
        for hole in (bytes(length), b"\xff" * length):
            (tmp_path / "x.jpg").write_bytes(whole[:at] + hole + whole[at + length :])
            with pytest.raises(ValueError, match=r"x\.jpg: .*copy it again"):
                read(tmp_path / "x.jpg", size_px=128)


def test_jpeg_data_that_is_too_short_or_too_long_is_refused(tmp_path: Path) -> None:
    whole, other = jpeg(noise(128)), jpeg(noise(128, seed=1))
    middle = len(whole) // 2
    for content in (whole[:middle] + b"\xff\xd9", whole[:middle] + other[middle:-400] + b"\xff\xd9", whole[:middle]):
        (tmp_path / "x.jpg").write_bytes(content)
        with pytest.raises(ValueError, match="is truncated or damaged"):
            read(tmp_path / "x.jpg", size_px=128)
    (tmp_path / "x.jpg").write_bytes(whole[:-2] + other[middle:])
    with pytest.raises(ValueError, match="data is left over"):
        read(tmp_path / "x.jpg", size_px=128)


def test_a_hole_in_other_files(tmp_path: Path) -> None:
    for name, options in {
        "x.png": {},
        "y.png": {"compress_level": 0},
        "lzw.tif": {"compression": "tiff_lzw"},
        "deflate.tif": {"compression": "tiff_adobe_deflate"},
        "jpeg.tif": {"compression": "jpeg"},
    }.items():
        Image.fromarray(noise(128)).save(tmp_path / name, **options)
        whole = (tmp_path / name).read_bytes()
        assert read(tmp_path / name, size_px=128).shape == (128, 128, 3)
        middle = len(whole) // 2
        (tmp_path / name).write_bytes(whole[:middle] + bytes(400) + whole[middle + 400 :])
        with pytest.raises(ValueError, match=f"{name}: is truncated or damaged"):
            read(tmp_path / name, size_px=128)


# --- what is no image ---


def link(path: Path, target: str) -> None:
    path.symlink_to(target)


def huge(path: Path, side: int) -> None:
    """A PNG file whose header promises many pixels."""
    content = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content)))
    with path.open("ab") as file:
        file.write(struct.pack(">I", 1) + b"IDATx" + struct.pack(">I", zlib.crc32(b"IDATx")))


def sparse(path: Path, size: int) -> None:
    """A file of zeros that takes no space on the disk."""
    with path.open("wb") as file:
        file.truncate(size)


def many_scans(number: int) -> bytes:
    """A progressive JPEG that begins with many scans of nothing."""
    whole = jpeg(noise(), progressive=True)
    at = whole.index(b"\xff\xda")
    return whole[:at] + b"\xff\xda\0\x08\x01\x01\0\x01\x3f\0" * number + whole[at:]


NO_IMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "lfs.png": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\nsize 4\n"), "Git LFS pointer"),
    "page.jpg": (lambda p: p.write_text("\n<!DOCTYPE html>\n<html>ä</html>"), "a web page"),
    "json.png": (lambda p: p.write_text('{"message": "Not Found"}'), "JSON text"),
    "zip.png": (lambda p: p.write_bytes(b"PK\3\4" + os.urandom(40)), "a ZIP archive"),
    "byte.png": (lambda p: p.write_bytes(b"\x89"), "is not a readable image"),
    "zeros.png": (lambda p: p.write_bytes(bytes(500)), "begins with zeros"),
    "folder.png": (lambda p: p.mkdir(), "is a folder"),
    "pipe.png": (lambda p: os.mkfifo(p), "is a named pipe"),
    "device.png": (lambda p: link(p, "/dev/zero"), "is a device"),
    "dead.png": (lambda p: link(p, "/none.png"), "is a link to /none.png, which does not exist"),
    "loop.png": (lambda p: link(p, "loop.png"), "symbolic links"),
    "profile.png": (lambda p: Image.new("L", (4, 4)).save(p, icc_profile=b"x" * 2_000_000), "profile .* too large"),
    "huge.png": (lambda p: huge(p, 13500), "182 million pixels.*cut it into tiles"),
    "jp2.tif": (lambda p: tiff(p, noise(), t259=33005), "JPEG 2000 in TIFF is not supported"),
    "five.tif": (lambda p: tiff(p, np.zeros((8, 8, 5), np.uint8)), "5 channels"),
    "dds.png": (lambda p: Image.new("RGB", (8, 8)).save(p, "DDS"), "a DDS texture"),
    "eps.png": (lambda p: Image.new("RGB", (8, 8)).save(p, "EPS"), "%!PS-Adobe"),  # Pillow would run Ghostscript
    "large.tif": (lambda p: sparse(p, 2**31), "larger than 1.0 GiB"),
    "tile.tif": (lambda p: tiff(p, noise(), t322=65535, t323=65535), "tiles have too many pixels"),
    "scans.jpg": (lambda p: p.write_bytes(many_scans(200)), "more than 100 scans"),
    "head.png": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n\0\0"), "cannot be opened"),
}


@pytest.mark.parametrize("name", NO_IMAGES)
def test_the_reason_is_the_true_one(tmp_path: Path, name: str) -> None:
    make, words = NO_IMAGES[name]
    make(tmp_path / name)
    with pytest.raises(ValueError, match=words) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(caught.value)
    assert not re.search("permission", str(caught.value))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("no decoder"),
        NotImplementedError("mode 7"),
        KeyError(3),
        IndexError(),
        MemoryError(),
        SystemError(),
    ],
)
def test_every_error_of_a_decoder_is_one_of_the_image(tmp_path: Path, wrap: Any, error: Exception) -> None:
    """As Pillow's plugins for AVIF and DDS raise them."""

    def fail(*_: Any) -> Any:
        raise error

    Image.fromarray(noise()).save(tmp_path / "x.png")
    wrap(load_pixels=fail)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path))}/x\.png: "):
        read(tmp_path / "x.png")


# --- not square ---


def test_fit_says_what_becomes_of_an_oblong_image(tmp_path: Path) -> None:
    wide = np.concatenate([noise(20, seed=1), noise(20), noise(20, seed=2)], axis=1)
    for name, pixels in {"wide.png": wide, "tall.png": wide.transpose(1, 0, 2)}.items():
        path = tmp_path / name
        Image.fromarray(pixels).save(path)
        with pytest.raises(ValueError, match=r"pixels; tiles must be square; .*fit"):
            read(path)
        cut = read_image(path, size_px=20, fit="crop")
        middle = (0, 20, 20, 20) if name == "tall.png" else (20, 0, 20, 20)
        np.testing.assert_array_equal(cut.pixels, pixels[20:40] if name == "tall.png" else pixels[:, 20:40])
        assert (cut.region, cut.changes) == (middle, ("cropped",))
        squashed = read_image(path, size_px=16, fit="resize")
        expected = Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(squashed.pixels, np.asarray(expected))
        assert (squashed.region, squashed.changes) == ((0, 0, *pixels.shape[1::-1]), ("squashed",))
    Image.fromarray(noise()).save(tmp_path / "square.png")
    assert read_image(tmp_path / "square.png", size_px=16, fit="crop").changes == ()
    said = describe_changes({"cropped": 2}, of=3)
    assert [line[:14] for line in said] == ["2 of 3 images "]


def test_avif_is_read_where_pillow_reads_it(tmp_path: Path) -> None:
    if "AVIF" not in Image.OPEN:
        pytest.skip("this Pillow has no AVIF")
    Image.fromarray(smooth()).save(tmp_path / "x.avif", quality=100)
    assert np.abs(read(tmp_path / "x.avif").astype(int) - smooth()).max() < 12
    whole = (tmp_path / "x.avif").read_bytes()
    (tmp_path / "x.avif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"x\.avif: "):
        read(tmp_path / "x.avif")


def test_a_file_of_endless_pages_is_not_counted(tmp_path: Path) -> None:
    """Pillow counts the pages of a GIF by reading them all."""
    first, second = (Image.fromarray(noise(8, seed=seed)).convert("P") for seed in (0, 1))
    first.save(tmp_path / "x.gif", save_all=True, append_images=[second])
    whole = (tmp_path / "x.gif").read_bytes()
    frame = whole[whole.rindex(b"!\xf9") : -1]
    (tmp_path / "x.gif").write_bytes(whole[:-1] + frame * 200_000 + b";")
    with pytest.raises(ValueError, match="more than one page"):
        read(tmp_path / "x.gif")


def test_what_an_image_is_wide_is_read_from_its_header(tmp_path: Path) -> None:
    Image.fromarray(noise(8)[:4]).save(tmp_path / "x.png")
    assert size_of(tmp_path / "x.png") == (8, 4)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "text.png").write_text("none")
    for name in ("pipe.png", "text.png", "none.png", "\0.png"):
        with pytest.raises(ValueError, match=r"\.png'?: "):
            size_of(tmp_path / name)


def test_a_side_of_a_whole_slide_is_refused_before_it_is_resized(tmp_path: Path) -> None:
    Image.new("1", (100_000, 2)).save(tmp_path / "x.png")
    for fit in ("resize", "crop"):
        with pytest.raises(ValueError, match=r"is 100,000×2 pixels, as whole slides are"):
            read(tmp_path / "x.png", fit=fit)


def test_the_scans_of_a_large_jpeg_are_fewer() -> None:
    whole = many_scans(30)
    assert not damage_in(whole)
    at = whole.index(b"\xff\xc2") + 5
    assert "scans" in damage_in(whole[:at] + struct.pack(">HH", 13_000, 13_000) + whole[at + 4 :])
