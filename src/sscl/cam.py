"""Grad-CAM: raw maps, boxes, overlays, and how well they hit a truth mask.

Maps stay raw (signed, in logits per cell) until they are drawn: for a net that ends in global average pooling
and a linear layer they sum to the score without its bias, so their size means something. Shape letters: B
tiles, C channels, h x w cells of the last feature map, H x W pixels, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

FloatArray = npt.NDArray[np.floating[Any]]
ByteArray = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]
Target = int | tuple[int, int] | Tensor | None

# Least peak, in logits per cell, that counts as evidence. On a 7 x 7 map everything below it together moves
# the logit by less than 0.005 and a probability by about a thousandth.
MIN_EVIDENCE = 1e-4
# A positive peak this small beside the largest value of either sign is the rounding of a sum over channels
# (float32: 6e-8 a term, some thousand terms).
_ROUNDING = 1e-5

COLORMAPS = {
    "viridis": cv2.COLORMAP_VIRIDIS,
    "inferno": cv2.COLORMAP_INFERNO,
    "magma": cv2.COLORMAP_MAGMA,
    "cividis": cv2.COLORMAP_CIVIDIS,
}


class CamModel(Protocol):
    """What `grad_cam` asks of a classifier (timm's names)."""

    training: bool

    def forward_features(self, x: Tensor, /) -> Tensor: ...  # (B, 3, H, W) -> (B, C, h, w)

    def forward_head(self, maps: Tensor, /) -> Tensor: ...  # (B, C, h, w) -> (B, K)


@dataclass(frozen=True)
class Box:
    """The rectangle around the largest connected region of a map, and what is needed to judge it.

    Attributes:
        x0, y0, x1, y1: pixels, half open: columns x0..x1-1, rows y0..y1-1.
        threshold: fraction of the maximum above which a pixel belongs to a region.
        connectivity: 4 or 8.
        components: number of connected regions above the threshold; only the largest is boxed.
        area_fraction: area of the rectangle / area of the map.
        raw_maximum: largest value of the map before any scaling.
    """

    x0: int
    y0: int
    x1: int
    y1: int
    threshold: float
    connectivity: int
    components: int
    area_fraction: float
    raw_maximum: float


def grad_cam(model: CamModel, images: Tensor, *, target: Target) -> tuple[Tensor, Tensor]:
    """Return the raw Grad-CAM maps (B, h, w), before ReLU and scaling, and the logits (B, K).

    The trunk runs without a graph; only the head is differentiated, with respect to its input. So no hook is
    needed, no `.grad` is left behind, and it works on frozen parameters and inside `torch.no_grad`.

    Args:
        model: a classifier in eval mode, see `CamModel`.
        images: (B, 3, H, W), normalised as the model expects, on its device.
        target: a class; or (a, b) for the difference logit a - logit b; or a class per image, an integer
            tensor (B,); or None for the class that the model predicts, image by image. With two classes prefer
            (a, b): adding one vector to both rows of the head changes no probability, and not this map, but it
            does change the map of one class.

    Raises:
        ValueError: the model is in training mode, or the target names no class.

    Source: Selvaraju et al., arXiv:1610.02391, Eq. 1 and 2 without the ReLU.
    """
    if model.training:
        raise ValueError("model: is in training mode, where maps depend on the other tiles; call model.eval() first")
    with torch.inference_mode(False), torch.no_grad():
        # The faster order for convolutions, and on a CPU for pooling still more.
        features = model.forward_features(images.contiguous(memory_format=torch.channels_last)).detach()
    with torch.inference_mode(False), torch.enable_grad():
        features.requires_grad_(True)
        logits = model.forward_head(features)
        score = _score(logits, target)
        (gradient,) = torch.autograd.grad(score.sum(), features)
    features, logits = features.detach(), logits.detach()
    dtype = torch.promote_types(features.dtype, torch.float32)  # half precision is too coarse for the sum below
    weights = gradient.to(dtype).mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
    return (weights * features.to(dtype)).sum(dim=1), logits


def upsample(maps: Tensor, *, size_px: int) -> Tensor:
    """Return maps (B, h, w) enlarged bilinearly to (B, size_px, size_px), as `cv2.resize` does."""
    if maps.ndim != 3:
        raise ValueError(f"maps: shape {tuple(maps.shape)}, must be (tiles, height, width)")
    return F.interpolate(maps[:, None], size=(size_px, size_px), mode="bilinear", align_corners=False)[:, 0]


def has_evidence(cam: FloatArray, *, min_evidence: float = MIN_EVIDENCE) -> bool:
    """Return whether a raw map (H, W) speaks for its target at all.

    It does when its maximum is positive, at least `min_evidence` (logits per cell), and more than rounding
    beside the largest value of either sign.

    Raises:
        ValueError: the map is no matrix, or holds a value that is not finite.
    """
    if cam.ndim != 2 or cam.size == 0:
        raise ValueError(f"map: shape {cam.shape}, must be (height, width) and not empty")
    if not np.isfinite(cam).all():
        raise ValueError("map: holds NaN or infinite values; the model's weights or its input are broken")
    peak = float(cam.max())
    return peak > 0 and peak >= min_evidence and peak > _ROUNDING * float(np.abs(cam).max())


def normalise(cam: FloatArray, *, min_evidence: float = MIN_EVIDENCE) -> npt.NDArray[np.float32]:
    """Return the positive part of a raw map (H, W) over its maximum, in 0..1; all zeros without evidence.

    Never min-max: that turns a constant positive map into zeros and rounding noise into a confident peak.
    """
    if not has_evidence(cam, min_evidence=min_evidence):
        return np.zeros(cam.shape, dtype=np.float32)
    scaled: npt.NDArray[np.float32] = (np.maximum(cam, 0) / cam.max()).astype(np.float32)
    return scaled


def find_box(
    cam: FloatArray, *, threshold: float = 0.2, connectivity: int = 8, min_evidence: float = MIN_EVIDENCE
) -> Box | None:
    """Return the rectangle around the largest connected region of a raw map (H, W), or None without evidence.

    The region is made of the pixels of at least `threshold` of the maximum. The threshold drives the size of
    the box, so it is kept in the result. The largest region need not hold the peak.

    Args:
        cam: one raw map, already enlarged to the tile, so that the box is in pixels of the tile.
        threshold: within 0..1, 0 excluded. CAM's convention is 0.2; the authors of Grad-CAM use 0.15.
        connectivity: 8 or 4.
        min_evidence: see `has_evidence`.

    Raises:
        ValueError: threshold or connectivity is not allowed, or the map is not finite.

    Source: Zhou et al., arXiv:1512.04150, section 3.2.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: {threshold}, must be above 0 and at most 1 (0.2 is usual)")
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity: {connectivity}, must be 4 or 8")
    if not has_evidence(cam, min_evidence=min_evidence):
        return None
    peak = float(cam.max())
    above = (cam >= threshold * cam.max()).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=connectivity)
    largest = stats[1:][stats[1:, cv2.CC_STAT_AREA].argmax()]  # row 0 is the background
    x0, y0 = int(largest[cv2.CC_STAT_LEFT]), int(largest[cv2.CC_STAT_TOP])
    width, height = int(largest[cv2.CC_STAT_WIDTH]), int(largest[cv2.CC_STAT_HEIGHT])
    return Box(
        x0=x0,
        y0=y0,
        x1=x0 + width,
        y1=y0 + height,
        threshold=threshold,
        connectivity=connectivity,
        components=count - 1,
        area_fraction=width * height / cam.size,
        raw_maximum=peak,
    )


def localisation(cam: FloatArray, box: Box | None, mask: BoolArray) -> dict[str, Any]:
    """Return how well a map and its box hit a truth mask: {`peak_hit`, `box_iou`, `box_hit`}.

    `peak_hit`: the map's largest value lies on the mask (pointing game, without a margin). `box_iou`:
    intersection over union of the box and the smallest rectangle that holds the whole mask; `box_hit`: that
    is at least 0.5. Without a box (no evidence) all are misses. These numbers depend on how much of the tile
    the mask covers: read them beside those of `centre_map`.

    Args:
        cam: one raw map, (H, W).
        box: of that map, from `find_box`.
        mask: truth, bool (H, W).

    Raises:
        ValueError: the shapes differ, or the mask is empty.

    Source: pointing game, Zhang et al., arXiv:1608.00507; box accuracy at IoU 0.5, Choe et al.,
    arXiv:2001.07437.
    """
    if cam.shape != mask.shape:
        raise ValueError(f"map and mask: shapes {cam.shape} and {mask.shape}, must be equal (enlarge the map first)")
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise ValueError("mask: has no true pixel, so there is nothing to hit; leave this tile out")
    if box is None:
        return {"peak_hit": False, "box_iou": 0.0, "box_hit": False}
    peak_hit = bool(mask[np.unravel_index(cam.argmax(), cam.shape)])
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    shared = max(0, min(box.x1, right) - max(box.x0, left)) * max(0, min(box.y1, bottom) - max(box.y0, top))
    union = (box.x1 - box.x0) * (box.y1 - box.y0) + (right - left) * (bottom - top) - shared
    return {"peak_hit": peak_hit, "box_iou": shared / union, "box_hit": shared >= 0.5 * union}


def centre_map(size_px: int) -> npt.NDArray[np.float32]:
    """Return a map (size_px, size_px) that always points at the centre: the baseline for `localisation`.

    A Gaussian of a standard deviation of a fifth of the side, peak about 1: its box at 0.2 is centred and 71%
    wide.
    """
    offset = (np.arange(size_px) - (size_px - 1) / 2) / (size_px / 5)
    return np.exp(-(offset[:, None] ** 2 + offset[None, :] ** 2) / 2).astype(np.float32)


def heatmap_rgb(map01: FloatArray, *, colormap: str = "viridis") -> ByteArray:
    """Return a map in 0..1 (H, W) as colours, uint8 (H, W, 3); the colormaps are perceptually uniform.

    Raises:
        ValueError: unknown colormap, or a map outside 0..1.
    """
    if colormap not in COLORMAPS:
        raise ValueError(f"colormap: {colormap!r}, must be one of {', '.join(COLORMAPS)}")
    _check_map01(map01)
    levels = np.round(map01 * 255).astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(levels, COLORMAPS[colormap])[..., ::-1])  # cv2 gives BGR


def overlay(image: ByteArray, map01: FloatArray, *, alpha: float = 0.7, colormap: str = "viridis") -> ByteArray:
    """Return the heatmap laid over a tile, uint8 (H, W, 3).

    The opacity is alpha x map, so tissue without evidence stays as it is, and a map without evidence changes
    nothing.

    Args:
        image: the tile, uint8 (H, W, 3).
        map01: from `normalise`, (H, W).
        alpha: opacity at the peak, 0..1.
        colormap: see `heatmap_rgb`.
    """
    _check_image(image)
    if image.shape[:2] != map01.shape:
        raise ValueError(f"image and map: {image.shape[:2]} and {map01.shape} pixels, must be equal (enlarge the map)")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: {alpha}, must lie within 0 to 1")
    opacity = alpha * map01[..., None]
    blended = (1 - opacity) * image + opacity * heatmap_rgb(map01, colormap=colormap)
    rounded: ByteArray = np.round(blended).astype(np.uint8)
    return rounded


def draw_box(image: ByteArray, box: Box | None) -> ByteArray:
    """Return a copy of a tile, uint8 (H, W, 3), with the box drawn; without a box, the plain copy.

    A yellow line with a black one inside it, so that it shows on white lumen and on dark nuclei alike, also
    to the colour-blind.
    """
    _check_image(image)
    drawn: ByteArray = image.copy()
    if box is None:
        return drawn
    width = max(1, round(min(image.shape[:2]) / 100))
    for inset, colour in ((0, (255, 221, 0)), (width, (0, 0, 0))):
        x0, y0, x1, y1 = box.x0 + inset, box.y0 + inset, box.x1 - inset, box.y1 - inset
        if x1 <= x0 or y1 <= y0:
            break
        drawn[y0 : min(y0 + width, y1), x0:x1] = colour
        drawn[max(y1 - width, y0) : y1, x0:x1] = colour
        drawn[y0:y1, x0 : min(x0 + width, x1)] = colour
        drawn[y0:y1, max(x1 - width, x0) : x1] = colour
    return drawn


def _score(logits: Tensor, target: Target) -> Tensor:
    """Return the score of each image, (B,)."""
    batch, classes = logits.shape
    if target is None:
        return logits.gather(1, logits.argmax(dim=1, keepdim=True))[:, 0]
    if isinstance(target, Tensor):
        if target.shape != (batch,) or target.is_floating_point() or target.dtype == torch.bool:
            raise ValueError(
                f"target: {target.dtype} tensor of shape {tuple(target.shape)}, must be integers of shape "
                f"({batch},), one class per image"
            )
        named = target.tolist()
    else:
        named = list(target) if isinstance(target, tuple) else [target]
        if isinstance(target, tuple) and (len(named) != 2 or named[0] == named[1]):
            raise ValueError(f"target: {target}, must be a class or two different classes (a, b)")
    outside = [label for label in named if not 0 <= label < classes]
    if outside:
        raise ValueError(f"target: class {outside[0]}, must lie within 0 to {classes - 1}")
    if isinstance(target, Tensor):
        return logits.gather(1, target.to(logits.device, torch.int64)[:, None])[:, 0]
    if isinstance(target, tuple):
        return logits[:, target[0]] - logits[:, target[1]]
    return logits[:, target]


def _check_map01(map01: FloatArray) -> None:
    # Written so that NaN fails too.
    if map01.ndim != 2 or not (map01.min() >= 0 and map01.max() <= 1):
        raise ValueError(f"map: shape {map01.shape}, must be (height, width) with values within 0 to 1; see normalise")


def _check_image(image: ByteArray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image: {image.dtype} of shape {image.shape}, must be uint8 (height, width, 3)")
