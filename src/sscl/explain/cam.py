"""Grad-CAM and its relatives: raw maps of where a model finds evidence.

Maps stay raw until they are drawn. Those of Grad-CAM and HiResCAM are signed, in logits per cell: for a model that ends
in global average pooling and a linear layer they sum to the score without its bias, so their values are meaningful.
Shape letters: B tiles, C channels, h x w cells of a feature map, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sscl.device import sum_dtype
from sscl.explain.boxes import MIN_EVIDENCE, ROUNDING
from sscl.explain.layers import layer_features
from sscl.explain.targets import AnyTarget, score_of, target_classes
from sscl.words import nearest

METHODS = {
    "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "layercam": "LayerCAM",
    "hirescam": "HiResCAM",
    "eigencam": "EigenCAM",
}
COMPLETE = ("gradcam", "hirescam")  # their maps of the last features sum to the score, see `unexplained`
FUSIONS = ("max", "mean")


class CamModel(Protocol):
    """What `class_maps` asks of a classifier (timm's names); for named layers it must be a torch Module."""

    training: bool

    def forward_features(self, x: Tensor, /) -> Tensor: ...  # (B, 3, H, W) -> (B, C, h, w), or tokens (B, L, C)

    def forward_head(self, maps: Tensor, /) -> Tensor: ...  # of either -> (B, K)

    def grid(self, features: Tensor, /) -> Tensor: ...  # of tokens, or their gradient -> (B, C, h, w)


def grad_cam(model: CamModel, images: Tensor, *, target: AnyTarget) -> tuple[Tensor, Tensor]:
    """Return the raw Grad-CAM maps (B, h, w), before ReLU and scaling, and the logits (B, K): see `class_maps`."""
    return class_maps(model, images, target=target)


def class_maps(
    model: CamModel,
    images: Tensor,
    *,
    target: AnyTarget,
    method: str = "gradcam",
    layers: Sequence[str] = (),
    fuse: str = "max",
) -> tuple[Tensor, Tensor]:
    """Return raw maps (B, h, w), before ReLU and scaling, and the logits (B, K).

    For the last feature map the trunk runs without a graph; only the head is differentiated, with respect to its
    input. For named layers the graph begins at the first of them. No hook stays, no `.grad` is left behind, and it
    works on frozen parameters and inside `torch.no_grad`.

    With A the features and G the score's gradient, both (C, h, w), a cell of the map is

    - gradcam: sum over C of A x mean(G) (Selvaraju et al., arXiv:1610.02391, Eq. 1 and 2);
    - gradcam++: sum of A x sum(ReLU(G) / (2 + sum(A) G)), sums over cells (Chattopadhay et al., arXiv:1710.11063,
      Eq. 19 with G squared cancelled). Their G is that of exp(score), which scales a map as a whole;
    - layercam: sum of A x ReLU(G) (Jiang et al., IEEE TIP 2021, doi 10.1109/TIP.2021.3089943);
    - hirescam: sum of A x G (Draelos & Carin, arXiv:2011.08891). For the last features, before pooling and a
      linear head, it equals Grad-CAM;
    - eigencam: A projected on its first principal component over the cells, whatever the target (Muhammad & Yeasin,
      arXiv:2008.00299). A's mean is subtracted first, as the package grad-cam does and the paper does not; the sign,
      which a decomposition leaves open, makes the value farthest from zero positive.

    Args:
        model: a classifier in eval mode, see `CamModel`.
        images: (B, 3, H, W), normalised as the model expects, on its device.
        target: what is explained, see `targets.target_classes`. With two classes prefer (a, b) or DIFFERENCE: adding
            one vector to both rows of the head changes neither a probability nor this map, but it changes the map of
            a single class.
        method: one of METHODS.
        layers: modules of the model by name, such as encoder.layer3.1; empty = the last feature map. The maps of
            several are fused, see `fuse_maps`, and are no longer in logits.
        fuse: one of FUSIONS.

    Raises:
        ValueError: the model is in training mode; the target names no class; an unknown method, fusion or layer; or a
            layer without a map.
    """
    _check_name("method", method, tuple(METHODS))
    _check_name("fuse", fuse, FUSIONS)
    if model.training:
        raise ValueError("model: is in training mode, where tiles affect each other's maps; call model.eval() first")
    with torch.inference_mode(False), torch.enable_grad():
        images = images.contiguous(memory_format=torch.channels_last)  # the convolutions' faster order
        if layers:
            features, logits = layer_features(cast(nn.Module, model), images, layers)
        else:
            features, logits = _last_features(model, images)
        gradients: Sequence[Tensor | None] = [None] * len(features)
        if method != "eigencam":
            score = score_of(logits, target_classes(logits.detach(), target))
            gradients = torch.autograd.grad(score.sum(), features, allow_unused=True)
    pairs = [(A.detach(), torch.zeros_like(A) if G is None else G) for A, G in zip(features, gradients, strict=True)]
    if not layers and features[0].ndim == 3:  # tokens
        pairs = [(model.grid(A), model.grid(G)) for A, G in pairs]
    maps = [_map(A, G, method=method) for A, G in pairs]
    return (maps[0] if len(maps) == 1 else fuse_maps(maps, how=fuse)), logits.detach()


def in_logits(method: str, layers: Sequence[str]) -> bool:
    """Return whether the cells of a map are logits, which sum to the score for a model that ends in a linear layer."""
    return method in COMPLETE and not layers


def unexplained(maps: Tensor, logits: Tensor, *, bias: Tensor, target: AnyTarget) -> tuple[Tensor, Tensor]:
    """Return each image's score without its bias, and by how much the sum of its map misses it, (B,) each, float64.

    For a model that ends in global average pooling and a linear layer, maps of the last features by the methods of
    COMPLETE miss it only by rounding: every part of the score lies somewhere on the map.

    Args:
        maps, logits: from `class_maps`, not enlarged.
        bias: of the linear layer, (K,).
        target: as given to `class_maps`.

    Source: Draelos & Carin, arXiv:2011.08891, sec. 3.
    """
    named = target_classes(logits, target)  # of the logits as they are: without the bias another class may lead
    exact = sum_dtype(logits.device)
    score = score_of(logits.to(exact) - bias.detach().to(exact), named)
    return score, maps.to(exact).sum(dim=(1, 2)) - score


def fuse_maps(maps: Sequence[Tensor], *, how: str = "max") -> Tensor:
    """Return one map, (B, h, w) as large as the largest, of the maps of several layers, (B, h_i, w_i) each.

    Each map is reduced to its positive part over its maximum, zeros without evidence. `max`: the largest
    tanh(2 x map) (Jiang et al., doi 10.1109/TIP.2021.3089943, Eq. 9; they exempt the last stage from the tanh, torchcam
    does not, and neither do we: all layers count equally). `mean`: the mean (as the package grad-cam does).

    Raises:
        ValueError: no map, or an unknown way.
    """
    _check_name("fuse", how, FUSIONS)
    if not maps:
        raise ValueError("maps: got none, must be at least one")
    size = max((m.shape[1:] for m in maps), key=lambda shape: shape[0] * shape[1])
    fused = []
    for raw in maps:
        peak, largest = raw.amax((1, 2), keepdim=True), raw.abs().amax((1, 2), keepdim=True)
        evident = (peak >= MIN_EVIDENCE) & (peak > ROUNDING * largest)
        unit = torch.where(evident, raw.clamp_min(0) / peak, 0.0)
        unit = torch.tanh(2 * unit) if how == "max" else unit
        fused.append(F.interpolate(unit[:, None], size=size, mode="bilinear", align_corners=False)[:, 0])
    stack = torch.stack(fused)
    return stack.amax(0) if how == "max" else stack.mean(0)


def upsample(maps: Tensor, *, size_px: int) -> Tensor:
    """Return maps (B, h, w) enlarged bilinearly to (B, size_px, size_px), as `cv2.resize` does."""
    if maps.ndim != 3:
        raise ValueError(f"maps: got shape {tuple(maps.shape)}, must be (tiles, height, width)")
    return F.interpolate(maps[:, None], size=(size_px, size_px), mode="bilinear", align_corners=False)[:, 0]


def _last_features(model: CamModel, images: Tensor) -> tuple[list[Tensor], Tensor]:
    with torch.no_grad():
        features = model.forward_features(images).detach()
    features.requires_grad_(True)
    return [features], model.forward_head(features)


def _map(features: Tensor, gradient: Tensor, *, method: str) -> Tensor:
    """Return the raw maps (B, h, w) of features and the score's gradient, (B, C, h, w)."""
    dtype = torch.promote_types(features.dtype, torch.float32)  # half precision is too coarse for the sums below
    features, gradient = features.to(dtype), gradient.to(dtype)
    if method == "gradcam":
        return (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1)
    if method == "gradcam++":
        divisor = 2 + features.sum(dim=(2, 3), keepdim=True) * gradient  # below 2 only where features are negative
        weights = gradient.clamp_min(0) / torch.where(divisor == 0, torch.inf, divisor)
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
        raise ValueError(f"{key}: got {name!r}, {nearest(name, allowed)}")
