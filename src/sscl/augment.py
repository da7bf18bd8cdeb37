"""The two augmented views of a batch of tiles: one warp, one blur, then the colours, on the device of the tiles.

The parameters of each view come from `draws`. Nothing here looks at a value or copies one to or from the device, so the
whole can be compiled to one graph.

Most of the time goes into moving pixels through memory. So a CPU goes through the batch a few tiles at a time, which
then stay in its cache, colours are planes of H x W rather than pixels of three, and what an operation made for itself
is changed in place.

B tiles, H = W pixels, n random numbers a tile.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from sscl.colours import (
    adjust_brightness,
    adjust_contrast,
    adjust_grayscale,
    adjust_hue,
    adjust_saturation,
    adjust_stain,
)
from sscl.compilers import c_compiler, has_headers
from sscl.draws import Augmentation, ViewParameters, blur_radius, draw, warp_matrix

CACHED_PIXELS = 2 * 224 * 224  # a CPU core works on this many at once: about 1 MB for three colours in float32
BAND_PX = 32  # the blur is a product with a matrix for so many pixels; measured fastest, and a GPU's tile size

Operation = tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]  # a function of tiles, its (B, ...) arguments


def view(
    images: torch.Tensor,
    tiles: torch.Tensor,
    *,
    augmentation: Augmentation,
    seed: int,
    epoch: int | torch.Tensor,
    view: int | torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    count: int = 1,
) -> torch.Tensor:
    """Return random views of tiles, normalised, float32 (V, 3, H, W) in channels_last: see `render`.

    The order is the paper's: crop, flips, blur and affine (one warp, then the blur), colour jitter; then stain jitter
    and grayscale, which are ours.

    Args:
        images: uint8 (B, H, W, 3), square.
        tiles: int64 (B,), the tiles' indices in the data set.
        epoch: a number, or int64 without dimensions on the tiles' device: a compiled step is then the same each epoch.
        view: 0 or 1, for all tiles or one for each, int64 (B,); other numbers give further views.
        mean, std: float32 (3,), of pixels scaled to 0-1.
        count: k, views of each tile, V = k B: that number and those that follow it.
    """
    batch, side = images.shape[0], images.shape[1]
    numbers = (torch.arange(count, device=tiles.device)[:, None] + view).expand(count, batch).flatten()
    drawn = prepare(tiles.repeat(count), augmentation=augmentation, seed=seed, epoch=epoch, view=numbers, size_px=side)
    return render(images, drawn, augmentation=augmentation, mean=mean, std=std)


def prepare(
    tiles: torch.Tensor,
    *,
    augmentation: Augmentation,
    seed: int,
    epoch: int | torch.Tensor,
    view: int | torch.Tensor,
    size_px: int,
) -> tuple[torch.Tensor, ...]:
    """Return what `render` needs to know of views: tensors with a row for each, (V, ...), on the tiles' device.

    A GPU takes as long for an epoch's views as for a batch's, so draw many at once. Arguments as of `draws.draw`.
    """
    # Autocast off: in bf16 the warp's coordinates and the stains would be good to three digits only.
    with torch.no_grad(), torch.autocast(tiles.device.type, enabled=False):
        p = draw(augmentation, tiles, seed=seed, epoch=epoch, view=view, size_px=size_px)
        if not uses_kernels(tiles.device):
            return p.tensors()
        from sscl.augment_triton import view_table

        return (view_table(p, augmentation=augmentation, size_px=size_px),)


def uses_kernels(device: torch.device) -> bool:
    """Return whether views are made by the CUDA kernels of `augment_triton`, the one place where that is decided."""
    return device.type == "cuda" and kernels_lack(device) is None


def kernels_lack(device: torch.device) -> str | None:
    """Return what a CUDA device lacks for the kernels of the views, in words; None if nothing.

    Triton comes with torch on Linux, needs compute capability 7.0, and builds its launcher in C.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if torch.cuda.get_device_capability(device) < (7, 0):
        return "Triton needs compute capability 7.0"
    if c_compiler() is None:
        return "Triton needs a C compiler, for instance gcc"
    if not has_headers():
        return "Triton needs Python.h (Debian, Ubuntu: apt install python3-dev)"
    return None


def render(
    images: torch.Tensor,
    prepared: tuple[torch.Tensor, ...],
    *,
    augmentation: Augmentation,
    mean: torch.Tensor,
    std: torch.Tensor,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return views of tiles, normalised, (V, 3, H, W) in channels_last: the first of every tile, then the second, ...

    Args:
        images: uint8 (B, H, W, 3), square.
        prepared: of `prepare`, V = k B rows.
        augmentation: what they were drawn by.
        mean, std: float32 (3,), of pixels scaled to 0-1.
        dtype: what the kernels write, the precision of the step; without them views are float32.
    """
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        if len(prepared) == 1:  # a table
            from sscl.augment_triton import views as kernel_views

            return kernel_views(images, *prepared, augmentation=augmentation, mean=mean, std=std, dtype=dtype)
        side, count = images.shape[1], len(prepared[0])
        todo = operations(ViewParameters(*prepared), augmentation=augmentation, size_px=side)
        sources = images if count == len(images) else images.repeat(count // len(images), 1, 1, 1)
        views = torch.empty((count, 3, side, side), device=images.device, memory_format=torch.channels_last)
        size = _tiles_at_once(sources)
        for start in range(0, count, size):
            part = slice(start, start + size)
            x = to_unit(sources[part])
            for operation, arguments in todo:
                x = operation(x, *(argument[part] for argument in arguments))
            views[part] = x.sub_(mean[:, None, None]).div_(std[:, None, None])  # as normalise, in place
        return views


def _tiles_at_once(images: torch.Tensor) -> int:
    """Return how many tiles to go through at a time: what fits a CPU's cache; a GPU and a compiler want them all."""
    if images.device.type != "cpu" or torch.compiler.is_compiling():
        return len(images)
    return max(1, torch.get_num_threads() * CACHED_PIXELS // (images.shape[1] * images.shape[2]))


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 (B, H, W, 3) as float32 (B, 3, H, W) in 0-1, channels_last."""
    return images.permute(0, 3, 1, 2).to(torch.float32, copy=True).div_(255)


def normalise(x: torch.Tensor, *, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Return (x - mean) / std for each channel of (B, 3, H, W)."""
    return (x - mean[:, None, None]).div_(std[:, None, None])


def operations(p: ViewParameters, *, augmentation: Augmentation, size_px: int) -> list[Operation]:
    """Return what is done to the tiles, in this order; ops that are switched off are left out."""
    a = augmentation
    todo: list[Operation] = [(_sample, _coordinates(p, size_px=size_px))]
    if a.blur_probability > 0 and a.blur_sigma_px[1] > 0:
        matrix = _blur_matrix(p.blur_sigma, radius=blur_radius(a.blur_sigma_px[1]), size_px=size_px)
        todo.append((_blur, (matrix,)))
    if a.jitter_probability > 0:
        if a.brightness:
            todo.append((adjust_brightness, (p.brightness,)))
        if a.contrast:
            todo.append((adjust_contrast, (p.contrast,)))
        if a.saturation:
            todo.append((adjust_saturation, (p.saturation,)))
        if a.hue:
            todo.append((partial(adjust_hue, largest=a.hue), (p.hue,)))
    if a.stain_probability > 0:
        todo.append((adjust_stain, (p.stain_gain, p.stain_offset)))
    if a.grayscale_probability > 0:
        todo.append((adjust_grayscale, (p.grayscale,)))
    return todo


def warp(x: torch.Tensor, p: ViewParameters) -> torch.Tensor:
    """Return the tiles cropped, flipped and transformed by one bilinear sampling, (B, 3, H, W).

    What an affine shift brings in from outside the crop is the tile's own surroundings, and mirrored tissue beyond its
    edge: black corners would tell the two views of a tile apart from those of another.
    """
    return _sample(x, *_coordinates(p, size_px=x.shape[-1]))


def _coordinates(p: ViewParameters, *, size_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where in the tile (x, y in -1 to 1) pixels are taken from: parts by column and by row, (B, 2, W or H).

    Their sum is the grid. F.affine_grid multiplies by the matrix for each pixel, which is slower than the sampling.
    """
    matrix = warp_matrix(p)
    centres = (torch.arange(size_px, device=matrix.device, dtype=matrix.dtype) * 2 + (1 - size_px)) / size_px
    across, down, offset = (matrix[:, :, i, None] for i in range(3))
    return across * centres, down * centres + offset


def _sample(x: torch.Tensor, across: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    grid = (across[:, :, None, :] + down[:, :, :, None]).permute(0, 2, 3, 1)  # (B, H, W, 2)
    return _compiled_grid_sample(x, grid) if torch.compiler.is_compiling() else _grid_sample(x, grid)


def _grid_sample(x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


# An operation that the compiler calls as it is: what it makes of grid_sample itself is 20 times slower on a CPU.
_compiled_grid_sample = torch.library.custom_op(
    "sscl::grid_sample", _grid_sample, mutates_args=(), schema="(Tensor x, Tensor grid) -> Tensor"
)
_compiled_grid_sample.register_fake(lambda x, grid: torch.empty_like(x, memory_format=torch.contiguous_format))


def blur(x: torch.Tensor, sigma: torch.Tensor, *, radius: int) -> torch.Tensor:
    """Return each tile blurred by its own Gaussian, separably, with mirrored borders; sigma 0 is the identity."""
    return _blur(x, _blur_matrix(sigma, radius=radius, size_px=x.shape[-1]))


def _blur_matrix(sigma: torch.Tensor, *, radius: int, size_px: int) -> torch.Tensor:
    """Return the matrices that blur a band of pixels from those around it, (B, band, band + 2 radius)."""
    radius = min(radius, size_px - 1)  # a mirrored border is at most as wide as the tile
    band = math.ceil(size_px / math.ceil(size_px / BAND_PX))
    steps = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = torch.exp(-0.5 * (steps / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)  # (B, taps)
    # Consecutive kernels with gaps of `band`, cut into rows one shorter, step to the right from row to row.
    length = band + 2 * radius
    return F.pad(kernel, (0, band)).repeat(1, band)[:, : band * length].reshape(-1, band, length)


def _blur(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return the tiles blurred along rows, then columns.

    A convolution with a kernel for each tile has no fast form; a matrix product has. One matrix serves all bands.
    """
    side, (band, length) = x.shape[-1], matrix.shape[1:]
    border = (length - band) // 2
    bands = -(-side // band)
    rest = bands * band - side  # the last band may reach beyond the tile; what it has there is cut off
    rows = F.pad(x, (border, border, 0, 0), mode="reflect")
    rows = F.pad(rows, (0, rest)) if rest else rows
    rows = rows.flatten(1, 2).unfold(2, length, band).flatten(1, 2)  # (B, 3 H bands, length)
    x = torch.bmm(rows, matrix.mT).view(*x.shape[:3], bands * band)[..., :side]
    columns = F.pad(x, (0, 0, border, border), mode="reflect")
    columns = F.pad(columns, (0, 0, 0, rest)) if rest else columns
    columns = columns.flatten(0, 1).unfold(1, length, band).mT.flatten(0, 1)  # (3 B bands, length, W)
    blurred = torch.bmm(matrix.repeat_interleave(3 * bands, 0), columns)
    return blurred.view(x.shape[0], 3, bands * band, side)[:, :, :side]
