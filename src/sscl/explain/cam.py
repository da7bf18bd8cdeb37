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
from sscl.explain.attention import attention_maps
from sscl.explain.boxes import MIN_EVIDENCE, ROUNDING
from sscl.explain.choice import of_model
from sscl.explain.kinds import FUSIONS, GRADCAM, OF_ATTENTION, MapKind, check_name
from sscl.explain.layers import grid_of, layer_features
from sscl.explain.targets import AnyTarget, score_of, target_classes


class CamModel(Protocol):
    """What `class_maps` asks of a classifier (timm's names); for named layers it must be a torch Module."""

    training: bool

    def forward_features(self, x: Tensor, /) -> Tensor: ...  # (B, 3, H, W) -> (B, C, h, w), or tokens (B, N, C)

    def forward_head(self, maps: Tensor, /) -> Tensor: ...  # of either -> (B, K)


def grad_cam(model: CamModel, images: Tensor, *, target: AnyTarget) -> tuple[Tensor, Tensor]:
    """Return the raw Grad-CAM maps (B, h, w), before ReLU and scaling, and the logits (B, K): see `class_maps`."""
    return class_maps(model, images, target=target)


def class_maps(
    model: CamModel,
    images: Tensor,
    *,
    target: AnyTarget,
    kind: MapKind = GRADCAM,
) -> tuple[Tensor, Tensor]:
    """Return raw maps (B, h, w), before ReLU and scaling, and the logits (B, K).

    For the last feature map the trunk runs without a graph; only the head is differentiated, with respect to its
    input. For named layers the graph begins at the first of them. No hook stays, no `.grad` is left behind, and it
    works on frozen parameters and inside `torch.no_grad`.

    Methods of OF_ATTENTION are explained at `attention`. For the others, with A the features and G the score's
    gradient, both (C, h, w), a cell of the map is

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
        kind: how. Without layers it is the last feature map, or, where the feature is a transformer's class token, what
            enters the last block's attention (`choice.of_model`). The maps of several layers are fused, see
            `fuse_maps`, and are no longer in logits.

    Raises:
        ValueError: the model is in training mode; the target names no class; an unknown layer, one without a map, or
            one whose map cannot matter; or a method that the model does not have.
    """
    kind = of_model(kind, model)
    if model.training:
        raise ValueError("model: is in training mode, where tiles affect each other's maps; call model.eval() first")
    with torch.inference_mode(False), torch.enable_grad():
        images = images.contiguous(memory_format=torch.channels_last)  # the convolutions' faster order
        if kind.method in OF_ATTENTION:
            return attention_maps(cast(nn.Module, model), images, target=target, kind=kind)
        if kind.layers:
            features, logits = layer_features(cast(nn.Module, model), images, kind.layers)
        else:
            features, logits = _last_features(model, images)
        gradients: Sequence[Tensor | None] = [None] * len(features)
        if kind.method != "eigencam":
            score = score_of(logits, target_classes(logits.detach(), target), gamma=kind.gamma)
            gradients = torch.autograd.grad(score.sum(), features, allow_unused=True)
            _check_matters(model, kind.layers, gradients)
    maps = [
        _map(
            grid_of(model, A.detach()),
            grid_of(model, torch.zeros_like(A) if G is None else G),
            method=kind.method,
        )
        for A, G in zip(features, gradients, strict=True)
    ]
    return (maps[0] if len(maps) == 1 else fuse_maps(maps, how=kind.fuse)), logits.detach()


def unexplained(
    maps: Tensor, logits: Tensor, *, bias: Tensor, target: AnyTarget, gamma: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return each image's score without its bias, and by how much the sum of its map misses it, (B,) each, float64.

    For a model that ends in global average pooling and a linear layer, maps of the last features by the methods of
    COMPLETE miss it only by rounding: every part of the score lies somewhere on the map.

    Args:
        maps, logits: from `class_maps`, not enlarged.
        bias: of the linear layer, (K,).
        target, gamma: as given to `class_maps`.

    Source: Draelos & Carin, arXiv:2011.08891, sec. 3.
    """
    named = target_classes(logits, target)  # of the logits as they are: without the bias another class may lead
    exact = sum_dtype(logits.device)
    score = score_of(logits.to(exact) - bias.detach().to(exact), named, gamma=gamma)
    return score, maps.to(exact).sum(dim=(1, 2)) - score


def fuse_maps(maps: Sequence[Tensor], *, how: str = "max") -> Tensor:
    """Return one map, (B, h, w) as large as the largest, of the maps of several layers, (B, h_i, w_i) each.

    `sum` adds the raw maps, which keeps signs and units. For the others each map is reduced to its positive part over
    its maximum, zeros without evidence. `max`: the largest tanh(2 x map) (Jiang et al., doi
    10.1109/TIP.2021.3089943, Eq. 9; they exempt the last stage from the tanh, torchcam does not, and neither do we: all
    layers count equally). `mean`: the mean (as the package grad-cam does).

    Raises:
        ValueError: no map, or an unknown way.
    """
    check_name("fuse", how, FUSIONS)
    if not maps:
        raise ValueError("maps: got none, must be at least one")
    size = max((m.shape[1:] for m in maps), key=lambda shape: shape[0] * shape[1])
    parts = list(maps) if how == "sum" else [_unit(raw) for raw in maps]
    parts = [torch.tanh(2 * part) for part in parts] if how == "max" else parts
    stack = torch.stack(
        [F.interpolate(part[:, None], size=size, mode="bilinear", align_corners=False)[:, 0] for part in parts]
    )
    return stack.amax(0) if how == "max" else stack.mean(0) if how == "mean" else stack.sum(0)


def _unit(raw: Tensor) -> Tensor:
    """Return the positive part of maps over their maximum, zeros where there is no evidence."""
    peak, largest = raw.amax((1, 2), keepdim=True), raw.abs().amax((1, 2), keepdim=True)
    evident = (peak >= MIN_EVIDENCE) & (peak > ROUNDING * largest)
    return torch.where(evident, raw.clamp_min(0) / peak, 0.0)


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


def _check_matters(model: CamModel, layers: Sequence[str], gradients: Sequence[Tensor | None]) -> None:
    """Raise ValueError if the patch tokens of a layer do not lead to the score: its map would be zero everywhere."""
    for name, gradient in zip(layers or ("the last features",), gradients, strict=True):
        if gradient is None or (gradient.ndim == 3 and not grid_of(model, gradient).any()):
            raise ValueError(
                f"layer: nothing in the map of {name} leads to the score; name an earlier layer, or leave it out"
            )


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
