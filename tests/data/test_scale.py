"""Tiles have the µm per pixel that their section, their table and the sides of their files say, and others are said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sscl.config import DataConfig
from sscl.data.scale import Scale, Trained, differ, scale_against, scale_of, scale_of_all, scale_warnings
from sscl.data.tiles import Tiles


def tiles_of(folder: Path, sides: list[int], mpp: list[float] | None, *, size_px: int = 16) -> Tiles:
    """Write a tile of each side, and return them at `size_px`."""
    names = tuple(f"A/{number}.png" for number in range(len(sides)))
    (folder / "A").mkdir(exist_ok=True)
    for name, side in zip(names, sides, strict=True):
        Image.new("RGB", (side, side)).save(folder / name)
    return Tiles(
        images=np.zeros((len(sides), size_px, size_px, 3), np.uint8),
        labels=np.zeros(len(sides), np.int64),
        classes=("A",),
        ids=names,
        mpp=None if mpp is None else np.array(mpp),
    )


def section(root: Path, **given: object) -> DataConfig:
    return DataConfig.model_validate({"root": str(root), "source": "folder", "size_px": 16, **given})


@pytest.mark.parametrize(
    ("sides", "mpp", "expected"),
    [
        ([32, 32], [0.25, 0.25], Scale((32,), 0.5)),  # halved, so a pixel spans twice as much
        ([32, 32, 32], [np.nan, 0.25, 0.26], Scale((32,), 0.5)),  # within 5%: the median that a tile has
        ([32, 64, 48], [0.5, 0.25, np.nan], Scale((32, 64), 1.0)),  # two sides at two scales are one at 16 px
        ([32, 32, 32], [0.25, 0.25, 0.5], Scale((32,), 0.5, (0.5, 1.0))),
        ([32], [np.nan], Scale((32,))),
        ([32], None, Scale((32,))),
    ],
)
def test_a_table_and_the_sides_of_its_files_give_the_scale(tmp_path, sides, mpp, expected):
    found = scale_of(section(tmp_path), tiles_of(tmp_path, sides, mpp))
    assert found == expected
    assert bool(found.mixed()) == bool(expected.mpp_range)


def test_files_that_are_no_pictures_do_not_count(tmp_path):
    tiles = tiles_of(tmp_path, [32, 48, 64], [0.25, 0.25, 0.25])
    (tmp_path / "A/1.png").write_text("no picture")
    assert scale_of(section(tmp_path), tiles) == Scale((32, 64), 0.5, (0.5, 1.0))


def test_the_section_says_the_scale_and_must_agree_with_the_table(tmp_path):
    tiles = tiles_of(tmp_path, [32, 32], [0.25, np.nan])
    assert scale_of(section(tmp_path, mpp=0.52), tiles).mpp == 0.52
    assert scale_of(section(tmp_path, mpp=0.3), tiles_of(tmp_path, [32], None)) == Scale((32,), 0.3)
    with pytest.raises(ValueError, match=r"^sets\.1\.mpp: got 0\.25, .*have 0\.5 µm per pixel at 16 px"):
        scale_of(section(tmp_path, mpp=0.25), tiles, key="sets.1")


def test_drawn_tiles_show_448_um_whatever_their_side(tmp_path):
    (tmp_path / "images").mkdir()
    drawn = replace(tiles_of(tmp_path, [32], None), ids=("syn_00000.png",))
    Image.new("RGB", (32, 32)).save(tmp_path / "images" / "syn_00000.png")
    assert scale_of(section(tmp_path, source="mhist"), drawn) == Scale((32,), 28.0)


def test_another_side_takes_the_scale_with_it_where_the_side_was_given():
    given = DataConfig(root="d", size_px=224, mpp=0.5)
    assert (given.at(112).size_px, given.at(112).mpp) == (112, 1.0)
    assert DataConfig(root="d", mpp=0.5).at(112).mpp == 0.5  # whatever the side will be
    assert DataConfig(root="d", size_px=224).at(112).mpp is None


def test_several_sets_have_a_scale_where_each_has_one():
    one, other = Scale((32,), 0.5), Scale((64,), 1.0)
    assert scale_of_all([one], [3]) == one
    assert scale_of_all([one, other], [3, 2]) == Scale((32, 64), 0.5, (0.5, 1.0))
    assert scale_of_all([one, other], [1, 2]).mpp == 1.0
    assert scale_of_all([one, Scale((64,))], [3, 2]) == Scale((32, 64))
    assert scale_of_all([Scale((), 0.5), Scale((), 0.52)], [1, 1]).mpp_range == ()


def test_scales_are_equal_up_to_5_percent_in_both_directions():
    assert not differ(0.5, 0.525)
    assert not differ(0.525, 0.5)
    assert differ(0.5, 0.526)
    assert differ(0.526, 0.5)


@pytest.mark.parametrize(
    ("here", "trained", "numbers"),
    [
        (Scale((48,), 0.5), Scale((32,), 0.52), ()),
        (Scale((48,), 0.5), Scale((32,), 0.53), ("0.5", "0.53")),
        (Scale((64,), 0.25), Scale((32,), 0.5), ("0.25", "0.5")),
        (Scale((32,), 0.5, (0.25, 0.5)), Scale((32,), 0.5), ("0.25", "0.5")),
        (Scale((32,), 0.4), Scale((32,), 0.5, (0.25, 0.5)), ()),  # training had it too
        (Scale((32,), 0.5, (0.25, 0.5)), Scale((32,), 0.25, (0.25, 0.5)), ()),
        (Scale((32,)), Scale((32,), 0.5), ()),
        (Scale((32,), 0.5), Scale((32,)), ()),
        (Scale((64,), 0.5), Scale((32,)), ("64", "32")),  # sides count where a scale is not known
    ],
)
def test_another_scale_than_in_training_is_said_in_one_line_with_both(here, trained, numbers):
    found = scale_warnings(here.source_px, here, trained=trained, size_px=16)
    assert len(found) == bool(numbers)
    for number in numbers:
        assert f" {number} " in found[0].replace(",", " ").replace(":", " ")


def test_files_of_other_sides_are_said_where_a_scale_is_not_known():
    def said(*sides: int) -> list[str]:
        return [text.split(",")[0] for text in scale_warnings(sides, Scale(), trained=Scale((32, 48)), size_px=32)]

    assert said(32, 40) == said(48) == []
    assert said(64, 96) == ["the files are 64 to 96 px wide"]
    assert said(32, 64) == ["some files are 64 px wide"]


def test_an_encoder_of_ours_is_compared_at_5_percent():
    trained = Trained(0.5, 0.5)
    assert scale_against(Scale(mpp=0.52), trained, name="e", size_px=16) == []
    (said,) = scale_against(Scale(mpp=0.56), trained, name="e", size_px=16)
    assert "0.56 µm" in said
    assert "had 0.5" in said
    assert scale_against(Scale(), trained, name="e", size_px=16) == []
    assert scale_against(Scale(mpp=1.0), None, name="e", size_px=16) == []
