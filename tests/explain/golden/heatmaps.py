"""Writes heatmaps.npz: maps of the package grad-cam, which the tests hold ours to and do not install.

In the environment of scripts/bench: python tests/golden/heatmaps.py
Written with grad-cam 1.5.7, torch 2.15, 2026-11-21.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

FILE = Path(__file__).with_suffix(".npz")
METHODS = ("gradcam", "gradcam++", "layercam", "hirescam", "eigencam")
LAYERS = ("trunk.1", "trunk.2", "trunk.4")
TARGET = 1


class GoldenNet(nn.Module):
    """Three convolutions, pooling, a linear layer; weights from numpy, whose generator is the same everywhere.

    The head's weights are large because grad-cam adds 1e-6 to a denominator of Grad-CAM++, which we do not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True)),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)
        rng = np.random.default_rng(7)
        with torch.no_grad():
            for value in self.parameters():
                fan_in = max(1, value[0].numel())
                value.copy_(torch.from_numpy(rng.normal(size=value.shape) / fan_in**0.5))
            self.head.weight *= 1e5

    def forward_features(self, x: Tensor) -> Tensor:
        maps: Tensor = self.trunk(x)
        return maps

    def forward_head(self, maps: Tensor) -> Tensor:
        pooled = (maps * maps.sigmoid()).mean((2, 3))  # so that gradients differ from cell to cell
        logits: Tensor = self.head(torch.tanh(self.hidden(pooled)))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(8).normal(size=(2, 3, 20, 20)).astype(np.float32))


def main() -> None:
    from pytorch_grad_cam import EigenCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    theirs = dict(zip(METHODS, (GradCAM, GradCAMPlusPlus, LayerCAM, HiResCAM, EigenCAM), strict=True))
    found = {}
    for method, kind in theirs.items():
        for layer in LAYERS:
            net = GoldenNet().eval()
            with kind(net, [net.get_submodule(layer)]) as extractor:
                maps = extractor(images(), [ClassifierOutputTarget(TARGET)] * 2)
            found[f"{method} {layer}"] = np.asarray(maps, dtype=np.float32)
    np.savez_compressed(FILE, allow_pickle=False, **found)


if __name__ == "__main__":
    main()
