"""What a fine-tuned checkpoint keeps of its validation tiles, so that its probabilities can be calibrated later."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class KeptCalibration:
    """A fitted temperature, and the validation logits from which any threshold can be chosen again.

    Attributes:
        temperature: divides the logits. method: how it was fitted, in words.
        threshold: of the calibrated probability of the positive class, by Youden's index; None where none could be
            chosen (not two classes, or validation tiles of one class only).
        positive: name of the positive class of two, or None.
        tiles: N, the validation tiles.
        ece_before, ece_after: expected calibration error on these tiles, without and with the temperature.
        precision: fp32, bf16 or fp16, in which the encoder ran to compute the logits.
        logits: float32, (N, K). labels: int64, (N,).
    """

    temperature: float
    threshold: float | None
    positive: str | None
    tiles: int
    method: str
    ece_before: float
    ece_after: float
    precision: str
    logits: torch.Tensor
    labels: torch.Tensor

    def to_dict(self) -> dict[str, Any]:
        """Return tensors and plain values, as a checkpoint stores them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
