"""What a fine-tuned checkpoint keeps of its validation tiles, so that its probabilities can be calibrated later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

import torch
from pydantic import Field

PrecisionName = Annotated[str, Field(pattern="^(fp32|bf16|fp16)$")]
_Share = Annotated[float, Field(ge=0, le=1)]


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

    temperature: Annotated[float, Field(gt=0)]
    threshold: _Share | None
    positive: str | None
    tiles: Annotated[int, Field(ge=0)]
    method: str
    ece_before: _Share
    ece_after: _Share
    precision: PrecisionName
    logits: torch.Tensor
    labels: torch.Tensor

    def to_dict(self) -> dict[str, Any]:
        """Return tensors and plain values, as a checkpoint stores them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def check(self, classes: Sequence[str]) -> None:
        """Raise ValueError where logits, labels and positive class are not those of N tiles of these classes."""
        if self.positive is not None and self.positive not in classes:
            raise ValueError(f"calibration.positive: {self.positive!r} is none of the classes")
        if self.logits.dtype != torch.float32 or self.logits.shape != (self.tiles, len(classes)):
            raise ValueError(f"calibration.logits: must be float32, {self.tiles} tiles x {len(classes)} classes")
        labels = self.labels
        if labels.dtype != torch.int64 or labels.shape != (self.tiles,) or not labels.numel():
            raise ValueError(f"calibration.labels: must be int64, {self.tiles} tiles, one or more")
        if int(labels.min()) < 0 or int(labels.max()) >= len(classes):
            raise ValueError(f"calibration.labels: must be from 0 to {len(classes) - 1}")
