"""sscl data synth and sscl data inspect."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from npz_files import write_npz
from sscl.commands import data
from sscl.data.tiles import Tiles

PICTURES = ("contact_sheet.png", "distribution.png", "two_views.png")


def inspect(cli: Any, root: Path, out: Path, *words: object) -> Any:
    common = ["data.published=false", "data.size_px=32", "progress=false"]
    return cli("data", "inspect", f"data.root={root}", f"out={out}", *common, *words)


# --- synth ---


def test_synth_writes_what_it_names_and_follows_the_seed(cli: Any, tmp_path: Path, snapshot: Any) -> None:
    words = ["count=16", "size_px=32", "progress=false"]
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        result = cli("data", "synth", f"root={tmp_path / name}", f"seed={seed}", *words)
        assert result.code == 0, result.err
        assert f"wrote 16 synthetic tiles to {tmp_path / name}" in result.out
    with (tmp_path / "a/annotations.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))

    assert {path.name for path in (tmp_path / "a").iterdir()} == {"images", "masks", "annotations.csv", "slides.csv"}
    assert (
        len(rows) == len(list((tmp_path / "a/images").iterdir())) == len(list((tmp_path / "a/masks").iterdir())) == 16
    )
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    assert snapshot(tmp_path / "a") != snapshot(tmp_path / "c")


def test_synth_refuses_a_folder_that_exists_and_too_few_tiles(
    cli: Any, broken: Path, tmp_path: Path, snapshot: Any
) -> None:
    before = snapshot(broken)

    taken = cli("data", "synth", f"root={broken}", "count=24", "size_px=32", "progress=false")
    few = cli("data", "synth", f"root={tmp_path / 'few'}", "count=4", "size_px=32", "progress=false")

    assert taken.code == few.code == 2
    assert f"{broken}: exists" in taken.err
    assert "count: 4 tiles" in few.err
    assert snapshot(broken) == before
    assert not (tmp_path / "few").exists()


# --- inspect ---


def test_inspect_counts_and_draws(cli: Any, tiles: Path, tmp_path: Path) -> None:
    result = inspect(cli, tiles, tmp_path / "out", "tiles=6")

    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert "train: 32 tiles of 32x32 px" in lines
    assert "test: 16 tiles of 32x32 px" in lines
    assert "image files: 48 of 32x32 px" in lines
    assert lines.count("  groups: 4, each 8 tiles") == 1
    assert lines.count("  groups: 2, each 8 tiles") == 1
    with (tiles / "annotations.csv").open(newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["Partition"] == "train"]
    ssa = sum(row["Majority Vote Label"] == "SSA" for row in rows)
    assert f"  SSA       {ssa}  {100 * ssa / 32:5.1f}%" in lines
    votes = [int(row["Number of Annotators who Selected SSA (Out of 7)"]) for row in rows]
    unanimous = sum(vote in (0, 7) for vote in votes)
    assert f"annotators who agree: 7/7: {unanimous}, " in result.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*PICTURES, "config.yaml", "env.json"}
    for name in PICTURES:
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width > 300


def test_inspect_of_a_flat_folder(cli: Any, tiles: Path, tmp_path: Path) -> None:
    result = inspect(cli, tiles / "images", tmp_path / "out", "data.source=folder")

    assert result.code == 0, result.err
    assert "all: 48 tiles of 32x32 px" in result.out
    assert "unlabelled" in result.out
    assert "no slide or patient ids" in result.out
    assert "test:" not in result.out
    assert all((tmp_path / "out" / name).is_file() for name in PICTURES)


def test_inspect_of_class_folders_with_groups(cli: Any, folder3: Path, tmp_path: Path) -> None:
    paths = sorted(path.relative_to(folder3 / "train").as_posix() for path in (folder3 / "train").rglob("*.png"))
    rows = [f"{path},patient{index % 4}" for index, path in enumerate(paths)]
    (tmp_path / "groups.csv").write_text("\n".join(["path,group", *rows]) + "\n")

    result = inspect(
        cli, folder3 / "train", tmp_path / "out", "data.source=folder", f"data.groups_csv={tmp_path / 'groups.csv'}"
    )

    assert result.code == 0, result.err
    assert "train: 18 tiles" in result.out  # 3 of 4 patients; each has 6 of the 24 tiles
    assert "test: 6 tiles" in result.out
    assert "  groups: 3, each 6 tiles" in result.out
    assert "  groups: 1, each 6 tiles" in result.out


def test_inspect_refuses_a_folder_that_exists(cli: Any, tiles: Path, tmp_path: Path, snapshot: Any) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("important")
    before = snapshot(tmp_path)

    plain = inspect(cli, tiles, tmp_path / "notes")
    forced = inspect(cli, tiles, tmp_path / "notes", "--overwrite")

    assert plain.code == forced.code == 2
    assert "exists and is not empty" in plain.err
    assert "not written by sscl" in forced.err
    assert snapshot(tmp_path) == before


def test_inspect_never_deletes_the_tiles_it_reads(cli: Any, broken: Path, tmp_path: Path, snapshot: Any) -> None:
    (tmp_path / "env.json").write_text('{"sscl": "0.1.0"}')
    before = snapshot(tmp_path)

    result = inspect(cli, broken, tmp_path, "--overwrite")

    assert result.code == 2
    assert "data.root=" in result.err
    assert snapshot(tmp_path) == before


def test_shown_tiles_take_turns_between_classes() -> None:
    labels = np.array([0] * 30 + [1] * 3, dtype=np.int64)
    tiles = Tiles(
        images=np.zeros((33, 4, 4, 3), dtype=np.uint8),
        labels=labels,
        classes=("a", "b"),
        ids=tuple(map(str, range(33))),
    )

    rows = data.spread(tiles, limit=8, seed=0)

    assert len(set(rows.tolist())) == 8
    assert np.bincount(labels[rows]).tolist() == [5, 3]
    assert len(data.spread(tiles, limit=100, seed=0)) == 33
    assert data.spread(tiles, limit=8, seed=1).tolist() != rows.tolist()


def test_two_views_are_those_of_pretraining(cli: Any, tiles: Path, tmp_path: Path, wrap: Any) -> None:
    """Without any augmentation both views are the tile itself; with it neither is."""
    drawn: list[Any] = []
    wrap(views_sheet=lambda draw, o, a, b, **_: drawn.append((o, a, b)))
    nothing = [f"augment.{key}_probability=0" for key in ("hflip", "vflip", "affine", "blur", "jitter")]

    assert (
        inspect(cli, tiles, tmp_path / "a", *nothing, "augment.crop_scale=[1,1]", "augment.crop_ratio=[1,1]").code == 0
    )
    assert inspect(cli, tiles, tmp_path / "b").code == 0

    (original, first, second), (_, third, fourth) = drawn
    assert original.shape == (6, 32, 32, 3)
    assert np.abs(first.astype(int) - original).max() <= 1
    assert np.abs(second.astype(int) - original).max() <= 1
    for i in range(6):
        assert np.abs(third[i].astype(int) - original[i]).mean() > 2
        assert np.abs(third[i].astype(int) - fourth[i]).mean() > 2


def test_copy_of_tiles_without_slides_says_so(cli: Any, broken: Path, tmp_path: Path) -> None:
    (broken / "slides.csv").unlink()
    shutil.rmtree(broken / "masks")

    result = inspect(cli, broken, tmp_path / "out")

    assert result.code == 0, result.err
    assert result.out.count("no slide or patient ids") == 2


def test_inspect_counts_a_train_folder_without_test(cli: Any, tmp_path: Path) -> None:
    for name, size in (("A", 20), ("B", 30)):
        folder = tmp_path / "tiles" / "train" / name
        folder.mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (size, size), (10 * i, 50, 90)).save(folder / f"{i}.png")

    result = inspect(cli, tmp_path / "tiles", tmp_path / "out", "data.source=folder", "data.size_px=16")

    assert result.code == 0, result.err
    assert "train: 6 tiles of 16x16 px" in result.out
    assert "test:" not in result.out
    assert "image files: 3 of 20x20 px, 3 of 30x30 px" in result.out


def test_inspect_of_a_medmnist_file(cli: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    counts = {"train": 8, "val": 4, "test": 6}
    parts: dict[str, Any] = {
        part: (rng.integers(0, 256, (n, 28, 28, 3), dtype=np.uint8), np.arange(n) % 2, None)
        for part, n in counts.items()
    }
    parts["train"][1][:3] = -1
    write_npz(tmp_path / "set.npz", parts, classes=["stroma", "tumour"])
    result = inspect(cli, tmp_path / "set.npz", tmp_path / "out", "data.source=pathmnist", "tiles=6")

    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert [line for line in lines if line.endswith("tiles of 32x32 px")] == [
        "train: 8 tiles of 32x32 px",
        "validation: 4 tiles of 32x32 px",
        "test: 6 tiles of 32x32 px",
    ]
    assert "  unlabelled        3   37.5%" in lines
    assert "size of the tiles in the file: 28x28 px" in lines
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*PICTURES, "config.yaml", "env.json"}


def test_inspect_of_a_synthetic_set_by_its_own_name(cli: Any, tiles: Path, tmp_path: Path) -> None:
    result = inspect(cli, tiles, tmp_path / "out", "data.source=synthetic", "tiles=6")

    assert result.code == 0, result.err
    assert "image files: 48 of 32x32 px" in result.out.splitlines()
