"""The trunk of torchvision's ResNets: the same modules by the same names, drawn by the same random numbers.

torchvision itself imports every model it has, its operators and torch's compiler, which takes longer than all else
before a run's first step (`tests/models/test_encoders.py` holds the two side by side).

B tiles, C channels, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import nn

SMALL = "resnet14_small"
BLOCKS = {  # of each stage, and whether they are bottlenecks
    SMALL: ((2, 2, 2), False),
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a short cut; the first takes the stride (He et al., arXiv:1512.03385)."""

    def __init__(self, inputs: int, width: int, *, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, width, 3, stride=stride), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = convolution(width, width, 3), nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output, (B, C, H, W) -> (B, width, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a short cut; the 3x3 takes the stride, in the paper the first 1x1 does."""

    def __init__(self, inputs: int, width: int, *, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = convolution(width, width, 3, stride=stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = convolution(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output, (B, C, H, W) -> (B, 4 * width, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)  # type: ignore[no-any-return]


class Trunk(nn.Module):
    """A ResNet from its first convolution to its last stage, `layer4`.

    SMALL is a ResNet18 of half the width without its last stage, and without the stride of the one before: 0.7 million
    parameters, 128 features, a cell of the last map for 8 pixels. For few tiles, a CPU, and fine heatmaps.

    Attributes:
        num_features: channels of the last stage.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Module

    def __init__(self, name: str) -> None:
        super().__init__()
        counts, bottleneck = BLOCKS[name]
        expansion = 4 if bottleneck else 1
        first = 32 if name == SMALL else 64
        self.num_features = first * 2 ** (len(counts) - 1) * expansion
        self.conv1, self.bn1 = convolution(3, first, 7, stride=2), nn.BatchNorm2d(first)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = first
        for i, count in enumerate(counts):
            width, stride = first * 2**i, 1 if i == 0 or (name == SMALL and i == 2) else 2
            setattr(self, f"layer{i + 1}", _stage(inputs, width, count=count, stride=stride, bottleneck=bottleneck))
            inputs = width * expansion
        if len(counts) == 3:
            self.layer4 = nn.Identity()
        nn.Linear(self.num_features, 1000)  # torchvision's classifier, whose random numbers come before the weights'
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def convolution(inputs: int, outputs: int, size: int, *, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Return a convolution that keeps the size but for its stride."""
    return nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=bias)


def _stage(inputs: int, width: int, *, count: int, stride: int, bottleneck: bool) -> nn.Sequential:
    outputs = 4 * width if bottleneck else width
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(convolution(inputs, outputs, 1, stride=stride), nn.BatchNorm2d(outputs))
    kind = Bottleneck if bottleneck else BasicBlock
    blocks = [kind(inputs, width, stride=stride, downsample=downsample)]
    blocks += [kind(outputs, width, stride=1, downsample=None) for _ in range(1, count)]
    return nn.Sequential(*blocks)
