"""Changes of the colours of tiles (B, 3, H, W) in 0-1, each tile by its own amount, (B,).

What an operation made for itself is changed in place, and colours are planes of H x W: most of the time goes into
moving pixels through memory.
"""

from __future__ import annotations

import math

import torch

# Ruifrok & Johnston 2001: optical density of haematoxylin, eosin, and what is left, in R, G, B.
STAINS = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776))
LUMA = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale


def grayscale(x: torch.Tensor) -> torch.Tensor:
    """Return the luma of (B, 3, H, W), (B, 1, H, W)."""
    return (LUMA[0] * x[:, 0:1]).add_(x[:, 1:2], alpha=LUMA[1]).add_(x[:, 2:3], alpha=LUMA[2])


def adjust_brightness(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return the tiles blended with black."""
    return (factor[:, None, None, None] * x).clamp_(0, 1)


def adjust_contrast(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return the tiles blended with their mean luma."""
    factor = factor[:, None, None, None]
    mean = grayscale(x.mean((2, 3), keepdim=True))
    return (factor * x).add_((1 - factor) * mean).clamp_(0, 1)


def adjust_saturation(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return the tiles blended with their luma."""
    factor = factor[:, None, None, None]
    return torch.addcmul(grayscale(x).mul_(1 - factor), factor, x).clamp_(0, 1)


def adjust_hue(x: torch.Tensor, turns: torch.Tensor, *, largest: float = 0.5) -> torch.Tensor:
    """Return the tiles with the hue of HSV turned; value and saturation stay.

    Up to a sixth of a turn needs no hue: with C the largest colour less the smallest, turning by t sixths moves the
    middle one by t C, up or down by the order of the three, until it meets the largest or smallest; that one takes up
    the rest. Both are 2 x - middle -+ t C for each colour x, kept between smallest and largest. A third of a turn
    passes red on to green, green to blue, blue to red.

    Args:
        turns: (B,), 0.5 is the complementary hue.
        largest: |turns| is at most this; up to a sixth saves a pass.
    """
    if largest > 1 / 6:
        thirds = torch.round(3 * turns)
        source = (torch.arange(3, device=x.device) - thirds.long()[:, None]) % 3  # (B, 3)
        source = source + 3 * torch.arange(len(x), device=x.device)[:, None]
        x = x.flatten(0, 1).index_select(0, source.flatten()).view(x.shape)
        turns = turns - thirds / 3
    red, green, blue = x.unbind(1)  # (B, H, W) each
    high, low = torch.maximum(red, green), torch.minimum(red, green)
    value, lowest = torch.maximum(high, blue), torch.minimum(low, blue)
    middle = torch.clamp(blue, low, high)
    shift = (value - lowest).mul_(6 * turns[:, None, None])
    turned = torch.add(middle.neg_()[:, None], x, alpha=2)
    for i, (following, last) in enumerate(((green, blue), (blue, red), (red, green))):
        turned[:, i].addcmul_((following - last).sign_(), shift, value=-1)
    return turned.clamp_(lowest[:, None], value[:, None])


def adjust_grayscale(x: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Return the tiles blended with their luma, wholly at 1."""
    return x + amount[:, None, None, None] * (grayscale(x) - x)


def adjust_stain(x: torch.Tensor, gain: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Return the tiles with their amounts of haematoxylin and eosin changed, in optical-density space.

    amounts -> gain * amounts + offset (Tellez et al., arXiv:1808.05896). Only what is added to the amounts is mixed
    back, so an unchanged tile stays exactly as it was, black pixels included. The stains are plain numbers, since a
    tensor of them would be copied to the device.
    """
    red, green, blue = x.clamp(min=1 / 255).log_().neg_().unbind(1)  # optical density, (B, H, W) each
    gain, offset = gain[:, :, None, None] - 1, offset[:, :, None, None]
    change = torch.zeros_like(x)
    for k, (stain, unmix) in enumerate(zip(unit_stains(), zip(*unmixing(), strict=True), strict=True)):
        added = (unmix[0] * red).add_(green, alpha=unmix[1]).add_(blue, alpha=unmix[2])
        added.mul_(gain[:, k]).add_(offset[:, k])
        for channel in range(3):
            change[:, channel].sub_(added, alpha=stain[channel])
    return change.exp_().mul_(x).clamp_(0, 1)


def unit_stains() -> list[list[float]]:
    return [[v / math.sqrt(sum(w * w for w in stain)) for v in stain] for stain in STAINS]


def unmixing() -> list[list[float]]:
    """Return the inverse of the row-normalised stain matrix; in plain numbers, since a 3 x 3 needs no device."""
    (a, b, c), (d, e, f), (g, h, i) = unit_stains()
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    adjugate = [
        [e * i - f * h, c * h - b * i, b * f - c * e],
        [f * g - d * i, a * i - c * g, c * d - a * f],
        [d * h - e * g, b * g - a * h, a * e - b * d],
    ]
    return [[v / determinant for v in row] for row in adjugate]
