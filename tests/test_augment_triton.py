"""The CUDA kernels give the views of `augment`: here in Triton's interpreter, on a GPU as they are."""

from __future__ import annotations

import importlib.util
import os
from types import ModuleType
from typing import Any

import pytest
import torch

from sscl import augment
from sscl.augment import Augmentation, draw

pytest.importorskip("triton")
MEAN, STD = (0.7, 0.5, 0.65), (0.2, 0.25, 0.2)
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "every operation": {"stain_probability": 0.8, "grayscale_probability": 0.5, "rotation_degrees": 90.0},
    "any hue": {"hue": 0.5, "jitter_probability": 1.0},
    "no blur": {"blur_probability": 0.0},
    "no jitter": {"jitter_probability": 0.0},
    "warp alone": {"jitter_probability": 0.0, "blur_probability": 0.0},
    "brightness without contrast": {"contrast": 0.0, "saturation": 0.0, "hue": 0.0, "blur_probability": 0.0},
    "contrast without brightness": {"brightness": 0.0, "blur_probability": 0.0},
    "far shifts": {"translation": 0.9, "affine_probability": 1.0},
    "small blurs": {"blur_probability": 1.0, "blur_sigma_px": (0.15, 0.6)},
    "a blur wider than the tile": {"blur_probability": 1.0, "blur_sigma_px": (3.0, 8.0)},
}


@pytest.fixture(scope="module")
def interpreted() -> ModuleType:
    """The module as Triton's interpreter runs it, on the CPU: its kernels look at the setting when they are made."""
    spec = importlib.util.find_spec("sscl.augment_triton")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        spec.loader.exec_module(module)
    finally:
        os.environ.pop("TRITON_INTERPRET")
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before
    return module


def both(module: ModuleType, a: Augmentation, *, tiles: int, side: int, device: str = "cpu") -> tuple[Any, Any]:
    """Return the pair of views by the kernels and by `augment.pair`, each in 0-1, (2 N, 3, S, S)."""
    generator = torch.Generator().manual_seed(tiles * side)
    images = torch.randint(0, 256, (tiles, side, side, 3), dtype=torch.uint8, generator=generator).to(device)
    rows, epoch = 5 * torch.arange(tiles, device=device), torch.tensor(2, device=device)
    mean, std = torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)
    zero = torch.zeros_like(rows)
    expected = augment.pair(images, rows, augmentation=a, seed=3, epoch=epoch, view=zero, mean=mean, std=std)
    p = draw(a, rows.repeat(2), seed=3, epoch=epoch, view=torch.cat([zero, zero + 1]), size_px=side)
    table = module.view_table(p, augmentation=a, size_px=side)
    found = module.views(images, table, augmentation=a, mean=mean, std=std)
    return found * std[:, None, None], expected * std[:, None, None]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("tiles", "side"), [(3, 20), (2, 17)])
def test_views_are_those_of_the_reference(interpreted, name, tiles, side):
    found, expected = both(interpreted, Augmentation(**SETTINGS[name]), tiles=tiles, side=side)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - expected).abs().max() < 2e-5


def test_no_view_is_the_tile_itself(interpreted):
    still = Augmentation(
        crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), hflip_probability=0, vflip_probability=0, affine_probability=0,
        blur_probability=0, jitter_probability=0,
    )  # fmt: skip
    images = torch.arange(2 * 9 * 9 * 3).reshape(2, 9, 9, 3).to(torch.uint8)
    rows = torch.arange(2)
    p = draw(still, rows.repeat(2), seed=0, epoch=0, view=torch.zeros(4, dtype=torch.int64), size_px=9)
    table = interpreted.view_table(p, augmentation=still, size_px=9)
    found = interpreted.views(images, table, augmentation=still, mean=torch.zeros(3), std=torch.ones(3))
    torch.testing.assert_close(found, (images / 255).permute(0, 3, 1, 2).repeat(2, 1, 1, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_views_come_in_the_precision_of_the_step(interpreted, dtype):
    a, rows = Augmentation(), torch.arange(2)
    images = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    p = draw(a, rows, seed=0, epoch=0, view=torch.zeros_like(rows), size_px=16)
    table = interpreted.view_table(p, augmentation=a, size_px=16)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    found = interpreted.views(images, table, augmentation=a, mean=mean, std=std, dtype=dtype)
    exact = interpreted.views(images, table, augmentation=a, mean=mean, std=std)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact.to(dtype).float(), atol=0.02, rtol=0.01)


@pytest.mark.parametrize("images", [torch.zeros(2, 8, 9, 3, dtype=torch.uint8), torch.zeros(2, 8, 8, 3)])
def test_other_tiles_are_refused(interpreted, images):
    with pytest.raises(ValueError, match="images: must be uint8"):
        interpreted.views(
            images, torch.zeros(2, 38), augmentation=Augmentation(), mean=torch.zeros(3), std=torch.ones(3)
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SETTINGS)
def test_a_gpu_gives_the_views_of_the_reference(name):
    from sscl import augment_triton

    found, expected = both(augment_triton, Augmentation(**SETTINGS[name]), tiles=9, side=224, device="cuda")
    assert (found - expected).abs().max() < 2e-5
