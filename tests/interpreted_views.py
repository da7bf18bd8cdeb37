"""What the CUDA kernels of the views give in Triton's interpreter, as JSON: run with TRITON_INTERPRET=1.

The interpreter must be chosen before Triton is imported, so this is a program of its own. On a GPU, without that
variable, it runs the same cases there.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

for module in [*sys.modules]:  # a process that is forked has Triton already
    if module.split(".")[0] == "triton" and "._C" not in module:
        del sys.modules[module]

from sscl import augment, augment_triton  # noqa: E402
from sscl.draws import Augmentation, draw  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MEAN, STD = (torch.tensor(x, device=DEVICE) for x in ((0.7, 0.5, 0.65), (0.2, 0.25, 0.2)))
STILL: dict[str, Any] = {
    **{"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "affine_probability": 0.0},
    **{"hflip_probability": 0.0, "vflip_probability": 0.0, "jitter_probability": 0.0, "blur_probability": 0.0},
}
SMALL = (0.15, 0.6)  # the interpreter goes through a blur's taps one by one
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "every operation": {
        **{"stain_probability": 0.8, "grayscale_probability": 0.5, "rotation_degrees": 90.0, "blur_sigma_px": SMALL},
    },
    "any hue": {"hue": 0.5, "jitter_probability": 1.0, "blur_probability": 0.0},
    "no blur": {"blur_probability": 0.0},
    "no jitter": {"jitter_probability": 0.0, "blur_sigma_px": SMALL},
    "warp alone": {"jitter_probability": 0.0, "blur_probability": 0.0},
    "brightness without contrast": {"contrast": 0.0, "saturation": 0.0, "hue": 0.0, "blur_probability": 0.0},
    "contrast without brightness": {"brightness": 0.0, "blur_probability": 0.0},
    "far shifts": {"translation": 0.9, "affine_probability": 1.0, "blur_probability": 0.0},
    "small blurs": {"blur_probability": 1.0, "blur_sigma_px": SMALL},
    "a blur wider than the tile": {"blur_probability": 1.0, "blur_sigma_px": (2.0, 5.0)},
    "still": STILL,
}
# 17 px are two programs a plane, the second hardly filled; 16, as elsewhere, are one.
SIZES = {"every operation": (2, 17), "a blur wider than the tile": (1, 6)}


def views(a: Augmentation, images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the pair of views of the tiles by the kernels, (2 N, 3, S, S)."""
    rows, side = 5 * torch.arange(len(images), device=DEVICE), images.shape[1]
    number = torch.cat([torch.zeros_like(rows), torch.ones_like(rows)])
    p = draw(a, rows.repeat(2), seed=3, epoch=torch.tensor(2, device=DEVICE), view=number, size_px=side)
    table = augment_triton.view_table(p, augmentation=a, size_px=side)
    return augment_triton.views(images, table, augmentation=a, mean=MEAN, std=STD, dtype=dtype)


def expected(a: Augmentation, images: torch.Tensor) -> torch.Tensor:
    """Return the same by `augment.view`."""
    rows = 5 * torch.arange(len(images), device=DEVICE)
    zero, epoch = torch.zeros_like(rows), torch.tensor(2, device=DEVICE)
    return augment.view(images, rows, augmentation=a, seed=3, epoch=epoch, view=zero, mean=MEAN, std=STD, count=2)


def tiles(count: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count * side)
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator).to(DEVICE)


def refusal(images: torch.Tensor, table: torch.Tensor) -> str:
    try:
        augment_triton.views(images, table, augmentation=Augmentation(), mean=MEAN, std=STD)
    except ValueError as error:
        return str(error)
    return ""


def main() -> None:
    found: dict[str, Any] = {"largest difference": {}}
    for name, settings in SETTINGS.items():
        a = Augmentation(**settings)
        count, side = SIZES.get(name, (1, 16))
        difference = (views(a, tiles(count, side)) - expected(a, tiles(count, side))) * STD[:, None, None]
        found["largest difference"][f"{name}, {side} px"] = difference.abs().max().item()
    still, images = Augmentation(**STILL), tiles(2, 9)
    unit = views(still, images) * STD[:, None, None] + MEAN[:, None, None]
    same = (images / 255).permute(0, 3, 1, 2).repeat(2, 1, 1, 1)
    found["still"] = (unit - same).abs().max().item()
    a, images = Augmentation(blur_sigma_px=(0.15, 0.3)), tiles(1, 16)
    exact = views(a, images)
    found["channels last"] = exact.is_contiguous(memory_format=torch.channels_last)
    found["again"] = torch.equal(exact, views(a, images))
    found["rounding"] = {
        str(dtype): (views(a, images, dtype).float() - exact).abs().max().item() / exact.abs().max().item()
        for dtype in (torch.float16, torch.bfloat16)
    }
    table = torch.zeros(4, 38, device=DEVICE)
    found["refusals"] = [
        refusal(torch.zeros(2, 8, 9, 3, dtype=torch.uint8, device=DEVICE), table),
        refusal(torch.zeros(2, 8, 8, 3, device=DEVICE), table),
        refusal(tiles(3, 8), table),
    ]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
