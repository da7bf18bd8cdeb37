"""Tiles, their order, their store, and the decoded cache."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import forked
from sscl.data.csv_files import read_table
from sscl.data.ingest import decode_tiles
from sscl.data.tiles import Tiles, epoch_order, place_store


def make_tiles(n: int = 6, *, size_px: int = 8, seed: int = 0, classes: tuple[str, ...] = ("a", "b")) -> Tiles:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % len(classes) if classes else np.full(n, -1)
    return Tiles(
        images=rng.integers(0, 256, (n, size_px, size_px, 3), dtype=np.uint8),
        labels=labels.astype(np.int64),
        classes=classes,
        ids=tuple(f"{seed}_{i}.png" for i in range(n)),
        groups=np.array([f"slide{i // 2}" for i in range(n)]),
        votes=np.arange(n, dtype=np.int64),
    )


def noise(size_px: int = 16, *, seed: int = 0, mode: str = "RGB") -> Image.Image:
    channels = {"RGB": (3,), "RGBA": (4,), "CMYK": (4,), "L": ()}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (size_px, size_px, *channels), dtype=np.uint8)
    return Image.fromarray(values, mode)


def save_tiles(folder: Path, n: int, *, size_px: int = 16) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:04d}.png" for i in range(n)]
    for i, path in enumerate(paths):
        noise(size_px, seed=i).save(path)
    return paths


# --- Tiles ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((6, 8, 8), np.uint8)}, r"images: expected uint8 \(N, H, W, 3\)"),
        ({"images": np.zeros((6, 8, 8, 3), np.float32)}, "images: expected uint8 .* got float32"),
        ({"labels": np.zeros(5, np.int64)}, r"labels: expected int64 \(6,\)"),
        ({"labels": np.zeros(6, np.float32)}, "labels: expected int64 .* got float32"),
        ({"labels": np.full(6, 2)}, "labels: found 2 to 2, allowed are -1 .* to 1"),
        ({"labels": np.full(6, -2)}, "labels: found -2 to -2"),
        ({"ids": ("x",) * 6}, "ids: expected 6 different ids.* got 6 of which 1 differ"),
        ({"classes": ("a", "a")}, "classes: names repeat"),
        ({"groups": np.array(["s"])}, r"groups: expected str_ \(6,\)"),
        ({"votes": np.zeros(7, np.int64)}, r"votes: expected int64 \(6,\)"),
    ],
)
def test_tiles_refuse_parts_that_do_not_fit(change, message):
    good = make_tiles()
    parts = {name: getattr(good, name) for name in ("images", "labels", "classes", "ids", "groups", "votes")}
    Tiles(**parts)
    with pytest.raises(ValueError, match=message):
        Tiles(**{**parts, **change})


def test_subset_takes_every_field_in_the_given_order():
    tiles = make_tiles()
    part = tiles.subset([4, 1])
    assert part.ids == (tiles.ids[4], tiles.ids[1])
    assert part.votes.tolist() == [4, 1]
    assert part.groups.tolist() == ["slide2", "slide0"]
    assert part.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(part.images, tiles.images[[4, 1]])


def test_subset_shares_pixels_only_for_a_contiguous_range():
    tiles = make_tiles()
    assert np.shares_memory(tiles.subset([2, 3, 4]).images, tiles.images)
    assert not np.shares_memory(tiles.subset([2, 4]).images, tiles.images)
    assert not np.shares_memory(tiles.subset([4, 3]).images, tiles.images)
    np.testing.assert_array_equal(tiles.subset([2, 3, 4]).images, tiles.images[2:5])
    assert len(tiles.subset([])) == 0


def test_class_counts_name_the_unlabelled_only_when_there_are_any():
    tiles = make_tiles()
    assert tiles.class_counts() == {"a": 3, "b": 3}
    labels = np.where(np.arange(len(tiles)) < 2, -1, tiles.labels)
    mixed = dataclasses.replace(tiles, labels=labels)
    assert mixed.class_counts() == {"a": 2, "b": 2, "unlabelled": 2}


def test_fingerprint_is_stable_and_sees_ids_labels_and_pixels():
    tiles = make_tiles()
    same = make_tiles()
    assert tiles.fingerprint == same.fingerprint
    # A memmap, or any other array with these values, counts as the same tiles.
    assert tiles.subset(range(6)).fingerprint == tiles.fingerprint
    pixels = tiles.images.copy()
    pixels[3, 0, 0, 0] ^= 1
    changed = [
        Tiles(pixels, tiles.labels, tiles.classes, tiles.ids),
        Tiles(tiles.images, 1 - tiles.labels, tiles.classes, tiles.ids),
        Tiles(tiles.images, tiles.labels, tiles.classes, tiles.ids[::-1]),
        Tiles(tiles.images, tiles.labels, ("b", "a"), tiles.ids),
    ]
    assert len({tiles.fingerprint, *(other.fingerprint for other in changed)}) == 5


# --- order and store ---


def test_epoch_order_depends_on_seed_and_epoch_alone():
    order = epoch_order(50, seed=3, epoch=7)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(50))
    np.random.seed(0)  # noqa: NPY002  the global state must not matter
    np.testing.assert_array_equal(order, epoch_order(50, seed=3, epoch=7))
    # (3, 7) and (7, 3) must not meet, as they would if the two were added.
    others = [epoch_order(50, seed=3, epoch=8), epoch_order(50, seed=4, epoch=7), epoch_order(50, seed=7, epoch=3)]
    assert all((order != other).any() for other in others)


def test_store_on_a_cpu_gathers_from_the_memmap_without_loading_it(tmp_path):
    paths = save_tiles(tmp_path / "in", 5)
    images = decode_tiles(paths, size_px=16, root=tmp_path, cache_dir=tmp_path / "cache")
    store = place_store(images, device="cpu", budget_gb=100)
    assert store.images is images
    assert not store.on_device
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns when it is handed a read-only array
        batch = store.gather(torch.tensor([4, 0, 4]))
    assert batch.dtype == torch.uint8
    np.testing.assert_array_equal(batch.numpy(), images[[4, 0, 4]])
    batch.zero_()  # the batch is the caller's own
    assert images[4].any()


@pytest.mark.parametrize("wrong", [-1, 6])
def test_store_refuses_rows_it_does_not_have(wrong):
    store = place_store(make_tiles().images, device="cpu", budget_gb=1)
    with pytest.raises(IndexError, match="the store has 6"):
        store.gather(torch.tensor([0, wrong]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(("budget_gb", "on_device"), [(1.0, True), (0.0, False)])
def test_store_on_a_gpu_gives_the_same_batches_from_either_place(budget_gb, on_device):
    images = make_tiles(40).images
    store = place_store(images, device="cuda", budget_gb=budget_gb)
    assert store.on_device is on_device
    batch = store.gather(torch.tensor([7, 3, 39]))
    assert batch.device.type == "cuda"
    np.testing.assert_array_equal(batch.cpu().numpy(), images[[7, 3, 39]])


def test_store_moves_to_another_device_only_within_the_budget():
    # "meta" stands in for a device: it has shapes but no memory.
    images = np.zeros((4, 512, 512, 3), np.uint8)  # 3 MiB
    assert place_store(images, device="meta", budget_gb=3 / 1024).on_device
    assert not place_store(images, device="meta", budget_gb=2.9 / 1024).on_device


# --- decoding ---


def test_decoded_tiles_are_the_files_pixels_in_order_and_read_only(tmp_path):
    paths = save_tiles(tmp_path / "in", 37)  # more than two jobs
    images = decode_tiles(paths, size_px=16, root=tmp_path, cache_dir=tmp_path / "cache")
    assert isinstance(images, np.memmap)
    assert not images.flags.writeable
    assert images.shape == (37, 16, 16, 3)
    np.testing.assert_array_equal(images, np.stack([np.asarray(Image.open(path)) for path in paths]))


def test_shrinking_is_antialiased(tmp_path):
    """A fine chequerboard has mean 127.5 everywhere; taking single pixels or few of them would leave 0 and 255."""
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    Image.fromarray(np.repeat(board[..., None], 3, axis=2).astype(np.uint8)).save(tmp_path / "x.png")
    tile = decode_tiles([tmp_path / "x.png"], size_px=16, root=tmp_path, cache_dir=tmp_path / "cache")[0]
    assert np.abs(tile.astype(float) - 127.5).max() < 8


def test_second_call_maps_the_cache_and_does_not_decode(tmp_path):
    paths = save_tiles(tmp_path / "in", 3)
    first = np.array(decode_tiles(paths, size_px=16, root=tmp_path, cache_dir=tmp_path / "cache"))

    (written,) = (entry.stat().st_ino for entry in (tmp_path / "cache").iterdir())
    again = decode_tiles(paths, size_px=16, root=tmp_path, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(first, again)
    assert [entry.stat().st_ino for entry in (tmp_path / "cache").iterdir()] == [written]


def test_a_changed_file_another_size_and_another_folder_are_decoded_afresh(tmp_path):
    cache = tmp_path / "cache"
    path = save_tiles(tmp_path / "a", 1)[0]
    decode_tiles([path], size_px=16, root=tmp_path / "a", cache_dir=cache)
    assert decode_tiles([path], size_px=8, root=tmp_path / "a", cache_dir=cache).shape == (1, 8, 8, 3)
    # Equal name, size and time, other pixels, in another folder: as two archives can unpack.
    other = tmp_path / "b" / path.name
    other.parent.mkdir()
    noise(16, seed=9).save(other.with_suffix(".bmp"))
    noise(16, seed=8).save(path.with_suffix(".bmp"))
    path, other = path.with_suffix(".bmp"), other.with_suffix(".bmp")
    for file in (path, other):
        os.utime(file, (1e9, 1e9))
    one = decode_tiles([path], size_px=16, root=path.parent, cache_dir=cache)
    two = decode_tiles([other], size_px=16, root=other.parent, cache_dir=cache)
    assert (one != two).any()
    noise(16, seed=7).save(path)
    os.utime(path, (2e9, 2e9))
    three = decode_tiles([path], size_px=16, root=path.parent, cache_dir=cache)
    np.testing.assert_array_equal(three[0], np.asarray(noise(16, seed=7)))


def test_cache_folder_comes_from_the_environment(tmp_path, monkeypatch):
    paths = save_tiles(tmp_path / "in", 1)
    monkeypatch.setenv("SSCL_CACHE", str(tmp_path / "elsewhere"))
    decode_tiles(paths, size_px=16, root=tmp_path)
    assert [path.suffix for path in (tmp_path / "elsewhere").iterdir()] == [".npy"]


def test_a_shortened_cache_file_is_made_again(tmp_path):
    paths = save_tiles(tmp_path / "in", 3)
    images = np.array(decode_tiles(paths, size_px=16, root=tmp_path, cache_dir=tmp_path / "cache"))
    (cached,) = (tmp_path / "cache").iterdir()
    cached.write_bytes(cached.read_bytes()[:-100])
    again = decode_tiles(paths, size_px=16, root=tmp_path, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(images, again)


def test_cache_folder_that_cannot_be_made_is_one_line(tmp_path):
    paths = save_tiles(tmp_path / "in", 1)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"decoded tiles.*SSCL_CACHE") as caught:
        decode_tiles(paths, size_px=16, root=tmp_path, cache_dir=tmp_path / "file" / "cache")
    assert "\n" not in str(caught.value)


def test_a_failed_ingest_leaves_nothing_behind(tmp_path):
    paths = save_tiles(tmp_path / "in", 20)
    paths[19].write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"0019.png"):
        decode_tiles(paths, size_px=16, root=tmp_path, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_killed_ingest_leaves_no_half_cache(tmp_path):
    paths = save_tiles(tmp_path / "in", 40)
    program = """
import os, sys, time
from pathlib import Path
from sscl.data import decode, ingest
read_image = decode.read_image
def slow(path, **options):
    if path.name > "0030":
        os.write(1, b"half way\\n")  # in one piece: several threads come here
        time.sleep(60)
    return read_image(path, **options)
decode.read_image = slow
root = Path(sys.argv[1])
ingest.decode_tiles(sorted((root / "in").iterdir()), size_px=16, root=root, cache_dir=root / "cache")
"""
    child = forked.start(program, tmp_path, stdout=subprocess.PIPE, stderr=sys.__stderr__)
    assert child.stdout is not None
    assert child.stdout.readline() == "half way\n"
    child.kill()
    child.wait()
    child.stdout.close()
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".tmp", ".lock"}
    images = decode_tiles(paths, size_px=16, root=tmp_path, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(images, np.stack([np.asarray(Image.open(path)) for path in paths]))
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".npy"}


# --- files that cannot be used ---


def decode_one(path: Path, **options) -> np.ndarray:
    options.setdefault("size_px", 16)
    return decode_tiles([path], root=path.parent, cache_dir=path.parent / "cache", **options)[0]


def test_lossless_modes_become_rgb(tmp_path):
    rgb = np.asarray(noise())
    grey = np.asarray(noise(mode="L"))
    opaque = np.dstack([rgb, np.full((16, 16), 255, np.uint8)])
    palette = Image.fromarray(rgb // 128 * 255).quantize(8)
    bits = Image.fromarray(grey > 127)
    cases = {
        "grey": (Image.fromarray(grey), np.dstack([grey] * 3)),
        "opaque": (Image.fromarray(opaque), rgb),
        "grey_alpha": (Image.fromarray(np.dstack([grey, opaque[..., 3]]), "LA"), np.dstack([grey] * 3)),
        "palette": (palette, rgb // 128 * 255),
        "bits": (bits, np.dstack([(grey > 127) * np.uint8(255)] * 3)),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(decode_one(tmp_path / f"{name}.png"), expected, err_msg=name)


def write_16_bit_rgb(path: Path) -> None:
    import cv2

    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 65536, (16, 16, 3)).astype(np.uint16))


def write_transparent_palette(path: Path) -> None:
    noise().quantize(8).save(path, transparency=0)


BAD_FILES = {
    "empty.png": (lambda p: p.write_bytes(b""), "is empty .0 bytes."),
    "text.png": (lambda p: p.write_text("not an image"), "is not a readable image .*; expected PNG"),
    "short.png": (lambda p: _save_shortened(p), "is truncated or damaged; copy it again"),
    "short.jpg": (lambda p: _save_shortened(p), "is truncated or damaged; copy it again"),
    "oblong.png": (lambda p: noise().resize((16, 12)).save(p), "is 16×12 pixels; tiles must be square"),
    "clear.png": (lambda p: noise(mode="RGBA").save(p), "has transparent pixels; save it as 8-bit RGB"),
    "clear_palette.png": (write_transparent_palette, "has transparent pixels"),
    "ink.jpg": (lambda p: noise(mode="CMYK").save(p), "is CMYK .*, which has no lossless"),
    "deep.png": (write_16_bit_rgb, "is 16-bit RGB"),
    "deep_grey.png": (
        lambda p: Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 200).save(p),
        "is 16-bit grey",
    ),
    "pages.tif": (lambda p: noise().save(p, save_all=True, append_images=[noise(seed=1)]), "more than one page"),
}


def _save_shortened(path: Path) -> None:
    noise(64).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize("name", BAD_FILES)
def test_unusable_file_is_one_line_with_its_name(tmp_path, name):
    write, message = BAD_FILES[name]
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message) as caught:
        decode_one(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name) + ": ")
    assert "\n" not in str(caught.value)


def test_wrong_size_is_named_with_both_sizes(tmp_path):
    noise(16).save(tmp_path / "x.png")
    assert decode_one(tmp_path / "x.png", exact_size_px=16).shape == (16, 16, 3)
    # The cache of the lenient call above must not answer for the strict one.
    with pytest.raises(ValueError, match="is 16×16 pixels, expected 224×224"):
        decode_one(tmp_path / "x.png", exact_size_px=224)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.png: cannot be opened"):
        decode_one(tmp_path / "gone.png")


def test_many_unusable_files_are_one_line_with_their_count(tmp_path):
    paths = save_tiles(tmp_path, 40)
    for index in (3, 18, 39):
        paths[index].write_bytes(b"")
    with pytest.raises(ValueError, match=r"0003\.png: is empty.*and 2 more files that cannot") as caught:
        decode_tiles(paths, size_px=16, root=tmp_path, cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_no_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="size_px: got 0"):
        decode_tiles([tmp_path], size_px=0, root=tmp_path, cache_dir=tmp_path)


def test_changes_are_told_at_each_load_and_fit_is_part_of_the_key(tmp_path, capsys):
    paths = save_tiles(tmp_path / "in", 3)
    wide = np.asarray(noise(32))[8:24]
    Image.fromarray(wide).save(paths[1])

    def load(fit):
        tiles = decode_tiles(paths, size_px=16, root=tmp_path, fit=fit, cache_dir=tmp_path / "cache")
        return tiles, [line for line in capsys.readouterr().out.splitlines() if " of 3 images " in line]

    for _ in range(2):
        tiles, said = load("crop")
        np.testing.assert_array_equal(tiles[1], wide[:, 8:24])
        assert [line.partition(" of ")[0] for line in said] == [f"{tmp_path}: 1"]
    assert not np.array_equal(load("resize")[0][1], tiles[1])
    with pytest.raises(ValueError, match="must be square"):
        load("refuse")


# --- CSV ---


def test_read_table_picks_columns_by_name_and_counts_lines(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbfextra,b,a\r\n1,"two, 2",3\r\n\r\n4,5,6\r\n')
    assert read_table(path, columns=("a", "b")) == [(2, ["3", "two, 2"]), (4, ["6", "5"])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected the header a,b"),
        (b"a,b\n", "has a header but no rows"),
        (b"a,c\n1,2\n", "line 1: column 'b' is missing, found a, c"),
        (b"a,b\n1,2\n1\n", "line 3: 1 values, expected 2 as in the header"),
        (b"a,b\n1,\xff\n", "is not a CSV file in UTF-8"),
    ],
)
def test_read_table_faults_name_the_line(tmp_path, content, message):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_table(path, columns=("a", "b"))
