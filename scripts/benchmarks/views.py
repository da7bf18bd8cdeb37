"""Two random views of each tile: time on one core against lightly's PIL transform and kornia, values against kornia.

Each contender starts from decoded tiles in the form it takes (uint8 tensors, PIL images) and ends with two normalised
float batches. Kinds, ranges and probabilities are those of `sscl.draws.Augmentation`; lightly has no shift, scaling
or shear, and rounds to 8 bits between operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from race import race
from sscl import augment, colours, draws
from sscl.draws import Augmentation, ViewParameters

SETTINGS = Augmentation()
MEAN, STD = (0.7, 0.5, 0.65), (0.2, 0.25, 0.2)
Views = Callable[[], object]


def measure(*, quick: bool, device: torch.device) -> list[dict[str, Any]]:
    """Return the rows of this topic."""
    sizes = ((24, 2),) if quick else ((224, 16), (64, 64), (28, 256))
    found = []
    for size_px, count in sizes:
        seconds = 0.2 if quick else 30.0
        with one_core():
            found += times(tiles(count, size_px), {"lightly": lightly, "kornia": kornia}, seconds=seconds)
        if device.type == "cuda":
            found += times(tiles(32 * count, size_px).to(device), {"kornia": kornia}, seconds=seconds)
    return found + values(tiles(4, 24 if quick else 224))


def tiles(count: int, size_px: int) -> Tensor:
    """Return smooth random tiles with some noise, uint8 (count, size_px, size_px, 3)."""
    generator = torch.Generator().manual_seed(0)
    x = F.interpolate(torch.rand(count, 3, 12, 12, generator=generator), size_px, mode="bicubic", align_corners=False)
    x = x + 0.03 * torch.randn(x.shape, generator=generator)
    return (x.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@contextmanager
def one_core() -> Iterator[None]:
    """Let torch compute with one thread for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def times(
    images: Tensor, peers: dict[str, Callable[[Tensor], Views | None]], *, seconds: float
) -> list[dict[str, Any]]:
    """Return a row a peer, in milliseconds a view."""
    runs = {name: make(images) for name, make in peers.items()}
    taken = race({"ours": ours(images)} | {name: run for name, run in runs.items() if run is not None}, seconds=seconds)
    count, size_px = images.shape[:2]
    where = "one core" if images.device.type == "cpu" else "the GPU"
    found = []
    for name, run in runs.items():
        row: dict[str, Any] = {
            "what": f"two views at {size_px} px, {where}",
            "unit": "ms a view",
            "note": f"batches of {count} tiles",
        }
        row |= {"ours": 500 * taken["ours"] / count, "target": TARGETS.get((name, size_px), "")}
        if run is None:
            row |= {"peer": name, "theirs": None, "ratio": None}
            row["note"] = f"{name} is not installed; scripts/bench installs it"
        else:
            row |= {"peer": f"{name} {version(name)}", "theirs": 500 * taken[name] / count}
            row["ratio"] = taken[name] / taken["ours"]
        found.append(row)
    return found


TARGETS = {("lightly", 224): ">= 2.5", ("kornia", 224): "> 1"}


def ours(images: Tensor) -> Views:
    """Return what makes both views of images, uint8 (B, H, W, 3)."""
    index = torch.arange(len(images), device=images.device)
    mean, std = (torch.tensor(x, device=images.device) for x in (MEAN, STD))
    return lambda: augment.view(
        images, index, augmentation=SETTINGS, seed=0, epoch=0, view=0, mean=mean, std=std, count=2
    )


def lightly(images: Tensor) -> Views | None:
    """The same by lightly's PIL transform, a tile at a time, then stacked; None where it is not installed."""
    try:
        from lightly.transforms import SimCLRTransform
    except ImportError:
        return None
    from PIL import Image

    a = SETTINGS
    transform = SimCLRTransform(
        input_size=images.shape[1],
        cj_prob=a.jitter_probability,
        cj_bright=a.brightness,
        cj_contrast=a.contrast,
        cj_sat=a.saturation,
        cj_hue=a.hue,
        min_scale=a.crop_scale[0],
        random_gray_scale=a.grayscale_probability,
        gaussian_blur=a.blur_probability,
        sigmas=a.blur_sigma_px,
        hf_prob=a.hflip_probability,
        vf_prob=a.vflip_probability,
        rr_prob=a.affine_probability,
        rr_degrees=a.rotation_degrees,
        normalize={"mean": list(MEAN), "std": list(STD)},
    )
    pictures = [Image.fromarray(image.numpy()) for image in images]
    return lambda: [torch.stack(view) for view in zip(*map(transform, pictures), strict=True)]


def kornia(images: Tensor) -> Views | None:
    """The same by kornia, batch by batch; None where it is not installed."""
    try:
        import kornia.augmentation as K
    except ImportError:
        return None
    a, side = SETTINGS, images.shape[1]
    transform = K.AugmentationSequential(
        K.RandomResizedCrop((side, side), scale=a.crop_scale, ratio=a.crop_ratio),
        K.RandomHorizontalFlip(p=a.hflip_probability),
        K.RandomVerticalFlip(p=a.vflip_probability),
        K.RandomAffine(
            a.rotation_degrees,
            translate=(a.translation, a.translation),
            scale=a.scale,
            shear=(-a.shear_degrees, a.shear_degrees, -a.shear_degrees, a.shear_degrees),
            padding_mode="reflection",
            p=a.affine_probability,
        ),
        K.RandomGaussianBlur(
            (2 * draws.blur_radius(a.blur_sigma_px[1]) + 1,) * 2, a.blur_sigma_px, p=a.blur_probability
        ),
        K.ColorJitter(a.brightness, a.contrast, a.saturation, a.hue, p=a.jitter_probability),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        data_keys=["input"],
    ).to(images.device)

    def run() -> list[Tensor]:
        x = images.permute(0, 3, 1, 2).float() / 255
        return [transform(x), transform(x)]

    return run


def values(images: Tensor) -> list[dict[str, Any]]:
    """Return a row an operation: how far ours is from kornia's with the same parameters, pixels within 0 to 1."""
    x = augment.to_unit(images)
    side, four = images.shape[1], torch.ones(len(images))
    turn, shift, scale = -20.0, (0.05, -0.08), 1.2
    sigma = torch.tensor([0.4, 1.0, 1.5, 2.0])
    factors = torch.tensor([0.8, 0.9, 1.1, 1.2])
    turns = torch.tensor([-0.05, -0.02, 0.03, 0.05])
    p = ViewParameters(
        crop=torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(len(x), 1),
        flip=torch.ones(len(x), 2),
        rotation=turn * four,
        translation=torch.tensor([shift]).repeat(len(x), 1),
        scale=scale * four,
        shear=torch.zeros(len(x), 2),
        blur_sigma=sigma,
        brightness=factors,
        contrast=factors,
        saturation=factors,
        hue=turns,
        grayscale=0 * four,
        stain_gain=torch.ones(len(x), 3),
        stain_offset=torch.zeros(len(x), 3),
    )
    radius = draws.blur_radius(2.0)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    try:
        import kornia as peer
    except ImportError:
        peer = None
    if peer is not None:
        centre = torch.full((len(x), 2), (side - 1) / 2)
        matrix = peer.geometry.transform.get_affine_matrix2d(
            p.translation * side, centre, p.scale[:, None].expand(-1, 2), p.rotation
        )[:, :2]
        turned = peer.geometry.transform.warp_affine(x, matrix, (side, side), align_corners=True)
        inside = peer.geometry.transform.warp_affine(torch.ones_like(x), matrix, (side, side), align_corners=True)
        inside = (inside > 0.9999).float()  # kornia's frame is black, ours mirrored tissue
        both = sigma[:, None].expand(-1, 2)
        pairs = {
            "warp": (augment.warp(x, p) * inside, turned * inside),
            "blur": (
                augment.blur(x, sigma, radius=radius),
                peer.filters.gaussian_blur2d(x, 2 * radius + 1, both, border_type="reflect"),
            ),
            "brightness": (
                colours.adjust_brightness(x, factors),
                peer.enhance.adjust_brightness_accumulative(x, factors),
            ),
            "contrast": (
                colours.adjust_contrast(x, factors),
                peer.enhance.adjust_contrast_with_mean_subtraction(x, factors),
            ),
            "saturation": (
                colours.adjust_saturation(x, factors),
                peer.enhance.adjust_saturation_with_gray_subtraction(x, factors),
            ),
            "hue": (colours.adjust_hue(x, turns), peer.enhance.adjust_hue(x, 2 * torch.pi * turns)),
        }
    name = "kornia" if peer is None else f"kornia {version('kornia')}"
    row = {"peer": name, "theirs": None, "ours": None, "ratio": None, "unit": "of 0 to 1"}
    if peer is None:
        note = "kornia is not installed; scripts/bench installs it"
        return [{**row, "what": "largest difference of operations", "target": "", "note": note}]
    return [
        {
            **row,
            "what": f"largest difference: {what}",
            "ours": (a - b).abs().max().item(),
            "target": "<= 5e-05",
            "note": "",
        }
        for what, (a, b) in pairs.items()
    ]
