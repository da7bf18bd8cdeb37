"""ResNet encoders, projection heads and the classifier.

B tiles, C features, K classes, h x w the last feature map.
"""

from __future__ import annotations

from http.client import HTTPException
from typing import Any

import torch
import torchvision
from torch import nn

from sscl.weights import load_trunk, read_trunk

ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101")
STEMS = ("standard", "small")
OUTPUT_STRIDES = (32, 16)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """A ResNet trunk with torchvision's parameter names; `num_features`, `forward_features`, `forward` as in timm.

    With `output_stride` 16 the last stage keeps its resolution, so that the last feature map, and with it Grad-CAM, is
    twice as fine; the weights are the same (Choe et al., arXiv:2001.07437, localise with such nets).
    """

    def __init__(self, name: str, *, stem: str = "standard", output_stride: int = 32) -> None:
        super().__init__()
        net = torchvision.models.get_model(name, weights=None)
        self.name, self.stem, self.output_stride = name, stem, output_stride
        self.num_features: int = net.fc.in_features
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        if stem == "small":
            self.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.maxpool = nn.Identity()
        if output_stride == 16:
            for module in self.layer4.modules():
                if isinstance(module, nn.Conv2d):
                    module.stride = (1, 1)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last feature map, (B, 3, H, W) -> (B, C, h, w)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the pooled features, (B, 3, H, W) -> (B, C)."""
        return self.forward_features(x).mean((2, 3))


class Classifier(nn.Module):
    """An encoder and a linear head; `forward_features` then `forward_head` is `forward`, as in timm."""

    def __init__(self, encoder: Encoder, *, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.num_features, num_classes)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last feature map, (B, C, h, w)."""
        return self.encoder.forward_features(x)

    def forward_head(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the logits of feature maps, (B, C, h, w) -> (B, K)."""
        return self.head(maps.mean((2, 3)))  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, (B, 3, H, W) -> (B, K)."""
        return self.forward_head(self.forward_features(x))


class ContrastiveModel(nn.Module):
    """An encoder and a projection head; `forward` gives the projections that NT-Xent compares."""

    def __init__(self, encoder: Encoder, *, projection: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = projection

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the projections, (B, 3, H, W) -> (B, D)."""
        return self.projection(self.encoder(x))  # type: ignore[no-any-return]


def build_projection(num_features: int, *, kind: str = "linear", hidden: int = 2048, dim: int = 128) -> nn.Module:
    """Return a projection head, (B, num_features) -> (B, dim).

    `linear` is Jain & Lynn's; `mlp` is SimCLR's (arXiv:2002.05709), with the batch norm of its published code;
    `mlp_no_norm` is that without the batch norm.

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "linear":
        return nn.Linear(num_features, dim)
    if kind == "mlp":
        return nn.Sequential(
            nn.Linear(num_features, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, dim),
        )
    if kind == "mlp_no_norm":
        return nn.Sequential(nn.Linear(num_features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))
    raise ValueError(f"projection: got {kind!r}, allowed are linear, mlp, mlp_no_norm")


def build_encoder(name: str, *, weights: str | None = None, stem: str = "standard", output_stride: int = 32) -> Encoder:
    """Return a ResNet trunk, in training mode.

    Args:
        name: resnet18, resnet34, resnet50 or resnet101.
        weights: None (random), "imagenet" (torchvision's default weights, downloaded once by torchvision), or the path
            of an encoder: a checkpoint of ours, our `encoder.pt`, or a torchvision ResNet state dict.
        stem: "standard" (7x7 stride 2, max-pool) or "small" (3x3 stride 1, no max-pool; for tiles under 96 px).
        output_stride: pixels of a tile per cell of the last feature map with the standard stem, 32 or 16.

    Raises:
        ValueError: an unknown name or stem; weights that do not fit.
        FileNotFoundError: the weights file is missing.
    """
    if name not in ENCODERS:
        raise ValueError(f"model.name: got {name!r}, allowed are {', '.join(ENCODERS)}")
    if stem not in STEMS:
        raise ValueError(f"model.stem: got {stem!r}, allowed are {', '.join(STEMS)}")
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"model.output_stride: got {output_stride}, allowed are 32, 16")
    encoder = Encoder(name, stem=stem, output_stride=output_stride)
    if weights == "imagenet":
        if stem == "small":
            raise ValueError("model.stem: small cannot take ImageNet's 7x7 first convolution; use model.stem=standard")
        load_trunk(encoder, _imagenet_state(name), source="ImageNet weights")
    elif weights is not None:
        load_trunk(encoder, read_trunk(weights).state, source=str(weights))
    return encoder


def _imagenet_state(name: str) -> dict[str, Any]:
    try:
        state = torchvision.models.get_model(name, weights="DEFAULT").state_dict()
    except (OSError, HTTPException, RuntimeError) as error:  # urllib's are OSErrors; RuntimeError: a wrong hash
        raise ValueError(
            f"model.weights: torchvision could not download the ImageNet weights of {name} ({error}); "
            "put its state dict in a file and give model.weights=PATH"
        ) from error
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


def preprocessing_of(name: str, weights: str | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the channel means and deviations, of pixels in 0-1, of random or ImageNet weights of an encoder."""
    return IMAGENET_MEAN, IMAGENET_STD
