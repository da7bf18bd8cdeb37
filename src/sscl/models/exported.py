"""The model that `sscl export` writes into files.

B tiles, C features, K classes, S the side of a tile in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from sscl.data.scale import Scale
from sscl.models.checkpoint import Checkpoint
from sscl.models.encoders import Encoder
from sscl.models.exports import Decisions


@dataclass(frozen=True)
class Exported:
    """What is exported.

    Attributes:
        model: (B, 3, S, S) -> (B, C) or (B, K), in evaluation mode on the CPU.
        encoder: the encoder in it, or the model itself. head: features to logits, of a classifier.
        state: its tensors by the names they get in the files.
        size_px: S. scale: at which the tiles of its training show tissue.
        mean, std: channel means and standard deviations of pixels in 0-1.
        checkpoint: the facts of the sscl checkpoint it comes from; None for other weights.
        decisions: of a classifier.
    """

    model: nn.Module
    encoder: Encoder
    state: dict[str, torch.Tensor]
    size_px: int
    scale: Scale
    mean: tuple[float, ...]
    std: tuple[float, ...]
    checkpoint: Checkpoint | None
    head: nn.Linear | None = None
    decisions: Decisions | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """K names, in the order of the logits; none of an encoder."""
        return () if self.head is None or self.checkpoint is None else self.checkpoint.classes

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return features (B, C) of an encoder, logits (B, K) of a classifier, without a temperature."""
        features: torch.Tensor = self.encoder(x)
        return features if self.head is None else self.head(features)


def as_elsewhere(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors by the names that they have in the package that an encoder is from: without `net.` before all."""
    prefix = "net." if all(name.startswith("net.") for name in state) else ""
    return {name.removeprefix(prefix): value for name, value in state.items()}
