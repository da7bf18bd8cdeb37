"""The views of `sscl.augment` as four CUDA kernels: uint8 tiles in, normalised channels_last views out.

The same numbers as `augment.render` from the same drawn parameters, without a copy of the batch for the second view and
without a cast to the precision of the step. A view of 224 px moves about 4 MB through memory:

    warp          uint8 tile -> float32 planes      one bilinear sampling: crop, flips, affine
    blur_rows     planes -> planes                  left out where the settings have no blur
    blur_columns  planes -> planes, partial luma    and brightness; contrast needs the luma of the whole view
    colours       planes -> NHWC view               contrast, saturation, hue, stain jitter, grayscale, normalisation

V views of N tiles (V = k N: the first view of every tile, then the second), S pixels a side, P numbers a view, R the
radius of the blur. Needs Triton, which comes with torch on Linux and takes compute capability 7.0 or newer; `augment`
chooses between this and its own operations.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sscl.colours import LUMA, unit_stains, unmixing
from sscl.draws import Augmentation, ViewParameters, blur_radius, warp_matrix

BLOCK = 256  # pixels a program

# Where the numbers of a view begin in its row of the table. Kernels see only globals that are tl.constexpr.
MATRIX = tl.constexpr(0)  # 2 x 3, output to input coordinates in -1 to 1
SIGMA = tl.constexpr(6)
BRIGHTNESS = tl.constexpr(7)
CONTRAST = tl.constexpr(8)
SATURATION = tl.constexpr(9)
HUE = tl.constexpr(10)  # what is left of the turn after whole thirds
THIRDS = tl.constexpr(11)  # each passes red on to green, green to blue, blue to red
GRAYSCALE = tl.constexpr(12)
STAIN = tl.constexpr(13)  # 3 x 3, optical density to its change
STAIN_SHIFT = tl.constexpr(22)  # 3, the rest of that change
TAPS = tl.constexpr(25)  # 2 R + 1, of the blur
RED, GREEN, BLUE = map(tl.constexpr, LUMA)


def view_table(p: ViewParameters, *, augmentation: Augmentation, size_px: int) -> torch.Tensor:
    """Return the numbers that the kernels need of each view, float32 (V, P).

    A whole epoch's table costs as many launches as one batch's: a step then only takes its rows.

    Args:
        p: drawn parameters of V views.
        augmentation: what they were drawn by.
        size_px: S.
    """
    thirds = torch.round(3 * p.hue)
    # adjust_stain adds (gain - 1) * amount + offset to the three amounts of stain, and amounts are linear in density.
    to_amounts, to_density = (
        torch.stack([torch.stack([torch.full_like(p.hue, value) for value in row], 1) for row in matrix], 1)
        for matrix in (unmixing(), unit_stains())
    )  # (V, 3, 3) each: density (row vector) to amounts, amounts to density; filled, so that nothing is copied
    change = -(to_amounts * (p.stain_gain - 1)[:, None, :]) @ to_density
    shift = -(p.stain_offset[:, None, :] @ to_density)
    columns = [
        warp_matrix(p).flatten(1),
        *(x[:, None] for x in (p.blur_sigma, p.brightness, p.contrast, p.saturation, p.hue - thirds / 3, thirds)),
        p.grayscale[:, None],
        change.mT.flatten(1),
        shift.flatten(1),
    ]
    if _blurs(augmentation):
        radius = _radius(augmentation, size_px)
        steps = torch.arange(-radius, radius + 1, device=p.scale.device)
        taps = torch.exp(-0.5 * (steps / p.blur_sigma.clamp(min=1e-3)[:, None]) ** 2)
        columns.append(taps / taps.sum(1, keepdim=True))
    return torch.cat(columns, 1)


def views(
    images: torch.Tensor,
    table: torch.Tensor,
    *,
    augmentation: Augmentation,
    mean: torch.Tensor,
    std: torch.Tensor,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return the views (V, 3, S, S), channels_last, in the precision `dtype`.

    Args:
        images: uint8 (N, S, S, 3).
        table: float32 (V, P) of `view_table`; row v is of tile v mod N.
        augmentation: what it was drawn by.
        mean, std: float32 (3,), of pixels scaled to 0-1.

    Raises:
        ValueError: tiles are not square uint8 RGB, or the views are no multiple of the tiles.
    """
    side = images.shape[1]
    if images.dtype != torch.uint8 or images.shape[1:] != (side, side, 3):
        raise ValueError(f"images: must be uint8 (N, S, S, 3), got {images.dtype} {tuple(images.shape)}")
    if len(table) % len(images):
        raise ValueError(f"table: has {len(table)} views, which is no multiple of {len(images)} tiles")
    a, jitters = augmentation, augmentation.jitter_probability > 0
    switches = [  # as `_launch` takes them
        *(_radius(a, side), _blurs(a), jitters and a.brightness > 0, jitters and a.contrast > 0),
        *(jitters and a.saturation > 0, jitters and a.hue > 0, a.stain_probability > 0, a.grayscale_probability > 0),
    ]
    made: torch.Tensor = torch.ops.sscl.views(images, table, mean, std, [int(x) for x in switches], dtype)
    return made


def _launch(
    images: torch.Tensor,
    table: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    switches: list[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    radius = switches[0]
    blurs, brightens, contrasts, saturates, turns, stains, greys = map(bool, switches[1:])
    images, table = images.contiguous(), table.contiguous()
    count, side, device = len(table), images.shape[1], images.device
    cells = triton.cdiv(side * side, BLOCK)
    grid, shared = (cells, count), {"P": table.shape[1], "S": side, "BLOCK": BLOCK}
    planes = torch.empty(count, 3, side, side, device=device)
    other = torch.empty_like(planes) if blurs or brightens or contrasts else planes
    luma = torch.empty(count, cells, device=device)  # of each program's pixels
    out = _empty(images, table, mean, std, switches, dtype)
    _warp[grid](images, table, planes, len(images), **shared)
    if blurs:
        _blur_rows[grid](planes, table, other, R=radius, **shared)
        planes, other = other, planes
    if other is not planes:
        _blur_columns[grid](planes, table, other, luma, R=radius, BLURS=blurs, BRIGHTENS=brightens, **shared)
        planes = other
    _colours[grid](
        *(planes, table, luma, mean, std, out),
        CONTRASTS=contrasts,
        SATURATES=saturates,
        TURNS=turns,
        STAINS=stains,
        GREYS=greys,
        CELLS=cells,
        PADDED=triton.next_power_of_2(cells),
        **shared,
    )
    return out


def _empty(
    images: torch.Tensor,
    table: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    switches: list[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    shape = (len(table), 3, images.shape[1], images.shape[1])
    return torch.empty(shape, device=images.device, dtype=dtype, memory_format=torch.channels_last)


# An operation of torch's, so that a compiled step calls it as it is and fake tensors know its result.
_operation = torch.library.custom_op(
    "sscl::views",
    _launch,
    mutates_args=(),
    schema="(Tensor images, Tensor table, Tensor mean, Tensor std, int[] switches, ScalarType dtype) -> Tensor",
)
_operation.register_fake(_empty)


def _blurs(a: Augmentation) -> bool:
    return a.blur_probability > 0 and a.blur_sigma_px[1] > 0


def _radius(a: Augmentation, size_px: int) -> int:
    return min(blur_radius(a.blur_sigma_px[1]), size_px - 1) if _blurs(a) else 1


# --- kernels: program (cell, view) computes BLOCK pixels of a view, all three colours ---


@triton.jit
def _pixels(S: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return at, at // S, at % S, at < S * S


@triton.jit
def _source(coordinate, S: tl.constexpr):
    """Return the pixel before a coordinate in -1 to 1 and how far it lies beyond it: F.grid_sample's reflection."""
    x = tl.abs((coordinate + 1) * (S / 2))  # pixels from the left edge, mirrored there
    widths = tl.floor(x / S)
    x -= widths * S
    x = tl.where((widths.to(tl.int32) & 1) == 0, x, S - x) - 0.5
    x = tl.minimum(tl.maximum(x, 0.0), S - 1.0)
    before = tl.floor(x)
    return before.to(tl.int32), x - before


@triton.jit
def _warp(images, table, planes, tiles, P: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr):
    view = tl.program_id(1).to(tl.int64)
    at, row, column, inside = _pixels(S, BLOCK)
    across = (2 * column + 1 - S).to(tl.float32) / S
    down = (2 * row + 1 - S).to(tl.float32) / S
    m = table + view * P + MATRIX
    x0, x = _source(tl.load(m) * across + (tl.load(m + 1) * down + tl.load(m + 2)), S)
    y0, y = _source(tl.load(m + 3) * across + (tl.load(m + 4) * down + tl.load(m + 5)), S)
    x1, y1 = tl.minimum(x0 + 1, S - 1), tl.minimum(y0 + 1, S - 1)  # at the last pixel the weight is 0
    images += (view % tiles) * (S * S * 3)
    planes += view * (3 * S * S) + at
    for colour in tl.static_range(3):
        upper_left = tl.load(images + (y0 * S + x0) * 3 + colour, mask=inside, other=0).to(tl.float32)
        upper_right = tl.load(images + (y0 * S + x1) * 3 + colour, mask=inside, other=0).to(tl.float32)
        lower_left = tl.load(images + (y1 * S + x0) * 3 + colour, mask=inside, other=0).to(tl.float32)
        lower_right = tl.load(images + (y1 * S + x1) * 3 + colour, mask=inside, other=0).to(tl.float32)
        upper = upper_left * (1 - x) + upper_right * x
        lower = lower_left * (1 - x) + lower_right * x
        tl.store(planes + colour * (S * S), (upper * (1 - y) + lower * y) * (1 / 255), mask=inside)


@triton.jit
def _mirrored(x, S: tl.constexpr):
    """Return pixels beyond an edge mirrored at the outermost pixel: F.pad's reflection, within one width."""
    x = tl.abs(x)
    return tl.where(x >= S, 2 * (S - 1) - x, x)


@triton.jit
def _blur_rows(planes, table, out, P: tl.constexpr, R: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr):
    view = tl.program_id(1).to(tl.int64)
    at, row, column, inside = _pixels(S, BLOCK)
    table += view * P
    sharp = tl.load(table + SIGMA) == 0
    for colour in tl.static_range(3):
        plane = (view * 3 + colour) * (S * S)
        if sharp:
            value = tl.load(planes + plane + at, mask=inside, other=0)
        else:
            value = tl.zeros([BLOCK], tl.float32)
            for k in tl.static_range(2 * R + 1):
                near = row * S + _mirrored(column + k - R, S)
                value += tl.load(table + TAPS + k) * tl.load(planes + plane + near, mask=inside, other=0)
        tl.store(out + plane + at, value, mask=inside)


@triton.jit
def _blur_columns(
    planes,
    table,
    out,
    luma,
    P: tl.constexpr,
    R: tl.constexpr,
    BLURS: tl.constexpr,
    BRIGHTENS: tl.constexpr,
    S: tl.constexpr,
    BLOCK: tl.constexpr,
):
    view = tl.program_id(1).to(tl.int64)
    at, row, column, inside = _pixels(S, BLOCK)
    table += view * P
    sharp = tl.load(table + SIGMA) == 0
    grey = tl.zeros([BLOCK], tl.float32)
    for colour in tl.static_range(3):
        plane = (view * 3 + colour) * (S * S)
        value = tl.load(planes + plane + at, mask=inside, other=0)
        if BLURS:  # noqa: SIM102 -- the one is known when the kernel is compiled, the other is not
            if not sharp:
                value = tl.zeros([BLOCK], tl.float32)
                for k in tl.static_range(2 * R + 1):
                    near = _mirrored(row + k - R, S) * S + column
                    value += tl.load(table + TAPS + k) * tl.load(planes + plane + near, mask=inside, other=0)
        if BRIGHTENS:
            value = _unit(value * tl.load(table + BRIGHTNESS))
        tl.store(out + plane + at, value, mask=inside)
        grey += value * (RED if colour == 0 else (GREEN if colour == 1 else BLUE))
    # Sums of programs, added up in one order by `_colours`: an atomic sum would differ from run to run.
    tl.store(luma + view * tl.num_programs(0) + tl.program_id(0), tl.sum(tl.where(inside, grey, 0.0)))


@triton.jit
def _unit(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def _turned(x, middle, move, order, lowest, highest):
    """Return one colour with the hue turned, see `colours.adjust_hue`."""
    return tl.minimum(tl.maximum(2 * x - middle - _sign(order) * move, lowest), highest)


@triton.jit
def _colours(
    planes,
    table,
    luma,
    mean,
    std,
    out,
    P: tl.constexpr,
    CONTRASTS: tl.constexpr,
    SATURATES: tl.constexpr,
    TURNS: tl.constexpr,
    STAINS: tl.constexpr,
    GREYS: tl.constexpr,
    CELLS: tl.constexpr,
    PADDED: tl.constexpr,
    S: tl.constexpr,
    BLOCK: tl.constexpr,
):
    view = tl.program_id(1).to(tl.int64)
    at, _, _, inside = _pixels(S, BLOCK)
    planes += view * (3 * S * S) + at
    table += view * P
    r = tl.load(planes, mask=inside, other=0)
    g = tl.load(planes + S * S, mask=inside, other=0)
    b = tl.load(planes + 2 * S * S, mask=inside, other=0)
    if CONTRASTS:
        part = tl.arange(0, PADDED)
        total = tl.sum(tl.load(luma + view * CELLS + part, mask=part < CELLS, other=0))
        factor = tl.load(table + CONTRAST)
        shift = (1 - factor) * (total / (S * S))
        r, g, b = _unit(factor * r + shift), _unit(factor * g + shift), _unit(factor * b + shift)
    if SATURATES:
        factor = tl.load(table + SATURATION)
        grey = (RED * r + GREEN * g + BLUE * b) * (1 - factor)
        r, g, b = _unit(factor * r + grey), _unit(factor * g + grey), _unit(factor * b + grey)
    if TURNS:
        thirds = tl.load(table + THIRDS)
        once = (thirds == 1) | (thirds == -2)
        twice = (thirds == -1) | (thirds == 2)
        first = tl.where(once, b, tl.where(twice, g, r))
        second = tl.where(once, r, tl.where(twice, b, g))
        third = tl.where(once, g, tl.where(twice, r, b))
        high, low = tl.maximum(first, second), tl.minimum(first, second)
        highest, lowest = tl.maximum(high, third), tl.minimum(low, third)
        middle = tl.minimum(tl.maximum(third, low), high)
        move = (highest - lowest) * (6 * tl.load(table + HUE))
        r = _turned(first, middle, move, second - third, lowest, highest)
        g = _turned(second, middle, move, third - first, lowest, highest)
        b = _turned(third, middle, move, first - second, lowest, highest)
    if STAINS:
        dr, dg, db = -tl.log(tl.maximum(r, 1 / 255)), -tl.log(tl.maximum(g, 1 / 255)), -tl.log(tl.maximum(b, 1 / 255))
        m, s = table + STAIN, table + STAIN_SHIFT
        cr = tl.load(m) * dr + tl.load(m + 1) * dg + tl.load(m + 2) * db + tl.load(s)
        cg = tl.load(m + 3) * dr + tl.load(m + 4) * dg + tl.load(m + 5) * db + tl.load(s + 1)
        cb = tl.load(m + 6) * dr + tl.load(m + 7) * dg + tl.load(m + 8) * db + tl.load(s + 2)
        r, g, b = _unit(tl.exp(cr) * r), _unit(tl.exp(cg) * g), _unit(tl.exp(cb) * b)
    if GREYS:
        amount = tl.load(table + GRAYSCALE)
        grey = RED * r + GREEN * g + BLUE * b
        r, g, b = r + amount * (grey - r), g + amount * (grey - g), b + amount * (grey - b)
    pixel = out + view * (3 * S * S) + at * 3
    kind = out.dtype.element_ty
    tl.store(pixel, ((r - tl.load(mean)) / tl.load(std)).to(kind), mask=inside)
    tl.store(pixel + 1, ((g - tl.load(mean + 1)) / tl.load(std + 1)).to(kind), mask=inside)
    tl.store(pixel + 2, ((b - tl.load(mean + 2)) / tl.load(std + 2)).to(kind), mask=inside)
