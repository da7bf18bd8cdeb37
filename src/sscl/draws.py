"""What is drawn for each view of a tile: the random numbers and the parameters made of them.

Every tile draws from a counter-based generator keyed by (seed, epoch, tile, view), so that its views are the same
whatever the batch, the number of ranks, the device, or whether the run was resumed. Nothing here looks at a value or
copies one to or from the device.

B tiles, n random numbers a tile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from sscl.config import AugmentConfig

_USUAL = AugmentConfig()


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and ranges of one random view. Angles in degrees, shifts in fractions of the tile's side.

    The defaults are those of the `augment` section of a configuration.
    """

    crop_scale: tuple[float, float] = _USUAL.crop_scale  # area of the crop / area of the tile
    crop_ratio: tuple[float, float] = _USUAL.crop_ratio  # width / height of the crop
    hflip_probability: float = _USUAL.hflip_probability
    vflip_probability: float = _USUAL.vflip_probability
    affine_probability: float = _USUAL.affine_probability
    rotation_degrees: float = _USUAL.rotation_degrees
    translation: float = _USUAL.translation
    scale: tuple[float, float] = _USUAL.scale
    shear_degrees: float = _USUAL.shear_degrees
    blur_probability: float = _USUAL.blur_probability
    blur_sigma_px: tuple[float, float] = _USUAL.blur_sigma_px
    jitter_probability: float = _USUAL.jitter_probability
    brightness: float = _USUAL.brightness
    contrast: float = _USUAL.contrast
    saturation: float = _USUAL.saturation
    hue: float = _USUAL.hue
    grayscale_probability: float = _USUAL.grayscale_probability
    stain_probability: float = _USUAL.stain_probability
    stain_strength: float = _USUAL.stain_strength
    stain_shift: float = _USUAL.stain_shift


@dataclass(frozen=True)
class ViewParameters:
    """What was drawn for each tile; every field has length B. An op that was not drawn holds its identity."""

    crop: torch.Tensor  # (B, 4): left, top, width, height, in fractions of the tile
    flip: torch.Tensor  # (B, 2): -1 mirrors x, y; else 1
    rotation: torch.Tensor  # degrees
    translation: torch.Tensor  # (B, 2), fractions
    scale: torch.Tensor
    shear: torch.Tensor  # (B, 2), degrees
    blur_sigma: torch.Tensor  # pixels; 0 leaves the tile as it is
    brightness: torch.Tensor  # factors, 1 is the identity
    contrast: torch.Tensor
    saturation: torch.Tensor
    hue: torch.Tensor  # turns, 0 is the identity
    grayscale: torch.Tensor  # 0 or 1
    stain_gain: torch.Tensor  # (B, 3): factor on the amounts of haematoxylin, eosin and the rest
    stain_offset: torch.Tensor  # (B, 3): added to them

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Return all fields in their order; `ViewParameters(*tensors)` makes one again."""
        return tuple(getattr(self, field.name) for field in fields(self))


def philox(counter: Sequence[torch.Tensor | int], *, seed: int, like: torch.Tensor) -> torch.Tensor:
    """Return four 32-bit random words a counter, int64 (4, ...), by Philox4x32-10.

    Args:
        counter: four words in [0, 2^32), ints or int64 tensors that broadcast.
        seed: the 64-bit key.
        like: any tensor of the wanted device.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    mask = 0xFFFFFFFF
    # torch.full, not as_tensor: a number copied from the host would make a GPU wait.
    words = [
        word if isinstance(word, torch.Tensor) else torch.full((), word, dtype=torch.int64, device=like.device)
        for word in counter
    ]
    c0, c1, c2, c3 = torch.broadcast_tensors(*words)  # type: ignore[no-untyped-call]
    k0, k1 = seed & mask, (seed >> 32) & mask
    for _ in range(10):
        high0, low0 = _multiply(0xD2511F53, c0)
        high1, low1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return torch.stack([c0, c1, c2, c3])


def _multiply(factor: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the high and low 32 bits of factor * x; halves, because 32 x 32 bits overflow a signed int64."""
    low = (factor & 0xFFFF) * x  # < 2^48
    high = torch.add(low >> 16, x, alpha=factor >> 16)  # < 2^49
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def uniform(
    tiles: torch.Tensor, count: int, *, seed: int, epoch: int | torch.Tensor, view: int | torch.Tensor
) -> torch.Tensor:
    """Return `count` numbers in [0, 1) for each tile index, float32 (count, B), a function of the arguments alone."""
    blocks = torch.arange((count + 3) // 4, device=tiles.device)[:, None]
    words = philox([tiles[None] & 0xFFFFFFFF, blocks, epoch, view], seed=seed, like=tiles)  # (4, blocks, B)
    return (words >> 8).flatten(0, 1)[:count].float() * 2.0**-24


def draw(
    augmentation: Augmentation,
    tiles: torch.Tensor,
    *,
    seed: int,
    epoch: int | torch.Tensor,
    view: int | torch.Tensor,
    size_px: int,
) -> ViewParameters:
    """Return the parameters of one view of each tile.

    Args:
        tiles: int64 (B,), the tiles' indices in the data set.
        size_px: side of a tile; a crop is at least one pixel.
    """
    a = augmentation
    u = iter(uniform(tiles, 27, seed=seed, epoch=epoch, view=view).unbind())

    def between(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * next(u)

    def chance(probability: float) -> torch.Tensor:
        return next(u) < probability

    def factor(strength: float) -> torch.Tensor:
        return between(max(0.0, 1 - strength), 1 + strength)

    area = between(*a.crop_scale)
    ratio = torch.exp(between(math.log(a.crop_ratio[0]), math.log(a.crop_ratio[1])))
    # torchvision redraws a crop that leaves the tile; a counter-based draw cannot, so it is clipped to the side.
    width = (area * ratio).sqrt().clamp(1 / size_px, 1)
    height = (area / ratio).sqrt().clamp(1 / size_px, 1)
    crop = torch.stack([next(u) * (1 - width), next(u) * (1 - height), width, height], 1)
    flip = torch.stack([1 - 2.0 * chance(a.hflip_probability), 1 - 2.0 * chance(a.vflip_probability)], 1)

    affine = chance(a.affine_probability)
    rotation = between(-a.rotation_degrees, a.rotation_degrees) * affine
    shift = torch.stack([between(-a.translation, a.translation), between(-a.translation, a.translation)], 1)
    scale = torch.where(affine, between(*a.scale), 1.0)
    shear = torch.stack([between(-a.shear_degrees, a.shear_degrees), between(-a.shear_degrees, a.shear_degrees)], 1)

    blur = chance(a.blur_probability)
    sigma = between(*a.blur_sigma_px) * blur

    jitter = chance(a.jitter_probability)
    brightness = torch.where(jitter, factor(a.brightness), 1.0)
    contrast = torch.where(jitter, factor(a.contrast), 1.0)
    saturation = torch.where(jitter, factor(a.saturation), 1.0)
    hue = between(-a.hue, a.hue) * jitter
    grayscale = chance(a.grayscale_probability).float()

    stain = chance(a.stain_probability)[:, None]
    gain = torch.stack([factor(a.stain_strength), factor(a.stain_strength)], 1)
    gain = torch.cat([torch.where(stain, gain, 1.0), torch.ones_like(gain[:, :1])], 1)
    offset = torch.stack([between(-a.stain_shift, a.stain_shift), between(-a.stain_shift, a.stain_shift)], 1)
    offset = torch.cat([offset * stain, torch.zeros_like(offset[:, :1])], 1)
    return ViewParameters(
        crop=crop,
        flip=flip,
        rotation=rotation,
        translation=shift * affine[:, None],
        scale=scale,
        shear=shear * affine[:, None],
        blur_sigma=sigma,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue,
        grayscale=grayscale,
        stain_gain=gain,
        stain_offset=offset,
    )


def warp_matrix(p: ViewParameters) -> torch.Tensor:
    """Return the one matrix that maps output to input coordinates (each -1 to 1), (B, 2, 3): affine, flips, crop.

    The affine part follows torchvision: rotate by the angle, shear, scale, then shift, about the centre.
    """
    turn = torch.deg2rad(p.rotation)
    shear_x, shear_y = torch.deg2rad(p.shear).unbind(1)
    # torchvision's forward matrix R(turn) * Shear_y * Shear_x * scale, written out (its docs, `affine`).
    a = torch.cos(turn - shear_y) / torch.cos(shear_y)
    b = -torch.cos(turn - shear_y) * torch.tan(shear_x) / torch.cos(shear_y) - torch.sin(turn)
    c = torch.sin(turn - shear_y) / torch.cos(shear_y)
    d = -torch.sin(turn - shear_y) * torch.tan(shear_x) / torch.cos(shear_y) + torch.cos(turn)
    # The inverse: its determinant is that of shear and rotation, 1.
    inverse = torch.stack([d, -b, -c, a], 1).view(-1, 2, 2) / p.scale[:, None, None]
    offset = -(inverse @ (2 * p.translation)[:, :, None])[:, :, 0]  # fractions of the side are half of -1..1
    left_top, size = p.crop[:, :2], p.crop[:, 2:]
    stretch = p.flip * size
    centre = 2 * left_top + size - 1
    return torch.cat([stretch[:, :, None] * inverse, (stretch * offset + centre)[:, :, None]], 2)


def blur_radius(sigma_px: float) -> int:
    """Return the half width of the blur kernel that reaches three standard deviations."""
    return max(1, math.ceil(3 * sigma_px))
