"""What stands on an encoder: the projection of pretraining and the classifier."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from sscl.device import no_autocast
from sscl.models.encoders import Encoder


class Classifier(nn.Module):
    """An encoder and a linear head; `forward_features` then `forward_head` is `forward`, as in timm."""

    def __init__(self, encoder: Encoder, *, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.num_features, num_classes)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last feature map, (B, C, h, w), or tokens, see `Encoder.forward_features`."""
        return self.encoder.forward_features(x)

    def grid(self, features: torch.Tensor) -> torch.Tensor:
        """Return what `forward_features` gave, or a gradient of it, as a map (B, C, h, w)."""
        return self.encoder.grid(features)

    def forward_head(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the logits of what `forward_features` gave, (B, K), in the precision of the head's weights.

        Under autocast too, which would round logits to 8 bits (bf16): temperature and thresholds need finer ones.
        """
        feature = self.encoder.feature(maps)
        with no_autocast(maps.device):
            return self.head(feature)  # type: ignore[no-any-return]

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


def build_projection(
    num_features: int, *, kind: Literal["linear", "mlp", "mlp_no_norm"] = "linear", hidden: int = 2048, dim: int = 128
) -> nn.Module:
    """Return a projection head, (B, num_features) -> (B, dim).

    `linear` is Jain & Lynn's; `mlp` is SimCLR's (arXiv:2002.05709), with the batch norm of its published code;
    `mlp_no_norm` is that without the batch norm.
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
    return nn.Sequential(nn.Linear(num_features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))
