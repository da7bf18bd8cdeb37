"""Grad-CAM and its relatives: raw maps, boxes, and how well they hit a truth mask.

Maps stay raw until they are drawn. Those of Grad-CAM and HiResCAM are signed, in logits per cell: for a net that ends
in global average pooling and a linear layer they sum to the score without its bias, so their size means something.
Shape letters: B tiles, C channels, h x w cells of a feature map, H x W pixels, K classes.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]
Target = int | tuple[int, int] | Tensor | Callable[[Tensor], Tensor] | None

METHODS = ("gradcam", "gradcam++", "layercam", "hirescam", "eigencam")
COMPLETE = ("gradcam", "hirescam")  # their maps of the last features sum to the score, see `unexplained`
FUSIONS = ("max", "mean")

# Least peak, in logits per cell, that counts as evidence. On a 7 x 7 map everything below it together moves
# the logit by less than 0.005 and a probability by about a thousandth.
MIN_EVIDENCE = 1e-4
# A positive peak this small beside the largest value of either sign is the rounding of a sum over channels
# (float32: 6e-8 a term, some thousand terms).
_ROUNDING = 1e-5


class CamModel(Protocol):
    """What `class_maps` asks of a classifier (timm's names); for named layers it must be a torch Module."""

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

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1."""
        return self.x0, self.y0, self.x1, self.y1


def grad_cam(model: CamModel, images: Tensor, *, target: Target) -> tuple[Tensor, Tensor]:
    """Return the raw Grad-CAM maps (B, h, w), before ReLU and scaling, and the logits (B, K): see `class_maps`."""
    return class_maps(model, images, target=target)


def class_maps(
    model: CamModel,
    images: Tensor,
    *,
    target: Target,
    method: str = "gradcam",
    layers: Sequence[str] = (),
    fuse: str = "max",
) -> tuple[Tensor, Tensor]:
    """Return raw maps (B, h, w), before ReLU and scaling, and the logits (B, K).

    Of the last feature map the trunk runs without a graph; only the head is differentiated, with respect to its
    input. Of named layers the graph begins at the first of them. No hook stays, no `.grad` is left behind, and it
    works on frozen parameters and inside `torch.no_grad`.

    With A the features and G the score's gradient, both (C, h, w), a cell of the map is

    - gradcam: sum over C of A x mean(G) (Selvaraju et al., arXiv:1610.02391, Eq. 1 and 2);
    - gradcam++: sum of A x sum(ReLU(G) / (2 + sum(A) G)), sums over cells (Chattopadhay et al., arXiv:1710.11063,
      Eq. 19 with G squared cancelled). They take G of exp(score), which scales a map as a whole;
    - layercam: sum of A x ReLU(G) (Jiang et al., IEEE TIP 2021, doi 10.1109/TIP.2021.3089943);
    - hirescam: sum of A x G (Draelos & Carin, arXiv:2011.08891). Of the last features, before pooling and a linear
      head, it is Grad-CAM;
    - eigencam: A on its first principal component over the cells, whatever the target (Muhammad & Yeasin,
      arXiv:2008.00299). A's mean is taken off first, as the package grad-cam does and the paper does not; the sign,
      which a decomposition leaves open, makes the value farthest from zero positive.

    Args:
        model: a classifier in eval mode, see `CamModel`.
        images: (B, 3, H, W), normalised as the model expects, on its device.
        target: what is explained, see `target_classes`. With two classes prefer (a, b) or `margin`: adding one vector
            to both rows of the head changes no probability, and not this map, but it does change the map of one class.
        method: one of METHODS.
        layers: modules of the model by their names, such as encoder.layer3.1; none: the last feature map. The maps of
            several are fused, see `fuse_maps`, and are no longer in logits.
        fuse: one of FUSIONS.

    Raises:
        ValueError: the model is in training mode; the target names no class; an unknown method, fusion or layer; or a
            layer without a map.
    """
    _check_name("method", method, METHODS)
    _check_name("fuse", fuse, FUSIONS)
    if model.training:
        raise ValueError("model: is in training mode, where maps depend on the other tiles; call model.eval() first")
    with torch.inference_mode(False), torch.enable_grad():
        images = images.contiguous(memory_format=torch.channels_last)  # the convolutions' faster order
        features, logits = _last_features(model, images) if not layers else _layer_features(model, images, layers)
        gradients: Sequence[Tensor | None] = [None] * len(features)
        if method != "eigencam":
            score = score_of(logits, target_classes(logits.detach(), target))
            gradients = torch.autograd.grad(score.sum(), features, allow_unused=True)
    maps = [
        _map(A.detach(), torch.zeros_like(A) if G is None else G, method=method)
        for A, G in zip(features, gradients, strict=True)
    ]
    return (maps[0] if len(maps) == 1 else fuse_maps(maps, how=fuse)), logits.detach()


def margin(logits: Tensor) -> Tensor:
    """Return for each image the predicted class and the next, (B, 2): a target, the logit difference of the two."""
    return logits.topk(2, dim=1).indices


def target_classes(logits: Tensor, target: Target) -> Tensor:
    """Return the class that each image's score is the logit of, (B, 1), or the pair it is the difference of, (B, 2).

    Args:
        logits: (B, K).
        target: a class; or (a, b) for the difference logit a - logit b; or a class per image, an integer tensor (B,),
            or a pair per image, (B, 2); or a function of the logits that gives such a tensor, as `margin` does; or None
            for the class that the model predicts, image by image.

    Raises:
        ValueError: it names no class.
    """
    batch, classes = logits.shape
    if target is None:
        return logits.argmax(dim=1, keepdim=True)
    if callable(target) and not isinstance(target, Tensor):
        target = target(logits)
    if isinstance(target, Tensor):
        shapes = (batch,), (batch, 1), (batch, 2)
        if tuple(target.shape) not in shapes or target.is_floating_point() or target.dtype == torch.bool:
            raise ValueError(
                f"target: {target.dtype} tensor of shape {tuple(target.shape)}, must be integers of shape "
                f"({batch},), one class per image, or ({batch}, 2), a pair per image"
            )
        found = target.reshape(batch, -1)
        named = found.flatten().tolist()
    else:
        named = list(target) if isinstance(target, tuple) else [target]
        if isinstance(target, tuple) and (len(named) != 2 or named[0] == named[1]):
            raise ValueError(f"target: {target}, must be a class or two different classes (a, b)")
        found = torch.tensor(named).expand(batch, -1)
    outside = [label for label in named if not 0 <= label < classes]
    if outside:
        raise ValueError(f"target: class {outside[0]}, must lie within 0 to {classes - 1}")
    return found.to(logits.device, torch.int64)


def score_of(logits: Tensor, named: Tensor) -> Tensor:
    """Return the score of each image, (B,), with what `target_classes` gave."""
    values = logits.gather(1, named)
    return values[:, 0] if named.shape[1] == 1 else values[:, 0] - values[:, 1]


def unexplained(maps: Tensor, logits: Tensor, *, bias: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """Return each image's score without its bias, and by how much the sum of its map misses it, (B,) each, float64.

    The maps of the last features by the methods of COMPLETE miss it by rounding only, where the net ends in global
    average pooling and a linear layer: every bit of the score lies somewhere on the map.

    Args:
        maps, logits: from `class_maps`, not enlarged.
        bias: of the linear layer, (K,).
        target: as given to `class_maps`.

    Source: Draelos & Carin, arXiv:2011.08891, sec. 3.
    """
    named = target_classes(logits, target)  # of the logits as they are: without the bias another class may lead
    score = score_of(logits.double() - bias.detach().double(), named)
    return score, maps.double().sum(dim=(1, 2)) - score


def fuse_maps(maps: Sequence[Tensor], *, how: str = "max") -> Tensor:
    """Return one map, (B, h, w) as large as the largest, of the maps of several layers, (B, h_i, w_i) each.

    Of each map the positive part over its maximum is taken, zeros where there is no evidence. `max`: of tanh(2 x map),
    the largest (Jiang et al., doi 10.1109/TIP.2021.3089943, Eq. 9; they leave the last stage out of the tanh, torchcam
    does not, nor do we: all layers count alike). `mean`: the mean (as the package grad-cam does).

    Raises:
        ValueError: no map, or an unknown way.
    """
    _check_name("fuse", how, FUSIONS)
    if not maps:
        raise ValueError("maps: none given, must be at least one")
    size = max((m.shape[1:] for m in maps), key=lambda shape: shape[0] * shape[1])
    fused = []
    for raw in maps:
        peak, largest = raw.amax((1, 2), keepdim=True), raw.abs().amax((1, 2), keepdim=True)
        evident = (peak >= MIN_EVIDENCE) & (peak > _ROUNDING * largest)
        unit = torch.where(evident, raw.clamp_min(0) / peak, 0.0)
        unit = torch.tanh(2 * unit) if how == "max" else unit
        fused.append(F.interpolate(unit[:, None], size=size, mode="bilinear", align_corners=False)[:, 0])
    stack = torch.stack(fused)
    return stack.amax(0) if how == "max" else stack.mean(0)


def _last_features(model: CamModel, images: Tensor) -> tuple[list[Tensor], Tensor]:
    with torch.no_grad():
        features = model.forward_features(images).detach()
    features.requires_grad_(True)
    return [features], model.forward_head(features)


def _layer_features(model: CamModel, images: Tensor, layers: Sequence[str]) -> tuple[list[Tensor], Tensor]:
    """Return what the named modules give, part of the logits' graph, and the logits."""
    net = cast(nn.Module, model)
    # Detached parameters: the graph begins at the first named layer, and no parameter is in it.
    constants = {name: value.detach() for name, value in net.named_parameters()}
    with _keeping(net, layers) as kept:
        logits: Tensor = torch.func.functional_call(net, constants, (images,))
    rows, columns = images.shape[2:]
    for name in layers:
        found = kept[name]
        if len(found) != 1:
            times = "does not run" if not found else f"runs {len(found)} times"
            raise ValueError(f"layer: {name} {times} in one pass, so it has no one map; name the block around it")
        shape = tuple(found[0].shape)
        if len(shape) != 4 or min(shape[2:]) < 2 or shape[2] * columns != shape[3] * rows:
            raise ValueError(f"layer: {name} gives no maps of channels (its output is {shape}); name another layer")
    return [kept[name][0] for name in layers], logits


@contextlib.contextmanager
def _keeping(net: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Keep what the named modules give, while the context lasts."""
    modules = {name: module for name, module in net.named_modules() if name}
    for name in layers:
        if name not in modules:
            near = difflib.get_close_matches(name, modules, n=1, cutoff=0)
            raise ValueError(f"layer: got {name!r}, the model has none of that name; did you mean {near[0]}?")
    kept: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, given: Any, output: Any) -> Tensor | None:
            if not isinstance(output, Tensor):
                return None
            found = output if output.requires_grad else output.detach().requires_grad_(True)
            kept[name].append(found)
            return found.clone()  # what follows may work in place

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in kept]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _map(features: Tensor, gradient: Tensor, *, method: str) -> Tensor:
    """Return the raw maps (B, h, w) of features and the score's gradient, (B, C, h, w)."""
    dtype = torch.promote_types(features.dtype, torch.float32)  # half precision is too coarse for the sums below
    features, gradient = features.to(dtype), gradient.to(dtype)
    if method == "gradcam":
        return (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1)
    if method == "gradcam++":
        share = 2 + features.sum(dim=(2, 3), keepdim=True) * gradient  # below 2 only where features are negative
        weights = gradient.clamp_min(0) / torch.where(share == 0, torch.inf, share)
        return (weights.sum(dim=(2, 3), keepdim=True) * features).sum(dim=1)
    if method == "layercam":
        return (gradient.clamp_min(0) * features).sum(dim=1)
    if method == "hirescam":
        return (gradient * features).sum(dim=1)
    cells = features.flatten(2).transpose(1, 2)  # (B, h w, C)
    cells = cells - cells.mean(dim=1, keepdim=True)
    first: Tensor = torch.linalg.svd(cells, full_matrices=False).Vh[:, 0]  # (B, C)
    found = (cells @ first[:, :, None])[:, :, 0]
    sign = torch.where(found.amax(1) >= -found.amin(1), 1.0, -1.0).to(dtype)
    return (sign[:, None] * found).view(len(found), *features.shape[2:])


def _check_name(key: str, name: str, allowed: Sequence[str]) -> None:
    if name not in allowed:
        near = difflib.get_close_matches(name, allowed, n=1, cutoff=0)
        raise ValueError(f"{key}: got {name!r}, allowed are {', '.join(allowed)}; did you mean {near[0]}?")


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
    truth = mask_box(mask)
    if box is None:
        return {"peak_hit": False, "box_iou": 0.0, "box_hit": False}
    peak_hit = bool(mask[np.unravel_index(cam.argmax(), cam.shape)])
    iou = box_iou(box.corners, truth)
    return {"peak_hit": peak_hit, "box_iou": iou, "box_hit": iou >= 0.5}


def mask_box(mask: BoolArray) -> tuple[int, int, int, int]:
    """Return the smallest rectangle (x0, y0, x1, y1), half open, that holds a whole mask (H, W).

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise ValueError("mask: has no true pixel, so there is nothing to hit; leave this tile out")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def box_iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Return intersection over union of two rectangles (x0, y0, x1, y1), half open."""
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def centre_map(size_px: int) -> npt.NDArray[np.float32]:
    """Return a map (size_px, size_px) that always points at the centre: the baseline for `localisation`.

    A Gaussian of a standard deviation of a fifth of the side, peak about 1: its box at 0.2 is centred and 71%
    wide.
    """
    offset = (np.arange(size_px) - (size_px - 1) / 2) / (size_px / 5)
    return np.exp(-(offset[:, None] ** 2 + offset[None, :] ** 2) / 2).astype(np.float32)
