"""The scale of tiles is that of their files, and another one than in training is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sscl.config import DataConfig
from sscl.data.scale import Scale, scale_of, scale_warnings
from sscl.data.tiles import Tiles


def test_sides_come_from_the_files_and_mpp_from_the_table(tmp_path: Path) -> None:
    names = tuple(f"A/{side}.png" for side in (20, 32, 48))
    (tmp_path / "A").mkdir()
    for name in names[1:]:
        side = int(Path(name).stem)
        Image.new("RGB", (side, side)).save(tmp_path / name)
    (tmp_path / names[0]).write_text("no picture")
    tiles = Tiles(
        images=np.zeros((3, 16, 16, 3), np.uint8),
        labels=np.zeros(3, np.int64),
        classes=("A",),
        ids=names,
        mpp=np.array([0.5, np.nan, 0.3]),
    )
    assert scale_of(DataConfig(root=str(tmp_path), source="folder"), tiles) == Scale((32, 48), 0.4)


def test_another_scale_than_in_training_is_said() -> None:
    trained = Scale((32, 48), 0.5)

    def said(sides: set[int], mpp: float | None = None) -> list[str]:
        return [text.split(",")[0] for text in scale_warnings(sides, mpp, trained=trained, size_px=32)]

    assert said({32, 40}, 0.5) == said({48}, 0.52) == said({48}) == []
    assert said({64, 96}) == ["the files are 64 to 96 px wide"]
    assert said({32, 64}, 0.25) == ["some files are 64 px wide", "the tiles have 0.25 µm per pixel"]
    assert scale_warnings({64}, 1.0, trained=Scale((), None), size_px=32) == []
